package volume

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
)

// ChangeKind says how a path differs between two snapshots.
type ChangeKind string

// The kinds of changes.
const (
	ChangeCreated  ChangeKind = "created"
	ChangeModified ChangeKind = "modified"
	ChangeRemoved  ChangeKind = "removed"
	ChangeRenamed  ChangeKind = "renamed"
)

// Change is one difference between two snapshots.
type Change struct {
	Kind ChangeKind
	Path string // slash-separated, relative to the root; in the newer snapshot, of what was removed in the older
	From string // of what was renamed, its path in the older snapshot
	Dir  bool
}

// Region is a stretch of a file that differs between two snapshots, as the newer one has it.
type Region struct {
	Offset int64
	Length int64
	Hole   bool
}

// Diff lists what differs between two snapshots, in the order of paths, at most limit changes from a cursor on
// ("": the start). The cursor that it gives is empty at the end. It costs what was changed, not what there is.
// A directory is modified when more of it differs than its names and times.
func (v *Volume) Diff(from, to, cursor string, limit int) (changes []Change, next string, err error) {
	a, b, err := v.openPair(from, to)
	if err != nil {
		return nil, "", err
	}
	defer a.Close()
	defer b.Close()
	after, err := decodeCursor(cursor)
	if err != nil {
		return nil, "", err
	}
	all, err := v.diffs.get(v, a, b)
	if err != nil {
		return nil, "", err
	}
	start := 0
	if cursor != "" {
		start, _ = slices.BinarySearchFunc(all, after+"\x00", compareChange)
	}
	page := all[start:min(len(all), start+limit)]
	if start+len(page) < len(all) {
		next = encodeCursor(key(page[len(page)-1]))
	}
	return page, next, nil
}

// key is what changes are sorted by.
func key(c Change) string { return c.Path + "\x00" + string(c.Kind) }

func compareChange(c Change, k string) int { return cmp.Compare(key(c), k) }

