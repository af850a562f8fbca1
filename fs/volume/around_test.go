package volume

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
)

// around runs a shell command in the backing directory: what it does is another process's doing.
func (v *Volume) shell(t *testing.T, command string) {
	t.Helper()
	c := exec.Command("sh", "-c", command)
	c.Dir = v.Path()
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
}

// recorded seals the volume, once everything that was done so far is recorded, and gives what the journal has
// since a seal, as text: names by path, inodes by the path that they have now.
func (v *Volume) recorded(t *testing.T, since journal.Epoch) []string {
	t.Helper()
	v.noticed(t)
	return v.changesSince(t, since)
}

func (v *Volume) changesSince(t *testing.T, since journal.Epoch) []string {
	t.Helper()
	upto, err := v.journal.Seal(false)
	must(t, err)
	c, err := v.journal.Changes(since, upto)
	must(t, err)
	var list []string
	must(t, c.Inodes(func(c journal.InodeChange) error {
		for _, w := range []struct {
			what journal.What
			word string
		}{{journal.Created, "new"}, {journal.Meta, "meta"}, {journal.Data, "data"}} {
			if c.What&w.what != 0 {
				list = append(list, w.word+" "+v.pathOf(t, c.Ident))
			}
		}
		return nil
	}))
	must(t, c.Names(func(c journal.NameChange) error {
		was := v.pathOf(t, c.Was)
		switch {
		case c.Was.IsZero():
			was = "nothing"
		case c.Was == journal.Unknown:
			was = "unknown"
		}
		list = append(list, "name "+filepath.Join(v.pathOf(t, c.Dir), c.Name)+" was "+was)
		return nil
	}))
	slices.Sort(list)
	return list
}

// noticed waits until the watch was read after now, and no sweep is under way.
func (v *Volume) noticed(t *testing.T) {
	t.Helper()
	mark := fmt.Sprintf("mark %d", time.Now().UnixNano())
	v.shell(t, "touch ../'"+mark+"'; rm ../'"+mark+"'")
	after := time.Now()
	eventually(t, "the watch is read", func() bool {
		v.around.mu.Lock()
		defer v.around.mu.Unlock()
		k := v.around.known.until
		return !v.around.status.Sweeping && time.Unix(k.Sec, int64(k.Nsec)).After(after)
	})
}

// pathOf looks for an inode in the whole directory.
func (v *Volume) pathOf(t *testing.T, id journal.Ident) string {
	t.Helper()
	found := "gone"
	must(t, filepath.WalkDir(v.Path(), func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Name() == StateDir {
			return filepath.SkipDir
		}
		if now, err := v.backing.IdentAt(unix.AT_FDCWD, path); err == nil && now == id && found == "gone" {
			found = "/" + strings.TrimPrefix(strings.TrimPrefix(path, v.Path()), "/")
		}
		return nil
	}))
	return found
}

// below protects a directory in another one, after a shell command was run in it.
func below(t *testing.T, before string) *Volume {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	must(t, os.Mkdir(root, 0o755))
	(&Volume{path: root}).shell(t, before)
	passed(time.Now())
	return reopened(t, root)
}

// reopened opens a volume, made when absent, until the test ends.
func reopened(t *testing.T, root string) *Volume {
	t.Helper()
	v, err := Open(root, Options{Name: "test", Create: true})
	for errors.Is(err, ErrBusy) { // a shell of another test has the lock until it is one
		time.Sleep(time.Millisecond)
		v, err = Open(root, Options{Name: "test", Create: true})
	}
	must(t, err)
	t.Cleanup(func() {
		if v.around.record >= 0 { // it is open, and watched
			must(t, v.Close())
		}
	})
	v.SetKernel(noKernel{})
	return v
}

