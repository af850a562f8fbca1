package cli

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"tandemfs/replicator"
)

// whenAsked is a standard error that interrupts the program once the question is there.
type whenAsked context.CancelFunc

func (f whenAsked) Write(p []byte) (int, error) {
	if strings.Contains(string(p), "[y/N]") {
		f()
	}
	return len(p), nil
}

// newPipe gives a standard input at which nobody types, and its other end.
func newPipe(t *testing.T) (io.Reader, io.Closer) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r, w
}

// watchUntil has the desk's user stop watching at the nth look.
func (d *desk) watchUntil(n int) {
	ctx, cancel := context.WithCancel(d.t.Context())
	d.ctx = ctx
	d.node.watched = func(asked int) {
		if asked > n {
			cancel()
		}
	}
	d.t.Cleanup(cancel)
}

func TestAWatchWithoutATerminalWritesALineForEachChange(t *testing.T) {
	d := newDesk(t)
	d.node.statuses = []replicator.Status{awaiting(replicator.RoleSource), transferring(42), transferring(42.2), transferring(43), caughtUp(), caughtUp()}
	d.watchUntil(6)
	d.must("relationship status 3f --watch", `2026-11-23 12:00:00 awaiting authorization
2026-11-23 12:00:00 established, running; first transfer 42.0 %, 1.5 GiB of 3.0 GiB, 80 MiB/s, 3 min 10 s to go
2026-11-23 12:00:00 established, running; first transfer 43.0 %, 1.5 GiB of 3.0 GiB, 80 MiB/s, 3 min 10 s to go
2026-11-23 12:00:00 established, idle; recovery point 42, 3 s ago; behind 0 s, 0 B
`)
}

func TestAWatchEndsWithTheRelationship(t *testing.T) {
	d := newDesk(t)
	ended := caughtUp()
	ended.State, ended.EndReason = replicator.StateEnded, "deleted on the target"
	d.node.statuses = []replicator.Status{caughtUp(), ended}
	code, out, errs := d.run("relationship status 3f -w")
	if code != 0 || !strings.HasSuffix(strings.SplitN(out, ";", 3)[1], "3 s ago") || !strings.Contains(out, "ended, deleted on the target") {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
}

func TestAWatchInJSONWritesALineForEachChange(t *testing.T) {
	d := newDesk(t)
	d.node.statuses = []replicator.Status{transferring(42), transferring(42), caughtUp()}
	d.watchUntil(3)
	code, out, errs := d.run("relationship status 3f --watch --json")
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if code != 0 || len(lines) != 2 {
		t.Fatalf("exit code %d, %d lines\n%s%s", code, len(lines), out, errs)
	}
	for i, want := range []replicator.JobState{replicator.JobRunning, replicator.JobIdle} {
		var s replicator.Status
		if err := json.Unmarshal([]byte(lines[i]), &s); err != nil || s.Job != want {
			t.Errorf("line %d: %v, %v, want %v", i, s.Job, err, want)
		}
	}
}

func TestATerminalShowsABarAndThenALiveLine(t *testing.T) {
	d := newDesk(t)
	d.shows = true
	done := caughtUp()
	done.Progress.First = true
	d.node.statuses = []replicator.Status{transferring(42), transferring(60), done}
	d.watchUntil(4)
	code, out, errs := d.run("relationship status 3f --watch")
	if code != 0 {
		t.Fatalf("exit code %d, %s", code, errs)
	}
	for _, want := range []string{"42%", "60%", "100%", "1.5 GiB of 3.0 GiB, 80 MiB/s, 3 min 10 s to go", "3.0 GiB in 20 s, 75 MiB/s",
		"\r\033[Kestablished, idle; recovery point 42, 3 s ago; behind 0 s, 0 B"} {
		if !strings.Contains(out, want) {
			t.Errorf("the terminal did not get %q:\n%q", want, out)
		}
	}
	if strings.Index(out, "60%") > strings.Index(out, "100%") || strings.Count(out, "\n") != 2 {
		t.Errorf("the terminal got %q", out)
	}
}

func TestABarWhoseTransferBreaksOffIsNotFilled(t *testing.T) {
	d := newDesk(t)
	d.shows = true
	cut := transferring(42)
	cut.Job, cut.LastError, cut.RetryAt = replicator.JobDisconnected, "connection reset", noon.Add(5*time.Second)
	d.node.statuses = []replicator.Status{transferring(42), cut}
	d.watchUntil(3)
	_, out, _ := d.run("relationship status 3f --watch")
	if strings.Contains(out, "100%") || !strings.Contains(out, "established, disconnected; error: connection reset; next try in 5 s") {
		t.Errorf("the terminal got %q", out)
	}
}

func TestALongLineIsCutToTheTerminal(t *testing.T) {
	for _, c := range []struct {
		width int
		want  string
	}{{5, "äbcde"}, {4, "äbc…"}, {1, "…"}, {0, "äbcde"}} {
		if got := cut("äbcde", c.width); got != c.want {
			t.Errorf("cut to %d: %q, want %q", c.width, got, c.want)
		}
	}
}
