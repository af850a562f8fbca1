package integration

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/integration/acl"
	"tandemfs/integration/lab"
)

// fillForWrites makes what writingOperations work on.
func fillForWrites(t *testing.T) func(dir string) {
	return func(dir string) {
		write(t, "content", dir, "file")
		write(t, "other", dir, "other")
		check(t, os.MkdirAll(filepath.Join(dir, "dir", "empty"), 0o755))
		check(t, os.Symlink("file", filepath.Join(dir, "link")))
		check(t, unix.Setxattr(filepath.Join(dir, "file"), "user.x", []byte("y"), 0))
	}
}

// writingOperations is one operation of every kind that changes something. dir is an absolute path, so
// that the descriptor -1 means nothing.
func writingOperations(dir string) map[string]func() error {
	file, other, sub := filepath.Join(dir, "file"), filepath.Join(dir, "other"), filepath.Join(dir, "dir")
	fresh := filepath.Join(dir, "fresh")
	times := []unix.Timespec{{Sec: 1}, {Sec: 1}}
	openFor := func(path string, flags int) func() error {
		return func() error { return openAndWrite(path, flags) }
	}
	return map[string]func() error{
		"create":                openFor(fresh, unix.O_CREAT|unix.O_WRONLY),
		"create exclusively":    openFor(fresh, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR),
		"open for writing":      openFor(file, unix.O_WRONLY),
		"open for both":         openFor(file, unix.O_RDWR),
		"open to append":        openFor(file, unix.O_WRONLY|unix.O_APPEND),
		"open and truncate":     openFor(file, unix.O_RDWR|unix.O_TRUNC),
		"open nameless":         openFor(sub, unix.O_TMPFILE|unix.O_RDWR),
		"mkdir":                 func() error { return unix.Mkdir(fresh, 0o755) },
		"FIFO":                  func() error { return unix.Mknod(fresh, unix.S_IFIFO|0o600, 0) },
		"socket":                func() error { return unix.Mknod(fresh, unix.S_IFSOCK|0o600, 0) },
		"device":                func() error { return unix.Mknod(fresh, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) },
		"symlink":               func() error { return unix.Symlink("x", fresh) },
		"hard link":             func() error { return unix.Link(file, fresh) },
		"unlink":                func() error { return unix.Unlink(file) },
		"rmdir":                 func() error { return unix.Rmdir(filepath.Join(sub, "empty")) },
		"rename":                func() error { return unix.Rename(file, fresh) },
		"rename onto a file":    func() error { return unix.Rename(file, other) },
		"exchange":              func() error { return unix.Renameat2(-1, file, -1, other, unix.RENAME_EXCHANGE) },
		"rename if free":        func() error { return unix.Renameat2(-1, file, -1, fresh, unix.RENAME_NOREPLACE) },
		"truncate":              func() error { return unix.Truncate(file, 1) },
		"chmod":                 func() error { return unix.Chmod(file, 0o600) },
		"chown":                 func() error { return unix.Lchown(file, 1, 1) },
		"chown a symlink":       func() error { return unix.Lchown(filepath.Join(dir, "link"), 1, 1) },
		"set times":             func() error { return unix.UtimesNanoAt(-1, file, times, 0) },
		"set an attribute":      func() error { return unix.Setxattr(file, "user.new", []byte("v"), 0) },
		"remove an attribute":   func() error { return unix.Removexattr(file, "user.x") },
		"set a root attribute":  func() error { return unix.Setxattr(file, "trusted.new", []byte("v"), 0) },
		"set an ACL":            func() error { return unix.Setxattr(file, acl.Access, acl.Minimal(1, 1, 7), 0) },
		"chmod the root":        func() error { return unix.Chmod(dir, 0o700) },
		"times of a directory":  func() error { return unix.UtimesNanoAt(-1, sub, times, 0) },
		"truncate with O_TRUNC": openFor(other, unix.O_WRONLY|unix.O_TRUNC),
	}
}

