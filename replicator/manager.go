package replicator

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"tandemfs/journal"
	"tandemfs/replicator/wire"
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
	// Volume finds a volume by name; fs.ErrNotExist if there is none. What it fails with names the volume.
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

// DefaultPort is the TCP port that nodes listen on for their peers.
const DefaultPort = 3712

// Fingerprint names a certificate's key: "SHA256:" and unpadded base64 of the SHA-256 over its
// SubjectPublicKeyInfo.
func Fingerprint(cert *x509.Certificate) string { return wire.Fingerprint(cert) }

// Manager runs the relationships of one node, those whose source it is and those whose target. All methods
// may be called concurrently; errors wrap those above and fs.ErrNotExist.
type Manager struct {
	config      Config
	fingerprint string
	log         *slog.Logger
	store       store
	ctx         context.Context // ends with Close
	cancel      context.CancelCauseFunc
	running     sync.WaitGroup
	strangers   strangers

	taking  sync.Mutex         // held while a source volume is taken over, and guards origins; taken before mu
	origins map[string]*origin // by the volume's name

	mu        sync.Mutex // guards what follows, and what must be decided for all relationships together
	started   bool
	closed    bool
	rels      map[string]*relationship
	stones    []tombstone
	listeners []net.Listener
}

// errClosing ends what runs when the manager is closed.
var errClosing = errors.New("the node is shutting down")

// NewManager loads the relationships kept in Config.Dir. It starts nothing.
func NewManager(c Config) (*Manager, error) {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Dial == nil {
		c.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		}
	}
	cert, err := x509.ParseCertificate(c.Identity.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("this node's certificate: %w", err)
	}
	m := &Manager{config: c, fingerprint: Fingerprint(cert), log: c.Logger, store: store{c.Dir},
		rels: map[string]*relationship{}, origins: map[string]*origin{}}
	m.ctx, m.cancel = context.WithCancelCause(context.Background())
	records, stones, err := m.store.load()
	if err != nil {
		return nil, fmt.Errorf("relationships: %w", err)
	}
	for _, rec := range records {
		m.rels[rec.ID] = newRelationship(m.store, rec)
	}
	m.stones = stones
	return m, nil
}

// Start makes target volumes read-only again and resumes the enabled relationships. A volume that is not
// there does not stop the others: its relationship says so and tries again.
func (m *Manager) Start(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errClosing
	}
	m.started = true
	for _, r := range m.rels {
		rec := r.snapshot()
		if rec.Role == RoleTarget && rec.State == StateEstablished {
			if err := m.protect(r, rec); err != nil {
				m.log.Error("target volume", "relationship", r.id, "volume", rec.Target.Volume, "error", err)
				r.fail(JobFailed, err, time.Time{})
			}
		}
		m.startJob(r)
	}
	return nil
}

// protect makes a target volume read-only, and learns its recovery point.
func (m *Manager) protect(r *relationship, rec record) error {
	vol, err := m.config.Volumes.Volume(rec.Target.Volume)
	if err != nil {
		return err
	}
	var memory targetMemory
	if err := recall(vol.Journal(), targetKey(r.id), &memory); err != nil {
		return err
	}
	if err := showOnly(vol, memory.Own); err != nil {
		return err
	}
	r.knowPoint(memory.Epoch, memory.Time)
	if !vol.Journal().Clean() {
		r.fail(restingJob(rec), errPowerLost, time.Time{})
	}
	return nil
}

// errPowerLost is shown until the next transfer is done: what kept the recovery point while a transfer was being
// applied may not have reached the disk.
var errPowerLost = errors.New("the volume's journal may lack changes, since power was lost or it was rebuilt: until the next transfer is done, what was being changed just then may be wrong in what the target shows")

// showOnly makes a target volume read-only, and its readers see the recovery point that its own epoch stands
// for, 0 if there is none, or what they see already.
func showOnly(vol Volume, own journal.Epoch) error {
	if err := vol.SetReadOnly(true); err != nil {
		return err
	}
	if err := vol.Freeze(); err != nil || own == 0 {
		return err
	}
	return vol.Publish(own)
}

// Reopened is for a volume that came back with another journal: a target is read-only again, and says what it shows.
func (m *Manager) Reopened(volume string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs error
	for _, r := range m.rels {
		if rec := r.snapshot(); rec.Role == RoleTarget && rec.uses(volume) {
			errs = errors.Join(errs, m.protect(r, rec))
		}
	}
	return errs
}

