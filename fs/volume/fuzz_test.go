package volume

import (
	"errors"
	"io/fs"
	"slices"
	"testing"
	"time"
)

// prepared protects a new directory until the fuzz target ends, with two snapshots that differ in one file.
func prepared(f *testing.F) *Volume {
	v, err := Open(f.TempDir(), Options{Name: "test", Create: true})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := v.Close(); err != nil {
			f.Error(err)
		}
	})
	for _, name := range []string{"a", "b"} {
		var n Inode
		err := v.CreateFile(v.Root(), name, 0o644, Caller{}, &n)
		if err == nil {
			_, err = v.CreateSnapshot(name, time.Time{})
		}
		if err != nil {
			f.Fatal(err)
		}
	}
	return v
}

// A cursor comes back from whoever was given one, or from anybody: it gives a page that is in order, or is refused.
func FuzzDiffCursor(f *testing.F) {
	for _, cursor := range []string{"", encodeCursor("b\x00created"), encodeCursor(""), "****", "18446744073709551616", "-1"} {
		f.Add(cursor, cursor, 1)
	}
	v := prepared(f)
	f.Fuzz(func(t *testing.T, names, regions string, limit int) {
		limit = 1 + max(limit, 0)%100
		changes, _, err := v.Diff("a", "b", names, limit)
		if err != nil && !errors.Is(err, fs.ErrInvalid) {
			t.Fatalf("%q: %v", names, err)
		}
		if len(changes) > limit || !slices.IsSortedFunc(changes, func(a, b Change) int { return compareChange(a, key(b)) }) {
			t.Fatalf("%q gives %+v", names, changes)
		}
		_, _, err = v.DiffFile("a", "b", "b", regions, limit)
		if err != nil && !errors.Is(err, fs.ErrInvalid) && !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("%q: %v", regions, err)
		}
	})
}

// What the journal keeps of a snapshot is read as one whose seal is held, or is an error.
func FuzzSnapshotValue(f *testing.F) {
	for _, value := range []string{`{"name":"c","epoch":1,"created":"2027-01-31T18:00:00Z"}`, `{"epoch":1e99}`, `{"name":"../x","epoch":-1}`, `[]`, "\x00"} {
		f.Add([]byte(value))
	}
	v := prepared(f)
	held := v.journal.Held()
	f.Fuzz(func(t *testing.T, value []byte) {
		kept := v.snapshots.byName
		if err := v.journal.SetState(snapshotKey("fuzzed"), value); err != nil {
			t.Fatal(err)
		}
		err := v.recallSnapshots()
		for _, s := range v.snapshots.byName {
			if !slices.Contains(held, s.Epoch) {
				t.Errorf("%q is read as a snapshot of seal %d, which is not held", value, s.Epoch)
			}
			err = errors.Join(err, s.view.Close())
		}
		v.snapshots.byName = kept
		if now := v.journal.Held(); err == nil && !slices.Equal(now, held) {
			t.Fatalf("%q leaves %v held, %v before", value, now, held)
		}
		if err := v.journal.SetState(snapshotKey("fuzzed"), nil); err != nil {
			t.Fatal(err)
		}
	})
}
