package integration

import (
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
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
	armed          string   // what the victim was told of a point
	emptied        bool     // the target was, and may be so still
	asked          *pending // what was under way when the daemon died; nil: nothing
	unused         []string // copies that nothing needs after the round
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
		c.shrinkLogs(v)
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

// shrinkLogs makes the logs of a volume's journal small.
func (c *crash) shrinkLogs(v *volume) {
	c.t.Helper()
	v.Node.Stop() // then nothing is in them
	for _, name := range []string{"intent-a.log", "intent-b.log"} {
		check(c.t, os.Truncate(filepath.Join(v.Backing, tree.StateDir, "journal", name), smallLog))
	}
	v.Node.Start()
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
	{regexp.MustCompile(`^replicator/(end|claimed)|^daemon/read-only`), "target", (*crash).breakAndRelate, 1},
	{regexp.MustCompile(`^replicator/target-cleared`), "target", (*crash).emptyAndRelate, 1},
	{regexp.MustCompile(`^daemon/journal-aside`), "source", (*crash).rebuild, 1},
	{regexp.MustCompile(`^daemon/volume`), "", (*crash).comeAndGo, 1},
	{regexp.MustCompile(`^volume/restore`), "source", (*crash).restore, 1},
	{regexp.MustCompile(`^volume/undo`), "source", (*crash).restore, 5},
	{regexp.MustCompile(`^volume/(snapshot|reclaim)|^journal/(sweep|released)`), "", (*crash).snapshot, 2},
	{regexp.MustCompile(`^volume/exchanged`), "source", (*crash).snapshot, 1},
	{regexp.MustCompile(`^volume/(made|replaced|linked)`), "source", (*crash).snapshot, 10},
	{regexp.MustCompile(`^volume/retained`), "", (*crash).snapshot, 10},
	{regexp.MustCompile(`^volume/content|^journal/recorded`), "", (*crash).snapshot, 200},
	{regexp.MustCompile(`^volume/(moved|placed|created|dropped)|^replicator/target-item`), "target", (*crash).nothing, 200},
	{regexp.MustCompile(`^volume/commit|^replicator/target`), "target", (*crash).nothing, 5},
	{regexp.MustCompile(`^replicator/source`), "source", (*crash).nothing, 5},
	{regexp.MustCompile(`^volume/(publish|turned)`), "", (*crash).restoreOrNot, 2},
	{regexp.MustCompile(`^journal/(fold|absorb|logs)`), "", (*crash).snapshot, 2},
	{regexp.MustCompile(`^journal/checkpoint`), "", (*crash).nothing, 1},
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
		c.armed = fmt.Sprint(pointVariable, "=", point, ":", 1+c.r.IntN(o.most))
		c.arm(victim.Node)
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
func (c *crash) arm(n *lab.Node) {
	c.t.Helper()
	if c.r.IntN(4) == 0 {
		n.Stop()
	} else {
		n.Kill()
	}
	n.TryStart(c.armed)
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
	c.emptied = false
	if !onlyMount(c.t, c.target.Mount).Has("ro") {
		c.t.Fatalf("%s: the target is writable", when)
	}
	c.sameSnapshots(c.source)
	c.sameSnapshots(c.target)
	c.catchUp()
}

// catchUp brings the trail to what the source is, and removes what nothing needs any more.
func (c *crash) catchUp() {
	c.t.Helper()
	for c.ahead < len(c.behind) {
		c.follow()
	}
	c.behind, c.ahead = nil, 0
	for _, dir := range c.unused {
		check(c.t, os.RemoveAll(dir))
	}
	c.unused = nil
}
