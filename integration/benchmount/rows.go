package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A row is one kind of work. Each turn has a directory of its own, which does not exist before.
type row struct {
	name string
	unit string // what is done so many times per second
	// prepare makes in dir what the work needs; nil if that is nothing. It is not measured.
	prepare func(dir string) error
	// cold drops the kernel's caches before the work; warm does the work once before it is measured.
	cold, warm bool
	// work does it, and tells how many units it has done.
	work func(dir string) (float64, error)
	// undo takes away again what would fill the disk in the course of a run; nil if little is there. It is not
	// measured.
	undo func(dir string) error
}

// directory is the row's name as a directory's.
func (r row) directory() string { return strings.NewReplacer(" ", "-", ",", "").Replace(r.name) }

// measure does the row's work in dir and gives its rate. Before that it has settled what it has prepared: what a
// replication of it costs is not the work's.
func (r row) measure(dir string, settle func()) (float64, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return 0, err
	}
	if r.prepare != nil {
		if err := r.prepare(dir); err != nil {
			return 0, fmt.Errorf("prepare: %w", err)
		}
		settle()
	}
	if r.warm {
		if _, err := r.work(dir); err != nil {
			return 0, fmt.Errorf("warm up: %w", err)
		}
	}
	if r.cold {
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
			return 0, fmt.Errorf("drop the caches: %w", err)
		}
	}
	start := time.Now()
	units, err := r.work(dir)
	rate := units / time.Since(start).Seconds()
	if err == nil && r.undo != nil {
		err = r.undo(dir)
	}
	return rate, err
}

// rows are all rows, in the order in which they are measured.
func rows(o options) []row {
	all := dataRows(o)
	all = append(all, fileRows(o)...)
	return append(all, treeRows(o)...)
}

// largeFile is the file that the rows on data read and write.
func largeFile(dir string) string { return filepath.Join(dir, "large") }

// dataRows each work on one large file, which goes again: a single inode that is freed does not change how the
// filesystem looks for others later.
func dataRows(o options) []row {
	var all []row
	for _, block := range []struct {
		name string
		size int64
	}{{"4 KiB", 4 << 10}, {"1 MiB", 1 << 20}} {
		sequential, random := offsets(o.size, block.size, false), offsets(o.size, block.size, true)
		makeFile := func(dir string) error { return writeAll(largeFile(dir), offsets(o.size, 1<<20, false), 1<<20) }
		write := func(at []int64) func(dir string) (float64, error) {
			return func(dir string) (float64, error) {
				return mib(at, block.size), writeAll(largeFile(dir), at, block.size)
			}
		}
		read := func(at []int64) func(dir string) (float64, error) {
			return func(dir string) (float64, error) {
				return mib(at, block.size), readAll(largeFile(dir), at, block.size)
			}
		}
		all = append(all,
			row{name: "write " + block.name + " sequential", unit: "MiB", work: write(sequential)},
			row{name: "write " + block.name + " random", unit: "MiB", prepare: makeFile, work: write(random)},
			row{name: "read " + block.name + " sequential, cold", unit: "MiB", prepare: makeFile, cold: true, work: read(sequential)},
			row{name: "read " + block.name + " sequential, warm", unit: "MiB", prepare: makeFile, warm: true, work: read(sequential)},
			row{name: "read " + block.name + " random, cold", unit: "MiB", prepare: makeFile, cold: true, work: read(fewer(random, block.size))},
			row{name: "read " + block.name + " random, warm", unit: "MiB", prepare: makeFile, warm: true, work: read(random)},
		)
	}
	for i := range all {
		all[i].undo = func(dir string) error { return os.Remove(largeFile(dir)) }
	}
	return all
}

// offsets are the places of a file's blocks, in order or shuffled, the same way every time.
func offsets(size, block int64, shuffled bool) []int64 {
	var all []int64
	for off := int64(0); off+block <= size; off += block {
		all = append(all, off)
	}
	if shuffled {
		rng := rand.New(rand.NewPCG(1, 2))
		rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	}
	return all
}

// fewer keeps a turn short where every block is a trip to the disk.
func fewer(at []int64, block int64) []int64 {
	if most := 2000; block < 1<<20 && len(at) > most {
		return at[:most]
	}
	return at
}

func mib(at []int64, block int64) float64 { return float64(int64(len(at))*block) / (1 << 20) }

func writeAll(path string, at []int64, block int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	b := make([]byte, block)
	for i := range b {
		b[i] = byte(i * 7)
	}
	for i, off := range at {
		b[0], b[1] = byte(i), byte(i>>8)
		if _, err := f.WriteAt(b, off); err != nil {
			f.Close()
			return err
		}
	}
	return f.Close()
}

func readAll(path string, at []int64, block int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, block)
	for _, off := range at {
		if _, err := f.ReadAt(b, off); err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}
