package volume

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
	"tandemfs/journal/failpoint"
)

// Every operation is tried with every system call of it failing in turn, in every way in which it can fail.
// After each the operation has happened or has not, as it said; what has changed is in the journal; what a
// snapshot shows is what it showed; and tried again, with nothing failing, it ends as if nothing ever had.

// way is one in which a call can fail.
type way struct {
	name    string
	err     error
	short   bool                   // the call moves only a part of what it was to move
	hidden  bool                   // the operation's caller must not notice; so it can befall every call at once
	lasting bool                   // and all calls after it fail too, until the operation is over
	applies func(call string) bool // nil: to every call
}

// takesRoom reports whether a call may find that there is no room.
func takesRoom(call string) bool {
	switch call {
	case "openat", "mkdirat", "mknodat", "symlinkat", "linkat", "renameat2", "setxattr", "pwrite", "fallocate",
		"copy_file_range", "ftruncate", "store update", "store flush":
		return true
	}
	return false
}

// isSystemCall tells a system call from Badger's work, and from memory that is mapped.
func isSystemCall(call string) bool {
	return !strings.HasPrefix(call, "store ") && !strings.HasPrefix(call, "log ")
}

var ways = []way{
	{name: "EIO", err: unix.EIO},
	{name: "ENOSPC", err: unix.ENOSPC, applies: takesRoom},
	{name: "EINTR", err: unix.EINTR, hidden: true, applies: isSystemCall},
	{name: "short", short: true, hidden: true},
	{name: "EIO from then on", err: unix.EIO, lasting: true},
}

// injected makes the nth call of one goroutine fail.
type injected struct {
	way
	n         int
	goroutine string

	mu    sync.Mutex
	calls []string
	hit   string // the call that failed
	log   bool   // the journal's log was among those that did
	now   bool   // the last call failed
}

// goroutine names the one that calls it.
func goroutine() string {
	var buf [64]byte
	name, _, _ := strings.Cut(string(buf[:runtime.Stack(buf[:], false)]), " [")
	return name
}

func (i *injected) ask(call string, size int) (int, error) {
	if goroutine() != i.goroutine {
		return size, nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	n := len(i.calls)
	i.calls = append(i.calls, call)
	again := i.now && i.err == unix.EINTR // a call that is interrupted is made again
	i.now = i.n >= 0 && (n == i.n || i.lasting && n > i.n || i.hidden) && !again && (i.applies == nil || i.applies(call))
	if !i.now {
		return size, nil
	}
	if i.short {
		if size > 1 {
			i.hit = call
		}
		return (size + 1) / 2, nil
	}
	if i.hit == "" {
		i.hit = call
	}
	i.log = i.log || strings.HasPrefix(call, "log ")
	return 0, i.err
}

// failing runs an operation with its nth call failing.
func failing(w way, n int, operation func() error) (*injected, error) {
	i := &injected{way: w, n: n, goroutine: goroutine()}
	defer failpoint.Arm(i.ask)()
	return i, operation()
}

// seen is what a tree has under a path.
type seen struct {
	id    journal.Ident
	text  string // all but the identity, content and times
	data  string
	mtime unix.StatxTimestamp
	more  extras
}

// look lists a tree.
func look(t fataler, tree Tree, id journal.Ident, at string, into map[string]seen) {
	var n Inode
	if err := tree.Stat(id, &n); err != nil {
		t.Fatalf("stat %s (%s): %v", at, id, err)
	}
	s := seen{id: id, mtime: n.Stat.Mtime, more: extras{mtime: n.Stat.Mtime, ctime: n.Stat.Ctime}}
	s.text = fmt.Sprintf("%o %d:%d links %d rdev %d:%d", n.Stat.Mode, n.Stat.Uid, n.Stat.Gid, n.Stat.Nlink,
		n.Stat.Rdev_major, n.Stat.Rdev_minor)
	for _, name := range slices.Sorted(maps.Keys(allXattrs(t, tree, id))) {
		s.text += fmt.Sprintf(" %s=%x", name, allXattrs(t, tree, id)[name])
	}
	switch n.Stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		buf := make([]byte, n.Stat.Size+1)
		got, err := tree.Read(id, buf, 0)
		if err != nil || got != int(n.Stat.Size) {
			t.Fatalf("read %s: %d bytes of %d: %v", at, got, n.Stat.Size, err)
		}
		s.data, s.more.data = string(buf[:got]), treeData(t, tree, id)
	case unix.S_IFLNK:
		target, err := tree.Readlink(id)
		if err != nil {
			t.Fatalf("read link %s: %v", at, err)
		}
		s.text += " -> " + target
	}
	into[at] = s
	if !n.IsDir() {
		return
	}
	for _, name := range listNames(t, tree, id, at) {
		if err := tree.Lookup(id, name, &n); err != nil {
			t.Fatalf("%s/%s is listed, but: %v", at, name, err)
		}
		look(t, tree, n.ID, at+"/"+name, into)
	}
}

