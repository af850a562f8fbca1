package replicator

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
)

// Errors of the manager, besides those of io/fs. Wrapped errors say what to do.
var (
	ErrNotFound = errors.New("no such relationship")
	ErrConflict = errors.New("not possible in the present state") // e.g. a second relationship onto a target
	ErrInvalid  = errors.New("invalid argument")
	ErrPeer     = errors.New("the peer refused or could not be reached")
)

// Volumes finds and makes the volumes of this node. Package cmd provides it.
type Volumes interface {
	// Volume finds a volume by name; fs.ErrNotExist if there is none.
	Volume(name string) (Volume, error)
	// CreateVolume protects a new directory, for Authorize with CreateDir.
	CreateVolume(ctx context.Context, name, dir string) (Volume, error)
}

// Config is what a Manager works with.
type Config struct {
	Node     string          // this node's name
	Dir      string          // where relationships are kept, one file each; made if absent
	Identity tls.Certificate // this node's Ed25519 certificate
	Volumes  Volumes
	Logger   *slog.Logger
	// Dial opens a connection to a target; nil means TCP. Tests put faults in.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// CreateRequest asks for a new relationship, on the source.
type CreateRequest struct {
	Source       string `json:"source"` // a volume's name here
	Target       string `json:"target"` // HOST[:PORT]
	TargetVolume string `json:"target_volume"`
	Disabled     bool   `json:"disabled"`
	// TargetFingerprint, if set, must be the target's; without it the first contact's is kept and shown.
	TargetFingerprint string `json:"target_fingerprint,omitempty"`
}

// AuthorizeRequest accepts a relationship, on the target.
type AuthorizeRequest struct {
	AllowNonEmpty bool   `json:"allow_non_empty"`
	CreateDir     string `json:"create_dir,omitempty"` // make the target volume, protecting this directory
	// SourceFingerprint, if set, must be the proposed source's: what the person who authorizes was shown.
	SourceFingerprint string `json:"source_fingerprint,omitempty"`
}
