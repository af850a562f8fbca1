// Package volume is a protected directory: every change goes through it and is in the journal before the
// backing directory is touched (rule A1), between the journal's Enter and Leave, so that a seal falls
// between two operations. It reads the directory as it was at a seal (View), and it is changed by a
// transfer from another node (the Apply methods), through the same journal.
//
// Nothing here uses a path below the root: inodes are named by identity and reached by handle. Errors are
// the kernel's errnos, wrapped at the most, so that errors.Is works with them and with those of io/fs.
// All methods may be called concurrently; the order of two operations on one name is the caller's to
// ensure, as the kernel does for a mount.
package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
)

// StateDir is the name, in the volume's root, of the directory that holds the journal and what a transfer
// has not placed yet. It cannot be seen or reached through the mount.
const StateDir = ".tandemfs"

// Errors that callers tell apart, besides those of io/fs.
var (
	// ErrUnsupported: the filesystem has no file handles of a known form.
	ErrUnsupported = errors.New("filesystem is not supported: ext4, XFS or btrfs is needed")
	// ErrBusy: another process protects the directory.
	ErrBusy = errors.New("directory is protected by another running daemon")
)

// Kernel is what a volume asks of the mount that serves it. Package fs/mount implements it.
type Kernel interface {
	// Refers reports whether the kernel may still use the inode.
	Refers(journal.Ident) bool
	// Where gives the name by which the kernel found an inode last, if it did and the name was not taken since.
	Where(journal.Ident) (dir journal.Ident, name string, ok bool)
	// Moved says that a rename gave the inode this name. The kernel, having moved it itself, will not look it up.
	Moved(id, dir journal.Ident, name string)
	// Removed says that a directory was removed at the kernel's request. To the kernel it stays removed for as long as
	// it knows it: if it comes back, the kernel has to get to know it as another one.
	Removed(dir journal.Ident)
	// Turn runs swap, after which Volume.Current gives another tree, so that every reader sees the one tree
	// and then, at once, the other, whatever the kernel caches. d tells in what the two differ; an error of
	// its methods, or of Turn's own, leaves swap undone.
	Turn(d Differences, swap func()) error
	// SnapshotsChanged tells that a snapshot of this name is there, or is gone.
	SnapshotsChanged(name string)
	// SetReadOnly changes the mount's own flag. Before it is set, what programs wrote through maps of files
	// is written.
	SetReadOnly(bool) error
}

// noKernel stands in while nothing is mounted.
type noKernel struct{}

func (noKernel) Refers(journal.Ident) bool { return false }
func (noKernel) Where(journal.Ident) (journal.Ident, string, bool) {
	return journal.Ident{}, "", false
}
func (noKernel) Moved(_, _ journal.Ident, _ string) {}
func (noKernel) Removed(journal.Ident)              {}
func (noKernel) Turn(_ Differences, swap func()) error {
	swap()
	return nil
}
func (noKernel) SnapshotsChanged(string) {}
func (noKernel) SetReadOnly(bool) error  { return nil }

// Differences are those between two trees, as far as the kernel might remember them.
type Differences interface {
	// Inodes calls yield for each inode whose attributes or, with content, data may differ.
	Inodes(yield func(id journal.Ident, content bool) error) error
	// Names calls yield for each name that may stand for something else.
	Names(yield func(dir journal.Ident, name string) error) error
}

// Options of Open.
type Options struct {
	Name   string // what people call the volume
	Create bool   // make the state directory where there is none
	ID     string // what Volume.ID gave when it was open last; a journal that is lost is made anew with it
	Logger *slog.Logger
}

// Volume is an open protected directory.
type Volume struct {
	name    string
	path    string
	known   string // Options.ID
	log     *slog.Logger
	backing *sys.Backing
	root    journal.Ident
	journal *journal.Journal
	open    *openCache
	aside   *aside
	before  *kept

	switching sync.Mutex // held while readOnly changes, and during a restore
	readOnly  atomic.Bool
	kernel    atomic.Pointer[Kernel]
	published atomic.Pointer[View] // what readers see, if not the volume as it is
	committed atomic.Pointer[View] // what is to be published next
	turning   sync.Mutex           // held while published changes
	unshown   []*View              // that may be remembered as published, and are not; guarded by turning
	transient transient
	unclaimed unclaimed
	listings  listings
	snapshots snapshots
	diffs     diffs
	reclaimer reclaimer
	room      room
	drops     drops
	around    around
}

