package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

	"tandemfs/journal"
	"tandemfs/journal/failpoint"
)

func (v *Volume) mustSnapshot(t *testing.T, name string) {
	t.Helper()
	_, err := v.CreateSnapshot(name, time.Time{})
	must(t, err)
}

func (v *Volume) mustWrite(t *testing.T, id journal.Ident, off int64, content string) {
	t.Helper()
	_, err := v.Write(id, [][]byte{[]byte(content)}, off, false)
	must(t, err)
}

// eventually waits for what is done in the background.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it never came that %s", what)
		}
	}
}

func (v *Volume) keptSpace(t *testing.T) (alone map[string]int64, total int64) {
	t.Helper()
	alone, total, err := v.SnapshotSpace()
	must(t, err)
	return alone, total
}

func TestSnapshotNamesAreCheckedAndTakenOnce(t *testing.T) {
	v := opened(t)
	for _, name := range []string{".", "..", "a/b", "a\x00b", "\xff", strings.Repeat("x", 256)} {
		if _, err := v.CreateSnapshot(name, time.Time{}); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("name %q: %v", name, err)
		}
	}
	v.mustSnapshot(t, "one")
	if _, err := v.CreateSnapshot("one", time.Time{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second one of the name: %v", err)
	}
	for _, err := range []error{v.DeleteSnapshot("two"), v.SetSnapshotExpiry("two", time.Now())} {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("one that is not there: %v", err)
		}
	}
	first, err := v.CreateSnapshot("", time.Time{})
	must(t, err)
	if second, err := v.CreateSnapshot("", time.Time{}); err != nil || second.Name == first.Name {
		t.Errorf("two names made from the time: %q, %q, %v", first.Name, second.Name, err)
	}
}

func TestSnapshotsAreThereAfterARestart(t *testing.T) {
	dir := t.TempDir()
	v, err := Open(dir, Options{Name: "test", Create: true})
	must(t, err)
	id := v.mustFile(t, v.root, "f", "before")
	expires := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	_, err = v.CreateSnapshot("one", expires)
	must(t, err)
	v.mustWrite(t, id, 0, "AFTER!")
	must(t, v.Unlink(v.root, "f"))
	must(t, v.Close())
	v, err = Open(dir, Options{Name: "test"})
	must(t, err)
	defer v.Close()
	s, w, err := v.OpenSnapshot("one")
	must(t, err)
	defer w.Close()
	if !s.Expires.Equal(expires) {
		t.Errorf("it expires at %v, want %v", s.Expires, expires)
	}
	f, err := w.Open(id)
	must(t, err)
	defer f.Close()
	got := make([]byte, 6)
	if _, err := f.ReadAt(got, 0); err != nil || string(got) != "before" {
		t.Errorf("it has %q, %v", got, err)
	}
}

// The snapshot that needs a file goes just before the file would be replaced, and then it cannot be.
func TestAFailedReplacementOfWhatNobodyNeedsAnyMoreIsTakenBack(t *testing.T) {
	v := opened(t)
	id := v.mustFile(t, v.root, "f", "old")
	v.mustFile(t, v.root, "new", "new")
	v.mustSnapshot(t, "s")
	disarm := failpoint.Arm(func(call string, size int) (int, error) {
		if call != "renameat2" {
			return size, nil
		}
		must(t, v.DeleteSnapshot("s"))
		name := filepath.Join(v.Path(), StateDir, keptName, epochName(v.journal.Epoch()), entryName(removedPrefix, id))
		eventually(t, "nothing is kept for it", func() bool { _, err := os.Lstat(name); return os.IsNotExist(err) })
		return 0, unix.ENOSPC
	})
	err := v.Rename(v.root, "new", v.root, "f", 0)
	disarm()
	if err != unix.ENOSPC || v.journal.Failed() != nil {
		t.Errorf("rename gave %v, the journal %v", err, v.journal.Failed())
	}
	if got := v.content(t, v.mustLookup(t, v.root, "f").ID); got != "old" {
		t.Errorf("it holds %q", got)
	}
}

