package volume

import (
	"cmp"
	"slices"
	"sync"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
)

// Tree is what a mount shows of a volume: what it holds now, or what it held at a seal. Errors are errnos,
// or fs.ErrNotExist. Done ends its use.
type Tree interface {
	Lookup(dir journal.Ident, name string, out *Inode) error
	Stat(id journal.Ident, out *Inode) error
	// Read fills p; n < len(p) with a nil error means the end of the file.
	Read(id journal.Ident, p []byte, off int64) (n int, err error)
	// ReadDir hands a directory's entries to yield, from a position that an entry's Off gave (0: the
	// beginning), "." and ".." included, until yield returns false; about size bytes are wanted.
	ReadDir(dir journal.Ident, off int64, size int, yield func(*sys.Dirent) bool) error
	Readlink(id journal.Ident) (string, error)
	// GetXattr and ListXattr fill dest and give the size; with an empty dest only that.
	GetXattr(id journal.Ident, name string, dest []byte) (int, error)
	ListXattr(id journal.Ident, dest []byte) (int, error)
	// Seek is lseek(2) with SEEK_DATA or SEEK_HOLE.
	Seek(id journal.Ident, off int64, whence int) (int64, error)
	Done()
}

// Current gives what readers of the mount see: the published view, where there is one.
func (v *Volume) Current() Tree {
	for {
		w := v.published.Load()
		if w == nil {
			return liveTree{v}
		}
		if w.use() {
			return viewTree{w}
		}
	}
}

// liveTree is the volume as it is.
type liveTree struct{ *Volume }

// Done has nothing to end.
func (liveTree) Done() {}

// viewTree is the volume as it was at a seal.
type viewTree struct{ w *View }

// Tree gives the view for a mount; false when it is closed.
func (w *View) Tree() (Tree, bool) { return viewTree{w}, w.use() }

// Done is Tree's.
func (t viewTree) Done() { t.w.done() }

// Lookup is Tree's.
func (t viewTree) Lookup(dir journal.Ident, name string, out *Inode) error {
	id, err := t.w.Lookup(dir, name)
	if err != nil {
		return err
	}
	if id.IsZero() {
		return unix.ENOENT
	}
	return t.Stat(id, out)
}

// Stat is Tree's. What the journal does not keep of attributes, the number of blocks for one, is what it is now.
func (t viewTree) Stat(id journal.Ident, out *Inode) error {
	o, err := t.w.v.open.get(id, reachPath)
	if err != nil {
		return gone(err)
	}
	defer t.w.v.open.put(o)
	if err := t.w.v.statOpen(o, out); err != nil {
		return err
	}
	was, ok, err := t.w.v.journal.ImageAt(t.w.epoch, id)
	if err != nil || !ok {
		return err
	}
	a, st := was.Attr, &out.Stat
	if int64(st.Size) != a.Size {
		st.Blocks = uint64(a.Size+511) / 512
	}
	st.Mode, st.Nlink, st.Uid, st.Gid, st.Size = uint16(a.Mode), a.Nlink, a.UID, a.GID, uint64(a.Size)
	st.Rdev_major, st.Rdev_minor = unix.Major(a.Rdev), unix.Minor(a.Rdev)
	st.Atime, st.Mtime, st.Ctime = statxStamp(a.Atime), statxStamp(a.Mtime), statxStamp(a.Ctime)
	return nil
}

func statxStamp(t journal.Time) unix.StatxTimestamp {
	return unix.StatxTimestamp{Sec: t.Sec, Nsec: t.Nsec}
}

// Read is Tree's.
func (t viewTree) Read(id journal.Ident, p []byte, off int64) (int, error) {
	o, err := t.w.v.open.get(id, reachRead)
	if err != nil {
		return 0, gone(err)
	}
	defer t.w.v.open.put(o)
	return (&ViewFile{t.w, o}).read(p, off)
}

// Readlink is Tree's.
func (t viewTree) Readlink(id journal.Ident) (string, error) { return t.w.Readlink(id) }

// Seek is Tree's.
func (t viewTree) Seek(id journal.Ident, off int64, whence int) (int64, error) {
	o, err := t.w.v.open.get(id, reachRead)
	if err != nil {
		return 0, gone(err)
	}
	defer t.w.v.open.put(o)
	return (&ViewFile{t.w, o}).seek(off, whence)
}

// GetXattr is Tree's.
func (t viewTree) GetXattr(id journal.Ident, name string, dest []byte) (int, error) {
	n, liveErr := t.w.v.GetXattr(id, name, dest)
	was, ok, err := t.w.v.journal.ImageAt(t.w.epoch, id)
	if err != nil {
		return 0, err
	}
	if !ok {
		return n, gone(liveErr)
	}
	i, ok := slices.BinarySearchFunc(was.Xattrs, name, func(x journal.Xattr, name string) int { return cmp.Compare(x.Name, name) })
	if !ok {
		return 0, unix.ENODATA
	}
	return fill(dest, was.Xattrs[i].Value)
}

