package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tandemfs/cmd/api"
	"tandemfs/fs/volume"
)

func (v *fakeVolume) CreateSnapshot(name string, expires time.Time) (volume.Snapshot, error) {
	if name == "" {
		name = "made from the time"
	}
	if name == "." {
		return volume.Snapshot{}, fmt.Errorf("a dot: %w", fs.ErrInvalid)
	}
	if _, err := v.Snapshot(name); err == nil {
		return volume.Snapshot{}, fs.ErrExist
	}
	if err := v.backend.did("snapshot %s of %s", name, v.name); err != nil {
		return volume.Snapshot{}, err
	}
	s := volume.Snapshot{Name: name, Created: noon, Expires: expires}
	v.backend.mu.Lock()
	defer v.backend.mu.Unlock()
	v.backend.kept[v.name] = append(v.backend.kept[v.name], s)
	return s, nil
}

func (v *fakeVolume) Snapshots() []volume.Snapshot {
	v.backend.mu.Lock()
	defer v.backend.mu.Unlock()
	return slices.Clone(v.backend.kept[v.name])
}

func (v *fakeVolume) Snapshot(name string) (volume.Snapshot, error) {
	for _, s := range v.Snapshots() {
		if s.Name == name {
			return s, nil
		}
	}
	return volume.Snapshot{}, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
}

func (v *fakeVolume) DeleteSnapshot(name string) error {
	if _, err := v.Snapshot(name); err != nil {
		return err
	}
	if err := v.backend.did("delete %s of %s", name, v.name); err != nil {
		return err
	}
	v.backend.mu.Lock()
	defer v.backend.mu.Unlock()
	v.backend.kept[v.name] = slices.DeleteFunc(v.backend.kept[v.name], func(s volume.Snapshot) bool { return s.Name == name })
	return nil
}

func (v *fakeVolume) SetSnapshotExpiry(name string, expires time.Time) error {
	v.backend.mu.Lock()
	defer v.backend.mu.Unlock()
	for i := range v.backend.kept[v.name] {
		if s := &v.backend.kept[v.name][i]; s.Name == name {
			s.Expires = expires
			return nil
		}
	}
	return fs.ErrNotExist
}

// SnapshotSpace has each snapshot hold as many bytes as its name has.
func (v *fakeVolume) SnapshotSpace() (map[string]int64, int64, error) {
	alone, total := map[string]int64{}, int64(1000)
	for _, s := range v.Snapshots() {
		alone[s.Name] = int64(len(s.Name))
		total += alone[s.Name]
	}
	return alone, total, v.backend.did("space of %s", v.name)
}

func (v *fakeVolume) Diff(from, to, cursor string, limit int) ([]volume.Change, string, error) {
	err := v.backend.did("diff %s %s %q %d", from, to, cursor, limit)
	return []volume.Change{{Kind: volume.ChangeRenamed, Path: "new", From: "old", Dir: true}}, cursor + "+", err
}

func (v *fakeVolume) DiffFile(from, to, path, cursor string, limit int) ([]volume.Region, string, error) {
	if path != "dir/file" {
		return nil, "", fs.ErrNotExist
	}
	err := v.backend.did("diff %s of %s %s %q %d", path, from, to, cursor, limit)
	return []volume.Region{{Offset: 1, Length: 2, Hole: true}}, "", err
}

func (v *fakeVolume) Restore(name, path string) (volume.Snapshot, error) {
	if path == "nothing" {
		return volume.Snapshot{}, fs.ErrNotExist
	}
	if err := v.backend.did("restore %q of %s to %s", path, v.name, name); err != nil {
		return volume.Snapshot{}, err
	}
	return v.CreateSnapshot("before "+name, time.Time{})
}

