package journal

import (
	"fmt"
	"strings"
)

// TouchName records that the name is about to change, and what it stands for now (zero: nothing). The
// first touch in an epoch wins, later ones are free. Nothing is recorded when dir was itself created in
// this epoch (B1).
func (j *Journal) TouchName(dir Ident, name string, was Ident) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("%w: name of %d bytes", ErrTooLarge, len(name))
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

// TouchMeta records that attributes or extended attributes of id are about to change. was is called at
// most once, on the first touch of the inode in this epoch and only while a seal is held (see Hold); what
// it gives is kept as the before image. It runs without the journal's lock; other touches of the same
// inode wait for it.
func (j *Journal) TouchMeta(id Ident, was func() (Image, error)) error {
	return j.touch(id, Meta, Extent{}, was)
}

// TouchData records that the bytes e are about to change: by a write, a truncation (up to MaxOffset), a
// hole. It implies TouchMeta, with the same rule for was. No extent is recorded when id was created in this
// epoch (B1). Extents are exact until a file has more than Options.MaxExtents of them in this epoch (B3).
// When e is recorded already it costs a short lock and no allocation.
func (j *Journal) TouchData(id Ident, e Extent, was func() (Image, error)) error {
	e.Off = max(e.Off, 0)
	if e.End <= e.Off {
		return j.touch(id, Meta, Extent{}, was)
	}
	return j.touch(id, Meta|Data, e, was)
}

func (j *Journal) touch(id Ident, what What, x Extent, was func() (Image, error)) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if e := j.active.inode(j.state.epoch, id); e != nil && e.covers(what, x) {
		return nil
	}
	r := record{kind: recordInode, epoch: j.state.epoch, ident: id, what: what, extent: x}
	return j.touchMore(&r, was)
}

// touchMore records a touch that adds something. mu is held, and dropped where that takes time; then all is
// looked at again. The epoch cannot change meanwhile, the operation being inside the gate.
func (j *Journal) touchMore(r *record, was func() (Image, error)) (err error) {
	var mine chan struct{}
	defer func() {
		if mine != nil {
			delete(j.imaging, r.ident)
			close(mine)
		}
	}()
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
		case e.what != 0:
			r.image = nil
			return j.write(r)
		case mine != nil || was == nil || len(j.state.held) == 0:
			return j.write(r)
		case j.imaging[r.ident] != nil:
			j.await(j.imaging[r.ident])
		default:
			mine = make(chan struct{})
			j.imaging[r.ident] = mine
			r.image, err = j.takeImage(was)
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

// takeImage calls was without mu.
func (j *Journal) takeImage(was func() (Image, error)) ([]byte, error) {
	j.mu.Unlock()
	defer j.mu.Lock()
	image, err := was()
	if err != nil {
		return nil, err
	}
	return encodeImage(&image)
}

// NoteCreated records that id was made in this epoch. It is called after the creation, the identity not
// being known before, and after TouchName for its name, so that a crash in between leaves a touched name.
// It is called too when an inode without a name gets its first one.
func (j *Journal) NoteCreated(id Ident) error {
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
			return j.write(&r)
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
		return &inodeEntry{what: f.what, removed: f.removed, extents: f.extents.clone()}, nil
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
