package replicator

import (
	"fmt"
	"maps"
	"strings"
	"sync/atomic"
	"testing"

	"tandemfs/journal"
	"tandemfs/replicator/wire"
)

// unreadIn makes one way of reading one inode fail.
func unreadIn(what string, bad journal.Ident) func(string, journal.Ident, journal.Extent) error {
	return func(how string, id journal.Ident, _ journal.Extent) error {
		if how == what && id == bad {
			return errIO
		}
		return nil
	}
}

// identities gives what is at a path and below it.
func (v *tree) identities(path string) map[string]journal.Ident {
	at := v.at(path)
	v.mu.Lock()
	defer v.mu.Unlock()
	ids := map[string]journal.Ident{}
	var walk func(path string, id journal.Ident)
	walk = func(path string, id journal.Ident) {
		ids[path] = id
		for name, child := range v.nodes[id].names {
			walk(path+"/"+name, child)
		}
	}
	walk(path, at)
	return ids
}

// kept fails where some inode is no longer there, in a name or aside.
func (v *tree) kept(t *testing.T, ids map[string]journal.Ident) {
	t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	for path, id := range ids {
		if v.nodes[id] == nil {
			t.Errorf("%q was removed on the target", path)
		}
	}
}

// rest waits until all but what cannot be read is there, also what is written from now on, and fails where readers
// see any of it.
func (p *pair) rest(before map[string]string) {
	p.t.Helper()
	eventually(p.t, "the rest comes", func() bool { return !p.to.at("large").IsZero() })
	p.from.file(p.from.root, "later", "more")
	eventually(p.t, "what is written later comes too", func() bool { return !p.to.at("later").IsZero() })
	if d := differences(before, p.to.shown()); len(d) > 0 {
		p.t.Errorf("readers see it: %v", d)
	}
}

// mended fails where the target does not become equal, or much is sent for that.
func (p *pair) mended(mend func()) {
	p.t.Helper()
	sent := p.src.status(p.id).TotalWireBytes
	mend()
	p.same()
	if s := p.src.status(p.id); s.Unreadable != nil || s.TotalWireBytes-sent > 1<<20 {
		p.t.Errorf("%d bytes were sent for the rest, %+v is unreadable", s.TotalWireBytes-sent, s.Unreadable)
	}
	if d := differences(p.from.dump(), p.to.shown()); len(d) > 0 {
		p.t.Errorf("readers see something else: %v", d)
	}
}

// Of what was there, and cannot be read any more, the target removes nothing, whatever is below it.
func TestTheTargetKeepsWhatTheSourceCannotRead(t *testing.T) {
	type test struct {
		p   *pair
		bad journal.Ident
	}
	begins := map[string]func(x test){
		"changed": func(x test) { // its names have to be read for that
			f := x.p.from.file(x.bad, "new", "content")
			x.p.from.hardlink(f, x.bad, "newer")
		},
		"compared": func(x test) {
			x.p.src.stop()
			x.p.from.file(x.bad, "new", "content")
			x.p.from.powerCut(x.p.t)
			x.p.src.start()
		},
		"moved and compared": func(x test) {
			x.p.src.stop()
			e := x.p.from.mkdir(x.p.from.root, "e")
			x.p.from.rename(x.p.from.at("d"), "bad", e, "bad")
			x.p.from.powerCut(x.p.t)
			x.p.src.start()
		},
	}
	ends := map[string]func(x test){
		"read after all": func(x test) { x.p.from.setUnread(nil) },
		"moved": func(x test) {
			x.p.from.rename(x.p.from.directoryOf(x.bad), "bad", x.p.from.root, "moved")
			eventually(x.p.t, "it is still left out", func() bool {
				s := x.p.src.status(x.p.id)
				return s.Unreadable != nil && s.Unreadable.Files[0].Path == "moved"
			})
			x.p.from.setUnread(nil)
		},
		"removed": func(x test) {
			x.p.from.removeAll(x.bad)
			x.p.from.remove(x.p.from.directoryOf(x.bad), "bad")
		},
	}
	for _, what := range []string{"names", "inode", "stat"} {
		for begin, unread := range begins {
			if what != "names" && begin == "changed" {
				continue
			}
			for end, mend := range ends {
				t.Run(strings.Join([]string{what, begin, end}, ", "), func(t *testing.T) {
					p := newPair(t)
					bad := p.from.mkdir(p.from.mkdir(p.from.root, "d"), "bad")
					p.from.file(p.from.mkdir(bad, "sub"), "f", incompressible(4<<20))
					point := p.create().settledAt()
					ids, before := p.to.identities("d/bad"), p.to.shown()
					p.from.setUnread(unreadIn(what, bad))
					p.from.file(p.from.root, "large", incompressible(8<<20))
					unread(test{p, bad})
					path := "d/bad"
					if strings.HasPrefix(begin, "moved") {
						path = "e/bad"
					}
					if begin != "changed" { // the source reports no recovery point then until it has compared
						point = 0
					}
					p.left(point, path)
					p.rest(before)
					p.to.kept(t, ids)
					if now := p.to.at(path); now != ids["d/bad"] && what+path != "inodee/bad" { // nobody knows that it is the same
						t.Errorf("%s is %v on the target, it was %v", path, now, ids["d/bad"])
					}
					p.mended(func() { mend(test{p, bad}) })
					if end != "removed" {
						p.to.kept(t, ids)
					}
				})
			}
		}
	}
}