// Close stops everything and waits for it. Pending transfers keep their seals held, to go on after a start.
func (m *Manager) Close() error {
	m.mu.Lock()
	m.closed = true
	listeners := m.listeners
	m.listeners = nil
	m.mu.Unlock()
	m.cancel(errClosing)
	var err error
	for _, ln := range listeners {
		if e := ln.Close(); !errors.Is(e, net.ErrClosed) {
			err = errors.Join(err, e)
		}
	}
	m.running.Wait()
	return err
}

// find gives a relationship by its id.
func (m *Manager) find(id string) (*relationship, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.rels[id]; r != nil {
		return r, nil
	}
	return nil, fmt.Errorf("relationship %q: %w", id, ErrNotFound)
}

// decide finds a relationship and keeps others from deciding about it until done is called.
func (m *Manager) decide(id string) (r *relationship, done func(), err error) {
	if r, err = m.find(id); err != nil {
		return nil, nil, err
	}
	r.deciding.Lock()
	if err := m.listed(r); err != nil { // it was ended meanwhile
		r.deciding.Unlock()
		return nil, nil, err
	}
	return r, r.deciding.Unlock, nil
}

// listed fails where a relationship is not one of this node's any more.
func (m *Manager) listed(r *relationship) error {
	if now, err := m.find(r.id); err != nil || now != r {
		return fmt.Errorf("relationship %q: %w", r.id, ErrNotFound)
	}
	return nil
}

// List gives all relationships of this node, oldest first.
func (m *Manager) List() []Status {
	m.mu.Lock()
	rels := slices.Collect(maps.Values(m.rels))
	m.mu.Unlock()
	list := make([]Status, 0, len(rels))
	for _, r := range rels {
		list = append(list, r.status())
	}
	slices.SortFunc(list, func(a, b Status) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	return list
}

// Status gives one relationship.
func (m *Manager) Status(id string) (Status, error) {
	r, err := m.find(id)
	if err != nil {
		return Status{}, err
	}
	return r.status(), nil
}

// Tend lets a volume's journal drop what no relationship needs. It is to be called some time after the volume
// was opened, and again from time to time.
func (m *Manager) Tend(volume string) error {
	vol, err := m.config.Volumes.Volume(volume)
	if err != nil {
		return err
	}
	m.mu.Lock()
	source, target := m.ends(volume)
	if !source {
		defer m.mu.Unlock()
		return tendUnused(vol.Journal(), vol, target)
	}
	m.mu.Unlock()
	o, err := m.origin(volume) // whether a job runs or not
	if err != nil {
		return err
	}
	return o.forget()
}

// tendUnused is for a volume that is no source.
func tendUnused(j *journal.Journal, vol Volume, target bool) error {
	vol.ReleaseUnclaimed()
	if !j.Clean() && !target {
		if err := j.Reconciled(); err != nil { // nobody builds on what it may lack
			return err
		}
	}
	return j.Forget(j.Epoch() - 1)
}

// ends reports whether the volume is one of the ends of a relationship. It is for holders of mu.
func (m *Manager) ends(volume string) (source, target bool) {
	for _, r := range m.rels {
		rec := r.snapshot()
		source = source || rec.Role == RoleSource && rec.uses(volume)
		target = target || rec.Role == RoleTarget && rec.uses(volume)
	}
	return source, target
}

// VolumeInUse gives the ids of the relationships that use the volume: all that have not ended, but
// proposals that nobody has authorized.
func (m *Manager) VolumeInUse(name string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ids []string
	for id, r := range m.rels {
		if rec := r.snapshot(); rec.uses(name) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// VolumeReadOnly reports whether the volume is a relationship's target, so that whoever mounts it knows
// before Start.
func (m *Manager) VolumeReadOnly(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.rels {
		if rec := r.snapshot(); rec.Role == RoleTarget && rec.uses(name) {
			return true
		}
	}
	return false
}

// uses reports whether the relationship uses the volume of that name on this node.
func (rec record) uses(name string) bool {
	switch {
	case rec.State == StateEnded:
		return false
	case rec.Role == RoleSource:
		return rec.Source.Volume == name
	}
	return rec.Target.Volume == name && rec.State == StateEstablished
}
