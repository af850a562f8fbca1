package replicator

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tandemfs/journal"
	"tandemfs/replicator/wire"
)

// keepJournal gives a copy of the journal as it is on the disk now.
func (v *tree) keepJournal(t testing.TB) string {
	t.Helper()
	no(v.j.Sync())
	return copyOf(t, v.dir)
}

// loseJournal makes the journal the one that was kept, in another boot: what was recorded since is lost.
func (v *tree) loseJournal(t testing.TB, kept string) {
	t.Helper()
	v.boots++
	active, err := os.ReadFile(filepath.Join(v.dir, "active")) // which is durable ahead of every change
	no(err)
	no(os.WriteFile(filepath.Join(kept, "active"), active, 0o600))
	no(v.j.Close())
	j, err := journal.Open(kept, journal.Options{BootID: fmt.Sprint("boot ", v.boots)})
	if err != nil {
		t.Fatal(err)
	}
	if j.Clean() {
		t.Fatal("the journal takes itself for clean")
	}
	t.Cleanup(func() { j.Close() })
	v.j, v.dir = j, kept
}

// around changes a tree without its journal.
func (v *tree) around(change func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	change()
}

// content is how many bytes of content a pair has transferred in the last transfer.
func (p *pair) content() int64 { return p.src.status(p.id).Progress.Bytes.Transferred }

func TestAPowerCutIsReconciledOnEitherEnd(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			p := newPair(t).create()
			p.from.file(p.from.root, "large", incompressible(4<<20))
			h := newHistory(p.from, seed)
			h.run(150)
			p.same()

			p.dst.stop()
			p.to.powerCut(t)
			h.run(40)
			p.dst.start()
			p.same() // the target has its recovery point and builds on that

			kept := p.from.keepJournal(t)
			h.run(60)
			p.same()
			p.dst.stop() // so that there is something in flight, and something that the target never hears of
			h.run(30)
			p.src.stop()
			h.run(30)
			p.from.loseJournal(t, kept)
			p.src.start()
			if s := p.src.status(p.id); s.RecoveryPoint.Epoch != 0 {
				t.Errorf("it reports recovery point %d before it has compared", s.RecoveryPoint.Epoch)
			}
			p.dst.start()
			p.same()
			if n := p.content(); n > 2<<20 {
				t.Errorf("%d bytes were sent again", n)
			}
			h.run(50)
			p.same()
			p.src.restart()
			h.run(5)
			p.same()
			if !p.from.j.Clean() || !p.to.j.Clean() {
				t.Errorf("the journals are not trusted again: source %v, target %v", p.from.j.Clean(), p.to.j.Clean())
			}
		})
	}
}

// Overwriting in place leaves the times what they were when power is lost before the inode is written.
func TestContentThatWasBeingWrittenWhenPowerWasLostIsCompared(t *testing.T) {
	p := newPair(t).create()
	f := p.from.file(p.from.root, "f", incompressible(1<<20))
	p.from.file(p.from.root, "g", incompressible(1<<20))
	p.same()
	p.src.stop()
	mtime := p.from.nodes[f].attr.Mtime
	p.from.write(f, 300_000, "what nobody knows of")
	p.from.around(func() { p.from.nodes[f].attr.Mtime = mtime })
	p.from.powerCut(t)
	p.src.start()
	p.same()
	if n := p.content(); n == 0 || n > wire.MaxDigest {
		t.Errorf("%d bytes were sent for one block", n)
	}
}

func TestATargetThatLostItsMemoryIsReconciled(t *testing.T) {
	p := newPair(t).create()
	h := newHistory(p.from, 4)
	h.run(200)
	p.from.file(p.from.root, "large", incompressible(1<<20))
	p.same()
	p.dst.stop()
	no(p.to.j.SetState(targetKey(p.id), nil))
	no(p.to.j.Map(p.id).Drop())
	h.run(20)
	p.dst.start()
	p.same()
	if n := p.content(); n > 1<<18 {
		t.Errorf("%d bytes were sent again", n)
	}
	h.run(100)
	p.same()
}

