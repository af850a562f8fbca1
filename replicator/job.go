package replicator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tandemfs/replicator/wire"
)

// Why a job ends that was not told to.
var (
	errDisabled = errors.New("the relationship is disabled")
	errEnded    = errors.New("the relationship has ended")
)

// startJob runs the source's job where there is something for it to do: for an established relationship
// that is enabled, and for one that is waiting for authorization. It is for holders of the manager's mu.
func (m *Manager) startJob(r *relationship) {
	r.mu.Lock()
	defer r.mu.Unlock()
	wanted := r.rec.State == StateAwaitingAuthorization || r.rec.State == StateEstablished && r.rec.Enabled
	if r.role != RoleSource || !wanted || !m.started || m.closed || r.removed || r.source.stop != nil {
		return
	}
	ctx, cancel := context.WithCancelCause(m.ctx)
	done := make(chan struct{})
	r.source.stop = func() {
		cancel(errDisabled)
		<-done
	}
	r.resumeVerify()
	m.running.Go(func() {
		defer close(done)
		m.job(ctx, r)
		cancel(nil)
	})
}

// stopJob ends the job and waits for it. Who calls it decides about the relationship, so that nobody else starts one.
func (r *relationship) stopJob() {
	r.mu.Lock()
	stop := r.source.stop
	r.mu.Unlock()
	if stop != nil {
		stop()
	}
	r.mu.Lock()
	r.source.stop = nil
	r.mu.Unlock()
}

// job keeps a connection to the target for as long as the relationship wants one, with growing pauses
// between tries that fail, for ever.
func (m *Manager) job(ctx context.Context, r *relationship) {
	var pause backoff
	for {
		err := m.connect(ctx, r, &pause)
		if ctx.Err() != nil || errors.Is(err, errDisabled) || errors.Is(err, errEnded) {
			rec := r.snapshot()
			r.fail(restingJob(rec), nil, time.Time{})
			return
		}
		wait := pause.next()
		state := JobDisconnected
		if errors.As(err, new(failure)) {
			state = failedJob(err)
		}
		if state == JobNoSpace {
			wait = min(wait, longestFull)
		}
		if r.snapshot().State == StateAwaitingAuthorization {
			state = JobWaiting
		}
		r.meter.finish(time.Now(), false, work{}, r.wire.Load())
		r.fail(state, err, time.Now().Add(wait))
		m.log.Warn("relationship", "id", r.id, "state", state, "error", err, "retry", wait)
		m.measureMissed(r)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// connect runs one connection from the dial to its end, which is always an error.
func (m *Manager) connect(ctx context.Context, r *relationship, pause *backoff) error {
	rec := r.snapshot()
	o, err := m.origin(rec.Source.Volume)
	if err != nil {
		return failure{err}
	}
	conn, err := m.dial(ctx, rec.Target.Address, rec.Target.Fingerprint)
	if err != nil {
		return err
	}
	conn.CountInto(&r.wire)
	s := &sourceSession{m: m, r: r, origin: o, conn: conn, pause: pause, replies: make(chan any, 4)}
	err = s.run(ctx)
	if s.came.Load() && !errors.Is(err, errUnreadable) && !full(err) {
		pause.reset()
	}
	return err
}

// dial connects to a node. fingerprint is the only one accepted; empty means any.
func (m *Manager) dial(ctx context.Context, address, fingerprint string) (*wire.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, wire.HandshakeTimeout)
	defer cancel()
	nc, err := m.config.Dial(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPeer, err)
	}
	conn, err := wire.Client(ctx, nc, wire.Options{Identity: m.config.Identity, Node: m.config.Node, Fingerprint: fingerprint, Features: features})
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrPeer, address, err)
	}
	if conn.Peer().Fingerprint == m.fingerprint {
		_ = conn.Close() // it is this very node
		return nil, fmt.Errorf("%w: %s is this node itself; a relationship is between two", ErrInvalid, address)
	}
	return conn, nil
}

// origin gives a source volume, taking it over where it was opened anew. A volume that is being opened keeps waiting
// who wants that very one.
func (m *Manager) origin(name string) (*origin, error) {
	vol, err := m.config.Volumes.Volume(name)
	if err != nil {
		return nil, err
	}
	m.taking.Lock()
	defer m.taking.Unlock()
	if o := m.origins[name]; o != nil {
		if o.vol.Journal() == vol.Journal() {
			return o, nil
		}
		o.stop()
	}
	o, err := newOrigin(vol, m.sources(name))
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(m.ctx)
	o.stop = stop
	m.running.Go(func() { o.watch(ctx) })
	m.origins[name] = o
	return o, nil
}

// sources gives the relationships whose source a volume is.
func (m *Manager) sources(name string) (list []*relationship) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.rels {
		if rec := r.snapshot(); rec.Role == RoleSource && rec.uses(name) {
			list = append(list, r)
		}
	}
	return list
}

// measureMissed notes how much has changed so far that the target does not have. The records of the
// current epoch cannot be counted, so it is sealed: that costs next to nothing.
func (m *Manager) measureMissed(r *relationship) {
	o, err := m.origin(r.snapshot().Source.Volume)
	if err != nil {
		return // the job's error says so
	}
	r.mu.Lock()
	epoch := r.source.memory.Epoch
	r.mu.Unlock()
	j := o.vol.Journal()
	if epoch == 0 || !j.Dirty() && j.Epoch() <= epoch+1 {
		return
	}
	last := j.Epoch() - 1
	if j.Dirty() {
		if last, err = j.Seal(false); err != nil {
			return
		}
	}
	changes, err := j.Changes(epoch, last)
	if err != nil {
		return
	}
	_, _, bytes := changes.Totals()
	r.mu.Lock()
	r.source.missed = bytes
	r.mu.Unlock()
}
