package volume

import (
	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
)

// Inode is what an operation tells of an inode: its identity and what statx(2) says.
type Inode struct {
	ID   journal.Ident
	Stat unix.Statx_t
}

// IsDir reports whether the inode is a directory.
func (n *Inode) IsDir() bool { return n.Stat.Mode&unix.S_IFMT == unix.S_IFDIR }

// Caller is on whose behalf an inode is made.
type Caller struct {
	UID   uint32
	GID   uint32
	Umask uint32
}

// Lookup finds the inode that a name stands for.
func (v *Volume) Lookup(dir journal.Ident, name string, out *Inode) error {
	if v.hidden(dir, name) {
		return unix.ENOENT
	}
	d, err := v.open.get(dir, reachDir)
	if err != nil {
		return err
	}
	defer v.open.put(d)
	return v.statAt(d.fd, name, out)
}

// statAt reads identity and attributes of a name. They are two system calls; where the name came to
// stand for another inode between them, both are made again.
func (v *Volume) statAt(dirfd int, name string, out *Inode) (err error) {
	for range 100 {
		if out.ID, err = v.backing.IdentAt(dirfd, name); err != nil {
			return err
		}
		if err = sys.Stat(dirfd, name, &out.Stat); err != nil {
			return err
		}
		if out.Stat.Ino == out.ID.Ino {
			v.hideNlink(out)
			return nil
		}
	}
	return unix.ESTALE
}

// statOpen reads the attributes of an open inode.
func (v *Volume) statOpen(o *openInode, out *Inode) error {
	out.ID = o.id
	if err := sys.Stat(o.fd, "", &out.Stat); err != nil {
		return err
	}
	v.hideNlink(out)
	return nil
}

// hideNlink takes the state directory out of the root's count of links.
func (v *Volume) hideNlink(n *Inode) {
	if n.ID == v.root && n.Stat.Nlink > 2 {
		n.Stat.Nlink--
	}
}

// masked takes the caller's umask from the mode of a new inode, unless the directory has a default ACL,
// which then stands in for it (acl(5)).
func masked(dirfd int, mode, umask uint32) uint32 {
	if mode&umask == 0 {
		return mode
	}
	if _, err := sys.GetXattr(dirfd, sys.XattrACLDefault, nil); err == nil {
		return mode
	}
	return mode &^ umask
}

// touchNew records that a name which stands for nothing is about to stand for something. It gives EEXIST
// where it stands for something already.
func (v *Volume) touchNew(d *openInode, name string) error {
	if v.hidden(d.id, name) {
		return unix.EPERM
	}
	switch _, err := v.backing.IdentAt(d.fd, name); err {
	case unix.ENOENT:
	case nil:
		return unix.EEXIST
	default:
		return err
	}
	if err := v.journal.TouchMeta(d.id, imageOf(d)); err != nil {
		return err
	}
	return v.journal.TouchName(d.id, name, journal.Ident{})
}

// make runs a creating call for a name, with the directory marked before and the inode noted after.
func (v *Volume) make(dir journal.Ident, name string, c Caller, out *Inode, call func(dirfd int) error) error {
	if err := v.enter(); err != nil {
		return err
	}
	defer v.leave()
	d, err := v.open.get(dir, reachDir)
	if err != nil {
		return err
	}
	defer v.open.put(d)
	if err := v.touchNew(d, name); err != nil {
		return err
	}
	if err := sys.AsCaller(c.UID, c.GID, func() error { return call(d.fd) }); err != nil {
		return err
	}
	err = v.statAt(d.fd, name, out)
	if err == nil {
		err = v.journal.NoteCreated(out.ID)
	}
	if err != nil {
		unmake(d.fd, name)
	}
	return err
}

// unmake takes back what was made but could not be recorded, for want of room: the caller is told that it
// is not there, and the kernel keeps that in mind.
func unmake(dirfd int, name string) {
	if sys.Unlink(dirfd, name) == unix.EISDIR {
		_ = sys.Rmdir(dirfd, name) // just made, so it is empty
	}
}

// Mkdir makes a directory.
func (v *Volume) Mkdir(dir journal.Ident, name string, mode uint32, c Caller, out *Inode) error {
	return v.make(dir, name, c, out, func(dirfd int) error {
		return sys.Mkdir(dirfd, name, masked(dirfd, mode, c.Umask))
	})
}

