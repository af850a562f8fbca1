package replicator

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"tandemfs/replicator/wire"
)

// maxProposals bounds how many proposals wait for a decision on this node.
const maxProposals = 100

// maxPath bounds the paths that peers tell of theirs, in bytes.
const maxPath = 4096

// CheckNode refuses what cannot be the name of a node.
func CheckNode(name string) error {
	if !sound(name, wire.MaxNode) || !utf8.ValidString(name) {
		return fmt.Errorf("%w: %q cannot be a node's name: use 1 to %d bytes of text without control characters", ErrInvalid, name, wire.MaxNode)
	}
	return nil
}

// Create makes a relationship on the source. It reaches the target and proposes before it returns, so
// that whatever is wrong with either is an error and leaves nothing behind; ctx bounds that.
func (m *Manager) Create(ctx context.Context, q CreateRequest) (Status, error) {
	rec, err := m.draft(q)
	if err != nil {
		return Status{}, err
	}
	peer, err := m.introduce(ctx, rec)
	if err != nil {
		return Status{}, err
	}
	rec.Target.Node, rec.Target.Fingerprint = peer.Node, peer.Fingerprint
	r := newRelationship(m.store, rec)
	if err := m.enter(r); err != nil {
		m.tellDeleted(rec)
		return Status{}, err
	}
	return r.status(), nil
}

