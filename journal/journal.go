// Package journal records what is about to change in a directory tree, epoch by epoch, and keeps the
// before images that views of earlier epochs need. It knows no files, no FUSE and no network.
//
// What it guarantees:
//
//   - A record is in the journal before the backing directory changes (A1): when a Touch method returns
//     nil, the record survives the death of the process at any instruction from then on. It lies in an
//     intent log that is mapped into memory, so that the kernel has it; a background goroutine absorbs full
//     logs into Badger. The first touch in an epoch wins, whether its record is in memory or not.
//   - After a power cut nothing is trusted silently (A2): Clean tells whether the last close was clean or
//     the same boot is still running. What was recorded before a Sync is there even then.
//   - A seal falls between two operations, exactly: operations run between Enter and Leave.
//   - Memory and disk stay bounded (B3): the index in memory by Options.MaxMemory, the logs by their fixed
//     size, a file's extents by Options.MaxExtents. A store that cannot keep up makes writers wait, one that
//     has no room gives them ENOSPC; no record is ever left out.
package journal

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrGone: the records that were asked for are forgotten.
	ErrGone = errors.New("journal: records are forgotten")
	// ErrNotHeld: the seal is not held, so its before images were not kept all along.
	ErrNotHeld = errors.New("journal: seal is not held")
	// ErrNotSealed: the epoch is still the current one, or has not begun.
	ErrNotSealed = errors.New("journal: epoch is not sealed")
	// ErrCorrupt: the journal's files cannot be read. A new one has to take its place: see Options.ID.
	ErrCorrupt = errors.New("journal: corrupt")
	// ErrVersion: the journal has a format that this program does not know.
	ErrVersion = errors.New("journal: unknown format")
	// ErrBusy: the journal is open already, here or in another process.
	ErrBusy = errors.New("journal: in use")
	// ErrTooLarge: a name, an image or a value is larger than the journal keeps.
	ErrTooLarge = errors.New("journal: too large")
	// ErrClosed: the journal was closed.
	ErrClosed = errors.New("journal: closed")
)

// Options of Open. The zero value gives the defaults.
type Options struct {
	Logger     *slog.Logger // default slog.Default()
	MaxMemory  int          // bytes of index in memory; default 16 MiB
	MaxExtents int          // extents of one file in one epoch before they get coarser; default 32768
	// Block, in bytes: while a seal is held extents are recorded in whole blocks of this size, so that each is
	// kept once, and as a whole: a filesystem can share it then, or say that it was a hole. Default 1.
	Block  int64
	BootID string // for tests; default /proc/sys/kernel/random/boot_id
	// ID is the identity that the journal had when it was open last, empty where it never was. A journal that is
	// not there any more is made anew with it, as one that has lost everything: it is not Clean.
	ID string
	// Settle makes all that operations have changed so far survive a power cut. It is called in the background,
	// a few times a minute while there are operations, and at Close. Default: there is nothing to do.
	Settle func() error

	logSize   int                              // bytes of each intent log; default 8 MiB
	freeSpace func(dir string) (uint64, error) // bytes that root can still use; default statfs
}

func (o *Options) fill() error {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.MaxMemory <= 0 {
		o.MaxMemory = 16 << 20
	}
	if o.MaxExtents <= 0 {
		o.MaxExtents = 32768
	}
	o.MaxExtents = max(o.MaxExtents, 2)
	o.Block = max(o.Block, 1)
	if o.Settle == nil {
		o.Settle = func() error { return nil }
	}
	if o.logSize == 0 {
		o.logSize = 8 << 20
	}
	if o.freeSpace == nil {
		o.freeSpace = freeSpace
	}
	if o.BootID != "" {
		return nil
	}
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	o.BootID = strings.TrimSpace(string(id))
	return err
}

