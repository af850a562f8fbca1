package journal

import (
	"errors"
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

func TestForgettingTakesTheRecordsAway(t *testing.T) {
	j := open(t, t.TempDir(), small())
	fill(t, j)
	touchName(t, j, ino(1), "a", ino(2))
	one := seal(t, j, false)
	touchMeta(t, j, ino(5), nil)
	two := seal(t, j, false)
	settle(j)
	must(t, j.Forget(one))
	if j.Forgotten() != one {
		t.Errorf("forgotten: %d", j.Forgotten())
	}
	if _, err := j.Changes(0, two); !errors.Is(err, ErrGone) {
		t.Errorf("changes after 0: %v", err)
	}
	if got := inodesOf(t, j, one, two); len(got) != 1 {
		t.Errorf("what was not forgotten: %v", got)
	}
	eventually(t, "the store is empty", func() bool { return storedKeys(t, j, keyInode, one)+storedKeys(t, j, keyName, one) == 0 })
	eventually(t, "the epoch is not counted any more", func() bool { return j.Stats().Epochs == 1 })
}

func TestAnIterationFailsWhenItsRecordsAreForgottenMeanwhile(t *testing.T) {
	j := open(t, t.TempDir(), small())
	fill(t, j)
	n := seal(t, j, false)
	c, err := j.Changes(0, n)
	must(t, err)
	once := sync.OnceValue(func() error { return j.Forget(n) })
	if err := c.Inodes(func(InodeChange) error { return once() }); !errors.Is(err, ErrGone) {
		t.Errorf("Inodes: %v", err)
	}
	if _, _, err := c.Inode(ino(1)); !errors.Is(err, ErrGone) {
		t.Errorf("Inode: %v", err)
	}
}

func TestForgettingLeavesWhatAHeldSealNeeds(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, small())
	one := seal(t, j, true)
	touchMeta(t, j, ino(1), imageOf(11))
	touchName(t, j, ino(1), "a", ino(2))
	created(t, j, ino(3))
	fill(t, j)
	two := seal(t, j, false)
	must(t, j.Forget(two))
	must(t, j.Close())
	j = open(t, dir, small())
	if image, ok, err := j.ImageAt(one, ino(1)); image.Attr.Size != 11 || !ok || err != nil {
		t.Errorf("image: %v, %v, %v", image, ok, err)
	}
	if was, ok, err := j.NameAt(one, ino(1), "a"); was != ino(2) || !ok || err != nil {
		t.Errorf("name: %v, %v, %v", was, ok, err)
	}
	if made, err := j.CreatedAfter(one, ino(3)); !made || err != nil {
		t.Errorf("created: %v, %v", made, err)
	}
	j.Release(one)
	eventually(t, "the records go with the release", func() bool { return storedKeys(t, j, keyInode, two) == 0 })
}

func TestForgettingGivesTheDisksSpaceBack(t *testing.T) {
	j := open(t, t.TempDir(), Options{logSize: 4 << 20})
	one := seal(t, j, true)
	large := testImage(1)
	large.Xattrs[0].Value = make([]byte, 3000)
	for i := range 12_000 {
		touchName(t, j, ino(i), strings.Repeat("x", 200), ino(i))
		touchMeta(t, j, ino(i), before(func() (Image, error) { return large, nil }))
	}
	two := seal(t, j, false)
	must(t, j.Forget(two))
	settle(j)
	full := j.Stats().StoreBytes
	if full < 32<<20 {
		t.Fatalf("the store has only %d bytes", full)
	}
	j.Release(one)
	eventually(t, "the space is free again", func() bool { return j.Stats().StoreBytes < full/4 })
	t.Logf("the store went from %d to %d bytes", full, j.Stats().StoreBytes)
}

func TestMemoryIsBoundedWhateverTheNumberOfTouches(t *testing.T) {
	touches := 60_000
	if testing.Short() {
		touches = 20_000
	}
	o := Options{MaxMemory: 1 << 20, logSize: 1 << 20}
	j := open(t, t.TempDir(), o)
	for i := range touches {
		touchMeta(t, j, Ident{Ino: uint64(i) * 7919 % 1_000_003, Gen: 1}, nil)
		if i%1000 == 0 {
			if got := j.Stats().MemoryBytes; got > int64(o.MaxMemory)+1<<16 {
				t.Fatalf("after %d touches the index has %d bytes", i, got)
			}
		}
	}
	// Touching again what the store has keeps no more in memory, and writes nothing.
	settle(j)
	written := j.written
	for i := range touches / 4 {
		touchMeta(t, j, Ident{Ino: uint64(i) * 7919 % 1_000_003, Gen: 1}, nil)
	}
	if j.written != written {
		t.Errorf("%d records of what was recorded already", j.written-written)
	}
	if got := j.Stats().MemoryBytes; got > int64(o.MaxMemory)+1<<16 {
		t.Errorf("the index has %d bytes", got)
	}
	n := seal(t, j, false)
	c, err := j.Changes(0, n)
	must(t, err)
	count := 0
	must(t, c.Inodes(func(InodeChange) error { count++; return nil }))
	if count != touches {
		t.Errorf("%d inodes are recorded, want %d", count, touches)
	}
}

