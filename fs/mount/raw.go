package mount

import (
	"errors"
	"io/fs"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"tandemfs/fs/volume"
	"tandemfs/journal"
)

// forever is how long the kernel may keep what it was told: it is told of every change.
const forever = 365 * 24 * time.Hour

// rawFS answers FUSE's requests: it turns numbers into identities, calls the volume, and turns what comes
// back into FUSE's structures. It decides nothing else.
type rawFS struct {
	fuse.RawFileSystem
	s *Server
	v *volume.Volume
	t *table
}

func (r *rawFS) String() string { return fsType }

// status turns an error of the volume into what the kernel is answered. It is the only place that does.
func (r *rawFS) status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	var errno unix.Errno // on the heap
	switch {
	case errors.As(err, &errno):
		if errno == unix.EIO { // a disk that fails, or a before image that is lost: somebody has to hear of it
			r.s.log.Error("an operation failed", "error", err)
		}
		return fuse.Status(errno)
	case errors.Is(err, fs.ErrNotExist):
		return fuse.ENOENT
	case errors.Is(err, journal.ErrClosed):
		return fuse.Status(unix.ESHUTDOWN)
	}
	r.s.log.Error("an operation failed", "error", err)
	return fuse.EIO
}

// writable gives the identity behind a number, for a request that changes it. What snapshots show is never
// changed.
func (r *rawFS) writable(number uint64) (journal.Ident, fuse.Status) {
	n, _, ok := r.t.get(number)
	switch {
	case !ok:
		return n.id, fuse.Status(unix.ESTALE)
	case n.show != showCurrent:
		return n.id, fuse.EROFS
	}
	return n.id, fuse.OK
}

func caller(h *fuse.InHeader, umask uint32) volume.Caller {
	return volume.Caller{UID: h.Uid, GID: h.Gid, Umask: umask & 0o777}
}

func fillAttr(st *unix.Statx_t, out *fuse.Attr) {
	out.Ino = st.Ino
	out.Size = st.Size
	out.Blocks = st.Blocks
	out.Atime, out.Atimensec = uint64(st.Atime.Sec), st.Atime.Nsec
	out.Mtime, out.Mtimensec = uint64(st.Mtime.Sec), st.Mtime.Nsec
	out.Ctime, out.Ctimensec = uint64(st.Ctime.Sec), st.Ctime.Nsec
	out.Mode = uint32(st.Mode)
	out.Nlink = st.Nlink
	out.Owner = fuse.Owner{Uid: st.Uid, Gid: st.Gid}
	// FUSE carries 32 bits of device number, as new_encode_dev of the kernel packs them.
	out.Rdev = st.Rdev_minor&0xff | st.Rdev_major<<8 | (st.Rdev_minor&^0xff)<<12
	out.Blksize = st.Blksize
}

// Lookup finds a name; that there is none is remembered by the kernel too.
func (r *rawFS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	q, status := r.begin(h.NodeId, askNames)
	if !status.Ok() {
		return status
	}
	defer q.end()
	if q.show == showSnapshots {
		return q.lookupSnapshot(name, out)
	}
	err := q.lookup(name)
	if err == unix.ENOENT {
		return q.absent(name, out)
	}
	if err == nil {
		q.entry(name, out)
	}
	return r.status(err)
}

// Forget takes back references that the kernel dropped.
func (r *rawFS) Forget(number, lookups uint64) {
	if n, last := r.t.forget(number, lookups); last && n.show == showCurrent {
		r.v.Forget(n.id)
	}
}

// GetAttr reads attributes.
func (r *rawFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	q, status := r.begin(in.NodeId, askAttrs)
	if !status.Ok() {
		return status
	}
	defer q.end()
	err := q.stat()
	if err == nil {
		out.SetTimeout(q.attrTimeout())
		fillAttr(&q.inode.Stat, &out.Attr)
	}
	return r.status(err)
}

