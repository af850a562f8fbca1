package replicator

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"tandemfs/journal"
)

// What was left out must be sent before anything is published, whatever happens in between: connections that break,
// power that is lost, comparisons, repairs.

// leftOutAgain waits until the source cannot read something, after all that was tried by then.
func (p *pair) leftOutAgain() {
	p.t.Helper()
	eventually(p.t, "something is left out", func() bool {
		s := p.src.status(p.id)
		return s.Job == JobFailed && s.Unreadable != nil && p.dst.status(p.id).Job == JobFailed
	})
}

// published fails where readers of the target do not see what the source is.
func (p *pair) publishedEqual() {
	p.t.Helper()
	p.settled()
	if d := differences(p.from.dump(), p.to.shown()); len(d) > 0 {
		text := strings.Join(d, "\n")
		p.t.Errorf("readers see something else:\n%s", text[:min(len(text), 1000)])
	}
}

// every gives an error for reads of data of an inode that touch a byte at a multiple of step.
func every(id journal.Ident, step int64) func(string, journal.Ident, journal.Extent) error {
	return func(what string, of journal.Ident, e journal.Extent) error {
		if of == id && what == "data" && (e.End-1)/step*step >= e.Off {
			return errIO
		}
		return nil
	}
}

func TestAFileWithManyBadPlacesIsSentWholeThoughTheConnectionBreaks(t *testing.T) {
	for _, at := range []int64{1_000_000, 2_000_000, 3_000_000, 3_800_000} {
		t.Run(fmt.Sprint("after ", at, " bytes"), func(t *testing.T) {
			p := newPair(t)
			c := &cutter{after: never}
			p.src.config.Dial = c.dial
			p.src.restart()
			p.create()
			p.from.file(p.from.root, "a", "a")
			p.same()
			p.src.stop()
			f := p.from.file(p.from.root, "f", incompressible(16<<20))
			p.from.setUnread(every(f, 512<<10))
			var dials atomic.Int64
			c.setCut(func() int64 {
				if dials.Add(1) <= 2 {
					return at
				}
				return never()
			})
			p.src.start()
			p.leftOutAgain()
			p.from.setUnread(nil)
			p.publishedEqual()
		})
	}
}

// damaged gives a pair in step, whose target has lost a file behind the back of both.
func damaged(t *testing.T) (*pair, journal.Ident) {
	p := newPair(t).create()
	fill(p.from)
	f := p.from.file(p.from.mkdir(p.from.root, "zd"), "f", incompressible(5*block))
	p.from.setAttr(f, func(_ *journal.Attr, x map[string]string) { x["user.a"] = "b" })
	p.same()
	p.verify(VerifyRequest{}) // the empty transfer that it begins with would publish another seal
	p.to.around(func() {
		d := p.to.nodes[p.to.nodes[p.to.root].names["zd"]]
		delete(p.to.nodes, d.names["f"])
		delete(d.names, "f")
	})
	p.to.hook = p.to.reseal
	return p, f
}

// verify makes a verification and waits for its end.
func (p *pair) verify(q VerifyRequest) Verification {
	p.t.Helper()
	_, err := p.src.Verify(background, p.id, q)
	no(err)
	return p.verified()
}

func (p *pair) repair() {
	p.t.Helper()
	if v := p.verify(VerifyRequest{Repair: true}); v.State != VerifyDone || v.Differences == 0 {
		p.t.Fatalf("%+v", v)
	}
	p.to.hook = nil
}

// contentOf gives an error for all content of an inode.
func contentOf(id journal.Ident) func(string, journal.Ident, journal.Extent) error {
	return func(what string, of journal.Ident, _ journal.Extent) error {
		if of == id && (what == "data" || what == "open") {
			return errIO
		}
		return nil
	}
}

func TestWhatARepairLeavesOutIsNotForgotten(t *testing.T) {
	for name, happens := range map[string]func(p *pair){
		"nothing happens": func(*pair) {},
		"the target loses power": func(p *pair) {
			p.dst.stop()
			p.to.powerCut(p.t)
			p.dst.start()
		},
		"the source loses power": func(p *pair) {
			p.src.stop()
			p.from.powerCut(p.t)
			p.src.start()
		},
		"both restart": func(p *pair) {
			p.dst.restart()
			p.src.restart()
		},
		"another comparison": func(p *pair) {
			o, err := p.src.Manager.origin(p.src.rels[p.id].snapshot().Source.Volume)
			no(err)
			no(o.compare(p.src.rels[p.id], comparison{Reason: reasonAround}, false))
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, f := damaged(t)
			p.from.setUnread(contentOf(f))
			p.repair()
			p.leftOutAgain()
			happens(p)
			p.from.file(p.from.root, "later", "x")
			p.leftOutAgain()
			p.from.setUnread(nil)
			p.publishedEqual()
			if v, err := p.src.Verification(p.id); err != nil || v.Repairing {
				t.Errorf("%+v, %v", v, err)
			}
		})
	}
}

func TestARepairThatFailsAtItsEndKnowsWhatItLeftOut(t *testing.T) {
	p, f := damaged(t)
	p.from.setUnread(contentOf(f))
	var broke atomic.Int64
	p.to.setBroken(func(op string) error {
		if strings.Contains(op, "drop") && p.src.status(p.id).Unreadable != nil && broke.Add(1) == 1 {
			return errIO
		}
		return nil
	})
	p.repair()
	eventually(t, "the target fails", func() bool { return broke.Load() > 0 })
	p.leftOutAgain()
	p.from.setUnread(nil)
	p.publishedEqual()
}