// Open opens a directory as a volume. The directory is held by descriptor from here on, so a mount may
// cover it afterwards. Without Create a directory that is not a volume gives fs.ErrNotExist.
func Open(path string, o Options) (*Volume, error) {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	backing, err := sys.OpenBacking(abs)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, fmt.Errorf("%s: %w", abs, ErrUnsupported)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: abs, Err: err}
	}
	v := &Volume{
		name: o.Name, path: abs, known: o.ID, log: o.Logger.With("volume", o.Name),
		backing: backing, root: backing.Root(),
	}
	v.open = newOpenCache(v, openLimit())
	v.SetKernel(nil)
	if err := v.openState(o.Create); err != nil {
		backing.Close()
		return nil, fmt.Errorf("%s: %w", abs, err)
	}
	return v, nil
}

// openLimit is how many descriptors a volume keeps for inodes that may be in use: a share of what the
// process may have, since sockets, the journal and other volumes need some too.
func openLimit() int {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return 256
	}
	return int(max(64, min(lim.Cur/8, 8192)))
}

// openState opens the state directory and the journal in it, reached through the root's descriptor: the
// path may be covered by a mount later.
func (v *Volume) openState(create bool) error {
	if create {
		if err := sys.Mkdir(v.backing.FD(), StateDir, 0o700); err != nil && err != unix.EEXIST {
			return fmt.Errorf("make the state directory: %w", err)
		}
	}
	fd, err := sys.Open(v.backing.FD(), StateDir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("open the state directory %s: %w", StateDir, err)
	}
	defer sys.Close(fd)
	if err := checkPrivate(fd); err != nil {
		return err
	}
	if err := v.openParts(fd); err != nil {
		v.closeParts()
		return err
	}
	return nil
}

// openParts opens what the state directory holds.
func (v *Volume) openParts(fd int) (err error) {
	dir := filepath.Join(v.backing.ProcPath(), StateDir, journalName)
	v.journal, err = journal.Open(dir, journal.Options{Logger: v.log, ID: v.known, Block: v.backing.BlockSize(), Settle: v.syncRecorded})
	if errors.Is(err, journal.ErrBusy) {
		return ErrBusy
	}
	if err != nil {
		return err
	}
	if err = v.around.begin(v, fd); err != nil {
		return err
	}
	v.unclaimed.seals = v.journal.Held()
	if v.aside, err = openAside(v.backing, fd); err != nil {
		return err
	}
	if v.before, err = openKept(fd, v.backing.Magic()); err != nil {
		return err
	}
	if err = v.recallSnapshots(); err != nil {
		return err
	}
	if err = v.recallPublished(); err != nil {
		return err
	}
	if err = v.noteUnnoted(); err != nil {
		return err
	}
	v.reclaimer.start(v)
	return nil
}

// closeParts closes what openParts opened.
func (v *Volume) closeParts() (err error) {
	v.around.stop()
	v.reclaimer.stop()
	v.listings = listings{}
	if v.journal != nil {
		err = v.journal.Close()
	}
	v.open.close()
	if v.aside != nil {
		v.aside.close()
	}
	if v.before != nil {
		v.before.close()
	}
	return err
}

// checkPrivate refuses a state directory that others could have prepared or may read.
func checkPrivate(fd int) error {
	var st unix.Statx_t
	if err := sys.Stat(fd, "", &st); err != nil {
		return err
	}
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d, not to this daemon's: %w", StateDir, st.Uid, fs.ErrPermission)
	}
	if st.Mode&0o077 != 0 {
		return sys.Chmod(fd, 0o700)
	}
	return nil
}

// Close closes the volume. Nothing may be using it any more: unmount first.
func (v *Volume) Close() error {
	return errors.Join(v.closeParts(), v.backing.Close())
}

// Remove closes the volume and deletes its state directory: what is left are the user's plain files.
func (v *Volume) Remove() error {
	err := v.closeParts()
	if err == nil {
		err = v.backing.RemoveAll(StateDir)
	}
	return errors.Join(err, v.backing.Close())
}

// journalName is the journal's directory, in the state directory.
const journalName = "journal"

