package journal

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"
)

// A week without a peer: a relationship's base does not move, every try to reach the peer seals the epoch to see how
// much it lacks, and snapshots come and go by policy. Time is simulated, the operations are real ones. A node tries up
// to 120 times an hour; how often does not matter for what the journal takes, but for how long this does.
const (
	weekDays    = 7
	weekHours   = 24 * weekDays
	longTries   = 30
	shortTries  = 6
	keptHourly  = 24
	keptDaily   = 7
	shortGrowth = 200_000
	racedGrowth = 20_000 // with the race detector, which makes each cost many times as much
)

// weekly is the tree that the week's operations are on: 4 KiB writes at random places of files of two sizes, and names
// that come and go.
type weekly struct {
	t          *testing.T
	j          *Journal
	rnd        *rand.Rand
	operations int
	made       uint64
}

const (
	smallFiles  = 900
	smallBlocks = 64 // of a small file, each 4 KiB
	largeFiles  = 20
	largeBlocks = 8192
	weeklyDirs  = 50
	weeklyNames = 40 // that a directory has at one time or another
)

func (w *weekly) step() {
	w.operations++
	switch kind := w.rnd.IntN(20); {
	case kind < 8:
		w.write(w.rnd.IntN(smallFiles), smallBlocks)
	case kind < 16:
		w.write(smallFiles+w.rnd.IntN(largeFiles), largeBlocks)
	default:
		w.rename()
	}
}

func (w *weekly) write(file, blocks int) {
	off := int64(w.rnd.IntN(blocks)) * 4096
	touchData(w.t, w.j, ino(1000+file), Extent{off, off + 4096}, imageOf(int64(blocks)*4096))
}

// rename takes a name from one file and gives another to one that is new, in the way of programs that save.
func (w *weekly) rename() {
	dir := ino(1 + w.rnd.IntN(weeklyDirs))
	w.made++
	id := Ident{Ino: 1_000_000 + w.made%1000, Gen: w.made}
	must(w.t, inside(w.j, func() error {
		if err := w.j.TouchMeta(dir, imageOf(0)); err != nil {
			return err
		}
		if err := w.j.TouchName(dir, fmt.Sprint("temporary", w.rnd.IntN(weeklyNames)), Ident{}); err != nil {
			return err
		}
		if err := w.j.NoteCreated(id); err != nil {
			return err
		}
		err := w.j.TouchName(dir, fmt.Sprint("name", w.rnd.IntN(weeklyNames)), id)
		w.j.NoteRemoved(id)
		return err
	}))
}

// growth is what the journal takes at one moment.
type growth struct {
	stats Stats
	heap  int64
}

func measure(j *Journal) growth {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return growth{j.Stats(), int64(m.HeapAlloc)}
}

// tended waits until the keeper has folded what it can: there are hours for that in the time that is simulated.
func tended(t *testing.T, j *Journal) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Millisecond) {
		j.mu.Lock()
		busy := j.frozen != nil
		j.mu.Unlock()
		if _, _, _, more := j.foldable(); !busy && !more {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the keeper does not get done: %+v", j.Stats())
		}
	}
}

// TANDEMFS_GROWTH_OPERATIONS is how many operations the week has; a few hundred thousand if it is not set.
func TestAWeekWithoutAPeerTakesWhatItsFilesTake(t *testing.T) {
	total, tries := shortGrowth, shortTries
	if raced {
		total = racedGrowth
	}
	if v := os.Getenv("TANDEMFS_GROWTH_OPERATIONS"); v != "" {
		var err error
		total, err = strconv.Atoi(v)
		must(t, err)
		tries = longTries
	}
	j := open(t, t.TempDir(), Options{Block: 4096})
	w := &weekly{t: t, j: j, rnd: rand.New(rand.NewPCG(20261125, 1))}
	base := seal(t, j, false)
	must(t, j.Forget(base, base))
	before := measure(j).heap // of other tests
	var hourly, daily []Epoch
	epochs := 0
	t.Logf("%10s %12s %8s %8s %10s %10s %10s", "day", "operations", "seals", "epochs", "store", "logs", "heap")
	for hour := range weekHours {
		for try := range tries {
			for due := total * (hour*tries + try + 1) / (weekHours * tries); w.operations < due; {
				w.step()
			}
			if j.Dirty() {
				last := seal(t, j, false)
				changes, err := j.Changes(base, last)
				must(t, err)
				changes.Totals()
				epochs++
			}
		}
		hourly = append(hourly, seal(t, j, true))
		if hour%24 == 23 {
			daily = append(daily, hourly[len(hourly)-1])
			must(t, j.Hold(daily[len(daily)-1]))
		}
		for len(hourly) > keptHourly {
			j.Release(hourly[0])
			hourly = hourly[1:]
		}
		tended(t, j)
		if hour%24 == 23 {
			g := measure(j)
			g.heap -= before
			w.checkBounds(g)
			t.Logf("%10d %12d %8d %8d %9.1fM %9.1fM %9.1fM", hour/24+1, w.operations, epochs, g.stats.Epochs,
				mega(g.stats.StoreBytes), mega(g.stats.LogBytes), mega(g.heap))
		}
	}
}

// What the journal may take: of each file and name, once for the base and once for each seal that is held, what it can
// say of it at the most; and, whatever there is, the store's tables in memory and on their way to the disk.
const (
	extentRoom = 8 // bytes of an extent in the store
	inodeRoom  = 400
	nameRoom   = 200
	heldSeals  = keptHourly + keptDaily + 1
	filesRoom  = smallFiles*(smallBlocks/2*extentRoom+inodeRoom) + largeFiles*(largeBlocks/2*extentRoom+inodeRoom) +
		weeklyDirs*(2*weeklyNames*nameRoom+inodeRoom)
	mostStore = 64<<20 + (1+heldSeals)*filesRoom
	mostHeap  = 128 << 20
)

// checkBounds fails where the journal takes what no number of files explains.
func (w *weekly) checkBounds(g growth) {
	w.t.Helper()
	if g.stats.StoreBytes > mostStore || g.stats.LogBytes > 16<<20 || g.heap > mostHeap {
		w.t.Errorf("after %d operations the journal takes %d bytes in its store (at the most %d), %d in its logs, %d of memory (at the most %d)",
			w.operations, g.stats.StoreBytes, mostStore, g.stats.LogBytes, g.heap, mostHeap)
	}
	w.j.mu.Lock()
	defer w.j.mu.Unlock()
	apart := 0
	for n := range w.j.state.stored {
		if w.j.active.epochs[n] == nil {
			apart++
		}
	}
	if apart > 2*heldSeals {
		w.t.Errorf("%d epochs are kept apart for %d seals that are held", apart, len(w.j.state.held))
	}
}

func mega(n int64) float64 { return float64(n) / (1 << 20) }
