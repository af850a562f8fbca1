package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tandemfs/cmd/api"
	"tandemfs/replicator"
)

func dataVolume() api.Volume {
	return api.Volume{Name: "data", ID: "id1", Path: "/srv/data", Mount: "/srv/data", State: api.VolumeMounted,
		NoSuid: true, ShowSnapshots: true, Created: noon.Add(-26 * time.Hour), Relationships: []string{"3f2a9c11d07b"}}
}

func TestVolumesAreShown(t *testing.T) {
	d := newDesk(t)
	d.must("volume list", "no volumes yet: `tandemfs volume create NAME DIR` protects a directory\n")
	d.node.volumes = []api.Volume{dataVolume(), {Name: "old", Path: "/mnt/old", Mount: "/old", State: api.VolumeFailed, Error: "no such directory", ReadOnly: true}}
	d.must("volume list", `NAME  DIRECTORY  MOUNT      STATE                      ACCESS     RELATIONSHIPS
data  /srv/data  /srv/data  mounted                    writable   1
old   /mnt/old   /old       failed: no such directory  read-only  0
`)
	d.must("volume show data", `volume data
  directory      /srv/data
  mount          /srv/data, nosuid, .snapshot shown
  state          mounted
  access         writable
  relationships  3f2a9c11d07b
  id             id1
  created        2026-11-22 10:00:00 (1 d 2 h ago)
`)
}

func TestChangesAroundTheMountAreShown(t *testing.T) {
	d := newDesk(t)
	v := dataVolume()
	swept, last := noon.Add(-time.Hour), noon.Add(-3*time.Second)
	for _, c := range []struct {
		around api.Around
		want   string
	}{
		{api.Around{Watched: true}, `  watched        yes
  sweep          not needed
  around mount   0
`},
		{api.Around{Reason: "fanotify_init: function not implemented", Sweeping: true, SweptFiles: 1024}, `  watched        no, changes are found at the next start: fanotify_init: function not implemented
  sweep          under way, 1,024 files so far
  around mount   0
`},
		{api.Around{Watched: true, Swept: &swept, SweptFiles: 7, Changes: 12, LastPath: "/dir/file", LastTime: &last, Error: "disk full", NamesInDoubt: 1}, `  watched        yes
  sweep          done 2026-11-23 11:00:00 (1 h ago), 7 files
  around mount   12, the last one 2026-11-23 11:59:57 (3 s ago): /dir/file; cannot be recorded: disk full
  names          changed while nobody watched: the next transfer compares all of them
`},
	} {
		v.Around = &c.around
		d.node.volumes = []api.Volume{v}
		if code, out, _ := d.run("volume show data"); code != 0 || !strings.HasSuffix(out, c.want) {
			t.Errorf("exit code %d:\n%s", code, out)
		}
	}
}

func TestTheNodeIsShown(t *testing.T) {
	newDesk(t).must("node show", `node alpha
  fingerprint    SHA256:aaa
  listens at     [::]:3712
  version        1.2
  state folder   /var/lib/tandemfs
  running since  2026-11-23 10:30:00 (1 h 30 min ago)
`)
}

func TestAVolumeIsCreatedWithPathsMadeAbsolute(t *testing.T) {
	d := newDesk(t)
	dir := t.TempDir()
	t.Chdir(dir)
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	d.must("volume create data ./files --mount ../m --nodev --show-snapshots", fmt.Sprintf(
		"volume data protects %s/files, mounted at %s\n", here, filepath.Join(filepath.Dir(here), "m")))
	want := api.CreateVolume{Name: "data", Path: here + "/files", Mount: filepath.Join(filepath.Dir(here), "m"), NoDev: true, ShowSnapshots: true}
	if d.node.created != want {
		t.Errorf("the node was asked for %+v, want %+v", d.node.created, want)
	}
}

func TestARelationshipIsProposed(t *testing.T) {
	d := newDesk(t)
	d.must("relationship create --source data --target beta:99 --target-volume copy --disabled --target-fingerprint SHA256:bbb",
		`relationship 3f2a9c11d07b, awaiting authorization
  mode    continuous
  source  alpha:data, /srv/data, 10.0.0.1:40112
          SHA256:aaa
  target  beta:copy, 10.0.0.2:3712
          SHA256:bbb
on the target: tandemfs relationship authorize 3f2a9c11d07b
`)
	want := replicator.CreateRequest{Source: "data", Target: "beta:99", TargetVolume: "copy", Disabled: true, TargetFingerprint: "SHA256:bbb"}
	if d.node.proposed != want {
		t.Errorf("the node was asked for %+v, want %+v", d.node.proposed, want)
	}
}

