package journal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// old is a change time that no list was begun before.
var old = Time{Sec: 1}

func boot(name string) Options { return Options{BootID: name} }

// cut opens what a power cut would leave, if it left all: in another boot.
func cut(t testing.TB, dir, boot string) *Journal {
	t.Helper()
	return open(t, copyOf(t, dir), Options{BootID: boot})
}

// writes is how often the list was written.
func writes(j *Journal) uint64 {
	j.activity.mu.Lock()
	defer j.activity.mu.Unlock()
	return j.activity.sequence
}

// ready opens a journal and makes its first checkpoint, so that the list says nothing.
func ready(t testing.TB, dir string, o Options) *Journal {
	t.Helper()
	j := open(t, dir, o)
	must(t, j.checkpoint())
	return j
}

func TestWhatIsOverwrittenIsNamedAfterAPowerCut(t *testing.T) {
	dir := t.TempDir()
	j := ready(t, dir, boot("one"))
	touchData(t, j, ino(7), Extent{0, 10}, nil)
	created(t, j, ino(8))
	touchData(t, j, ino(8), Extent{0, 10}, nil)
	touchMeta(t, j, ino(9), nil)
	if a := j.Active(); a.All || len(a.Inodes) > 0 || !j.Clean() {
		t.Errorf("while nothing was lost: %v", a)
	}
	after := cut(t, dir, "two")
	a := after.Active()
	if after.Clean() || a.All || !reflect.DeepEqual(a.Inodes, map[Ident]struct{}{ino(7): {}}) {
		t.Errorf("clean %v, %v", after.Clean(), a)
	}
	now := time.Now()
	if !a.Doubts(ino(7), old) || a.Doubts(ino(9), old) || !a.Doubts(ino(8), Time{now.Unix(), uint32(now.Nanosecond())}) {
		t.Errorf("doubted is not what should be: %v", a)
	}
}

func TestTheListIsWrittenOnceForWhatIsWrittenAgainAndAgain(t *testing.T) {
	j := ready(t, t.TempDir(), Options{})
	touchData(t, j, ino(7), Extent{0, 10}, nil)
	before := writes(j)
	for i := range 100 {
		touchData(t, j, ino(7), Extent{int64(i) * 8, int64(i)*8 + 4}, nil)
		if i%10 == 0 {
			seal(t, j, false)
			must(t, j.Announce(ino(7)))
		}
	}
	if n := writes(j) - before; n != 0 {
		t.Errorf("it was written %d times", n)
	}
	must(t, j.checkpoint())
	before = writes(j)
	for range 2 {
		touchData(t, j, ino(7), Extent{0, 4}, nil)
	}
	if n := writes(j) - before; n != 1 {
		t.Errorf("after a checkpoint it was written %d times", n)
	}
}

func TestWhatIsMadeCostsNoWriteOfTheList(t *testing.T) {
	j := ready(t, t.TempDir(), small())
	before := writes(j)
	for i := range 3000 { // the logs are switched meanwhile
		created(t, j, ino(i))
		if i%7 == 0 {
			seal(t, j, false)
		}
		must(t, j.Announce(ino(i)))
		touchData(t, j, ino(i), Extent{0, 10}, nil)
	}
	if n := writes(j) - before; n > 30 {
		t.Errorf("it was written %d times", n)
	}
	must(t, j.checkpoint())
	before = writes(j)
	touchData(t, j, ino(2999), Extent{0, 10}, nil)
	if writes(j) == before {
		t.Error("what was made before the checkpoint was not put on the list")
	}
}

func TestManyFilesOverwrittenAreEverything(t *testing.T) {
	dir := t.TempDir()
	j := ready(t, dir, boot("one"))
	before := writes(j)
	for i := range 5000 {
		touchData(t, j, ino(i), Extent{0, 10}, nil)
	}
	if n := writes(j) - before; n > 3*maxActiveRate {
		t.Errorf("the list was written %d times", n)
	}
	if a := cut(t, dir, "two").Active(); !a.All {
		t.Errorf("%v", a)
	}
	must(t, j.checkpoint())
	j.activity.second = time.Time{} // it is later
	touchData(t, j, ino(6), Extent{0, 10}, nil)
	if a := cut(t, dir, "two").Active(); a.All || len(a.Inodes) != 1 {
		t.Errorf("after a checkpoint: all %v, %d inodes", a.All, len(a.Inodes))
	}
}

