package replicator

import (
	"context"
	"fmt"
	"slices"
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
	DifferUnreadable DifferenceKind = "unreadable" // the source cannot read it, or what is below it
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