// openAndWrite counts as refused when the opening is or, where the mount's flag does not stop that
// already, the writing.
func openAndWrite(path string, flags int) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte("x"))
	return err
}

// refused tries every writing operation and demands that each fails with EROFS.
func refused(t *testing.T, when, dir string) {
	t.Helper()
	for what, try := range writingOperations(dir) {
		if err := try(); !errors.Is(err, unix.EROFS) {
			t.Errorf("%s, %s: got %v, want EROFS", when, what, err)
		}
	}
}

// onlyMount gives the mount at path, which must be of ours.
func onlyMount(t *testing.T, path string) lab.Mount {
	t.Helper()
	mounts, err := lab.Mounts(path)
	check(t, err)
	if len(mounts) != 1 || mounts[0].Type != "fuse.tandemfs" {
		t.Fatalf("mounts at %s: %+v, want one of type fuse.tandemfs", path, mounts)
	}
	return mounts[0]
}

func TestATargetRefusesEveryWrite(t *testing.T) {
	source, target, pair := replicated(t, smallDisk, fillForWrites(t))
	sameCopy(t, "after the first transfer", source, target, pair)
	if !onlyMount(t, target.Mount).Has("ro") {
		t.Error("the target's mount is not read-only for the kernel")
	}
	if !pair.Status(target.Node).Target.ReadOnly {
		t.Error("status does not call the target read-only")
	}
	refused(t, "as it is", target.Mount)

	// Somebody who may mount takes the kernel's flag away: the daemon refuses all the same.
	check(t, unix.Mount("none", target.Mount, "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	check(t, remountSuperblock(target.Mount, 0))
	refused(t, "with the mount's flag taken away", target.Mount)
	check(t, remountSuperblock(target.Mount, unix.MS_RDONLY))
	sameCopy(t, "after all that was refused", source, target, pair)
}

func remountSuperblock(path string, flags uintptr) error {
	return unix.Mount("none", path, "", unix.MS_REMOUNT|flags, "")
}

func TestATargetThatIsDeletedTakesEveryWrite(t *testing.T) {
	source, target, pair := replicated(t, smallDisk, fillForWrites(t))
	pair.Quiet(time.Minute)
	target.Node.Must("relationship", "delete", pair.ID, "--yes")
	if onlyMount(t, target.Mount).Has("ro") {
		t.Error("the target's mount is still read-only")
	}
	operations := writingOperations(target.Mount)
	for _, what := range slices.Sorted(maps.Keys(operations)) {
		// One may take what a later one needs; what it made, a FIFO say, is not in the way of the others.
		check(t, os.RemoveAll(filepath.Join(target.Mount, "fresh")))
		err := operations[what]()
		passes := []error{unix.ENOENT, unix.EEXIST, unix.ENODATA, unix.ENXIO, unix.EISDIR, unix.ENOTDIR}
		if err != nil && !slices.ContainsFunc(passes, func(e error) bool { return errors.Is(err, e) }) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got := mustRead(t, source.Mount, "file"); got != "content" {
		t.Errorf("the source reads %q", got)
	}
}

func TestAFileThatWasOpenForReadingStaysSoWhenTheVolumeBecomesATarget(t *testing.T) {
	a, b := two(t)
	source := newVolume(t, a, "data", lab.Ext4, smallDisk, fillForWrites(t))
	target := newVolume(t, b, "copy", lab.Ext4, smallDisk, nil)
	path := write(t, "before", target.Mount, "before")
	writer, err := os.OpenFile(path, os.O_RDWR, 0)
	check(t, err)
	defer writer.Close()
	pair := lab.Relate(t, a, source.Name, b, target.Name, "--allow-non-empty")
	pair.Quiet(time.Minute)
	if _, err := writer.WriteAt([]byte("x"), 0); err == nil {
		t.Error("a file that was open before could be written to")
	}
}
