package volume

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"tandemfs/fs/sys"
	"tandemfs/journal"
)

// The model is a tree in memory, changed by the same operations as a volume. Whatever the history, each
// snapshot of the volume must go on showing the tree that the model had when it was taken: with the times and
// holes that the volume itself had then.

// modelNode is an inode of the model.
type modelNode struct {
	id     journal.Ident
	mode   uint32
	uid    uint32
	nlink  int
	data   []byte
	target string
	xattrs map[string]string
	names  map[string]*modelNode // of a directory
}

func (n *modelNode) isDir() bool  { return n.names != nil }
func (n *modelNode) isFile() bool { return n.mode&unix.S_IFMT == unix.S_IFREG }

// clone copies a tree, hard links as hard links.
func (n *modelNode) clone(done map[*modelNode]*modelNode) *modelNode {
	if c := done[n]; c != nil {
		return c
	}
	c := *n
	done[n] = &c
	c.data, c.xattrs = bytes.Clone(n.data), maps.Clone(n.xattrs)
	if n.isDir() {
		c.names = map[string]*modelNode{}
		for name, child := range n.names {
			c.names[name] = child.clone(done)
		}
	}
	return &c
}

// describe lists a tree by paths, without what only a filesystem knows.
func (n *modelNode) describe(path string, into map[string]string) {
	into[path] = fmt.Sprintf("%s %o uid %d%s", n.id, n.mode, n.uid, n.content())
	for name, child := range n.names {
		child.describe(path+"/"+name, into)
	}
}

func (n *modelNode) content() string {
	text := ""
	if !n.isDir() {
		text = fmt.Sprintf(" nlink %d", n.nlink)
	}
	for _, name := range slices.Sorted(maps.Keys(n.xattrs)) {
		text += fmt.Sprintf(" %s=%s", name, n.xattrs[name])
	}
	switch {
	case n.isFile():
		text += fmt.Sprintf(" %d bytes %x", len(n.data), sha256.Sum256(n.data))
	case n.target != "":
		text += " -> " + n.target
	}
	return text
}

// describeTree lists a volume's tree in the model's words, and what only the volume knows: times and holes.
func describeTree(t fataler, tree Tree, id journal.Ident, path string, known map[string]string, more map[string]extras) {
	var n Inode
	if err := tree.Stat(id, &n); err != nil {
		t.Fatalf("stat %s (%s): %v", path, id, err)
	}
	m := modelNode{id: id, mode: uint32(n.Stat.Mode), uid: n.Stat.Uid, nlink: int(n.Stat.Nlink), xattrs: treeXattrs(t, tree, id)}
	x := extras{mtime: n.Stat.Mtime, ctime: n.Stat.Ctime}
	switch n.Stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		m.data = make([]byte, n.Stat.Size+1)
		got, err := tree.Read(id, m.data, 0)
		if err != nil || got != int(n.Stat.Size) {
			t.Fatalf("read %s: %d bytes of %d: %v", path, got, n.Stat.Size, err)
		}
		m.data = m.data[:got]
		x.data = treeData(t, tree, id)
		for _, hole := range (journal.Extents{{Off: 0, End: int64(got)}}).Subtract(x.data) {
			if len(bytes.Trim(m.data[hole.Off:hole.End], "\x00")) > 0 {
				t.Fatalf("%s has data at %v, which it says is a hole", path, hole)
			}
		}
	case unix.S_IFLNK:
		m.target, _ = tree.Readlink(id)
	case unix.S_IFDIR:
		m.names = map[string]*modelNode{}
	}
	known[path], more[path] = fmt.Sprintf("%s %o uid %d%s", id, m.mode, m.uid, m.content()), x
	if m.isDir() {
		describeNames(t, tree, id, path, known, more)
	}
}

// fataler is what stops a test, or one of rapid's.
type fataler interface {
	Fatalf(format string, args ...any)
}