func listNames(t fataler, tree Tree, dir journal.Ident, at string) (names []string) {
	err := tree.ReadDir(dir, 0, direntBuffer, func(e *sys.Dirent) bool {
		if !e.IsDot() {
			names = append(names, string(e.Name))
		}
		return true
	})
	if err != nil {
		t.Fatalf("list %s: %v", at, err)
	}
	return names
}

func allXattrs(t fataler, tree Tree, id journal.Ident) map[string][]byte {
	var list [4096]byte
	n, err := tree.ListXattr(id, list[:])
	if err != nil {
		t.Fatalf("list attributes of %s: %v", id, err)
	}
	found := map[string][]byte{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		var value [512]byte
		if name == "" {
			continue
		}
		n, err := tree.GetXattr(id, name, value[:])
		if err != nil {
			t.Fatalf("attribute %s of %s: %v", name, id, err)
		}
		found[name] = bytes.Clone(value[:n])
	}
	return found
}

// words turns a tree into what is the same in every other one that the same was done to.
func words(tree map[string]seen) map[string]string {
	said, labels := map[string]string{}, map[journal.Ident]string{}
	for _, at := range slices.Sorted(maps.Keys(tree)) {
		s := tree[at]
		if labels[s.id] == "" {
			labels[s.id] = at
		}
		said[at] = fmt.Sprintf("[%s] %s %d bytes %x", labels[s.id], s.text, len(s.data), sha256.Sum256([]byte(s.data)))
		if s.mtime.Sec < 1<<30 { // it was set
			said[at] += fmt.Sprint(" mtime ", s.mtime)
		}
	}
	return said
}

// differs tells in what two trees differ; empty when in nothing.
func differs(want, got map[string]string) string {
	for _, at := range slices.Sorted(maps.Keys(want)) {
		if got[at] != want[at] {
			return fmt.Sprintf("%q is\n  %q, want\n  %q", at, got[at], want[at])
		}
	}
	for _, at := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[at]; !ok {
			return fmt.Sprintf("%q is\n  %q, but must not be there", at, got[at])
		}
	}
	return ""
}

// scene is where one attempt at an operation takes place: a directory of its own.
type scene struct {
	t         *testing.T
	v         *Volume
	kernel    *kernelModel
	dir       journal.Ident
	id        map[string]journal.Ident
	out       Inode
	name      string
	flags     uint32        // of a file
	committed journal.Epoch // what is to be published
	snapshot  string        // one that shows the scene as it was before the operation, where there is one
}

func (s *scene) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatalf("set the scene: %v", err)
	}
}

// file makes a file of some blocks, and directory a directory, in the scene's or another one that was made.
func (s *scene) file(name string, size int) journal.Ident {
	var n Inode
	s.must(s.v.CreateFile(s.in(name), path.Base(name), 0o644, Caller{}, &n))
	if size > 0 {
		_, err := s.v.Write(n.ID, [][]byte{bytes.Repeat([]byte(name[:1]), size)}, 0, false)
		s.must(err)
	}
	s.id[name] = n.ID
	return n.ID
}

func (s *scene) directory(name string) journal.Ident {
	var n Inode
	s.must(s.v.Mkdir(s.in(name), path.Base(name), 0o755, Caller{}, &n))
	s.id[name] = n.ID
	return n.ID
}

// in gives the directory of a name.
func (s *scene) in(name string) journal.Ident {
	if dir := path.Dir(name); dir != "." {
		return s.id[dir]
	}
	return s.dir
}

// open has the kernel refer to an inode.
func (s *scene) open(name string) { s.kernel.refer(s.id[name], &modelNode{}) }

