package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/integration/lab"
	"tandemfs/integration/tree"
)

// How the rounds of the test below are asked for.
const (
	roundsVariable = "TANDEMFS_CRASH_ROUNDS" // how many; a few if it is not set
	pointsVariable = "TANDEMFS_CRASH_POINTS" // an expression: only the points that it matches
	pointVariable  = "TANDEMFS_CRASHPOINT"   // what a daemon is told at its start: docs/testing.md
	// allPointsRounds is from how many rounds on every point must have been hit.
	allPointsRounds = 500
)

const (
	crashRounds  = 30
	longestLoad  = 5 * time.Second // until a point is reached, or it counts as not hit
	betweenActs  = 160             // calls
	mostOfVolume = 3               // snapshots
	smallLog     = 64 << 10        // of the journal, so that it is absorbed several times in a round
)

// TestWhatWasKilledAtAnyMomentIsAsItWas kills the source's daemon, or the target's, in each round: at a random
// moment of a load, or at one of the points that the program marks in operations of several steps. What is
// there after the restart must be what was there before; only the call that was under way may or may not have
// happened. Replication goes on, and the copy equals its source.
func TestWhatWasKilledAtAnyMomentIsAsItWas(t *testing.T) {
	rounds := crashRounds
	if n, err := strconv.Atoi(os.Getenv(roundsVariable)); err == nil {
		rounds = n
	}
	c := newCrash(t)
	points := c.choosePoints()
	defer c.report(points)
	c.agree("at first")
	for c.round = range rounds {
		point := ""
		if c.round%4 > 0 {
			point = points[c.turn%len(points)]
			c.turn++
		}
		c.play(point)
	}
	if rounds < allPointsRounds {
		return
	}
	for _, p := range points {
		if c.hits[p] == 0 {
			t.Errorf("the point %s was never hit", p)
		}
	}
}

// A crash is two nodes, a source and its copy, and what they should have.
type crash struct {
	t              *testing.T
	r              *rand.Rand
	round          int
	turn           int // how many rounds were for a named point
	a, b           *lab.Node
	source, target *volume
	pair           *lab.Pair // nil: none
	extra          string    // the directory of a volume that comes and goes
	history        *steps
	plain          string   // has what the source has
	trail          string   // has what the target showed when it was looked at last
	behind         []call   // what the source did in this round
	ahead          int      // how much of it the trail has
	asked          *pending // what was under way when the daemon died; nil: nothing
	unused         []string // copies of the source that only the trail still needs
	serial         int      // of snapshots
	kept           map[*volume]map[string]*tree.Manifest
	saved          map[string]savedTree // the same for snapshots of the source, to go back to

	hits            map[string]int
	missed, moments int
}

// savedTree is what a history was when a snapshot was taken.
type savedTree struct {
	dir   string
	files []fileName
	dirs  []string
}

// pending is something that was asked for and not answered.
type pending struct {
	what    string
	outcome func() error // finds out whether it has happened, after the restart
}

func newCrash(t *testing.T) *crash {
	c := &crash{t: t, r: rand.New(rand.NewPCG(seed(t, 95), 1)), history: newSteps(seed(t, 96)), hits: map[string]int{},
		kept: map[*volume]map[string]*tree.Manifest{}, saved: map[string]savedTree{}}
	c.a, c.b = two(t)
	c.source = newVolume(t, c.a, "data", lab.Ext4, 4*gib, nil)
	c.target = newVolume(t, c.b, "copy", lab.Ext4, 4*gib, nil)
	for _, v := range []*volume{c.source, c.target} {
		c.kept[v] = map[string]*tree.Manifest{}
		v.Node.Stop() // then nothing is in the logs
		for _, name := range []string{"intent-a.log", "intent-b.log"} {
			check(t, os.Truncate(filepath.Join(v.Backing, tree.StateDir, "journal", name), smallLog))
		}
		v.Node.Start()
	}
	c.extra = lab.MakeDir(t, lab.Disk(t, lab.Ext4, gib), "extra")
	dir := lab.Dir(t)
	c.plain, c.trail = lab.MakeDir(t, dir, "plain"), lab.MakeDir(t, dir, "trail")
	for _, d := range []string{c.plain, c.trail} {
		check(t, unix.Chmod(d, 0o1777))
	}
	c.pair = relate(t, c.source, c.target)
	return c
}