// Mknod makes a regular file, FIFO, socket or device; the type is in mode.
func (v *Volume) Mknod(dir journal.Ident, name string, mode uint32, rdev uint64, c Caller, out *Inode) error {
	return v.make(dir, name, c, out, func(dirfd int) error {
		return sys.Mknod(dirfd, name, masked(dirfd, mode, c.Umask), rdev)
	})
}

// Symlink makes a symbolic link.
func (v *Volume) Symlink(dir journal.Ident, name, target string, c Caller, out *Inode) error {
	return v.make(dir, name, c, out, func(dirfd int) error {
		return sys.Symlink(target, dirfd, name)
	})
}

// CreateFile makes a regular file and keeps it open for what follows. An existing name gives EEXIST.
func (v *Volume) CreateFile(dir journal.Ident, name string, mode uint32, c Caller, out *Inode) error {
	fd := -1
	err := v.make(dir, name, c, out, func(dirfd int) (err error) {
		fd, err = sys.Open(dirfd, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, masked(dirfd, mode, c.Umask))
		return err
	})
	if fd < 0 {
		return err
	}
	if err != nil {
		sys.Close(fd)
		return err
	}
	v.open.put(v.open.add(out.ID, fd, reachData))
	return nil
}

// Tmpfile makes a regular file without a name (O_TMPFILE), which lives until Forget or gets one by Link.
func (v *Volume) Tmpfile(dir journal.Ident, mode uint32, c Caller, out *Inode) error {
	if err := v.enter(); err != nil {
		return err
	}
	defer v.leave()
	d, err := v.open.get(dir, reachDir)
	if err != nil {
		return err
	}
	defer v.open.put(d)
	var fd int
	err = sys.AsCaller(c.UID, c.GID, func() (err error) {
		fd, err = sys.Open(d.fd, ".", unix.O_TMPFILE|unix.O_RDWR, masked(d.fd, mode, c.Umask))
		return err
	})
	if err != nil {
		return err
	}
	if out.ID, err = v.backing.IdentAt(fd, ""); err != nil {
		sys.Close(fd)
		return err
	}
	o := v.open.add(out.ID, fd, reachData)
	defer v.open.put(o)
	if err := v.open.hold(out.ID); err != nil {
		return err
	}
	return v.statOpen(o, out)
}

// Link gives an inode another name.
func (v *Volume) Link(id, dir journal.Ident, name string, out *Inode) error {
	if err := v.enter(); err != nil {
		return err
	}
	defer v.leave()
	d, err := v.open.get(dir, reachDir)
	if err != nil {
		return err
	}
	defer v.open.put(d)
	o, err := v.open.get(id, reachPath)
	if err != nil {
		return err
	}
	defer v.open.put(o)
	if err := v.touchNew(d, name); err != nil {
		return err
	}
	if err := v.journal.TouchMeta(id, imageOf(o)); err != nil {
		return err
	}
	nameless := v.open.orphaned(id)
	if nameless { // made by Tmpfile, perhaps in an earlier epoch: to everybody else it begins now
		if err := v.journal.NoteCreated(id); err != nil {
			return err
		}
	}
	if err := sys.Link(o.fd, d.fd, name); err != nil {
		return err
	}
	if nameless {
		v.open.adopt(id)
	}
	return v.statOpen(o, out)
}

// touchGoing records that a name is about to lose its inode, or to give it to another name; last says
// whether it is the inode's last one. The inode is then kept open while the kernel refers to it.
func (v *Volume) touchGoing(d *openInode, name string, n *Inode) (last bool, err error) {
	if err := v.journal.TouchName(d.id, name, n.ID); err != nil {
		return false, err
	}
	last = n.IsDir() || n.Stat.Nlink == 1
	o, err := v.open.get(n.ID, reachPath)
	if err != nil {
		return false, err
	}
	defer v.open.put(o)
	if err := v.journal.TouchMeta(n.ID, imageOf(o)); err != nil {
		return false, err
	}
	if last {
		err = v.keep(n.ID)
	}
	return last, err
}

// gone ends what touchGoing began, after the name was removed.
func (v *Volume) gone(n *Inode, last bool) {
	if !last {
		return
	}
	v.journal.NoteRemoved(n.ID)
	v.open.forget(n.ID)
}

// kept takes touchGoing back where the removal failed.
func (v *Volume) kept(n *Inode, last bool) {
	if last {
		v.open.adopt(n.ID)
	}
}