func TestDeletingSnapshotsFreesWhatTheyAloneHeld(t *testing.T) {
	v := opened(t)
	block := strings.Repeat("x", 4096)
	id := v.mustFile(t, v.root, "changed", strings.Repeat(block, 8))
	removed := v.mustFile(t, v.root, "removed", strings.Repeat(block, 16))
	v.mustSnapshot(t, "old")
	v.mustWrite(t, id, 0, block) // both need it
	v.mustSnapshot(t, "new")
	v.mustWrite(t, id, 0, block)            // only the new one
	v.mustWrite(t, id, 4*4096, block+block) // both
	must(t, v.Unlink(v.root, "removed"))    // both
	alone, total := v.keptSpace(t)
	if alone["old"] != 4096 || alone["new"] != 4096 || total < (1+1+2+16)*4096 {
		t.Errorf("alone %v, in all %d", alone, total)
	}
	must(t, v.DeleteSnapshot("new"))
	v.mustSnapshot(t, "newest") // the epoch is over
	eventually(t, "what only the deleted one needed is freed", func() bool {
		_, now := v.keptSpace(t)
		return now == total-4096
	})
	must(t, v.DeleteSnapshot("newest"))
	must(t, v.DeleteSnapshot("old"))
	eventually(t, "nothing is kept", func() bool {
		epochs, err := v.before.epochs()
		must(t, err)
		_, kept := v.before.removedIn(removed)
		return len(epochs) == 0 && !kept
	})
}

func TestDiffNamesWhatDiffers(t *testing.T) {
	v := opened(t)
	d := v.mustDir(t, v.root, "dir")
	deep := v.mustDir(t, d, "deep")
	file := v.mustFile(t, deep, "modified", "1")
	v.mustFile(t, d, "removed", "")
	moved := v.mustDir(t, v.root, "moved")
	inMoved := v.mustFile(t, moved, "inside", "1")
	v.mustFile(t, v.root, "linked", "")
	v.mustFile(t, v.root, "same", "")
	gone := v.mustDir(t, v.root, "gone")
	v.mustFile(t, gone, "with", "")
	must(t, v.SetXattr(d, "user.a", []byte("1"), 0, false))
	v.mustSnapshot(t, "a")

	v.SetKernel(knowsPlaces{places: map[journal.Ident]place{file: {deep, "modified"}, inMoved: {moved, "inside"}}})
	v.mustWrite(t, file, 0, "2")
	v.mustWrite(t, inMoved, 0, "2")
	must(t, v.Unlink(d, "removed"))
	must(t, v.Rename(v.root, "moved", d, "there", 0))
	must(t, v.Unlink(gone, "with"))
	must(t, v.Rmdir(v.root, "gone"))
	fresh := v.mustDir(t, v.root, "new")
	v.mustFile(t, fresh, "file", "")
	var n Inode
	must(t, v.Lookup(v.root, "linked", &n))
	must(t, v.Link(n.ID, d, "link", &n))
	must(t, v.SetXattr(d, "user.a", []byte("2"), 0, false))
	v.mustSnapshot(t, "b")
	must(t, v.Rename(v.root, "dir", v.root, "later", 0)) // no matter of theirs

	want := []Change{
		{ChangeModified, "dir", "", true},
		{ChangeModified, "dir/deep/modified", "", false},
		{ChangeCreated, "dir/link", "", false},
		{ChangeRemoved, "dir/removed", "", false},
		{ChangeRenamed, "dir/there", "moved", true},
		{ChangeModified, "dir/there/inside", "", false},
		{ChangeRemoved, "gone", "", true},
		{ChangeRemoved, "gone/with", "", false},
		{ChangeCreated, "new", "", true},
		{ChangeCreated, "new/file", "", false},
	}
	got, next, err := v.Diff("a", "b", "", 100)
	must(t, err)
	if !slices.Equal(got, want) || next != "" {
		t.Errorf("got %+v, next %q", got, next)
	}
	var pages []Change
	for cursor := ""; ; {
		page, next, err := v.Diff("a", "b", cursor, 3)
		must(t, err)
		if pages = append(pages, page...); next == "" {
			break
		}
		cursor = next
	}
	if !slices.Equal(pages, want) {
		t.Errorf("in pages: %+v", pages)
	}
	if _, _, err := v.Diff("b", "a", "", 10); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("the newer one first: %v", err)
	}
	if _, _, err := v.Diff("a", "b", "!", 10); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("a bad cursor: %v", err)
	}
}