func TestACheckpointKeepsWhatIsChangedMeanwhile(t *testing.T) {
	for name, many := range map[string]int{"a few": 10, "more than the list takes": maxActive + 500} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			meanwhile := func() error { return nil }
			j := ready(t, dir, Options{BootID: "one", Settle: func() error { return meanwhile() }})
			for i := range many {
				touchData(t, j, ino(i), Extent{0, 10}, nil)
			}
			began := time.Now()
			meanwhile = func() error {
				for i := range many / 2 {
					touchData(t, j, ino(i), Extent{0, 10}, nil)
				}
				for i := range many {
					touchData(t, j, ino(many+i), Extent{0, 10}, nil)
				}
				return nil
			}
			must(t, j.checkpoint())
			meanwhile = func() error { return nil }
			a := cut(t, dir, "two").Active()
			for i := range 2 * many {
				if doubts := a.Doubts(ino(i), old); !doubts && (i < many/2 || i >= many) || doubts && i >= many/2 && i < many && many < maxActive {
					t.Fatalf("inode %d: doubted %v, all %v", i, doubts, a.All)
				}
			}
			if a.Since.After(began) {
				t.Errorf("since %v, it began at %v", a.Since, began)
			}
			must(t, j.checkpoint())
			if a := cut(t, dir, "two").Active(); a.All || len(a.Inodes) > 0 {
				t.Errorf("after the next: all %v, %d inodes", a.All, len(a.Inodes))
			}
		})
	}
}

func TestAFailedCheckpointTakesNothingOffTheList(t *testing.T) {
	dir := t.TempDir()
	broken := errors.New("the disk is broken")
	fails := false
	j := ready(t, dir, Options{BootID: "one", Settle: func() error {
		if fails {
			return broken
		}
		return nil
	}})
	touchData(t, j, ino(7), Extent{0, 10}, nil)
	fails = true
	if err := j.checkpoint(); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	if a := cut(t, dir, "two").Active(); len(a.Inodes) != 1 {
		t.Errorf("%v", a)
	}
	if err := j.Close(); !errors.Is(err, broken) {
		t.Errorf("Close: %v", err)
	}
	if open(t, dir, boot("two")).Clean() {
		t.Error("a journal is clean, and what it knows of was not made durable")
	}
}

func TestWithoutTheListNothingIsChanged(t *testing.T) {
	j := ready(t, t.TempDir(), Options{})
	must(t, j.activity.file.Close())
	if err := inside(j, func() error { return j.TouchData(ino(7), Extent{0, 10}, nil) }); err == nil {
		t.Error("TouchData did not fail")
	}
	if err := j.Announce(ino(7)); err == nil {
		t.Error("Announce did not fail")
	}
	touchMeta(t, j, ino(7), nil)
}

func TestAPowerCutIsNotForgottenUntilItIsReconciled(t *testing.T) {
	dir := t.TempDir()
	j := ready(t, dir, boot("one"))
	touchData(t, j, ino(7), Extent{0, 10}, nil)
	dir = copyOf(t, dir)
	for range 3 { // closed and opened anew, in the same boot
		j = open(t, dir, boot("two"))
		if j.Clean() || !j.Active().Doubts(ino(7), old) {
			t.Fatalf("clean %v, %v", j.Clean(), j.Active())
		}
		must(t, j.checkpoint())
		must(t, j.Close())
	}
	j = open(t, copyOf(t, dir), boot("two"))
	touchData(t, j, ino(8), Extent{0, 10}, nil)
	twice := cut(t, j.dir, "three")
	if a := twice.Active(); !a.Doubts(ino(7), old) || !a.Doubts(ino(8), old) || a.Doubts(ino(9), old) {
		t.Errorf("after a second power cut: %v", a)
	}
	must(t, twice.Reconciled())
	must(t, twice.Reconciled())
	if a := twice.Active(); !twice.Clean() || a.All || len(a.Inodes) > 0 {
		t.Errorf("reconciled: clean %v, %v", twice.Clean(), a)
	}
	if died := open(t, copyOf(t, twice.dir), boot("three")); !died.Clean() {
		t.Error("reconciled, and not clean after the death of the process")
	}
	must(t, twice.Close())
	if j := open(t, twice.dir, boot("four")); !j.Clean() {
		t.Error("reconciled and closed, and not clean")
	}
}

func TestWhatIsChangedBeforeAPowerCutIsReconciledIsOnTheList(t *testing.T) {
	for name, l := range map[string]activeList{"some": {inodes: []Ident{ino(7)}, since: time.Now()}, "everything": {all: true}} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, ready(t, dir, boot("one")).Close())
			j := open(t, dir, boot("one"))
			dead := copyOf(t, dir)
			must(t, j.Close())
			j = open(t, dead, boot("two"))
			j.activity.left.All = l.all
			touchData(t, j, ino(8), Extent{0, 10}, nil)
			must(t, j.Reconciled())
			if a := cut(t, dead, "three").Active(); a.All || !a.Doubts(ino(8), old) || a.Doubts(ino(7), old) {
				t.Errorf("%v", a)
			}
		})
	}
}

