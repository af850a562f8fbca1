package replicator

import (
	"errors"
	"fmt"
	"io/fs"

	"tandemfs/journal"
	"tandemfs/replicator/wire"
)

// plan says what has to be sent for one transfer: the state at a seal of everything that was touched
// since the base. It reads names and attributes, never content.
//
// The order, in which a tree of any shape becomes another without an intermediate state that a filesystem
// would refuse:
//
//  1. the inodes that are not new: attributes and what changed of the content;
//  2. what is new, whole subtrees of it, aside: a new inode is made where nobody sees it, everything inside
//     a new directory in its place there;
//  3. the names in old directories: first those that stand for nothing any more or whose directory moves
//     away, then those that stand for something; then old directories that moved into new ones. A directory
//     is in no other place when it is given one, and every name that is given is one of the final tree, so
//     no cycle can come about in between;
//  4. the attributes of old directories, whose times the names have changed.
type plan struct {
	view    View
	changes *journal.Changes // nil: all is new, the root is a new directory that is there already
	root    journal.Ident
	// over says that the target holds something of a transfer that will not be gone on with. Then a name
	// that is as it was at the base is sent too, since it may have been changed in between.
	over bool
	// lacking is what the target lacks of the base, by identity.
	lacking []lacking
	// leave leaves out what cannot be read of an inode, or fails: its attributes and the extents of its content, or
	// with names all that a name stands for.
	leave func(s *step, x journal.Extents, names bool, err error) error
	// compares says that the target is to be told the names of what is left out: it keeps what it has.
	compares bool

	yield     func(*step) error
	names     map[nameOf]journal.Ident   // what names stand for that were looked up, maxNames at the most
	linked    map[journal.Ident]struct{} // new inodes with several names that were yielded
	relocated bool                       // an old directory was met in a new one
	dirs      bool                       // an old directory has attributes that were touched
}

// step is one item of the stream, and which content goes with it.
type step struct {
	wire.Record
	whole   bool             // all of a new file's content
	extents []journal.Extent // of an old file's content
}

// errNames says that a transfer of changes came to names that cannot be read. Which changes it may leave out for that,
// and be understood, cannot be told: only a transfer that compares can.
var errNames = errors.New("all is compared for that")

// errView says that a view contradicts itself: it was given up, and a new one is needed.
var errView = errors.New("the view of the volume is no longer whole")

// steps yields all items, the same ones in the same order whenever it is called for the same view, base and
// over. The step is only valid during the call.
func (p *plan) steps(yield func(*step) error) error {
	var sent error
	p.yield = func(s *step) error {
		sent = yield(s)
		return sent
	}
	p.linked, p.relocated, p.dirs = map[journal.Ident]struct{}{}, false, false
	p.names = map[nameOf]journal.Ident{}
	if p.changes == nil {
		return p.all()
	}
	for _, phase := range []func() error{p.oldInodes, p.newInodes, p.detach, p.attach, p.relocate, p.namedDirectories, p.touchedDirectories} {
		if err := phase(); err != nil {
			if sent == nil && unreadable(err) {
				err = fmt.Errorf("%w: %w", err, errNames)
			}
			return err
		}
	}
	return nil
}

// all yields everything below the root, and the root.
func (p *plan) all() error {
	attr, err := p.view.Stat(p.root)
	if err != nil {
		return fmt.Errorf("the root: %w", err)
	}
	entries, err := p.view.ReadDir(p.root)
	if err != nil {
		return p.readDirError(p.root, err)
	}
	return p.newDirectory(p.root, attr, entries)
}

// stat tells a vanished inode from an error.
func (p *plan) stat(id journal.Ident) (attr journal.Attr, ok bool, err error) {
	attr, err = p.view.Stat(id)
	if errors.Is(err, fs.ErrNotExist) {
		return attr, false, nil
	}
	if err != nil {
		return attr, false, fmt.Errorf("inode %s: %w", id, err)
	}
	return attr, true, nil
}

