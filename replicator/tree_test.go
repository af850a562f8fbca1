package replicator

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"tandemfs/journal"
)

// tree is a volume in memory over a real journal. Its views are exact copies. What a filesystem would do
// to times it does with a clock of its own, so that a transfer has something to put right.
type tree struct {
	name  string
	j     *journal.Journal
	dir   string // the journal's
	boots int
	root  journal.Ident

	ops      sync.Mutex // held for each changing operation and for a seal; taken before mu
	mu       sync.Mutex
	nodes    map[journal.Ident]*node
	nextIno  uint64
	gens     map[uint64]uint64 // of inode numbers that were used
	free     []uint64
	clock    int64
	aside    map[journal.Ident]int // how many names it has there
	seals    map[journal.Epoch]map[journal.Ident]*node
	readOnly bool
	doubt    uint64 // names were changed that the journal does not have
	// published is the seal whose copy readers see; 0: they see what there is.
	published journal.Epoch

	live   bool                  // views read content as it is now, or not at all when the file is gone
	broken func(op string) error // nil, or what an operation of the target fails with
	// unread is nil, or what reading an inode fails with: "inode" by any of its names, "stat", "xattrs", "link", the
	// "names" of a directory, "open", or "data" of an extent.
	unread  func(what string, id journal.Ident, e journal.Extent) error
	commits int
	hook    func() // nil, or called before a view is opened
}

// node is an inode. Content is in blocks, so that there can be holes.
type node struct {
	id      journal.Ident
	attr    journal.Attr
	xattrs  map[string]string
	link    string
	names   map[string]journal.Ident // of a directory
	parent  journal.Ident            // of a directory that is in the tree
	content map[int64][]byte
}

const block = 4096

func (n *node) clone() *node {
	c := *n
	c.xattrs, c.names, c.content = maps.Clone(n.xattrs), maps.Clone(n.names), maps.Clone(n.content)
	return &c
}

func newTree(t testing.TB, name string) *tree { return newTreeWith(t, name, journal.Options{}) }

func newTreeWith(t testing.TB, name string, o journal.Options) *tree {
	dir := t.TempDir()
	o.BootID = "boot 0"
	j, err := journal.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	v := &tree{name: name, j: j, dir: dir, nodes: map[journal.Ident]*node{}, nextIno: 2, gens: map[uint64]uint64{},
		aside: map[journal.Ident]int{}, seals: map[journal.Epoch]map[journal.Ident]*node{}}
	root := v.node(typeDir | 0o755)
	root.attr.Nlink = 2
	v.root = root.id
	return v
}

func (v *tree) Name() string              { return v.name }
func (v *tree) Path() string              { return "/volumes/" + v.name }
func (v *tree) ID() string                { return v.j.ID() }
func (v *tree) Root() journal.Ident       { return v.root }
func (v *tree) Journal() *journal.Journal { return v.j }

// node makes an inode without a name. Inode numbers come again, with another generation.
func (v *tree) node(mode uint32) *node {
	ino := v.nextIno
	if len(v.free) > 0 {
		ino, v.free = v.free[0], v.free[1:]
	} else {
		v.nextIno++
	}
	v.gens[ino]++
	n := &node{id: journal.Ident{Ino: ino, Gen: v.gens[ino]}, attr: journal.Attr{Mode: mode}, xattrs: map[string]string{}}
	if isDir(n.attr) {
		n.names = map[string]journal.Ident{}
	}
	n.content = map[int64][]byte{}
	n.attr.Mtime = v.now()
	n.attr.Atime = n.attr.Mtime
	v.nodes[n.id] = n
	return n
}

func (v *tree) now() journal.Time {
	v.clock++
	return journal.Time{Sec: v.clock, Nsec: uint32(v.clock*7919) % 1e9}
}

// change runs a changing operation as a volume does: between Enter and Leave.
func (v *tree) change(f func()) {
	v.ops.Lock()
	defer v.ops.Unlock()
	v.j.Enter()
	defer v.j.Leave()
	v.mu.Lock()
	defer v.mu.Unlock()
	f()
}