// Journal is an open journal. All methods may be called concurrently; the Touch and Note methods only
// between Enter and Leave.
type Journal struct {
	options Options
	dir     string
	lock    *os.File
	clean   atomic.Bool
	died    bool // the process before did not close the journal
	store   *store
	changed chan struct{}

	marking sync.Mutex // guards mark, and its file
	mark    mark

	// gate is held for reading by every changing operation and for writing by Seal. It is taken before mu.
	gate       sync.RWMutex
	operations atomic.Uint64 // calls of Enter

	// folding is held for reading while changes are gone through, whatever that takes, and for writing while
	// the records of one epoch are moved to another; the writer only ever tries. It is taken before mu.
	folding sync.RWMutex

	// mu guards all that follows. It is never held while the store is read or written.
	mu        sync.Mutex
	progress  *sync.Cond // on mu: an absorb ended, or failed
	state     state
	active    *generation
	frozen    *generation // being absorbed; nil: none
	spare     *intentLog  // the log that no generation uses; nil: none
	absorbErr error       // why the last absorb failed; nil while none failed
	failed    error       // why no record can be written any more
	round     uint64      // see activity; changes under gate only
	imaging   map[Ident]chan struct{}
	scratch   []byte
	maps      map[string]*Map
	written   uint64 // records appended since Open, and one for those from before: they may be in memory only

	syncing sync.Mutex // one Sync at a time, taken before mu
	synced  uint64     // records that are durable; guarded by syncing
	spoiled bool       // a log may lack some on the disk, though syncing it succeeds again; guarded by syncing

	keeper   keeper
	activity *activity
}

// Open opens the journal in dir, which it creates when absent (0700). It fails with ErrBusy when the
// journal is open already, with ErrVersion for a format that it does not know, and with ErrCorrupt when
// the files cannot be read.
func Open(dir string, o Options) (*Journal, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	j := &Journal{options: o, dir: dir, lock: lock, changed: make(chan struct{}, 1), state: newState(), round: 1, written: 1,
		imaging: map[Ident]chan struct{}{}, maps: map[string]*Map{}, keeper: newKeeper(), activity: newActivity()}
	j.progress = sync.NewCond(&j.mu)
	if err := j.open(); err != nil {
		j.release()
		return nil, err
	}
	j.keeper.start(j)
	j.activity.start(j)
	return j, nil
}

func lockDir(dir string) (*os.File, error) {
	f, err := openFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, err
	}
	err = lockFile(f)
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("%w: %s", ErrBusy, dir)
	}
	return nil, err
}

func (j *Journal) open() error {
	if err := j.checkSpace(openReserve); err != nil { // before the mark says that it was open
		return err
	}
	old, err := readMark(j.dir)
	if err != nil {
		return err
	}
	j.mark = mark{Version: old.Version, ID: old.ID, Boot: j.options.BootID}
	rebuilt := old.ID == "" && j.options.ID != ""
	switch {
	case rebuilt:
		j.mark.Version, j.mark.ID = markVersion, j.options.ID
	case old.ID == "":
		j.mark.Version, j.mark.ID = markVersion, newID()
	}
	sameBoot := old.ID == "" || old.Boot == j.options.BootID
	if err := j.checkFiles(old, sameBoot); err != nil {
		return err
	}
	powerLost := !sameBoot && !old.Clean
	if powerLost { // until what it left is dealt with: an opening that is broken off is done again from the start
		j.mark.Boot = old.Boot
	}
	j.mark.Lost = old.Lost || rebuilt || powerLost
	j.clean.Store(!j.mark.Lost)
	j.died = old.ID != "" && !old.Clean
	if err := writeMark(j.dir, j.mark); err != nil {
		return err
	}
	kept := old.Version == markVersion
	reserved, err := j.activity.open(j.dir, activityFound{kept: kept, settled: !sameBoot || kept && old.Clean, unclean: j.mark.Lost})
	if err != nil {
		return err
	}
	if err := j.openStore(); err != nil {
		return err
	}
	if err := j.openLogs(sameBoot); err != nil {
		return err
	}
	if j.mark.Lost {
		if err := j.skip(reserved); err != nil {
			return err
		}
	}
	if err := errors.Join(j.activity.reserve(j.state.epoch), j.activity.store()); err != nil {
		return err
	}
	return j.upgrade()
}

