// Package daemon is a running node: its state folder, its identity, its volumes, and how all of it starts
// and ends.
//
// It guarantees that one state folder has one daemon; that what was asked for and answered is there after a
// restart, a killed one included; that a directory is checked before anything is touched; that a volume
// which cannot be opened is shown as failed and does not stop the node; that a target is not writable at any
// moment of a start; and that a snapshot is deleted only when somebody asks, or when its expiry, as last
// answered, has passed.
package daemon

import (
	"context"
	"net"
	"os"
	"time"

	"tandemfs/fs/volume"
	"tandemfs/replicator"
)

// Volume is what the node needs of a protected directory that is open.
type Volume interface {
	replicator.Volume
	Snapshots
	// Around tells of changes in the directory around the mount.
	Around() volume.Around
	// Close leaves the volume's state in its directory, for the next Open.
	Close() error
	// Remove closes the volume and takes its state out of the directory.
	Remove() error
}

// Snapshots is what the node needs of a volume's snapshots. The methods may be called concurrently, and not
// once the volume is being closed. fs.ErrNotExist stands for a snapshot or a path that is not there,
// fs.ErrExist for a name that is taken, fs.ErrInvalid for what makes no sense.
type Snapshots interface {
	// CreateSnapshot keeps the volume as it is now; an empty name is made from the time.
	CreateSnapshot(name string, expires time.Time) (volume.Snapshot, error)
	// Snapshots gives all, oldest first.
	Snapshots() []volume.Snapshot
	Snapshot(name string) (volume.Snapshot, error)
	DeleteSnapshot(name string) error
	SetSnapshotExpiry(name string, expires time.Time) error
	// SnapshotSpace gives the bytes that each snapshot alone holds, and what all together hold.
	SnapshotSpace() (alone map[string]int64, total int64, err error)
	// Diff and DiffFile give a page, from a cursor on, and the cursor of the next: none at the end.
	Diff(from, to, cursor string, limit int) (changes []volume.Change, next string, err error)
	DiffFile(from, to, path, cursor string, limit int) (regions []volume.Region, next string, err error)
	// Restore makes the volume, or what is at and below a path, what it was; it takes a snapshot first and
	// gives that.
	Restore(name, path string) (volume.Snapshot, error)
}

// Mount is a volume's mount. Switching the volume switches its mount, too.
type Mount interface {
	// Release ends the mount unless programs use it: then it fails with syscall.EBUSY and the mount stays.
	Release() error
	// Unmount ends the mount whoever uses it.
	Unmount() error
	// Wait returns when the mount has gone, by the above or by other hands.
	Wait()
	// OnTop reports whether the mount is what programs find at its path.
	OnTop() (bool, error)
}

// Backend opens volumes and mounts them.
type Backend interface {
	// Open opens the volume whose directory is at path; create protects a new one. id is the identity that it had,
	// if that is known. volume.ErrJournal stands for a journal that is damaged.
	Open(name, path, id string, create bool) (Volume, error)
	// SetJournalAside makes the next Open begin a new journal; it gives where the old one is then.
	SetJournalAside(path string) (string, error)
	Mount(v Volume, at string, o MountOptions) (Mount, error)
	// Guard has another process end what keeps a killed daemon from ending, which it does only for mounts made after
	// this. The process keeps the file open; end ends it.
	Guard(hold *os.File) (end func() error, err error)
	// CleanStale takes away a dead mount of tandemfs, and reports whether there was one.
	CleanStale(at string) (bool, error)
}

// MountOptions is what a mount does not grant, and what it shows.
type MountOptions struct {
	NoSuid, NoDev bool
	ShowSnapshots bool // listings of the root name .snapshot
}

// Manager is what the node needs of the manager of relationships.
type Manager interface {
	Start(context.Context) error
	Serve(net.Listener) error
	Close() error
	Create(context.Context, replicator.CreateRequest) (replicator.Status, error)
	Authorize(ctx context.Context, id string, r replicator.AuthorizeRequest) (replicator.Status, error)
	Reject(ctx context.Context, id string) error
	SetEnabled(ctx context.Context, id string, enabled bool) (replicator.Status, error)
	Reconcile(ctx context.Context, id string) (replicator.Status, error)
	Verify(ctx context.Context, id string, r replicator.VerifyRequest) (replicator.Verification, error)
	StopVerify(ctx context.Context, id string) (replicator.Verification, error)
	Verification(id string) (replicator.Verification, error)
	Delete(ctx context.Context, id string) error
	List() []replicator.Status
	Status(id string) (replicator.Status, error)
	VolumeInUse(name string) []string
	// Reopened is for a volume that came back with another journal.
	Reopened(volume string) error
	// Tend lets a volume drop what no relationship needs.
	Tend(volume string) error
}

// parts are the pieces from elsewhere that a node is put together from.
type parts struct {
	backend    Backend
	newManager func(replicator.Config) (Manager, error)
	now        func() time.Time
	tidyEvery  time.Duration // how often expired snapshots are looked for
}