func TestWhatIsChangedAroundTheMountIsRecorded(t *testing.T) {
	for _, c := range []struct {
		name, before, command string
		want                  []string
		doubt                 uint64
	}{
		{"a file is overwritten in place", "echo old >f", "echo new 1<>f", []string{"data /f", "meta /f"}, 0},
		{"a file is appended to", "echo old >f", "echo more >>f", []string{"data /f", "meta /f"}, 0},
		{"attributes", "echo old >f", "chmod 600 f", []string{"meta /f"}, 0},
		{"a directory's attributes", "mkdir d", "chmod 700 d", []string{"meta /d"}, 0},
		{"a new file", "", "echo x >f", []string{"meta /", "name /f was nothing", "new /f"}, 0},
		{"a file that was renamed after it was made", "", "echo x >tmp; mv tmp f",
			[]string{"meta /", "name /f was unknown", "name /tmp was nothing", "new /f"}, 0},
		{"a file is replaced", "echo old >f", "echo x >tmp; mv tmp f",
			[]string{"meta /", "name /f was unknown", "name /tmp was nothing", "new /f"}, 0},
		{"a file is published by a link", "", "echo x >tmp; ln tmp f; rm tmp",
			[]string{"meta /", "name /f was nothing", "name /tmp was nothing", "new /f"}, 0},
		{"a file is removed", "echo old >f", "rm f", []string{"meta /", "name /f was unknown"}, 0},
		{"a file is renamed", "echo old >f; mkdir d", "mv f d/g",
			[]string{"meta /", "meta /d", "meta /d/g", "name /d/g was unknown", "name /f was /d/g"}, 0},
		{"a tree is made", "", "mkdir -p a/b; echo x >a/b/c", []string{"meta /", "name /a was nothing", "new /a", "new /a/b", "new /a/b/c"}, 0},
		{"a tree is moved in", "mkdir -p ../a/b; echo x >../a/b/c", "mv ../a a",
			[]string{"meta /", "name /a was unknown", "new /a", "new /a/b", "new /a/b/c"}, 0},
		{"a tree is moved out", "mkdir -p a/b; echo x >a/b/c", "mv a ../a", []string{"meta /", "name /a was unknown"}, 0},
		{"a tree is removed", "mkdir -p a/b", "rm -r a", []string{"meta /", "name /a was unknown"}, 0},
		{"one of two names is removed", "echo x >f; ln f g", "rm f", []string{"meta /", "meta /g", "name /f was /g"}, 0},
		{"another name", "echo x >f", "ln f g", []string{"meta /", "meta /f", "name /g was nothing"}, 1},
		{"another name of what was made a moment ago", "", "echo x >f; ln f g",
			[]string{"meta /", "name /f was nothing", "name /g was nothing", "new /f"}, 0},
		{"another name comes and goes", "echo x >f", "ln f g; rm g", []string{"meta /", "meta /f", "name /g was nothing"}, 1},
		{"beside the volume", "echo x >../f", "echo y >../f; mkdir ../d; mv ../f ../d", nil, 0},
		{"what is only opened", "echo x >f", "exec 3<>f", nil, 0},
		{"a link to somewhere, a pipe", "", "ln -s x l; mkfifo p",
			[]string{"meta /", "name /l was nothing", "name /p was nothing", "new /l", "new /p"}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v := below(t, c.before)
			seal, err := v.journal.Seal(false)
			must(t, err)
			v.shell(t, c.command)
			got := v.recorded(t, seal)
			// Directories that are removed with all that is below have touched names, which nobody can ask for.
			got = slices.DeleteFunc(got, func(s string) bool { return strings.Contains(s, "gone") })
			if !slices.Equal(got, c.want) {
				t.Errorf("recorded\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(c.want, "\n  "))
			}
			if now := v.Around(); (now.Changes > 0) != (c.want != nil) || now.InDoubt != c.doubt || !now.Watched {
				t.Errorf("%+v", now)
			}
		})
	}
}

func TestWhatIsChangedAroundTheMountInVeryDeepDirectoriesIsRecorded(t *testing.T) {
	v := below(t, "")
	deep := v.deepDir(t, v.root)
	id := v.mustFile(t, deep, "f", "old")
	at, err := unix.Open(v.Path(), unix.O_PATH|unix.O_CLOEXEC, 0)
	must(t, err)
	for range 20 {
		up := at
		at, err = unix.Openat(up, strings.Repeat("n", 250), unix.O_PATH|unix.O_CLOEXEC, 0)
		must(t, err)
		must(t, unix.Close(up))
	}
	defer unix.Close(at)
	v.noticed(t)
	since, err := v.journal.Seal(false)
	must(t, err)
	v.shell(t, fmt.Sprintf("echo new >/proc/%d/fd/%d/f", os.Getpid(), at))
	v.noticed(t)
	upto, err := v.journal.Seal(false)
	must(t, err)
	changes, err := v.journal.Changes(since, upto)
	must(t, err)
	c, _, err := changes.Inode(id)
	if err != nil || c.What&journal.Data == 0 {
		t.Errorf("recorded is %v, %v", c.What, err)
	}
	if last := v.Around().LastPath; !strings.HasSuffix(last, "/.../f") {
		t.Errorf("it is reported as %q", last)
	}
}

