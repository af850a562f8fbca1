package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/integration/history"
	"tandemfs/integration/lab"
	"tandemfs/integration/tree"
)

func TestAMountCoversTheDirectoryThatItProtectsAndLeavesItAsItWas(t *testing.T) {
	n := alone(t)
	dir := lab.MakeDir(t, lab.Disk(t, lab.Ext4, smallDisk), "data")
	grow(t, 300)(dir)
	before := scan(t, dir)
	t.Cleanup(n.Stop)
	n.Must("volume", "create", "data", dir)
	onlyMount(t, dir)
	covered := scan(t, dir)
	sameTrees(t, "once it is covered", before, covered, tree.Options{IgnoreTimes: true})
	play(t, dir, history.New(seed(t, 60)), 500)
	changed := scan(t, dir)
	n.Must("volume", "remove", "data", "--yes")
	if mounts, err := lab.Mounts(dir); err != nil || len(mounts) > 0 {
		t.Errorf("still mounted: %v, %v", mounts, err)
	}
	sameTrees(t, "once it is plain files again", changed, scan(t, dir), tree.Options{IgnoreTimes: true})
	if _, err := os.Lstat(filepath.Join(dir, tree.StateDir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something of ours is left: %v", err)
	}
}

func TestARestartBringsVolumesAndRelationshipsBack(t *testing.T) {
	source, target, pair := replicated(t, smallDisk, grow(t, 300))
	sameCopy(t, "after the first transfer", source, target, pair)
	for round, restart := range []*volume{source, target, source} {
		restart.Node.Stop()
		if mounts, err := lab.Mounts(restart.Mount); err != nil || len(mounts) > 0 {
			t.Fatalf("still mounted after SIGTERM: %v, %v", mounts, err)
		}
		restart.Node.Start()
		onlyMount(t, restart.Mount)
		write(t, fmt.Sprint("round ", round), source.Mount, fmt.Sprint("round-", round))
		sameCopy(t, "after a restart of "+restart.Node.Name, source, target, pair)
	}
	if !onlyMount(t, target.Mount).Has("ro") {
		t.Error("the target is writable after its restart")
	}
}

func TestBothNodesMayBeAwayAtTheSameTime(t *testing.T) {
	source, target, pair := replicated(t, smallDisk, grow(t, 300))
	pair.Quiet(time.Minute)
	source.Node.Stop()
	target.Node.Stop()
	source.Node.Start()
	write(t, "alone", source.Mount, "alone")
	target.Node.Start()
	sameCopy(t, "once both were back", source, target, pair)
}

func TestADeadMountIsCleanedUpAtTheStart(t *testing.T) {
	v := newVolume(t, alone(t), "data", lab.Ext4, smallDisk, nil)
	write(t, "kept", v.Mount, "file")
	v.Node.Kill()
	if _, err := os.Stat(filepath.Join(v.Mount, "file")); !errors.Is(err, unix.ENOTCONN) {
		t.Fatalf("the mount of a killed daemon should be dead: %v", err)
	}
	v.Node.Start()
	onlyMount(t, v.Mount)
	if got := mustRead(t, v.Mount, "file"); got != "kept" {
		t.Errorf("read %q", got)
	}
}

func TestSIGTERMEndsANodeCleanlyWhileFilesAreOpenOnItsMount(t *testing.T) {
	v := newVolume(t, alone(t), "data", lab.Ext4, smallDisk, nil)
	f, err := os.Create(filepath.Join(v.Mount, "open"))
	check(t, err)
	defer f.Close()
	v.Node.Stop()
	if mounts, err := lab.Mounts(v.Mount); err != nil || len(mounts) > 0 {
		t.Errorf("still mounted: %v, %v", mounts, err)
	}
}

func TestARelationshipCanBeDeletedFromEitherEndAndAlone(t *testing.T) {
	for _, c := range []struct {
		name            string
		fromSource      bool
		otherIsGone     bool
		otherHearsOfIt  bool
		targetWritable  bool
		deleteOnTheRest bool
	}{
		{"at the source, with the target there", true, false, true, true, false},
		{"at the target, with the source there", false, false, true, true, false},
		{"at the source, with the target gone", true, true, false, false, true},
		{"at the target, with the source gone", false, true, false, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			source, target, pair := replicated(t, smallDisk, grow(t, 100))
			pair.Quiet(time.Minute)
			here, other := target, source
			if c.fromSource {
				here, other = source, target
			}
			if c.otherIsGone {
				other.Node.Stop()
			}
			here.Node.Must("relationship", "delete", pair.ID, "--yes")
			if c.otherIsGone {
				other.Node.Start()
			}
			if c.deleteOnTheRest { // the target that was away: it is a copy until somebody says otherwise there
				target.Node.Must("relationship", "delete", pair.ID, "--yes")
			}
			lab.Eventually(t, 30*time.Second, "the target is writable", func() error {
				return os.WriteFile(filepath.Join(target.Mount, "written"), []byte("x"), 0o644)
			})
			write(t, "x", source.Mount, "written at the source")
			here.Node.Must("volume", "remove", here.Name, "--yes") // no relationship uses it any more
			endsThere(t, other, pair)
		})
	}
}