func describeNames(t fataler, tree Tree, dir journal.Ident, path string, known map[string]string, more map[string]extras) {
	var names []string
	err := tree.ReadDir(dir, 0, direntBuffer, func(e *sys.Dirent) bool {
		if !e.IsDot() {
			names = append(names, string(e.Name))
		}
		return true
	})
	if err != nil {
		t.Fatalf("list %s: %v", path, err)
	}
	for _, name := range names {
		var n Inode
		if err := tree.Lookup(dir, name, &n); err != nil {
			t.Fatalf("%s/%s is listed, but: %v", path, name, err)
		}
		describeTree(t, tree, n.ID, path+"/"+name, known, more)
	}
}

func treeXattrs(t fataler, tree Tree, id journal.Ident) map[string]string {
	var list [4096]byte
	n, err := tree.ListXattr(id, list[:])
	if err != nil {
		t.Fatalf("list attributes of %s: %v", id, err)
	}
	found := map[string]string{}
	for name := range strings.SplitSeq(string(list[:n]), "\x00") {
		if !strings.HasPrefix(name, "user.") {
			continue
		}
		var value [256]byte
		n, err := tree.GetXattr(id, name, value[:])
		if err != nil {
			t.Fatalf("attribute %s of %s: %v", name, id, err)
		}
		found[name] = string(value[:n])
	}
	return found
}

// extras is what only the volume knows of an inode.
type extras struct {
	mtime, ctime unix.StatxTimestamp
	data         journal.Extents
}

// treeData lists a file's data as SEEK_DATA and SEEK_HOLE tell it.
func treeData(t fataler, tree Tree, id journal.Ident) journal.Extents {
	var data journal.Extents
	for off := int64(0); ; {
		start, err := tree.Seek(id, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return data
		}
		if err == nil {
			off, err = tree.Seek(id, start, unix.SEEK_HOLE)
		}
		if err != nil {
			t.Fatalf("seek in %s: %v", id, err)
		}
		data = data.Add(journal.Extent{Off: start, End: off})
	}
}

// compareExtras compares what only the volume knows. Only ext4 says the same of holes whatever is done beside
// them, and whether it was written to the disk yet.
func (h *history) compareExtras(t *rapid.T, what string, want, got map[string]extras, ctimes bool) {
	for path, w := range want {
		g := got[path]
		if w.mtime != g.mtime || ctimes && w.ctime != g.ctime {
			t.Fatalf("%s: %q has the times %v and %v, want %v and %v", what, path, g.mtime, g.ctime, w.mtime, w.ctime)
		}
		if h.exact && !slices.Equal(w.data, g.data) {
			t.Fatalf("%s: %q has data at %v, want %v", what, path, g.data, w.data)
		}
	}
}

// kernelModel is a kernel that refers to the inodes that a test says.
type kernelModel struct {
	noKernel
	mu   sync.Mutex
	open map[journal.Ident]*modelNode
}

func (k *kernelModel) Refers(id journal.Ident) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.open[id] != nil
}

// refer has the kernel refer to an inode, or with nil no more.
func (k *kernelModel) refer(id journal.Ident, n *modelNode) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.open[id] = n; n == nil {
		delete(k.open, id)
	}
}

// history is a volume with its model.
type history struct {
	dir       string
	v         *Volume
	root      *modelNode
	kernel    *kernelModel
	snapshots map[string]*modelSnapshot
	restores  int
	exact     bool // the filesystem keeps holes
}

// modelSnapshot is what a snapshot must show.
type modelSnapshot struct {
	root  *modelNode
	known map[string]string
	more  map[string]extras
}

func (h *history) start(t fataler) {
	v, err := Open(h.dir, Options{Name: "model", Create: h.root == nil})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	var st unix.Statfs_t
	if err := v.Statfs(&st); err != nil {
		t.Fatalf("statfs: %v", err)
	}
	h.exact = st.Type == unix.EXT4_SUPER_MAGIC
	h.v, h.kernel = v, &kernelModel{open: map[journal.Ident]*modelNode{}}
	v.SetKernel(h.kernel)
	if h.root == nil {
		h.root = &modelNode{id: v.root, mode: unix.S_IFDIR | 0o755, names: map[string]*modelNode{}}
	}
}

