package mount

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"math"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/fs/volume"
	"tandemfs/journal"
)

// In every directory the name volume.SnapshotDir stands for a directory that is not in the volume: its names are
// those of the snapshots in which the directory exists, and stand for the directory as it was. A name that is in
// the volume comes first, so that no data is hidden.
//
// What a snapshot shows has inode numbers of its own, made from those in the volume. With the same ones on the
// same device cp(1) would refuse to copy a file back over the one that it was ("are the same file"), and tar(1)
// would take one file in two snapshots for hard links. Links within one snapshot keep one number.

// shown is a snapshot that the kernel looked up, with its view. Once it is deleted its nodes give ESTALE, also
// when there is another one of the name.
type shown struct {
	volume.Snapshot
	view *volume.View
}

// shownSnapshots are those that the server keeps open.
type shownSnapshots struct {
	mu     sync.Mutex // taken before the volume's own
	byName map[string]*shown
}

// snapshot gives a snapshot of the volume; fs.ErrNotExist when there is none.
func (s *Server) snapshot(name string) (*shown, error) {
	s.shown.mu.Lock()
	defer s.shown.mu.Unlock()
	if o := s.shown.byName[name]; o != nil {
		return o, nil
	}
	snap, view, err := s.volume.OpenSnapshot(name)
	if err != nil {
		return nil, err
	}
	o := &shown{snap, view}
	s.shown.byName[name] = o
	return o, nil
}

// SnapshotsChanged is volume.Kernel's. The kernel is told last, so that what it asks then is answered anew.
func (s *Server) SnapshotsChanged(name string) {
	s.dropDeleted(name)
	for _, number := range s.table.snapshotDirs() {
		s.notified(s.fuse.EntryNotify(number, name), "snapshot", journal.Ident{})
		s.notified(s.fuse.InodeNotify(number, 0, 0), "snapshots", journal.Ident{})
	}
}

// dropDeleted closes a snapshot unless it is still the one of its name: requests may have opened a new one by now.
func (s *Server) dropDeleted(name string) {
	s.shown.mu.Lock()
	defer s.shown.mu.Unlock()
	o := s.shown.byName[name]
	if o == nil {
		return
	}
	now, err := s.volume.Snapshot(name)
	if err == nil && now.Epoch == o.Epoch && now.Created.Equal(o.Created) {
		return
	}
	delete(s.shown.byName, name)
	s.closed(o)
}

// closeSnapshots closes all of them.
func (s *Server) closeSnapshots() {
	s.shown.mu.Lock()
	defer s.shown.mu.Unlock()
	for name, o := range s.shown.byName {
		delete(s.shown.byName, name)
		s.closed(o)
	}
}

func (s *Server) closed(o *shown) {
	if err := o.view.Close(); err != nil {
		s.log.Warn("a snapshot was not closed", "snapshot", o.Name, "error", err)
	}
}

// reserved reports whether a name in a directory of the volume stands for the snapshots.
func (r *rawFS) reserved(dir journal.Ident, name string) bool {
	var n volume.Inode
	return name == volume.SnapshotDir && r.v.Lookup(dir, name, &n) == unix.ENOENT
}

// snapshotDir answers with the directory of the node's snapshots.
func (q *reading) snapshotDir(out *fuse.EntryOut) fuse.Status {
	n := node{id: q.id, show: showSnapshots}
	if err := q.statSnapshotDir(); err != nil {
		return q.r.status(err)
	}
	q.refer(n, volume.SnapshotDir, out)
	out.SetEntryTimeout(q.nameTimeout(volume.SnapshotDir))
	out.SetAttrTimeout(q.attrTimeout())
	return fuse.OK
}

// statSnapshotDir makes up the attributes of the directory of a directory's snapshots. Its times are those of the
// newest snapshot, or else of the directory: those change without notice, so the kernel keeps none of it then.
func (q *reading) statSnapshotDir() error {
	st := &q.inode.Stat
	list := q.r.v.Snapshots()
	if len(list) == 0 {
		q.passing = true
		if err := q.statParent(); err != nil {
			return err
		}
	} else {
		setTimes(st, list[len(list)-1].Created)
	}
	*st = unix.Statx_t{
		Mask: unix.STATX_BASIC_STATS, Mode: unix.S_IFDIR | 0o555, Nlink: 2, Blksize: 4096, Ino: snapshotsIno(q.id),
		Atime: st.Atime, Mtime: st.Mtime, Ctime: st.Ctime,
	}
	return nil
}

