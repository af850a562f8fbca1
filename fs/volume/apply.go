package volume

import (
	"errors"

	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
	"tandemfs/journal/crashpoint"
)

// The methods of this file are how a transfer changes a volume that is read-only to everybody else, and frozen
// (see Freeze): nobody sees what they do before it is published, so the kernel need not be told. One transfer
// runs at a time. Each method can be called again after a crash and then changes nothing more.

// inside runs a change between the journal's Enter and Leave.
func (v *Volume) inside(change func() error) error {
	v.around.busy()
	v.journal.Enter()
	defer v.journal.Leave()
	return change()
}

// IsEmpty reports whether the root directory has no names.
func (v *Volume) IsEmpty() (bool, error) {
	empty := true
	err := v.ReadDir(v.root, 0, minDirents, func(e *sys.Dirent) bool {
		empty = e.IsDot()
		return empty
	})
	return empty, err
}

// Exists reports whether the inode is still there, under a name or aside.
func (v *Volume) Exists(id journal.Ident) (bool, error) {
	var n Inode
	switch err := v.Stat(id, &n); err {
	case nil:
		return n.Stat.Nlink > 0, nil
	case unix.ESTALE:
		return false, nil
	default:
		return false, err
	}
}

// Create makes an inode as dir/name, or aside when dir is zero. It belongs to root and is closed to others
// until SetImage.
func (v *Volume) Create(mode uint32, rdev uint64, symlink string, dir journal.Ident, name string) (id journal.Ident, err error) {
	if dir.IsZero() {
		name = v.aside.newName()
		err = v.inside(func() error {
			id, err = v.createAt(v.aside.fd, name, mode, rdev, symlink)
			return err
		})
		if err == nil {
			v.aside.add(id, name)
		}
		return id, err
	}
	d, err := v.open.get(dir, reachDir)
	if err != nil {
		return id, err
	}
	defer v.open.put(d)
	err = v.inside(func() error {
		if err := v.makeRoom(d, name); err != nil {
			return err
		}
		id, err = v.createAt(d.fd, name, mode, rdev, symlink)
		return err
	})
	return id, err
}

// makeRoom marks a name that is about to stand for another inode; what stands there is moved aside.
func (v *Volume) makeRoom(d *openInode, name string) error {
	err := v.touchNew(d, name)
	if err != unix.EEXIST {
		return err
	}
	if err := v.moveAside(d, name); err != nil {
		return err
	}
	return v.touchNew(d, name)
}

