package api

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// SnapshotNode is the part of a Node that has to do with a volume's snapshots. A volume that is not mounted is
// a conflict.
type SnapshotNode interface {
	Snapshots(volume string) (SnapshotList, error)
	Snapshot(volume, name string) (Snapshot, error)
	CreateSnapshot(ctx context.Context, volume string, want CreateSnapshot) (Snapshot, error)
	// DeleteSnapshot gives the snapshot as it was.
	DeleteSnapshot(ctx context.Context, volume, name string) (Snapshot, error)
	SetSnapshotExpiry(ctx context.Context, volume, name string, want SetExpiry) (Snapshot, error)
	Diff(volume string, want Diff) (ChangeList, error)
	DiffFile(volume string, want Diff) (RegionList, error)
	// Restore gives the snapshot that it took first.
	Restore(ctx context.Context, volume string, want Restore) (Snapshot, error)
}

// Snapshot is what a volume was at one moment.
type Snapshot struct {
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"` // zero: never
	Bytes   int64     `json:"bytes"`            // what deleting it, and no other, frees
	Suspect bool      `json:"suspect"`          // power was lost while it was kept: it may not be whole
}

// CreateSnapshot asks for a snapshot.
type CreateSnapshot struct {
	Name    string    `json:"name,omitempty"` // empty: made from the time
	Expires time.Time `json:"expires,omitzero"`
}

// SetExpiry says when a snapshot may be deleted.
type SetExpiry struct {
	Expires time.Time `json:"expires,omitzero"` // zero: never
}

// Restore asks that a volume is made what it was.
type Restore struct {
	Snapshot string `json:"snapshot"`
	Path     string `json:"path,omitempty"` // only this, and what is below it; from the volume's root on
}

// Diff asks for what differs between two snapshots, a page of it.
type Diff struct {
	From, To string
	File     string // for regions: of this file, from the volume's root on
	Cursor   string // where the page before ended; empty: from the start
	Limit    int    // how much a page has at most; 0 stands for DefaultLimit when a client asks
}

// How much a page of a diff has.
const (
	DefaultLimit = 1000
	MaxLimit     = 10000
)

// ChangeKind says how a path differs between two snapshots.
type ChangeKind string

// The kinds of changes.
const (
	ChangeCreated  ChangeKind = "created"
	ChangeModified ChangeKind = "modified"
	ChangeRemoved  ChangeKind = "removed"
	ChangeRenamed  ChangeKind = "renamed"
)

// Change is one difference between two snapshots. Its paths are meant from the volume's root on.
type Change struct {
	Kind ChangeKind `json:"kind"`
	Path string     `json:"path"`           // in the newer snapshot; of what was removed, in the older
	From string     `json:"from,omitempty"` // of what was renamed, in the older
	Dir  bool       `json:"dir"`
}

// Region is a stretch of a file that differs, as the newer snapshot has it.
type Region struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
	Hole   bool  `json:"hole"`
}

// The lists as they travel. A cursor asks for the next page; it is absent at the end.
type (
	// SnapshotList is all snapshots of a volume, oldest first, and what all together hold.
	SnapshotList struct {
		Snapshots  []Snapshot `json:"snapshots"`
		TotalBytes int64      `json:"total_bytes"`
	}
	// ChangeList is a page of a diff.
	ChangeList struct {
		Changes []Change `json:"changes"`
		Cursor  string   `json:"cursor,omitempty"`
	}
	// RegionList is a page of a file's diff.
	RegionList struct {
		Regions []Region `json:"regions"`
		Cursor  string   `json:"cursor,omitempty"`
	}
)

// snapshotRoutes are the resources of snapshots.
func (h *handler) snapshotRoutes() map[string]answer {
	return map[string]answer{
		"GET /v1/volumes/{name}/snapshots":                    h.snapshots,
		"POST /v1/volumes/{name}/snapshots":                   h.createSnapshot,
		"GET /v1/volumes/{name}/snapshots/{snapshot}":         h.snapshot,
		"DELETE /v1/volumes/{name}/snapshots/{snapshot}":      h.deleteSnapshot,
		"POST /v1/volumes/{name}/snapshots/{snapshot}/expiry": h.setSnapshotExpiry,
		"GET /v1/volumes/{name}/diff":                         h.diff,
		"POST /v1/volumes/{name}/restore":                     h.restore,
	}
}

