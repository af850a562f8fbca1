package mount

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/fs/volume"
	"tandemfs/journal"
)

// mounted protects a new directory and mounts it elsewhere; both are gone when the test ends.
func mounted(t *testing.T) (mnt, dir string, v *volume.Volume) {
	t.Helper()
	return mountedWith(t, Options{})
}

func mountedWith(t *testing.T, o Options) (mnt, dir string, v *volume.Volume) {
	t.Helper()
	old := unix.Umask(0)
	t.Cleanup(func() { unix.Umask(old) })
	base := t.TempDir()
	dir, mnt = filepath.Join(base, "dir"), filepath.Join(base, "mnt")
	for _, d := range []string{dir, mnt} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	v, err := volume.Open(dir, volume.Options{Name: "test", Create: true})
	if err != nil {
		t.Fatal(err)
	}
	s, err := Mount(v, mnt, o)
	if err != nil {
		v.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Unmount(); err != nil {
			t.Error(err)
		}
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return mnt, dir, v
}

// asOFDLock is the one test of go-fuse's suite that a plain ext4 directory fails too: it wants two
// traditional record locks of one process to conflict, which fcntl(2) says they never do.
const asOFDLock = "FcntlFlockLocksFile"

func TestTheMountPassesGoFusesPosixTests(t *testing.T) {
	for name, test := range posixtest.All {
		if name == asOFDLock {
			continue
		}
		t.Run(name, func(t *testing.T) {
			mnt, _, _ := mounted(t)
			test(t, mnt)
		})
	}
}

func TestRecordLocksOfOneProcessDoNotConflictAsOnPlainExt4(t *testing.T) {
	mnt, _, _ := mounted(t)
	for _, dir := range []string{t.TempDir(), mnt} {
		var locks [2]error
		for i := range locks {
			f, err := os.OpenFile(filepath.Join(dir, "file"), os.O_RDWR|os.O_CREATE, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			locks[i] = unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		}
		if locks != [2]error{} {
			t.Errorf("%s: locking twice gave %v, want no error", dir, locks)
		}
	}
}

func TestLocksOfTwoOpenFilesConflict(t *testing.T) {
	mnt, _, _ := mounted(t)
	var files [2]*os.File
	for i := range files {
		f, err := os.OpenFile(filepath.Join(mnt, "file"), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	if err := unix.FcntlFlock(files[0].Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		t.Fatal(err)
	}
	if err := unix.FcntlFlock(files[1].Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != unix.EAGAIN {
		t.Errorf("a second record lock gave %v, want EAGAIN", err)
	}
	if err := unix.Flock(int(files[0].Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(files[1].Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EAGAIN {
		t.Errorf("a second flock gave %v, want EAGAIN", err)
	}
}

// asNobody runs a call on a thread that has no privileges any more. The thread ends with it.
func asNobody(t *testing.T, call func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
			done <- errno
			return
		}
		for _, id := range []uintptr{unix.SYS_SETRESGID, unix.SYS_SETRESUID} {
			if _, _, errno := unix.RawSyscall(id, 65534, 65534, 65534); errno != 0 {
				done <- errno
				return
			}
		}
		done <- call()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// file makes a file with an owner and a mode in a mount, and gives a descriptor of it.
func file(t *testing.T, path string, uid int, mode uint32) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	for _, err := range []error{unix.Fchown(fd, uid, uid), unix.Ftruncate(fd, 8192), unix.Fchmod(fd, mode)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return fd
}

func TestSetIDBitsGoAsOnPlainExt4(t *testing.T) {
	const user = 65534
	mnt, _, _ := mounted(t)
	for what, call := range map[string]func(fd int) error{
		"write":     func(fd int) error { _, err := unix.Pwrite(fd, []byte("x"), 0); return err },
		"truncate":  func(fd int) error { return unix.Ftruncate(fd, 1) },
		"fallocate": func(fd int) error { return unix.Fallocate(fd, 0, 0, 16384) },
		"punch": func(fd int) error {
			return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096)
		},
		"copy": func(fd int) error {
			from, to := int64(0), int64(4096)
			_, err := unix.CopyFileRange(fd, &from, fd, &to, 100, 0)
			return err
		},
		"chown to nobody new": func(fd int) error { return unix.Fchown(fd, -1, -1) },
		"change of times":     func(fd int) error { return unix.Futimes(fd, []unix.Timeval{{}, {}}) },
	} {
		for _, dir := range []string{t.TempDir(), mnt} {
			for _, c := range []struct{ group, before, after uint32 }{
				{user, 0o6755, 0o755}, {user, 0o2745, 0o2745}, {user, 0o6744, 0o2744}, {100, 0o2745, 0o745}, {100, 0o2755, 0o755},
			} {
				fd := file(t, filepath.Join(dir, what), user, 0)
				if err := errors.Join(unix.Fchown(fd, user, int(c.group)), unix.Fchmod(fd, c.before)); err != nil {
					t.Fatal(err)
				}
				if _, err := unix.Pwrite(fd, []byte("by root, who drops nothing"), 0); err != nil {
					t.Fatal(err)
				}
				asNobody(t, func() error { return call(fd) })
				if what == "change of times" {
					c.after = c.before
				}
				var st unix.Stat_t
				if err := unix.Fstat(fd, &st); err != nil || st.Mode&0o7777 != c.after {
					t.Errorf("%s in %s: mode %o became %o, want %o (%v)", what, dir, c.before, st.Mode&0o7777, c.after, err)
				}
			}
		}
	}
}

func TestRootKeepsSetIDBitsOfAFileWithCapabilities(t *testing.T) {
	mnt, _, _ := mounted(t)
	capability := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	for _, dir := range []string{t.TempDir(), mnt} {
		fd := file(t, filepath.Join(dir, "f"), 0, 0o6755)
		if err := unix.Fsetxattr(fd, sys.XattrCapability, capability, 0); err != nil {
			t.Fatal(err)
		}
		if err := unix.Fallocate(fd, 0, 0, 16384); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Mode&0o7777 != 0o6755 {
			t.Errorf("%s: mode is %o, want 6755 (%v)", dir, st.Mode&0o7777, err)
		}
		if _, err := unix.Fgetxattr(fd, sys.XattrCapability, nil); err != unix.ENODATA {
			t.Errorf("%s: the capabilities gave %v, want ENODATA", dir, err)
		}
	}
}

func TestTrustedAttributesAreListedToRootAlone(t *testing.T) {
	mnt, _, _ := mounted(t)
	for _, dir := range []string{t.TempDir(), mnt} {
		fd := file(t, filepath.Join(dir, "f"), 0, 0o644)
		for _, name := range []string{"user.a", "trusted.b", "user.c"} {
			if err := unix.Fsetxattr(fd, name, []byte("x"), 0); err != nil {
				t.Fatal(err)
			}
		}
		var list [100]byte
		n, err := unix.Flistxattr(fd, list[:])
		if err != nil || !strings.Contains(string(list[:n]), "trusted.b\x00") {
			t.Errorf("%s: root sees %q, %v", dir, list[:n], err)
		}
		asNobody(t, func() error { n, err = unix.Flistxattr(fd, list[:]); return err })
		var fits int
		asNobody(t, func() error { fits, err = unix.Flistxattr(fd, nil); return err })
		if fits != n {
			t.Errorf("%s: nobody is told that the list has %d bytes, it has %d", dir, fits, n)
		}
		asNobody(t, func() error { _, err = unix.Flistxattr(fd, list[:fits]); return err })
		if got := string(list[:n]); got != "user.a\x00user.c\x00" && got != "user.c\x00user.a\x00" {
			t.Errorf("%s: nobody sees %q", dir, got)
		}
	}
}

func TestANewFileIsOpenForWhatItsModeForbids(t *testing.T) {
	mnt, _, _ := mounted(t)
	if err := os.Chmod(mnt, 0o777); err != nil {
		t.Fatal(err)
	}
	dir, err := unix.Open(mnt, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dir)
	asNobody(t, func() error {
		fd, err := unix.Openat(dir, "f", unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o400)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		_, err = unix.Write(fd, []byte("x"))
		return err
	})
}

func TestAMountThatIsGoneKeepsNoFilesWithoutAName(t *testing.T) {
	mnt, _, v := mounted(t)
	fd := file(t, filepath.Join(mnt, "f"), 0, 0o600)
	var st unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &st), os.Remove(filepath.Join(mnt, "f"))); err != nil {
		t.Fatal(err)
	}
	before := openDescriptors(t)
	if err := errors.Join(unix.Unmount(mnt, unix.MNT_DETACH), unix.Close(fd)); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); openDescriptors(t) > before-3; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) { // the descriptor itself, the one that held the file, /dev/fuse
			t.Fatalf("%d descriptors are open, %d were before", openDescriptors(t), before)
		}
	}
	if v.SetReadOnly(true) != nil {
		t.Error("the volume still speaks to a mount that is gone")
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// mapsFile names the variable that makes this program one that writes a file through a map and waits.
const mapsFile = "TANDEMFS_TEST_MAPS_FILE"

// The first request may come before Mount returns.
func TestAFileThatIsRemovedAsSoonAsTheMountIsThereIsKept(t *testing.T) {
	for range 5 {
		mnt := t.TempDir()
		v, err := volume.Open(t.TempDir(), volume.Options{Name: "test", Create: true})
		check(t, err)
		before := statOf(t, mnt)
		removed := make(chan error)
		go func() { removed <- useWithoutAName(mnt, before.Dev) }()
		s, err := Mount(v, mnt, Options{})
		check(t, err)
		if err := <-removed; err != nil {
			t.Error(err)
		}
		check(t, s.Unmount())
		check(t, v.Close())
	}
}

// useWithoutAName waits for a mount, makes a file there, removes it and writes to it. It keeps clear of package os, whose
// files are polled: the kernel must learn first that this mount does not need to be asked for that.
func useWithoutAName(mnt string, below uint64) error {
	for st := (unix.Stat_t{Dev: below}); st.Dev == below; {
		if err := unix.Stat(mnt, &st); err != nil {
			return err
		}
	}
	file := filepath.Join(mnt, "file")
	fd, err := unix.Open(file, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Unlink(file); err != nil {
		return err
	}
	_, err = unix.Pwrite(fd, []byte("content"), 0)
	return err
}

func TestMain(m *testing.M) {
	if path := os.Getenv(mapsFile); path != "" {
		writeThroughMap(path)
		return
	}
	if path := os.Getenv(probedMount); path != "" {
		probe(path, os.Getenv(probedShared))
		return
	}
	if path := os.Getenv(hammeredFile); path != "" {
		hammer(path)
		return
	}
	if path := os.Getenv(guardedMount); path != "" {
		waitForOneself(path)
		return
	}
	os.Exit(m.Run())
}

const mappedSize = 8 << 20

// writeThroughMap runs in a process of its own: a page fault on the mount stops the whole of a Go program
// until it is served, so it must not be the one that serves.
func writeThroughMap(path string) {
	fd, err := unix.Open(path, unix.O_RDWR, 0)
	if err != nil {
		panic(err)
	}
	mapped, err := unix.Mmap(fd, 0, mappedSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		panic(err)
	}
	for i := range mapped {
		mapped[i] = 'm'
	}
	os.Stdout.Write([]byte("written"))
	os.Stdin.Read(make([]byte, 1))
}

func TestWhatWasWrittenThroughAMapIsThereWhenAVolumeBecomesReadOnly(t *testing.T) {
	mnt, dir, v := mounted(t)
	if err := unix.Ftruncate(file(t, filepath.Join(mnt, "f"), 0, 0o600), mappedSize); err != nil {
		t.Fatal(err)
	}
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), mapsFile+"="+filepath.Join(mnt, "f"))
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer stdin.Close()
	if _, err := io.ReadFull(stdout, make([]byte, len("written"))); err != nil {
		t.Fatal(err)
	}
	if err := v.SetReadOnly(true); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(dir, "f"))
	if n := bytes.Count(content, []byte("m")); n != mappedSize || err != nil {
		t.Errorf("%d bytes of %d are in the backing file, %v", n, mappedSize, err)
	}
}

// A process that waits for its own answer cannot be killed: the kernel keeps the connection open for it.
func TestTheReadOnlyFlagIsChangedWithoutAnyAnswer(t *testing.T) {
	base := t.TempDir()
	dir, mnt := filepath.Join(base, "dir"), filepath.Join(base, "mnt")
	check(t, errors.Join(os.Mkdir(dir, 0o755), os.Mkdir(mnt, 0o755)))
	v, err := volume.Open(dir, volume.Options{Name: "test", Create: true})
	check(t, err)
	defer v.Close()
	s, err := Mount(v, mnt, Options{})
	check(t, err)
	defer s.Unmount()
	turn, err := collect(noDifferences{})
	check(t, err)
	turn.all, turn.stage = true, stageAttrs // whoever asks for attributes waits
	s.turn.Store(turn)
	defer s.turn.Store(nil)
	s.fuse.InodeNotify(rootNode, -1, 0)
	done := make(chan error, 1)
	go func() {
		for _, on := range []bool{true, false, true, true, false} {
			if err := s.SetReadOnly(on); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	select {
	case err := <-done:
		check(t, err)
		turn.end()
	case <-time.After(10 * time.Second):
		turn.end()
		t.Errorf("it has waited for an answer, then: %v", <-done)
	}
}

type noDifferences struct{}

func (noDifferences) Inodes(func(journal.Ident, bool) error) error  { return nil }
func (noDifferences) Names(func(journal.Ident, string) error) error { return nil }
