package replicator

import (
	"errors"
	"time"

	"tandemfs/journal"
	"tandemfs/journal/crashpoint"
	"tandemfs/replicator/wire"
)

// reachPeer is how long an end that is told to delete tries to tell the other.
const reachPeer = 5 * time.Second

// tombstone finds what is remembered of an ended relationship with that peer. It is for holders of mu.
func (m *Manager) tombstone(id, fingerprint string) *tombstone {
	for i := range m.stones {
		if t := &m.stones[i]; t.ID == id && t.Fingerprint == fingerprint {
			return t
		}
	}
	return nil
}

// bury remembers why a relationship was ended here.
func (m *Manager) bury(t tombstone) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	stones := append(m.stones[max(0, len(m.stones)-maxTombstones+1):len(m.stones):len(m.stones)], t)
	if err := m.store.saveTombstones(stones); err != nil {
		return err
	}
	m.stones = stones
	return nil
}

// endTarget ends a relationship on its target. tell says that the source does not know yet: then it is
// told over the connection that there may be, and whenever it comes back. The order makes a crash in
// between harmless: until the file is gone the volume stays a target, and the end can be asked for again. Where
// somebody else has ended it meanwhile there is nothing to do: the volume may be another's by then.
func (m *Manager) endTarget(r *relationship, reason string, tell bool) error {
	r.deciding.Lock()
	defer r.deciding.Unlock()
	if m.listed(r) != nil {
		return nil
	}
	rec := r.snapshot()
	if tell {
		if err := m.bury(tombstone{rec.ID, rec.Source.Fingerprint, reason}); err != nil {
			return err
		}
		crashpoint.Here("replicator/end-buried")
	}
	r.endSession(reason, tell)
	if rec.TargetID != "" { // it was authorized
		if err := m.unclaim(rec); err != nil {
			return err
		}
	}
	return m.forgetRelationship(r, reason)
}

// endSession ends the target's session, and makes sure that there is no other.
func (r *relationship) endSession(reason string, tell bool) {
	r.mu.Lock()
	s, verify := r.target.session, r.target.verify
	r.removed = true
	r.rec.State, r.rec.EndReason = StateEnded, reason
	r.announce()
	r.mu.Unlock()
	if verify != nil {
		verify.end()
	}
	if s == nil {
		return
	}
	if tell {
		stuck := time.AfterFunc(lastWord, func() { s.cancel(errEnded) })
		_ = s.conn.Send(wire.TypeBye, wire.Bye{ID: r.id, Ended: true, Reason: reason}) // else it learns when it comes back
		stuck.Stop()
	}
	s.cancel(errEnded)
	<-s.done
}

// unclaim makes a target volume an ordinary one: what was applied since the recovery point is undone, and the
// mount accepts writes. A volume that is not open is not read-only either.
func (m *Manager) unclaim(rec record) error {
	vol, err := m.config.Volumes.Volume(rec.Target.Volume)
	if err != nil {
		m.log.Warn("the target volume is not there to be freed", "relationship", rec.ID, "volume", rec.Target.Volume, "error", err)
		return nil
	}
	if vol.ID() != rec.TargetID {
		return nil
	}
	if err := vol.Thaw(); err != nil {
		return err
	}
	crashpoint.Here("replicator/end-thawed")
	if err := vol.DropAside(func(journal.Ident) error { return nil }); err != nil {
		return err
	}
	j := vol.Journal()
	err = errors.Join(j.Map(rec.ID).Drop(), j.SetState(targetKey(rec.ID), nil))
	crashpoint.Here("replicator/end-forgotten")
	err = errors.Join(err, vol.SetReadOnly(false))
	crashpoint.Here("replicator/end-writable")
	return err
}
