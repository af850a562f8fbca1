package replicator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"tandemfs/journal"
	"tandemfs/journal/crashpoint"
	"tandemfs/replicator/wire"
)

// How far apart the places are that a transfer can go on at after the target's process died.
const (
	checkpointBytes = 64 << 20
	checkpointEvery = 2 * time.Second
)

// errDivergence says that the stream does not fit what the target has.
var errDivergence = errors.New("the target does not have what the transfer builds on")

// applier puts one transfer's records into the target volume, in order. What it does can be done again: a
// record that was applied before the process died, and comes again, changes nothing more. It is used by one
// goroutine at a time.
type applier struct {
	vol    Volume
	id     string // the relationship's
	ids    *journal.Map
	memory targetMemory
	// fresh says that nothing was applied since the recovery point before this transfer's first record, so
	// a new directory holds nothing that this transfer did not put there.
	fresh bool

	chain   wire.Chainer
	cursor  wire.Cursor // what is applied whole, or in the crew's hands; Offset belongs to the item that is open
	settled wire.Cursor // what is applied whole for sure
	pending uint64      // the chain after the open item
	open    openItem
	decoder wire.Decoder
	record  wire.Record
	ahead   wire.Record // of the next record, while small looks ahead
	crew    crew
	late    []lateImage
	dir     [2]journal.Ident // the directory that was looked up last: there, here

	comparer *comparer // of a transfer that compares; else nil

	unsaved   int64 // bytes since the last checkpoint
	lastSaved time.Time
	count     *counters
}

// openItem is the inode that records are about, until the next item.
type openItem struct {
	active bool
	isNew  bool
	ident  journal.Ident // on the source
	here   journal.Ident
	image  journal.Image
	file   ApplyFile // nil until there is content
	offset int64     // up to where the content is applied
}

// newApplier recalls what the volume remembers of the relationship. With distrust, after a power cut, what
// was not committed is not built on.
func newApplier(vol Volume, id string, count *counters, distrust bool) (*applier, error) {
	a := &applier{vol: vol, id: id, count: count, crew: newCrew()}
	a.ids = vol.Journal().Map(id)
	if err := recall(vol.Journal(), targetKey(id), &a.memory); err != nil {
		return nil, err
	}
	if !distrust {
		return a, nil
	}
	a.memory.Dirty, a.memory.Cursor, a.memory.Reached = true, nil, 0
	return a, remember(vol.Journal(), targetKey(id), &a.memory)
}

// position is what the source is told.
func (a *applier) position() wire.Position {
	m := &a.memory
	return wire.Position{SourceID: m.SourceID, Epoch: m.Epoch, Time: m.Time, Dirty: m.Dirty, Cursor: m.Cursor, Reached: m.Reached, Begun: m.Begun}
}

// begin prepares for a transfer's records, or refuses them. sourceID is the source volume's; ask asks the source
// of a transfer that compares.
func (a *applier) begin(ctx context.Context, b wire.Begin, sourceID string, ask func(wire.Want) error) error {
	c, m := b.Cursor, &a.memory
	if err := errors.Join(a.admit(b, sourceID), a.endCompare()); err != nil {
		return err
	}
	goesOn := c.Items > 0 || c.Offset > 0
	if m.Reached != 0 && c.Base != m.Reached { // the source does not know it any more
		m.Reached, m.Dirty = 0, true
	}
	a.fresh = !m.Dirty
	a.open, a.dir = openItem{}, [2]journal.Ident{}
	if c.Files, c.Bytes = 0, 0; goesOn {
		c.Files, c.Bytes = m.Cursor.Files, m.Cursor.Bytes
	}
	a.cursor, a.settled = c, c
	a.count.set(a.cursor)
	a.count.found(work{})
	m.Dirty, m.Begun = true, max(m.Begun, c.Epoch)
	root := journal.Ident{Ino: b.RootIno, Gen: b.RootGen}
	if b.Compare {
		if err := a.compareWith(ctx, root, ask); err != nil {
			return err
		}
	}
	if err := a.checkpoint(); err != nil {
		return err
	}
	crashpoint.Here("replicator/target-begun")
	if goesOn || c.Base != 0 || b.Compare {
		return nil
	}
	return a.startOver(root)
}

