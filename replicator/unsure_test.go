package replicator

import (
	"bytes"
	"errors"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"tandemfs/journal"
	"tandemfs/journal/failpoint"
	"tandemfs/replicator/wire"
)

// A disk that could not be synced may have dropped anything of what was written to it, and says so once: the transfer
// is not gone on with, but done over.
func TestWhatCouldNotBeMadeDurableIsSentAgain(t *testing.T) {
	p := newPair(t)
	old := p.from.file(p.from.root, "old", "one")
	p.create().same()
	var failed atomic.Bool
	p.to.setBroken(func(op string) error {
		if op != "commit" || !failed.CompareAndSwap(false, true) {
			return nil
		}
		p.to.mu.Lock()
		defer p.to.mu.Unlock()
		for _, n := range p.to.nodes { // the pages that did not get to the disk
			for at := range n.content {
				n.content[at] = make([]byte, block)
			}
		}
		return errIO
	})
	p.from.write(old, 0, "two")
	p.from.file(p.from.root, "new", "three")
	eventually(t, "the commit fails", failed.Load)
	p.same()
}

// While a volume cannot be sealed the status says for how long its target has been behind.
func TestTheTargetIsBehindThoughTheVolumeCannotBeSealed(t *testing.T) {
	p := newPair(t).create()
	p.same()
	var tries atomic.Int64
	p.from.setBroken(func(op string) error {
		if op == "seal" {
			tries.Add(1)
			return errIO
		}
		return nil
	})
	p.from.file(p.from.root, "f", "x")
	eventually(t, "it is tried", func() bool { return tries.Load() > 3 })
	if s := p.src.status(p.id); *s.RecoveryPoint.BehindSeconds == 0 {
		t.Errorf("nothing is behind: %+v", s)
	}
	p.from.setBroken(nil)
	p.same()
}

// What the source's end cannot remember it does not do: after a restart it would not know of it.
func TestASealThatCannotBeRememberedIsNotSent(t *testing.T) {
	p := newPair(t).create()
	p.same()
	var fails atomic.Int64
	disarm := failpoint.Arm(func(call string, size int) (int, error) {
		stack := make([]byte, 16<<10)
		stack = stack[:runtime.Stack(stack, false)]
		if call == "store update" && bytes.Contains(stack, []byte("(*origin).change")) {
			fails.Add(1)
			return 0, syscall.ENOSPC
		}
		return size, nil
	})
	p.from.file(p.from.root, "f", "x")
	eventually(t, "it is tried more than once", func() bool { return fails.Load() >= 2 })
	p.src.stop()
	disarm()
	p.src.start()
	eventually(t, "it goes on", func() bool { s := p.src.status(p.id); return s.Job == JobIdle || s.Job == JobFailed })
	if s := p.src.status(p.id); s.Job == JobFailed {
		t.Fatal(s.LastError)
	}
	p.same()
}

// An error however long is told to the source.
func TestALongErrorIsTold(t *testing.T) {
	p := newPair(t).create()
	p.same()
	p.to.setBroken(func(op string) error {
		if op == "commit" {
			return errors.Join(errIO, errors.New(strings.Repeat("and another name; ", 5000)))
		}
		return nil
	})
	p.from.file(p.from.root, "f", "x")
	eventually(t, "the source says it", func() bool {
		s := p.src.status(p.id)
		return s.Job == JobFailed && strings.Contains(s.LastError, errIO.Error())
	})
	for _, n := range []*testNode{p.src, p.dst} {
		if text := n.status(p.id).LastError; len(text) > 8<<10 {
			t.Errorf("node %s keeps an error of %d bytes", n.name, len(text))
		}
	}
	p.to.setBroken(nil)
	p.same()
}

// What a target asks for ahead takes no more memory than it should.
func TestATargetCannotAskForWithoutEnd(t *testing.T) {
	a := newAsked()
	w := wire.Want{Files: []wire.WantFile{{Ino: 1, Extents: make([][2]int64, wire.MaxWantExtents)}}}
	extents := 0
	for a.add(w) == nil {
		if extents += wire.MaxWantExtents; extents > 4*mostAsked {
			t.Fatalf("%d extents are waiting", extents)
		}
	}
}

// What a transfer builds on is not there, whichever call of the target finds out: that is no error of its disk, and it
// gets it back.
func TestATargetThatLostAnInodeHeals(t *testing.T) {
	for what, change := range map[string]func(*pair, journal.Ident){
		"content": func(p *pair, f journal.Ident) { p.from.write(f, 0, "two") },
		"attributes": func(p *pair, f journal.Ident) {
			p.from.setAttr(f, func(a *journal.Attr, _ map[string]string) { a.UID = 7 })
		},
		"a link":       func(p *pair, f journal.Ident) { p.from.hardlink(f, p.from.root, "link") },
		"a name in it": func(p *pair, _ journal.Ident) { p.from.file(p.from.at("d"), "new", "x") },
	} {
		t.Run(what, func(t *testing.T) {
			p := newPair(t)
			p.from.mkdir(p.from.root, "d")
			f := p.from.file(p.from.root, "f", "one")
			p.create().same()
			p.to.mu.Lock()
			for _, name := range []string{"d", "f"} { // past the volume
				id := p.to.nodes[p.to.root].names[name]
				delete(p.to.nodes[p.to.root].names, name)
				delete(p.to.nodes, id)
			}
			p.to.mu.Unlock()
			change(p, f)
			eventually(t, "the target says so", func() bool {
				return strings.Contains(p.dst.status(p.id).LastError, errDivergence.Error())
			})
			p.same()
		})
	}
}
