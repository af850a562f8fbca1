package mount

import (
	"sync"

	"golang.org/x/sys/unix"

	"tandemfs/journal"
)

// rootNode is the number by which FUSE knows the root directory (FUSE_ROOT_ID).
const rootNode = 1

// show says what a node shows of its inode.
type show uint8

const (
	showCurrent     show = iota // what readers of the volume see
	showSnapshots               // the directory of the snapshots of a directory, which is no inode
	showSnapshotTop             // a directory as it was at a snapshot, right below showSnapshots
	showSnapshot                // anything below that
)

// node is what a number of the kernel's stands for.
type node struct {
	id   journal.Ident // of showSnapshots: the directory that it is in
	of   *shown        // the snapshot, of showSnapshotTop and showSnapshot
	show show
}

func ordinary(id journal.Ident) node { return node{id: id} }

// table maps the numbers by which the kernel names inodes to what they stand for, for as long as the kernel
// refers to them. Numbers are used again, with another generation. An inode costs some 100 bytes and its name,
// so that a million that the kernel caches fit into memory.
//
// It remembers too under which name the kernel found an inode last. That is a hint, cheap rather than exact: a
// name that was removed may still be given, and whoever uses it looks whether it holds.
type table struct {
	mu    sync.RWMutex
	slots []slot // by node number; 0 is unused
	free  []uint32
	nodes map[journal.Ident]uint32 // the ordinary ones
	shown map[node]uint32          // all others
	turn  uint32                   // counts reuses, for generations
}

type slot struct {
	node
	kind    uint16 // S_IFMT part of the mode
	turn    uint32
	parent  uint32 // the number of the directory in which it was found as name; 0: not known
	lookups uint64
	name    string
}

func newTable(root journal.Ident, kind uint32) *table {
	return &table{
		slots: []slot{{}, {node: ordinary(root), lookups: 1, kind: uint16(kind)}},
		nodes: map[journal.Ident]uint32{root: rootNode},
		shown: map[node]uint32{},
	}
}

// get gives what a number stands for, and the type, while the kernel refers to it.
func (t *table) get(number uint64) (n node, kind uint32, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if number == 0 || number >= uint64(len(t.slots)) {
		return n, 0, false
	}
	s := &t.slots[number]
	return s.node, uint32(s.kind), s.lookups > 0
}

// refer counts a reference of the kernel's to a node that it found as a name, and gives its number and
// generation. An inode without a name has parent 0.
func (t *table) refer(n node, kind uint32, parent uint64, name string) (number, generation uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, ok := t.find(n)
	if !ok {
		i = t.allocate()
		t.slots[i] = slot{node: n, turn: t.turn, kind: uint16(kind)}
		t.add(n, i)
	}
	s := &t.slots[i]
	s.lookups++
	if n.show == showCurrent {
		s.found(parent, name)
	}
	return uint64(i), uint64(s.turn)
}

// found notes a name. Called with the table's mu held.
func (s *slot) found(parent uint64, name string) {
	s.parent, s.name = uint32(parent), name
}

// find gives the number of a node. Called with mu held.
func (t *table) find(n node) (uint32, bool) {
	if n.show == showCurrent {
		i, ok := t.nodes[n.id]
		return i, ok
	}
	i, ok := t.shown[n]
	return i, ok
}

// add notes the number of a node. Called with mu held.
func (t *table) add(n node, i uint32) {
	if n.show == showCurrent {
		t.nodes[n.id] = i
	} else {
		t.shown[n] = i
	}
}

// allocate gives an unused number. Called with mu held.
func (t *table) allocate() uint32 {
	if last := len(t.free) - 1; last >= 0 {
		n := t.free[last]
		t.free = t.free[:last]
		t.turn++
		return n
	}
	t.slots = append(t.slots, slot{})
	return uint32(len(t.slots) - 1)
}

// forget takes references back. It gives the node and true when none is left.
func (t *table) forget(number, lookups uint64) (node, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if number <= rootNode || number >= uint64(len(t.slots)) {
		return node{}, false
	}
	s := &t.slots[number]
	s.lookups -= min(lookups, s.lookups)
	if s.lookups > 0 || s.id.IsZero() {
		return node{}, false
	}
	n := s.node
	if n.show != showCurrent {
		delete(t.shown, n)
	} else if t.nodes[n.id] == uint32(number) { // else it has another one by now
		delete(t.nodes, n.id)
	}
	*s = slot{}
	t.free = append(t.free, uint32(number))
	return n, true
}

// number gives the number of an inode that the kernel refers to.
func (t *table) number(id journal.Ident) (uint64, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n, ok := t.nodes[id]
	return uint64(n), ok
}

// moved notes that an inode which the kernel refers to has another name.
func (t *table) moved(id, dir journal.Ident, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i, ok := t.nodes[id]; ok {
		t.slots[i].found(uint64(t.nodes[dir]), name)
	}
}

// removed has a directory that the kernel removed get another number if the kernel ever finds it again.
func (t *table) removed(dir journal.Ident) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.nodes, dir)
}

// where gives the name by which an inode was found last.
func (t *table) where(id journal.Ident) (dir journal.Ident, name string, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	i, ok := t.nodes[id]
	if !ok {
		return dir, "", false
	}
	s := &t.slots[i]
	p := &t.slots[s.parent]
	return p.id, s.name, p.lookups > 0 && p.show == showCurrent
}

// files gives the numbers of all regular files that may be written.
func (t *table) files() []uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var numbers []uint64
	for n, s := range t.slots {
		if s.lookups > 0 && s.show == showCurrent && s.kind == unix.S_IFREG {
			numbers = append(numbers, uint64(n))
		}
	}
	return numbers
}

// snapshotDirs gives the numbers of all directories of snapshots.
func (t *table) snapshotDirs() []uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var numbers []uint64
	for n, i := range t.shown {
		if n.show == showSnapshots {
			numbers = append(numbers, uint64(i))
		}
	}
	return numbers
}
