package volume

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"tandemfs/journal"
)

// dropped empties aside and gives what was reported gone.
func (v *Volume) dropped(t *testing.T) []journal.Ident {
	t.Helper()
	var ids []journal.Ident
	must(t, v.DropAside(func(id journal.Ident) error {
		ids = append(ids, id)
		return nil
	}))
	return ids
}

func (v *Volume) names(t *testing.T, dir journal.Ident) []string {
	t.Helper()
	w := &View{v: v, epoch: v.journal.Epoch()}
	entries, err := w.readLive(dir)
	must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name)
	}
	slices.Sort(names)
	return names
}

func TestNamesCanBeSwapped(t *testing.T) {
	v := opened(t)
	a, b := v.mustDir(t, v.root, "a"), v.mustFile(t, v.root, "b", "file")
	must(t, v.MoveAside(v.root, "a"))
	must(t, v.MoveAside(v.root, "b"))
	must(t, v.Place(a, v.root, "b"))
	must(t, v.Place(b, v.root, "a"))
	if gone := v.dropped(t); len(gone) != 0 {
		t.Errorf("gone: %v", gone)
	}
	var n Inode
	must(t, v.Lookup(v.root, "a", &n))
	if n.ID != b {
		t.Errorf("a is %v, want %v", n.ID, b)
	}
	must(t, v.Lookup(v.root, "b", &n))
	if n.ID != a {
		t.Errorf("b is %v, want %v", n.ID, a)
	}
}

func TestADirectoryCanMoveBelowItsOwnFormerChild(t *testing.T) {
	v := opened(t)
	outer := v.mustDir(t, v.root, "outer")
	inner := v.mustDir(t, outer, "inner")
	must(t, v.MoveAside(v.root, "outer"))
	must(t, v.MoveAside(outer, "inner"))
	must(t, v.Place(outer, inner, "outer")) // the child is still aside itself
	must(t, v.Place(inner, v.root, "inner"))
	v.dropped(t)
	var n Inode
	must(t, v.Lookup(v.root, "inner", &n))
	must(t, v.Lookup(inner, "outer", &n))
	if n.ID != outer {
		t.Errorf("found %v, want %v", n.ID, outer)
	}
}

func TestADirectoryIsPlacedFromWhereItStands(t *testing.T) {
	v := opened(t)
	old := v.mustDir(t, v.mustDir(t, v.root, "deep"), "a name (deleted)")
	v.mustFile(t, old, "child", "x")
	fresh, err := v.Create(unix.S_IFDIR, 0, "", journal.Ident{}, "")
	must(t, err)
	must(t, v.Place(old, fresh, "moved"))
	must(t, v.Place(fresh, v.root, "fresh"))
	must(t, v.Place(fresh, v.root, "fresh")) // again: nothing more happens
	if got, err := os.ReadFile(filepath.Join(v.path, "fresh/moved/child")); err != nil || string(got) != "x" {
		t.Errorf("read %q, %v", got, err)
	}
	if got := v.names(t, v.root); !slices.Equal(got, []string{"deep", "fresh"}) {
		t.Errorf("the root holds %v", got)
	}
}

func TestWhatHasNoNameLeftIsGone(t *testing.T) {
	v := opened(t)
	linked := v.mustFile(t, v.root, "one", "x")
	var n Inode
	must(t, v.Link(linked, v.root, "two", &n))
	d := v.mustDir(t, v.root, "dir")
	child := v.mustFile(t, d, "child", "")
	for _, name := range []string{"one", "dir", "never there"} {
		must(t, v.MoveAside(v.root, name))
	}
	gone := v.dropped(t)
	slices.SortFunc(gone, func(a, b journal.Ident) int { return int(a.Ino) - int(b.Ino) })
	want := []journal.Ident{d, child}
	slices.SortFunc(want, func(a, b journal.Ident) int { return int(a.Ino) - int(b.Ino) })
	if !slices.Equal(gone, want) {
		t.Errorf("gone: %v, want %v", gone, want)
	}
	if got := v.names(t, v.root); !slices.Equal(got, []string{"two"}) {
		t.Errorf("the root holds %v", got)
	}
	must(t, v.MoveAside(v.root, "two"))
	if gone := v.dropped(t); !slices.Equal(gone, []journal.Ident{linked}) {
		t.Errorf("gone: %v, want the linked file", gone)
	}
}

func TestWhatIsAsideIsKnownAfterARestart(t *testing.T) {
	dir := t.TempDir()
	v, err := Open(dir, Options{Create: true})
	must(t, err)
	made, err := v.Create(unix.S_IFREG, 0, "", journal.Ident{}, "")
	must(t, err)
	moved := v.mustFile(t, v.root, "moved", "x")
	must(t, v.MoveAside(v.root, "moved"))
	must(t, v.Close())

	v, err = Open(dir, Options{})
	must(t, err)
	defer v.Close()
	for _, id := range []journal.Ident{made, moved} {
		if ok, err := v.Exists(id); !ok || err != nil {
			t.Errorf("%v: exists %v, %v", id, ok, err)
		}
	}
	must(t, v.Place(moved, v.root, "back"))
	if gone := v.dropped(t); !slices.Equal(gone, []journal.Ident{made}) {
		t.Errorf("gone: %v, want %v", gone, made)
	}
	if ok, err := v.Exists(made); ok || err != nil {
		t.Errorf("the dropped inode exists: %v, %v", ok, err)
	}
}

