package daemon

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"tandemfs/cmd/api"
	"tandemfs/fs/volume"
	"tandemfs/snapshotd"
)

// onVolume has do ask a mounted volume, which is not closed meanwhile.
func onVolume[T any](n *node, name string, do func(Volume) (T, error)) (T, error) {
	v, done, err := n.volumes.use(name)
	if err != nil {
		var none T
		return none, err
	}
	defer done()
	return do(v)
}

// Snapshots gives a volume's snapshots, oldest first.
func (n *node) Snapshots(name string) (api.SnapshotList, error) {
	return onVolume(n, name, func(v Volume) (api.SnapshotList, error) {
		alone, total, err := v.SnapshotSpace()
		list := api.SnapshotList{TotalBytes: total}
		if err != nil {
			return list, err
		}
		for _, s := range v.Snapshots() {
			list.Snapshots = append(list.Snapshots, describeSnapshot(s, alone))
		}
		return list, nil
	})
}

func describeSnapshot(s volume.Snapshot, alone map[string]int64) api.Snapshot {
	return api.Snapshot{Name: s.Name, Created: s.Created.UTC(), Expires: s.Expires.UTC(), Bytes: alone[s.Name], Suspect: s.Suspect}
}

// Snapshot finds a snapshot of a volume.
func (n *node) Snapshot(name, snapshot string) (api.Snapshot, error) {
	return onVolume(n, name, func(v Volume) (api.Snapshot, error) { return findSnapshot(v, snapshot) })
}

func findSnapshot(v Volume, name string) (api.Snapshot, error) {
	s, err := v.Snapshot(name)
	if err != nil {
		return api.Snapshot{}, snapshotError(v, name, err)
	}
	alone, _, err := v.SnapshotSpace()
	return describeSnapshot(s, alone), err
}

// held gives the bytes that each snapshot alone holds, to whoever does not need them to go on.
func (n *node) held(v Volume) map[string]int64 {
	alone, _, err := v.SnapshotSpace()
	if err != nil {
		n.log.Warn("snapshot space unknown", "volume", v.Name(), "error", err)
	}
	return alone
}

// snapshotError says in the user's words what is wrong with a snapshot's name.
func snapshotError(v Volume, name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return api.Errorf(api.CodeNotFound, "volume %s has no snapshot %q (`tandemfs snapshot list %s` shows those there are)",
			v.Name(), name, v.Name())
	case errors.Is(err, fs.ErrExist):
		return api.Errorf(api.CodeConflict, "volume %s has a snapshot %q already: choose another name", v.Name(), name)
	case errors.Is(err, fs.ErrInvalid):
		return api.Errorf(api.CodeInvalid, "%q cannot be a snapshot's name: %v", name, err)
	}
	return err
}

// CreateSnapshot takes a snapshot. Deleting one that was just taken would free nothing: its Bytes are 0.
func (n *node) CreateSnapshot(_ context.Context, name string, want api.CreateSnapshot) (api.Snapshot, error) {
	if err := n.checkExpiry(want.Expires); err != nil {
		return api.Snapshot{}, err
	}
	return onVolume(n, name, func(v Volume) (api.Snapshot, error) {
		s, err := v.CreateSnapshot(want.Name, want.Expires)
		if err != nil {
			return api.Snapshot{}, snapshotError(v, want.Name, err)
		}
		n.log.Info("snapshot created", "volume", name, "snapshot", s.Name, "expires", expiryText(s.Expires))
		return describeSnapshot(s, nil), nil
	})
}

func (n *node) checkExpiry(expires time.Time) error {
	if err := snapshotd.CheckExpiry(expires, n.now()); err != nil {
		return api.Errorf(api.CodeInvalid, "%s cannot be an expiry: %v", expiryText(expires), err)
	}
	return nil
}

func expiryText(expires time.Time) string {
	if expires.IsZero() {
		return snapshotd.Never
	}
	return expires.UTC().Format(time.RFC3339)
}

// DeleteSnapshot deletes a snapshot.
func (n *node) DeleteSnapshot(_ context.Context, name, snapshot string) (api.Snapshot, error) {
	return onVolume(n, name, func(v Volume) (api.Snapshot, error) {
		s, err := v.Snapshot(snapshot)
		was := describeSnapshot(s, n.held(v))
		if err == nil {
			err = v.DeleteSnapshot(snapshot)
		}
		if err != nil {
			return api.Snapshot{}, snapshotError(v, snapshot, err)
		}
		n.log.Info("snapshot deleted", "volume", name, "snapshot", snapshot)
		return was, nil
	})
}

