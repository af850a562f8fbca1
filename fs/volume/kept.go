package volume

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
	"tandemfs/journal/crashpoint"
)

// kept is where the before images of content lie, and what was removed while a view needed it. In the state
// directory it is
//
//	before/<epoch>/d<ino>.<gen>  content of the inode as it was when the epoch began: a sparse file with
//	                             the bytes at their own offsets; the journal says which of them count
//	before/<epoch>/r<ino>.<gen>  the inode itself, which lost its last name in the epoch
//
// with all numbers in decimal. Its methods may be called concurrently.
type kept struct {
	fd     int
	shares bool  // the filesystem can share data between files, which takes no room
	copied int64 // data up to this many bytes is copied all the same

	mu      sync.Mutex
	removed map[journal.Ident]journal.Epoch // what is there as r..., and in which epoch
	copies  map[copyKey]*keptCopy
}

// copyKey names a copy of content.
type copyKey struct {
	epoch journal.Epoch
	id    journal.Ident
}

// keptCopy is an open copy.
type keptCopy struct {
	fd    int
	users int
	stale bool // no longer in the cache: closed by the last user
	// unwritten is how many bytes were copied into it since the kernel was told to begin to write.
	unwritten atomic.Int64
}

// maxCopies is how many copies stay open between uses.
const maxCopies = 64

const (
	keptName      = "before"
	contentPrefix = 'd'
	removedPrefix = 'r'
)

func entryName(prefix byte, id journal.Ident) string {
	return string(prefix) + strconv.FormatUint(id.Ino, 10) + "." + strconv.FormatUint(id.Gen, 10)
}

// parseEntry reads what entryName wrote.
func parseEntry(name string) (prefix byte, id journal.Ident, ok bool) {
	if len(name) < 2 || name[0] != contentPrefix && name[0] != removedPrefix {
		return 0, id, false
	}
	ino, gen, _ := strings.Cut(name[1:], ".")
	var err, err2 error
	id.Ino, err = strconv.ParseUint(ino, 10, 64)
	id.Gen, err2 = strconv.ParseUint(gen, 10, 64)
	return name[0], id, err == nil && err2 == nil
}

func epochName(n journal.Epoch) string { return strconv.FormatUint(uint64(n), 10) }

// smallCopy is up to how many bytes XFS copies data faster than it shares it: before it shares, it writes out what is
// cached of the source, and whoever writes to that afterwards has it find new blocks. ext4 copies in any case, and btrfs
// shares at once.
const smallCopy = 128 << 10

// mostUnwritten is how many bytes of small copies XFS is left with in memory. What has no place on the disk yet is one
// extent each there, and XFS goes through all of a file's whenever it logs a change of its times.
const mostUnwritten = 1 << 20

var smallCopies = sync.Pool{New: func() any { return new([smallCopy]byte) }}

