package volume

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
	"tandemfs/journal/failpoint"
)

// opened protects a new directory until the test ends.
func opened(t *testing.T) *Volume {
	t.Helper()
	old := unix.Umask(0)
	t.Cleanup(func() { unix.Umask(old) })
	v, err := Open(t.TempDir(), Options{Name: "test", Create: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return v
}

var nobody = Caller{UID: 65534, GID: 65534}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (v *Volume) mustFile(t *testing.T, dir journal.Ident, name, content string) journal.Ident {
	t.Helper()
	var n Inode
	must(t, v.CreateFile(dir, name, 0o644, Caller{}, &n))
	_, err := v.Write(n.ID, [][]byte{[]byte(content)}, 0, false)
	must(t, err)
	return n.ID
}

func (v *Volume) mustDir(t *testing.T, dir journal.Ident, name string) journal.Ident {
	t.Helper()
	var n Inode
	must(t, v.Mkdir(dir, name, 0o755, Caller{}, &n))
	return n.ID
}

func (v *Volume) content(t *testing.T, id journal.Ident) string {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := v.Read(id, buf, 0)
	must(t, err)
	return string(buf[:n])
}

func TestTheStateDirectoryCannotBeReached(t *testing.T) {
	v := opened(t)
	var n Inode
	for what, err := range map[string]error{
		"lookup": v.Lookup(v.root, StateDir, &n),
		"rmdir":  v.Rmdir(v.root, StateDir),
		"rename": v.Rename(v.root, StateDir, v.root, "x", 0),
	} {
		if err != unix.ENOENT {
			t.Errorf("%s gave %v, want ENOENT", what, err)
		}
	}
	file := v.mustFile(t, v.root, "file", "")
	for what, err := range map[string]error{
		"mkdir":       v.Mkdir(v.root, StateDir, 0o755, Caller{}, &n),
		"create":      v.CreateFile(v.root, StateDir, 0o644, Caller{}, &n),
		"link":        v.Link(file, v.root, StateDir, &n),
		"rename onto": v.Rename(v.root, "file", v.root, StateDir, 0),
	} {
		if err != unix.EPERM {
			t.Errorf("%s gave %v, want EPERM", what, err)
		}
	}
	must(t, v.ReadDir(v.root, 0, direntBuffer, func(e *sys.Dirent) bool {
		if string(e.Name) == StateDir {
			t.Error("it is listed")
		}
		return true
	}))
	d := v.mustDir(t, v.root, "sub")
	v.mustDir(t, d, StateDir) // only the root's is ours
}

func TestAFileWithoutANameLivesWhileTheKernelRefersToIt(t *testing.T) {
	v := opened(t)
	v.open.limit = 4
	v.SetKernel(refersToAll{})
	id := v.mustFile(t, v.root, "file", "content")
	must(t, v.Unlink(v.root, "file"))
	for i := range 20 { // more than the cache holds
		v.mustFile(t, v.root, fmt.Sprint(i), "")
	}
	if got := v.content(t, id); got != "content" {
		t.Errorf("read %q", got)
	}
	if _, err := v.Write(id, [][]byte{[]byte("more")}, 7, false); err != nil {
		t.Errorf("write: %v", err)
	}
	v.SetKernel(nil)
	v.Forget(id)
	if _, err := v.Read(id, make([]byte, 1), 0); err != unix.ESTALE {
		t.Errorf("after Forget read gave %v, want ESTALE", err)
	}
}

type refersToAll struct{ noKernel }

func (refersToAll) Refers(journal.Ident) bool { return true }

func TestAnInodeWithoutANameIsNotOpenedAgain(t *testing.T) {
	v := opened(t)
	id := v.mustFile(t, v.root, "file", "content")
	other, err := v.backing.OpenIdent(id, unix.O_RDONLY) // keeps the inode alive
	must(t, err)
	defer sys.Close(other)
	must(t, v.Unlink(v.root, "file"))
	if _, err := v.Read(id, make([]byte, 1), 0); err != unix.ESTALE {
		t.Errorf("read gave %v, want ESTALE", err)
	}
	if v.open.inodes[id] != nil {
		t.Error("a descriptor of it is kept")
	}
}

func TestAFailedRemovalKeepsTheInodeOrdinary(t *testing.T) {
	v := opened(t)
	v.SetKernel(refersToAll{})
	d := v.mustDir(t, v.root, "dir")
	v.mustFile(t, d, "file", "")
	if err := v.Rmdir(v.root, "dir"); err != unix.ENOTEMPTY {
		t.Fatalf("rmdir gave %v", err)
	}
	if v.open.orphaned(d) {
		t.Error("the directory is still held as one without a name")
	}
}

func TestADirectoryThatIsNotEmptyHasItsLinksWhileSomebodyTriesToRemoveIt(t *testing.T) {
	v := opened(t)
	v.SetKernel(refersToAll{})
	d := v.mustDir(t, v.root, "dir")
	v.mustFile(t, d, "file", "")
	before := v.mustLookup(t, v.root, "dir").Stat.Nlink
	var during Inode
	disarm := failpoint.Arm(func(call string, size int) (int, error) {
		if call == "rmdir" {
			must(t, v.Stat(d, &during))
		}
		return size, nil
	})
	err := v.Rmdir(v.root, "dir")
	disarm()
	if err != unix.ENOTEMPTY || during.Stat.Nlink != before {
		t.Errorf("rmdir gave %v; meanwhile it had %d links, before %d", err, during.Stat.Nlink, before)
	}
}

func TestRemovalsThatFailLeaveNothingBehind(t *testing.T) {
	v := opened(t)
	v.SetKernel(refersToAll{})
	v.open.limit = 8
	d := v.mustDir(t, v.root, "dir")
	v.mustFile(t, d, "file", "")
	for range 100 {
		if err := v.Rmdir(v.root, "dir"); err != unix.ENOTEMPTY {
			t.Fatalf("rmdir gave %v", err)
		}
	}
	if n := len(v.open.clock); n > 8 {
		t.Errorf("the clock has %d entries", n)
	}
}

// The kernel forgets an inode, and gets to know it again before the volume is told.
func TestAnInodeIsKeptThatTheKernelRefersToAgain(t *testing.T) {
	v := opened(t)
	v.SetKernel(refersToAll{})
	id := v.mustFile(t, v.root, "file", "content")
	must(t, v.Unlink(v.root, "file"))
	v.Forget(id)
	if got := v.content(t, id); got != "content" {
		t.Errorf("read %q", got)
	}
}

func TestDescriptorsStayWithinTheLimit(t *testing.T) {
	v := opened(t)
	v.open.limit = 8
	var ids []journal.Ident
	for i := range 100 {
		ids = append(ids, v.mustFile(t, v.root, fmt.Sprint(i), fmt.Sprint(i)))
	}
	for i, id := range ids {
		if got := v.content(t, id); got != fmt.Sprint(i) {
			t.Fatalf("file %d holds %q", i, got)
		}
	}
	if n := len(v.open.inodes); n > 9 {
		t.Errorf("%d descriptors are open", n)
	}
}

func TestNewInodesBelongToTheCaller(t *testing.T) {
	v := opened(t)
	var n Inode
	c := nobody
	c.Umask = 0o027
	must(t, v.Mkdir(v.root, "d", 0o777, c, &n))
	if n.Stat.Uid != c.UID || n.Stat.Gid != c.GID || n.Stat.Mode&0o7777 != 0o750 {
		t.Errorf("mkdir made %d:%d %o", n.Stat.Uid, n.Stat.Gid, n.Stat.Mode)
	}
	must(t, v.SetAttr(n.ID, Setting{Valid: SetMode | SetGID, Mode: 0o2770, GID: 100}, &n))
	var f Inode
	must(t, v.CreateFile(n.ID, "f", 0o666, c, &f))
	if f.Stat.Uid != c.UID || f.Stat.Gid != 100 || f.Stat.Mode&0o7777 != 0o640 {
		t.Errorf("in a set-group-id directory create made %d:%d %o", f.Stat.Uid, f.Stat.Gid, f.Stat.Mode)
	}
}

func TestAWriteByOthersDropsSetIDBits(t *testing.T) {
	v := opened(t)
	id := v.mustFile(t, v.root, "f", "x")
	var n Inode
	for _, c := range []struct{ before, after uint16 }{{0o6755, 0o755}, {0o2745, 0o2745}, {0o4600, 0o600}} {
		must(t, v.SetAttr(id, Setting{Valid: SetMode, Mode: uint32(c.before)}, &n))
		_, err := v.Write(id, [][]byte{[]byte("y")}, 0, true)
		must(t, err)
		must(t, v.Stat(id, &n))
		if n.Stat.Mode&0o7777 != c.after {
			t.Errorf("mode %o became %o, want %o", c.before, n.Stat.Mode&0o7777, c.after)
		}
	}
}

func TestAReadOnlyVolumeRefusesEveryChange(t *testing.T) {
	v := opened(t)
	id := v.mustFile(t, v.root, "f", "x")
	must(t, v.SetReadOnly(true))
	var n Inode
	_, writeErr := v.Write(id, [][]byte{[]byte("y")}, 0, false)
	_, copyErr := v.Copy(id, 0, id, 10, 1, false)
	for what, err := range map[string]error{
		"write": writeErr, "copy": copyErr,
		"create":      v.CreateFile(v.root, "g", 0o644, Caller{}, &n),
		"tmpfile":     v.Tmpfile(v.root, 0o644, Caller{}, &n),
		"mkdir":       v.Mkdir(v.root, "d", 0o755, Caller{}, &n),
		"mknod":       v.Mknod(v.root, "p", unix.S_IFIFO|0o644, 0, Caller{}, &n),
		"symlink":     v.Symlink(v.root, "s", "t", Caller{}, &n),
		"link":        v.Link(id, v.root, "l", &n),
		"unlink":      v.Unlink(v.root, "f"),
		"rmdir":       v.Rmdir(v.root, "f"),
		"rename":      v.Rename(v.root, "f", v.root, "g", 0),
		"setattr":     v.SetAttr(id, Setting{Valid: SetMode, Mode: 0}, &n),
		"setxattr":    v.SetXattr(id, "user.a", nil, 0, false),
		"removexattr": v.RemoveXattr(id, "user.a"),
		"fallocate":   v.Allocate(id, 0, 0, 10, false),
		"setflags":    v.SetFlags(id, false, 0),
	} {
		if err != unix.EROFS {
			t.Errorf("%s gave %v, want EROFS", what, err)
		}
	}
	must(t, v.SetReadOnly(false))
	must(t, v.Unlink(v.root, "f"))
}

func TestRemoveLeavesPlainFiles(t *testing.T) {
	dir := t.TempDir()
	v, err := Open(dir, Options{Name: "test", Create: true})
	must(t, err)
	v.mustFile(t, v.root, "kept", "x")
	must(t, v.Remove())
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) != 1 || entries[0].Name() != "kept" {
		t.Errorf("left: %v", entries)
	}
}

func TestOpeningWhatIsNoVolumeFails(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(dir, Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without Create: %v", err)
	}
	if _, err := Open(filepath.Join(dir, "absent"), Options{Create: true}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent directory: %v", err)
	}
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, nil, 0o600))
	if _, err := Open(file, Options{Create: true}); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("a file: %v", err)
	}
	if _, err := Open("/proc", Options{Create: true}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("/proc: %v", err)
	}
}

