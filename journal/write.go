package journal

import (
	"fmt"
	"strings"

	"tandemfs/journal/crashpoint"
)

const (
	// logReserve is kept free at the end of a log for the records of seals, holds and forgetting: a seal
	// need not wait for a log to be absorbed.
	logReserve = 1024
	// fewEntries always fit into a generation, whatever the bound on memory.
	fewEntries = 16
)

// makeRoom reports whether r fits into the active generation, reserve bytes left over. When it does not,
// the logs are switched, or a switch is waited for without mu, and the caller looks again.
func (j *Journal) makeRoom(r *record, reserve int) (bool, error) {
	if j.failed != nil {
		return false, j.failed
	}
	g, need := j.active, recordSize(r.bound())+reserve
	if need > len(g.log.data)-logHeader-switchedSize {
		return false, fmt.Errorf("%w: record of %d bytes", ErrTooLarge, r.bound())
	}
	if g.log.room() >= need && (g.bytes <= j.options.MaxMemory/2 || g.entries <= fewEntries) {
		return true, nil
	}
	return false, j.switchLogs()
}

// switchLogs freezes the active generation for the keeper to absorb and goes on with the other log, or
// waits for that one to be free. mu is held, and dropped while it waits.
func (j *Journal) switchLogs() error {
	if j.frozen != nil {
		if j.absorbErr != nil {
			return j.absorbErr
		}
		j.progress.Wait()
		return nil
	}
	err := j.spare.begin(j.active.log.generation + 1)
	if err == nil {
		err = j.active.log.append(appendRecord(nil, &record{kind: recordSwitched}))
	}
	if err != nil {
		j.fail(err)
		return err
	}
	j.frozen, j.active, j.spare = j.active, newGeneration(j.spare), nil
	crashpoint.Here("journal/logs-switched")
	j.keeper.wake()
	return nil
}

// write appends r to the active log and applies it. It must fit: see makeRoom. A log that cannot be
// written ends the journal's life: nothing may change any more without a record.
func (j *Journal) write(r *record) error {
	j.scratch = appendRecord(j.scratch[:0], r)
	if err := j.active.log.append(j.scratch); err != nil {
		j.fail(err)
		return err
	}
	if cap(j.scratch) > 1<<16 {
		j.scratch = nil
	}
	crashpoint.Here("journal/recorded")
	j.written++
	j.apply(r)
	return nil
}

// control writes a record that changes the journal's state, into the reserve if need be.
func (j *Journal) control(r record) error {
	for {
		if ready, err := j.makeRoom(&r, 0); err != nil {
			return err
		} else if ready {
			return j.write(&r)
		}
	}
}

// apply does to the index and the state what a record says, now or in a replay. It frees nothing: in a
// replay the state may be newer than the record, and only at the end does it say what is needed.
func (j *Journal) apply(r *record) {
	switch r.kind {
	case recordInode:
		j.applyInode(r)
	case recordName:
		j.applyName(r)
	case recordWhere:
		j.active.putWhere(r.epoch, r.ident, nameKey{r.was, strings.Clone(r.name)})
	case recordRemoved:
		j.applyRemoved(r)
	case recordSealed:
		j.state.epoch = max(j.state.epoch, r.epoch+1)
		if r.hold {
			j.state.held[r.epoch]++
		}
	case recordHeld:
		j.state.held[r.epoch]++
	case recordReleased:
		delete(j.state.held, r.epoch)
	case recordForgot:
		j.state.forgotten = max(j.state.forgotten, r.epoch)
	}
}

// dropUseless frees what nobody can ask for any more: at once in memory, later in the store. A frozen
// generation goes as a whole when it is absorbed.
func (j *Journal) dropUseless() {
	useless := j.state.useless()
	j.active.drop(useless)
	j.active.dropImages(j.state.lowestHeld())
	for n := range j.state.totals {
		if n <= useless && !j.state.isStored(n) {
			j.state.forgetTotals(n)
		}
	}
	j.keeper.wake()
}

// tally gives an epoch's totals, for a record that is added.
func (j *Journal) tally(n Epoch) *totals {
	t, new := j.state.total(n)
	if new && n == j.state.epoch {
		j.signal()
	}
	return t
}

func (j *Journal) applyInode(r *record) {
	e := j.active.inode(r.epoch, r.ident)
	if e == nil {
		e = &inodeEntry{}
		j.active.putInode(r.epoch, r.ident, e)
	}
	t := j.tally(r.epoch)
	if e.what == 0 {
		t.inodes++
	}
	// Only a first touch has an image. In a replay the store may have the touch already, and not its image.
	if len(r.image) > 0 && j.active.epoch(r.epoch).images[r.ident] == nil {
		j.active.putImage(r.epoch, r.ident, r.image)
		t.images++
	}
	switch {
	case r.what&Created != 0:
		t.bytes -= e.extents.bytes()
		e.what, e.extents, e.removed = Created, extentSet{}, false
	case e.what&Created == 0:
		what := r.what
		if e.what&fate != 0 {
			what &^= fate
		}
		e.what |= what
		j.addExtent(r.epoch, e, r.extent, t)
	}
	e.unsaved = true
}

// addExtent adds an extent to an entry; with too many of them it leaves half as many, coarser.
func (j *Journal) addExtent(n Epoch, e *inodeEntry, x Extent, t *totals) {
	if x.End <= x.Off {
		return
	}
	had := e.extents.count
	if x.End != MaxOffset {
		t.bytes += x.Len() - e.extents.overlap(x)
	}
	e.extents.insert(x)
	if e.extents.count > j.options.MaxExtents {
		t.bytes -= e.extents.bytes()
		e.extents.coarsen(j.options.MaxExtents / 2)
		t.bytes += e.extents.bytes()
	}
	j.active.grow(j.active.epoch(n), (e.extents.count-had)*extentBytes, 0)
}

func (j *Journal) applyName(r *record) {
	key := nameKey{r.ident, strings.Clone(r.name)}
	if e, ok := j.active.name(r.epoch, key); ok { // in a replay: the store has it, perhaps without its history
		e.unsaved = true
		j.active.epochs[r.epoch].names[key] = e
		return
	}
	j.active.putName(r.epoch, key, r.was, true)
	j.tally(r.epoch).names++
}

func (j *Journal) applyRemoved(r *record) {
	e := j.active.inode(r.epoch, r.ident)
	if e == nil || e.what&Created == 0 {
		return
	}
	e.what, e.removed, e.unsaved = 0, true, true
	j.tally(r.epoch).inodes--
}
