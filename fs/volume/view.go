package volume

import (
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
)

// View is the volume as it was at a seal, exactly: names, attributes, extended attributes, content and
// holes. Every read looks at the backing directory first and at the journal after, since a before image is in
// the journal before the change that it is of; so no reader stops a writer, nor the other way round.
type View struct {
	v     *Volume
	epoch journal.Epoch
	// refs counts the owner and the requests that are under way; at zero the journal lets go of the seal.
	refs   atomic.Int32
	closed sync.Once // the owner's share
	let    sync.Once // letting go, at the end or when it is given up
}

// Entry is one name in a View.
type Entry struct {
	Name  string
	Ident journal.Ident
	Type  uint8 // DT_* of readdir(3)
	Err   error // why what the name stands for cannot be read: then Ident may be journal.Unknown
}

// Seal ends the current epoch and gives the view of the volume at that instant, for a transfer: where there
// is no room for what it needs, it is given up, and reads of it fail with journal.ErrNotHeld. It waits for the
// end of a restore: half of one is no state of the volume.
func (v *Volume) Seal() (*View, error) {
	v.switching.Lock()
	defer v.switching.Unlock()
	n, err := v.journal.Seal(true)
	if err != nil {
		return nil, err
	}
	v.around.soon()
	w := v.newView(n)
	v.addTransient(w)
	return w, nil
}

// View gives the view of an earlier seal, while the journal still holds it, as Seal does.
func (v *Volume) View(n journal.Epoch) (*View, error) {
	w, err := v.holdView(n)
	if err == nil {
		v.addTransient(w)
	}
	return w, err
}

// holdView gives the view of a seal that is held.
func (v *Volume) holdView(n journal.Epoch) (*View, error) {
	if err := v.journal.Hold(n); err != nil {
		return nil, err
	}
	return v.newView(n), nil
}

// unclaimed are the seals that an earlier process held, each once.
type unclaimed struct {
	mu    sync.Mutex
	seals []journal.Epoch
}

// ReleaseUnclaimed lets go of the seals that an earlier process held, but for those that View was called for
// meanwhile, and those of snapshots and of what readers see. It does nothing a second time.
func (v *Volume) ReleaseUnclaimed() {
	v.unclaimed.mu.Lock()
	defer v.unclaimed.mu.Unlock()
	for _, n := range v.unclaimed.seals { // whoever needs one has a hold of its own by now
		v.journal.Release(n)
		v.reclaimer.released(n)
	}
	v.unclaimed.seals = nil
}

// newView makes a view for somebody who has a hold of the seal.
func (v *Volume) newView(n journal.Epoch) *View {
	w := &View{v: v, epoch: n}
	w.refs.Store(1)
	v.reclaimer.sealed()
	return w
}

// Epoch is the seal's number.
func (w *View) Epoch() journal.Epoch { return w.epoch }

// Close lets go of what is kept for the view, once the requests that use it have ended.
func (w *View) Close() error {
	w.closed.Do(w.done)
	return nil
}