func TestASourceThatWasPutBackIsRefusedUntilSomebodyDecides(t *testing.T) {
	p := newPair(t).create()
	newHistory(p.from, 1).run(50)
	p.same()
	p.src.stop()
	var memory targetMemory
	no(recall(p.to.j, targetKey(p.id), &memory))
	memory.Epoch += 1_000_000
	p.dst.stop()
	no(remember(p.to.j, targetKey(p.id), memory))
	p.dst.start()
	p.src.start()
	eventually(t, "the source refuses", func() bool {
		s := p.src.status(p.id)
		return s.Job == JobFailed && strings.Contains(s.LastError, "tandemfs relationship reconcile "+p.id)
	})
	if _, err := p.src.Reconcile(background, p.id); err != nil {
		t.Fatal(err)
	}
	p.same()
}

// A target that holds a copy already gets what differs.
func TestAFirstTransferOntoACopySendsWhatDiffers(t *testing.T) {
	p := newPair(t)
	for _, v := range []*tree{p.from, p.to} {
		fill(v)
	}
	p.to.around(func() { // as a tool that keeps times leaves them
		for path := range p.from.dump() {
			from, to := p.from.at0(path), p.to.at0(path)
			p.to.nodes[to].attr.Mtime = p.from.nodes[from].attr.Mtime
		}
	})
	p.from.write(p.from.at("large"), 500_000, "other")
	p.from.file(p.from.root, "new", "new")
	p.to.file(p.to.root, "old", "old")
	p.to.file(p.to.mkdir(p.to.root, "olddir"), "old", "old")
	p.propose()
	if _, err := p.dst.Authorize(background, p.id, AuthorizeRequest{AllowNonEmpty: true}); err != nil {
		t.Fatal(err)
	}
	p.same()
	if n := p.content(); n > 2*wire.MaxDigest {
		t.Errorf("%d bytes were sent", n)
	}
	for _, s := range []Status{p.src.status(p.id), p.dst.status(p.id)} {
		if b, f := s.Progress.Bytes, s.Progress.Files; b.Unchanged < 1<<19 || b.Remaining != 0 || f.Unchanged < 20 || f.Remaining != 0 || s.Progress.PercentComplete != 100 {
			t.Errorf("the %s says %+v", s.Role, s.Progress)
		}
	}
}

// at0 is at for who holds mu, by a path of dump.
func (v *tree) at0(path string) journal.Ident {
	id := v.root
	for _, name := range strings.Split(path, "/") {
		if name != "" {
			id = v.nodes[id].names[name]
		}
	}
	return id
}

func TestAComparisonThatIsCutGoesOn(t *testing.T) {
	p := newPair(t)
	c := &cutter{after: never}
	p.src.config.Dial = c.dial
	p.src.restart()
	p.create()
	fill(p.from)
	h := newHistory(p.from, 9)
	h.run(150)
	p.same()
	p.src.stop()
	h.run(100)
	cut := int64(3000)
	c.setCut(func() int64 {
		cut += 2500
		return cut
	})
	before := c.cuts.Load()
	p.src.start()
	if _, err := p.src.Reconcile(background, p.id); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it breaks several times", func() bool {
		return c.cuts.Load() >= before+4 || p.src.status(p.id).RecoveryPoint.Epoch != 0
	})
	h.run(20)
	c.setCut(never)
	p.same()
}