func TestSealsThatMayHaveBeenGivenAreNotGivenAgain(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, boot("one"))
	stale := copyOf(t, dir) // what the power cut leaves: nothing of what follows
	last := Epoch(0)
	for range 3000 {
		last = seal(t, j, false)
	}
	again := open(t, stale, boot("two"))
	if n := again.Epoch(); n <= last {
		t.Fatalf("the current epoch is %d, and %d was given", n, last)
	}
	if n := seal(t, again, false); n <= last {
		t.Errorf("seal %d was given, and before that %d", n, last)
	}
	next := open(t, copyOf(t, stale), boot("two"))
	if n := next.Epoch(); n < again.Epoch() {
		t.Errorf("the epoch went back from %d to %d", again.Epoch(), n)
	}
}

func TestEpochsAreReservedBeforeTheyAreGiven(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, boot("one"))
	j.activity.reserved = j.Epoch() + epochMargin + 2
	must(t, j.activity.store())
	last := Epoch(0)
	for range 5 {
		last = seal(t, j, false)
		stale := copyOf(t, dir)
		for _, name := range logFiles {
			must(t, os.Truncate(filepath.Join(stale, name), 0))
		}
		if n := open(t, stale, boot("two")).Epoch(); n <= last {
			t.Fatalf("the current epoch is %d, and %d was given", n, last)
		}
	}
	if j.activity.reserved < last+epochStep/2 {
		t.Errorf("%d are reserved", j.activity.reserved)
	}
}

func TestAListThatCannotBeReadIsEverything(t *testing.T) {
	dir := t.TempDir()
	j := ready(t, dir, boot("one"))
	touchData(t, j, ino(7), Extent{0, 10}, nil)
	last := Epoch(0)
	for range 10 {
		last = seal(t, j, false)
	}
	for name, damage := range map[string]func(b []byte) []byte{
		"missing":     func([]byte) []byte { return nil },
		"cut short":   func(b []byte) []byte { return b[:len(b)/2] },
		"zeros":       func(b []byte) []byte { return make([]byte, len(b)) },
		"newest torn": func(b []byte) []byte { return damaged(b, newestSlot(b)+activeHeader-3) }, // whatever it lists
		"older torn":  func(b []byte) []byte { return damaged(b, activeSlot-newestSlot(b)+20) },
		"twice the older": func(b []byte) []byte {
			o := activeSlot - newestSlot(b)
			return append(b[o:o+activeSlot:o+activeSlot], b[o:o+activeSlot]...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			lost := copyOf(t, dir)
			path := filepath.Join(lost, activeName)
			b, err := os.ReadFile(path)
			must(t, err)
			must(t, os.Remove(path))
			if b = damage(b); b != nil {
				must(t, os.WriteFile(path, b, 0o600))
			}
			again := open(t, lost, boot("two"))
			if a := again.Active(); again.Clean() || !a.All || !a.Since.IsZero() || !a.Doubts(ino(1), old) {
				t.Errorf("clean %v, %v", again.Clean(), a)
			}
			if again.Epoch() <= last {
				t.Errorf("epoch %d was given before", again.Epoch())
			}
			must(t, again.Reconciled())
			must(t, again.checkpoint())
			if a := cut(t, lost, "three").Active(); a.All {
				t.Error("it is everything for ever")
			}
		})
	}
}

// newestSlot is where the newest version is.
func newestSlot(b []byte) int {
	one, _ := decodeActive(b[:activeSlot])
	two, _ := decodeActive(b[activeSlot:])
	if one.sequence > two.sequence {
		return 0
	}
	return activeSlot
}

func damaged(b []byte, at int) []byte {
	b[at] ^= 1
	return b
}

func TestAListOfAnEarlierProgramIsEverything(t *testing.T) {
	dir := t.TempDir()
	j := ready(t, dir, boot("one"))
	dead := copyOf(t, dir)
	must(t, j.Close())
	for _, version := range []string{firstVersion, secondVersion} {
		was := copyOf(t, dead)
		must(t, writeMark(was, mark{Version: version, ID: j.ID(), Boot: "one"}))
		if a := open(t, was, boot("two")).Active(); !a.All {
			t.Errorf("version %s: %v", version, a)
		}
		was = copyOf(t, dead)
		must(t, writeMark(was, mark{Version: version, ID: j.ID(), Boot: "one", Clean: true}))
		j := open(t, was, boot("one"))
		if !j.Clean() {
			t.Errorf("version %s: closed cleanly, and not clean", version)
		}
		if a := cut(t, j.dir, "two").Active(); !a.All { // what was changed before the close was not made durable then
			t.Errorf("version %s, before the first checkpoint: %v", version, a)
		}
	}
}