// admit checks that the transfer builds on what the target has (rule A5).
func (a *applier) admit(b wire.Begin, sourceID string) error {
	c, m := b.Cursor, &a.memory
	switch {
	case m.Epoch != 0 && m.SourceID != sourceID:
		return fmt.Errorf("%w: the target's recovery point is of volume %s, this is volume %s; delete the relationship and create it anew", errRefused, m.SourceID, sourceID)
	case b.Compare && (c.Epoch == 0 || c.Base != 0 || c.Items != 0 || c.Offset != 0):
		return fmt.Errorf("%w: a transfer that compares builds on nothing", errRefused)
	case b.Compare:
		return nil
	case c.Base != m.base() && !(c.Over && c.Base == m.Epoch):
		return fmt.Errorf("%w: the transfer builds on seal %d, the target's recovery point is %d; delete the relationship and create it anew", errRefused, c.Base, m.base())
	case c.Epoch <= c.Base:
		return fmt.Errorf("%w: seal %d is not after %d", errRefused, c.Epoch, c.Base)
	case c.Items == 0 && c.Offset == 0:
		if m.Dirty && !c.Over {
			return fmt.Errorf("%w: the target has part of another transfer", errRefused)
		}
		return nil
	}
	have := m.Cursor
	if have == nil || have.Epoch != c.Epoch || have.Over != c.Over || have.Items != c.Items || have.Offset != c.Offset || have.Chain != c.Chain {
		return fmt.Errorf("%w: the target is not where the transfer would go on", errRefused)
	}
	return nil
}

// startOver makes the volume an empty one that knows only the root: what was there goes aside.
func (a *applier) startOver(root journal.Ident) error {
	if err := a.clearRoot(); err != nil {
		return err
	}
	crashpoint.Here("replicator/target-cleared")
	if err := a.ids.Drop(); err != nil {
		return err
	}
	if err := a.ids.Put(root, a.vol.Root()); err != nil {
		return err
	}
	return a.ids.Flush()
}

// clearRoot moves everything aside; the commit removes it.
func (a *applier) clearRoot() error {
	empty, err := a.vol.IsEmpty()
	if err != nil || empty {
		return err
	}
	view, err := a.vol.Seal()
	if err != nil {
		return err
	}
	entries, err := view.ReadDir(a.vol.Root())
	if err = errors.Join(err, view.Close()); err != nil {
		return err
	}
	for _, e := range entries {
		if err := a.vol.MoveAside(a.vol.Root(), e.Name); err != nil {
			return err
		}
	}
	return nil
}

// records applies one frame. The crew has nothing left of it afterwards.
func (a *applier) records(frame []byte) error {
	a.decoder.Reset(frame)
	for {
		ok, err := a.decoder.Next(&a.record)
		if err == nil && ok {
			if err = a.one(&a.record); err == nil {
				continue
			}
			err = a.describe(err)
		}
		err = gone(errors.Join(err, a.settle()))
		if err == nil && a.comparer != nil {
			err = a.comparer.say(false)
		}
		return err
	}
}

// describe says which of the source's inodes an error is about.
func (a *applier) describe(err error) error {
	if !a.record.Kind.IsItem() {
		return fmt.Errorf("inode %s: %w", a.open.ident, err)
	}
	return fmt.Errorf("inode %s (%q): %w", a.record.Ident, a.record.Name, err)
}

// one applies one record.
func (a *applier) one(r *wire.Record) error {
	compare := a.comparer != nil && a.comparer.takes(r)
	switch {
	case !r.Kind.IsItem() && compare:
		return a.comparer.record(r)
	case !r.Kind.IsItem():
		return a.content(r)
	}
	if err := a.finish(); err != nil {
		return err
	}
	a.pending = a.chain.Next(a.cursor.Chain, r)
	if compare {
		if err := a.comparer.record(r); err != nil {
			return err
		}
		a.count.found(a.comparer.same)
		return a.itemDone()
	}
	if a.comparer != nil {
		a.comparer.got(r.Ident)
	}
	switch r.Kind {
	case wire.KindInode:
		return a.inode(r)
	case wire.KindKeep:
		return fmt.Errorf("%w: kind %d in a transfer that does not compare", wire.ErrRecord, r.Kind)
	}
	if err := a.settle(); err != nil {
		return err
	}
	change := a.attach
	if r.Kind == wire.KindDetach {
		change = a.detach
	}
	if err := change(r); err != nil {
		return err
	}
	return a.itemDone()
}

