package volume

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"tandemfs/journal"
	"tandemfs/journal/crashpoint"
)

// While a transfer or a restore changes a volume its readers see the view of one seal, the published one: it
// is held until another takes its place or the volume is shown as it is again. Which one it is survives the
// process. Nobody but the one who publishes changes the volume meanwhile.

// publishedKey is where the journal keeps the published seal, and after it the one that is to be published next, if
// there is one: both are uvarints. After a power cut the journal may know that the former is held no longer, and not
// that the latter is published.
const publishedKey = "volume/published"

// Freeze seals the volume, which must be read-only, and publishes the seal, unless one is published already:
// readers go on seeing what they see.
func (v *Volume) Freeze() error {
	if v.published.Load() != nil {
		return nil
	}
	n, err := v.journal.Seal(true)
	if err != nil {
		return err
	}
	return v.publishOrClose(v.newView(n))
}

// Publish makes readers see a seal that is held, at once, in place of the one that they see; one that is not
// newer changes nothing. Where it fails they go on seeing what they saw, and it can be called again.
func (v *Volume) Publish(n journal.Epoch) error {
	if n <= v.Published() {
		return nil
	}
	if w := v.committed.Load(); w != nil && w.epoch == n {
		err := v.publish(w)
		if err == nil {
			v.committed.CompareAndSwap(w, nil)
		}
		return err
	}
	w, err := v.holdView(n)
	if err != nil {
		return err
	}
	if err := v.publishOrClose(w); err != nil {
		return err
	}
	return v.dropCommitted()
}

// dropCommitted lets go of what was to be published next.
func (v *Volume) dropCommitted() error {
	if w := v.committed.Swap(nil); w != nil {
		return w.Close()
	}
	return nil
}

// Thaw ends Freeze: what was changed since the published seal is undone, and then readers see the volume as it
// is, which is the same. A volume that is not frozen stays as it is.
func (v *Volume) Thaw() error {
	n := v.Published()
	if n == 0 {
		return nil
	}
	if err := v.undoTo(n, !v.journal.Clean()); err != nil {
		return err
	}
	return errors.Join(v.publish(nil), v.dropCommitted())
}

// Published is the seal that readers see; 0 when they see the volume as it is.
func (v *Volume) Published() journal.Epoch {
	if w := v.published.Load(); w != nil {
		return w.epoch
	}
	return 0
}

// errRemembered says that readers do not see a view that is remembered as the one they see: what is remembered could
// not be changed back. It stays held, as the next start needs it, until something else is remembered.
var errRemembered = errors.New("the next start shows the state that could not be shown now")

// publishOrClose is publish, with the view closed where that fails, unless it stays held.
func (v *Volume) publishOrClose(w *View) error {
	err := v.publish(w)
	if err != nil && !errors.Is(err, errRemembered) {
		err = errors.Join(err, w.Close())
	}
	return err
}

// publish shows readers a view, or with nil the volume as it is. It takes over the view unless it fails.
func (v *Volume) publish(w *View) error {
	v.turning.Lock()
	defer v.turning.Unlock()
	before := v.published.Load()
	if err := v.turn(before, w); err != nil {
		return fmt.Errorf("show readers another state of the volume: %w", err)
	}
	crashpoint.Here("volume/published")
	if before != nil {
		return before.Close()
	}
	return nil
}

// turn changes what readers see, and before that what is remembered of it: either state is whole, so a process
// that dies in between may show the new one. What readers see no longer must not be remembered, since a process
// that finds it undoes what was changed since. That holds after a power cut too, so the beginning and the end of what
// a seal hides are durable before anything goes by them; for what follows on another seal Commit has seen to it.
func (v *Volume) turn(before, w *View) error {
	d, err := v.differences(before, w)
	if err == nil && w == nil {
		err = v.settle(d)
	}
	if err != nil {
		return err
	}
	if err = v.remember(w, nil); err == nil {
		err = v.closeUnshown()
	}
	if err == nil && (w == nil || w != v.committed.Load()) {
		err = v.journal.Sync()
	}
	crashpoint.Here("volume/publish-remembered")
	if err == nil {
		err = v.mounted().Turn(d, func() { v.published.Store(w) })
	}
	if err != nil {
		if back := v.remember(before, w); back != nil {
			err = errors.Join(err, back, errRemembered)
			if w != nil && w != v.committed.Load() {
				v.unshown = append(v.unshown, w)
			}
		}
		return err
	}
	crashpoint.Here("volume/turned")
	return nil
}

