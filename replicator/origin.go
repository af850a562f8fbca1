package replicator

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"tandemfs/journal"
	"tandemfs/journal/crashpoint"
)

// origin is a source volume with what the relationships that start from it share: the journal tells of
// changes once, and forgets only what none of them needs. Its methods may be called concurrently.
type origin struct {
	vol  Volume
	stop context.CancelFunc // ends watch

	mu      sync.Mutex
	members map[string]*relationship
}

// sourceEnd is what only the source's end of a relationship has. It is guarded by the relationship's mu,
// but nudge.
type sourceEnd struct {
	nudge  chan struct{} // gets a value when something has changed
	stop   func()        // ends the job and waits for it; nil when none runs
	memory sourceMemory
	view   View // of memory.Pending; nil when it is not open
	// dirtySince is when the first change came that no running transfer has, sealedSince the first that the
	// running one has. Zero: none.
	dirtySince, sealedSince time.Time
	// missed is the content that has changed while there was no connection, as of the last try, in bytes.
	missed int64
}

// behind is for holders of the relationship's mu; left is what the running transfer has to go.
func (e *sourceEnd) behind(now time.Time, left int64, point RecoveryPoint) *behind {
	b := &behind{bytes: max(left, e.missed)}
	since := e.sealedSince
	if since.IsZero() {
		since = e.dirtySince
	}
	if !since.IsZero() {
		b.seconds = max(0, now.Sub(since).Seconds())
	}
	return b
}

// newOrigin takes over a volume: the views that its relationships' pending transfers need are opened
// again, and whatever else an earlier process held is let go.
func newOrigin(vol Volume, members []*relationship) (*origin, error) {
	o := &origin{vol: vol, members: map[string]*relationship{}}
	for _, r := range members {
		if err := o.add(r); err != nil {
			return nil, err
		}
	}
	vol.ReleaseUnclaimed() // each view that was opened has a hold of its own now
	return o, nil
}

// add makes a relationship a member.
func (o *origin) add(r *relationship) error {
	j := o.vol.Journal()
	var memory sourceMemory
	if err := recall(j, sourceKey(r.id), &memory); err != nil {
		return err
	}
	if !j.Clean() {
		if memory.Epoch != 0 {
			if err := r.update(func(rec *record) { rec.Suspect = true }); err != nil {
				return err
			}
		}
		memory.Pending = nil
	}
	var view View
	if memory.Pending != nil {
		var err error
		if view, err = o.vol.View(memory.Pending.Epoch); err != nil {
			memory.Pending = nil // it is no longer kept; the next transfer makes a seal of its own
		}
	}
	r.mu.Lock()
	r.source.memory, r.source.view = memory, view
	r.point = RecoveryPoint{Epoch: uint64(memory.Epoch), Time: memory.Time}
	if memory.Epoch != 0 && (j.Dirty() || j.Epoch() > memory.Epoch+1) {
		r.source.dirtySince = memory.Time // at the latest
	}
	r.mu.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.members[r.id] = r
	return nil
}

// remove ends a membership; the view of a pending transfer is closed.
func (o *origin) remove(r *relationship) error {
	o.mu.Lock()
	delete(o.members, r.id)
	o.mu.Unlock()
	r.mu.Lock()
	view := r.source.view
	r.source.view, r.source.memory = nil, sourceMemory{}
	r.mu.Unlock()
	var err error
	if view != nil {
		err = view.Close()
	}
	return errors.Join(err, o.vol.Journal().SetState(sourceKey(r.id), nil), o.forget())
}

// watch passes the journal's word that something has changed to all members, until ctx ends.
func (o *origin) watch(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-o.vol.Journal().Changed():
		}
		now := time.Now()
		o.mu.Lock()
		for _, r := range o.members {
			r.dirty(now)
		}
		o.mu.Unlock()
	}
}

