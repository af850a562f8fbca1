package replicator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"tandemfs/journal"
	"tandemfs/replicator/wire"
)

// VerifyRequest asks to compare both sides of a relationship at a recovery point.
type VerifyRequest struct {
	// Rate bounds how much content is read on each side, in bytes per second; 0 means as fast as it goes.
	Rate int64 `json:"rate,omitempty"`
	// Repair marks what differs for sending.
	Repair bool `json:"repair,omitempty"`
	// Always begins again whenever it has ended, also after a restart, until it is stopped.
	Always bool `json:"always,omitempty"`
}

// VerifyState says how a verification stands.
type VerifyState string

// The states of a verification.
const (
	VerifyNone    VerifyState = "none"    // there was none since the node started
	VerifyWaiting VerifyState = "waiting" // for a recovery point, or for the time to begin again
	VerifyRunning VerifyState = "running"
	VerifyDone    VerifyState = "done"    // all was compared
	VerifyFailed  VerifyState = "failed"  // Error says why
	VerifyStopped VerifyState = "stopped" // by somebody
)

// Verification is how the comparison of both sides stands, or how the last one ended.
type Verification struct {
	VerifyRequest
	State VerifyState `json:"state"`
	// Epoch and Time are of the recovery point that is compared.
	Epoch   uint64    `json:"epoch,omitempty"`
	Time    time.Time `json:"time,omitzero"`
	Started time.Time `json:"started,omitzero"`
	Ended   time.Time `json:"ended,omitzero"`
	// Files and Bytes are what was compared so far; TotalFiles and TotalBytes what there is about.
	Files      int64 `json:"files"`
	Bytes      int64 `json:"bytes"`
	TotalFiles int64 `json:"total_files"`
	TotalBytes int64 `json:"total_bytes"`
	// Differences counts them all; Found has the first ones.
	Differences int64        `json:"differences"`
	Found       []Difference `json:"found,omitempty"`
	// Repairing: what differs is marked and not sent yet.
	Repairing bool   `json:"repairing,omitempty"`
	Error     string `json:"error,omitempty"`
}

// Difference is one between the two sides: of what kind, and of which path below the volume's root.
type Difference struct {
	Kind DifferenceKind `json:"kind"`
	Path string         `json:"path"`
}

// DifferenceKind says in what two sides differ.
type DifferenceKind string

// The kinds of differences.
const (
	DifferMissing    DifferenceKind = "missing"    // the target does not have it
	DifferExtra      DifferenceKind = "extra"      // only the target has it
	DifferType       DifferenceKind = "type"       // it is of another type, or another link or device
	DifferIdentity   DifferenceKind = "identity"   // the name stands for another file than on the source
	DifferAttributes DifferenceKind = "attributes" // owner, mode, times, extended attributes
	DifferContent    DifferenceKind = "content"
	DifferUnreadable DifferenceKind = "unreadable" // the source cannot read its content
)

// mostFound is how many differences are kept.
const mostFound = 1000

// betweenVerifications is the pause where verifications go on for ever.
const betweenVerifications = time.Minute

// verification is one that was asked for; it is guarded by the relationship's mu.
type verification struct {
	Verification
	suspects []journal.Ident
	view     View               // of the recovery point, until it runs
	stop     context.CancelFunc // ends it; nil before it runs
	done     chan struct{}      // closed when it has ended
}

// active reports whether it still waits or runs.
func (v *verification) active() bool {
	return v != nil && (v.State == VerifyWaiting || v.State == VerifyRunning)
}

// Verify begins to compare both sides, as soon as there is a recovery point to compare, while both go on
// working. It is the source's to do.
func (m *Manager) Verify(_ context.Context, id string, q VerifyRequest) (Verification, error) {
	r, err := m.verifiable(id)
	if err != nil {
		return Verification{}, err
	}
	rec := r.snapshot()
	switch {
	case q.Rate < 0 || q.Always && q.Rate == 0:
		return Verification{}, fmt.Errorf("%w: a verification that never ends needs a rate, in bytes per second", ErrInvalid)
	case rec.State != StateEstablished || !rec.Enabled:
		return Verification{}, fmt.Errorf("%w: relationship %s is not established and enabled", ErrConflict, id)
	}
	r.mu.Lock()
	busy := r.source.verify.active()
	if !busy {
		r.source.verify = newVerification(q)
	}
	r.mu.Unlock()
	if busy {
		return Verification{}, fmt.Errorf("%w: relationship %s is being verified; stop that first", ErrConflict, id)
	}
	lasting := VerifyRequest{}
	if q.Always {
		lasting = q
	}
	if err := r.update(func(rec *record) { rec.Verify = lasting }); err != nil {
		r.stopVerify(VerifyFailed, err)
		return Verification{}, err
	}
	r.wake()
	return r.verification(), nil
}