func (h *history) stop(t fataler) {
	h.v.KernelGone(h.kernel)
	if err := h.v.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

// all gives the inodes of the tree that pass, in an order that does not depend on chance, with those that are
// only open.
func (h *history) all(pass func(*modelNode) bool) []*modelNode {
	var list []*modelNode
	seen := map[*modelNode]bool{}
	var walk func(n *modelNode)
	walk = func(n *modelNode) {
		if seen[n] {
			return
		}
		seen[n] = true
		if pass(n) {
			list = append(list, n)
		}
		for _, name := range slices.Sorted(maps.Keys(n.names)) {
			walk(n.names[name])
		}
	}
	walk(h.root)
	for _, id := range slices.SortedFunc(maps.Keys(h.kernel.open), func(a, b journal.Ident) int {
		if a.Less(b) {
			return -1
		}
		return 1
	}) {
		walk(h.kernel.open[id])
	}
	return list
}

func (h *history) draw(t *rapid.T, what string, pass func(*modelNode) bool) *modelNode {
	list := h.all(pass)
	if len(list) == 0 {
		t.Skip("there is none")
	}
	return list[rapid.IntRange(0, len(list)-1).Draw(t, what)]
}

func (h *history) drawDir(t *rapid.T, what string) *modelNode {
	return h.draw(t, what, func(n *modelNode) bool { return n.isDir() && (n == h.root || n.nlink > 0) })
}

func drawName(t *rapid.T, what string) string {
	return rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, what)
}

// expect compares what an operation gave with what it must give.
func expect(t *rapid.T, err error, want error) bool {
	if !errors.Is(err, want) || (err == nil) != (want == nil) {
		t.Fatalf("got %v, want %v", err, want)
	}
	return err == nil
}

// make makes an inode of some kind.
func (h *history) make(t *rapid.T) {
	dir, name := h.drawDir(t, "dir"), drawName(t, "name")
	kind := rapid.SampledFrom([]string{"file", "file", "dir", "symlink", "fifo"}).Draw(t, "kind")
	n := &modelNode{nlink: 1, uid: uint32(rapid.IntRange(0, 1).Draw(t, "uid")), xattrs: map[string]string{}}
	var out Inode
	var err error
	caller := Caller{UID: n.uid}
	switch kind {
	case "file":
		n.mode, err = unix.S_IFREG|0o640, h.v.CreateFile(dir.id, name, 0o640, caller, &out)
	case "dir":
		n.names = map[string]*modelNode{}
		n.mode, err = unix.S_IFDIR|0o750, h.v.Mkdir(dir.id, name, 0o750, caller, &out)
	case "symlink":
		n.target = "to/" + name
		n.mode, err = unix.S_IFLNK|0o777, h.v.Symlink(dir.id, name, n.target, caller, &out)
	case "fifo":
		n.mode, err = unix.S_IFIFO|0o600, h.v.Mknod(dir.id, name, unix.S_IFIFO|0o600, 0, caller, &out)
	}
	var want error
	if dir.names[name] != nil {
		want = unix.EEXIST
	}
	if expect(t, err, want) {
		n.id = out.ID
		dir.names[name] = n
	}
}

func (h *history) link(t *rapid.T) {
	n := h.draw(t, "inode", func(n *modelNode) bool { return !n.isDir() && n.nlink > 0 })
	dir, name := h.drawDir(t, "dir"), drawName(t, "name")
	var out Inode
	var want error
	if dir.names[name] != nil {
		want = unix.EEXIST
	}
	if expect(t, h.v.Link(n.id, dir.id, name, &out), want) {
		dir.names[name] = n
		n.nlink++
	}
}

// lose takes a name from an inode.
func (n *modelNode) lose() {
	if n.nlink--; n.isDir() {
		n.nlink = 0
	}
}