// statParent reads the attributes of the directory whose snapshots these are.
func (q *reading) statParent() error {
	tree := q.r.v.Current()
	defer tree.Done()
	return tree.Stat(q.id, &q.inode)
}

// lookupSnapshot finds the directory as it was at the snapshot of a name.
func (q *reading) lookupSnapshot(name string, out *fuse.EntryOut) fuse.Status {
	o, err := q.r.s.snapshot(name)
	if err == nil {
		err = o.stat(q.id, &q.inode)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fuse.ENOENT // not for the kernel to keep: a snapshot of the name may be made just now
	}
	if err != nil {
		return q.r.status(err)
	}
	q.refer(node{id: q.id, of: o, show: showSnapshotTop}, name, out)
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
	return fuse.OK
}

// stat reads the attributes that an inode had; fs.ErrNotExist if it did not exist then.
func (o *shown) stat(id journal.Ident, out *volume.Inode) error {
	tree, ok := o.view.Tree()
	if !ok {
		return fs.ErrNotExist
	}
	defer tree.Done()
	if _, err := o.view.Stat(id); err != nil {
		return err
	}
	return tree.Stat(id, out)
}

// Positions in a directory of snapshots are the times of their making, and before those:
const (
	afterDot    = 1
	afterDotDot = 2
)

// listSnapshots lists the snapshots in which the directory exists.
func (q *reading) listSnapshots(off int64, yield func(*sys.Dirent) bool) error {
	for at, name := range []string{".", ".."} {
		e := sys.Dirent{Ino: q.id.Ino, Off: int64(at) + afterDot, Type: unix.DT_DIR, Name: []byte(name)}
		if off < e.Off && !yield(&e) {
			return nil
		}
	}
	for _, snap := range q.r.v.Snapshots() {
		at := max(snap.Created.UnixNano(), afterDotDot+1)
		if at <= off {
			continue
		}
		o, err := q.r.s.snapshot(snap.Name)
		if err == nil {
			err = o.stat(q.id, &q.inode)
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if !yield(&sys.Dirent{Ino: o.ino(q.id.Ino), Off: at, Type: unix.DT_DIR, Name: []byte(snap.Name)}) {
			return nil
		}
	}
	return nil
}

// afterSnapshotDir is the position behind SnapshotDir where the root lists it, which is before all else. No
// filesystem gives it to a name: ext4 keeps the last 2^32 for the end, and the others count from 0.
const afterSnapshotDir = math.MaxInt64 - 5

// listSnapshotDir lists SnapshotDir itself, unless the root really has such a name, and gives the position to go
// on from. more is false when there is no room.
func (q *reading) listSnapshotDir(off *int64, yield func(*sys.Dirent) bool) (more bool, err error) {
	if *off == afterSnapshotDir {
		*off = 0
		return true, nil
	}
	if *off != 0 {
		return true, nil
	}
	err = q.tree.Lookup(q.id, volume.SnapshotDir, &q.inode)
	if err != unix.ENOENT {
		return err == nil, err
	}
	return yield(&sys.Dirent{
		Ino: snapshotsIno(q.id), Off: afterSnapshotDir, Type: unix.DT_DIR, Name: []byte(volume.SnapshotDir),
	}), nil
}

// disguise gives attributes of the volume the form in which a node of a snapshot has them.
func (n *node) disguise(st *unix.Statx_t) {
	if n.of == nil {
		return
	}
	st.Ino = n.of.ino(st.Ino)
	if n.show == showSnapshotTop {
		setTimes(st, n.of.Created)
	}
}

func setTimes(st *unix.Statx_t, at time.Time) {
	stamp := unix.StatxTimestamp{Sec: at.Unix(), Nsec: uint32(at.Nanosecond())}
	st.Atime, st.Mtime, st.Ctime = stamp, stamp, stamp
}

// ino gives the inode number under which a listed inode is shown.
func (n *node) ino(ino uint64) uint64 {
	if n.of == nil {
		return ino
	}
	return n.of.ino(ino)
}

func (o *shown) ino(ino uint64) uint64 { return madeUp(ino, uint64(o.Epoch)) }

// snapshotsIno is the inode number of the directory of a directory's snapshots; no seal has the number 0.
func snapshotsIno(dir journal.Ident) uint64 { return madeUp(dir.Ino, 0) }

// madeUp makes an inode number. The highest bit keeps it apart from all that filesystems give; that two of n made
// up ones are the same has a probability of n^2/2^64.
func madeUp(ino, salt uint64) uint64 {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], ino)
	binary.LittleEndian.PutUint64(b[8:], salt)
	return xxhash.Sum64(b[:]) | 1<<63
}
