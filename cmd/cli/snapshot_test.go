package cli

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"tandemfs/cmd/api"
)

// withSnapshots is a desk whose node has a volume with two snapshots.
func withSnapshots(t *testing.T) *desk {
	t.Helper()
	d := newDesk(t)
	d.node.volumes = []api.Volume{dataVolume()}
	d.node.snapshots = []api.Snapshot{
		{Name: "monday", Created: noon.Add(-26 * time.Hour), Expires: noon.Add(7 * 24 * time.Hour), Bytes: 3 << 30},
		{Name: "two words", Created: noon.Add(-2 * time.Hour)},
	}
	return d
}

func TestASuspectSnapshotIsCalledSo(t *testing.T) {
	d := withSnapshots(t)
	d.node.snapshots[0].Suspect = true
	for _, line := range []string{"snapshot list data", "snapshot show data monday"} {
		if _, out, _ := d.run(line); !strings.Contains(out, "power was lost") {
			t.Errorf("%s says %s", line, out)
		}
	}
}

func TestSnapshotsAreShown(t *testing.T) {
	d := newDesk(t)
	d.must("snapshot list data", "no snapshots of volume data yet: `tandemfs snapshot create data` takes one\n")
	d = withSnapshots(t)
	d.must("snapshot list data", `NAME       CREATED                            EXPIRES                       ALONE HOLDS
monday     2026-11-22 10:00:00 (1 d 2 h ago)  2026-11-30 12:00:00 (in 7 d)  3.0 GiB
two words  2026-11-23 10:00:00 (2 h ago)      never                         0 B
all together hold 5.0 GiB
`)
	d.must("snapshot show data monday", `snapshot monday of volume data
  created      2026-11-22 10:00:00 (1 d 2 h ago)
  expires      2026-11-30 12:00:00 (in 7 d)
  alone holds  3.0 GiB
`)
}

func TestASnapshotIsCreated(t *testing.T) {
	d := withSnapshots(t)
	d.must("snapshot create data", "snapshot 2026-11-23-120000 of volume data, kept until somebody deletes it\n")
	d.must("snapshot create data --name n --expires 7d", "snapshot n of volume data, kept until 2026-11-30 12:00:00 (in 7 d)\n")
	d.must("snapshot create --expires 2027-01-31T18:00:00+01:00 data", "snapshot 2026-11-23-120000 of volume data, kept until 2027-01-31 17:00:00 (in 69 d 5 h)\n")
	d.must("snapshot create data --expires never --json", `{
  "name": "2026-11-23-120000",
  "created": "2026-11-23T12:00:00Z",
  "bytes": 0,
  "suspect": false
}
`)
	want := "create data: 0001-01-01 00:00:00;create data:n 2026-11-30 12:00:00;create data: 2027-01-31 17:00:00;create data: 0001-01-01 00:00:00"
	if got := strings.Join(d.node.did, ";"); got != want {
		t.Errorf("the node did %q, want %q", got, want)
	}
}

func TestAnExpiryIsSet(t *testing.T) {
	d := withSnapshots(t)
	d.must("snapshot set-expiry data monday 36h", "snapshot monday of volume data, kept until 2026-11-25 00:00:00 (in 1 d 12 h)\n")
	d.must("snapshot set-expiry data monday never", "snapshot monday of volume data, kept until somebody deletes it\n")
	if got := strings.Join(d.node.did, ";"); got != "expiry data:monday 2026-11-25 00:00:00;expiry data:monday 0001-01-01 00:00:00" {
		t.Errorf("the node did %q", got)
	}
}

func TestWhatIsWrongWithASnapshotCommandIsSaid(t *testing.T) {
	d := withSnapshots(t)
	d.mustFail("snapshot create", 2, "VOL is missing: tandemfs snapshot create VOL")
	d.mustFail("snapshot create data --expires soon", 2, `--expires: "soon" is not understood: say "never"`)
	d.mustFail("snapshot create data --expires 0d", 2, "--expires: this is not in the future")
	d.mustFail("snapshot create data --name=", 2, "--name is empty")
	d.mustFail("snapshot set-expiry data monday", 2, "T is missing")
	d.mustFail("snapshot set-expiry data monday 2020-01-01T00:00:00Z", 2, "T: this is not in the future")
	d.mustFail("snapshot show data z", 3, `no snapshot "z"`)
	d.mustFail("snapshot delete data z --yes", 3, `no snapshot "z"`)
	d.mustFail("snapshot restore data z --yes", 3, `no snapshot "z"`)
	d.mustFail("snapshot restore none monday --yes", 3, `no volume "none"`)
	d.mustFail("snapshot restore data", 2, "SNAPSHOT is missing: tandemfs snapshot restore VOL SNAPSHOT [PATH]")
	d.mustFail("snapshot restore data monday a b", 2, `"b" is too much`)
	d.mustFail("snapshot restore data monday ../a", 2, `without ".."`)
	d.mustFail("snapshot diff data monday", 2, "B is missing")
	d.mustFail("snapshot diff data a b --limit 0", 2, "--limit must be a number from 1 to 10000")
	d.mustFail("snapshot diff data a b --limit 10001", 2, "--limit must be a number from 1 to 10000")
	d.mustFail("snapshot diff data a b --file=", 2, "--file is empty")
	if code, _, errs := d.give("snapshot", "restore", "data", "monday", "", "--yes", "--socket", d.socket); code != 2 || !strings.Contains(errs, "PATH is empty") {
		t.Errorf("an empty path: exit code %d, %s", code, errs)
	}
	if len(d.node.did) > 0 {
		t.Errorf("the node did %q", d.node.did)
	}
	d.node.fail = api.Errorf(api.CodeConflict, "volume data cannot be used")
	for _, line := range []string{"list data", "create data", "show data monday", "delete data monday --yes", "set-expiry data monday 7d",
		"diff data a b", "diff data a b --file f", "diff data a b --limit 1", "restore data monday --yes"} {
		d.mustFail("snapshot "+line, 4, "volume data cannot be used")
	}
}