func (h *history) unlink(t *rapid.T) {
	dir, name := h.drawDir(t, "dir"), drawName(t, "name")
	n, want := dir.names[name], error(nil)
	switch {
	case n == nil:
		want = unix.ENOENT
	case n.isDir():
		want = unix.EISDIR
	}
	if expect(t, h.v.Unlink(dir.id, name), want) {
		delete(dir.names, name)
		n.lose()
	}
}

func (h *history) rmdir(t *rapid.T) {
	dir, name := h.drawDir(t, "dir"), drawName(t, "name")
	n, want := dir.names[name], error(nil)
	switch {
	case n == nil:
		want = unix.ENOENT
	case !n.isDir():
		want = unix.ENOTDIR
	case len(n.names) > 0:
		want = unix.ENOTEMPTY
	}
	if expect(t, h.v.Rmdir(dir.id, name), want) {
		delete(dir.names, name)
		n.lose()
	}
}

// holds reports whether a directory is or has another one.
func (n *modelNode) holds(other *modelNode) bool {
	if n == other {
		return true
	}
	for _, child := range n.names {
		if child.isDir() && child.holds(other) {
			return true
		}
	}
	return false
}

func (h *history) rename(t *rapid.T) {
	from, to := h.drawDir(t, "from dir"), h.drawDir(t, "to dir")
	oldName, newName := drawName(t, "old"), drawName(t, "new")
	flags := rapid.SampledFrom([]uint{0, 0, 0, unix.RENAME_EXCHANGE, unix.RENAME_NOREPLACE}).Draw(t, "flags")
	n, over := from.names[oldName], to.names[newName]
	want := renameResult(n, over, from, to, flags)
	err := h.v.Rename(from.id, oldName, to.id, newName, flags)
	if want == errAny { // the order of checks is the filesystem's
		if err == nil {
			t.Fatalf("a rename that must fail did not")
		}
		return
	}
	if !expect(t, err, want) || n == over {
		return
	}
	if flags == unix.RENAME_EXCHANGE {
		from.names[oldName], to.names[newName] = over, n
		return
	}
	delete(from.names, oldName)
	to.names[newName] = n
	if over != nil {
		over.lose()
	}
}

// errAny stands for some error.
var errAny = errors.New("any error")

func renameResult(n, over, from, to *modelNode, flags uint) error {
	switch {
	case n == nil:
		return unix.ENOENT
	case n.isDir() && n.holds(to), over != nil && over.isDir() && over.holds(from):
		return errAny
	case over == nil && flags == unix.RENAME_EXCHANGE:
		return unix.ENOENT
	case over != nil && flags == unix.RENAME_NOREPLACE:
		return unix.EEXIST
	case over == nil || n == over || flags == unix.RENAME_EXCHANGE:
		return nil
	case over.isDir() != n.isDir(), len(over.names) > 0:
		return errAny
	}
	return nil
}

func (h *history) drawFile(t *rapid.T) *modelNode {
	return h.draw(t, "file", (*modelNode).isFile)
}

// resize makes content as long as it has to be.
func (n *modelNode) resize(size int) {
	if size <= len(n.data) {
		n.data = n.data[:size:size]
		return
	}
	n.data = append(n.data, make([]byte, size-len(n.data))...)
}

func (n *modelNode) write(off int, p []byte) {
	if off+len(p) > len(n.data) {
		n.resize(off + len(p))
	}
	copy(n.data[off:], p)
}

// drawRange draws a place in a file, sometimes on whole blocks.
func drawRange(t *rapid.T) (off, length int) {
	off, length = rapid.IntRange(0, 20000).Draw(t, "off"), rapid.IntRange(1, 9000).Draw(t, "length")
	if rapid.Bool().Draw(t, "whole blocks") {
		off, length = off/4096*4096, (length/4096+1)*4096
	}
	return off, length
}

