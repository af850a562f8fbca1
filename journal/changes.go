package journal

import (
	"fmt"
	"math"
)

// InodeChange says what happened to one inode in a range of epochs.
type InodeChange struct {
	Ident   Ident
	What    What     // Created alone when the inode was made in the range
	Extents []Extent // sorted, disjoint, not adjacent; nil with Created. An end may be MaxOffset.
	found   bool     // it had no name before the range, though it was made before
}

// sent gives the change as it looks to whoever has what was there before the range: what had no name then is
// new to it as a whole.
func (c InodeChange) sent() InodeChange {
	if c.found {
		c.What, c.Extents = Created, nil
	}
	return c
}

// NameChange says that a name may stand for something else than it did.
type NameChange struct {
	Dir  Ident
	Name string
	Was  Ident // what it stood for before the range; zero: nothing
}

// Changes is the union of the records in a range of sealed epochs. Its methods read the journal anew at
// each call, need memory that does not depend on the number of records, and give the same answers every
// time; they fail with ErrGone once records of the range are forgotten. They may be called concurrently.
type Changes struct {
	j           *Journal
	after, upto Epoch
}

// Changes gives the union of the records in (after, upto]. It fails with ErrGone when epochs after `after`
// are forgotten, unless a seal before them is held, and with ErrNotSealed when upto is not sealed.
func (j *Journal) Changes(after, upto Epoch) (*Changes, error) {
	c := &Changes{j, after, upto}
	if _, err := c.layers(); err != nil {
		return nil, err
	}
	return c, nil
}

// A layer is one place that has records of an epoch. Where several layers of an epoch have a key, the
// first one has the whole truth about it.
type layer struct {
	epoch Epoch
	index *epochIndex // nil: the store
}

// layers lists where the range's records are: by epoch, within one the newest first.
func (c *Changes) layers() ([]layer, error) {
	c.j.mu.Lock()
	defer c.j.mu.Unlock()
	s := &c.j.state
	if gone := s.useless(); c.after < gone {
		return nil, fmt.Errorf("%w: up to %d, changes were asked for after %d", ErrGone, gone, c.after)
	}
	if c.upto >= s.epoch {
		return nil, fmt.Errorf("%w: %d", ErrNotSealed, c.upto)
	}
	return c.j.layers(c.after, c.upto), nil
}

// layers is the same for any range. mu is held.
func (j *Journal) layers(after, upto Epoch) []layer {
	var list []layer
	for _, n := range j.state.within(after, upto) {
		for _, g := range []*generation{j.active, j.frozen} {
			if g != nil && g.epochs[n] != nil {
				list = append(list, layer{n, g.epochs[n]})
			}
		}
		if j.state.isStored(n) {
			list = append(list, layer{n, nil})
		}
	}
	return list
}

// Inodes calls yield for every changed inode, ordered by identity, until it fails.
func (c *Changes) Inodes(yield func(InodeChange) error) error {
	c.j.folding.RLock()
	defer c.j.folding.RUnlock()
	layers, err := c.layers()
	if err != nil {
		return err
	}
	m := newMerge[Ident, *inodeEntry](compareIdent)
	for _, l := range layers {
		m.add(l.epoch, c.j.inodeSource(l))
	}
	err = m.run(func(id Ident, versions []version[*inodeEntry]) error {
		if change, ok := unite(id, versions); ok {
			return yield(change.sent())
		}
		return nil
	})
	return c.stillKept(err)
}

// stillKept makes an iteration fail that records may have been taken away from.
func (c *Changes) stillKept(err error) error {
	if err != nil {
		return err
	}
	_, err = c.layers()
	return err
}

