package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"tandemfs/cmd/api"
	"tandemfs/journal/alloctest"
)

// slack is what a fuzz target may take whatever it is given: the runtime's own needs are counted too.
const slack = 4 << 20

// Whatever is asked, the answer is JSON with a status that docs/api.md names, and never a failure of the node itself.
func FuzzRequest(f *testing.F) {
	for _, seed := range [][3]string{
		{"GET", "/v1/node", ""},
		{"POST", "/v1/volumes", `{"name":"v","path":"/p","mount":"/m","nosuid":true}`},
		{"POST", "/v1/volumes", `{"name":1}`},
		{"POST", "/v1/volumes", `{"name":"v"} {"name":"w"}`},
		{"POST", "/v1/volumes", `{"name":"v","unknown":[[[[{}]]]]}`},
		{"DELETE", "/v1/volumes/v", ""},
		{"POST", "/v1/relationships", `{"source":"v","target":"host:1","target_volume":"w","disabled":true}`},
		{"POST", "/v1/relationships/1/authorize", `{"allow_non_empty":true}`},
		{"POST", "/v1/relationships/%2e%2e/enable", "null"},
		{"POST", "/v1/relationships/1/verify", `{"rate":5,"always":true}`},
		{"POST", "/v1/volumes/v/snapshots", `{"name":"s","expires":"2027-01-31T18:00:00Z"}`},
		{"POST", "/v1/volumes/v/snapshots/s/expiry", `{"expires":"9999-99-99"}`},
		{"POST", "/v1/volumes/v/restore", `{"snapshot":"s","path":"a/../b\u0000"}`},
		{"GET", "/v1/volumes/v/diff?from=a&to=b&limit=10&cursor=eA", ""},
		{"GET", "/v1/volumes/v/diff?from=a&from=b;limit=%zz", ""},
		{"GET", "/v1//volumes/../node", ""},
		{"PUT", "/", "\x00\xff"},
	} {
		f.Add(seed[0], seed[1], []byte(seed[2]))
	}
	ask := asking(f)
	f.Fuzz(func(t *testing.T, method, path string, body []byte) {
		target, err := url.ParseRequestURI(path)
		if err != nil || !strings.HasPrefix(path, "/") {
			return
		}
		r, err := http.NewRequest(method, "http://node", strings.NewReader(string(body)))
		if err != nil {
			return
		}
		r.URL.Path, r.URL.RawPath, r.URL.RawQuery = target.Path, target.RawPath, target.RawQuery
		var status int
		var text []byte
		if n := alloctest.Bytes(func() { status, text, err = ask(r) }); n > slack+16*uint64(len(body)+len(path)) {
			t.Fatalf("a request of %d bytes took %d of memory", len(body)+len(path), n)
		}
		if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
			return // what HTTP does not allow is not read to its end, and the answer may be lost with the connection
		}
		if err != nil {
			t.Fatalf("%s %q is not answered: %v", method, path, err)
		}
		if !sound(r.Method, status, text) {
			t.Fatalf("%s %q: %d %q", method, path, status, text)
		}
	})
}

// asking serves a node in memory and gives what asks it.
func asking(f *testing.F) func(*http.Request) (int, []byte, error) {
	socket := filepath.Join(f.TempDir(), "s")
	listener, err := api.Listen(socket)
	if err != nil {
		f.Fatal(err)
	}
	server := api.NewServer(newFakeNode(), slog.New(slog.DiscardHandler))
	go func() { _ = server.Serve(listener) }() // until it is closed
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", socket) }}
	f.Cleanup(func() {
		transport.CloseIdleConnections()
		_ = server.Close()
	})
	return func(r *http.Request) (int, []byte, error) {
		answer, err := transport.RoundTrip(r)
		if err != nil {
			return 0, nil, err
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		return answer.StatusCode, text, err
	}
}

// sound reports whether an answer is one that docs/api.md describes. Paths that are not clean are redirected, and a
// request that HTTP itself does not allow is answered by the library.
func sound(method string, status int, text []byte) bool {
	var failure struct {
		Error *api.Error `json:"error"`
	}
	switch {
	case status >= 300 && status < 400:
		return true
	case method == http.MethodHead:
		return status != http.StatusInternalServerError
	case status == http.StatusOK, status == http.StatusCreated, status == http.StatusAccepted:
		return json.Valid(text)
	case status == http.StatusBadRequest && strings.HasPrefix(string(text), "400 Bad Request"):
		return true
	}
	return status != http.StatusInternalServerError && json.Unmarshal(text, &failure) == nil && failure.Error != nil &&
		failure.Error.Code != "" && failure.Error.Message != ""
}
