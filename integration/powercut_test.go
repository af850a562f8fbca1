package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/integration/lab"
	"tandemfs/integration/tree"
)

const (
	powerRoundsVariable = "TANDEMFS_POWERCUT_ROUNDS" // how many rounds; a few if it is not set
	powerRounds         = 5
	longestPower        = 1500 // milliseconds of load until the power goes
	bulkFiles           = 48
	bulkFile            = 512 << 10 // bytes, which nobody changes and reconciling must not send
	mostOfBulk          = bulkFiles * bulkFile / 2
	restEvery           = 5 // rounds
)

// TestPowerCutsLoseNothingThatWasSyncedAndNoCopyIsWrong takes the power of the source's machine, or of the target's,
// or of both, in each round: their filesystems are shut down under load, without flushing their logs, and go through
// them when they are mounted again. What an fsync had returned for must be there. The source says that power was
// lost and comes to terms with its target, which does not get everything anew; the target shows a recovery point,
// or says that it may not. Then both are equal, and trusted.
func TestPowerCutsLoseNothingThatWasSyncedAndNoCopyIsWrong(t *testing.T) {
	rounds := powerRounds
	if n, err := strconv.Atoi(os.Getenv(powerRoundsVariable)); err == nil {
		rounds = n
	}
	for i, kinds := range [][2]string{{lab.Ext4, lab.XFS}, {lab.XFS, lab.Ext4}} {
		t.Run(kinds[0]+" to "+kinds[1], func(t *testing.T) {
			p := newPower(t, kinds[0], kinds[1], uint64(i))
			defer p.report()
			p.agree("at first")
			for p.round = i; p.round < rounds && !t.Failed(); p.round += 2 {
				p.play()
			}
		})
	}
}

// power is a source and its copy on two machines, of which crash keeps what they should have.
type power struct {
	*crash
	from, to *lab.Machine
	promises map[int]*promise // of what was synced, by the number of the history's inode
	going    atomic.Bool      // the power goes, or has gone
	counts   struct{ source, target, again, kept, doubtful, sent int64 }
}

func newPower(t *testing.T, from, to string, nth uint64) *power {
	c := &crash{t: t, r: rand.New(rand.NewPCG(seed(t, 97+nth), 1)), history: newSteps(seed(t, 99+nth))}
	p := &power{crash: c, promises: map[int]*promise{}}
	boots := lab.NewBoots(t)
	a, b := lab.Join(t)
	p.from = lab.StartMachine(t, boots, a, "alpha", from, 4*gib)
	c.source = protect(t, p.from.Node, "data", p.backing(p.from))
	p.to = lab.StartMachine(t, boots, b, "beta", to, 4*gib)
	c.target = protect(t, p.to.Node, "copy", p.backing(p.to))
	c.a, c.b = p.from.Node, p.to.Node
	bulk := lab.MakeDir(t, c.source.Mount, bulkDir)
	for i := range bulkFiles {
		check(t, os.WriteFile(filepath.Join(bulk, fmt.Sprint(i)), random(bulkFile, uint64(i)), 0o644))
	}
	dir := lab.Dir(t)
	c.plain, c.trail = lab.MakeDir(t, dir, "plain"), lab.MakeDir(t, dir, "trail")
	c.pair = relate(t, c.source, c.target)
	p.takeOver()
	return p
}

const bulkDir = "bulk"

func (p *power) backing(m *lab.Machine) string {
	p.t.Helper()
	dir := lab.MakeDir(p.t, m.Disk, "data")
	check(p.t, unix.Chmod(dir, 0o1777))
	return dir
}

func (p *power) report() {
	n := p.counts
	p.t.Logf("seed %d, %d calls: the source lost its power %d times, the target %d times, %d of them while they reconciled; "+
		"%d synced files were kept; the target had to say %d times that it may be wrong; %d bytes went over after cuts of the source",
		*seedFlag, p.history.calls, n.source, n.target, n.again, n.kept, n.doubtful, n.sent)
}

