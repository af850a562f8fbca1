package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tandemfs/cmd/api"
	"tandemfs/fs/volume"
	"tandemfs/journal"
	"tandemfs/replicator"
)

// fakeBackend keeps volumes as a file each in their directory, and mounts in a map. events is what was
// done, in order; broken gives the error that an event ends with.
type fakeBackend struct {
	mu     sync.Mutex
	mounts map[string]*fakeMount
	stale  map[string]bool
	events []string
	broken map[string]error
	kept   map[string][]volume.Snapshot // of each volume
}

func newFakeBackend() *fakeBackend {
	return &fakeBackend{mounts: map[string]*fakeMount{}, stale: map[string]bool{}, broken: map[string]error{}, kept: map[string][]volume.Snapshot{}}
}

// did notes an event and gives the error that it must end with.
func (b *fakeBackend) did(format string, args ...any) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	event := fmt.Sprintf(format, args...)
	b.events = append(b.events, event)
	return b.broken[event]
}

func (b *fakeBackend) breakOn(event string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.broken[event] = err
}

// since gives the events after the first n.
func (b *fakeBackend) since(n int) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.events[n:])
}

func (b *fakeBackend) SetJournalAside(path string) (string, error) {
	b.mu.Lock()
	delete(b.broken, "open data create=false")
	b.mu.Unlock()
	return path + "/aside", b.did("set aside %s", filepath.Base(path))
}

func (b *fakeBackend) Open(name, path, _ string, create bool) (Volume, error) {
	if err := b.did("open %s create=%v", name, create); err != nil {
		return nil, err
	}
	marker := filepath.Join(path, ".tandemfs")
	if create {
		if err := os.Mkdir(marker, 0o700); err != nil {
			return nil, err
		}
	} else if _, err := os.Stat(marker); err != nil {
		return nil, err
	}
	return &fakeVolume{backend: b, name: name, path: path}, nil
}

func (b *fakeBackend) Mount(v Volume, at string, o MountOptions) (Mount, error) {
	if err := b.did("mount %s nosuid=%v nodev=%v", v.Name(), o.NoSuid, o.NoDev); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	m := &fakeMount{backend: b, name: v.Name(), at: at, options: o, gone: make(chan struct{})}
	b.mounts[at] = m
	return m, nil
}

func (b *fakeBackend) Guard(*os.File) (func() error, error) {
	return func() error { return nil }, b.did("guard")
}

func (b *fakeBackend) CleanStale(at string) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	was := b.stale[at]
	delete(b.stale, at)
	return was, nil
}

// fakeVolume is a volume that replicates nothing.
type fakeVolume struct {
	backend    *fakeBackend
	name, path string
	replicator.Source
	replicator.Target
}

func (v *fakeVolume) Name() string              { return v.name }
func (v *fakeVolume) Path() string              { return v.path }
func (v *fakeVolume) ID() string                { return "id-" + v.name }
func (v *fakeVolume) Root() journal.Ident       { return journal.Ident{} }
func (v *fakeVolume) Journal() *journal.Journal { return nil }
func (v *fakeVolume) Close() error              { return v.backend.did("close %s", v.name) }
func (v *fakeVolume) Around() volume.Around     { return volume.Around{Watched: true} }
func (v *fakeVolume) SetReadOnly(ro bool) error { return v.backend.did("volume %s ro=%v", v.name, ro) }

func (v *fakeVolume) Remove() error {
	return errors.Join(v.backend.did("erase %s", v.name), os.RemoveAll(filepath.Join(v.path, ".tandemfs")))
}

type fakeMount struct {
	backend  *fakeBackend
	name, at string
	options  MountOptions
	once     sync.Once
	gone     chan struct{}
	hidden   atomic.Bool // programs find something else at its path
}

func (m *fakeMount) Wait()                { <-m.gone }
func (m *fakeMount) Unmount() error       { return m.end("unmount") }
func (m *fakeMount) Release() error       { return m.end("release") }
func (m *fakeMount) OnTop() (bool, error) { return !m.hidden.Load(), nil }