// choosePoints reads the names of all points from the program's source, in a random order.
func (c *crash) choosePoints() []string {
	only, err := regexp.Compile(os.Getenv(pointsVariable))
	check(c.t, err)
	marks := regexp.MustCompile(`crashpoint\.Here\("([^"]+)"\)`)
	var points []string
	for _, room := range []string{"journal", "fs", "replicator", "cmd"} {
		check(c.t, filepath.WalkDir(filepath.Join("..", room), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			for _, m := range marks.FindAllSubmatch(text, -1) {
				if only.Match(m[1]) {
					points = append(points, string(m[1]))
				}
			}
			return err
		}))
	}
	slices.Sort(points)
	if len(slices.Compact(slices.Clone(points))) != len(points) || len(points) == 0 {
		c.t.Fatalf("the points are not all different: %v", points)
	}
	c.r.Shuffle(len(points), func(i, j int) { points[i], points[j] = points[j], points[i] })
	return points
}

func (c *crash) report(points []string) {
	never := []string{}
	for _, p := range slices.Sorted(slices.Values(points)) {
		if c.hits[p] == 0 {
			never = append(never, p)
		}
	}
	c.t.Logf("%d rounds, seed %d: %d kills at random moments, %d where a point was not reached in time, at points: %v; never hit: %v",
		c.round+1, *seedFlag, c.moments, c.missed, c.hits, never)
}

// An occasion is what brings a daemon to points that writing files alone does not.
type occasion struct {
	points *regexp.Regexp
	victim string // "source", "target", or "" for either
	do     func(*crash, *volume)
	most   int // how often the point is passed at most before it kills; 0: a few times
}

var occasions = []occasion{
	{regexp.MustCompile(`^replicator/(end|claimed|target-cleared)|^daemon/read-only`), "target", (*crash).breakAndRelate, 1},
	{regexp.MustCompile(`^daemon/volume`), "", (*crash).comeAndGo, 1},
	{regexp.MustCompile(`^volume/restore`), "source", (*crash).restore, 1},
	{regexp.MustCompile(`^volume/undo`), "source", (*crash).restore, 5},
	{regexp.MustCompile(`^volume/(snapshot|reclaim)|^journal/(sweep|released)`), "", (*crash).snapshot, 2},
	{regexp.MustCompile(`^volume/(made|exchanged|replaced|linked)`), "source", (*crash).snapshot, 10},
	{regexp.MustCompile(`^volume/content|^volume/retained|^journal/recorded`), "", (*crash).snapshot, 200},
	{regexp.MustCompile(`^volume/(moved|placed|created|dropped)|^replicator/target-item`), "target", (*crash).nothing, 200},
	{regexp.MustCompile(`^volume/commit|^replicator/target`), "target", (*crash).nothing, 5},
	{regexp.MustCompile(`^replicator/source`), "source", (*crash).nothing, 5},
	{regexp.MustCompile(`^volume/(publish|turned)`), "", (*crash).restoreOrNot, 2},
	{regexp.MustCompile(``), "", (*crash).anything, 5},
}

// play is one round. An empty point stands for a random moment.
func (c *crash) play(point string) {
	c.t.Helper()
	i := slices.IndexFunc(occasions, func(o occasion) bool { return point != "" && o.points.MatchString(point) })
	if point == "" {
		i = len(occasions) - 1
	}
	o := occasions[i]
	victim := c.source
	if o.victim == "target" || o.victim == "" && c.r.IntN(2) == 0 {
		victim = c.target
	}
	moment := time.Duration(c.r.IntN(700)) * time.Millisecond
	if point != "" {
		moment = longestLoad
		c.arm(victim.Node, fmt.Sprint(pointVariable, "=", point, ":", 1+c.r.IntN(o.most)))
	}
	kill := time.AfterFunc(moment, func() { syscall.Kill(victim.Node.PID(), syscall.SIGKILL) })
	c.load(victim, o)
	how := c.count(victim.Node, point, kill.Stop())
	c.t.Logf("round %d: node %s killed %s, after call %d", c.round, victim.Node.Name, how, c.history.calls)
	if c.asked != nil {
		c.t.Logf("under way was %s", c.asked.what)
	}
	c.revive(victim)
	c.agree(fmt.Sprintf("round %d, node %s killed %s", c.round, victim.Node.Name, how))
}

