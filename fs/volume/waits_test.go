package volume

import (
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/journal/failpoint"
)

// openedToHang is opened without a Close at the end, which would wait for what a test has found to hang.
func openedToHang(t *testing.T) *Volume {
	t.Helper()
	v, err := Open(t.TempDir(), Options{Name: "test", Create: true})
	must(t, err)
	return v
}

// inTime runs a call that must come to an end.
func inTime(t *testing.T, what string, call func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		call()
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s does not end", what)
	}
}

// takeOne takes a snapshot in the background, and returns when that has come to wait for something.
func (v *Volume) takeOne(t *testing.T) (ended func()) {
	var done sync.WaitGroup
	done.Go(func() {
		if _, err := v.CreateSnapshot("taken", time.Time{}); err != nil {
			t.Error(err)
		}
	})
	time.Sleep(100 * time.Millisecond)
	return done.Wait
}

// There is no room for what a transfer's view needs while a snapshot waits for the write that needs it.
func TestAWriteThatGivesUpViewsDoesNotWaitForASnapshotThatWaitsForIt(t *testing.T) {
	v := openedToHang(t)
	id := v.mustFile(t, v.root, "f", strings.Repeat("x", 1<<20))
	w, err := v.Seal()
	must(t, err)
	var once sync.Once
	ended := func() {}
	disarm := failpoint.Arm(func(call string, size int) (int, error) {
		full := false
		if call == "copy_file_range" {
			once.Do(func() { ended, full = v.takeOne(t), true })
		}
		if full {
			return 0, unix.ENOSPC
		}
		return size, nil
	})
	defer disarm()
	inTime(t, "a write beside a snapshot that is being taken", func() {
		_, err := v.Write(id, [][]byte{[]byte(strings.Repeat("y", 512<<10))}, 0, false)
		if err != nil {
			t.Error(err)
		}
		ended()
	})
	must(t, w.Close())
	must(t, v.Close())
}

// asksDuringTurn is a mount in which somebody looks at the directory of the snapshots while a turn waits for its requests.
type asksDuringTurn struct {
	noKernel
	v     *Volume
	t     *testing.T
	ended func()
}

func (k *asksDuringTurn) Turn(_ Differences, swap func()) error {
	k.ended = k.v.takeOne(k.t)
	k.v.Snapshots()
	swap()
	return nil
}

func TestWhoAsksForSnapshotsDoesNotWaitForOneThatIsBeingTaken(t *testing.T) {
	v := openedToHang(t)
	id := v.mustFile(t, v.root, "f", "old")
	must(t, v.SetReadOnly(true))
	must(t, v.Freeze())
	f, err := v.OpenForApply(id)
	must(t, err)
	_, err = f.WriteAt([]byte("new"), 0)
	must(t, err)
	must(t, f.Close())
	n, err := v.Commit()
	must(t, err)
	k := &asksDuringTurn{v: v, t: t}
	v.SetKernel(k)
	inTime(t, "a turn during which a snapshot is taken", func() {
		if err := v.Publish(n); err != nil {
			t.Error(err)
		}
		k.ended()
	})
	must(t, v.Close())
}
