package volume

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/journal"
	"tandemfs/journal/failpoint"
)

// saved gives a copy of the journal as it is now.
func (v *Volume) saved(t *testing.T) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), journalName)
	v.shell(t, "cp -a "+StateDir+"/"+journalName+" "+to)
	return to
}

// torn gives the volume after a power cut that found some files of the journal written and others not: the store is
// of one moment, the intent logs are of another.
func (v *Volume) torn(t *testing.T, store, logs string) *Volume {
	t.Helper()
	must(t, v.Close())
	v.shell(t, "cd "+StateDir+"; rm -r "+journalName+"; cp -a "+store+" "+journalName+"; cp -a "+logs+"/intent-?.log "+journalName)
	losePower(t, v.Path())
	again, err := Open(v.Path(), Options{Name: "test"})
	if err != nil {
		t.Fatalf("the volume cannot be opened: %v", err)
	}
	t.Cleanup(func() { must(t, again.Close()) })
	return again
}

// frozen gives a volume that shows the content "one" of its only file.
func frozen(t *testing.T) (*Volume, journal.Ident) {
	t.Helper()
	v, err := Open(t.TempDir(), Options{Name: "test", Create: true})
	must(t, err)
	id := v.mustFile(t, v.root, "file", "one")
	must(t, v.SetReadOnly(true))
	must(t, v.Freeze())
	return v, id
}

// mustApply overwrites the beginning of a file as a transfer does.
func (v *Volume) mustApply(t *testing.T, id journal.Ident, content string) {
	t.Helper()
	f, err := v.OpenForApply(id)
	must(t, err)
	_, err = f.WriteAt([]byte(content), 0)
	must(t, errors.Join(err, f.Close()))
}

// shows checks what readers see of a file.
func (v *Volume) shows(t *testing.T, id journal.Ident, want string) {
	t.Helper()
	tree := v.Current()
	defer tree.Done()
	p := make([]byte, 100)
	n, err := tree.Read(id, p, 0)
	if err != nil || string(p[:n]) != want {
		t.Errorf("readers see %q, %v, want %q", p[:n], err, want)
	}
}

func TestAPowerCutBetweenWhatIsShownAndTheSealBeforeLeavesTheNewOneShown(t *testing.T) {
	v, id := frozen(t)
	v.mustApply(t, id, "two")
	n, err := v.Commit()
	must(t, err)
	committed := v.saved(t)
	must(t, v.Publish(n))
	v.mustApply(t, id, "three")
	again := v.torn(t, committed, v.saved(t))
	again.shows(t, id, "two")
	must(t, again.Publish(n))
}

func TestAPowerCutBeforeASealIsShownLeavesTheOneBeforeShown(t *testing.T) {
	v, id := frozen(t)
	v.mustApply(t, id, "two")
	_, err := v.Commit()
	must(t, err)
	left := v.saved(t)
	v.torn(t, left, left).shows(t, id, "one")
}

func TestAPowerCutDuringTheFirstFreezeLeavesTheVolumeAsItIs(t *testing.T) {
	v, err := Open(t.TempDir(), Options{Name: "test", Create: true})
	must(t, err)
	id := v.mustFile(t, v.root, "file", "one")
	before := v.saved(t)
	must(t, v.Freeze())
	again := v.torn(t, v.saved(t), before)
	again.shows(t, id, "one")
	if n := again.Published(); n != 0 {
		t.Errorf("seal %d is shown", n)
	}
}

// What was let in after a thaw must not be undone by a later start that believes the volume still frozen.
func TestAPowerCutAfterAThawLeavesTheVolumeThawed(t *testing.T) {
	v, id := frozen(t)
	v.mustApply(t, id, "two")
	must(t, v.SetReadOnly(false))
	thawed := v.saved(t)
	v.mustWrite(t, id, 0, "own")
	again := v.torn(t, thawed, v.saved(t))
	must(t, again.SetReadOnly(false))
	again.shows(t, id, "own")
}

// What is put back is on the disk, and that the volume is thawed, before what it was is let go and changes are let in.
func TestAThawIsDurableOrFails(t *testing.T) {
	for _, call := range []string{"syncfs", "fsync"} {
		v, id := frozen(t)
		v.mustApply(t, id, "two")
		disarm := failpoint.Arm(func(made string, size int) (int, error) {
			if made == call {
				return 0, unix.EIO
			}
			return size, nil
		})
		err := v.SetReadOnly(false)
		disarm()
		if !errors.Is(err, unix.EIO) || !v.ReadOnly() || v.Published() == 0 {
			t.Errorf("without %s: %v, read-only %v, shown is seal %d", call, err, v.ReadOnly(), v.Published())
		}
		must(t, v.SetReadOnly(false))
		v.shows(t, id, "one")
		if err := v.Close(); err != nil && !errors.Is(err, errDropped) {
			t.Error(err)
		}
	}
}

func TestAPowerCutWhileASnapshotIsMadeOrDeletedLeavesTheOthers(t *testing.T) {
	for what, mix := range map[string]func(before, after string) (store, logs string){
		"made":    func(before, after string) (string, string) { return after, before },
		"deleted": func(before, after string) (string, string) { return before, after },
	} {
		t.Run(what, func(t *testing.T) {
			v, err := Open(t.TempDir(), Options{Name: "test", Create: true})
			must(t, err)
			v.mustSnapshot(t, "other")
			if what == "deleted" {
				v.mustSnapshot(t, "one")
			}
			before := v.saved(t)
			if what == "deleted" {
				must(t, v.DeleteSnapshot("one"))
			} else {
				v.mustSnapshot(t, "one")
			}
			store, logs := mix(before, v.saved(t))
			again := v.torn(t, store, logs)
			if list := again.Snapshots(); len(list) != 1 || list[0].Name != "other" {
				t.Errorf("there are %v", list)
			}
			_, err = again.CreateSnapshot("one", time.Time{})
			must(t, err)
		})
	}
}