func newVerification(q VerifyRequest) *verification {
	return &verification{Verification: Verification{VerifyRequest: q, State: VerifyWaiting, Started: time.Now()}, done: make(chan struct{})}
}

// verifiable finds a relationship whose source this node is.
func (m *Manager) verifiable(id string) (*relationship, error) {
	r, err := m.find(id)
	if err != nil {
		return nil, err
	}
	if r.role != RoleSource {
		return nil, fmt.Errorf("%w: relationship %s is verified on its source, node %s", ErrConflict, id, r.snapshot().Source.Node)
	}
	return r, nil
}

// StopVerify ends a verification, and those that would follow.
func (m *Manager) StopVerify(_ context.Context, id string) (Verification, error) {
	r, err := m.verifiable(id)
	if err != nil {
		return Verification{}, err
	}
	if err := r.update(func(rec *record) { rec.Verify = VerifyRequest{} }); err != nil {
		return Verification{}, err
	}
	r.stopVerify(VerifyStopped, nil)
	return r.verification(), nil
}

// Verification says how a relationship's verification stands.
func (m *Manager) Verification(id string) (Verification, error) {
	r, err := m.verifiable(id)
	if err != nil {
		return Verification{}, err
	}
	return r.verification(), nil
}

// verification gives a copy of what is known.
func (r *relationship) verification() Verification {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.source.verify
	if v == nil {
		return Verification{State: VerifyNone}
	}
	out := v.Verification
	out.Found = slices.Clone(v.Found)
	out.Repairing = r.source.repairing
	return out
}

// stopVerify ends what waits or runs, and waits for its end.
func (r *relationship) stopVerify(state VerifyState, why error) {
	r.mu.Lock()
	v := r.source.verify
	if !v.active() {
		r.mu.Unlock()
		return
	}
	stop, view := v.stop, v.view
	v.view = nil
	if stop == nil {
		v.end(state, why)
	}
	r.mu.Unlock()
	if view != nil {
		_ = view.Close() // it lets go of a seal, which cannot fail
	}
	if stop != nil {
		stop()
		<-v.done
	}
}

// end is for holders of the relationship's mu, and for whoever does it first.
func (v *verification) end(state VerifyState, why error) {
	v.State, v.Ended = state, time.Now()
	if why != nil {
		v.Error = why.Error()
	}
	close(v.done)
}

// wantsView reports whether a verification waits for a recovery point.
func (e *sourceEnd) wantsView() bool {
	return e.verify.active() && e.verify.State == VerifyWaiting && e.verify.view == nil
}

// wake tells the job that there is something to do.
func (r *relationship) wake() {
	select {
	case r.source.nudge <- struct{}{}:
	default:
	}
}

// resumeVerify takes up a verification that goes on for ever. It is for holders of mu.
func (r *relationship) resumeVerify() {
	if q := r.rec.Verify; q.Always && !r.source.verify.active() {
		r.source.verify = newVerification(q)
	}
}

// startVerify begins the verification that has waited for the recovery point that both ends hold just now. It
// returns when the target holds it too: until then nothing new may be sent. What goes wrong ends the verification and
// not the job.
func (s *sourceSession) startVerify(ctx context.Context) {
	s.r.mu.Lock()
	v := s.r.source.verify
	if !v.active() || v.State != VerifyWaiting || v.view == nil {
		s.r.mu.Unlock()
		return
	}
	view := v.view
	v.view = nil
	running, stop := context.WithCancel(s.m.ctx)
	v.stop, v.State, v.Epoch, v.Time = stop, VerifyRunning, uint64(view.Epoch()), s.r.point.Time
	v.TotalFiles, v.TotalBytes = s.origin.vol.Usage()
	q := v.VerifyRequest
	s.r.mu.Unlock()
	check := &verifying{s: s, r: s.r, v: v, view: view, asked: newAsked(), verified: make(chan wire.Verified, 1)}
	if err := check.connect(ctx); err != nil {
		s.m.running.Go(func() {
			defer stop()
			check.ended(running, err)
		})
		return
	}
	if q.Rate > 0 {
		limit := rate.NewLimiter(rate.Limit(q.Rate), int(max(q.Rate/4, wire.MaxDigest)))
		check.pace = func(n int) error { return limit.WaitN(running, n) }
	}
	s.m.running.Go(func() {
		defer stop()
		check.ended(running, check.run(running))
	})
}