// Statx reads attributes and the time of birth.
func (r *rawFS) Statx(_ <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	q, status := r.begin(in.NodeId, askAttrs)
	if !status.Ok() {
		return status
	}
	defer q.end()
	if err := q.stat(); err != nil {
		return r.status(err)
	}
	st := &q.inode.Stat
	out.SetTimeout(q.attrTimeout())
	out.Statx = fuse.Statx{
		Mask: st.Mask, Blksize: st.Blksize, Attributes: st.Attributes, AttributesMask: st.Attributes_mask,
		Nlink: st.Nlink, Uid: st.Uid, Gid: st.Gid, Mode: st.Mode, Ino: st.Ino, Size: st.Size, Blocks: st.Blocks,
		Atime: stamp(st.Atime), Btime: stamp(st.Btime), Ctime: stamp(st.Ctime), Mtime: stamp(st.Mtime),
		RdevMajor: st.Rdev_major, RdevMinor: st.Rdev_minor,
	}
	return fuse.OK
}

func stamp(t unix.StatxTimestamp) fuse.SxTime { return fuse.SxTime{Sec: uint64(t.Sec), Nsec: t.Nsec} }

// SetAttr changes attributes.
func (r *rawFS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	id, status := r.writable(in.NodeId)
	if !status.Ok() {
		return status
	}
	var n volume.Inode
	err := r.v.SetAttr(id, setting(in), &n)
	if err != nil {
		// A part of it may be done. The kernel would go on believing that nothing is.
		r.s.notified(r.s.fuse.InodeNotify(in.NodeId, -1, 0), "attributes", id)
		return r.status(err)
	}
	out.SetTimeout(forever)
	fillAttr(&n.Stat, &out.Attr)
	return fuse.OK
}

func setting(in *fuse.SetAttrIn) volume.Setting {
	s := volume.Setting{
		Mode: in.Mode & 0o7777, UID: in.Uid, GID: in.Gid, Size: int64(in.Size),
		Atime: setTime(in.Valid, fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec),
		Mtime: setTime(in.Valid, fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec),
	}
	for _, m := range []struct{ fuse, volume uint32 }{
		{fuse.FATTR_MODE, volume.SetMode},
		{fuse.FATTR_UID, volume.SetUID},
		{fuse.FATTR_GID, volume.SetGID},
		{fuse.FATTR_SIZE, volume.SetSize},
		{fuse.FATTR_ATIME | fuse.FATTR_ATIME_NOW | fuse.FATTR_MTIME | fuse.FATTR_MTIME_NOW, volume.SetTimes},
	} {
		if in.Valid&m.fuse != 0 {
			s.Valid |= m.volume
		}
	}
	s.KillPriv, s.Owner = in.Valid&fuse.FATTR_KILL_SUIDGID != 0, volume.AnyOwner
	if s.Group = volume.AnyGroup; in.InHeader.Uid != 0 {
		s.Group = int64(in.InHeader.Gid)
	}
	// A request that sets nothing is what is left of a chown(2) that changes no owner, and of what the
	// kernel asks for before it writes, allocates or copies. The first may be anybody's, and is for the
	// file's owner to make; the others drop set-id bits and capabilities themselves.
	if s.Valid == 0 && in.InHeader.Uid != 0 {
		s.KillPriv, s.Owner = true, int64(in.InHeader.Uid)
	}
	return s
}

func setTime(valid, set, now uint32, sec uint64, nsec uint32) journal.Time {
	switch {
	case valid&now != 0:
		return journal.Time{Nsec: unix.UTIME_NOW}
	case valid&set != 0:
		return journal.Time{Sec: int64(sec), Nsec: nsec}
	}
	return journal.Time{Nsec: unix.UTIME_OMIT}
}

// Mknod makes a file, FIFO, socket or device.
func (r *rawFS) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return r.made(in.NodeId, name, out, func(dir journal.Ident, n *volume.Inode) error {
		if in.Mode&unix.S_IFMT == unix.S_IFREG {
			return r.v.CreateFile(dir, name, in.Mode&0o7777, caller(&in.InHeader, in.Umask), n)
		}
		major := in.Rdev >> 8 & 0xfff
		minor := in.Rdev&0xff | in.Rdev>>12&0xfff00
		return r.v.Mknod(dir, name, in.Mode, unix.Mkdev(major, minor), caller(&in.InHeader, in.Umask), n)
	})
}

