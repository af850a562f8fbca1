package volume

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"tandemfs/journal"
	"tandemfs/journal/crashpoint"
)

// SnapshotDir is the name under which every directory of a mount shows what it was at each snapshot.
const SnapshotDir = ".snapshot"

// Snapshot is a seal that a person or a policy asked to keep.
type Snapshot struct {
	Name    string        `json:"name"`
	Epoch   journal.Epoch `json:"epoch"`
	Created time.Time     `json:"created"`
	Expires time.Time     `json:"expires,omitzero"` // zero: never
	// Suspect: power was lost while the snapshot was kept, and what was being copied for it may be missing.
	Suspect bool `json:"suspect,omitempty"`
}

// snapshots are a volume's snapshots, each with its open view.
//
// Who takes one waits for a seal, that is for every operation under way, and on a target for a turn, that is for
// requests. Both may ask for the list meanwhile, so only mu, with which nobody waits for them, stands before that.
type snapshots struct {
	changing sync.Mutex // held while one is taken, changed or deleted; taken before mu
	mu       sync.Mutex // held while byName is used
	byName   map[string]*openSnapshot
}

// set notes a snapshot, or with nil that there is none of the name.
func (s *snapshots) set(name string, o *openSnapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o == nil {
		delete(s.byName, name)
		return
	}
	s.byName[name] = o
}

// get gives a snapshot; nil when there is none.
func (s *snapshots) get(name string) *openSnapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byName[name]
}

type openSnapshot struct {
	Snapshot
	view *View
}

// snapshotKey is under what the journal keeps a snapshot, as JSON.
func snapshotKey(name string) string { return snapshotKeys + name }

const snapshotKeys = "volume/snapshot/"

// recallSnapshots opens the snapshots that an earlier process kept.
func (v *Volume) recallSnapshots() error {
	v.snapshots.byName = map[string]*openSnapshot{}
	values, err := v.journal.States(snapshotKeys)
	if err != nil {
		return err
	}
	for key, value := range values {
		var s Snapshot
		if err := json.Unmarshal(value, &s); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		view, err := v.holdView(s.Epoch)
		if v.lostHold(err) {
			v.log.Warn("a snapshot was being made or deleted when power was lost: it is gone", "snapshot", s.Name)
			if err := v.journal.SetState(key, nil); err != nil {
				return err
			}
			continue
		}
		if err == nil && !v.journal.Clean() && !s.Suspect {
			s.Suspect = true
			err = v.saveSnapshot(s)
		}
		if err != nil {
			return fmt.Errorf("snapshot %q: %w", s.Name, err)
		}
		v.snapshots.byName[s.Name] = &openSnapshot{s, view}
	}
	return nil
}

// checkSnapshotName refuses what could not be a name below SnapshotDir.
func checkSnapshotName(name string) error {
	if name == "" || len(name) > 255 || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") ||
		!utf8.ValidString(name) { // it is kept as JSON
		return fmt.Errorf("%q cannot be a snapshot's name (1 to 255 bytes of UTF-8, no slash): %w", name, fs.ErrInvalid)
	}
	return nil
}

// CreateSnapshot seals the volume and keeps the seal under a name; an empty one is made from the time. On a
// volume whose readers see a published seal it is that one that is kept. fs.ErrExist: the name is taken;
// fs.ErrInvalid: it cannot be a name.
func (v *Volume) CreateSnapshot(name string, expires time.Time) (Snapshot, error) {
	return v.newSnapshot(expires, func() (string, error) {
		if name == "" {
			return v.freeName(""), nil
		}
		if err := checkSnapshotName(name); err != nil {
			return "", err
		}
		if v.snapshots.get(name) != nil {
			return "", fmt.Errorf("snapshot %q of volume %s: %w", name, v.name, fs.ErrExist)
		}
		return name, nil
	})
}

// snapshotBefore takes the snapshot that a change of many files can be undone with.
func (v *Volume) snapshotBefore(what string) (Snapshot, error) {
	return v.newSnapshot(time.Time{}, func() (string, error) { return v.freeName("before-" + what + "_"), nil })
}

// newSnapshot takes a snapshot. The mount, which may wait for requests that list snapshots, is told without
// their mu.
func (v *Volume) newSnapshot(expires time.Time, name func() (string, error)) (Snapshot, error) {
	s, err := v.takeSnapshot(expires, name)
	if err == nil {
		v.mounted().SnapshotsChanged(s.Name)
	}
	return s, err
}