// verifying is a verification that runs, over a connection of its own.
type verifying struct {
	s        *sourceSession
	r        *relationship
	v        *verification
	view     View
	conn     *wire.Conn
	asked    *asked
	verified chan wire.Verified
	pace     func(int) error
	told     int64     // differences, by the receiving goroutine
	unread   []lacking // what the source cannot read; guarded by the relationship's mu
}

// connect finds the target at the recovery point, which it holds from then on.
func (c *verifying) connect(ctx context.Context) error {
	if err := c.s.canCompare(); err != nil {
		return err
	}
	rec := c.r.snapshot()
	conn, err := c.s.m.dial(ctx, rec.Target.Address, rec.Target.Fingerprint)
	if err != nil {
		return err
	}
	conn.CountInto(&c.r.wire)
	c.conn = conn
	ctx, cancel := context.WithTimeout(ctx, wire.HandshakeTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := conn.Send(wire.TypeVerify, wire.Verify{ID: rec.ID, VolumeID: rec.SourceID, Epoch: uint64(c.view.Epoch())}); err != nil {
		return err
	}
	kind, content, err := conn.Receive(nil)
	switch {
	case err != nil:
		return err
	case kind == wire.TypePosition:
		return nil
	case kind == wire.TypeFailed:
		return c.failed(content)
	}
	return fmt.Errorf("%w: type %d does not answer a verification", wire.ErrFrame, kind)
}

func (c *verifying) failed(content []byte) error {
	var f wire.Failed
	if err := wire.Parse(content, &f); err != nil {
		return err
	}
	return failedThere(f)
}

// run compares everything.
func (c *verifying) run(parent context.Context) error {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { _ = c.conn.Close() })
	defer stop()
	received := make(chan struct{})
	go func() {
		defer close(received)
		cancel(c.receive())
	}()
	err := c.send(ctx)
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, errVerified) {
		err = cause
	}
	_ = c.conn.Close() // nothing is lost with it
	<-received
	return err
}

// errVerified ends the connection of a verification that is done.
var errVerified = errors.New("verified")

// send sends the inventory, and waits for what the target makes of it.
func (c *verifying) send(ctx context.Context) error {
	root := c.s.origin.vol.Root()
	from := wire.Cursor{Epoch: uint64(c.view.Epoch())}
	if err := c.conn.Queue(wire.TypeBegin, wire.Begin{Compare: true, Cursor: from, RootIno: root.Ino, RootGen: root.Gen}); err != nil {
		return err
	}
	out := newPacker()
	out.begin(c.conn)
	send := &sender{ctx: ctx, view: c.view, out: out, from: from, gaps: gaps{remember: c.leftOut}}
	inv := &inventory{sender: send, asked: c.asked, pace: c.pace,
		suspect: func(journal.Ident, journal.Attr) (bool, error) { return false, nil }} // the target compares every file
	err := inv.send(&plan{view: c.view, root: root})
	digest, sent := out.end(ctx, err == nil)
	if err = errors.Join(err, sent); err != nil {
		return err
	}
	if err := c.conn.Send(wire.TypeEnd, wire.End{Items: inv.cursor.Items, Chain: inv.cursor.Chain, Digest: digest}); err != nil {
		return err
	}
	<-ctx.Done() // by the answer too
	if cause := context.Cause(ctx); !errors.Is(cause, errVerified) {
		return cause
	}
	done := <-c.verified
	c.r.mu.Lock()
	c.v.Files, c.v.Bytes, c.v.Differences = done.Files, done.Bytes, done.Differences
	c.r.mu.Unlock()
	return nil
}

// leftOut notes what the source cannot read: the target will find that it differs.
func (c *verifying) leftOut(list []lacking) error {
	c.s.m.log.Error("a verification cannot read a file of the source", "relationship", c.r.id, "file", list[len(list)-1])
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	c.unread = list
	return nil
}

// kind is what a difference is called here. It is for holders of the relationship's mu.
func (c *verifying) kind(d wire.Difference) DifferenceKind {
	id := journal.Ident{Ino: d.Ino, Gen: d.Gen}
	if slices.ContainsFunc(c.unread, func(l lacking) bool { return l.Ident == id }) {
		return DifferUnreadable
	}
	return DifferenceKind(wire.Printable(d.Kind))
}