func TestTheVolumesOwnChangesAreNotTakenForForeignOnes(t *testing.T) {
	v := below(t, "")
	dir := v.mustDir(t, v.root, "dir")
	for i := range 100 {
		id := v.mustFile(t, dir, fmt.Sprint(i), "content")
		must(t, v.SetAttr(id, Setting{Valid: SetMode, Mode: 0o600}, new(Inode)))
		must(t, v.Rename(dir, fmt.Sprint(i), v.root, fmt.Sprint(i), 0))
		if i%2 == 0 {
			must(t, v.Unlink(v.root, fmt.Sprint(i)))
		}
	}
	v.noticed(t)
	if a := v.Around(); a.Changes != 0 {
		t.Errorf("%+v", a)
	}
}

// rememberingKernel is a mount that remembers what it was told.
type rememberingKernel struct {
	noKernel
	mu   sync.Mutex
	told []string
}

func (k *rememberingKernel) Turn(d Differences, swap func()) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	swap()
	if err := d.Names(func(_ journal.Ident, name string) error { k.told = append(k.told, name); return nil }); err != nil {
		return err
	}
	return d.Inodes(func(id journal.Ident, content bool) error {
		k.told = append(k.told, fmt.Sprint(id, content))
		return nil
	})
}

func TestTheMountIsToldOfWhatWasChangedAroundIt(t *testing.T) {
	v := below(t, "")
	f, k := v.mustFile(t, v.root, "f", "content"), &rememberingKernel{}
	v.SetKernel(k)
	v.noticed(t)
	v.shell(t, "echo x >f; rm f")
	v.noticed(t)
	want := []string{"f", fmt.Sprint(v.root, false)}
	eventually(t, "the mount is told", func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return !slices.ContainsFunc(want, func(s string) bool { return !slices.Contains(k.told, s) })
	})
	v.shell(t, "echo x >g")
	v.noticed(t)
	if _, err := v.open.get(f, reachPath); !isStale(err) {
		t.Errorf("the removed file is kept open: %v", err)
	}
}

// referringKernel is a mount that programs have everything open through.
type referringKernel struct{ noKernel }

func (referringKernel) Refers(journal.Ident) bool { return true }

func TestWhatAProgramHasOpenIsNotLostToItWhenItIsRemovedAroundTheMount(t *testing.T) {
	for _, command := range []string{"rm f", "echo x >tmp; mv tmp f"} {
		t.Run(command, func(t *testing.T) {
			v := below(t, "")
			f := v.mustFile(t, v.root, "f", "content")
			v.SetKernel(referringKernel{})
			o, err := v.open.get(f, reachRead)
			must(t, err)
			v.open.put(o)
			v.shell(t, command)
			v.noticed(t)
			var b [7]byte
			if n, err := v.Read(f, b[:], 0); err != nil || string(b[:n]) != "content" {
				t.Errorf("read %q, %v", b[:n], err)
			}
			v.SetKernel(nil)
			v.Forget(f)
			if _, err := v.open.get(f, reachRead); !isStale(err) {
				t.Errorf("nobody has it open any more: %v", err)
			}
		})
	}
}

