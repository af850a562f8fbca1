package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"tandemfs/cmd/api"
)

func (n *fakeNode) Snapshots(string) (api.SnapshotList, error) {
	return api.SnapshotList{Snapshots: n.snapshots, TotalBytes: 5 << 30}, n.fail
}

func (n *fakeNode) Snapshot(volume, name string) (api.Snapshot, error) {
	for _, s := range n.snapshots {
		if s.Name == name {
			return s, n.fail
		}
	}
	return api.Snapshot{}, api.Errorf(api.CodeNotFound, "volume %s has no snapshot %q", volume, name)
}

func (n *fakeNode) CreateSnapshot(_ context.Context, volume string, w api.CreateSnapshot) (api.Snapshot, error) {
	n.did = append(n.did, fmt.Sprintf("create %s:%s %s", volume, w.Name, w.Expires.Format(time.DateTime)))
	if w.Name == "" {
		w.Name = "2026-11-23-120000"
	}
	return api.Snapshot{Name: w.Name, Created: noon, Expires: w.Expires}, n.fail
}

func (n *fakeNode) DeleteSnapshot(_ context.Context, volume, name string) (api.Snapshot, error) {
	n.did = append(n.did, fmt.Sprintf("delete %s:%s", volume, name))
	return n.Snapshot(volume, name)
}

func (n *fakeNode) SetSnapshotExpiry(_ context.Context, volume, name string, w api.SetExpiry) (api.Snapshot, error) {
	n.did = append(n.did, fmt.Sprintf("expiry %s:%s %s", volume, name, w.Expires.Format(time.DateTime)))
	s, err := n.Snapshot(volume, name)
	s.Expires = w.Expires
	return s, err
}

// Diff gives the changes that a test has put in; a cursor is how many of them came before.
func (n *fakeNode) Diff(volume string, w api.Diff) (api.ChangeList, error) {
	n.did = append(n.did, fmt.Sprintf("diff %s %+v", volume, w))
	if n.paged != nil {
		n.paged()
	}
	from, to, next := n.cut(w, len(n.changes))
	return api.ChangeList{Changes: n.changes[from:to], Cursor: next}, n.fail
}

func (n *fakeNode) DiffFile(volume string, w api.Diff) (api.RegionList, error) {
	n.did = append(n.did, fmt.Sprintf("diff %s %+v", volume, w))
	from, to, next := n.cut(w, len(n.regions))
	return api.RegionList{Regions: n.regions[from:to], Cursor: next}, n.fail
}

// cut says which part of a list a page is; pages are small unless a limit was asked for.
func (n *fakeNode) cut(w api.Diff, length int) (from, to int, next string) {
	if w.Cursor != "" {
		from, _ = strconv.Atoi(strings.TrimPrefix(w.Cursor, "c "))
	}
	if w.Limit == api.DefaultLimit {
		w.Limit = 2
	}
	if to = from + w.Limit; to < length {
		return from, to, fmt.Sprintf("c %d", to)
	}
	return from, length, ""
}

func (n *fakeNode) Restore(_ context.Context, volume string, w api.Restore) (api.Snapshot, error) {
	n.did = append(n.did, fmt.Sprintf("restore %s:%s %q", volume, w.Snapshot, w.Path))
	return api.Snapshot{Name: "before it's back", Created: noon, Bytes: 7}, n.fail
}