// takeSnapshot calls name when no other snapshot is being taken.
func (v *Volume) takeSnapshot(expires time.Time, name func() (string, error)) (s Snapshot, err error) {
	v.snapshots.changing.Lock()
	defer v.snapshots.changing.Unlock()
	if s.Name, err = name(); err != nil {
		return s, err
	}
	view, err := v.sealForSnapshot()
	if err != nil {
		return s, err
	}
	crashpoint.Here("volume/snapshot-sealed")
	s.Epoch, s.Created, s.Expires = view.epoch, time.Now().UTC(), expires
	if err := v.saveSnapshot(s); err != nil {
		return s, errors.Join(err, view.Close())
	}
	crashpoint.Here("volume/snapshot-saved")
	v.snapshots.set(s.Name, &openSnapshot{s, view})
	return s, nil
}

// freeName makes a name from the time, without characters that Windows does not show. Called when no other
// snapshot is being taken.
func (v *Volume) freeName(prefix string) string {
	base := prefix + time.Now().UTC().Format("2006-01-02_15.04.05")
	name := base
	for i := 2; v.snapshots.get(name) != nil; i++ {
		name = fmt.Sprintf("%s_%d", base, i)
	}
	return name
}

// sealForSnapshot gives the view that a new snapshot is of.
func (v *Volume) sealForSnapshot() (*View, error) {
	v.turning.Lock()
	defer v.turning.Unlock()
	if w := v.published.Load(); w != nil {
		return v.holdView(w.epoch)
	}
	n, err := v.journal.Seal(true)
	if err != nil {
		return nil, err
	}
	return v.newView(n), nil
}

func (v *Volume) saveSnapshot(s Snapshot) error {
	value, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return v.journal.SetState(snapshotKey(s.Name), value)
}

// Snapshots lists the snapshots, oldest first.
func (v *Volume) Snapshots() []Snapshot {
	v.snapshots.mu.Lock()
	defer v.snapshots.mu.Unlock()
	list := make([]Snapshot, 0, len(v.snapshots.byName))
	for _, s := range v.snapshots.byName {
		list = append(list, s.Snapshot)
	}
	slices.SortFunc(list, func(a, b Snapshot) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	return list
}

// find gives a snapshot, which stays what it is: a change of it puts another one in its place.
func (v *Volume) find(name string) (*openSnapshot, error) {
	if s := v.snapshots.get(name); s != nil {
		return s, nil
	}
	return nil, v.noSnapshot(name)
}

func (v *Volume) noSnapshot(name string) error {
	return fmt.Errorf("snapshot %q of volume %s: %w", name, v.name, fs.ErrNotExist)
}

// Snapshot finds a snapshot; fs.ErrNotExist if there is none.
func (v *Volume) Snapshot(name string) (Snapshot, error) {
	s, err := v.find(name)
	if err != nil {
		return Snapshot{}, err
	}
	return s.Snapshot, nil
}

// OpenSnapshot gives a snapshot with the view of it, which the caller closes.
func (v *Volume) OpenSnapshot(name string) (Snapshot, *View, error) {
	s, err := v.find(name)
	if err != nil {
		return Snapshot{}, nil, err
	}
	if !s.view.use() { // it is being deleted
		return Snapshot{}, nil, v.noSnapshot(name)
	}
	defer s.view.done()
	view, err := v.holdView(s.Epoch)
	return s.Snapshot, view, err
}

// DeleteSnapshot lets go of a snapshot; what it alone held is freed in the background.
func (v *Volume) DeleteSnapshot(name string) error {
	view, err := v.forgetSnapshot(name)
	if err != nil {
		return err
	}
	v.mounted().SnapshotsChanged(name)
	return view.Close()
}

// forgetSnapshot takes a snapshot out of the list and gives its view.
func (v *Volume) forgetSnapshot(name string) (*View, error) {
	v.snapshots.changing.Lock()
	defer v.snapshots.changing.Unlock()
	s, err := v.find(name)
	if err != nil {
		return nil, err
	}
	if err := v.journal.SetState(snapshotKey(name), nil); err != nil {
		return nil, err
	}
	crashpoint.Here("volume/snapshot-forgotten")
	v.snapshots.set(name, nil)
	return s.view, nil
}

// SetSnapshotExpiry says when a snapshot may be deleted; zero: never.
func (v *Volume) SetSnapshotExpiry(name string, expires time.Time) error {
	v.snapshots.changing.Lock()
	defer v.snapshots.changing.Unlock()
	s, err := v.find(name)
	if err != nil {
		return err
	}
	changed := &openSnapshot{s.Snapshot, s.view}
	changed.Expires = expires
	if err := v.saveSnapshot(changed.Snapshot); err != nil {
		return err
	}
	v.snapshots.set(name, changed)
	return nil
}