// arm starts a daemon anew with a point armed, which it may come to at once.
func (c *crash) arm(n *lab.Node, variable string) {
	c.t.Helper()
	if c.r.IntN(4) == 0 {
		n.Stop()
	} else {
		n.Kill()
	}
	n.TryStart(variable)
}

// count says how the daemon died; byItself: before it was killed from outside.
func (c *crash) count(n *lab.Node, point string, byItself bool) string {
	c.t.Helper()
	switch {
	case !n.WasKilled() || byItself && point == "":
		c.t.Fatalf("node %s ended, and was not killed", n.Name)
	case byItself:
		c.hits[point]++
		return "at " + point
	case point == "":
		c.moments++
	default:
		c.missed++
		return "at a random moment, not having come to " + point
	}
	return "at a random moment"
}

// load makes calls on the source, and now and then something else, until the victim has died.
func (c *crash) load(victim *volume, o occasion) {
	c.t.Helper()
	for acts, i := 0, 20; c.asked == nil && victim.Node.Running(); i++ {
		atChange := c.history.calls%callsPerChange == 0 // and the counter is what it should be
		switch {
		case atChange && i/betweenActs > acts:
			acts++
			o.do(c, victim)
		default:
			c.call(victim)
		}
	}
	if !victim.Node.Ends(10 * time.Second) {
		c.t.Fatalf("round %d: %s failed, and the daemon lives", c.round, c.asked.what)
	}
	if victim == c.target {
		for range c.r.IntN(100) * callsPerChange {
			c.call(victim)
		}
	}
}

// interrupted says that something was not answered, or could not be looked at: the victim must have died.
func (c *crash) interrupted(by error, outcome func() error) {
	c.asked = &pending{by.Error(), outcome}
}

// run runs a command that the death of the daemon may interrupt.
func run(n *lab.Node, args ...string) error {
	if r := n.Run(args...); r.Code != 0 {
		return fmt.Errorf("tandemfs %s: exit code %d: %s", strings.Join(args, " "), r.Code, r.Stderr)
	}
	return nil
}

// call makes the next call.
func (c *crash) call(victim *volume) {
	c.t.Helper()
	next := c.history.draw()
	err := next.in(c.source.Mount)
	switch {
	case err == nil:
		c.happened(next)
	case victim == c.source:
		c.interrupted(err, func() error { return c.callAgain(next) })
	default:
		c.t.Fatal(err)
	}
}

// happened does what the source did on the plain directory, and later on the trail.
func (c *crash) happened(done call) {
	c.t.Helper()
	check(c.t, done.in(c.plain))
	c.behind = append(c.behind, done)
}

// callAgain finds out what a call did that was under way, and has it done.
func (c *crash) callAgain(under call) error {
	effects, err := under.effects(c.source.Mount)
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		differences := c.differences(c.source.Mount, c.plain)
		switch {
		case len(differences) == 0 && (i == 0 || under.repeats):
			if err := under.in(c.source.Mount); err != nil {
				return err
			}
			c.happened(under)
			return nil
		case len(differences) == 0:
			return nil
		case i == len(effects):
			return fmt.Errorf("call %d was under way, and this is none of its outcomes:\n%s", under.number, strings.Join(differences, "\n"))
		}
		c.happened(call{number: under.number, do: effects[i]})
	}
}

// differences compares two trees that were not written at the same time.
func (c *crash) differences(a, b string) []string {
	c.t.Helper()
	return tree.Compare(scan(c.t, a), scan(c.t, b), tree.Options{IgnoreTimes: true, IgnoreHoles: true})
}

// isOnTrail fails unless a directory shows the source as it was after some call, not before the one that was
// found last. It gives the error of a directory that cannot be read.
func (c *crash) isOnTrail(dir string) error {
	c.t.Helper()
	got, err := tree.Scan(dir)
	if err != nil {
		return err
	}
	count, err := readCounter(dir)
	if err != nil {
		return err
	}
	var near []string
	for {
		now, err := readCounter(c.trail)
		check(c.t, err)
		if now == count {
			differences := c.fromTrail(got, dir)
			if len(differences) == 0 {
				return nil
			}
			near = append(append(near, fmt.Sprint("to the state ", c.ahead, ":")), differences...)
		}
		if c.ahead == len(c.behind) {
			c.t.Fatalf("round %d: %s, with counter %q, is at none of the source's states since the last look; the differences to those near it:\n%s",
				c.round, dir, count, strings.Join(near, "\n"))
		}
		c.follow()
	}
}

