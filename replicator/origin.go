package replicator

import (
	"context"
	"errors"
	"fmt"
	"maps"
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

	// forgetting is held while the journal is told what to forget, and from a seal on until it is known that a
	// relationship needs it. It is taken before mu.
	forgetting sync.Mutex

	mu      sync.Mutex
	members map[string]*relationship
}

// sourceEnd is what only the source's end of a relationship has. It is guarded by the relationship's mu,
// but nudge.
type sourceEnd struct {
	nudge chan struct{} // gets a value when something has changed
	// remembering is held, and taken before the relationship's mu, while memory is changed and written down.
	remembering sync.Mutex
	stop        func() // ends the job and waits for it; nil when none runs
	recalled    bool   // memory is what the volume's journal has; until the volume is open nobody knows
	memory      sourceMemory
	view        View // of memory.Pending; nil when it is not open
	// dirtySince is when the first change came that no running transfer has, sealedSince the first that the
	// running one has. Zero: none.
	dirtySince, sealedSince time.Time
	// verify is the verification that was asked for last; nil: none. repairing says that what one found is marked,
	// and not sent yet.
	verify    *verification
	repairing bool
	// missed is the content that has changed while there was no connection, as of the last try, in bytes.
	missed int64
	// diverged says that the target did not have what the last transfer built on.
	diverged bool
}

// behind is for holders of the relationship's mu; left is what the running transfer has to go. It gives nil while that
// is not known.
func (e *sourceEnd) behind(now time.Time, left int64) *behind {
	if !e.recalled {
		return nil
	}
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
	if vol.Journal().Clean() {
		return o, o.forget()
	}
	return o, errors.Join(vol.Journal().Reconciled(), o.forget()) // each relationship has noted what it has to compare
}

// add makes a relationship a member.
func (o *origin) add(r *relationship) error {
	j := o.vol.Journal()
	var memory sourceMemory
	if err := recall(j, sourceKey(r.id), &memory); err != nil {
		return err
	}
	if err := r.distrust(j, &memory); err != nil {
		return err
	}
	var view View
	if memory.Pending != nil {
		var err error
		if view, err = o.vol.View(memory.Pending.Epoch); err != nil {
			memory.Compare = memory.Pending.Compare.and(memory.Compare)
			memory.Pending = nil // it is no longer kept; the next transfer makes a seal of its own
		}
	}
	r.source.remembering.Lock()
	defer r.source.remembering.Unlock()
	r.mu.Lock()
	r.source.memory, r.source.view, r.source.recalled = memory, view, true
	c := memory.comparing()
	r.source.repairing = c != nil && c.Reason == reasonRepair
	r.point = RecoveryPoint{Epoch: uint64(memory.Epoch), Time: memory.Time}
	if memory.Epoch != 0 && !o.unchangedSince(memory.Epoch) {
		r.source.dirtySince = memory.Time // at the latest
	}
	r.mu.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.members[r.id] = r
	return nil
}

// unchangedSince reports whether nothing has changed since a seal, however many seals others have made.
func (o *origin) unchangedSince(n journal.Epoch) bool {
	j := o.vol.Journal()
	if j.Dirty() { // asked first: what is changed after it is told of
		return false
	}
	last := j.Epoch() - 1
	if last <= n {
		return true
	}
	changes, err := j.Changes(n, last)
	if err != nil {
		return false
	}
	empty, err := changes.Empty()
	return err == nil && empty
}

// distrust makes the next transfer one that compares where power was lost (rule A2): changes may be missing in the
// journal, so that nothing can be built on what the target has.
func (r *relationship) distrust(j *journal.Journal, memory *sourceMemory) error {
	if j.Clean() || r.snapshot().State != StateEstablished {
		return nil
	}
	doubt, before := j.Active(), memory.Compared.and(memory.Compare)
	if memory.Pending != nil {
		before = memory.Pending.Compare.and(before)
	}
	lost := &comparison{Reason: reasonPower, All: doubt.All, Since: doubt.Since, Unsure: true, Lost: doubt.Since, Base: memory.Epoch,
		Suspects: slices.Collect(maps.Keys(doubt.Inodes))}
	if before != nil && lost.Base == 0 {
		lost.Base = before.Base
	}
	if lost.All || lost.Base == 0 || len(lost.Suspects) > mostSuspects {
		lost = &comparison{Reason: reasonPower, All: true, Unsure: true, Lost: doubt.Since}
	}
	*memory = sourceMemory{Given: memory.Given, Compare: before.and(lost)}
	return remember(j, sourceKey(r.id), memory)
}