// directoryOf gives the directory that one is in.
func (v *tree) directoryOf(dir journal.Ident) journal.Ident {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.nodes[dir].parent
}

// removeAll empties a directory.
func (v *tree) removeAll(dir journal.Ident) {
	v.mu.Lock()
	names := maps.Clone(v.nodes[dir].names)
	v.mu.Unlock()
	for name, id := range names {
		v.mu.Lock()
		isDirectory := isDir(v.nodes[id].attr)
		v.mu.Unlock()
		if isDirectory {
			v.removeAll(id)
		}
		v.remove(dir, name)
	}
}

// left waits until the source says that it cannot read something; the recovery point stays.
func (p *pair) left(point uint64, path string) {
	p.t.Helper()
	eventually(p.t, "the source says that it cannot read "+path, func() bool {
		s := p.src.status(p.id)
		return s.Job == JobFailed && s.Unreadable != nil && s.Unreadable.Count == 1 && s.Unreadable.Files[0].Path == path &&
			s.Unreadable.Files[0].Error == "input/output error" && strings.Contains(s.LastError, path) && p.dst.status(p.id).Job == JobFailed
	})
	if s := p.src.status(p.id); s.RecoveryPoint.Epoch != point {
		p.t.Errorf("the recovery point was %d, and is %+v", point, s.RecoveryPoint)
	}
}

// What is new and cannot be read is left out, of the first transfer and of any other.
func TestWhatIsNewAndCannotBeReadIsLeftOut(t *testing.T) {
	for _, what := range []string{"names", "inode", "stat", "link"} {
		for _, first := range []bool{true, false} {
			t.Run(fmt.Sprint(what, ", first transfer ", first), func(t *testing.T) {
				p := newPair(t)
				point := uint64(0)
				if !first {
					point = p.create().settledAt()
				}
				if !first {
					p.dst.stop()
				}
				d := p.from.mkdir(p.from.root, "d")
				var bad journal.Ident
				if what == "link" {
					bad = p.from.symlink(d, "bad", "somewhere")
				} else {
					bad = p.from.mkdir(d, "bad")
					p.from.file(p.from.mkdir(bad, "sub"), "f", "content")
					p.from.hardlink(p.from.at("d/bad/sub/f"), d, "link")
				}
				p.from.setUnread(unreadIn(what, bad))
				p.from.file(p.from.root, "large", incompressible(8<<20))
				if first {
					p.create()
				} else {
					p.dst.start()
				}
				before := p.to.shown()
				p.left(point, "d/bad")
				p.rest(before)
				if !p.to.at("d/bad").IsZero() {
					t.Error("it is there")
				}
				p.left(point, "d/bad")
				for _, n := range []*testNode{p.src, p.dst} {
					n.restart()
					p.left(point, "d/bad")
				}
				if what != "link" {
					p.from.file(p.from.at("d/bad/sub"), "g", "below what the target does not have")
					p.from.write(p.from.at("d/link"), 0, "of a file with a name there")
				}
				p.left(point, "d/bad")
				p.mended(func() { p.from.setUnread(nil) })
			})
		}
	}
}

// What the first transfer brought is not compared by its content because of what it left out, nor when the comparison
// is broken off.
func TestContentIsNotReadAgainForNamesThatCannotBe(t *testing.T) {
	p := newPair(t)
	bad := p.from.mkdir(p.from.root, "bad")
	large := p.from.file(p.from.root, "large", incompressible(4<<20))
	var again, broke atomic.Int64
	unread := func(what string, id journal.Ident, _ journal.Extent) error {
		if what == "data" && id == large && !p.to.at("later").IsZero() {
			again.Add(1)
		}
		return unreadIn("names", bad)(what, id, journal.Extent{})
	}
	p.from.setUnread(unread)
	p.create()
	before := p.to.shown()
	p.left(0, "bad")
	p.to.setBroken(func(op string) error {
		if op == "image" && broke.Add(1) == 1 {
			return errIO
		}
		return nil
	})
	p.rest(before)
	p.left(0, "bad")
	p.src.stop()
	p.to.setBroken(nil)
	p.src.start()
	p.left(0, "bad")
	no(p.src.Tend("data"))
	p.from.file(p.from.root, "later still", "x")
	eventually(t, "what is written later comes", func() bool { return !p.to.at("later still").IsZero() })
	if broke.Load() == 0 || again.Load() > 0 {
		t.Errorf("the content was read %d times again; %d attributes were set", again.Load(), broke.Load())
	}
	p.mended(func() { p.from.setUnread(nil) })
}

