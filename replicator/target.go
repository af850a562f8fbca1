package replicator

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"tandemfs/journal/crashpoint"
	"tandemfs/replicator/wire"
)

// targetSession is the connection that an established relationship's transfers come over. Its receiving
// goroutine reads, checks, unpacks and hashes frames while its applying goroutine applies those before.
type targetSession struct {
	r        *relationship
	conn     *wire.Conn
	sourceID string // the source volume's
	applier  *applier
	count    counters
	queue    chan received
	free     chan []byte
	begun    wire.Begin
	sum      hash.Hash
	ctx      context.Context
	cancel   context.CancelCauseFunc
	done     chan struct{} // closed when the session is over
	left     bool          // the source has left something out, and goes
}

// received is a frame of a transfer.
type received struct {
	kind    wire.Type
	content []byte
	digest  string // of what came before, with an end
}

// queued is how many frames wait to be applied.
const queued = 4

// attached serves the connection of a source that wants to go on with a relationship; content is its
// first message. The connection is closed afterwards.
func (m *Manager) attached(conn *wire.Conn, content []byte) error {
	var a wire.Attach
	if err := wire.Parse(content, &a); err != nil {
		return err
	}
	r, d := m.admit(a, conn.Peer())
	if d != nil {
		return conn.Send(wire.TypeDecision, *d)
	}
	conn.CountInto(&r.wire)
	s := &targetSession{r: r, conn: conn, sourceID: a.VolumeID, sum: sha256.New(), done: make(chan struct{}),
		queue: make(chan received, queued), free: make(chan []byte, queued+2)}
	s.ctx, s.cancel = context.WithCancelCause(m.ctx)
	defer s.cancel(nil)
	stop := context.AfterFunc(s.ctx, func() { _ = conn.Close() })
	defer stop()
	if err := s.takeOver(); err != nil {
		return err
	}
	defer s.over()
	if err := s.open(m, a); err != nil {
		return s.fail(err)
	}
	err := s.serve()
	s.lost(err)
	return err
}

// admit finds the relationship of a source that attaches, or says why it cannot.
func (m *Manager) admit(a wire.Attach, peer wire.Peer) (*relationship, *wire.Decision) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t := m.tombstone(a.ID, peer.Fingerprint); t != nil {
		return nil, &wire.Decision{Verdict: wire.VerdictEnded, Reason: t.Reason}
	}
	r := m.rels[a.ID]
	if r == nil || r.role != RoleTarget {
		return nil, &wire.Decision{Verdict: wire.VerdictEnded, Reason: "the target does not know the relationship"}
	}
	switch rec := r.snapshot(); {
	case rec.Source.Fingerprint != peer.Fingerprint:
		m.log.Warn("refused a peer with another fingerprint", "relationship", a.ID, "address", peer.Address, "fingerprint", peer.Fingerprint)
		return nil, &wire.Decision{Verdict: wire.VerdictConflict, Reason: "this node's fingerprint is not the one that was authorized"}
	case rec.State != StateEstablished:
		return nil, &wire.Decision{Verdict: wire.VerdictAwaiting}
	case rec.SourceID != a.VolumeID:
		return nil, &wire.Decision{Verdict: wire.VerdictConflict, Reason: "the source volume is not the one that was authorized"}
	}
	return r, nil
}

// takeOver makes this the relationship's only session: a source that connects again knows better than
// this end that the connection before is dead.
func (s *targetSession) takeOver() error {
	s.r.mu.Lock()
	before := s.r.target.session
	if s.r.removed {
		s.r.mu.Unlock()
		return ErrNotFound
	}
	s.r.target.session = s
	s.r.mu.Unlock()
	if before != nil {
		before.cancel(errors.New("the source has connected anew"))
		<-before.done
	}
	return nil
}

// lost notes why the source is gone. It says nothing where the source took its leave, or this end has ended the
// session and knows why.
func (s *targetSession) lost(err error) {
	if s.ctx.Err() == nil && !s.left && s.r.snapshot().Enabled {
		s.r.fail(JobDisconnected, err, time.Time{})
	}
}

// over ends the session for whoever waits.
func (s *targetSession) over() {
	s.r.mu.Lock()
	if s.r.target.session == s {
		s.r.target.session, s.r.target.behind = nil, nil
		if !s.left && s.r.job != JobNoSpace { // else the source tries again, and until then that is what there is to say
			s.r.job = restingJob(s.r.rec)
		}
	}
	s.r.mu.Unlock()
	close(s.done)
}