// itemDone counts an item that is applied whole.
func (a *applier) itemDone() error {
	crashpoint.Here("replicator/target-item")
	a.cursor.Items++
	a.cursor.Chain, a.cursor.Offset = a.pending, 0
	a.count.set(a.cursor)
	return a.saveSometimes()
}

// saveSometimes makes a checkpoint when enough has happened since the last.
func (a *applier) saveSometimes() error {
	if a.unsaved < checkpointBytes && time.Since(a.lastSaved) < checkpointEvery {
		return nil
	}
	return a.checkpoint()
}

// checkpoint makes what was applied so far survive the death of the process, with the cursor that says so.
func (a *applier) checkpoint() error {
	if err := a.settle(); err != nil {
		return err
	}
	if err := a.ids.Flush(); err != nil {
		return err
	}
	crashpoint.Here("replicator/target-flushed")
	c := a.cursor
	a.memory.Cursor = &c
	if a.comparer != nil {
		a.memory.Cursor = nil // it is done again, and finds what it has done
	}
	a.unsaved, a.lastSaved = 0, time.Now()
	return remember(a.vol.Journal(), targetKey(a.id), &a.memory)
}

// here translates a source's identity.
func (a *applier) here(id journal.Ident) (journal.Ident, error) {
	t, ok, err := a.ids.Get(id)
	if err == nil && !ok {
		err = fmt.Errorf("%w: inode %s of the source is unknown", errDivergence, id)
	}
	return t, err
}

// directory translates a directory's, remembering the last.
func (a *applier) directory(id journal.Ident) (journal.Ident, error) {
	if a.dir[0] == id && !id.IsZero() {
		return a.dir[1], nil
	}
	t, err := a.here(id)
	if err == nil {
		a.dir = [2]journal.Ident{id, t}
	}
	return t, err
}

// inode opens an item: what is new is made, attributes wait until the content is there. A small file is
// the crew's.
func (a *applier) inode(r *wire.Record) error {
	if r.Flags&wire.FlagGoesOn == 0 {
		a.cursor.Offset = 0
	}
	if pieces, ok := a.small(r); ok {
		return a.handOver(r, pieces)
	}
	o := openItem{active: true, isNew: r.Flags&wire.FlagNew != 0, ident: r.Ident, offset: a.cursor.Offset,
		image: journal.Image{Attr: r.Attr, Xattrs: cloneXattrs(r.Xattrs)}}
	var err error
	if o.isNew {
		var m making
		if m, err = a.prepare(r); err == nil {
			o.here, err = a.produce(m)
		}
	} else {
		o.here, err = a.here(r.Ident)
	}
	a.open = o
	return err
}

// cloneXattrs copies what belongs to a frame.
func cloneXattrs(from []journal.Xattr) []journal.Xattr {
	if len(from) == 0 {
		return nil
	}
	to := make([]journal.Xattr, len(from))
	for i, x := range from {
		to[i] = journal.Xattr{Name: x.Name, Value: bytes.Clone(x.Value)}
	}
	return to
}

// making is how an inode comes about.
type making struct {
	from     journal.Ident // on the source
	creation Creation
	goesOn   bool
	fresh    bool // nothing can be there from an earlier try
	reuse    bool // this same transfer may have made it before it was interrupted
}

// prepare says how a new inode is to be made.
func (a *applier) prepare(r *wire.Record) (making, error) {
	m := making{from: r.Ident, goesOn: r.Flags&wire.FlagGoesOn != 0, fresh: a.fresh, reuse: !a.fresh && !a.cursor.Over,
		creation: Creation{Mode: r.Attr.Mode, Rdev: r.Attr.Rdev, Symlink: string(r.Symlink)}}
	if r.Flags&wire.FlagPlaced == 0 {
		return m, nil
	}
	dir, err := a.directory(r.Dir)
	m.creation.Dir, m.creation.Name = dir, string(r.Name)
	return m, err
}

