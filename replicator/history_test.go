package replicator

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tandemfs/journal"
)

// history changes a tree at random, the same way for the same seed.
type history struct {
	v   *tree
	rnd *rand.Rand
	n   int
}

func newHistory(v *tree, seed uint64) *history {
	return &history{v: v, rnd: rand.New(rand.NewPCG(seed, 1))}
}

type place struct {
	dir  journal.Ident
	name string
	id   journal.Ident
}

// places lists all names and all directories in a fixed order.
func (h *history) places() (names []place, dirs []journal.Ident) {
	h.v.mu.Lock()
	defer h.v.mu.Unlock()
	var walk func(id journal.Ident)
	walk = func(id journal.Ident) {
		dirs = append(dirs, id)
		d := h.v.nodes[id]
		for _, name := range slices.Sorted(maps.Keys(d.names)) {
			child := d.names[name]
			names = append(names, place{id, name, child})
			if isDir(h.v.nodes[child].attr) {
				walk(child)
			}
		}
	}
	walk(h.v.root)
	return names, dirs
}

func (h *history) attr(id journal.Ident) journal.Attr {
	h.v.mu.Lock()
	defer h.v.mu.Unlock()
	return h.v.nodes[id].attr
}

func (h *history) empty(id journal.Ident) bool {
	h.v.mu.Lock()
	defer h.v.mu.Unlock()
	return len(h.v.nodes[id].names) == 0
}

func (h *history) below(dir, id journal.Ident) bool {
	h.v.mu.Lock()
	defer h.v.mu.Unlock()
	return h.v.below(dir, id)
}

func (h *history) run(steps int) {
	for range steps {
		h.step()
	}
}

// step does one operation. Few names, so that they are used again and again.
func (h *history) step() {
	names, dirs := h.places()
	dir := dirs[h.rnd.IntN(len(dirs))]
	name := fmt.Sprintf("n%d", h.rnd.IntN(6))
	h.v.mu.Lock()
	_, taken := h.v.nodes[dir].names[name]
	h.v.mu.Unlock()
	h.n++
	if kind := h.rnd.IntN(20); kind < 8 || len(names) == 0 {
		if !taken {
			h.create(dir, name)
		}
		return
	} else if p := names[h.rnd.IntN(len(names))]; kind < 14 {
		h.moveOrRemove(kind, p, dir, name, taken)
	} else {
		h.modify(p)
	}
}

func (h *history) create(dir journal.Ident, name string) {
	switch h.rnd.IntN(6) {
	case 0, 1:
		h.v.mkdir(dir, name)
	case 2:
		h.v.symlink(dir, name, fmt.Sprintf("target %d", h.n))
	case 3:
		h.v.add(dir, name, 0o010600)
	default:
		h.v.file(dir, name, h.text(h.rnd.IntN(3*block)))
	}
}

func (h *history) text(n int) string {
	return strings.Repeat(fmt.Sprintf("%d,", h.n), n/2+1)[:n]
}

func (h *history) moveOrRemove(kind int, p place, dir journal.Ident, name string, taken bool) {
	isDirectory := isDir(h.attr(p.id))
	switch {
	case kind < 10: // remove
		if !isDirectory || h.empty(p.id) {
			h.v.remove(p.dir, p.name)
		}
	case kind == 10: // link
		if !isDirectory && !taken {
			h.v.hardlink(p.id, dir, name)
		}
	case kind == 11: // exchange
		if other := h.v.nodeAt(dir, name); taken && other != p.id && !h.below(dir, p.id) && !h.below(p.dir, other) {
			h.v.exchange(p.dir, p.name, dir, name)
		}
	default: // rename, over a file where there is one
		if isDirectory && (taken || h.below(dir, p.id)) {
			return
		}
		if other := h.v.nodeAt(dir, name); taken && isDir(h.attr(other)) {
			return
		}
		h.v.rename(p.dir, p.name, dir, name)
	}
}

// nodeAt gives what a name stands for.
func (v *tree) nodeAt(dir journal.Ident, name string) journal.Ident {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.nodes[dir].names[name]
}

func (h *history) modify(p place) {
	attr := h.attr(p.id)
	if !isRegular(attr) || h.rnd.IntN(4) == 0 {
		if !isSymlink(attr) {
			h.v.setAttr(p.id, func(a *journal.Attr, x map[string]string) {
				a.UID, a.Mtime = uint32(h.n), journal.Time{Sec: int64(h.n), Nsec: 5}
				x[fmt.Sprint("user.", h.rnd.IntN(3))] = fmt.Sprint(h.n)
			})
		}
		return
	}
	off := int64(h.rnd.IntN(6 * block))
	switch h.rnd.IntN(4) {
	case 0:
		h.v.truncate(p.id, off)
	case 1:
		h.v.punch(p.id, journal.Extent{Off: off, End: min(off+int64(h.rnd.IntN(2*block))+1, max(attr.Size, off+1))})
	default:
		if off > attr.Size { // else the tree has the block's beginning as data, which no record says
			off -= off % block
		}
		h.v.write(p.id, off, h.text(h.rnd.IntN(2*block)+1))
	}
}