// tree gives what the scene holds, with what is only open.
func (s *scene) tree() map[string]seen {
	tree := s.v.Current()
	defer tree.Done()
	found := map[string]seen{}
	look(s.t, tree, s.dir, "", found)
	s.kernel.mu.Lock()
	defer s.kernel.mu.Unlock()
	for name, id := range s.id {
		if s.kernel.open[id] != nil {
			look(s.t, tree, id, "open "+name, found)
		}
	}
	return found
}

// operation is one of a volume.
type operation struct {
	name string
	set  func(*scene)
	do   func(*scene) error
	// steps: it is made of several that are journaled each; one that fails in the middle leaves those before
	// it done, and is simply called again.
	steps bool
}

// moment is when an operation comes: what was made for it is new, or of an earlier epoch, or known to a snapshot.
type moment int

const (
	inOneEpoch moment = iota
	afterASeal
	afterASnapshot
)

// rig runs operations with faults.
type rig struct {
	t      *testing.T
	parent *testing.T
	dir    string
	v      *Volume
	kernel *kernelModel
	tried  int
	opened int
	exact  bool // the filesystem keeps holes
	broken bool // the journal takes no more records until it is opened anew
}

func newRig(t *testing.T) *rig {
	old := unix.Umask(0)
	t.Cleanup(func() { unix.Umask(old) })
	r := &rig{t: t, parent: t, dir: t.TempDir()}
	r.open()
	t.Cleanup(r.close)
	return r
}

func (r *rig) open() {
	v, err := Open(r.dir, Options{Name: "faults", Create: true})
	if err != nil {
		r.t.Fatalf("open: %v", err)
	}
	r.opened++
	v.reclaimer.stop() // its work is done when the test says so
	v.around.quit = make(chan struct{})
	close(v.around.quit) // nothing is done in the background
	var st unix.Statfs_t
	must(r.t, v.Statfs(&st))
	r.exact = st.Type == unix.EXT4_SUPER_MAGIC
	r.v, r.kernel = v, &kernelModel{open: map[journal.Ident]*modelNode{}}
	v.SetKernel(r.kernel)
	v.ReleaseUnclaimed()
}

func (r *rig) close() {
	if r.v == nil {
		return
	}
	r.v.KernelGone(r.kernel)
	err := r.v.Close()
	if err != nil && !r.broken {
		r.t.Errorf("close: %v", err)
	}
	r.v, r.broken = nil, false
}

// attempt runs an operation in a new scene with its nth call failing; n < 0: with none. It gives what it ended
// as, and the calls that were made.
func (r *rig) attempt(op operation, m moment, w way, n int, want map[string]string) (map[string]string, []string) {
	t := r.t
	since, err := r.v.journal.Seal(false)
	must(t, err)
	r.tried++
	s := &scene{t: t, v: r.v, kernel: r.kernel, id: map[string]journal.Ident{}, name: fmt.Sprintf("scene %d", r.tried)}
	name := s.name
	must(t, r.v.Mkdir(r.v.root, name, 0o755, Caller{}, &s.out))
	s.dir = s.out.ID
	op.set(s)
	was := map[string]seen{}
	switch m {
	case afterASeal:
		since, err = r.v.journal.Seal(false)
		must(t, err)
		was = s.tree()
	case afterASnapshot:
		snap, err := r.v.CreateSnapshot(name, time.Time{})
		must(t, err)
		since, s.snapshot, was = snap.Epoch, name, s.tree()
	}
	if frozen := r.v.Published(); frozen != 0 {
		since, was = frozen, s.tree()
	}
	must(t, r.v.journal.Forget(r.v.journal.Forgotten(), since)) // changes will be asked for from there on
	before := s.tree()
	shown := r.shown(s)
	r.v.open.cool()

	i, err := failing(w, n, func() error { return op.do(s) })
	what := fmt.Sprintf("%s, %s, call %d (%s) gives %s", op.name, []string{"in one epoch", "after a seal", "after a snapshot"}[m], n, i.hit, w.name)
	if i.hit == "" {
		if err != nil {
			t.Fatalf("%s: nothing failed, and yet: %v", what, err)
		}
	} else {
		r.judge(op, w, what, err)
	}
	restarted := r.v.journal.Failed() != nil
	if restarted {
		r.broken = true
		r.reopen(s)
		before, want = withoutOpen(before), withoutOpen(want)
	}
	now := s.tree()
	switch {
	case err != nil && !op.steps && !w.lasting:
		if d := differs(words(before), words(now)); d != "" {
			t.Errorf("%s: it failed (%v), and yet\n%s", what, err, d)
		}
	case err == nil && want != nil:
		if d := differs(want, words(now)); d != "" {
			t.Errorf("%s: it did not fail, and yet\n%s", what, d)
		}
	}
	r.checkJournaled(what, since, was, now)
	r.checkShown(what, s, shown)
	if _, needed := s.id["tmpfile"]; err != nil && !(i.log && needed) && !(w.lasting && restarted) {
		again := op.do(s)
		happened := w.lasting && (errors.Is(again, unix.EEXIST) || errors.Is(again, unix.ENOENT))
		if again != nil && !happened {
			t.Errorf("%s: it failed (%v); tried again: %v", what, err, again)
		}
		now = s.tree()
		if d := differs(want, words(now)); d != "" {
			t.Errorf("%s: it failed; tried again\n%s", what, d)
		}
		r.checkJournaled(what+", tried again", since, was, now)
		r.checkShown(what+", tried again", s, shown)
	}
	r.end(s, what)
	return words(now), i.calls
}

