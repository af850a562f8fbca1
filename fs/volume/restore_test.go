package volume

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tandemfs/journal"
)

func (v *Volume) mustLookup(t *testing.T, dir journal.Ident, name string) Inode {
	t.Helper()
	var n Inode
	must(t, v.Lookup(dir, name, &n))
	return n
}

func (v *Volume) mustLink(t *testing.T, id, dir journal.Ident, name string) {
	t.Helper()
	var n Inode
	must(t, v.Link(id, dir, name, &n))
}

func TestNamesOfOneFileAreRestoredAsNamesOfOneFile(t *testing.T) {
	for _, gone := range []string{"a", "b", "c"} {
		t.Run(gone+" is gone", func(t *testing.T) {
			v := opened(t)
			d := v.mustDir(t, v.root, "d")
			id := v.mustFile(t, d, "a", "one")
			v.mustLink(t, id, d, "b")
			v.mustLink(t, id, d, "c")
			v.mustSnapshot(t, "s")
			v.mustWrite(t, id, 0, "ONE")
			must(t, v.Unlink(d, gone))
			if _, err := v.Restore("s", "d"); err != nil {
				t.Fatal(err)
			}
			first := v.mustLookup(t, d, "a")
			for _, name := range []string{"a", "b", "c"} {
				n := v.mustLookup(t, d, name)
				if n.ID != first.ID || n.Stat.Nlink != 3 || v.content(t, n.ID) != "one" {
					t.Errorf("%s is inode %s with %d names and %q, a is %s", name, n.ID, n.Stat.Nlink, v.content(t, n.ID), first.ID)
				}
			}
		})
	}
}

// deepDir makes directories whose path is longer than the kernel gives one.
func (v *Volume) deepDir(t *testing.T, dir journal.Ident) journal.Ident {
	t.Helper()
	for range 20 {
		dir = v.mustDir(t, dir, strings.Repeat("n", 250))
	}
	return dir
}

func TestPathsThatAreLongerThanThePathsOfTheKernel(t *testing.T) {
	v := opened(t)
	deep := v.deepDir(t, v.root)
	moved := v.mustDir(t, v.root, "moved")
	id := v.mustFile(t, moved, "f", "one")
	v.mustSnapshot(t, "a")
	deeper := v.deepDir(t, deep)
	must(t, v.Rename(v.root, "moved", deeper, "moved", 0))
	v.mustFile(t, deep, "made", "")
	v.mustWrite(t, id, 0, "ONE")
	v.mustSnapshot(t, "b")
	changes, _, err := v.Diff("a", "b", "", 100)
	if err != nil {
		t.Errorf("a difference: %v", err)
	}
	kinds := map[ChangeKind]int{}
	for _, c := range changes {
		kinds[c.Kind]++
	}
	if fmt.Sprint(kinds) != "map[created:21 modified:1 renamed:1]" {
		t.Errorf("the difference has %v", kinds)
	}
	if _, err := v.Restore("a", ""); err != nil {
		t.Fatalf("restore: %v", err)
	}
	if got := v.content(t, v.mustLookup(t, v.mustLookup(t, v.root, "moved").ID, "f").ID); got != "one" {
		t.Errorf("it holds %q", got)
	}
}

func TestALargeHoleNeedsNoRoomForSnapshots(t *testing.T) {
	v := opened(t)
	id := v.mustFile(t, v.root, "f", "data")
	var n Inode
	must(t, v.SetAttr(id, Setting{Valid: SetSize, Size: 8 << 40}, &n))
	v.mustSnapshot(t, "s")
	if err := v.Allocate(id, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4<<40, false); err != nil {
		t.Errorf("a hole in it: %v", err)
	}
	if err := v.SetAttr(id, Setting{Valid: SetSize}, &n); err != nil {
		t.Errorf("a truncation of it: %v", err)
	}
}
