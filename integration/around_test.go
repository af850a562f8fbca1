package integration

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/integration/history"
	"tandemfs/integration/lab"
	"tandemfs/integration/tree"
)

// Changes around the mount are made by the test itself in the backing directories: to the daemon it is another
// process.

// around is what the API says of changes around a volume's mount.
type around struct {
	Watched      bool       `json:"watched"`
	Sweeping     bool       `json:"sweeping"`
	Swept        *time.Time `json:"swept"`
	SweptFiles   int64      `json:"swept_files"`
	Changes      int64      `json:"changes"`
	LastPath     string     `json:"last_path"`
	NamesInDoubt uint64     `json:"names_in_doubt"`
}

func aroundOf(t *testing.T, v *volume) around {
	t.Helper()
	var answer struct{ Around *around }
	check(t, v.Node.API().Do(http.MethodGet, "volumes/"+v.Name, nil, &answer))
	if answer.Around == nil {
		t.Fatal("the volume says nothing of changes around its mount")
	}
	return *answer.Around
}

// sweptOf waits until the sweep after a start is over.
func sweptOf(t *testing.T, v *volume) (a around) {
	t.Helper()
	lab.Eventually(t, time.Minute, "the sweep is over", func() error {
		if a = aroundOf(t, v); a.Sweeping || a.Swept == nil {
			return fmt.Errorf("%+v", a)
		}
		return nil
	})
	return a
}

// pairOn gives a source and its copy on filesystems of a kind.
func pairOn(t *testing.T, kind string, fill func(dir string)) (source, target *volume, pair *lab.Pair) {
	t.Helper()
	a, b := two(t)
	source = newVolume(t, a, "data", kind, smallDisk, fill)
	target = newVolume(t, b, "copy", kind, smallDisk, nil)
	return source, target, relate(t, source, target)
}

// eventuallySame waits until the copy's directory is what the source's is, and both mounts show that. On XFS holes
// are not compared: whether zeros are one depends on what it did beside them.
func eventuallySame(t *testing.T, kind string, source, target *volume) {
	t.Helper()
	o := tree.Options{IgnoreHoles: kind == lab.XFS}
	lab.Eventually(t, time.Minute, "the copy equals its source, and the mounts too", func() error {
		at := scan(t, source.Backing)
		for _, dir := range []string{source.Mount, target.Backing, target.Mount} {
			shown, err := tree.Scan(dir)
			if err != nil { // it may be changed meanwhile
				return err
			}
			if diffs := tree.Compare(at, shown, o); len(diffs) > 0 {
				return fmt.Errorf("%s: %s", dir, strings.Join(diffs[:min(len(diffs), 5)], "\n"))
			}
		}
		return nil
	})
}

// old is what there is before something is changed around the mount.
func old(t *testing.T) func(dir string) {
	return func(dir string) {
		grow(t, 200)(dir)
		for _, name := range []string{"overwritten", "appended", "mode", "attribute", "removed", "renamed", "replaced"} {
			write(t, strings.Repeat("old content of "+name+"\n", 5000), dir, name)
		}
		write(t, "x", lab.MakeDir(t, dir, "goes", "deep"), "file")
		write(t, "x", lab.MakeDir(t, filepath.Dir(dir), "beside", "deep", "deeper"), "brought along")
		write(t, "y", filepath.Dir(dir), "beside", "too")
	}
}

// inPlace changes files and no names.
func inPlace(t *testing.T, dir string) {
	f, err := os.OpenFile(filepath.Join(dir, "overwritten"), os.O_RDWR, 0)
	check(t, err)
	_, err = f.WriteAt([]byte("NEW CONTENT"), 4000)
	check(t, errors.Join(err, f.Close()))
	f, err = os.OpenFile(filepath.Join(dir, "appended"), os.O_WRONLY|os.O_APPEND, 0)
	check(t, err)
	_, err = f.WriteString("more")
	check(t, errors.Join(err, f.Close(), os.Chmod(filepath.Join(dir, "mode"), 0o600)))
	check(t, unix.Setxattr(filepath.Join(dir, "attribute"), "user.around", []byte("1"), 0))
}

// newNames makes what was not there before.
func newNames(t *testing.T, dir string) {
	write(t, "new", dir, "created")
	write(t, "new", lab.MakeDir(t, dir, "made", "below"), "file")
	check(t, os.Symlink("created", filepath.Join(dir, "link")))
	write(t, "replaced by an editor", dir, "replaced~")
	check(t, os.Rename(filepath.Join(dir, "replaced~"), filepath.Join(dir, "replaced")))
}

// otherNames takes names away, moves some, and brings a tree in.
func otherNames(t *testing.T, dir string) {
	check(t, os.Remove(filepath.Join(dir, "removed")))
	check(t, os.RemoveAll(filepath.Join(dir, "goes")))
	check(t, os.Rename(filepath.Join(dir, "renamed"), filepath.Join(dir, "made", "under another name")))
	check(t, os.Rename(filepath.Join(filepath.Dir(dir), "beside"), filepath.Join(dir, "moved in")))
}