// closeUnshown lets go of the views that are not remembered any more.
func (v *Volume) closeUnshown() error {
	var err error
	for _, w := range v.unshown {
		err = errors.Join(err, w.Close())
	}
	v.unshown = nil
	return err
}

// settle makes what was changed durable, if anything was, before what it was is let go.
func (v *Volume) settle(d differences) error {
	changed := errors.New("something was changed")
	err := d.Inodes(func(journal.Ident, bool) error { return changed })
	if errors.Is(err, changed) {
		return v.syncApplied()
	}
	return err
}

// remember keeps in the journal which seal readers see, or with nil that they see the volume as it is; and which one
// they are to see next, nil where that is not known.
func (v *Volume) remember(w, next *View) error {
	if w == nil {
		return v.journal.SetState(publishedKey, nil)
	}
	value := binary.AppendUvarint(nil, uint64(w.epoch))
	if next != nil {
		value = binary.AppendUvarint(value, uint64(next.epoch))
	}
	return v.journal.SetState(publishedKey, value)
}

// differences gives those between two of the states that readers can see.
func (v *Volume) differences(before, after *View) (differences, error) {
	if before == nil { // the volume was frozen, and is as it was then
		return differences{}, nil
	}
	upto := journal.Epoch(0)
	if after != nil {
		upto = after.epoch
	} else {
		n, err := v.journal.Seal(false)
		if err != nil {
			return differences{}, err
		}
		upto = n
	}
	c, err := v.journal.Changes(before.epoch, upto)
	return differences{c}, err
}

// recallPublished opens the view that an earlier process published.
func (v *Volume) recallPublished() error {
	value, err := v.journal.State(publishedKey)
	if err != nil || value == nil {
		return err
	}
	n, size := binary.Uvarint(value)
	next, _ := binary.Uvarint(value[max(size, 0):])
	w, err := v.holdView(journal.Epoch(n))
	if v.lostHold(err) && next != 0 { // it was let go since the next one was published
		w, err = v.holdView(journal.Epoch(next))
	}
	if v.lostHold(err) { // it was not sealed when power was lost, so nothing has been changed behind it
		v.log.Warn("readers of the volume see it as it is: power was lost while they were about to see it as it was", "seal", n)
		return v.remember(nil, nil)
	}
	if err != nil {
		return fmt.Errorf("what readers of the volume saw last: %w", err)
	}
	v.published.Store(w)
	return nil
}

// lostHold reports whether an error says that a seal is not held since a power cut has taken a part of what was
// recorded in its last moments: what is kept of the seal elsewhere, or that it was let go.
func (v *Volume) lostHold(err error) bool {
	return errors.Is(err, journal.ErrNotHeld) && !v.journal.Clean()
}

// differences are those that the journal knows between two seals; none when changes is nil.
type differences struct{ changes *journal.Changes }

// Inodes is Differences'.
func (d differences) Inodes(yield func(journal.Ident, bool) error) error {
	if d.changes == nil {
		return nil
	}
	return d.changes.Inodes(func(c journal.InodeChange) error {
		return yield(c.Ident, c.What&(journal.Data|journal.Created) != 0)
	})
}

// Names is Differences'.
func (d differences) Names(yield func(journal.Ident, string) error) error {
	if d.changes == nil {
		return nil
	}
	return d.changes.Names(func(c journal.NameChange) error { return yield(c.Dir, c.Name) })
}

// transient are the views that may be given up.
type transient struct {
	mu    sync.Mutex
	views map[*View]struct{}
}

func (v *Volume) addTransient(w *View) {
	v.transient.mu.Lock()
	defer v.transient.mu.Unlock()
	if v.transient.views == nil {
		v.transient.views = map[*View]struct{}{}
	}
	v.transient.views[w] = struct{}{}
}

func (v *Volume) dropTransient(w *View) {
	v.transient.mu.Lock()
	defer v.transient.mu.Unlock()
	delete(v.transient.views, w)
}

// giveUpViews lets go of all views that may be given up, if nothing is held then.
func (v *Volume) giveUpViews() bool {
	if v.published.Load() != nil || len(v.Snapshots()) > 0 {
		return false
	}
	v.transient.mu.Lock()
	var views []*View
	for w := range v.transient.views {
		views = append(views, w)
	}
	v.transient.mu.Unlock()
	for _, w := range views {
		w.release()
	}
	return !v.journal.Holding()
}
