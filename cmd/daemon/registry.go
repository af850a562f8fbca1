package daemon

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"tandemfs/cmd/api"
	"tandemfs/journal/crashpoint"
	"tandemfs/replicator"
)

// registry knows the node's volumes. All methods may be called concurrently; a volume that is being
// opened or taken down keeps nobody waiting but those who want that very volume.
type registry struct {
	backend Backend
	state   *stateFolder
	log     *slog.Logger
	own     []claim // the node's files: no volume may hold them, nor lie in them
	mounts  func() ([]mountPoint, error)

	mu      sync.Mutex // after an entry's mu, never before
	entries map[string]*entry
	closed  bool
}

// openRegistry loads the volumes of the state folder and brings up all that can be.
func openRegistry(state *stateFolder, backend Backend, own []claim, log *slog.Logger) (*registry, error) {
	r := &registry{
		backend: backend, state: state, log: log, own: own,
		mounts: systemMounts, entries: map[string]*entry{},
	}
	records, err := state.loadVolumes()
	if err != nil {
		return nil, err
	}
	for _, kept := range records {
		e := r.newEntry(kept)
		r.entries[kept.Name] = e
		e.mu.Lock()
		_ = e.bringUp(false) // logged, and shown as the volume's state
		e.mu.Unlock()
	}
	return r, nil
}

func (r *registry) newEntry(kept record) *entry {
	return &entry{registry: r, record: kept, log: r.log.With("volume", kept.Name)}
}

// close takes all volumes down, for good: a request that outlives the node's patience does not bring them back.
func (r *registry) close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	var errs []error
	for _, e := range r.all() {
		e.mu.Lock()
		errs = append(errs, e.takeDown())
		e.mu.Unlock()
	}
	return errors.Join(errs...)
}

// all gives the volumes in the order of their names.
func (r *registry) all() []*entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sorted()
}

// sorted is all, called with mu held.
func (r *registry) sorted() []*entry {
	list := make([]*entry, 0, len(r.entries))
	for _, e := range r.entries {
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b *entry) int { return strings.Compare(a.record.Name, b.record.Name) })
	return list
}

func (r *registry) find(name string) (*entry, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.entries[name]; e != nil {
		return e, nil
	}
	return nil, r.noVolume(name)
}

func (r *registry) noVolume(name string) error {
	return absent{api.Errorf(api.CodeNotFound, "no volume %q on this node (`tandemfs volume list` shows those there are)", name)}
}

// checkOpen fails once the registry is closed.
func (r *registry) checkOpen() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return api.Errorf(api.CodeConflict, "the node is shutting down")
	}
	return nil
}

func (r *registry) recordOf(e *entry) record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return e.record
}

// keepReadOnly makes the record of a volume say what it is.
func (r *registry) keepReadOnly(e *entry, readOnly bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.record.ReadOnly == readOnly {
		return nil
	}
	e.record.ReadOnly = readOnly
	if err := r.save(); err != nil {
		e.record.ReadOnly = !readOnly
		return err
	}
	return nil
}

// keepID makes the record of a volume have its identity, once that is known.
func (r *registry) keepID(e *entry, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.record.ID != "" {
		return nil
	}
	e.record.ID = id
	if err := r.save(); err != nil {
		e.record.ID = ""
		return err
	}
	return nil
}

// save writes the list of volumes. Called with mu held.
func (r *registry) save() error {
	records := make([]record, 0, len(r.entries))
	for _, e := range r.sorted() {
		records = append(records, e.record)
	}
	return r.state.saveVolumes(records)
}

// create protects a directory. Everything that can be refused is refused before anything is touched.
func (r *registry) create(want api.CreateVolume) (*entry, error) {
	if err := checkName(want.Name); err != nil {
		return nil, err
	}
	at, err := cleanPlace(want.Path, want.Mount)
	if err != nil {
		return nil, err
	}
	if err := r.checkFree(want.Name, at); err != nil { // first: it can name the volume that is in the way
		return nil, err
	}
	mounts, err := r.mounts()
	if err != nil {
		return nil, err
	}
	if err := at.check(mounts); err != nil {
		return nil, err
	}
	want.Path, want.Mount = at.path, at.mount
	e := r.newEntry(record{CreateVolume: want, Created: time.Now().UTC().Truncate(time.Second)})
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := r.add(e); err != nil {
		return nil, err
	}
	crashpoint.Here("daemon/volume-added")
	if err := e.bringUp(true); err != nil {
		return nil, errors.Join(err, r.drop(e))
	}
	return e, nil
}