// What was moved into a directory whose names cannot be read is not sent again for that.
func TestWhatMovesIntoAnUnreadableDirectoryIsNotRemoved(t *testing.T) {
	p := newPair(t)
	bad, tree := p.from.mkdir(p.from.root, "bad"), p.from.mkdir(p.from.root, "tree")
	f := p.from.file(tree, "f", incompressible(4<<20))
	point := p.create().settledAt()
	ids, before := p.to.identities("tree"), p.to.shown()
	p.from.setUnread(unreadIn("names", bad))
	p.from.rename(p.from.root, "tree", bad, "tree")
	p.from.file(p.from.root, "large", incompressible(8<<20))
	p.left(point, "bad")
	p.rest(before)
	mtime := p.from.nodes[f].attr.Mtime
	p.from.write(f, block, "changed, and its times put back")
	p.from.setAttr(f, func(a *journal.Attr, _ map[string]string) { a.Mtime = mtime })
	p.from.file(p.from.root, "later still", "x")
	eventually(t, "what is written later comes", func() bool { return !p.to.at("later still").IsZero() })
	p.left(point, "bad")
	p.mended(func() { p.from.setUnread(nil) })
	p.to.kept(t, ids)
}

// The attributes of an inode that cannot be read, and what of its content was to be sent, are sent later.
func TestAnInodeThatCannotBeReadIsSentLater(t *testing.T) {
	p := newPair(t)
	d := p.from.mkdir(p.from.root, "d")
	f := p.from.file(d, "f", incompressible(1<<20))
	point := p.create().settledAt()
	before := p.to.shown()
	for _, bad := range []journal.Ident{f, d} {
		p.from.setUnread(unreadIn("stat", bad))
		if bad == f {
			p.from.write(f, 5*block, "changed")
		}
		p.from.setAttr(bad, func(a *journal.Attr, _ map[string]string) { a.UID = 7 })
		p.from.file(p.from.root, "large", "content")
		path := "d/f"
		if bad == d {
			path = "d"
		}
		p.left(point, path)
		p.rest(before)
		if s := p.src.status(p.id); s.Progress.Comparing != "" {
			t.Errorf("all is compared: %s", s.Progress.Comparing)
		}
		p.mended(func() { p.from.setUnread(nil) })
		p.from.remove(p.from.root, "large")
		p.from.remove(p.from.root, "later")
		point, before = p.settledAt(), p.to.shown()
	}
}

// A verification tells of it, and of nothing that lies below.
func TestAVerificationTellsWhichNamesCannotBeRead(t *testing.T) {
	p := newPair(t)
	bad := p.from.mkdir(p.from.mkdir(p.from.root, "d"), "bad")
	p.from.file(p.from.mkdir(bad, "sub"), "f", "content")
	link := p.from.symlink(p.from.root, "link", "somewhere")
	p.create().same()
	for what, id := range map[string]journal.Ident{"names": bad, "inode": bad, "stat": bad, "link": link} {
		p.from.setUnread(unreadIn(what, id))
		if _, err := p.src.Verify(background, p.id, VerifyRequest{Repair: true}); err != nil {
			t.Fatal(err)
		}
		path := "d/bad"
		if id == link {
			path = "link"
		}
		v := p.verified()
		if v.State != VerifyDone || v.Differences != 1 || v.Found[0] != (Difference{DifferUnreadable, path}) || v.Repairing {
			t.Errorf("%s: %+v", what, v)
		}
	}
}

// A target that cannot keep what it is not told of gets nothing that could make it remove something.
func TestATargetThatCannotKeepWhatIsUnreadableIsLeftAlone(t *testing.T) {
	all := features
	features = []string{wire.FeatureCompare, wire.FeatureIncomplete}
	t.Cleanup(func() { features = all })
	p := newPair(t)
	bad := p.from.mkdir(p.from.root, "bad")
	p.from.file(bad, "f", "content")
	p.create().same()
	ids := p.to.identities("bad")
	p.from.setUnread(unreadIn("names", bad))
	p.src.stop()
	p.from.powerCut(t)
	p.src.start()
	eventually(t, "the source says so", func() bool {
		s := p.src.status(p.id)
		return s.Job == JobFailed && strings.Contains(s.LastError, "input/output error")
	})
	p.to.kept(t, ids)
	p.from.setUnread(nil)
	p.same()
	p.src.stop()
	p.dst.stop()
}
