package journal

import (
	"fmt"
	"io/fs"
	"strings"
)

// TouchName records that the name is about to change, and what it stands for now (zero: nothing). The
// first touch in an epoch wins, later ones are free. Nothing is recorded when dir was itself created in
// this epoch (B1).
func (j *Journal) TouchName(dir Ident, name string, was Ident) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("%w: name of %d bytes", ErrTooLarge, len(name))
	}
	if strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("%w: name %q has a zero byte", fs.ErrInvalid, name)
	}
	key := nameKey{dir, name}
	j.mu.Lock()
	defer j.mu.Unlock()
	var absent *generation // the one for which the older records were seen not to have the name
	for {
		n := j.state.epoch
		d := j.active.inode(n, dir)
		if _, ok := j.active.name(n, key); ok || d != nil && d.covers(Created, Extent{}) {
			return nil
		}
		r := record{kind: recordName, epoch: n, ident: dir, name: name, was: was}
		ready, err := j.makeRoom(&r, logReserve)
		switch {
		case err != nil || !ready:
		case d == nil:
			err = j.loadInode(n, dir)
		case absent != j.active:
			absent, err = j.loadName(n, key)
		default:
			return j.write(&r)
		}
		if err != nil {
			return err
		}
	}
}

// Before is how the journal learns what an inode is before a change, for the views of earlier seals. Its
// methods are called without the journal's lock, at most once for what they are asked, and only while a
// seal is held (see Hold); other touches of the same inode wait for them.
type Before interface {
	// Image gives the attributes and extended attributes as they are now.
	Image() (Image, error)
	// Keep copies the content of x, as it is now, to where a view finds it as kept in epoch n. When it
	// returns nil the copy can be read; one that was made before is made again, and is then the same.
	Keep(n Epoch, x Extents) error
	// Where gives one of the inode's names, as far as that is known without looking for it.
	Where() (dir Ident, name string, ok bool)
}

// TouchMeta records that attributes or extended attributes of id are about to change. On the first touch of
// the inode in this epoch b gives what they were; nil keeps nothing.
func (j *Journal) TouchMeta(id Ident, b Before) error {
	return j.touch(id, Meta, Extent{}, b)
}

// TouchLost is TouchMeta for an inode that is about to lose its last name and is kept, since a view needs it.
func (j *Journal) TouchLost(id Ident, b Before) error {
	return j.touch(id, Meta|Lost, Extent{}, b)
}

// TouchFound is TouchMeta for an inode that is about to get a name again after TouchLost.
func (j *Journal) TouchFound(id Ident, b Before) error {
	return j.touch(id, Meta|Found, Extent{}, b)
}

// TouchData records that the bytes x are about to change: by a write, a truncation (up to MaxOffset), a
// hole. It implies TouchMeta; what of x was not touched in this epoch before is kept by b. An inode that was there
// before is put on the activity list first, if it is not there, and that is waited for (see Announce). No extent is
// recorded when id was created in this epoch (B1). Extents are exact until a file has more than
// Options.MaxExtents of them in this epoch (B3). When x is recorded already it costs a short lock and no
// allocation.
func (j *Journal) TouchData(id Ident, x Extent, b Before) error {
	x.Off = max(x.Off, 0)
	if x.End <= x.Off {
		return j.touch(id, Meta, Extent{}, b)
	}
	return j.touch(id, Meta|Data, x, b)
}

func (j *Journal) touch(id Ident, what What, x Extent, b Before) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.state.held) > 0 {
		x = x.outward(j.options.Block)
	}
	e := j.active.inode(j.state.epoch, id)
	noted := what&Data == 0 || e != nil && e.round == j.round
	if noted && e != nil && e.covers(what, x) {
		return nil
	}
	r := record{kind: recordInode, epoch: j.state.epoch, ident: id, what: what, extent: x}
	if err := j.touchMore(&r, b); err != nil || noted {
		return err
	}
	return j.announced(id)
}

// touchMore records a touch that adds something. mu is held, and dropped where that takes time; then all is
// looked at again. The epoch cannot change meanwhile, the operation being inside the gate.
func (j *Journal) touchMore(r *record, b Before) (err error) {
	var mine chan struct{} // while it is in j.imaging nobody else adds to what is known of the inode
	defer func() {
		if mine != nil {
			delete(j.imaging, r.ident)
			close(mine)
		}
	}()
	kept := false
	for {
		e := j.active.inode(r.epoch, r.ident)
		if e != nil && e.covers(r.what, r.extent) {
			return nil
		}
		ready, err := j.makeRoom(r, logReserve)
		switch {
		case err != nil || !ready:
		case e == nil:
			err = j.loadInode(r.epoch, r.ident)
		case kept || b == nil || len(j.state.held) == 0:
			first := e.what == 0
			if err = j.write(r); err == nil && first && mine != nil {
				err = j.noteWhere(r, b)
			}
			return err
		case mine != nil:
			r.image, err = j.keep(r, e, b)
			kept = true
		case j.imaging[r.ident] != nil:
			j.await(j.imaging[r.ident])
		default:
			mine = make(chan struct{})
			j.imaging[r.ident] = mine
		}
		if err != nil {
			return err
		}
	}
}

// await waits for c without mu.
func (j *Journal) await(c <-chan struct{}) {
	j.mu.Unlock()
	<-c
	j.mu.Lock()
}