// dirty notes a change and wakes the job.
func (r *relationship) dirty(now time.Time) {
	r.mu.Lock()
	if r.source.dirtySince.IsZero() {
		r.source.dirtySince = now
	}
	r.mu.Unlock()
	select {
	case r.source.nudge <- struct{}{}:
	default:
	}
}

// forget lets the journal drop what every member has confirmed (rule A4). A member that is to have its
// first transfer needs nothing from before its seal.
func (o *origin) forget() error {
	var needed []journal.Epoch
	o.mu.Lock()
	for _, r := range o.members {
		if n := r.needs(); n != math.MaxUint64 {
			needed = append(needed, n)
		}
	}
	o.mu.Unlock()
	if len(needed) == 0 {
		return nil
	}
	return o.vol.Journal().Forget(slices.Min(needed), needed...)
}

// needs gives the epoch whose records, and all earlier ones, the relationship does not need.
func (r *relationship) needs() journal.Epoch {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.source.memory
	switch {
	case r.rec.State != StateEstablished:
		return math.MaxUint64
	case m.Epoch != 0:
		return m.Epoch
	case m.Pending != nil:
		return m.Pending.Epoch
	}
	return math.MaxUint64
}

// pend makes a new seal for a transfer from base, and remembers it.
func (o *origin) pend(r *relationship, base journal.Epoch) error {
	now := time.Now()
	r.mu.Lock()
	r.source.sealedSince, r.source.dirtySince, r.source.missed = r.source.dirtySince, time.Time{}, 0
	r.mu.Unlock()
	view, err := o.vol.Seal()
	if err != nil {
		return fmt.Errorf("seal of the volume: %w", err)
	}
	crashpoint.Here("replicator/source-sealed")
	r.mu.Lock()
	if r.removed || r.rec.State == StateEnded { // by the target's word, meanwhile: remove has let go of everything
		r.mu.Unlock()
		return errors.Join(errEnded, view.Close())
	}
	r.source.view = view
	r.source.memory.Pending = &pendingTransfer{Base: base, Epoch: view.Epoch(), Time: now}
	memory := r.source.memory
	r.mu.Unlock()
	if err := remember(o.vol.Journal(), sourceKey(r.id), memory); err != nil {
		return err
	}
	crashpoint.Here("replicator/source-pending")
	if base != 0 {
		return nil
	}
	return o.forget()
}

// drop gives the pending transfer up.
func (o *origin) drop(r *relationship) error {
	return o.settle(r, func(e *sourceEnd) { e.dirtySince = earliest(e.dirtySince, e.sealedSince) })
}

// confirm notes that the target holds the pending transfer's seal. A first one built on nothing that a power cut
// could have taken; those relationships for which it did remember that themselves.
func (o *origin) confirm(r *relationship) error {
	first := false
	err := o.settle(r, func(e *sourceEnd) {
		first = e.memory.Pending.Base == 0
		e.memory.Epoch, e.memory.Time = e.memory.Pending.Epoch, e.memory.Pending.Time
		e.missed = 0 // what it counts of later changes goes with the next transfer, at once
	})
	if err == nil && first {
		err = o.vol.Journal().Reconciled()
	}
	return err
}

// settle ends the pending transfer, if there is one.
func (o *origin) settle(r *relationship, how func(*sourceEnd)) error {
	r.mu.Lock()
	e := &r.source
	if e.memory.Pending == nil {
		r.mu.Unlock()
		return nil
	}
	how(e)
	e.memory.Pending, e.sealedSince = nil, time.Time{}
	memory, view := e.memory, e.view
	e.view = nil
	r.mu.Unlock()
	// The journal hears of the new base before it may let go of the seal.
	err := remember(o.vol.Journal(), sourceKey(r.id), memory)
	crashpoint.Here("replicator/source-remembered")
	err = errors.Join(err, o.forget())
	crashpoint.Here("replicator/source-forgot")
	if view != nil {
		err = errors.Join(err, view.Close())
	}
	return err
}

// earliest gives the earlier of two times; zero means none.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