// Why a transfer compares.
const (
	reasonPower    = "the volume's journal may lack changes: power was lost, or it was rebuilt"
	reasonTarget   = "the target's recovery point is not the one that this end knows of"
	reasonDiverged = "the target did not have what a transfer built on"
	reasonHolds    = "the target's volume had files before"
	reasonAsked    = "somebody asked for it"
	reasonRepair   = "a verification found differences"
	reasonUnread   = "what some names of the source stand for cannot be read"
	reasonAround   = "names were changed around the mount while nobody watched"
)

// settleNames makes the next transfer of every member one that compares, where names are in doubt. One that has had
// no transfer yet gets all names with its first.
func (o *origin) settleNames() error {
	n, since := o.vol.NamesInDoubt()
	if n == 0 {
		return nil
	}
	o.mu.Lock()
	members := slices.Collect(maps.Values(o.members))
	o.mu.Unlock()
	for _, r := range members {
		if len(r.needs()) == 0 {
			continue
		}
		if err := o.compare(r, comparison{Reason: reasonAround, Since: since}, false); err != nil {
			return err
		}
	}
	return o.vol.NamesSettled(n)
}

// compare makes the next transfer one that compares, durably. With forget the target's recovery point is not known.
func (o *origin) compare(r *relationship, c comparison, forget bool) error {
	err := o.change(r, func(m *sourceMemory) error {
		if c.Base = m.Epoch; c.All || c.Base == 0 || forget {
			c = comparison{Reason: c.Reason, Asked: c.Asked, All: true}
		}
		m.Compare = m.Compare.and(&c)
		if forget {
			m.Epoch, m.Time = 0, time.Time{}
		}
		return nil
	}, func(*sourceEnd) {
		if forget {
			r.point = RecoveryPoint{}
		}
	})
	return errors.Join(err, o.vol.Journal().Sync())
}

// change changes what the source's end remembers, in one piece: the journal first, so that nothing is done that a
// process which comes after this one would not know of. how changes a copy, then (which may be nil) what goes with it;
// both are for holders of the relationship's mu. Where how gives an error nothing is changed.
func (o *origin) change(r *relationship, how func(*sourceMemory) error, then func(*sourceEnd)) error {
	r.source.remembering.Lock()
	defer r.source.remembering.Unlock()
	r.mu.Lock()
	next := r.source.memory
	err := how(&next)
	r.mu.Unlock()
	if err != nil {
		return err
	}
	if err := remember(o.vol.Journal(), sourceKey(r.id), next); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.source.memory = next
	if then != nil {
		then(&r.source)
	}
	return nil
}

// remove ends a membership; the view of a pending transfer is closed.
func (o *origin) remove(r *relationship) error {
	o.mu.Lock()
	delete(o.members, r.id)
	o.mu.Unlock()
	view, err := o.forgetMemory(r)
	r.stopVerify(VerifyStopped, nil)
	if view != nil {
		err = errors.Join(err, view.Close())
	}
	return errors.Join(err, o.forget())
}