// use takes the view into use for one request, until done; false when it is closed.
func (w *View) use() bool {
	for {
		n := w.refs.Load()
		if n == 0 {
			return false
		}
		if w.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (w *View) done() {
	if w.refs.Add(-1) == 0 {
		w.release()
	}
}

// release lets go of the seal; what nobody needs any more is freed in the background.
func (w *View) release() {
	w.let.Do(func() {
		w.v.dropTransient(w)
		w.v.journal.Release(w.epoch)
		w.v.reclaimer.released(w.epoch)
	})
}

// gone turns what a handle of a removed inode gives into fs.ErrNotExist.
func gone(err error) error {
	if errors.Is(err, unix.ESTALE) {
		return fs.ErrNotExist
	}
	return err
}

// image gives an inode's attributes at the seal.
func (w *View) image(id journal.Ident, xattrs bool) (journal.Image, error) {
	if id == journal.Unknown {
		return journal.Image{}, fs.ErrNotExist
	}
	live, liveErr := w.live(id, xattrs)
	was, ok, err := w.v.journal.ImageAt(w.epoch, id)
	if ok && was.Attr.Nlink == 0 { // it was only open
		return was, fs.ErrNotExist
	}
	if err != nil || ok {
		return was, err
	}
	if n, removed := w.v.before.removedIn(id); removed && n <= w.epoch {
		return was, fs.ErrNotExist
	}
	created, err := w.v.journal.CreatedAfter(w.epoch, id)
	if err != nil {
		return was, err
	}
	if created || liveErr == nil && live.Attr.Nlink == 0 {
		return was, fs.ErrNotExist
	}
	return live, gone(liveErr)
}

func (w *View) live(id journal.Ident, xattrs bool) (img journal.Image, err error) {
	o, err := w.v.open.get(id, reachPath)
	if err != nil {
		return img, err
	}
	defer w.v.open.put(o)
	if xattrs {
		return o.image()
	}
	var n Inode
	err = w.v.statOpen(o, &n)
	img.Attr = sys.Attr(&n.Stat)
	return img, err
}

// Stat gives an inode's attributes.
func (w *View) Stat(id journal.Ident) (journal.Attr, error) {
	img, err := w.image(id, false)
	return img.Attr, err
}

// Xattrs gives an inode's extended attributes, sorted by name.
func (w *View) Xattrs(id journal.Ident) ([]journal.Xattr, error) {
	img, err := w.image(id, true)
	return img.Xattrs, err
}

// Lookup gives the inode that a name stood for; the zero Ident where there was none, or one of another subvolume.
func (w *View) Lookup(dir journal.Ident, name string) (journal.Ident, error) {
	if w.v.hidden(dir, name) {
		return journal.Ident{}, nil
	}
	now, liveErr := w.lookupLive(dir, name)
	was, ok, err := w.v.journal.NameAt(w.epoch, dir, name)
	if was == journal.Unknown { // it was changed around the mount, and nothing of it was kept
		was = journal.Ident{}
	}
	if err != nil || ok {
		return was, err
	}
	if errors.Is(liveErr, unix.ENOENT) || errors.Is(liveErr, unix.ESTALE) || errors.Is(liveErr, unix.EXDEV) {
		return journal.Ident{}, nil
	}
	return now, liveErr
}

func (w *View) lookupLive(dir journal.Ident, name string) (journal.Ident, error) {
	d, err := w.v.open.get(dir, reachDir)
	if err != nil {
		return journal.Ident{}, err
	}
	defer w.v.open.put(d)
	return w.v.backing.IdentAt(d.fd, name)
}

// readable gives all names of a directory, sorted, or the error of one of which it cannot be read what it stands for.
func (w *View) readable(dir journal.Ident) ([]Entry, error) {
	entries, err := w.ReadDir(dir)
	for _, e := range entries {
		err = errors.Join(err, e.Err)
	}
	return entries, err
}

// ReadDir gives all names of a directory, sorted. An inode that cannot be read keeps back no other name.
func (w *View) ReadDir(dir journal.Ident) ([]Entry, error) {
	entries, liveErr := w.readLive(dir)
	was, err := w.v.journal.NamesAt(w.epoch, dir)
	if err != nil {
		return nil, err
	}
	if errors.Is(liveErr, unix.ESTALE) { // an empty one is something else
		_, liveErr = w.Stat(dir)
	}
	if liveErr != nil {
		return nil, liveErr
	}
	entries = slices.DeleteFunc(entries, func(e Entry) bool {
		_, changed := was[e.Name]
		return changed
	})
	for name, id := range was {
		if id.IsZero() || id == journal.Unknown {
			continue
		}
		attr, err := w.Stat(id)
		if err != nil && !journal.Unreadable(err) {
			return nil, err
		}
		entries = append(entries, Entry{name, id, uint8(attr.Mode & unix.S_IFMT >> 12), err})
	}
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return entries, nil
}

// readLive lists a directory as it is. A name that goes while it is listed is left out; the journal then
// has what it was. So is one of another subvolume.
func (w *View) readLive(dir journal.Ident) ([]Entry, error) {
	d, err := w.v.open.get(dir, reachDir)
	if err != nil {
		return nil, err
	}
	defer w.v.open.put(d)
	var entries []Entry
	var failed error
	err = w.v.ReadDir(dir, 0, direntBuffer, func(e *sys.Dirent) bool {
		if e.IsDot() {
			return true
		}
		id, err := w.v.backing.IdentAt(d.fd, string(e.Name))
		switch {
		case err == unix.ENOENT, err == unix.EXDEV:
		case journal.Unreadable(err):
			entries = append(entries, Entry{string(e.Name), journal.Unknown, e.Type, err})
		default:
			entries = append(entries, Entry{string(e.Name), id, e.Type, nil})
			failed = err
		}
		return failed == nil
	})
	return entries, errors.Join(err, failed)
}

// Readlink reads a symbolic link; its target never changes.
func (w *View) Readlink(id journal.Ident) (string, error) {
	target, err := w.v.Readlink(id)
	return target, gone(err)
}

// Open opens a regular file's content.
func (w *View) Open(id journal.Ident) (*ViewFile, error) {
	o, err := w.v.open.get(id, reachRead)
	if err != nil {
		return nil, gone(err)
	}
	return &ViewFile{w: w, o: o}, nil
}

// ViewFile is a regular file's content at a seal. Its methods may be called concurrently.
type ViewFile struct {
	w *View
	o *openInode
}

// Close gives the content back.
func (f *ViewFile) Close() error {
	f.w.v.open.put(f.o)
	return nil
}

// ReadAt is io.ReaderAt.
func (f *ViewFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.read(p, off)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// read reads what is in the file now, and then puts over it what was kept since the seal.
func (f *ViewFile) read(p []byte, off int64) (int, error) {
	n, err := sys.ReadAt(f.o.fd, p, off)
	if err != nil {
		return n, err
	}
	j := f.w.v.journal
	was, touched, err := j.ImageAt(f.w.epoch, f.o.id)
	if err != nil || !touched {
		return n, err
	}
	p = p[:max(0, min(int64(len(p)), was.Attr.Size-off))]
	if n < len(p) {
		clear(p[n:])
	}
	kept, err := j.KeptAt(f.w.epoch, f.o.id, journal.Extent{Off: off, End: off + int64(len(p))})
	if err != nil {
		return 0, err
	}
	for _, k := range kept {
		if err := f.w.v.before.read(k, f.o.id, p[k.Off-off:k.End-off]); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// How much of a file NextData looks at in one go: at first, and then ever more for as long as it finds nothing. A file
// may be one hole of 2^63 bytes.
const (
	firstLook = 256 << 10
	mostLook  = 1 << 61
)

// NextData gives the first stretch of data at or after off and before end, or the beginning of it; ok is false
// when only a hole is left.
func (f *ViewFile) NextData(off, end int64) (e journal.Extent, ok bool, err error) {
	size, err := f.size()
	if err != nil {
		return e, false, err
	}
	end = min(end, size)
	for look := int64(firstLook); off < end; look = min(2*look, mostLook) {
		to := off + min(look, end-off)
		if e, ok, err = f.dataWithin(journal.Extent{Off: off, End: to}); ok || err != nil {
			return e, ok, err
		}
		off = to
	}
	return e, false, nil
}

// dataWithin gives the first data within x. What is not kept is looked for in the file itself, and that was right
// if nothing more is kept afterwards.
func (f *ViewFile) dataWithin(x journal.Extent) (e journal.Extent, ok bool, err error) {
	j := f.w.v.journal
	kept, err := j.KeptAt(f.w.epoch, f.o.id, x)
	for err == nil {
		if e, ok, err = f.nextData(kept, x.Off, x.End); err != nil {
			break
		}
		var after []journal.Kept
		if after, err = j.KeptAt(f.w.epoch, f.o.id, x); err == nil && slices.Equal(kept, after) {
			return e, ok, nil
		}
		kept = after
	}
	return e, false, err
}

// nextData goes through what is kept and what lies between, until the data ends that it has found.
func (f *ViewFile) nextData(kept []journal.Kept, off, end int64) (found journal.Extent, ok bool, err error) {
	add := func(e journal.Extent, data bool, sought error) (more bool) {
		switch {
		case sought != nil:
			err = sought
		case data && !ok:
			found, ok = e, true
		case data && e.Off == found.End:
			found.End = e.End
		}
		return err == nil && (!ok || found.End == off)
	}
	for _, k := range kept {
		live := off
		off = k.Off
		if live < off && !add(sys.NextData(f.o.fd, live, off)) {
			return found, ok, err
		}
		off = k.End
		if !add(f.w.v.before.nextData(k, f.o.id)) {
			return found, ok, err
		}
	}
	if live := off; live < end {
		off = end
		add(sys.NextData(f.o.fd, live, end))
	}
	return found, ok, err
}

// size is the file's size at the seal; of a file that had no name then, but is open still, what it is.
func (f *ViewFile) size() (int64, error) {
	a, err := f.w.Stat(f.o.id)
	if !errors.Is(err, fs.ErrNotExist) {
		return a.Size, err
	}
	var n Inode
	err = f.w.v.statOpen(f.o, &n)
	return int64(n.Stat.Size), err
}

// seek is lseek(2) with SEEK_DATA or SEEK_HOLE.
func (f *ViewFile) seek(off int64, whence int) (int64, error) {
	size, err := f.size()
	if err != nil {
		return 0, err
	}
	if off < 0 || off >= size {
		return 0, unix.ENXIO
	}
	if whence == unix.SEEK_DATA {
		e, ok, err := f.NextData(off, size)
		if err == nil && !ok {
			err = unix.ENXIO
		}
		return e.Off, err
	}
	if whence != unix.SEEK_HOLE {
		return 0, unix.EINVAL
	}
	for off < size {
		e, ok, err := f.NextData(off, size)
		if err != nil {
			return 0, err
		}
		if !ok || e.Off > off {
			break
		}
		off = e.End
	}
	return off, nil
}
