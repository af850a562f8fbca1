package integration

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tandemfs/integration/lab"
)

// A volume that was closed is whole, on whatever filesystem it lies.
func TestAVolumeThatWasClosedIsSoundThoughPowerIsLostRightAfterwards(t *testing.T) {
	for _, kind := range []string{lab.Ext4, lab.XFS, lab.Btrfs} {
		t.Run(kind, func(t *testing.T) {
			boots := lab.NewBoots(t)
			boots.Next()
			disk, cut := lab.CutDisk(t, kind, gib)
			host, _ := lab.Join(t)
			v := protect(t, lab.StartNode(t, host, "alpha"), "data", lab.MakeDir(t, disk, "data"))
			write(t, "content", v.Mount, "file")
			check(t, withFileOf(disk, os.O_RDONLY, unix.Syncfs)) // what is there up to now
			v.Node.Must("snapshot", "create", v.Name, "--name", "kept")
			v.Node.Stop()
			cut()
			boots.Next()
			v.Node.Start()
			if shown := v.Node.Must("volume", "show", v.Name); strings.Contains(shown, "failed") {
				t.Fatal(shown)
			}
			if shown := v.Node.Must("snapshot", "list", v.Name); !strings.Contains(shown, "kept") {
				t.Errorf("the snapshot is lost: %s", shown)
			}
		})
	}
}
