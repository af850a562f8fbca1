package replicator

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tandemfs/journal"
)

// spoiled makes reading the second block of a file's content fail.
func spoiled(bad journal.Ident) func(string, journal.Ident, journal.Extent) error {
	return func(what string, id journal.Ident, e journal.Extent) error {
		if id == bad && what == "data" && e.Off < 2*block && e.End > block {
			return errIO
		}
		return nil
	}
}

// leftOut waits until the source says that something cannot be read, and holds the recovery point.
func (p *pair) leftOut(point uint64, paths ...string) Status {
	p.t.Helper()
	var s Status
	eventually(p.t, fmt.Sprint("the source says that it cannot read ", paths), func() bool {
		s = p.src.status(p.id)
		return s.Job == JobFailed && s.Unreadable != nil && s.Unreadable.Count == len(paths) && p.dst.status(p.id).Job == JobFailed
	})
	for i, path := range paths {
		if got := s.Unreadable.Files[i]; got.Path != path || got.Error != "input/output error" || !strings.Contains(s.LastError, path) {
			p.t.Errorf("%q cannot be read, and the status says %+v, %q", path, got, s.LastError)
		}
	}
	there := p.dst.status(p.id)
	if s.RecoveryPoint.Epoch != point || there.RecoveryPoint.Epoch != point || s.RetryAt.IsZero() {
		p.t.Errorf("the recovery point was %d, and is %+v, on the target %+v", point, s, there)
	}
	if there.LastError != strings.Split(s.LastError, "\n")[0] {
		p.t.Errorf("the target says %q, the source %q", there.LastError, s.LastError)
	}
	return s
}

// shown is what readers of the target see.
func (v *tree) shown() map[string]string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return dump(v.seals[v.published], v.root)
}

// A file that cannot be read holds the recovery point, and nothing else.
func TestAFileThatCannotBeReadDoesNotStopTheRest(t *testing.T) {
	ends := map[string]func(v *tree, d, bad journal.Ident){
		"read after all": func(v *tree, _, _ journal.Ident) { v.setUnread(nil) },
		"removed":        func(v *tree, d, _ journal.Ident) { v.remove(d, "bad") },
		"written anew": func(v *tree, _, bad journal.Ident) {
			v.setUnread(nil) // what was overwritten can be read
			v.write(bad, block, strings.Repeat("n", block))
		},
		"replaced": func(v *tree, d, _ journal.Ident) {
			v.file(d, "new", "sound")
			v.rename(d, "new", d, "bad")
		},
	}
	for name, end := range ends {
		for _, first := range []bool{true, false} {
			t.Run(fmt.Sprint(name, ", first transfer ", first), func(t *testing.T) {
				p := newPair(t)
				d := p.from.mkdir(p.from.root, "d")
				point := uint64(0)
				if !first {
					point = p.create().settledAt()
				}
				bad := p.from.file(d, "bad", incompressible(5*block))
				p.from.setUnread(spoiled(bad))
				p.from.file(d, "large", incompressible(8<<20))
				if first {
					p.create()
				}
				before := p.to.shown()
				p.leftOut(point, "d/bad")
				eventually(t, "what can be read comes", func() bool { return !p.to.at("d/large").IsZero() })
				p.from.file(p.from.root, "later", "more")
				eventually(t, "what is written later comes too", func() bool { return !p.to.at("later").IsZero() })
				if d := differences(before, p.to.shown()); len(d) > 0 {
					t.Errorf("readers see it: %v", d)
				}
				p.leftOut(point, "d/bad")
				sent := p.src.status(p.id).TotalWireBytes
				end(p.from, d, bad)
				p.same()
				if s := p.src.status(p.id); s.Unreadable != nil || s.TotalWireBytes-sent > 1<<20 {
					t.Errorf("%d bytes were sent for the rest, %+v is unreadable", s.TotalWireBytes-sent, s.Unreadable)
				}
			})
		}
	}
}

// settledAt waits as settled does, and gives the recovery point.
func (p *pair) settledAt() uint64 {
	p.t.Helper()
	p.settled()
	return p.src.status(p.id).RecoveryPoint.Epoch
}