// open gets the volume ready and tells the source what it has.
func (s *targetSession) open(m *Manager, a wire.Attach) error {
	peer := s.conn.Peer()
	err := s.r.update(func(rec *record) {
		rec.Enabled = true
		rec.Source.Node, rec.Source.Address = peer.Node, host(peer.Address)
		rec.Source.Volume, rec.Source.Path = wire.Printable(a.Volume), wire.Printable(a.Path)
	})
	if err != nil {
		return err
	}
	rec := s.r.snapshot()
	vol, err := m.config.Volumes.Volume(rec.Target.Volume)
	if err != nil {
		return err
	}
	if vol.ID() != rec.TargetID {
		return fmt.Errorf("%w: volume %q is not the one that was authorized", errRefused, rec.Target.Volume)
	}
	if s.applier, err = newApplier(vol, s.r.id, &s.count, s.r.distrusts(vol)); err != nil {
		return err
	}
	s.r.trust(vol)
	if s.applier.memory.Dirty && s.r.wasFull() {
		if err := vol.Room(); err != nil { // nothing is sent only to be thrown away
			return err
		}
	}
	if err := showOnly(vol, s.applier.memory.Own); err != nil {
		return err
	}
	pos := s.applier.position()
	if pos.Epoch == 0 {
		empty, err := vol.IsEmpty()
		if err != nil {
			return err
		}
		pos.Holds = !empty
	}
	pos.VolumeID, pos.Path, pos.ReadOnly = vol.ID(), vol.Path(), true
	s.r.knowPoint(pos.Epoch, pos.Time)
	s.r.setJob(JobIdle)
	s.conn.AllowRecords()
	return s.conn.Send(wire.TypePosition, pos)
}

// wasFull reports whether the last transfer ran out of room.
func (r *relationship) wasFull() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.job == JobNoSpace
}

// distrusts reports whether the volume's journal was opened after a power cut and no session has dealt
// with that yet (rule A2).
func (r *relationship) distrusts(vol Volume) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !vol.Journal().Clean() && r.target.trusted != vol.Journal()
}

// trust is for when that is dealt with.
func (r *relationship) trust(vol Volume) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.target.trusted = vol.Journal()
}

// serve receives until the connection ends; what has arrived whole by then is applied.
func (s *targetSession) serve() error {
	applied := make(chan error, 1)
	go func() { applied <- s.apply() }()
	told, stopTelling := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(told)
		s.tell(stopTelling)
	}()
	err := s.receive()
	close(s.queue)
	if applyErr := <-applied; applyErr != nil {
		err = applyErr
	}
	close(stopTelling)
	<-told
	return err
}

// receive takes frames until the connection ends.
func (s *targetSession) receive() error {
	for {
		kind, content, err := s.conn.Receive(s.buffer())
		if errors.Is(err, io.EOF) {
			return errors.New("the source closed the connection")
		}
		if err != nil {
			return fmt.Errorf("connection to the source: %w", err)
		}
		if err := s.received(kind, content); err != nil {
			return err
		}
	}
}

func (s *targetSession) buffer() []byte {
	select {
	case b := <-s.free:
		return b
	default:
		return nil
	}
}

// recycle gives a buffer back.
func (s *targetSession) recycle(b []byte) {
	select {
	case s.free <- b:
	default:
	}
}