// damage changes the target in every way that a verification tells of.
func damage(v *tree) map[string]DifferenceKind {
	want := map[string]DifferenceKind{}
	v.around(func() {
		root := v.nodes[v.root]
		d := v.nodes[root.names["d"]]
		large := v.nodes[root.names["large"]]
		b := slices.Clone(large.content[8*block])
		b[7] ^= 1
		large.content[8*block] = b
		want["large"] = DifferContent
		delete(v.nodes, d.names["f1"])
		delete(d.names, "f1")
		want["d/f1"] = DifferMissing
		d.names["extra"] = d.names["f2"]
		v.nodes[d.names["f2"]].attr.Nlink++
		want["d/extra"] = DifferExtra
		v.nodes[d.names["f3"]].attr.UID = 7
		want["d/f3"] = DifferAttributes
		d.names["f6"], d.names["f7"] = d.names["f7"], d.names["f6"]
		want["d/f6"], want["d/f7"] = DifferIdentity, DifferIdentity
		v.nodes[d.names["symlink"]].link = "elsewhere"
		want["d/symlink"] = DifferType
	})
	return want
}

// reseal makes what a tree is now its recovery point, so that a verification sees the damage.
func (v *tree) reseal() {
	v.mu.Lock()
	defer v.mu.Unlock()
	nodes := map[journal.Ident]*node{}
	for id, n := range v.nodes {
		nodes[id] = n.clone()
	}
	v.seals[v.published] = nodes
}

// verified waits until a verification has ended.
func (p *pair) verified() (v Verification) {
	p.t.Helper()
	eventually(p.t, "the verification ends", func() bool {
		var err error
		v, err = p.src.Verification(p.id)
		no(err)
		return v.State != VerifyWaiting && v.State != VerifyRunning
	})
	return v
}

func TestAVerificationFindsEachDifferenceAndRepairsIt(t *testing.T) {
	p := newPair(t).create()
	fill(p.from)
	p.same()
	if _, err := p.src.Verify(background, p.id, VerifyRequest{}); err != nil {
		t.Fatal(err)
	}
	v := p.verified()
	if v.State != VerifyDone || v.Differences != 0 || v.Files < 23 || v.Bytes < 1<<20 {
		t.Fatalf("%+v", v)
	}
	if s := p.src.status(p.id); s.Verified.Epoch != v.Epoch || s.Verified.Time.IsZero() {
		t.Errorf("status says %+v", s.Verified)
	}

	p.same()
	// The empty transfer that a verification begins with comes first, or it would publish another seal.
	if _, err := p.src.Verify(background, p.id, VerifyRequest{}); err != nil {
		t.Fatal(err)
	}
	p.verified()
	want := damage(p.to)
	p.to.hook = p.to.reseal
	if _, err := p.src.Verify(background, p.id, VerifyRequest{Repair: true}); err != nil {
		t.Fatal(err)
	}
	v = p.verified()
	p.to.hook = nil
	got := map[string]DifferenceKind{}
	for _, d := range v.Found {
		got[d.Path] = d.Kind
	}
	if v.State != VerifyDone || v.Differences != int64(len(want)) || !maps.Equal(got, want) {
		t.Errorf("%s, %d differences: %v\nwant %v", v.State, v.Differences, got, want)
	}
	eventually(t, "it is repaired", func() bool {
		v, err := p.src.Verification(p.id)
		no(err)
		return !v.Repairing
	})
	p.same()
	if n := p.content(); n > 3*wire.MaxDigest {
		t.Errorf("the repair sent %d bytes", n)
	}
	if _, err := p.src.Verify(background, p.id, VerifyRequest{}); err != nil {
		t.Fatal(err)
	}
	if v = p.verified(); v.State != VerifyDone || v.Differences != 0 {
		t.Errorf("after the repair: %+v", v)
	}
}