// knowsPlaces is a kernel that has looked inodes up.
type knowsPlaces struct {
	noKernel
	places map[journal.Ident]place
}

func (k knowsPlaces) Where(id journal.Ident) (journal.Ident, string, bool) {
	at, ok := k.places[id]
	return at.dir, at.name, ok
}

func TestADiffFindsWhatNobodyNotedThePlaceOf(t *testing.T) {
	v := opened(t)
	d := v.mustDir(t, v.root, "dir")
	id := v.mustFile(t, d, "file", "1")
	v.mustSnapshot(t, "a")
	v.mustWrite(t, id, 0, "2")
	v.mustSnapshot(t, "b")
	got, _, err := v.Diff("a", "b", "", 10)
	must(t, err)
	if len(got) != 1 || got[0].Path != "dir/file" || got[0].Kind != ChangeModified {
		t.Errorf("got %+v", got)
	}
}

func TestDiffOfAFileGivesDataAndHoles(t *testing.T) {
	v := opened(t)
	id := v.mustFile(t, v.root, "f", strings.Repeat("x", 64<<10))
	v.mustSnapshot(t, "a")
	v.mustWrite(t, id, 8192, "new")
	must(t, v.Allocate(id, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 16384, 8192, false))
	v.mustSnapshot(t, "b")
	want := []Region{{8192, 4096, false}, {16384, 8192, true}}
	got, next, err := v.DiffFile("a", "b", "f", "", 10)
	must(t, err)
	if !slices.Equal(got, want) || next != "" {
		t.Errorf("got %+v, next %q", got, next)
	}
	got, next, err = v.DiffFile("a", "b", "f", "", 1)
	must(t, err)
	if rest, end, err := v.DiffFile("a", "b", "f", next, 1); err != nil || end != "" || !slices.Equal(append(got, rest...), want) {
		t.Errorf("in pages: %+v, %+v, %q, %v", got, rest, end, err)
	}
	for path, want := range map[string]error{"absent": fs.ErrNotExist, "": fs.ErrInvalid} {
		if _, _, err := v.DiffFile("a", "b", path, "", 1); !errors.Is(err, want) {
			t.Errorf("path %q: %v", path, err)
		}
	}
}

func TestDiffOfAFileThatBecameLongerHasItsEnd(t *testing.T) {
	v := opened(t)
	id := v.mustFile(t, v.root, "f", strings.Repeat("x", 4096))
	v.mustSnapshot(t, "a")
	var n Inode
	must(t, v.SetAttr(id, Setting{Valid: SetSize, Size: 16384}, &n))
	v.mustSnapshot(t, "b")
	got, _, err := v.DiffFile("a", "b", "f", "", 10)
	must(t, err)
	if want := []Region{{4096, 12288, true}}; !slices.Equal(got, want) {
		t.Errorf("got %+v", got)
	}
}

func TestALargeHoleIsPassedInFewSteps(t *testing.T) {
	v := opened(t)
	id := v.mustFile(t, v.root, "f", "")
	var n Inode
	must(t, v.SetAttr(id, Setting{Valid: SetSize, Size: 15 << 40}, &n))
	v.mustSnapshot(t, "s")
	_, w, err := v.OpenSnapshot("s")
	must(t, err)
	defer w.Close()
	f, err := w.Open(id)
	must(t, err)
	defer f.Close()
	var calls atomic.Int64
	disarm := failpoint.Arm(func(call string, size int) (int, error) {
		if call == "lseek" {
			calls.Add(1)
		}
		return size, nil
	})
	_, ok, err := f.NextData(0, journal.MaxOffset)
	disarm()
	if ok || err != nil || calls.Load() > 100 {
		t.Errorf("data %v, %v, after %d calls", ok, err, calls.Load())
	}
}