// keep takes a snapshot that must come about.
func (r *rig) keep(volume, name string, expires time.Time) api.Snapshot {
	r.t.Helper()
	s, err := r.client.CreateSnapshot(r.t.Context(), volume, api.CreateSnapshot{Name: name, Expires: expires})
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// snapshotNames gives the names of a volume's snapshots.
func (r *rig) snapshotNames(volume string) []string {
	r.t.Helper()
	list, err := r.client.Snapshots(r.t.Context(), volume)
	if err != nil {
		r.t.Fatal(err)
	}
	names := []string{}
	for _, s := range list.Snapshots {
		names = append(names, s.Name)
	}
	return names
}

// mustSay fails unless an error has a code and words.
func mustSay(t *testing.T, what string, err error, code api.Code, says string) {
	t.Helper()
	if err == nil || api.AsError(err).Code != code || !strings.Contains(err.Error(), says) {
		t.Errorf("%s: %v, want %s with %q", what, err, code, says)
	}
}

func TestASnapshotIsMadeShownPutOffAndDeleted(t *testing.T) {
	r := newRig(t)
	r.start()
	r.protect("data")
	ctx := t.Context()
	week := noon.Add(7 * 24 * time.Hour)
	if s := r.keep("data", "two words", week); s != (api.Snapshot{Name: "two words", Created: noon, Expires: week}) {
		t.Errorf("made %+v", s)
	}
	if s := r.keep("data", "", time.Time{}); s.Name != "made from the time" || !s.Expires.IsZero() {
		t.Errorf("made %+v", s)
	}
	list, err := r.client.Snapshots(ctx, "data")
	if err != nil || len(list.Snapshots) != 2 || list.Snapshots[0].Bytes != 9 || list.TotalBytes != 1027 {
		t.Errorf("listed %+v, %v", list, err)
	}
	s, err := r.client.SetSnapshotExpiry(ctx, "data", "two words", api.SetExpiry{})
	if err != nil || !s.Expires.IsZero() || s.Bytes != 9 {
		t.Errorf("put off: %+v, %v", s, err)
	}
	if shown, err := r.client.Snapshot(ctx, "data", "two words"); err != nil || shown != s {
		t.Errorf("shown is %+v, %v, want %+v", shown, err, s)
	}
	if was, err := r.client.DeleteSnapshot(ctx, "data", "two words"); err != nil || was != s {
		t.Errorf("deleted was %+v, %v, want %+v", was, err, s)
	}
	if names := r.snapshotNames("data"); !slices.Equal(names, []string{"made from the time"}) {
		t.Errorf("left are %q", names)
	}
}

func TestWhatIsWrongWithASnapshotIsSaidInWords(t *testing.T) {
	r := newRig(t)
	r.start()
	r.protect("data")
	r.keep("data", "a", time.Time{})
	ctx := t.Context()
	do := func(name string, call func() (any, error), code api.Code, says string) {
		_, err := call()
		mustSay(t, name, err, code, says)
	}
	do("show", func() (any, error) { return r.client.Snapshot(ctx, "data", "z") }, api.CodeNotFound, `no snapshot "z"`)
	do("delete", func() (any, error) { return r.client.DeleteSnapshot(ctx, "data", "z") }, api.CodeNotFound, `no snapshot "z"`)
	do("put off", func() (any, error) { return r.client.SetSnapshotExpiry(ctx, "data", "z", api.SetExpiry{}) },
		api.CodeNotFound, `no snapshot "z"`)
	do("diff", func() (any, error) { return r.client.Diff(ctx, "data", api.Diff{From: "a", To: "z"}) }, api.CodeNotFound, `no snapshot "z"`)
	do("diff of a file", func() (any, error) {
		return r.client.DiffFile(ctx, "data", api.Diff{From: "z", To: "a", File: "dir/file"})
	}, api.CodeNotFound, `no snapshot "z"`)
	do("diff of no file", func() (any, error) {
		return r.client.DiffFile(ctx, "data", api.Diff{From: "a", To: "a", File: "nothing"})
	}, api.CodeNotFound, `no "nothing" in snapshot "a"`)
	do("restore", func() (any, error) { return r.client.Restore(ctx, "data", api.Restore{Snapshot: "z"}) }, api.CodeNotFound, `no snapshot "z"`)
	do("restore nothing", func() (any, error) {
		return r.client.Restore(ctx, "data", api.Restore{Snapshot: "a", Path: "/nothing/"})
	}, api.CodeNotFound, `no "nothing" in snapshot "a"`)
	do("restore beyond", func() (any, error) { return r.client.Restore(ctx, "data", api.Restore{Snapshot: "a", Path: "x/../.."}) },
		api.CodeInvalid, `without ".."`)
	do("create again", func() (any, error) { return r.client.CreateSnapshot(ctx, "data", api.CreateSnapshot{Name: "a"}) },
		api.CodeConflict, "choose another name")
	do("create odd", func() (any, error) { return r.client.CreateSnapshot(ctx, "data", api.CreateSnapshot{Name: "."}) },
		api.CodeInvalid, `"." cannot be a snapshot's name`)
	do("create expired", func() (any, error) { return r.client.CreateSnapshot(ctx, "data", api.CreateSnapshot{Expires: noon}) },
		api.CodeInvalid, "2026-11-23T12:00:00Z cannot be an expiry")
	do("put off for ever", func() (any, error) {
		return r.client.SetSnapshotExpiry(ctx, "data", "a", api.SetExpiry{Expires: noon.AddDate(200, 0, 0)})
	}, api.CodeInvalid, "100 years")
	do("no volume", func() (any, error) { return r.client.Snapshots(ctx, "none") }, api.CodeNotFound, `no volume "none"`)
	if names := r.snapshotNames("data"); !slices.Equal(names, []string{"a"}) {
		t.Errorf("left are %q", names)
	}
}

func TestADiffIsHandedThroughPageByPage(t *testing.T) {
	r := newRig(t)
	r.start()
	r.protect("data")
	r.keep("data", "a", time.Time{})
	r.keep("data", "b", time.Time{})
	changes, err := r.client.Diff(t.Context(), "data", api.Diff{From: "a", To: "b", Cursor: "c", Limit: 7})
	if err != nil || fmt.Sprint(changes) != "{[{renamed new old true}] c+}" {
		t.Errorf("got %v, %v", changes, err)
	}
	regions, err := r.client.DiffFile(t.Context(), "data", api.Diff{From: "a", To: "b", File: "/dir//file"})
	if err != nil || fmt.Sprint(regions) != "{[{1 2 true}] }" {
		t.Errorf("got %v, %v", regions, err)
	}
	events := r.backend.since(0)
	for _, want := range []string{`diff a b "c" 7`, `diff dir/file of a b "" 1000`} {
		if !slices.Contains(events, want) {
			t.Errorf("the volume was not asked %q: %q", want, events)
		}
	}
}

func TestARestoreGivesTheSnapshotThatUndoesIt(t *testing.T) {
	r := newRig(t)
	r.start()
	r.protect("data")
	r.keep("data", "a", time.Time{})
	for path, want := range map[string]string{"": `restore "" of data to a`, "/": `restore "" of data to a`, "./d/": `restore "d" of data to a`} {
		before := len(r.backend.since(0))
		s, err := r.client.Restore(t.Context(), "data", api.Restore{Snapshot: "a", Path: path})
		if err != nil || s.Name != "before a" || s.Bytes != 8 {
			t.Errorf("%q gave %+v, %v", path, s, err)
		}
		if got := r.backend.since(before); got[0] != want {
			t.Errorf("%q became %q", path, got)
		}
		if _, err := r.client.DeleteSnapshot(t.Context(), "data", "before a"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestATargetIsNotRestored(t *testing.T) {
	r := newRig(t)
	r.start()
	r.target("copy", r.mkdir("copy"))
	r.keep("copy", "a", time.Time{})
	_, err := r.client.Restore(t.Context(), "copy", api.Restore{Snapshot: "a"})
	mustSay(t, "restore", err, api.CodeConflict, "restore on its source")
}

func TestUnknownSpaceKeepsNobodyFromDeleting(t *testing.T) {
	r := newRig(t)
	r.start()
	r.protect("data")
	r.keep("data", "a", time.Time{})
	r.backend.breakOn("space of data", errors.New("cannot count"))
	_, err := r.client.Snapshots(t.Context(), "data")
	mustSay(t, "list", err, api.CodeInternal, "cannot count")
	if _, err := r.client.SetSnapshotExpiry(t.Context(), "data", "a", api.SetExpiry{}); err != nil {
		t.Error(err)
	}
	if _, err := r.client.DeleteSnapshot(t.Context(), "data", "a"); err != nil {
		t.Error(err)
	}
}

func TestSnapshotsOfAVolumeThatIsNotMountedAreAConflict(t *testing.T) {
	r := newRig(t)
	r.start()
	v := r.protect("data")
	r.keep("data", "a", time.Time{})
	r.stop()
	if err := os.Rename(v.Path, v.Path+".away"); err != nil {
		t.Fatal(err)
	}
	r.start()
	ctx := t.Context()
	for name, do := range map[string]func() (any, error){
		"list":    func() (any, error) { return r.client.Snapshots(ctx, "data") },
		"show":    func() (any, error) { return r.client.Snapshot(ctx, "data", "a") },
		"create":  func() (any, error) { return r.client.CreateSnapshot(ctx, "data", api.CreateSnapshot{}) },
		"delete":  func() (any, error) { return r.client.DeleteSnapshot(ctx, "data", "a") },
		"put off": func() (any, error) { return r.client.SetSnapshotExpiry(ctx, "data", "a", api.SetExpiry{}) },
		"diff":    func() (any, error) { return r.client.Diff(ctx, "data", api.Diff{From: "a", To: "a"}) },
		"regions": func() (any, error) { return r.client.DiffFile(ctx, "data", api.Diff{From: "a", To: "a", File: "f"}) },
		"restore": func() (any, error) { return r.client.Restore(ctx, "data", api.Restore{Snapshot: "a"}) },
	} {
		_, err := do()
		mustSay(t, name, err, api.CodeConflict, "volume data cannot be used")
	}
}

func TestAVolumeIsNotClosedWhileItIsUsed(t *testing.T) {
	for event, end := range map[string]func(*entry) error{
		"close a": (*entry).takeDown,
		"erase a": func(e *entry) error { _, err := e.erase(); return err },
	} {
		b := newFakeBackend()
		r := newJanitor(t, b, &clock{}, &logOf{}, "a").volumes
		e := r.entries["a"]
		unmounted := e.mount.(*fakeMount).gone
		_, done, err := r.use("a")
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error)
		go func() {
			e.mu.Lock()
			defer e.mu.Unlock()
			ended <- end(e)
		}()
		<-unmounted
		time.Sleep(20 * time.Millisecond) // long enough for an end that does not wait
		if slices.Contains(b.since(0), event) {
			t.Errorf("%q came first", event)
		}
		done()
		if err := <-ended; err != nil || !slices.Contains(b.since(0), event) {
			t.Errorf("%q did not come: %q, %v", event, b.since(0), err)
		}
	}
}

func TestSnapshotsAreShownWhereThatWasAsked(t *testing.T) {
	r := newRig(t)
	r.start()
	want := api.CreateVolume{Name: "data", Path: r.mkdir("data"), ShowSnapshots: true}
	if _, err := r.client.CreateVolume(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	other := r.protect("other")
	r.restart()
	v := r.mustBe("data", api.VolumeMounted)
	if !v.ShowSnapshots || !r.backend.mounts[v.Mount].options.ShowSnapshots {
		t.Errorf("it was forgotten: %+v", v)
	}
	if other.ShowSnapshots || r.backend.mounts[other.Mount].options.ShowSnapshots {
		t.Errorf("it was not asked for: %+v", other)
	}
}

// logOf is a log that a test can read while it is written.
type logOf struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logOf) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logOf) count(words string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), words)
}