func TestWhatIsChangedAroundTheMountReachesTheMountAndTheCopy(t *testing.T) {
	for _, kind := range []string{lab.Ext4, lab.XFS} {
		t.Run(kind, func(t *testing.T) {
			source, target, pair := pairOn(t, kind, old(t))
			sameCopy(t, "before", source, target, pair)
			for _, name := range []string{"created", "link", "moved in"} { // their absence is known to the kernel then
				if _, err := os.Lstat(filepath.Join(source.Mount, name)); !errors.Is(err, os.ErrNotExist) {
					t.Fatal(err)
				}
			}
			if a := aroundOf(t, source); !a.Watched || a.Changes != 0 {
				t.Fatalf("before: %+v", a)
			}
			for _, change := range []func(*testing.T, string){inPlace, newNames, otherNames} {
				change(t, source.Backing)
				eventuallySame(t, kind, source, target)
			}
			pair.Quiet(time.Minute)
			a := aroundOf(t, source)
			if a.Changes < 12 || a.NamesInDoubt != 0 {
				t.Errorf("afterwards: %+v", a)
			}
			if out := source.Node.Must("volume", "show", source.Name); !strings.Contains(out, a.LastPath) {
				t.Errorf("`volume show` does not name %s:\n%s", a.LastPath, out)
			}
			play(t, source.Mount, history.New(seed(t, 70)), 300)
			pair.Quiet(time.Minute)
			eventuallySame(t, kind, source, target)
			if b := aroundOf(t, source); b.Changes != a.Changes {
				t.Errorf("what the mount's users did is taken for foreign: %+v, then %+v", a, b)
			}
			if a := aroundOf(t, target); a.Changes != 0 {
				t.Errorf("what was applied to the copy is taken for foreign: %+v", a)
			}
		})
	}
}

func TestWhatIsChangedWhileTheDaemonIsDownIsSweptUp(t *testing.T) {
	for _, kind := range []string{lab.Ext4, lab.XFS} {
		t.Run(kind, func(t *testing.T) {
			source, target, pair := pairOn(t, kind, old(t))
			sameCopy(t, "before", source, target, pair)
			source.Node.Stop()
			source.Node.Start()
			if a := sweptOf(t, source); a.Changes != 0 || a.NamesInDoubt != 0 || a.SweptFiles < 200 {
				t.Errorf("nothing was changed: %+v", a)
			}
			source.Node.Stop()
			inPlace(t, source.Backing)
			source.Node.Start()
			if a := sweptOf(t, source); a.Changes != 4 || a.NamesInDoubt != 0 {
				t.Errorf("after changes in place: %+v", a)
			}
			eventuallySame(t, kind, source, target)

			source.Node.Stop()
			newNames(t, source.Backing)
			source.Node.Start()
			if a := sweptOf(t, source); a.Changes == 0 {
				t.Errorf("after new names: %+v", a)
			}
			eventuallySame(t, kind, source, target)

			source.Node.Stop()
			otherNames(t, source.Backing)
			source.Node.Start()
			sweptOf(t, source)
			eventuallySame(t, kind, source, target)
			pair.Quiet(time.Minute)
			if a := aroundOf(t, source); a.NamesInDoubt != 0 {
				t.Errorf("names are still in doubt: %+v", a)
			}
			source.Node.Stop()
			source.Node.Start()
			if a := sweptOf(t, source); a.Changes != 0 || a.NamesInDoubt != 0 {
				t.Errorf("after another restart: %+v", a)
			}
		})
	}
}

func TestWhatADaemonDidBeforeItWasKilledIsNotTakenForForeign(t *testing.T) {
	v := newVolume(t, alone(t), "data", lab.Ext4, smallDisk, nil)
	exact := 0 // rounds in which the daemon's last look at its watch was not late, which makes its own work foreign
	for round := range 3 {
		play(t, v.Mount, history.New(seed(t, 71+uint64(round))), 500)
		v.Node.Kill()
		time.Sleep(time.Second)                                     // longer than what is found may still be the daemon's own
		write(t, "around", v.Backing, fmt.Sprint("around-", round)) // so that the sweep has something to find
		v.Node.Start()
		a := sweptOf(t, v)
		if a.Changes < 2 || a.NamesInDoubt < uint64(round+1) { // the file, and its directory
			t.Errorf("round %d: %+v", round, a)
		}
		if a.Changes == 2 {
			exact++
		} else {
			t.Logf("round %d: %+v", round, a)
		}
		time.Sleep(2 * time.Second) // then an epoch has begun without anything foreign, and what comes can be told apart
	}
	if exact == 0 {
		t.Error("what the daemon did was taken for foreign in each round")
	}
}

func TestChangesAroundTheMountOfACopyAreReported(t *testing.T) {
	source, target, pair := replicated(t, smallDisk, grow(t, 50))
	sameCopy(t, "before", source, target, pair)
	write(t, "x", target.Backing, "not from the source")
	lab.Eventually(t, 10*time.Second, "the copy reports it", func() error {
		if a := aroundOf(t, target); a.Changes == 0 || a.LastPath != "/not from the source" {
			return fmt.Errorf("%+v", a)
		}
		return nil
	})
	write(t, "goes on", source.Mount, "replication")
	pair.Quiet(time.Minute)
	if got := mustRead(t, target.Mount, "replication"); got != "goes on" {
		t.Errorf("read %q", got)
	}
}

// What somebody removes from a copy is back once a transfer has to do with it.
func TestWhatIsRemovedFromACopyComesBackOnceItIsNeeded(t *testing.T) {
	source, target, pair := replicated(t, smallDisk, func(dir string) {
		grow(t, 20)(dir)
		write(t, "old", lab.MakeDir(t, dir, "removed"), "file")
		write(t, "old", dir, "gone")
	})
	sameCopy(t, "before", source, target, pair)
	check(t, os.RemoveAll(filepath.Join(target.Backing, "removed")))
	check(t, os.Remove(filepath.Join(target.Backing, "gone")))
	write(t, "new", source.Mount, "removed", "beside")
	write(t, "new", source.Mount, "gone")
	eventuallySame(t, "", source, target)
	pair.Quiet(time.Minute)
}
