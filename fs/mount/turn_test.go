package mount

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/fs/volume"
	"tandemfs/journal"
)

// check ends a test that cannot go on.
func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// states is a volume that goes from one state to the next, as a transfer changes one.
type states struct {
	t   *testing.T
	v   *volume.Volume
	mem *shared
	now int64
}

// newStates makes the first state through the mount, and freezes the volume.
func newStates(t *testing.T, mnt string, v *volume.Volume, mem *shared) *states {
	t.Helper()
	s := &states{t, v, mem, 1}
	check(t, os.Mkdir(filepath.Join(mnt, "dir"), 0o755))
	for i := range dirFiles {
		check(t, os.WriteFile(filepath.Join(mnt, "dir", fmt.Sprint("file", i)), nil, 0o644))
	}
	check(t, os.WriteFile(stateName(filepath.Join(mnt, "dir"), 1), nil, 0o644))
	check(t, os.Symlink("1", filepath.Join(mnt, "link")))
	for name, data := range map[string][]byte{
		"small": content(1, "small"), "large": content(1, "large"), "x": []byte("y"), "y": []byte("x"),
	} {
		path := filepath.Join(mnt, name)
		check(t, os.WriteFile(path, data, 0o644))
		check(t, unix.Setxattr(path, "user.state", []byte("1"), 0))
		check(t, os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)))
	}
	check(t, v.SetReadOnly(true))
	check(t, v.Freeze())
	mem.started.Store(1)
	mem.seen.Store(1)
	return s
}

func (s *states) id(dir journal.Ident, name string) journal.Ident {
	s.t.Helper()
	var n volume.Inode
	check(s.t, s.v.Lookup(dir, name, &n))
	return n.ID
}

// advance makes the next state and publishes it.
func (s *states) advance() {
	s.t.Helper()
	s.prepare()
	n, err := s.v.Commit()
	check(s.t, err)
	s.mem.started.Store(s.now)
	check(s.t, s.v.Publish(n))
	s.mem.seen.Store(max(s.mem.seen.Load(), s.now))
}

func (s *states) prepare() {
	t, v, root := s.t, s.v, s.v.Root()
	t.Helper()
	s.now++
	for _, file := range []string{"small", "large"} {
		s.rewrite(s.id(root, file), content(s.now, file))
	}
	x, y := s.id(root, "x"), s.id(root, "y")
	check(t, v.MoveAside(root, "x"))
	check(t, v.MoveAside(root, "y"))
	check(t, v.Place(x, root, "y"))
	check(t, v.Place(y, root, "x"))
	check(t, v.MoveAside(root, "link"))
	_, err := v.Create(unix.S_IFLNK, 0, fmt.Sprint(s.now), root, "link")
	check(t, err)
	dir := s.id(root, "dir")
	_, err = v.Create(unix.S_IFREG, 0, "", dir, stateName("", s.now))
	check(t, err)
	check(t, v.MoveAside(dir, stateName("", s.now-1)))
	check(t, v.DropAside(func(journal.Ident) error { return nil }))
}

func (s *states) rewrite(id journal.Ident, data []byte) {
	s.t.Helper()
	f, err := s.v.OpenForApply(id)
	check(s.t, err)
	_, err = f.WriteAt(data, 0)
	check(s.t, err)
	check(s.t, f.Close())
	at := journal.Time{Sec: s.now}
	check(s.t, s.v.SetImage(id, journal.Image{
		Attr:   journal.Attr{Mode: unix.S_IFREG | 0o644, Nlink: 1, Size: int64(len(data)), Atime: at, Mtime: at},
		Xattrs: []journal.Xattr{{Name: "user.state", Value: fmt.Append(nil, s.now)}},
	}))
}

// startProbe runs the probe, and gives a function that ends it and tells what it found.
func startProbe(t *testing.T, mnt, sharedPath string) (end func() []string) {
	t.Helper()
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), probedMount+"="+mnt, probedShared+"="+sharedPath)
	child.Stderr = os.Stderr
	stdin, err := child.StdinPipe()
	check(t, err)
	stdout, err := child.StdoutPipe()
	check(t, err)
	check(t, child.Start())
	found := make(chan []string, 1)
	go func() {
		var lines []string
		for s := bufio.NewScanner(stdout); s.Scan(); {
			lines = append(lines, s.Text())
		}
		found <- lines
	}()
	return func() []string {
		stdin.Close()
		lines := <-found
		if err := child.Wait(); err != nil {
			t.Error(err)
		}
		return lines
	}
}