func (h *history) write(t *rapid.T) {
	n := h.drawFile(t)
	off, length := drawRange(t)
	p := bytes.Repeat([]byte{byte(rapid.IntRange(1, 255).Draw(t, "byte"))}, length)
	_, err := h.v.Write(n.id, [][]byte{p}, int64(off), false)
	expect(t, err, nil)
	n.write(off, p)
}

func (h *history) truncate(t *rapid.T) {
	n := h.drawFile(t)
	size := rapid.IntRange(0, 30000).Draw(t, "size")
	var out Inode
	expect(t, h.v.SetAttr(n.id, Setting{Valid: SetSize, Size: int64(size)}, &out), nil)
	n.resize(size)
}

func (h *history) punch(t *rapid.T) {
	n := h.drawFile(t)
	off, length := drawRange(t)
	expect(t, h.v.Allocate(n.id, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(length), false), nil)
	if end := min(off+length, len(n.data)); off < end {
		clear(n.data[off:end])
	}
}

func (h *history) copyRange(t *rapid.T) {
	from, to := h.drawFile(t), h.drawFile(t)
	off, length := drawRange(t)
	if from == to {
		t.Skip("one file")
	}
	got, err := h.v.Copy(from.id, int64(off), to.id, 0, int64(length), false)
	expect(t, err, nil)
	want := max(0, min(off+length, len(from.data))-off)
	if got > want || got == 0 && want > 0 { // it may copy less: XFS shares whole blocks first
		t.Fatalf("%d bytes were copied, want %d", got, want)
	}
	if got > 0 {
		to.write(0, from.data[off:off+got])
	}
}

func (h *history) chmod(t *rapid.T) {
	n := h.draw(t, "inode", func(n *modelNode) bool { return n.mode&unix.S_IFMT != unix.S_IFLNK })
	mode := uint32(rapid.IntRange(0, 0o777).Draw(t, "mode"))
	s := Setting{Valid: SetMode | SetTimes, Mode: mode, Atime: journal.Time{Nsec: unix.UTIME_OMIT},
		Mtime: journal.Time{Sec: int64(rapid.IntRange(1, 1<<30).Draw(t, "mtime"))}}
	var out Inode
	expect(t, h.v.SetAttr(n.id, s, &out), nil)
	n.mode = n.mode&unix.S_IFMT | mode
}

func (h *history) setXattr(t *rapid.T) {
	n := h.draw(t, "inode", func(n *modelNode) bool { return n.isFile() || n.isDir() })
	name, value := "user."+drawName(t, "name"), drawName(t, "value")
	if rapid.Bool().Draw(t, "remove") {
		want := error(nil)
		if _, ok := n.xattrs[name]; !ok {
			want = unix.ENODATA
		}
		expect(t, h.v.RemoveXattr(n.id, name), want)
		delete(n.xattrs, name)
		return
	}
	expect(t, h.v.SetXattr(n.id, name, []byte(value), 0, false), nil)
	if n.xattrs == nil {
		n.xattrs = map[string]string{}
	}
	n.xattrs[name] = value
}

// openFile has the kernel refer to a file; closeFile ends that.
func (h *history) openFile(t *rapid.T) {
	n := h.drawFile(t)
	h.kernel.refer(n.id, n)
}

func (h *history) closeFile(t *rapid.T) {
	n := h.draw(t, "open file", func(n *modelNode) bool { return h.kernel.open[n.id] != nil })
	h.kernel.refer(n.id, nil)
	h.v.Forget(n.id)
}