func TestAttributesThatCannotBeReadAreLeftOutToo(t *testing.T) {
	p := newPair(t).create()
	point := p.settledAt()
	d := p.from.mkdir(p.from.root, "d")
	old := p.from.mkdir(p.from.root, "e")
	f := p.from.file(d, "f", "content")
	p.from.setUnread(func(what string, id journal.Ident, _ journal.Extent) error {
		if what == "xattrs" {
			return syscall.EUCLEAN
		}
		return nil
	})
	for _, id := range []journal.Ident{d, f, old} {
		p.from.setAttr(id, func(_ *journal.Attr, x map[string]string) { x["user.a"] = "b" })
	}
	eventually(t, "they are all left out", func() bool { s := p.src.status(p.id); return s.Unreadable != nil && s.Unreadable.Count >= 3 })
	if now := p.dst.status(p.id).RecoveryPoint.Epoch; now != point {
		t.Errorf("the recovery point went from %d to %d", point, now)
	}
	p.from.setUnread(nil)
	p.same()
}

// Where the disk as a whole fails the transfer stops, and does not list the disk.
func TestADiskThatCannotBeReadStopsTheTransfer(t *testing.T) {
	p := newPair(t).create()
	p.settled()
	p.from.setUnread(func(what string, _ journal.Ident, _ journal.Extent) error {
		if what == "open" {
			return errIO
		}
		return nil
	})
	for i := range maxLacking + 50 {
		p.from.file(p.from.root, fmt.Sprint("f", i), "content")
	}
	eventually(t, "the source says so", func() bool {
		s := p.src.status(p.id)
		return s.Job == JobFailed && strings.Contains(s.LastError, "the disk needs care")
	})
	p.from.setUnread(nil)
	p.same()
}

// What is left out of a file does not grow with the number of places that cannot be read.
func TestAFileWithManyBadPlacesIsGivenUp(t *testing.T) {
	p := newPair(t).create()
	point := p.settledAt()
	var tries atomic.Int64
	f := p.from.file(p.from.root, "f", "")
	p.from.truncate(f, 1<<30)
	for i := range int64(100) {
		p.from.write(f, i<<20, "x")
	}
	p.from.setUnread(func(what string, id journal.Ident, _ journal.Extent) error {
		if what == "data" {
			tries.Add(1)
			return errIO
		}
		return nil
	})
	p.from.file(p.from.root, "g", "readable is nothing")
	eventually(t, "both are left out", func() bool { s := p.src.status(p.id); return s.Unreadable != nil && s.Unreadable.Count == 2 })
	p.src.stop()
	if n := tries.Load(); n > 200 {
		t.Errorf("%d reads were tried", n)
	}
	p.src.start()
	if now := p.src.status(p.id).RecoveryPoint.Epoch; now > point+1 {
		t.Errorf("the recovery point went from %d to %d", point, now)
	}
	p.from.setUnread(nil)
	p.same()
}

// Whatever ends in between, what was left out is never forgotten.
func TestWhatWasLeftOutOutlivesBothNodes(t *testing.T) {
	p := newPair(t).create()
	point := p.settledAt()
	bad := p.from.file(p.from.root, "bad", incompressible(5*block))
	p.from.setUnread(spoiled(bad))
	p.from.file(p.from.root, "large", incompressible(8<<20))
	p.leftOut(point, "bad")
	for _, n := range []*testNode{p.src, p.dst, p.src} {
		n.restart()
		p.leftOut(point, "bad")
	}
	p.dst.stop()
	p.to.powerCut(t)
	p.dst.start()
	p.leftOut(point, "bad")
	p.from.setUnread(nil)
	p.same()
}

