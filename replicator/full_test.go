package replicator

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A full target pauses the transfer: both ends say so, next to nothing is sent meanwhile, and it goes on where it was.
func TestAFullTargetPausesTheTransfer(t *testing.T) {
	const size = 24 << 20
	p := newPair(t).create()
	point := p.settledAt()
	var writes, rooms atomic.Int64
	var isFull atomic.Bool
	p.to.setBroken(func(op string) error {
		if op == "room" {
			rooms.Add(1)
		}
		if op == "write" && writes.Add(1) > 40 {
			isFull.Store(true)
		}
		if isFull.Load() && (op == "write" || op == "room") {
			return &os.PathError{Op: op, Path: "copy", Err: syscall.ENOSPC}
		}
		return nil
	})
	before := p.to.shown()
	p.from.file(p.from.root, "large", incompressible(size))
	eventually(t, "both ends say so", func() bool {
		return p.src.status(p.id).Job == JobNoSpace && p.dst.status(p.id).Job == JobNoSpace && rooms.Load() > 0
	})
	sent := p.src.status(p.id).TotalWireBytes
	tries := rooms.Load()
	eventually(t, "it is tried again and again", func() bool { return rooms.Load() > tries+2 })
	s, there := p.src.status(p.id), p.dst.status(p.id)
	if got := s.TotalWireBytes - sent; got > 64<<10 {
		t.Errorf("%d bytes were sent while there was no room", got)
	}
	for _, text := range []string{s.LastError, there.LastError} {
		if !strings.Contains(text, "no space left") || !strings.Contains(text, "make room") || !strings.Contains(text, "by itself") {
			t.Errorf("the error is %q", text)
		}
	}
	if s.RecoveryPoint.Epoch != point || there.RecoveryPoint.Epoch != point || s.RetryAt.IsZero() {
		t.Errorf("source %+v\ntarget %+v", s, there)
	}
	if d := differences(before, p.to.shown()); len(d) > 0 {
		t.Errorf("readers see half of it: %v", d)
	}
	p.to.setBroken(nil)
	start := time.Now()
	p.same()
	if took := time.Since(start); took > 2*longestFull {
		t.Errorf("it took %v to go on", took)
	}
	if s := p.src.status(p.id); s.TotalWireBytes > size+20<<20 { // what was on its way when it stopped is lost
		t.Errorf("%d bytes were sent for %d", s.TotalWireBytes, size)
	}
}

// The folder of the relationships has no room: what would be changed is refused, what runs goes on.
func TestAFullStateFolderRefusesChangesInWords(t *testing.T) {
	p := newPair(t).create()
	p.settled()
	r, err := p.src.find(p.id)
	no(err)
	r.mu.Lock()
	dir := r.store.dir
	r.store.dir = "/dev/full" // nothing can be made there
	r.mu.Unlock()
	if _, err := p.src.SetEnabled(background, p.id, false); err == nil || !strings.Contains(err.Error(), "/dev/full") {
		t.Errorf("disabled: %v", err)
	}
	if s := p.src.status(p.id); !s.Enabled {
		t.Errorf("it says that it is disabled, and forgets that: %+v", s)
	}
	for i := range 3 {
		p.from.file(p.from.root, fmt.Sprint("f", i), "content")
	}
	p.same()
	r.mu.Lock()
	r.store.dir = dir
	r.mu.Unlock()
	if _, err := p.src.SetEnabled(background, p.id, false); err != nil {
		t.Error(err)
	}
}
