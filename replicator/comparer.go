package replicator

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"tandemfs/journal"
	"tandemfs/replicator/wire"
)

// comparer goes through all that the source has, record by record, beside a view of this volume, and calls for a
// reaction to each difference. The records are those of a first transfer, without content: directories depth
// first, their names in order. Of a file whose content may differ it asks the source for digests, which come
// later. It is used by one goroutine.
type comparer struct {
	ctx  context.Context
	view View
	ids  *journal.Map
	act  reaction
	ask  func(wire.Want) error // asks the source
	// strict says that the content of every file is compared, in whatever size and times agree; exact, that a hole
	// and zeros are different.
	strict, exact bool
	// doubts says of which inodes here, by their change time, the content is compared too.
	doubts func(here journal.Ident, changed journal.Time) bool

	in     []*listing                      // the directories that the inventory is in
	wanted map[journal.Ident]*comparedFile // asked for, and not there yet
	byName map[journal.Ident]journal.Ident // what was found by its name, and is not in the map
	file   *comparedFile                   // whose digests are coming
	want   wire.Want                       // to be asked for
	ranges int                             // in want
	buf    []byte
	kept   bool // something was, which the source cannot read
	done   work // files and data compared so far
	same   work // found to be there already, with their sizes
}

// reaction is what is done about differences. All of it is called by the comparer's goroutine; what belongs to a
// record is good during the call.
type reaction interface {
	// surplus: the source does not have the name.
	surplus(at *listing, name string) error
	// lacking: nothing here can be the inode; stands is what has its name, or zero. It gives the inode that was
	// made for it; zero leaves everything below it out.
	lacking(at *listing, r *wire.Record, stands journal.Ident) (journal.Ident, error)
	// pair: here can be the inode, by its name and type, and was not known to be.
	pair(at *listing, r *wire.Record, here journal.Ident) error
	// misplaced: the name stands for something else, or for nothing.
	misplaced(at *listing, name string, here, stands journal.Ident) error
	// attributes: they differ, or those of what was changed just now have to be set.
	attributes(path func() string, from, here journal.Ident, image journal.Image) error
	// content: it differs in x. Extents that are given back are asked for, and the attributes set after them.
	content(f *comparedFile, x journal.Extents) (journal.Extents, error)
}

// listing is a directory while the inventory goes through it.
type listing struct {
	there, here journal.Ident // here is zero where this volume has none
	name        string
	in          *listing   // nil for the root
	fresh       bool       // it was made just now
	changed     bool       // names of it were
	last        string     // the name that came last
	entries     []DirEntry // what the view has after that
}

// comparedFile is a regular file whose content is compared, or sent.
type comparedFile struct {
	from, here journal.Ident
	in         *listing
	name       string
	compare    bool
	image      journal.Image
	content    File
	end        int64 // up to where it is compared
	differs    journal.Extents
}

// begin starts at the root.
func (c *comparer) begin(root, here journal.Ident) error {
	c.wanted, c.byName = map[journal.Ident]*comparedFile{}, map[journal.Ident]journal.Ident{}
	c.buf = make([]byte, wire.MaxDigest)
	return c.enter(root, here, nil, "", false)
}

// takes reports whether a record is the comparer's. The others are content that it has asked for.
func (c *comparer) takes(r *wire.Record) bool {
	switch {
	case r.Kind == wire.KindAsk, !r.Kind.IsItem() && c.file != nil:
		return true
	case !r.Kind.IsItem():
		return false
	}
	f := c.wanted[r.Ident]
	return r.Kind != wire.KindInode || r.Flags&wire.FlagNew != 0 || f == nil || f.compare
}

// record compares one record; the item before it is finished.
func (c *comparer) record(r *wire.Record) error {
	switch {
	case r.Kind == wire.KindAsk:
		return errors.Join(c.finish(), c.say(true))
	case !r.Kind.IsItem():
		return c.part(r)
	case r.Kind == wire.KindAttach:
		return c.link(r)
	case r.Kind == wire.KindKeep:
		return c.keep(r)
	case r.Kind != wire.KindInode:
	case r.Flags&wire.FlagNew != 0:
		return c.inode(r)
	case isDir(r.Attr):
		return c.leave(r)
	case r.Flags&wire.FlagCompare != 0 && c.wanted[r.Ident] != nil:
		return c.open(r)
	}
	return fmt.Errorf("%w: kind %d of inode %s while comparing", wire.ErrRecord, r.Kind, r.Ident)
}

