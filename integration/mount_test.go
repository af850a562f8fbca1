package integration

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"tandemfs/integration/history"
	"tandemfs/integration/lab"
)

// copyProgram puts a copy of one of the system's programs where a test wants it.
func copyProgram(t *testing.T, program, to string) {
	t.Helper()
	found, err := exec.LookPath(program)
	check(t, err)
	b, err := os.ReadFile(found)
	check(t, err)
	check(t, os.WriteFile(to, b, 0o755))
}

// asUser runs a program as an ordinary user.
func asUser(t *testing.T, uid uint32, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s as user %d: %v\n%s", program, uid, err, out)
	}
	return strings.TrimSpace(string(out))
}

// reachable lets other users through to a directory that the lab made for root.
func reachable(t *testing.T, dir string) {
	t.Helper()
	for d := dir; strings.Contains(d, lab.Prefix); d = filepath.Dir(d) {
		check(t, os.Chmod(d, 0o755))
	}
}

func TestSetUserIDProgramsAndDevicesWorkUnlessTheMountWasAskedOtherwise(t *testing.T) {
	for _, c := range []struct {
		name    string
		options []string
		works   bool
	}{
		{"by default they work", nil, true},
		{"with nosuid and nodev they do not", []string{"--nosuid", "--nodev"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := alone(t)
			dir := lab.MakeDir(t, lab.Disk(t, lab.Ext4, smallDisk), "data")
			mount := lab.Dir(t)
			t.Cleanup(n.Stop)
			n.Must(append([]string{"volume", "create", "data", dir, "--mount", mount}, c.options...)...)
			reachable(t, mount)
			program := filepath.Join(mount, "id")
			copyProgram(t, "id", program)
			check(t, os.Chown(program, 4711, 4711))
			check(t, unix.Chmod(program, 0o4755))
			if uid := asUser(t, 1000, program, "-u"); (uid == "4711") != c.works {
				t.Errorf("a set-user-id program ran as user %s", uid)
			}
			null := filepath.Join(mount, "null")
			check(t, unix.Mknod(null, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
			err := os.WriteFile(null, []byte("x"), 0)
			if (err == nil) != c.works {
				t.Errorf("writing to a device: %v", err)
			}
		})
	}
}

func TestNobodyTakesSetIDBitsFromAFileOfOthers(t *testing.T) {
	v := newVolume(t, alone(t), "data", lab.Ext4, smallDisk, nil)
	program := write(t, "a program", v.Mount, "program")
	check(t, unix.Chmod(program, 0o6755))
	stranger := history.Users[1]
	for name, try := range map[string]func() error{
		"chown to whom it belongs":   func() error { return unix.Chown("program", 0, 0) },
		"chown to nobody in special": func() error { return unix.Chown("program", -1, -1) },
		"chmod":                      func() error { return unix.Chmod("program", 0o755) },
		"truncate":                   func() error { return unix.Truncate("program", 1) },
		"open for writing":           func() error { return openAndWrite("program", unix.O_WRONLY) },
		"set a capability":           func() error { return unix.Setxattr("program", "security.capability", nil, 0) },
		"remove a capability":        func() error { return unix.Removexattr("program", "security.capability") },
	} {
		err := history.As(stranger, v.Mount, try)
		var st unix.Stat_t
		check(t, unix.Stat(program, &st))
		if st.Mode&0o7777 != 0o6755 {
			t.Errorf("%s gave %v, and took set-id bits away: the mode is %04o", name, err, st.Mode&0o7777)
			check(t, unix.Chmod(program, 0o6755))
		}
	}
}

func TestTheMountTellsTheBackingFilesystemsFigures(t *testing.T) {
	v := newVolume(t, alone(t), "data", lab.Ext4, smallDisk, nil)
	var above, below unix.Statfs_t
	check(t, unix.Statfs(v.Mount, &above))
	check(t, unix.Statfs(v.Backing, &below))
	if above.Bsize != below.Bsize || above.Blocks != below.Blocks || above.Files != below.Files || above.Namelen != below.Namelen {
		t.Errorf("above: %+v\nbelow: %+v", above, below)
	}
}

func TestAFilesystemsShutdownTrimAndFreezeCannotBeReachedThroughTheMount(t *testing.T) {
	v := newVolume(t, alone(t), "data", lab.Ext4, smallDisk, nil)
	path := write(t, "still here", v.Mount, "file")
	for name, request := range map[string]uintptr{
		"EXT4_IOC_SHUTDOWN": 0x8004587d,
		"FITRIM":            0xc0185879,
		"FIFREEZE":          0xc0045877,
		"FITHAW":            0xc0045878,
		"EXT4_IOC_RESIZE":   0x40086610,
		"EXT4_IOC_SWAPBOOT": 0x6611,
	} {
		for _, target := range []string{path, v.Mount} {
			f, err := os.Open(target)
			check(t, err)
			argument := make([]byte, 64)
			_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&argument[0])))
			f.Close()
			if errno == 0 {
				t.Errorf("%s on %s was let through", name, target)
			}
		}
	}
	write(t, "and writable", v.Backing, "below")
	if got := mustRead(t, v.Mount, "file"); got != "still here" {
		t.Errorf("read %q", got)
	}
}