// keep has b keep what a touch is the first of, without mu, and gives the encoded image, if there has to be
// one. What was kept since the newest held seal already need not be kept again: all held seals find it there.
// e is what is known of the inode in this epoch.
func (j *Journal) keep(r *record, e *inodeEntry, b Before) ([]byte, error) {
	first, missing := e.what == 0, j.missing(e, r.extent)
	earlier, touched, err := j.within(j.state.newestHeld(), r.epoch-1, r.ident)
	if err != nil || touched && earlier.What&Created != 0 {
		return nil, err
	}
	missing = missing.Subtract(earlier.Extents)
	j.mu.Unlock()
	defer j.mu.Lock()
	var encoded []byte
	if first && !touched { // before the content, reading which may change the access time
		image, err := b.Image()
		if err == nil {
			encoded, err = encodeImage(&image)
		}
		if err != nil {
			return nil, err
		}
	}
	if len(missing) == 0 {
		return encoded, nil
	}
	return encoded, b.Keep(r.epoch, missing)
}

// missing gives what a touch of x adds to an inode's extents: where they are about to get coarser, that is
// more than x.
func (j *Journal) missing(e *inodeEntry, x Extent) Extents {
	if x.End <= x.Off {
		return nil
	}
	if e.extents.count < j.options.MaxExtents {
		return Extents{x}.Subtract(e.extents.within(x))
	}
	all := e.extents.flat()
	return all.Add(x).Coarsen(j.options.MaxExtents / 2).Subtract(all)
}

// noteWhere records one name of an inode that was just touched for the first time in its epoch.
func (j *Journal) noteWhere(touched *record, b Before) error {
	dir, name, ok := b.Where()
	if !ok || name == "" || len(name) > maxName {
		return nil
	}
	r := record{kind: recordWhere, epoch: touched.epoch, ident: touched.ident, was: dir, name: name}
	for {
		if ready, err := j.makeRoom(&r, logReserve); err != nil {
			return err
		} else if ready {
			return j.write(&r)
		}
	}
}

// NoteCreated records that id was made in this epoch. It is called after the creation, the identity not
// being known before, and after TouchName for its name, so that a crash in between leaves a touched name.
// It is called too when an inode without a name gets its first one.
func (j *Journal) NoteCreated(id Ident) error {
	return j.noteNew(id, func() uint64 { return j.round })
}

// NoteArrived is NoteCreated for an inode that came from elsewhere, where it may have been for long: its change time
// does not tell that its content changes now, so the activity list has to, as for one that was always here.
func (j *Journal) NoteArrived(id Ident) error {
	return j.noteNew(id, func() uint64 { return 0 })
}

// noteNew calls made with mu held: in which round the inode was made.
func (j *Journal) noteNew(id Ident, made func() uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	r := record{kind: recordInode, epoch: j.state.epoch, ident: id, what: Created}
	for {
		if e := j.active.inode(r.epoch, id); e != nil && e.what&Created != 0 && !e.removed {
			return nil
		}
		// Nothing needs loading: the entry replaces whatever an older one says.
		if ready, err := j.makeRoom(&r, logReserve); err != nil {
			return err
		} else if ready {
			err = j.write(&r)
			if e := j.active.inode(r.epoch, id); err == nil {
				e.round = made()
			}
			return err
		}
	}
}

// NoteRemoved records that id, if it was created in this same epoch, has lost its last name: there is
// nothing to send of it (B2). Otherwise it does nothing. A record that cannot be written costs only that
// saving, so there is no error.
func (j *Journal) NoteRemoved(id Ident) {
	j.mu.Lock()
	defer j.mu.Unlock()
	r := record{kind: recordRemoved, epoch: j.state.epoch, ident: id}
	for {
		e := j.active.inode(r.epoch, id)
		if e != nil && (e.what&Created == 0 || e.removed) {
			return
		}
		ready, err := j.makeRoom(&r, logReserve)
		switch {
		case err != nil || !ready:
		case e == nil:
			err = j.loadInode(r.epoch, id)
		default:
			err = j.write(&r)
		}
		if err != nil {
			j.options.Logger.Debug("journal: removal not recorded", "inode", id, "error", err)
			return
		}
	}
}

// loadInode brings what older records of the epoch say of an inode into the active generation. It may drop
// mu; when the generation has changed meanwhile it does nothing, and the caller looks again.
func (j *Journal) loadInode(n Epoch, id Ident) error {
	g := j.active
	e, err := j.olderInode(n, id)
	if err == nil && j.active == g && g.inode(n, id) == nil {
		g.putInode(n, id, e)
	}
	return err
}

func (j *Journal) olderInode(n Epoch, id Ident) (*inodeEntry, error) {
	if f := j.frozen.inode(n, id); f != nil {
		return &inodeEntry{what: f.what, removed: f.removed, round: f.round, extents: f.extents.clone()}, nil
	}
	if !j.state.isStored(n) {
		return &inodeEntry{}, nil
	}
	j.mu.Unlock()
	defer j.mu.Lock()
	e, err := j.store.inode(n, id)
	if e == nil {
		e = &inodeEntry{}
	}
	return e, err
}

// loadName is loadInode for a name. It gives the generation for which the name was looked for.
func (j *Journal) loadName(n Epoch, key nameKey) (*generation, error) {
	g := j.active
	was, ok, err := j.olderName(n, key)
	if err != nil || j.active != g {
		return nil, err
	}
	if _, here := g.name(n, key); ok && !here {
		g.putName(n, nameKey{key.dir, strings.Clone(key.name)}, was, false)
	}
	return g, nil
}

func (j *Journal) olderName(n Epoch, key nameKey) (Ident, bool, error) {
	if f, ok := j.frozen.name(n, key); ok {
		return f.was, true, nil
	}
	if !j.state.isStored(n) {
		return Ident{}, false, nil
	}
	j.mu.Unlock()
	defer j.mu.Lock()
	return j.store.name(n, key)
}
