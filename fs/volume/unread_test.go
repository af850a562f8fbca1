package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"golang.org/x/sys/unix"

	"tandemfs/journal"
	"tandemfs/journal/failpoint"
)

// failingCall makes the nth call of a name fail.
func failingCall(t *testing.T, name string, n int, err error) (disarm func()) {
	t.Helper()
	disarm = failpoint.Arm(func(call string, size int) (int, error) {
		if call == name {
			if n--; n == 0 {
				return 0, err
			}
		}
		return size, nil
	})
	t.Cleanup(disarm)
	return disarm
}

// An inode that cannot be read is told as such by its name, and keeps back no other; a directory is never listed in
// part.
func TestAnInodeThatCannotBeReadKeepsBackNoOtherName(t *testing.T) {
	v := opened(t)
	d := v.mustDir(t, v.root, "d")
	const files = 4
	for i := range files {
		v.mustFile(t, d, fmt.Sprint("f", i), "content")
	}
	w, err := v.Seal()
	must(t, err)
	defer w.Close()
	whole, err := w.ReadDir(d)
	must(t, err)
	for i := range whole {
		disarm := failingCall(t, "name_to_handle_at", i+1, unix.EUCLEAN)
		got, err := w.ReadDir(d)
		disarm()
		must(t, err)
		unread := 0
		for j, e := range got {
			switch {
			case e.Name != whole[j].Name || len(got) != files:
				t.Errorf("listed %+v", got)
			case e.Err == nil && e.Ident == whole[j].Ident:
			case e.Ident == journal.Unknown && errors.Is(e.Err, unix.EUCLEAN):
				unread++
			default:
				t.Errorf("%+v was %+v", e, whole[j])
			}
		}
		disarm = failingCall(t, "name_to_handle_at", i+1, unix.EUCLEAN)
		_, err = w.readable(d)
		disarm()
		if unread != 1 || !errors.Is(err, unix.EUCLEAN) {
			t.Errorf("%d of %d cannot be read; where all have to be: %v", unread, files, err)
		}
	}
	disarm := failingCall(t, "getdents", 2, unix.EIO)
	got, err := w.ReadDir(d)
	disarm()
	if !errors.Is(err, unix.EIO) || got != nil {
		t.Errorf("a directory that cannot be read to its end: %v, %v", got, err)
	}
}

// Some kernels have ESTALE for whatever cannot be opened by its handle.
func TestADirectoryThatCannotBeOpenedIsNotAnEmptyOne(t *testing.T) {
	v := opened(t)
	d := v.mustDir(t, v.root, "d")
	v.mustFile(t, d, "f", "content")
	w, err := v.Seal()
	must(t, err)
	defer w.Close()
	v.open.renew()
	disarm := failpoint.Arm(func(call string, size int) (int, error) {
		if call == "open_by_handle_at" {
			return 0, unix.ESTALE
		}
		return size, nil
	})
	t.Cleanup(disarm)
	got, err := w.ReadDir(d)
	disarm()
	if !errors.Is(err, fs.ErrNotExist) || got != nil {
		t.Errorf("%v, %v", got, err)
	}
}
