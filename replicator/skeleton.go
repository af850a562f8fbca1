package replicator

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"net"
)

// DefaultPort is the TCP port that nodes listen on for their peers.
const DefaultPort = 3712

var errNotBuilt = errors.New("not built")

// Manager runs the relationships of one node, both those whose source it is and those whose target.
// All methods may be called concurrently.
type Manager struct{ config Config }

// NewManager loads the relationships kept in Config.Dir. It starts nothing.
func NewManager(c Config) (*Manager, error) { return &Manager{config: c}, nil }

// Start makes target volumes read-only again and resumes the enabled relationships.
func (m *Manager) Start(ctx context.Context) error { return errNotBuilt }

// Serve accepts peers on ln, a plain TCP listener, until Close.
func (m *Manager) Serve(ln net.Listener) error { return errNotBuilt }

// Close stops everything and waits for it.
func (m *Manager) Close() error { return nil }

// Create makes a relationship on the source and proposes it to the target.
func (m *Manager) Create(ctx context.Context, r CreateRequest) (Status, error) {
	return Status{}, errNotBuilt
}

// Authorize accepts a proposed relationship, on the target.
func (m *Manager) Authorize(ctx context.Context, id string, r AuthorizeRequest) (Status, error) {
	return Status{}, errNotBuilt
}

// Reject refuses a proposed relationship, on the target.
func (m *Manager) Reject(ctx context.Context, id string) error { return errNotBuilt }

// SetEnabled lets a relationship's job run, or stops it.
func (m *Manager) SetEnabled(ctx context.Context, id string, enabled bool) (Status, error) {
	return Status{}, errNotBuilt
}

// Delete ends a relationship on this end and tells the peer where it can be reached.
func (m *Manager) Delete(ctx context.Context, id string) error { return errNotBuilt }

// List gives all relationships of this node, oldest first.
func (m *Manager) List() []Status { return nil }

// Status gives one relationship.
func (m *Manager) Status(id string) (Status, error) { return Status{}, ErrNotFound }

// VolumeInUse gives the ids of the relationships that use the volume.
func (m *Manager) VolumeInUse(name string) []string { return nil }

// Fingerprint names a certificate's key: "SHA256:" and unpadded base64 over its SubjectPublicKeyInfo.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}
