package mount

import (
	"bytes"
	"encoding/binary"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/fs/volume"
)

// Read reads content.
func (r *rawFS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	id, status := r.ident(in.NodeId)
	if !status.Ok() {
		return nil, status
	}
	size := min(len(buf), int(in.Size))
	if size < spliceFrom {
		n, err := r.v.Read(id, buf[:size], int64(in.Offset))
		if err != nil {
			return nil, r.status(err)
		}
		// A vector is written as it is. go-fuse tries to splice all other results first, which takes
		// four system calls to fail for one that has no descriptor.
		return fuse.ReadResultVector([][]byte{buf[:n]}), fuse.OK
	}
	c, err := r.v.Content(id)
	if err != nil {
		return nil, r.status(err)
	}
	return &spliced{content: c, off: int64(in.Offset), size: size}, fuse.OK
}

// spliceFrom is the size from which moving pages through a pipe is quicker than copying them twice.
const spliceFrom = 32 << 10

// spliced is a part of a file that go-fuse moves from the backing file to the kernel by splice(2).
type spliced struct {
	content volume.Content
	off     int64
	size    int
}

// Seekable tells go-fuse where to splice from.
func (s *spliced) Seekable() (fd uintptr, off int64, size int) {
	return uintptr(s.content.FD()), s.off, s.size
}

// Bytes reads it, where splicing is not possible.
func (s *spliced) Bytes(buf []byte) ([]byte, fuse.Status) {
	n, err := sys.ReadAt(s.content.FD(), buf[:min(len(buf), s.size)], s.off)
	return buf[:n], fuse.ToStatus(err)
}

// Size is how much was asked for; a file may end before.
func (s *spliced) Size() int { return s.size }

// Done ends it.
func (s *spliced) Done() { s.content.Close() }

// Writev writes content.
func (r *rawFS) Writev(_ <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	id, status := r.ident(in.NodeId)
	if !status.Ok() {
		return 0, status
	}
	n, err := r.v.Write(id, data, int64(in.Offset), in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0)
	return uint32(n), r.status(err)
}

// CopyFileRange copies inside the backing filesystem, which may share the blocks.
func (r *rawFS) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	from, status := r.ident(in.NodeId)
	if !status.Ok() {
		return 0, status
	}
	to, status := r.ident(in.NodeIdOut)
	if !status.Ok() {
		return 0, status
	}
	n, err := r.v.Copy(from, int64(in.OffIn), to, int64(in.OffOut), int64(min(in.Len, 1<<30)),
		in.InHeader.Uid != 0)
	return uint32(n), r.status(err)
}

// Fallocate allocates, punches or zeroes a range.
func (r *rawFS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	id, status := r.ident(in.NodeId)
	if !status.Ok() {
		return status
	}
	return r.status(r.v.Allocate(id, in.Mode, int64(in.Offset), int64(in.Length),
		in.InHeader.Uid != 0))
}

// Lseek finds data and holes.
func (r *rawFS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	id, status := r.ident(in.NodeId)
	if !status.Ok() {
		return status
	}
	off, err := r.v.Seek(id, int64(in.Offset), int(in.Whence))
	out.Offset = uint64(off)
	return r.status(err)
}

// fsyncDataOnly is FUSE_FSYNC_FDATASYNC.
const fsyncDataOnly = 1

