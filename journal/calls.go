package journal

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"tandemfs/journal/failpoint"
)

// Every system call that the journal itself makes on its directory is made here, is repeated when a signal
// interrupts it, and can be made to fail by a test. Badger makes its own.

// again makes a call until no signal interrupts it.
func again(name string, call func() error) error {
	for {
		err := failpoint.Call(name)
		if err == nil {
			err = call()
		}
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// onFile is again for a call on a file's descriptor. Its errors name call and file.
func onFile(name string, f *os.File, call func(fd int) error) error {
	err := again(name, func() error { return call(int(f.Fd())) })
	if err != nil {
		return &os.PathError{Op: name, Path: f.Name(), Err: err}
	}
	return nil
}

func makeDir(dir string) error {
	return again("mkdir", func() error { return os.MkdirAll(dir, 0o700) })
}

// openFile is os.OpenFile. A file that it makes is its owner's.
func openFile(path string, flags int) (f *os.File, err error) {
	err = again("open", func() error {
		f, err = os.OpenFile(path, flags, 0o600)
		return err
	})
	return f, err
}

// readFile reads a small file.
func readFile(path string) (content []byte, err error) {
	err = again("read", func() error {
		content, err = os.ReadFile(path)
		return err
	})
	return content, err
}

// readAt fills p from a file's start.
func readAt(f *os.File, p []byte) error {
	return again("pread", func() error {
		_, err := f.ReadAt(p, 0)
		return err
	})
}

// writeAt writes all of p.
func writeAt(f *os.File, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := failpoint.Transfer("pwrite", len(p))
		if err == nil {
			n, err = unix.Pwrite(int(f.Fd()), p[:n], off)
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "pwrite", Path: f.Name(), Err: err}
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func fsync(f *os.File) error { return onFile("fsync", f, unix.Fsync) }

func fdatasync(f *os.File) error { return onFile("fdatasync", f, unix.Fdatasync) }

func lockFile(f *os.File) error {
	return onFile("flock", f, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
}

func fileSize(f *os.File) (int64, error) {
	var st unix.Stat_t
	err := onFile("fstat", f, func(fd int) error { return unix.Fstat(fd, &st) })
	return st.Size, err
}

func mapFile(f *os.File, size int) (data []byte, err error) {
	err = onFile("mmap", f, func(fd int) error {
		data, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		return err
	})
	return data, err
}

func rename(from, to string) error {
	return again("rename", func() error { return os.Rename(from, to) })
}

// syncPath syncs a file or directory. One that is gone has nothing to sync.
func syncPath(name string) error {
	f, err := openFile(name, os.O_RDONLY)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return fsync(f)
}

// freeSpace gives the bytes that root can still use on the filesystem of a directory.
func freeSpace(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := again("statfs", func() error { return unix.Statfs(dir, &st) }); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return FreeBytes(&st), nil
}

// FreeBytes is what root can still write to a filesystem. Of what btrfs calls free some is for metadata only.
func FreeBytes(st *unix.Statfs_t) uint64 {
	free := st.Bfree
	if st.Type == unix.BTRFS_SUPER_MAGIC {
		free = min(free, st.Bavail)
	}
	return free * uint64(st.Bsize)
}
