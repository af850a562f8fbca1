package volume

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"tandemfs/journal"
	"tandemfs/journal/crashpoint"
)

// Undo makes the volume what it was at a seal that is held, by putting the before images back: it costs what
// was changed since, whatever the volume holds. The volume must be frozen, so that nobody changes it and
// readers go on seeing what they saw; the caller publishes the outcome. Undoing is itself a change like any
// other: views of later seals stay what they are. Done again after a crash, it ends the same.
//
// The order is a transfer's: content first, then names (what stands where something else belongs is moved
// aside, then each inode is placed), then what is left aside is removed, then attributes.
func (v *Volume) Undo(n journal.Epoch) error { return v.undoTo(n, false) }

// undoTo is Undo. With lossy it leaves as it is, with a warning, what it lacks the before image of: power was lost, and
// a copy with less than all is better than one that nobody can use.
func (v *Volume) undoTo(n journal.Epoch, lossy bool) error {
	w, err := v.holdView(n)
	if err != nil {
		return err
	}
	defer w.Close()
	upto, err := v.journal.Seal(false)
	if err != nil {
		return err
	}
	changes, err := v.journal.Changes(n, upto)
	if err != nil {
		return err
	}
	u := undo{v: v, w: w, changes: changes, lossy: lossy}
	for _, step := range []func() error{u.makeRoom, u.contents, u.clearNames, u.placeNames, u.dropRest, u.images} {
		if err := step(); err != nil {
			return fmt.Errorf("put the volume back to seal %d: %w", n, err)
		}
		crashpoint.Here("volume/undo-step")
	}
	return nil
}

// undo is one going back to a view.
type undo struct {
	v       *Volume
	w       *View
	changes *journal.Changes
	lossy   bool
}

// makeRoom frees what the files take that are new since the view, which are removed later: a disk may be full of them,
// and what was made shorter needs room to be put back. Where a later seal is held they are its, and stay.
func (u *undo) makeRoom() error {
	if held := u.v.journal.Held(); held[len(held)-1] > u.w.epoch {
		return nil
	}
	return u.changes.Inodes(func(c journal.InodeChange) error {
		var n Inode
		if c.What&journal.Created == 0 || u.v.Stat(c.Ident, &n) != nil || n.Stat.Mode&unix.S_IFMT != unix.S_IFREG || n.Stat.Size == 0 {
			return nil
		}
		f, err := u.v.OpenForApply(c.Ident)
		if err != nil {
			return err
		}
		if err = errors.Join(f.Truncate(0), f.Close()); err != nil {
			return fmt.Errorf("inode %s: %w", c.Ident, err)
		}
		return nil
	})
}

// loses reports whether an error about an inode is one of a before image that power has taken, and is passed over.
func (u *undo) loses(id journal.Ident, err error) bool {
	if err == nil || !u.lossy || !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ESTALE) && !isGone(err) {
		return false
	}
	u.v.log.Error("what this was cannot be put back, since power was lost: it stays what it is", "inode", id, "error", err)
	return true
}

// eachOld calls f for each changed inode that the view has, with its attributes there.
func (u *undo) eachOld(f func(c journal.InodeChange, was journal.Image) error) error {
	return u.changes.Inodes(func(c journal.InodeChange) error {
		if c.What&journal.Created != 0 {
			return nil
		}
		was, err := u.w.image(c.Ident, true)
		if isGone(err) {
			return nil
		}
		if err == nil {
			err = f(c, was)
		}
		if err != nil {
			err = fmt.Errorf("inode %s: %w", c.Ident, err)
		}
		return err
	})
}

// isGone reports whether an error says that something does not exist.
func isGone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOENT) }

// contents puts back what changed of the content of files that the view has.
func (u *undo) contents() error {
	return u.eachOld(func(c journal.InodeChange, was journal.Image) error {
		if was.Attr.Mode&unix.S_IFMT != unix.S_IFREG || c.What&journal.Data == 0 && !u.resized(c.Ident, was) {
			return nil
		}
		err := u.v.putBack(u.w, c.Ident, c.Ident, was.Attr.Size, c.Extents)
		if u.loses(c.Ident, err) {
			return nil
		}
		return err
	})
}