// workers changes several files at the same time, while a snapshot may be taken: it must have a prefix of
// what was written to each.
func (h *history) workers(t *rapid.T) {
	files := h.all((*modelNode).isFile)
	if len(files) == 0 {
		t.Skip("no files")
	}
	withSnapshot := rapid.Bool().Draw(t, "snapshot")
	states := make([][][]byte, len(files))
	var all sync.WaitGroup
	for i, n := range files {
		states[i] = [][]byte{bytes.Clone(n.data)}
		for k := range 3 {
			c := modelNode{data: bytes.Clone(states[i][k])}
			c.write(k*3000, bytes.Repeat([]byte{byte('0' + k)}, 5000))
			states[i] = append(states[i], c.data)
		}
		all.Go(func() {
			for k := range 3 {
				if _, err := h.v.Write(n.id, [][]byte{states[i][k+1][k*3000 : k*3000+5000]}, int64(k*3000), false); err != nil {
					panic(err)
				}
			}
		})
	}
	name := fmt.Sprint("workers", len(h.snapshots), h.restores)
	if withSnapshot && h.snapshots[name] == nil {
		_, err := h.v.CreateSnapshot(name, time.Time{})
		expect(t, err, nil)
	}
	all.Wait()
	for i, n := range files {
		n.data = states[i][3]
	}
	if withSnapshot && h.snapshots[name] == nil {
		h.learn(t, name, files, states)
	}
}

// learn takes what a snapshot shows of files that were being written for what it must show from now on.
func (h *history) learn(t *rapid.T, name string, files []*modelNode, states [][][]byte) {
	_, view, err := h.v.OpenSnapshot(name)
	expect(t, err, nil)
	defer view.Close()
	tree, _ := view.Tree()
	defer tree.Done()
	now := map[*modelNode]*modelNode{}
	s := &modelSnapshot{root: h.root.clone(now), known: map[string]string{}, more: map[string]extras{}}
	for i, n := range files {
		c := now[n]
		if c == nil {
			continue // it has no name
		}
		c.data = make([]byte, 64<<10)
		got, err := tree.Read(n.id, c.data, 0)
		expect(t, err, nil)
		c.data = c.data[:got]
		if !slices.ContainsFunc(states[i], func(state []byte) bool { return bytes.Equal(state, c.data) }) {
			t.Fatalf("the snapshot has a mixture of %s", n.id)
		}
	}
	describeTree(t, tree, h.v.root, "", s.known, s.more)
	h.snapshots[name] = s
	h.compareWithModel(t, "snapshot "+name, s.known, s.root)
}

func (h *history) compareWithModel(t *rapid.T, what string, got map[string]string, root *modelNode) {
	want := map[string]string{}
	root.describe("", want)
	compareMaps(t, what, want, got)
}

func compareMaps(t *rapid.T, what string, want, got map[string]string) {
	for _, path := range slices.Sorted(maps.Keys(want)) {
		if got[path] != want[path] {
			t.Fatalf("%s: %q is\n  %q, want\n  %q", what, path, got[path], want[path])
		}
	}
	for path, is := range got {
		if _, ok := want[path]; !ok {
			t.Fatalf("%s: %q is %q, but must not be there", what, path, is)
		}
	}
}

func (h *history) snapshot(t *rapid.T) {
	name := drawName(t, "snapshot")
	want := error(nil)
	if h.snapshots[name] != nil {
		want = fs.ErrExist
	}
	s := h.capture(t)
	_, err := h.v.CreateSnapshot(name, time.Time{})
	if expect(t, err, want) {
		h.snapshots[name] = s
	}
}

// capture notes what there is, and compares it with the model.
func (h *history) capture(t *rapid.T) *modelSnapshot {
	s := &modelSnapshot{root: h.root.clone(map[*modelNode]*modelNode{}), known: map[string]string{}, more: map[string]extras{}}
	tree := h.v.Current()
	defer tree.Done()
	describeTree(t, tree, h.v.root, "", s.known, s.more)
	h.compareWithModel(t, "the volume", s.known, h.root)
	return s
}

func (h *history) drawSnapshot(t *rapid.T) string {
	if len(h.snapshots) == 0 {
		t.Skip("no snapshots")
	}
	return rapid.SampledFrom(slices.Sorted(maps.Keys(h.snapshots))).Draw(t, "snapshot")
}

func (h *history) deleteSnapshot(t *rapid.T) {
	name := h.drawSnapshot(t)
	expect(t, h.v.DeleteSnapshot(name), nil)
	delete(h.snapshots, name)
}