// await waits for something that happens in the background.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s did not come about", what)
		}
	}
}

func TestExpiredSnapshotsAreDeletedOnceTheirTimeHasCome(t *testing.T) {
	r := newRig(t)
	var log logOf
	r.options.Logger = slog.New(slog.NewTextHandler(&log, nil))
	r.tidyEvery = time.Millisecond
	r.start()
	r.protect("data")
	r.protect("other")
	r.keep("data", "hour", noon.Add(time.Hour))
	r.keep("data", "day", noon.Add(24*time.Hour))
	r.keep("data", "ever", time.Time{})
	r.keep("other", "hour", noon.Add(time.Hour))
	r.clock.advance(time.Hour)
	await(t, "the deletion", func() bool {
		return slices.Equal(r.snapshotNames("data"), []string{"day", "ever"}) && len(r.snapshotNames("other")) == 0
	})
	r.stop()
	r.clock.advance(24 * time.Hour)
	r.tidyEvery = time.Hour
	r.start() // and at once when the node starts
	await(t, "the deletion at the start", func() bool { return slices.Equal(r.snapshotNames("data"), []string{"ever"}) })
	await(t, "the log", func() bool { return log.count(`msg="expired snapshot deleted" volume=data snapshot=day`) == 1 })
}

// newJanitor makes a janitor that a test calls itself, for volumes of a backend.
func newJanitor(t *testing.T, b *fakeBackend, c *clock, log *logOf, names ...string) *janitor {
	t.Helper()
	r := &registry{backend: b, log: testLogger(), entries: map[string]*entry{}}
	for _, name := range names {
		e := r.newEntry(record{CreateVolume: api.CreateVolume{Name: name}})
		e.volume = &fakeVolume{backend: b, name: name, path: t.TempDir()}
		e.mount = &fakeMount{backend: b, name: name, gone: make(chan struct{})}
		r.entries[name] = e
	}
	return &janitor{volumes: r, tend: func(string) error { return nil }, now: c.now, log: slog.New(slog.NewTextHandler(log, nil)), expiry: new(sync.Mutex)}
}

