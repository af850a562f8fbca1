package daemon

import (
	"context"
	"fmt"
	"strings"

	"tandemfs/cmd/api"
	"tandemfs/replicator"
)

// Info describes the node.
func (n *node) Info() api.Info { return n.info }

// Volumes gives the volumes in the order of their names.
func (n *node) Volumes() []api.Volume {
	var list []api.Volume
	for _, e := range n.volumes.all() {
		list = append(list, n.describe(e))
	}
	return list
}

// Volume finds a volume.
func (n *node) Volume(name string) (api.Volume, error) {
	e, err := n.volumes.find(name)
	if err != nil {
		return api.Volume{}, err
	}
	return n.describe(e), nil
}

// describe adds to a volume what only the manager of relationships knows.
func (n *node) describe(e *entry) api.Volume {
	v := e.describe()
	v.Relationships = append([]string{}, n.manager.VolumeInUse(v.Name)...)
	return v
}

// CreateVolume protects a directory.
func (n *node) CreateVolume(_ context.Context, want api.CreateVolume) (api.Volume, error) {
	e, err := n.volumes.create(want)
	if err != nil {
		return api.Volume{}, err
	}
	v := n.describe(e)
	n.log.Info("volume created", "volume", v.Name, "path", v.Path, "mount", v.Mount)
	return v, nil
}

// RebuildVolume has a volume whose journal is damaged begin a new one.
func (n *node) RebuildVolume(_ context.Context, name string) (api.Volume, error) {
	e, err := n.volumes.rebuild(name)
	if err != nil {
		return api.Volume{}, err
	}
	n.log.Warn("volume rebuilt", "volume", name)
	return n.describe(e), n.manager.Reopened(name)
}

// RemoveVolume ends a directory's protection, unless a relationship uses the volume.
func (n *node) RemoveVolume(_ context.Context, name string) (api.Volume, error) {
	n.binding.Lock()
	defer n.binding.Unlock()
	if ids := n.manager.VolumeInUse(name); len(ids) > 0 {
		return api.Volume{}, api.Errorf(api.CodeConflict,
			"volume %s is used by relationship %s: delete that first", name, strings.Join(ids, " and "))
	}
	v, err := n.volumes.remove(name)
	if err != nil {
		return api.Volume{}, err
	}
	v.Relationships = []string{}
	n.log.Info("volume removed", "volume", v.Name, "path", v.Path)
	return v, nil
}

// Relationships gives all relationships, oldest first.
func (n *node) Relationships() []replicator.Status { return n.manager.List() }

// Relationship gives the one relationship whose id is or begins with id.
func (n *node) Relationship(id string) (replicator.Status, error) {
	var found []string
	for _, s := range n.manager.List() {
		if s.ID == id {
			return n.manager.Status(id)
		}
		if strings.HasPrefix(s.ID, id) {
			found = append(found, s.ID)
		}
	}
	switch len(found) {
	case 0:
		return replicator.Status{}, fmt.Errorf("%w: %q (`tandemfs relationship list` shows those there are)", replicator.ErrNotFound, id)
	case 1:
		return n.manager.Status(found[0])
	}
	return replicator.Status{}, api.Errorf(api.CodeInvalid, "%q could be %s: give more of the id", id, strings.Join(found, " or "))
}

// CreateRelationship proposes a relationship to a target.
func (n *node) CreateRelationship(ctx context.Context, r replicator.CreateRequest) (replicator.Status, error) {
	if err := checkName(r.TargetVolume); err != nil {
		return replicator.Status{}, err
	}
	n.binding.RLock()
	defer n.binding.RUnlock()
	s, err := n.manager.Create(ctx, r)
	if err == nil {
		n.log.Info("relationship created", "relationship", s.ID, "source", r.Source, "target", r.Target, "target_volume", r.TargetVolume)
	}
	return s, err
}

// AuthorizeRelationship accepts a proposed relationship.
func (n *node) AuthorizeRelationship(ctx context.Context, id string, r replicator.AuthorizeRequest) (replicator.Status, error) {
	s, err := n.Relationship(id)
	if err != nil {
		return s, err
	}
	n.binding.RLock()
	defer n.binding.RUnlock()
	if s, err = n.manager.Authorize(ctx, s.ID, r); err == nil {
		n.log.Info("relationship authorized", "relationship", s.ID, "source", s.Source.Node, "fingerprint", s.Source.Fingerprint)
	}
	return s, err
}

// RejectRelationship turns a proposed relationship down.
func (n *node) RejectRelationship(ctx context.Context, id string) (replicator.Status, error) {
	s, err := n.Relationship(id)
	if err != nil {
		return s, err
	}
	if err := n.manager.Reject(ctx, s.ID); err != nil {
		return s, err
	}
	n.log.Info("relationship rejected", "relationship", s.ID, "source", s.Source.Node, "fingerprint", s.Source.Fingerprint)
	return s, nil
}

// EnableRelationship lets a relationship run, or pauses it.
func (n *node) EnableRelationship(ctx context.Context, id string, enabled bool) (replicator.Status, error) {
	s, err := n.Relationship(id)
	if err != nil {
		return s, err
	}
	if s, err = n.manager.SetEnabled(ctx, s.ID, enabled); err == nil {
		n.log.Info("relationship switched", "relationship", s.ID, "enabled", enabled)
	}
	return s, err
}

// ReconcileRelationship makes the next transfer compare both sides and make the target what the source is.
func (n *node) ReconcileRelationship(ctx context.Context, id string) (replicator.Status, error) {
	s, err := n.Relationship(id)
	if err != nil {
		return s, err
	}
	if s, err = n.manager.Reconcile(ctx, s.ID); err == nil {
		n.log.Info("relationship to be reconciled", "relationship", s.ID)
	}
	return s, err
}

// VerifyRelationship begins to compare both sides.
func (n *node) VerifyRelationship(ctx context.Context, id string, r replicator.VerifyRequest) (replicator.Verification, error) {
	s, err := n.Relationship(id)
	if err != nil {
		return replicator.Verification{}, err
	}
	return n.manager.Verify(ctx, s.ID, r)
}

// StopVerification ends a comparison of both sides, and those that would follow.
func (n *node) StopVerification(ctx context.Context, id string) (replicator.Verification, error) {
	s, err := n.Relationship(id)
	if err != nil {
		return replicator.Verification{}, err
	}
	return n.manager.StopVerify(ctx, s.ID)
}

// Verification says how a comparison of both sides stands.
func (n *node) Verification(id string) (replicator.Verification, error) {
	s, err := n.Relationship(id)
	if err != nil {
		return replicator.Verification{}, err
	}
	return n.manager.Verification(s.ID)
}

// DeleteRelationship ends a relationship; a target becomes writable, also one whose volume cannot be
// opened at the moment: it will be writable when it can.
func (n *node) DeleteRelationship(ctx context.Context, id string) (replicator.Status, error) {
	s, err := n.Relationship(id)
	if err != nil {
		return s, err
	}
	if err := n.manager.Delete(ctx, s.ID); err != nil {
		return s, err
	}
	n.log.Info("relationship deleted", "relationship", s.ID, "role", s.Role)
	n.binding.Lock()
	defer n.binding.Unlock()
	n.releaseTargets()
	return s, nil
}
