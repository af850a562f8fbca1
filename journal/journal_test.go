package journal

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// quiet keeps the journal's messages out of a test's output.
var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// small makes logs switch and memory drop after a few hundred records.
func small() Options { return Options{Logger: quiet, logSize: 16 << 10, MaxMemory: 64 << 10} }

func open(t testing.TB, dir string, o Options) *Journal {
	t.Helper()
	if o.Logger == nil {
		o.Logger = quiet
	}
	j, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// inside runs f as one operation.
func inside(j *Journal, f func() error) error {
	j.Enter()
	defer j.Leave()
	return f()
}

func touchName(t testing.TB, j *Journal, dir Ident, name string, was Ident) {
	t.Helper()
	must(t, inside(j, func() error { return j.TouchName(dir, name, was) }))
}

func touchData(t testing.TB, j *Journal, id Ident, e Extent, was Before) {
	t.Helper()
	must(t, inside(j, func() error { return j.TouchData(id, e, was) }))
}

func touchMeta(t testing.TB, j *Journal, id Ident, was Before) {
	t.Helper()
	must(t, inside(j, func() error { return j.TouchMeta(id, was) }))
}

func created(t testing.TB, j *Journal, id Ident) {
	t.Helper()
	must(t, inside(j, func() error { return j.NoteCreated(id) }))
}

func seal(t testing.TB, j *Journal, hold bool) Epoch {
	t.Helper()
	n, err := j.Seal(hold)
	must(t, err)
	return n
}

// before is a Before that has attributes only.
type before func() (Image, error)

func (b before) Image() (Image, error)      { return b() }
func (before) Keep(Epoch, Extents) error    { return nil }
func (before) Where() (Ident, string, bool) { return Ident{}, "", false }

func imageOf(size int64) before {
	return func() (Image, error) { return testImage(size), nil }
}

func testImage(size int64) Image {
	return Image{Attr: Attr{Mode: 0o100644, Nlink: 1, Size: size, Mtime: Time{Sec: -5, Nsec: 7}},
		Xattrs: []Xattr{{Name: "user.a", Value: []byte("b")}}}
}

func ino(n int) Ident { return Ident{Ino: uint64(n), Gen: 1} }

func inodesOf(t testing.TB, j *Journal, after, upto Epoch) map[Ident]InodeChange {
	t.Helper()
	c, err := j.Changes(after, upto)
	must(t, err)
	got := map[Ident]InodeChange{}
	last := Ident{}
	must(t, c.Inodes(func(i InodeChange) error {
		if !last.Less(i.Ident) {
			t.Errorf("inode %v came after %v", i.Ident, last)
		}
		last = i.Ident
		got[i.Ident] = i
		return nil
	}))
	return got
}

func namesOf(t testing.TB, j *Journal, after, upto Epoch) map[nameKey]Ident {
	t.Helper()
	c, err := j.Changes(after, upto)
	must(t, err)
	got := map[nameKey]Ident{}
	var last nameKey
	must(t, c.Names(func(n NameChange) error {
		key := nameKey{n.Dir, n.Name}
		if compareName(last, key) >= 0 {
			t.Errorf("name %v came after %v", key, last)
		}
		last = key
		got[key] = n.Was
		return nil
	}))
	return got
}

// fill makes enough records about inodes that no test looks at for the logs to switch at least twice.
func fill(t testing.TB, j *Journal) {
	t.Helper()
	for i := range 1500 {
		touchMeta(t, j, Ident{Ino: 1 << 40, Gen: uint64(i)}, nil)
	}
}

func TestTheUnionOfEpochsHasWhatWasTouchedInThem(t *testing.T) {
	j := open(t, t.TempDir(), Options{})
	touchName(t, j, ino(1), "a", Ident{})
	created(t, j, ino(10))
	touchData(t, j, ino(20), Extent{0, 4096}, nil)
	first := seal(t, j, false)
	touchName(t, j, ino(1), "a", ino(10))
	touchName(t, j, ino(1), "b", ino(11))
	touchData(t, j, ino(20), Extent{4096, 8192}, nil)
	touchData(t, j, ino(20), Extent{1 << 20, MaxOffset}, nil)
	touchMeta(t, j, ino(30), nil)
	second := seal(t, j, false)

	want := map[Ident]InodeChange{
		ino(10): {Ident: ino(10), What: Created},
		ino(20): {Ident: ino(20), What: Meta | Data, Extents: []Extent{{0, 8192}, {1 << 20, MaxOffset}}},
		ino(30): {Ident: ino(30), What: Meta},
	}
	if got := inodesOf(t, j, 0, second); !reflect.DeepEqual(got, want) {
		t.Errorf("inodes after 0: %v, want %v", got, want)
	}
	if got := namesOf(t, j, 0, second); !reflect.DeepEqual(got, map[nameKey]Ident{{ino(1), "a"}: {}, {ino(1), "b"}: ino(11)}) {
		t.Errorf("names after 0: %v", got)
	}
	if got := namesOf(t, j, first, second); got[nameKey{ino(1), "a"}] != ino(10) {
		t.Errorf("names after the first seal: %v", got)
	}
	c, err := j.Changes(first, second)
	must(t, err)
	if got, ok, err := c.Inode(ino(20)); err != nil || !ok || len(got.Extents) != 2 {
		t.Errorf("Inode(20) = %v, %v, %v", got, ok, err)
	}
	if _, ok, _ := c.Inode(ino(10)); ok {
		t.Error("an inode of an earlier epoch is in the range")
	}
	if inodes, names, bytes := c.Totals(); inodes != 2 || names != 2 || bytes != 4096 {
		t.Errorf("totals: %d inodes, %d names, %d bytes", inodes, names, bytes)
	}
}

func TestWhatWasCreatedInAnEpochNeedsNoFinerRecords(t *testing.T) {
	j := open(t, t.TempDir(), Options{})
	created(t, j, ino(10))
	written := j.written
	touchData(t, j, ino(10), Extent{0, 10}, before(func() (Image, error) { return Image{}, errors.New("called") }))
	touchName(t, j, ino(10), "x", Ident{})
	if j.written != written {
		t.Errorf("%d records were written", j.written-written)
	}
	seal(t, j, false)
	touchName(t, j, ino(10), "y", Ident{})
	n := seal(t, j, false)
	if got := namesOf(t, j, 0, n); len(got) != 0 {
		t.Errorf("names in a directory that is new in the range: %v", got)
	}
	if got := namesOf(t, j, n-1, n); len(got) != 1 {
		t.Errorf("names in a directory that is old in the range: %v", got)
	}
}

func TestWhatWasCreatedAndRemovedInAnEpochLeavesNothing(t *testing.T) {
	for dropped := range 3 { // from memory: never, before the removal, after it too
		j := open(t, t.TempDir(), small())
		created(t, j, ino(10))
		if dropped > 0 {
			fill(t, j)
		}
		j.NoteRemoved(ino(10))
		touchData(t, j, ino(10), Extent{0, 10}, nil)
		touchMeta(t, j, ino(11), nil)
		j.NoteRemoved(ino(11))
		if dropped > 1 {
			fill(t, j)
		}
		n := seal(t, j, false)
		got := inodesOf(t, j, 0, n)
		if _, ok := got[ino(10)]; ok {
			t.Errorf("dropped %d: the removed inode is still there: %v", dropped, got[ino(10)])
		}
		if _, ok := got[ino(11)]; !ok {
			t.Errorf("dropped %d: an inode of an earlier epoch was taken out", dropped)
		}
		must(t, j.Close())
	}
}

func TestAFileWithoutANameIsCreatedWhenItGetsOne(t *testing.T) {
	j := open(t, t.TempDir(), Options{})
	touchData(t, j, ino(10), Extent{0, 10}, nil)
	created(t, j, ino(10))
	n := seal(t, j, false)
	if got := inodesOf(t, j, 0, n)[ino(10)]; got.What != Created || got.Extents != nil {
		t.Errorf("got %v", got)
	}
}

func TestDirtyAndChangedTellOfTheFirstRecordOfAnEpoch(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, Options{})
	if j.Dirty() {
		t.Error("a new journal is dirty")
	}
	touchMeta(t, j, ino(1), nil)
	touchMeta(t, j, ino(2), nil)
	if !j.Dirty() {
		t.Error("not dirty after a touch")
	}
	<-j.Changed()
	select {
	case <-j.Changed():
		t.Error("the second record was signalled too")
	default:
	}
	seal(t, j, false)
	if j.Dirty() {
		t.Error("dirty after a seal")
	}
	touchMeta(t, j, ino(1), nil)
	must(t, j.Close())
	j = open(t, dir, Options{})
	<-j.Changed()
	if !j.Dirty() {
		t.Error("not dirty after a restart in a dirty epoch")
	}
}