// Fsync makes a file durable.
func (r *rawFS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status { return r.fsync(in, false) }

// FsyncDir makes a directory durable.
func (r *rawFS) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status { return r.fsync(in, true) }

func (r *rawFS) fsync(in *fuse.FsyncIn, dir bool) fuse.Status {
	id, status := r.ident(in.NodeId)
	if !status.Ok() {
		return status
	}
	return r.status(r.v.Fsync(id, dir, in.FsyncFlags&fsyncDataOnly != 0))
}

// ReadDir lists names.
func (r *rawFS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	dir, status := r.ident(in.NodeId)
	if !status.Ok() {
		return status
	}
	return r.status(r.v.ReadDir(dir, int64(in.Offset), int(in.Size), func(e *sys.Dirent) bool {
		return out.AddDirEntry(dirEntry(e))
	}))
}

// ReadDirPlus lists names together with what they stand for.
func (r *rawFS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	dir, status := r.ident(in.NodeId)
	if !status.Ok() {
		return status
	}
	var n volume.Inode
	// With its attributes an entry is four times as large in the answer as it is here, or more.
	return r.status(r.v.ReadDir(dir, int64(in.Offset), int(in.Size)/4, func(e *sys.Dirent) bool {
		entry := out.AddDirLookupEntry(dirEntry(e))
		if entry == nil {
			return false
		}
		// A name that is gone by now is listed without its inode: the kernel looks it up itself.
		if !e.IsDot() && r.v.Lookup(dir, string(e.Name), &n) == nil {
			r.entry(&n, entry)
		}
		return true
	}))
}

func dirEntry(e *sys.Dirent) fuse.DirEntry {
	return fuse.DirEntry{Name: string(e.Name), Ino: e.Ino, Off: uint64(e.Off), Mode: uint32(e.Type) << 12}
}

// GetXAttr reads an extended attribute.
func (r *rawFS) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	id, status := r.ident(h.NodeId)
	if !status.Ok() {
		return 0, status
	}
	n, err := r.v.GetXattr(id, name, dest)
	return uint32(n), r.status(err)
}

// ListXAttr lists extended attributes.
func (r *rawFS) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	id, status := r.ident(h.NodeId)
	if !status.Ok() {
		return 0, status
	}
	n, err := r.v.ListXattr(id, dest)
	if err == nil && len(dest) > 0 && h.Uid != 0 {
		n = hideTrusted(dest[:n])
	}
	return uint32(n), r.status(err)
}

// hideTrusted takes the trusted attributes out of a list, and gives its new length: only root is shown
// them, and the backing filesystem takes everybody for root.
func hideTrusted(list []byte) int {
	kept := list[:0]
	for name := range bytes.SplitAfterSeq(list, []byte{0}) {
		if !bytes.HasPrefix(name, []byte("trusted.")) {
			kept = append(kept, name...)
		}
	}
	return len(kept)
}

// SetXAttr sets an extended attribute.
func (r *rawFS) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	id, status := r.ident(in.NodeId)
	if !status.Ok() {
		return status
	}
	killSGID := name == sys.XattrACLAccess && in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0
	return r.status(r.v.SetXattr(id, name, value, int(in.Flags), killSGID))
}

// RemoveXAttr removes an extended attribute.
func (r *rawFS) RemoveXAttr(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	id, status := r.ident(h.NodeId)
	if !status.Ok() {
		return status
	}
	return r.status(r.v.RemoveXattr(id, name))
}

// The ioctls that pass: inode flags as lsattr(1) and chattr(1) read and write them. All others, a
// filesystem's shutdown, trim and freeze among them, give ENOTTY.
const (
	iocGetFlags = 0x80086601 // FS_IOC_GETFLAGS
	iocSetFlags = 0x40086602 // FS_IOC_SETFLAGS
)

// Ioctl passes the known ones to the volume.
func (r *rawFS) Ioctl(_ <-chan struct{}, in *fuse.IoctlIn, inbuf []byte, out *fuse.IoctlOut, outbuf []byte) fuse.Status {
	id, kind, ok := r.t.get(in.NodeId)
	if !ok {
		return fuse.Status(unix.ESTALE)
	}
	if kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return fuse.Status(unix.ENOTTY)
	}
	switch {
	case in.Cmd == iocGetFlags && len(outbuf) >= 4:
		flags, err := r.v.Flags(id, kind == unix.S_IFDIR)
		binary.NativeEndian.PutUint32(outbuf, flags)
		return r.status(err)
	case in.Cmd == iocSetFlags && len(inbuf) >= 4:
		return r.status(r.v.SetFlags(id, kind == unix.S_IFDIR, binary.NativeEndian.Uint32(inbuf)))
	}
	return fuse.Status(unix.ENOTTY)
}

// StatFs tells of the backing filesystem.
func (r *rawFS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	var st unix.Statfs_t
	if err := r.v.Statfs(&st); err != nil {
		return r.status(err)
	}
	*out = fuse.StatfsOut{
		Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
		Bsize: uint32(st.Bsize), NameLen: uint32(st.Namelen), Frsize: uint32(st.Frsize),
	}
	return fuse.OK
}