// created reports whether the inode is new since the base.
func (p *plan) created(id journal.Ident) (bool, error) {
	if p.changes == nil {
		return true, nil
	}
	c, ok, err := p.changes.Inode(id)
	return ok && c.What&journal.Created != 0, err
}

// oldInodes yields the touched inodes that are not new, but directories.
func (p *plan) oldInodes() error {
	err := p.changes.Inodes(func(c journal.InodeChange) error {
		if c.What&journal.Created != 0 {
			return nil
		}
		return p.oldInode(c.Ident, journal.Extents(c.Extents).Union(p.lackingOf(c.Ident)))
	})
	if err != nil {
		return err
	}
	return p.untouchedLacking(func(l lacking) error { return p.oldInode(l.Ident, l.Extents) })
}

// oldInode yields an inode that is not new, but a directory, with some of its content.
func (p *plan) oldInode(id journal.Ident, extents journal.Extents) error {
	attr, ok, err := p.stat(id)
	s := step{Record: wire.Record{Kind: wire.KindInode, Ident: id, Attr: attr}}
	if unreadable(err) {
		return p.leave(&s, extents, false, err)
	}
	if err != nil || !ok || attr.Nlink == 0 {
		return err
	}
	if isDir(attr) {
		p.dirs = true
		return nil
	}
	if isRegular(attr) {
		s.extents = extents
	}
	return p.yield(&s)
}

// newInodes yields what is new below old directories.
func (p *plan) newInodes() error {
	return p.newRoots(func(n oldName) error {
		return p.newInode(n.Now, journal.Ident{}, "")
	})
}

// newRoots finds the new inodes that have a name in an old directory.
func (p *plan) newRoots(found func(oldName) error) error {
	return p.oldNames(func(n oldName) error {
		if n.Now.IsZero() {
			return nil
		}
		created, err := p.created(n.Now)
		if err != nil || !created {
			return err
		}
		return found(n)
	})
}

// newInode yields a new inode, with a zero dir aside, and what is below it.
func (p *plan) newInode(id, dir journal.Ident, name string) error {
	attr, ok, err := p.stat(id)
	if err != nil {
		return p.unread(id, dir, name, err)
	}
	if !ok {
		return fmt.Errorf("%w: it names inode %s (%q) and does not have it", errView, id, name)
	}
	if _, again := p.linked[id]; again {
		return p.again(id, dir, name)
	}
	rec := wire.Record{Kind: wire.KindInode, Flags: wire.FlagNew, Ident: id, Attr: attr}
	if !dir.IsZero() {
		rec.Flags |= wire.FlagPlaced
		rec.Dir, rec.Name = dir, []byte(name)
	}
	var entries []DirEntry
	switch { // what the target has to have from the beginning
	case isDir(attr):
		entries, err = p.view.ReadDir(id)
		err = p.readDirError(id, err)
	case isSymlink(attr):
		rec.Symlink, err = p.symlink(id)
	}
	if err != nil {
		return p.unread(id, dir, name, err)
	}
	if isDir(attr) {
		if err := p.yield(&step{Record: rec}); err != nil {
			return err
		}
		return p.newDirectory(id, attr, entries)
	}
	if attr.Nlink > 1 {
		p.linked[id] = struct{}{}
	}
	return p.yield(&step{Record: rec, whole: isRegular(attr)})
}

// unread leaves out what a name stands for, where that cannot be read, and all below it.
func (p *plan) unread(id, dir journal.Ident, name string, err error) error {
	if !unreadable(err) || p.changes != nil {
		return err
	}
	s := step{Record: wire.Record{Kind: wire.KindKeep, Ident: id, Dir: dir, Name: []byte(name)}}
	if err := p.leave(&s, nil, true, err); err != nil || !p.compares {
		return err
	}
	return p.yield(&s)
}