// withoutOpen leaves out what was only open: it is gone with the process.
func withoutOpen[S any](tree map[string]S) map[string]S {
	tree = maps.Clone(tree)
	maps.DeleteFunc(tree, func(at string, _ S) bool { return strings.HasPrefix(at, "open ") })
	return tree
}

// judge says whether an operation may end with an error.
func (r *rig) judge(op operation, w way, what string, err error) {
	switch {
	case w.hidden && err != nil:
		r.t.Errorf("%s: the caller sees it: %v", what, err)
	case err != nil && !errors.Is(err, w.err):
		r.t.Errorf("%s: the caller is told something else: %v", what, err)
	}
}

// reopen opens the volume anew, as it is after a journal that could not be written.
func (r *rig) reopen(s *scene) {
	r.close()
	r.open()
	s.v, s.kernel = r.v, r.kernel
	if s.snapshot == "" {
		return
	}
	if _, err := r.v.Snapshot(s.snapshot); err != nil {
		r.t.Errorf("a snapshot is lost: %v", err)
	}
}

// cool closes every descriptor that nobody uses and that can be opened again.
func (c *openCache) cool() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range c.inodes {
		if o.users == 0 {
			c.drop(o)
		}
	}
	c.compact()
}

// shown gives what the scene's snapshot shows.
func (r *rig) shown(s *scene) map[string]seen {
	if s.snapshot == "" {
		return nil
	}
	_, view, err := r.v.OpenSnapshot(s.snapshot)
	must(r.t, err)
	defer view.Close()
	tree, _ := view.Tree()
	defer tree.Done()
	found := map[string]seen{}
	look(r.t, tree, s.dir, "", found)
	return found
}

func (r *rig) checkShown(what string, s *scene, want map[string]seen) {
	if want == nil {
		return
	}
	got := r.shown(s)
	if d := differs(words(want), words(got)); d != "" {
		r.t.Errorf("%s: the snapshot shows something else: %s", what, d)
	}
	for at, w := range want {
		g := got[at]
		if g.id != w.id || g.more.mtime != w.more.mtime || g.more.ctime != w.more.ctime {
			r.t.Errorf("%s: the snapshot shows %q as %s with the times %v and %v, want %s, %v and %v",
				what, at, g.id, g.more.mtime, g.more.ctime, w.id, w.more.mtime, w.more.ctime)
		}
		if r.exact && !slices.Equal(g.more.data, w.more.data) {
			r.t.Errorf("%s: the snapshot shows data of %q at %v, want %v", what, at, g.more.data, w.more.data)
		}
	}
}

