package volume

import (
	"slices"
	"testing"
	"time"

	"tandemfs/fs/sys"
	"tandemfs/journal"
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