func (m *fakeMount) end(how string) error {
	if err := m.backend.did("%s %s", how, m.name); err != nil {
		return err
	}
	m.vanish()
	return nil
}

// vanish is what happens when somebody else unmounts.
func (m *fakeMount) vanish() {
	m.backend.mu.Lock()
	delete(m.backend.mounts, m.at)
	m.backend.mu.Unlock()
	m.once.Do(func() { close(m.gone) })
}

// fakeManager keeps relationships in memory, across the restarts of a test.
type fakeManager struct {
	config  replicator.Config
	kept    *[]replicator.Status
	stopped chan struct{}
}

func (m *fakeManager) Start(context.Context) error { return nil }
func (m *fakeManager) Serve(net.Listener) error    { <-m.stopped; return nil }
func (m *fakeManager) Close() error                { close(m.stopped); return nil }

func (m *fakeManager) Create(_ context.Context, r replicator.CreateRequest) (replicator.Status, error) {
	if _, err := m.config.Volumes.Volume(r.Source); err != nil {
		return replicator.Status{}, err
	}
	s := replicator.Status{ID: fmt.Sprintf("%d-rel", len(*m.kept)), Role: replicator.RoleSource}
	s.Source.Volume, s.Target.Volume = r.Source, r.TargetVolume
	*m.kept = append(*m.kept, s)
	return s, nil
}

// Authorize binds a volume of this node, made for it if that was asked for, as a target.
func (m *fakeManager) Authorize(ctx context.Context, id string, r replicator.AuthorizeRequest) (replicator.Status, error) {
	i := slices.IndexFunc(*m.kept, func(s replicator.Status) bool { return s.ID == id })
	s := &(*m.kept)[i]
	v, err := m.config.Volumes.Volume(s.Target.Volume)
	if errors.Is(err, fs.ErrNotExist) && r.CreateDir != "" {
		v, err = m.config.Volumes.CreateVolume(ctx, s.Target.Volume, r.CreateDir)
	}
	if err == nil {
		err = v.SetReadOnly(true)
	}
	if err == nil {
		s.Role, s.State = replicator.RoleTarget, replicator.StateEstablished
	}
	return *s, err
}

func (m *fakeManager) Reject(_ context.Context, id string) error {
	return m.Delete(context.Background(), id)
}

func (m *fakeManager) SetEnabled(_ context.Context, id string, enabled bool) (replicator.Status, error) {
	return replicator.Status{ID: id, Enabled: enabled}, nil
}

func (m *fakeManager) Reconcile(_ context.Context, id string) (replicator.Status, error) {
	return m.Status(id)
}

func (m *fakeManager) Verify(_ context.Context, id string, r replicator.VerifyRequest) (replicator.Verification, error) {
	return replicator.Verification{VerifyRequest: r, State: replicator.VerifyWaiting}, nil
}

func (m *fakeManager) StopVerify(context.Context, string) (replicator.Verification, error) {
	return replicator.Verification{State: replicator.VerifyStopped}, nil
}

func (m *fakeManager) Verification(string) (replicator.Verification, error) {
	return replicator.Verification{State: replicator.VerifyNone}, nil
}

