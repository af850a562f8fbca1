package volume

import (
	"errors"
	"maps"
	"path"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
)

// A sweep finds what was changed around the mount while nobody watched: in the gaps between the moments up to which
// everything is known (watched) and those from which the kernel tells again. What was changed then has a change time
// in a gap, unless it was changed through the volume since; whatever is about to be is therefore looked at before
// (openCache.addNamed, meet). What somebody else changes once more is recorded when the kernel tells of it, as if its
// change time had been in a gap (disturbed); so the sweep ends only after all is read that was told during its walk.
//
// It errs on the safe side: what may have been changed is recorded, at the cost of sending it once more. After the
// death of the process its own last changes lie in a gap too. They have a record in the epoch of that moment or a
// later one, and are left out where that explains the change time: it is not later than the process can have lived
// on, and nobody else's changes were recorded in those epochs. Somebody else's change within that moment, of an inode
// that was changed through the mount in the same epoch, is not told from it.
//
// A change time does not say what was done. What follows from it:
//
//   - A file was written, or its attributes were set: it is recorded as touched, with all its content.
//   - In a directory names were made, were taken away, or came from elsewhere with all that is below. The volume has
//     no list of the names that were there: names are in doubt (Volume.NamesInDoubt), and all of them are compared.
//     Nothing is recorded as new, since that would take it from the views of earlier seals, which may know it.
//
// A sweep that does not come to its end leaves its gaps to the next one. What it had met by then may have another
// change time since, so then the content of all that was changed since the gap began is in doubt as well.
type sweep struct {
	a    *around
	gaps []gap

	seen   int64
	worked time.Time // since when without a rest

	doubting sync.Mutex
	doubts   bool // names are in doubt, which is known

	mu   sync.Mutex
	ours map[journal.Ident]struct{} // what the process before explains; nil: not known yet
	met  map[journal.Ident]bool     // what was changed in a gap, before it was changed through the volume: whether it was recorded
	kept bool                       // the file of watched says that something was met
	// moved are the directories that went elsewhere since the walk began, which may have missed what is below them.
	moved  map[journal.Ident]struct{}
	others bool // somebody else moved some of them
}

const (
	// aftermath is how long after its last mark in the file of watched a process that died can have made changes:
	// some times as long as its looks are apart, since they may be late.
	aftermath = 500 * time.Millisecond
	// sweepStep is how many inodes are looked at between two rests, each as long as the work before it.
	sweepStep = 512
)

// expect makes the sweep that will find what was changed in the gaps, so that nothing escapes it from now on. It
// takes the place of one that is still under way.
func (a *around) expect(w watched) error {
	s := &sweep{a: a, gaps: w.gaps, met: map[journal.Ident]bool{}, moved: map[journal.Ident]struct{}{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := a.current.Swap(s); old != nil {
		old.mu.Lock()
		defer old.mu.Unlock()
		for id := range old.met {
			s.met[id] = false
		}
		s.kept = old.kept
	}
	a.mu.Lock()
	a.status.Sweeping, a.status.Seen = true, 0
	a.mu.Unlock()
	return a.save(func(known *watched) {
		*known = w
		known.met = s.kept
	})
}

// over reports whether the sweep is to end before its time.
func (s *sweep) over() bool { return s.a.stopping() || s.a.current.Load() != s }

// run goes through the whole volume. It ends early when the volume is being closed; then the next start does it.
func (s *sweep) run() {
	a := s.a
	s.worked = time.Now()
	for {
		err := s.explain()
		if err == nil {
			err = s.whole()
		}
		if err == nil {
			err = s.rest()
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
	a.v.log.Debug("swept", "inodes", s.seen)
	a.failed(s.end())
}

// end notes that there are no gaps any more, unless another sweep has taken over.
func (s *sweep) end() error {
	a := s.a
	return a.save(func(known *watched) {
		if a.current.CompareAndSwap(s, nil) {
			known.gaps, known.met = nil, false
			a.status.Sweeping, a.status.Swept, a.status.Seen = false, time.Now(), s.seen
		}
	})
}

// await waits until all is recorded that the kernel has told by now: until two more looks at the watch have ended,
// of which one may be under way.
func (s *sweep) await() {
	if s.a.watch == nil {
		return
	}
	for last := s.a.looks.Load() + 2; s.a.looks.Load() < last && !s.over(); {
		s.a.soon()
		s.a.pause(busyTick)
	}
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

// whole looks at every inode below the root, and the root. A directory that is moved during the walk is looked into
// by itself. Where that was somebody else it is told only afterwards.
func (s *sweep) whole() error {
	s.seen = 0
	for todo := []journal.Ident{s.a.v.root}; len(todo) > 0 && !s.over(); {
		for _, id := range todo {
			err := s.walk(id)
			if journal.Unreadable(err) {
				err = s.pass(id, err)
			}
			if err != nil {
				return err
			}
		}
		if todo = s.takeMoved(); len(todo) > 0 {
			continue
		}
		s.await()
		if s.movedByOthers() {
			todo = s.takeMoved()
		}
	}
	return nil
}

// went is told of a directory that is moved within the volume.
func (s *sweep) went(id journal.Ident, others bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moved[id] = struct{}{}
	s.others = s.others || others
}

func (s *sweep) movedByOthers() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.others
}

// takeMoved gives the directories that were moved since the last call.
func (s *sweep) takeMoved() []journal.Ident {
	s.mu.Lock()
	defer s.mu.Unlock()
	moved := slices.Collect(maps.Keys(s.moved))
	clear(s.moved)
	s.others = false
	return moved
}

// walk looks at a directory, and every inode below it.
func (s *sweep) walk(from journal.Ident) error {
	v := s.a.v
	at, err := v.siteOf(from)
	if err != nil || !at.inside { // any more
		return err
	}
	top := Inode{}
	if err := v.Stat(from, &top); err != nil {
		if isStale(err) {
			return nil
		}
		return err
	}
	s.count()
	changed, err := s.look(&top, swept{}, at.path)
	todo := []swept{{from, changed}}
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
			if journal.Unreadable(err) {
				err = s.pass(n.ID, err)
			}
			if n.IsDir() {
				todo = append(todo, swept{n.ID, changed})
			}
			return err
		})
		if isStale(err) {
			err = nil
		}
		if journal.Unreadable(err) {
			err = s.pass(dir.id, err)
		}
	}
	return err
}

// pass goes on without what cannot be read.
func (s *sweep) pass(id journal.Ident, err error) error {
	return s.a.pass("inode "+id.String(), s.gaps[0].since, err)
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
		err = s.record(n, dir)
	}
	if err == nil {
		s.recorded(n.ID)
		at, _ := s.a.v.siteOf(dir.id) // without it the name has to do
		s.a.report("found by a sweep", path.Join("/", at.path, name))
	}
	return true, err
}

// record records an inode that was changed. The doubt comes first, so that no transfer goes without it.
func (s *sweep) record(n *Inode, dir swept) error {
	if dir.changed || n.IsDir() {
		if err := s.doubt(); err != nil {
			return err
		}
	}
	return s.a.touch(n.ID, n.Stat.Mode&unix.S_IFMT == unix.S_IFREG)
}

// doubt brings names into doubt, once: all of them will be compared for it.
func (s *sweep) doubt() error {
	s.doubting.Lock()
	defer s.doubting.Unlock()
	if s.doubts {
		return nil
	}
	err := errors.Join(s.a.doubt(time.Time{}), s.a.touch(s.a.v.root, false))
	s.doubts = err == nil
	return err
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
				err = s.record(&n, swept{})
			}
		}
		if journal.Unreadable(err) {
			err = s.pass(id, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
