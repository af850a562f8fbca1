package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/integration/figures"
	"tandemfs/integration/lab"
)

// readFiles is how many small files are looked at and read.
const readFiles = 2000

// A reading is one kind of reading below a directory; it gives how much it has read, in units.
type reading struct {
	name, unit string
	warm       bool // it is done once before it is measured; else the kernel's caches are dropped
	read       func(dir string) (float64, error)
}

func readings() []reading {
	large := func(dir string) (float64, error) {
		n, err := readAll(filepath.Join(dir, "large"))
		return float64(n) / (1 << 20), err
	}
	list := func(dir string) (float64, error) {
		return readFiles, eachSmall(dir, func(path string) error { return lstat(path) })
	}
	small := func(dir string) (float64, error) {
		return readFiles, eachSmall(dir, func(path string) error { _, err := readAll(path); return err })
	}
	return []reading{
		{"stat small files, cold", "files", false, list}, {"stat small files, warm", "files", true, list},
		{"read small files, cold", "files", false, small}, {"read small files, warm", "files", true, small},
		{"read a large file, cold", "MiB", false, large}, {"read a large file, warm", "MiB", true, large},
	}
}

// readTable reads what has not changed since a snapshot, live and in the snapshot, in turns.
func readTable(t lab.T, node *lab.Node, o options, out io.Writer) error {
	v := protect(t, node, "read", lab.Ext4, o.size+4<<30, func(dir string) error {
		if err := makeFiles(dir, readFiles); err != nil {
			return err
		}
		block := make([]byte, blockSize)
		if err := eachSmall(dir, func(path string) error { return os.WriteFile(path, block, 0o644) }); err != nil {
			return err
		}
		return writeBlocks(filepath.Join(dir, "large"), places(o.size, 1<<20), 1<<20)
	})
	if err := v.snapshot("kept"); err != nil {
		return err
	}
	dirs := []string{v.mount, filepath.Join(v.mount, ".snapshot", "kept")}
	fmt.Fprintf(out, "Reading %d files of 4 KiB and one of %d MiB, none of which has changed since the snapshot;\n"+
		"medians of %d rounds, per second.\n\n", readFiles, o.size>>20, o.rounds)
	w := columns(out, "what", "unit", "live", "in the snapshot", "ratio")
	for _, r := range readings() {
		var rates [2][]float64
		for round := range o.rounds {
			for n := range dirs {
				which := (round + n) % len(dirs)
				rate, err := r.measure(dirs[which])
				if err != nil {
					return fmt.Errorf("%s: %w", r.name, err)
				}
				rates[which] = append(rates[which], rate)
			}
		}
		live, kept := figures.Median(rates[0]), figures.Median(rates[1])
		line(w, r.name, r.unit, fmt.Sprintf("%.0f", live), fmt.Sprintf("%.0f", kept), fmt.Sprintf("%.2f", kept/live))
	}
	w.Flush()
	fmt.Fprintln(out)
	return v.deleteAll()
}

func (r reading) measure(dir string) (float64, error) {
	var err error
	if r.warm {
		_, err = r.read(dir)
	} else {
		unix.Sync()
		err = os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
	}
	if err != nil {
		return 0, err
	}
	start := time.Now()
	units, err := r.read(dir)
	return units / time.Since(start).Seconds(), err
}

func eachSmall(dir string, f func(path string) error) error {
	for i := range readFiles {
		if err := f(fileName(dir, i)); err != nil {
			return err
		}
	}
	return nil
}

func lstat(path string) error {
	var st unix.Stat_t
	return unix.Lstat(path, &st)
}

// readAll reads a file in pieces of 1 MiB, and gives its size.
func readAll(path string) (n int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for {
		m, err := f.Read(buffer)
		n += int64(m)
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

var buffer = make([]byte, 1<<20)