func TestASecondOpenerIsRefused(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, Options{})
	if _, err := Open(dir, Options{Logger: quiet}); !errors.Is(err, ErrBusy) {
		t.Errorf("got %v", err)
	}
}

func TestAnUnknownFormatIsRefused(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, markFile), []byte("tandem-journal 4\nid ab\n"), 0o600))
	if _, err := Open(dir, Options{Logger: quiet}); !errors.Is(err, ErrVersion) {
		t.Errorf("got %v", err)
	}
	must(t, os.WriteFile(filepath.Join(dir, markFile), []byte("#!/bin/sh\n"), 0o600))
	if _, err := Open(dir, Options{Logger: quiet}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v", err)
	}
}

func TestAStoreThatDoesNotOpenIsCalledCorrupt(t *testing.T) {
	dir := t.TempDir()
	must(t, open(t, dir, Options{}).Close())
	must(t, os.WriteFile(filepath.Join(dir, "store", "MANIFEST"), []byte("not a manifest at all"), 0o600))
	_, err := Open(dir, Options{Logger: quiet})
	if !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v", err)
	}
}

func TestOnlyASealedEpochCanBeAskedForOrForgotten(t *testing.T) {
	j := open(t, t.TempDir(), Options{})
	if _, err := j.Changes(0, 1); !errors.Is(err, ErrNotSealed) {
		t.Errorf("Changes: %v", err)
	}
	if err := j.Forget(1); !errors.Is(err, ErrNotSealed) {
		t.Errorf("Forget: %v", err)
	}
	if err := j.Hold(1); !errors.Is(err, ErrNotSealed) {
		t.Errorf("Hold: %v", err)
	}
}

