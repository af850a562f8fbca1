package replicator

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"tandemfs/journal"
	"tandemfs/replicator/wire"
)

// relationship is one relationship as this end has it: what is kept of it, and what is known of its
// present state. Its methods may be called concurrently.
type relationship struct {
	id    string
	role  Role
	store store
	wire  atomic.Int64 // bytes sent and received since the node started
	meter meter

	// deciding is held by whoever authorizes, enables, reconciles or ends the relationship, until that is done: each of
	// these has several steps. It is taken before the manager's mu.
	deciding sync.Mutex

	mu      sync.Mutex
	rec     record
	removed bool          // deleted or rejected here; EndReason says why
	changed chan struct{} // closed when rec or removed changes, and replaced

	job           JobState
	lastError     string
	lastErrorTime time.Time
	retryAt       time.Time
	transfers     int64
	point         RecoveryPoint // Epoch and Time

	source sourceEnd
	target targetEnd
}

// targetEnd is what only the target's end has.
type targetEnd struct {
	proposer *wire.Conn     // the connection that waits for a decision; nil without
	session  *targetSession // the connection that transfers come over; nil without
	behind   *behind        // what the source says; nil while it is not connected
	verify   *targetVerify  // that runs; nil without one
	// trusted is the journal, as it is open now, whose memory of a transfer can be built on.
	trusted *journal.Journal
}

// behind is how far the target is behind the source.
type behind struct {
	seconds float64
	bytes   int64
}

func newRelationship(st store, rec record) *relationship {
	r := &relationship{id: rec.ID, role: rec.Role, store: st, rec: rec, changed: make(chan struct{})}
	r.source.nudge = make(chan struct{}, 1)
	r.job = restingJob(rec)
	return r
}

// restingJob is the job's state while nothing runs.
func restingJob(rec record) JobState {
	switch {
	case rec.State == StateAwaitingAuthorization:
		return JobWaiting
	case !rec.Enabled || rec.State == StateEnded:
		return JobDisabled
	}
	return JobDisconnected
}

// snapshot gives the record as it is now.
func (r *relationship) snapshot() record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rec
}

// update changes the record, on disk first, and tells whoever waits for a change. A change that alters
// nothing costs nothing.
func (r *relationship) update(change func(*record)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := r.rec
	change(&next)
	if next == r.rec {
		return nil
	}
	if r.removed {
		return fmt.Errorf("relationship %s: %w", r.id, ErrNotFound)
	}
	if err := r.store.save(next); err != nil {
		return err
	}
	r.rec = next
	r.announce()
	return nil
}

// announce is for holders of mu.
func (r *relationship) announce() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// remove takes the relationship's file away. What still runs for it sees removed.
func (r *relationship) remove(reason string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.removed {
		r.removed = true
		r.rec.State, r.rec.EndReason = StateEnded, reason
		r.announce()
	}
	return r.store.remove(r.id)
}

// await waits until the relationship is no longer awaiting authorization, and gives what it is then.
func (r *relationship) await(ctx context.Context) (record, error) {
	for {
		r.mu.Lock()
		rec, changed := r.rec, r.changed
		r.mu.Unlock()
		if rec.State != StateAwaitingAuthorization {
			return rec, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return rec, context.Cause(ctx)
		}
	}
}

// setJob notes what the job does now.
func (r *relationship) setJob(state JobState) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.job = state
	if state == JobIdle || state == JobRunning {
		r.retryAt = time.Time{}
	}
}

// fail notes an error; a retry that is planned is shown.
func (r *relationship) fail(state JobState, err error, retryAt time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.job, r.retryAt = state, retryAt
	if err != nil {
		r.lastError, r.lastErrorTime = errorText(err), time.Now()
	}
}

// committed notes a new recovery point.
func (r *relationship) committed(epoch uint64, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.transfers++
	r.point = RecoveryPoint{Epoch: epoch, Time: at}
}

// knowPoint notes the recovery point that there is.
func (r *relationship) knowPoint(epoch uint64, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.point = RecoveryPoint{Epoch: epoch, Time: at}
}

// status puts together what is known.
func (r *relationship) status() Status {
	now := time.Now()
	total := r.wire.Load()
	progress := r.meter.report(now, total)
	left := r.meter.left()
	r.mu.Lock()
	defer r.mu.Unlock()
	s := Status{
		ID: r.id, Role: r.role, State: r.rec.State, EndReason: r.rec.EndReason, Mode: ModeContinuous,
		Enabled: r.rec.Enabled, Source: r.rec.Source, Target: r.rec.Target, Job: r.job, Progress: progress,
		RecoveryPoint: r.point, TotalWireBytes: total, Transfers: r.transfers, LastError: r.lastError,
		LastErrorTime: r.lastErrorTime, RetryAt: r.retryAt, Created: r.rec.Created,
		Verified: VerifiedPoint{r.rec.VerifiedEpoch, r.rec.VerifiedTime},
	}
	if c := r.source.memory.comparing(); c != nil {
		s.Progress.Comparing = c.Reason
	}
	if v := r.source.verify; v != nil {
		short := v.Verification
		short.Found, short.Repairing = nil, r.source.repairing
		s.Verification = &short
	}
	b := r.target.behind
	if r.role == RoleSource {
		b = r.source.behind(now, left.bytes)
		s.Unreadable = r.source.unreadable()
	}
	if b != nil && r.rec.State == StateEstablished {
		s.RecoveryPoint.BehindBytes = &b.bytes
		if r.point.Epoch != 0 {
			s.RecoveryPoint.BehindSeconds = &b.seconds
		}
	}
	return s
}
