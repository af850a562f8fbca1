package volume

import (
	"encoding/binary"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
)

// What is recorded of a change that was made around the mount. Nobody asked before it was made, so a record says
// less than others do, and never less than what has to be sent:
//
//   - Of content it is not known what has changed: the whole file counts as touched.
//   - A name is touched, with what it stood for where that is known, and else with journal.Unknown.
//   - An inode is new if it was made, or came from outside the volume. Whether one with several names is new or
//     had a name here before cannot be told; then names are in doubt.
//
// What is there now is kept for views, as with any change: they show what somebody else wrote, and from then on
// always the same.

// recordEvent records what the kernel has told of a directory, or two, in the volume.
func (a *around) recordEvent(e *sys.Event, from, to bool, now journal.Time) error {
	err := a.disturbed(e, from, to)
	if err == nil && e.What&(sys.Named|sys.Unnamed) != 0 {
		err = a.named(e)
	}
	if err == nil && e.What&sys.Moved != 0 {
		err = a.moved(e, from, to)
	}
	if err == nil && e.What&(sys.Modified|sys.Closed|sys.Attributes) != 0 {
		err = a.changed(e.Inode, e.What, now)
	}
	return err
}

// named records a name that was made or removed, or both.
func (a *around) named(e *sys.Event) error {
	was := journal.Ident{}
	if e.What&sys.Unnamed != 0 {
		was = a.left(e.Inode)
	}
	err := a.touchName(e.Dir, e.Name, was)
	if err == nil && e.What&sys.Named != 0 {
		return a.arrived(e.Inode, false)
	}
	if err == nil && was == e.Inode { // it has another name
		return a.touch(e.Inode, false)
	}
	return err
}

// left gives what a name that was removed is recorded to have stood for. What has no name left at all is let go.
func (a *around) left(id journal.Ident) journal.Ident {
	var n Inode
	if err := a.v.Stat(id, &n); err == nil && n.Stat.Nlink > 0 {
		return id
	}
	a.letGo(id)
	_ = a.inside(func() error {
		a.v.journal.NoteRemoved(id)
		return nil
	})
	return journal.Unknown
}

// letGo closes an inode that has lost its last name by somebody else's doing, unless a program has it open through the
// mount: then nothing else keeps its content.
func (a *around) letGo(id journal.Ident) {
	if a.v.open.gone(id) {
		_ = a.v.keep(id) // fails where it is closed by now
		a.v.open.forget(id)
	}
}

// moved records a rename, within the volume, into it or out of it.
func (a *around) moved(e *sys.Event, from, to bool) error {
	if from {
		was := journal.Unknown
		if to {
			was = e.Inode
		}
		if err := a.touchName(e.Dir, e.Name, was); err != nil {
			return err
		}
	}
	if !to {
		a.departed()
		return nil
	}
	if err := a.touchName(e.NewDir, e.NewName, journal.Unknown); err != nil { // something may have stood there
		return err
	}
	if from {
		return a.touch(e.Inode, false)
	}
	return a.arrived(e.Inode, true)
}

// departed forgets what was noted: what has left the volume is new when it comes back.
func (a *around) departed() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.born)
}

// arrived records an inode that has got a name in the volume. That it is new is certain of one that was made since the
// last look, of a directory, and of one that came from elsewhere and has no other name. Anything else may have been
// here under another name.
func (a *around) arrived(id journal.Ident, fromElsewhere bool) error {
	var n Inode
	err := a.v.Stat(id, &n)
	if isStale(err) || err == nil && n.Stat.Nlink == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	a.mu.Lock()
	_, known := a.born[id]
	a.mu.Unlock()
	if known {
		return a.touch(id, false)
	}
	if n.IsDir() || fromElsewhere && n.Stat.Nlink == 1 || n.madeSince(a.looked) {
		return a.found(id, n.IsDir())
	}
	return a.linked(id)
}

// linked records an inode that may be new, or have been here under another name.
func (a *around) linked(id journal.Ident) error {
	return errors.Join(a.doubt(time.Time{}), a.touch(id, false)) // a transfer that begins in between knows of the doubt
}

// madeSince reports whether an inode was made at a moment or later.
func (n *Inode) madeSince(t journal.Time) bool { return !earlier(sys.Stamp(n.Stat.Btime), t) }