// vanished is the link target that a symbolic link is sent with when it was removed since the seal and
// its target is no longer known. The next transfer removes it there too.
const vanished = "(removed)"

// symlink gives the target of a symbolic link, which cannot be given to it later.
func (p *plan) symlink(id journal.Ident) ([]byte, error) {
	target, err := p.view.Readlink(id)
	if errors.Is(err, fs.ErrNotExist) {
		target, err = vanished, nil
	}
	if err != nil {
		err = fmt.Errorf("symbolic link %s: %w", id, err)
	}
	return []byte(target), err
}

// again yields one more name of what was yielded; those in old directories come with all others.
func (p *plan) again(id, dir journal.Ident, name string) error {
	if dir.IsZero() {
		return nil
	}
	return p.yield(&step{Record: wire.Record{Kind: wire.KindAttach, Dir: dir, Name: []byte(name), Ident: id}})
}

// newDirectory yields what is in a new directory, then its attributes: they have changed meanwhile on the target.
func (p *plan) newDirectory(dir journal.Ident, attr journal.Attr, entries []DirEntry) error {
	for _, e := range entries {
		if err := p.inNewDirectory(dir, e); err != nil {
			return err
		}
	}
	return p.yield(&step{Record: wire.Record{Kind: wire.KindInode, Ident: dir, Attr: attr}})
}

// inNewDirectory yields one name of a new directory. An old directory has to leave its old place first.
func (p *plan) inNewDirectory(dir journal.Ident, e DirEntry) error {
	if e.Err != nil {
		return p.unread(e.Ident, dir, e.Name, fmt.Errorf("%q in directory %s: %w", e.Name, dir, e.Err))
	}
	created, err := p.created(e.Ident)
	if err != nil {
		return err
	}
	if created {
		return p.newInode(e.Ident, dir, e.Name)
	}
	attr, ok, err := p.stat(e.Ident)
	if err != nil {
		return err
	}
	if ok && isDir(attr) {
		p.relocated = true
		return nil
	}
	return p.again(e.Ident, dir, e.Name)
}

func (p *plan) readDirError(dir journal.Ident, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: it has directory %s without its names", errView, dir)
	}
	return fmt.Errorf("directory %s: %w", dir, err)
}

// directory yields the attributes of a directory, if it still is one.
func (p *plan) directory(dir journal.Ident) error {
	attr, ok, err := p.stat(dir)
	s := step{Record: wire.Record{Kind: wire.KindInode, Ident: dir, Attr: attr}}
	if unreadable(err) {
		return p.leave(&s, nil, false, err)
	}
	if err != nil || !ok || !isDir(attr) {
		return err
	}
	return p.yield(&s)
}

// oldName is a touched name of a directory that is not new.
type oldName struct {
	journal.NameChange
	Now    journal.Ident // zero: nothing
	Exists bool          // the directory does
}

// oldNames finds the touched names of old directories, those of directories that are gone among them.
func (p *plan) oldNames(found func(oldName) error) error {
	var dir journal.Ident
	var created, exists bool
	return p.changes.Names(func(c journal.NameChange) (err error) {
		if c.Dir != dir {
			if created, err = p.created(c.Dir); err != nil {
				return err
			}
			if _, exists, err = p.stat(c.Dir); err != nil {
				return err
			}
			dir = c.Dir
		}
		if created {
			return nil
		}
		n := oldName{NameChange: c, Exists: exists}
		if exists {
			if n.Now, err = p.lookup(nameOf{c.Dir, c.Name}); err != nil {
				return fmt.Errorf("%q in directory %s: %w", c.Name, c.Dir, err)
			}
		}
		return found(n)
	})
}

// nameOf is a name in a directory.
type nameOf struct {
	dir  journal.Ident
	name string
}

// maxNames is how many names the phases need to look up only once.
const maxNames = 16 << 10