func TestDeletingASnapshotSaysWhatIsLost(t *testing.T) {
	d := withSnapshots(t)
	d.asks, d.stdin = true, "y\n"
	code, out, errs := d.run("snapshot delete data monday")
	const asked = `Snapshot monday of volume data, taken 2026-11-22 10:00:00 (1 d 2 h ago), will be deleted.
What it alone holds, 3.0 GiB, is then gone for good.
Delete the snapshot? [y/N] `
	if code != 0 || errs != asked || out != "snapshot monday of volume data deleted: 3.0 GiB will be free\n" {
		t.Errorf("exit code %d, asked\n%s\nwrote %s", code, errs, out)
	}
}

func TestARestoreSaysWhatIsOverwrittenAndHowToUndoIt(t *testing.T) {
	for _, c := range []struct{ path, did, asked, out string }{
		{"", `restore data:monday ""`, `Snapshot monday of volume data was taken 2026-11-22 10:00:00 (1 d 2 h ago).
Everything at /srv/data becomes what it was then: what was changed or removed since is put
back, and what was made since is removed.
A snapshot of the present state is taken first: restoring that one undoes this.
Restore it? [y/N] `, `volume data is what it was at snapshot monday
to undo it: tandemfs snapshot restore data 'before it'\''s back'
`},
		{" /a/./b/", `restore data:monday "a/b"`, `Snapshot monday of a/b in volume data was taken 2026-11-22 10:00:00 (1 d 2 h ago).
/srv/data/a/b, with all that is below it, becomes what it was then: what was changed or removed since is put
back, and what was made since is removed.
A snapshot of the present state is taken first: restoring that one undoes this.
Restore it? [y/N] `, `a/b in volume data is what it was at snapshot monday
to undo it: tandemfs snapshot restore data 'before it'\''s back' a/b
`},
	} {
		d := withSnapshots(t)
		d.asks, d.stdin = true, "y\n"
		code, out, errs := d.run("snapshot restore data monday" + c.path)
		if code != 0 || errs != c.asked || out != c.out {
			t.Errorf("exit code %d, asked\n%s\nwrote\n%s", code, errs, out)
		}
		if got := strings.Join(d.node.did, ";"); got != c.did {
			t.Errorf("the node did %q, want %q", got, c.did)
		}
	}
}

// differing is a desk whose node has five changes, of every kind, and three regions.
func differing(t *testing.T) *desk {
	t.Helper()
	d := withSnapshots(t)
	d.node.changes = []api.Change{
		{Kind: api.ChangeCreated, Path: "made", Dir: true},
		{Kind: api.ChangeCreated, Path: "made/<file>"},
		{Kind: api.ChangeModified, Path: "a b"},
		{Kind: api.ChangeRemoved, Path: "gone"},
		{Kind: api.ChangeRenamed, From: "old", Path: "new", Dir: true},
	}
	d.node.regions = []api.Region{{Offset: 0, Length: 4096}, {Offset: 8192, Length: 3 << 20, Hole: true}, {Offset: 1 << 40, Length: 1}}
	return d
}

func TestADiffGoesThroughAllPages(t *testing.T) {
	d := differing(t)
	d.must("snapshot diff data monday x", `+ made/
+ made/<file>
~ a b
- gone
> old/ -> new/
`)
	d.must("snapshot diff data monday x --file dir/f", `~ 4096 bytes at 0 (4.0 KiB)
~ 3145728 bytes at 8192 (3.0 MiB), now a hole
~ 1 bytes at 1099511627776 (1 B)
`)
	want := `diff data {From:monday To:x File: Cursor: Limit:1000};diff data {From:monday To:x File: Cursor:c 2 Limit:1000};` +
		`diff data {From:monday To:x File: Cursor:c 4 Limit:1000};` +
		`diff data {From:monday To:x File:dir/f Cursor: Limit:1000};diff data {From:monday To:x File:dir/f Cursor:c 2 Limit:1000}`
	if got := strings.Join(d.node.did, ";"); got != want {
		t.Errorf("the node did\n%s, want\n%s", got, want)
	}
	d.node.changes, d.node.regions = nil, nil
	d.must("snapshot diff data monday x", "no differences\n")
	d.must("snapshot diff data monday x --file f --limit 1", "no differences\n")
}

