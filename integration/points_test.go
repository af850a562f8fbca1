package integration

import (
	"bytes"
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

// steps is a history of system calls that is drawn from a seed alone: so the tree after any number of them
// can be made again. Each change is followed by three calls that renew the file with the number of changes.
type steps struct {
	r     *rand.Rand
	names []string // of files that there are
	next  int      // for new names
	calls int      // made so far

	between func() // nil, or called between the pages of a write
}

const (
	callsPerChange = 4
	counter        = "counter"
	counterBefore  = "counter.new"
)

func newSteps(seed uint64) *steps { return &steps{r: rand.New(rand.NewPCG(seed, 0))} }

// call makes the next call in a directory.
func (s *steps) call(dir string) (err error) {
	path := func(name string) string { return filepath.Join(dir, name) }
	switch s.calls % callsPerChange {
	case 0:
		err = s.change(path)
	case 1:
		err = unix.Mknod(path(counterBefore), unix.S_IFREG|0o644, 0)
	case 2:
		err = s.writeAt(path(counterBefore), fmt.Append(nil, s.calls/callsPerChange+1), 0)
	case 3:
		err = unix.Rename(path(counterBefore), path(counter))
	}
	if err != nil {
		return fmt.Errorf("call %d: %w", s.calls, err)
	}
	s.calls++
	return nil
}

// change changes one of the files, or their names.
func (s *steps) change(path func(string) string) error {
	pick := func() int { return s.r.IntN(len(s.names)) }
	switch kind := s.r.IntN(10); {
	case len(s.names) < 5 || kind == 0 && len(s.names) < 40:
		name := s.newName()
		s.names = append(s.names, name)
		return unix.Mknod(path(name), unix.S_IFREG|0o644, 0)
	case kind == 1:
		return unix.Unlink(path(s.take(pick())))
	case kind == 2:
		i := pick()
		from := s.names[i]
		s.names[i] = s.newName()
		return unix.Rename(path(from), path(s.names[i]))
	case kind == 3: // over another one
		from := s.take(pick())
		return unix.Rename(path(from), path(s.names[pick()]))
	case kind == 4:
		return unix.Truncate(path(s.names[pick()]), s.r.Int64N(300_000))
	case kind == 5:
		return unix.Chmod(path(s.names[pick()]), uint32(0o600+s.r.IntN(64)))
	}
	b := bytes.Repeat(binary.BigEndian.AppendUint64(nil, s.r.Uint64()), 1+s.r.IntN(20_000))
	return s.writeAt(path(s.names[pick()]), b, s.r.Int64N(300_000))
}

func (s *steps) newName() string {
	s.next++
	return fmt.Sprint("file", s.next)
}

// take takes a name out of the list.
func (s *steps) take(i int) string {
	name := s.names[i]
	s.names = append(s.names[:i], s.names[i+1:]...)
	return name
}

func (s *steps) writeAt(path string, b []byte, off int64) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for s.between != nil && int64(len(b)) > page-off%page {
		n, err := unix.Pwrite(fd, b[:page-off%page], off)
		if err != nil {
			return err
		}
		b, off = b[n:], off+int64(n)
		s.between()
	}
	_, err = unix.Pwrite(fd, b, off)
	return err
}

const page = 4096

// play makes calls until it is told to stop, or has made so many.
func (s *steps) play(dir string, upto int, stop <-chan struct{}) error {
	for s.calls < upto {
		select {
		case <-stop:
			return nil
		default:
		}
		if err := s.call(dir); err != nil {
			return err
		}
	}
	return nil
}

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
		isSomeCall(t, fmt.Sprintf("break %d, job %s at recovery point %d", round, before.Job, before.RecoveryPoint.Epoch), target, again, plain)
	}
	t.Logf("%d breaks, %d of them in the middle of a transfer, %d calls", rounds, inMiddle, history.calls)
}

// isSomeCall makes the history again, up to what the target's counter says, and compares.
func isSomeCall(t *testing.T, when string, target *volume, again *steps, plain string) {
	t.Helper()
	got := scan(t, target.Backing)
	sameTrees(t, when, got, scan(t, target.Mount), tree.Options{})
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
		if ofOneFile(differences) {
			again.between = func() { within = within || len(compare()) == 0 }
		}
		check(t, again.call(plain))
		again.between = nil
	}
}

// ofOneFile reports whether all differences are of the same path, which is what they begin with.
func ofOneFile(differences []string) bool {
	first, _, _ := strings.Cut(differences[0], ":")
	return !slices.ContainsFunc(differences, func(d string) bool { return !strings.HasPrefix(d, first+":") })
}
