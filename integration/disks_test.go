package integration

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/integration/lab"
	"tandemfs/integration/tree"
)

// noise is content that does not compress, another for each purpose.
func noise(n int, purpose byte) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{purpose}).Read(b)
	return b
}

// freeOn is how many bytes a filesystem has free.
func freeOn(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Statfs_t
	check(t, unix.Statfs(path, &st))
	return int64(st.Bfree) * st.Bsize
}

// ballast takes space on the disk of a backing directory, beside it, until so much is left; the function gives it back.
func ballast(t *testing.T, backing string, left int64) (release func()) {
	t.Helper()
	path := filepath.Join(filepath.Dir(backing), "ballast")
	f, err := os.Create(path)
	check(t, err)
	defer f.Close()
	for size, step := int64(0), int64(64<<20); step >= 4096; {
		if freeOn(t, backing)-step < left || unix.Fallocate(int(f.Fd()), 0, size, step) != nil {
			step /= 2
			continue
		}
		size += step
	}
	check(t, f.Sync())
	return func() { check(t, os.Remove(path)) }
}

// noSpace waits until both ends say that the target's disk is full.
func noSpace(t *testing.T, pair *lab.Pair) {
	t.Helper()
	for _, n := range []*lab.Node{pair.Source, pair.Target} {
		pair.Await(n, time.Minute, "paused", func(s statusOf) error {
			if s.Job != "no-space" || !strings.Contains(s.LastError, "make room") {
				return fmt.Errorf("the job is %s, the error %q", s.Job, s.LastError)
			}
			return nil
		})
	}
}

// checkpoint is how many bytes are applied, at the most, between two notes of how far a transfer has come.
const checkpoint = 64 << 20

// The target's disk is full: the transfer pauses, and goes on by itself where it was.
func TestAFullTargetPausesAndGoesOn(t *testing.T) {
	for _, kind := range []string{lab.Ext4, lab.XFS} {
		t.Run(kind, func(t *testing.T) {
			a, b := two(t)
			source := newVolume(t, a, "data", kind, smallDisk, grow(t, 200))
			target := newVolume(t, b, "copy", kind, gib/2, nil)
			pair := relate(t, source, target)
			sameCopy(t, "at first", source, target, pair)
			const size = 150 << 20
			release := ballast(t, target.Backing, 130<<20)
			check(t, os.WriteFile(filepath.Join(source.Mount, "large"), noise(size, 1), 0o644))
			write(t, "small", source.Mount, "small")
			noSpace(t, pair)
			before := scan(t, target.Mount)
			point, sent := pair.Status(a).RecoveryPoint.Epoch, pair.Status(a).TotalWireBytes
			time.Sleep(8 * time.Second) // a try or two
			s := pair.Status(a)
			if s.RecoveryPoint.Epoch != point || s.TotalWireBytes-sent > 1<<20 {
				t.Errorf("while the disk is full %d bytes were sent, and the recovery point went from %d to %d", s.TotalWireBytes-sent, point, s.RecoveryPoint.Epoch)
			}
			sameTrees(t, "while the disk is full", before, scan(t, target.Mount), tree.Options{})
			release()
			start := time.Now()
			sameCopy(t, "when there is room again", source, target, pair)
			if took := time.Since(start); took > 30*time.Second {
				t.Errorf("it took %v to go on", took)
			}
			// Where there is no room to note how far it has come it goes on from the last checkpoint.
			if all := pair.Status(a).TotalWireBytes; all > size*5/4+checkpoint {
				t.Errorf("%d bytes were sent for %d", all, size)
			}
		})
	}
}

