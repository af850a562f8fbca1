package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tandemfs/integration/lab"
	"tandemfs/integration/tree"
)

// sent measures what a change sends, by the source's own account and by the wire's, which counts all
// headers of all layers in both directions.
func sent(t *testing.T, source *volume, pair *lab.Pair, change func()) (told, counted int64) {
	t.Helper()
	before := pair.Quiet(time.Minute).TotalWireBytes
	wire := source.Node.Namespace.WireBytes(t)
	change()
	after := pair.Quiet(2 * time.Minute).TotalWireBytes
	told, counted = after-before, source.Node.Namespace.WireBytes(t)-wire
	t.Logf("status tells %d bytes, the wire counted %d", told, counted)
	return told, counted
}

// atMost fails the test when either account is above the limit, or when nothing was sent at all.
func atMost(t *testing.T, limit, told, counted int64) {
	t.Helper()
	if told <= 0 || told >= limit {
		t.Errorf("status tells %d bytes, want between 1 and %d", told, limit)
	}
	if counted <= 0 || counted >= limit {
		t.Errorf("the wire counted %d bytes, want between 1 and %d", counted, limit)
	}
}

// random makes bytes that do not compress.
func random(n int, seed uint64) []byte {
	b := make([]byte, n)
	rng := rand.NewPCG(seed, 4)
	for i := 0; i+8 <= n; i += 8 {
		for k, word := 0, rng.Uint64(); k < 8; k, word = k+1, word>>8 {
			b[i+k] = byte(word)
		}
	}
	return b
}

func TestFourKiBInAFileOfOneGiBSendLessThan16KiB(t *testing.T) {
	source, target, pair := replicated(t, 4*gib, func(dir string) {
		f, err := os.Create(filepath.Join(dir, "large"))
		check(t, err)
		defer f.Close()
		line := []byte(strings.Repeat("a file that compresses well goes over quickly at first\n", 19_065))
		for size := 0; size < gib; size += len(line) {
			_, err := f.Write(line)
			check(t, err)
		}
	})
	told, counted := sent(t, source, pair, func() {
		overwrite(t, filepath.Join(source.Mount, "large"), 700<<20+12_345, random(4096, seed(t, 20)))
	})
	atMost(t, 16<<10, told, counted)
	sameCopy(t, "after 4 KiB were written", source, target, pair)
}

func overwrite(t *testing.T, path string, off int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	check(t, err)
	_, err = f.WriteAt(data, off)
	check(t, err)
	check(t, f.Close())
}

func TestRenamingADirectoryOf10000FilesSendsLessThan4KiB(t *testing.T) {
	source, target, pair := replicated(t, 4*gib, func(dir string) {
		for i := range 100 {
			sub := filepath.Join(dir, "from", "there", fmt.Sprint(i))
			check(t, os.MkdirAll(sub, 0o755))
			for k := range 100 {
				write(t, fmt.Sprint("file ", i, k), sub, fmt.Sprint(k))
			}
		}
		check(t, os.Mkdir(filepath.Join(dir, "elsewhere"), 0o755))
	})
	told, counted := sent(t, source, pair, func() {
		check(t, os.Rename(filepath.Join(source.Mount, "from"), filepath.Join(source.Mount, "elsewhere", "to")))
	})
	atMost(t, 4<<10, told, counted)
	sameCopy(t, "after the rename", source, target, pair)
	if find(scan(t, target.Backing), "elsewhere/to/there/99/99") == nil {
		t.Error("the target does not have what was renamed")
	}
}

func TestASparseFileOf10GiBWith1MiBOfDataSendsAbout1MiB(t *testing.T) {
	source, target, pair := replicated(t, smallDisk, nil)
	told, counted := sent(t, source, pair, func() {
		path := filepath.Join(source.Mount, "sparse")
		f, err := os.Create(path)
		check(t, err)
		check(t, f.Truncate(10*gib))
		check(t, f.Close())
		for i := range int64(16) { // 16 islands of 64 KiB
			overwrite(t, path, i*600<<20+8192, random(64<<10, seed(t, 30)+uint64(i)))
		}
	})
	const limit = 1<<20 + 1<<17 // the data, and an eighth of it for all the rest
	atMost(t, limit, told, counted)
	if told < 1<<20 {
		t.Errorf("%d bytes cannot hold 1 MiB of random data", told)
	}
	sameCopy(t, "after the sparse file was made", source, target, pair)
}

func TestWhatWasWrittenManyTimesGoesOverOnce(t *testing.T) {
	source, _, pair := replicated(t, smallDisk, nil)
	source.Node.Must("relationship", "disable", pair.ID)
	data := random(64<<10, seed(t, 40))
	path := write(t, "", source.Mount, "often")
	for range 200 {
		overwrite(t, path, 0, data)
	}
	check(t, os.WriteFile(path+".gone", data, 0o644)) // and what came and went goes not at all
	check(t, os.Remove(path+".gone"))
	wire := source.Node.Namespace.WireBytes(t)
	source.Node.Must("relationship", "enable", pair.ID)
	pair.Quiet(time.Minute)
	if counted := source.Node.Namespace.WireBytes(t) - wire; counted > 100<<10 {
		t.Errorf("the wire counted %d bytes for 64 KiB", counted)
	}
}

func TestTheFirstTransferCarriesAnExistingSparseFileAsItIs(t *testing.T) {
	source, target, pair := replicated(t, smallDisk, func(dir string) {
		path := write(t, "", dir, "sparse")
		check(t, os.Truncate(path, 10*gib))
		overwrite(t, path, 5*gib, random(1<<20, seed(t, 50)))
	})
	sameCopy(t, "after the first transfer", source, target, pair)
	e := find(scan(t, target.Backing), "sparse")
	want := tree.Range{Off: 5 * gib, End: 5*gib + 1<<20}
	if e == nil || len(e.Data) != 1 || e.Data[0] != want {
		t.Errorf("the target's data map is %+v, want %+v", e, want)
	}
}

func TestAHoleAtTheEndOfAFileIsAHoleOnTheCopy(t *testing.T) {
	source, target, pair := replicated(t, smallDisk, func(dir string) {
		overwrite(t, write(t, "", dir, "file"), 0, random(181_121, seed(t, 55)))
	})
	pair.Quiet(time.Minute)
	source.Node.Must("relationship", "disable", pair.ID) // so that all of it goes over in one transfer
	path := filepath.Join(source.Mount, "file")
	check(t, os.Truncate(path, 0))
	check(t, os.Truncate(path, 38_608)) // ends within a block that the target still has
	overwrite(t, path, 30_281, random(3_243, seed(t, 56)))
	source.Node.Must("relationship", "enable", pair.ID)
	sameCopy(t, "after the transfer", source, target, pair)
}