// snapshot lists everything of a view: path, identity, attributes, extended attributes.
func snapshot(t *testing.T, w *View, dir journal.Ident, path string, into map[string]string) {
	t.Helper()
	entries, err := w.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		a, err := w.Stat(e.Ident)
		if err != nil {
			t.Fatalf("seal %d: %s/%s (%v): %v", w.epoch, path, e.Name, e.Ident, err)
		}
		x, err := w.Xattrs(e.Ident)
		must(t, err)
		a.Atime = journal.Time{} // nobody's promise
		into[path+"/"+e.Name] = fmt.Sprint(e.Ident, a, x)
		if a.Mode&unix.S_IFMT == unix.S_IFREG {
			into[path+"/"+e.Name] += contentAt(t, w, e.Ident, a.Size)
		}
		if found, err := w.Lookup(dir, e.Name); err != nil || found != e.Ident {
			t.Fatalf("lookup of %s gave %v, %v; the listing says %v", e.Name, found, err, e.Ident)
		}
		if a.Mode&unix.S_IFMT == unix.S_IFDIR {
			snapshot(t, w, e.Ident, path+"/"+e.Name, into)
		}
	}
}

// contentAt gives a file's data and holes in a view.
func contentAt(t *testing.T, w *View, id journal.Ident, size int64) string {
	t.Helper()
	f, err := w.Open(id)
	must(t, err)
	defer f.Close()
	all := make([]byte, size+1)
	n, err := f.ReadAt(all, 0)
	if int64(n) != size || err != io.EOF {
		t.Fatalf("%v has %d bytes, %d are read: %v", id, size, n, err)
	}
	var data journal.Extents
	for off := int64(0); ; {
		e, ok, err := f.NextData(off, size)
		must(t, err)
		if !ok {
			return fmt.Sprintf(" %x %v", sha256.Sum256(all[:n]), data)
		}
		data = data.Add(e)
		off = e.End
	}
}