func (h *handler) snapshots(r *http.Request) (int, any, error) {
	list, err := h.node.Snapshots(r.PathValue("name"))
	list.Snapshots = notNil(list.Snapshots)
	return http.StatusOK, list, err
}

func (h *handler) snapshot(r *http.Request) (int, any, error) {
	s, err := h.node.Snapshot(r.PathValue("name"), r.PathValue("snapshot"))
	return http.StatusOK, s, err
}

func (h *handler) createSnapshot(r *http.Request) (int, any, error) {
	var want CreateSnapshot
	if err := decode(r, &want); err != nil {
		return 0, nil, err
	}
	s, err := h.node.CreateSnapshot(r.Context(), r.PathValue("name"), want)
	return http.StatusCreated, s, err
}

func (h *handler) deleteSnapshot(r *http.Request) (int, any, error) {
	s, err := h.node.DeleteSnapshot(r.Context(), r.PathValue("name"), r.PathValue("snapshot"))
	return http.StatusOK, s, err
}

func (h *handler) setSnapshotExpiry(r *http.Request) (int, any, error) {
	var want SetExpiry
	if err := decode(r, &want); err != nil {
		return 0, nil, err
	}
	s, err := h.node.SetSnapshotExpiry(r.Context(), r.PathValue("name"), r.PathValue("snapshot"), want)
	return http.StatusOK, s, err
}

// restore goes on when the caller hangs up: half a restore helps nobody.
func (h *handler) restore(r *http.Request) (int, any, error) {
	var want Restore
	if err := decode(r, &want); err != nil {
		return 0, nil, err
	}
	s, err := h.node.Restore(context.WithoutCancel(r.Context()), r.PathValue("name"), want)
	return http.StatusOK, s, err
}

func (h *handler) diff(r *http.Request) (int, any, error) {
	want, err := readDiff(r.URL.RawQuery)
	if err != nil {
		return 0, nil, err
	}
	if want.File != "" {
		list, err := h.node.DiffFile(r.PathValue("name"), want)
		list.Regions = notNil(list.Regions)
		return http.StatusOK, list, err
	}
	list, err := h.node.Diff(r.PathValue("name"), want)
	list.Changes = notNil(list.Changes)
	return http.StatusOK, list, err
}

// readDiff reads the query of a diff. What is not known in it is refused, as in a body.
func readDiff(raw string) (Diff, error) {
	query, err := url.ParseQuery(raw)
	if err != nil {
		return Diff{}, Errorf(CodeInvalid, "the query cannot be read: %v", err)
	}
	want := Diff{Limit: DefaultLimit}
	fields := map[string]*string{"from": &want.From, "to": &want.To, "file": &want.File, "cursor": &want.Cursor, "limit": new(string)}
	for key, values := range query {
		field, known := fields[key]
		if !known || len(values) > 1 {
			return Diff{}, Errorf(CodeInvalid, "%q is unknown in the query, or there twice", key)
		}
		*field = values[0]
	}
	if want.From == "" || want.To == "" {
		return Diff{}, Errorf(CodeInvalid, "from and to must name the two snapshots")
	}
	if text := *fields["limit"]; query.Has("limit") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > MaxLimit {
			return Diff{}, Errorf(CodeInvalid, "the limit must be a number from 1 to %d, not %q", MaxLimit, text)
		}
		want.Limit = n
	}
	return want, nil
}

// query writes what readDiff reads.
func (d Diff) query() string {
	query := url.Values{"from": {d.From}, "to": {d.To}}
	if d.File != "" {
		query.Set("file", d.File)
	}
	if d.Cursor != "" {
		query.Set("cursor", d.Cursor)
	}
	if d.Limit != 0 {
		query.Set("limit", strconv.Itoa(d.Limit))
	}
	return query.Encode()
}
