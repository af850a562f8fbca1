package replicator

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tandemfs/replicator/wire"
)

// Whoever comes second to end a target, because the first takes long or the source says so too, undoes nothing of
// what is written once the volume is free.
func TestATargetIsEndedOnce(t *testing.T) {
	p := newPair(t).create()
	p.same()
	first, second, entered := make(chan struct{}), make(chan struct{}), make(chan struct{}, 2)
	var thaws atomic.Int64
	p.to.setBroken(func(op string) error {
		if op != "thaw" {
			return nil
		}
		nth := thaws.Add(1)
		entered <- struct{}{}
		if nth == 1 {
			<-first
		} else {
			<-second
		}
		return nil
	})
	ended := make(chan error, 2)
	end := func() { ended <- p.dst.Delete(background, p.id) }
	go end()
	<-entered
	go end()
	select {
	case <-entered:
	case <-time.After(100 * time.Millisecond):
	}
	close(first)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if p.to.isReadOnly() {
		t.Fatal("the volume is not free")
	}
	p.to.file(p.to.root, "mine", "x")
	close(second)
	if err := <-ended; err != nil && !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if _, there := p.to.dump()["/mine"]; !there {
		t.Error("what was written after the end is undone")
	}
}

// A relationship that is ended just while somebody authorizes it leaves the volume free.
func TestATargetIsFreeThoughItWasAuthorizedJustBeforeItsEnd(t *testing.T) {
	p := newPair(t)
	p.propose()
	r, err := p.dst.find(p.id)
	no(err)
	p.to.mu.Lock() // keeps Authorize in the middle
	authorized, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(authorized)
		_, _ = p.dst.Authorize(background, p.id, AuthorizeRequest{})
	}()
	time.Sleep(50 * time.Millisecond)
	go func() { ended <- p.dst.endTarget(r, "for a test", true) }()
	time.Sleep(50 * time.Millisecond)
	p.to.mu.Unlock()
	<-authorized
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if p.to.isReadOnly() || p.to.seen() != 0 {
		t.Error("the volume stays read-only, and nobody is there to free it")
	}
}

// dials counts the connections that are being made just now.
type dials struct{ now, most atomic.Int64 }

func (d *dials) dial(ctx context.Context, _ string) (net.Conn, error) {
	d.most.Store(max(d.most.Load(), d.now.Add(1)))
	defer d.now.Add(-1)
	<-ctx.Done()
	return nil, ctx.Err()
}

// Whoever enables, disables and reconciles at the same time, there is one job, and none after the end.
func TestARelationshipHasOneJob(t *testing.T) {
	p := newPair(t).create()
	p.same()
	p.src.stop()
	var d dials
	p.src.config.Dial = d.dial
	p.src.start()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 20 {
				_, _ = p.src.SetEnabled(background, p.id, true)
				_, _ = p.src.Reconcile(background, p.id)
			}
		})
	}
	all.Wait()
	time.Sleep(50 * time.Millisecond)
	if n := d.most.Load(); n > 1 {
		t.Errorf("%d jobs dial at the same time", n)
	}
	no(p.src.Delete(background, p.id))
	time.Sleep(300 * time.Millisecond)
	if n := d.now.Load(); n > 0 {
		t.Errorf("%d jobs run on after the end", n)
	}
}

// Whoever proposes has one connection that waits, however often he comes.
func TestAProposalKeepsOneConnection(t *testing.T) {
	p := newPair(t)
	stranger := newTestNode(t, "gamma", newTree(t, "data"))
	propose := wire.Propose{ID: "0123456789abcdef", VolumeID: "v", Volume: "v", Path: "/", TargetVolume: "copy"}
	var open atomic.Int64
	for range 20 {
		c, err := stranger.dial(background, p.dst.address, "")
		no(err)
		t.Cleanup(func() { c.Close() })
		d, err := ask(background, c, wire.TypePropose, propose)
		no(err)
		if d.Verdict != wire.VerdictAwaiting {
			t.Fatalf("%+v", d)
		}
		open.Add(1)
		go func() {
			_, _, _ = c.Receive(nil)
			open.Add(-1)
		}()
	}
	eventually(t, "the others are closed", func() bool { return open.Load() <= 1 })
	time.Sleep(50 * time.Millisecond)
	if open.Load() != 1 {
		t.Error("the last one is closed too")
	}
}

// A volume that takes long to be opened keeps nobody waiting who wants to know how things are.
func TestTheStatusDoesNotWaitForAVolume(t *testing.T) {
	p := newPair(t).create()
	p.same()
	p.dst.stop()
	p.src.volumes.mu.Lock()
	defer p.src.volumes.mu.Unlock()
	time.Sleep(time.Second) // the job tries again
	told := make(chan Status)
	go func() { told <- p.src.List()[0] }()
	select {
	case <-told:
	case <-time.After(5 * time.Second):
		t.Error("the status waits")
	}
}
