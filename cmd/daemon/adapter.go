package daemon

import (
	"tandemfs/fs/volume"
	"tandemfs/journal"
	"tandemfs/replicator"
)

// openVolume is a volume as the replicator's interfaces have it: rooms on one level do not know each
// other's types.
type openVolume struct{ *volume.Volume }

func (v openVolume) Seal() (replicator.View, error) { return wrapView(v.Volume.Seal()) }

func (v openVolume) View(n journal.Epoch) (replicator.View, error) { return wrapView(v.Volume.View(n)) }

func (v openVolume) Create(c replicator.Creation) (journal.Ident, error) {
	return v.Volume.Create(c.Mode, c.Rdev, c.Symlink, c.Dir, c.Name)
}

func (v openVolume) OpenForApply(id journal.Ident) (replicator.ApplyFile, error) {
	f, err := v.Volume.OpenForApply(id)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// openView is a view, likewise.
type openView struct{ *volume.View }

func wrapView(v *volume.View, err error) (replicator.View, error) {
	if err != nil {
		return nil, err
	}
	return openView{v}, nil
}

func (v openView) ReadDir(dir journal.Ident) ([]replicator.DirEntry, error) {
	entries, err := v.View.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	list := make([]replicator.DirEntry, len(entries))
	for i, e := range entries {
		list[i] = replicator.DirEntry{Name: e.Name, Ident: e.Ident, Err: e.Err}
	}
	return list, nil
}

func (v openView) Open(id journal.Ident) (replicator.File, error) {
	f, err := v.View.Open(id)
	if err != nil {
		return nil, err
	}
	return f, nil
}