// readCounter gives how often a directory was changed; "" if never.
func readCounter(dir string) (string, error) {
	text, err := os.ReadFile(filepath.Join(dir, counter))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return string(text), err
}

// fromTrail tells how a directory differs from the trail, which may have to make a part of the next call for it.
func (c *crash) fromTrail(got *tree.Manifest, dir string) []string {
	c.t.Helper()
	o := tree.Options{IgnoreTimes: true, IgnoreHoles: true}
	differences := tree.Compare(got, scan(c.t, c.trail), o)
	if len(differences) == 0 || c.ahead == len(c.behind) || !c.behind[c.ahead].repeats {
		return differences
	}
	parts, err := c.behind[c.ahead].effects(dir)
	if err != nil { // it has no such file
		return differences
	}
	for _, part := range parts {
		check(c.t, part(c.trail))
	}
	if len(tree.Compare(got, scan(c.t, c.trail), o)) == 0 {
		return nil
	}
	return differences
}

// follow has the trail make one of the source's calls.
func (c *crash) follow() {
	c.t.Helper()
	check(c.t, c.behind[c.ahead].in(c.trail))
	c.ahead++
}

// nothing is for points that calls alone lead to.
func (c *crash) nothing(*volume) {}

// anything does one of all things.
func (c *crash) anything(victim *volume) {
	switch c.r.IntN(8) {
	case 0:
		c.restore(victim)
	case 1:
		if victim == c.target {
			c.breakAndRelate(victim)
		}
	case 2, 3:
		c.snapshotOf(c.source, victim)
	case 4, 5:
		c.snapshotOf(c.target, victim)
	}
}

func (c *crash) restoreOrNot(victim *volume) {
	if victim == c.source {
		c.restore(victim)
	}
}

// snapshot takes or deletes a snapshot of the victim.
func (c *crash) snapshot(victim *volume) { c.snapshotOf(victim, victim) }

// try runs a command on a volume's node. Where the death of the victim interrupts it, outcome says after the
// restart what has happened, and otherwise what is to be done now, unless the daemon dies then.
func (c *crash) try(v, victim *volume, outcome func() error, args ...string) bool {
	c.t.Helper()
	err := run(v.Node, args...)
	if err == nil {
		err = outcome()
	}
	if err == nil {
		return true
	}
	if v != victim {
		c.t.Fatalf("round %d, node %s: %v", c.round, v.Node.Name, err)
	}
	c.interrupted(err, outcome)
	return false
}

// snapshotOf takes a snapshot of a volume, or deletes one.
func (c *crash) snapshotOf(v, victim *volume) {
	c.t.Helper()
	names := slices.Sorted(maps.Keys(c.kept[v]))
	if len(names) > 0 && (len(names) >= mostOfVolume || c.r.IntN(2) == 0) {
		name := names[c.r.IntN(len(names))]
		c.try(v, victim, func() error { return c.takeStock(v) }, "snapshot", "delete", v.Name, name, "--yes")
		return
	}
	c.serial++
	c.try(v, victim, func() error { return c.takeStock(v) }, "snapshot", "create", v.Name, "--name", fmt.Sprint("s", c.serial))
}

// takeStock learns which snapshots a volume has. A new one must show what the source is now, or what the
// target showed when it was taken.
func (c *crash) takeStock(v *volume) error {
	c.t.Helper()
	names, err := c.list(v)
	if err != nil {
		return err
	}
	for name := range c.kept[v] {
		if !slices.Contains(names, name) {
			delete(c.kept[v], name)
			c.unused = append(c.unused, c.saved[name].dir)
			delete(c.saved, name)
		}
	}
	for _, name := range names {
		if c.kept[v][name] != nil {
			continue
		}
		if err := c.keep(v, name); err != nil {
			return err
		}
	}
	return nil
}

// list gives the names of a volume's snapshots.
func (c *crash) list(v *volume) ([]string, error) {
	r := v.Node.Run("snapshot", "list", v.Name, "--json")
	if r.Code != 0 {
		return nil, errors.New(r.Stderr)
	}
	var list struct{ Snapshots []struct{ Name string } }
	err := json.Unmarshal([]byte(r.Stdout), &list)
	var names []string
	for _, s := range list.Snapshots {
		names = append(names, s.Name)
	}
	return names, err
}

