package journal

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// eventually waits for what the keeper does in the background.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); {
		if time.Now().After(deadline) {
			t.Fatalf("it never came that %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// storedKeys counts the store's keys of a kind of history and an epoch.
func storedKeys(t *testing.T, j *Journal, kind byte, n Epoch) (count int) {
	t.Helper()
	must(t, j.store.scan([]byte{kind}, nil, func(item *badger.Item) (bool, error) {
		if epochOf(item.Key()) == n {
			count++
		}
		return true, nil
	}))
	return count
}

func TestBeforeImagesAreTakenOnlyWhileASealIsHeld(t *testing.T) {
	j := open(t, t.TempDir(), Options{})
	calls := 0
	was := before(func() (Image, error) {
		calls++
		return testImage(int64(calls)), nil
	})
	touchData(t, j, ino(1), Extent{0, 1}, was)
	n := seal(t, j, true)
	touchData(t, j, ino(1), Extent{0, 1}, was)
	touchData(t, j, ino(1), Extent{5, 9}, was)
	touchMeta(t, j, ino(1), was)
	if calls != 1 {
		t.Errorf("%d images were taken, want 1", calls)
	}
	j.Release(n)
	touchMeta(t, j, ino(2), was)
	if calls != 1 {
		t.Error("an image was taken while nothing was held")
	}
	if _, _, err := j.ImageAt(n, ino(1)); !errors.Is(err, ErrNotHeld) {
		t.Errorf("an image of a released seal: %v", err)
	}
}

func TestAFailingImageStopsTheTouchAndTheNextOneTriesAgain(t *testing.T) {
	j := open(t, t.TempDir(), Options{})
	n := seal(t, j, true)
	broken := errors.New("broken")
	if err := inside(j, func() error {
		return j.TouchMeta(ino(1), before(func() (Image, error) { return Image{}, broken }))
	}); !errors.Is(err, broken) {
		t.Fatalf("got %v", err)
	}
	if j.Dirty() {
		t.Error("the failed touch left a record")
	}
	touchMeta(t, j, ino(1), imageOf(5))
	if image, ok, err := j.ImageAt(n, ino(1)); !ok || err != nil || image.Attr.Size != 5 {
		t.Errorf("image: %v, %v, %v", image, ok, err)
	}
}

func TestConcurrentFirstTouchesTakeOneImageAndWaitForIt(t *testing.T) {
	j := open(t, t.TempDir(), Options{})
	n := seal(t, j, true)
	for id := 1; id <= 50; id++ {
		var calls, changed atomic.Int32
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				err := inside(j, func() error {
					return j.TouchData(ino(id), Extent{0, 10}, before(func() (Image, error) {
						calls.Add(1)
						time.Sleep(100 * time.Microsecond)
						if changed.Load() > 0 {
							return Image{}, errors.New("the inode was changed before its image was taken")
						}
						return testImage(7), nil
					}))
				})
				changed.Add(1)
				if err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if calls.Load() != 1 {
			t.Fatalf("%d images were taken", calls.Load())
		}
	}
	if _, ok, err := j.ImageAt(n, ino(50)); !ok || err != nil {
		t.Errorf("image: %v, %v", ok, err)
	}
}

func TestAViewSeesTheFirstBeforeImageAfterItsSeal(t *testing.T) {
	j := open(t, t.TempDir(), Options{})
	one := seal(t, j, true)
	touchMeta(t, j, ino(1), imageOf(10))
	touchName(t, j, ino(1), "a", ino(2))
	two := seal(t, j, true)
	touchMeta(t, j, ino(1), imageOf(20))
	touchName(t, j, ino(1), "a", ino(3))
	touchName(t, j, ino(1), "b", ino(4))
	created(t, j, ino(9))
	three := seal(t, j, true)

	for n, size := range map[Epoch]int64{one: 10, two: 20} {
		if image, ok, err := j.ImageAt(n, ino(1)); image.Attr.Size != size || !ok || err != nil {
			t.Errorf("image at %d: %v, %v, %v", n, image, ok, err)
		}
	}
	if _, ok, err := j.ImageAt(three, ino(1)); ok || err != nil {
		t.Errorf("an image at the last seal: %v, %v", ok, err)
	}
	names, err := j.NamesAt(one, ino(1))
	must(t, err)
	if len(names) != 2 || names["a"] != ino(2) || names["b"] != ino(4) {
		t.Errorf("names at %d: %v", one, names)
	}
	for n, want := range map[Epoch]bool{one: true, two: true, three: false} {
		if got, err := j.CreatedAfter(n, ino(9)); got != want || err != nil {
			t.Errorf("created after %d: %v, %v", n, got, err)
		}
	}
}

func TestHoldsAreCountedAndSurviveARestartAsOne(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, Options{})
	n := seal(t, j, true)
	must(t, j.Hold(n))
	if unheld := seal(t, j, false); !errors.Is(j.Hold(unheld), ErrNotHeld) {
		t.Error("a seal that was not held from the start is held now")
	}
	later := seal(t, j, true)
	j.Release(n)
	if got := j.Held(); !slices.Equal(got, []Epoch{n, later}) {
		t.Errorf("held: %v", got)
	}
	j = open(t, copyOf(t, dir), Options{})
	if got := j.Held(); !slices.Equal(got, []Epoch{n, later}) {
		t.Errorf("held after a crash: %v", got)
	}
	j.Release(n)
	if err := j.Hold(n); !errors.Is(err, ErrNotHeld) {
		t.Errorf("holding what was released: %v", err)
	}
	j.Release(n)
	j.Release(later)
	if got := j.Held(); len(got) != 0 {
		t.Errorf("held: %v", got)
	}
}

func TestTheLastReleaseFreesTheImagesAndNothingElse(t *testing.T) {
	j := open(t, t.TempDir(), small())
	one := seal(t, j, true)
	for i := range 1000 {
		touchMeta(t, j, ino(1000+i), imageOf(1))
	}
	two := seal(t, j, true)
	for i := range 1000 {
		touchMeta(t, j, ino(1000+i), imageOf(2))
	}
	fill(t, j)
	settle(j)
	if n := storedKeys(t, j, keyImage, two); n == 0 {
		t.Fatal("no images are in the store")
	}
	j.Release(one)
	eventually(t, "the images of the epoch between the seals go", func() bool { return storedKeys(t, j, keyImage, two) == 0 })
	if _, ok, err := j.ImageAt(two, ino(1000)); !ok || err != nil {
		t.Errorf("an image that is still needed: %v, %v", ok, err)
	}
	before := j.Stats().MemoryBytes
	j.Release(two)
	eventually(t, "all images go", func() bool { return storedKeys(t, j, keyImage, two+1) == 0 })
	if after := j.Stats().MemoryBytes; after > before {
		t.Errorf("memory went from %d to %d", before, after)
	}
	if got := inodesOf(t, j, 0, two); len(got) != 1000 {
		t.Errorf("%d change records are left, want 1000", len(got))
	}
}

func TestASealWaitsForOperationsInsideAndKeepsNewOnesOut(t *testing.T) {
	j := open(t, t.TempDir(), small())
	var done atomic.Bool
	var workers, sealer sync.WaitGroup
	for w := range 4 {
		workers.Go(func() {
			for i := 0; !done.Load(); i++ {
				j.Enter()
				n := j.Epoch()
				id := Ident{uint64(w*1_000_000 + i%2000), uint64(n)}
				if err := j.TouchData(id, Extent{0, 10}, nil); err != nil {
					t.Error(err)
				}
				if j.Epoch() != n {
					t.Error("the epoch changed inside an operation")
				}
				j.Leave()
			}
		})
	}
	sealer.Go(func() {
		for range 200 {
			n := seal(t, j, false)
			c, err := j.Changes(n-1, n)
			must(t, err)
			must(t, c.Inodes(func(i InodeChange) error {
				if i.Ident.Gen != uint64(n) {
					t.Errorf("inode %v was touched in another epoch than %d", i.Ident, n)
				}
				return nil
			}))
			must(t, j.Forget(n-1))
		}
	})
	sealer.Wait()
	done.Store(true)
	workers.Wait()
}

func TestEpochsThatNobodyTellsApartBecomeOne(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, small())
	touchData(t, j, ino(1), Extent{0, 100}, nil)
	old := seal(t, j, true)
	const epochs = 400
	for i := range epochs {
		touchData(t, j, ino(1), Extent{int64(i % 10), int64(i%10 + 1)}, imageOf(int64(i)))
		touchMeta(t, j, ino(100+i), imageOf(int64(i)))
		touchName(t, j, ino(2), fmt.Sprint(i%20), ino(1000+i))
		n := seal(t, j, false)
		must(t, j.Forget(n))
	}
	fill(t, j)
	settle(j)
	eventually(t, "few epochs are left", func() bool { return j.Stats().Epochs < 60 })
	must(t, j.Close())
	j = open(t, dir, small())
	must(t, j.Forget(j.Epoch()-1))
	eventually(t, "all of them are one", func() bool { return j.Stats().Epochs <= 2 })
	if list, err := j.store.past(0, never, ino(1)); len(list) > 10 || err != nil {
		t.Errorf("%d entries of an inode's history are left, %v", len(list), err)
	}
	if image, ok, err := j.ImageAt(old, ino(1)); image.Attr.Size != 0 || !ok || err != nil {
		t.Errorf("image: %v, %v, %v", image, ok, err)
	}
	if image, ok, err := j.ImageAt(old, ino(350)); image.Attr.Size != 250 || !ok || err != nil {
		t.Errorf("image: %v, %v, %v", image, ok, err)
	}
	kept, err := j.KeptAt(old, ino(1), Extent{0, 100})
	must(t, err)
	for i, k := range kept {
		if k.Extent != (Extent{int64(i), int64(i + 1)}) || k.Epoch != old+1+Epoch(i) {
			t.Errorf("kept: %v", k)
		}
	}
	names, err := j.NamesAt(old, ino(2))
	must(t, err)
	if len(names) != 20 || names["7"] != ino(1007) {
		t.Errorf("names: %v", names)
	}
	if got := inodesOf(t, j, old, j.Epoch()-1); len(got) < epochs || got[ino(1)].Extents[0] != (Extent{0, 10}) {
		t.Errorf("%d inodes changed, %v", len(got), got[ino(1)])
	}
}

