package journal

import (
	"fmt"
	"maps"
	"slices"

	"tandemfs/journal/crashpoint"
)

// Seal ends the current epoch N, starts N+1 and returns N. It waits for the operations between Enter and
// Leave and keeps new ones out meanwhile; apart from that it costs one record in memory, whatever the epoch
// holds. An epoch without records is sealed too. With hold, N is held (see Hold) before any operation can
// enter.
func (j *Journal) Seal(hold bool) (Epoch, error) {
	if err := j.activity.reserve(j.Epoch()); err != nil {
		return 0, err
	}
	j.gate.Lock()
	defer j.gate.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	n := j.state.epoch
	if err := j.control(record{kind: recordSealed, epoch: n, hold: hold}); err != nil {
		return 0, err
	}
	crashpoint.Here("journal/sealed")
	return n, nil
}

// Hold says that one more needs the view of seal n: the before images of later epochs are kept until each
// has called Release. It fails with ErrNotHeld unless n is held already: what a seal needs is kept from the
// moment of the seal or not at all.
func (j *Journal) Hold(n Epoch) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.checkView(n); err != nil {
		return err
	}
	j.state.held[n]++
	return nil
}

// Release undoes one Hold. The last one frees the before images that nothing else needs, in memory at once
// and in the store soon.
func (j *Journal) Release(n Epoch) {
	j.mu.Lock()
	defer j.mu.Unlock()
	r := record{kind: recordReleased, epoch: n}
	for ready := false; !ready; { // whoever waits for room looks again: Hold may have come meanwhile
		switch held := j.state.held[n]; {
		case held == 0:
			return
		case held > 1:
			j.state.held[n]--
			return
		}
		var err error
		if ready, err = j.makeRoom(&r, 0); ready {
			err = j.write(&r)
		}
		if err != nil {
			// The record is missing, so after a restart the seal is held again, and the user releases it then.
			j.options.Logger.Warn("journal: release not recorded", "epoch", n, "error", err)
			j.apply(&r)
			ready = true
		}
	}
	crashpoint.Here("journal/released")
	j.dropUseless()
}

// Held lists the held seals, ascending. Holds survive a restart, each then with one holder; the user
// releases what it does not want.
func (j *Journal) Held() []Epoch {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Sorted(maps.Keys(j.state.held))
}

// checkView fails unless the journal can tell what was at seal n. mu is held.
func (j *Journal) checkView(n Epoch) error {
	if n >= j.state.epoch {
		return fmt.Errorf("%w: %d", ErrNotSealed, n)
	}
	if j.state.held[n] == 0 {
		return fmt.Errorf("%w: %d", ErrNotHeld, n)
	}
	return nil
}

// Forget says that nobody needs the records of epochs up to and including upto any more (A4), and that changes
// will be asked for only from upto on, from the further bases, and from held seals: what happened between two of
// these is one thing from now on. The records go from memory at once and from the store in the background; those
// that held seals need for their before images stay until these are released. It fails with ErrNotSealed when
// upto is not sealed.
func (j *Journal) Forget(upto Epoch, bases ...Epoch) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if upto >= j.state.epoch {
		return fmt.Errorf("%w: %d", ErrNotSealed, upto)
	}
	j.state.bases = append(bases[:len(bases):len(bases)], upto)
	if upto <= j.state.forgotten {
		j.keeper.wake() // epochs may have become one by the bases alone, as after Open
		return nil
	}
	if err := j.control(record{kind: recordForgot, epoch: upto}); err != nil {
		return err
	}
	j.dropUseless()
	return nil
}

// Forgotten is the highest forgotten epoch; Changes answers from there on.
func (j *Journal) Forgotten() Epoch {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.state.forgotten
}

// Holding reports whether any seal is held, so that before images are kept.
func (j *Journal) Holding() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.state.held) > 0
}