// produce makes an inode, or finds it. It may run in several goroutines at a time.
func (a *applier) produce(m making) (journal.Ident, error) {
	if m.reuse {
		t, ok, err := a.again(m)
		if err != nil || ok {
			return t, err
		}
	}
	if m.goesOn {
		return journal.Ident{}, fmt.Errorf("%w: what it would go on with is not there", errDivergence)
	}
	if !m.fresh && !m.creation.Dir.IsZero() {
		if err := a.vol.MoveAside(m.creation.Dir, m.creation.Name); err != nil {
			return journal.Ident{}, err
		}
	}
	t, err := a.vol.Create(m.creation)
	if err != nil {
		return t, err
	}
	return t, a.ids.Put(m.from, t)
}

// again finds an inode that was made before and puts it in the state of a new one.
func (a *applier) again(m making) (journal.Ident, bool, error) {
	t, ok, err := a.ids.Get(m.from)
	if err != nil || !ok {
		return t, false, err
	}
	if ok, err = a.vol.Exists(t); err != nil || !ok {
		return t, false, err
	}
	if !m.creation.Dir.IsZero() {
		if err := a.vol.Place(t, m.creation.Dir, m.creation.Name); err != nil {
			return t, false, err
		}
	}
	if m.creation.Mode&typeMask == typeRegular && !m.goesOn {
		err = a.truncate(t)
	}
	return t, true, err
}

func (a *applier) truncate(id journal.Ident) error {
	f, err := a.vol.OpenForApply(id)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(0), f.Close())
}

// content applies data or a hole to the open item.
func (a *applier) content(r *wire.Record) error {
	o := &a.open
	if !o.active || !isRegular(o.image.Attr) || r.Off < o.offset || r.Kind != wire.KindData && r.Kind != wire.KindHole {
		return fmt.Errorf("%w: content at %d that belongs to nothing", wire.ErrRecord, r.Off)
	}
	if o.file == nil {
		f, err := a.vol.OpenForApply(o.here)
		if err != nil {
			return err
		}
		o.file = f
	}
	if r.Kind == wire.KindHole {
		o.offset = r.Off + r.Len
		if o.offset >= o.image.Attr.Size {
			// A punch leaves the block that the file ends in where the target's file is longer still.
			return o.file.Truncate(r.Off)
		}
		return o.file.Punch(journal.Extent{Off: r.Off, End: o.offset})
	}
	if _, err := o.file.WriteAt(r.Data, r.Off); err != nil {
		return err
	}
	o.offset = r.Off + int64(len(r.Data))
	a.unsaved += int64(len(r.Data))
	a.cursor.Offset = o.offset
	a.cursor.Bytes += int64(len(r.Data))
	a.count.set(a.cursor)
	return a.saveSometimes()
}

// finish closes the open item: its attributes go on last, since content changes them. A new directory's
// come with a record of their own, after what is in it; then they wait for the crew.
func (a *applier) finish() error {
	if a.comparer != nil {
		if err := a.comparer.finish(); err != nil {
			return err
		}
	}
	o := a.open
	if !o.active {
		return nil
	}
	a.open = openItem{}
	if o.file != nil {
		if err := o.file.Close(); err != nil {
			return err
		}
	}
	switch {
	case !isDir(o.image.Attr):
		if err := a.setImage(o.ident, o.here, o.image); err != nil {
			return err
		}
		a.cursor.Files++
	case o.isNew:
		a.cursor.Files++
	default:
		a.late = append(a.late, lateImage{o.ident, o.here, o.image})
	}
	return a.itemDone()
}

// setImage sets an inode's attributes; from is its identity on the source.
func (a *applier) setImage(from, here journal.Ident, image journal.Image) error {
	if err := gone(a.vol.SetImage(here, image)); err != nil {
		return fmt.Errorf("inode %s: %w", from, err)
	}
	return nil
}

// gone makes an error divergence that says that what a record is about is not there.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESTALE) {
		return fmt.Errorf("%w: %w", errDivergence, err)
	}
	return err
}

// attach gives an inode a name.
func (a *applier) attach(r *wire.Record) error {
	id, err := a.here(r.Ident)
	if err != nil {
		return err
	}
	dir, err := a.directory(r.Dir)
	if err != nil {
		return err
	}
	return a.vol.Place(id, dir, string(r.Name))
}

// detach takes a name away. A directory that the target does not have has no names to take.
func (a *applier) detach(r *wire.Record) error {
	dir, ok, err := a.ids.Get(r.Dir)
	if err != nil || !ok {
		return err
	}
	return a.vol.MoveAside(dir, string(r.Name))
}
