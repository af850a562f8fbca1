package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"tandemfs/journal"
)

// transfer changes a frozen volume as a transfer does, at random, and then either commits or thaws it.
type transfer struct {
	h     *history
	known []journal.Ident // inodes that it made or met
}

// draw draws an inode of a kind, but none that was removed: a transfer does not come back to those.
func (x *transfer) draw(t *rapid.T, what string, kind uint32) (journal.Ident, bool) {
	var list []journal.Ident
	for _, id := range x.known {
		var n Inode
		if !x.h.v.removed(id) && x.h.v.Stat(id, &n) == nil && (kind == 0 || uint32(n.Stat.Mode)&unix.S_IFMT == kind) {
			list = append(list, id)
		}
	}
	if len(list) == 0 {
		return journal.Ident{}, false
	}
	return list[rapid.IntRange(0, len(list)-1).Draw(t, what)], true
}

// change makes one change.
func (x *transfer) change(t *rapid.T) {
	v := x.h.v
	dir, _ := x.draw(t, "dir", unix.S_IFDIR)
	name := drawName(t, "name")
	switch kind := rapid.SampledFrom([]string{"create", "create", "aside", "place", "write", "write", "punch", "truncate", "image", "drop"}).Draw(t, "change"); kind {
	case "create":
		mode := rapid.SampledFrom([]uint32{unix.S_IFREG, unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK}).Draw(t, "mode")
		if rapid.Bool().Draw(t, "aside") {
			dir = journal.Ident{}
		}
		id, err := v.Create(mode, 0, "target", dir, name)
		expect(t, err, nil)
		x.known = append(x.known, id)
	case "aside":
		expect(t, v.MoveAside(dir, name), nil)
	case "place":
		id, _ := x.draw(t, "inode", 0)
		if err := v.Place(id, dir, name); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ELOOP) && !errors.Is(err, unix.ESTALE) {
			t.Fatalf("place: %v", err) // a directory below itself is refused
		}
	case "drop":
		expect(t, v.DropAside(func(journal.Ident) error { return nil }), nil)
	case "image":
		id, _ := x.draw(t, "inode", 0)
		x.image(t, id)
	default:
		if id, ok := x.draw(t, "file", unix.S_IFREG); ok {
			x.content(t, id, kind)
		}
	}
}

func (x *transfer) content(t *rapid.T, id journal.Ident, kind string) {
	f, err := x.h.v.OpenForApply(id)
	expect(t, err, nil)
	defer f.Close()
	off, length := drawRange(t)
	switch kind {
	case "write":
		p := make([]byte, length)
		for i := range p {
			p[i] = byte(off%250 + 1)
		}
		_, err = f.WriteAt(p, int64(off))
	case "punch":
		err = f.Punch(journal.Extent{Off: int64(off), End: int64(off + length)})
	case "truncate":
		err = f.Truncate(int64(off))
	}
	expect(t, err, nil)
}

func (x *transfer) image(t *rapid.T, id journal.Ident) {
	var n Inode
	expect(t, x.h.v.Stat(id, &n), nil)
	mode := uint32(n.Stat.Mode)&unix.S_IFMT | uint32(rapid.IntRange(0, 0o777).Draw(t, "bits"))
	img := journal.Image{Attr: journal.Attr{Mode: mode, UID: uint32(rapid.IntRange(0, 3).Draw(t, "uid")), Size: int64(n.Stat.Size),
		Mtime: journal.Time{Sec: int64(rapid.IntRange(1, 1<<30).Draw(t, "mtime"))}}}
	if mode&unix.S_IFMT == unix.S_IFREG {
		img.Attr.Size = int64(rapid.IntRange(0, 30000).Draw(t, "size"))
	}
	expect(t, x.h.v.SetImage(id, img), nil)
}

// captureCurrent notes what readers see.
func (h *history) captureCurrent(t *rapid.T) (map[string]string, map[string]extras) {
	known, more := map[string]string{}, map[string]extras{}
	tree := h.v.Current()
	defer tree.Done()
	describeTree(t, tree, h.v.root, "", known, more)
	return known, more
}

