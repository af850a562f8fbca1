package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
	"tandemfs/journal/crashpoint"
)

// Restore makes the volume what it was at a snapshot, or with a path (slash-separated, relative to the root)
// only that path and what is below it. It takes a snapshot first and gives it, also with an error: restoring
// that one undoes it. Meanwhile changes get EROFS, and readers see what there was; then, at once, all that was
// restored. Where it fails, or the process dies in the middle, the volume is as before. It fails with EROFS on
// a volume that is read-only.
func (v *Volume) Restore(name, path string) (Snapshot, error) {
	v.switching.Lock()
	defer v.switching.Unlock()
	if v.ReadOnly() {
		return Snapshot{}, fmt.Errorf("volume %s is read-only: %w", v.name, unix.EROFS)
	}
	_, w, err := v.OpenSnapshot(name)
	if err != nil {
		return Snapshot{}, err
	}
	defer w.Close()
	if err := v.setReadOnly(true); err != nil {
		return Snapshot{}, errors.Join(err, v.setReadOnly(false))
	}
	safety, err := v.snapshotBefore("restore")
	if err == nil {
		err = v.restore(w, safety.Epoch, path)
	}
	return safety, errors.Join(err, v.setReadOnly(false)) // which undoes what is not shown by then
}

// restore does it, while readers see the seal of the snapshot that was taken first.
func (v *Volume) restore(w *View, safety journal.Epoch, path string) error {
	if err := v.Publish(safety); err != nil {
		return err
	}
	crashpoint.Here("volume/restore-begun")
	var err error
	if path == "" {
		err = v.Undo(w.epoch)
	} else {
		err = v.restorePath(w, path)
	}
	if err != nil {
		return err
	}
	return v.publish(nil)
}

// restorePath brings one path back by comparing what there was with what there is.
func (v *Volume) restorePath(w *View, path string) error {
	r := pathRestore{v: v, w: w, first: map[journal.Ident]journal.Ident{}}
	names := strings.Split(path, "/")
	was, dir := v.root, v.root
	for i, name := range names {
		id, err := w.Lookup(was, name)
		if err != nil {
			return err
		}
		if id.IsZero() {
			return fmt.Errorf("%s: %w", path, fs.ErrNotExist)
		}
		if i == len(names)-1 {
			err = r.bring(id, dir, name)
			return errors.Join(err, v.DropAside(func(journal.Ident) error { return nil }))
		}
		if dir, err = r.parent(id, dir, name); err != nil {
			return err
		}
		was = id
	}
	return nil
}

// pathRestore brings back what is at and below one path.
type pathRestore struct {
	v     *Volume
	w     *View
	first map[journal.Ident]journal.Ident // what was brought back, under its first name, as an inode with several
}

// parent gives the directory on the way to the path; one that is missing is made, without what was in it.
func (r *pathRestore) parent(id, dir journal.Ident, name string) (journal.Ident, error) {
	was, err := r.w.image(id, true)
	if err != nil {
		return id, err
	}
	if kindOf(was) != unix.S_IFDIR {
		return id, fmt.Errorf("%q was not a directory: %w", name, fs.ErrNotExist)
	}
	now, isNew, err := r.target(id, was, dir, name)
	if err == nil && isNew {
		err = r.v.SetImage(now, was)
	}
	return now, err
}

func kindOf(image journal.Image) uint32 { return image.Attr.Mode & unix.S_IFMT }

// target gives the inode that is to become what id was: the one that stands there, if it is that one or both
// are directories, or a new one; what else stood there is moved aside. Names of one inode get one inode.
func (r *pathRestore) target(id journal.Ident, was journal.Image, dir journal.Ident, name string) (now journal.Ident, isNew bool, err error) {
	if first, ok := r.first[id]; ok {
		return first, false, r.v.Place(first, dir, name)
	}
	if now, err = r.v.identOf(dir, name); err != nil {
		return now, false, err
	}
	use, err := r.usable(id, was, now)
	if err == nil && !use {
		now, err = r.create(id, was, dir, name)
	}
	if err == nil && was.Attr.Nlink > 1 && kindOf(was) != unix.S_IFDIR {
		r.first[id] = now
	}
	return now, !use, err
}

// usable reports whether what stands there can become what id was.
func (r *pathRestore) usable(id journal.Ident, was journal.Image, now journal.Ident) (bool, error) {
	if now == id || now.IsZero() || kindOf(was) != unix.S_IFDIR {
		return now == id, nil
	}
	var n Inode
	err := r.v.Stat(now, &n)
	return n.IsDir(), err
}

// create makes an inode of the kind that id was.
func (r *pathRestore) create(id journal.Ident, was journal.Image, dir journal.Ident, name string) (now journal.Ident, err error) {
	symlink := ""
	if kindOf(was) == unix.S_IFLNK {
		if symlink, err = r.w.Readlink(id); err != nil {
			return now, err
		}
	}
	return r.v.Create(was.Attr.Mode, was.Attr.Rdev, symlink, dir, name)
}

// bring makes dir/name what id was, with all that was below it.
func (r *pathRestore) bring(id, dir journal.Ident, name string) error {
	was, err := r.w.image(id, true)
	if err != nil {
		return err
	}
	now, isNew, err := r.target(id, was, dir, name)
	switch {
	case err != nil:
	case kindOf(was) == unix.S_IFDIR:
		err = r.children(id, now)
	case kindOf(was) == unix.S_IFREG && isNew:
		err = r.v.putBack(r.w, id, now, was.Attr.Size, journal.Extents{{Off: 0, End: journal.MaxOffset}})
	case kindOf(was) == unix.S_IFREG && now == id:
		err = r.changed(id, was)
	}
	if err == nil {
		err = r.v.SetImage(now, was)
	}
	if err != nil {
		err = fmt.Errorf("%q: %w", name, err)
	}
	return err
}

// changed puts back what changed of a file that still is the same.
func (r *pathRestore) changed(id journal.Ident, was journal.Image) error {
	c, ok, err := r.v.journal.Within(r.w.epoch, r.v.journal.Epoch(), id)
	if err != nil || !ok {
		return err
	}
	return r.v.putBack(r.w, id, id, was.Attr.Size, c.Extents)
}

// children makes the names of a directory what they were.
func (r *pathRestore) children(id, now journal.Ident) error {
	entries, err := r.w.readable(id)
	if err != nil {
		return err
	}
	wanted := make(map[string]bool, len(entries))
	for _, e := range entries {
		wanted[e.Name] = true
	}
	var surplus []string
	err = r.v.ReadDir(now, 0, direntBuffer, func(e *sys.Dirent) bool {
		if !e.IsDot() && !wanted[string(e.Name)] {
			surplus = append(surplus, string(e.Name))
		}
		return true
	})
	for _, name := range surplus {
		if err == nil {
			err = r.v.MoveAside(now, name)
		}
	}
	for _, e := range entries {
		if err == nil {
			err = r.bring(e.Ident, now, e.Name)
		}
	}
	return err
}