func TestRelationshipsAreListedWithIDsThatTellThemApart(t *testing.T) {
	d := newDesk(t)
	d.must("relationship list", "no relationships yet: `tandemfs relationship create` proposes one\n")
	other := caughtUp()
	other.ID = "3f2a9c11d1"
	other.RecoveryPoint.BehindSeconds, other.RecoveryPoint.BehindBytes = pointer(72.0), pointer(int64(3<<20))
	d.node.relations = []replicator.Status{awaiting(replicator.RoleTarget), other}
	d.must("relationship list", `ID          ROLE    SOURCE      TARGET     STANDING                RECOVERY POINT                 BEHIND
3f2a9c11d0  target  alpha:data  beta:copy  awaiting authorization  -                              -
3f2a9c11d1  source  alpha:data  beta:copy  established, idle       2026-11-23 11:59:57 (3 s ago)  1 min 12 s, 3.0 MiB
`)
}

func TestTheStatusSaysAllThatIsKnown(t *testing.T) {
	d := newDesk(t)
	s := transferring(42)
	s.LastError, s.LastErrorTime = "connection reset", noon.Add(-5*time.Minute)
	d.node.statuses = []replicator.Status{s, caughtUp()}
	d.must("relationship status 3f", `relationship 3f2a9c11d07b, this node is the source
  state           established, running
  mode            continuous
  source          alpha:data, /srv/data, 10.0.0.1:40112
                  SHA256:aaa
  target          beta:copy, /srv/copy, 10.0.0.2:3712, read-only
                  SHA256:bbb
  job             running, first transfer, 42.0 %, 3 min 10 s to go
  files           1,200 transferred, 3 unchanged, 397 remaining, 1,600 in all
  content         1.5 GiB transferred, 0 B unchanged, 1.5 GiB remaining, 3.0 GiB in all
  throughput      80 MiB/s now, 75 MiB/s over all of 20 s
  on the wire     1.0 GiB in this transfer, 1.0 GiB since the node started (transfers: 0)
  recovery point  none yet
  behind          3.0 GiB
  last error      connection reset, 2026-11-23 11:55:00 (5 min ago)
  created         2026-11-23 11:59:00 (1 min ago)
`)
	code, out, _ := d.run("relationship status 3f")
	if code != 0 || !strings.Contains(out, "recovery point  2026-11-23 11:59:57 (3 s ago), epoch 42\n") ||
		!strings.Contains(out, "behind          0 s, 0 B\n") {
		t.Errorf("exit code %d\n%s", code, out)
	}
}

