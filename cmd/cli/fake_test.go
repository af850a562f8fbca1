package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tandemfs/cmd/api"
	"tandemfs/cmd/daemon"
	"tandemfs/replicator"
)

// TestMain has local times be the same everywhere.
func TestMain(m *testing.M) {
	time.Local = time.UTC
	os.Exit(m.Run())
}

// noon is the time at which all tests run.
var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// fakeNode answers what a test has put in, and notes what it was told to do.
type fakeNode struct {
	deleted       replicator.Status // what the one that is deleted was
	verifications []replicator.Verification
	volumes       []api.Volume
	statuses      []replicator.Status // of one relationship, one for each time somebody asks; the last one stays
	asked         int
	created       api.CreateVolume
	proposed      replicator.CreateRequest
	accepted      replicator.AuthorizeRequest
	did           []string
	fail          error
	watched       func(n int) // called with how often the status was asked for
	relations     []replicator.Status
	snapshots     []api.Snapshot // of every volume
	changes       []api.Change
	regions       []api.Region
	paged         func() // called for each page of changes
}

func (n *fakeNode) Info() api.Info {
	return api.Info{Name: "alpha", Fingerprint: "SHA256:aaa", Listen: "[::]:3712", Version: "1.2",
		State: "/var/lib/tandemfs", Started: noon.Add(-90 * time.Minute)}
}

func (n *fakeNode) Volumes() []api.Volume { return n.volumes }

func (n *fakeNode) Volume(name string) (api.Volume, error) {
	for _, v := range n.volumes {
		if v.Name == name {
			return v, n.fail
		}
	}
	return api.Volume{}, api.Errorf(api.CodeNotFound, "no volume %q", name)
}

func (n *fakeNode) CreateVolume(_ context.Context, w api.CreateVolume) (api.Volume, error) {
	n.created = w
	mount := w.Mount
	if mount == "" {
		mount = w.Path
	}
	return api.Volume{Name: w.Name, Path: w.Path, Mount: mount, State: api.VolumeMounted, Relationships: []string{}}, n.fail
}

func (n *fakeNode) RemoveVolume(_ context.Context, name string) (api.Volume, error) {
	n.did = append(n.did, "remove "+name)
	return n.Volume(name)
}

func (n *fakeNode) Relationships() []replicator.Status { return n.relations }

func (n *fakeNode) Relationship(id string) (replicator.Status, error) {
	if n.fail != nil {
		return replicator.Status{}, n.fail
	}
	n.asked++
	if n.watched != nil {
		n.watched(n.asked)
	}
	return n.statuses[min(n.asked, len(n.statuses))-1], nil
}

func (n *fakeNode) CreateRelationship(_ context.Context, r replicator.CreateRequest) (replicator.Status, error) {
	n.proposed = r
	return awaiting(replicator.RoleSource), n.fail
}

func (n *fakeNode) AuthorizeRelationship(_ context.Context, id string, r replicator.AuthorizeRequest) (replicator.Status, error) {
	n.accepted = r
	n.did = append(n.did, "authorize "+id)
	return awaiting(replicator.RoleTarget), nil
}

func (n *fakeNode) RejectRelationship(_ context.Context, id string) (replicator.Status, error) {
	n.did = append(n.did, "reject "+id)
	return replicator.Status{ID: id}, nil
}

func (n *fakeNode) DeleteRelationship(_ context.Context, id string) (replicator.Status, error) {
	n.did = append(n.did, "delete "+id)
	s := n.deleted
	s.ID = id
	return s, nil
}

func (n *fakeNode) EnableRelationship(_ context.Context, id string, enabled bool) (replicator.Status, error) {
	n.did = append(n.did, map[bool]string{true: "enable ", false: "disable "}[enabled]+id)
	return replicator.Status{ID: id, Enabled: enabled}, nil
}

func (n *fakeNode) RebuildVolume(_ context.Context, name string) (api.Volume, error) {
	n.did = append(n.did, "rebuild "+name)
	return api.Volume{Name: name}, nil
}

func (n *fakeNode) ReconcileRelationship(_ context.Context, id string) (replicator.Status, error) {
	n.did = append(n.did, "reconcile "+id)
	return replicator.Status{ID: id}, nil
}

func (n *fakeNode) VerifyRelationship(_ context.Context, id string, r replicator.VerifyRequest) (replicator.Verification, error) {
	n.did = append(n.did, fmt.Sprintf("verify %s %+v", id, r))
	return n.verification(), nil
}

func (n *fakeNode) StopVerification(_ context.Context, id string) (replicator.Verification, error) {
	n.did = append(n.did, "stop verifying "+id)
	return replicator.Verification{State: replicator.VerifyStopped}, nil
}

func (n *fakeNode) Verification(string) (replicator.Verification, error) {
	return n.verification(), nil
}

