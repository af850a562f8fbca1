package replicator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tandemfs/journal"
	"tandemfs/journal/crashpoint"
	"tandemfs/replicator/wire"
)

// transfer runs one cycle: seal, plan, send, and wait until the target has committed.
func (s *sourceSession) transfer(ctx context.Context) error {
	base := baseOf(s.pos)
	s.r.mu.Lock()
	pending := s.r.source.memory.Pending != nil
	s.r.mu.Unlock()
	if !pending {
		if err := s.origin.pend(s.r, base); err != nil {
			return failure{err}
		}
	}
	view, p, err := s.r.pending()
	if err == nil && p.Compare != nil {
		err = s.canCompare()
	}
	if err != nil {
		return err
	}
	s.r.setJob(JobRunning)
	committed, err := s.stream(ctx, view, p)
	if errors.Is(err, errView) || errors.Is(err, errCursor) || errors.Is(err, journal.ErrGone) || errors.Is(err, journal.ErrNotHeld) {
		err = errors.Join(err, s.origin.drop(s.r)) // the next one has a seal of its own
	}
	if errors.Is(err, errNames) && s.keeps() {
		err = errors.Join(err, s.origin.compareNames(s.r))
	}
	if err != nil {
		return err
	}
	return s.confirm(p, committed)
}

// pending gives the transfer that is to be made; the target may have ended the relationship by now.
func (r *relationship) pending() (View, pendingTransfer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.source.memory.Pending == nil {
		return nil, pendingTransfer{}, errEnded
	}
	return r.source.view, *r.source.memory.Pending, nil
}

// stream sends one transfer and waits for the commit.
func (s *sourceSession) stream(ctx context.Context, view View, p pendingTransfer) (wire.Committed, error) {
	var none wire.Committed
	from := s.from(p)
	pl := &plan{view: view, root: s.origin.vol.Root(), over: from.Over, lacking: s.lacking(p)}
	if p.Base != 0 {
		var err error
		if pl.changes, err = s.origin.vol.Journal().Changes(p.Base, p.Epoch); err != nil {
			return none, failure{err}
		}
	}
	if err := s.begin(from, p, s.expected(pl, from)); err != nil {
		return none, err
	}
	if pl.changes == nil {
		counted := s.count(ctx, view)
		defer counted()
	}
	send := sender{ctx: ctx, view: view, out: s.packer, from: from, gaps: s.gaps(p)}
	end, err := s.records(ctx, pl, &send, p.Compare)
	if err != nil {
		return none, err
	}
	if len(send.gaps.list) > 0 {
		return none, s.incomplete(ctx, p, end, send.gaps.list)
	}
	if err := s.conn.Send(wire.TypeEnd, end); err != nil {
		return none, err
	}
	crashpoint.Here("replicator/source-sent")
	return answer[wire.Committed](ctx, s)
}

// records sends a transfer's records.
func (s *sourceSession) records(ctx context.Context, pl *plan, send *sender, compare *comparison) (end wire.End, err error) {
	s.packer.begin(s.conn)
	if compare == nil {
		err = send.send(pl)
	} else {
		defer s.asked.Store(nil)
		inv := &inventory{sender: send, asked: s.asks(), suspect: compare.suspects(s.changesFor(compare, send.from.Epoch))}
		err = inv.send(pl)
	}
	digest, sent := s.packer.end(ctx, err == nil)
	if err != nil && ctx.Err() == nil && sent == nil && !errors.Is(err, wire.ErrFrame) {
		return end, failure{fmt.Errorf("reading volume %q: %w", s.origin.vol.Name(), err)}
	}
	return wire.End{Items: send.cursor.Items, Chain: send.cursor.Chain, Digest: digest}, errors.Join(err, sent)
}

// changesFor gives what the journal knows to have changed since the target's recovery point; nil where it does not
// know, or not of that.
func (s *sourceSession) changesFor(c *comparison, upto uint64) *journal.Changes {
	if c.All || uint64(c.Base) != s.pos.Epoch {
		return nil
	}
	changes, err := s.origin.vol.Journal().Changes(max(c.Base, c.Reached), journal.Epoch(upto))
	if err != nil {
		s.m.log.Warn("what has changed is not known: all content is compared", "relationship", s.r.id, "error", err)
		return nil
	}
	return changes
}

// asks begins to take up what the target asks for.
func (s *sourceSession) asks() *asked {
	a := newAsked()
	s.asked.Store(a)
	return a
}

// from is where the transfer starts: where the target has come to, if that is of this very transfer.
func (s *sourceSession) from(p pendingTransfer) wire.Cursor {
	c := s.pos.Cursor
	if p.Compare != nil {
		return wire.Cursor{Epoch: uint64(p.Epoch)}
	}
	if c != nil && c.Base == uint64(p.Base) && c.Epoch == uint64(p.Epoch) && (c.Items > 0 || c.Offset > 0) {
		return *c
	}
	return wire.Cursor{Base: uint64(p.Base), Epoch: uint64(p.Epoch), Over: s.pos.Dirty}
}

// expected estimates the whole transfer.
func (s *sourceSession) expected(p *plan, from wire.Cursor) work {
	var total work
	if p.changes == nil {
		total.files, total.bytes = s.origin.vol.Usage()
	} else {
		total.files, _, total.bytes = p.changes.Totals()
	}
	return total.atLeast(work{from.Files, from.Bytes})
}

// count begins to count what a first transfer has to carry. The function returned ends that.
func (s *sourceSession) count(ctx context.Context, view View) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		total, err := census(ctx, view, s.origin.vol.Root())
		if err == nil { // what cannot be read the transfer itself finds, and says
			s.r.meter.expect(total)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// begin announces the transfer.
func (s *sourceSession) begin(from wire.Cursor, p pendingTransfer, total work) error {
	goesOn := from.Items > 0 || from.Offset > 0
	s.r.meter.start(time.Now(), p.Base == 0 && p.Compare == nil, goesOn, work{from.Files, from.Bytes}, total, s.r.wire.Load())
	root := s.origin.vol.Root()
	return s.conn.Queue(wire.TypeBegin, wire.Begin{
		Compare: p.Compare != nil, Cursor: from, Time: p.Time, RootIno: root.Ino, RootGen: root.Gen, Files: total.files, Bytes: total.bytes,
	})
}

// confirm notes the commit: the target holds the seal, durably.
func (s *sourceSession) confirm(p pendingTransfer, c wire.Committed) error {
	if c.Epoch != uint64(p.Epoch) {
		return fmt.Errorf("%w: the target has committed seal %d, not %d", wire.ErrFrame, c.Epoch, p.Epoch)
	}
	s.r.meter.progress(time.Now(), work{c.Files, c.Bytes}, work{c.SameFiles, c.SameBytes})
	s.r.meter.finish(time.Now(), true, work{c.Files, c.Bytes}, s.r.wire.Load())
	crashpoint.Here("replicator/source-heard")
	if err := s.origin.confirm(s.r); err != nil {
		return failure{err}
	}
	s.r.committed(c.Epoch, p.Time)
	s.pause.reset()
	s.pos = wire.Position{VolumeID: s.pos.VolumeID, SourceID: s.origin.vol.ID(), Epoch: c.Epoch, Time: p.Time}
	return nil
}