func TestJSONIsTheAPIsOwn(t *testing.T) {
	d := newDesk(t)
	d.node.volumes = []api.Volume{dataVolume()}
	d.node.relations = []replicator.Status{caughtUp()}
	d.node.statuses = []replicator.Status{caughtUp()}
	for line, want := range map[string]any{
		"volume list":                  api.VolumeList{Volumes: d.node.volumes},
		"volume show data":             dataVolume(),
		"volume remove data --yes":     dataVolume(),
		"node show":                    d.node.Info(),
		"relationship list":            api.RelationshipList{Relationships: d.node.relations},
		"relationship status 3f":       caughtUp(),
		"relationship authorize 3f -y": awaiting(replicator.RoleTarget),
		"relationship reject 3f":       replicator.Status{ID: "3f"},
		"relationship enable 3f":       replicator.Status{ID: "3f", Enabled: true},
		"relationship delete 3f --yes": replicator.Status{ID: "3f2a9c11d07b"},
	} {
		code, out, errs := d.run(line + " --json")
		text, err := json.MarshalIndent(want, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if code != 0 || out != string(text)+"\n" || errs != "" {
			t.Errorf("%s: exit code %d %s\n%s\nwant\n%s", line, code, errs, out, text)
		}
	}
}

func TestEveryKindOfFailureHasItsExitCode(t *testing.T) {
	d := newDesk(t)
	for _, c := range []struct {
		err  error
		code int
	}{
		{errors.New("disk on fire"), 1},
		{api.Errorf(api.CodeInvalid, "nonsense"), 2},
		{fmt.Errorf("x: %w", replicator.ErrNotFound), 3},
		{fmt.Errorf("x: %w", replicator.ErrConflict), 4},
		{fmt.Errorf("x: %w", replicator.ErrPeer), 6},
	} {
		d.node.fail = c.err
		d.mustFail("relationship status x", c.code, "tandemfs: "+c.err.Error())
	}
	d.socket += "-none"
	d.mustFail("volume list", 5, "is `tandemfs serve` running?")
}

func TestErrorsInJSONHaveTheAPIsForm(t *testing.T) {
	d := newDesk(t)
	d.mustFail("volume show nothing --json", 3, `{"error":{"code":"not_found","message":"no volume \"nothing\""}}`+"\n")
}

func TestAFlagOrAnArgumentThatIsEmptyOrNoTextIsAUsageError(t *testing.T) {
	d := newDesk(t)
	for _, c := range []struct {
		says string
		args []string
	}{
		{"--mount is empty", []string{"volume", "create", "data", "/srv/data", "--mount", ""}},
		{"--target-fingerprint is empty", []string{"relationship", "create", "--source", "data", "--target", "h", "--target-volume", "v", "--target-fingerprint="}},
		{"--source-fingerprint is empty", []string{"relationship", "authorize", "3f", "--yes", "--source-fingerprint", ""}},
		{"--socket is empty", []string{"node", "show", "--socket="}},
		{"--state is empty", []string{"serve", "--state", ""}},
		{`"/srv/\xff" is not UTF-8`, []string{"volume", "create", "data", "/srv/\xff"}},
		{`"\xff" is not UTF-8`, []string{"volume", "create", "data", "/srv/data", "--mount", "\xff"}},
	} {
		if !slices.ContainsFunc(c.args, func(arg string) bool { return strings.HasPrefix(arg, "--socket") }) {
			c.args = append(c.args, "--socket", d.socket)
		}
		if code, _, errs := d.give(c.args...); code != 2 || !strings.Contains(errs, c.says) || len(d.node.did) > 0 {
			t.Errorf("%q: exit code %d with %q, the node did %q; want %q", c.args, code, errs, d.node.did, c.says)
		}
	}
}

func TestWhatCannotBeUnderstoodIsAUsageError(t *testing.T) {
	d := newDesk(t)
	d.mustFail("volume create data", 2, "DIR is missing: tandemfs volume create NAME DIR")
	d.mustFail("volume show", 2, "NAME is missing")
	d.mustFail("volume show a b", 2, `"b" is too much`)
	d.mustFail("volume list --colour", 2, "-colour")
	d.mustFail("relationship create --target h --target-volume v", 2, "--source is missing")
	for _, args := range [][]string{{"volume", "paint"}, {"paint"}} {
		if code, _, errs := d.give(args...); code != 2 || !strings.Contains(errs, `has no command "paint"`) {
			t.Errorf("%q: exit code %d, %s", args, code, errs)
		}
	}
	for _, args := range [][]string{{}, {"volume"}} {
		code, out, errs := d.give(args...)
		if code != 2 || !strings.Contains(errs, "a command is missing") || !strings.Contains(out, "COMMANDS") {
			t.Errorf("%q: exit code %d, %s%s", args, code, out, errs)
		}
	}
}

func TestEveryCommandExplainsItself(t *testing.T) {
	d := newDesk(t)
	for _, line := range []string{"--help", "serve --help", "volume --help", "volume create --help", "volume create a b --help",
		"relationship status -h", "snapshot --help", "snapshot diff --help", "node show --help", "version --help", "completion --help"} {
		code, out, errs := d.give(strings.Fields(line)...)
		if code != 0 || errs != "" || !strings.Contains(out, "USAGE:") {
			t.Errorf("%s: exit code %d\n%s%s", line, code, out, errs)
		}
	}
}

func TestFlagsMayStandAnywhere(t *testing.T) {
	app := newApp(&Env{})
	for line, want := range map[string]string{
		"t volume create a b --mount m --json":    "t volume create --mount m --json -- a b",
		"t volume create a --mount=m b":           "t volume create --mount=m -- a b",
		"t volume create --mount m a -- --odd":    "t volume create --mount m -- a --odd",
		"t relationship status x --watch":         "t relationship status --watch -- x",
		"t relationship status -w x":              "t relationship status -w -- x",
		"t serve --state s":                       "t serve --state s --",
		"t volume create a b --mount m --help":    "t volume create --help",
		"t volume":                                "t volume",
		"t --version":                             "t --version",
		"t volume show " + completionFlag:         "t volume show " + completionFlag,
		"t volume create a - --mount":             "t volume create --mount -- a -",
		"t relationship authorize x --create d y": "t relationship authorize --create d -- x y",
	} {
		if got := strings.Join(flagsFirst(app, strings.Fields(line)), " "); got != want {
			t.Errorf("%s became\n%s, want\n%s", line, got, want)
		}
	}
}

func TestTheSocketCanBeNamedInTheEnvironment(t *testing.T) {
	d := newDesk(t)
	t.Setenv("TANDEMFS_SOCKET", d.socket)
	if code, out, errs := d.give("volume", "list"); code != 0 || !strings.Contains(out, "no volumes yet") {
		t.Errorf("exit code %d, %s%s", code, out, errs)
	}
}

func TestServeGetsItsOptions(t *testing.T) {
	d := newDesk(t)
	t.Chdir(t.TempDir())
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	code, _, errs := d.give("serve", "--state", "s", "--listen", "127.0.0.1:1", "--socket", "k", "--name", "n")
	if code != 0 {
		t.Fatal(errs)
	}
	o := d.served
	if o.State != here+"/s" || o.Socket != here+"/k" || o.Listen != "127.0.0.1:1" || o.Name != "n" || o.Version != "1.2" {
		t.Errorf("got %+v", o)
	}
	if err := os.Unsetenv("TANDEMFS_SOCKET"); err != nil { // newDesk puts it back
		t.Fatal(err)
	}
	if code, _, errs := d.give("serve"); code != 0 {
		t.Fatal(errs)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if o := d.served; o.State != "/var/lib/tandemfs" || o.Socket != "/run/tandemfs.sock" || o.Listen != ":3712" || o.Name != host {
		t.Errorf("by default: %+v", o)
	}
	d.node.fail = api.Errorf(api.CodeConflict, "another daemon runs")
	if code, _, errs := d.give("serve"); code != 4 || !strings.Contains(errs, "another daemon runs") {
		t.Errorf("exit code %d, %s", code, errs)
	}
}

func TestTheLogIsJSONWhenAsked(t *testing.T) {
	d := newDesk(t)
	for _, c := range []struct{ flag, want string }{{"--debug", "level=DEBUG msg=x"}, {"--log-json", `"msg":"y"`}} {
		var log strings.Builder
		code := Run(d.ctx, Env{Args: []string{"tandemfs", "serve", c.flag}, Stdout: &log, Stderr: &log, Serve: nodeThatLogs})
		if code != 0 || !strings.Contains(log.String(), c.want) {
			t.Errorf("%s: exit code %d, %s", c.flag, code, log.String())
		}
	}
}

func TestCompletionKnowsCommandsFlagsAndNames(t *testing.T) {
	d := newDesk(t)
	d.node.volumes = []api.Volume{{Name: "data"}, {Name: "copy"}}
	d.node.relations = []replicator.Status{{ID: "3f2a"}}
	t.Setenv("TANDEMFS_SOCKET", d.socket)
	t.Cleanup(func(args []string) func() { return func() { os.Args = args } }(os.Args))
	for line, want := range map[string][]string{
		"":                    {"serve", "volume", "snapshot", "relationship"},
		"volume":              {"create", "list", "remove"},
		"volume remove":       {"data", "copy"},
		"snapshot":            {"create", "set-expiry", "restore"},
		"snapshot restore":    {"data", "copy"},
		"relationship status": {"3f2a"},
	} {
		args := append(strings.Fields(line), completionFlag)
		os.Args = append([]string{"tandemfs"}, args...) // where the library looks for what was typed
		code, out, errs := d.give(args...)
		got := strings.Fields(out)
		for _, word := range want {
			if code != 0 || !slices.Contains(got, word) {
				t.Errorf("after %q: %q (exit code %d, %s), want %q", line, got, code, errs, word)
			}
		}
	}
	for _, shell := range []string{"bash", "zsh"} {
		if code, out, _ := d.give("completion", shell); code != 0 || !strings.Contains(out, "complete -o default -F _tandemfs tandemfs") {
			t.Errorf("%s: exit code %d, %s", shell, code, out)
		}
	}
	if code, _, _ := d.give("completion", "csh"); code != 2 {
		t.Errorf("csh: exit code %d", code)
	}
}

func TestTheVersionIsShown(t *testing.T) {
	d := newDesk(t)
	if code, out, _ := d.give("version"); code != 0 || !strings.HasPrefix(out, "tandemfs 1.2 (go") {
		t.Errorf("exit code %d, %s", code, out)
	}
	if code, out, _ := d.give("version", "--json"); code != 0 || !strings.Contains(out, `"version": "1.2"`) {
		t.Errorf("exit code %d, %s", code, out)
	}
}

func TestWhatAPeerSendsCannotSteerTheTerminal(t *testing.T) {
	d := newDesk(t)
	s := awaiting(replicator.RoleTarget)
	s.Source.Node, s.Source.Path, s.LastError = "al\x1b[2Jpha", "/a\rb", "bad\x07 news\nmore"
	d.node.statuses, d.node.relations = []replicator.Status{s}, []replicator.Status{s}
	d.asks, d.stdin = true, "n\n"
	for _, line := range []string{"relationship status x", "relationship list", "relationship authorize x", "relationship delete x"} {
		_, out, errs := d.run(line)
		if strings.ContainsAny(out+errs, "\x1b\r\x07") || strings.Contains(out, "\nmore") {
			t.Errorf("%s wrote %q", line, out+errs)
		}
	}
}