func TestOneVolumesFailureStopsNoOtherAndIsLoggedOnce(t *testing.T) {
	b, c, log := newFakeBackend(), &clock{}, &logOf{}
	over := volume.Snapshot{Name: "s", Expires: noon}
	j := newJanitor(t, b, c, log, "a", "b", "c")
	b.kept = map[string][]volume.Snapshot{"a": {over, {Name: "t", Expires: noon}}, "b": {over}, "c": {over}}
	b.breakOn("delete s of a", errors.New("no room"))
	j.volumes.entries["b"].mount = nil
	for range 3 {
		j.tidy()
	}
	if len(b.kept["a"]) != 1 || len(b.kept["b"]) != 1 || len(b.kept["c"]) != 0 {
		t.Errorf("left are %v", b.kept)
	}
	if log.count("cannot be deleted") != 1 || log.count("no room") != 1 || log.count("expired snapshot deleted") != 2 {
		t.Errorf("logged:\n%s", log.text.String())
	}
	b.breakOn("delete s of a", errors.New("still no room"))
	j.tidy()
	b.breakOn("delete s of a", nil)
	j.tidy()
	j.tidy()
	if len(b.kept["a"]) != 0 || log.count("cannot be deleted") != 2 || log.count("expired snapshot deleted") != 3 {
		t.Errorf("left are %v, logged:\n%s", b.kept["a"], log.text.String())
	}
}