// What the source cannot read is told like a difference, and ends nothing.
func TestAVerificationTellsWhatTheSourceCannotRead(t *testing.T) {
	p := newPair(t).create()
	fill(p.from)
	p.from.file(p.from.root, "bad", incompressible(5*block))
	p.same()
	if _, err := p.src.Verify(background, p.id, VerifyRequest{}); err != nil {
		t.Fatal(err)
	}
	whole := p.verified()
	for _, what := range []string{"data", "open"} {
		bad := p.from.at("bad")
		p.from.setUnread(func(how string, id journal.Ident, _ journal.Extent) error {
			if id == bad && how == what {
				return errIO
			}
			return nil
		})
		if _, err := p.src.Verify(background, p.id, VerifyRequest{}); err != nil {
			t.Fatal(err)
		}
		v := p.verified()
		if v.State != VerifyDone || v.Files != whole.Files || !slices.Equal(v.Found, []Difference{{DifferUnreadable, "bad"}}) {
			t.Errorf("%s: %+v, all has %d files", what, v, whole.Files)
		}
	}
	p.from.setUnread(func(string, journal.Ident, journal.Extent) error { return errIO })
	if _, err := p.src.Verify(background, p.id, VerifyRequest{Repair: true}); err != nil {
		t.Fatal(err)
	}
	if v := p.verified(); v.State == VerifyDone && v.Differences == 0 {
		t.Errorf("nothing can be read: %+v", v)
	}
	p.from.setUnread(nil)
	p.same()
	if _, err := p.src.Verify(background, p.id, VerifyRequest{}); err != nil {
		t.Fatal(err)
	}
	if v := p.verified(); v.State != VerifyDone || v.Differences != 0 || v.Repairing {
		t.Errorf("when all can be read: %+v", v)
	}
}

func TestVerificationsWhileBothSidesWorkFindNothing(t *testing.T) {
	p := newPair(t).create()
	fill(p.from)
	h := newHistory(p.from, 12)
	h.run(100)
	p.same()
	for i := range 15 {
		if _, err := p.src.Verify(background, p.id, VerifyRequest{}); err != nil {
			t.Fatal(err)
		}
		for done := false; !done; {
			h.run(3)
			v, err := p.src.Verification(p.id)
			no(err)
			done = v.State != VerifyWaiting && v.State != VerifyRunning
		}
		if v := p.verified(); v.State != VerifyDone || v.Differences != 0 {
			t.Fatalf("verification %d: %+v", i, v)
		}
	}
	p.same()
}

func TestAVerificationCanBeSlowAndStopped(t *testing.T) {
	p := newPair(t).create()
	p.from.file(p.from.root, "large", incompressible(2<<20))
	p.same()
	if _, err := p.src.Verify(background, p.id, VerifyRequest{Always: true}); err == nil {
		t.Error("one that never ends is allowed without a rate")
	}
	if _, err := p.dst.Verify(background, p.id, VerifyRequest{}); err == nil {
		t.Error("the target may begin one")
	}
	if _, err := p.src.Verify(background, p.id, VerifyRequest{Rate: 1000, Always: true}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it runs", func() bool {
		v, _ := p.src.Verification(p.id)
		return v.State == VerifyRunning
	})
	if _, err := p.src.Verify(background, p.id, VerifyRequest{}); err == nil {
		t.Error("two at a time are allowed")
	}
	p.from.file(p.from.root, "more", "more")
	p.same() // meanwhile
	p.src.restart()
	eventually(t, "it runs again", func() bool {
		v, _ := p.src.Verification(p.id)
		return v.State == VerifyRunning && v.Always && v.Rate == 1000
	})
	began := time.Now()
	v, err := p.src.StopVerify(background, p.id)
	if err != nil || v.State != VerifyStopped || time.Since(began) > 5*time.Second {
		t.Errorf("%+v, %v", v, err)
	}
	p.src.restart()
	if v, err := p.src.Verification(p.id); err != nil || v.State != VerifyNone {
		t.Errorf("after a restart: %+v, %v", v, err)
	}
	if _, err := p.src.Verify(background, p.id, VerifyRequest{Rate: 1000}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another runs", func() bool {
		v, _ := p.src.Verification(p.id)
		return v.State == VerifyRunning
	})
	if err := p.dst.Delete(background, p.id); err != nil { // whatever is compared
		t.Fatal(err)
	}
	eventually(t, "the source hears of it", func() bool { return p.src.status(p.id).State == StateEnded })
	if v := p.verified(); v.State == VerifyDone {
		t.Errorf("%+v", v)
	}
}