// play is one round.
func (p *power) play() {
	p.t.Helper()
	source, target := p.round%5 != 1, p.round%5 == 1 || p.round%5 == 2
	again := p.round%5 > 2
	p.loseUnderLoad(source, target)
	p.t.Logf("round %d: power lost by source %v, target %v, after call %d", p.round, source, target, p.history.calls)
	before := p.a.Namespace.WireBytes(p.t)
	p.recover(source, target)
	if again { // in the middle of their coming to terms
		time.Sleep(time.Duration(p.r.IntN(700)) * time.Millisecond)
		source, target := p.round%5 == 3, p.round%5 == 4
		check(p.t, p.cut(source, target))
		p.counts.again++
		p.recoverAgain(source, target)
	}
	if source {
		p.takeOver()
	}
	p.agree(fmt.Sprintf("round %d, power lost by source %v, target %v, again %v", p.round, source, target, again))
	if sent := p.a.Namespace.WireBytes(p.t) - before; source {
		p.counts.sent += sent
		if sent > mostOfBulk {
			p.t.Errorf("round %d: %d bytes went over after the power cut, the files that nobody changed have %d", p.round, sent, bulkFiles*bulkFile)
		}
	}
	p.areTrusted()
	if p.round/2%restEvery == restEvery-1 {
		p.rest()
	}
}

// loseUnderLoad makes calls on the source until the power goes.
func (p *power) loseUnderLoad(source, target bool) {
	p.t.Helper()
	clear(p.promises)
	p.going.Store(false)
	w := newWeather(p.machines(source, target), p.r)
	gone := make(chan error, 1)
	moment := time.Duration(50+p.r.IntN(longestPower)) * time.Millisecond
	go func() {
		time.Sleep(moment)
		p.going.Store(true)
		gone <- p.cut(source, target)
	}()
	err := error(nil)
	for over := false; !over; {
		select {
		case err = <-gone:
			over = true
		default:
			if !p.step() {
				if !source {
					p.t.Fatalf("round %d: a call failed and the source has power", p.round)
				}
				err, over = <-gone, true
			}
		}
	}
	w.end()
	check(p.t, err)
	if !source {
		for range p.r.IntN(100) * callsPerChange {
			p.step()
		}
	}
}

func (p *power) machines(source, target bool) (m []*lab.Machine) {
	if source {
		m = append(m, p.from)
	}
	if target {
		m = append(m, p.to)
	}
	return m
}

func (p *power) cut(source, target bool) error {
	for _, m := range p.machines(source, target) {
		if err := m.CutPower(rand.IntN(2) == 0); err != nil {
			return err
		}
	}
	if source {
		p.counts.source++
	}
	if target {
		p.counts.target++
	}
	return nil
}

// step makes a call on the source, or syncs a file; false when that failed.
func (p *power) step() bool {
	p.t.Helper()
	if p.r.IntN(12) == 0 && len(p.history.files) > 0 {
		return p.sync(p.history.files[p.history.pick()])
	}
	next := p.history.draw()
	if next.file != "" && p.r.IntN(4) == 0 {
		next = p.quietly(next)
	}
	err := next.in(p.source.Mount)
	p.happened(next)
	p.follows(next)
	return err == nil
}

// quietly is a call that leaves the file's times as they were.
func (p *power) quietly(c call) call {
	do, file := c.do, c.file
	c.died, c.inPages, c.repeats = nil, nil, false
	c.do = func(dir string) error {
		path := filepath.Join(dir, file)
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return err
		}
		if err := do(dir); err != nil {
			return err
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{st.Atim, st.Mtim}, 0)
	}
	return c
}

// recover gives machines their power back and looks at what is there, the target's before anything new arrives.
func (p *power) recover(source, target bool) {
	p.t.Helper()
	p.a.Namespace.Cut(p.t)
	defer p.a.Namespace.Mend(p.t)
	if source {
		p.from.Recover()
		p.areKept()
	}
	if target {
		p.to.Recover()
		p.to.Start()
		off, err := p.offTrail(p.target.Mount)
		if err != nil { // what kept the recovery point is not whole
			off = err.Error()
		}
		if off != "" {
			p.doubts(off)
		}
	}
	if source {
		p.from.Start()
		if s := p.pair.Status(p.a); !strings.Contains(s.Progress.Comparing, wentDown) {
			p.t.Fatalf("round %d: the source lost its power, and says that it compares because of %q", p.round, s.Progress.Comparing)
		}
	}
}

// wentDown is what both ends say of it, each in its own words.
const wentDown = "power was lost"

// recoverAgain is recover when what the target shows may be something in between.
func (p *power) recoverAgain(source, target bool) {
	p.t.Helper()
	for _, m := range p.machines(source, target) {
		m.Recover()
		m.Start()
	}
}