// checkFree refuses a name that is taken, and paths that belong to another volume or to the node.
func (r *registry) checkFree(name string, at place) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fits(name, at)
}

// fits is checkFree, called with mu held.
func (r *registry) fits(name string, at place) error {
	if r.entries[name] != nil {
		return api.Errorf(api.CodeConflict, "there is a volume %s already: choose another name", name)
	}
	claims := slices.Clone(r.own)
	for _, e := range r.sorted() {
		claims = append(claims,
			claim{e.record.Mount, "the mount of volume " + e.record.Name},
			claim{e.record.Path, "the directory that volume " + e.record.Name + " protects"})
	}
	if why := at.clash(claims); why != "" {
		return api.Errorf(api.CodeConflict, "%s: name a place apart from that", why)
	}
	return nil
}

// add registers a new volume, for good: should the node die before the directory is protected, the volume
// is shown as failed and can be removed.
func (r *registry) add(e *entry) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.fits(e.record.Name, place{e.record.Path, e.record.Mount}); err != nil {
		return err
	}
	r.entries[e.record.Name] = e
	if err := r.save(); err != nil {
		delete(r.entries, e.record.Name)
		return err
	}
	return nil
}

// drop forgets a volume.
func (r *registry) drop(e *entry) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.entries, e.record.Name)
	if err := r.save(); err != nil {
		r.entries[e.record.Name] = e
		return err
	}
	e.removed = true
	return nil
}

// remove ends a directory's protection and gives the volume as it was. What could not be taken away is in
// its Error.
func (r *registry) remove(name string) (api.Volume, error) {
	e, err := r.find(name)
	if err != nil {
		return api.Volume{}, err
	}
	was := e.describe()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.removed {
		return api.Volume{}, r.noVolume(name)
	}
	left, err := e.erase()
	if err != nil {
		return api.Volume{}, err
	}
	if left != nil {
		was.Error = left.Error()
	}
	crashpoint.Here("daemon/volume-erased")
	return was, r.drop(e)
}

// rebuild has a volume whose journal is damaged begin a new one.
func (r *registry) rebuild(name string) (*entry, error) {
	e, err := r.find(name)
	if err != nil {
		return nil, err
	}
	return e, e.rebuild()
}

// Volume finds a volume for the replicator, which gets it only when it is whole: open and mounted.
func (r *registry) Volume(name string) (replicator.Volume, error) {
	e, err := r.find(name)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.usable(); err != nil {
		return nil, err
	}
	return managed{e.volume, e}, nil
}

// use gives a volume, open and mounted, to a caller who calls done when that is over: the volume is not closed
// before.
func (r *registry) use(name string) (v Volume, done func(), err error) {
	e, err := r.find(name)
	if err != nil {
		return nil, nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.usable(); err != nil {
		return nil, nil, err
	}
	v, done = e.use()
	return v, done, nil
}

// absent is the error for a volume that does not exist, and for one that is known but cannot be used now:
// that is a conflict for people, but for the replicator it is not there either, so that its relationships
// can still be deleted.
type absent struct{ cause *api.Error }

func (a absent) Error() string        { return a.cause.Error() }
func (a absent) Unwrap() error        { return a.cause }
func (a absent) Is(target error) bool { return target == fs.ErrNotExist }

// CreateVolume protects a directory for the replicator, which asks when somebody authorizes a relationship
// with a volume that does not exist yet. The directory is made when it is not there, its parent is not.
func (r *registry) CreateVolume(_ context.Context, name, dir string) (replicator.Volume, error) {
	err := os.Mkdir(dir, 0o700)
	made := err == nil
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, api.Errorf(api.CodeInvalid, "the directory %s cannot be made: %v", dir, err)
	}
	if _, err := r.create(api.CreateVolume{Name: name, Path: dir}); err != nil {
		if made {
			err = errors.Join(err, os.Remove(dir))
		}
		return nil, err
	}
	return r.Volume(name)
}

// managed is a volume as the replicator sees it: switched together with its mount and its record.
type managed struct {
	Volume
	entry *entry
}

func (m managed) SetReadOnly(readOnly bool) error { return m.entry.setReadOnly(readOnly) }
