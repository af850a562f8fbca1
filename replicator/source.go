package replicator

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"
	"time"

	"tandemfs/journal"
	"tandemfs/replicator/wire"
)

// How a job waits after a change for those that come with it: a moment after a few, and while there are
// burst of them in each burstGather up to longestGather, so that a file that is written or a tree that is
// unpacked goes at once.
const (
	shortGather   = 2 * time.Millisecond
	burstGather   = 20 * time.Millisecond
	longestGather = 500 * time.Millisecond
	burst         = 20 // operations
)

// lastWord is how long an end of the conversation waits for what the peer says of it, or for it to be heard.
const lastWord = 300 * time.Millisecond

// tellEvery is how often each end tells the other about its progress.
const tellEvery = time.Second

// sourceSession is one connection of the source's job.
type sourceSession struct {
	m       *Manager
	r       *relationship
	origin  *origin
	conn    *wire.Conn
	pause   *backoff
	replies chan any // what the target answers, in order
	packer  *packer
	came    atomic.Bool           // the target has got further
	pos     wire.Position         // what the target has
	began   time.Time             // when the last transfer did
	asked   atomic.Pointer[asked] // by the target, in the transfer that compares
}

// run goes through the conversation until an error ends it.
func (s *sourceSession) run(parent context.Context) error {
	ctx, cancel := context.WithCancelCause(parent)
	received := make(chan struct{})
	go func() {
		defer close(received)
		cancel(s.receive())
	}()
	stop := context.AfterFunc(ctx, func() { s.leave(context.Cause(ctx)) })
	err := s.converse(ctx)
	if !errors.As(err, new(failure)) { // perhaps the target has said why
		select {
		case <-ctx.Done():
		case <-time.After(lastWord):
		}
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause // what ended the connection, not what its end made fail
	}
	if errors.As(err, new(diverged)) {
		err = errors.Join(err, s.mendDivergence())
	}
	cancel(err)
	stop()
	s.leave(err)
	<-received
	return err
}

// mendDivergence is for when the target does not have what the transfer builds on. The next one has a seal of its own:
// the one that failed may have met what was made around the mount and is not recorded yet. If that one fails too, the one
// after it compares, where the target's version can.
func (s *sourceSession) mendDivergence() error {
	err := s.origin.drop(s.r)
	s.r.mu.Lock()
	again := s.r.source.diverged
	s.r.source.diverged = !again
	s.r.mu.Unlock()
	if !again || s.canCompare() != nil {
		return err
	}
	s.m.log.Warn("the next transfer compares both sides", "relationship", s.r.id, "reason", reasonDiverged)
	return errors.Join(err, s.origin.compare(s.r, comparison{Reason: reasonDiverged, All: true}, false))
}

// leave ends the connection, with a word to the target where the job was told to stop.
func (s *sourceSession) leave(cause error) {
	if errors.Is(cause, errDisabled) {
		stuck := time.AfterFunc(lastWord, func() { _ = s.conn.Close() })
		defer stuck.Stop()
		_ = s.conn.Send(wire.TypeBye, wire.Bye{ID: s.r.id, Reason: "disabled"}) // the connection may be the reason
	}
	_ = s.conn.Close() // nothing is lost with it
}

// receive takes what the target sends until the connection ends.
func (s *sourceSession) receive() error {
	var buf []byte
	for {
		kind, content, err := s.conn.Receive(buf)
		if err != nil {
			return fmt.Errorf("connection to the target: %w", err)
		}
		buf = content
		if err := s.received(kind, content); err != nil {
			return err
		}
	}
}

// received sorts one message.
func (s *sourceSession) received(kind wire.Type, content []byte) error {
	switch kind {
	case wire.TypeDecision:
		return reply[wire.Decision](s, content)
	case wire.TypePosition:
		return reply[wire.Position](s, content)
	case wire.TypeCommitted:
		return reply[wire.Committed](s, content)
	case wire.TypeFailed:
		var f wire.Failed
		if err := wire.Parse(content, &f); err != nil {
			return err
		}
		return failedThere(f)
	case wire.TypeProgress:
		var p wire.Progress
		if err := wire.Parse(content, &p); err != nil {
			return err
		}
		if s.r.meter.progress(time.Now(), work{p.Files, p.Bytes}, work{p.SameFiles, p.SameBytes}) {
			s.came.Store(true)
		}
		return nil
	case wire.TypeWant:
		var w wire.Want
		if err := wire.Parse(content, &w); err != nil {
			return err
		}
		if a := s.asked.Load(); a != nil {
			return a.add(w)
		}
	case wire.TypeBye:
		return s.bye(content)
	}
	return fmt.Errorf("%w: type %d is not for a source", wire.ErrFrame, kind)
}