// checkJournaled checks that the journal knows of every difference between what was at a seal and what is now.
func (r *rig) checkJournaled(what string, since journal.Epoch, was, now map[string]seen) {
	upto, err := r.v.journal.Seal(false)
	must(r.t, err)
	c, err := r.v.journal.Changes(since, upto)
	must(r.t, err)
	inodes, names := map[journal.Ident]journal.InodeChange{}, map[string]bool{}
	must(r.t, c.Inodes(func(c journal.InodeChange) error {
		c.Extents = slices.Clone(c.Extents)
		inodes[c.Ident] = c
		return nil
	}))
	must(r.t, c.Names(func(c journal.NameChange) error {
		names[c.Dir.String()+"/"+c.Name] = true
		return nil
	}))
	old := map[journal.Ident]seen{}
	for _, s := range was {
		old[s.id] = s
	}
	for name, id := range namesOf(now) {
		if namesOf(was)[name] != id && inodes[name.dir].What&journal.Created == 0 && !names[name.dir.String()+"/"+name.base] {
			r.t.Errorf("%s: %q in %s is %s now, and the journal does not know it", what, name.base, name.dir, id)
		}
	}
	for at, s := range now {
		if strings.HasPrefix(at, "open ") {
			continue
		}
		c, o := inodes[s.id], old[s.id]
		switch {
		case c.What&journal.Created != 0:
		case o.id.IsZero():
			r.t.Errorf("%s: %q (%s) is new, and the journal does not know it: %v", what, at, s.id, c)
		case (o.text != s.text || o.mtime != s.mtime || len(o.data) != len(s.data)) && c.What&journal.Meta == 0:
			r.t.Errorf("%s: %q has changed, and the journal does not know it: %v\n  %s %v\n  %s %v", what, at, c, o.text, o.mtime, s.text, s.mtime)
		default:
			r.checkExtents(what, at, o.data, s.data, c)
		}
	}
	there := map[journal.Ident]bool{}
	for _, s := range now {
		there[s.id] = true
	}
	for name := range namesOf(was) {
		if _, still := namesOf(now)[name]; !still && there[name.dir] && !names[name.dir.String()+"/"+name.base] {
			r.t.Errorf("%s: %q in %s is gone, and the journal does not know it", what, name.base, name.dir)
		}
	}
}

// nameIn is a name in a directory.
type nameIn struct {
	dir  journal.Ident
	base string
}

func namesOf(tree map[string]seen) map[nameIn]journal.Ident {
	names := map[nameIn]journal.Ident{}
	for at, s := range tree {
		if dir, base := path.Split(at); base != "" && !strings.HasPrefix(at, "open ") {
			names[nameIn{tree[strings.TrimSuffix(dir, "/")].id, base}] = s.id
		}
	}
	return names
}

func (r *rig) checkExtents(what, at, was, now string, c journal.InodeChange) {
	for off := range min(len(was), len(now)) {
		if was[off] != now[off] && !journal.Extents(c.Extents).Covers(journal.Extent{Off: int64(off), End: int64(off) + 1}) {
			r.t.Errorf("%s: byte %d of %q has changed, and the journal does not know it: %v", what, off, at, c.Extents)
			return
		}
	}
}

// end takes the scene away; nothing of it may stay.
func (r *rig) end(s *scene, what string) {
	for id := range maps.Clone(r.kernel.open) {
		r.kernel.refer(id, nil)
		r.v.Forget(id)
	}
	must(r.t, r.v.SetReadOnly(false)) // where it was given up in the middle
	for _, snap := range r.v.Snapshots() {
		must(r.t, r.v.DeleteSnapshot(snap.Name))
	}
	must(r.t, r.v.DropAside(func(journal.Ident) error { return nil }))
	_, err := r.v.journal.Seal(false)
	must(r.t, err)
	must(r.t, r.v.reclaim())
	must(r.t, r.v.journal.Forget(r.v.journal.Epoch()-1))
	state := path.Join(r.v.backing.ProcPath(), StateDir)
	for _, name := range []string{asideName, keptName} {
		entries, err := os.ReadDir(path.Join(state, name))
		must(r.t, err)
		for _, e := range entries {
			r.t.Errorf("%s: %s/%s is left", what, name, e.Name())
		}
	}
	if held := r.v.journal.Held(); len(held) > 0 {
		r.t.Errorf("%s: seals %v are still held", what, held)
	}
	r.v.open.mu.Lock()
	defer r.v.open.mu.Unlock()
	for id := range r.v.open.orphan {
		r.t.Errorf("%s: %s is still kept open", what, id)
	}
	for id, o := range r.v.open.inodes {
		if o.users != 0 {
			r.t.Errorf("%s: %s still has %d users", what, id, o.users)
		}
		var st unix.Statx_t
		if must(r.t, sys.Stat(o.fd, "", &st)); st.Nlink == 0 {
			r.t.Errorf("%s: %s has no name, and is kept open", what, id)
		}
	}
}

