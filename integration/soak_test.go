package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/integration/history"
	"tandemfs/integration/lab"
	"tandemfs/integration/tree"
)

// How long snapshots come and go: some rounds, or the seconds that `make soak` says.
const (
	soakVariable = "TANDEMFS_SOAK_SECONDS"
	soakRounds   = 200
)

// The sizes of a soak.
const (
	soakFiles   = 64 // names, of which some stand for nothing at any time
	soakBlocks  = 64 // of 4 KiB in a file, at most
	soakChanges = 8  // in a round
	soakAlive   = 6  // snapshots at one time, at most
)

// maxStateBytes is what a small volume's state directory may take on the disk, however long it is in use: two
// intent logs of 8 MiB; Badger's memtables, at most three, with logs of 16 MiB each; of its tables the 16 MiB
// that may be deleted before it compacts them, and as much again for what that writes. Nothing that is kept
// for snapshots counts: it goes with them.
const maxStateBytes = (2*8 + 3*16 + 2*16) << 20

// TestSnapshotsComeAndGoAndNothingStays makes and deletes snapshots among changes, again and again, reads in
// each what it must have kept, and at the end, with all deleted, looks for anything that is left.
func TestSnapshotsComeAndGoAndNothingStays(t *testing.T) {
	v := newVolume(t, alone(t), "data", lab.Ext4, smallDisk, nil)
	s := &soak{v: v, api: v.Node.API(), rng: rand.New(rand.NewPCG(seed(t, 90), 0))}
	play(t, v.Mount, history.New(seed(t, 91)), 500) // whatever the daemon opens once and keeps
	s.rounds(t, 20)
	s.end(t)
	journal := filepath.Join(tree.StateDir, "journal")
	before := len(openFiles(t, v.Node, journal))

	seconds, _ := strconv.Atoi(os.Getenv(soakVariable))
	for end := time.Now().Add(time.Duration(seconds) * time.Second); s.round < soakRounds || time.Now().Before(end); {
		s.rounds(t, 20)
	}
	s.end(t)
	lab.Eventually(t, 10*time.Second, "the daemon holds no more descriptors than before", func() error {
		if now := openFiles(t, v.Node, journal); len(now) > before {
			return fmt.Errorf("%d now, %d before:\n%s", len(now), before, strings.Join(now, "\n"))
		}
		return nil
	})
	bytes := stateBytes(t, v)
	if bytes > maxStateBytes {
		t.Errorf("the state directory takes %d bytes, more than %d", bytes, maxStateBytes)
	}
	t.Logf("%d rounds; the state directory takes %d KiB, the daemon has %d descriptors", s.round, bytes>>10, before)
}

// A soak is a volume on which snapshots come and go.
type soak struct {
	v     *volume
	api   *lab.API
	rng   *rand.Rand
	round int
	alive []string // the names of the snapshots, which are the rounds that made them
}

// marker is a file that says, in every snapshot, in which round that was taken; snapshotDir shows it there.
const (
	marker      = "round"
	snapshotDir = ".snapshot"
)

// rounds goes through n rounds: some changes, a snapshot, and sometimes the end of one or several.
func (s *soak) rounds(t *testing.T, n int) {
	t.Helper()
	for range n {
		s.round++
		for range soakChanges {
			check(t, s.change())
		}
		name := fmt.Sprint(s.round)
		write(t, name, s.v.Mount, marker)
		check(t, s.api.CreateSnapshot(s.v.Name, name))
		s.alive = append(s.alive, name)
		for len(s.alive) > s.rng.IntN(soakAlive) { // so that some live a round, and others many
			s.delete(t, s.rng.IntN(len(s.alive)))
		}
	}
}

// change overwrites, makes, renames or removes a file.
func (s *soak) change() error {
	path := s.path()
	switch s.rng.IntN(4) {
	case 0, 1:
		return s.overwrite(path)
	case 2:
		return ignoreMissing(os.Rename(path, s.path()))
	default:
		return ignoreMissing(os.Remove(path))
	}
}

func (s *soak) path() string {
	return filepath.Join(s.v.Mount, fmt.Sprint("file-", s.rng.IntN(soakFiles)))
}

// overwrite writes a block of a file, which is made where it is missing.
func (s *soak) overwrite(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	block := make([]byte, 4<<10)
	for i := range block {
		block[i] = byte(s.rng.Uint32())
	}
	_, err = f.WriteAt(block, s.rng.Int64N(soakBlocks)*int64(len(block)))
	return errors.Join(err, f.Close())
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// delete deletes a snapshot, which must have kept what it was until now.
func (s *soak) delete(t *testing.T, i int) {
	t.Helper()
	name := s.alive[i]
	if got := mustRead(t, s.v.Mount, snapshotDir, name, marker); got != name {
		t.Fatalf("round %d: the snapshot of round %s has the marker of round %q", s.round, name, got)
	}
	check(t, s.api.DeleteSnapshot(s.v.Name, name))
	s.alive = slices.Delete(s.alive, i, i+1)
}

// end deletes all snapshots and files, and waits until nothing is kept for any snapshot.
func (s *soak) end(t *testing.T) {
	t.Helper()
	for len(s.alive) > 0 {
		s.delete(t, 0)
	}
	empty(t, s.v.Mount)
	list, err := s.api.Snapshots(s.v.Name)
	check(t, err)
	if len(list) > 0 {
		t.Fatalf("all snapshots were deleted, and the list has %+v", list)
	}
	lab.Eventually(t, time.Minute, "nothing is kept for snapshots", func() error {
		kept, err := lab.KeptForSnapshots(s.v.Backing)
		check(t, err)
		epochs, err := os.ReadDir(filepath.Join(s.v.Backing, tree.StateDir, "before"))
		if err == nil && (len(kept) > 0 || len(epochs) > 1) { // the directory of the present epoch may be there
			err = fmt.Errorf("there is still %q in %d directories", kept, len(epochs))
		}
		return err
	})
}

// stateBytes is how much a volume's state directory takes on the disk.
func stateBytes(t *testing.T, v *volume) (total int64) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(v.Backing, tree.StateDir), func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		total += st.Blocks * 512
		return ignoreMissing(err) // the store replaces its files
	})
	check(t, err)
	return total
}