func TestAViewIsNotFailedByWhatWasChangedAroundTheMount(t *testing.T) {
	v := below(t, "")
	v.mustFile(t, v.root, "stays", "old content")
	v.mustFile(t, v.root, "goes", "content")
	v.mustFile(t, v.root, "replaced", "content")
	v.noticed(t)
	w, err := v.Seal()
	must(t, err)
	defer w.Close()
	v.shell(t, "rm goes; echo new >tmp; mv tmp replaced; printf changed 1<>stays; touch new")
	v.noticed(t)
	shown := map[string]string{}
	snapshot(t, w, v.root, "", shown)
	frozen, changed := fmt.Sprint(shown), contentAt(t, w, shownID(t, w, "stays"), 11)
	var names []string
	entries, err := w.ReadDir(v.root)
	must(t, err)
	for _, e := range entries {
		names = append(names, e.Name)
	}
	if !slices.Equal(names, []string{"stays"}) {
		t.Errorf("the view has %q", names)
	}
	id := shownID(t, w, "stays")
	v.mustWrite(t, id, 0, "through the volume")
	shown = map[string]string{}
	snapshot(t, w, v.root, "", shown)
	if now := fmt.Sprint(shown); now != frozen || contentAt(t, w, id, 11) != changed {
		t.Errorf("the view has changed from\n%s\nto\n%s", frozen, now)
	}
}

func TestLinksInANewDirectoryDoNotTakeWhatTheyLinkToFromAView(t *testing.T) {
	v := below(t, "mkdir a; for i in 1 2 3 4 5 6 7 8 9; do echo content >a/$i; done")
	v.noticed(t)
	w, err := v.Seal()
	must(t, err)
	defer w.Close()
	v.shell(t, "cp -al a b")
	got := v.recorded(t, w.Epoch())
	if !slices.Contains(got, "new /b") || slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "new /a/") }) {
		t.Errorf("recorded\n  %s", strings.Join(got, "\n  "))
	}
	if n, _ := v.NamesInDoubt(); n == 0 {
		t.Error("whether the links are new is not known, and not in doubt")
	}
	dir := shownID(t, w, "a")
	for i := 1; i < 10; i++ {
		id, err := w.Lookup(dir, fmt.Sprint(i))
		must(t, err)
		if _, err := w.Stat(id); err != nil {
			t.Errorf("the view has lost a/%d: %v", i, err)
		}
	}
}

func shownID(t *testing.T, w *View, name string) journal.Ident {
	t.Helper()
	id, err := w.Lookup(w.v.root, name)
	must(t, err)
	return id
}

func TestAReadOnlyVolumeReportsAndRecordsNothing(t *testing.T) {
	v := below(t, "")
	must(t, v.SetReadOnly(true))
	v.noticed(t)
	seal, err := v.journal.Seal(false)
	must(t, err)
	v.shell(t, "echo x >f")
	if got := v.recorded(t, seal); len(got) > 0 {
		t.Errorf("recorded %q", got)
	}
	if a := v.Around(); a.Changes == 0 || a.LastPath != "/f" {
		t.Errorf("%+v", a)
	}
}

