package sys

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"tandemfs/journal"
	"tandemfs/journal/failpoint"
)

// again makes a call, and repeats it for as long as a signal interrupts it. A test can make it fail by its
// name.
func again(name string, call func() error) error {
	for {
		err := failpoint.Call(name)
		if err == nil {
			err = call()
		}
		if err != unix.EINTR {
			return err
		}
	}
}

// transfer is again for a call that moves up to size bytes, perhaps fewer.
func transfer(name string, size int, call func(size int) (int, error)) (n int, err error) {
	for {
		allowed, err := failpoint.Transfer(name, size)
		if err == nil {
			n, err = call(allowed)
		}
		if err != unix.EINTR {
			return n, err
		}
	}
}

// Stat fills st with what statx(2) tells of dirfd/name, or of dirfd itself when name is empty, without
// following a symbolic link. The birth time is asked for too.
func Stat(dirfd int, name string, st *unix.Statx_t) error {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_STATX_SYNC_AS_STAT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	return again("statx", func() error {
		return unix.Statx(dirfd, name, flags, unix.STATX_BASIC_STATS|unix.STATX_BTIME, st)
	})
}

// Attr turns a statx answer into a journal's attributes.
func Attr(st *unix.Statx_t) journal.Attr {
	return journal.Attr{
		Mode: uint32(st.Mode), Nlink: st.Nlink, UID: st.Uid, GID: st.Gid,
		Rdev: unix.Mkdev(st.Rdev_major, st.Rdev_minor), Size: int64(st.Size),
		Atime: Stamp(st.Atime), Mtime: Stamp(st.Mtime), Ctime: Stamp(st.Ctime),
	}
}

// Stamp turns one of statx(2)'s times into a journal's.
func Stamp(t unix.StatxTimestamp) journal.Time { return journal.Time{Sec: t.Sec, Nsec: t.Nsec} }

// Open is openat(2), close-on-exec, never following a symbolic link at the end.
func Open(dirfd int, name string, flags int, mode uint32) (fd int, err error) {
	err = again("openat", func() error {
		fd, err = unix.Openat(dirfd, name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, mode)
		return err
	})
	if err != nil {
		return -1, err
	}
	return fd, nil
}

// Close closes a descriptor. An error of close(2) is of no use to anyone here: what must be durable was
// synced before.
func Close(fd int) { _ = unix.Close(fd) }

// ReadAt reads until p is full or the file ends; n < len(p) with a nil error means the end.
func ReadAt(fd int, p []byte, off int64) (n int, err error) {
	for n < len(p) {
		m, err := transfer("pread", len(p)-n, func(size int) (int, error) {
			return unix.Pread(fd, p[n:n+size], off+int64(n))
		})
		if err != nil {
			return n, err
		}
		if m == 0 {
			return n, nil
		}
		n += m
	}
	return n, nil
}

// WriteAt writes all of p, or gives the error and how much was written before it.
func WriteAt(fd int, p []byte, off int64) (n int, err error) {
	for n < len(p) {
		m, err := transfer("pwrite", len(p)-n, func(size int) (int, error) {
			return unix.Pwrite(fd, p[n:n+size], off+int64(n))
		})
		if err != nil {
			return n, err
		}
		n += m
	}
	return n, nil
}

// BeginWriting has the kernel begin to write what is cached of a file. It waits for nothing and promises nothing.
func BeginWriting(fd int) { _ = unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE) }

// Truncate is ftruncate(2).
func Truncate(fd int, size int64) error {
	return again("ftruncate", func() error { return unix.Ftruncate(fd, size) })
}

// Fallocate is fallocate(2).
func Fallocate(fd int, mode uint32, off, length int64) error {
	return again("fallocate", func() error { return unix.Fallocate(fd, mode, off, length) })
}

// PunchHole makes a range a hole without changing the size.
func PunchHole(fd int, e journal.Extent) error {
	return Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, e.Off, e.Len())
}