// endsThere waits until the other end does not hold the relationship any more, or calls it ended.
func endsThere(t *testing.T, other *volume, pair *lab.Pair) {
	t.Helper()
	lab.Eventually(t, 45*time.Second, "the other end knows that the relationship has ended", func() error {
		r := other.Node.Run("relationship", "status", pair.ID, "--json")
		if r.Code == exitNotFound {
			return nil
		}
		var s statusOf
		if err := json.Unmarshal([]byte(r.Stdout), &s); err != nil {
			return fmt.Errorf("exit code %d: %s", r.Code, r.Stderr)
		}
		if s.State != "ended" {
			return fmt.Errorf("its state is %s, job %s", s.State, s.Job)
		}
		return nil
	})
}

func TestAFailoverTakesWritesAtOnceWithThePrimaryDead(t *testing.T) {
	source, target, pair := replicated(t, smallDisk, grow(t, 1000))
	sameCopy(t, "before", source, target, pair)
	source.Node.Kill()
	start := time.Now()
	target.Node.Must("relationship", "delete", pair.ID, "--yes")
	write(t, "life goes on", target.Mount, "first write")
	t.Logf("the first write succeeded %v after the command", time.Since(start))
	if got := mustRead(t, target.Backing, "first write"); !strings.Contains(got, "life") {
		t.Errorf("read %q", got)
	}
}

func TestADaemonGivesBackItsDescriptors(t *testing.T) {
	source, target, pair := replicated(t, 4*gib, nil)
	play(t, source.Mount, history.New(seed(t, 61)), 1000) // whatever it opens once and keeps
	pair.Quiet(time.Minute)
	scan(t, target.Mount)
	empty(t, source.Mount)
	pair.Quiet(time.Minute)
	before := [2]int{len(descriptors(t, source.Node)), len(descriptors(t, target.Node))}
	play(t, source.Mount, history.New(seed(t, 62)), 3000)
	pair.Quiet(time.Minute)
	scan(t, target.Mount) // so that the target's kernel refers to all that is removed next
	empty(t, source.Mount)
	pair.Quiet(time.Minute)
	for i, n := range []*lab.Node{source.Node, target.Node} {
		lab.Eventually(t, 10*time.Second, "node "+n.Name+" holds no more descriptors than before", func() error {
			if now := descriptors(t, n); len(now) > before[i]+2 {
				return fmt.Errorf("%d now, %d before:\n%s", len(now), before[i], strings.Join(now, "\n"))
			}
			return nil
		})
	}
}

// empty removes all that is in a directory.
func empty(t *testing.T, dir string) {
	t.Helper()
	names, err := os.ReadDir(dir)
	check(t, err)
	for _, n := range names {
		check(t, os.RemoveAll(filepath.Join(dir, n.Name())))
	}
}

// descriptors lists a daemon's open files, without those of journals, of which there are more the more there
// is to keep, and of what is kept for transfers.
func descriptors(t *testing.T, n *lab.Node) []string {
	t.Helper()
	return openFiles(t, n, tree.StateDir)
}

// openFiles lists a daemon's open files but those below a directory, after the kernel was asked to forget what
// it caches. Pipes are left out too: a FUSE server keeps some for large replies.
func openFiles(t *testing.T, n *lab.Node, leftOut string) []string {
	t.Helper()
	check(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
	dir := fmt.Sprintf("/proc/%d/fd", n.PID())
	fds, err := os.ReadDir(dir)
	check(t, err)
	var open []string
	for _, fd := range fds {
		to, err := os.Readlink(filepath.Join(dir, fd.Name()))
		if err == nil && !strings.Contains(to, "/"+leftOut+"/") && !strings.HasPrefix(to, "pipe:") {
			open = append(open, to)
		}
	}
	return open
}
