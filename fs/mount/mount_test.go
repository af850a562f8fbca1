package mount

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"golang.org/x/sys/unix"

	"tandemfs/fs/volume"
)

// mounted protects a new directory and mounts it elsewhere; both are gone when the test ends.
func mounted(t *testing.T) (mnt, dir string, v *volume.Volume) {
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
	s, err := Mount(v, mnt, Options{})
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
