package replicator

import (
	"errors"
	"fmt"
	"runtime"
	"sync"

	"tandemfs/journal"
	"tandemfs/replicator/wire"
)

// crew applies small new files at the same time: each is an item of its own that nothing before it
// changes. Whatever could depend on one of them waits for all (see applier.settle).
type crew struct {
	places  chan struct{}
	working sync.WaitGroup

	mu  sync.Mutex
	err error // the first
}

func newCrew() crew { return crew{places: make(chan struct{}, max(2, runtime.NumCPU()))} }

// start runs a task beside the others, once there is a place.
func (c *crew) start(task func() error) {
	c.places <- struct{}{}
	c.working.Go(func() {
		defer func() { <-c.places }()
		if err := task(); err != nil {
			c.mu.Lock()
			c.err = errors.Join(c.err, err)
			c.mu.Unlock()
		}
	})
}

// wait waits for all tasks and gives their errors, once.
func (c *crew) wait() error {
	c.working.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.err
	c.err = nil
	return err
}

// smallFile is a new inode that is no directory, with all of its content.
type smallFile struct {
	making
	image  journal.Image
	pieces []piece
}

// piece is a stretch of content. It belongs to the frame.
type piece struct {
	off  int64
	data []byte
}

// small finds out whether r begins a new file that ends in the same frame, and takes its content up then.
func (a *applier) small(r *wire.Record) (pieces []piece, ok bool) {
	if r.Flags&wire.FlagNew == 0 || r.Flags&wire.FlagGoesOn != 0 || isDir(r.Attr) {
		return nil, false
	}
	start, end := a.decoder, int64(0)
	for {
		next := a.decoder
		if more, err := a.decoder.Next(&a.ahead); err != nil || !more || a.ahead.Kind == wire.KindHole {
			break // the file may go on, or something is wrong with it: not here
		}
		if a.ahead.Kind.IsItem() {
			a.decoder = next
			return pieces, true
		}
		if a.ahead.Off < end || !isRegular(r.Attr) {
			break
		}
		end = a.ahead.Off + int64(len(a.ahead.Data))
		pieces = append(pieces, piece{a.ahead.Off, a.ahead.Data})
	}
	a.decoder = start
	return nil, false
}

// handOver has the crew apply a small file, and counts it.
func (a *applier) handOver(r *wire.Record, pieces []piece) error {
	m, err := a.prepare(r)
	if err != nil {
		return err
	}
	f := smallFile{m, journal.Image{Attr: r.Attr, Xattrs: cloneXattrs(r.Xattrs)}, pieces}
	a.crew.start(func() error {
		if err := a.applySmall(f); err != nil {
			return fmt.Errorf("inode %s (%q): %w", f.from, f.creation.Name, err)
		}
		return nil
	})
	for _, p := range pieces {
		a.unsaved += int64(len(p.data))
		a.cursor.Bytes += int64(len(p.data))
	}
	a.cursor.Files++
	return a.itemDone()
}

// applySmall runs in a goroutine of the crew.
func (a *applier) applySmall(f smallFile) error {
	id, err := a.produce(f.making)
	if err != nil {
		return err
	}
	if len(f.pieces) > 0 {
		if err := a.write(id, f.pieces); err != nil {
			return err
		}
	}
	return a.vol.SetImage(id, f.image)
}

func (a *applier) write(id journal.Ident, pieces []piece) error {
	to, err := a.vol.OpenForApply(id)
	if err != nil {
		return err
	}
	for _, p := range pieces {
		if _, err = to.WriteAt(p.data, p.off); err != nil {
			break
		}
	}
	return errors.Join(err, to.Close())
}

// settle waits for the crew and then sets the attributes of the directories that it has worked in. After
// an error the cursor is put back to where all before is known to be applied.
func (a *applier) settle() error {
	if err := a.crew.wait(); err != nil {
		a.cursor, a.late = a.settled, a.late[:0]
		return err
	}
	for _, d := range a.late {
		if err := a.setImage(d.from, d.here, d.image); err != nil {
			a.cursor, a.late = a.settled, a.late[:0]
			return err
		}
	}
	a.late, a.settled = a.late[:0], a.cursor
	return nil
}

// lateImage is a directory's attributes that wait for what is being made in it.
type lateImage struct {
	from, here journal.Ident
	image      journal.Image
}