// lookup gives what a name stands for, zero where that is nothing.
func (p *plan) lookup(n nameOf) (journal.Ident, error) {
	if id, ok := p.names[n]; ok {
		return id, nil
	}
	id, err := p.view.Lookup(n.dir, n.name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return id, err
	}
	if len(p.names) < maxNames {
		p.names[n] = id
	}
	return id, nil
}

// detach yields the names that have to be taken away before any is given.
func (p *plan) detach() error {
	return p.oldNames(func(n oldName) error {
		needed, err := p.mustDetach(n)
		if err != nil || !needed {
			return err
		}
		return p.yield(&step{Record: wire.Record{Kind: wire.KindDetach, Dir: n.Dir, Name: []byte(n.Name)}})
	})
}

// mustDetach: a name that stands for nothing any more, unless its directory goes with it; and whatever name
// a directory had that has another now. Giving a name to something else replaces what stood there.
func (p *plan) mustDetach(n oldName) (bool, error) {
	switch {
	case p.over:
		return true, nil
	case n.Was.IsZero() || n.Was == n.Now:
		return false, nil
	case n.Exists && n.Now.IsZero():
		return true, nil
	}
	attr, ok, err := p.stat(n.Was)
	return ok && isDir(attr), err
}

// attach yields the names that stand for something.
func (p *plan) attach() error {
	return p.oldNames(func(n oldName) error {
		if n.Now.IsZero() || n.Now == n.Was && !p.over {
			return nil
		}
		return p.yield(&step{Record: wire.Record{Kind: wire.KindAttach, Dir: n.Dir, Name: []byte(n.Name), Ident: n.Now}})
	})
}

// relocate yields the names that old directories have in new ones. It reads the new directories again, so
// that nothing needs to be remembered of them: it is rare, and they may be many.
func (p *plan) relocate() error {
	if !p.relocated {
		return nil
	}
	return p.newRoots(func(n oldName) error { return p.relocateBelow(n.Now) })
}

func (p *plan) relocateBelow(dir journal.Ident) error {
	attr, ok, err := p.stat(dir)
	if err != nil || !ok || !isDir(attr) {
		return err
	}
	entries, err := p.view.ReadDir(dir)
	if err != nil {
		return p.readDirError(dir, err)
	}
	any := false
	for _, e := range entries {
		created, err := p.created(e.Ident)
		if err = errors.Join(e.Err, err); err != nil {
			return err
		}
		if created {
			err = p.relocateBelow(e.Ident)
		} else {
			var moved bool
			moved, err = p.relocateOne(dir, e)
			any = any || moved
		}
		if err != nil {
			return err
		}
	}
	if !any {
		return nil
	}
	return p.directory(dir)
}

func (p *plan) relocateOne(dir journal.Ident, e DirEntry) (bool, error) {
	attr, ok, err := p.stat(e.Ident)
	if err != nil || !ok || !isDir(attr) {
		return false, err
	}
	return true, p.yield(&step{Record: wire.Record{
		Kind: wire.KindAttach, Dir: dir, Name: []byte(e.Name), Ident: e.Ident,
	}})
}

// namedDirectories yields the old directories whose names were touched, but those that touchedDirectories yields.
func (p *plan) namedDirectories() error {
	var last journal.Ident
	return p.oldNames(func(n oldName) error {
		if n.Dir == last || !n.Exists {
			return nil
		}
		last = n.Dir
		if c, ok, err := p.changes.Inode(n.Dir); err != nil || ok && c.What&journal.Meta != 0 {
			return err
		}
		return p.directory(n.Dir)
	})
}

// touchedDirectories yields the old directories whose attributes were touched.
func (p *plan) touchedDirectories() error {
	if !p.dirs {
		return nil
	}
	err := p.changes.Inodes(func(c journal.InodeChange) error {
		if c.What&journal.Created != 0 || c.What&journal.Meta == 0 {
			return nil
		}
		return p.directory(c.Ident)
	})
	if err != nil {
		return err
	}
	return p.untouchedLacking(func(l lacking) error { return p.directory(l.Ident) })
}
