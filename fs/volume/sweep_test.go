package volume

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
	"tandemfs/journal/failpoint"
)

func TestWhatIsChangedOnceMoreBeforeTheSweepComesByIsFoundAllTheSame(t *testing.T) {
	v := below(t, "mkdir d; echo a >d/a; echo old >f; echo x >g")
	must(t, v.Close())
	v.shell(t, "rm d/a; echo NEW 1<>f")
	v, err := Open(v.path, Options{Name: "test", Create: true})
	must(t, err)
	defer v.Close()
	seal, err := v.journal.Seal(false)
	must(t, err)
	passed(time.Now())
	v.shell(t, "touch d/b; chmod 600 f")
	v.SetKernel(noKernel{})
	got := v.recorded(t, seal)
	if !slices.Contains(got, "data /f") || slices.Contains(got, "data /g") {
		t.Errorf("recorded %q", got)
	}
	if n, _ := v.NamesInDoubt(); n != 1 {
		t.Errorf("d/a was removed, and names came into doubt %d times", n)
	}
}

// TestADirectoryThatIsMovedWhileTheSweepWalksIsLookedInto moves one from where the walk has yet to come to where it has
// been.
func TestADirectoryThatIsMovedWhileTheSweepWalksIsLookedInto(t *testing.T) {
	for name, move := range map[string]func(v *Volume, t *testing.T, s *sweep){
		"through the volume": func(v *Volume, t *testing.T, _ *sweep) {
			must(t, v.Rename(shownNow(t, v, "p"), "d", shownNow(t, v, "q"), "d", 0))
		},
		"by somebody else": func(v *Volume, t *testing.T, s *sweep) {
			v.shell(t, "mv p/d q/d")
			must(t, v.around.recordEvent(&sys.Event{What: sys.Moved, Inode: v.identAt(t, "q/d"), Dir: shownNow(t, v, "p"), Name: "d",
				NewDir: shownNow(t, v, "q"), NewName: "d"}, true, true, journal.Time{}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := below(t, "mkdir -p p/d/e; echo content >p/d/e/f; mkdir q")
			defer v.Close()
			s := v.unwatched(t, "echo more >>p/d/e/f")
			seal, err := v.journal.Seal(false)
			must(t, err)
			s.worked = time.Now()
			must(t, s.explain())
			must(t, s.walk(shownNow(t, v, "q")))
			move(v, t, s)
			must(t, s.walk(shownNow(t, v, "p")))
			for _, id := range s.takeMoved() {
				must(t, s.walk(id))
			}
			must(t, s.rest())
			if got := v.changesSince(t, seal); !slices.Contains(got, "data /q/d/e/f") {
				t.Errorf("recorded %q", got)
			}
		})
	}
}

// identAt gives the inode that somebody else has put at a path.
func (v *Volume) identAt(t *testing.T, path string) journal.Ident {
	t.Helper()
	id, err := v.backing.IdentAt(v.backing.FD(), path)
	must(t, err)
	return id
}

func TestARecordOfWhatSomebodyElseDidExplainsNothingAfterADeath(t *testing.T) {
	v := below(t, "mkdir d; touch d/a d/b")
	v.noticed(t)
	defer v.Close()
	v.mustFile(t, v.root, "own", "content")
	v.shell(t, "rm d/a")
	v.noticed(t)
	v.around.stop() // as if it were killed
	ours, err := v.explained([]gap{v.afterDeath(t, "rm d/b")})
	must(t, err)
	if len(ours) > 0 {
		t.Errorf("explained: %v", ours)
	}
}

func TestARecordExplainsAgainOnceNobodyElseChangesAnything(t *testing.T) {
	v := below(t, "mkdir d; touch d/a d/b")
	v.noticed(t)
	defer v.Close()
	v.shell(t, "rm d/a")
	v.noticed(t)
	if w := v.readWatched(t); w.epoch != 0 {
		t.Errorf("a moment later: %+v", w)
	}
	eventually(t, "an epoch without such a record", func() bool {
		v.mustDir(t, v.root, fmt.Sprint(time.Now().UnixNano()))
		return v.readWatched(t).epoch > 0
	})
	v.around.stop()
	own := v.mustDir(t, v.root, "own")
	ours, err := v.explained([]gap{v.afterDeath(t, "rm d/b")})
	must(t, err)
	if _, ok := ours[own]; !ok {
		t.Error("its own directory is taken for foreign")
	}
	if _, ok := ours[shownNow(t, v, "d")]; ok {
		t.Error("the directory of somebody else's is taken for its own")
	}
}

// afterDeath runs a shell command, and gives the gap that there is if the process is dead since the last look.
func (v *Volume) afterDeath(t *testing.T, command string) gap {
	t.Helper()
	known := v.around.known
	v.shell(t, command)
	passed(time.Now())
	until, err := sys.Clock()
	must(t, err)
	return gap{since: known.until, until: until, lived: later(known.until, aftermath), epoch: known.epoch}
}

func TestWhatIsInUseDuringAnOverflowIsSweptToo(t *testing.T) {
	v := below(t, "echo content >f")
	v.noticed(t)
	seal, err := v.journal.Seal(false)
	must(t, err)
	defer v.Close()
	f := shownNow(t, v, "f")
	v.around.stop()
	v.shell(t, "echo more >>f")
	passed(time.Now())
	v.around.record, v.around.quit = v.watchedFile(t), make(chan struct{})
	v.journal.Enter()
	o, err := v.open.get(f, reachData)
	must(t, err)
	done := make(chan error, 1)
	go func() { done <- v.around.overflowed() }()
	eventually(t, "a sweep is expected", v.around.sweeping)
	passed(time.Now())
	must(t, sys.Chmod(o.fd, 0o600))
	v.open.put(o)
	v.journal.Leave()
	must(t, <-done)
	eventually(t, "the sweep is over", func() bool { return !v.around.sweeping() })
	if got := v.changesSince(t, seal); !slices.Contains(got, "data /f") {
		t.Errorf("recorded %q", got)
	}
}

func TestTheFileSaysThatSomethingWasMetBeforeItIsChanged(t *testing.T) {
	v := below(t, "echo content >f")
	defer v.Close()
	s := v.unwatched(t, "echo more >>f")
	n := Inode{ID: v.identAt(t, "f")}
	fd, err := v.backing.OpenIdent(n.ID, unix.O_PATH)
	must(t, err)
	defer sys.Close(fd)
	must(t, sys.Stat(fd, "", &n.Stat))
	s.suspect(n.ID, &n.Stat) // the walk has seen it, and is about to record it
	o, err := v.open.get(n.ID, reachData)
	must(t, err)
	v.open.put(o)
	if !v.readWatched(t).met {
		t.Error("the file does not say it")
	}
	known := v.around.known
	known.met = false
	must(t, v.around.expect(known))
	must(t, s.keep(false))
	if !v.readWatched(t).met {
		t.Error("the file does not say it any more, and the next sweep has met it")
	}
}

func TestAnInodeThatLeavesTheCacheMeanwhileIsHeldAllTheSame(t *testing.T) {
	v := below(t, "")
	f := v.mustFile(t, v.root, "f", "content")
	o, err := v.open.get(f, reachRead)
	must(t, err)
	v.open.renew()
	must(t, v.Unlink(v.root, "f"))
	v.open.holdOpen(o)
	v.open.put(o)
	var b [7]byte
	if n, err := v.Read(f, b[:], 0); err != nil || string(b[:n]) != "content" {
		t.Errorf("read %q, %v", b[:n], err)
	}
	v.Forget(f)
	if _, err := v.open.get(f, reachRead); !isStale(err) {
		t.Errorf("it is held for ever: %v", err)
	}
}

func TestWhatCannotBeReadIsInDoubtAndKeepsNothingElseBack(t *testing.T) {
	v := below(t, "mkdir d; echo content >d/f; echo content >g; echo content >h")
	defer v.Close()
	s := v.unwatched(t, "echo more >>d/f")
	calls := 0
	disarm := failpoint.Arm(func(call string, size int) (int, error) {
		if call == "getdents" {
			if calls++; calls == 3 { // of d, after two of the root
				return 0, unix.EIO
			}
		}
		return size, nil
	})
	t.Cleanup(disarm)
	s.run()
	disarm()
	n, since := v.NamesInDoubt()
	if n == 0 || since.IsZero() || v.around.sweeping() {
		t.Errorf("%d in doubt, content from %v on: %+v", n, since, v.Around())
	}
	must(t, v.NamesSettled(n))

	seal, err := v.journal.Seal(false)
	must(t, err)
	unreadable, next := v.identAt(t, "g"), v.identAt(t, "h")
	failed := false
	disarm = failpoint.Arm(func(call string, size int) (int, error) {
		if call == "statx" && !failed {
			failed = true
			return 0, unix.EIO
		}
		return size, nil
	})
	t.Cleanup(disarm)
	v.around.places = map[journal.Ident]site{v.root: {"/", true}}
	v.around.events = []sys.Event{
		{What: sys.Attributes, Dir: v.root, Name: "g", Inode: unreadable},
		{What: sys.Attributes, Dir: v.root, Name: "h", Inode: next},
	}
	must(t, v.around.recordEvents(journal.Time{}))
	if n, since := v.NamesInDoubt(); n != 1 || since.IsZero() {
		t.Errorf("%d in doubt, content from %v on", n, since)
	}
	if got := v.changesSince(t, seal); !slices.Contains(got, "meta /h") {
		t.Errorf("recorded %q", got)
	}
}

// Of a directory that cannot be opened nobody knows whether it lies in the volume: what was changed in it counts.
func TestADirectoryThatCannotBeAskedIsNotTakenForOneOutside(t *testing.T) {
	v := below(t, "mkdir d; echo content >d/f; echo content >g")
	defer v.Close()
	s := v.unwatched(t, "echo more >>g")
	d, f := v.identAt(t, "d"), v.identAt(t, "d/f")
	v.open.renew()
	failed := 0
	disarm := failpoint.Arm(func(call string, size int) (int, error) {
		if call == "open_by_handle_at" {
			failed++
			return 0, unix.EIO
		}
		return size, nil
	})
	t.Cleanup(disarm)
	v.around.places = map[journal.Ident]site{}
	v.around.events = []sys.Event{{What: sys.Attributes, Dir: d, Name: "f", Inode: f}}
	err := v.around.recordEvents(journal.Time{})
	disarm()
	must(t, err)
	n, since := v.NamesInDoubt()
	if failed == 0 || n == 0 || since.IsZero() {
		t.Errorf("after %d failures %d are in doubt, content from %v on", failed, n, since)
	}
	must(t, v.NamesSettled(n))

	failed = 0 // the sweep does not begin again and again either
	disarm = failpoint.Arm(func(call string, size int) (int, error) {
		if call == "open_by_handle_at" {
			failed++
			return 0, unix.EIO
		}
		return size, nil
	})
	t.Cleanup(disarm)
	s.run()
	disarm()
	if n, _ := v.NamesInDoubt(); failed == 0 || n == 0 || v.around.sweeping() {
		t.Errorf("after %d failures %d are in doubt: %+v", failed, n, v.Around())
	}
}
