package integration

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/integration/faultproxy"
	"tandemfs/integration/lab"
	"tandemfs/integration/tree"
)

// netfaultVariable says how many rounds the test below has; a few short ones if it is not set.
const netfaultVariable = "TANDEMFS_NETFAULT"

// silenceIsSaid bounds how long the ends may take to say that the other is gone: the protocol's 15 seconds of
// silence, and much for a machine that is busy.
const silenceIsSaid = time.Minute

// A fault is what goes wrong in a round, from begin to end.
type fault struct {
	name       string
	begin, end func()
	silent     bool // neither end hears the other, and nobody tells them
}

// troubled is a relationship whose network goes wrong, with a writer on the source.
type troubled struct {
	t              *testing.T
	source, target *volume
	pair           *lab.Pair
	proxy          *faultproxy.Proxy
	r              *rand.Rand
	history, again *steps
	plain          string // where again is played
	scans          int    // of the target in the middle of faults
}

func newTroubled(t *testing.T) *troubled {
	a, b := two(t)
	x := &troubled{t: t, r: rand.New(rand.NewPCG(seed(t, 120), 0)), history: newSteps(seed(t, 121)), again: newSteps(seed(t, 121))}
	x.source = newVolume(t, a, "data", lab.Ext4, 4*gib, nil)
	x.target = newVolume(t, b, "copy", lab.Ext4, 4*gib, nil)
	listener := a.Namespace.Listen(t)
	x.proxy = faultproxy.Start(listener, func() (net.Conn, error) { return a.Namespace.Dial(b.Namespace.Address + ":3712") }, seed(t, 122))
	t.Cleanup(func() { check(t, x.proxy.Close()) })
	x.pair = lab.RelateAt(t, a, "data", b, "copy", listener.Addr().String())
	x.plain = filepath.Join(lab.Dir(t), "again")
	check(t, os.Mkdir(x.plain, 0))
	check(t, unix.Chmod(x.plain, 0o1777))
	return x
}

// faults are those of the proxy, and those of the wire between the proxy and the target.
func (x *troubled) faults() []fault {
	var all []fault
	for _, f := range faultproxy.Faults {
		all = append(all, fault{"the proxy " + string(f), func() { x.proxy.Begin(f) }, x.proxy.End, f == faultproxy.Stalls})
	}
	a, b := x.source.Node.Namespace, x.target.Node.Namespace
	return append(all,
		fault{"the wire is cut at the source", func() { a.Cut(x.t) }, func() { a.Mend(x.t) }, false},
		fault{"the wire is cut at the target", func() { b.Cut(x.t) }, func() { b.Mend(x.t) }, true},
		fault{"the wire loses all to the target", func() { a.Mute(x.t, b) }, func() { a.Unmute(x.t, b) }, false},
		fault{"the wire loses all to the source", func() { b.Mute(x.t, a) }, func() { b.Unmute(x.t, a) }, false},
		fault{"the wire is narrow", func() { a.Narrow(x.t) }, func() { a.Widen(x.t) }, false},
		x.flapping())
}

// flapping cuts the wire and mends it again and again.
func (x *troubled) flapping() fault {
	var stop chan struct{}
	var ended sync.WaitGroup
	wire := x.source.Node.Namespace
	return fault{"the wire is cut and mended again and again", func() {
		stop = make(chan struct{})
		ended.Go(func() {
			for {
				wire.Cut(x.t)
				time.Sleep(50 * time.Millisecond)
				wire.Mend(x.t)
				select {
				case <-stop:
					return
				case <-time.After(150 * time.Millisecond):
				}
			}
		})
	}, func() {
		close(stop)
		ended.Wait()
	}, false}
}

// write makes calls until it is told to stop, with a pause between two. Every one must succeed.
func (x *troubled) write(stop <-chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		case <-time.After(500 * time.Microsecond):
		}
		if err := x.history.call(x.source.Mount); err != nil {
			return err
		}
	}
}

