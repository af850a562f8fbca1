package journal

import (
	"maps"
	"slices"
)

// An inodeEntry is what an epoch knows of an inode. With what zero it says that nothing is recorded.
type inodeEntry struct {
	what    What
	unsaved bool   // the store does not have it in this form
	removed bool   // created and removed in this epoch (B2): the store must lose it
	round   uint64 // in which it was made, or put on the activity list, last; 0: not known
	extents extentSet
}

// covers reports whether a touch of these parts adds nothing.
func (e *inodeEntry) covers(what What, x Extent) bool {
	if e.what&Created != 0 || e.removed {
		return true
	}
	if e.what&fate != 0 {
		what &^= fate
	}
	return e.what&what == what && (what&Data == 0 || e.extents.covers(x))
}

type nameKey struct {
	dir  Ident
	name string
}

type nameEntry struct {
	was     Ident
	next    string // the name of the same directory that was touched before; empty: none
	unsaved bool
}

// An epochIndex holds one epoch's records in memory. The journal's mutex guards it while its epoch is
// the current one in the active generation; after that it does not change, except that images may go.
type epochIndex struct {
	inodes map[Ident]*inodeEntry
	names  map[nameKey]nameEntry
	last   map[Ident]string // the name touched last in a directory: the head of its list
	images map[Ident][]byte // encoded before images; guarded by the journal's mutex at all times
	where  map[Ident]nameKey
	bytes  int // estimated
}

// What the entries take, measured on maps of a million entries: see TestMemoryEstimate.
const (
	inodeBytes  = 160
	nameBytes   = 130
	dirBytes    = 110 // for the first name in a directory
	whereBytes  = 100
	extentBytes = 20
)

func newEpochIndex() *epochIndex {
	return &epochIndex{inodes: map[Ident]*inodeEntry{}, names: map[nameKey]nameEntry{},
		last: map[Ident]string{}, images: map[Ident][]byte{}, where: map[Ident]nameKey{}}
}

func (x *epochIndex) addName(key nameKey, was Ident, unsaved bool) {
	x.names[key] = nameEntry{was: was, next: x.last[key.dir], unsaved: unsaved}
	x.last[key.dir] = key.name
}

// eachName calls f with every name of dir that the index has.
func (x *epochIndex) eachName(dir Ident, f func(name string, was Ident)) {
	for name := x.last[dir]; name != ""; {
		e := x.names[nameKey{dir, name}]
		f(name, e.was)
		name = e.next
	}
}

// A generation is the index of what one intent log holds, and what was read back from the store to
// answer "touched already?". An entry is whole: it needs no merging with an older one of its epoch.
type generation struct {
	log     *intentLog
	epochs  map[Epoch]*epochIndex
	touched map[Ident][]Epoch // in which epochs there is an entry of an inode, ascending; some may be dropped
	named   map[Ident][]Epoch // likewise, of a name in a directory
	bytes   int               // estimated, of all epochs
	entries int
}

func newGeneration(log *intentLog) *generation {
	return &generation{log: log, epochs: map[Epoch]*epochIndex{}, touched: map[Ident][]Epoch{}, named: map[Ident][]Epoch{}}
}

// addEpoch adds an epoch to an ascending list.
func addEpoch(list []Epoch, n Epoch) []Epoch {
	if last := len(list) - 1; last < 0 || list[last] < n {
		return append(list, n)
	}
	at, there := slices.BinarySearch(list, n)
	if there {
		return list
	}
	return slices.Insert(list, at, n)
}

// epoch gives the index of an epoch, made when absent.
func (g *generation) epoch(n Epoch) *epochIndex {
	x := g.epochs[n]
	if x == nil {
		x = newEpochIndex()
		g.epochs[n] = x
	}
	return x
}

// inode gives the entry of an inode in an epoch, nil when the generation knows nothing of it. A nil
// generation knows nothing.
func (g *generation) inode(n Epoch, id Ident) *inodeEntry {
	if g == nil || g.epochs[n] == nil {
		return nil
	}
	return g.epochs[n].inodes[id]
}

func (g *generation) name(n Epoch, key nameKey) (nameEntry, bool) {
	if g == nil || g.epochs[n] == nil {
		return nameEntry{}, false
	}
	e, ok := g.epochs[n].names[key]
	return e, ok
}

// grow accounts for bytes of memory in an epoch.
func (g *generation) grow(x *epochIndex, bytes, entries int) {
	x.bytes += bytes
	g.bytes += bytes
	g.entries += entries
}

func (g *generation) putInode(n Epoch, id Ident, e *inodeEntry) {
	x := g.epoch(n)
	x.inodes[id] = e
	g.touched[id] = addEpoch(g.touched[id], n)
	g.grow(x, inodeBytes+e.extents.count*extentBytes, 1)
}

func (g *generation) putName(n Epoch, key nameKey, was Ident, unsaved bool) {
	x := g.epoch(n)
	x.addName(key, was, unsaved)
	bytes := nameBytes + len(key.name)
	if g.named[key.dir] == nil {
		bytes += dirBytes
	}
	g.named[key.dir] = addEpoch(g.named[key.dir], n)
	g.grow(x, bytes, 1)
}

func (g *generation) putImage(n Epoch, id Ident, image []byte) {
	x := g.epoch(n)
	x.images[id] = image
	g.grow(x, inodeBytes+len(image), 1)
}

func (g *generation) putWhere(n Epoch, id Ident, at nameKey) {
	x := g.epoch(n)
	x.where[id] = at
	g.grow(x, whereBytes+len(at.name), 1)
}

// drop forgets the epochs up to and including upto.
func (g *generation) drop(upto Epoch) {
	for n, x := range g.epochs {
		if n <= upto {
			g.grow(x, -x.bytes, 0)
			delete(g.epochs, n)
		}
	}
	if len(g.epochs) == 0 {
		clear(g.touched)
		clear(g.named)
	}
}

// dropImages forgets the images of the epochs up to and including upto.
func (g *generation) dropImages(upto Epoch) {
	for n, x := range g.epochs {
		if n > upto || len(x.images) == 0 {
			continue
		}
		for _, image := range x.images {
			g.grow(x, -inodeBytes-len(image), 0)
		}
		x.images = map[Ident][]byte{}
	}
}

// indexes gives the generation's epochs as they are now.
func (g *generation) indexes() map[Epoch]*epochIndex { return maps.Clone(g.epochs) }
