package volume

import (
	"errors"

	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
)

// Image is journal.Before's. What has lost its last name has none, wherever older views find it: for the views of the time
// since then it does not exist.
func (o *openInode) Image() (journal.Image, error) {
	img, err := o.image()
	if o.v.removed(o.id) {
		img.Attr.Nlink = 0
	}
	return img, err
}

// image gives an inode's attributes and extended attributes as they are.
func (o *openInode) image() (journal.Image, error) {
	var n Inode
	if err := o.v.statOpen(o, &n); err != nil {
		return journal.Image{}, err
	}
	xattrs, err := sys.Xattrs(o.fd)
	return journal.Image{Attr: sys.Attr(&n.Stat), Xattrs: xattrs}, err
}

// Keep is journal.Before's. Where there is no room, views that nobody asked for by name are given up; when
// only such views needed the copy, the change goes on without it.
func (o *openInode) Keep(n journal.Epoch, x journal.Extents) error {
	err := o.keep(n, x)
	if err == nil {
		o.v.freeIfUseless()
		return nil
	}
	if !noRoom(err) || !o.v.giveUpViews() {
		return err
	}
	o.v.log.Warn("no room for what a transfer would need of the volume as it was: the transfer starts anew", "error", err)
	return nil
}

// keep keeps x as far as the file reaches: what lies behind its end is nothing. It gives ENOSPC where the copy would
// take what the journal needs.
func (o *openInode) keep(n journal.Epoch, x journal.Extents) error {
	var st unix.Statx_t
	if err := sys.Stat(o.fd, "", &st); err != nil {
		return err
	}
	within := x.Intersect(journal.Extent{Off: 0, End: int64(st.Size)})
	if len(within) == 0 {
		return nil
	}
	if err := o.roomToKeep(within); err != nil {
		return err
	}
	return o.v.before.keep(n, o.id, o.fd, within)
}

// roomToKeep is roomFor for a copy of x. A hole takes none, nor does what the filesystem shares; of little that is not
// worth to find out.
func (o *openInode) roomToKeep(x journal.Extents) error {
	size := x.Len()
	if size > smallCopy {
		if o.v.before.shares {
			return nil
		}
		var err error
		if size, err = dataIn(o.fd, x); err != nil {
			return err
		}
	}
	return o.v.roomFor(size)
}

// dataIn gives how many bytes of the stretches of a file are data.
func dataIn(fd int, stretches journal.Extents) (size int64, err error) {
	for _, e := range stretches {
		for off := e.Off; off < e.End; {
			data, ok, err := sys.NextData(fd, off, e.End)
			if err != nil {
				return 0, err
			}
			if !ok {
				break
			}
			size, off = size+data.Len(), data.End
		}
	}
	return size, nil
}

// Where is journal.Before's.
func (o *openInode) Where() (journal.Ident, string, bool) { return o.v.mounted().Where(o.id) }

// freeIfUseless is for what was kept while the last view that needed it may have been closed: the reclaimer may
// have looked there already.
func (v *Volume) freeIfUseless() {
	if !v.journal.Holding() {
		v.reclaimer.nudge()
	}
}

func noRoom(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// retain keeps an inode for the views that need it, in place of removing its last name.
func (v *Volume) retain(dirfd int, name string, n *Inode) error {
	err := v.before.take(v.journal.Epoch(), n.ID, dirfd, name)
	if err == unix.EEXIST { // left by a process that died while it replaced the inode
		if err = v.before.unlink(v.journal.Epoch(), n.ID); err == nil {
			err = v.before.take(v.journal.Epoch(), n.ID, dirfd, name)
		}
	}
	v.freeIfUseless()
	return err
}

// checkEmpty gives ENOTEMPTY for a directory that has names. Nobody makes names in it meanwhile: the kernel
// locks a directory that is being removed.
func (v *Volume) checkEmpty(id journal.Ident) error {
	d, err := v.open.get(id, reachDir)
	if err != nil {
		return err
	}
	defer v.open.put(d)
	empty := true
	err = v.ReadDir(id, 0, minDirents, func(e *sys.Dirent) bool {
		empty = e.IsDot()
		return empty
	})
	if err == nil && !empty {
		err = unix.ENOTEMPTY
	}
	return err
}
