package replicator

import (
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"tandemfs/journal"
)

// The reading side of a tree.

func (v *tree) Seal() (View, error) {
	v.mu.Lock()
	broken := v.broken
	v.mu.Unlock()
	if broken != nil {
		if err := broken("seal"); err != nil {
			return nil, err
		}
	}
	v.ops.Lock()
	defer v.ops.Unlock()
	n, err := v.j.Seal(true)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	nodes := map[journal.Ident]*node{}
	for id, n := range v.nodes {
		nodes[id] = n.clone()
	}
	v.seals[n] = nodes
	return &treeView{v: v, epoch: n, nodes: nodes}, nil
}

func (v *tree) View(n journal.Epoch) (View, error) {
	if v.hook != nil {
		v.hook()
	}
	if err := v.j.Hold(n); err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	nodes := v.seals[n]
	if nodes == nil {
		v.j.Release(n)
		return nil, fs.ErrNotExist
	}
	return &treeView{v: v, epoch: n, nodes: nodes}, nil
}

func (v *tree) Usage() (inodes, bytes int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, n := range v.nodes {
		inodes++
		bytes += n.attr.Size
	}
	return inodes, bytes
}

// treeView is a View of a tree.
type treeView struct {
	v     *tree
	epoch journal.Epoch
	nodes map[journal.Ident]*node
	once  sync.Once
}

func (w *treeView) Epoch() journal.Epoch { return w.epoch }

func (w *treeView) Close() error {
	w.once.Do(func() { w.v.j.Release(w.epoch) })
	return nil
}

func (w *treeView) get(id journal.Ident) (*node, error) {
	if n := w.nodes[id]; n != nil {
		return n, nil
	}
	return nil, fs.ErrNotExist
}

func (w *treeView) Stat(id journal.Ident) (journal.Attr, error) {
	n, err := w.get(id)
	if err == nil {
		err = w.failing("stat", id)
	}
	if err != nil {
		return journal.Attr{}, err
	}
	return n.attr, nil
}

func (w *treeView) Lookup(dir journal.Ident, name string) (journal.Ident, error) {
	n, err := w.get(dir)
	if err == nil {
		err = w.failing("names", dir)
	}
	if err == nil && !n.names[name].IsZero() {
		err = w.failing("inode", n.names[name])
	}
	if err != nil {
		return journal.Ident{}, err
	}
	return n.names[name], nil
}

func (w *treeView) ReadDir(dir journal.Ident) ([]DirEntry, error) {
	n, err := w.get(dir)
	if err == nil {
		err = w.failing("names", dir)
	}
	if err != nil {
		return nil, err
	}
	var entries []DirEntry
	for _, name := range slices.Sorted(maps.Keys(n.names)) {
		e := DirEntry{Name: name, Ident: n.names[name]}
		if e.Err = w.failing("inode", e.Ident); e.Err != nil {
			e.Ident = journal.Unknown
		}
		entries = append(entries, e)
	}
	return entries, nil
}

func (w *treeView) Readlink(id journal.Ident) (string, error) {
	n, err := w.get(id)
	if err == nil {
		err = w.failing("link", id)
	}
	if err != nil {
		return "", err
	}
	return n.link, nil
}

// failing gives the error that reading an inode is to fail with.
func (w *treeView) failing(what string, id journal.Ident) error {
	w.v.mu.Lock()
	defer w.v.mu.Unlock()
	if w.v.unread == nil {
		return nil
	}
	return w.v.unread(what, id, journal.Extent{})
}

func (w *treeView) Xattrs(id journal.Ident) ([]journal.Xattr, error) {
	n, err := w.get(id)
	if err == nil {
		err = w.failing("xattrs", id)
	}
	if err != nil {
		return nil, err
	}
	var out []journal.Xattr
	for _, k := range slices.Sorted(maps.Keys(n.xattrs)) {
		out = append(out, journal.Xattr{Name: k, Value: []byte(n.xattrs[k])})
	}
	return out, nil
}

func (w *treeView) Open(id journal.Ident) (File, error) {
	w.v.mu.Lock()
	defer w.v.mu.Unlock()
	unread := w.v.unread
	if unread != nil {
		if err := unread("open", id, journal.Extent{}); err != nil {
			return nil, err
		}
	}
	if !w.v.live {
		n, err := w.get(id)
		return treeFile{n, unread}, err
	}
	if n := w.v.nodes[id]; n != nil {
		return treeFile{n.clone(), unread}, nil
	}
	return nil, fs.ErrNotExist
}

type treeFile struct {
	n      *node
	unread func(what string, id journal.Ident, e journal.Extent) error
}

func (f treeFile) ReadAt(p []byte, off int64) (int, error) {
	if f.unread != nil {
		if err := f.unread("data", f.n.id, journal.Extent{Off: off, End: off + int64(len(p))}); err != nil {
			return 0, err
		}
	}
	return f.n.readAt(p, off)
}

func (f treeFile) Close() error { return nil }

func (f treeFile) NextData(off, end int64) (journal.Extent, bool, error) {
	end = min(end, f.n.attr.Size)
	for at := off; at < end; {
		start := at / block * block
		if f.n.content[start] != nil {
			stop := start + block
			for f.n.content[stop] != nil {
				stop += block
			}
			return journal.Extent{Off: at, End: min(stop, end)}, true, nil
		}
		at = f.n.nextBlock(start)
	}
	return journal.Extent{}, false, nil
}

// nextBlock gives the first block with data after start.
func (n *node) nextBlock(start int64) int64 {
	next := int64(journal.MaxOffset)
	for s := range n.content {
		if s > start {
			next = min(next, s)
		}
	}
	return next
}

func (v *tree) NamesInDoubt() (uint64, time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.doubt, time.Time{}
}

func (v *tree) NamesSettled(n uint64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.doubt -= n
	return nil
}

// ReleaseUnclaimed lets go of what the manager before this one held.
func (v *tree) ReleaseUnclaimed() {
	seen := v.seen()
	for _, n := range v.j.Held() {
		if n != seen {
			v.j.Release(n)
		}
	}
}

func (w *treeView) PathOf(id journal.Ident) (string, bool) {
	var find func(path string, dir journal.Ident) (string, bool)
	find = func(path string, dir journal.Ident) (string, bool) {
		if dir == id {
			return path, true
		}
		for name, child := range w.nodes[dir].names {
			if found, ok := find(strings.TrimPrefix(path+"/"+name, "/"), child); ok {
				return found, true
			}
		}
		return "", false
	}
	return find("", w.v.root)
}
