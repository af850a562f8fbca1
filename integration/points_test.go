package integration

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/integration/lab"
	"tandemfs/integration/tree"
)

// A probe watches a target while its source is written. Writers keep an order that no point in time can show
// otherwise: file A is written before file B, always; and of two names exactly one is there.
type probe struct {
	polls            atomic.Int64
	newer, misplaced atomic.Int64 // how often B was newer than A, and how often a name was missing or doubled
	stop             chan struct{}
	all              sync.WaitGroup
}

// every runs a step again and again until the probe ends.
func (p *probe) every(t *testing.T, step func() error) {
	p.all.Go(func() {
		for {
			select {
			case <-p.stop:
				return
			default:
			}
			if err := step(); err != nil {
				t.Errorf("the probe: %v", err)
				return
			}
		}
	})
}

func (p *probe) end() {
	close(p.stop)
	p.all.Wait()
}

// number reads the number that a file of the probe begins with.
func number(f *os.File) (uint64, error) {
	var b [8]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(b[:]), nil
}

// writeNumber fills a file with a number: more than a page of it, so that a torn read shows.
func writeNumber(f *os.File, n uint64) error {
	b := make([]byte, 3*4096)
	for i := 0; i < len(b); i += 8 {
		binary.BigEndian.PutUint64(b[i:], n)
	}
	_, err := f.WriteAt(b, 0)
	return err
}

func openNumber(dir, name string, flags int) (*os.File, error) {
	return os.OpenFile(filepath.Join(dir, name), flags, 0o644)
}

// watchOrder reads B and then A, which must not be older. Files are opened anew, or kept open.
func (p *probe) watchOrder(t *testing.T, dir string, keepOpen bool) {
	var files [2]*os.File
	t.Cleanup(func() {
		for _, f := range files {
			if f != nil {
				f.Close()
			}
		}
	})
	p.every(t, func() error {
		var numbers [2]uint64
		for i, name := range []string{"B", "A"} {
			if files[i] == nil {
				f, err := openNumber(dir, name, os.O_RDONLY)
				if err != nil {
					return err
				}
				files[i] = f
			}
			n, err := number(files[i])
			if err != nil {
				return err
			}
			if numbers[i] = n; !keepOpen {
				files[i].Close()
				files[i] = nil
			}
		}
		p.polls.Add(1)
		if numbers[0] > numbers[1] {
			p.newer.Add(1)
		}
		return nil
	})
}

// watchNames lists a directory in which exactly one of the two names is at any point in time.
func (p *probe) watchNames(t *testing.T, dir string) {
	p.every(t, func() error {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		p.polls.Add(1)
		if len(entries) != 1 {
			p.misplaced.Add(1)
		}
		return nil
	})
}

// TestReadersOfTheTargetNeverSeeAMixture: the numbers are at least those that are asked for, in short runs too.
func TestReadersOfTheTargetNeverSeeAMixture(t *testing.T) {
	source, target, pair := replicated(t, smallDisk, func(dir string) {
		for _, name := range []string{"A", "B"} {
			f, err := openNumber(dir, name, os.O_RDWR|os.O_CREATE)
			check(t, err)
			check(t, writeNumber(f, 0))
			check(t, f.Close())
		}
		check(t, os.MkdirAll(filepath.Join(dir, "names", "one", "below"), 0o755))
	})
	pair.Quiet(time.Minute)
	a, err := openNumber(source.Mount, "A", os.O_RDWR)
	check(t, err)
	defer a.Close()
	b, err := openNumber(source.Mount, "B", os.O_RDWR)
	check(t, err)
	defer b.Close()
	writers, readers := &probe{stop: make(chan struct{})}, &probe{stop: make(chan struct{})}
	next := uint64(0)
	writers.every(t, func() error {
		next++
		if err := writeNumber(a, next); err != nil {
			return err
		}
		return writeNumber(b, next)
	})
	names := [2]string{filepath.Join(source.Mount, "names", "one"), filepath.Join(source.Mount, "names", "two")}
	writers.every(t, func() error {
		names[0], names[1] = names[1], names[0]
		time.Sleep(200 * time.Microsecond)
		return os.Rename(names[1], names[0])
	})
	readers.watchOrder(t, target.Mount, false)
	readers.watchOrder(t, target.Mount, true)
	readers.watchNames(t, filepath.Join(target.Mount, "names"))
	before := pair.Status(target.Node).Transfers
	lab.Eventually(t, 4*time.Minute, "100,000 polls across 200 recovery points", func() error {
		points := pair.Status(target.Node).Transfers - before
		if polls := readers.polls.Load(); points < 200 || polls < 100_000 {
			return fmt.Errorf("%d polls, %d recovery points", polls, points)
		}
		return nil
	})
	writers.end()
	readers.end()
	t.Logf("%d polls, %d recovery points", readers.polls.Load(), pair.Status(target.Node).Transfers-before)
	if newer, misplaced := readers.newer.Load(), readers.misplaced.Load(); newer > 0 || misplaced > 0 {
		t.Errorf("B was newer than A %d times, a name missing or doubled %d times", newer, misplaced)
	}
	sameCopy(t, "afterwards", source, target, pair)
}

