package journal

import (
	"slices"
	"testing"

	"github.com/dgraph-io/badger/v4"
)

// halfStored is a journal in which two epochs touched the same things since a held seal, the first of which is in
// memory only and the second in the store too: an absorb writes the epochs in any order.
func halfStored(t *testing.T) (j *Journal, held Epoch) {
	t.Helper()
	j = open(t, t.TempDir(), Options{})
	held = seal(t, j, true)
	touchData(t, j, ino(1), Extent{0, 4096}, imageOf(10))
	touchName(t, j, ino(2), "a", ino(3))
	created(t, j, ino(4))
	middle := seal(t, j, true)
	touchData(t, j, ino(1), Extent{0, 8192}, imageOf(20))
	touchName(t, j, ino(2), "a", ino(5))
	touchName(t, j, ino(2), "b", ino(6))
	must(t, inside(j, func() error { return j.TouchLost(ino(4), imageOf(0)) }))
	second := seal(t, j, false)
	j.Release(middle)

	j.mu.Lock()
	index := j.active.epochs[second]
	j.state.markStored(second, true)
	j.mu.Unlock()
	must(t, j.store.batch(func(b *badger.WriteBatch) error { return absorbEpoch(b, second, index, true) }))
	return j, held
}

func TestAViewSeesTheFirstBeforeImageWhileALaterOneIsInTheStoreAlready(t *testing.T) {
	j, n := halfStored(t)
	check := func(when string) {
		t.Helper()
		kept, err := j.KeptAt(n, ino(1), Extent{0, 8192})
		must(t, err)
		if want := []Kept{{Extent{0, 4096}, n + 1}, {Extent{4096, 8192}, n + 2}}; !slices.Equal(kept, want) {
			t.Errorf("%s: content is kept as %v, want %v", when, kept, want)
		}
		if image, ok, err := j.ImageAt(n, ino(1)); image.Attr.Size != 10 || !ok || err != nil {
			t.Errorf("%s: image: %v, %v, %v", when, image, ok, err)
		}
		if was, ok, err := j.NameAt(n, ino(2), "a"); was != ino(3) || !ok || err != nil {
			t.Errorf("%s: name: %v, %v, %v", when, was, ok, err)
		}
		names, err := j.NamesAt(n, ino(2))
		must(t, err)
		if len(names) != 2 || names["a"] != ino(3) || names["b"] != ino(6) {
			t.Errorf("%s: names: %v", when, names)
		}
		if birth, err := j.birthAfter(n, ino(4)); birth != Created || err != nil {
			t.Errorf("%s: an inode that was made since came about by %b, %v", when, birth, err)
		}
		if c, ok, err := j.Within(n, n+2, ino(4)); c.What != Created || !ok || err != nil {
			t.Errorf("%s: what happened to it: %+v, %v, %v", when, c, ok, err)
		}
	}
	check("the second epoch is stored")
	j.mu.Lock()
	err := j.drain()
	j.mu.Unlock()
	must(t, err)
	check("both are stored")
}

func TestAnAbsorbThatACrashBrokeOffIsDoneAsAWhole(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, Options{})
	n := seal(t, j, true)
	touchData(t, j, ino(1), Extent{0, 4096}, imageOf(10))
	touchName(t, j, ino(2), "a", ino(3))

	j.mu.Lock()
	index := j.active.epochs[n+1]
	j.state.markStored(n+1, true)
	j.mu.Unlock()
	must(t, j.saveState())
	must(t, j.store.batch(func(b *badger.WriteBatch) error { return absorbEpoch(b, n+1, index, false) }))

	k := open(t, copyOf(t, dir), Options{})
	check := func(when string) {
		t.Helper()
		if image, ok, err := k.ImageAt(n, ino(1)); image.Attr.Size != 10 || !ok || err != nil {
			t.Errorf("%s: image: %v, %v, %v", when, image, ok, err)
		}
		if was, ok, err := k.NameAt(n, ino(2), "a"); was != ino(3) || !ok || err != nil {
			t.Errorf("%s: name: %v, %v, %v", when, was, ok, err)
		}
		kept, err := k.KeptAt(n, ino(1), Extent{0, 4096})
		must(t, err)
		if want := []Kept{{Extent{0, 4096}, n + 1}}; !slices.Equal(kept, want) {
			t.Errorf("%s: content is kept as %v, want %v", when, kept, want)
		}
	}
	check("after the crash")
	k.mu.Lock()
	err := k.drain()
	k.mu.Unlock()
	must(t, err)
	check("after the next absorb")
}