// What cannot be read is left out of a transfer that compares, and sent by the next one that can read it.
func TestAComparisonLeavesOutWhatCannotBeRead(t *testing.T) {
	for _, what := range []string{"data", "open", "xattrs"} {
		t.Run(what, func(t *testing.T) {
			p := newPair(t).create()
			d := p.from.mkdir(p.from.root, "d")
			bad := p.from.file(d, "bad", incompressible(5*block))
			p.from.file(p.from.root, "large", incompressible(4<<20))
			p.same()
			point := p.dst.status(p.id).RecoveryPoint.Epoch
			before := p.to.shown()
			p.src.stop()
			p.from.write(bad, 0, "what nobody knows of")
			p.from.write(bad, 4*block, "at two places")
			p.from.powerCut(t)
			p.from.file(d, "later", "content")
			p.from.setUnread(func(how string, id journal.Ident, e journal.Extent) error {
				if id == bad && how == what && (how != "data" || e.Off < 2*block) {
					return errIO
				}
				return nil
			})
			p.src.start()
			eventually(t, "the source says what it cannot read, and all else comes", func() bool {
				s := p.src.status(p.id)
				return s.Job == JobFailed && s.Unreadable != nil && s.Unreadable.Count == 1 && s.Unreadable.Files[0].Path == "d/bad" && !p.to.at("d/later").IsZero()
			})
			if now := p.dst.status(p.id).RecoveryPoint.Epoch; now != point {
				t.Errorf("the recovery point went from %d to %d", point, now)
			}
			if d := differences(before, p.to.shown()); len(d) > 0 {
				t.Errorf("readers see it: %v", d)
			}
			sent := p.src.status(p.id).TotalWireBytes
			p.from.setUnread(nil)
			p.same()
			if s := p.src.status(p.id); s.Unreadable != nil || s.TotalWireBytes-sent > 1<<20 {
				t.Errorf("%d bytes were sent for the rest, %+v is unreadable", s.TotalWireBytes-sent, s.Unreadable)
			}
			if !p.from.j.Clean() {
				t.Error("the journal is not trusted again")
			}
		})
	}
}

// Random histories among reads that fail, connections that break and restarts: readers of the target see states
// of the source only, and in the end the two are the same.
func TestARandomHistorySurvivesReadsThatFail(t *testing.T) {
	seeds := uint64(24)
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			p := newPair(t)
			rnd, cuts, faults := rand.New(rand.NewPCG(seed, 6)), rand.New(rand.NewPCG(seed, 7)), rand.New(rand.NewPCG(seed, 8))
			c := &cutter{after: func() int64 { return 2000 + int64(cuts.IntN(20_000)) }}
			if seed%3 != 0 {
				c.after = never
			}
			p.src.config.Dial = c.dial
			h := newHistory(p.from, seed)
			h.run(100)
			p.create()
			p.src.restart()
			rate := map[string]int{"data": 12, "open": 12, "xattrs": 12} // one in so many
			if seed >= seeds/2 {
				rate = map[string]int{"data": 30, "xattrs": 30, "link": 30, "names": 30, "inode": 200, "stat": 400}
			}
			var mu sync.Mutex
			fails := func(what string, _ journal.Ident, _ journal.Extent) error {
				mu.Lock()
				defer mu.Unlock()
				if n := rate[what]; n > 0 && faults.IntN(n) == 0 {
					return errIO
				}
				return nil
			}
			var unreadable int
			for i := range 15 {
				p.from.setUnread(fails)
				h.run(40)
				time.Sleep(time.Duration(rnd.IntN(30)) * time.Millisecond)
				if seed%2 == 1 && i%4 == 3 {
					[]*testNode{p.src, p.dst}[i/4%2].restart()
				}
				if seed%4 == 2 && i%5 == 1 { // so that transfers compare
					p.src.stop()
					p.from.powerCut(t)
					p.src.start()
				}
				if p.src.status(p.id).Unreadable != nil {
					unreadable++
				}
				p.isAState(t)
				if i%5 == 4 {
					p.from.setUnread(nil)
				}
			}
			c.setCut(never)
			p.from.setUnread(nil)
			p.same()
			t.Logf("unreadable at %d of 15 moments", unreadable)
		})
	}
}

// isAState fails where readers of the target see what the source never was.
func (p *pair) isAState(t *testing.T) {
	t.Helper()
	shown := p.to.shown()
	if p.dst.status(p.id).RecoveryPoint.Epoch == 0 {
		return
	}
	p.from.mu.Lock()
	defer p.from.mu.Unlock()
	var least []string
	for _, nodes := range p.from.seals {
		d := differences(dump(nodes, p.from.root), shown)
		if len(d) == 0 {
			return
		}
		if least == nil || len(d) < len(least) {
			least = d
		}
	}
	slices.Sort(least)
	t.Fatalf("readers see no state of the source, at the least with %d differences:\n%s", len(least), strings.Join(least, "\n"))
}