// got notes that content which was asked for begins to come.
func (c *comparer) got(from journal.Ident) { delete(c.wanted, from) }

// satisfied fails where the inventory is not complete, or something that was asked for did not come.
func (c *comparer) satisfied() error {
	if len(c.in) > 0 || len(c.wanted) > 0 || c.file != nil || len(c.want.Files) > 0 {
		return fmt.Errorf("%w: the comparison ended in the middle", errDivergence)
	}
	return nil
}

// at gives the directory that the inventory is in, and checks that it is dir.
func (c *comparer) at(dir journal.Ident) (*listing, error) {
	if len(c.in) == 0 || c.in[len(c.in)-1].there != dir {
		return nil, fmt.Errorf("%w: directory %s is not the one that is being compared", wire.ErrRecord, dir)
	}
	return c.in[len(c.in)-1], nil
}

// enter begins a directory.
func (c *comparer) enter(there, here journal.Ident, in *listing, name string, fresh bool) error {
	l := &listing{there: there, here: here, in: in, name: name, fresh: fresh}
	if !here.IsZero() && !fresh {
		var err error
		if l.entries, err = c.view.ReadDir(here); err != nil {
			return fmt.Errorf("directory %s of the target: %w", here, err)
		}
		for _, e := range l.entries {
			if e.Err != nil {
				return fmt.Errorf("%q in directory %s of the target: %w", e.Name, here, e.Err)
			}
		}
	}
	c.in = append(c.in, l)
	return nil
}

// advance goes on to a name of the directory, and gives what it stands for here.
func (c *comparer) advance(at *listing, name string) (journal.Ident, error) {
	if name <= at.last {
		return journal.Ident{}, fmt.Errorf("%w: the name %q comes after %q", wire.ErrRecord, name, at.last)
	}
	at.last = name
	n, found := slices.BinarySearchFunc(at.entries, name, func(e DirEntry, name string) int { return cmp.Compare(e.Name, name) })
	passed := at.entries[:n]
	at.entries = at.entries[n:]
	for _, e := range passed {
		if err := c.act.surplus(at, e.Name); err != nil {
			return journal.Ident{}, err
		}
	}
	if !found {
		return journal.Ident{}, nil
	}
	stands := at.entries[0].Ident
	at.entries = at.entries[1:]
	return stands, nil
}

// inode compares an inode by the first name that the inventory has of it.
func (c *comparer) inode(r *wire.Record) error {
	at, err := c.at(r.Dir)
	if err != nil {
		return err
	}
	name := string(r.Name)
	if at.here.IsZero() {
		return c.below(at, r, name, journal.Ident{}, foundHere)
	}
	stands, err := c.advance(at, name)
	if err != nil {
		return err
	}
	here, how, err := c.find(at, r, stands)
	switch {
	case err != nil:
	case here.IsZero():
		how = foundNot
		here, err = c.act.lacking(at, r, stands)
	case here != stands:
		if how == foundHere {
			how = foundMoved
		}
		err = c.act.misplaced(at, name, here, stands)
	}
	if err != nil {
		return err
	}
	return c.below(at, r, name, here, how)
}

// found says how an inode of the source was found here.
type found uint8

const (
	foundHere   found = iota // as the map has it, under its name
	foundMoved               // as the map has it, under another name
	foundByName              // by its name only
	foundNot                 // it was made just now
)

// below goes on with what an inode has: names, or content and attributes.
func (c *comparer) below(at *listing, r *wire.Record, name string, here journal.Ident, how found) error {
	if isDir(r.Attr) {
		err := c.enter(r.Ident, here, at, name, how == foundNot)
		if err == nil && c.exact {
			c.in[len(c.in)-1].changed = how == foundMoved // a filesystem may set the times of what is moved
		}
		return err
	}
	if here.IsZero() {
		return nil
	}
	return c.compare(r, &comparedFile{from: r.Ident, here: here, in: at, name: name}, how)
}

// path is below the volume's root.
func (l *listing) path() string {
	if l.in == nil {
		return ""
	}
	return l.in.path() + l.name + "/"
}

func (f *comparedFile) path() string { return f.in.path() + f.name }