// SetSnapshotExpiry says when a snapshot may be deleted.
func (n *node) SetSnapshotExpiry(_ context.Context, name, snapshot string, want api.SetExpiry) (api.Snapshot, error) {
	if err := n.checkExpiry(want.Expires); err != nil {
		return api.Snapshot{}, err
	}
	return onVolume(n, name, func(v Volume) (api.Snapshot, error) {
		n.expiry.Lock()
		defer n.expiry.Unlock()
		s, err := v.Snapshot(snapshot)
		if err == nil {
			err = v.SetSnapshotExpiry(snapshot, want.Expires)
		}
		if err != nil {
			return api.Snapshot{}, snapshotError(v, snapshot, err)
		}
		s.Expires = want.Expires
		n.log.Info("snapshot expiry set", "volume", name, "snapshot", snapshot, "expires", expiryText(s.Expires))
		return describeSnapshot(s, n.held(v)), nil
	})
}

// Diff gives a page of what differs between two snapshots.
func (n *node) Diff(name string, want api.Diff) (api.ChangeList, error) {
	return onVolume(n, name, func(v Volume) (api.ChangeList, error) {
		var list api.ChangeList
		if err := haveSnapshots(v, want.From, want.To); err != nil {
			return list, err
		}
		changes, next, err := v.Diff(want.From, want.To, want.Cursor, want.Limit)
		for _, c := range changes {
			list.Changes = append(list.Changes, api.Change{Kind: api.ChangeKind(c.Kind), Path: c.Path, From: c.From, Dir: c.Dir})
		}
		list.Cursor = next
		return list, err
	})
}

// DiffFile gives a page of where a file differs between two snapshots.
func (n *node) DiffFile(name string, want api.Diff) (api.RegionList, error) {
	file, err := inVolume(want.File)
	if err != nil {
		return api.RegionList{}, err
	}
	return onVolume(n, name, func(v Volume) (api.RegionList, error) {
		var list api.RegionList
		if err := haveSnapshots(v, want.From, want.To); err != nil {
			return list, err
		}
		regions, next, err := v.DiffFile(want.From, want.To, file, want.Cursor, want.Limit)
		for _, r := range regions {
			list.Regions = append(list.Regions, api.Region(r))
		}
		list.Cursor = next
		return list, pathError(want.To, file, err)
	})
}

// haveSnapshots makes sure that what is missing later is a path, and not a snapshot.
func haveSnapshots(v Volume, names ...string) error {
	for _, name := range names {
		if _, err := v.Snapshot(name); err != nil {
			return snapshotError(v, name, err)
		}
	}
	return nil
}

// inVolume cleans a path that is meant from the volume's root on, with or without a slash at its start; "" is
// the root itself.
func inVolume(text string) (string, error) {
	if slices.Contains(strings.Split(text, "/"), "..") {
		return "", api.Errorf(api.CodeInvalid, "%q cannot be a path in a volume: write it without \"..\"", text)
	}
	return strings.TrimPrefix(path.Clean("/"+text), "/"), nil
}

// pathError says in the user's words that a path is missing.
func pathError(snapshot, file string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return api.Errorf(api.CodeNotFound, "there is no %q in snapshot %q: paths are meant from the volume's root on", file, snapshot)
	}
	return err
}

// Restore makes a volume, or a part of it, what it was at a snapshot.
func (n *node) Restore(_ context.Context, name string, want api.Restore) (api.Snapshot, error) {
	part, err := inVolume(want.Path)
	if err != nil {
		return api.Snapshot{}, err
	}
	return onVolume(n, name, func(v Volume) (api.Snapshot, error) {
		if err := n.checkWritable(name); err != nil {
			return api.Snapshot{}, err
		}
		if err := haveSnapshots(v, want.Snapshot); err != nil {
			return api.Snapshot{}, err
		}
		first, err := v.Restore(want.Snapshot, part)
		if err != nil && part != "" {
			err = pathError(want.Snapshot, part, err)
		}
		if err != nil {
			return api.Snapshot{}, err
		}
		n.log.Info("snapshot restored", "volume", name, "snapshot", want.Snapshot, "path", part, "before", first.Name)
		return describeSnapshot(first, n.held(v)), nil
	})
}

// checkWritable refuses a target: only its source changes it.
func (n *node) checkWritable(name string) error {
	e, err := n.volumes.find(name)
	if err != nil {
		return err
	}
	if n.volumes.recordOf(e).ReadOnly {
		return api.Errorf(api.CodeConflict, "volume %s is the target of a relationship and read-only: "+
			"restore on its source, or delete the relationship first", name)
	}
	return nil
}
