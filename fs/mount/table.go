package mount

import (
	"sync"

	"golang.org/x/sys/unix"

	"tandemfs/journal"
)

// rootNode is the number by which FUSE knows the root directory (FUSE_ROOT_ID).
const rootNode = 1

// table maps the numbers by which the kernel names inodes to their identities, for as long as the kernel
// refers to them. Numbers are used again, with another generation. An inode costs some 80 bytes, so that a
// million that the kernel caches fit into memory.
type table struct {
	mu    sync.RWMutex
	slots []slot // by node number; 0 is unused
	free  []uint32
	nodes map[journal.Ident]uint32
	turn  uint32 // counts reuses, for generations
}

type slot struct {
	id      journal.Ident
	lookups uint64
	turn    uint32
	kind    uint16 // S_IFMT part of the mode
}

func newTable(root journal.Ident, kind uint32) *table {
	return &table{
		slots: []slot{{}, {id: root, lookups: 1, kind: uint16(kind)}},
		nodes: map[journal.Ident]uint32{root: rootNode},
	}
}

// get gives the identity and the type of a node that the kernel refers to.
func (t *table) get(node uint64) (id journal.Ident, kind uint32, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if node == 0 || node >= uint64(len(t.slots)) {
		return id, 0, false
	}
	s := &t.slots[node]
	return s.id, uint32(s.kind), s.lookups > 0
}

// refer counts a reference of the kernel's to an inode, and gives its number and generation.
func (t *table) refer(id journal.Ident, kind uint32) (node, generation uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, ok := t.nodes[id]
	if !ok {
		n = t.allocate()
		t.slots[n] = slot{id: id, turn: t.turn, kind: uint16(kind)}
		t.nodes[id] = n
	}
	t.slots[n].lookups++
	return uint64(n), uint64(t.slots[n].turn)
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

// forget takes references back. It gives the identity and true when none is left.
func (t *table) forget(node, lookups uint64) (journal.Ident, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if node <= rootNode || node >= uint64(len(t.slots)) {
		return journal.Ident{}, false
	}
	s := &t.slots[node]
	s.lookups -= min(lookups, s.lookups)
	if s.lookups > 0 || s.id.IsZero() {
		return journal.Ident{}, false
	}
	id := s.id
	delete(t.nodes, id)
	*s = slot{}
	t.free = append(t.free, uint32(node))
	return id, true
}

// node gives the number of an inode that the kernel refers to.
func (t *table) node(id journal.Ident) (uint64, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n, ok := t.nodes[id]
	return uint64(n), ok
}

// files gives the numbers of all regular files that the kernel refers to.
func (t *table) files() []uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var nodes []uint64
	for n, s := range t.slots {
		if s.lookups > 0 && s.kind == unix.S_IFREG {
			nodes = append(nodes, uint64(n))
		}
	}
	return nodes
}
