package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/integration/history"
	"tandemfs/integration/lab"
	"tandemfs/integration/tree"
)

// snapshotPath is where a mount shows a snapshot.
func (v *volume) snapshotPath(name string) string { return filepath.Join(v.Mount, ".snapshot", name) }

// sameSnapshot compares what a snapshot shows with what there was. Its own time is when it was taken.
func sameSnapshot(t *testing.T, when string, was *tree.Manifest, v *volume, name string, o tree.Options) {
	t.Helper()
	shown := scan(t, v.snapshotPath(name))
	find(shown, ".").Mtime = find(was, ".").Mtime
	sameTrees(t, when, was, shown, o)
}

func TestSnapshotsShowWhatWasThereAndBringItBack(t *testing.T) {
	for _, kind := range []string{lab.Ext4, lab.XFS, lab.Btrfs} {
		t.Run(kind, func(t *testing.T) {
			n := alone(t)
			v := newVolume(t, n, "data", kind, 4*gib, grow(t, 500))
			g := history.New(seed(t, 80))
			check(t, g.Adopt(v.Backing))
			play(t, v.Mount, g, 300)
			first := scan(t, v.Mount)
			n.Must("snapshot", "create", "data", "--name", "first")
			play(t, v.Mount, g, 700)
			second := scan(t, v.Mount)
			n.Must("snapshot", "create", "data", "--name", "second")
			play(t, v.Mount, g, 300)
			options := tree.Options{IgnoreHoles: kind != lab.Ext4}
			sameSnapshot(t, "the first snapshot", first, v, "first", options)
			sameSnapshot(t, "the second snapshot", second, v, "second", options)
			n.Must("snapshot", "restore", "data", "first", "--yes")
			sameTrees(t, "after the restore", first, scan(t, v.Mount), options)
			sameSnapshot(t, "the second snapshot, after the restore", second, v, "second", options)
			n.Kill()
			n.Start()
			sameSnapshot(t, "the first snapshot, after a kill", first, v, "first", options)
			n.Must("snapshot", "delete", "data", "first", "--yes")
			sameSnapshot(t, "the second snapshot, without the first", second, v, "second", options)
		})
	}
}

func TestTheCommandsOfSnapshots(t *testing.T) {
	n := alone(t)
	v := newVolume(t, n, "data", lab.Ext4, smallDisk, nil)
	write(t, "one", v.Mount, "file")
	write(t, "", v.Mount, "removed")
	check(t, os.Mkdir(filepath.Join(v.Mount, "dir"), 0o755))
	n.Must("snapshot", "create", "data", "--name", "before", "--expires", "7d")
	write(t, "two", v.Mount, "file")
	check(t, os.Remove(filepath.Join(v.Mount, "removed")))
	check(t, os.Rename(filepath.Join(v.Mount, "dir"), filepath.Join(v.Mount, "renamed")))
	write(t, "", v.Mount, "renamed", "made")
	n.Must("snapshot", "create", "data", "--name", "after")
	diff := n.Must("snapshot", "diff", "data", "before", "after")
	for _, line := range []string{"~ file", "- removed", "> dir/ -> renamed/", "+ renamed/made"} {
		if !strings.Contains(diff, line) {
			t.Errorf("the diff has no line %q:\n%s", line, diff)
		}
	}
	if list := n.Must("snapshot", "list", "data"); !strings.Contains(list, "before") || !strings.Contains(list, "after") {
		t.Errorf("the list is\n%s", list)
	}
	n.Must("snapshot", "restore", "data", "before", "file", "--yes")
	if got := mustRead(t, v.Mount, "file"); got != "one" {
		t.Errorf("the restored file has %q", got)
	}
	if got := mustRead(t, v.Mount, "renamed", "made"); got != "" {
		t.Errorf("the restore of a file changed another: %q", got)
	}
	if r := n.Run("snapshot", "show", "data", "absent"); r.Code != 3 {
		t.Errorf("a snapshot that is not there: exit code %d, %s", r.Code, r.Stderr)
	}
	if out, err := exec.Command("cp", "-a", v.snapshotPath("before"), filepath.Join(v.Mount, "copy")).CombinedOutput(); err != nil {
		t.Errorf("cp from a snapshot: %v, %s", err, out)
	}
}