// breaksVariable says how often the test below breaks a relationship; a few times if it is not set.
const breaksVariable = "TANDEMFS_BREAKS"

// TestABreakAtAnyMomentLeavesARecoveryPoint deletes relationships in the middle of transfers, sometimes after
// the target's daemon was killed. What the target has then must be the tree after some number of calls.
func TestABreakAtAnyMomentLeavesARecoveryPoint(t *testing.T) {
	rounds := 12
	if n, err := strconv.Atoi(os.Getenv(breaksVariable)); err == nil {
		rounds = n
	}
	a, b := two(t)
	source := newVolume(t, a, "data", lab.Ext4, 4*gib, nil)
	target := newVolume(t, b, "copy", lab.Ext4, 4*gib, nil)
	r := rand.New(rand.NewPCG(seed(t, 90), 1))
	history, again := newSteps(seed(t, 91)), newSteps(seed(t, 91))
	plain := filepath.Join(lab.Dir(t), "again")
	check(t, os.Mkdir(plain, 0))
	check(t, unix.Chmod(plain, 0o1777))
	inMiddle := 0
	var last *tree.Manifest
	for round := range rounds {
		pair := lab.Relate(t, a, "data", b, "copy", "--allow-non-empty")
		if round%6 > 0 { // else in the first transfer, or right after it
			pair.Quiet(time.Minute)
		}
		stop, ended := make(chan struct{}), make(chan error)
		go func() { ended <- history.play(source.Mount, math.MaxInt, stop) }()
		time.Sleep(time.Duration(r.IntN(400)) * time.Millisecond)
		if round%4 == 3 {
			b.Kill()
			b.Start()
		}
		before := pair.Status(b)
		if before.Job == "running" {
			inMiddle++
		}
		b.Must("relationship", "delete", "--yes", pair.ID)
		write(t, "at once", target.Mount, "written")
		check(t, os.Remove(filepath.Join(target.Mount, "written")))
		close(stop)
		check(t, <-ended)
		when := fmt.Sprintf("break %d, job %s at recovery point %d", round, before.Job, before.RecoveryPoint.Epoch)
		got := scan(t, target.Backing)
		sameTrees(t, when, got, scan(t, target.Mount), tree.Options{})
		if last == nil || len(tree.Compare(last, got, tree.Options{IgnoreTimes: true})) > 0 { // else it has been looked at
			isSomeCall(t, when, got, target, again, plain)
		}
		last = got
	}
	t.Logf("%d breaks, %d of them in the middle of a transfer, %d calls", rounds, inMiddle, history.calls)
}

// isSomeCall makes the history again, up to what the target's counter says, and compares.
func isSomeCall(t *testing.T, when string, got *tree.Manifest, target *volume, again *steps, plain string) {
	t.Helper()
	changes := 0
	if text, err := os.ReadFile(filepath.Join(target.Backing, counter)); err == nil {
		changes, err = strconv.Atoi(string(text))
		check(t, err)
	}
	isCall(t, when, got, changes, again, plain)
}

// isCall makes the history again in a plain directory, up to so many changes and some calls more, until the tree is
// the one that was got. The kernel may hand a large write to the mount in several requests, cut between pages: until
// the call has returned, a recovery point may lie between two of them.
func isCall(t *testing.T, when string, got *tree.Manifest, changes int, again *steps, plain string) {
	t.Helper()
	check(t, again.play(plain, changes*callsPerChange, nil))
	compare := func() []string {
		return tree.Compare(got, scan(t, plain), tree.Options{IgnoreTimes: true, IgnoreHoles: true})
	}
	for within := false; ; {
		differences := compare()
		if len(differences) == 0 || within {
			return
		}
		if again.calls >= (changes+1)*callsPerChange-1 {
			t.Fatalf("%s: the target is at none of the calls around change %d:\n%s", when, changes, strings.Join(differences, "\n"))
		}
		between := func() {}
		if ofOneFile(differences) {
			between = func() { within = within || len(compare()) == 0 }
		}
		check(t, again.callInParts(plain, between))
	}
}

// ofOneFile reports whether all differences are of the same path, which is what they begin with.
func ofOneFile(differences []string) bool {
	first, _, _ := strings.Cut(differences[0], ":")
	return !slices.ContainsFunc(differences, func(d string) bool { return !strings.HasPrefix(d, first+":") })
}
