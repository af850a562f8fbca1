package volume

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"tandemfs/journal"
	"tandemfs/journal/failpoint"
)

// A filesystem says once, to whoever asks, that it has dropped something: whoever has to know hears of it all the same.
func TestWhatTheFilesystemDropsIsToldToAll(t *testing.T) {
	v, id := frozen(t)
	v.mustApply(t, id, "two")
	disarm := failpoint.Arm(func(call string, size int) (int, error) {
		if call == "syncfs" {
			return 0, unix.EIO
		}
		return size, nil
	})
	if err := v.syncRecorded(); !errors.Is(err, unix.EIO) {
		t.Error(err)
	}
	disarm()
	if _, err := v.Commit(); !errors.Is(err, errDropped) {
		t.Errorf("the commit of what may be dropped: %v", err)
	}
	v.mustApply(t, id, "two")
	n, err := v.Commit()
	must(t, errors.Join(err, v.Publish(n)))
	v.shows(t, id, "two")
	if err := v.syncRecorded(); !errors.Is(err, errDropped) {
		t.Errorf("the journal takes for durable what nobody knows of: %v", err)
	}
	if err := v.Close(); !errors.Is(err, errDropped) {
		t.Errorf("the journal is taken for clean: %v", err)
	}
}

// A transfer does not go on with an inode that was removed around the mount and is still open here.
func TestAnInodeThatIsGoneIsNotApplied(t *testing.T) {
	v, id := frozen(t)
	defer v.Close()
	v.mustApply(t, id, "two")
	v.shell(t, "rm file")
	if err := v.SetImage(id, journal.Image{Attr: journal.Attr{Mode: unix.S_IFREG | 0o644}}); err != unix.ESTALE {
		t.Error(err)
	}
}
