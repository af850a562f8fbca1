// Package api is the node's control interface: HTTP and JSON on a unix socket, the server and the client.
//
// It guarantees that only root and the user who runs the node are answered, that a request is bounded in
// size and refused when it has a field that is not known, and that every error has one of the codes below:
// what the code is, is decided in one place, and so is what HTTP makes of it.
package api

import (
	"context"
	"time"

	"tandemfs/replicator"
)

// Node is what the server makes reachable. Package daemon provides it. All methods may be called
// concurrently. Where a relationship's id is asked for, a unique prefix of it will do.
type Node interface {
	Info() Info

	Volumes() []Volume
	Volume(name string) (Volume, error)
	CreateVolume(context.Context, CreateVolume) (Volume, error)
	// RebuildVolume has a volume whose journal is damaged begin a new one.
	RebuildVolume(ctx context.Context, name string) (Volume, error)
	// RemoveVolume gives the volume as it was.
	RemoveVolume(ctx context.Context, name string) (Volume, error)

	Relationships() []replicator.Status
	Relationship(id string) (replicator.Status, error)
	CreateRelationship(context.Context, replicator.CreateRequest) (replicator.Status, error)
	AuthorizeRelationship(ctx context.Context, id string, r replicator.AuthorizeRequest) (replicator.Status, error)
	// RejectRelationship and DeleteRelationship give the relationship as it was.
	RejectRelationship(ctx context.Context, id string) (replicator.Status, error)
	DeleteRelationship(ctx context.Context, id string) (replicator.Status, error)
	EnableRelationship(ctx context.Context, id string, enabled bool) (replicator.Status, error)
	ReconcileRelationship(ctx context.Context, id string) (replicator.Status, error)
	// VerifyRelationship begins to compare both sides, StopVerification ends that, Verification says how it stands.
	VerifyRelationship(ctx context.Context, id string, r replicator.VerifyRequest) (replicator.Verification, error)
	StopVerification(ctx context.Context, id string) (replicator.Verification, error)
	Verification(id string) (replicator.Verification, error)

	SnapshotNode
}

// Info describes a node.
type Info struct {
	Name        string    `json:"name"`
	Fingerprint string    `json:"fingerprint"` // of its certificate: "SHA256:" and base64
	Listen      string    `json:"listen"`      // the address where peers are answered
	Version     string    `json:"version"`
	State       string    `json:"state"` // the state folder
	Started     time.Time `json:"started"`
}

// VolumeState says whether a volume can be used.
type VolumeState string

// The states of a volume.
const (
	VolumeMounted VolumeState = "mounted"
	VolumeBusy    VolumeState = "busy"   // being opened, switched or removed at this moment
	VolumeFailed  VolumeState = "failed" // Error says why; it is tried again when somebody asks for it
)

// Volume is a protected directory.
type Volume struct {
	Name          string      `json:"name"`
	ID            string      `json:"id,omitempty"` // empty while the volume is not open
	Path          string      `json:"path"`         // the directory that is protected
	Mount         string      `json:"mount"`        // where it is mounted; the same as Path by default
	State         VolumeState `json:"state"`
	Error         string      `json:"error,omitempty"`
	ReadOnly      bool        `json:"read_only"`
	NoSuid        bool        `json:"nosuid"`
	NoDev         bool        `json:"nodev"`
	ShowSnapshots bool        `json:"show_snapshots"` // whether listings of the root name .snapshot
	Created       time.Time   `json:"created"`
	Relationships []string    `json:"relationships"` // ids of those that use the volume
	Around        *Around     `json:"around,omitempty"`
}

// Around is what is known of changes that were made in a volume's directory around its mount, since it was opened.
// It is absent while the volume is not open.
type Around struct {
	Watched    bool       `json:"watched"`          // the kernel tells of them
	Reason     string     `json:"reason,omitempty"` // why not: then they are found at the next start
	Error      string     `json:"error,omitempty"`  // why what was noticed cannot be recorded at present
	Sweeping   bool       `json:"sweeping"`         // what was changed before the start is being looked for
	Swept      *time.Time `json:"swept"`            // when that ended; null: not yet, or there was no need
	SweptFiles int64      `json:"swept_files"`      // how many files, directories and others it has looked at
	Changes    int64      `json:"changes"`          // that were noticed
	LastPath   string     `json:"last_path,omitempty"`
	LastTime   *time.Time `json:"last_time"`
	// NamesInDoubt counts the times that names were changed while nobody watched, until each relationship has noted
	// to compare all names with its next transfer.
	NamesInDoubt uint64 `json:"names_in_doubt"`
}

// CreateVolume asks for the protection of a directory.
type CreateVolume struct {
	Name          string `json:"name"`
	Path          string `json:"path"`            // absolute
	Mount         string `json:"mount,omitempty"` // absolute; empty: over Path itself
	NoSuid        bool   `json:"nosuid"`
	NoDev         bool   `json:"nodev"`
	ShowSnapshots bool   `json:"show_snapshots"` // have listings of the root name .snapshot
}

// The lists as they travel.
type (
	// VolumeList is all volumes, in the order of their names.
	VolumeList struct {
		Volumes []Volume `json:"volumes"`
	}
	// RelationshipList is all relationships, oldest first.
	RelationshipList struct {
		Relationships []replicator.Status `json:"relationships"`
	}
)