// Two histories of one volume give the same numbers to other seals.
func TestASealOfAnotherHistoryIsNotTakenForThePendingOne(t *testing.T) {
	p := newPair(t).create()
	fill(p.from)
	p.same()
	p.src.stop()
	p.dst.stop()
	var there targetMemory
	no(recall(p.to.j, targetKey(p.id), &there))
	var here sourceMemory
	no(recall(p.from.j, sourceKey(p.id), &here))
	p.from.file(p.from.root, "more", "more")
	v, err := p.from.Seal()
	no(err)
	here.Pending = &pendingTransfer{Base: here.Epoch, Epoch: v.Epoch(), Time: time.Now()}
	here.Given = v.Epoch()
	no(remember(p.from.j, sourceKey(p.id), here))
	there.Epoch, there.Time = uint64(v.Epoch()), time.Now().Add(-time.Hour)
	no(remember(p.to.j, targetKey(p.id), there))
	p.dst.start()
	p.src.start()
	p.same()
	if p.to.at("more").IsZero() {
		t.Error("what only one history has was not sent")
	}
}

// A machine that was put back to an image of itself says that power was lost, and that is not all.
func TestARollbackOfTheSourceIsNotTakenForAPowerCut(t *testing.T) {
	p := newPair(t).create()
	fill(p.from)
	p.same()
	eventually(t, "the journal has a first checkpoint", func() bool { return !p.from.j.Active().Since.IsZero() })
	kept := p.from.keepJournal(t)
	p.src.stop()
	p.from.loseJournal(t, kept)
	var there targetMemory
	p.dst.stop()
	no(recall(p.to.j, targetKey(p.id), &there))
	there.Epoch, there.Time = there.Epoch+50, time.Now().Add(lostWithin+time.Minute)
	no(remember(p.to.j, targetKey(p.id), there))
	p.dst.start()
	p.src.start()
	eventually(t, "the source refuses", func() bool {
		s := p.src.status(p.id)
		return s.Job == JobFailed && strings.Contains(s.LastError, "put back to an earlier state")
	})
	if _, err := p.src.Reconcile(background, p.id); err != nil {
		t.Fatal(err)
	}
	p.same()
}

// A file made after the recovery point, of which the target got an earlier form, is compared after a power cut.
func TestWhatWasNewInAnInterruptedTransferIsCompared(t *testing.T) {
	p := newPair(t).create()
	p.same()
	p.to.setBroken(func(op string) error {
		if op == "commit" {
			return errIO
		}
		return nil
	})
	f := p.from.file(p.from.root, "f", incompressible(1<<18))
	eventually(t, "the transfer fails at its end", func() bool { return p.src.status(p.id).Job == JobFailed })
	p.src.stop()
	mtime := p.from.nodes[f].attr.Mtime
	p.from.write(f, 5000, "later")
	p.from.around(func() { p.from.nodes[f].attr.Mtime = mtime })
	no(p.from.j.Close()) // closed, and opened again: it lists nothing
	j, err := journal.Open(p.from.dir, journal.Options{BootID: fmt.Sprint("boot ", p.from.boots)})
	no(err)
	p.from.j = j
	p.from.powerCut(t)
	p.to.setBroken(nil)
	p.src.start()
	p.same()
}

// Whatever has made the target forget an inode: nobody needs to see to it.
func TestATargetThatLacksWhatATransferBuildsOnIsCompared(t *testing.T) {
	p := newPair(t).create()
	fill(p.from)
	p.same()
	f := p.from.at("d/f3")
	if err := p.to.j.Map(p.id).Delete(f); err != nil {
		t.Fatal(err)
	}
	before := p.src.status(p.id).RecoveryPoint
	p.from.write(f, 10, "changed")
	p.same()
	s := p.src.status(p.id)
	if s.RecoveryPoint.Epoch <= before.Epoch || p.content() > 100_000 {
		t.Errorf("the recovery point is %+v after %+v, %d bytes were sent", s.RecoveryPoint, before, p.content())
	}
	p.from.write(f, 20, "again")
	p.same()
}
