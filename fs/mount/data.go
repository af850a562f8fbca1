package mount

import (
	"bytes"
	"encoding/binary"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/fs/volume"
	"tandemfs/journal"
)

// afterEnd is how long a READ that begins behind the end of a file waits. The kernel sends one only when it takes
// the file to be longer than it is now. The READ that the end is in tells it the right size, but not after one
// behind that told it another.
const afterEnd = 10 * time.Millisecond

// live is the volume as it is, among the trees that a request may read.
type live interface {
	Content(journal.Ident) (volume.Content, error)
}

// Read reads content.
func (r *rawFS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	q, status := r.beginRead(in)
	if !status.Ok() {
		return nil, status
	}
	if q.show == showSnapshots {
		q.end()
		return nil, fuse.EISDIR
	}
	size := min(len(buf), int(in.Size))
	if tree, ok := q.tree.(live); ok && size >= spliceFrom {
		return q.splice(tree, int64(in.Offset), size)
	}
	defer q.end()
	n, err := q.tree.Read(q.id, buf[:size], int64(in.Offset))
	if err != nil {
		return nil, r.status(err)
	}
	if n == 0 {
		time.Sleep(afterEnd)
	}
	// A vector is written as it is. go-fuse tries to splice all other results first, which takes
	// four system calls to fail for one that has no descriptor.
	return fuse.ReadResultVector([][]byte{buf[:n]}), fuse.OK
}

// splice answers with the pages of the backing file. Those of a view must be copied: pages are handed over by
// reference, and what is written to them later would show.
func (q *reading) splice(tree live, off int64, size int) (fuse.ReadResult, fuse.Status) {
	c, err := tree.Content(q.id)
	if err != nil {
		defer q.end()
		return nil, q.r.status(err)
	}
	return &spliced{reading: q, content: c, off: off, size: size}, fuse.OK
}

// spliceFrom is the size from which moving pages through a pipe is quicker than copying them twice.
const spliceFrom = 32 << 10

// spliced is a part of a file that go-fuse moves from the backing file to the kernel by splice(2).
type spliced struct {
	reading *reading
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

// Done ends it, and with it the request.
func (s *spliced) Done() {
	s.content.Close()
	s.reading.end()
}

// Writev writes content.
func (r *rawFS) Writev(_ <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	id, status := r.writable(in.NodeId)
	if !status.Ok() {
		return 0, status
	}
	n, err := r.v.Write(id, data, int64(in.Offset), in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0)
	return uint32(n), r.status(err)
}

// CopyFileRange copies inside the backing filesystem, which may share the blocks.
func (r *rawFS) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	from, status := r.writable(in.NodeId)
	if status == fuse.EROFS {
		return 0, fuse.EXDEV // what a snapshot shows is copied by the kernel, with READ and WRITE
	}
	if !status.Ok() {
		return 0, status
	}
	to, status := r.writable(in.NodeIdOut)
	if !status.Ok() {
		return 0, status
	}
	n, err := r.v.Copy(from, int64(in.OffIn), to, int64(in.OffOut), int64(min(in.Len, 1<<30)),
		in.InHeader.Uid != 0)
	return uint32(n), r.status(err)
}

// Fallocate allocates, punches or zeroes a range.
func (r *rawFS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	id, status := r.writable(in.NodeId)
	if !status.Ok() {
		return status
	}
	return r.status(r.v.Allocate(id, in.Mode, int64(in.Offset), int64(in.Length),
		in.InHeader.Uid != 0))
}

// Lseek finds data and holes.
func (r *rawFS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	q, status := r.begin(in.NodeId, askNothing)
	if !status.Ok() {
		return status
	}
	defer q.end()
	if q.show == showSnapshots {
		return fuse.EINVAL
	}
	off, err := q.tree.Seek(q.id, int64(in.Offset), int(in.Whence))
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
	id, status := r.writable(in.NodeId)
	if status == fuse.EROFS {
		return fuse.OK // a snapshot is durable
	}
	if !status.Ok() {
		return status
	}
	return r.status(r.v.Fsync(id, dir, in.FsyncFlags&fsyncDataOnly != 0))
}

// ReadDir lists names.
func (r *rawFS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	q, status := r.begin(in.NodeId, askList)
	if !status.Ok() {
		return status
	}
	defer q.end()
	return r.status(q.list(int64(in.Offset), int(in.Size), func(e *sys.Dirent) bool {
		return out.AddDirEntry(q.dirEntry(e))
	}))
}

