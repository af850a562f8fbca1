package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/integration/figures"
	"tandemfs/integration/lab"
)

// keptSnapshots are the numbers of snapshots with which overwriting is measured; the first is what the others
// are compared to.
var keptSnapshots = []int{0, 1, 10}

// changedBetween is how many blocks are overwritten between two snapshots that are kept.
const changedBetween = 100

// passNames name the two times that each block is overwritten.
var passNames = []string{"first", "second"}

// rates are MiB per second, by the number of snapshots, for the first and the second time.
type rates map[int][2][]float64

func overwriteTable(t lab.T, node *lab.Node, o options, out io.Writer) error {
	kinds := []string{lab.Ext4, lab.XFS}
	results := make([]rates, len(kinds))
	volumes := make([]*volume, len(kinds))
	for i, kind := range kinds {
		results[i] = rates{}
		volumes[i] = protect(t, node, "overwrite-"+kind, kind, 8*o.size+4<<30, func(string) error { return nil })
	}
	for round := range o.rounds {
		for i, v := range volumes {
			for n := range keptSnapshots {
				if err := results[i].measure(v, keptSnapshots[(round+n)%len(keptSnapshots)], o.size); err != nil {
					return fmt.Errorf("%s: %w", kinds[i], err)
				}
			}
		}
		t.Logf("overwritten: round %d of %d", round+1, o.rounds)
	}
	fmt.Fprintf(out, "Overwriting a file of %d MiB in blocks of 4 KiB, in random order, each once and then again;\n"+
		"medians of %d rounds, MiB per second, and ratios to no snapshot.\n\n", o.size>>20, o.rounds)
	titles := []string{"filesystem", "time", "no snapshot"}
	for _, n := range keptSnapshots[1:] {
		titles = append(titles, fmt.Sprintf("with %d", n), "ratio")
	}
	w := columns(out, titles...)
	for i, kind := range kinds {
		for pass, name := range passNames {
			line(w, append([]string{kind, name}, results[i].cells(pass)...)...)
		}
	}
	w.Flush()
	fmt.Fprintln(out)
	return nil
}

// cells are the medians, and from the second on how they compare to the first.
func (r rates) cells(pass int) []string {
	base := figures.Median(r[keptSnapshots[0]][pass])
	cells := []string{fmt.Sprintf("%.1f", base)}
	for _, n := range keptSnapshots[1:] {
		rate := figures.Median(r[n][pass])
		cells = append(cells, fmt.Sprintf("%.1f", rate), fmt.Sprintf("%.2f", rate/base))
	}
	return cells
}

// measure overwrites a new file twice with so many snapshots kept, and takes it and them away again.
func (r rates) measure(v *volume, snapshots int, size int64) error {
	path := filepath.Join(v.mount, "large")
	if err := writeBlocks(path, places(size, 1<<20), 1<<20); err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(1, 2))
	at := places(size, blockSize)
	if err := v.keepSome(snapshots, path, at, rng); err != nil {
		return err
	}
	result := r[snapshots]
	for pass := range passNames {
		shuffle(rng, at)
		unix.Sync()
		start := time.Now()
		if err := writeBlocks(path, at, blockSize); err != nil {
			return err
		}
		result[pass] = append(result[pass], float64(size>>20)/time.Since(start).Seconds())
	}
	r[snapshots] = result
	if err := os.Remove(path); err != nil {
		return err
	}
	return v.deleteAll()
}

// keepSome takes so many snapshots, of which no two are alike.
func (v *volume) keepSome(snapshots int, path string, at []int64, rng *rand.Rand) error {
	for i := range snapshots {
		shuffle(rng, at)
		if err := writeBlocks(path, at[:min(len(at), changedBetween)], blockSize); err != nil {
			return err
		}
		if err := v.snapshot(fmt.Sprintf("kept-%d", i)); err != nil {
			return err
		}
	}
	return nil
}

func shuffle(rng *rand.Rand, at []int64) {
	rng.Shuffle(len(at), func(i, j int) { at[i], at[j] = at[j], at[i] })
}