func TestTheStateDirectoryCannotBeSeenOrReachedThroughTheMount(t *testing.T) {
	v := newVolume(t, alone(t), "data", lab.Ext4, smallDisk, nil)
	if _, err := os.Stat(filepath.Join(v.Backing, ".tandemfs")); err != nil {
		t.Fatalf("the state directory is not where this test expects it: %v", err)
	}
	hidden := filepath.Join(v.Mount, ".tandemfs")
	file := write(t, "x", v.Mount, "file")
	check(t, os.Mkdir(filepath.Join(v.Mount, "dir"), 0o755))
	names, err := os.ReadDir(v.Mount)
	check(t, err)
	for _, n := range names {
		if n.Name() == ".tandemfs" {
			t.Error("it is listed")
		}
	}
	for what, try := range map[string]func() error{
		"stat":          func() error { return unix.Lstat(hidden, new(unix.Stat_t)) },
		"open":          func() error { return closed(unix.Open(hidden, unix.O_PATH, 0)) },
		"open below it": func() error { return closed(unix.Open(hidden+"/journal", unix.O_PATH, 0)) },
		"dots":          func() error { return unix.Lstat(v.Mount+"/dir/../.tandemfs/.", new(unix.Stat_t)) },
		"create":        func() error { return closed(unix.Open(hidden, unix.O_CREAT|unix.O_RDWR, 0o600)) },
		"mkdir":         func() error { return unix.Mkdir(hidden, 0o700) },
		"mknod":         func() error { return unix.Mknod(hidden, unix.S_IFIFO|0o600, 0) },
		"symlink":       func() error { return unix.Symlink("x", hidden) },
		"link to it":    func() error { return unix.Link(file, hidden) },
		"rename to it":  func() error { return unix.Rename(file, hidden) },
		"rename from":   func() error { return unix.Rename(hidden, v.Mount+"/seen") },
		"exchange": func() error {
			return unix.Renameat2(unix.AT_FDCWD, v.Mount+"/dir", unix.AT_FDCWD, hidden, unix.RENAME_EXCHANGE)
		},
		"rmdir":     func() error { return unix.Rmdir(hidden) },
		"unlink":    func() error { return unix.Unlink(hidden) },
		"attribute": func() error { return unix.Lsetxattr(hidden, "user.x", nil, 0) },
	} {
		if err := try(); err == nil {
			t.Errorf("%s was let through", what)
		}
	}
	if mustRead(t, file) != "x" {
		t.Error("a file was lost on the way")
	}
	inner := filepath.Join(v.Mount, "dir", ".tandemfs")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Errorf("the name is an ordinary one anywhere else: %v", err)
	}
}

func closed(fd int, err error) error {
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func TestLocksWorkBetweenProcesses(t *testing.T) {
	v := newVolume(t, alone(t), "data", lab.Ext4, smallDisk, nil)
	a, err := os.OpenFile(write(t, "x", v.Mount, "locked"), os.O_RDWR, 0)
	check(t, err)
	defer a.Close()
	b, err := os.OpenFile(a.Name(), os.O_RDWR, 0)
	check(t, err)
	defer b.Close()
	check(t, unix.Flock(int(a.Fd()), unix.LOCK_EX))
	if err := unix.Flock(int(b.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("a second flock: %v", err)
	}
	check(t, unix.Flock(int(a.Fd()), unix.LOCK_UN))
	check(t, unix.Flock(int(b.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: 0, Len: 10}
	check(t, unix.FcntlFlock(a.Fd(), unix.F_OFD_SETLK, &lock))
	lock.Start = 5
	if err := unix.FcntlFlock(b.Fd(), unix.F_OFD_SETLK, &lock); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("a second record lock: %v", err)
	}
	lock.Start = 10
	check(t, unix.FcntlFlock(b.Fd(), unix.F_OFD_SETLK, &lock))
}