// Delete is as strict as the real one: a volume that is there must become writable first.
func (m *fakeManager) Delete(_ context.Context, id string) error {
	s, err := m.Status(id)
	if err != nil {
		return err
	}
	if s.Role == replicator.RoleTarget && s.State == replicator.StateEstablished {
		v, err := m.config.Volumes.Volume(s.Target.Volume)
		if err == nil {
			err = v.SetReadOnly(false)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	*m.kept = slices.DeleteFunc(*m.kept, func(s replicator.Status) bool { return s.ID == id })
	return nil
}

func (m *fakeManager) Reopened(string) error { return nil }

func (m *fakeManager) List() []replicator.Status { return *m.kept }

func (m *fakeManager) Status(id string) (replicator.Status, error) {
	for _, s := range *m.kept {
		if s.ID == id {
			return s, nil
		}
	}
	return replicator.Status{}, replicator.ErrNotFound
}

func (m *fakeManager) Tend(string) error { return nil }

func (m *fakeManager) VolumeInUse(name string) []string {
	var ids []string
	for _, s := range *m.kept {
		if (s.Role == replicator.RoleSource && s.Source.Volume == name) ||
			(s.Role == replicator.RoleTarget && s.Target.Volume == name) {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// rig is a node under test that can be started again on the same state.
type rig struct {
	t         *testing.T
	dir       string // holds everything
	options   Options
	backend   *fakeBackend
	relations []replicator.Status
	client    *api.Client
	stopNode  func() error
	clock     clock
	tidyEvery time.Duration
}

// clock is the time that a node under test is told.
type clock struct{ ahead atomic.Int64 }

// noon is when a clock starts.
var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func (c *clock) now() time.Time          { return noon.Add(time.Duration(c.ahead.Load())) }
func (c *clock) advance(d time.Duration) { c.ahead.Add(int64(d)) }

func newRig(t *testing.T) *rig {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, dir: dir, backend: newFakeBackend(), tidyEvery: time.Hour}
	r.options = Options{
		Name: "alpha", State: filepath.Join(dir, "state"), Listen: "127.0.0.1:0",
		Socket: filepath.Join(dir, "socket"), Version: "test", Logger: testLogger(),
	}
	r.client = api.NewClient(r.options.Socket)
	t.Cleanup(func() {
		r.client.Close()
		if r.stopNode != nil {
			r.stop()
		}
	})
	return r
}

// start runs the node until stop.
func (r *rig) start() {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx, r.options, r.parts()) }()
	r.stopNode = func() error { cancel(); return <-done }
	answered := make(chan error, 1)
	go func() { answered <- r.awaitAnswer(ctx) }()
	select {
	case err := <-answered:
		if err != nil {
			r.t.Fatal(err)
		}
	case err := <-done:
		r.t.Fatalf("the node ended at once: %v", err)
	}
}

// awaitAnswer asks until the node answers: before that its socket may not even be there.
func (r *rig) awaitAnswer(ctx context.Context) error {
	for {
		_, err := r.client.Info(ctx)
		if err == nil || ctx.Err() != nil || api.AsError(err).Code != api.CodeUnreachable {
			return err
		}
	}
}

func (r *rig) parts() parts {
	return parts{backend: r.backend, now: r.clock.now, tidyEvery: r.tidyEvery, newManager: func(c replicator.Config) (Manager, error) {
		return &fakeManager{config: c, kept: &r.relations, stopped: make(chan struct{})}, nil
	}}
}

func (r *rig) stop() {
	r.t.Helper()
	r.client.Close()
	if err := r.stopNode(); err != nil {
		r.t.Errorf("the node ended badly: %v", err)
	}
	r.stopNode = nil
}

func (r *rig) restart() {
	r.t.Helper()
	r.stop()
	r.start()
}

// mkdir makes a directory below the rig's own and gives its path.
func (r *rig) mkdir(name string) string {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.MkdirAll(path, 0o755); err != nil {
		r.t.Fatal(err)
	}
	return path
}

// protect makes a volume that must come about.
func (r *rig) protect(name string) api.Volume {
	r.t.Helper()
	v, err := r.client.CreateVolume(r.t.Context(), api.CreateVolume{Name: name, Path: r.mkdir(name)})
	if err != nil {
		r.t.Fatal(err)
	}
	return v
}

// mustBe fails unless the volume is in a state.
func (r *rig) mustBe(name string, state api.VolumeState) api.Volume {
	r.t.Helper()
	v, err := r.client.Volume(r.t.Context(), name)
	if err != nil || v.State != state {
		r.t.Fatalf("volume %s is %+v (%v), want %s", name, v, err, state)
	}
	return v
}

// eventually waits until the volume is in a state: one that failed is left alone for retryPause.
func (r *rig) eventually(name string, state api.VolumeState) api.Volume {
	r.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		v, err := r.client.Volume(r.t.Context(), name)
		if err == nil && v.State == state {
			return v
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("volume %s is %+v (%v), want %s", name, v, err, state)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
