package mount

import (
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"tandemfs/journal/failpoint"
)

// The attributes of a file are changed, and cannot be read back.
func TestAChangeOfAttributesThatFailsInTheMiddleIsSeen(t *testing.T) {
	mnt, _, _ := mounted(t)
	path := filepath.Join(mnt, "file")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	var changed atomic.Bool
	disarm := failpoint.Arm(func(call string, size int) (int, error) {
		if call == "fchmod" {
			changed.Store(true)
		}
		if call == "statx" && changed.Load() {
			return 0, unix.EIO
		}
		return size, nil
	})
	err := os.Chmod(path, 0o640)
	disarm()
	if !errors.Is(err, unix.EIO) {
		t.Errorf("chmod gave %v", err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("it is %v, %v", info.Mode(), err)
	}
}