func encodeCursor(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

func decodeCursor(cursor string) (string, error) {
	text, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil {
		return "", fmt.Errorf("%q is no cursor of an earlier page: %w", cursor, fs.ErrInvalid)
	}
	return string(text), nil
}

// openPair gives the views of two snapshots, of which the second must not be the older.
func (v *Volume) openPair(from, to string) (a, b *View, err error) {
	_, a, err = v.OpenSnapshot(from)
	if err != nil {
		return nil, nil, err
	}
	if _, b, err = v.OpenSnapshot(to); err != nil {
		return nil, nil, errors.Join(err, a.Close())
	}
	if a.epoch > b.epoch {
		err = fmt.Errorf("snapshot %q is older than %q: name the older one first: %w", to, from, fs.ErrInvalid)
		return nil, nil, errors.Join(err, a.Close(), b.Close())
	}
	return a, b, nil
}

// diffs remembers the last difference, whose pages are asked for one after the other.
type diffs struct {
	mu   sync.Mutex
	a, b journal.Epoch
	list []Change
}

func (d *diffs) get(v *Volume, a, b *View) ([]Change, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.list != nil && d.a == a.epoch && d.b == b.epoch {
		return d.list, nil
	}
	list, err := v.diff(a, b)
	if err != nil {
		return nil, err
	}
	d.a, d.b, d.list = a.epoch, b.epoch, list
	return list, nil
}

// diff makes the whole list.
func (v *Volume) diff(a, b *View) ([]Change, error) {
	if a.epoch == b.epoch {
		return []Change{}, nil
	}
	changes, err := v.journal.Changes(a.epoch, b.epoch)
	if err != nil {
		return nil, err
	}
	d := &differ{v: v, a: a, b: b, changes: changes, list: []Change{},
		lost: map[journal.Ident][]place{}, found: map[journal.Ident][]place{}, renamed: map[journal.Ident]bool{},
		pathsA: newPaths(v, a), pathsB: newPaths(v, b)}
	for _, step := range []func() error{d.names, d.pair, d.inodes, d.search} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(d.list, func(a, b Change) int { return cmp.Compare(key(a), key(b)) })
	return slices.CompactFunc(d.list, func(a, b Change) bool { return key(a) == key(b) }), nil
}

// place is a name in a directory.
type place struct {
	dir  journal.Ident
	name string
}

// differ finds what differs between the views a and b.
type differ struct {
	v              *Volume
	a, b           *View
	changes        *journal.Changes
	list           []Change
	lost, found    map[journal.Ident][]place // names that an inode had in a alone, or has in b alone
	renamed        map[journal.Ident]bool
	unplaced       map[journal.Ident]bool // modified, and nobody knows where they are
	pathsA, pathsB *paths
}

// names sorts the touched names into what was lost and what was found.
func (d *differ) names() error {
	return d.changes.Names(func(c journal.NameChange) error {
		was, err := d.a.Lookup(c.Dir, c.Name)
		if err != nil {
			return err
		}
		now, err := d.lookupB(c)
		if err != nil || was == now {
			return err
		}
		if !was.IsZero() {
			d.lost[was] = append(d.lost[was], place{c.Dir, c.Name})
		}
		if !now.IsZero() {
			return d.find(now, place{c.Dir, c.Name})
		}
		return nil
	})
}

// lookupB looks a touched name up in b, whose directory may be gone by then.
func (d *differ) lookupB(c journal.NameChange) (journal.Ident, error) {
	if _, err := d.b.Stat(c.Dir); isGone(err) {
		return journal.Ident{}, nil
	} else if err != nil {
		return journal.Ident{}, err
	}
	return d.b.Lookup(c.Dir, c.Name)
}

// find notes a new name, and all that is below a directory that is new.
func (d *differ) find(id journal.Ident, at place) error {
	d.found[id] = append(d.found[id], at)
	c, ok, err := d.changes.Inode(id)
	if err != nil || !ok || c.What&journal.Created == 0 {
		return err
	}
	attr, err := d.b.Stat(id)
	if err != nil || attr.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	entries, err := d.b.readable(id)
	for _, e := range entries {
		if err == nil {
			err = d.find(e.Ident, place{id, e.Name})
		}
	}
	return err
}

// pair makes renames of what was lost in one place and found in another, and lists what is left over.
func (d *differ) pair() error {
	for id, found := range d.found {
		lost := d.lost[id]
		for i, at := range found {
			kind, from := ChangeCreated, place{}
			if i < len(lost) {
				kind, from = ChangeRenamed, lost[i]
				d.renamed[id] = true
			}
			if err := d.add(kind, id, at, from); err != nil {
				return err
			}
		}
		d.lost[id] = lost[min(len(found), len(lost)):]
	}
	for id, lost := range d.lost {
		for _, at := range lost {
			if err := d.remove(id, at); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *differ) add(kind ChangeKind, id journal.Ident, at, from place) error {
	attr, err := d.b.Stat(id)
	if err != nil {
		return err
	}
	c := Change{Kind: kind, Dir: attr.Mode&unix.S_IFMT == unix.S_IFDIR}
	if c.Path, err = d.pathsB.of(at); err != nil {
		return err
	}
	if kind == ChangeRenamed {
		if c.From, err = d.pathsA.of(from); err != nil {
			return err
		}
	}
	d.list = append(d.list, c)
	return nil
}

func (d *differ) remove(id journal.Ident, at place) error {
	attr, err := d.a.Stat(id)
	if err != nil {
		return err
	}
	path, err := d.pathsA.of(at)
	d.list = append(d.list, Change{Kind: ChangeRemoved, Path: path, Dir: attr.Mode&unix.S_IFMT == unix.S_IFDIR})
	return err
}

// inodes lists what was modified.
func (d *differ) inodes() error {
	d.unplaced = map[journal.Ident]bool{}
	return d.changes.Inodes(func(c journal.InodeChange) error {
		if c.What&journal.Created != 0 {
			return nil
		}
		modified, err := d.modified(c)
		if err != nil || !modified {
			return err
		}
		at, ok, err := d.where(c.Ident)
		if err != nil {
			return err
		}
		if !ok {
			d.unplaced[c.Ident] = true
			return nil
		}
		return d.add(ChangeModified, c.Ident, at, place{})
	})
}

// modified reports whether more of an inode differs than what a rename or a link changes.
func (d *differ) modified(c journal.InodeChange) (bool, error) {
	now, err := d.b.image(c.Ident, true)
	if isGone(err) {
		return false, nil
	}
	if err != nil || c.What&journal.Data != 0 {
		return err == nil, err
	}
	was, err := d.a.image(c.Ident, true)
	if err != nil {
		return false, err
	}
	ignore := func(a journal.Attr) journal.Attr {
		a.Nlink, a.Ctime, a.Atime = 0, journal.Time{}, journal.Time{}
		if a.Mode&unix.S_IFMT == unix.S_IFDIR {
			a.Mtime, a.Size = journal.Time{}, 0
		}
		return a
	}
	same := slices.EqualFunc(was.Xattrs, now.Xattrs, func(a, b journal.Xattr) bool {
		return a.Name == b.Name && string(a.Value) == string(b.Value)
	})
	return ignore(was.Attr) != ignore(now.Attr) || !same, nil
}

// where finds a name that an inode has in b: one that was found, or the one that the journal noted.
func (d *differ) where(id journal.Ident) (place, bool, error) {
	if id == d.v.root {
		return place{}, true, nil
	}
	if found := d.found[id]; len(found) > 0 {
		return found[0], true, nil
	}
	if at, ok, err := d.pathsB.parentOf(id); ok || err != nil {
		return at, ok, err
	}
	dir, name, ok, err := d.changes.Where(id)
	if err != nil || !ok {
		return place{}, false, err
	}
	now, err := d.b.Lookup(dir, name)
	return place{dir, name}, err == nil && now == id, err
}

// search looks through all of b for what nobody knows the place of: content that a transfer changed comes
// without a name.
func (d *differ) search() error {
	if len(d.unplaced) == 0 {
		return nil
	}
	return d.searchIn(d.v.root)
}

func (d *differ) searchIn(dir journal.Ident) error {
	entries, err := d.b.readable(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if d.unplaced[e.Ident] {
			delete(d.unplaced, e.Ident)
			if err := d.add(ChangeModified, e.Ident, place{dir, e.Name}, place{}); err != nil {
				return err
			}
		}
		attr, err := d.b.Stat(e.Ident)
		if err != nil {
			return err
		}
		if attr.Mode&unix.S_IFMT == unix.S_IFDIR && len(d.unplaced) > 0 {
			if err := d.searchIn(e.Ident); err != nil {
				return err
			}
		}
	}
	return nil
}

// paths finds the paths of directories in a view.
type paths struct {
	v     *Volume
	w     *View
	known map[journal.Ident]string
	moved map[journal.Ident]place // where inodes were whose names were touched since; nil: not looked for yet
}

func newPaths(v *Volume, w *View) *paths {
	return &paths{v: v, w: w, known: map[journal.Ident]string{v.root: ""}}
}

// of gives the path of a name. The zero place is the root itself.
func (p *paths) of(at place) (string, error) {
	if at.name == "" {
		return ".", nil
	}
	dir, err := p.dir(at.dir)
	return strings.TrimPrefix(dir+"/"+at.name, "/"), err
}

// dir gives a directory's path, without a slash in front; empty for the root.
func (p *paths) dir(id journal.Ident) (string, error) {
	if path, ok := p.known[id]; ok {
		return path, nil
	}
	at, ok, err := p.parentOf(id)
	if err == nil && !ok {
		err = fmt.Errorf("directory %s has no place at seal %d: %w", id, p.w.epoch, fs.ErrNotExist)
	}
	if err != nil {
		return "", err
	}
	path, err := p.of(at)
	if err == nil {
		p.known[id] = path
	}
	return path, err
}

// parentOf finds a directory's name in the view: the one that it has now, if it had that then, or one that
// was touched since.
func (p *paths) parentOf(id journal.Ident) (place, bool, error) {
	at, err := p.v.placeOf(id)
	if err == nil {
		was, err := p.w.Lookup(at.dir, at.name)
		if err == nil && was == id {
			return at, true, nil
		}
		if err != nil && !isGone(err) {
			return place{}, false, err
		}
	} else if err == unix.ENOTDIR {
		return place{}, false, nil
	}
	if p.moved == nil {
		if err := p.learnMoved(); err != nil {
			return place{}, false, err
		}
	}
	at, ok := p.moved[id]
	return at, ok, nil
}

// placeOf gives a directory's name as it is now, wherever that is.
func (v *Volume) placeOf(id journal.Ident) (place, error) {
	d, err := v.open.get(id, reachDir)
	if err != nil {
		return place{}, err
	}
	defer v.open.put(d)
	parent, err := v.backing.IdentAt(d.fd, "..")
	if err != nil {
		return place{}, err
	}
	name, kept, err := v.lastName(d, parent)
	if err == nil && kept {
		err = fs.ErrNotExist
	}
	return place{parent, name}, err
}

// lastName gives the name that an open directory has in its parent; the root has none, which gives ESTALE. One that is
// kept for views has one that is nobody else's concern.
func (v *Volume) lastName(d *openInode, parent journal.Ident) (name string, kept bool, err error) {
	where, err := sys.PathOf(d.fd)
	if errors.Is(err, unix.ENAMETOOLONG) { // what is kept has short paths
		name, err = v.nameIn(parent, d.id)
		return name, false, err
	}
	if err == nil && where == "/" {
		err = unix.ESTALE
	}
	return where[strings.LastIndexByte(where, '/')+1:], strings.HasPrefix(where, "/"+StateDir+"/"), err
}

// nameIn looks for the name of an inode in a directory; ESTALE where there is none.
func (v *Volume) nameIn(dir, id journal.Ident) (name string, err error) {
	d, err := v.open.get(dir, reachDir)
	if err != nil {
		return "", err
	}
	defer v.open.put(d)
	err = v.ReadDir(dir, 0, direntBuffer, func(e *sys.Dirent) bool {
		if e.Ino != id.Ino || e.IsDot() {
			return true
		}
		if now, err := v.backing.IdentAt(d.fd, string(e.Name)); err == nil && now == id {
			name = string(e.Name)
		}
		return name == ""
	})
	if err == nil && name == "" {
		err = unix.ESTALE
	}
	return name, err
}

// learnMoved goes through the names that were touched since the view.
func (p *paths) learnMoved() error {
	p.moved = map[journal.Ident]place{}
	now, err := p.v.journal.Seal(false)
	if err != nil {
		return err
	}
	changes, err := p.v.journal.Changes(p.w.epoch, now)
	if err != nil {
		return err
	}
	return changes.Names(func(c journal.NameChange) error {
		if !c.Was.IsZero() {
			p.moved[c.Was] = place{c.Dir, c.Name}
		}
		return nil
	})
}

// DiffFile lists the stretches of the file at path, in the newer snapshot, that differ; pages as in Diff.
func (v *Volume) DiffFile(from, to, path, cursor string, limit int) (regions []Region, next string, err error) {
	a, b, err := v.openPair(from, to)
	if err != nil {
		return nil, "", err
	}
	defer a.Close()
	defer b.Close()
	off := int64(0)
	if cursor != "" {
		if off, err = strconv.ParseInt(cursor, 10, 64); err != nil || off < 0 {
			return nil, "", fmt.Errorf("%q is no cursor of an earlier page: %w", cursor, fs.ErrInvalid)
		}
	}
	f, extents, err := v.changedExtents(a, b, path)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	for _, e := range extents {
		for at := max(e.Off, off); at < e.End; {
			if len(regions) == limit {
				return regions, strconv.FormatInt(at, 10), nil
			}
			r, err := f.region(at, e.End)
			if err != nil {
				return nil, "", err
			}
			regions = append(regions, r)
			at += r.Length
		}
	}
	return regions, "", nil
}

// region gives the stretch of data, or the hole, that begins at off.
func (f *ViewFile) region(off, end int64) (Region, error) {
	data, ok, err := f.NextData(off, end)
	switch {
	case err != nil:
		return Region{}, err
	case !ok:
		return Region{off, end - off, true}, nil
	case data.Off > off:
		return Region{off, data.Off - off, true}, nil
	}
	return Region{off, data.End - off, false}, nil
}

// changedExtents gives what differs of a file between two views, with its content in the newer one.
func (v *Volume) changedExtents(a, b *View, path string) (*ViewFile, journal.Extents, error) {
	id, err := b.resolve(path)
	if err != nil {
		return nil, nil, err
	}
	attr, err := b.Stat(id)
	if err != nil {
		return nil, nil, err
	}
	if attr.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, nil, fmt.Errorf("%s is no regular file: %w", path, fs.ErrInvalid)
	}
	extents, err := v.changedContent(a, b, id, attr.Size)
	if err != nil {
		return nil, nil, err
	}
	f, err := b.Open(id)
	return f, extents, err
}

// changedContent gives what differs of the content of an inode that has a size in the newer view. Where that is larger
// than it was, nobody need have written what was added.
func (v *Volume) changedContent(a, b *View, id journal.Ident, size int64) (journal.Extents, error) {
	if a.epoch == b.epoch {
		return nil, nil
	}
	changes, err := v.journal.Changes(a.epoch, b.epoch)
	if err != nil {
		return nil, err
	}
	c, _, err := changes.Inode(id)
	if err != nil {
		return nil, err
	}
	if c.What&journal.Created != 0 {
		return journal.Extents{{Off: 0, End: size}}, nil
	}
	was, err := a.Stat(id)
	if err != nil {
		return nil, err
	}
	extents := journal.Extents(c.Extents)
	if was.Size < size {
		extents = extents.Add(journal.Extent{Off: was.Size, End: size})
	}
	return extents.Intersect(journal.Extent{Off: 0, End: size}), nil
}

// resolve gives the inode at a path.
func (w *View) resolve(path string) (journal.Ident, error) {
	id := w.v.root
	for name := range strings.SplitSeq(path, "/") {
		if name == "" {
			continue
		}
		next, err := w.Lookup(id, name)
		if err == nil && next.IsZero() {
			err = fmt.Errorf("%s: %w", path, fs.ErrNotExist)
		}
		if err != nil {
			return id, err
		}
		id = next
	}
	return id, nil
}
