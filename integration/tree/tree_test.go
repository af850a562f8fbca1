package tree

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// grown makes a small tree of all kinds, the same every time.
func grown(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test makes device nodes and sets trusted attributes: run it as root")
	}
	dir := t.TempDir()
	if err := Grow(dir, 400, 7); err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_700_000_000, 123456789)
	if err := os.Chtimes(dir, now, now); err != nil {
		t.Fatal(err)
	}
	return dir
}

func scan(t *testing.T, dir string) *Manifest {
	t.Helper()
	m, err := Scan(dir)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestTwoTreesFromOneSeedAreEqual(t *testing.T) {
	a, b := scan(t, grown(t)), scan(t, grown(t))
	if diffs := Compare(a, b, Options{}); len(diffs) > 0 {
		t.Errorf("%d differences:\n%s", len(diffs), strings.Join(diffs, "\n"))
	}
	for _, kind := range []string{"file", "directory", "symlink", "FIFO", "socket", "character device", "block device"} {
		if a.Count()[kind] == 0 {
			t.Errorf("the tree has no %s", kind)
		}
	}
}

func TestTheStateDirectoryIsLeftOut(t *testing.T) {
	dir := t.TempDir()
	before := scan(t, dir)
	if err := os.MkdirAll(filepath.Join(dir, StateDir, "journal"), 0o700); err != nil {
		t.Fatal(err)
	}
	after := scan(t, dir)
	if diffs := Compare(before, after, Options{IgnoreTimes: true}); len(diffs) > 0 {
		t.Errorf("differences: %q", diffs)
	}
}

func TestEveryKindOfDifferenceIsReported(t *testing.T) {
	victim := func(dir string) string { return filepath.Join(dir, "victim") }
	for _, c := range []struct {
		name   string
		change func(path string) error
		want   string
	}{
		{"a missing name", os.Remove, "only in"},
		{"a mode", func(p string) error { return os.Chmod(p, 0o600) }, "mode is"},
		{"an owner", func(p string) error { return os.Chown(p, 5, -1) }, "owner is"},
		{"a group", func(p string) error { return os.Chown(p, -1, 5) }, "group is"},
		{"a nanosecond", func(p string) error { return setMtime(p, 2) }, "modification time is"},
		{"a hard link", func(p string) error { return os.Link(p, p+"-2") }, "link count is"},
		{"an attribute", func(p string) error { return unix.Setxattr(p, "user.x", []byte("y"), 0) }, "user.x is absent"},
		{"an attribute's value", func(p string) error { return unix.Setxattr(p, "user.v", []byte("y"), 0) }, `"y"`},
		{"one byte", func(p string) error { return overwrite(p, 70_000, "B") }, "content digest is"},
		{"a hole that was filled with zeros", func(p string) error { return overwrite(p, 20_000, "\x00") }, "data map is"},
		{"a size", func(p string) error { return os.Truncate(p, 1<<20+1) }, "size is"},
		{"a type", func(p string) error {
			if err := os.Remove(p); err != nil {
				return err
			}
			return os.Mkdir(p, 0o644)
		}, "type is"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := t.TempDir(), t.TempDir()
			for _, dir := range []string{a, b} {
				if err := makeVictim(victim(dir)); err != nil {
					t.Fatal(err)
				}
			}
			if diffs := Compare(scan(t, a), scan(t, b), Options{IgnoreTimes: false}); len(withoutRoot(diffs)) > 0 {
				t.Fatalf("different before the change: %q", diffs)
			}
			if err := c.change(victim(b)); err != nil {
				t.Fatal(err)
			}
			diffs := strings.Join(withoutRoot(Compare(scan(t, a), scan(t, b), Options{})), "\n")
			if !strings.Contains(diffs, c.want) {
				t.Errorf("got %q, want something with %q", diffs, c.want)
			}
		})
	}
}

// withoutRoot drops the differences of the root itself, whose times nobody set.
func withoutRoot(diffs []string) []string {
	var rest []string
	for _, d := range diffs {
		if !strings.HasPrefix(d, `".":`) {
			rest = append(rest, d)
		}
	}
	return rest
}

func makeVictim(path string) error {
	if err := os.WriteFile(path, []byte("the head"), 0o644); err != nil {
		return err
	}
	if err := overwrite(path, 65536, strings.Repeat("A", 10_000)); err != nil {
		return err
	}
	if err := os.Truncate(path, 1<<20); err != nil {
		return err
	}
	if err := unix.Setxattr(path, "user.v", []byte("x"), 0); err != nil {
		return err
	}
	return setMtime(path, 1)
}

func overwrite(path string, off int64, data string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt([]byte(data), off)
	return err
}

func setMtime(path string, ns int) error {
	when := time.Unix(1_600_000_000, int64(ns))
	return os.Chtimes(path, when, when)
}

func TestHardLinksThatJoinOtherNamesDiffer(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	for dir, pair := range map[string][2]string{a: {"one", "two"}, b: {"one", "three"}} {
		for _, name := range []string{"one", "two", "three"} {
			if err := os.WriteFile(filepath.Join(dir, name+"-file"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Link(filepath.Join(dir, pair[0]+"-file"), filepath.Join(dir, "link")); err != nil {
			t.Fatal(err)
		}
	}
	if diffs := Compare(scan(t, a), scan(t, b), Options{IgnoreTimes: true}); len(diffs) != 0 {
		t.Fatalf("equal trees differ: %q", diffs)
	}
	for _, dir := range []string{a, b} {
		target := map[string]string{a: "two-file", b: "three-file"}[dir]
		if err := os.Link(filepath.Join(dir, target), filepath.Join(dir, "other")); err != nil {
			t.Fatal(err)
		}
	}
	diffs := strings.Join(Compare(scan(t, a), scan(t, b), Options{IgnoreTimes: true}), "\n")
	if !strings.Contains(diffs, "first hard link") {
		t.Errorf("got %q", diffs)
	}
}

func TestPreallocatedSpaceCountsNeitherAsDataNorAsHole(t *testing.T) {
	got := subtract([]Range{{0, 100}, {200, 300}}, []Range{{50, 60}, {90, 210}, {290, 400}})
	want := []Range{{0, 50}, {60, 90}, {210, 290}}
	if len(got) != len(want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}
