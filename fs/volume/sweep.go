package volume

import (
	"errors"
	"path"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
)

// A sweep finds what was changed around the mount while nobody watched: between the moment up to which everything
// is known (watched) and the one from which the kernel tells again. What was changed then has a change time in
// between, unless it was changed through the volume since; whatever is about to be is therefore looked at before
// (openCache.addNamed, meet).
//
// It errs on the safe side: what may have been changed is recorded, at the cost of sending it once more. After the
// death of the process its own last changes lie in that time too. They have a record in the epoch of that moment or
// a later one, and are left out where that explains the change time: it is not later than the process can have
// lived on. Somebody else's change within that moment, of an inode that was just being changed through the mount, is
// not told from it.
//
// A change time does not say what was done. What follows from it:
//
//   - A file whose directory has not changed was written, or its attributes were set: it is recorded as touched.
//   - What was made in that time, in a directory that has changed, is recorded as new.
//   - Of a directory that has changed, names may have gone, or come from elsewhere with all that is below. The
//     volume has no list of the names that were there: names are in doubt (Volume.NamesInDoubt).
type sweep struct {
	a            *around
	known        watched
	since, until journal.Time
	died         bool // since is not the end of an orderly stop

	ours   map[journal.Ident]struct{} // what the process before explains
	doubts bool                       // names may have gone, or come with all that is below
	seen   int64
	worked time.Time // since when without a rest

	mu  sync.Mutex
	met map[journal.Ident]bool // what was changed in that time, before it was changed through the volume: whether it was recorded
}

const (
	// aftermath is how long after its last mark in the file of watched a process that died can have made changes:
	// some times as long as its looks are apart, since they may be late.
	aftermath = 500 * time.Millisecond
	// sweepStep is how many inodes are looked at between two rests, each as long as the work before it.
	sweepStep = 512
)

// expect makes the sweep that will find what was changed between two moments, so that nothing escapes it from now
// on. It takes the place of one that is still under way.
func (a *around) expect(known watched, until journal.Time, died bool) error {
	s := &sweep{a: a, known: known, since: known.until, until: until, died: died, met: map[journal.Ident]bool{}}
	if earlier(until, known.until) {
		a.v.log.Warn("the clock was put back: changes around the mount cannot be told by their time")
		if err := a.doubt(); err != nil {
			return err
		}
	}
	a.mu.Lock()
	a.status.Sweeping, a.status.Seen = true, 0
	a.mu.Unlock()
	if old := a.current.Swap(s); old != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		old.mu.Lock()
		defer old.mu.Unlock()
		for id := range old.met {
			s.met[id] = false
		}
	}
	return nil
}

// over reports whether the sweep is to end before its time.
func (s *sweep) over() bool { return s.a.stopping() || s.a.current.Load() != s }

// explain leaves out what the process before did, if it died.
func (s *sweep) explain() (err error) {
	if s.died && s.ours == nil {
		s.ours, err = s.a.v.explained(s.known)
	}
	return err
}

// explained gives the inodes that the process before changed so shortly before its death that a sweep would find
// them.
func (v *Volume) explained(known watched) (map[journal.Ident]struct{}, error) {
	ours := map[journal.Ident]struct{}{}
	upto, err := v.journal.Seal(false)
	if err != nil {
		return nil, err
	}
	changes, err := v.journal.Changes(max(known.epoch, v.journal.Forgotten()+1)-1, upto)
	if err != nil {
		return nil, err
	}
	t := time.Unix(known.until.Sec, int64(known.until.Nsec)).Add(aftermath)
	last := journal.Time{Sec: t.Unix(), Nsec: uint32(t.Nanosecond())}
	explains := func(id journal.Ident) {
		fd, err := v.backing.OpenIdent(id, unix.O_PATH)
		if err != nil {
			return // it is gone, or will be found to be unreadable
		}
		defer sys.Close(fd)
		var st unix.Statx_t
		if err := sys.Stat(fd, "", &st); err == nil && !earlier(last, sys.Stamp(st.Ctime)) {
			ours[id] = struct{}{}
		}
	}
	return ours, errors.Join(changes.Inodes(func(c journal.InodeChange) error {
		explains(c.Ident)
		return nil
	}), changes.Names(func(c journal.NameChange) error { // a file that is renamed has no other record
		if !c.Was.IsZero() && c.Was != journal.Unknown {
			explains(c.Was)
		}
		return nil
	}))
}

// sweeping reports whether a sweep is under way.
func (a *around) sweeping() bool { return a.current.Load() != nil }

// meet is told of an inode that is about to be used through the volume for the first time.
func (a *around) meet(id journal.Ident, st *unix.Statx_t) {
	for {
		s := a.current.Load()
		if s == nil || !s.within(sys.Stamp(st.Ctime)) {
			return
		}
		s.mu.Lock()
		if _, ok := s.met[id]; !ok {
			s.met[id] = false
		}
		s.mu.Unlock()
		if a.current.Load() == s {
			return
		}
	}
}

// within reports whether a change time lies in the time that nobody watched. Times without nanoseconds are those of
// a filesystem that has none.
func (s *sweep) within(t journal.Time) bool {
	if t.Nsec == 0 {
		return t.Sec >= s.since.Sec && t.Sec <= s.until.Sec
	}
	return !earlier(t, s.since) && earlier(t, s.until)
}