func TestARepairWhoseSealIsGoneIsMadeAnew(t *testing.T) {
	p, _ := damaged(t)
	p.to.setBroken(func(op string) error {
		if op == "create" || strings.Contains(op, "image") {
			return errIO
		}
		return nil
	})
	p.repair()
	eventually(t, "the target fails", func() bool { return p.src.status(p.id).Job == JobFailed })
	p.src.stop()
	p.from.loseSeals()
	p.to.setBroken(nil)
	p.src.start()
	p.from.file(p.from.root, "later", "x")
	p.publishedEqual()
}

// After a comparison that left something out the next transfers build on it, and compare nothing.
func TestWhatIsLeftOutOfAComparisonDoesNotMakeAnotherOne(t *testing.T) {
	p := newPair(t).create()
	bad := p.from.file(p.from.root, "bad", incompressible(5*block))
	p.from.file(p.from.root, "large", incompressible(4<<20))
	p.same()
	p.src.stop()
	p.from.write(bad, 0, "what nobody knows of")
	p.from.powerCut(t)
	p.from.setUnread(contentOf(bad))
	p.src.start()
	p.leftOutAgain()
	var others atomic.Int64
	p.from.setUnread(func(what string, id journal.Ident, e journal.Extent) error {
		if id != bad && what == "data" {
			others.Add(1)
		}
		return contentOf(bad)(what, id, e)
	})
	for i := range 3 {
		name := fmt.Sprint("later", i)
		p.from.file(p.from.root, name, "x")
		eventually(t, "what is written comes", func() bool { return !p.to.at(name).IsZero() })
	}
	if n := others.Load(); n > 20 {
		t.Errorf("%d reads for three small files", n)
	}
	p.from.setUnread(nil)
	p.publishedEqual()
}

// A source that was put back is not trusted, also where all that it has lost was sent behind the recovery point.
func TestASourceThatWasPutBackBehindTheRecoveryPointIsRefused(t *testing.T) {
	for _, how := range []string{"something was left out", "the target failed"} {
		t.Run(how, func(t *testing.T) {
			p := newPair(t).create()
			fill(p.from)
			g := p.from.file(p.from.root, "g", incompressible(5*block))
			bad := p.from.file(p.from.root, "bad", incompressible(5*block))
			p.same()
			p.src.stop()
			reopen := func(dir string) {
				j, err := journal.Open(dir, journal.Options{BootID: fmt.Sprint("boot ", p.from.boots)})
				no(err)
				p.from.j, p.from.dir = j, dir
				t.Cleanup(func() { j.Close() })
			}
			no(p.from.j.Close())
			image, nodes := copyOf(t, p.from.dir), map[journal.Ident]*node{}
			for id, n := range p.from.nodes {
				nodes[id] = n.clone()
			}
			reopen(p.from.dir)
			if how == "the target failed" {
				p.to.setBroken(func(op string) error {
					if op == "commit" {
						return errIO
					}
					return nil
				})
			} else {
				p.from.setUnread(contentOf(bad))
				p.from.write(bad, 0, "touched")
			}
			p.src.start()
			p.from.write(g, 0, "of the history that is lost")
			p.from.file(p.from.root, "ghost", "x")
			eventually(t, "it fails", func() bool { return p.src.status(p.id).Job == JobFailed && !p.to.at("ghost").IsZero() })
			p.src.stop()
			p.from.setUnread(nil)
			p.to.setBroken(nil)
			no(p.from.j.Close())
			p.from.around(func() { p.from.nodes = nodes })
			reopen(image)
			p.src.start()
			p.from.file(p.from.root, "later", "x")
			eventually(t, "it is refused", func() bool {
				s := p.src.status(p.id)
				return s.Job == JobFailed && strings.Contains(s.LastError, "put back to an earlier state")
			})
			_, err := p.src.Reconcile(background, p.id)
			no(err)
			p.publishedEqual()
		})
	}
}

func TestAVerificationDoesNotCallEqualWhatItCouldNotRead(t *testing.T) {
	p := newPair(t).create()
	f := p.from.file(p.from.root, "f", "x")
	p.from.setAttr(f, func(_ *journal.Attr, x map[string]string) { x["user.a"] = "b" })
	p.same()
	before := p.verify(VerifyRequest{}).Epoch
	p.to.around(func() { clear(p.to.nodes[p.to.nodes[p.to.root].names["f"]].xattrs) })
	p.to.hook = p.to.reseal
	p.from.setUnread(func(what string, id journal.Ident, _ journal.Extent) error {
		if id == f && what == "xattrs" {
			return errIO
		}
		return nil
	})
	v := p.verify(VerifyRequest{})
	p.to.hook = nil
	if v.State != VerifyDone || v.Differences != 1 || v.Found[0] != (Difference{DifferUnreadable, "f"}) {
		t.Errorf("%+v", v)
	}
	if s := p.src.status(p.id); s.Verified.Epoch != before {
		t.Errorf("status says %+v", s.Verified)
	}
}
