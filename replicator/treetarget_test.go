package replicator

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"tandemfs/journal"
)

// The applying side of a tree.

func (n *node) readAt(p []byte, off int64) (int, error) {
	got := 0
	for got < len(p) && off+int64(got) < n.attr.Size {
		at := off + int64(got)
		start := at / block * block
		stop := min(start+block, n.attr.Size, off+int64(len(p)))
		b := n.content[start]
		for ; at < stop; at++ {
			p[got] = 0
			if b != nil {
				p[got] = b[at-start]
			}
			got++
		}
	}
	if got < len(p) {
		return got, io.EOF
	}
	return got, nil
}

// apply runs one operation of the target.
func (v *tree) apply(op string, f func() error) (err error) {
	v.mu.Lock()
	broken := v.broken
	v.mu.Unlock()
	if broken != nil {
		if err := broken(op); err != nil {
			return err
		}
	}
	v.change(func() { err = f() })
	return err
}

func (v *tree) SetReadOnly(ro bool) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.readOnly = ro
	return nil
}

func (v *tree) isReadOnly() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.readOnly
}

func (v *tree) IsEmpty() (bool, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.nodes[v.root].names) == 0, nil
}

func (v *tree) Create(c Creation) (id journal.Ident, err error) {
	err = v.apply("create", func() error {
		if !c.Dir.IsZero() && v.nodes[c.Dir] == nil {
			return syscall.ESTALE
		}
		n := v.node(c.Mode&typeMask | 0o600)
		n.attr.Rdev, n.link, n.attr.Nlink = c.Rdev, c.Symlink, 1
		id = n.id
		if c.Dir.IsZero() {
			v.aside[id]++
		} else {
			v.takeAway(c.Dir, c.Name)
			v.setName(c.Dir, c.Name, id)
		}
		return v.j.NoteCreated(id)
	})
	return id, err
}

func (v *tree) Exists(id journal.Ident) (bool, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.nodes[id] != nil, nil
}

// takeAway moves a name aside.
func (v *tree) takeAway(dir journal.Ident, name string) {
	id, ok := v.nodes[dir].names[name]
	if !ok {
		return
	}
	v.setName(dir, name, journal.Ident{})
	v.aside[id]++
}

func (v *tree) MoveAside(dir journal.Ident, name string) error {
	return v.apply("aside", func() error {
		if v.nodes[dir] == nil {
			return syscall.ESTALE
		}
		v.takeAway(dir, name)
		return nil
	})
}

func (v *tree) Place(id, dir journal.Ident, name string) error {
	return v.apply("place", func() error {
		n, d := v.nodes[id], v.nodes[dir]
		if n == nil || d == nil {
			return syscall.ESTALE
		}
		if d.names[name] == id {
			return nil
		}
		if isDir(n.attr) && v.below(dir, id) {
			return syscall.EINVAL
		}
		v.takeAway(dir, name)
		switch {
		case v.aside[id] > 0:
			if v.aside[id]--; v.aside[id] == 0 {
				delete(v.aside, id)
			}
		case isDir(n.attr):
			v.setName(n.parent, v.nameIn(n.parent, id), journal.Ident{})
		default:
			n.attr.Nlink++
		}
		v.setName(dir, name, id)
		return nil
	})
}

func (v *tree) nameIn(dir, id journal.Ident) string {
	for name, x := range v.nodes[dir].names {
		if x == id {
			return name
		}
	}
	panic("a directory that is neither aside nor in the tree")
}

// below reports whether the directory is id or inside it.
func (v *tree) below(dir, id journal.Ident) bool {
	for dir != id {
		n := v.nodes[dir]
		if dir == v.root || v.aside[dir] > 0 || n == nil {
			return false
		}
		dir = n.parent
	}
	return true
}

func (v *tree) DropAside(gone func(journal.Ident) error) error {
	var lost []journal.Ident
	err := v.apply("drop", func() error {
		for id, names := range v.aside {
			for range names {
				lost = append(lost, v.drop(id)...)
			}
			delete(v.aside, id)
		}
		return nil
	})
	for _, id := range lost {
		if err == nil {
			err = gone(id)
		}
	}
	return err
}

// drop takes one name of an inode away, with all that is below it.
func (v *tree) drop(id journal.Ident) (lost []journal.Ident) {
	n := v.nodes[id]
	for _, child := range n.names {
		lost = append(lost, v.drop(child)...)
	}
	if n.attr.Nlink--; n.attr.Nlink == 0 || isDir(n.attr) {
		v.gone(n)
		lost = append(lost, id)
	}
	return lost
}

func (v *tree) SetImage(id journal.Ident, img journal.Image) error {
	return v.apply("image", func() error {
		n := v.nodes[id]
		if n == nil {
			return fs.ErrNotExist
		}
		no(v.j.TouchMeta(id, nil))
		if isRegular(n.attr) && n.attr.Size != img.Attr.Size {
			n.truncate(img.Attr.Size)
		}
		keep := n.attr
		n.attr = img.Attr
		n.attr.Nlink, n.attr.Rdev, n.attr.Ctime, n.attr.Size = keep.Nlink, keep.Rdev, keep.Ctime, keep.Size
		n.xattrs = map[string]string{}
		for _, x := range img.Xattrs {
			n.xattrs[x.Name] = string(x.Value)
		}
		return nil
	})
}