// mutate makes one random change to a random place. Errors are part of the game.
func mutate(v *Volume, r *rand.Rand, dirs *[]journal.Ident, files *[]journal.Ident) {
	pick := func(from []journal.Ident) journal.Ident { return from[r.Intn(len(from))] }
	name := func() string { return string(rune('a' + r.Intn(8))) }
	var n Inode
	switch r.Intn(12) {
	case 0:
		if v.Mkdir(pick(*dirs), name(), 0o755, Caller{}, &n) == nil {
			*dirs = append(*dirs, n.ID)
		}
	case 1, 2:
		if v.CreateFile(pick(*dirs), name(), 0o644, Caller{}, &n) == nil {
			*files = append(*files, n.ID)
		}
	case 3:
		v.Unlink(pick(*dirs), name())
	case 4:
		v.Rmdir(pick(*dirs), name())
	case 5, 6:
		flags := []uint{0, 0, unix.RENAME_EXCHANGE, unix.RENAME_NOREPLACE}[r.Intn(4)]
		v.Rename(pick(*dirs), name(), pick(*dirs), name(), flags)
	case 7:
		v.Link(pick(*files), pick(*dirs), name(), &n)
	case 8:
		v.SetAttr(pick(*files), Setting{Valid: SetMode | SetSize, Mode: uint32(r.Intn(0o1000)), Size: int64(r.Intn(9999))}, &n)
	case 9:
		v.SetXattr(pick(append(*files, *dirs...)), "user."+name(), []byte(name()), 0, false)
	case 10:
		v.RemoveXattr(pick(append(*files, *dirs...)), "user."+name())
	case 11:
		v.Write(pick(*files), [][]byte{[]byte(name())}, int64(r.Intn(9999)), false)
	}
}