// Unlink removes a name that is not a directory's.
func (v *Volume) Unlink(dir journal.Ident, name string) error {
	return v.removeName(dir, name, sys.Unlink)
}

// Rmdir removes an empty directory.
func (v *Volume) Rmdir(dir journal.Ident, name string) error {
	return v.removeName(dir, name, sys.Rmdir)
}

func (v *Volume) removeName(dir journal.Ident, name string, call func(int, string) error) error {
	if err := v.enter(); err != nil {
		return err
	}
	defer v.leave()
	if v.hidden(dir, name) {
		return unix.ENOENT
	}
	d, err := v.open.get(dir, reachDir)
	if err != nil {
		return err
	}
	defer v.open.put(d)
	var n Inode
	if err := v.statAt(d.fd, name, &n); err != nil {
		return err
	}
	if err := v.journal.TouchMeta(dir, imageOf(d)); err != nil {
		return err
	}
	last, err := v.touchGoing(d, name, &n)
	if err == nil {
		err = call(d.fd, name)
	}
	if err != nil {
		v.kept(&n, last)
		return err
	}
	v.gone(&n, last)
	return nil
}

// Rename is renameat2(2), with RENAME_NOREPLACE or RENAME_EXCHANGE or neither.
func (v *Volume) Rename(olddir journal.Ident, oldname string, newdir journal.Ident, newname string, flags uint) error {
	if flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
		return unix.EINVAL
	}
	if err := v.enter(); err != nil {
		return err
	}
	defer v.leave()
	if v.hidden(olddir, oldname) {
		return unix.ENOENT
	}
	if v.hidden(newdir, newname) {
		return unix.EPERM
	}
	from, err := v.open.get(olddir, reachDir)
	if err != nil {
		return err
	}
	defer v.open.put(from)
	to, err := v.open.get(newdir, reachDir)
	if err != nil {
		return err
	}
	defer v.open.put(to)
	return v.rename(from, oldname, to, newname, flags)
}

func (v *Volume) rename(from *openInode, oldname string, to *openInode, newname string, flags uint) error {
	var source, replaced Inode
	if err := v.statAt(from.fd, oldname, &source); err != nil {
		return err
	}
	err := v.statAt(to.fd, newname, &replaced)
	if err != nil && err != unix.ENOENT {
		return err
	}
	exists := err == nil
	if exists && flags&unix.RENAME_NOREPLACE != 0 {
		return unix.EEXIST
	}
	if exists && source.ID == replaced.ID {
		return nil // two names of one inode: rename(2) does nothing
	}
	for _, d := range []*openInode{from, to} {
		if err := v.journal.TouchMeta(d.id, imageOf(d)); err != nil {
			return err
		}
	}
	if err := v.journal.TouchName(from.id, oldname, source.ID); err != nil {
		return err
	}
	exchange := flags&unix.RENAME_EXCHANGE != 0
	if err := v.touchMoved(&source, exchange); err != nil {
		return err
	}
	if exists && exchange {
		if err := v.touchMoved(&replaced, exchange); err != nil {
			return err
		}
	}
	if !exists || exchange {
		if err := v.journal.TouchName(to.id, newname, replaced.ID); err != nil {
			return err
		}
		return sys.Rename(from.fd, oldname, to.fd, newname, flags)
	}
	last, err := v.touchGoing(to, newname, &replaced)
	if err == nil {
		err = sys.Rename(from.fd, oldname, to.fd, newname, flags)
	}
	if err != nil {
		v.kept(&replaced, last)
		return err
	}
	v.gone(&replaced, last)
	return nil
}

// touchMoved records a change of attributes where a move makes one besides the change time: XFS sets the
// modification time of a directory that gets another parent, and of what is exchanged.
func (v *Volume) touchMoved(n *Inode, exchange bool) error {
	if !n.IsDir() && !exchange {
		return nil
	}
	o, err := v.open.get(n.ID, reachPath)
	if err != nil {
		return err
	}
	defer v.open.put(o)
	return v.journal.TouchMeta(n.ID, imageOf(o))
}

// Readlink reads a symbolic link.
func (v *Volume) Readlink(id journal.Ident) (string, error) {
	o, err := v.open.get(id, reachPath)
	if err != nil {
		return "", err
	}
	defer v.open.put(o)
	return sys.Readlink(o.fd)
}

// Forget says that the kernel no longer refers to an inode.
func (v *Volume) Forget(id journal.Ident) { v.open.release(id) }
