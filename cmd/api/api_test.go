package api_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tandemfs/cmd/api"
	"tandemfs/replicator"
)

// serve runs a node's API on a socket in a folder of the test's own.
func serve(t *testing.T, node api.Node) (*api.Client, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := api.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	server := api.NewServer(node, slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() { done <- server.Serve(ln) }()
	client := api.NewClient(socket)
	t.Cleanup(func() {
		client.Close()
		_ = server.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return client, socket
}

// post sends a raw body and gives the answer's status and text.
func post(t *testing.T, socket, path, body string) (int, string) {
	t.Helper()
	dial := func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", socket) }
	transport := &http.Transport{DialContext: dial}
	defer transport.CloseIdleConnections()
	r, err := (&http.Client{Transport: transport}).Post("http://x"+path, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(text)
}

func TestEveryCallOfTheClientReachesTheNode(t *testing.T) {
	node := newFakeNode()
	client, _ := serve(t, node)
	ctx := t.Context()
	calls := []struct {
		do   func() error
		want string
	}{
		{func() error {
			_, err := client.CreateVolume(ctx, api.CreateVolume{Name: "v", Path: "/p", Mount: "/m", NoSuid: true})
			return err
		}, "create {Name:v Path:/p Mount:/m NoSuid:true NoDev:false ShowSnapshots:false}"},
		{func() error { _, err := client.Volume(ctx, "v"); return err }, "volume v"},
		{func() error { _, err := client.RemoveVolume(ctx, "v"); return err }, "remove v"},
		{func() error { _, err := client.RebuildVolume(ctx, "v"); return err }, "rebuild v"},
		{func() error {
			_, err := client.CreateRelationship(ctx, replicator.CreateRequest{Source: "v", Target: "h", TargetVolume: "w"})
			return err
		}, "propose {Source:v Target:h TargetVolume:w Disabled:false TargetFingerprint:}"},
		{func() error { _, err := client.Relationship(ctx, "r/ 1"); return err }, "relationship r/ 1"},
		{func() error {
			_, err := client.AuthorizeRelationship(ctx, "r", replicator.AuthorizeRequest{CreateDir: "/d"})
			return err
		}, "authorize r {AllowNonEmpty:false CreateDir:/d SourceFingerprint:}"},
		{func() error { _, err := client.RejectRelationship(ctx, "r"); return err }, "reject r"},
		{func() error { _, err := client.EnableRelationship(ctx, "r", true); return err }, "enable r true"},
		{func() error { _, err := client.EnableRelationship(ctx, "r", false); return err }, "enable r false"},
		{func() error { _, err := client.DeleteRelationship(ctx, "r"); return err }, "delete r"},
		{func() error { _, err := client.ReconcileRelationship(ctx, "r"); return err }, "reconcile r"},
		{func() error {
			_, err := client.VerifyRelationship(ctx, "r", replicator.VerifyRequest{Rate: 5, Repair: true})
			return err
		}, "verify r {Rate:5 Repair:true Always:false}"},
		{func() error { _, err := client.StopVerification(ctx, "r"); return err }, "stop verifying r"},
		{func() error { _, err := client.Verification(ctx, "r"); return err }, "verification r"},
	}
	for _, call := range calls {
		if err := call.do(); err != nil {
			t.Fatalf("%s: %v", call.want, err)
		}
		node.mustHaveAsked(t, call.want)
	}
}

func TestListsTravelEvenWhenEmpty(t *testing.T) {
	node := newFakeNode()
	client, _ := serve(t, node)
	volumes, err := client.Volumes(t.Context())
	if err != nil || volumes == nil || len(volumes) != 0 {
		t.Fatalf("volumes: %#v, %v", volumes, err)
	}
	relations, err := client.Relationships(t.Context())
	if err != nil || relations == nil || len(relations) != 0 {
		t.Fatalf("relationships: %#v, %v", relations, err)
	}
	info, err := client.Info(t.Context())
	if err != nil || info.Name != "alpha" {
		t.Fatalf("info: %#v, %v", info, err)
	}
}

func TestEveryErrorArrivesWithItsCodeAndItsWords(t *testing.T) {
	for _, c := range []struct {
		err  error
		code api.Code
	}{
		{fmt.Errorf("x: %w", replicator.ErrNotFound), api.CodeNotFound},
		{fmt.Errorf("x: %w", replicator.ErrInvalid), api.CodeInvalid},
		{fmt.Errorf("x: %w", replicator.ErrConflict), api.CodeConflict},
		{fmt.Errorf("x: %w", replicator.ErrPeer), api.CodePeer},
		{fmt.Errorf("x: %w", fs.ErrNotExist), api.CodeNotFound},
		{fmt.Errorf("x: %w", fs.ErrExist), api.CodeConflict},
		{fmt.Errorf("x: %w", fs.ErrInvalid), api.CodeInvalid},
		{fmt.Errorf("x: %w", api.Errorf(api.CodeConflict, "taken")), api.CodeConflict},
		{errors.New("disk on fire"), api.CodeInternal},
	} {
		node := newFakeNode()
		node.fail = c.err
		client, _ := serve(t, node)
		_, err := client.Volume(t.Context(), "v")
		var e *api.Error
		if !errors.As(err, &e) || e.Code != c.code || e.Message != c.err.Error() {
			t.Errorf("%v arrived as %#v, want code %s", c.err, err, c.code)
		}
	}
}

func TestARequestThatIsNotUnderstoodIsRefused(t *testing.T) {
	node := newFakeNode()
	_, socket := serve(t, node)
	long := `{"name":"` + strings.Repeat("x", api.MaxRequest) + `"}`
	for _, c := range []struct {
		path, body string
		status     int
		says       string
	}{
		{"/v1/volumes", `{"name":"v","colour":"red"}`, 400, `unknown field \"colour\"`},
		{"/v1/volumes", `{"name":`, 400, "invalid"},
		{"/v1/volumes", `{"name":"v"} {"name":"w"}`, 400, "more than one value"},
		{"/v1/volumes", `{"name":7}`, 400, "invalid"},
		{"/v1/volumes", long, 413, "too_large"},
		{"/v1/nothing", `{}`, 404, "nothing answers to POST /v1/nothing"},
		{"/v1/node", `{}`, 404, "nothing answers to POST /v1/node"},
	} {
		status, text := post(t, socket, c.path, c.body)
		if status != c.status || !strings.Contains(text, c.says) || !strings.HasPrefix(text, `{"error":{"code":"`) {
			t.Errorf("POST %s: %d %s, want %d with %q", c.path, status, text, c.status, c.says)
		}
	}
	if len(node.asked) != 0 {
		t.Errorf("the node was asked %q", node.asked)
	}
}

func TestOddNamesNeverBecomePaths(t *testing.T) {
	node := newFakeNode()
	client, _ := serve(t, node)
	for _, name := range []string{"", ".", ".."} {
		_, err := client.RemoveVolume(t.Context(), name)
		if e := api.AsError(err); err == nil || e.Code != api.CodeInvalid {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := client.RemoveVolume(t.Context(), "../relationships/r"); err != nil {
		t.Fatal(err)
	}
	node.mustHaveAsked(t, "remove ../relationships/r")
}

func TestTheSocketIsForItsUserAlone(t *testing.T) {
	_, socket := serve(t, newFakeNode())
	info, err := os.Stat(socket)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
}

func TestADeadSocketIsReplacedAndALiveOneIsNot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := api.Listen(path); err == nil || !strings.Contains(err.Error(), "another daemon answers") {
		t.Fatalf("a live socket was taken over: %v", err)
	}
	ln.SetUnlinkOnClose(false)
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := api.Listen(path)
	if err != nil {
		t.Fatalf("a dead socket was not replaced: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestASocketThatCannotBeAskedIsNotReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for { // until it has more callers than it bears
		c, err := net.Dial("unix", path)
		if err != nil {
			break
		}
		defer c.Close()
	}
	if _, err := api.Listen(path); err == nil || !strings.Contains(err.Error(), "another daemon answers") {
		t.Fatalf("a live socket was taken over: %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

func TestASocketsPathThatCannotBeIsNamedSo(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{
		filepath.Join(dir, strings.Repeat("x", 108)): "name a shorter one with --socket",
		filepath.Join(dir, "missing", "s"):           "make it, or name another path with --socket",
	} {
		_, err := api.Listen(path)
		if err == nil || api.AsError(err).Code != api.CodeInvalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestAFileIsNotTakenForASocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := api.Listen(path); err == nil || !strings.Contains(err.Error(), "is not a socket") {
		t.Fatalf("got %v", err)
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "mine" {
		t.Fatalf("the file became %q, %v", data, err)
	}
}

func TestASilentDaemonIsCalledUnreachable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nobody")
	_, err := api.NewClient(path).Info(t.Context())
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeUnreachable || !strings.Contains(e.Message, "tandemfs serve") {
		t.Fatalf("got %#v", err)
	}
}
