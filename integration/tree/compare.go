package tree

import (
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// Options say what Compare looks away from.
type Options struct {
	IgnoreTimes bool // for trees that were written one after the other
	IgnoreHoles bool // for filesystems of different kinds, which allocate in different grains
}

// Compare returns how b differs from a, one readable line for each difference, sorted by path; none when
// the trees are equal.
func Compare(a, b *Manifest, o Options) []string {
	var diffs []string
	i, j := 0, 0
	for i < len(a.Entries) || j < len(b.Entries) {
		switch {
		case j == len(b.Entries) || i < len(a.Entries) && a.Entries[i].Path < b.Entries[j].Path:
			diffs = append(diffs, fmt.Sprintf("%q: a %s, only in %s", a.Entries[i].Path, typeName(a.Entries[i].Mode), a.Root))
			i++
		case i == len(a.Entries) || a.Entries[i].Path > b.Entries[j].Path:
			diffs = append(diffs, fmt.Sprintf("%q: a %s, only in %s", b.Entries[j].Path, typeName(b.Entries[j].Mode), b.Root))
			j++
		default:
			diffs = append(diffs, compareEntries(&a.Entries[i], &b.Entries[j], o)...)
			i, j = i+1, j+1
		}
	}
	return diffs
}

func compareEntries(a, b *Entry, o Options) []string {
	var diffs []string
	differ := func(what string, x, y any) {
		if x != y {
			diffs = append(diffs, fmt.Sprintf("%q: %s is %v, and %v in the other tree", a.Path, what, x, y))
		}
	}
	differ("type", typeName(a.Mode), typeName(b.Mode))
	differ("mode", fmt.Sprintf("%04o", a.Mode&0o7777), fmt.Sprintf("%04o", b.Mode&0o7777))
	differ("owner", a.UID, b.UID)
	differ("group", a.GID, b.GID)
	differ("link count", a.Nlink, b.Nlink)
	differ("first hard link", a.Link, b.Link)
	differ("device number", a.Rdev, b.Rdev)
	differ("symlink target", a.Target, b.Target)
	differ("size", a.Size, b.Size)
	differ("content digest", a.Digest, b.Digest)
	if !o.IgnoreTimes {
		const layout = "2006-01-02 15:04:05.000000000"
		differ("modification time", a.Mtime.Format(layout), b.Mtime.Format(layout))
	}
	if !o.IgnoreHoles && a.Size == b.Size {
		differ("data map", fmt.Sprint(settled(a, b)), fmt.Sprint(settled(b, a)))
	}
	return append(diffs, compareXattrs(a, b)...)
}

// settled is e's data map without what is unwritten on either side.
func settled(e, other *Entry) []Range {
	return subtract(subtract(e.Data, e.Unwritten), other.Unwritten)
}

func compareXattrs(a, b *Entry) []string {
	names := slices.Sorted(maps.Keys(a.Xattrs))
	for name := range b.Xattrs {
		if _, both := a.Xattrs[name]; !both {
			names = append(names, name)
		}
	}
	var diffs []string
	for _, name := range names {
		x, inA := a.Xattrs[name]
		y, inB := b.Xattrs[name]
		if x != y || inA != inB {
			diffs = append(diffs, fmt.Sprintf("%q: extended attribute %s is %s, and %s in the other tree",
				a.Path, name, quoted(x, inA), quoted(y, inB)))
		}
	}
	return diffs
}

func quoted(value string, there bool) string {
	switch {
	case !there:
		return "absent"
	case len(value) > 64:
		return fmt.Sprintf("%q... (%d bytes)", value[:64], len(value))
	}
	return fmt.Sprintf("%q", value)
}

// subtract returns what of the sorted ranges in from is in none of the sorted ranges in what.
func subtract(from, what []Range) []Range {
	var left []Range
	for _, r := range from {
		for _, w := range what {
			if w.End <= r.Off || w.Off >= r.End {
				continue
			}
			if w.Off > r.Off {
				left = append(left, Range{r.Off, w.Off})
			}
			r.Off = w.End
			if r.Off >= r.End {
				break
			}
		}
		if r.Off < r.End {
			left = append(left, r)
		}
	}
	return left
}

func typeName(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFIFO:
		return "FIFO"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFCHR:
		return "character device"
	}
	return "block device"
}