func TestAVolumeThatIsBusyIsPassedOver(t *testing.T) {
	b, c, log := newFakeBackend(), &clock{}, &logOf{}
	j := newJanitor(t, b, c, log, "a", "b")
	over := volume.Snapshot{Name: "s", Expires: noon}
	b.kept = map[string][]volume.Snapshot{"a": {over}, "b": {over}}
	j.volumes.entries["a"].mu.Lock()
	j.tidy()
	j.volumes.entries["a"].mu.Unlock()
	if len(b.kept["a"]) != 1 || len(b.kept["b"]) != 0 {
		t.Errorf("left are %v", b.kept)
	}
	j.tidy()
	if len(b.kept["a"]) != 0 {
		t.Errorf("left are %v", b.kept)
	}
}

func TestASnapshotWhoseExpiryWasPutOffInTimeIsKept(t *testing.T) {
	b := newFakeBackend()
	j := newJanitor(t, b, &clock{}, &logOf{}, "a")
	b.kept = map[string][]volume.Snapshot{"a": {{Name: "s", Expires: noon}}}
	j.expiry.Lock()
	tidied := make(chan struct{})
	go func() { j.tidy(); close(tidied) }()
	time.Sleep(20 * time.Millisecond) // long enough for a janitor that does not wait
	err := j.volumes.entries["a"].volume.SetSnapshotExpiry("s", time.Time{})
	j.expiry.Unlock()
	<-tidied
	if err != nil || len(b.kept["a"]) != 1 {
		t.Errorf("left are %v, %v", b.kept["a"], err)
	}
}
