package replicator

import (
	"context"

	"tandemfs/journal"
	"tandemfs/replicator/wire"
)

// mender is the reaction of a transfer that compares: it makes the target what the source is.
type mender struct{ a *applier }

func (m mender) surplus(at *listing, name string) error {
	at.changed = true
	return m.a.vol.MoveAside(at.here, name)
}

func (m mender) lacking(at *listing, r *wire.Record, _ journal.Ident) (journal.Ident, error) {
	at.changed = true
	return m.a.produce(making{from: r.Ident, fresh: true, creation: Creation{
		Mode: r.Attr.Mode, Rdev: r.Attr.Rdev, Symlink: string(r.Symlink), Dir: at.here, Name: string(r.Name)}})
}

func (m mender) pair(_ *listing, r *wire.Record, here journal.Ident) error {
	return m.a.ids.Put(r.Ident, here)
}

func (m mender) misplaced(at *listing, name string, here, _ journal.Ident) error {
	at.changed = true
	return m.a.vol.Place(here, at.here, name)
}

func (m mender) attributes(_ func() string, from, here journal.Ident, image journal.Image) error {
	return m.a.setImage(from, here, image)
}

func (m mender) content(_ *comparedFile, x journal.Extents) (journal.Extents, error) { return x, nil }

// compareWith makes the transfer one that compares. The view is of the volume as it is now, not as its readers see
// it: what an interrupted transfer left is what there is to mend.
func (a *applier) compareWith(ctx context.Context, root journal.Ident, ask func(wire.Want) error) error {
	if err := a.ids.Put(root, a.vol.Root()); err != nil {
		return err
	}
	view, err := a.vol.Seal()
	if err != nil {
		return err
	}
	doubts := func(journal.Ident, journal.Time) bool { return false }
	if j := a.vol.Journal(); !j.Clean() { // of what was being written here when power was lost
		doubts = j.Active().Doubts
	}
	a.comparer = &comparer{ctx: ctx, view: view, ids: a.ids, act: mender{a}, ask: ask, exact: true, doubts: doubts}
	return a.comparer.begin(root, a.vol.Root())
}

// endCompare lets go of what a comparison holds.
func (a *applier) endCompare() error {
	c := a.comparer
	if c == nil {
		return nil
	}
	a.comparer = nil
	return c.close()
}