// round lets one thing go wrong for a while under load, and demands that it heals.
func (x *troubled) round(number int, f fault, patient bool) {
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- x.write(stop) }()
	begun := time.Now()
	f.begin()
	if patient && f.silent {
		x.bothSayGone(f)
	}
	longest := 800
	if patient {
		longest = 4000
	}
	time.Sleep(time.Duration(200+x.r.IntN(longest)) * time.Millisecond)
	x.showsAPoint(number)
	f.end()
	lasted := time.Since(begun)
	before := x.pair.Status(x.target.Node).RecoveryPoint.Epoch
	x.pair.Await(x.target.Node, 2*time.Minute, "goes on after "+f.name, func(s statusOf) error {
		if s.RecoveryPoint.Epoch <= before {
			return fmt.Errorf("it is at seal %d, job %s, last error %q", s.RecoveryPoint.Epoch, s.Job, s.LastError)
		}
		return nil
	})
	healed := time.Since(begun) - lasted
	close(stop)
	check(x.t, <-ended)
	sameCopy(x.t, "after "+f.name, x.source, x.target, x.pair)
	x.t.Logf("round %d: %s for %.1f s, went on after %.1f s", number, f.name, lasted.Seconds(), healed.Seconds())
}

// bothSayGone waits until the status of either end says that the peer is gone.
func (x *troubled) bothSayGone(f fault) {
	for _, n := range []*lab.Node{x.source.Node, x.target.Node} {
		x.pair.Await(n, silenceIsSaid, "says that the peer is gone while "+f.name, isGone)
	}
}

// isGone gives nil when a status says that the peer is gone, and why that is thought.
func isGone(s statusOf) error {
	if s.Job != "disconnected" || s.LastError == "" {
		return fmt.Errorf("the job is %s, last error %q", s.Job, s.LastError)
	}
	return nil
}

// showsAPoint takes stock of the target's mount, at a time when no recovery point comes, and demands that this
// is the tree after some number of calls. Where points come all the time it gives up: then others look.
func (x *troubled) showsAPoint(number int) {
	for range 5 {
		before := x.pair.Status(x.target.Node).RecoveryPoint.Epoch
		got, err := tree.Scan(x.target.Mount)
		if x.pair.Status(x.target.Node).RecoveryPoint.Epoch != before || before == 0 {
			continue
		}
		check(x.t, err)
		changes := 0
		if text, err := os.ReadFile(filepath.Join(x.target.Mount, counter)); err == nil {
			changes, err = strconv.Atoi(string(text))
			check(x.t, err)
		}
		if x.pair.Status(x.target.Node).RecoveryPoint.Epoch != before {
			continue
		}
		isCall(x.t, fmt.Sprint("round ", number), got, changes, x.again, x.plain)
		x.scans++
		return
	}
}

// TestTheCopyOutlivesAnyFaultOfTheNetwork: writers notice nothing, readers of the target see whole recovery points,
// and what was wrong is forgotten as soon as the network is well.
func TestTheCopyOutlivesAnyFaultOfTheNetwork(t *testing.T) {
	rounds, patient := 10, false
	if n, err := strconv.Atoi(os.Getenv(netfaultVariable)); err == nil {
		rounds, patient = n, true
	}
	x := newTroubled(t)
	x.pair.Quiet(time.Minute)
	faults, counts := x.faults(), map[string]int{}
	for round := range rounds {
		if round%len(faults) == 0 {
			x.r.Shuffle(len(faults), func(i, j int) { faults[i], faults[j] = faults[j], faults[i] })
		}
		f := faults[round%len(faults)]
		x.round(round, f, patient)
		counts[f.name]++
	}
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		lines = append(lines, fmt.Sprintf("%4d  %s", counts[name], name))
	}
	t.Logf("%d rounds, %d calls, the proxy struck %d times, the target was looked at %d times in the middle of a fault\n%s",
		rounds, x.history.calls, x.proxy.Struck(), x.scans, strings.Join(lines, "\n"))
	if x.scans == 0 {
		t.Error("the target was never looked at in the middle of a fault")
	}
}