// doubts makes sure that the target says that what it shows may be wrong.
func (p *power) doubts(off string) {
	p.t.Helper()
	p.counts.doubtful++
	if s := p.pair.Status(p.b); !strings.Contains(s.LastError, wentDown) {
		p.t.Fatalf("round %d: the target says %q, but %s", p.round, s.LastError, off)
	}
}

// takeOver takes what the source has for what it should have, and goes on from there.
func (p *power) takeOver() {
	p.t.Helper()
	if err := os.Remove(filepath.Join(p.source.Mount, counterBefore)); err != nil && !os.IsNotExist(err) {
		p.t.Fatal(err)
	}
	for _, dir := range []string{p.plain, p.trail} {
		check(p.t, become(dir, p.source.Mount))
	}
	h := p.history
	h.calls = (h.calls + callsPerChange - 1) / callsPerChange * callsPerChange
	h.files, h.dirs = nil, nil
	inodes := map[uint64]int{}
	for _, e := range scan(p.t, p.plain).Entries {
		switch {
		case e.Path == counter || e.Path == "" || e.Path == "." || strings.HasPrefix(e.Path, bulkDir):
		case e.Mode&unix.S_IFMT == unix.S_IFDIR:
			h.dirs = append(h.dirs, e.Path)
		default:
			var st unix.Stat_t
			check(p.t, unix.Lstat(filepath.Join(p.plain, e.Path), &st))
			if inodes[st.Ino] == 0 {
				h.next++
				inodes[st.Ino] = h.next
			}
			h.files = append(h.files, fileName{e.Path, inodes[st.Ino]})
		}
	}
	p.behind, p.ahead = nil, 0
}

// agree waits until both are equal.
func (p *power) agree(when string) {
	p.t.Helper()
	if d := p.differences(p.source.Mount, p.plain); len(d) > 0 {
		p.t.Fatalf("%s: the source differs from what was written:\n%s", when, strings.Join(d, "\n"))
	}
	for {
		before := p.pair.Quiet(2 * time.Minute)
		differences := p.apart()
		if len(differences) == 0 {
			break
		}
		after := p.pair.Status(p.a)
		if lab.IsQuiet(after) == nil && after.RecoveryPoint.Epoch == before.RecoveryPoint.Epoch {
			time.Sleep(time.Second)
			p.t.Fatalf("%s, source and target differ:\n%s\nand a second later:\n%s", when, strings.Join(differences, "\n"), strings.Join(p.apart(), "\n"))
		}
		p.t.Logf("%s: not quiet yet, recovery point %d, and now %d", when, before.RecoveryPoint.Epoch, after.RecoveryPoint.Epoch)
	}
	p.catchUp()
}

// apart tells how the directories and mounts of source and target differ.
func (p *power) apart() (differences []string) {
	at, err := tree.Scan(p.source.Backing)
	for _, dir := range []string{p.target.Backing, p.source.Mount, p.target.Mount} {
		if err != nil {
			break
		}
		var m *tree.Manifest
		if m, err = tree.Scan(dir); err == nil {
			differences = append(differences, tree.Compare(at, m, tree.Options{IgnoreHoles: true})...)
		}
	}
	if err != nil {
		differences = append(differences, err.Error())
	}
	return differences
}

// areTrusted makes sure that neither journal remembers a power cut.
func (p *power) areTrusted() {
	p.t.Helper()
	for _, v := range []*volume{p.source, p.target} {
		lab.Eventually(p.t, 10*time.Second, "the journal of "+v.Name+" is trusted", func() error {
			mark, err := os.ReadFile(filepath.Join(v.Backing, tree.StateDir, "journal", "mark"))
			if err == nil && slices.Contains(strings.Split(string(mark), "\n"), "power lost") {
				err = fmt.Errorf("it says that power was lost")
			}
			return err
		})
	}
}

// rest starts both daemons anew: nothing goes over on that account.
func (p *power) rest() {
	p.t.Helper()
	before := p.a.Namespace.WireBytes(p.t)
	for _, m := range []*lab.Machine{p.from, p.to} {
		m.Node.Stop()
		m.Start()
	}
	p.agree(fmt.Sprintf("round %d, started anew", p.round))
	if sent := p.a.Namespace.WireBytes(p.t) - before; sent > bulkFile {
		p.t.Errorf("round %d: %d bytes went over after a clean start", p.round, sent)
	}
}
