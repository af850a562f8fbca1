// Package sys is the seam between a volume and the kernel: every system call that touches the backing
// filesystem is made here, by descriptor or by file handle, never through a path that a rename can pull
// away. It guarantees that an identity given to OpenIdent reaches exactly that inode or fails with
// ESTALE, that nothing mounted below the backing directory is crossed into, and that interrupted calls
// are repeated. Errors are the kernel's errnos, unwrapped.
package sys

import (
	"encoding/binary"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"tandemfs/journal"
)

// The file handle types that Linux's filesystems hand out and that carry inode number and generation.
// See include/linux/exportfs.h in the kernel (enum fid_type) and fs/btrfs/export.h, fs/xfs/xfs_export.h.
const (
	fileidIno32Gen        = 0x01 // u32 ino, u32 gen: ext2, ext3, ext4, XFS with small inode numbers
	fileidIno64Gen        = 0x81 // u64 ino, u32 gen: XFS
	fileidBtrfsConnection = 0x4d // u64 objectid, u64 root, u32 gen: btrfs
)

// emptySubvolume is the inode number of what a btrfs snapshot has in place of a subvolume that was below
// (BTRFS_EMPTY_SUBVOL_DIR_OBJECTID). It cannot be opened by its handle.
const emptySubvolume = 2

// maxHandle is MAX_HANDLE_SZ of the kernel.
const maxHandle = 128

// fileHandle is struct file_handle of the kernel.
type fileHandle struct {
	bytes uint32
	kind  int32
	data  [maxHandle]byte
}

// Backing is an open backing directory: a private clone of its mount, so that other mounts below it are
// not seen, unmounting or overmounting its path changes nothing here, and handles can be opened.
// It is safe for concurrent use.
type Backing struct {
	fd       int
	kind     int32
	subvol   uint64 // btrfs: the subvolume that all inodes must belong to
	rootID   journal.Ident
	block    int64
	magic    int64
	procPath string
}