func TestASweepFindsWhatWasChangedWhileNobodyWatched(t *testing.T) {
	const tree = "mkdir -p d/e; for f in a b d/c d/e/f g h; do echo $f >$f; done; ln g d/g2"
	for _, c := range []struct {
		name, command string
		want          []string
		doubt         bool
	}{
		{"nothing", "true", nil, false},
		{"a file is overwritten", "echo x 1<>d/c", []string{"data /d/c", "meta /d/c"}, false},
		{"attributes", "chmod 600 d/c", []string{"data /d/c", "meta /d/c"}, false},
		{"times", "touch -d @0 d/c", []string{"data /d/c", "meta /d/c"}, false},
		{"the root's attributes", "chmod 700 .", []string{"meta /"}, true},
		{"a file that has several names", "echo x >>g", []string{"data /d/g2", "meta /d/g2"}, false},
		{"a new file", "echo x >d/new", []string{"data /d/new", "meta /", "meta /d", "meta /d/new"}, true},
		{"a replaced file", "echo x >d/new; mv d/new d/c", []string{"data /d/c", "meta /", "meta /d", "meta /d/c"}, true},
		{"a new tree", "mkdir -p d/n/m; echo x >d/n/m/o", []string{"data /d/n/m/o", "meta /", "meta /d", "meta /d/n", "meta /d/n/m", "meta /d/n/m/o"}, true},
		{"a removed file", "rm d/c", []string{"meta /", "meta /d"}, true},
		{"a renamed file", "mv a d/a", []string{"data /d/a", "meta /", "meta /d", "meta /d/a"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v := below(t, tree)
			must(t, v.Close())
			v.shell(t, c.command)
			seal := v.journal.Epoch() - 1
			v = reopened(t, v.path)
			if got := v.recorded(t, seal); !slices.Equal(got, c.want) {
				t.Errorf("recorded\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(c.want, "\n  "))
			}
			a := v.Around()
			if a.Swept.IsZero() || a.Seen != 10 && c.want == nil || (a.InDoubt > 0) != c.doubt || (a.Changes > 0) != (c.want != nil) {
				t.Errorf("%+v", a)
			}
			n, _ := v.NamesInDoubt()
			must(t, v.NamesSettled(n))
			must(t, v.Close())
			v = reopened(t, v.path)
			v.noticed(t)
			if a := v.Around(); a.Changes > 0 || a.InDoubt > 0 {
				t.Errorf("found again: %+v", a)
			}
		})
	}
}

func TestNamesStayInDoubtUntilTheyAreSettled(t *testing.T) {
	v := below(t, "")
	must(t, v.Close())
	v.shell(t, "mkdir d; rmdir d")
	v = reopened(t, v.path)
	v.noticed(t)
	n, since := v.NamesInDoubt()
	if n == 0 || !since.IsZero() {
		t.Fatalf("%d in doubt, content from %v on", n, since)
	}
	for _, second := range []int64{5, 3, 4} {
		must(t, v.around.doubt(time.Unix(second, 7)))
	}
	must(t, v.Close())
	v = reopened(t, v.path)
	if got, since := v.NamesInDoubt(); got != n+3 || !since.Equal(time.Unix(3, 7)) {
		t.Fatalf("%d were in doubt, and three more; after a restart %d, and content from %v on", n, got, since)
	}
	must(t, v.NamesSettled(n))
	if got, since := v.NamesInDoubt(); got != 3 || !since.Equal(time.Unix(3, 7)) {
		t.Errorf("%d left in doubt, of which three came later, and content from %v on", got, since)
	}
	must(t, v.NamesSettled(3))
	if got, since := v.NamesInDoubt(); got != 0 || !since.IsZero() {
		t.Errorf("%d left in doubt, and content from %v on", got, since)
	}
}

func TestWhatIsNotKnownToBeWatchedIsInDoubt(t *testing.T) {
	for name, spoil := range map[string]string{"the file is gone": "rm .tandemfs/watched", "it is damaged": "printf x 1<>.tandemfs/watched", "it is cut": ": >.tandemfs/watched"} {
		t.Run(name, func(t *testing.T) {
			v := below(t, "echo content >f")
			if n, _ := v.NamesInDoubt(); n != 0 {
				t.Errorf("a new volume has %d in doubt", n)
			}
			v.mustFile(t, v.root, "own", "content")
			must(t, v.Close())
			v.shell(t, spoil)
			v = reopened(t, v.path)
			if n, since := v.NamesInDoubt(); n != 1 || !since.Equal(time.Unix(0, 0)) {
				t.Errorf("%d in doubt, content from %v on", n, since)
			}
		})
	}
}

// unwatched ends the watch of a volume, runs a shell command, and gives the sweep that is to find what it did.
func (v *Volume) unwatched(t *testing.T, command string) *sweep {
	t.Helper()
	v.noticed(t)
	v.around.stop()
	known := v.around.known
	v.shell(t, command)
	passed(time.Now())
	until, err := sys.Clock()
	must(t, err)
	v.open.renew()
	v.around.record, v.around.quit = v.watchedFile(t), make(chan struct{})
	must(t, v.around.expect(known.with(gap{since: known.until, until: until})))
	return v.around.current.Load()
}

// watchedFile opens the file of watched.
func (v *Volume) watchedFile(t *testing.T) int {
	t.Helper()
	fd, err := sys.Open(unix.AT_FDCWD, filepath.Join(v.path, StateDir, watchedName), unix.O_RDWR, 0)
	must(t, err)
	return fd
}

func TestWhatIsChangedThroughTheVolumeBeforeTheSweepComesByIsFoundAllTheSame(t *testing.T) {
	v := below(t, "echo content >f; echo content >g; mkdir d")
	defer v.Close()
	s := v.unwatched(t, "echo more >>f; echo more >>g; touch d/new; rm d/new")
	seal, err := v.journal.Seal(false)
	must(t, err)
	v.mustWrite(t, shownNow(t, v, "f"), 0, "own")
	must(t, v.Rename(v.root, "g", v.mustDir(t, v.root, "other"), "g", 0))
	v.mustFile(t, shownNow(t, v, "d"), "own", "")
	s.run()
	got := v.changesSince(t, seal)
	for _, want := range []string{"data /f", "data /other/g", "meta /d"} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is missing: %q", want, got)
		}
	}
	if n, since := v.NamesInDoubt(); n != 1 || !since.IsZero() {
		t.Errorf("names came into doubt %d times, content from %v on", n, since)
	}
	if w := v.readWatched(t); w.met || len(w.gaps) > 0 {
		t.Errorf("after the sweep: %+v", w)
	}
}

