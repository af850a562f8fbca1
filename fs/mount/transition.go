package mount

import (
	"errors"
	"sync"

	"tandemfs/fs/volume"
	"tandemfs/journal"
)

// maxDifferences bounds the memory of a turn, at some 150 bytes each. From then on everything counts as differing:
// the kernel keeps nothing that it learns during the turn.
const maxDifferences = 1 << 17

// what says in what an inode differs.
type what uint8

const (
	itsAttrs what = 1 << iota
	itsContent
	itsNames // those in the directory
	itsAll   = itsAttrs | itsContent | itsNames
)

type entry struct {
	dir  journal.Ident
	name string
}

// transition is a turn under way. What differs does not change after it was collected.
type transition struct {
	all    bool // there are too many differences to list
	inodes map[journal.Ident]what
	names  map[entry]struct{}

	mu    sync.Mutex
	wake  sync.Cond // stage or a mark's closed changed
	stage stage
	late  bool // patience was exceeded and everything opened again
	marks map[journal.Ident]*mark
	under int // requests under way that were counted: they answer with attributes
}

type stage uint8

const (
	stageOpen stage = iota
	stageListings
	stageAttrs
	stageOver
)

// mark is what the kernel may have learned of an inode since it was last told of it.
type mark struct {
	what   what
	closed bool // requests for the content wait
	sifted sifted
}

// collect learns what differs.
func collect(d volume.Differences) (*transition, error) {
	t := &transition{
		inodes: map[journal.Ident]what{}, names: map[entry]struct{}{}, marks: map[journal.Ident]*mark{},
	}
	t.wake.L = &t.mu
	err := d.Inodes(func(id journal.Ident, content bool) error {
		t.inodes[id] |= differs(content)
		return t.bound()
	})
	if err == nil {
		err = d.Names(func(dir journal.Ident, name string) error {
			t.inodes[dir] |= itsNames | itsAttrs
			t.names[entry{dir, name}] = struct{}{}
			return t.bound()
		})
	}
	if err == errTooMany {
		t.all, t.inodes, t.names, err = true, nil, nil, nil
	}
	return t, err
}

func differs(content bool) what {
	if content {
		return itsAttrs | itsContent
	}
	return itsAttrs
}

var errTooMany = errors.New("too many differences")

func (t *transition) bound() error {
	if len(t.inodes)+len(t.names) > maxDifferences {
		return errTooMany
	}
	return nil
}

// nothing reports whether nothing differs.
func (t *transition) nothing() bool { return !t.all && len(t.inodes) == 0 }

// changes reports whether an inode is among those that differ.
func (t *transition) changes(id journal.Ident) bool { return t.all || t.inodes[id] != 0 }

// differsIn reports whether an inode differs in something.
func (t *transition) differsIn(id journal.Ident, w what) bool { return t.all || t.inodes[id]&w != 0 }

// renames reports whether a name is among those that differ.
func (t *transition) renames(dir journal.Ident, name string) bool {
	if t.all {
		return true
	}
	_, ok := t.names[entry{dir, name}]
	return ok
}

// begin notes a request for something that the kernel keeps, or lets it wait.
func (t *transition) begin(q *reading, a ask) {
	switch a {
	case askAttrs:
		for t.beginFound(q, q.id) {
		}
	case askList:
		t.beginContent(q.id, itsNames, part{})
	}
}

// beginFound notes a request that answers with attributes. It gives true after it had to wait, and then the
// request has to look again.
func (t *transition) beginFound(q *reading, id journal.Ident) (again bool) {
	q.passing = t.changes(id)
	if !q.passing {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.stage == stageAttrs {
		t.wake.Wait()
		again = true
	}
	if again || t.stage == stageOver {
		return again
	}
	t.mark(id, itsAttrs)
	if !q.counted {
		q.counted = true
		t.under++
	}
	return false
}

// ended ends a request that was counted.
func (t *transition) ended() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.under--
	t.wake.Broadcast()
}

// beginContent notes a READ of a part of a file, or a request that lists a directory.
func (t *transition) beginContent(id journal.Ident, w what, p part) {
	if !t.differsIn(id, w) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.closed(id, w) {
		m := t.marks[id]
		if m != nil && m.sifted.lets(p) {
			m.sifted.stale = m.sifted.stale.Add(p.Extent)
			return
		}
		m.await(&t.wake, p)
	}
	if t.stage != stageOver {
		t.mark(id, w)
	}
}

// closed reports whether requests have to wait. Called with mu held.
func (t *transition) closed(id journal.Ident, w what) bool {
	if t.stage == stageOver {
		return false
	}
	m := t.marks[id]
	return m != nil && m.closed || w == itsNames && t.stage >= stageListings
}

// mark marks an inode. Called with mu held.
func (t *transition) mark(id journal.Ident, w what) *mark {
	m := t.marks[id]
	if m == nil {
		m = &mark{}
		t.marks[id] = m
	}
	m.what |= w
	return m
}

// take gives the inodes that are marked for something, and takes those marks away. Called with mu held.
func (t *transition) take(w what) map[journal.Ident]what {
	list := map[journal.Ident]what{}
	for id, m := range t.marks {
		if m.what&w != 0 {
			list[id] = m.what & w
			m.what &^= w
		}
	}
	return list
}

// marked is take, for what the kernel is told while requests are answered.
func (t *transition) marked(w what) map[journal.Ident]what {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.take(w)
}

// again marks an inode of which the kernel could not be told yet.
func (t *transition) again(id journal.Ident) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mark(id, itsAttrs)
}

// next gives what is marked for w. When nothing is, it calls done. ok is false when it is too late.
func (t *transition) next(w what, done func()) (list map[journal.Ident]what, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.late {
		return nil, false
	}
	if list = t.take(w); len(list) == 0 {
		done()
		t.wake.Broadcast()
	}
	return list, true
}

// close lets requests for an inode wait, if none began since it was taken from the marks.
func (t *transition) close(id journal.Ident, w what) {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.marks[id]
	m.closed = m.what&w == 0 && !t.late
}

// closeAttrs lets requests that answer with attributes wait, and waits for those under way.
func (t *transition) closeAttrs() (marked map[journal.Ident]what, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.late {
		t.stage = stageAttrs
	}
	for t.under > 0 && !t.late {
		t.wake.Wait()
	}
	return t.take(itsAttrs), !t.late
}

// reopen lets everything that waits be answered, from the old tree unless the turn is over.
func (t *transition) reopen() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.late = true
	if t.stage != stageOver {
		t.stage = stageOpen
	}
	for _, m := range t.marks {
		m.closed, m.sifted.stale = false, nil
	}
	t.wake.Broadcast()
}

// end ends the turn, also one that failed.
func (t *transition) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stage, t.marks = stageOver, nil
	t.wake.Broadcast()
}

// retry begins another attempt.
func (t *transition) retry() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.late = false
}

func (t *transition) isLate() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.late
}