// ErrJournal: the journal of a volume is damaged; SetJournalAside lets the volume be opened without it.
var ErrJournal = journal.ErrCorrupt

// SetJournalAside renames the journal of a volume that is not open, so that Open makes a new one: with Options.ID it
// is one that has lost everything. The snapshots are lost with it. It gives the name in the state directory.
func SetJournalAside(path string) (string, error) {
	dir := filepath.Join(path, StateDir)
	aside := journalName + ".damaged-" + time.Now().UTC().Format("20060102T150405.000000000")
	err := os.Rename(filepath.Join(dir, journalName), filepath.Join(dir, aside))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return aside, nil
}

// Name is what people call the volume.
func (v *Volume) Name() string { return v.name }

// Path is the directory that is protected.
func (v *Volume) Path() string { return v.path }

// ID is the volume's own identity, for as long as its journal exists.
func (v *Volume) ID() string { return v.journal.ID() }

// Root is the identity of the root directory.
func (v *Volume) Root() journal.Ident { return v.root }

// Journal is the volume's journal.
func (v *Volume) Journal() *journal.Journal { return v.journal }

// SetKernel names the mount that serves the volume from now on; nil when there is none. From the first one on
// changes around the mount are recorded: whether the volume is read-only is to be settled by then.
func (v *Volume) SetKernel(k Kernel) {
	if k == nil {
		k = noKernel{}
	} else {
		defer v.around.start()
	}
	v.kernel.Store(&k)
}

func (v *Volume) mounted() Kernel { return *v.kernel.Load() }

// KernelGone says that a mount is no more: unless another one serves the volume by now, nobody refers to
// inodes without a name any longer.
func (v *Volume) KernelGone(k Kernel) {
	none := Kernel(noKernel{})
	if now := v.kernel.Load(); *now == k && v.kernel.CompareAndSwap(now, &none) {
		v.open.releaseAll()
	}
}

// keep keeps an inode that is about to lose its last name open for as long as the kernel refers to it.
func (v *Volume) keep(id journal.Ident) error {
	if !v.mounted().Refers(id) {
		return nil
	}
	if err := v.open.hold(id); err != nil {
		return err
	}
	v.open.release(id) // its Forget may have come before the hold
	return nil
}

// SetReadOnly makes every change through the mount fail with EROFS, or lets them in again, at once: when
// it returns, no change that was let in before is still under way. A transfer may still write; what it wrote
// that readers have not seen is undone before changes are let in (see Thaw).
func (v *Volume) SetReadOnly(on bool) error {
	v.switching.Lock()
	defer v.switching.Unlock()
	return v.setReadOnly(on)
}

// setReadOnly is SetReadOnly, called with switching held.
func (v *Volume) setReadOnly(on bool) error {
	if !on {
		if err := v.Thaw(); err != nil {
			return err
		}
	}
	err := v.mounted().SetReadOnly(on)
	if on { // even where the mount's flag could not be set
		v.readOnly.Store(true)
		v.journal.Barrier()
		return err
	}
	if err != nil {
		return err
	}
	v.readOnly.Store(false)
	return nil
}

// ReadOnly reports whether changes through the mount are refused.
func (v *Volume) ReadOnly() bool { return v.readOnly.Load() }

// Usage gives the inodes and bytes in use on the backing filesystem: an upper bound of what is below the
// volume, known without reading it.
func (v *Volume) Usage() (inodes, bytes int64) {
	var st unix.Statfs_t
	if err := v.backing.Statfs(&st); err != nil {
		return 0, 0
	}
	return int64(st.Files - st.Ffree), int64(st.Blocks-st.Bfree) * st.Bsize
}

// enter begins a change that came through the mount. leave ends it.
func (v *Volume) enter() error {
	v.around.busy()
	v.journal.Enter()
	if v.readOnly.Load() {
		v.journal.Leave()
		return unix.EROFS
	}
	return nil
}

// enterContent is enter for a change of an inode's content.
func (v *Volume) enterContent(id journal.Ident) error {
	if v.readOnly.Load() {
		return unix.EROFS
	}
	if err := v.journal.Announce(id); err != nil {
		return err
	}
	return v.enter()
}

func (v *Volume) leave() { v.journal.Leave() }

// hidden reports whether a name is the state directory's.
func (v *Volume) hidden(dir journal.Ident, name string) bool {
	return name == StateDir && dir == v.root
}
