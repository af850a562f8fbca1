package journal

import (
	"fmt"
	"io/fs"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWhatIsUnreadableIsOfTheDiskAndNotOfTheJournal(t *testing.T) {
	for err, want := range map[error]bool{
		unix.EIO: true, fmt.Errorf("read: %w", unix.EUCLEAN): true, &fs.PathError{Op: "open", Err: unix.ENOKEY}: true,
		unix.ESTALE: false, unix.ENOENT: false, unix.ENOSPC: false, unix.EACCES: false,
		fmt.Errorf("%w: %w", ErrGone, unix.EIO): false, fmt.Errorf("%w: %w", ErrCorrupt, unix.EIO): false,
	} {
		if got := Unreadable(err); got != want {
			t.Errorf("%v: %v", err, got)
		}
	}
}