func no(err error) {
	if err != nil {
		panic(err)
	}
}

// setName records and changes one name; zero takes it away.
func (v *tree) setName(dir journal.Ident, name string, id journal.Ident) {
	d := v.nodes[dir]
	was := d.names[name]
	no(v.j.TouchMeta(dir, nil))
	no(v.j.TouchName(dir, name, was))
	if id.IsZero() {
		delete(d.names, name)
	} else {
		d.names[name] = id
		if n := v.nodes[id]; isDir(n.attr) {
			n.parent = dir
		}
	}
	d.attr.Mtime = v.now()
}

// unlinked is for when an inode has lost a name.
func (v *tree) unlinked(id journal.Ident) {
	n := v.nodes[id]
	no(v.j.TouchMeta(id, nil))
	if n.attr.Nlink--; n.attr.Nlink == 0 || isDir(n.attr) {
		v.gone(n)
	}
}

func (v *tree) gone(n *node) {
	v.j.NoteRemoved(n.id)
	delete(v.nodes, n.id)
	v.free = append(v.free, n.id.Ino)
}

// add makes an inode with a name.
func (v *tree) add(dir journal.Ident, name string, mode uint32, more ...func(*node)) (id journal.Ident) {
	v.change(func() {
		n := v.node(mode)
		for _, f := range more {
			f(n)
		}
		n.attr.Nlink = 1
		v.setName(dir, name, n.id)
		no(v.j.NoteCreated(n.id))
		id = n.id
	})
	return id
}

func (v *tree) mkdir(dir journal.Ident, name string) journal.Ident {
	return v.add(dir, name, typeDir|0o755)
}

func (v *tree) file(dir journal.Ident, name, content string) journal.Ident {
	id := v.add(dir, name, typeRegular|0o644)
	v.write(id, 0, content)
	return id
}

func (v *tree) symlink(dir journal.Ident, name, to string) journal.Ident {
	return v.add(dir, name, typeSymlink|0o777, func(n *node) { n.link = to })
}

func (v *tree) hardlink(id, dir journal.Ident, name string) {
	v.change(func() {
		no(v.j.TouchMeta(id, nil))
		v.setName(dir, name, id)
		v.nodes[id].attr.Nlink++
	})
}

func (v *tree) remove(dir journal.Ident, name string) {
	v.change(func() {
		id := v.nodes[dir].names[name]
		v.setName(dir, name, journal.Ident{})
		v.unlinked(id)
	})
}

// rename replaces what is there.
func (v *tree) rename(dir journal.Ident, name string, toDir journal.Ident, toName string) {
	v.change(func() {
		id, over := v.nodes[dir].names[name], v.nodes[toDir].names[toName]
		if over == id {
			return
		}
		no(v.j.TouchMeta(id, nil))
		v.setName(toDir, toName, id)
		v.setName(dir, name, journal.Ident{})
		if !over.IsZero() {
			v.unlinked(over)
		}
	})
}

func (v *tree) exchange(dir journal.Ident, name string, dir2 journal.Ident, name2 string) {
	v.change(func() {
		a, b := v.nodes[dir].names[name], v.nodes[dir2].names[name2]
		v.setName(dir, name, b)
		v.setName(dir2, name2, a)
	})
}

func (v *tree) write(id journal.Ident, off int64, content string) {
	if content == "" {
		return
	}
	v.change(func() {
		no(v.j.TouchData(id, journal.Extent{Off: off, End: off + int64(len(content))}, nil))
		v.nodes[id].writeAt([]byte(content), off)
		v.nodes[id].attr.Mtime = v.now()
	})
}

func (v *tree) truncate(id journal.Ident, size int64) {
	v.change(func() {
		n := v.nodes[id]
		from := min(size, n.attr.Size)
		no(v.j.TouchData(id, journal.Extent{Off: from - from%block, End: journal.MaxOffset}, nil))
		n.truncate(size)
		n.attr.Mtime = v.now()
	})
}