func TestALeftoverMakesRoomForWhatIsCreated(t *testing.T) {
	v := opened(t)
	d := v.mustDir(t, v.root, "x")
	v.mustFile(t, d, "below", "")
	id, err := v.Create(unix.S_IFLNK, 0, "elsewhere", v.root, "x")
	must(t, err)
	v.dropped(t)
	if got, err := os.Readlink(filepath.Join(v.path, "x")); err != nil || got != "elsewhere" {
		t.Errorf("readlink gave %q, %v", got, err)
	}
	if ok, _ := v.Exists(id); !ok {
		t.Error("the link does not exist")
	}
}

func TestSetImageSetsAllOfIt(t *testing.T) {
	v := opened(t)
	id := v.mustFile(t, v.root, "f", "0123456789")
	must(t, v.SetXattr(id, "user.old", []byte("x"), 0, false))
	must(t, v.SetXattr(id, "user.kept", []byte("old"), 0, false))
	want := journal.Image{
		Attr: journal.Attr{
			Mode: unix.S_IFREG | 0o6751, UID: 7, GID: 8, Size: 4,
			Atime: journal.Time{Sec: 5, Nsec: 6}, Mtime: journal.Time{Sec: -7, Nsec: 999999999},
		},
		Xattrs: []journal.Xattr{{Name: "user.kept", Value: []byte("new")}, {Name: "user.new", Value: nil}},
	}
	for range 2 {
		must(t, v.SetImage(id, want))
		got, err := (&View{v: v, epoch: v.journal.Epoch()}).live(id, true)
		must(t, err)
		got.Attr.Ctime, got.Attr.Nlink, got.Attr.Rdev = journal.Time{}, 0, 0
		if got.Attr != want.Attr {
			t.Errorf("attributes are %+v, want %+v", got.Attr, want.Attr)
		}
		if len(got.Xattrs) != 2 || got.Xattrs[0].Name != "user.kept" || string(got.Xattrs[0].Value) != "new" || got.Xattrs[1].Name != "user.new" {
			t.Errorf("extended attributes are %v", got.Xattrs)
		}
	}
	for _, mode := range []uint32{unix.S_IFLNK, unix.S_IFIFO, unix.S_IFDIR, unix.S_IFSOCK, unix.S_IFCHR} {
		id, err := v.Create(mode, unix.Mkdev(1, 3), "to", v.root, "special")
		must(t, err)
		want := journal.Image{Attr: journal.Attr{Mode: mode | 0o751, UID: 1, GID: 2, Mtime: journal.Time{Sec: 3}}}
		must(t, v.SetImage(id, want))
		var n Inode
		must(t, v.Stat(id, &n))
		if n.Stat.Uid != 1 || n.Stat.Gid != 2 || n.Stat.Mtime.Sec != 3 || mode != unix.S_IFLNK && n.Stat.Mode&0o777 != 0o751 {
			t.Errorf("type %o: %+v", mode, n.Stat)
		}
	}
}

func TestContentIsAppliedWithItsHoles(t *testing.T) {
	v := opened(t)
	id, err := v.Create(unix.S_IFREG, 0, "", v.root, "f")
	must(t, err)
	f, err := v.OpenForApply(id)
	must(t, err)
	data := make([]byte, 64<<10)
	for i := range data {
		data[i] = 1
	}
	_, err = f.WriteAt(data, 0)
	must(t, err)
	must(t, f.Punch(journal.Extent{Off: 8192, End: 32768}))
	must(t, f.Truncate(1<<20))
	must(t, f.Close())
	view, err := v.Seal()
	must(t, err)
	defer view.Close()
	w, err := view.Open(id)
	must(t, err)
	defer w.Close()
	var got []journal.Extent
	for off := int64(0); ; {
		e, ok, err := w.NextData(off, 1<<20)
		must(t, err)
		if !ok {
			break
		}
		got = append(got, e)
		off = e.End
	}
	if want := []journal.Extent{{Off: 0, End: 8192}, {Off: 32768, End: 65536}}; !slices.Equal(got, want) {
		t.Errorf("data lies at %v, want %v", got, want)
	}
}

func TestReadersSeeACommitWhenItIsPublished(t *testing.T) {
	v := opened(t)
	must(t, v.SetReadOnly(true))
	must(t, v.Freeze())
	_, err := v.Create(unix.S_IFDIR, 0, "", v.root, "d")
	must(t, err)
	n, err := v.Commit()
	must(t, err)
	if v.journal.Dirty() {
		t.Error("something is not sealed")
	}
	seen := func() error {
		tree := v.Current()
		defer tree.Done()
		return tree.Lookup(v.root, "d", &Inode{})
	}
	if err := seen(); err != unix.ENOENT {
		t.Errorf("before it is published: %v", err)
	}
	must(t, v.Publish(n))
	must(t, seen())
}

func TestWhatATransferMovesIsRecorded(t *testing.T) {
	v := opened(t)
	aside, straight := v.mustDir(t, v.root, "aside"), v.mustDir(t, v.root, "straight")
	to, linked := v.mustDir(t, v.root, "to"), v.mustFile(t, v.root, "linked", "")
	base, err := v.journal.Seal(false)
	must(t, err)
	must(t, v.MoveAside(v.root, "aside"))
	now, err := v.journal.Seal(false)
	must(t, err)
	recorded := func(id journal.Ident) {
		t.Helper()
		c, err := v.journal.Changes(base, now)
		must(t, err)
		if _, ok, err := c.Inode(id); !ok || err != nil {
			t.Errorf("%v moved unrecorded (%v)", id, err)
		}
	}
	recorded(aside)
	base = now
	for _, id := range []journal.Ident{aside, straight, linked} {
		must(t, v.Place(id, to, id.String()))
	}
	now, err = v.journal.Seal(false)
	must(t, err)
	for _, id := range []journal.Ident{aside, straight, linked} {
		recorded(id)
	}
}
