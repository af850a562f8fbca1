package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
)

// An API asks a node over its control socket (docs/api.md), on one connection and without starting a program
// for it. It may be used by several goroutines.
type API struct{ client *http.Client }

// API gives access to the node's API until the test ends.
func (n *Node) API() *API {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", n.Socket)
	}}
	n.t.Cleanup(transport.CloseIdleConnections)
	return &API{&http.Client{Transport: transport}}
}

// Do sends a request, with a body unless it is nil, and decodes the answer into what is given unless that is
// nil. An answer that is not a success is an error with the node's own words.
func (a *API) Do(method, path string, body, into any) error {
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(b)
	}
	request, err := http.NewRequest(method, "http://tandemfs/v1/"+path, content)
	if err != nil {
		return err
	}
	response, err := a.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, path, response.Status, answer)
	}
	if into == nil {
		return nil
	}
	return decode(string(answer), into)
}

// A Snapshot is what the lab reads of a snapshot.
type Snapshot struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
}

// A Change is a path that differs between two snapshots.
type Change struct {
	Kind string `json:"kind"`
	Path string `json:"path"`
	From string `json:"from"`
	Dir  bool   `json:"dir"`
}

// CreateSnapshot makes a snapshot of a volume.
func (a *API) CreateSnapshot(volume, name string) error {
	return a.Do(http.MethodPost, snapshotsOf(volume), map[string]string{"name": name}, nil)
}

// DeleteSnapshot deletes a snapshot of a volume.
func (a *API) DeleteSnapshot(volume, name string) error {
	return a.Do(http.MethodDelete, snapshotsOf(volume)+"/"+url.PathEscape(name), nil, nil)
}

// Snapshots lists a volume's snapshots, oldest first.
func (a *API) Snapshots(volume string) ([]Snapshot, error) {
	var list struct{ Snapshots []Snapshot }
	err := a.Do(http.MethodGet, snapshotsOf(volume), nil, &list)
	return list.Snapshots, err
}

// Diff gives the first page of what differs between two snapshots.
func (a *API) Diff(volume, from, to string) ([]Change, error) {
	var page struct{ Changes []Change }
	query := url.Values{"from": {from}, "to": {to}}
	err := a.Do(http.MethodGet, "volumes/"+url.PathEscape(volume)+"/diff?"+query.Encode(), nil, &page)
	return page.Changes, err
}

func snapshotsOf(volume string) string { return "volumes/" + url.PathEscape(volume) + "/snapshots" }

// KeptForSnapshots lists what a protected directory's volume keeps of earlier times: copies of content, and
// what was removed. The daemon frees it in the background once no snapshot needs it.
func KeptForSnapshots(backing string) ([]string, error) {
	state := filepath.Join(backing, ".tandemfs", "before")
	if _, err := os.Stat(state); err != nil { // nothing is kept by somebody who does it in another way
		return nil, err
	}
	return filepath.Glob(filepath.Join(state, "*", "*"))
}
