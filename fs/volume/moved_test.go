package volume

import (
	"testing"

	"golang.org/x/sys/unix"

	"tandemfs/journal"
)

// followsMoves is a kernel that notes where it is told that inodes are.
type followsMoves struct {
	noKernel
	places map[journal.Ident]place
}

func (k followsMoves) Moved(id, dir journal.Ident, name string) { k.places[id] = place{dir, name} }

func TestTheKernelIsToldWhatARenameMoved(t *testing.T) {
	v := opened(t)
	d := v.mustDir(t, v.root, "d")
	a, b := v.mustFile(t, v.root, "a", ""), v.mustFile(t, v.root, "b", "")
	c, other := v.mustFile(t, d, "c", ""), v.mustFile(t, v.root, "other", "")
	k := followsMoves{places: map[journal.Ident]place{}}
	v.SetKernel(k)
	must(t, v.Rename(v.root, "a", d, "moved", 0))
	must(t, v.Rename(v.root, "b", d, "c", unix.RENAME_EXCHANGE))
	if err := v.Rename(v.root, "other", d, "moved", unix.RENAME_NOREPLACE); err != unix.EEXIST {
		t.Fatalf("without replacing: %v", err)
	}
	for id, want := range map[journal.Ident]place{a: {d, "moved"}, b: {d, "c"}, c: {v.root, "b"}, other: {}} {
		if got := k.places[id]; got != want {
			t.Errorf("inode %s is at %v, want %v", id, got, want)
		}
	}
	must(t, v.Rename(v.root, "other", d, "moved", 0)) // replaces a
	if got := k.places[other]; got != (place{d, "moved"}) {
		t.Errorf("what replaced another is at %v", got)
	}
}