// startHammer has a process read a file without a pause until the test ends.
func startHammer(t *testing.T, path string) {
	t.Helper()
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), hammeredFile+"="+path)
	child.Stderr = os.Stderr
	stdin, err := child.StdinPipe()
	check(t, err)
	stdout, err := child.StdoutPipe()
	check(t, err)
	check(t, child.Start())
	t.Cleanup(func() {
		stdin.Close()
		if err := child.Wait(); err != nil {
			t.Error(err)
		}
	})
	_, err = io.ReadFull(stdout, make([]byte, len("reading")))
	check(t, err)
}

// fewTurns are made in any case, on a machine that is busy with other things too.
const fewTurns = 30

func TestNobodySeesSomethingOldAfterSomebodySawSomethingNew(t *testing.T) {
	for name, c := range map[string]struct {
		turns    int
		hammered bool
	}{"with time to look": {300, false}, "without a pause": {60, true}} {
		t.Run(name, func(t *testing.T) {
			mnt, _, v := mounted(t)
			path := filepath.Join(t.TempDir(), "shared")
			mem, err := mapShared(path)
			check(t, err)
			s := newStates(t, mnt, v, mem)
			end := startProbe(t, mnt, path)
			if c.hammered {
				startHammer(t, filepath.Join(mnt, "large"))
			}
			for n, end := 0, time.Now().Add(30*time.Second); n < c.turns && (n < fewTurns || time.Now().Before(end)); n++ {
				s.advance()
				time.Sleep(5 * time.Millisecond)
			}
			wrong := end()
			t.Logf("%d polls, the slowest of %v", mem.polls.Load(), time.Duration(mem.slowest.Load()))
			if len(wrong) > 0 {
				t.Errorf("%d violations:\n%s", len(wrong), strings.Join(wrong[:min(len(wrong), 40)], "\n"))
			}
		})
	}
}

func TestATurnEndsAlthoughManyReadWithoutAPause(t *testing.T) {
	mnt, _, v := mounted(t)
	mem, err := mapShared(filepath.Join(t.TempDir(), "shared"))
	check(t, err)
	path := filepath.Join(mnt, "hot")
	check(t, os.WriteFile(path, make([]byte, 16<<20), 0o644))
	s := newStates(t, mnt, v, mem)
	startHammer(t, path)
	hot := s.id(v.Root(), "hot")
	var longest time.Duration
	for range 20 {
		f, err := v.OpenForApply(hot)
		check(t, err)
		_, err = f.WriteAt(content(s.now, "small"), 1<<20)
		check(t, err)
		check(t, f.Close())
		began := time.Now()
		s.advance()
		longest = max(longest, time.Since(began))
	}
	t.Logf("the longest turn took %v", longest)
}

// nothing is a difference that there is not.
type nothing struct{}

func (nothing) Inodes(func(journal.Ident, bool) error) error  { return nil }
func (nothing) Names(func(journal.Ident, string) error) error { return nil }

func TestATurnWithoutDifferencesWaitsForThoseWhoReadTheTreeBefore(t *testing.T) {
	s := &Server{}
	phase := s.readers.enter()
	swapped, ended := make(chan struct{}), make(chan error)
	go func() { ended <- s.Turn(nothing{}, func() { close(swapped) }) }()
	<-swapped
	select {
	case <-ended:
		t.Error("it did not wait")
	case <-time.After(20 * time.Millisecond):
	}
	s.readers.leave(phase)
	check(t, <-ended)
}

func TestTooManyDifferencesCountAsEverything(t *testing.T) {
	d := many{maxDifferences + 1}
	tr, err := collect(d)
	check(t, err)
	if !tr.changes(journal.Ident{Ino: 1 << 40}) || !tr.renames(journal.Ident{Ino: 1}, "x") {
		t.Error("something counts as unchanged")
	}
	d.inodes = 10
	tr, err = collect(d)
	check(t, err)
	if !tr.changes(journal.Ident{Ino: 9}) || tr.changes(journal.Ident{Ino: 10}) || tr.renames(journal.Ident{Ino: 1}, "x") {
		t.Error("ten differences are not told from the rest")
	}
}

// many are differences in the content of as many inodes.
type many struct{ inodes uint64 }

func (m many) Inodes(yield func(journal.Ident, bool) error) error {
	for i := range m.inodes {
		if err := yield(journal.Ident{Ino: i}, true); err != nil {
			return err
		}
	}
	return nil
}
func (many) Names(func(journal.Ident, string) error) error { return nil }