// reply passes an answer on. One that nobody asked for ends the connection.
func reply[T any](s *sourceSession, content []byte) error {
	var message T
	if err := wire.Parse(content, &message); err != nil {
		return err
	}
	select {
	case s.replies <- message:
		return nil
	default:
		return fmt.Errorf("%w: answers that nobody asked for", wire.ErrFrame)
	}
}

// bye is the target's word that the relationship has ended.
func (s *sourceSession) bye(content []byte) error {
	var b wire.Bye
	if err := wire.Parse(content, &b); err != nil {
		return err
	}
	if !b.Ended {
		return fmt.Errorf("the target closed the connection: %s", wire.Printable(b.Reason))
	}
	return s.m.endSource(s.r, b.Reason)
}

// endSource notes that the target has ended the relationship, and lets go of what it kept.
func (m *Manager) endSource(r *relationship, reason string) error {
	reason = wire.Printable(reason)
	err := r.update(func(rec *record) { rec.State, rec.EndReason, rec.Target.ReadOnly = StateEnded, reason, false })
	if err == nil {
		err = m.release(r)
	}
	if err != nil {
		return failure{err}
	}
	return fmt.Errorf("%w: %s", errEnded, reason)
}

// release lets go of what the source's volume keeps for a relationship.
func (m *Manager) release(r *relationship) error {
	o, err := m.origin(r.snapshot().Source.Volume)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the volume is gone, with its journal
	}
	if err != nil {
		return err
	}
	return o.remove(r)
}

// converse proposes where that is due, attaches, and then transfers for as long as the connection holds.
func (s *sourceSession) converse(ctx context.Context) error {
	peer := s.conn.Peer()
	err := s.r.update(func(rec *record) { rec.Target.Node, rec.Target.Fingerprint = peer.Node, peer.Fingerprint })
	if err != nil {
		return failure{err}
	}
	if s.r.snapshot().State == StateAwaitingAuthorization {
		if err := s.propose(ctx); err != nil {
			return err
		}
	}
	if !s.r.snapshot().Enabled {
		return errDisabled
	}
	if err := s.attach(ctx); err != nil {
		return err
	}
	s.packer = newPacker()
	told, stopTelling := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(told)
		s.tell(stopTelling)
	}()
	defer func() {
		close(stopTelling)
		<-told
	}()
	return s.replicate(ctx)
}

// answer waits for the target's next answer, which must be a T.
func answer[T any](ctx context.Context, s *sourceSession) (T, error) {
	var none T
	select {
	case a := <-s.replies:
		switch a := a.(type) {
		case T:
			return a, nil
		case wire.Decision:
			return none, s.decided(a)
		}
		return none, fmt.Errorf("%w: not the answer that was due", wire.ErrFrame)
	case <-ctx.Done():
		return none, context.Cause(ctx)
	}
}

// decided says what a decision means that was not waited for.
func (s *sourceSession) decided(d wire.Decision) error {
	switch d.Verdict {
	case wire.VerdictEnded:
		return s.m.endSource(s.r, d.Reason)
	case wire.VerdictConflict:
		return failure{fmt.Errorf("%w: the target refuses: %s", ErrConflict, wire.Printable(d.Reason))}
	}
	return failure{fmt.Errorf("the target says that the relationship is %s", wire.Printable(string(d.Verdict)))}
}

// propose asks for the relationship and waits for a person's decision, however long that takes.
func (s *sourceSession) propose(ctx context.Context) error {
	if err := s.conn.Send(wire.TypePropose, s.r.snapshot().proposal()); err != nil {
		return err
	}
	for {
		d, err := answer[wire.Decision](ctx, s)
		if err != nil {
			return err
		}
		switch d.Verdict {
		case wire.VerdictAwaiting:
			s.pause.reset()
			s.r.fail(JobWaiting, nil, time.Time{})
		case wire.VerdictEstablished:
			return s.r.update(func(rec *record) { rec.State = StateEstablished })
		default:
			return s.decided(d)
		}
	}
}