func TestADiffWithALimitSaysHowToGoOn(t *testing.T) {
	d := differing(t)
	d.must("snapshot diff data monday x --limit 3", `+ made/
+ made/<file>
~ a b
more: tandemfs snapshot diff --limit=3 '--cursor=c 3' data monday x
`)
	code, out, errs := d.give("snapshot", "diff", "--limit=3", "--cursor=c 3", "data", "monday", "x", "--socket", d.socket)
	if code != 0 || out != "- gone\n> old/ -> new/\n" {
		t.Errorf("exit code %d, %s%s", code, out, errs)
	}
	d.must("snapshot diff data monday x --limit 1 --file a", `~ 4096 bytes at 0 (4.0 KiB)
more: tandemfs snapshot diff --limit=1 '--cursor=c 1' --file=a data monday x
`)
}

func TestADiffInJSONIsAPageOrALineForEach(t *testing.T) {
	d := differing(t)
	d.must("snapshot diff data monday x --json", `{"changes":[{"kind":"created","path":"made","dir":true},{"kind":"created","path":"made/<file>","dir":false}],"cursor":"c 2"}
{"changes":[{"kind":"modified","path":"a b","dir":false},{"kind":"removed","path":"gone","dir":false}],"cursor":"c 4"}
{"changes":[{"kind":"renamed","path":"new","from":"old","dir":true}]}
`)
	d.must("snapshot diff data monday x --file f --limit 1 --json", `{
  "regions": [
    {
      "offset": 0,
      "length": 4096,
      "hole": false
    }
  ],
  "cursor": "c 1"
}
`)
}

func TestSnapshotsInJSONAreTheAPIsOwn(t *testing.T) {
	d := withSnapshots(t)
	monday := d.node.snapshots[0]
	for line, want := range map[string]any{
		"list data":                  api.SnapshotList{Snapshots: d.node.snapshots, TotalBytes: 5 << 30},
		"show data monday":           monday,
		"delete data monday --yes":   monday,
		"set-expiry data monday 7d":  monday,
		"restore data monday a -y":   api.Snapshot{Name: "before it's back", Created: noon, Bytes: 7},
		"create data --name x":       api.Snapshot{Name: "x", Created: noon},
		"diff data a b --limit 1000": api.ChangeList{Changes: []api.Change{}},
	} {
		text, err := json.MarshalIndent(want, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		d.must("snapshot "+line+" --json", string(text)+"\n")
	}
}

func TestNamesInSnapshotsCannotSteerTheTerminal(t *testing.T) {
	d := withSnapshots(t)
	d.node.snapshots = []api.Snapshot{{Name: "a\x1b[2Jb\nc", Created: noon}}
	d.node.changes = []api.Change{{Kind: api.ChangeRenamed, From: "x\x1b]0;y\x07\n- passwd", Path: "p\rq"}}
	for _, args := range [][]string{{"list", "data"}, {"diff", "data", "a", "b"}, {"delete", "data", "a\x1b[2Jb\nc"}, {"show", "data", "a\x1b[2Jb\nc"}} {
		d.asks, d.stdin = true, "n\n"
		_, out, errs := d.give(append(append([]string{"snapshot"}, args...), "--socket", d.socket)...)
		if strings.ContainsAny(out+errs, "\x1b\r\x07") || strings.Contains(out, "\n- passwd") {
			t.Errorf("%q wrote %q", args, out+errs)
		}
	}
}

func TestAFailureInTheMiddleOfADiffIsAFailure(t *testing.T) {
	d := differing(t)
	d.node.changes = append(d.node.changes, d.node.changes...)
	pages := 0
	d.node.paged = func() {
		if pages++; pages == 2 {
			d.node.fail = errors.New("disk on fire")
		}
	}
	code, out, errs := d.run("snapshot diff data monday x")
	if code != 1 || out != "+ made/\n+ made/<file>\n" || !strings.Contains(errs, "disk on fire") {
		t.Errorf("exit code %d, %s%s", code, out, errs)
	}
}

func TestAHintCanBeGivenToAShell(t *testing.T) {
	for want, args := range map[string][]string{
		"tandemfs x a-b/c_d.e:f":    {"a-b/c_d.e:f"},
		"tandemfs x 'two words' ''": {"two words", ""},
		`tandemfs x 'it'\''s' '$1'`: {"it's", "$1"},
		"tandemfs x -- a -odd":      {"a", "-odd"},
		"tandemfs x 'été' '~' '*'":  {"été", "~", "*"},
	} {
		if got := hint("x", nil, args...); got != want {
			t.Errorf("%q became %s, want %s", args, got, want)
		}
	}
}