// Mkdir makes a directory.
func (r *rawFS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return r.made(in.NodeId, name, out, func(dir journal.Ident, n *volume.Inode) error {
		return r.v.Mkdir(dir, name, in.Mode&0o7777, caller(&in.InHeader, in.Umask), n)
	})
}

// Symlink makes a symbolic link.
func (r *rawFS) Symlink(_ <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return r.made(h.NodeId, name, out, func(dir journal.Ident, n *volume.Inode) error {
		return r.v.Symlink(dir, name, target, caller(h, 0), n)
	})
}

// Link gives an inode another name.
func (r *rawFS) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	id, status := r.writable(in.Oldnodeid)
	if status == fuse.EROFS {
		return fuse.EXDEV
	}
	if !status.Ok() {
		return status
	}
	return r.made(in.NodeId, name, out, func(dir journal.Ident, n *volume.Inode) error {
		return r.v.Link(id, dir, name, n)
	})
}

// made answers a request that makes a name, or with "" an inode without one.
func (r *rawFS) made(number uint64, name string, out *fuse.EntryOut, call func(journal.Ident, *volume.Inode) error) fuse.Status {
	dir, status := r.writable(number)
	if !status.Ok() {
		return status
	}
	if r.reserved(dir, name) {
		return fuse.Status(unix.EEXIST)
	}
	var n volume.Inode
	if err := call(dir, &n); err != nil {
		return r.status(err)
	}
	if name == "" {
		number = 0
	}
	out.NodeId, out.Generation = r.t.refer(ordinary(n.ID), uint32(n.Stat.Mode)&unix.S_IFMT, number, name)
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
	fillAttr(&n.Stat, &out.Attr)
	return fuse.OK
}

// Create is not offered: the kernel sends MKNOD instead, and then opens the file without a message. That
// saves the RELEASE.
func (r *rawFS) Create(<-chan struct{}, *fuse.CreateIn, string, *fuse.CreateOut) fuse.Status {
	return fuse.ENOSYS
}

// Tmpfile makes a file without a name.
func (r *rawFS) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	return r.made(in.NodeId, "", &out.EntryOut, func(dir journal.Ident, n *volume.Inode) error {
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH
		return r.v.Tmpfile(dir, in.Mode&0o7777, caller(&in.InHeader, in.Umask), n)
	})
}

// Unlink removes a name.
func (r *rawFS) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return r.remove(h.NodeId, name, r.v.Unlink)
}

// Rmdir removes a directory.
func (r *rawFS) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return r.remove(h.NodeId, name, r.v.Rmdir)
}

func (r *rawFS) remove(number uint64, name string, call func(journal.Ident, string) error) fuse.Status {
	dir, status := r.writable(number)
	if !status.Ok() {
		return status
	}
	if r.reserved(dir, name) {
		return fuse.EBUSY
	}
	return r.status(call(dir, name))
}

// Rename moves a name, or exchanges two.
func (r *rawFS) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	from, status := r.writable(in.NodeId)
	if !status.Ok() {
		return status
	}
	to, status := r.writable(in.Newdir)
	if !status.Ok() {
		return status
	}
	if r.reserved(from, oldName) || r.reserved(to, newName) {
		return fuse.EBUSY
	}
	return r.status(r.v.Rename(from, oldName, to, newName, uint(in.Flags)))
}

// Readlink reads a symbolic link.
func (r *rawFS) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	q, status := r.begin(h.NodeId, askNothing)
	if !status.Ok() {
		return nil, status
	}
	defer q.end()
	if q.show == showSnapshots {
		return nil, fuse.EINVAL
	}
	target, err := q.tree.Readlink(q.id)
	return []byte(target), r.status(err)
}

// Access is never asked for with default_permissions.
func (r *rawFS) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.ENOSYS }

// Open is not needed, nor is OpenDir: the kernel asks once and no more.
func (r *rawFS) Open(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }

// OpenDir is like Open.
func (r *rawFS) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }

// Flush has nothing to do: writes are made when they are made.
func (r *rawFS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }
