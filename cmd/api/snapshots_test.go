package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"tandemfs/cmd/api"
)

// later is an expiry.
var later = time.Date(2027, 1, 31, 18, 0, 0, 0, time.UTC)

func (n *fakeNode) Snapshots(volume string) (api.SnapshotList, error) {
	return api.SnapshotList{}, n.ask("snapshots of %s", volume)
}

func (n *fakeNode) Snapshot(volume, name string) (api.Snapshot, error) {
	return api.Snapshot{Name: name}, n.ask("snapshot %s of %s", name, volume)
}

func (n *fakeNode) CreateSnapshot(_ context.Context, volume string, w api.CreateSnapshot) (api.Snapshot, error) {
	return api.Snapshot{Name: w.Name, Expires: w.Expires}, n.ask("create snapshot %q of %s, expires %s", w.Name, volume, expiry(w.Expires))
}

func (n *fakeNode) DeleteSnapshot(_ context.Context, volume, name string) (api.Snapshot, error) {
	return api.Snapshot{Name: name}, n.ask("delete snapshot %s of %s", name, volume)
}

func (n *fakeNode) SetSnapshotExpiry(_ context.Context, volume, name string, w api.SetExpiry) (api.Snapshot, error) {
	return api.Snapshot{Name: name, Expires: w.Expires}, n.ask("snapshot %s of %s expires %s", name, volume, expiry(w.Expires))
}

func (n *fakeNode) Diff(volume string, w api.Diff) (api.ChangeList, error) {
	return api.ChangeList{}, n.ask("diff %s %+v", volume, w)
}

func (n *fakeNode) DiffFile(volume string, w api.Diff) (api.RegionList, error) {
	return api.RegionList{}, n.ask("diff file %s %+v", volume, w)
}

func (n *fakeNode) Restore(ctx context.Context, volume string, w api.Restore) (api.Snapshot, error) {
	if n.restoring != nil {
		n.restoring(ctx)
	}
	return api.Snapshot{Name: "before"}, n.ask("restore %s %+v", volume, w)
}

func expiry(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Format(time.RFC3339)
}

func TestEveryCallAboutSnapshotsReachesTheNode(t *testing.T) {
	node := newFakeNode()
	client, _ := serve(t, node)
	ctx := t.Context()
	calls := []struct {
		do   func() (any, error)
		want string
	}{
		{func() (any, error) { return client.Snapshots(ctx, "v") }, "snapshots of v"},
		{func() (any, error) { return client.Snapshot(ctx, "v", "s") }, "snapshot s of v"},
		{func() (any, error) { return client.CreateSnapshot(ctx, "v", api.CreateSnapshot{}) }, `create snapshot "" of v, expires never`},
		{func() (any, error) {
			return client.CreateSnapshot(ctx, "v", api.CreateSnapshot{Name: "s", Expires: later})
		}, `create snapshot "s" of v, expires 2027-01-31T18:00:00Z`},
		{func() (any, error) { return client.DeleteSnapshot(ctx, "v", "s") }, "delete snapshot s of v"},
		{func() (any, error) { return client.SetSnapshotExpiry(ctx, "v", "s", api.SetExpiry{Expires: later}) },
			"snapshot s of v expires 2027-01-31T18:00:00Z"},
		{func() (any, error) { return client.SetSnapshotExpiry(ctx, "v", "s", api.SetExpiry{}) }, "snapshot s of v expires never"},
		{func() (any, error) { return client.Diff(ctx, "v", api.Diff{From: "a", To: "b"}) },
			"diff v {From:a To:b File: Cursor: Limit:1000}"},
		{func() (any, error) {
			return client.Diff(ctx, "v", api.Diff{From: "a&to=x", To: "b c", Cursor: "+/=", Limit: 10000})
		}, "diff v {From:a&to=x To:b c File: Cursor:+/= Limit:10000}"},
		{func() (any, error) {
			return client.DiffFile(ctx, "v", api.Diff{From: "a", To: "b", File: "d/f\xff", Limit: 1})
		}, "diff file v {From:a To:b File:d/f\xff Cursor: Limit:1}"},
		{func() (any, error) { return client.Restore(ctx, "v", api.Restore{Snapshot: "s"}) }, "restore v {Snapshot:s Path:}"},
		{func() (any, error) { return client.Restore(ctx, "v", api.Restore{Snapshot: "s", Path: "d/e"}) }, "restore v {Snapshot:s Path:d/e}"},
	}
	for _, call := range calls {
		if _, err := call.do(); err != nil {
			t.Fatalf("%s: %v", call.want, err)
		}
		node.mustHaveAsked(t, call.want)
	}
}

func TestSnapshotNamesTravelAsTheyAre(t *testing.T) {
	node := newFakeNode()
	client, _ := serve(t, node)
	for _, name := range []string{"two words", "100%", "%2F", "%", "été ☀", "a?b#c", "a+b&c=d;e", "...", "-", "expiry", "a:b", `"`, "tab\there"} {
		if s, err := client.Snapshot(t.Context(), "v", name); err != nil || s.Name != name {
			t.Errorf("%q came back as %q, %v", name, s.Name, err)
		}
		node.mustHaveAsked(t, "snapshot "+name+" of v")
		if s, err := client.SetSnapshotExpiry(t.Context(), "v", name, api.SetExpiry{}); err != nil || s.Name != name {
			t.Errorf("%q came back as %q, %v", name, s.Name, err)
		}
		node.mustHaveAsked(t, "snapshot "+name+" of v expires never")
	}
	asked := len(node.asked)
	for _, name := range []string{"", ".", ".."} {
		if _, err := client.DeleteSnapshot(t.Context(), "v", name); err == nil || api.AsError(err).Code != api.CodeInvalid {
			t.Errorf("%q: %v", name, err)
		}
		if _, err := client.Diff(t.Context(), name, api.Diff{From: "a", To: "b"}); err == nil || api.AsError(err).Code != api.CodeInvalid {
			t.Errorf("%q: %v", name, err)
		}
	}
	if len(node.asked) != asked {
		t.Errorf("the node was asked %q", node.asked[asked:])
	}
}

// ask makes a raw request and gives the answer's status and text.
func ask(t *testing.T, socket, path string) (int, string) {
	t.Helper()
	dial := func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", socket) }
	transport := &http.Transport{DialContext: dial}
	defer transport.CloseIdleConnections()
	r, err := (&http.Client{Transport: transport}).Get("http://x" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, strings.TrimSpace(string(text))
}

func TestADiffThatIsNotUnderstoodIsRefused(t *testing.T) {
	node := newFakeNode()
	_, socket := serve(t, node)
	for query, says := range map[string]string{
		"":                          "from and to",
		"from=a":                    "from and to",
		"from=&to=b":                "from and to",
		"from=a&to=b&limit=0":       "from 1 to 10000",
		"from=a&to=b&limit=-1":      "from 1 to 10000",
		"from=a&to=b&limit=10001":   "from 1 to 10000",
		"from=a&to=b&limit=":        "from 1 to 10000",
		"from=a&to=b&limit=many":    "from 1 to 10000",
		"from=a&to=b&limit=1e3":     "from 1 to 10000",
		"from=a&to=b&colour=red":    `\"colour\" is unknown`,
		"from=a&to=b&to=c":          `\"to\" is unknown in the query, or there twice`,
		"from=a&to=%zz":             "cannot be read",
		"from=a&to=b;limit=1":       "cannot be read",
		"from=a&to=b&limit=9999999": "from 1 to 10000",
	} {
		status, text := ask(t, socket, "/v1/volumes/v/diff?"+query)
		if status != 400 || !strings.Contains(text, says) || !strings.HasPrefix(text, `{"error":{"code":"invalid"`) {
			t.Errorf("%s: %d %s, want 400 with %q", query, status, text, says)
		}
	}
	if len(node.asked) != 0 {
		t.Errorf("the node was asked %q", node.asked)
	}
}

func TestEmptyListsOfSnapshotsAndChangesTravelAsLists(t *testing.T) {
	_, socket := serve(t, newFakeNode())
	for path, want := range map[string]string{
		"/v1/volumes/v/snapshots":                `{"snapshots":[],"total_bytes":0}`,
		"/v1/volumes/v/diff?from=a&to=b":         `{"changes":[]}`,
		"/v1/volumes/v/diff?from=a&to=b&file=f":  `{"regions":[]}`,
		"/v1/volumes/v/diff?from=a&to=b&file=":   `{"changes":[]}`,
		"/v1/volumes/v/diff?from=a&to=b&limit=7": `{"changes":[]}`,
	} {
		if status, text := ask(t, socket, path); status != 200 || text != want {
			t.Errorf("%s: %d %s, want %s", path, status, text, want)
		}
	}
}

func TestAnExpiryIsATimeOrNull(t *testing.T) {
	node := newFakeNode()
	_, socket := serve(t, node)
	for body, want := range map[string]string{
		`{"expires":null}`:                   "snapshot s of v expires never",
		`{}`:                                 "snapshot s of v expires never",
		`{"expires":"2027-01-31T18:00:00Z"}`: "snapshot s of v expires 2027-01-31T18:00:00Z",
	} {
		if status, text := post(t, socket, "/v1/volumes/v/snapshots/s/expiry", body); status != 200 {
			t.Errorf("%s: %d %s", body, status, text)
		}
		node.mustHaveAsked(t, want)
	}
	asked := len(node.asked)
	for _, body := range []string{`{"expires":"7d"}`, `{"expires":7}`, `{"expire":null}`} {
		if status, text := post(t, socket, "/v1/volumes/v/snapshots/s/expiry", body); status != 400 {
			t.Errorf("%s: %d %s", body, status, text)
		}
	}
	if len(node.asked) != asked {
		t.Errorf("the node was asked %q", node.asked[asked:])
	}
}

func TestASnapshotThatIsMadeIsAnsweredWithCreated(t *testing.T) {
	_, socket := serve(t, newFakeNode())
	status, text := post(t, socket, "/v1/volumes/v/snapshots", `{"name":"s"}`)
	const want = `{"name":"s","created":"0001-01-01T00:00:00Z","bytes":0,"suspect":false}`
	if status != 201 || strings.TrimSpace(text) != want {
		t.Errorf("%d %s, want 201 %s", status, text, want)
	}
}

func TestWhatIsUnknownOrRefusedArrivesSoFromEveryResource(t *testing.T) {
	ctx := t.Context()
	for _, code := range []api.Code{api.CodeNotFound, api.CodeConflict} {
		node := newFakeNode()
		node.fail = fmt.Errorf("x: %w", api.Errorf(code, "no"))
		client, _ := serve(t, node)
		for name, do := range map[string]func() (any, error){
			"list":    func() (any, error) { return client.Snapshots(ctx, "v") },
			"show":    func() (any, error) { return client.Snapshot(ctx, "v", "s") },
			"create":  func() (any, error) { return client.CreateSnapshot(ctx, "v", api.CreateSnapshot{}) },
			"delete":  func() (any, error) { return client.DeleteSnapshot(ctx, "v", "s") },
			"expiry":  func() (any, error) { return client.SetSnapshotExpiry(ctx, "v", "s", api.SetExpiry{}) },
			"diff":    func() (any, error) { return client.Diff(ctx, "v", api.Diff{From: "a", To: "b"}) },
			"regions": func() (any, error) { return client.DiffFile(ctx, "v", api.Diff{From: "a", To: "b", File: "f"}) },
			"restore": func() (any, error) { return client.Restore(ctx, "v", api.Restore{Snapshot: "s"}) },
		} {
			if _, err := do(); err == nil || api.AsError(err).Code != code {
				t.Errorf("%s: %v, want %s", name, err, code)
			}
		}
	}
}

func TestARestoreGoesOnWhenTheCallerHangsUp(t *testing.T) {
	node := newFakeNode()
	client, _ := serve(t, node)
	ctx, hangUp := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	node.restoring = func(ctx context.Context) {
		hangUp()
		select {
		case <-ctx.Done():
			ended <- ctx.Err()
		case <-time.After(50 * time.Millisecond):
			ended <- nil
		}
	}
	if _, err := client.Restore(ctx, "v", api.Restore{Snapshot: "s"}); err == nil {
		t.Fatal("the caller did not hang up")
	}
	if err := <-ended; err != nil {
		t.Errorf("the restore was told to end: %v", err)
	}
}

func TestTheListsAreWrittenAsDocumented(t *testing.T) {
	for _, c := range []struct {
		value any
		want  string
	}{
		{api.Snapshot{Name: "s", Created: later, Expires: later, Bytes: 7},
			`{"name":"s","created":"2027-01-31T18:00:00Z","expires":"2027-01-31T18:00:00Z","bytes":7,"suspect":false}`},
		{api.ChangeList{Changes: []api.Change{{Kind: api.ChangeRenamed, Path: "b", From: "a", Dir: true}}, Cursor: "c"},
			`{"changes":[{"kind":"renamed","path":"b","from":"a","dir":true}],"cursor":"c"}`},
		{api.RegionList{Regions: []api.Region{{Offset: 1, Length: 2, Hole: true}}, Cursor: "c"},
			`{"regions":[{"offset":1,"length":2,"hole":true}],"cursor":"c"}`},
	} {
		text, err := json.Marshal(c.value)
		if err != nil || string(text) != c.want {
			t.Errorf("%s (%v), want %s", text, err, c.want)
		}
		again := reflect.New(reflect.TypeOf(c.value))
		if err := json.Unmarshal(text, again.Interface()); err != nil || !reflect.DeepEqual(again.Elem().Interface(), c.value) {
			t.Errorf("%s was read as %+v (%v)", text, again.Elem(), err)
		}
	}
}