// keep notes what a new snapshot shows.
func (c *crash) keep(v *volume, name string) error {
	c.t.Helper()
	shown, err := tree.Scan(v.snapshotPath(name))
	if err != nil {
		return err
	}
	if v == c.target {
		if err := c.isOnTrail(v.snapshotPath(name)); err != nil {
			return err
		}
	} else {
		sameTrees(c.t, fmt.Sprintf("round %d, snapshot %s", c.round, name), scan(c.t, c.plain), shown, tree.Options{IgnoreTimes: true, IgnoreHoles: true})
		c.saved[name] = savedTree{c.copyOf(c.plain), slices.Clone(c.history.files), slices.Clone(c.history.dirs)}
	}
	c.kept[v][name] = shown
	return nil
}

// copyOf copies a directory to a new one.
func (c *crash) copyOf(dir string) string {
	c.t.Helper()
	c.serial++
	to := filepath.Join(filepath.Dir(c.plain), fmt.Sprint("copy", c.serial))
	if out, err := exec.Command("cp", "-a", dir, to).CombinedOutput(); err != nil {
		c.t.Fatalf("cp: %v\n%s", err, out)
	}
	return to
}

// become makes a directory equal to another one.
func become(dir, other string) error {
	names, err := os.ReadDir(dir)
	for _, n := range names {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, n.Name())))
	}
	if err != nil {
		return err
	}
	out, err := exec.Command("cp", "-a", other+"/.", dir).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("cp: %w\n%s", err, out)
	}
	return err
}

// restore brings a snapshot of the source back.
func (c *crash) restore(victim *volume) {
	c.t.Helper()
	names := slices.Sorted(maps.Keys(c.kept[c.source]))
	if len(names) == 0 || len(names) > mostOfVolume {
		c.snapshotOf(c.source, victim)
		return
	}
	name := names[c.r.IntN(len(names))]
	c.try(c.source, victim, func() error {
		if err := c.takeStock(c.source); err != nil { // with the one that was taken first
			return err
		}
		shown, err := tree.Scan(c.source.Mount)
		if err != nil {
			return err
		}
		if len(tree.Compare(shown, scan(c.t, c.plain), tree.Options{IgnoreTimes: true, IgnoreHoles: true})) > 0 {
			c.restored(c.saved[name])
		}
		return nil
	}, "snapshot", "restore", c.source.Name, name, "--yes")
}

// restored notes that the source is what it was when a snapshot was taken.
func (c *crash) restored(s savedTree) {
	c.t.Helper()
	c.happened(call{do: func(dir string) error { return become(dir, s.dir) }})
	c.history.files, c.history.dirs = slices.Clone(s.files), slices.Clone(s.dirs)
}

// breakAndRelate ends the relationship at the target and begins another one.
func (c *crash) breakAndRelate(victim *volume) {
	c.t.Helper()
	if c.pair != nil && !c.try(c.target, victim, c.ended, "relationship", "delete", "--yes", c.pair.ID) {
		return
	}
	c.relate(victim)
}

// ended makes sure that the relationship is no more, and the target a recovery point that can be written to.
func (c *crash) ended() error {
	if c.pair == nil {
		return nil
	}
	if c.b.Run("relationship", "status", c.pair.ID).Code != exitNotFound {
		if err := run(c.b, "relationship", "delete", "--yes", c.pair.ID); err != nil {
			return err
		}
	}
	if err := c.isOnTrail(c.target.Mount); err != nil {
		return err
	}
	probe := filepath.Join(c.target.Mount, "writable")
	if err := os.WriteFile(probe, nil, 0o600); err != nil {
		return err
	}
	if err := os.Remove(probe); err != nil {
		return err
	}
	c.a.Run("relationship", "delete", "--yes", c.pair.ID) // it may not know yet that it is over
	c.pair = nil
	return nil
}

// relate makes the target a copy of the source, as far as it is not, unless the victim dies meanwhile.
func (c *crash) relate(victim *volume) {
	c.t.Helper()
	if c.pair == nil && !c.propose(victim) {
		return
	}
	lab.Eventually(c.t, time.Minute, "the relationship is established", func() error {
		if victim != nil && !victim.Node.Running() {
			return nil
		}
		var s statusOf
		r := c.b.Run("relationship", "status", c.pair.ID, "--json")
		if r.Code != 0 {
			return errors.New(r.Stderr)
		}
		if err := json.Unmarshal([]byte(r.Stdout), &s); err != nil {
			return err
		}
		switch s.State {
		case "established":
			return nil
		case "awaiting-authorization":
			c.b.Run("relationship", "authorize", "--yes", "--allow-non-empty", c.pair.ID)
		}
		return fmt.Errorf("it is %s", s.State)
	})
	if victim != nil && !victim.Node.Running() { // agree goes on with it
		c.interrupted(errors.New("the beginning of a relationship"), func() error { return nil })
	}
}

