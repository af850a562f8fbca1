package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"time"
)

// diffTable asks for differences in all volumes in turns. Each is one that nobody asked for before.
func diffTable(volumes []*volume, o options, out io.Writer) error {
	times := make([][]time.Duration, len(volumes))
	rng := rand.New(rand.NewPCG(3, 4))
	for round := range o.diffs {
		for i, v := range volumes {
			took, err := v.timeDiff(rng, round)
			if err != nil {
				return fmt.Errorf("%d files: %w", v.files, err)
			}
			times[i] = append(times[i], took)
		}
	}
	fmt.Fprintf(out, "The difference of two snapshots with %d changes between them, the first page.\n\n", changesInDiff)
	w := columns(out, slices.Concat([]string{"files"}, distributionTitles)...)
	for i, v := range volumes {
		line(w, slices.Concat([]string{fmt.Sprint(v.files)}, distribution(times[i]))...)
	}
	w.Flush()
	fmt.Fprintln(out)
	return nil
}

// changesInDiff is how many files change between two snapshots.
const changesInDiff = 10

// timeDiff takes a snapshot, changes some files, takes another one and asks how they differ. What it answers
// must be exactly those changes.
func (v *volume) timeDiff(rng *rand.Rand, round int) (time.Duration, error) {
	if err := v.snapshot("older"); err != nil {
		return 0, err
	}
	if err := v.changeSome(rng, round); err != nil {
		return 0, err
	}
	if err := v.snapshot("newer"); err != nil {
		return 0, err
	}
	start := time.Now()
	changes, err := v.Diff(v.name, "older", "newer")
	took := time.Since(start)
	if err == nil && len(changes) != changesInDiff {
		err = fmt.Errorf("%d changes were made, and the diff has %+v", changesInDiff, changes)
	}
	if err != nil {
		return 0, err
	}
	return took, v.deleteAll()
}

// changeSome overwrites, renames, makes and removes files all over the volume, changesInDiff in all. Names that
// it makes are of one round only, and a file that an earlier round took away is not chosen again.
func (v *volume) changeSome(rng *rand.Rand, round int) error {
	paths := make([]string, 0, changesInDiff)
	for len(paths) < changesInDiff {
		path := fileName(v.mount, rng.IntN(v.files))
		if _, err := os.Lstat(path); err == nil && !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
	}
	for i, path := range paths {
		var err error
		switch added := fmt.Sprintf("%s-%d", path, round); i % 5 {
		case 0, 1:
			err = os.WriteFile(path, make([]byte, blockSize), 0o644)
		case 2:
			err = os.Rename(path, added)
		case 3:
			err = os.WriteFile(added, make([]byte, blockSize), 0o644)
		case 4:
			err = os.Remove(path)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