// openKept opens the directory, on a filesystem of that type, and learns which removed inodes are in it.
func openKept(stateFD int, magic int64) (*kept, error) {
	if err := sys.Mkdir(stateFD, keptName, 0o700); err != nil && err != unix.EEXIST {
		return nil, err
	}
	fd, err := sys.Open(stateFD, keptName, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	k := &kept{fd: fd, removed: map[journal.Ident]journal.Epoch{}, copies: map[copyKey]*keptCopy{}}
	k.shares = magic == unix.XFS_SUPER_MAGIC || magic == unix.BTRFS_SUPER_MAGIC
	if magic == unix.XFS_SUPER_MAGIC {
		k.copied = smallCopy
	}
	if err := k.learn(); err != nil {
		sys.Close(fd)
		return nil, fmt.Errorf("read %s: %w", keptName, err)
	}
	return k, nil
}

func (k *kept) learn() error {
	epochs, err := k.epochs()
	if err != nil {
		return err
	}
	for _, n := range epochs {
		err := k.entries(n, func(dir int, name string, prefix byte, id journal.Ident) error {
			if prefix == removedPrefix {
				return k.recall(dir, name, n, id)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// recall takes a removed inode in. One that has another name still was not removed: the process died
// between the two steps of replacing it.
func (k *kept) recall(dir int, name string, n journal.Epoch, id journal.Ident) error {
	var st unix.Statx_t
	if err := sys.Stat(dir, name, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
		return sys.Unlink(dir, name)
	}
	k.removed[id] = n
	return nil
}

func (k *kept) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for key := range k.copies {
		k.evict(key)
	}
	sys.Close(k.fd)
}

// epochs lists the epochs that something is kept of, in no order.
func (k *kept) epochs() ([]journal.Epoch, error) {
	var list []journal.Epoch
	err := withDir(k.fd, ".", func(fd int) error {
		return eachName(fd, func(name string) error {
			if n, err := strconv.ParseUint(name, 10, 64); err == nil {
				list = append(list, journal.Epoch(n))
			}
			return nil
		})
	})
	return list, err
}

// entries calls visit with all that is kept of an epoch, and its directory.
func (k *kept) entries(n journal.Epoch, visit func(dir int, name string, prefix byte, id journal.Ident) error) error {
	return withDir(k.fd, epochName(n), func(dir int) error {
		return eachName(dir, func(name string) error {
			prefix, id, ok := parseEntry(name)
			if !ok {
				return nil
			}
			return visit(dir, name, prefix, id)
		})
	})
}

// withDir opens a directory for a call. One that is not there has nothing in it.
func withDir(at int, name string, call func(fd int) error) error {
	fd, err := sys.Open(at, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	return call(fd)
}

// makeDir is withDir for an epoch's directory, which is made when absent.
func (k *kept) makeDir(n journal.Epoch, call func(fd int) error) error {
	fd, err := sys.Open(k.fd, epochName(n), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err == unix.ENOENT {
		if err = sys.Mkdir(k.fd, epochName(n), 0o700); err == nil || err == unix.EEXIST {
			fd, err = sys.Open(k.fd, epochName(n), unix.O_RDONLY|unix.O_DIRECTORY, 0)
		}
	}
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	return call(fd)
}

// open gives the copy of an inode's content under an epoch, made when absent if create is set. close gives it
// back. One that is not there gives ENOENT.
func (k *kept) open(n journal.Epoch, id journal.Ident, create bool) (*keptCopy, error) {
	key := copyKey{n, id}
	k.mu.Lock()
	defer k.mu.Unlock()
	if c := k.copies[key]; c != nil {
		c.users++
		return c, nil
	}
	fd, err := k.openFile(n, id, create)
	if err != nil {
		return nil, err
	}
	for other := range k.copies {
		if len(k.copies) < maxCopies {
			break
		}
		k.evict(other)
	}
	c := &keptCopy{fd: fd, users: 1}
	k.copies[key] = c
	return c, nil
}

func (k *kept) openFile(n journal.Epoch, id journal.Ident, create bool) (fd int, err error) {
	name := entryName(contentPrefix, id)
	if !create {
		return sys.Open(k.fd, epochName(n)+"/"+name, unix.O_RDWR, 0)
	}
	err = k.makeDir(n, func(dir int) error {
		fd, err = sys.Open(dir, name, unix.O_RDWR|unix.O_CREAT, 0o600)
		return err
	})
	return fd, err
}

// done gives a copy back.
func (k *kept) done(c *keptCopy) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if c.users--; c.users == 0 && c.stale {
		sys.Close(c.fd)
	}
}

// evict takes a copy out of the cache. Called with mu held.
func (k *kept) evict(key copyKey) {
	c := k.copies[key]
	delete(k.copies, key)
	c.stale = true
	if c.users == 0 {
		sys.Close(c.fd)
	}
}

// keep copies stretches of an open file, as they are now, under an epoch: data as data, which a filesystem that
// can do so shares, holes as holes.
func (k *kept) keep(n journal.Epoch, id journal.Ident, fd int, stretches journal.Extents) error {
	c, err := k.open(n, id, true)
	if err != nil {
		return err
	}
	defer k.done(c)
	for _, e := range stretches {
		if err := k.copyStretch(fd, c, e); err != nil {
			return errors.Join(err, uncopy(c.fd, stretches))
		}
	}
	crashpoint.Here("volume/content-kept")
	return nil
}

// uncopy frees what was copied of stretches that then are not kept.
func uncopy(fd int, stretches journal.Extents) error {
	for _, e := range stretches {
		if err := sys.PunchHole(fd, e); err != nil {
			return err
		}
	}
	return nil
}

// copyStretch copies the data of a stretch to the same place in a copy.
func (k *kept) copyStretch(from int, to *keptCopy, e journal.Extent) error {
	for off := e.Off; off < e.End; {
		data, ok, err := sys.NextData(from, off, e.End)
		if err != nil || !ok {
			return err
		}
		for off = data.Off; off < data.End; {
			n, err := k.copySome(from, to, off, min(data.End-off, maxCopy))
			if err != nil {
				return err
			}
			if n == 0 { // the file ends here
				return nil
			}
			off += int64(n)
		}
	}
	return nil
}

// copySome copies at most so many bytes to the same place in a copy. It gives fewer, 0 too, where the file ends.
func (k *kept) copySome(from int, to *keptCopy, off, size int64) (int, error) {
	if size > k.copied {
		return sys.CopyRange(from, off, to.fd, off, int(size))
	}
	buf := smallCopies.Get().(*[smallCopy]byte)
	defer smallCopies.Put(buf)
	n, err := sys.ReadAt(from, buf[:size], off)
	if err != nil {
		return 0, err
	}
	if to.unwritten.Add(int64(n)) > mostUnwritten {
		to.unwritten.Store(0)
		sys.BeginWriting(to.fd)
	}
	return sys.WriteAt(to.fd, buf[:n], off)
}

// take moves an inode, which loses its last name by that, under an epoch.
func (k *kept) take(n journal.Epoch, id journal.Ident, dirfd int, name string) error {
	return k.makeDir(n, func(dir int) error {
		to := entryName(removedPrefix, id)
		if err := sys.Rename(dirfd, name, dir, to, unix.RENAME_NOREPLACE); err != nil {
			return err
		}
		crashpoint.Here("volume/retained")
		k.note(id, n)
		return nil
	})
}

// link gives an open inode that is about to be replaced a name under an epoch. It counts as removed from note
// on.
func (k *kept) link(n journal.Epoch, id journal.Ident, fd int) error {
	return k.makeDir(n, func(dir int) error { return sys.Link(fd, dir, entryName(removedPrefix, id)) })
}

// unlink takes link back. If no view needs the inode any more the name may be gone already.
func (k *kept) unlink(n journal.Epoch, id journal.Ident) error {
	return k.makeDir(n, func(dir int) error { return ignoreAbsent(sys.Unlink(dir, entryName(removedPrefix, id))) })
}

func (k *kept) note(id journal.Ident, n journal.Epoch) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.removed[id] = n
}

// removedIn gives the epoch in which an inode lost its last name, if it is kept since then.
func (k *kept) removedIn(id journal.Ident) (journal.Epoch, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	n, ok := k.removed[id]
	return n, ok
}

// giveBack moves a removed inode to a name.
func (k *kept) giveBack(n journal.Epoch, id journal.Ident, dirfd int, name string) error {
	return k.makeDir(n, func(dir int) error {
		if err := sys.Rename(dir, entryName(removedPrefix, id), dirfd, name, unix.RENAME_NOREPLACE); err != nil {
			return err
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.removed, id)
		return nil
	})
}

// dropContent frees a copy.
func (k *kept) dropContent(dir int, n journal.Epoch, id journal.Ident) error {
	k.mu.Lock()
	if key := (copyKey{n, id}); k.copies[key] != nil {
		k.evict(key)
	}
	k.mu.Unlock()
	return ignoreAbsent(sys.Unlink(dir, entryName(contentPrefix, id)))
}

// dropRemoved removes a removed inode for good.
func (k *kept) dropRemoved(dir int, id journal.Ident) error {
	name := entryName(removedPrefix, id)
	err := sys.Unlink(dir, name)
	if err == unix.EISDIR {
		err = sys.Rmdir(dir, name)
	}
	if err = ignoreAbsent(err); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.removed, id)
	return nil
}

// dropDir removes an epoch's directory once it is empty.
func (k *kept) dropDir(n journal.Epoch) error {
	err := sys.Rmdir(k.fd, epochName(n))
	if errors.Is(err, unix.ENOTEMPTY) {
		return nil
	}
	return ignoreAbsent(err)
}

func ignoreAbsent(err error) error {
	if err == unix.ENOENT {
		return nil
	}
	return err
}

// read fills p, which begins at k.Off, with kept content. Where the copy ends early there was a hole.
func (k *kept) read(at journal.Kept, id journal.Ident, p []byte) error {
	c, err := k.open(at.Epoch, id, false)
	if err != nil {
		return lost(at, id, err)
	}
	defer k.done(c)
	n, err := sys.ReadAt(c.fd, p, at.Off)
	if err != nil {
		return lost(at, id, err)
	}
	clear(p[n:])
	return nil
}

// nextData gives the first data of kept content.
func (k *kept) nextData(at journal.Kept, id journal.Ident) (e journal.Extent, ok bool, err error) {
	c, err := k.open(at.Epoch, id, false)
	if err != nil {
		return e, false, lost(at, id, err)
	}
	defer k.done(c)
	return sys.NextData(c.fd, at.Off, at.End)
}

// lost is the error of content that was kept and cannot be read: a view is never shown without it.
func lost(at journal.Kept, id journal.Ident, err error) error {
	return fmt.Errorf("before image of inode %s, epoch %d, bytes %d to %d: %w: %w", id, at.Epoch, at.Off, at.End, unix.EIO, err)
}