// propose creates a relationship, unless the victim dies meanwhile.
func (c *crash) propose(victim *volume) bool {
	c.t.Helper()
	r := c.a.Run("relationship", "create", "--source", c.source.Name,
		"--target", c.b.Namespace.Address, "--target-volume", c.target.Name, "--json")
	var created statusOf
	err := json.Unmarshal([]byte(r.Stdout), &created)
	if r.Code == 0 && err == nil {
		c.pair = lab.Related(c.t, c.a, c.b, created.ID)
		return true
	}
	if victim == nil || !victim.Node.Ends(10*time.Second) {
		c.t.Fatalf("round %d: create a relationship: %v\n%s", c.round, err, r.Stderr)
	}
	c.interrupted(errors.New(r.Stderr), func() error { return nil })
	return false
}

// comeAndGo makes another volume and removes it.
func (c *crash) comeAndGo(victim *volume) {
	c.t.Helper()
	n := victim.Node
	gone := func() error {
		if r := n.Run("volume", "show", "extra"); r.Code != exitNotFound {
			if err := run(n, "volume", "remove", "extra", "--yes"); err != nil {
				return err
			}
		}
		names, err := os.ReadDir(c.extra)
		if err == nil && len(names) > 0 {
			err = fmt.Errorf("the directory of the volume that was removed has %v", names)
		}
		return err
	}
	c.try(victim, victim, gone, "volume", "create", "extra", c.extra)
}

// revive starts the daemon that died and looks at its volume, the target's before anything new arrives.
func (c *crash) revive(v *volume) {
	c.t.Helper()
	if v == c.target {
		c.a.Namespace.Cut(c.t)
		defer c.a.Namespace.Mend(c.t)
	}
	established := c.pair != nil
	v.Node.Start()
	m := onlyMount(c.t, v.Mount)
	if v == c.source && m.Has("ro") || v == c.target && c.asked == nil && established && !m.Has("ro") {
		c.t.Fatalf("round %d: the mount of %s has the options %v", c.round, v.Name, m.Options)
	}
	if c.asked != nil {
		if err := c.asked.outcome(); err != nil {
			c.t.Fatalf("round %d: after %s: %v", c.round, c.asked.what, err)
		}
		c.asked = nil
	}
	if v == c.target {
		check(c.t, c.isOnTrail(v.Mount))
	}
	c.sameSnapshots(v)
}

// sameSnapshots compares a volume's snapshots with what they were.
func (c *crash) sameSnapshots(v *volume) {
	c.t.Helper()
	names, err := c.list(v)
	check(c.t, err)
	slices.Sort(names)
	if kept := slices.Sorted(maps.Keys(c.kept[v])); !slices.Equal(names, kept) {
		c.t.Fatalf("round %d: volume %s has the snapshots %v, want %v", c.round, v.Name, names, kept)
	}
	for _, name := range names {
		sameSnapshot(c.t, fmt.Sprintf("round %d, snapshot %s of %s", c.round, name, v.Name), c.kept[v][name], v, name, tree.Options{})
	}
}

// agree waits until replication has gone on, and compares everything.
func (c *crash) agree(when string) {
	c.t.Helper()
	c.relate(nil)
	if d := c.differences(c.source.Mount, c.plain); len(d) > 0 {
		c.t.Fatalf("%s: the source differs from what was written:\n%s", when, strings.Join(d, "\n"))
	}
	sameCopy(c.t, when, c.source, c.target, c.pair)
	if !onlyMount(c.t, c.target.Mount).Has("ro") {
		c.t.Fatalf("%s: the target is writable", when)
	}
	c.sameSnapshots(c.source)
	c.sameSnapshots(c.target)
	for c.ahead < len(c.behind) {
		c.follow()
	}
	c.behind, c.ahead = nil, 0
	for _, dir := range c.unused {
		check(c.t, os.RemoveAll(dir))
	}
	c.unused = nil
}