func (v *Volume) readWatched(t *testing.T) watched {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(v.path, StateDir, watchedName))
	must(t, err)
	w, ok := decodeWatched(b)
	if !ok {
		t.Fatal("the file of watched is not valid")
	}
	return w
}

func TestWhatASweepDidNotComeToIsFoundByTheNext(t *testing.T) {
	for _, c := range []struct {
		name string
		used string // through the volume, before the sweep
		met  bool
	}{
		{"what was changed is left alone", "other", false},
		{"what was changed gets another change time", "f", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := below(t, "echo content >f; echo content >other")
			must(t, v.Close())
			before := time.Now()
			passed(before)
			v.shell(t, "echo more >>f")
			v, err := Open(v.path, Options{Name: "test", Create: true})
			must(t, err)
			v.around.quit = make(chan struct{}) // the watch is read, and nobody sweeps
			v.around.done.Go(v.around.run)
			v.mustWrite(t, shownNow(t, v, c.used), 0, "own")
			v.mustFile(t, v.root, "own", "content")
			if w := v.readWatched(t); w.met != c.met || len(w.gaps) != 1 {
				t.Errorf("while the sweep has yet to come: %+v", w)
			}
			must(t, v.Close())
			v = reopened(t, v.path)
			v.noticed(t)
			n, since := v.NamesInDoubt()
			if a := v.Around(); c.met && (a.Changes != 0 || n != 1 || since.IsZero() || since.After(before)) || !c.met && (a.Changes != 1 || a.LastPath != "/f" || n != 0) {
				t.Errorf("afterwards %+v, content in doubt from %v on", a, since)
			}
			if w := v.readWatched(t); w.met || len(w.gaps) > 0 {
				t.Errorf("after the sweep: %+v", w)
			}
		})
	}
}

func shownNow(t *testing.T, v *Volume, name string) journal.Ident {
	t.Helper()
	var n Inode
	must(t, v.Lookup(v.root, name, &n))
	return n.ID
}

func TestWhatADeadProcessDidAtTheEndIsNotTakenForForeign(t *testing.T) {
	v := below(t, "echo x >foreign")
	v.noticed(t)
	defer v.Close()
	v.around.stop()
	known := v.around.known
	f := v.mustFile(t, v.mustDir(t, v.root, "d"), "f", "content")
	v.mustWrite(t, f, 0, "more")
	v.shell(t, "echo y >foreign")
	passed(time.Now())
	until, err := sys.Clock()
	must(t, err)
	g := gap{since: known.until, until: until, lived: later(known.until, aftermath), epoch: known.epoch}
	ours, err := v.explained([]gap{g})
	must(t, err)
	for name, want := range map[string]bool{"d": true, "foreign": false} {
		if _, ok := ours[shownNow(t, v, name)]; ok != want {
			t.Errorf("%s is ours: %v", name, ok)
		}
	}
	if _, ok := ours[f]; !ok {
		t.Error("the file that was written is taken for foreign")
	}
	for what, g := range map[string]gap{
		"the process was dead for long":   {since: g.since, until: g.until, lived: later(known.until, -time.Second), epoch: g.epoch},
		"the process ended in good order": {since: g.since, until: g.until},
	} {
		if ours, err = v.explained([]gap{g}); err != nil || len(ours) > 0 {
			t.Errorf("%s: explained %v, %v", what, ours, err)
		}
	}
}