// OpenBacking opens a directory as the root of a volume. It gives ENOTDIR for something else, and
// EOPNOTSUPP for a filesystem without handles of a known form (ext4, XFS and btrfs have them).
func OpenBacking(path string) (*Backing, error) {
	clone := -1
	err := again("open_tree", func() (err error) {
		clone, err = unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		return err
	})
	if err != nil {
		return nil, err
	}
	defer unix.Close(clone)
	fd, err := Open(clone, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	b := &Backing{fd: fd, procPath: fmt.Sprintf("/proc/self/fd/%d", fd)}
	if err := b.learn(); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return b, nil
}

// learn finds out what this filesystem's handles look like, from the root's own.
func (b *Backing) learn() error {
	var st unix.Statfs_t
	if err := b.Statfs(&st); err != nil {
		return err
	}
	b.block, b.magic = max(st.Bsize, 1), st.Type
	var h fileHandle
	if err := nameToHandle(b.fd, "", &h); err != nil {
		return err
	}
	b.kind = h.kind
	if h.kind == fileidBtrfsConnection && h.bytes >= 20 {
		b.subvol = binary.NativeEndian.Uint64(h.data[8:])
	}
	id, err := b.decode(&h)
	if err != nil {
		return err
	}
	b.rootID = id
	_, err = b.reopenRoot()
	return err
}

// reopenRoot proves that handles can be opened at all (it needs CAP_DAC_READ_SEARCH).
func (b *Backing) reopenRoot() (bool, error) {
	fd, err := b.OpenIdent(b.rootID, unix.O_PATH)
	if err != nil {
		return false, err
	}
	return true, unix.Close(fd)
}

// BlockSize is the filesystem's, in bytes: what it allocates at least.
func (b *Backing) BlockSize() int64 { return b.block }

// Magic is the filesystem's type, as statfs(2) gives it.
func (b *Backing) Magic() int64 { return b.magic }

// FD is the root directory's descriptor; it stays the Backing's.
func (b *Backing) FD() int { return b.fd }

// ProcPath is a path that reaches the root directory whatever is mounted over its own path.
func (b *Backing) ProcPath() string { return b.procPath }

// Root is the root directory's identity.
func (b *Backing) Root() journal.Ident { return b.rootID }

// Close closes the root directory.
func (b *Backing) Close() error { return unix.Close(b.fd) }

// nameToHandle is name_to_handle_at(2) for dirfd/name, or dirfd itself when name is empty. The wrapper of
// x/sys allocates and asks twice; lookups are too frequent for that.
func nameToHandle(dirfd int, name string, h *fileHandle) error {
	var buf [256]byte
	if len(name) > 255 {
		return unix.ENAMETOOLONG
	}
	copy(buf[:], name)
	flags := 0
	if name == "" {
		flags = unix.AT_EMPTY_PATH
	}
	var mountID int32
	h.bytes = maxHandle
	return again("name_to_handle_at", func() error {
		_, _, errno := unix.Syscall6(unix.SYS_NAME_TO_HANDLE_AT, uintptr(dirfd), uintptr(unsafe.Pointer(&buf[0])),
			uintptr(unsafe.Pointer(h)), uintptr(unsafe.Pointer(&mountID)), uintptr(flags), 0)
		if errno != 0 {
			return errno
		}
		return nil
	})
}

// decode reads the identity out of a handle.
func (b *Backing) decode(h *fileHandle) (journal.Ident, error) {
	if h.kind != b.kind {
		return journal.Ident{}, unix.EOPNOTSUPP
	}
	n := binary.NativeEndian
	switch {
	case h.kind == fileidIno32Gen && h.bytes == 8:
		return journal.Ident{Ino: uint64(n.Uint32(h.data[0:])), Gen: uint64(n.Uint32(h.data[4:]))}, nil
	case h.kind == fileidIno64Gen && h.bytes == 12:
		return journal.Ident{Ino: n.Uint64(h.data[0:]), Gen: uint64(n.Uint32(h.data[8:]))}, nil
	case h.kind == fileidBtrfsConnection && h.bytes == 20:
		if n.Uint64(h.data[8:]) != b.subvol || n.Uint64(h.data[0:]) == emptySubvolume {
			return journal.Ident{}, unix.EXDEV
		}
		return journal.Ident{Ino: n.Uint64(h.data[0:]), Gen: uint64(n.Uint32(h.data[16:]))}, nil
	}
	return journal.Ident{}, unix.EOPNOTSUPP
}

// encode writes the handle of an identity; the reverse of decode.
func (b *Backing) encode(id journal.Ident, h *fileHandle) {
	n := binary.NativeEndian
	h.kind = b.kind
	switch b.kind {
	case fileidIno32Gen:
		h.bytes = 8
		n.PutUint32(h.data[0:], uint32(id.Ino))
		n.PutUint32(h.data[4:], uint32(id.Gen))
	case fileidIno64Gen:
		h.bytes = 12
		n.PutUint64(h.data[0:], id.Ino)
		n.PutUint32(h.data[8:], uint32(id.Gen))
	case fileidBtrfsConnection:
		h.bytes = 20
		n.PutUint64(h.data[0:], id.Ino)
		n.PutUint64(h.data[8:], b.subvol)
		n.PutUint32(h.data[16:], uint32(id.Gen))
	}
}

// IdentAt gives the identity of dirfd/name, without following a symbolic link; of dirfd itself when name
// is empty. A name in another subvolume or of an unknown kind of handle gives EXDEV or EOPNOTSUPP.
func (b *Backing) IdentAt(dirfd int, name string) (journal.Ident, error) {
	var h fileHandle
	if err := nameToHandle(dirfd, name, &h); err != nil {
		return journal.Ident{}, err
	}
	return b.decode(&h)
}

// How often, and at which intervals, OpenIdent asks again whether memory is short.
const (
	memoryTries = 1000
	memoryPause = time.Millisecond
)

// OpenIdent opens an inode by its identity. The identity of an inode that is gone gives ESTALE.
//
// While the number of an inode that is gone is given to a new one, ext4 says ENOMEM (iget_locked has no other
// word for it). That passes in a moment, so it is believed only when it stays.
func (b *Backing) OpenIdent(id journal.Ident, flags int) (int, error) {
	var h fileHandle
	b.encode(id, &h)
	for short := 0; ; short++ {
		fd := -1
		err := again("open_by_handle_at", func() error {
			got, _, errno := unix.Syscall(unix.SYS_OPEN_BY_HANDLE_AT, uintptr(b.fd), uintptr(unsafe.Pointer(&h)),
				uintptr(flags|unix.O_CLOEXEC|unix.O_NOFOLLOW))
			if errno != 0 {
				return errno
			}
			fd = int(got)
			return nil
		})
		if err != unix.ENOMEM || short == memoryTries {
			return fd, err
		}
		time.Sleep(memoryPause)
	}
}
