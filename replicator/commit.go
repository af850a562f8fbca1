package replicator

import (
	"errors"
	"fmt"
	"sync/atomic"

	"tandemfs/journal"
	"tandemfs/journal/crashpoint"
	"tandemfs/replicator/wire"
)

// counters are what the session shows of an applier while it works.
type counters struct{ items, files, bytes, sameFiles, sameBytes atomic.Int64 }

func (c *counters) set(at wire.Cursor) {
	c.items.Store(at.Items)
	c.files.Store(at.Files)
	c.bytes.Store(at.Bytes)
}

// found notes what is there already.
func (c *counters) found(same work) {
	c.sameFiles.Store(same.files)
	c.sameBytes.Store(same.bytes)
}

// suspend stops in the middle: the connection is gone. The transfer can go on right behind the last
// record that was applied.
func (a *applier) suspend() error {
	if err := a.endCompare(); err != nil {
		return err
	}
	if !a.memory.Dirty || a.memory.Cursor == nil {
		return nil
	}
	if f := a.open.file; f != nil {
		if err := f.Close(); err != nil {
			return err
		}
	}
	a.open = openItem{}
	return a.checkpoint()
}

// giveUp makes the next transfer start over instead of going on at a place that cannot be right.
func (a *applier) giveUp() error {
	if f := a.open.file; f != nil {
		_ = f.Close() // the error that is given up for says more
	}
	a.open = openItem{}
	_ = a.settle()     // likewise
	_ = a.endCompare() // likewise
	if !a.memory.Dirty {
		return nil
	}
	a.memory.Cursor, a.memory.Reached = nil, 0
	return remember(a.vol.Journal(), targetKey(a.id), &a.memory)
}

// errNotDurable says that what was applied may not have reached the disk. The disk says so once: a second try would
// succeed, and know nothing of what was dropped.
var errNotDurable = errors.New("what was applied could not be made durable, and is to be sent again")

// commit makes the transfer the target's recovery point (rule A3): it arrived whole, it is the one that
// was begun, and it is durable before anybody is told. digest is what was received.
func (a *applier) commit(b wire.Begin, e wire.End, sourceID, digest string) (wire.Committed, error) {
	if c := a.comparer; c != nil && c.kept {
		return wire.Committed{}, fmt.Errorf("%w: something is left out, and it ends as if nothing were", errDivergence)
	}
	if err := a.conclude(e, digest); err != nil {
		return wire.Committed{}, err
	}
	own, err := a.vol.Commit()
	if err != nil {
		return wire.Committed{}, fmt.Errorf("%w: %w", errNotDurable, err)
	}
	crashpoint.Here("replicator/target-committed")
	a.memory = targetMemory{SourceID: sourceID, Epoch: b.Cursor.Epoch, Time: b.Time, Own: own}
	if err := a.publish(); err != nil {
		return wire.Committed{}, err
	}
	return wire.Committed{Epoch: b.Cursor.Epoch, Files: a.cursor.Files, Bytes: a.cursor.Bytes,
		SameFiles: a.count.sameFiles.Load(), SameBytes: a.count.sameBytes.Load()}, nil
}

// conclude ends the records of a transfer: all of them arrived, and what has no name left is removed. Where something
// was kept that the source cannot read, it may have a name in there: then it stays aside.
func (a *applier) conclude(e wire.End, digest string) error {
	if err := a.finish(); err != nil {
		return err
	}
	if e.Digest != digest || e.Items != a.cursor.Items || e.Chain != a.cursor.Chain {
		return fmt.Errorf("%w: the stream that arrived is not the one that was sent (%d items of %d)", errDivergence, a.cursor.Items, e.Items)
	}
	kept := false
	if a.comparer != nil {
		kept = a.comparer.kept
		a.count.found(a.comparer.same)
		if err := errors.Join(a.comparer.satisfied(), a.endCompare()); err != nil {
			return err
		}
	}
	if err := a.checkpoint(); err != nil { // from here on no record comes again
		return err
	}
	crashpoint.Here("replicator/target-applied")
	if kept {
		return nil
	}
	if err := a.vol.DropAside(a.forget); err != nil {
		return err
	}
	crashpoint.Here("replicator/target-dropped")
	return a.ids.Flush()
}

// reach keeps a transfer that left something out for the next one to build on. Nothing of it is published.
func (a *applier) reach(b wire.Begin, e wire.End, sourceID, digest string) error {
	if err := a.conclude(e, digest); err != nil {
		return err
	}
	a.memory.SourceID, a.memory.Reached = sourceID, b.Cursor.Epoch
	a.memory.Dirty, a.memory.Cursor = false, nil
	return remember(a.vol.Journal(), targetKey(a.id), &a.memory)
}

// publish makes the new recovery point durable, and then what readers see. What was recorded up to it is not
// needed any more: both sides hold this state, and what a power cut made doubtful was sent anew.
func (a *applier) publish() error {
	j := a.vol.Journal()
	if err := remember(j, targetKey(a.id), &a.memory); err != nil {
		return err
	}
	if err := errors.Join(j.Sync(), j.Reconciled()); err != nil {
		return err
	}
	crashpoint.Here("replicator/target-remembered")
	if err := a.vol.Publish(a.memory.Own); err != nil {
		return err
	}
	crashpoint.Here("replicator/target-published")
	return j.Forget(a.memory.Own)
}

// forget ends the pair of an inode that is gone.
func (a *applier) forget(gone journal.Ident) error {
	from, ok, err := a.ids.Reverse(gone)
	if err != nil || !ok {
		return err
	}
	return a.ids.Delete(from)
}
