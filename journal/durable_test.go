package journal

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/journal/failpoint"
)

// A Sync that comes while another goroutine makes the same durable waits for that one's end.
func TestASyncWaitsForTheStoresFilesThatAnotherIsSyncing(t *testing.T) {
	j := ready(t, t.TempDir(), Options{})
	must(t, j.SetState("key", []byte("value")))
	begun, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	disarm := failpoint.Arm(func(call string, size int) (int, error) {
		if call == "fsync" {
			once.Do(func() { close(begun); <-goOn })
		}
		return size, nil
	})
	defer disarm()
	absorbs := make(chan error, 1)
	go func() { absorbs <- j.store.sync() }() // as an absorb does
	<-begun
	synced := make(chan error, 1)
	go func() { synced <- j.Sync() }()
	select {
	case err := <-synced:
		t.Errorf("Sync returned %v before the state was on the disk", err)
	case <-time.After(100 * time.Millisecond):
	}
	close(goOn)
	must(t, <-absorbs)
}

// What was recorded before the process died is on the disk after the first Sync of the next one.
func TestTheFirstSyncAfterADeathCoversWhatWasRecordedBeforeIt(t *testing.T) {
	dir := t.TempDir()
	touchMeta(t, ready(t, dir, boot("one")), ino(7), nil)
	j := cut(t, dir, "one")
	synced := false
	disarm := failpoint.Arm(func(call string, size int) (int, error) {
		synced = synced || call == "fdatasync"
		return size, nil
	})
	defer disarm()
	must(t, j.Sync())
	if !synced {
		t.Error("no log was synced")
	}
}

// The first start after a power cut may itself be broken off, anywhere: the next one finds what that one found.
func TestTheFirstStartAfterAPowerCutMayBeBrokenOff(t *testing.T) {
	dir := t.TempDir()
	j := ready(t, dir, boot("one"))
	for i := range 100 {
		touchMeta(t, j, ino(i), nil)
	}
	left := copyOf(t, dir)
	log := filepath.Join(left, filepath.Base(j.active.log.file.Name()))
	content, err := os.ReadFile(log)
	must(t, err)
	content[j.active.log.end/2] ^= 1 // of a page that power took; what is behind it was written
	must(t, put(log, content))

	for n, reached := 1, true; reached; n++ {
		dir := copyOf(t, left)
		calls := 0
		disarm := failpoint.Arm(func(call string, size int) (int, error) {
			if calls++; calls == n {
				return 0, unix.EIO
			}
			return size, nil
		})
		j, err := Open(dir, Options{Logger: quiet, BootID: "two"})
		disarm()
		if reached = calls >= n; err == nil {
			must(t, j.Close())
		}
		again, err := Open(dir, Options{Logger: quiet, BootID: "two"})
		if err != nil {
			t.Errorf("after an opening whose call %d failed: %v", n, err)
			continue
		}
		if again.Clean() {
			t.Errorf("after an opening whose call %d failed it is trusted", n)
		}
		must(t, again.Close())
	}
}

// A round that began after an inode was about to be named does not take what was changed since off the list.
func TestALateWordOfAnEarlierRoundTakesNothingOffTheList(t *testing.T) {
	dir := t.TempDir()
	j := ready(t, dir, boot("one"))
	earlier := j.round
	round, since := j.beginRound()
	touchData(t, j, ino(7), Extent{0, 10}, nil)
	must(t, j.activity.note(ino(7), earlier)) // by an Announce that began before the round
	must(t, j.activity.settled(round, since))
	if a := cut(t, dir, "two").Active(); !a.Doubts(ino(7), old) {
		t.Errorf("what was changed in the round is not doubted: %+v", a)
	}
}

// The change time of what came from elsewhere may be from long before the list was begun.
func TestWhatArrivedAndIsOverwrittenIsNamedAfterAPowerCut(t *testing.T) {
	dir := t.TempDir()
	j := ready(t, dir, boot("one"))
	must(t, inside(j, func() error { return j.NoteArrived(ino(7)) }))
	for n := range 2 { // in the epoch in which it came, and in one of which a peer has it
		must(t, j.Announce(ino(7)))
		touchData(t, j, ino(7), Extent{0, 10}, nil)
		if a := cut(t, dir, "two").Active(); !a.Doubts(ino(7), old) {
			t.Errorf("overwritten %d epochs later it is not doubted", n)
		}
		seal(t, j, false)
	}
}

// The kernel says once that it could not write something. The next try succeeds, and knows nothing of it.
func TestWhatCouldNotBeMadeDurableOnceIsDoubtedFromThenOn(t *testing.T) {
	dir := t.TempDir()
	var failing error
	j := ready(t, dir, Options{BootID: "one", Settle: func() error { return failing }})
	failing = unix.EIO
	if err := j.checkpoint(); !errors.Is(err, unix.EIO) {
		t.Errorf("the checkpoint gave %v", err)
	}
	failing = nil
	must(t, j.checkpoint())
	if a := cut(t, dir, "two").Active(); !a.Doubts(ino(7), old) {
		t.Errorf("after a power cut nothing is doubted: %+v", a)
	}
	for range 2 { // the next process knows, however the one before ended
		again := open(t, copyOf(t, dir), Options{BootID: "one"})
		must(t, again.checkpoint())
		if !again.Clean() {
			t.Error("without a power cut it is not trusted")
		}
		if a := cut(t, again.dir, "two").Active(); !a.Doubts(ino(7), old) {
			t.Errorf("after another process and a power cut nothing is doubted: %+v", a)
		}
		if err := j.Close(); err != nil && !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	}
	again := open(t, dir, boot("two"))
	if again.Clean() || !again.Active().All {
		t.Errorf("after a close and a reboot: clean %v, %+v", again.Clean(), again.Active())
	}
	must(t, again.Reconciled())
	must(t, again.checkpoint())
	if a := cut(t, dir, "three").Active(); a.All {
		t.Errorf("after it was reconciled everything is still doubted: %+v", a)
	}
}

// What a log could not be made to keep is in the store after the Sync that succeeds.
func TestASyncDoesNotTrustALogThatCouldNotBeWrittenToTheDisk(t *testing.T) {
	for name, failures := range map[string]int{"once": 1, "and the store could not either": 1000} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			j := ready(t, dir, boot("one"))
			touchMeta(t, j, ino(7), nil)
			n := seal(t, j, false)
			left := failures
			disarm := failpoint.Arm(func(call string, size int) (int, error) {
				if left > 0 && (call == "fdatasync" || call == "fsync" || call == "store update") {
					left--
					return 0, unix.EIO
				}
				return size, nil
			})
			err := j.Sync()
			disarm()
			if (err == nil) != (failures == 1) {
				t.Errorf("the Sync during which it fails gave %v", err)
			}
			must(t, j.Sync())
			lost := copyOf(t, dir)
			for _, name := range logFiles {
				must(t, put(filepath.Join(lost, name), nil))
			}
			after := open(t, lost, boot("two"))
			if _, ok := inodesOf(t, after, 0, n)[ino(7)]; !ok {
				t.Error("what was recorded is not there without the logs")
			}
		})
	}
}