func TestAViewStaysAsItWasWhateverHappensAfter(t *testing.T) {
	seed := rand.Int63()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewSource(seed))
	v := opened(t)
	dirs := []journal.Ident{v.root}
	files := []journal.Ident{v.mustFile(t, v.root, "first", "")}
	type kept struct {
		view *View
		was  map[string]string
	}
	var views []kept
	for round := range 60 {
		for range 40 {
			mutate(v, r, &dirs, &files)
		}
		w, err := v.Seal()
		must(t, err)
		was := map[string]string{}
		snapshot(t, w, v.root, "", was)
		views = append(views, kept{w, was})
		if len(views) > 4 { // let go of a random one: the others must not notice
			i := r.Intn(len(views))
			must(t, views[i].view.Close())
			views = slices.Delete(views, i, i+1)
		}
		for _, k := range views {
			now := map[string]string{}
			snapshot(t, k.view, v.root, "", now)
			compare(t, fmt.Sprintf("round %d, seal %d", round, k.view.epoch), k.was, now)
		}
		if t.Failed() {
			return
		}
	}
}

func compare(t *testing.T, what string, want, got map[string]string) {
	t.Helper()
	for path, w := range want {
		if got[path] != w {
			t.Errorf("%s: %s was %s, is now %q", what, path, w, got[path])
		}
	}
	for path, g := range got {
		if _, ok := want[path]; !ok {
			t.Errorf("%s: %s was not there, is now %s", what, path, g)
		}
	}
}

func TestADirectoryThatIsRemovedWhileItIsReadHasNoNames(t *testing.T) {
	dir := t.TempDir() + "/removed"
	must(t, os.Mkdir(dir, 0o700))
	f, err := os.Open(dir)
	must(t, err)
	defer f.Close()
	must(t, os.Remove(dir))
	must(t, eachName(int(f.Fd()), func(name string) error { return errors.New(name) }))
}

// Seals so far apart are in use at the same time after a power cut, when the numbers go on from a higher one.
func TestViewsFarApartAreListedApart(t *testing.T) {
	v := opened(t)
	names := func(w *View) (names []string) {
		must(t, viewTree{w}.ReadDir(v.Root(), 2, 0, func(e *sys.Dirent) bool {
			names = append(names, string(e.Name))
			return true
		}))
		return names
	}
	v.mustFile(t, v.Root(), "old", "")
	old, err := v.Seal()
	must(t, err)
	defer old.Close()
	if got := names(old); !slices.Equal(got, []string{"old"}) {
		t.Errorf("the first view has %q", got)
	}
	v.mustFile(t, v.Root(), "new", "")
	for v.journal.Epoch() < old.epoch+viewMask+1 {
		_, err := v.journal.Seal(false)
		must(t, err)
	}
	later, err := v.Seal()
	must(t, err)
	defer later.Close()
	if tag(old.epoch) != tag(later.epoch) {
		t.Fatalf("the epochs %d and %d have different tags", old.epoch, later.epoch)
	}
	if got := names(later); len(got) != 2 {
		t.Errorf("the later view has %q", got)
	}
	if got := names(old); len(got) != 1 {
		t.Errorf("the first view has %q", got)
	}
}