func (v *tree) punch(id journal.Ident, e journal.Extent) {
	v.change(func() {
		no(v.j.TouchData(id, e, nil))
		v.nodes[id].punch(e)
		v.nodes[id].attr.Mtime = v.now()
	})
}

func (v *tree) setAttr(id journal.Ident, set func(*journal.Attr, map[string]string)) {
	v.change(func() {
		no(v.j.TouchMeta(id, nil))
		set(&v.nodes[id].attr, v.nodes[id].xattrs)
	})
}

// writeAt replaces blocks, never changing one that a view may share.
func (n *node) writeAt(p []byte, off int64) {
	end := off + int64(len(p))
	for at := off; at < end; {
		start := at / block * block
		b := make([]byte, block)
		copy(b, n.content[start])
		at += int64(copy(b[at-start:], p[at-off:]))
		n.content[start] = b
	}
	n.attr.Size = max(n.attr.Size, end)
}

func (n *node) punch(e journal.Extent) {
	for start, old := range n.content {
		from, to := max(e.Off, start), min(e.End, start+block)
		switch {
		case from >= to:
		case to-from == block:
			delete(n.content, start)
		default:
			b := slices.Clone(old)
			clear(b[from-start : to-start])
			n.content[start] = b
		}
	}
}

func (n *node) truncate(size int64) {
	if size < n.attr.Size {
		end := (size + block - 1) / block * block
		n.punch(journal.Extent{Off: size, End: end})
		n.punch(journal.Extent{Off: end, End: journal.MaxOffset - block})
	}
	n.attr.Size = size
}

// path finds names by a path of the root.
func (v *tree) at(path string) journal.Ident {
	v.mu.Lock()
	defer v.mu.Unlock()
	id := v.root
	for _, name := range strings.Split(path, "/") {
		if name != "" {
			id = v.nodes[id].names[name]
		}
	}
	return id
}

// dump describes the whole tree, a line for each name, so that two can be compared.
func (v *tree) dump() map[string]string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return dump(v.nodes, v.root)
}

func dump(nodes map[journal.Ident]*node, root journal.Ident) map[string]string {
	lines, first := map[string]string{}, map[journal.Ident]string{}
	var walk func(path string, id journal.Ident)
	walk = func(path string, id journal.Ident) {
		n := nodes[id]
		if n == nil {
			lines[path] = "nothing stands behind this name"
			return
		}
		if at, ok := first[id]; ok && !isDir(n.attr) {
			lines[path] = "link of " + at
			return
		}
		first[id] = path
		lines[path] = n.describe()
		for _, name := range slices.Sorted(maps.Keys(n.names)) {
			walk(path+"/"+name, n.names[name])
		}
	}
	walk("", root)
	return lines
}

func (n *node) describe() string {
	a := n.attr
	s := fmt.Sprintf("mode %o uid %d gid %d rdev %d atime %v mtime %v link %q xattrs %v", a.Mode, a.UID, a.GID, a.Rdev, a.Atime, a.Mtime, n.link, n.xattrs)
	if !isRegular(a) {
		return s
	}
	h := sha256.New()
	var holes []int64
	for _, start := range slices.Sorted(maps.Keys(n.content)) {
		no(binary.Write(h, binary.BigEndian, start))
		h.Write(n.content[start])
		holes = append(holes, start)
	}
	return fmt.Sprintf("%s size %d blocks %v content %x", s, a.Size, holes, h.Sum(nil)[:6])
}

// differences says where two dumps differ.
func differences(a, b map[string]string) []string {
	var out []string
	for path, line := range a {
		if b[path] != line {
			out = append(out, fmt.Sprintf("%s\n  %s\n  %s", path, line, b[path]))
		}
	}
	for path, line := range b {
		if _, ok := a[path]; !ok {
			out = append(out, fmt.Sprintf("%s\n  (nothing)\n  %s", path, line))
		}
	}
	slices.Sort(out)
	return out
}