// TestNoChangeIsEverMissing has workers change inodes while checkpoints are made and looks at random moments whether
// the file names all of which a power cut could have left an old state.
func TestNoChangeIsEverMissing(t *testing.T) {
	for _, inodes := range []int{20, 400, 3 * maxActive} {
		t.Run(fmt.Sprint(inodes, " inodes"), func(t *testing.T) { noChangeMissing(t, inodes) })
	}
}

func noChangeMissing(t *testing.T, inodes int) {
	var mu sync.Mutex
	changed := map[Ident]int{} // when it was changed last; what is durable is not in it
	clock := 0
	j := open(t, t.TempDir(), Options{logSize: 64 << 10, MaxMemory: 256 << 10, Settle: func() error {
		mu.Lock()
		upto := clock
		mu.Unlock()
		time.Sleep(2 * time.Millisecond)
		mu.Lock()
		defer mu.Unlock()
		for id, when := range changed {
			if when <= upto {
				delete(changed, id)
			}
		}
		return nil
	}})
	must(t, j.checkpoint())
	stop := atomic.Bool{}
	var workers sync.WaitGroup
	work := func(f func(r *rand.Rand) error) {
		seed := rand.Uint64()
		workers.Go(func() {
			for r := rand.New(rand.NewPCG(seed, 0)); !stop.Load(); {
				if err := f(r); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 4 {
		work(func(r *rand.Rand) error {
			id := ino(r.IntN(inodes))
			if r.IntN(2) == 0 {
				if err := j.Announce(id); err != nil {
					return err
				}
			}
			j.Enter()
			defer j.Leave()
			if err := j.TouchData(id, Extent{0, 1 + r.Int64N(9)}, nil); err != nil {
				return err
			}
			mu.Lock()
			clock++
			changed[id] = clock
			mu.Unlock()
			return nil
		})
	}
	work(func(r *rand.Rand) error {
		time.Sleep(time.Duration(r.IntN(3)) * time.Millisecond)
		n, err := j.Seal(false)
		if r.IntN(3) > 0 || err != nil {
			return err
		}
		return j.Forget(n)
	})
	work(func(r *rand.Rand) error {
		time.Sleep(time.Duration(r.IntN(5)) * time.Millisecond)
		return j.checkpoint()
	})
	named := 0
	for end := time.Now().Add(time.Second); time.Now().Before(end) && !t.Failed(); {
		mu.Lock() // nothing changes now; the list may be written meanwhile
		b, err := os.ReadFile(filepath.Join(j.dir, activeName))
		must(t, err)
		l := decodeActiveFile(b)
		a := Activity{All: l.all, Since: l.since, Inodes: map[Ident]struct{}{}}
		for _, id := range l.inodes {
			a.Inodes[id] = struct{}{}
		}
		for id, when := range changed {
			if !a.Doubts(id, old) {
				t.Errorf("inode %s was changed at %d of %d, and is not named; %d are", id, when, clock, len(a.Inodes))
				break
			}
		}
		if !a.All {
			named++
		}
		mu.Unlock()
		time.Sleep(100 * time.Microsecond)
	}
	stop.Store(true)
	workers.Wait()
	if named == 0 && inodes < maxActive {
		t.Error("it always said everything")
	}
	t.Logf("%d changes, the list was written %d times and was looked at %d times when it did not say everything", clock, writes(j), named)
}

func FuzzActiveFile(f *testing.F) {
	one := activeList{sequence: 4, reserved: 9, since: time.Unix(5, 6), inodes: []Ident{ino(1), ino(2)}}
	two := activeList{sequence: 5, reserved: 9, all: true}
	file := make([]byte, 2*activeSlot)
	copy(file, one.encode())
	copy(file[activeSlot:], two.encode())
	f.Add(file)
	f.Add(file[:activeSlot])
	f.Fuzz(func(t *testing.T, b []byte) {
		l := decodeActiveFile(b)
		if len(l.inodes) > maxActive {
			t.Fatalf("%d inodes", len(l.inodes))
		}
		if got, ok := decodeActive(l.encode()); !ok || !reflect.DeepEqual(got, l) {
			t.Errorf("%v was written and read as %v", l, got)
		}
	})
}