// CopyRange is copy_file_range(2): at most n bytes, possibly fewer.
func CopyRange(in int, offIn int64, out int, offOut int64, n int) (copied int, err error) {
	return transfer("copy_file_range", n, func(size int) (int, error) {
		from, to := offIn, offOut
		return unix.CopyFileRange(in, &from, out, &to, size, 0)
	})
}

// Seek is lseek(2), for SEEK_DATA and SEEK_HOLE.
func Seek(fd int, off int64, whence int) (at int64, err error) {
	err = again("lseek", func() error {
		at, err = unix.Seek(fd, off, whence)
		return err
	})
	return at, err
}

// probed is the length up to which NextData asks for each block whether it is data: SEEK_HOLE may go through
// all of a file's extents up to the next hole, wherever that is. It is given in blocks of probeBlock bytes.
const (
	probed     = 16
	probeBlock = 4096
)

// NextData gives the first stretch of data at or after off and before end, as SEEK_DATA and SEEK_HOLE
// report it. ok is false when only a hole is left.
func NextData(fd int, off, end int64) (e journal.Extent, ok bool, err error) {
	if off >= end {
		return e, false, nil
	}
	start, err := Seek(fd, off, unix.SEEK_DATA)
	if err == unix.ENXIO || err == nil && start >= end {
		return e, false, nil
	}
	if err != nil {
		return e, false, err
	}
	stop, err := dataEnd(fd, start, end)
	if err == unix.ENXIO { // truncated between the two calls
		return e, false, nil
	}
	if err != nil {
		return e, false, err
	}
	return journal.Extent{Off: start, End: min(stop, end)}, true, nil
}

// dataEnd gives the end of the data at start, if that is before end.
func dataEnd(fd int, start, end int64) (int64, error) {
	if end-start > probed*probeBlock {
		return Seek(fd, start, unix.SEEK_HOLE)
	}
	for at := start - start%probeBlock + probeBlock; at < end; at += probeBlock {
		next, err := Seek(fd, at, unix.SEEK_DATA)
		if err == unix.ENXIO || err == nil && next > at {
			return at, nil
		}
		if err != nil {
			return 0, err
		}
	}
	return end, nil
}

// Fsync is fsync(2), or fdatasync(2) when only data matters.
func Fsync(fd int, dataOnly bool) error {
	return again("fsync", func() error {
		if dataOnly {
			return unix.Fdatasync(fd)
		}
		return unix.Fsync(fd)
	})
}

// SyncFilesystem makes everything written to the backing filesystem durable.
func (b *Backing) SyncFilesystem() error {
	return again("syncfs", func() error { return unix.Syncfs(b.fd) })
}

// Statfs is fstatfs(2) of the backing filesystem.
func (b *Backing) Statfs(st *unix.Statfs_t) error {
	return again("fstatfs", func() error { return unix.Fstatfs(b.fd, st) })
}

// Mkdir is mkdirat(2).
func Mkdir(dirfd int, name string, mode uint32) error {
	return again("mkdirat", func() error { return unix.Mkdirat(dirfd, name, mode) })
}

// Mknod is mknodat(2).
func Mknod(dirfd int, name string, mode uint32, rdev uint64) error {
	return again("mknodat", func() error { return unix.Mknodat(dirfd, name, mode, int(rdev)) })
}

// Symlink is symlinkat(2).
func Symlink(target string, dirfd int, name string) error {
	return again("symlinkat", func() error { return unix.Symlinkat(target, dirfd, name) })
}

// Link gives the inode behind fd (of any kind but a directory) another name.
func Link(fd, dirfd int, name string) error {
	return again("linkat", func() error { return unix.Linkat(fd, "", dirfd, name, unix.AT_EMPTY_PATH) })
}

// Rename is renameat2(2).
func Rename(olddir int, oldname string, newdir int, newname string, flags uint) error {
	return again("renameat2", func() error { return unix.Renameat2(olddir, oldname, newdir, newname, flags) })
}