func TestARandomHistoryEndsTheSameOnBothSides(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			p := newPair(t)
			p.from.live = seed%2 == 1
			h := newHistory(p.from, seed)
			h.run(100)
			p.create()
			for range 10 {
				p.same()
				h.run(60)
			}
			p.same()
		})
	}
}

// cutter dials connections that break after a number of bytes, sent or received.
type cutter struct {
	mu    sync.Mutex
	after func() int64 // for the next connection; negative: never
	last  *cutConn
	cuts  atomic.Int64
}

func (c *cutter) dial(ctx context.Context, address string) (net.Conn, error) {
	nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = &cutConn{Conn: nc, c: c}
	c.last.limit(c.after())
	return c.last, nil
}

type cutConn struct {
	net.Conn
	c       *cutter
	left    atomic.Int64
	limited atomic.Bool
}

// limit makes the connection break after so many more bytes; never when that is negative.
func (c *cutConn) limit(after int64) {
	c.left.Store(after)
	c.limited.Store(after >= 0)
}

func (c *cutConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.spend(n)
	return n, err
}

func (c *cutConn) Write(p []byte) (int, error) {
	if c.limited.Load() {
		if left := max(c.left.Load(), 0); int64(len(p)) > left {
			n, _ := c.Conn.Write(p[:left])
			c.spend(len(p))
			return n, net.ErrClosed
		}
	}
	n, err := c.Conn.Write(p)
	c.spend(n)
	return n, err
}

// spend cuts the connection when its bytes are used up.
func (c *cutConn) spend(n int) {
	if c.limited.Load() && c.left.Add(int64(-n)) <= 0 {
		c.c.cuts.Add(1)
		c.Conn.Close()
	}
}

// What was sent over a connection that broke anywhere is gone on with, while the source goes on changing.
func TestARandomHistorySurvivesCutConnections(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			p := newPair(t)
			rnd := rand.New(rand.NewPCG(seed, 2))
			cuts := rand.New(rand.NewPCG(seed, 5))
			c := &cutter{after: func() int64 { return 1500 + int64(cuts.IntN(8_000)) }}
			p.src.config.Dial = c.dial
			h := newHistory(p.from, seed)
			h.run(150)
			p.create()
			p.src.restart()
			for range 15 {
				h.run(40)
				time.Sleep(time.Duration(rnd.IntN(30)) * time.Millisecond)
			}
			c.mu.Lock()
			c.after = func() int64 { return -1 }
			c.mu.Unlock()
			p.same()
			if c.cuts.Load() == 0 {
				t.Error("no connection was cut")
			}
		})
	}
}

func TestARandomHistorySurvivesRestartsOfBothNodes(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			p := newPair(t)
			rnd := rand.New(rand.NewPCG(seed, 3))
			h := newHistory(p.from, seed)
			h.run(150)
			p.create()
			for i := range 12 {
				h.run(40)
				time.Sleep(time.Duration(rnd.IntN(20)) * time.Millisecond)
				[]*testNode{p.src, p.dst}[i%2].restart()
			}
			p.same()
		})
	}
}

// A view that is lost in the middle of a transfer means that the next one builds on half of it.
func TestATransferThatCannotGoOnIsDoneOver(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			p := newPair(t)
			rnd := rand.New(rand.NewPCG(seed, 4))
			h := newHistory(p.from, seed)
			h.run(100)
			if seed%3 != 0 {
				p.create().same()
			}
			var operations atomic.Int64
			limit := int64(1 + rnd.IntN(60))
			p.to.setBroken(func(string) error {
				if operations.Add(1) > limit {
					return errIO
				}
				return nil
			})
			h.run(60)
			if seed%3 == 0 {
				p.create()
			}
			eventually(t, "the transfer fails", func() bool { return p.src.status(p.id).Job == JobFailed })
			for range 3 {
				p.src.stop()
				p.from.loseSeals()
				h.run(40)
				operations.Store(0)
				p.src.start()
				eventually(t, "the transfer fails again, or ends", func() bool {
					j := p.src.status(p.id).Job
					return j == JobFailed || j == JobIdle
				})
			}
			p.to.setBroken(nil)
			p.same()
		})
	}
}