// forgetMemory ends what the source's end remembers, and gives the view of the pending transfer.
func (o *origin) forgetMemory(r *relationship) (View, error) {
	r.source.remembering.Lock()
	defer r.source.remembering.Unlock()
	r.mu.Lock()
	view := r.source.view
	r.source.view, r.source.memory = nil, sourceMemory{}
	r.mu.Unlock()
	return view, o.vol.Journal().SetState(sourceKey(r.id), nil)
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

// forget lets the journal drop what every member has confirmed (rule A4), and tells it which seals to keep apart. A
// member that is to have its first transfer needs nothing from before its seal.
func (o *origin) forget() error {
	o.forgetting.Lock()
	defer o.forgetting.Unlock()
	var needed []journal.Epoch
	o.mu.Lock()
	for _, r := range o.members {
		needed = append(needed, r.needs()...)
	}
	o.mu.Unlock()
	if len(needed) == 0 {
		return o.vol.Journal().Forget(o.vol.Journal().Epoch() - 1)
	}
	return o.vol.Journal().Forget(slices.Min(needed), needed...)
}

// needs gives the seals that transfers of the relationship may build on: it needs no records of epochs up to the
// first of them.
func (r *relationship) needs() []journal.Epoch {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.source.memory
	if r.rec.State != StateEstablished {
		return nil
	}
	base := m.Epoch
	if c := m.comparing(); c != nil && base == 0 {
		base = c.Base
	}
	var bases []journal.Epoch
	if base != 0 {
		bases = append(bases, base)
	}
	for _, reached := range []journal.Epoch{m.Reached, m.comparing().reached()} {
		if reached != 0 {
			bases = append(bases, reached)
		}
	}
	if len(bases) == 0 && m.Pending != nil {
		bases = append(bases, m.Pending.Epoch)
	}
	return bases
}

// pend makes a new seal for a transfer from base, and remembers it.
func (o *origin) pend(r *relationship, base journal.Epoch) error {
	if err := o.sealFor(r, base); err != nil {
		return err
	}
	crashpoint.Here("replicator/source-pending")
	return o.forget()
}

func (o *origin) sealFor(r *relationship, base journal.Epoch) error {
	o.forgetting.Lock()
	defer o.forgetting.Unlock()
	now := time.Now()
	if err := o.settleNames(); err != nil {
		return err
	}
	r.mu.Lock()
	missed := r.source.missed
	r.source.sealedSince, r.source.dirtySince, r.source.missed = r.source.dirtySince, time.Time{}, 0
	r.mu.Unlock()
	err := o.sealAndRemember(r, base, now)
	if err != nil {
		r.mu.Lock()
		r.source.unseal()
		r.source.missed = missed
		r.mu.Unlock()
	}
	return err
}

// unseal is for when the pending transfer is not made: what it was to carry is what has changed. It is for holders of
// the relationship's mu.
func (e *sourceEnd) unseal() {
	e.dirtySince, e.sealedSince = earliest(e.dirtySince, e.sealedSince), time.Time{}
}

func (o *origin) sealAndRemember(r *relationship, base journal.Epoch, now time.Time) error {
	view, err := o.vol.Seal()
	if err != nil {
		return fmt.Errorf("seal of the volume: %w", err)
	}
	crashpoint.Here("replicator/source-sealed")
	err = o.change(r, func(m *sourceMemory) error {
		if r.removed || r.rec.State == StateEnded { // by the target's word, meanwhile: remove has let go of everything
			return errEnded
		}
		p := &pendingTransfer{Base: base, Epoch: view.Epoch(), Time: now, Compare: m.Compare}
		if p.Compare != nil {
			p.Base, p.Compare = 0, m.Compared.and(p.Compare)
		}
		m.Pending, m.Compare, m.Given = p, nil, max(m.Given, p.Epoch)
		return nil
	}, func(e *sourceEnd) { e.view = view })
	if err != nil {
		err = errors.Join(err, view.Close())
	}
	return err
}

// drop gives the pending transfer up.
func (o *origin) drop(r *relationship) error {
	return o.settle(r, false, func(m *sourceMemory) { m.Compare = m.Pending.Compare.and(m.Compare) }, (*sourceEnd).unseal)
}

// confirm notes that the target holds the pending transfer's seal.
func (o *origin) confirm(r *relationship) error {
	compared := false
	return o.settle(r, true, func(m *sourceMemory) {
		compared = m.Pending.Compare != nil || m.Reached != 0 // that one compared, if anything had to
		m.Reached, m.Lacking, m.Compared = 0, nil, nil
		if c := m.Compare; c != nil && c.Base == m.Epoch && !c.All { // what has changed up to now went with this one
			moved := *c
			moved.Base, moved.Reached = m.Pending.Epoch, 0
			m.Compare = &moved
		}
		m.Epoch, m.Time = m.Pending.Epoch, m.Pending.Time
	}, func(e *sourceEnd) {
		e.repairing = e.repairing && (!compared || e.memory.Compare != nil)
		r.point = RecoveryPoint{Epoch: uint64(e.memory.Epoch), Time: e.memory.Time}
		e.diverged = false
		e.missed = 0 // what it counts of later changes goes with the next transfer, at once
	})
}

// errSettled says that there is no pending transfer.
var errSettled = errors.New("no transfer is pending")

// settle ends the pending transfer, if there is one.
func (o *origin) settle(r *relationship, confirmed bool, how func(*sourceMemory), then func(*sourceEnd)) error {
	var view View
	// The journal hears of the new base before it may let go of the seal.
	err := o.change(r, func(m *sourceMemory) error {
		if m.Pending == nil {
			return errSettled
		}
		how(m)
		m.Pending = nil
		return nil
	}, func(e *sourceEnd) {
		then(e)
		e.sealedSince = time.Time{}
		view, e.view = e.view, nil
		if confirmed && e.wantsView() {
			e.verify.view, view = view, nil
		}
	})
	if errors.Is(err, errSettled) {
		return nil
	}
	if err != nil {
		return err
	}
	crashpoint.Here("replicator/source-remembered")
	err = o.forget()
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