// found records that an inode is new to the volume, and what is below it, but for what may have been here under
// another name. The names in a new directory are touched all the same: a seal may come in between.
func (a *around) found(id journal.Ident, dir bool) error {
	if err := a.noteNew(id); err != nil || !dir {
		return err
	}
	err := a.v.eachEntry(id, func(fd int, name string, st *unix.Statx_t) error {
		child, err := a.v.backing.IdentAt(fd, name)
		if isStale(err) || errors.Is(err, unix.EXDEV) {
			return nil
		}
		if err == nil {
			err = a.touchName(id, name, journal.Ident{})
		}
		a.mu.Lock()
		_, known := a.born[child]
		a.mu.Unlock()
		if err != nil || known {
			return err
		}
		n := Inode{ID: child, Stat: *st}
		if !n.IsDir() && n.Stat.Nlink > 1 && !n.madeSince(a.looked) {
			return a.linked(child)
		}
		return a.found(child, n.IsDir())
	})
	if isStale(err) {
		return nil
	}
	return err
}

// noteNew records that an inode is new to the volume.
func (a *around) noteNew(id journal.Ident) error {
	err := a.inside(func() error { return a.v.journal.NoteArrived(id) })
	a.mu.Lock()
	defer a.mu.Unlock()
	bounded(a.born)
	a.born[id] = struct{}{}
	a.untold.inode(id, true)
	return err
}

// bounded empties a map that has become too large.
func bounded[V any](m map[journal.Ident]V) {
	if len(m) >= maxNoted {
		clear(m)
	}
}

// eachEntry calls f for each name in a directory, with its attributes and the directory's descriptor.
func (v *Volume) eachEntry(dir journal.Ident, f func(fd int, name string, st *unix.Statx_t) error) error {
	fd, err := v.backing.OpenIdent(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOATIME)
	if err != nil {
		return err
	}
	defer sys.Close(fd)
	return eachName(fd, func(name string) error {
		if v.hidden(dir, name) {
			return nil
		}
		var st unix.Statx_t
		err := sys.Stat(fd, name, &st)
		if isStale(err) {
			return nil
		}
		if err != nil {
			return err
		}
		return f(fd, name, &st)
	})
}

// touchName records that a name was changed.
func (a *around) touchName(dir journal.Ident, name string, was journal.Ident) error {
	d, err := a.v.open.get(dir, reachDir)
	if isStale(err) { // what has become of the directory is told too
		return nil
	}
	if err != nil {
		return err
	}
	defer a.v.open.put(d)
	err = a.inside(func() error {
		if err := a.v.journal.TouchMeta(dir, d); err != nil {
			return err
		}
		return a.v.journal.TouchName(dir, name, was)
	})
	a.mu.Lock()
	defer a.mu.Unlock()
	a.untold.name(dir, name)
	return err
}