const never = ^Epoch(0)

func TestAHoldThatComesWhileAReleaseWaitsForRoomCounts(t *testing.T) {
	room := make(chan struct{})
	var waits atomic.Bool
	j := open(t, t.TempDir(), Options{logSize: 16 << 10, freeSpace: func(string) (uint64, error) {
		if waits.Load() {
			<-room
		}
		return 1 << 40, nil
	}})
	waits.Store(true)
	n := seal(t, j, true)
	full := func(reserve int) bool { // the log that takes records, while the other one is absorbed
		j.mu.Lock()
		defer j.mu.Unlock()
		return j.frozen != nil && j.active.log.room() < recordSize((&record{}).bound())+reserve
	}
	for i := 1; !full(logReserve); i++ {
		touchMeta(t, j, ino(i), nil)
	}
	for !full(0) {
		seal(t, j, false)
	}

	released := make(chan struct{})
	go func() {
		defer close(released)
		j.Release(n)
	}()
	time.Sleep(20 * time.Millisecond) // for Release to wait
	must(t, j.Hold(n))
	close(room)
	<-released
	if held := j.Held(); !slices.Equal(held, []Epoch{n}) {
		t.Errorf("held: %v", held)
	}
	j.Release(n)
	if held := j.Held(); len(held) > 0 {
		t.Errorf("held after the last release: %v", held)
	}
}