// ReadDirPlus lists names together with what they stand for.
func (r *rawFS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	q, status := r.begin(in.NodeId, askList)
	if !status.Ok() {
		return status
	}
	defer q.end()
	// With its attributes an entry is four times as large in the answer as it is here, or more.
	return r.status(q.list(int64(in.Offset), int(in.Size)/4, func(e *sys.Dirent) bool {
		entry := out.AddDirLookupEntry(q.dirEntry(e))
		if entry == nil {
			return false
		}
		q.plus(e, entry)
		return true
	}))
}

// plus answers with the inode of a listed name. A name that is gone by now, or that is about to stand for
// something else, is listed without its inode: the kernel looks it up itself.
func (q *reading) plus(e *sys.Dirent, out *fuse.EntryOut) {
	if e.IsDot() || q.show == showSnapshots {
		return
	}
	name := string(e.Name)
	if q.turn != nil && q.turn.renames(q.id, name) || q.tree.Lookup(q.id, name, &q.inode) != nil {
		return
	}
	if q.turn == nil || !q.turn.changes(q.inode.ID) {
		q.entry(name, out)
	}
}

func (q *reading) dirEntry(e *sys.Dirent) fuse.DirEntry {
	return fuse.DirEntry{Name: string(e.Name), Ino: q.ino(e.Ino), Off: uint64(e.Off), Mode: uint32(e.Type) << 12}
}

// GetXAttr reads an extended attribute.
func (r *rawFS) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	q, status := r.begin(h.NodeId, askAttrs)
	if !status.Ok() {
		return 0, status
	}
	defer q.end()
	if q.show == showSnapshots {
		return 0, fuse.ENOATTR
	}
	n, err := q.tree.GetXattr(q.id, name, dest)
	return uint32(n), r.status(err)
}

// ListXAttr lists extended attributes.
func (r *rawFS) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	q, status := r.begin(h.NodeId, askNothing)
	if !status.Ok() {
		return 0, status
	}
	defer q.end()
	if q.show == showSnapshots {
		return 0, fuse.OK
	}
	n, err := q.tree.ListXattr(q.id, dest)
	if h.Uid != 0 && (err == unix.ERANGE || err == nil && n > 0) {
		n, err = q.listUntrusted(dest)
	}
	return uint32(n), r.status(err)
}

// listUntrusted is ListXattr without the trusted attributes: only root is shown them, and the backing filesystem takes
// everybody for root.
func (q *reading) listUntrusted(dest []byte) (int, error) {
	all := make([]byte, sys.MaxXattrList)
	n, err := q.tree.ListXattr(q.id, all)
	if err != nil {
		return 0, err
	}
	kept := all[:0]
	for name := range bytes.SplitAfterSeq(all[:n], []byte{0}) {
		if !bytes.HasPrefix(name, []byte("trusted.")) {
			kept = append(kept, name...)
		}
	}
	if len(dest) > 0 && len(kept) > len(dest) {
		return 0, unix.ERANGE
	}
	copy(dest, kept)
	return len(kept), nil
}

// SetXAttr sets an extended attribute.
func (r *rawFS) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	id, status := r.writable(in.NodeId)
	if !status.Ok() {
		return status
	}
	killSGID := name == sys.XattrACLAccess && in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0
	return r.status(r.v.SetXattr(id, name, value, int(in.Flags), killSGID))
}

// RemoveXAttr removes an extended attribute.
func (r *rawFS) RemoveXAttr(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	id, status := r.writable(h.NodeId)
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
	n, kind, ok := r.t.get(in.NodeId)
	if !ok {
		return fuse.Status(unix.ESTALE)
	}
	if n.show != showCurrent || kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return fuse.Status(unix.ENOTTY)
	}
	switch {
	case in.Cmd == iocGetFlags && len(outbuf) >= 4:
		flags, err := r.v.Flags(n.id, kind == unix.S_IFDIR)
		binary.NativeEndian.PutUint32(outbuf, flags)
		return r.status(err)
	case in.Cmd == iocSetFlags && len(inbuf) >= 4:
		return r.status(r.v.SetFlags(n.id, kind == unix.S_IFDIR, binary.NativeEndian.Uint32(inbuf)))
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
