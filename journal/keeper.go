package journal

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"

	"tandemfs/journal/crashpoint"
)

const (
	// absorbRetry is how long the keeper waits after a failure.
	absorbRetry = time.Second
	// Reserve is what whoever fills the filesystem should leave to the journal, in bytes: so records of what is
	// removed can be written even when it is full.
	Reserve = 64 << 20
	// storeReserve is the free space below which nothing is absorbed: Badger writes to mapped files without
	// blocks of their own, and a full disk would end the process.
	storeReserve = 48 << 20
	// updateReserve is the same for a state, a map, or what is deleted: little, so that a snapshot that fills the
	// disk can be deleted.
	updateReserve = 2 << 20
	// openReserve is the same for opening the store, which writes out what was in memory.
	openReserve = 16 << 20
)

// The keeper is the journal's one background goroutine. It absorbs the frozen generation into the store,
// and takes out of the store what nobody needs any more; never both at once, so that nothing comes back.
type keeper struct {
	calls chan struct{}
	quit  chan struct{}
	done  sync.WaitGroup

	deleted int64 // bytes since the store was last compacted; the goroutine's own
}

func newKeeper() keeper {
	return keeper{calls: make(chan struct{}, 1), quit: make(chan struct{})}
}

// wake makes the keeper look for work. It never waits.
func (k *keeper) wake() {
	select {
	case k.calls <- struct{}{}:
	default:
	}
}

func (k *keeper) start(j *Journal) {
	k.wake()
	k.done.Go(func() {
		for {
			select {
			case <-k.quit:
				return
			case <-k.calls:
			}
			if err := j.tend(); err != nil {
				j.options.Logger.Warn("journal: cannot absorb, trying again", "dir", j.dir, "error", err)
				time.AfterFunc(absorbRetry, k.wake)
			}
		}
	})
}

// stop ends the keeper and waits for it.
func (k *keeper) stop() {
	close(k.quit)
	k.done.Wait()
}