// skip ends the current epoch and begins the first that cannot have been given before: a power cut may have
// taken the records of seals which a peer knows of.
func (j *Journal) skip(reserved Epoch) error {
	if reserved == 0 { // no journal of this identity has come so far
		reserved = max(j.state.epoch+lostStep, Epoch(time.Now().UnixMilli())<<10)
	}
	j.state.epoch = max(j.state.epoch, reserved)
	if err := j.saveState(); err != nil {
		return err
	}
	return j.store.sync()
}

// checkFiles looks at what an earlier process left, before anything is changed.
func (j *Journal) checkFiles(old mark, sameBoot bool) error {
	if old.ID == "" {
		return classify(checkPresent(j.dir))
	}
	return classify(old.sound(j.dir, sameBoot || old.Clean))
}

// upgrade makes a journal of an earlier version, or boot, one of this. The held seals of the first version were kept
// without content.
func (j *Journal) upgrade() error {
	if j.mark.Version == firstVersion {
		if err := j.dropImages(); err != nil {
			return err
		}
	}
	was := j.mark
	if j.mark.Version, j.mark.Boot = markVersion, j.options.BootID; j.mark == was {
		return nil
	}
	return writeMark(j.dir, j.mark)
}

func (j *Journal) dropImages() error {
	for _, n := range j.Held() {
		j.Release(n)
	}
	_, err := j.store.deletePrefix([]byte{keyImage}) // by epoch, then
	return err
}

func newID() string {
	var id [16]byte
	rand.Read(id[:])
	return hex.EncodeToString(id[:])
}

func (j *Journal) openStore() (err error) {
	j.store, err = openStore(filepath.Join(j.dir, storeName), j.options.Logger, j.checkSpace)
	if err != nil {
		return classify(err)
	}
	_, err = j.store.get([]byte{keyState}, func(v []byte) (err error) {
		j.state, err = decodeState(v)
		return err
	})
	return classify(err)
}

// classify tells a failing system call from files that make no sense.
func classify(err error) error {
	var errno syscall.Errno
	if err == nil || errors.As(err, &errno) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrCorrupt, err)
}

// release gives back what open took. It is used when nothing is running any more.
func (j *Journal) release() error {
	errs := []error{j.closeLogs(), j.activity.close()}
	if j.store != nil {
		errs = append(errs, j.store.close())
	}
	return errors.Join(append(errs, j.lock.Close())...)
}

// Close absorbs all records into the store, makes everything durable, what operations have changed too, and
// marks the journal as closed cleanly. It waits for the operations between Enter and Leave. When it fails, or
// something could not be made durable before, the journal is closed nevertheless, and not marked clean.
func (j *Journal) Close() error {
	j.activity.stop()
	j.gate.Lock()
	defer j.gate.Unlock()
	err := j.flushMaps()
	j.mu.Lock()
	if errors.Is(j.failed, ErrClosed) {
		j.mu.Unlock()
		return ErrClosed
	}
	err = errors.Join(err, j.failed, j.drain())
	j.failed = ErrClosed
	j.progress.Broadcast()
	j.mu.Unlock()
	j.keeper.stop()
	j.syncing.Lock()
	defer j.syncing.Unlock()
	err = errors.Join(err, j.settle(), j.unsure(j.store.sync()))
	j.marking.Lock()
	defer j.marking.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	err = errors.Join(err, j.store.close())
	if err == nil {
		err = j.store.syncAll()
	}
	if err == nil && j.activity.failed() {
		j.options.Logger.Warn("journal: not marked as closed cleanly, since something could not be made durable", "dir", j.dir)
	} else if err == nil {
		err = j.markClean()
	}
	return errors.Join(err, j.closeLogs(), j.activity.close(), j.lock.Close())
}

// markClean says that the journal was closed. marking is held.
func (j *Journal) markClean() (err error) {
	if j.mark.Store, err = storeDigest(filepath.Join(j.dir, storeName)); err != nil {
		return err
	}
	j.mark.Clean = true
	return writeMark(j.dir, j.mark)
}

// Fail ends the journal's life: no record can be written after it. It is for whoever has changed something that
// it can neither record nor take back. The journal is not marked as closed cleanly then, so that the next to
// open it finds Died.
func (j *Journal) Fail(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.fail(err)
}