// find finds the inode here that is the source's: as the map has it, or else by its name.
func (c *comparer) find(at *listing, r *wire.Record, stands journal.Ident) (none journal.Ident, how found, err error) {
	known, ok, err := c.ids.Get(r.Ident)
	if err == nil && ok {
		ok, err = c.plausible(known, r)
	}
	if err != nil || ok {
		return known, foundHere, err
	}
	if stands.IsZero() {
		return none, foundNot, nil
	}
	if ok, err = c.plausible(stands, r); err != nil || !ok {
		return none, foundNot, err
	}
	if owner, owned, err := c.ids.Reverse(stands); err != nil || owned && owner != r.Ident {
		return none, foundNot, err
	}
	if !isDir(r.Attr) && !c.exact { // who mends puts it in the map
		c.byName[r.Ident] = stands
	}
	return stands, foundByName, c.act.pair(at, r, stands)
}

// plausible reports whether an inode here is there and is of the same type, with what never changes of that.
func (c *comparer) plausible(here journal.Ident, r *wire.Record) (bool, error) {
	attr, err := c.view.Stat(here)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil || (attr.Mode^r.Attr.Mode)&typeMask != 0 || attr.Rdev != r.Attr.Rdev {
		return false, err
	}
	if !isSymlink(attr) {
		return true, nil
	}
	target, err := c.view.Readlink(here)
	return target == string(r.Symlink), err
}

// standing comes to the name of a record, and gives its directory and what stands there; false in a directory that the
// target does not have.
func (c *comparer) standing(r *wire.Record) (at *listing, name string, stands journal.Ident, ok bool, err error) {
	if at, err = c.at(r.Dir); err != nil || at.here.IsZero() {
		return at, "", stands, false, err
	}
	name = string(r.Name)
	stands, err = c.advance(at, name)
	return at, name, stands, err == nil, err
}

// link compares one more name of an inode.
func (c *comparer) link(r *wire.Record) error {
	at, name, stands, ok, err := c.standing(r)
	if !ok {
		return err
	}
	here, ok, err := c.ids.Get(r.Ident)
	if !ok {
		here = c.byName[r.Ident]
	}
	if err == nil && here != stands {
		err = c.act.misplaced(at, name, here, stands)
	}
	return err
}

// keep keeps what a name stands for, as it is and with all below it: the source cannot read what that should be. If
// it can be told which inode it should be, that one goes there; else what has the name may be the one.
func (c *comparer) keep(r *wire.Record) error {
	c.kept = true
	at, name, stands, ok, err := c.standing(r)
	if !ok {
		return err
	}
	here, ok, err := c.ids.Get(r.Ident)
	if err != nil || !ok || here == stands {
		return err
	}
	if _, err = c.view.Stat(here); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = c.act.misplaced(at, name, here, stands)
	}
	return err
}

// leave ends a directory.
func (c *comparer) leave(r *wire.Record) error {
	at, err := c.at(r.Ident)
	if err != nil {
		return err
	}
	for _, e := range at.entries {
		if err := c.act.surplus(at, e.Name); err != nil {
			return err
		}
	}
	c.in = c.in[:len(c.in)-1]
	c.done.files++
	c.same.files++
	if at.here.IsZero() {
		return nil
	}
	return c.attributes(at.path, r, at.here, at.fresh || at.changed)
}

// attributes compares an inode's attributes.
func (c *comparer) attributes(path func() string, r *wire.Record, here journal.Ident, changed bool) error {
	image := journal.Image{Attr: r.Attr, Xattrs: r.Xattrs}
	if !changed {
		same, err := c.sameImage(here, image)
		if err != nil || same {
			return err
		}
	}
	return c.act.attributes(path, r.Ident, here, image)
}

// sameImage compares all that is replicated of an image; the access time, which reading alone changes, only
// where that is put right.
func (c *comparer) sameImage(here journal.Ident, image journal.Image) (bool, error) {
	have, err := c.view.Stat(here)
	if err != nil {
		return false, err
	}
	a := image.Attr
	if c.exact && have.Atime != a.Atime {
		return false, nil
	}
	if have.Mode != a.Mode || have.UID != a.UID || have.GID != a.GID || have.Mtime != a.Mtime || isRegular(a) && have.Size != a.Size {
		return false, nil
	}
	xattrs, err := c.view.Xattrs(here)
	return slices.EqualFunc(xattrs, image.Xattrs, func(a, b journal.Xattr) bool {
		return a.Name == b.Name && bytes.Equal(a.Value, b.Value)
	}), err
}

// close lets go of what is open.
func (c *comparer) close() error {
	var err error
	if c.file != nil {
		err = c.file.content.Close()
	}
	return errors.Join(err, c.view.Close())
}
