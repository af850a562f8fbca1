package volume

import (
	"fmt"

	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
	"tandemfs/journal/crashpoint"
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
	if o.nameless.Load() {
		out.Stat.Nlink = 0 // whatever name it has where views find it
	}
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
func masked(dirfd int, mode, umask uint32) (uint32, error) {
	if mode&umask == 0 {
		return mode, nil
	}
	switch _, err := sys.GetXattr(dirfd, sys.XattrACLDefault, nil); err {
	case nil:
		return mode, nil
	case unix.ENODATA, unix.EOPNOTSUPP:
		return mode &^ umask, nil
	default:
		return 0, err
	}
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
	if err := v.journal.TouchMeta(d.id, d); err != nil {
		return err
	}
	return v.journal.TouchName(d.id, name, journal.Ident{})
}

// make runs a creating call for a name, with the directory marked before and the inode noted after.
func (v *Volume) make(dir journal.Ident, name string, c Caller, out *Inode, call func(dirfd int) error) error {
	if err := v.enterFor(smallRoom); err != nil {
		return err
	}
	defer v.leave()
	if v.removed(dir) {
		return unix.ENOENT
	}
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
	crashpoint.Here("volume/made")
	err = v.statAt(d.fd, name, out)
	if err == nil {
		err = v.journal.NoteCreated(out.ID)
	}
	if err != nil {
		v.unmake(d.fd, name)
	}
	return err
}

// unmake takes back what was made but could not be recorded, for want of room: the caller is told that it
// is not there, and the kernel keeps that in mind.
func (v *Volume) unmake(dirfd int, name string) {
	err := sys.Unlink(dirfd, name)
	if err == unix.EISDIR {
		err = sys.Rmdir(dirfd, name) // just made, so it is empty
	}
	v.takeBack(name, err)
}

// takeBack is called with how the first half of an operation was taken back, whose second half failed. Where it
// was not, nothing may change any more, as if the process had died between the two: what that leaves is put
// right when the volume is opened again.
func (v *Volume) takeBack(name string, err error) {
	if err != nil {
		v.journal.Fail(fmt.Errorf("%q is half changed, and that cannot be taken back: %w", name, err))
	}
}

// Mkdir makes a directory.
func (v *Volume) Mkdir(dir journal.Ident, name string, mode uint32, c Caller, out *Inode) error {
	return v.make(dir, name, c, out, func(dirfd int) error {
		mode, err := masked(dirfd, mode, c.Umask)
		if err != nil {
			return err
		}
		return sys.Mkdir(dirfd, name, mode)
	})
}

// Mknod makes a regular file, FIFO, socket or device; the type is in mode.
func (v *Volume) Mknod(dir journal.Ident, name string, mode uint32, rdev uint64, c Caller, out *Inode) error {
	return v.make(dir, name, c, out, func(dirfd int) error {
		mode, err := masked(dirfd, mode, c.Umask)
		if err != nil {
			return err
		}
		return sys.Mknod(dirfd, name, mode, rdev)
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
		if mode, err = masked(dirfd, mode, c.Umask); err == nil {
			fd, err = sys.Open(dirfd, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, mode)
		}
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
	if err := v.enterFor(smallRoom); err != nil {
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
		if mode, err = masked(d.fd, mode, c.Umask); err == nil {
			fd, err = sys.Open(d.fd, ".", unix.O_TMPFILE|unix.O_RDWR, mode)
		}
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
	if err = v.open.hold(out.ID); err == nil {
		err = v.statOpen(o, out)
	}
	if err != nil {
		v.open.release(out.ID)
		v.open.forget(out.ID)
	}
	return err
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
	if err := v.journal.TouchMeta(id, o); err != nil {
		return err
	}
	if v.removed(id) || v.removed(dir) {
		return unix.ENOENT
	}
	nameless := v.open.orphaned(id)
	if nameless { // made by Tmpfile, perhaps in an earlier epoch: to everybody else it begins now
		if err := v.journal.NoteCreated(id); err != nil {
			return err
		}
	}
	if err := v.statOpen(o, out); err != nil {
		return err
	}
	if err := sys.Link(o.fd, d.fd, name); err != nil {
		return err
	}
	if nameless {
		v.open.adopt(id)
	}
	var now Inode
	if v.statOpen(o, &now) != nil { // it has the name all the same
		out.Stat.Nlink++
		return nil
	}
	*out = now
	return nil
}

// removed reports whether an inode has lost its last name, and is kept only for the views that know it: it gets
// no other name, and a directory no names.
func (v *Volume) removed(id journal.Ident) bool {
	_, removed := v.before.removedIn(id)
	return removed
}

// leaving is an inode that is about to lose a name.
type leaving struct {
	Inode
	last   bool // it is the last one
	needed bool // a view needs the inode all the same
}

// touchGoing records that an inode is about to lose a name. One whose last name it is, is kept open while the
// kernel refers to it.
func (v *Volume) touchGoing(n *Inode) (l leaving, err error) {
	o, err := v.open.get(n.ID, reachPath)
	if err != nil {
		return l, err
	}
	defer v.open.put(o)
	l = leaving{Inode: *n, last: n.IsDir() || n.Stat.Nlink == 1}
	if l.last {
		if l.needed, err = v.journal.Needed(n.ID, v.journal.Epoch()); err != nil {
			return l, err
		}
	}
	if l.needed {
		err = v.journal.TouchLost(n.ID, o)
	} else {
		err = v.journal.TouchMeta(n.ID, o)
	}
	if err == nil && l.last {
		err = v.keep(n.ID)
	}
	return l, err
}

// left ends what touchGoing began, after the name was removed.
func (v *Volume) left(l *leaving) {
	if !l.last {
		return
	}
	v.journal.NoteRemoved(l.ID)
	v.open.lost(l.ID)
}

// stays takes touchGoing back where the removal failed.
func (v *Volume) stays(l *leaving) {
	if l.last {
		v.open.adopt(l.ID)
	}
}

// Unlink removes a name that is not a directory's.
func (v *Volume) Unlink(dir journal.Ident, name string) error {
	return v.removeName(dir, name, false)
}

// Rmdir removes an empty directory.
func (v *Volume) Rmdir(dir journal.Ident, name string) error {
	return v.removeName(dir, name, true)
}

func (v *Volume) removeName(dir journal.Ident, name string, isDir bool) error {
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
	switch {
	case isDir && !n.IsDir():
		return unix.ENOTDIR
	case !isDir && n.IsDir():
		return unix.EISDIR
	}
	if err := v.remove(d, name, &n); err != nil {
		return err
	}
	if isDir {
		v.mounted().Removed(n.ID)
	}
	return nil
}

// remove takes a name from an inode; a directory must be empty. What loses its last name by that and is needed
// by a view is kept for it.
func (v *Volume) remove(d *openInode, name string, n *Inode) error {
	if err := v.journal.TouchMeta(d.id, d); err != nil {
		return err
	}
	if err := v.journal.TouchName(d.id, name, n.ID); err != nil {
		return err
	}
	l, err := v.touchGoing(n)
	if err == nil {
		err = v.takeAway(d.fd, name, &l)
	}
	if err != nil {
		v.stays(&l)
	}
	return err
}

// takeAway removes the name of a leaving inode.
func (v *Volume) takeAway(dirfd int, name string, l *leaving) (err error) {
	switch {
	case l.needed && l.IsDir():
		if err = v.checkEmpty(l.ID); err == nil {
			err = v.retain(dirfd, name, &l.Inode)
		}
	case l.needed:
		err = v.retain(dirfd, name, &l.Inode)
	case l.IsDir():
		err = sys.Rmdir(dirfd, name)
	default:
		err = sys.Unlink(dirfd, name)
	}
	if err == nil {
		v.left(l)
	}
	return err
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
	if v.removed(newdir) {
		return unix.ENOENT
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
		if err := v.journal.TouchMeta(d.id, d); err != nil {
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
		if err := sys.Rename(from.fd, oldname, to.fd, newname, flags); err != nil {
			return err
		}
		v.mounted().Moved(source.ID, to.id, newname)
		if exchange {
			v.mounted().Moved(replaced.ID, from.id, oldname)
		}
		return nil
	}
	if err := v.journal.TouchName(to.id, newname, replaced.ID); err != nil {
		return err
	}
	l, err := v.touchGoing(&replaced)
	if err == nil {
		err = v.replace(from, oldname, to, newname, &source, &l)
	}
	if err != nil {
		v.stays(&l)
		return err
	}
	v.left(&l)
	if l.IsDir() {
		v.mounted().Removed(l.ID)
	}
	v.mounted().Moved(source.ID, to.id, newname)
	return nil
}

// replace renames over an inode. One that a view needs has a name for that from just before on, or, being a
// directory, which cannot have two, changes places first: a crash in between leaves it, empty, where the other
// one was.
func (v *Volume) replace(from *openInode, oldname string, to *openInode, newname string, source *Inode, l *leaving) error {
	if !l.needed {
		return sys.Rename(from.fd, oldname, to.fd, newname, 0)
	}
	switch {
	case source.IsDir() && !l.IsDir():
		return unix.ENOTDIR
	case !source.IsDir() && l.IsDir():
		return unix.EISDIR
	case l.IsDir():
		if err := v.checkEmpty(l.ID); err != nil {
			return err
		}
		if err := sys.Rename(from.fd, oldname, to.fd, newname, unix.RENAME_EXCHANGE); err != nil {
			return err
		}
		crashpoint.Here("volume/exchanged")
		if err := v.retain(from.fd, oldname, &l.Inode); err != nil {
			v.takeBack(newname, sys.Rename(from.fd, oldname, to.fd, newname, unix.RENAME_EXCHANGE))
			return err
		}
		return nil
	}
	o, err := v.open.get(l.ID, reachPath)
	if err != nil {
		return err
	}
	defer v.open.put(o)
	epoch := v.journal.Epoch()
	if err := v.before.link(epoch, l.ID, o.fd); err != nil && err != unix.EEXIST {
		return err
	}
	crashpoint.Here("volume/linked-before")
	if err := sys.Rename(from.fd, oldname, to.fd, newname, 0); err != nil {
		v.takeBack(newname, v.before.unlink(epoch, l.ID))
		return err
	}
	crashpoint.Here("volume/replaced")
	v.before.note(l.ID, epoch)
	v.freeIfUseless()
	return nil
}

// touchMoved records a change of attributes where a move makes one that matters: XFS sets the modification
// time of a directory that gets another parent, and of what is exchanged; and a view wants the change time, which
// a sweep wants to see before it changes.
func (v *Volume) touchMoved(n *Inode, exchange bool) error {
	if n.IsDir() {
		v.around.moving(n.ID)
	}
	matters := n.IsDir() || exchange || v.journal.Holding()
	if !matters && !v.around.sweeping() {
		return nil
	}
	o, err := v.open.get(n.ID, reachPath)
	if err != nil {
		return err
	}
	defer v.open.put(o)
	if !matters {
		return nil
	}
	return v.journal.TouchMeta(n.ID, o)
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
