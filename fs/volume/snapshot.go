package volume

import (
	"errors"
	"time"

	"tandemfs/journal"
)

// Snapshot is a seal that a person or a policy asked to keep.
type Snapshot struct {
	Name    string
	Epoch   journal.Epoch
	Created time.Time
	Expires time.Time // zero: never
}

// ChangeKind says how a path differs between two snapshots.
type ChangeKind string

// The kinds of changes.
const (
	ChangeCreated  ChangeKind = "created"
	ChangeModified ChangeKind = "modified"
	ChangeRemoved  ChangeKind = "removed"
	ChangeRenamed  ChangeKind = "renamed"
)

// Change is one difference between two snapshots.
type Change struct {
	Kind ChangeKind
	Path string // slash-separated, relative to the root; in the newer snapshot, of what was removed in the older
	From string // of what was renamed, its path in the older snapshot
	Dir  bool
}

// Region is a stretch of a file that differs between two snapshots, as the newer one has it.
type Region struct {
	Offset int64
	Length int64
	Hole   bool
}

var errStub = errors.New("stub")

// CreateSnapshot seals the volume and keeps the seal under a name; an empty one is made from the time.
// fs.ErrExist: the name is taken; fs.ErrInvalid: it cannot be a name.
func (v *Volume) CreateSnapshot(name string, expires time.Time) (Snapshot, error) {
	return Snapshot{}, errStub
}

// Snapshots lists the snapshots, oldest first.
func (v *Volume) Snapshots() []Snapshot { return nil }

// Snapshot finds a snapshot; fs.ErrNotExist if there is none.
func (v *Volume) Snapshot(name string) (Snapshot, error) { return Snapshot{}, errStub }

// DeleteSnapshot lets go of a snapshot; what it alone held is freed in the background.
func (v *Volume) DeleteSnapshot(name string) error { return errStub }

// SetSnapshotExpiry says when a snapshot may be deleted; zero: never.
func (v *Volume) SetSnapshotExpiry(name string, expires time.Time) error { return errStub }

// SnapshotSpace gives the bytes that each snapshot alone holds (deleting just it would free them), and what
// all together hold.
func (v *Volume) SnapshotSpace() (alone map[string]int64, total int64, err error) {
	return nil, 0, errStub
}

// Diff lists what differs between two snapshots, at most limit changes from a cursor on ("": the start). The
// cursor that it gives is empty at the end.
func (v *Volume) Diff(from, to, cursor string, limit int) (changes []Change, next string, err error) {
	return nil, "", errStub
}

// DiffFile lists the stretches of the file at path, in the newer snapshot, that differ; pages as in Diff.
func (v *Volume) DiffFile(from, to, path, cursor string, limit int) (regions []Region, next string, err error) {
	return nil, "", errStub
}

// Restore makes the volume, or with a path that path and what is below it, what it was at a snapshot. It
// takes a snapshot first and gives it: restoring that one undoes it.
func (v *Volume) Restore(name, path string) (Snapshot, error) { return Snapshot{}, errStub }