// A target takes over though its disk is full of a transfer, and what that has made shorter needs room to be put back.
func TestAFullTargetCanTakeOver(t *testing.T) {
	for _, kind := range []string{lab.Ext4, lab.XFS} {
		t.Run(kind, func(t *testing.T) {
			a, b := two(t)
			source := newVolume(t, a, "data", kind, smallDisk, func(dir string) {
				check(t, os.WriteFile(filepath.Join(dir, "log"), noise(24<<20, 2), 0o644))
			})
			target := newVolume(t, b, "copy", kind, gib/2, nil)
			pair := relate(t, source, target)
			sameCopy(t, "at first", source, target, pair)
			before := scan(t, target.Mount)
			ballast(t, target.Backing, 130<<20)
			a.Must("relationship", "disable", pair.ID) // so that it goes with one transfer
			check(t, os.Truncate(filepath.Join(source.Mount, "log"), 1))
			check(t, os.WriteFile(filepath.Join(source.Mount, "large"), noise(150<<20, 1), 0o644))
			a.Must("relationship", "enable", pair.ID)
			noSpace(t, pair)
			b.Must("relationship", "delete", "--yes", pair.ID)
			sameTrees(t, "after the end", before, scan(t, target.Mount), tree.Options{IgnoreHoles: kind == lab.XFS})
			write(t, "x", target.Mount, "log")
		})
	}
}