// try tries an operation at each moment, with every call failing in every way.
func (r *rig) try(op operation) {
	for m := inOneEpoch; m <= afterASnapshot; m++ {
		want, calls := r.attempt(op, m, way{name: "nothing"}, -1, nil)
		for _, w := range ways {
			for n := 0; n < len(calls) && !r.t.Failed(); n += r.step(m, w, len(calls)) {
				if (w.applies == nil || w.applies(calls[n])) && !r.dear(m, calls, n) {
					r.attempt(op, m, w, n, want)
				}
			}
		}
	}
}

// step is how far apart the calls are that are made to fail: where there are many, and unless it has to be thorough,
// each one is in the way and at the moment that find most, some in the others.
func (r *rig) step(m moment, w way, calls int) int {
	switch {
	case w.hidden && !thorough:
		return calls
	case thorough || m == afterASnapshot && w.name == "EIO":
		return 1
	case w.lasting && m != afterASnapshot:
		return calls
	case w.lasting:
		return 1 + calls/3
	}
	return 1 + calls/10
}

// dear leaves out some of the failures of the log, since the volume has to be opened anew after each.
func (r *rig) dear(m moment, calls []string, n int) bool {
	met := 0
	for _, call := range calls[:n] {
		if call == calls[n] {
			met++
		}
	}
	return !thorough && calls[n] == "log append" && (m != afterASnapshot || met%4 != 1)
}

// thorough has every call tried in every way at every moment.
var thorough = os.Getenv("TANDEMFS_FAULTS") == "all"

// descriptors counts the process's.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

func TestWhateverCallFailsAnOperationHappensOrDoesNot(t *testing.T) {
	had := descriptors(t)
	r := newRig(t)
	for _, op := range operations {
		t.Run(op.name, func(t *testing.T) {
			r.t = t
			defer func() { r.t = r.parent }()
			r.try(op)
		})
		if t.Failed() {
			return // what one has left would be taken for the next one's
		}
	}
	root := map[string]seen{}
	look(t, liveTree{r.v}, r.v.root, "", root)
	r.close()
	r.open()
	again := map[string]seen{}
	look(t, liveTree{r.v}, r.v.root, "", again)
	if d := differs(words(root), words(again)); d != "" {
		t.Errorf("opened again: %s", d)
	}
	r.close()
	if has := descriptors(t); has != had {
		t.Errorf("%d descriptors, before %d", has, had)
	}
	t.Logf("%d attempts, for which the volume was opened %d times", r.tried, r.opened)
}

func TestWhateverCallFailsAVolumeOpensOrDoesNot(t *testing.T) {
	r := newRig(t)
	s := &scene{t: t, v: r.v, kernel: r.kernel, dir: r.v.root, id: map[string]journal.Ident{}}
	history1(s) // with a snapshot
	tree := func() map[string]string {
		found := map[string]seen{}
		look(t, liveTree{r.v}, r.v.root, "", found)
		return words(found)
	}
	want := tree()
	r.close()
	had := descriptors(t)
	for n, more := 0, true; more; n++ {
		var v *Volume
		i, err := failing(way{err: unix.EIO}, n, func() (err error) {
			v, err = Open(r.dir, Options{Name: "faults"})
			return err
		})
		if err == nil {
			must(t, v.Close())
		} else if !errors.Is(err, unix.EIO) {
			t.Errorf("call %d (%s) fails: %v", n, i.hit, err)
		}
		if has := descriptors(t); has != had {
			t.Fatalf("call %d (%s) fails (%v): %d descriptors, before %d", n, i.hit, err, has, had)
		}
		more = i.hit != ""
		if !thorough && i.hit != "" {
			n++
		}
	}
	r.open()
	if d := differs(want, tree()); d != "" {
		t.Error(d)
	}
	if _, err := r.v.Snapshot("another"); err != nil {
		t.Error(err)
	}
}
