package mount

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/fs/volume"
)

// reading is one request that reads, and what it reads from: for an ordinary node what readers of the volume
// see at present, for a snapshot's its view, which the request keeps open. They are used again, since inode would
// otherwise be allocated for each.
type reading struct {
	node
	r      *rawFS
	number uint64
	tree   volume.Tree
	phase  uint32      // of the server's readers
	turn   *transition // the one under way when the request began, for an ordinary node
	// counted: the transition waits for the end of this request. passing: what is answered may be something
	// else soon, and so is not for the kernel to keep.
	counted, passing bool
	inode            volume.Inode
}

var readings = sync.Pool{New: func() any { return new(reading) }}

// ask is what a request is about to learn, as far as the kernel remembers it.
type ask uint8

const (
	askNothing ask = iota
	askAttrs
	askList
	askNames // names are looked up, of which each may or may not be changing: see lookup
)

// begin starts a request that reads a node. Unless the status says that it is refused, end ends it.
func (r *rawFS) begin(number uint64, what ask) (*reading, fuse.Status) {
	q, status := r.beginNode(number)
	if status.Ok() && q.show == showCurrent {
		if q.turn != nil {
			q.turn.begin(q, what)
		}
		q.tree = r.v.Current()
	}
	return q, status
}

// beginRead is begin for a READ.
func (r *rawFS) beginRead(in *fuse.ReadIn) (*reading, fuse.Status) {
	q, status := r.beginNode(in.NodeId)
	if status.Ok() && q.show == showCurrent {
		if q.turn != nil {
			q.turn.beginContent(q.id, itsContent, partOf(in))
		}
		q.tree = r.v.Current()
	}
	return q, status
}

// beginNode is begin without a tree for an ordinary node: that is to be taken after waiting for what may not be
// answered at the moment.
func (r *rawFS) beginNode(number uint64) (*reading, fuse.Status) {
	n, _, ok := r.t.get(number)
	if !ok {
		return nil, fuse.Status(unix.ESTALE)
	}
	var tree volume.Tree
	if n.of != nil {
		if tree, ok = n.of.view.Tree(); !ok {
			return nil, fuse.Status(unix.ESTALE)
		}
	}
	q := readings.Get().(*reading)
	q.r, q.node, q.number, q.tree = r, n, number, tree
	q.turn, q.counted, q.passing = nil, false, false
	if n.show == showCurrent {
		q.phase = r.s.readers.enter()
		q.turn = r.s.turn.Load()
	}
	return q, fuse.OK
}

// end ends the request.
func (q *reading) end() {
	if q.tree != nil {
		q.tree.Done()
	}
	if q.counted {
		q.turn.ended()
	}
	if q.show == showCurrent {
		q.r.s.readers.leave(q.phase)
	}
	q.tree, q.turn, q.node = nil, nil, node{}
	readings.Put(q)
}

// lookup finds a name in the node. An inode that is changing may have to wait; then what is to be found may be
// another one.
func (q *reading) lookup(name string) error {
	for {
		err := q.tree.Lookup(q.id, name, &q.inode)
		if err != nil || q.turn == nil || !q.turn.beginFound(q, q.inode.ID) {
			return err
		}
		q.tree.Done()
		q.tree = q.r.v.Current()
	}
}

// entry answers with the inode that a name in the node stands for, and counts the reference that the kernel
// takes by that.
func (q *reading) entry(name string, out *fuse.EntryOut) {
	n := node{id: q.inode.ID}
	if q.show != showCurrent {
		n.of, n.show = q.of, showSnapshot
	}
	q.refer(n, name, out)
	out.SetEntryTimeout(q.nameTimeout(name))
	out.SetAttrTimeout(q.attrTimeout())
}

// refer answers with the inode of a request as a node.
func (q *reading) refer(n node, name string, out *fuse.EntryOut) {
	st := &q.inode.Stat
	out.NodeId, out.Generation = q.r.t.refer(n, uint32(st.Mode)&unix.S_IFMT, q.number, name)
	n.disguise(st)
	fillAttr(st, &out.Attr)
}

// absent answers that there is no such name.
func (q *reading) absent(name string, out *fuse.EntryOut) fuse.Status {
	switch timeout := q.nameTimeout(name); {
	case name == volume.SnapshotDir && q.show == showCurrent:
		return q.snapshotDir(out)
	case timeout == 0:
		return fuse.ENOENT
	default:
		out.SetEntryTimeout(timeout) // node 0: absence
		return fuse.OK
	}
}

// stat reads the node's own attributes.
func (q *reading) stat() error {
	if q.show == showSnapshots {
		return q.statSnapshotDir()
	}
	err := q.tree.Stat(q.id, &q.inode)
	if err == nil {
		q.disguise(&q.inode.Stat)
	}
	return err
}

// attrTimeout is how long the kernel may keep the attributes that are answered.
func (q *reading) attrTimeout() time.Duration {
	if q.passing {
		return 0
	}
	return forever
}

// nameTimeout is how long the kernel may keep what a name in the node stands for.
func (q *reading) nameTimeout(name string) time.Duration {
	if q.turn != nil && q.turn.renames(q.id, name) {
		return 0
	}
	return forever
}

// list lists the node's names, as volume.Tree's ReadDir does.
func (q *reading) list(off int64, size int, yield func(*sys.Dirent) bool) error {
	if q.show == showSnapshots {
		return q.listSnapshots(off, yield)
	}
	if q.r.s.showSnapshots && q.number == rootNode {
		more, err := q.listSnapshotDir(&off, yield)
		if err != nil || !more {
			return err
		}
	}
	return q.tree.ReadDir(q.id, off, size, yield)
}

// readers counts the requests that read from what readers of the volume see, so that one can wait until all
// that began before a moment have ended. They are counted in two places in turn.
type readers struct {
	phase atomic.Uint32
	under [2]atomic.Int64
}

// enter begins a request, in the phase that leave ends it with.
func (c *readers) enter() uint32 {
	for {
		phase := c.phase.Load() & 1
		c.under[phase].Add(1)
		if c.phase.Load()&1 == phase {
			return phase
		}
		c.under[phase].Add(-1) // drain may not have counted it
	}
}

func (c *readers) leave(phase uint32) { c.under[phase].Add(-1) }

// drain waits until every request that began before has ended. It runs once at a time.
func (c *readers) drain() {
	phase := (c.phase.Add(1) - 1) & 1
	for pause := time.Microsecond; c.under[phase].Load() > 0; pause = min(2*pause, time.Millisecond) {
		time.Sleep(pause)
	}
}
