package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/integration/lab"
)

// XFS itself has no bound for all attributes of a file together.
func TestAFileHasNoMoreAttributesThanCanBeKeptAndSent(t *testing.T) {
	a, b := two(t)
	source := newVolume(t, a, "data", lab.XFS, gib, nil)
	target := newVolume(t, b, "copy", lab.XFS, gib, nil)
	pair := relate(t, source, target)
	file := write(t, "content", source.Mount, "file")
	var err error
	n := 0
	for ; n < 100 && err == nil; n++ {
		err = unix.Setxattr(file, fmt.Sprint("user.", n), make([]byte, 64<<10), 0)
	}
	if !errors.Is(err, unix.ENOSPC) || n < 10 {
		t.Errorf("attribute %d gave %v", n, err)
	}
	a.Must("snapshot", "create", "data", "--name", "s")
	check(t, os.Chmod(file, 0o600))
	check(t, unix.Setxattr(file, "user.0", make([]byte, 64<<10), 0))
	sameCopy(t, "with all of them", source, target, pair)
	check(t, unix.Removexattr(file, "user.1"))
	check(t, os.Remove(file))
	sameCopy(t, "without the file", source, target, pair)
}

func TestSubvolumesBelowAreLeftOut(t *testing.T) {
	a, b := two(t)
	disk := lab.Disk(t, lab.Btrfs, gib)
	btrfs := func(args ...string) {
		if out, err := exec.Command("btrfs", append([]string{"subvolume"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("btrfs subvolume %v: %v\n%s", args, err, out)
		}
	}
	btrfs("create", filepath.Join(disk, "first"))
	btrfs("create", filepath.Join(disk, "first", "below"))
	btrfs("snapshot", filepath.Join(disk, "first"), filepath.Join(disk, "data")) // which has an empty directory in its place
	btrfs("create", filepath.Join(disk, "data", "another"))
	source := protect(t, a, "data", filepath.Join(disk, "data"))
	target := newVolume(t, b, "copy", lab.Btrfs, gib, nil)
	pair := relate(t, source, target)
	write(t, "content", source.Mount, "file")
	a.Must("snapshot", "create", "data", "--name", "s")
	pair.Quiet(time.Minute)
	for _, dir := range []string{source.snapshotPath("s"), target.Mount} {
		names, err := os.ReadDir(dir)
		if err != nil || len(names) != 1 || mustRead(t, dir, "file") != "content" {
			t.Errorf("%s has %v, %v", dir, names, err)
		}
	}
}