// TestMemoryEstimate holds the estimates against what the heap says.
func TestMemoryEstimate(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	const n = 200_000
	for name, put := range map[string]func(g *generation, i int){
		"inodes": func(g *generation, i int) { g.putInode(1, ino(i), &inodeEntry{what: Meta}) },
		"names": func(g *generation, i int) {
			g.putName(1, nameKey{ino(i / 8), strconv.Itoa(i)}, ino(i), true)
		},
		"lone names": func(g *generation, i int) {
			g.putName(1, nameKey{ino(i), strconv.Itoa(i)}, ino(i), true)
		},
	} {
		before := heap()
		g := newGeneration(nil)
		for i := range n {
			put(g, i)
		}
		real, estimate := float64(heap()-before), float64(g.bytes)
		t.Logf("%s: %.0f bytes each, estimated %.0f", name, real/n, estimate/n)
		if real > 1.25*estimate || real < 0.4*estimate {
			t.Errorf("%s: %.0f bytes, estimated %.0f", name, real, estimate)
		}
		runtime.KeepAlive(g)
	}
}

func TestTooManyExtentsGetCoarserAndLoseNothing(t *testing.T) {
	o := small()
	o.MaxExtents = 50
	j := open(t, t.TempDir(), o)
	r := rand.New(rand.NewPCG(7, 8))
	var all Extents
	for range 3000 {
		off := r.Int64N(1 << 40)
		e := Extent{off, off + 4096}
		all = all.Add(e)
		touchData(t, j, ino(1), e, nil)
		if got := j.active.inode(j.Epoch(), ino(1)).extents.count; got > o.MaxExtents {
			t.Fatalf("%d extents", got)
		}
	}
	got := inodesOf(t, j, 0, seal(t, j, false))[ino(1)].Extents
	if left := all.Subtract(got); len(left) != 0 || len(got) > o.MaxExtents {
		t.Errorf("%d extents, lost %v", len(got), left)
	}
}

func TestExtentsAreExactUpToTheBound(t *testing.T) {
	j := open(t, t.TempDir(), Options{})
	var all Extents
	for i := range int64(32768) {
		e := Extent{i * 10000, i*10000 + 1 + i%4096}
		all = append(all, e)
		touchData(t, j, ino(1), e, nil)
	}
	if got := inodesOf(t, j, 0, seal(t, j, false))[ino(1)].Extents; !same(got, all) {
		t.Errorf("%d extents, want %d", len(got), len(all))
	}
}

func TestAbsorbingGoesOnUnderConcurrentTouches(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, small())
	n := seal(t, j, true)
	const workers, each = 4, 3000
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 9))
			for range each {
				i := r.IntN(1000)
				// Every worker gives the same first value, so whoever comes first, it is known.
				err := inside(j, func() error {
					return errors.Join(j.TouchName(ino(i), "name", ino(i+1)),
						j.TouchData(ino(i), Extent{int64(w * 10), int64(w*10 + 5)}, imageOf(int64(i))))
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	touched := namesOf(t, j, n, seal(t, j, false))
	for key, was := range touched {
		if was.Ino != key.dir.Ino+1 {
			t.Fatalf("%v stood for %v", key, was)
		}
		image, ok, err := j.ImageAt(n, key.dir)
		if err != nil || !ok || image.Attr.Size != int64(key.dir.Ino) {
			t.Fatalf("image of %v: %v, %v, %v", key.dir, image, ok, err)
		}
	}
	if len(touched) < 900 {
		t.Errorf("%d names", len(touched))
	}
}

func TestASyncCoversWhatWasRecordedBeforeIt(t *testing.T) {
	j := open(t, t.TempDir(), small())
	for i := range 3000 {
		touchMeta(t, j, ino(i), nil)
		if i%100 == 0 {
			want := j.written
			must(t, j.SetState("k", []byte{byte(i)}))
			must(t, j.Sync())
			if j.synced < want || j.store.dirty.Load() && settled(j) {
				t.Fatalf("synced %d of %d records", j.synced, want)
			}
		}
	}
}

func settled(j *Journal) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.frozen == nil
}

func TestADiskWithoutRoomMakesWritersFailUntilThereIsSome(t *testing.T) {
	var free atomic.Uint64
	o := small()
	o.freeSpace = func(string) (uint64, error) { return free.Load(), nil }
	free.Store(1 << 40)
	dir := t.TempDir()
	j := open(t, dir, o)
	free.Store(updateReserve - 1)
	var err error
	for i := 0; i < 10000 && err == nil; i++ {
		err = inside(j, func() error { return j.TouchMeta(ino(i), nil) })
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("a full disk: %v", err)
	}
	if err := j.SetState("k", []byte("v")); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a state on a full disk: %v", err)
	}
	free.Store(1 << 40)
	eventually(t, "touches work again", func() bool {
		return inside(j, func() error { return j.TouchMeta(ino(20000), nil) }) == nil
	})
	must(t, j.Close())
	free.Store(openReserve - 1)
	if _, err := Open(dir, o); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("an opening on a full disk: %v", err)
	}
	free.Store(1 << 40)
	j = open(t, dir, o)
	if len(inodesOf(t, j, 0, seal(t, j, false))) == 0 {
		t.Error("the records are gone")
	}
}