// draft checks a request as far as this node can.
func (m *Manager) draft(q CreateRequest) (record, error) {
	address, err := withPort(q.Target)
	if err != nil {
		return record{}, err
	}
	if q.TargetVolume == "" || len(q.TargetVolume) > wire.MaxNode {
		return record{}, fmt.Errorf("%w: a target volume's name is needed", ErrInvalid)
	}
	vol, err := m.config.Volumes.Volume(q.Source)
	if err != nil {
		return record{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.conflict(q.Source, RoleSource, ""); err != nil {
		return record{}, err
	}
	var id [idLength / 2]byte
	_, _ = rand.Read(id[:]) // never fails
	return record{
		ID: hex.EncodeToString(id[:]), Role: RoleSource, State: StateAwaitingAuthorization, Enabled: !q.Disabled,
		Source:   End{Node: m.config.Node, Fingerprint: m.fingerprint, Volume: q.Source, Path: vol.Path()},
		Target:   End{Fingerprint: q.TargetFingerprint, Address: address, Volume: q.TargetVolume},
		SourceID: vol.ID(), Created: time.Now(),
	}, nil
}

// conflict finds what forbids the volume that role, apart from the relationship except. It is for holders
// of mu.
func (m *Manager) conflict(volume string, role Role, except string) error {
	for id, r := range m.rels {
		rec := r.snapshot()
		if id == except || !rec.uses(volume) {
			continue
		}
		if rec.Role == RoleTarget {
			return fmt.Errorf("%w: volume %q is the target of relationship %s; delete that first", ErrConflict, volume, id)
		}
		if role == RoleTarget {
			return fmt.Errorf("%w: volume %q is the source of relationship %s; delete that first", ErrConflict, volume, id)
		}
	}
	return nil
}

// introduce proposes a relationship that is not kept yet, and learns who the target is.
func (m *Manager) introduce(ctx context.Context, rec record) (wire.Peer, error) {
	conn, err := m.dial(ctx, rec.Target.Address, rec.Target.Fingerprint)
	if err != nil {
		return wire.Peer{}, err
	}
	defer func() { _ = conn.Close() }()
	d, err := ask(ctx, conn, wire.TypePropose, rec.proposal())
	if err != nil {
		return wire.Peer{}, fmt.Errorf("%w: %s: %w", ErrPeer, rec.Target.Address, err)
	}
	switch d.Verdict {
	case wire.VerdictAwaiting:
		return conn.Peer(), nil
	case wire.VerdictConflict:
		return wire.Peer{}, fmt.Errorf("%w: %s refuses: %s", ErrConflict, rec.Target.Address, wire.Printable(d.Reason))
	}
	return wire.Peer{}, fmt.Errorf("%w: %s says %s: %s", ErrPeer, rec.Target.Address, wire.Printable(string(d.Verdict)), wire.Printable(d.Reason))
}

// ask sends a message and waits for the decision on it.
func ask(ctx context.Context, conn *wire.Conn, kind wire.Type, message any) (wire.Decision, error) {
	ctx, cancel := context.WithTimeout(ctx, wire.HandshakeTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	var d wire.Decision
	if err := conn.Send(kind, message); err != nil {
		return d, err
	}
	answer, content, err := conn.Receive(nil)
	if ctx.Err() != nil {
		return d, context.Cause(ctx)
	}
	if err == nil && answer != wire.TypeDecision {
		err = fmt.Errorf("%w: type %d is not a decision", wire.ErrFrame, answer)
	}
	if err == nil {
		err = wire.Parse(content, &d)
	}
	return d, err
}

// enter makes a new relationship of this source one of the manager's.
func (m *Manager) enter(r *relationship) error {
	volume := r.snapshot().Source.Volume
	o, err := m.origin(volume)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errClosing
	}
	if err := m.conflict(volume, RoleSource, ""); err != nil {
		return err
	}
	if err := m.store.save(r.snapshot()); err != nil {
		return err
	}
	if err := o.add(r); err != nil {
		return errors.Join(err, m.store.remove(r.id))
	}
	m.rels[r.id] = r
	m.startJob(r)
	return nil
}

// consider takes a proposal up, or finds what it was decided to be.
func (m *Manager) consider(p wire.Propose, peer wire.Peer) (*relationship, wire.Decision) {
	conflict := func(why string) (*relationship, wire.Decision) {
		return nil, wire.Decision{Verdict: wire.VerdictConflict, Reason: why}
	}
	if !validID(p.ID) || !sound(p.VolumeID, wire.MaxNode) || !sound(p.Volume, wire.MaxNode) || !sound(p.TargetVolume, wire.MaxNode) || !sound(p.Path, maxPath) {
		return conflict("the proposal is not sound")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if t := m.tombstone(p.ID, peer.Fingerprint); t != nil {
		return nil, wire.Decision{Verdict: wire.VerdictEnded, Reason: t.Reason}
	}
	if r := m.rels[p.ID]; r != nil {
		rec := r.snapshot()
		if r.role != RoleTarget || rec.Source.Fingerprint != peer.Fingerprint {
			return conflict("the relationship's id belongs to another node")
		}
		return r, rec.verdict()
	}
	err := m.conflict(p.TargetVolume, RoleTarget, "")
	if err == nil {
		err = m.displace(p, peer)
	}
	if err != nil { // the proposer says itself what kind of refusal it is
		return conflict(strings.TrimPrefix(err.Error(), ErrConflict.Error()+": "))
	}
	r, err := m.note(p, peer)
	if err != nil {
		m.log.Error("a proposal could not be kept", "error", err)
		return conflict("the proposal could not be kept: " + err.Error())
	}
	return r, r.snapshot().verdict()
}

// sound reports whether s is short, not empty, and can be shown.
func sound(s string, most int) bool {
	if s == "" || len(s) > most {
		return false
	}
	for _, c := range s {
		if unicode.IsControl(c) {
			return false
		}
	}
	return true
}

// displace removes an earlier proposal of the same, which its source has given up, and makes sure that
// there are not too many. It is for holders of mu.
func (m *Manager) displace(p wire.Propose, peer wire.Peer) error {
	waiting := 0
	for id, r := range m.rels {
		rec := r.snapshot()
		if rec.Role != RoleTarget || rec.State != StateAwaitingAuthorization {
			continue
		}
		if rec.Source.Fingerprint == peer.Fingerprint && rec.SourceID == p.VolumeID && rec.Target.Volume == p.TargetVolume {
			delete(m.rels, id)
			if err := r.remove("another proposal has taken its place"); err != nil {
				return err
			}
			continue
		}
		waiting++
	}
	if waiting >= maxProposals {
		return fmt.Errorf("%w: %d proposals wait for a decision here already", ErrConflict, waiting)
	}
	return nil
}

// note keeps a proposal. It is for holders of mu.
func (m *Manager) note(p wire.Propose, peer wire.Peer) (*relationship, error) {
	if m.closed {
		return nil, errClosing
	}
	rec := record{
		ID: p.ID, Role: RoleTarget, State: StateAwaitingAuthorization, Enabled: !p.Disabled, SourceID: p.VolumeID, Created: time.Now(),
		Source: End{Node: peer.Node, Fingerprint: peer.Fingerprint, Address: host(peer.Address), Volume: wire.Printable(p.Volume), Path: wire.Printable(p.Path)},
		Target: End{Node: m.config.Node, Fingerprint: m.fingerprint, Volume: p.TargetVolume},
	}
	if err := m.store.save(rec); err != nil {
		return nil, err
	}
	r := newRelationship(m.store, rec)
	m.rels[r.id] = r
	m.log.Info("a relationship is proposed", "id", r.id, "source", rec.Source.Node, "volume", rec.Target.Volume, "fingerprint", rec.Source.Fingerprint)
	return r, nil
}
