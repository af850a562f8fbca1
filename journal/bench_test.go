package journal

import (
	"strconv"
	"testing"

	"github.com/dgraph-io/badger/v4"
)

// BenchmarkTouchDataAgain is the hot path: the bytes are recorded already.
func BenchmarkTouchDataAgain(b *testing.B) {
	j := open(b, b.TempDir(), Options{})
	for i := range 1000 {
		touchData(b, j, ino(1), Extent{int64(i) * 8192, int64(i)*8192 + 4096}, nil)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		off := int64(i%1000) * 8192
		j.Enter()
		if err := j.TouchData(ino(1), Extent{off, off + 4096}, nil); err != nil {
			b.Fatal(err)
		}
		j.Leave()
	}
}

// BenchmarkTouchDataAppending is a file that grows: every touch is a record.
func BenchmarkTouchDataAppending(b *testing.B) {
	j := open(b, b.TempDir(), Options{})
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		off := int64(i) * 4096
		j.Enter()
		if err := j.TouchData(ino(1), Extent{off, off + 4096}, nil); err != nil {
			b.Fatal(err)
		}
		j.Leave()
	}
}

// BenchmarkTouchDataScattered is random writes into large files: extents pile up and get coarser.
func BenchmarkTouchDataScattered(b *testing.B) {
	j := open(b, b.TempDir(), Options{})
	for i := 0; b.Loop(); i++ {
		off := int64(uint64(i)*0x9E3779B97F4A7C15>>30) &^ 4095
		j.Enter()
		if err := j.TouchData(ino(i%16), Extent{off, off + 4096}, nil); err != nil {
			b.Fatal(err)
		}
		j.Leave()
	}
}

// BenchmarkTouchNameNew is the first touch of a name, the absorbing into the store included.
func BenchmarkTouchNameNew(b *testing.B) {
	j := open(b, b.TempDir(), Options{})
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		j.Enter()
		if err := j.TouchName(ino(i/100), "name-"+strconv.Itoa(i), ino(i)); err != nil {
			b.Fatal(err)
		}
		j.Leave()
	}
}

// BenchmarkTouchNameForgotten is the same in short epochs that are forgotten soon, as replication does it.
func BenchmarkTouchNameForgotten(b *testing.B) {
	j := open(b, b.TempDir(), Options{})
	for i := 0; b.Loop(); i++ {
		j.Enter()
		if err := j.TouchName(ino(i/100), "name-"+strconv.Itoa(i), ino(i)); err != nil {
			b.Fatal(err)
		}
		j.Leave()
		if i%1000 == 999 {
			n := seal(b, j, false)
			must(b, j.Forget(n-1))
		}
	}
}

// BenchmarkBadgerTransaction is what a record would cost as a transaction of its own.
func BenchmarkBadgerTransaction(b *testing.B) {
	j := open(b, b.TempDir(), Options{})
	for i := 0; b.Loop(); i++ {
		key := nameEntryKey(1, nameKey{ino(i / 100), "name-" + strconv.Itoa(i)})
		if err := j.store.db.Update(func(txn *badger.Txn) error { return txn.Set(key, putIdent(nil, ino(i))) }); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	for _, records := range []int{0, 100_000} {
		b.Run(strconv.Itoa(records)+" records", func(b *testing.B) {
			j := open(b, b.TempDir(), Options{})
			for i := range records {
				touchMeta(b, j, ino(i), nil)
			}
			for b.Loop() {
				seal(b, j, false)
			}
		})
	}
}

func BenchmarkSync(b *testing.B) {
	j := open(b, b.TempDir(), Options{})
	for i := 0; b.Loop(); i++ {
		touchMeta(b, j, ino(i), nil)
		must(b, j.Sync())
	}
}
