package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestShuffledOffsetsAreTheSameBlocksInAnotherOrder(t *testing.T) {
	inOrder, shuffled := offsets(1<<20, 4096, false), offsets(1<<20, 4096, true)
	if slices.Equal(inOrder, shuffled) {
		t.Error("nothing was shuffled")
	}
	if !slices.Equal(shuffled, offsets(1<<20, 4096, true)) {
		t.Error("they are shuffled another way every time")
	}
	slices.Sort(shuffled)
	if !slices.Equal(inOrder, shuffled) {
		t.Errorf("%d blocks became others", len(inOrder))
	}
}

func TestEveryRowOnFilesAndDataDoesItsWork(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("the rows that are called cold drop the kernel's caches: run this test as root")
	}
	dir := t.TempDir()
	o := options{size: 2 << 20, files: 150}
	seen := make(map[string]bool)
	for _, row := range append(dataRows(o), fileRows(o)...) {
		rate, err := row.measure(filepath.Join(dir, row.directory()), unix.Sync)
		if err != nil || rate <= 0 {
			t.Errorf("%s: rate %v, %v", row.name, rate, err)
		}
		if seen[row.directory()] || strings.ContainsAny(row.directory(), " ,/") {
			t.Errorf("%s: its directory is %q", row.name, row.directory())
		}
		seen[row.directory()] = true
	}
}