// resized reports whether a file has another size than in the view.
func (u *undo) resized(id journal.Ident, was journal.Image) bool {
	var n Inode
	return u.v.Stat(id, &n) == nil && int64(n.Stat.Size) != was.Attr.Size
}

// putBack makes the extents of a file what they are of another one, or the same, in a view, and its size too.
func (v *Volume) putBack(w *View, was, now journal.Ident, size int64, extents journal.Extents) error {
	from, err := w.Open(was)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := v.OpenForApply(now)
	if err != nil {
		return err
	}
	defer to.Close()
	for _, e := range extents.Intersect(journal.Extent{Off: 0, End: size}) {
		if err := copyExtent(from, to, e, size); err != nil {
			return err
		}
	}
	return to.Truncate(size)
}

// copyBlock is how much is copied at a time.
const copyBlock = 256 << 10

// copyExtent copies a part of a file in a view, of that size, to the same place of a file: data as data, holes
// as holes. A hole at the end is cut off: punching would leave the block that the file ends in.
func copyExtent(from *ViewFile, to *ApplyFile, e journal.Extent, size int64) error {
	buf := make([]byte, min(copyBlock, e.Len()))
	for off := e.Off; off < e.End; {
		data, ok, err := from.NextData(off, e.End)
		if err != nil {
			return err
		}
		if !ok {
			data = journal.Extent{Off: e.End, End: e.End}
		}
		switch {
		case data.Off >= size && data.Off > off:
			return to.Truncate(off)
		case data.Off > off:
			err = to.Punch(journal.Extent{Off: off, End: data.Off})
		}
		if err != nil {
			return err
		}
		for off = data.Off; off < data.End; {
			n, err := from.read(buf[:min(int64(len(buf)), data.End-off)], off)
			if err != nil {
				return err
			}
			if n == 0 {
				return fmt.Errorf("the view ends at %d: %w", off, unix.EIO)
			}
			if _, err := to.WriteAt(buf[:n], off); err != nil {
				return err
			}
			off += int64(n)
		}
	}
	return nil
}

// eachName calls f for each touched name of a directory that the view has and that still is there, with what
// it stood for.
func (u *undo) eachName(f func(c journal.NameChange, was journal.Ident) error) error {
	return u.changes.Names(func(c journal.NameChange) error {
		was, err := u.w.Lookup(c.Dir, c.Name)
		if err == nil {
			err = f(c, was)
		}
		if errors.Is(err, unix.ESTALE) { // a directory that was made and removed since
			return nil
		}
		if err != nil {
			err = fmt.Errorf("%q in directory %s: %w", c.Name, c.Dir, err)
		}
		return err
	})
}

// clearNames moves aside what stands under a name that stood for something else.
func (u *undo) clearNames() error {
	return u.eachName(func(c journal.NameChange, was journal.Ident) error {
		now, err := u.v.identOf(c.Dir, c.Name)
		if err != nil || now == was || now.IsZero() {
			return err
		}
		return u.v.MoveAside(c.Dir, c.Name)
	})
}

// identOf gives the inode that a name stands for now; zero where there is none.
func (v *Volume) identOf(dir journal.Ident, name string) (journal.Ident, error) {
	d, err := v.open.get(dir, reachDir)
	if err != nil {
		return journal.Ident{}, err
	}
	defer v.open.put(d)
	id, err := v.backing.IdentAt(d.fd, name)
	if err == unix.ENOENT {
		return journal.Ident{}, nil
	}
	return id, err
}

// placeNames gives every name the inode that it stood for.
func (u *undo) placeNames() error {
	return u.eachName(func(c journal.NameChange, was journal.Ident) error {
		if was.IsZero() {
			return nil
		}
		err := u.v.Place(was, c.Dir, c.Name)
		if u.loses(was, err) {
			return nil
		}
		return err
	})
}

func (u *undo) dropRest() error {
	return u.v.DropAside(func(journal.Ident) error { return nil })
}

// images puts attributes back, last, since all else changes times.
func (u *undo) images() error {
	return u.eachOld(func(c journal.InodeChange, was journal.Image) error {
		err := u.v.SetImage(c.Ident, was)
		if u.loses(c.Ident, err) {
			return nil
		}
		return err
	})
}