// suspect reports whether an inode was changed in the time that nobody watched, and whether that is neither
// explained by the process before nor recorded yet.
func (s *sweep) suspect(id journal.Ident, st *unix.Statx_t) (changed, foreign bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	recorded, met := s.met[id]
	if !met && !s.within(sys.Stamp(st.Ctime)) {
		return false, false
	}
	s.met[id] = recorded
	_, ours := s.ours[id]
	return true, !ours && !recorded
}

// recorded notes that an inode was recorded.
func (s *sweep) recorded(id journal.Ident) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.met[id] = true
}

// run goes through the whole volume. It ends early when the volume is being closed; then the next start does it.
func (s *sweep) run() {
	a := s.a
	s.worked = time.Now()
	for {
		err := s.explain()
		if err == nil {
			err = s.walk()
		}
		if err == nil {
			err = s.rest()
		}
		if err == nil && s.doubts && !s.over() { // once: all names will be compared for it
			err = errors.Join(a.doubt(), a.touch(a.v.root, false))
		}
		a.tell()
		if s.over() {
			return
		}
		if err == nil {
			break
		}
		a.v.log.Warn("the sweep for changes around the mount begins again", "error", err)
		a.pause(idleTick)
	}
	if !a.current.CompareAndSwap(s, nil) {
		return
	}
	a.mu.Lock()
	a.status.Sweeping, a.status.Swept, a.status.Seen = false, time.Now(), s.seen
	a.mu.Unlock()
	a.v.log.Debug("swept", "inodes", s.seen)
}

// pause waits, unless the volume is being closed.
func (a *around) pause(d time.Duration) {
	select {
	case <-a.quit:
	case <-time.After(d):
	}
}

// swept is a directory that a sweep is to look into.
type swept struct {
	id      journal.Ident
	changed bool
}

// walk looks at every inode below the root, and the root.
func (s *sweep) walk() error {
	v := s.a.v
	root := Inode{}
	if err := v.Stat(v.root, &root); err != nil {
		return err
	}
	s.seen = 0
	s.count()
	changed, err := s.look(&root, swept{}, "")
	todo := []swept{{v.root, changed}}
	for len(todo) > 0 && err == nil && !s.over() {
		dir := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		err = v.eachEntry(dir.id, func(fd int, name string, st *unix.Statx_t) error {
			s.count()
			n := Inode{Stat: *st}
			if !n.IsDir() && !s.within(sys.Stamp(st.Ctime)) && !s.hasMet() {
				return nil
			}
			var err error
			if n.ID, err = v.backing.IdentAt(fd, name); isStale(err) || errors.Is(err, unix.EXDEV) {
				return nil
			} else if err != nil {
				return err
			}
			changed, err := s.look(&n, dir, name)
			if n.IsDir() {
				todo = append(todo, swept{n.ID, changed})
			}
			return err
		})
		if isStale(err) {
			err = nil
		}
	}
	return err
}

// count counts an inode, and rests now and then.
func (s *sweep) count() {
	if s.seen++; s.seen%sweepStep != 0 {
		return
	}
	s.a.mu.Lock()
	s.a.status.Seen = s.seen
	s.a.mu.Unlock()
	s.a.tell()
	s.a.pause(time.Since(s.worked))
	s.worked = time.Now()
}

func (s *sweep) hasMet() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.met) > 0
}

// look records an inode if somebody else may have changed it. It gives whether anybody has. dir is zero for the
// root.
func (s *sweep) look(n *Inode, dir swept, name string) (changed bool, err error) {
	changed, foreign := s.suspect(n.ID, &n.Stat)
	if !foreign {
		return changed, nil
	}
	if !s.a.v.ReadOnly() {
		err = s.record(n, dir, name)
	}
	if err == nil {
		s.recorded(n.ID)
		s.a.report("found by a sweep", path.Join("/", s.a.v.siteOf(dir.id).path, name))
	}
	return true, err
}

// record records an inode that was changed.
func (s *sweep) record(n *Inode, dir swept, name string) error {
	v := s.a.v
	// Of what has a record already views may know that it existed.
	_, known, err := v.journal.Within(0, v.journal.Epoch(), n.ID)
	if err != nil {
		return err
	}
	switch {
	case dir.changed && !known && n.madeSince(s.since) && (n.IsDir() || n.Stat.Nlink == 1):
		if err := s.a.touchName(dir.id, name, journal.Unknown); err != nil {
			return err
		}
		return s.a.noteNew(n.ID)
	case dir.changed && n.IsDir(): // it may come from elsewhere
		s.doubts = true
		return nil
	}
	return s.touch(n)
}

// touch records what is not new.
func (s *sweep) touch(n *Inode) error {
	s.doubts = s.doubts || n.IsDir()
	return s.a.touch(n.ID, n.Stat.Mode&unix.S_IFMT == unix.S_IFREG)
}

// rest records what was met and then changed through the volume in such a way that the walk did not come by.
func (s *sweep) rest() error {
	s.mu.Lock()
	var left []journal.Ident
	for id, recorded := range s.met {
		if _, ours := s.ours[id]; !recorded && !ours {
			left = append(left, id)
		}
	}
	s.mu.Unlock()
	for _, id := range left {
		var n Inode
		err := s.a.v.Stat(id, &n)
		if isStale(err) {
			continue
		}
		if err == nil {
			s.a.report("found by a sweep", "inode "+id.String())
			if !s.a.v.ReadOnly() {
				err = s.touch(&n)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
