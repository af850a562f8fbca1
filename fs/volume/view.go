package volume

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
)

// View is the volume as it was at a seal: names, attributes and extended attributes exactly, by the
// journal's before images; content as it is now. Every read looks at the backing directory first and at
// the journal after, since a record is in the journal before the change that it tells of.
type View struct {
	v     *Volume
	epoch journal.Epoch
	once  sync.Once
}

// Entry is one name in a View.
type Entry struct {
	Name  string
	Ident journal.Ident
}

// Seal ends the current epoch and gives the view of the volume at that instant.
func (v *Volume) Seal() (*View, error) {
	n, err := v.journal.Seal(true)
	if err != nil {
		return nil, err
	}
	return &View{v: v, epoch: n}, nil
}

// View gives the view of an earlier seal, while the journal still holds it.
func (v *Volume) View(n journal.Epoch) (*View, error) {
	if err := v.journal.Hold(n); err != nil {
		return nil, err
	}
	return &View{v: v, epoch: n}, nil
}

// Epoch is the seal's number.
func (w *View) Epoch() journal.Epoch { return w.epoch }

// Close lets go of what the journal keeps for the view.
func (w *View) Close() error {
	w.once.Do(func() { w.v.journal.Release(w.epoch) })
	return nil
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
	live, liveErr := w.live(id, xattrs)
	was, ok, err := w.v.journal.ImageAt(w.epoch, id)
	if err != nil || ok {
		return was, err
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
	var n Inode
	if err := w.v.statOpen(o, &n); err != nil {
		return img, err
	}
	img.Attr = sys.Attr(&n.Stat)
	if xattrs {
		img.Xattrs, err = sys.Xattrs(o.fd)
	}
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

// Lookup gives the inode that a name stood for; the zero Ident where there was none.
func (w *View) Lookup(dir journal.Ident, name string) (journal.Ident, error) {
	if w.v.hidden(dir, name) {
		return journal.Ident{}, nil
	}
	now, liveErr := w.lookupLive(dir, name)
	was, ok, err := w.v.journal.NameAt(w.epoch, dir, name)
	if err != nil || ok {
		return was, err
	}
	if errors.Is(liveErr, unix.ENOENT) || errors.Is(liveErr, unix.ESTALE) {
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

// ReadDir gives all names of a directory, sorted.
func (w *View) ReadDir(dir journal.Ident) ([]Entry, error) {
	live, liveErr := w.readLive(dir)
	was, err := w.v.journal.NamesAt(w.epoch, dir)
	if err != nil {
		return nil, err
	}
	if liveErr != nil && !errors.Is(liveErr, unix.ESTALE) {
		return nil, liveErr
	}
	entries := slices.DeleteFunc(live, func(e Entry) bool {
		_, changed := was[e.Name]
		return changed
	})
	for name := range maps.Keys(was) {
		if !was[name].IsZero() {
			entries = append(entries, Entry{Name: name, Ident: was[name]})
		}
	}
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return entries, nil
}

// readLive lists a directory as it is. A name that goes while it is listed is left out; the journal then
// has what it was.
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
		if err == unix.ENOENT {
			return true
		}
		entries = append(entries, Entry{Name: string(e.Name), Ident: id})
		failed = err
		return err == nil
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
	return &ViewFile{v: w.v, o: o}, nil
}

// ViewFile is a regular file's content.
type ViewFile struct {
	v *Volume
	o *openInode
}

// ReadAt is io.ReaderAt.
func (f *ViewFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := sys.ReadAt(f.o.fd, p, off)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// NextData gives the first stretch of data at or after off and before end.
func (f *ViewFile) NextData(off, end int64) (journal.Extent, bool, error) {
	return sys.NextData(f.o.fd, off, end)
}

// Close gives the content back.
func (f *ViewFile) Close() error {
	f.v.open.put(f.o)
	return nil
}
