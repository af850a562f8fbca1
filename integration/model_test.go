package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"tandemfs/integration/lab"
)

// How long the model is tried on each filesystem: a moment, or the seconds that `make model` says.
const (
	modelVariable = "TANDEMFS_MODEL_SECONDS"
	modelChecks   = "25" // histories in one go
	modelSteps    = "60" // operations of each
)

// TestSnapshotsStayWhatTheModelSaysOnEveryFilesystem runs the volume's own random histories, which take their
// directories from the system's temporary one, on each kind of filesystem. A failing history is printed, as
// short as it could be made, with the seed that repeats it.
func TestSnapshotsStayWhatTheModelSaysOnEveryFilesystem(t *testing.T) {
	binary := filepath.Join(lab.Dir(t), "volume.test")
	if out, err := exec.Command("go", "test", "-c", "-o", binary, "tandemfs/fs/volume").CombinedOutput(); err != nil {
		t.Fatalf("build the volume's tests: %v\n%s", err, out)
	}
	seconds, _ := strconv.Atoi(os.Getenv(modelVariable))
	for _, kind := range []string{lab.Ext4, lab.XFS, lab.Btrfs} {
		t.Run(kind, func(t *testing.T) {
			disk := lab.Disk(t, kind, 4<<30)
			for end, rounds := time.Now().Add(time.Duration(seconds)*time.Second), 1; ; rounds++ {
				playModel(t, binary, disk)
				if time.Now().After(end) {
					t.Logf("%d times %s histories of %s operations", rounds, modelChecks, modelSteps)
					return
				}
			}
		})
	}
}

func playModel(t *testing.T, binary, disk string) {
	t.Helper()
	play := exec.Command(binary, "-test.run", "^TestEverySnapshotStaysWhatTheModelSays$",
		"-rapid.checks", modelChecks, "-rapid.steps", modelSteps, "-rapid.nofailfile")
	play.Env = append(os.Environ(), "TMPDIR="+disk)
	play.Dir = disk
	if out, err := play.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