func TestNothingIsRecordedAfterClose(t *testing.T) {
	j := open(t, t.TempDir(), Options{})
	touchMeta(t, j, ino(1), nil)
	must(t, j.Close())
	if err := inside(j, func() error { return j.TouchMeta(ino(1), nil) }); !errors.Is(err, ErrClosed) {
		t.Errorf("TouchMeta: %v", err)
	}
	if err := inside(j, func() error { return j.TouchName(ino(1), "a", ino(2)) }); !errors.Is(err, ErrClosed) {
		t.Errorf("TouchName: %v", err)
	}
	if _, err := j.Seal(true); !errors.Is(err, ErrClosed) {
		t.Errorf("Seal: %v", err)
	}
	if err := j.Close(); !errors.Is(err, ErrClosed) {
		t.Errorf("Close: %v", err)
	}
}

// A journal that is lost comes again under its identity, and says that it has lost everything.
func TestAJournalThatIsLostIsMadeAnewAndNotTrusted(t *testing.T) {
	const id = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
	dir := t.TempDir()
	for round := range 2 {
		j, err := Open(dir, Options{ID: id})
		if err != nil {
			t.Fatal(err)
		}
		if j.ID() != id || j.Clean() || !j.Active().All || j.Epoch() < 1<<50 {
			t.Errorf("round %d: id %s, clean %v, %+v, epoch %d", round, j.ID(), j.Clean(), j.Active(), j.Epoch())
		}
		if round == 1 {
			if err := j.Reconciled(); err != nil {
				t.Error(err)
			}
		}
		if err := j.Close(); err != nil { // closing it says nothing of what was lost before
			t.Error(err)
		}
	}
	j, err := Open(dir, Options{ID: "another"})
	if err != nil {
		t.Fatal(err)
	}
	if j.ID() != id || !j.Clean() {
		t.Errorf("id %s, clean %v", j.ID(), j.Clean())
	}
	if err := j.Close(); err != nil {
		t.Error(err)
	}
}
