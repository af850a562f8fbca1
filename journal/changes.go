package journal

import (
	"cmp"
	"slices"
)

// InodeChange says what happened to one inode in a range of epochs.
type InodeChange struct {
	Ident   Ident
	What    What
	Extents []Extent // sorted, disjoint, not adjacent; nil with Created
}

// NameChange says that a name may stand for something else than it did.
type NameChange struct {
	Dir  Ident
	Name string
	Was  Ident // what it stood for before the range; zero: nothing
}

// Changes is the union of the records in a range of epochs.
type Changes struct {
	inodes []InodeChange
	names  []NameChange
}

// Changes gives the union of the records in (after, upto]; upto must be sealed.
func (j *Journal) Changes(after, upto Epoch) (*Changes, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if after < j.gone {
		return nil, ErrGone
	}
	inodes, names := map[Ident]*InodeChange{}, map[nameKey]Ident{}
	for n := after + 1; n <= upto; n++ {
		e := j.epochs[n]
		if e == nil {
			continue
		}
		for id, r := range e.inodes {
			c := inodes[id]
			if c == nil {
				c = &InodeChange{Ident: id}
				inodes[id] = c
			}
			if c.What |= r.what; c.What&Created != 0 {
				c.Extents = nil
			} else {
				c.Extents = Extents(c.Extents).Union(r.extents)
			}
		}
		for k, was := range e.names {
			if _, ok := names[k]; !ok {
				names[k] = was
			}
		}
	}
	c := &Changes{}
	for _, i := range inodes {
		c.inodes = append(c.inodes, *i)
	}
	for k, was := range names {
		if d := inodes[k.dir]; d == nil || d.What&Created == 0 {
			c.names = append(c.names, NameChange{k.dir, k.name, was})
		}
	}
	slices.SortFunc(c.inodes, func(a, b InodeChange) int { return compareIdent(a.Ident, b.Ident) })
	slices.SortFunc(c.names, func(a, b NameChange) int {
		return cmp.Or(compareIdent(a.Dir, b.Dir), cmp.Compare(a.Name, b.Name))
	})
	return c, nil
}

// Inodes yields every changed inode, ordered by identity, until yield fails.
func (c *Changes) Inodes(yield func(InodeChange) error) error {
	for _, i := range c.inodes {
		if err := yield(i); err != nil {
			return err
		}
	}
	return nil
}

// Names yields every touched name, ordered by directory and name, until yield fails. The names in
// directories that were created in the range are not among them: those are new as a whole.
func (c *Changes) Names(yield func(NameChange) error) error {
	for _, n := range c.names {
		if err := yield(n); err != nil {
			return err
		}
	}
	return nil
}

// Inode gives what happened to one inode; false when nothing did.
func (c *Changes) Inode(id Ident) (InodeChange, bool, error) {
	for _, i := range c.inodes {
		if i.Ident == id {
			return i, true, nil
		}
	}
	return InodeChange{}, false, nil
}

// Totals estimates the changes: inodes and names touched, and bytes in extents.
func (c *Changes) Totals() (inodes, names, bytes int64) {
	for _, i := range c.inodes {
		bytes += Extents(i.Extents).Len()
	}
	return int64(len(c.inodes)), int64(len(c.names)), bytes
}