func TestASnapshotOfATargetIsOfItsRecoveryPoint(t *testing.T) {
	source, target, pair := replicated(t, smallDisk, grow(t, 300))
	pair.Quiet(time.Minute)
	was := scan(t, source.Mount)
	target.Node.Must("snapshot", "create", "copy", "--name", "point")
	g := history.New(seed(t, 81))
	check(t, g.Adopt(source.Backing))
	play(t, source.Mount, g, 1000)
	sameCopy(t, "afterwards", source, target, pair)
	sameSnapshot(t, "the target's snapshot", was, target, "point", tree.Options{})
	if r := target.Node.Run("snapshot", "restore", "copy", "point", "--yes"); r.Code != 4 {
		t.Errorf("a restore of a target: exit code %d, %s", r.Code, r.Stderr)
	}
}

// rewrite overwrites a file again, a block at a time, until an error or its end.
func rewrite(path string, size int64, fill byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = fill
	}
	for off := int64(0); off < size; off += int64(len(block)) {
		if _, err := f.WriteAt(block, off); err != nil {
			return err
		}
	}
	return nil
}

// fillUp leaves so many bytes of a filesystem free.
func fillUp(t *testing.T, dir string, free int64) {
	t.Helper()
	var st unix.Statfs_t
	check(t, unix.Statfs(dir, &st))
	fd, err := unix.Open(filepath.Join(dir, "filler"), unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	check(t, err)
	defer unix.Close(fd)
	check(t, unix.Fallocate(fd, 0, 0, int64(st.Bfree)*st.Bsize-free))
}

func TestNoRoomForASnapshotIsNoRoomForTheWriter(t *testing.T) {
	n := alone(t)
	const size = 128 << 20
	v := newVolume(t, n, "data", lab.Ext4, gib, nil)
	file := write(t, "", v.Mount, "file")
	check(t, os.Truncate(file, size))
	check(t, rewrite(file, size, 1))
	n.Must("snapshot", "create", "data", "--name", "kept")
	fillUp(t, filepath.Dir(v.Backing), 100<<20)
	if err := rewrite(file, size, 2); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("overwriting gave %v, want ENOSPC", err)
	}
	if got := mustRead(t, v.snapshotPath("kept"), "file"); len(got) != size || strings.Trim(got, "\x01") != "" {
		t.Error("the snapshot does not have what was there")
	}
	n.Must("snapshot", "delete", "data", "kept", "--yes")
	lab.Eventually(t, time.Minute, "there is room again", func() error { return rewrite(file, size, 3) })
}

func TestNoRoomForATransferIsNoTroubleForTheWriter(t *testing.T) {
	const size = 128 << 20
	a, b := two(t)
	source := newVolume(t, a, "data", lab.Ext4, gib, nil)
	target := newVolume(t, b, "copy", lab.Ext4, 2*gib, nil)
	file := write(t, "", source.Mount, "file")
	check(t, os.Truncate(file, size))
	check(t, rewrite(file, size, 1))
	pair := relate(t, source, target)
	pair.Quiet(time.Minute)
	fillUp(t, filepath.Dir(source.Backing), 60<<20)
	for round := range 4 {
		if err := rewrite(file, size, byte(2+round)); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	sameCopy(t, "afterwards", source, target, pair)
}

func TestAKilledTargetShowsTheRecoveryPointAtOnce(t *testing.T) {
	source, target, pair := replicated(t, smallDisk, func(dir string) { write(t, "one", dir, "file") })
	pair.Quiet(time.Minute)
	for round := range 5 {
		source.Node.Namespace.Cut(t)
		target.Node.Kill()
		write(t, fmt.Sprint("round ", round), source.Mount, "file")
		target.Node.Start()
		if got := mustRead(t, target.Mount, "file"); round == 0 && got != "one" || round > 0 && got != fmt.Sprint("round ", round-1) {
			t.Errorf("round %d: the target shows %q", round, got)
		}
		source.Node.Namespace.Mend(t)
		sameCopy(t, fmt.Sprint("after round ", round), source, target, pair)
	}
}