// restore goes back to a snapshot. What is open and has no name there is as it was.
func (h *history) restore(t *rapid.T) {
	name := h.drawSnapshot(t)
	was := h.capture(t)
	safety, err := h.v.Restore(name, "")
	expect(t, err, nil)
	h.restores++
	h.snapshots[safety.Name] = was
	s := h.snapshots[name]
	h.root = s.root.clone(map[*modelNode]*modelNode{})
	byID := map[journal.Ident]*modelNode{}
	for _, n := range h.all(func(*modelNode) bool { return true }) {
		if _, known := byID[n.id]; !known {
			byID[n.id] = n // the tree comes first
		}
	}
	for id, n := range h.kernel.open {
		if byID[id] != n {
			h.kernel.refer(id, byID[id])
		} else {
			n.nlink = 0
		}
	}
	h.compareExtras(t, "after the restore", s.more, h.capture(t).more, false) // nobody can set change times
}

// restart closes the volume and opens it again. What was only open is gone.
func (h *history) restart(t *rapid.T) {
	h.stop(t)
	h.start(t)
}

// forget says that nobody needs to know what was changed: epochs in the store may become one.
func (h *history) forget(t *rapid.T) {
	expect(t, h.v.journal.Forget(h.v.journal.Epoch()-1), nil)
}

// check compares everything.
func (h *history) check(t *rapid.T) {
	h.capture(t)
	for id, n := range h.kernel.open {
		got := make([]byte, 64<<10)
		size, err := h.v.Read(id, got, 0)
		expect(t, err, nil)
		var out Inode
		expect(t, h.v.Stat(id, &out), nil)
		if !bytes.Equal(got[:size], n.data) || int(out.Stat.Nlink) != n.nlink {
			t.Fatalf("the open file %s has %d bytes and %d names, want %d and %d, or others", id, size, out.Stat.Nlink, len(n.data), n.nlink)
		}
	}
	for name, s := range h.snapshots {
		_, view, err := h.v.OpenSnapshot(name)
		expect(t, err, nil)
		tree, _ := view.Tree()
		known, more := map[string]string{}, map[string]extras{}
		describeTree(t, tree, h.v.root, "", known, more)
		tree.Done()
		expect(t, view.Close(), nil)
		compareMaps(t, "snapshot "+name, s.known, known)
		h.compareExtras(t, "snapshot "+name, s.more, more, true)
	}
}

// checkHistories runs check with many volumes, each new and with a model of it.
func checkHistories(t *testing.T, check func(rt *rapid.T, h *history)) {
	t.Helper()
	old := unix.Umask(0)
	t.Cleanup(func() { unix.Umask(old) })
	base := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(base, "")
		if err == nil {
			err = os.Chmod(dir, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		h := &history{dir: dir, snapshots: map[string]*modelSnapshot{}}
		h.start(rt)
		defer func() { h.stop(rt) }()
		check(rt, h)
	})
}

func TestEverySnapshotStaysWhatTheModelSays(t *testing.T) {
	checkHistories(t, func(rt *rapid.T, h *history) {
		steps := 0
		rt.Repeat(map[string]func(*rapid.T){
			"make": h.make, "make another": h.make, "link": h.link, "unlink": h.unlink, "rmdir": h.rmdir,
			"rename": h.rename, "write": h.write, "write again": h.write, "truncate": h.truncate, "punch": h.punch,
			"copy": h.copyRange, "chmod": h.chmod, "xattr": h.setXattr, "open": h.openFile, "close": h.closeFile,
			"workers": h.workers, "snapshot": h.snapshot, "delete snapshot": h.deleteSnapshot, "restore": h.restore,
			"restart": h.restart, "forget": h.forget,
			"": func(t *rapid.T) {
				if steps++; steps%5 == 0 {
					h.check(t)
				}
			},
		})
		h.check(rt)
	})
}