// proposal is what a source asks for.
func (rec record) proposal() wire.Propose {
	return wire.Propose{ID: rec.ID, VolumeID: rec.SourceID, Volume: rec.Source.Volume, Path: rec.Source.Path,
		TargetVolume: rec.Target.Volume, Disabled: !rec.Enabled}
}

// attach learns what the target has.
func (s *sourceSession) attach(ctx context.Context) error {
	rec := s.r.snapshot()
	vol := s.origin.vol
	if vol.ID() != rec.SourceID {
		return failure{fmt.Errorf("volume %q is not the one that the relationship was made for; delete the relationship and create it anew", rec.Source.Volume)}
	}
	if err := s.conn.Send(wire.TypeAttach, wire.Attach{ID: rec.ID, VolumeID: vol.ID(), Volume: vol.Name(), Path: vol.Path()}); err != nil {
		return err
	}
	pos, err := answer[wire.Position](ctx, s)
	if err != nil {
		return err
	}
	if rec.TargetID != "" && rec.TargetID != pos.VolumeID {
		return failure{fmt.Errorf("the target's volume %q was replaced by another; delete the relationship and create it anew", rec.Target.Volume)}
	}
	s.pos = pos
	return s.r.update(func(rec *record) {
		rec.TargetID, rec.Target.Path, rec.Target.ReadOnly = pos.VolumeID, wire.Printable(pos.Path), pos.ReadOnly
		rec.Source.Path = vol.Path()
	})
}

// replicate transfers whenever something has changed.
func (s *sourceSession) replicate(ctx context.Context) error {
	if err := s.agreeReached(); err != nil {
		return err
	}
	if err := s.agree(); err != nil {
		return err
	}
	s.startVerify(ctx)   // one that waits for the recovery point of which agree has just heard
	var rested time.Time // when the rest after the last transfer is over
	for {
		for s.due() {
			if err := wait(ctx, time.Until(rested)); err != nil {
				return err
			}
			s.began = time.Now()
			if err := s.transfer(ctx); err != nil {
				return err
			}
			s.startVerify(ctx)
			rested = time.Now().Add(restAfter(time.Since(s.began), s.r.meter.moved()))
		}
		s.pause.reset()
		s.r.setJob(JobIdle)
		select {
		case <-s.r.source.nudge:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := s.gather(ctx); err != nil {
			return err
		}
	}
}

// gather waits a little after the first change, and longer while many come, for those that belong together.
func (s *sourceSession) gather(ctx context.Context) error {
	j := s.origin.vol.Journal()
	before := j.Operations()
	end := time.Now().Add(longestGather)
	for pause := shortGather; ; pause = burstGather {
		if err := wait(ctx, pause); err != nil {
			return err
		}
		now := j.Operations()
		if now-before < burst || time.Now().After(end) {
			return nil
		}
		before = now
	}
}

// wait waits for a while, or until the session ends.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// due reports whether the target lacks something.
func (s *sourceSession) due() bool {
	j := s.origin.vol.Journal()
	s.r.mu.Lock()
	wanted := s.r.source.memory.Compare != nil || s.r.source.wantsView()
	s.r.mu.Unlock()
	if doubts, _ := s.origin.vol.NamesInDoubt(); wanted || doubts > 0 {
		return true
	}
	if s.pos.Epoch != 0 && s.pos.Reached == 0 && !s.pos.Dirty && s.origin.unchangedSince(journal.Epoch(s.pos.Epoch)) {
		s.r.mu.Lock()
		s.r.source.dirtySince = time.Time{}
		s.r.mu.Unlock()
		return j.Dirty() // a change that came in between has set it again, or is about to
	}
	return true
}

// tell tells the target once a second how far behind it is.
func (s *sourceSession) tell(stop <-chan struct{}) {
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	idle := false
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		p := s.r.status()
		var message wire.Progress
		if b := p.RecoveryPoint.BehindBytes; b != nil {
			message.BehindBytes = *b
		}
		if b := p.RecoveryPoint.BehindSeconds; b != nil {
			message.BehindSeconds = *b
		}
		total := s.r.meter.expected()
		message.TotalFiles, message.TotalBytes = total.files, total.bytes
		wasIdle := idle
		idle = p.Job == JobIdle && message.BehindSeconds == 0
		if idle && wasIdle {
			continue // nothing new
		}
		if s.conn.Send(wire.TypeProgress, message) != nil {
			return // the receiving side says why
		}
	}
}