// verification gives the next of what is prepared, the last one for ever.
func (n *fakeNode) verification() replicator.Verification {
	if len(n.verifications) == 0 {
		return replicator.Verification{State: replicator.VerifyNone}
	}
	v := n.verifications[0]
	if len(n.verifications) > 1 {
		n.verifications = n.verifications[1:]
	}
	return v
}

// desk is a terminal, or none, at which commands are given to a fake node.
type desk struct {
	t      *testing.T
	node   *fakeNode
	socket string
	stdin  string
	asks   bool
	shows  bool
	served daemon.Options
	ctx    context.Context
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	t.Setenv("TANDEMFS_SOCKET", "")
	d := &desk{t: t, node: &fakeNode{}, socket: filepath.Join(t.TempDir(), "s"), ctx: t.Context()}
	ln, err := api.Listen(d.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := api.NewServer(d.node, slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() { done <- server.Serve(ln) }()
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return d
}

// run gives a command, in words separated by spaces, to this desk's node.
func (d *desk) run(line string) (code int, stdout, stderr string) {
	d.t.Helper()
	return d.give(append(strings.Fields(line), "--socket", d.socket)...)
}

// give gives a command as it is.
func (d *desk) give(args ...string) (code int, stdout, stderr string) {
	d.t.Helper()
	var out, errs bytes.Buffer
	code = Run(d.ctx, Env{
		Args: append([]string{"tandemfs"}, args...), Version: "1.2",
		Stdin: io.Reader(strings.NewReader(d.stdin)), Stdout: &out, Stderr: &errs,
		Asks: d.asks, Shows: d.shows, Width: func() int { return 100 }, Now: func() time.Time { return noon },
		Serve: func(_ context.Context, o daemon.Options) error { d.served = o; return d.node.fail },
	})
	return code, out.String(), errs.String()
}

// must gives a command that has to work, and compares what it writes.
func (d *desk) must(line, want string) {
	d.t.Helper()
	code, out, errs := d.run(line)
	if code != 0 || errs != "" {
		d.t.Fatalf("%s: exit code %d, %s", line, code, errs)
	}
	if out != want {
		d.t.Errorf("%s wrote\n%s\nwant\n%s", line, out, want)
	}
}

// mustFail gives a command that has to fail, with an exit code and words on the standard error.
func (d *desk) mustFail(line string, code int, says string) {
	d.t.Helper()
	got, out, errs := d.run(line)
	if got != code || !strings.Contains(errs, says) {
		d.t.Errorf("%s: exit code %d with %q, want %d with %q", line, got, errs, code, says)
	}
	if out != "" {
		d.t.Errorf("%s wrote %q to the standard output", line, out)
	}
}

func pointer[T any](v T) *T { return &v }

// awaiting is a relationship that nobody has authorized yet.
func awaiting(role replicator.Role) replicator.Status {
	return replicator.Status{
		ID: "3f2a9c11d07b", Role: role, State: replicator.StateAwaitingAuthorization,
		Mode: replicator.ModeContinuous, Enabled: true, Job: replicator.JobWaiting,
		Source:  replicator.End{Node: "alpha", Fingerprint: "SHA256:aaa", Address: "10.0.0.1:40112", Volume: "data", Path: "/srv/data"},
		Target:  replicator.End{Node: "beta", Fingerprint: "SHA256:bbb", Address: "10.0.0.2:3712", Volume: "copy"},
		Created: noon.Add(-time.Minute),
	}
}

// transferring is a relationship in the middle of its first transfer.
func transferring(percent float64) replicator.Status {
	s := awaiting(replicator.RoleSource)
	s.State, s.Job = replicator.StateEstablished, replicator.JobRunning
	s.Target.Path, s.Target.ReadOnly = "/srv/copy", true
	s.Progress = replicator.Progress{
		First: true, Started: noon.Add(-20 * time.Second), RunSeconds: 20, PercentComplete: percent, ETASeconds: pointer(190.0),
		Files:     replicator.Count{Transferred: 1200, Unchanged: 3, Remaining: 397, Total: 1600},
		Bytes:     replicator.Count{Transferred: 3 << 29, Remaining: 3 << 29, Total: 3 << 30},
		WireBytes: 1 << 30, ThroughputOverall: 75 << 20, ThroughputCurrent: 80 << 20,
	}
	s.TotalWireBytes, s.Transfers = 1<<30, 0
	s.RecoveryPoint.BehindBytes = pointer(int64(3 << 30))
	return s
}

// caughtUp is a relationship with all on the target.
func caughtUp() replicator.Status {
	s := transferring(100)
	s.Job, s.Transfers = replicator.JobIdle, 17
	s.Progress.First = false
	s.RecoveryPoint = replicator.RecoveryPoint{Epoch: 42, Time: noon.Add(-3 * time.Second), BehindSeconds: pointer(0.0), BehindBytes: pointer(int64(0))}
	return s
}