// fail is Fail, called with mu held.
func (j *Journal) fail(err error) {
	if j.failed == nil {
		j.failed = err
		j.options.Logger.Error("journal: no more changes are possible until it is opened again", "dir", j.dir, "error", err)
	}
}

// Failed gives why no record can be written any more; nil while they can.
func (j *Journal) Failed() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.failed
}

// ID is the journal's own identity, made with it: 128 random bits in hexadecimal. It is the volume's.
func (j *Journal) ID() string { return j.mark.ID }

// Clean reports whether the records can be trusted to be complete: the journal is new, was closed cleanly, or
// is opened in the boot that it was last open in. Otherwise power may have been lost, and the volume must be
// reconciled with its peer (A2): Clean is false then, after further openings too, until Reconciled is called.
// Active tells what to look at. The current epoch is one then that no peer can have heard of.
func (j *Journal) Clean() bool { return j.clean.Load() }

// Died reports whether the process that had the journal open before died without closing it: what it did
// last may be without the records that are written after the fact (see NoteCreated).
func (j *Journal) Died() bool { return j.died }

// Epoch is the current epoch.
func (j *Journal) Epoch() Epoch {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.state.epoch
}

// Dirty reports whether the current epoch has a record.
func (j *Journal) Dirty() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.state.totals[j.state.epoch] != nil
}

// Changed gives a value each time that an epoch gets its first record while it is the current one, and
// one after Open when the current epoch has records. Values that nobody takes are not kept twice.
func (j *Journal) Changed() <-chan struct{} { return j.changed }

func (j *Journal) signal() {
	select {
	case j.changed <- struct{}{}:
	default:
	}
}

// Enter begins a changing operation and waits while a seal is made. It must not be nested.
func (j *Journal) Enter() {
	j.gate.RLock()
	j.operations.Add(1)
}

// Operations counts the calls of Enter since Open: how busy the volume is.
func (j *Journal) Operations() uint64 { return j.operations.Load() }

// Leave ends what Enter began.
func (j *Journal) Leave() { j.gate.RUnlock() }

// Barrier waits until every operation that is between Enter and Leave at the call has left.
func (j *Journal) Barrier() {
	j.gate.Lock()
	defer j.gate.Unlock()
}

// Sync makes everything recorded before the call survive a power cut, states and flushed maps too.
func (j *Journal) Sync() error {
	j.mu.Lock()
	want := j.written
	j.mu.Unlock()
	j.syncing.Lock()
	defer j.syncing.Unlock()
	if j.synced < want {
		if err := j.syncLogs(); err != nil {
			return err
		}
	}
	return j.unsure(j.store.sync())
}

// syncLogs syncs the logs in use. One that is absorbed meanwhile was made durable in the store.
func (j *Journal) syncLogs() error {
	j.mu.Lock()
	if j.failed != nil {
		j.mu.Unlock()
		return j.failed
	}
	upto, active, frozen := j.written, j.active.log, j.frozen
	j.mu.Unlock()
	err := active.sync()
	if frozen != nil {
		err = errors.Join(err, frozen.log.sync())
	}
	if j.spoiled = j.spoiled || err != nil; j.spoiled {
		j.options.Logger.Warn("journal: a log could not be written to the disk, its records are absorbed instead", "dir", j.dir, "error", err)
		if err = j.unsure(j.absorbAll()); err != nil {
			return err
		}
		j.spoiled = false
	}
	j.synced = upto
	return nil
}

// absorbAll absorbs what is in memory, whatever the logs have of it.
func (j *Journal) absorbAll() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.drain()
}

// closeLogs ends the use of the logs; no record can be written after it. mu is held.
func (j *Journal) closeLogs() error {
	var errs []error
	for _, g := range []*generation{j.active, j.frozen} {
		if g != nil {
			errs = append(errs, g.log.close())
		}
	}
	if j.spare != nil {
		errs = append(errs, j.spare.close())
	}
	j.active, j.frozen, j.spare = newGeneration(&intentLog{}), nil, nil
	return errors.Join(errs...)
}