// unite gives the union of what several epochs, oldest first, say of an inode; false when it is nothing.
func unite(id Ident, versions []version[*inodeEntry]) (InodeChange, bool) {
	c := InodeChange{Ident: id}
	for _, v := range versions {
		if (c.What|v.value.what)&fate == Found {
			c.found = true
		}
		c.What |= v.value.what
		c.Extents = Extents(c.Extents).Union(v.value.extents.flat())
	}
	if c.What&Created != 0 {
		c.What, c.Extents = Created, nil
	}
	any := c.What != 0
	c.What &^= fate
	return c, any
}

// Names calls yield for every touched name, ordered by directory and name, until it fails. The names in
// directories that were made in the range are not among them: such a directory is new as a whole.
func (c *Changes) Names(yield func(NameChange) error) error {
	c.j.folding.RLock()
	defer c.j.folding.RUnlock()
	layers, err := c.layers()
	if err != nil {
		return err
	}
	m := newMerge[nameKey, Ident](compareName)
	for _, l := range layers {
		m.add(l.epoch, c.j.nameSource(l))
	}
	var dir Ident
	var created bool
	err = m.run(func(key nameKey, versions []version[Ident]) error {
		if dir != key.dir {
			change, _, err := c.Inode(key.dir)
			if err != nil {
				return err
			}
			dir, created = key.dir, change.What&Created != 0
		}
		if created {
			return nil
		}
		return yield(NameChange{key.dir, key.name, versions[0].value})
	})
	return c.stillKept(err)
}

// Inode gives what happened to one inode; false when nothing did.
func (c *Changes) Inode(id Ident) (InodeChange, bool, error) {
	c.j.folding.RLock()
	defer c.j.folding.RUnlock()
	layers, err := c.layers()
	if err != nil {
		return InodeChange{}, false, err
	}
	var versions []version[*inodeEntry]
	for _, l := range layers {
		if last := len(versions) - 1; last >= 0 && versions[last].epoch == l.epoch {
			continue // a newer layer of the epoch had it
		}
		e, err := c.j.inodeIn(l, id)
		if err != nil {
			return InodeChange{}, false, err
		}
		if e != nil {
			versions = append(versions, version[*inodeEntry]{l.epoch, e})
		}
	}
	change, ok := unite(id, versions)
	return change.sent(), ok, c.stillKept(nil)
}

// Where gives one name that an inode had when it was first touched in one of the epochs, the last of them
// that knows; false when none does.
func (c *Changes) Where(id Ident) (dir Ident, name string, ok bool, err error) {
	c.j.folding.RLock()
	defer c.j.folding.RUnlock()
	layers, err := c.layers()
	if err != nil {
		return dir, "", false, err
	}
	for i := len(layers) - 1; i >= 0 && !ok && err == nil; i-- {
		var at nameKey
		if l := layers[i]; l.index != nil {
			at, ok = l.index.where[id]
		} else {
			at, ok, err = c.j.store.where(l.epoch, id)
		}
		dir, name = at.dir, at.name
	}
	return dir, name, ok, err
}

// inodeIn looks an inode up in a layer; nil when it is not there. The index must not change any more.
func (j *Journal) inodeIn(l layer, id Ident) (*inodeEntry, error) {
	if l.index != nil {
		return l.index.inodes[id], nil
	}
	return j.store.inode(l.epoch, id)
}

// Empty reports whether the range has no records, without reading any; false where that is not known at once.
func (c *Changes) Empty() (bool, error) {
	layers, err := c.layers()
	return len(layers) == 0, err
}

// Totals estimates the changes, quickly: inodes and names touched, each counted once an epoch, and bytes
// in extents, those left out that have no end. After a crash it may be off.
func (c *Changes) Totals() (inodes, names, bytes int64) {
	c.j.mu.Lock()
	defer c.j.mu.Unlock()
	for _, n := range c.j.state.within(c.after, c.upto) {
		t := c.j.state.totals[n]
		inodes += max(t.inodes, 0)
		names += max(t.names, 0)
		bytes += min(max(t.bytes, 0), math.MaxInt64-bytes)
	}
	return inodes, names, bytes
}