// received sorts one frame.
func (s *targetSession) received(kind wire.Type, content []byte) error {
	frame := received{kind: kind, content: content}
	switch kind {
	case wire.TypeBegin:
		s.sum.Reset()
	case wire.TypeRecords:
		s.sum.Write(content)
	case wire.TypeEnd, wire.TypeIncomplete:
		frame.digest = hex.EncodeToString(s.sum.Sum(nil))
	case wire.TypeProgress:
		defer s.recycle(content)
		return s.progress(content)
	case wire.TypeBye:
		return s.bye(content)
	default:
		return fmt.Errorf("%w: type %d is not for a target", wire.ErrFrame, kind)
	}
	select {
	case s.queue <- frame:
		return nil
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
}

// progress notes how far behind the source says this end is.
func (s *targetSession) progress(content []byte) error {
	var p wire.Progress
	if err := wire.Parse(content, &p); err != nil {
		return err
	}
	if p.TotalFiles > 0 {
		s.r.meter.expect(work{p.TotalFiles, p.TotalBytes})
	}
	s.r.mu.Lock()
	s.r.target.behind = &behind{seconds: p.BehindSeconds, bytes: p.BehindBytes}
	s.r.mu.Unlock()
	return nil
}

// bye is the source's word that it has stopped.
func (s *targetSession) bye(content []byte) error {
	var b wire.Bye
	if err := wire.Parse(content, &b); err != nil {
		return err
	}
	if err := s.r.update(func(rec *record) { rec.Enabled = false }); err != nil {
		return err
	}
	return fmt.Errorf("the source closed the connection: %s", wire.Printable(b.Reason))
}

// apply applies what is queued, in order, to the end of the queue or the first error, which the source is told.
func (s *targetSession) apply() error {
	began := false // a transfer is under way
	for frame := range s.queue {
		err := s.applyFrame(frame, &began)
		s.recycle(frame.content)
		if err != nil {
			return s.stop(err)
		}
	}
	if began {
		return s.applier.suspend()
	}
	return nil
}

// stop ends a transfer that cannot go on. What does not fit will not fit a second time, and what may be lost cannot be
// built on: then the next transfer starts over.
func (s *targetSession) stop(err error) error {
	keep := s.applier.suspend
	if class(err) == wire.ClassNoSpace {
		s.r.endVerification() // which holds what was changed since its recovery point
	}
	if class(err) == wire.ClassDivergence || errors.Is(err, errNotDurable) {
		keep = s.applier.giveUp
	}
	return s.fail(errors.Join(err, keep()))
}

// fail tells the source, and gives it the time to hear it: what it goes on sending meanwhile is not wanted.
func (s *targetSession) fail(err error) error {
	s.r.meter.finish(time.Now(), false, work{}, s.r.wire.Load())
	if full(err) {
		err = fmt.Errorf("%w on this node: make room, and the transfer goes on by itself: %w", errFull, err)
	}
	s.r.fail(failedJob(err), err, time.Time{})
	if s.conn.Send(wire.TypeFailed, wire.Failed{Class: class(err), Text: errorText(err)}) == nil {
		s.drain(time.After(lastWord))
	}
	s.cancel(err)
	return err
}

// drain throws away what arrives until the source closes the connection or the time is over.
func (s *targetSession) drain(over <-chan time.Time) {
	for {
		select {
		case _, ok := <-s.queue:
			if !ok {
				return
			}
		case <-over:
			return
		case <-s.ctx.Done():
			return
		}
	}
}

// applyFrame applies one frame.
func (s *targetSession) applyFrame(frame received, began *bool) error {
	switch {
	case frame.kind == wire.TypeBegin && !*began:
		s.begun = wire.Begin{} // a field that is left out must not be what it was in the transfer before
		if err := wire.Parse(frame.content, &s.begun); err != nil {
			return err
		}
		*began = true
		return s.begin()
	case frame.kind == wire.TypeRecords && *began:
		return s.applier.records(frame.content)
	case frame.kind == wire.TypeEnd && *began:
		*began = false
		return s.end(frame)
	case frame.kind == wire.TypeIncomplete && *began:
		*began = false
		return s.incomplete(frame)
	}
	return fmt.Errorf("%w: a frame of type %d out of its turn", wire.ErrRecord, frame.kind)
}

func (s *targetSession) begin() error {
	b, r := s.begun, s.r
	ask := func(w wire.Want) error { return s.conn.Send(wire.TypeWant, w) }
	if err := s.applier.begin(s.ctx, b, s.sourceID, ask); err != nil {
		return err
	}
	c := s.applier.cursor
	r.meter.start(time.Now(), c.Base == 0 && !b.Compare, c.Items > 0, work{c.Files, c.Bytes}, work{b.Files, b.Bytes}, r.wire.Load())
	r.setJob(JobRunning)
	return nil
}

// end commits, and tells the source.
func (s *targetSession) end(frame received) error {
	var e wire.End
	if err := wire.Parse(frame.content, &e); err != nil {
		return err
	}
	done, err := s.applier.commit(s.begun, e, s.sourceID, frame.digest)
	if err != nil {
		return err
	}
	crashpoint.Here("replicator/target-replies")
	if err := s.conn.Send(wire.TypeCommitted, done); err != nil {
		return err
	}
	s.r.meter.progress(time.Now(), work{done.Files, done.Bytes}, work{done.SameFiles, done.SameBytes})
	s.r.meter.finish(time.Now(), true, work{done.Files, done.Bytes}, s.r.wire.Load())
	s.r.committed(done.Epoch, s.begun.Time)
	s.r.setJob(JobIdle)
	return nil
}

// incomplete keeps what the source could read, and tells it so.
func (s *targetSession) incomplete(frame received) error {
	var e wire.Incomplete
	if err := wire.Parse(frame.content, &e); err != nil {
		return err
	}
	if err := s.applier.reach(s.begun, e.End, s.sourceID, frame.digest); err != nil {
		return err
	}
	s.left = true
	s.r.meter.finish(time.Now(), false, work{}, s.r.wire.Load())
	s.r.fail(JobFailed, errors.New(wire.Printable(e.Text)), time.Time{})
	return s.conn.Send(wire.TypePosition, s.applier.position())
}

// tell tells the source twice a second how much is applied, while that changes.
func (s *targetSession) tell(stop <-chan struct{}) {
	tick := time.NewTicker(tellEvery / 2)
	defer tick.Stop()
	var last wire.Progress
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		p := wire.Progress{Items: s.count.items.Load(), Files: s.count.files.Load(), Bytes: s.count.bytes.Load(),
			SameFiles: s.count.sameFiles.Load(), SameBytes: s.count.sameBytes.Load()}
		if p == last {
			continue
		}
		last = p
		s.r.meter.progress(time.Now(), work{p.Files, p.Bytes}, work{p.SameFiles, p.SameBytes})
		if s.conn.Send(wire.TypeProgress, p) != nil {
			return // the receiving side says why
		}
	}
}