func (x *transfer) run(t *rapid.T) {
	h, v := x.h, x.h.v
	expect(t, v.SetReadOnly(true), nil)
	expect(t, v.Freeze(), nil)
	was, more := h.captureCurrent(t)
	x.known = []journal.Ident{v.root}
	for _, n := range h.all(func(*modelNode) bool { return true }) {
		if n.nlink > 0 {
			x.known = append(x.known, n.id)
		}
	}
	for i := range rapid.IntRange(1, 25).Draw(t, "changes") {
		x.change(t)
		if i%6 == 5 {
			now, nowMore := h.captureCurrent(t)
			compareMaps(t, "what readers see", was, now)
			h.compareExtras(t, "what readers see", more, nowMore, true)
		}
	}
	if rapid.Bool().Draw(t, "commit") {
		expect(t, v.DropAside(func(journal.Ident) error { return nil }), nil)
		n, err := v.Commit()
		expect(t, err, nil)
		expect(t, v.Publish(n), nil)
		expect(t, v.journal.Forget(n), nil)
		was, more = h.captureCurrent(t)
	} else if rapid.Bool().Draw(t, "restart") {
		h.stop(t)
		h.start(t)
	}
	expect(t, h.v.SetReadOnly(false), nil)
	now, nowMore := h.captureCurrent(t)
	compareMaps(t, "after the thaw", was, now)
	h.compareExtras(t, "after the thaw", more, nowMore, false)
}

func TestAThawGivesBackWhatReadersSawWhateverATransferDid(t *testing.T) {
	checkHistories(t, func(rt *rapid.T, h *history) {
		for range rapid.IntRange(3, 15).Draw(rt, "before") {
			n := &Inode{}
			name := fmt.Sprint(len(h.root.names))
			if rapid.Bool().Draw(rt, "dir") {
				expect(rt, h.v.Mkdir(h.root.id, name, 0o755, Caller{}, n), nil)
				h.root.names[name] = &modelNode{id: n.ID, mode: unix.S_IFDIR | 0o755, nlink: 1, names: map[string]*modelNode{}}
				continue
			}
			expect(rt, h.v.CreateFile(h.root.id, name, 0o644, Caller{}, n), nil)
			off, length := drawRange(rt)
			_, err := h.v.Write(n.ID, [][]byte{make([]byte, length)}, int64(off), false)
			expect(rt, err, nil)
			h.root.names[name] = &modelNode{id: n.ID, mode: unix.S_IFREG | 0o644, nlink: 1, data: make([]byte, off+length)}
		}
		x := &transfer{h: h}
		for range rapid.IntRange(1, 4).Draw(rt, "transfers") {
			x.run(rt)
		}
	})
}

// After a power cut a target can be made writable, though a before image did not reach the disk; else that is an error.
func TestAThawGoesOnWithoutWhatPowerHasTaken(t *testing.T) {
	dir := t.TempDir()
	v, err := Open(dir, Options{Name: "test", Create: true})
	must(t, err)
	var lost, kept Inode
	for name, n := range map[string]*Inode{"lost": &lost, "kept": &kept} {
		must(t, v.CreateFile(v.Root(), name, 0o644, Caller{}, n))
		_, err := v.Write(n.ID, [][]byte{[]byte("before")}, 0, false)
		must(t, err)
	}
	must(t, v.Freeze())
	for _, n := range []*Inode{&lost, &kept} {
		f, err := v.OpenForApply(n.ID)
		must(t, err)
		_, err = f.WriteAt([]byte("after!"), 0)
		must(t, errors.Join(err, f.Close()))
	}
	must(t, v.MoveAside(v.Root(), "kept"))
	must(t, v.Close())
	copies, err := filepath.Glob(filepath.Join(dir, StateDir, "before", "*", entryName(contentPrefix, lost.ID)))
	must(t, err)
	if len(copies) != 1 {
		t.Fatalf("there are copies %q", copies)
	}
	must(t, os.Remove(copies[0]))

	v, err = Open(dir, Options{Name: "test"})
	must(t, err)
	if err := v.Thaw(); !errors.Is(err, unix.EIO) {
		t.Errorf("what is lost without a power cut: %v", err)
	}
	must(t, v.Close())
	losePower(t, dir)
	v, err = Open(dir, Options{Name: "test"})
	must(t, err)
	must(t, v.Thaw())
	if v.Published() != 0 {
		t.Error("readers still see what they saw")
	}
	for name, want := range map[string]string{"lost": "after!", "kept": "before"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); string(got) != want || err != nil {
			t.Errorf("%s has %q, %v", name, got, err)
		}
	}
	must(t, v.Close())
}
