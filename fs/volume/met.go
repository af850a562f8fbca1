package volume

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
)

// What a sweep knows of single inodes: which the process before explains, which were changed in a gap and are used,
// or changed once more, before the walk comes by, and which are recorded.

// explain finds out what the process before did, if it died.
func (s *sweep) explain() error {
	if s.ours != nil {
		return nil
	}
	ours, err := s.a.v.explained(s.gaps)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ours = ours
	for id := range s.met {
		if _, ok := ours[id]; !ok {
			return nil
		}
	}
	return s.keep(false)
}

// keep has the file of watched say whether something was met. mu is held.
func (s *sweep) keep(met bool) error {
	if s.kept == met || s.a.current.Load() != s { // another one has taken over what it says
		return nil
	}
	if err := s.a.save(func(known *watched) { known.met = met }); err != nil {
		return err
	}
	s.kept = met
	return nil
}

// explained gives the inodes that an earlier process changed so shortly before a gap, or in it, that a sweep would
// find them.
func (v *Volume) explained(gaps []gap) (map[journal.Ident]struct{}, error) {
	ours := map[journal.Ident]struct{}{}
	if !slices.ContainsFunc(gaps, func(g gap) bool { return g.epoch != 0 }) {
		return ours, nil
	}
	upto, err := v.journal.Seal(false)
	if err != nil {
		return nil, err
	}
	for _, g := range gaps {
		if g.epoch == 0 {
			continue
		}
		if err := v.explainedIn(g, upto, ours); err != nil {
			return nil, err
		}
	}
	return ours, nil
}

// explainedIn is explained for one gap: only records that began with its process count.
func (v *Volume) explainedIn(g gap, upto journal.Epoch, ours map[journal.Ident]struct{}) error {
	changes, err := v.journal.Changes(max(g.epoch, v.journal.Forgotten()+1)-1, upto)
	if err != nil {
		return err
	}
	explains := func(id journal.Ident) {
		fd, err := v.backing.OpenIdent(id, unix.O_PATH)
		if err != nil {
			return // it is gone, or will be found to be unreadable
		}
		defer sys.Close(fd)
		var st unix.Statx_t
		if sys.Stat(fd, "", &st) != nil {
			return
		}
		if at := sys.Stamp(st.Ctime); g.within(at) && !earlier(g.lived, at) {
			ours[id] = struct{}{}
		}
	}
	return errors.Join(changes.Inodes(func(c journal.InodeChange) error {
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

// moving is told of a directory before it is moved through the volume.
func (a *around) moving(dir journal.Ident) {
	if s := a.current.Load(); s != nil {
		s.went(dir, false)
	}
}

// meet is told of an inode that is about to be used through the volume for the first time.
func (a *around) meet(id journal.Ident, st *unix.Statx_t) {
	for {
		s := a.current.Load()
		if s == nil || !s.within(sys.Stamp(st.Ctime)) {
			return
		}
		if err := s.meet(id); err != nil {
			a.v.log.Warn("what was changed around the mount would not be known after the death of the process", "error", err)
		}
		if a.current.Load() == s {
			return
		}
	}
}

func (s *sweep) meet(id journal.Ident) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	recorded := s.met[id]
	s.met[id] = recorded // the walk may have met it, and not have recorded it yet
	if _, ours := s.ours[id]; ours || recorded {
		return nil
	}
	return s.keep(true)
}

// within reports whether a change time lies in a gap.
func (s *sweep) within(t journal.Time) bool {
	return slices.ContainsFunc(s.gaps, func(g gap) bool { return g.within(t) })
}

// suspect reports whether an inode was changed in a gap, and whether that is neither
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

// disturbed has a sweep that is under way know of what somebody else has changed by now.
func (a *around) disturbed(e *sys.Event, from, to bool) error {
	s := a.current.Load()
	if s == nil {
		return nil
	}
	var err error
	if from {
		err = s.disturbed(e.Dir)
	}
	if err == nil && to {
		err = s.disturbed(e.NewDir)
	}
	if err == nil && (to || e.What&sys.Moved == 0) {
		err = s.disturbed(e.Inode)
	}
	if from && to {
		s.went(e.Inode, true)
	}
	return err
}

// disturbed records an inode that somebody else has changed since the gaps. Whether it was changed in one of them,
// too, its change time does not say any more.
func (s *sweep) disturbed(id journal.Ident) error {
	if id.IsZero() || s.isRecorded(id) {
		return nil
	}
	var n Inode
	err := s.a.v.Stat(id, &n)
	if isStale(err) || err == nil && (n.Stat.Nlink == 0 || n.madeSince(s.gaps[len(s.gaps)-1].until)) {
		return nil
	}
	if err == nil {
		err = s.record(&n, swept{})
	}
	if err == nil {
		s.recorded(id)
	}
	return err
}

func (s *sweep) isRecorded(id journal.Ident) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.met[id]
}