// ListXattr is Tree's.
func (t viewTree) ListXattr(id journal.Ident, dest []byte) (int, error) {
	n, liveErr := t.w.v.ListXattr(id, dest)
	was, ok, err := t.w.v.journal.ImageAt(t.w.epoch, id)
	if err != nil {
		return 0, err
	}
	if !ok {
		return n, gone(liveErr)
	}
	var list []byte
	for _, x := range was.Xattrs {
		list = append(append(list, x.Name...), 0)
	}
	return fill(dest, list)
}

// fill answers as getxattr(2) does.
func fill(dest, value []byte) (int, error) {
	if len(dest) > 0 && len(dest) < len(value) {
		return 0, unix.ERANGE
	}
	copy(dest, value)
	return len(value), nil
}

// listing is a directory of a view in the order in which it is read: by a hash of the names. A position is that
// hash, and in front of it which view the reading began with: what is read in several requests is of one view,
// also when another is published in between. Where the listing is no longer remembered, the hash still gives each
// name once that both views have.
type listing []listed

type listed struct {
	name string
	id   journal.Ident
	kind uint8 // DT_*
	at   int64 // the hash
}

// Positions 1 and 2 are behind "." and "..".
const (
	firstPosition = 3
	hashBits      = 48
	hashMask      = 1<<hashBits - 1
	viewMask      = 1<<(63-hashBits) - 1
)

// tag is what positions have of a view in front.
func tag(n journal.Epoch) int64 { return int64(n&viewMask) << hashBits }

// ReadDir is Tree's.
func (t viewTree) ReadDir(dir journal.Ident, off int64, _ int, yield func(*sys.Dirent) bool) error {
	for i, name := range []string{".", ".."} {
		if off > int64(i) {
			continue
		}
		if !yield(&sys.Dirent{Ino: dir.Ino, Off: int64(i + 1), Type: unix.DT_DIR, Name: []byte(name)}) {
			return nil
		}
	}
	list, view, err := t.w.v.listings.get(t.w, dir, off)
	if err != nil {
		return err
	}
	from, _ := slices.BinarySearchFunc(list, off&hashMask+1, func(e listed, at int64) int { return cmp.Compare(e.at, at) })
	for _, e := range list[from:] {
		if !yield(&sys.Dirent{Ino: e.id.Ino, Off: view | e.at, Type: e.kind, Name: []byte(e.name)}) {
			return nil
		}
	}
	return nil
}

// list makes the listing of a directory.
func (w *View) list(dir journal.Ident) (listing, error) {
	entries, err := w.ReadDir(dir)
	if err != nil {
		return nil, gone(err)
	}
	list := make(listing, len(entries))
	for i, e := range entries {
		list[i] = listed{e.Name, e.Ident, e.Type, max(firstPosition, int64(xxhash.Sum64String(e.Name)&hashMask))}
	}
	slices.SortFunc(list, func(a, b listed) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.name, b.name)) })
	for i := 1; i < len(list); i++ {
		list[i].at = max(list[i].at, list[i-1].at+1)
	}
	return list, nil
}

// listings remembers the listings that were read last: a large directory is read in many requests.
type listings struct {
	mu     sync.Mutex
	recent []recentListing // the newest last
	names  int             // in all of them
}

type recentListing struct {
	view journal.Epoch
	dir  journal.Ident
	list listing
}

// How many listings are remembered, and names in them all. The newest is in any case.
const (
	maxListings    = 64
	maxListedNames = 1 << 18
)

// get gives the listing that a position belongs to, and the tag of its view. Views far apart may have the same tag,
// those on either side of a power cut for instance: what begins with a view is of that view all the same.
func (l *listings) get(w *View, dir journal.Ident, off int64) (listing, int64, error) {
	if off >= firstPosition {
		if r, ok := l.find(dir, func(n journal.Epoch) bool { return tag(n) == off&^hashMask }); ok {
			return r.list, tag(r.view), nil
		}
	}
	if r, ok := l.find(dir, func(n journal.Epoch) bool { return n == w.epoch }); ok {
		return r.list, tag(w.epoch), nil
	}
	list, err := w.list(dir)
	if err == nil {
		l.add(recentListing{w.epoch, dir, list})
	}
	return list, tag(w.epoch), err
}

// find gives the newest remembered listing of a directory in a view that is asked for.
func (l *listings) find(dir journal.Ident, of func(journal.Epoch) bool) (recentListing, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range slices.Backward(l.recent) {
		if r.dir == dir && of(r.view) {
			return r, true
		}
	}
	return recentListing{}, false
}

func (l *listings) add(r recentListing) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.recent = append(l.recent, r)
	l.names += len(r.list)
	for len(l.recent) > 1 && (len(l.recent) > maxListings || l.names > maxListedNames) {
		l.names -= len(l.recent[0].list)
		l.recent = slices.Delete(l.recent, 0, 1)
	}
}