// tend does what there is to do.
func (j *Journal) tend() error {
	for {
		j.mu.Lock()
		frozen := j.frozen
		j.mu.Unlock()
		if frozen == nil {
			return j.sweep()
		}
		err := j.absorb(frozen)
		j.mu.Lock()
		if j.absorbErr = err; err == nil {
			j.frozen, j.spare = nil, frozen.log
		}
		j.progress.Broadcast()
		j.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// drain absorbs all that is in memory, unless the journal is closed. mu is held, and dropped while it waits.
func (j *Journal) drain() error {
	if errors.Is(j.failed, ErrClosed) {
		return j.failed
	}
	if j.absorbErr != nil {
		j.absorbErr = nil // once more
		j.keeper.wake()
	}
	for last := (*generation)(nil); ; {
		switch {
		case j.frozen == nil && last == nil && errors.Is(j.failed, ErrClosed): // meanwhile
			return j.failed
		case j.frozen == nil && last == nil:
			last = j.active
			if err := j.switchLogs(); err != nil {
				return err
			}
		case j.frozen == nil:
			return nil
		case j.absorbErr != nil:
			return j.absorbErr
		default:
			j.progress.Wait()
		}
	}
}

// absorb writes a generation into the store. The order makes it repeatable after a crash: first the state
// that says which epochs the store may have records of, then the records, then, all that being durable, the
// state that says that the log is no longer needed.
func (j *Journal) absorb(g *generation) error {
	if err := j.checkSpace(storeReserve); err != nil {
		return err
	}
	j.mu.Lock()
	indexes, useless, images := g.indexes(), j.state.useless(), j.state.lowestHeld()
	for n := range indexes {
		if n > useless {
			j.state.markStored(n, n > images)
		}
	}
	j.mu.Unlock()
	if err := j.saveState(); err != nil {
		return err
	}
	crashpoint.Here("journal/absorb-announced")
	for n, x := range indexes {
		if n <= useless {
			continue
		}
		err := j.store.batch(func(b *badger.WriteBatch) error { return absorbEpoch(b, n, x, n > images) })
		if err != nil {
			return err
		}
		crashpoint.Here("journal/absorb-epoch")
	}
	crashpoint.Here("journal/absorb-written")
	if err := j.unsure(j.store.sync()); err != nil {
		return err
	}
	j.mu.Lock()
	j.state.absorbed = g.log.generation
	j.mu.Unlock()
	err := j.saveState()
	crashpoint.Here("journal/absorb-noted")
	return errors.Join(err, j.unsure(j.store.sync()))
}

// checkSpace keeps the store from running into a full disk. It gives ENOSPC where less is free.
func (j *Journal) checkSpace(bytes uint64) error {
	free, err := j.options.freeSpace(j.dir)
	if err == nil && free < bytes {
		err = fmt.Errorf("journal: %d bytes free in %s, %d are needed: %w", free, j.dir, bytes, unix.ENOSPC)
	}
	return err
}

// absorbEpoch writes what the store does not have of an epoch.
func absorbEpoch(b *badger.WriteBatch, n Epoch, x *epochIndex, images bool) error {
	for id, e := range x.inodes {
		if !e.unsaved {
			continue
		}
		key, err := inodeKey(keyInode, n, id), error(nil)
		if e.removed {
			err = b.Delete(key)
		} else {
			err = b.Set(key, encodeInode(e))
		}
		if err != nil {
			return err
		}
	}
	for key, e := range x.names {
		if !e.unsaved {
			continue
		}
		if err := b.Set(nameEntryKey(n, key), putIdent(nil, e.was)); err != nil {
			return err
		}
	}
	if !images {
		return nil
	}
	for id, at := range x.where {
		if err := b.Set(inodeKey(keyWhere, n, id), append(putIdent(nil, at.dir), at.name...)); err != nil {
			return err
		}
	}
	return putPast(b, n, x)
}

func (j *Journal) saveState() error {
	j.mu.Lock()
	value := j.state.encode()
	j.mu.Unlock()
	return j.store.update(func(txn *badger.Txn) error { return txn.Set([]byte{keyState}, value) })
}

// sweep deletes from the store what nobody can ask for any more: the records of useless epochs, and the
// history that no held seal needs. Then it folds epochs that nobody tells apart.
func (j *Journal) sweep() error {
	useless, pastless, low := j.sweepable()
	for _, n := range pastless {
		deleted, err := j.store.sweepPast(n, low)
		if j.keeper.deleted += deleted; err != nil {
			return err
		}
		crashpoint.Here("journal/sweep-past")
	}
	for _, n := range useless {
		if err := j.sweepKeys(n, keyInode, keyName, keyWhere); err != nil {
			return err
		}
	}
	if len(useless)+len(pastless) > 0 {
		crashpoint.Here("journal/sweep-deleted")
		if err := j.swept(useless, pastless); err != nil {
			return err
		}
	}
	if err := j.foldSome(); err != nil {
		return err
	}
	if j.keeper.deleted < compactAfter || j.checkSpace(storeReserve) != nil {
		return nil
	}
	j.keeper.deleted = 0
	if err := j.store.compact(); err != nil {
		j.options.Logger.Debug("journal: store not compacted", "dir", j.dir, "error", err)
	}
	return nil
}

// swept notes what sweep has deleted.
func (j *Journal) swept(useless, pastless []Epoch) error {
	j.mu.Lock()
	for _, n := range pastless {
		j.state.totals[n].images = 0
	}
	for _, n := range useless {
		delete(j.state.stored, n)
		j.state.forgetTotals(n)
	}
	j.mu.Unlock()
	return j.saveState()
}

const (
	// foldStep is how many epochs are folded before the keeper looks whether there is something to absorb.
	foldStep = 32
	// foldRetry is when folding is tried again that a reader was in the way of.
	foldRetry = 2 * time.Second
)

// foldSome makes one of stored epochs that nobody tells apart. The state is saved once for all of them: until then it
// has epochs without records, which is the same.
func (j *Journal) foldSome() error {
	if !j.folding.TryLock() {
		time.AfterFunc(foldRetry, j.keeper.wake)
		return nil
	}
	defer j.folding.Unlock()
	folded, err := 0, error(nil)
	for more := true; more && folded < foldStep && err == nil && (folded == 0 || !j.absorbing()); {
		if more, err = j.foldOne(); more && err == nil {
			folded++
		}
	}
	if folded == 0 {
		return err
	}
	j.keeper.wake() // for more of them, or for writers who wait
	return errors.Join(err, j.saveState())
}

// absorbing reports whether there is a generation to absorb: writers may wait for that.
func (j *Journal) absorbing() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.frozen != nil
}

// foldOne makes one of two stored epochs, and reports whether there were two.
func (j *Journal) foldOne() (bool, error) {
	into, from, low, ok := j.foldable()
	if !ok {
		return false, nil
	}
	doubled, err := j.store.dedupePast(from, low, from)
	if j.keeper.deleted += doubled; err != nil {
		return true, err
	}
	crashpoint.Here("journal/fold-deduped")
	moved, err := j.store.fold(into, from)
	if j.keeper.deleted += moved; err != nil {
		return true, err
	}
	crashpoint.Here("journal/folded")
	j.mu.Lock()
	defer j.mu.Unlock()
	j.state.fold(into, from)
	return true, nil
}

// foldable finds two stored epochs, one after the other, that nobody tells apart and of which nothing is in
// memory, and the newest seal before them that is held.
func (j *Journal) foldable() (into, from, low Epoch, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, n := range j.state.sorted() {
		if !j.state.isStored(n) {
			continue
		}
		inMemory := n >= j.state.epoch || j.active.epochs[n] != nil || j.frozen != nil && j.frozen.epochs[n] != nil
		switch {
		case inMemory:
			into = 0
		case into == 0 || j.state.apart(into, n):
			into = n
		default:
			for held := range j.state.held {
				if held < into {
					low = max(low, held)
				}
			}
			return into, n, low, true
		}
	}
	return 0, 0, 0, false
}

// sweepable lists the stored epochs whose records, and those whose history up to low, can go.
func (j *Journal) sweepable() (useless, pastless []Epoch, low Epoch) {
	j.mu.Lock()
	defer j.mu.Unlock()
	low = j.state.lowestHeld()
	for n := range j.state.stored {
		if n <= j.state.useless() {
			useless = append(useless, n)
		}
		if n <= low && j.state.totals[n].images > 0 {
			pastless = append(pastless, n)
		}
	}
	return useless, pastless, low
}

func (j *Journal) sweepKeys(n Epoch, kinds ...byte) error {
	for _, kind := range kinds {
		deleted, err := j.store.deletePrefix(epochKey(kind, n))
		if err != nil {
			return err
		}
		j.keeper.deleted += deleted
		crashpoint.Here("journal/sweep-kind")
	}
	return nil
}
