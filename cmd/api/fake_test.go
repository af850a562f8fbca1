package api_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"tandemfs/cmd/api"
	"tandemfs/replicator"
)

// fakeNode is a node in memory: it keeps what it is told and notes what it was asked. fail, when set, is
// every answer.
type fakeNode struct {
	mu        sync.Mutex
	volumes   map[string]api.Volume
	relations map[string]replicator.Status
	asked     []string
	fail      error
	restoring func(context.Context) // called in the middle of a restore
}

func newFakeNode() *fakeNode {
	return &fakeNode{volumes: map[string]api.Volume{}, relations: map[string]replicator.Status{}}
}

// ask notes a request and gives the error that it must end with.
func (n *fakeNode) ask(format string, args ...any) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked = append(n.asked, fmt.Sprintf(format, args...))
	return n.fail
}

func (n *fakeNode) Info() api.Info {
	return api.Info{Name: "alpha", Fingerprint: "SHA256:abc", Listen: "[::]:3712", Version: "1"}
}

func (n *fakeNode) Volumes() []api.Volume {
	var all []api.Volume
	for _, v := range n.volumes {
		all = append(all, v)
	}
	return all
}

func (n *fakeNode) Volume(name string) (api.Volume, error) {
	if err := n.ask("volume %s", name); err != nil {
		return api.Volume{}, err
	}
	v, ok := n.volumes[name]
	if !ok {
		return v, api.Errorf(api.CodeNotFound, "no volume %s", name)
	}
	return v, nil
}

func (n *fakeNode) CreateVolume(_ context.Context, w api.CreateVolume) (api.Volume, error) {
	v := api.Volume{Name: w.Name, Path: w.Path, Mount: w.Mount, NoSuid: w.NoSuid, State: api.VolumeMounted}
	n.volumes[w.Name] = v
	return v, n.ask("create %+v", w)
}

func (n *fakeNode) RemoveVolume(_ context.Context, name string) (api.Volume, error) {
	v := n.volumes[name]
	delete(n.volumes, name)
	return v, n.ask("remove %s", name)
}

func (n *fakeNode) Relationships() []replicator.Status {
	var all []replicator.Status
	for _, s := range n.relations {
		all = append(all, s)
	}
	return all
}

func (n *fakeNode) Relationship(id string) (replicator.Status, error) {
	return n.relations[id], n.ask("relationship %s", id)
}

func (n *fakeNode) CreateRelationship(_ context.Context, r replicator.CreateRequest) (replicator.Status, error) {
	return replicator.Status{ID: "r1"}, n.ask("propose %+v", r)
}

func (n *fakeNode) AuthorizeRelationship(_ context.Context, id string, r replicator.AuthorizeRequest) (replicator.Status, error) {
	return replicator.Status{ID: id}, n.ask("authorize %s %+v", id, r)
}

func (n *fakeNode) RejectRelationship(_ context.Context, id string) (replicator.Status, error) {
	return replicator.Status{ID: id}, n.ask("reject %s", id)
}

func (n *fakeNode) DeleteRelationship(_ context.Context, id string) (replicator.Status, error) {
	return replicator.Status{ID: id}, n.ask("delete %s", id)
}

func (n *fakeNode) EnableRelationship(_ context.Context, id string, enabled bool) (replicator.Status, error) {
	return replicator.Status{ID: id, Enabled: enabled}, n.ask("enable %s %v", id, enabled)
}

func (n *fakeNode) RebuildVolume(_ context.Context, name string) (api.Volume, error) {
	return api.Volume{Name: name}, n.ask("rebuild %s", name)
}

func (n *fakeNode) ReconcileRelationship(_ context.Context, id string) (replicator.Status, error) {
	return replicator.Status{ID: id}, n.ask("reconcile %s", id)
}

func (n *fakeNode) VerifyRelationship(_ context.Context, id string, r replicator.VerifyRequest) (replicator.Verification, error) {
	return replicator.Verification{VerifyRequest: r}, n.ask("verify %s %+v", id, r)
}

func (n *fakeNode) StopVerification(_ context.Context, id string) (replicator.Verification, error) {
	return replicator.Verification{}, n.ask("stop verifying %s", id)
}

func (n *fakeNode) Verification(id string) (replicator.Verification, error) {
	return replicator.Verification{}, n.ask("verification %s", id)
}

// mustHaveAsked fails unless the node's last request was want.
func (n *fakeNode) mustHaveAsked(t *testing.T, want string) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.asked) == 0 || n.asked[len(n.asked)-1] != want {
		t.Fatalf("the node was asked %q, want %q last", strings.Join(n.asked, "; "), want)
	}
}