// createAt makes the inode and notes it. A regular file stays open in the cache for the data that follows.
func (v *Volume) createAt(dirfd int, name string, mode uint32, rdev uint64, symlink string) (id journal.Ident, err error) {
	if err := v.roomFor(smallRoom); err != nil {
		return id, err
	}
	fd := -1
	switch kind := mode & unix.S_IFMT; kind {
	case unix.S_IFREG:
		fd, err = sys.Open(dirfd, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	case unix.S_IFDIR:
		err = sys.Mkdir(dirfd, name, 0o700)
	case unix.S_IFLNK:
		err = sys.Symlink(symlink, dirfd, name)
	case unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK:
		err = sys.Mknod(dirfd, name, kind|0o600, rdev)
	default:
		err = unix.EINVAL
	}
	if err != nil {
		return id, err
	}
	crashpoint.Here("volume/created")
	if id, err = v.backing.IdentAt(dirfd, name); err == nil {
		err = v.journal.NoteCreated(id)
	}
	if err != nil {
		v.unmake(dirfd, name)
	}
	if fd >= 0 && err == nil {
		v.open.put(v.open.add(id, fd, reachData))
	} else if fd >= 0 {
		sys.Close(fd)
	}
	return id, err
}

// SetImage gives an inode all of an attribute set: for a regular file its size, then owner, extended
// attributes (those not listed are removed), mode and times.
func (v *Volume) SetImage(id journal.Ident, img journal.Image) error {
	err := v.inside(func() error { return v.setImage(id, img) })
	return err
}

func (v *Volume) setImage(id journal.Ident, img journal.Image) error {
	a := img.Attr
	regular := a.Mode&unix.S_IFMT == unix.S_IFREG
	want := reachPath
	if regular {
		want = reachData
	}
	o, err := v.open.get(id, want)
	if err != nil {
		return err
	}
	defer v.open.put(o)
	var n Inode
	if err := v.statOpen(o, &n); err != nil {
		return err
	}
	if n.Stat.Nlink == 0 { // removed around the mount, and still open
		return unix.ESTALE
	}
	if regular && int64(n.Stat.Size) != a.Size {
		if err := v.resize(o, a.Size); err != nil {
			return err
		}
	}
	if err := v.journal.TouchMeta(id, o); err != nil {
		return err
	}
	if n.Stat.Uid != a.UID || n.Stat.Gid != a.GID {
		if err := apply(o, Setting{Valid: SetUID | SetGID, UID: a.UID, GID: a.GID}); err != nil {
			return err
		}
	}
	if err := replaceXattrs(o.fd, img.Xattrs); err != nil {
		return err
	}
	s := Setting{Valid: SetTimes, Atime: a.Atime, Mtime: a.Mtime}
	if a.Mode&unix.S_IFMT != unix.S_IFLNK { // a symbolic link's mode is always 0777
		s.Valid |= SetMode
		s.Mode = a.Mode & 0o7777
	}
	return apply(o, s)
}

// replaceXattrs makes the extended attributes those of want, changing no more than differs.
func replaceXattrs(fd int, want []journal.Xattr) error {
	have, err := sys.Xattrs(fd)
	if err != nil {
		return err
	}
	wanted := make(map[string]string, len(want))
	for _, x := range want {
		wanted[x.Name] = string(x.Value)
	}
	for _, x := range have {
		value, keep := wanted[x.Name]
		if keep && value == string(x.Value) {
			delete(wanted, x.Name)
			continue
		}
		if !keep {
			if err := sys.RemoveXattr(fd, x.Name); err != nil && err != unix.ENODATA {
				return err
			}
		}
	}
	for name, value := range wanted {
		if err := sys.SetXattr(fd, name, []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}

// MoveAside takes a name away; the inode lives on, aside, until DropAside. A name that is not there is no
// error.
func (v *Volume) MoveAside(dir journal.Ident, name string) error {
	d, err := v.open.get(dir, reachDir)
	if err != nil {
		return err
	}
	defer v.open.put(d)
	return v.inside(func() error { return v.moveAside(d, name) })
}

func (v *Volume) moveAside(d *openInode, name string) error {
	if v.hidden(d.id, name) {
		return unix.EPERM
	}
	var n Inode
	err := v.statAt(d.fd, name, &n)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	if err := v.journal.TouchMeta(d.id, d); err != nil {
		return err
	}
	if err := v.journal.TouchName(d.id, name, n.ID); err != nil {
		return err
	}
	if err := v.touchMoved(&n, false); err != nil {
		return err
	}
	to := v.aside.newName()
	if err := sys.Rename(d.fd, name, v.aside.fd, to, unix.RENAME_NOREPLACE); err != nil {
		return err
	}
	crashpoint.Here("volume/moved-aside")
	v.aside.add(n.ID, to)
	return nil
}

// Place gives an inode a name. A directory moves there from aside, or from where it is; anything else
// moves from aside or is linked. What stood there is moved aside first.
func (v *Volume) Place(id, dir journal.Ident, name string) error {
	d, err := v.open.get(dir, reachDir)
	if err != nil {
		return err
	}
	defer v.open.put(d)
	if now, err := v.backing.IdentAt(d.fd, name); err == nil && now == id {
		return nil
	}
	o, err := v.open.get(id, reachPath)
	if err != nil {
		return err
	}
	defer v.open.put(o)
	return v.inside(func() (err error) {
		if err = v.makeRoom(d, name); err != nil {
			return err
		}
		if v.removed(id) {
			err = v.journal.TouchFound(id, o)
		} else {
			err = v.journal.TouchMeta(id, o)
		}
		if err == nil {
			err = v.place(o, d, name)
		}
		return err
	})
}

// place gives the inode its name.
func (v *Volume) place(o, d *openInode, name string) error {
	if from, ok := v.aside.peek(o.id); ok {
		if err := sys.Rename(v.aside.fd, from, d.fd, name, unix.RENAME_NOREPLACE); err != nil {
			return err
		}
		crashpoint.Here("volume/placed")
		v.aside.taken(o.id)
		return nil
	}
	if n, ok := v.before.removedIn(o.id); ok {
		if err := v.before.giveBack(n, o.id, d.fd, name); err != nil {
			return err
		}
		v.open.adopt(o.id)
		return nil
	}
	var n Inode
	if err := v.statOpen(o, &n); err != nil {
		return err
	}
	if !n.IsDir() {
		return sys.Link(o.fd, d.fd, name)
	}
	return v.moveDirectory(o.id, d, name)
}

// moveDirectory renames a directory from where it is: its parent is "..".
func (v *Volume) moveDirectory(id journal.Ident, d *openInode, name string) error {
	self, err := v.open.get(id, reachDir)
	if err != nil {
		return err
	}
	defer v.open.put(self)
	parentID, err := v.backing.IdentAt(self.fd, "..")
	if err != nil {
		return err
	}
	parent, err := v.open.get(parentID, reachDir)
	if err != nil {
		return err
	}
	defer v.open.put(parent)
	old, _, err := v.lastName(self, parentID)
	if err != nil {
		return err
	}
	now, err := v.backing.IdentAt(parent.fd, old)
	if err != nil && err != unix.ENOENT {
		return err
	}
	if now != id {
		return unix.ESTALE
	}
	if err := v.journal.TouchMeta(parentID, parent); err != nil {
		return err
	}
	if err := v.journal.TouchName(parentID, old, id); err != nil {
		return err
	}
	return sys.Rename(parent.fd, old, d.fd, name, unix.RENAME_NOREPLACE)
}

// DropAside removes what is aside and calls gone for every inode that has no name left.
func (v *Volume) DropAside(gone func(journal.Ident) error) error {
	for _, id := range v.aside.idents() {
		for {
			name, ok := v.aside.peek(id)
			if !ok {
				break
			}
			if err := v.drop(v.aside.fd, name, gone); err != nil {
				return err
			}
			v.aside.taken(id)
		}
	}
	return nil
}

// drop removes a name that is aside, with everything below it where it is a directory's.
func (v *Volume) drop(dirfd int, name string, gone func(journal.Ident) error) error {
	var n Inode
	err := v.statAt(dirfd, name, &n)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	if n.IsDir() {
		if err := v.dropChildren(n.ID, gone); err != nil {
			return err
		}
	}
	last := false
	err = v.inside(func() error {
		last, err = v.dropName(dirfd, name, &n)
		return err
	})
	crashpoint.Here("volume/dropped")
	if err != nil || !last {
		return err
	}
	return gone(n.ID)
}

// dropName removes a name of which no view knows; the inode may be one that a view needs.
func (v *Volume) dropName(dirfd int, name string, n *Inode) (last bool, err error) {
	l, err := v.touchGoing(n)
	if err == nil {
		err = v.takeAway(dirfd, name, &l)
	}
	if err != nil {
		v.stays(&l)
	}
	return l.last, err
}

// dropChildren removes everything in a directory that is aside.
func (v *Volume) dropChildren(dir journal.Ident, gone func(journal.Ident) error) error {
	d, err := v.open.get(dir, reachDir)
	if err != nil {
		return err
	}
	defer v.open.put(d)
	return withDir(d.fd, ".", func(fd int) error {
		return eachName(fd, func(name string) error { return v.dropChild(d, name, gone) })
	})
}

// dropChild removes a name in such a directory: views may know it.
func (v *Volume) dropChild(d *openInode, name string, gone func(journal.Ident) error) error {
	var n Inode
	err := v.statAt(d.fd, name, &n)
	if err != nil {
		return err
	}
	if n.IsDir() {
		if err := v.dropChildren(n.ID, gone); err != nil {
			return err
		}
	}
	if err := v.inside(func() error { return v.remove(d, name, &n) }); err != nil {
		return err
	}
	if !n.IsDir() && n.Stat.Nlink > 1 {
		return nil
	}
	return gone(n.ID)
}

// Commit makes all that was applied durable and seals it. The seal is held, and readers go on seeing the one
// before, until it is published: that it is the next one is durable by then.
func (v *Volume) Commit() (journal.Epoch, error) {
	if err := v.syncApplied(); err != nil {
		return 0, err
	}
	crashpoint.Here("volume/commit-synced")
	n, err := v.journal.Seal(true)
	if err != nil {
		return 0, err
	}
	crashpoint.Here("volume/commit-sealed")
	w := v.newView(n)
	if now := v.published.Load(); now != nil {
		err = v.remember(now, w)
	}
	if before := v.committed.Swap(w); before != nil { // it was never published
		err = errors.Join(err, before.Close())
	}
	return n, errors.Join(err, v.journal.Sync())
}

// ApplyFile is a regular file that a transfer writes to.
type ApplyFile struct {
	v *Volume
	o *openInode
}

// OpenForApply opens a regular file's content for writing.
func (v *Volume) OpenForApply(id journal.Ident) (*ApplyFile, error) {
	o, err := v.open.get(id, reachData)
	if err != nil {
		return nil, err
	}
	return &ApplyFile{v: v, o: o}, nil
}

// change runs a call that changes the range e.
func (f *ApplyFile) change(e journal.Extent, call func() error) error {
	if err := f.v.journal.Announce(f.o.id); err != nil {
		return err
	}
	f.v.journal.Enter()
	defer f.v.journal.Leave()
	if err := f.v.journal.TouchData(f.o.id, e, f.o); err != nil {
		return err
	}
	return call()
}

// WriteAt is io.WriterAt.
func (f *ApplyFile) WriteAt(p []byte, off int64) (n int, err error) {
	if err := f.v.roomToWrite(f.o, off, int64(len(p))); err != nil {
		return 0, err
	}
	err = f.change(journal.Extent{Off: off, End: off + int64(len(p))}, func() (err error) {
		n, err = sys.WriteAt(f.o.fd, p, off)
		return err
	})
	return n, err
}

// Punch makes the range a hole without changing the size.
func (f *ApplyFile) Punch(e journal.Extent) error {
	return f.change(e, func() error { return sys.PunchHole(f.o.fd, e) })
}

// Truncate sets the size.
func (f *ApplyFile) Truncate(size int64) error {
	if err := f.v.journal.Announce(f.o.id); err != nil {
		return err
	}
	f.v.journal.Enter()
	defer f.v.journal.Leave()
	return f.v.resize(f.o, size)
}

// Close gives the file back.
func (f *ApplyFile) Close() error {
	f.v.open.put(f.o)
	return nil
}