// Unlink removes a name that is not a directory's.
func Unlink(dirfd int, name string) error {
	return again("unlinkat", func() error { return unix.Unlinkat(dirfd, name, 0) })
}

// Rmdir removes an empty directory.
func Rmdir(dirfd int, name string) error {
	return again("rmdir", func() error { return unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR) })
}

// Readlink reads the symbolic link behind an O_PATH descriptor.
func Readlink(fd int) (string, error) {
	var buf [unix.PathMax]byte
	n := 0
	err := again("readlinkat", func() (err error) {
		n, err = unix.Readlinkat(fd, "", buf[:])
		return err
	})
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// Chown is fchownat(2) on the descriptor itself; -1 leaves an id as it is.
func Chown(fd, uid, gid int) error {
	return again("fchownat", func() error {
		return unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW)
	})
}

// Chmod sets permission bits. Where the descriptor is O_PATH, which fchmod(2) refuses, the link in /proc
// reaches the same inode.
func Chmod(fd int, mode uint32) error {
	return again("fchmod", func() error {
		err := unix.Fchmod(fd, mode&07777)
		if err == unix.EBADF {
			err = unix.Chmod(procPath(fd), mode&07777)
		}
		return err
	})
}

// SetTimes sets access and modification time; a Nsec of UTIME_OMIT or UTIME_NOW means what it does in
// utimensat(2).
func SetTimes(fd int, atime, mtime journal.Time) error {
	ts := []unix.Timespec{
		{Sec: atime.Sec, Nsec: int64(atime.Nsec)},
		{Sec: mtime.Sec, Nsec: int64(mtime.Nsec)},
	}
	return again("utimensat", func() error { return unix.UtimesNanoAt(fd, "", ts, unix.AT_EMPTY_PATH) })
}

// procPath names an open descriptor's inode for calls that take no O_PATH descriptor.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// AsCaller runs a creating call with the file system identity of a user, so that the new inode is theirs
// from its first moment (and their quota's), with set-group-id directories and default ACLs handled by the
// backing filesystem. The daemon keeps its capabilities: permission was checked by the kernel before.
func AsCaller(uid, gid uint32, call func() error) error {
	if uid == 0 && gid == 0 {
		return call()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// Without this bit the kernel drops the file capabilities of a thread whose fsuid is no longer 0. It
	// stays set on the thread: harmless, since only the fsuid is ever changed here.
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, secbitNoSetuidFixup, 0, 0, 0); err != nil {
		return err
	}
	if _, err := unix.SetfsgidRetGid(int(gid)); err != nil {
		return err
	}
	defer unix.Setfsgid(0)
	if _, err := unix.SetfsuidRetUid(int(uid)); err != nil {
		return err
	}
	defer unix.Setfsuid(0)
	return call()
}

// secbitNoSetuidFixup is SECBIT_NO_SETUID_FIXUP of capabilities(7).
const secbitNoSetuidFixup = 1 << 2

// PathOf is the path that the kernel knows an open directory under. Only its last element means anything
// to a caller: the rest depends on what is mounted where.
func PathOf(fd int) (path string, err error) {
	err = again("readlink", func() error {
		path, err = os.Readlink(procPath(fd))
		return err
	})
	return path, err
}

// Flags reads an inode's flags (chattr(1)), as FS_IOC_GETFLAGS does. An O_PATH descriptor gives EBADF.
func Flags(fd int) (flags uint32, err error) {
	err = again("getflags", func() error {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.FS_IOC_GETFLAGS, uintptr(unsafe.Pointer(&flags)))
		if errno != 0 {
			return errno
		}
		return nil
	})
	return flags, err
}

// SetFlags sets them, as FS_IOC_SETFLAGS does.
func SetFlags(fd int, flags uint32) error {
	return again("setflags", func() error { return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(flags)) })
}

// RemoveAll removes a name of the root directory with everything below it. One that is not there is no error.
func (b *Backing) RemoveAll(name string) error {
	return again("removeall", func() error { return os.RemoveAll(filepath.Join(b.procPath, name)) })
}