// Inodes run out like blocks.
func TestATargetWithoutInodesPausesAndGoesOn(t *testing.T) {
	a, b := two(t)
	source := newVolume(t, a, "data", lab.Ext4, smallDisk, nil)
	target := newVolume(t, b, "copy", lab.Ext4, gib/4, nil)
	pair := relate(t, source, target)
	sameCopy(t, "at first", source, target, pair)
	beside := lab.MakeDir(t, filepath.Dir(target.Backing), "beside")
	var err error
	for i := 0; err == nil; i++ {
		err = unix.Mknod(filepath.Join(beside, fmt.Sprint(i)), unix.S_IFIFO|0o600, 0)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	for i := range 100 {
		write(t, "content", source.Mount, fmt.Sprint("f", i))
	}
	noSpace(t, pair)
	check(t, os.RemoveAll(beside))
	sameCopy(t, "when there are inodes again", source, target, pair)
}

// The source's disk is full: writers see it, nothing else breaks, and what was written is replicated. Things can
// be removed through the mount, however full the disk is for it.
func TestAFullSourceBreaksNothing(t *testing.T) {
	for _, kind := range []string{lab.Ext4, lab.XFS} {
		t.Run(kind, func(t *testing.T) {
			a, b := two(t)
			source := newVolume(t, a, "data", kind, gib/2, grow(t, 200))
			target := newVolume(t, b, "copy", kind, gib, nil)
			pair := relate(t, source, target)
			chunk := noise(1<<20, 2)
			files := 0
			fill := func() {
				t.Helper()
				for ; ; files++ {
					err := os.WriteFile(filepath.Join(source.Mount, fmt.Sprint("f", files)), chunk, 0o644)
					if errors.Is(err, unix.ENOSPC) {
						return
					}
					check(t, err)
					if files > 1000 {
						t.Fatal("the disk does not get full")
					}
				}
			}
			for range 3 {
				fill()
				pair.Quiet(2 * time.Minute)
				sameTrees(t, "while the source is full", scan(t, source.Backing), scan(t, target.Backing), tree.Options{IgnoreHoles: true})
				for range 20 {
					files--
					check(t, os.Remove(filepath.Join(source.Mount, fmt.Sprint("f", files))))
				}
			}
			release := ballast(t, source.Backing, 0) // somebody else takes what was left
			if err := os.WriteFile(filepath.Join(source.Mount, "more"), chunk, 0o644); !errors.Is(err, unix.ENOSPC) {
				t.Errorf("a write on a disk without a block: %v", err)
			}
			for i := range 50 {
				check(t, os.Remove(filepath.Join(source.Mount, fmt.Sprint("f", i))))
			}
			if got, err := os.ReadFile(filepath.Join(source.Mount, "f60")); err != nil || !bytes.Equal(got, chunk) {
				t.Errorf("a read: %v", err)
			}
			release()
			lab.Eventually(t, 10*time.Second, "there is room again", func() error { // XFS frees in the background
				return os.WriteFile(filepath.Join(source.Mount, "after"), []byte("after all"), 0o644)
			})
			pair.Quiet(2 * time.Minute)
			sameTrees(t, "when there is room again", scan(t, source.Backing), scan(t, target.Backing), tree.Options{IgnoreHoles: true})
			if !a.Running() || !b.Running() {
				t.Error("a daemon has ended")
			}
		})
	}
}

// The node's own folder is on a full disk: what would change it is refused in words, what runs goes on.
func TestAFullStateFolderIsToldAndLosesNothing(t *testing.T) {
	state := filepath.Join(lab.Disk(t, lab.Ext4, 64<<20), "state") // before the node that uses it: it goes after that
	source, target, pair := replicated(t, smallDisk, grow(t, 50))
	pair.Quiet(time.Minute)
	a := source.Node
	a.Stop()
	check(t, exec.Command("cp", "-a", a.State, state).Run())
	a.State = state
	a.Start()
	release := ballast(t, state, 0)
	filler := write(t, "", filepath.Dir(state), "last")
	for f, err := os.OpenFile(filler, os.O_WRONLY|os.O_APPEND, 0); err == nil; _, err = f.Write(make([]byte, 4096)) {
	}
	other := lab.MakeDir(t, lab.Disk(t, lab.Ext4, smallDisk), "other")
	for _, args := range [][]string{
		{"volume", "create", "other", other, "--mount", lab.MakeDir(t, lab.Dir(t), "other")},
		{"relationship", "disable", pair.ID},
	} {
		if r := a.Run(args...); r.Code == 0 || !strings.Contains(r.Stderr, "no space left") {
			t.Errorf("%v on a full disk: exit code %d, %q", args, r.Code, r.Stderr)
		}
	}
	write(t, "content", source.Mount, "written meanwhile")
	sameCopy(t, "while the state folder is full", source, target, pair)
	a.Kill()
	a.Start()
	sameCopy(t, "after a restart with a full state folder", source, target, pair)
	release()
	check(t, os.Remove(filler))
	a.Must("relationship", "disable", pair.ID)
	a.Must("relationship", "enable", pair.ID)
	sameCopy(t, "when there is room again", source, target, pair)
}

// A file of which a block cannot be read holds the recovery point, and nothing else.
func TestAFileOnASpoiltBlockDoesNotStopTheRest(t *testing.T) {
	for _, kind := range []string{lab.Ext4, lab.XFS} {
		t.Run(kind, func(t *testing.T) {
			a, b := two(t)
			disk := lab.NewWeakDisk(t, kind, gib)
			source := protect(t, a, "data", lab.MakeDir(t, disk.Path, "data"))
			target := newVolume(t, b, "copy", lab.Ext4, gib, nil)
			pair := relate(t, source, target)
			point := pair.Quiet(time.Minute).RecoveryPoint.Epoch
			for purpose, end := range map[byte]func(){
				3: disk.Mend,
				4: func() { check(t, os.Remove(filepath.Join(source.Mount, "bad"))) },
			} {
				b.Stop()
				bad := noise(256<<10, purpose)
				check(t, os.WriteFile(filepath.Join(source.Mount, "bad"), bad, 0o644))
				check(t, os.WriteFile(filepath.Join(source.Mount, "good"), noise(8<<20, purpose+10), 0o644))
				disk.Spoil(bad)
				if _, err := os.ReadFile(filepath.Join(source.Mount, "bad")); !errors.Is(err, unix.EIO) {
					t.Fatalf("the spoilt file gives %v", err)
				}
				b.Start()
				s := pair.Await(a, time.Minute, "holding", func(s statusOf) error {
					if s.Job != "failed" || s.Unreadable == nil {
						return fmt.Errorf("the job is %s, the error %q", s.Job, s.LastError)
					}
					return nil
				})
				if s.Unreadable.Count != 1 || s.Unreadable.Files[0].Path != "bad" || !strings.Contains(s.LastError, `"bad" (input/output error)`) {
					t.Errorf("%+v, %q", s.Unreadable, s.LastError)
				}
				if there := pair.Status(b); s.RecoveryPoint.Epoch != point || there.RecoveryPoint.Epoch != point || !strings.Contains(there.LastError, `"bad"`) {
					t.Errorf("the recovery point was %d: source %+v, target %+v", point, s, there)
				}
				if got := mustRead(t, target.Backing, "good"); got != string(noise(8<<20, purpose+10)) {
					t.Error("what can be read is not on the target")
				}
				end()
				point = pair.Quiet(time.Minute).RecoveryPoint.Epoch
				sameTrees(t, "in the end", scan(t, source.Backing), scan(t, target.Backing), tree.Options{IgnoreHoles: true})
			}
		})
	}
}

// dirBlock is how the first block of a directory of ext4 begins: with "." and "..".
func dirBlock(t *testing.T, path string) []byte {
	t.Helper()
	var self, parent unix.Stat_t
	check(t, unix.Stat(path, &self))
	check(t, unix.Stat(filepath.Dir(path), &parent))
	const recordLength, nameLength, isDir = 12, 1, 2
	b := binary.LittleEndian.AppendUint32(nil, uint32(self.Ino))
	b = append(b, recordLength, 0, nameLength, isDir, '.', 0, 0, 0)
	return binary.LittleEndian.AppendUint32(b, uint32(parent.Ino))
}

// A directory whose names cannot be read, and a link whose target cannot, hold the recovery point, and nothing else.
func TestADirectoryOnASpoiltBlockDoesNotStopTheRest(t *testing.T) {
	a, b := two(t)
	disk := lab.NewWeakDisk(t, lab.Ext4, gib)
	source := protect(t, a, "data", lab.MakeDir(t, disk.Path, "data"))
	target := newVolume(t, b, "copy", lab.Ext4, gib, nil)
	pair := relate(t, source, target)
	bad := filepath.Join("d", "bad")
	check(t, os.MkdirAll(filepath.Join(source.Mount, bad, "sub"), 0o755))
	content := noise(4<<20, 5)
	check(t, os.WriteFile(filepath.Join(source.Mount, bad, "sub", "f"), content, 0o644))
	point := pair.Quiet(time.Minute).RecoveryPoint.Epoch
	before := scan(t, target.Mount)
	b.Stop()
	write(t, "content", source.Mount, "d", "bad", "new")
	to := strings.Repeat("where this leads to nobody knows ", 20)
	check(t, os.Symlink(to, filepath.Join(source.Mount, "link")))
	good := noise(8<<20, 6)
	check(t, os.WriteFile(filepath.Join(source.Mount, "good"), good, 0o644))
	unix.Sync() // it takes two until a directory is on the device below
	disk.Spoil(dirBlock(t, filepath.Join(source.Backing, bad)))
	disk.Spoil([]byte(to))
	if _, err := os.ReadDir(filepath.Join(source.Backing, bad)); !errors.Is(err, unix.EIO) {
		t.Fatalf("the spoilt directory gives %v", err)
	}
	if _, err := os.Readlink(filepath.Join(source.Backing, "link")); !errors.Is(err, unix.EIO) {
		t.Fatalf("the spoilt link gives %v", err)
	}
	b.Start()
	s := pair.Await(a, time.Minute, "holding", func(s statusOf) error {
		if s.Job != "failed" || s.Unreadable == nil || s.Unreadable.Count != 2 {
			return fmt.Errorf("the job is %s, the error %q", s.Job, s.LastError)
		}
		return nil
	})
	for i, path := range []string{bad, "link"} {
		if s.Unreadable.Files[i].Path != path || !strings.Contains(s.LastError, fmt.Sprintf("%q (input/output error)", path)) {
			t.Errorf("%+v, %q", s.Unreadable, s.LastError)
		}
	}
	if there := pair.Status(b); s.RecoveryPoint.Epoch != point || there.RecoveryPoint.Epoch != point || !strings.Contains(there.LastError, bad) {
		t.Errorf("the recovery point was %d: source %+v, target %+v", point, s, there)
	}
	if got := mustRead(t, target.Backing, "good"); got != string(good) {
		t.Error("what can be read is not on the target")
	}
	if got := mustRead(t, target.Backing, filepath.Join(bad, "sub", "f")); got != string(content) {
		t.Error("what lies below the directory is not on the target any more")
	}
	sameTrees(t, "while something cannot be read", before, scan(t, target.Mount), tree.Options{})
	sent := pair.Status(a).TotalWireBytes
	disk.Mend()
	s = pair.Quiet(time.Minute)
	sameTrees(t, "in the end", scan(t, source.Backing), scan(t, target.Backing), tree.Options{IgnoreHoles: true})
	if s.Unreadable != nil || s.TotalWireBytes-sent > 1<<20 {
		t.Errorf("%d bytes were sent for the rest, %+v is unreadable", s.TotalWireBytes-sent, s.Unreadable)
	}
}
