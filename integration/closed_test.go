package integration

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"tandemfs/integration/lab"
	"tandemfs/journal"
)

// A journal that says that it was closed is whole, on whatever filesystem it lies.
func TestAJournalThatWasClosedIsSoundThoughPowerIsLostRightAfterwards(t *testing.T) {
	for _, kind := range []string{lab.Ext4, lab.XFS, lab.Btrfs} {
		t.Run(kind, func(t *testing.T) {
			disk, cut := lab.CutDisk(t, kind, 512<<20)
			dir := filepath.Join(disk, "journal")
			j, err := journal.Open(dir, journal.Options{BootID: "one"})
			if err != nil {
				t.Fatal(err)
			}
			if err := withFileOf(disk, os.O_RDONLY, unix.Syncfs); err != nil { // what is there up to now
				t.Fatal(err)
			}
			if err := j.SetState("key", []byte("value")); err != nil {
				t.Fatal(err)
			}
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			cut()
			if j, err = journal.Open(dir, journal.Options{BootID: "two"}); err != nil {
				t.Fatal(err)
			}
			defer j.Close()
			if value, err := j.State("key"); string(value) != "value" || err != nil || !j.Clean() {
				t.Errorf("clean %v, the state is %q, %v", j.Clean(), value, err)
			}
		})
	}
}