func TestAfterAnOverflowASweepFindsWhatWasMissed(t *testing.T) {
	v := below(t, "echo x >f; mkdir d; echo a >d/a; echo b >d/b; echo x >other")
	v.noticed(t)
	seal, err := v.journal.Seal(false)
	must(t, err)
	defer v.Close()
	must(t, v.SetAttr(shownNow(t, v, "f"), Setting{Valid: SetMode, Mode: 0o600}, new(Inode)))
	must(t, v.Unlink(shownNow(t, v, "d"), "b"))
	passed(time.Now())
	v.noticed(t)
	v.around.stop()
	v.shell(t, "echo more >>f; rm d/a")
	passed(time.Now())
	v.around.record, v.around.quit = v.watchedFile(t), make(chan struct{})
	must(t, v.around.overflowed())
	eventually(t, "the sweep is over", func() bool { return !v.around.sweeping() })
	if got := v.changesSince(t, seal); !slices.Contains(got, "data /f") || slices.Contains(got, "data /other") {
		t.Errorf("recorded %q", got)
	}
	if n, _ := v.NamesInDoubt(); n != 1 {
		t.Errorf("d/a was removed, and names came into doubt %d times", n)
	}
}

func TestTheWatchedMomentIsReadBackOrNotAtAll(t *testing.T) {
	at := func(n int64) journal.Time { return journal.Time{Sec: 1700000000 + n, Nsec: uint32(n)} }
	w := watched{until: at(1), epoch: 77, met: true}
	for n := range int64(mostGaps) {
		if got, ok := decodeWatched(w.encode()); !ok || !reflect.DeepEqual(got, w) {
			t.Errorf("%+v, %v", got, ok)
		}
		w = w.with(gap{at(10 * n), at(10*n + 1), at(10*n + 2), journal.Epoch(n)})
	}
	b := w.encode()
	if got, ok := decodeWatched(b); !ok || !reflect.DeepEqual(got, w) {
		t.Errorf("%+v, %v", got, ok)
	}
	more := w.with(gap{at(90), at(91), at(92), 9})
	if want := (gap{at(0), at(11), at(2), 0}); len(more.gaps) != mostGaps || more.gaps[0] != want || w.gaps[0].until != at(1) {
		t.Errorf("one gap too many: %+v", more.gaps)
	}
	for i := range b {
		bad := slices.Clone(b)
		bad[i] ^= 1
		if _, ok := decodeWatched(bad); ok {
			t.Errorf("byte %d is not looked at", i)
		}
	}
	if _, ok := decodeWatched(b[:len(b)-1]); ok {
		t.Error("a short one is taken")
	}
}

// What lies in a directory that somebody moves into the volume has change times from long before; after a power cut
// they do not tell that it was overwritten through the volume.
func TestWhatWasMovedIntoTheVolumeIsDoubtedWhereItIsOverwrittenWhenPowerIsLost(t *testing.T) {
	v := below(t, "mkdir ../elsewhere; echo old > ../elsewhere/file")
	must(t, v.Close())
	passed(time.Now().Add(200 * time.Millisecond)) // more than what is made now may be stamped earlier
	v = reopened(t, v.Path())
	v.shell(t, "mv ../elsewhere .")
	v.noticed(t)
	id, err := v.backing.IdentAt(unix.AT_FDCWD, filepath.Join(v.Path(), "elsewhere", "file"))
	must(t, err)
	var n Inode
	must(t, v.Stat(id, &n))
	v.mustWrite(t, id, 0, "new")
	left := t.TempDir()
	v.shell(t, "cp -a "+StateDir+"/"+journalName+" "+left)
	j, err := journal.Open(filepath.Join(left, journalName), journal.Options{BootID: "another"})
	must(t, err)
	defer j.Close()
	if a := j.Active(); a.All || !a.Doubts(id, sys.Stamp(n.Stat.Ctime)) {
		t.Errorf("with the change time %v, %v", n.Stat.Ctime, a)
	}
}
