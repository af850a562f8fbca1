package replicator

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"tandemfs/journal/crashpoint"
	"tandemfs/replicator/wire"
)

// proposal finds a proposed relationship on its target.
func (m *Manager) proposal(id string) (*relationship, error) {
	r, err := m.find(id)
	if err != nil {
		return nil, err
	}
	rec := r.snapshot()
	if r.role != RoleTarget {
		return nil, fmt.Errorf("%w: relationship %s is decided on its target, node %s", ErrConflict, id, rec.Target.Node)
	}
	if rec.State != StateAwaitingAuthorization {
		return nil, fmt.Errorf("%w: relationship %s is %s", ErrConflict, id, rec.State)
	}
	return r, nil
}

// Authorize accepts a proposed relationship, on the target: from now on the source's fingerprint is
// trusted with the volume, which becomes read-only. Anything wrong leaves all as it was.
func (m *Manager) Authorize(ctx context.Context, id string, q AuthorizeRequest) (Status, error) {
	_, done, err := m.decide(id)
	if err != nil {
		return Status{}, err
	}
	defer done()
	r, err := m.proposal(id)
	if err != nil {
		return Status{}, err
	}
	rec := r.snapshot()
	if q.SourceFingerprint != "" && q.SourceFingerprint != rec.Source.Fingerprint {
		return Status{}, fmt.Errorf("%w: the source's fingerprint is %s, not %s", ErrConflict, rec.Source.Fingerprint, q.SourceFingerprint)
	}
	vol, err := m.targetVolume(ctx, rec.Target.Volume, q.CreateDir)
	if err != nil {
		return Status{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.conflict(rec.Target.Volume, RoleTarget, id); err != nil {
		return Status{}, err
	}
	if err := claim(vol, id, q.AllowNonEmpty); err != nil {
		return Status{}, err
	}
	crashpoint.Here("replicator/claimed")
	err = r.update(func(rec *record) {
		rec.State, rec.TargetID, rec.AllowNonEmpty = StateEstablished, vol.ID(), q.AllowNonEmpty
		rec.Target.Path, rec.Target.ReadOnly = vol.Path(), true
	})
	if err != nil {
		return Status{}, errors.Join(err, vol.SetReadOnly(false))
	}
	r.setJob(restingJob(r.snapshot()))
	return r.status(), nil
}

// targetVolume finds the volume, or makes it where that was asked for.
func (m *Manager) targetVolume(ctx context.Context, name, dir string) (Volume, error) {
	vol, err := m.config.Volumes.Volume(name)
	switch {
	case err == nil && dir != "":
		return nil, fmt.Errorf("%w: volume %q exists already; authorize without making it", ErrConflict, name)
	case err == nil:
		return vol, nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	case dir == "":
		return nil, fmt.Errorf("%w; create it first, or authorize with a directory to make it of", err)
	}
	if vol, err = m.config.Volumes.CreateVolume(ctx, name, dir); err != nil {
		return nil, fmt.Errorf("volume %q of %s: %w", name, dir, err)
	}
	return vol, nil
}

// claim makes a volume a relationship's target: read-only, frozen, without memories, and empty unless that is
// not asked for.
func claim(vol Volume, id string, allowNonEmpty bool) error {
	if err := vol.SetReadOnly(true); err != nil {
		return err
	}
	empty, err := vol.IsEmpty()
	if err == nil && !empty && !allowNonEmpty {
		err = fmt.Errorf("%w: volume %q is not empty (%s): empty it, or authorize with --allow-non-empty, and what is in it will be replaced by the source's", ErrConflict, vol.Name(), vol.Path())
	}
	if err == nil {
		err = vol.Journal().SetState(targetKey(id), nil)
	}
	if err == nil {
		err = vol.Freeze()
	}
	if err != nil {
		return errors.Join(err, vol.SetReadOnly(false))
	}
	return nil
}

// Reject refuses a proposed relationship, on the target. The source is told, now or when it asks.
func (m *Manager) Reject(_ context.Context, id string) error {
	r, err := m.proposal(id)
	if err != nil {
		return err
	}
	return m.endTarget(r, "it was rejected by "+m.config.Node, true)
}

// SetEnabled lets a relationship's job run, or stops it. It is the source's to say.
func (m *Manager) SetEnabled(_ context.Context, id string, enabled bool) (Status, error) {
	r, done, err := m.decide(id)
	if err != nil {
		return Status{}, err
	}
	defer done()
	rec := r.snapshot()
	if r.role != RoleSource {
		return Status{}, fmt.Errorf("%w: relationship %s is enabled and disabled on its source, node %s", ErrConflict, id, rec.Source.Node)
	}
	if rec.State == StateEnded {
		return Status{}, fmt.Errorf("%w: relationship %s has ended: %s", ErrConflict, id, rec.EndReason)
	}
	if err := r.update(func(rec *record) { rec.Enabled = enabled }); err != nil {
		return Status{}, err
	}
	if r.snapshot().State == StateAwaitingAuthorization {
		return r.status(), nil // the job runs in any case, to hear of the decision
	}
	if !enabled {
		r.stopVerify(VerifyStopped, nil)
	}
	if !enabled || !r.busy() {
		r.stopJob()
	}
	m.mu.Lock()
	m.startJob(r)
	m.mu.Unlock()
	return r.status(), nil
}

// Reconcile makes the next transfer compare both sides and make the target what the source is, whatever either
// remembers. It is the source's to say.
func (m *Manager) Reconcile(_ context.Context, id string) (Status, error) {
	r, done, err := m.decide(id)
	if err != nil {
		return Status{}, err
	}
	defer done()
	rec := r.snapshot()
	if r.role != RoleSource {
		return Status{}, fmt.Errorf("%w: relationship %s is reconciled by its source, node %s", ErrConflict, id, rec.Source.Node)
	}
	if rec.State != StateEstablished {
		return Status{}, fmt.Errorf("%w: relationship %s is %s", ErrConflict, id, rec.State)
	}
	o, err := m.origin(rec.Source.Volume)
	if err != nil {
		return Status{}, err
	}
	if err := o.compare(r, comparison{Reason: reasonAsked, All: true, Asked: true}, false); err != nil {
		return Status{}, err
	}
	if !r.busy() { // it need not wait for the next try
		r.stopJob()
		m.mu.Lock()
		m.startJob(r)
		m.mu.Unlock()
	}
	r.wake()
	return r.status(), nil
}

// busy reports whether there is a connection that does what it should.
func (r *relationship) busy() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.job == JobIdle || r.job == JobRunning
}

// Delete ends a relationship on this end and tells the peer if it can be reached; it works in any state,
// and when the peer is gone. A target volume becomes writable.
func (m *Manager) Delete(_ context.Context, id string) error {
	r, err := m.find(id)
	if err != nil {
		return err
	}
	if r.role == RoleTarget {
		return m.endTarget(r, "it was deleted on its target, node "+m.config.Node, true)
	}
	return m.deleteSource(id)
}

func (m *Manager) deleteSource(id string) error {
	r, done, err := m.decide(id)
	if err != nil {
		return err
	}
	defer done()
	r.stopVerify(VerifyStopped, nil)
	r.stopJob()
	rec := r.snapshot()
	if err := m.release(r); err != nil { // what it keeps goes when the volume is used again
		m.log.Warn("the source volume cannot be told of the deletion", "relationship", id, "error", err)
	}
	if err := m.forgetRelationship(r, "it was deleted"); err != nil {
		return err
	}
	if rec.State != StateEnded {
		m.tellDeleted(rec)
	}
	return nil
}

// forgetRelationship takes a relationship off the list, and its file away.
func (m *Manager) forgetRelationship(r *relationship, reason string) error {
	m.mu.Lock()
	delete(m.rels, r.id)
	m.mu.Unlock()
	return r.remove(reason)
}

// tellDeleted tells the target that a relationship is deleted at its source. Where that fails the target
// has to be deleted on its own.
func (m *Manager) tellDeleted(rec record) {
	ctx, cancel := context.WithTimeout(m.ctx, reachPeer)
	defer cancel()
	conn, err := m.dial(ctx, rec.Target.Address, rec.Target.Fingerprint)
	if err == nil {
		_, err = ask(ctx, conn, wire.TypeBye, wire.Bye{ID: rec.ID, Ended: true})
		_ = conn.Close() // its work is done
	}
	if err != nil {
		m.log.Warn("the target does not know yet that the relationship is deleted: delete it there too", "relationship", rec.ID, "target", rec.Target.Node, "error", err)
	}
}