func (v *tree) Commit() (epoch journal.Epoch, err error) {
	v.mu.Lock()
	broken := v.broken
	v.commits++
	v.mu.Unlock()
	if broken != nil {
		if err := broken("commit"); err != nil {
			return 0, err
		}
	}
	w, err := v.Seal()
	if err != nil {
		return 0, err
	}
	return w.Epoch(), v.j.Sync()
}

// Freeze, Publish and Thaw: what readers see is the copy that belongs to a seal.

func (v *tree) Freeze() error {
	if v.seen() != 0 {
		return nil
	}
	w, err := v.Seal()
	if err != nil {
		return err
	}
	return v.Publish(w.Epoch())
}

func (v *tree) Publish(n journal.Epoch) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	before := v.published
	if n <= before {
		return nil
	}
	if v.seals[n] == nil {
		return fmt.Errorf("seal %d is not there to be published", n)
	}
	v.published = n
	if before != 0 {
		delete(v.seals, before)
		v.j.Release(before)
	}
	return nil
}

func (v *tree) seen() journal.Epoch {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.published
}

func (v *tree) Thaw() error {
	n := v.seen()
	if n == 0 {
		return nil
	}
	err := v.apply("thaw", func() error {
		v.nodes = map[journal.Ident]*node{}
		for id, x := range v.seals[n] {
			v.nodes[id] = x.clone()
		}
		clear(v.aside)
		v.published = 0
		delete(v.seals, n)
		return nil
	})
	if err == nil {
		v.j.Release(n)
	}
	return err
}

func (v *tree) OpenForApply(id journal.Ident) (ApplyFile, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.nodes[id] == nil {
		return nil, syscall.ESTALE
	}
	return &applyFile{v, id}, nil
}

type applyFile struct {
	v  *tree
	id journal.Ident
}

func (f *applyFile) change(op string, e journal.Extent, do func(*node)) error {
	return f.v.apply(op, func() error {
		n := f.v.nodes[f.id]
		if n == nil {
			return syscall.ESTALE
		}
		no(f.v.j.TouchData(f.id, e, nil))
		do(n)
		n.attr.Mtime = f.v.now()
		n.attr.Mode &^= 0o6000
		return nil
	})
}

func (f *applyFile) WriteAt(p []byte, off int64) (int, error) {
	err := f.change("write", journal.Extent{Off: off, End: off + int64(len(p))}, func(n *node) { n.writeAt(p, off) })
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (f *applyFile) Punch(e journal.Extent) error {
	return f.change("punch", e, func(n *node) { n.punch(e) })
}

func (f *applyFile) Truncate(size int64) error {
	return f.change("truncate", journal.Extent{Off: size, End: journal.MaxOffset}, func(n *node) { n.truncate(size) })
}

func (f *applyFile) Close() error { return nil }

// errIO is what a broken target's operations fail with.
var errIO = fmt.Errorf("broken for a test: %w", syscall.EIO)

func (v *tree) setBroken(f func(op string) error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.broken = f
}

// loseSeals makes the views of all seals unavailable, as when there was no room to keep them.
func (v *tree) loseSeals() {
	v.mu.Lock()
	defer v.mu.Unlock()
	clear(v.seals)
}

// setUnread makes reading the tree fail; nil ends it.
func (v *tree) setUnread(f func(what string, id journal.Ident, e journal.Extent) error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.unread = f
}

// powerCut makes the journal one that was not closed before another boot. What it had on disk is taken
// to have survived.
func (v *tree) powerCut(t testing.TB) {
	t.Helper()
	v.boots++
	copied := copyOf(t, v.dir)
	no(v.j.Close())
	j, err := journal.Open(copied, journal.Options{BootID: fmt.Sprint("boot ", v.boots)})
	if err != nil {
		t.Fatal(err)
	}
	if j.Clean() {
		t.Fatal("the journal takes itself for clean")
	}
	t.Cleanup(func() { j.Close() })
	v.j, v.dir = j, copied
}

// copyOf copies a journal that is in use. The store's files come and go meanwhile: a copy counts only if none did.
func copyOf(t testing.TB, dir string) string {
	t.Helper()
	for {
		before, copied := filesOf(t, dir), filepath.Join(t.TempDir(), "journal")
		err := os.CopyFS(copied, os.DirFS(dir))
		if slices.Equal(before, filesOf(t, dir)) {
			no(err)
			return copied
		}
	}
}

func filesOf(t testing.TB, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	no(err)
	return files
}

func (v *tree) Room() error {
	v.mu.Lock()
	broken := v.broken
	v.mu.Unlock()
	if broken != nil {
		return broken("room")
	}
	return nil
}
