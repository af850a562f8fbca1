package volume

import (
	"errors"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
	"tandemfs/journal/crashpoint"
)

// reclaimer frees in the background what was kept for views that nobody needs any more.
//
// With the seals a < n < c held, what was kept in the epochs after n up to c serves both a and n: the view of
// a finds there what was not touched between a and n. When n goes, the part that a finds earlier is of no
// use; when the oldest seal goes, all that was kept up to the next one is.
type reclaimer struct {
	mu    sync.Mutex
	seals map[journal.Epoch]struct{} // released, and not dealt with

	wake chan struct{}
	quit chan struct{}
	done sync.WaitGroup
}

func (r *reclaimer) start(v *Volume) {
	r.wake, r.quit = make(chan struct{}, 1), make(chan struct{})
	r.seals = map[journal.Epoch]struct{}{}
	r.nudge()
	r.done.Go(func() {
		for {
			select {
			case <-r.quit:
				return
			case <-r.wake:
			}
			if err := v.reclaim(); err != nil {
				v.log.Warn("what old snapshots held is not freed yet", "error", err)
			}
		}
	})
}

// stop ends it, if it was started.
func (r *reclaimer) stop() {
	if r.quit != nil {
		close(r.quit)
		r.done.Wait()
		r.quit = nil
	}
}

func (r *reclaimer) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// released says that a seal is not held any more.
func (r *reclaimer) released(n journal.Epoch) {
	r.mu.Lock()
	r.seals[n] = struct{}{}
	r.mu.Unlock()
	r.nudge()
}

// take gives the released seals, and forgets them.
func (r *reclaimer) take() map[journal.Epoch]struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	seals := r.seals
	r.seals = map[journal.Epoch]struct{}{}
	return seals
}

// again keeps a released seal for the next time.
func (r *reclaimer) again(n journal.Epoch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seals[n] = struct{}{}
}

// sealed says that an epoch is over and its seal held: what was left for that time can be freed.
func (r *reclaimer) sealed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.seals) > 0 {
		r.nudge()
	}
}

// reclaim frees what can be freed now. Epochs that are not over are left for a later time: what is kept in
// them is being written.
func (v *Volume) reclaim() error {
	released := v.reclaimer.take()
	current := v.journal.Epoch() // the epochs before it are over
	held := v.heldBefore(current)
	epochs, err := v.before.epochs()
	if err != nil {
		return err
	}
	var errs error
	for _, e := range epochs {
		i, _ := slices.BinarySearch(held, e) // held[i-1] < e: the newest seal that it serves
		switch {
		case e > current:
		case i == 0:
			err = v.freeAll(e, current)
		case e < current:
			err = v.freeUseless(e, held[i-1], released)
		}
		errs, err = errors.Join(errs, err), nil
	}
	for n := range released {
		if len(held) > 0 && held[0] < n && n > held[len(held)-1] { // the epochs after it are not all over
			v.reclaimer.again(n)
		}
	}
	if !slices.Equal(held, v.journal.Held()) { // sealed may have been called before again
		v.reclaimer.sealed()
	}
	return errs
}

// heldBefore lists the held seals before an epoch, ascending.
func (v *Volume) heldBefore(n journal.Epoch) []journal.Epoch {
	held := v.journal.Held()
	i, _ := slices.BinarySearch(held, n)
	return held[:i]
}

// freeAll frees all that was kept in an epoch that serves no view.
func (v *Volume) freeAll(e, current journal.Epoch) error {
	err := v.before.entries(e, func(dir int, _ string, prefix byte, id journal.Ident) error {
		crashpoint.Here("volume/reclaim-all")
		if prefix == contentPrefix {
			return v.before.dropContent(dir, e, id)
		}
		return v.forgetRemoved(dir, id)
	})
	if err != nil || e >= current {
		return err
	}
	return v.before.dropDir(e)
}

// forgetRemoved removes a removed inode for good; one that the kernel still refers to lives until it forgets.
func (v *Volume) forgetRemoved(dir int, id journal.Ident) error {
	if err := v.keep(id); err != nil && err != unix.ESTALE {
		return err
	}
	err := v.before.dropRemoved(dir, id)
	v.open.forget(id)
	return err
}

// freeUseless frees what was kept in an epoch that serves the view of seal a, as far as that finds it in an
// earlier epoch. Only seals that were released between the two can have made something useless.
func (v *Volume) freeUseless(e, a journal.Epoch, released map[journal.Epoch]struct{}) error {
	n := journal.Epoch(0)
	for r := range released {
		if a < r && r < e {
			n = max(n, r)
		}
	}
	if n == 0 {
		return nil
	}
	err := v.before.entries(e, func(dir int, _ string, prefix byte, id journal.Ident) error {
		crashpoint.Here("volume/reclaim-useless")
		if prefix == removedPrefix {
			needed, err := v.journal.Needed(id, e)
			if err == nil && !needed {
				err = v.forgetRemoved(dir, id)
			}
			return err
		}
		earlier, ok, err := v.journal.Within(a, e-1, id)
		switch {
		case err != nil || !ok:
			return err
		case earlier.What&journal.Created != 0:
			return v.before.dropContent(dir, e, id)
		}
		return v.freeContent(dir, e, id, earlier.Extents)
	})
	if err != nil {
		return err
	}
	return v.before.dropDir(e)
}

// freeContent frees those parts of a copy that are found earlier.
func (v *Volume) freeContent(dir int, e journal.Epoch, id journal.Ident, earlier journal.Extents) error {
	own, ok, err := v.journal.Within(e-1, e, id)
	if err != nil || !ok {
		return err
	}
	if left := journal.Extents(own.Extents).Subtract(earlier); len(left) == 0 {
		return v.before.dropContent(dir, e, id)
	}
	for _, x := range earlier {
		if err := v.before.punch(e, id, x); err != nil {
			return err
		}
	}
	return nil
}

// punch frees a part of a copy.
func (k *kept) punch(n journal.Epoch, id journal.Ident, x journal.Extent) error {
	c, err := k.open(n, id, false)
	if err != nil {
		return ignoreAbsent(err)
	}
	defer k.done(c)
	var st unix.Statx_t
	if err := sys.Stat(c.fd, "", &st); err != nil {
		return err
	}
	if x.End = min(x.End, int64(st.Size)); x.Off >= x.End {
		return nil
	}
	return sys.PunchHole(c.fd, x)
}
