package replicator

import (
	"fmt"
	"testing"
	"time"

	"tandemfs/journal"
)

// However many epochs have passed without the peer, what was written again and again in them is sent once.
func TestWhatChangedInManyEpochsIsSentOnce(t *testing.T) {
	const epochs, size = 300, 1 << 20
	p := newPair(t)
	f := p.from.file(p.from.root, "f", incompressible(size))
	p.from.file(p.from.root, "other", incompressible(8<<20))
	p.create().settled()
	before := p.src.status(p.id).TotalWireBytes
	p.dst.stop()
	content := []byte(incompressible(size))
	for i := range epochs {
		content[0] = byte(i)
		p.from.write(f, 0, string(content))
		p.from.rename(p.from.root, fmt.Sprint("name", i), p.from.root, fmt.Sprint("name", i+1))
		if _, err := p.from.j.Seal(false); err != nil { // as every try to reach the peer does
			t.Fatal(err)
		}
	}
	p.dst.start()
	p.same()
	s := p.src.status(p.id)
	if s.Progress.Bytes.Transferred != size {
		t.Errorf("%d bytes were sent for %d", s.Progress.Bytes.Transferred, size)
	}
	if got := s.TotalWireBytes - before; got > size*11/10 {
		t.Errorf("%d bytes went over the wire for %d that changed in %d epochs", got, size, epochs)
	}
}

// A journal keeps no more than its files need while a relationship is disabled or waits, whichever seals are made
// meanwhile: by snapshots, say.
func TestAJournalStaysSmallWhileNothingIsReplicated(t *testing.T) {
	states := map[string]func(p *pair){
		"disabled": func(p *pair) {
			p.create().settled()
			if _, err := p.src.SetEnabled(background, p.id, false); err != nil {
				p.t.Fatal(err)
			}
		},
		"disabled before the start": func(p *pair) {
			p.create().settled()
			if _, err := p.src.SetEnabled(background, p.id, false); err != nil {
				p.t.Fatal(err)
			}
			p.src.restart()
		},
		"without its peer": func(p *pair) {
			p.create().settled()
			p.dst.stop()
		},
		"without its peer since the start": func(p *pair) {
			p.create().settled()
			p.dst.stop()
			p.src.restart()
		},
		"awaiting authorization": func(p *pair) { p.propose() },
		"awaiting authorization since the start": func(p *pair) {
			p.propose()
			p.dst.stop()
			p.src.restart()
		},
	}
	for name, reach := range states {
		t.Run(name, func(t *testing.T) {
			p := newPairOf(t, newTreeWith(t, "data", journal.Options{MaxMemory: 256 << 10}))
			f := p.from.file(p.from.root, "f", "content")
			reach(p)
			no(p.src.Tend("data")) // the node does that every minute
			for i := range 3000 {
				p.from.setAttr(f, func(*journal.Attr, map[string]string) {})
				p.from.write(f, int64(i%100)*block, "x")
				if _, err := p.from.j.Seal(false); err != nil {
					t.Fatal(err)
				}
			}
			no(p.src.Tend("data"))
			for deadline := time.Now().Add(2 * time.Minute); p.from.j.Stats().Epochs >= 1000; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("epochs are kept apart: %+v", p.from.j.Stats())
				}
			}
			t.Logf("%+v", p.from.j.Stats())
		})
	}
}
