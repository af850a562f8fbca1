package volume

import (
	"slices"
	"testing"
	"time"
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
