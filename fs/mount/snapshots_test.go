package mount

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/fs/volume"
)

func statOf(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return st
}

func namesIn(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	check(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	check(t, err)
	return string(data)
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func snapshot(t *testing.T, v *volume.Volume, name string) volume.Snapshot {
	t.Helper()
	s, err := v.CreateSnapshot(name, time.Time{})
	check(t, err)
	return s
}

// furnish makes a small tree, takes the snapshot "then" of it, and changes all of it.
func furnish(t *testing.T, mnt string, v *volume.Volume) (before unix.Stat_t, s volume.Snapshot) {
	t.Helper()
	dir := filepath.Join(mnt, "dir")
	file := filepath.Join(dir, "file")
	check(t, os.MkdirAll(filepath.Join(dir, "sub"), 0o750))
	check(t, os.WriteFile(file, []byte("as it was"), 0o640))
	check(t, os.Link(file, filepath.Join(dir, "other name")))
	check(t, os.Symlink("file", filepath.Join(dir, "link")))
	check(t, os.WriteFile(filepath.Join(dir, "sub", "removed"), []byte("removed later"), 0o600))
	check(t, unix.Setxattr(file, "user.color", []byte("red"), 0))
	check(t, os.Chtimes(file, time.Unix(1000, 0), time.Unix(2000, 0)))
	before = statOf(t, file)
	s = snapshot(t, v, "then")
	check(t, os.WriteFile(file, []byte("as it is by now"), 0o640))
	check(t, os.Chmod(file, 0o600))
	check(t, unix.Setxattr(file, "user.color", []byte("blue"), 0))
	check(t, os.RemoveAll(filepath.Join(dir, "sub")))
	check(t, os.Mkdir(filepath.Join(dir, "new"), 0o755))
	return before, s
}

func TestASnapshotShowsADirectoryAsItWas(t *testing.T) {
	mnt, _, v := mounted(t)
	before, s := furnish(t, mnt, v)
	then := filepath.Join(mnt, "dir", volume.SnapshotDir, "then")
	if got := read(t, filepath.Join(then, "file")); got != "as it was" {
		t.Errorf("the file holds %q", got)
	}
	if got := read(t, filepath.Join(then, "sub", "removed")); got != "removed later" {
		t.Errorf("the removed file holds %q", got)
	}
	if got := namesIn(t, then); got != "file link other name sub" {
		t.Errorf("the directory holds %q", got)
	}
	after := statOf(t, filepath.Join(then, "file"))
	if after.Mode != before.Mode || after.Nlink != before.Nlink || after.Size != before.Size ||
		after.Mtim != before.Mtim || after.Ctim != before.Ctim {
		t.Errorf("the file is %+v, was %+v", after, before)
	}
	var value [10]byte
	n, err := unix.Getxattr(filepath.Join(then, "file"), "user.color", value[:])
	if string(value[:max(n, 0)]) != "red" || err != nil {
		t.Errorf("the color is %q, %v", value[:max(n, 0)], err)
	}
	if target, err := os.Readlink(filepath.Join(then, "link")); target != "file" || err != nil {
		t.Errorf("the link leads to %q, %v", target, err)
	}
	st := statOf(t, then)
	if at := time.Unix(st.Mtim.Unix()); !at.Equal(s.Created) || st.Mtim != st.Ctim || st.Mtim != st.Atim {
		t.Errorf("the times are %v, want %v", at, s.Created)
	}
	deeper := statOf(t, filepath.Join(mnt, volume.SnapshotDir, "then", "dir"))
	if at := time.Unix(deeper.Mtim.Unix()); !at.Before(s.Created) {
		t.Errorf("reached from above the directory is of %v, want its own time", at)
	}
}

func TestInodeNumbersInASnapshotTellLinksAndAreNobodyElses(t *testing.T) {
	mnt, _, v := mounted(t)
	before, _ := furnish(t, mnt, v)
	snapshot(t, v, "again")
	dir := filepath.Join(mnt, "dir", volume.SnapshotDir)
	file := statOf(t, filepath.Join(dir, "then", "file")).Ino
	if other := statOf(t, filepath.Join(dir, "then", "other name")).Ino; other != file {
		t.Errorf("two names of one file have the numbers %d and %d", file, other)
	}
	if again := statOf(t, filepath.Join(dir, "again", "file")).Ino; again == file || before.Ino == file {
		t.Errorf("the numbers are %d, %d and %d", before.Ino, file, again)
	}
}

func TestTheDirectoryOfSnapshotsIsListedInTheRootAlone(t *testing.T) {
	for _, show := range []bool{false, true} {
		mnt, _, v := mountedWith(t, Options{ShowSnapshots: show})
		furnish(t, mnt, v)
		want := "dir"
		if show {
			want = volume.SnapshotDir + " dir"
		}
		if got := namesIn(t, mnt); got != want {
			t.Errorf("the root holds %q, want %q", got, want)
		}
		if got := namesIn(t, filepath.Join(mnt, "dir")); strings.Contains(got, volume.SnapshotDir) {
			t.Errorf("a directory holds %q", got)
		}
		if got := namesIn(t, filepath.Join(mnt, "dir", volume.SnapshotDir)); got != "then" {
			t.Errorf("the directory of snapshots holds %q", got)
		}
		if got := namesIn(t, filepath.Join(mnt, "dir", "new", volume.SnapshotDir)); got != "" {
			t.Errorf("that of a newer directory holds %q", got)
		}
		for _, path := range []string{"dir/new/.snapshot/then", "dir/.snapshot/then/.snapshot", "dir/.snapshot/.snapshot"} {
			if _, err := os.Lstat(filepath.Join(mnt, path)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: %v, want that it does not exist", path, err)
			}
		}
		st := statOf(t, filepath.Join(mnt, "dir", volume.SnapshotDir))
		if st.Mode != unix.S_IFDIR|0o555 || st.Nlink != 2 || st.Uid != 0 {
			t.Errorf("the directory of snapshots is %+v", st)
		}
	}
}

func TestNothingInASnapshotCanBeChanged(t *testing.T) {
	mnt, _, v := mounted(t)
	furnish(t, mnt, v)
	dir := filepath.Join(mnt, "dir")
	snaps := filepath.Join(dir, volume.SnapshotDir)
	then := filepath.Join(snaps, "then")
	file := filepath.Join(then, "file")
	fd, err := unix.Open(file, unix.O_RDWR|unix.O_CLOEXEC, 0)
	check(t, err)
	defer unix.Close(fd)
	live, err := unix.Open(filepath.Join(dir, "file"), unix.O_RDWR|unix.O_CLOEXEC, 0)
	check(t, err)
	defer unix.Close(live)
	for name, c := range map[string]struct{ got, want error }{
		"write":           {second(unix.Pwrite(fd, []byte("x"), 0)), unix.EROFS},
		"truncate":        {unix.Truncate(file, 1), unix.EROFS},
		"open truncated":  {second(unix.Open(file, unix.O_WRONLY|unix.O_TRUNC, 0)), unix.EROFS},
		"fallocate":       {unix.Fallocate(fd, 0, 0, 100), unix.EROFS},
		"chmod":           {unix.Chmod(file, 0o600), unix.EROFS},
		"setxattr":        {unix.Setxattr(file, "user.a", nil, 0), unix.EROFS},
		"removexattr":     {unix.Removexattr(file, "user.color"), unix.EROFS},
		"copy into":       {second(unix.CopyFileRange(live, nil, fd, nil, 5, 0)), unix.EROFS},
		"create":          {second(unix.Open(filepath.Join(then, "n"), unix.O_CREAT|unix.O_WRONLY, 0o600)), unix.EROFS},
		"mkdir":           {unix.Mkdir(filepath.Join(then, "n"), 0o700), unix.EROFS},
		"symlink":         {unix.Symlink("x", filepath.Join(then, "n")), unix.EROFS},
		"mknod":           {unix.Mknod(filepath.Join(then, "n"), unix.S_IFIFO, 0), unix.EROFS},
		"unlink":          {unix.Unlink(file), unix.EROFS},
		"rmdir":           {unix.Rmdir(filepath.Join(then, "sub")), unix.EROFS},
		"rename in":       {unix.Rename(filepath.Join(dir, "file"), filepath.Join(then, "n")), unix.EROFS},
		"rename out":      {unix.Rename(file, filepath.Join(dir, "n")), unix.EROFS},
		"link out":        {unix.Link(file, filepath.Join(dir, "n")), unix.EXDEV},
		"link in":         {unix.Link(filepath.Join(dir, "file"), filepath.Join(then, "n")), unix.EROFS},
		"snapshot":        {unix.Mkdir(filepath.Join(snaps, "n"), 0o700), unix.EROFS},
		"rmdir snapshot":  {unix.Rmdir(then), unix.EROFS},
		"chmod snapshot":  {unix.Chmod(snaps, 0o700), unix.EROFS},
		"mkdir .snapshot": {unix.Mkdir(snaps, 0o700), unix.EEXIST},
		"link .snapshot":  {unix.Link(filepath.Join(dir, "file"), snaps), unix.EEXIST},
		"rmdir .snapshot": {unix.Rmdir(snaps), unix.EBUSY},
		"move .snapshot":  {unix.Rename(snaps, filepath.Join(dir, "n")), unix.EBUSY},
		"onto .snapshot":  {unix.Rename(filepath.Join(dir, "new"), snaps), unix.EBUSY},
		"fsync":           {unix.Fsync(fd), nil},
	} {
		if c.got != c.want {
			t.Errorf("%s gave %v, want %v", name, c.got, c.want)
		}
	}
	if got := read(t, file); got != "as it was" {
		t.Errorf("the file holds %q", got)
	}
}

func second[T any](_ T, err error) error { return err }

func TestASnapshotCanBeCopiedComparedAndPutBack(t *testing.T) {
	mnt, _, v := mounted(t)
	furnish(t, mnt, v)
	dir := filepath.Join(mnt, "dir")
	then := filepath.Join(dir, volume.SnapshotDir, "then")
	out := filepath.Join(t.TempDir(), "copy")
	run(t, "cp", "-a", then, out)
	run(t, "diff", "-r", then, out)
	if got := strings.Count(run(t, "find", then), "\n"); got != 6 {
		t.Errorf("find found %d names", got)
	}
	if got := strings.Count(run(t, "find", filepath.Dir(then)), "\n"); got != 7 {
		t.Errorf("find found %d names from the directory of snapshots", got)
	}
	if err := exec.Command("diff", "-r", then, dir).Run(); err == nil {
		t.Error("diff found no difference between then and now")
	}
	run(t, "cp", filepath.Join(then, "file"), filepath.Join(dir, "file")) // copy_file_range is refused
	if got := read(t, filepath.Join(dir, "file")); got != "as it was" {
		t.Errorf("the file that was put back holds %q", got)
	}
	run(t, "cp", "-a", filepath.Join(then, "sub"), dir)
	if got := read(t, filepath.Join(dir, "sub", "removed")); got != "removed later" {
		t.Errorf("the file that was put back holds %q", got)
	}
}

func TestASnapshotOfAnUsedNameIsTheNewOne(t *testing.T) {
	mnt, _, v := mounted(t)
	file := filepath.Join(mnt, "file")
	snaps := filepath.Join(mnt, volume.SnapshotDir)
	for _, content := range []string{"first", "second", "third"} {
		check(t, os.WriteFile(file, []byte(content), 0o600))
		if got := namesIn(t, snaps); got != "" {
			t.Errorf("there are snapshots already: %q", got)
		}
		if _, err := os.Stat(filepath.Join(snaps, "s")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the snapshot that is not there gave %v", err)
		}
		snapshot(t, v, "s")
		if got := namesIn(t, snaps); got != "s" {
			t.Errorf("listed are %q", got)
		}
		if got := read(t, filepath.Join(snaps, "s", "file")); got != content {
			t.Errorf("the snapshot holds %q, want %q", got, content)
		}
		check(t, v.DeleteSnapshot("s"))
	}
}

func TestTheDirectoryOfSnapshotsHasTheTimeOfTheNewest(t *testing.T) {
	mnt, _, v := mounted(t)
	dir := filepath.Join(mnt, "dir")
	check(t, os.Mkdir(dir, 0o755))
	want := func(what string, at time.Time) {
		t.Helper()
		for _, dir := range []string{mnt, dir} {
			st := statOf(t, filepath.Join(dir, volume.SnapshotDir))
			if got := time.Unix(st.Mtim.Unix()); !got.Equal(at) {
				t.Errorf("%s: in %s it is of %v, want %v", what, dir, got, at)
			}
		}
	}
	for _, second := range []int64{1000, 2000} {
		at := time.Unix(second, 0)
		check(t, errors.Join(os.Chtimes(dir, at, at), os.Chtimes(mnt, at, at)))
		want("without snapshots", at)
	}
	first := snapshot(t, v, "first")
	want("with one", first.Created)
	second := snapshot(t, v, "second")
	want("with two", second.Created)
	check(t, v.DeleteSnapshot("second"))
	want("with the first", first.Created)
	check(t, v.DeleteSnapshot("first"))
	want("without snapshots again", time.Unix(2000, 0))
}

func TestADeletedSnapshotIsGoneThoughAFileOfItIsOpen(t *testing.T) {
	mnt, _, v := mounted(t)
	file := filepath.Join(mnt, "file")
	check(t, os.WriteFile(file, make([]byte, 1<<20), 0o600))
	snapshot(t, v, "s")
	check(t, os.WriteFile(file, []byte("x"), 0o600))
	fd, err := unix.Open(filepath.Join(mnt, volume.SnapshotDir, "s", "file"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	check(t, err)
	defer unix.Close(fd)
	check(t, v.DeleteSnapshot("s"))
	if _, err := unix.Pread(fd, make([]byte, 4096), 512<<10); err != unix.ESTALE {
		t.Errorf("reading on gave %v, want ESTALE", err)
	}
	if _, err := os.Stat(filepath.Join(mnt, volume.SnapshotDir, "s", "file")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("by its name it gave %v", err)
	}
}

func TestARealDirectoryOfTheNameIsNotHidden(t *testing.T) {
	base := t.TempDir()
	dir, mnt := filepath.Join(base, "dir"), filepath.Join(base, "mnt")
	check(t, os.MkdirAll(filepath.Join(dir, volume.SnapshotDir, "mine"), 0o755))
	check(t, os.MkdirAll(filepath.Join(dir, "sub"), 0o755))
	check(t, os.Mkdir(mnt, 0o755))
	v, err := volume.Open(dir, volume.Options{Name: "test", Create: true})
	check(t, err)
	defer v.Close()
	s, err := Mount(v, mnt, Options{ShowSnapshots: true})
	check(t, err)
	defer s.Unmount()
	snapshot(t, v, "s")
	if got := namesIn(t, filepath.Join(mnt, volume.SnapshotDir)); got != "mine" {
		t.Errorf("the real directory holds %q", got)
	}
	if got := namesIn(t, mnt); got != ".snapshot sub" {
		t.Errorf("the root holds %q", got)
	}
	if got := namesIn(t, filepath.Join(mnt, "sub", volume.SnapshotDir)); got != "s" {
		t.Errorf("below it there are %q", got)
	}
	check(t, os.Rename(filepath.Join(mnt, volume.SnapshotDir), filepath.Join(mnt, "moved")))
	if got := namesIn(t, filepath.Join(mnt, volume.SnapshotDir)); got != "s" {
		t.Errorf("after it was moved away there are %q", got)
	}
}

func TestTheNameByWhichTheKernelFoundAnInodeIsRemembered(t *testing.T) {
	mnt, _, v := mountedWith(t, Options{})
	check(t, os.Mkdir(filepath.Join(mnt, "d"), 0o755))
	check(t, os.WriteFile(filepath.Join(mnt, "f"), nil, 0o600))
	var d, f volume.Inode
	check(t, v.Lookup(v.Root(), "d", &d))
	check(t, v.Lookup(v.Root(), "f", &f))
	tab := newTable(v.Root(), unix.S_IFDIR)
	tab.refer(ordinary(d.ID), unix.S_IFDIR, rootNode, "d")
	tab.refer(ordinary(f.ID), unix.S_IFREG, rootNode, "f")
	if dir, name, ok := tab.where(f.ID); dir != v.Root() || name != "f" || !ok {
		t.Errorf("found as %q in %v, %v", name, dir, ok)
	}
	tab.moved(f.ID, d.ID, "g")
	if dir, name, ok := tab.where(f.ID); dir != d.ID || name != "g" || !ok {
		t.Errorf("moved, found as %q in %v, %v", name, dir, ok)
	}
	if _, _, ok := tab.where(v.Root()); ok {
		t.Error("the root has a name")
	}
}

// To the kernel a directory that was removed stays dead, for as long as a program is in it.
func TestADirectoryThatAProgramIsInCanBeUsedAfterItWasRestored(t *testing.T) {
	mnt, _, v := mounted(t)
	dir, over := filepath.Join(mnt, "dir"), filepath.Join(mnt, "over")
	for _, d := range []string{dir, over} {
		check(t, os.Mkdir(d, 0o755))
		in, err := os.Open(d)
		check(t, err)
		defer in.Close()
	}
	file := filepath.Join(dir, "file")
	check(t, os.WriteFile(file, []byte("as it was"), 0o644))
	snapshot(t, v, "then")
	check(t, os.RemoveAll(dir))
	check(t, os.Mkdir(filepath.Join(mnt, "new"), 0o755))
	check(t, unix.Rename(filepath.Join(mnt, "new"), over))
	_, err := v.Restore("then", "")
	check(t, err)
	if got := read(t, file); got != "as it was" {
		t.Errorf("it holds %q", got)
	}
	for _, d := range []string{dir, over} {
		check(t, os.WriteFile(filepath.Join(d, "more"), nil, 0o644))
		check(t, os.Remove(filepath.Join(d, "more")))
	}
	if got := namesIn(t, dir); got != "file" {
		t.Errorf("the directory holds %q", got)
	}
}