// written reports whether a file that was closed may have been written through a map: it was changed since its
// content was last recorded.
func (a *around) written(id journal.Ident) bool {
	var n Inode
	if a.v.Stat(id, &n) != nil {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	since, ok := a.sent[id]
	if !ok {
		since = a.began
	}
	return !earlier(sys.Stamp(n.Stat.Ctime), since)
}

// changed records a change of attributes, or of content too.
func (a *around) changed(id journal.Ident, what sys.Change, now journal.Time) error {
	var n Inode
	err := a.v.Stat(id, &n)
	if isStale(err) || err == nil && n.Stat.Nlink == 0 {
		a.letGo(id)
		return nil
	}
	if err != nil {
		return err
	}
	content := what&(sys.Modified|sys.Closed) != 0 && n.Stat.Mode&unix.S_IFMT == unix.S_IFREG
	if content {
		a.mu.Lock()
		bounded(a.sent)
		a.sent[id] = now
		a.mu.Unlock()
	}
	return a.touch(id, content)
}

// touch records that an inode was changed, and perhaps all of its content.
func (a *around) touch(id journal.Ident, content bool) error {
	err := a.recordInode(id, content)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.untold.inode(id, content)
	return err
}

// recordInode is touch without the mount. Content that has to be kept is copied piece by piece, so that no seal waits
// for long.
func (a *around) recordInode(id journal.Ident, content bool) error {
	v, want := a.v, reachPath
	if content {
		want = reachRead
	}
	o, err := v.open.get(id, want)
	if isStale(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer v.open.put(o)
	v.open.suspect(id)
	if !content {
		return a.inside(func() error { return v.journal.TouchMeta(id, o) })
	}
	if err := v.journal.Announce(id); err != nil {
		return err
	}
	for x := (journal.Extent{End: maxCopy}); ; x = (journal.Extent{Off: x.End, End: x.End + maxCopy}) {
		last := false
		err := a.inside(func() error {
			var n Inode
			if err := v.statOpen(o, &n); err != nil {
				return err
			}
			if last = !v.journal.Holding() || x.End >= int64(n.Stat.Size); last {
				x.End = journal.MaxOffset
			}
			return v.journal.TouchData(id, x, o)
		})
		if err != nil || last {
			return err
		}
	}
}

// inside records what somebody else has done, between the journal's Enter and Leave. From then on the records of this
// epoch do not say any more that it was this process that changed something: the file of watched has that first.
func (a *around) inside(record func() error) error {
	return a.v.inside(func() error {
		if err := a.distrust(a.v.journal.Epoch()); err != nil {
			return err
		}
		return record()
	})
}

// distrust notes that an epoch has, or will have, records of what somebody else did.
func (a *around) distrust(epoch journal.Epoch) error {
	a.mu.Lock()
	before := a.foreign
	a.foreignAt = time.Now()
	a.mu.Unlock()
	if before >= epoch {
		return nil
	}
	err := a.save(func(*watched) { a.foreign = epoch })
	if err != nil { // the next record tries again
		a.mu.Lock()
		defer a.mu.Unlock()
		a.foreign = before
	}
	return err
}

// doubts is what has to be compared since the journal does not have it.
type doubts struct {
	count uint64    // how often something came into doubt
	since time.Time // what was changed from then on has content in doubt; zero: none
}

func (d doubts) encode() []byte {
	b := binary.AppendUvarint(nil, d.count)
	if !d.since.IsZero() {
		b = binary.AppendVarint(b, d.since.UnixNano())
	}
	return b
}

func decodeDoubts(b []byte) (d doubts) {
	n := 0
	d.count, n = binary.Uvarint(b)
	if n > 0 && n < len(b) {
		nanos, _ := binary.Varint(b[n:])
		d.since = time.Unix(0, nanos)
	}
	return d
}

// doubt notes that names were changed, and not how; and content from a moment on, unless that is zero. It comes
// before a record, so that there is something to send.
func (a *around) doubt(since time.Time) error {
	return a.changeDoubts(func(d *doubts) {
		d.count++
		if d.since.IsZero() || !since.IsZero() && since.Before(d.since) {
			d.since = since
		}
	})
}

func (a *around) changeDoubts(how func(*doubts)) error {
	a.doubting.Lock()
	defer a.doubting.Unlock()
	how(&a.doubts)
	a.mu.Lock()
	a.status.InDoubt = a.doubts.count
	a.mu.Unlock()
	return a.v.journal.SetState(doubtKey, a.doubts.encode())
}

// pass goes on without recording what cannot be read. The comparison that it brings about will find it, or fail at it.
func (a *around) pass(what string, since journal.Time, err error) error {
	if a.v.journal.Failed() != nil {
		return err
	}
	a.v.log.Error("what was changed around the mount cannot be read: all is compared instead", "file", what, "error", err)
	return a.doubt(clockTime(since))
}

// NamesInDoubt is not zero when names were changed around the mount and the journal does not say which: what the
// volume's records make of a copy may have names that are not here any more. Only a comparison of all names settles
// that, and of the content of what was changed since a moment; zero: of none. NamesSettled says that it was made,
// with the number from before it: what came into doubt since then stays.
func (v *Volume) NamesInDoubt() (uint64, time.Time) {
	a := &v.around
	a.doubting.Lock()
	defer a.doubting.Unlock()
	return a.doubts.count, a.doubts.since
}

// NamesSettled is for NamesInDoubt.
func (v *Volume) NamesSettled(n uint64) error {
	return v.around.changeDoubts(func(d *doubts) {
		if d.count -= min(n, d.count); d.count == 0 {
			d.since = time.Time{}
		}
	})
}

// foreignDifferences are what the mount has to be told of.
type foreignDifferences struct {
	inodes map[journal.Ident]bool // whether content may differ
	names  map[place]struct{}
}

func (d *foreignDifferences) inode(id journal.Ident, content bool) {
	if d.inodes == nil {
		d.inodes = map[journal.Ident]bool{}
	}
	d.inodes[id] = d.inodes[id] || content
}

func (d *foreignDifferences) name(dir journal.Ident, name string) {
	if d.names == nil {
		d.names = map[place]struct{}{}
	}
	d.names[place{dir, name}] = struct{}{}
	d.inode(dir, false)
}

func (d *foreignDifferences) add(more foreignDifferences) {
	for id, content := range more.inodes {
		d.inode(id, content)
	}
	for at := range more.names {
		d.name(at.dir, at.name)
	}
}

// Inodes is Differences'.
func (d foreignDifferences) Inodes(yield func(journal.Ident, bool) error) error {
	for id, content := range d.inodes {
		if err := yield(id, content); err != nil {
			return err
		}
	}
	return nil
}

// Names is Differences'.
func (d foreignDifferences) Names(yield func(journal.Ident, string) error) error {
	for at := range d.names {
		if err := yield(at.dir, at.name); err != nil {
			return err
		}
	}
	return nil
}