func TestOnePathIsRestoredAndNothingElse(t *testing.T) {
	v := opened(t)
	d := v.mustDir(t, v.root, "d")
	kept := v.mustFile(t, d, "kept", "one")
	v.mustFile(t, d, "removed", "two")
	v.mustFile(t, d, "replaced", "three")
	sub := v.mustDir(t, d, "sub")
	v.mustFile(t, sub, "deep", "four")
	other := v.mustFile(t, v.root, "other", "old")
	v.mustSnapshot(t, "s")

	v.mustWrite(t, kept, 0, "ONE")
	must(t, v.Unlink(d, "removed"))
	must(t, v.Unlink(d, "replaced"))
	v.mustDir(t, d, "replaced")
	must(t, v.Unlink(sub, "deep"))
	must(t, v.Rmdir(d, "sub"))
	v.mustFile(t, d, "added", "")
	v.mustWrite(t, other, 0, "new")

	safety, err := v.Restore("s", "d")
	must(t, err)
	want := map[string]string{"d/kept": "one", "d/removed": "two", "d/replaced": "three", "d/sub/deep": "four", "other": "new"}
	if got := v.texts(t, v.root, ""); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v", got)
	}
	_, err = v.Restore(safety.Name, "")
	must(t, err)
	want = map[string]string{"d/kept": "ONE", "d/added": "", "other": "new"}
	if got := v.texts(t, v.root, ""); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("undone: %v", got)
	}
	if _, err := v.Restore("s", "d/sub/deep"); err != nil {
		t.Errorf("a file whose directory is gone: %v", err)
	}
	if got := v.texts(t, v.root, ""); got["d/sub/deep"] != "four" {
		t.Errorf("got %v", got)
	}
	if _, err := v.Restore("s", "absent"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a path that was not there: %v", err)
	}
	if v.ReadOnly() || v.Published() != 0 {
		t.Error("the volume is not as before")
	}
}

// texts gives the content of all regular files below a directory.
func (v *Volume) texts(t *testing.T, dir journal.Ident, path string) map[string]string {
	t.Helper()
	found := map[string]string{}
	tree := liveTree{v}
	known, more := map[string]string{}, map[string]extras{}
	describeTree(t, tree, dir, path, known, more)
	for path, text := range known {
		if !strings.Contains(text, " bytes ") {
			continue
		}
		id, dirID := journal.Ident{}, v.root
		for name := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
			var n Inode
			must(t, v.Lookup(dirID, name, &n))
			id, dirID = n.ID, n.ID
		}
		found[strings.TrimPrefix(path, "/")] = v.content(t, id)
	}
	return found
}

func TestARestoreThatIsInterruptedLeavesTheVolumeAsItWas(t *testing.T) {
	dir := t.TempDir()
	v, err := Open(dir, Options{Name: "test", Create: true})
	must(t, err)
	id := v.mustFile(t, v.root, "f", "one")
	v.mustFile(t, v.root, "g", "")
	v.mustSnapshot(t, "s")
	v.mustWrite(t, id, 0, "two")
	must(t, v.Unlink(v.root, "g"))
	// What Restore does, up to a moment in the middle.
	must(t, v.SetReadOnly(true))
	safety, err := v.snapshotBefore("restore")
	must(t, err)
	must(t, v.Publish(safety.Epoch))
	_, w, err := v.OpenSnapshot("s")
	must(t, err)
	must(t, v.Undo(w.epoch))
	must(t, w.Close())
	must(t, v.Close())

	v, err = Open(dir, Options{Name: "test"})
	must(t, err)
	defer v.Close()
	if v.Published() != safety.Epoch {
		t.Errorf("readers see seal %d, want %d", v.Published(), safety.Epoch)
	}
	must(t, v.SetReadOnly(false)) // as whoever mounts it does first
	if got := v.texts(t, v.root, ""); fmt.Sprint(got) != fmt.Sprint(map[string]string{"f": "two"}) {
		t.Errorf("got %v", got)
	}
}

func TestASealForATransferHasARestoreAsAWholeOrNotAtAll(t *testing.T) {
	v := opened(t)
	const files = 200
	for i := range files {
		v.mustFile(t, v.root, fmt.Sprint(i), "one")
	}
	v.mustSnapshot(t, "s")
	for i := range files {
		var n Inode
		must(t, v.Lookup(v.root, fmt.Sprint(i), &n))
		v.mustWrite(t, n.ID, 0, "two")
	}
	restored := make(chan error)
	go func() {
		_, err := v.Restore("s", "")
		restored <- err
	}()
	for ended := false; !ended; {
		select {
		case err := <-restored:
			must(t, err)
			ended = true
		default:
		}
		w, err := v.Seal()
		must(t, err)
		got := map[string]int{}
		entries, err := w.ReadDir(v.root)
		must(t, err)
		for _, e := range entries {
			got[contentAt(t, w, e.Ident, 3)]++
		}
		must(t, w.Close())
		if len(got) != 1 {
			t.Fatalf("a seal has %v", got)
		}
	}
}