// receive takes what the target says until the connection ends.
func (c *verifying) receive() error {
	var buf []byte
	for {
		kind, content, err := c.conn.Receive(buf)
		if err != nil {
			return fmt.Errorf("connection to the target: %w", err)
		}
		buf = content
		if err := c.received(kind, content); err != nil {
			return err
		}
	}
}

func (c *verifying) received(kind wire.Type, content []byte) error {
	switch kind {
	case wire.TypeWant:
		var w wire.Want
		if err := wire.Parse(content, &w); err != nil {
			return err
		}
		return c.asked.add(w)
	case wire.TypeDiffer:
		var d wire.Differ
		if err := wire.Parse(content, &d); err != nil {
			return err
		}
		c.found(d)
		return nil
	case wire.TypeProgress:
		var p wire.Progress
		if err := wire.Parse(content, &p); err != nil {
			return err
		}
		c.r.mu.Lock()
		c.v.Files, c.v.Bytes = p.Files, p.Bytes
		c.r.mu.Unlock()
		return nil
	case wire.TypeVerified:
		var done wire.Verified
		if err := wire.Parse(content, &done); err != nil {
			return err
		}
		if done.Differences < c.told {
			return fmt.Errorf("%w: %d differences in all, after %d were told", wire.ErrFrame, done.Differences, c.told)
		}
		c.verified <- done
		return errVerified
	case wire.TypeFailed:
		return c.failed(content)
	}
	return fmt.Errorf("%w: type %d is not for a verification", wire.ErrFrame, kind)
}

// found notes differences.
func (c *verifying) found(d wire.Differ) {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	for _, f := range d.Found {
		c.told++
		c.v.Differences++
		if len(c.v.Found) < mostFound {
			c.v.Found = append(c.v.Found, Difference{c.kind(f), strings.ToValidUTF8(f.Path, "?")})
		}
		if f.Ino != 0 && len(c.v.suspects) <= mostSuspects {
			c.v.suspects = append(c.v.suspects, journal.Ident{Ino: f.Ino, Gen: f.Gen})
		}
	}
}

// ended goes on with what follows from how it ended, and says so.
func (c *verifying) ended(ctx context.Context, err error) {
	err = errors.Join(err, c.view.Close())
	if c.conn != nil {
		_ = c.conn.Close() // nothing is lost with it
	}
	if err == nil {
		err = c.conclude()
	}
	c.r.mu.Lock()
	switch {
	case err == nil:
		c.v.end(VerifyDone, nil)
	case ctx.Err() != nil:
		c.v.end(VerifyStopped, nil)
	default:
		c.v.end(VerifyFailed, err)
	}
	result := c.v.Verification
	c.r.mu.Unlock()
	log := c.s.m.log.With("relationship", c.r.id, "recovery point", result.Epoch, "files", result.Files, "differences", result.Differences)
	switch {
	case result.State != VerifyDone:
		log.Warn("verification ended early", "state", result.State, "error", err)
	case result.Differences > 0:
		log.Error("verification found differences", "first", result.Found[:min(len(result.Found), 3)])
	default:
		log.Info("verification found both sides equal")
	}
	c.again(result)
}

// conclude notes that both sides are equal, or marks what differs for sending.
func (c *verifying) conclude() error {
	c.r.mu.Lock()
	v, suspects := c.v.Verification, c.v.suspects
	c.r.mu.Unlock()
	if v.Differences == 0 {
		return c.r.update(func(rec *record) { rec.VerifiedEpoch, rec.VerifiedTime = v.Epoch, v.Time })
	}
	if !v.Repair {
		return nil
	}
	repair := comparison{Reason: reasonRepair, Suspects: suspects}
	if v.Differences > c.told || len(suspects) > mostSuspects { // not all of the files are known
		repair.All, repair.Suspects = true, nil
	}
	c.r.mu.Lock()
	c.r.source.repairing = true // before it can be over
	c.r.mu.Unlock()
	err := c.s.origin.compare(c.r, repair, false)
	c.r.wake()
	return err
}

// again begins the next one after a while, where they go on for ever.
func (c *verifying) again(result Verification) {
	if !result.Always || result.State == VerifyStopped {
		return
	}
	select {
	case <-time.After(betweenVerifications):
	case <-c.s.m.ctx.Done():
		return
	}
	c.r.mu.Lock()
	if c.r.source.verify == c.v && c.r.rec.Verify.Always && !c.r.removed {
		c.r.source.verify = newVerification(result.VerifyRequest)
	}
	c.r.mu.Unlock()
	c.r.wake()
}
