package cli

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"tandemfs/cmd/api"
	"tandemfs/cmd/daemon"
	"tandemfs/replicator"
)

// nodeThatLogs is a node whose whole life is two log lines.
func nodeThatLogs(_ context.Context, o daemon.Options) error {
	o.Logger.Log(context.Background(), slog.LevelDebug, "x")
	o.Logger.Info("y")
	return nil
}

func TestNothingDangerousHappensWithoutAYes(t *testing.T) {
	commands := map[string]string{
		"volume remove data":        "remove data",
		"volume rebuild data":       "rebuild data",
		"snapshot delete data s":    "delete data:s",
		"snapshot restore data s":   `restore data:s ""`,
		"snapshot restore data s p": `restore data:s "p"`,
		"relationship authorize 3f": "authorize 3f2a9c11d07b",
		"relationship delete 3f":    "delete 3f2a9c11d07b",
		"relationship reconcile 3f": "reconcile 3f2a9c11d07b",
	}
	for line, done := range commands {
		for _, c := range []struct {
			name, stdin, flag string
			terminal          bool
			code              int
		}{
			{"yes on a terminal", "yes\n", "", true, 0},
			{"y on a terminal", "y\n", "", true, 0},
			{"no on a terminal", "n\n", "", true, 1},
			{"just return", "\n", "", true, 1},
			{"the end of the input", "", "", true, 1},
			{"yes, but not on a terminal", "yes\n", "", false, 2},
			{"the flag", "", " --yes", false, 0},
		} {
			d := newDesk(t)
			d.node.volumes = []api.Volume{dataVolume()}
			d.node.snapshots = []api.Snapshot{{Name: "s", Created: noon}}
			d.node.statuses = []replicator.Status{awaiting(replicator.RoleTarget)}
			d.asks, d.stdin = c.terminal, c.stdin
			code, _, errs := d.run(line + c.flag)
			if code != c.code {
				t.Errorf("%s, %s: exit code %d, want %d: %s", line, c.name, code, c.code, errs)
			}
			if got := strings.Join(d.node.did, ";"); (code == 0) != (got == done) || (code != 0 && got != "") {
				t.Errorf("%s, %s: the node did %q", line, c.name, got)
			}
		}
	}
}

func TestAuthorizeShowsWhomItTrustsAndTrustsNobodyElse(t *testing.T) {
	d := newDesk(t)
	d.node.statuses = []replicator.Status{awaiting(replicator.RoleTarget)}
	d.asks, d.stdin = true, "y\n"
	code, _, errs := d.run("relationship authorize 3f --create /srv/copy --allow-non-empty")
	const want = `Relationship 3f2a9c11d07b
  source           volume data on node alpha
  directory there  /srv/data
  address          10.0.0.1:40112
  fingerprint      SHA256:aaa
  target           volume copy of this node, to be made, protecting /srv/copy
What is in the target volume and not in the source will be removed.
The target volume becomes read-only here; only the source changes it.
Trust this fingerprint and begin? [y/N] `
	if code != 0 || errs != want {
		t.Errorf("exit code %d, asked\n%s\nwant\n%s", code, errs, want)
	}
	asked := replicator.AuthorizeRequest{AllowNonEmpty: true, CreateDir: "/srv/copy", SourceFingerprint: "SHA256:aaa"}
	if d.node.accepted != asked {
		t.Errorf("the node was asked for %+v, want %+v", d.node.accepted, asked)
	}
	if _, _, errs := d.run("relationship authorize 3f --yes --source-fingerprint SHA256:other"); d.node.accepted.SourceFingerprint != "SHA256:other" {
		t.Errorf("the node was asked for %+v: %s", d.node.accepted, errs)
	}
}

func TestDeleteSaysWhatTheTargetWillHold(t *testing.T) {
	busy := caughtUp()
	busy.Job = replicator.JobRunning
	closed := transferring(0) // its volume cannot be opened
	closed.Job, closed.RecoveryPoint = replicator.JobFailed, replicator.RecoveryPoint{}
	for _, c := range []struct {
		s    replicator.Status
		says string
	}{
		{closed, "Its recovery point is not known while volume data cannot be used"},
		{busy, "A transfer is under way: part of what is there will be newer"},
		{awaiting(replicator.RoleSource), "not authorized yet"},
		{transferring(42), "no recovery point yet: what is there is incomplete"},
		{caughtUp(), "beta:copy becomes writable.\nIts recovery point: 2026-11-23 11:59:57 (3 s ago)"},
	} {
		d := newDesk(t)
		d.node.statuses = []replicator.Status{c.s}
		d.asks, d.stdin = true, "y\n"
		if code, _, errs := d.run("relationship delete 3f"); code != 0 || !strings.Contains(errs, c.says) {
			t.Errorf("exit code %d, said\n%s\nwant %q", code, errs, c.says)
		}
	}
}

func TestWhoeverDeletesARelationshipHearsThatTheTargetMayNotKnow(t *testing.T) {
	d := newDesk(t)
	d.node.statuses, d.node.deleted = []replicator.Status{caughtUp()}, caughtUp()
	d.must("relationship delete 3f2a9c11d07b --yes", "relationship 3f2a9c11d07b deleted\n")
	d.node.deleted.Job = replicator.JobDisconnected
	if _, out, _ := d.run("relationship delete 3f2a9c11d07b --yes"); !strings.Contains(out, "Until then beta:copy stays read-only") {
		t.Errorf("it says %q", out)
	}
}

func TestAnInterruptedQuestionIsANo(t *testing.T) {
	d := newDesk(t)
	d.node.volumes = []api.Volume{dataVolume()}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	silent, typist := newPipe(t)
	defer typist.Close()
	c := Env{Args: []string{"tandemfs", "volume", "remove", "data", "--socket", d.socket}, Asks: true,
		Stdin: silent, Stdout: &strings.Builder{}, Stderr: whenAsked(cancel)}
	if code := Run(ctx, c); code != 1 || len(d.node.did) > 0 {
		t.Errorf("exit code %d, the node did %q", code, d.node.did)
	}
}