func TestARestoreIsRefusedOnAReadOnlyVolume(t *testing.T) {
	v := opened(t)
	v.mustSnapshot(t, "s")
	must(t, v.SetReadOnly(true))
	if _, err := v.Restore("s", ""); !errors.Is(err, unix.EROFS) {
		t.Errorf("got %v", err)
	}
}

func TestThawPutsBackWhatReadersHaveNotSeen(t *testing.T) {
	v := opened(t)
	id := v.mustFile(t, v.root, "f", "one")
	v.mustDir(t, v.root, "d")
	must(t, v.SetReadOnly(true))
	must(t, v.Freeze())
	f, err := v.OpenForApply(id)
	must(t, err)
	_, err = f.WriteAt([]byte("two, and longer"), 0)
	must(t, err)
	must(t, f.Close())
	must(t, v.MoveAside(v.root, "d"))
	must(t, v.DropAside(func(journal.Ident) error { return nil }))
	_, err = v.Create(unix.S_IFREG, 0, "", v.root, "new")
	must(t, err)
	_, err = v.Create(unix.S_IFREG, 0, "", journal.Ident{}, "")
	must(t, err)
	must(t, v.SetReadOnly(false))
	known, more := map[string]string{}, map[string]extras{}
	describeTree(t, liveTree{v}, v.root, "", known, more)
	if got := v.texts(t, v.root, ""); fmt.Sprint(got) != fmt.Sprint(map[string]string{"f": "one"}) || len(known) != 3 || known["/d"] == "" {
		t.Errorf("got %v, %v", got, known)
	}
	if len(v.aside.idents()) != 0 {
		t.Error("something is left aside")
	}
}

// losePower makes the journal of a volume that is closed one that was open when power was lost.
func losePower(t *testing.T, dir string) {
	t.Helper()
	mark := filepath.Join(dir, StateDir, "journal", "mark")
	text, err := os.ReadFile(mark)
	must(t, err)
	lost, _, _ := strings.Cut(string(text), "sum ")
	lost, _, _ = strings.Cut(lost, "store ") // what comes with a clean close
	lost = regexp.MustCompile("boot .*\n").ReplaceAllString(lost, "boot another\n")
	lost += fmt.Sprintf("sum %016x\n", xxhash.Sum64String(lost))
	must(t, os.WriteFile(mark, []byte(lost), 0o600))
}

func TestASnapshotThatWasKeptWhilePowerWasLostIsSuspect(t *testing.T) {
	dir := t.TempDir()
	v, err := Open(dir, Options{Name: "test", Create: true})
	must(t, err)
	v.mustSnapshot(t, "s")
	must(t, v.Close())
	losePower(t, dir)
	for range 2 { // it stays so
		v, err = Open(dir, Options{Name: "test"})
		must(t, err)
		if s, err := v.Snapshot("s"); !s.Suspect || err != nil {
			t.Errorf("suspect %v, %v", s.Suspect, err)
		}
		must(t, v.Close())
	}
}

// A transfer may have to begin again in the middle: what it reads must not depend on when it does.
func TestWhatWasRemovedIsNotThereForAViewFromBeforeItCameBack(t *testing.T) {
	v := opened(t)
	id := v.mustFile(t, v.root, "f", "content")
	v.mustSnapshot(t, "s")
	must(t, v.Unlink(v.root, "f"))
	w, err := v.Seal()
	must(t, err)
	defer w.Close()
	look := func(when string) {
		t.Helper()
		if a, err := w.Stat(id); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: it has %+v, %v", when, a, err)
		}
		if _, err := w.Xattrs(id); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: its extended attributes give %v", when, err)
		}
	}
	look("before")
	o, err := v.open.get(id, reachPath)
	must(t, err)
	must(t, v.inside(func() error { return v.journal.TouchMeta(id, o) })) // as by a sweep
	v.open.put(o)
	look("when it was touched")
	_, err = v.Restore("s", "")
	must(t, err)
	look("after")
	must(t, v.Unlink(v.root, "f"))
	look("when it is removed again")
}
