package replicator

import (
	"fmt"
	"strings"
	"testing"

	"tandemfs/journal"
)

func TestATreeOfAllKindsIsCopiedAndFollowed(t *testing.T) {
	p := newPair(t)
	v, root := p.from, p.from.root
	d := v.mkdir(root, "dir")
	f := v.file(d, "file", strings.Repeat("content ", 10_000))
	v.file(root, "empty", "")
	v.symlink(d, "link", "file")
	v.hardlink(f, root, "hard")
	v.hardlink(f, d, "hard too")
	v.add(root, "pipe", 0o010644)
	v.add(d, "device", 0o020600, func(n *node) { n.attr.Rdev = 259<<8 | 3 })
	sparse := v.add(root, "sparse", typeRegular|0o4755)
	v.write(sparse, 1<<20, "far away")
	v.truncate(sparse, 3<<20)
	v.setAttr(f, func(a *journal.Attr, x map[string]string) {
		a.UID, a.GID, a.Mode = 7, 8, typeRegular|0o6751
		x["user.a"] = "b"
	})
	v.setAttr(d, func(a *journal.Attr, x map[string]string) {
		a.Mode = typeDir | 0o2770
		x["system.posix_acl_default"] = "\x02\x00"
	})
	p.create().same()

	v.write(f, 100, "changed")
	v.punch(f, journal.Extent{Off: 8192, End: 8192 * 3})
	v.remove(root, "empty")
	v.rename(d, "link", root, "link")
	v.setAttr(root, func(a *journal.Attr, _ map[string]string) { a.Mode = typeDir | 0o711 })
	p.same()
	if s := p.dst.status(p.id); s.Job != JobIdle || s.State != StateEstablished || s.RecoveryPoint.Epoch == 0 {
		t.Errorf("the target's status: %+v", s)
	}
}

// Each case changes a tree that the target already has; the shapes are those that a filesystem would
// refuse in the wrong order.
func TestNamesChangeInEveryShape(t *testing.T) {
	cases := map[string]func(v *tree){
		"two files swap":              func(v *tree) { v.exchange(v.root, "f1", v.root, "f2") },
		"two directories swap":        func(v *tree) { v.exchange(v.root, "a", v.root, "b") },
		"a file and a directory swap": func(v *tree) { v.exchange(v.root, "a", v.root, "f1") },
		"three names go round": func(v *tree) {
			v.exchange(v.root, "a", v.root, "b")
			v.exchange(v.root, "b", v.root, "c")
		},
		"a child takes its parent's place": func(v *tree) {
			v.rename(v.at("a"), "sub", v.root, "tmp")
			v.rename(v.root, "a", v.at("tmp"), "a")
			v.rename(v.root, "tmp", v.root, "a")
		},
		"a directory moves far down another": func(v *tree) { v.rename(v.root, "b", v.at("a/sub/deep"), "b") },
		"a directory is replaced by a file": func(v *tree) {
			v.rename(v.root, "c", v.at("a"), "c")
			v.file(v.root, "c", "now a file")
		},
		"a file is replaced by a directory": func(v *tree) {
			v.remove(v.root, "f1")
			v.file(v.mkdir(v.root, "f1"), "inside", "x")
		},
		"a name is removed and made anew": func(v *tree) {
			v.remove(v.root, "f1")
			v.file(v.root, "f1", "another")
		},
		"a new file is renamed over an old one": func(v *tree) {
			v.file(v.root, "f1.tmp", "another")
			v.rename(v.root, "f1.tmp", v.root, "f1")
		},
		"an old directory moves into a new one": func(v *tree) {
			n := v.mkdir(v.root, "new")
			v.rename(v.root, "a", v.mkdir(n, "newer"), "a")
		},
		"a new directory gets the directory that it was made in": func(v *tree) {
			n := v.mkdir(v.at("a/sub"), "new")
			v.rename(v.at("a/sub"), "new", v.root, "new")
			v.rename(v.root, "a", n, "a")
		},
		"a directory is removed and its child saved": func(v *tree) {
			v.rename(v.at("a/sub"), "deep", v.root, "saved")
			v.remove(v.at("a"), "x")
			v.remove(v.at("a/sub"), "y")
			v.remove(v.at("a"), "sub")
			v.remove(v.root, "a")
		},
		"links go into a new directory and out of an old one": func(v *tree) {
			n := v.mkdir(v.root, "new")
			v.hardlink(v.at("f1"), n, "one")
			v.hardlink(v.at("f1"), n, "two")
			v.rename(v.at("a"), "x", n, "x")
			id := v.file(n, "fresh", "with three names")
			v.hardlink(id, v.root, "fresh")
			v.hardlink(id, v.at("b"), "fresh")
			v.remove(v.root, "f1")
		},
		"a name comes back to what it was": func(v *tree) {
			v.rename(v.root, "f1", v.root, "tmp")
			v.rename(v.root, "tmp", v.root, "f1")
		},
		"something is made and removed": func(v *tree) {
			d := v.mkdir(v.root, "gone")
			v.file(d, "f", "x")
			v.remove(d, "f")
			v.remove(v.root, "gone")
		},
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			v := p.from
			a := v.mkdir(v.root, "a")
			v.file(a, "x", "in a")
			v.file(v.mkdir(a, "sub"), "y", "in sub")
			v.file(v.mkdir(v.at("a/sub"), "deep"), "z", "in deep")
			v.file(v.mkdir(v.root, "b"), "w", "in b")
			v.mkdir(v.root, "c")
			v.file(v.root, "f1", "one")
			v.file(v.root, "f2", "two")
			p.create().same()
			change(v)
			p.same()
		})
	}
}

func TestLittleIsSentForLittleThatChanged(t *testing.T) {
	p := newPair(t)
	v := p.from
	big := v.file(v.root, "big", strings.Repeat("0123456789abcdef", 1<<20))
	d := v.mkdir(v.root, "d")
	for i := range 3000 {
		v.add(d, fmt.Sprint(i), typeRegular|0o644)
	}
	p.create().same()
	sent := func(change func()) int64 {
		before := p.src.status(p.id).TotalWireBytes
		change()
		p.same()
		return p.src.status(p.id).TotalWireBytes - before
	}
	noise := make([]byte, 4096)
	for i := range noise {
		noise[i] = byte(i*i>>3 ^ i*7)
	}
	if n := sent(func() { v.write(big, 5<<20, string(noise)) }); n > 4096*105/100+2048 {
		t.Errorf("4096 bytes in a large file took %d bytes", n)
	}
	if n := sent(func() { v.rename(v.root, "d", v.root, "e") }); n > 2048 {
		t.Errorf("a directory's rename took %d bytes", n)
	}
}

func TestWhatIsRecordedTooLateForASealGoesWithTheNextOne(t *testing.T) {
	p := newPair(t).create()
	p.settled()
	// Somebody makes a file around the mount, in a directory that is new: the seal has it, and no record.
	var made *node
	p.from.change(func() {
		made = p.from.node(typeRegular | 0o644)
		made.attr.Nlink = 1
		dir := p.from.node(typeDir | 0o755)
		dir.attr.Nlink, dir.parent = 2, p.from.root
		dir.names["around"] = made.id
		no(p.from.j.NoteCreated(dir.id))
		p.from.setName(p.from.root, "dir", dir.id)
	})
	eventually(t, "the transfer fails", func() bool { return strings.Contains(p.src.status(p.id).LastError, "is unknown") })
	p.from.change(func() { no(p.from.j.NoteCreated(made.id)) })
	p.settled()
	p.same()
}

func TestNamesThatTheJournalDoesNotHaveAreComparedOnceForEachDoubt(t *testing.T) {
	p := newPair(t)
	p.from.file(p.from.root, "gone", "content")
	f := p.from.file(p.from.root, "file", "content")
	p.create().settled()
	p.from.change(func() {
		no(p.from.j.TouchMeta(p.from.root, nil))
		delete(p.from.nodes[p.from.root].names, "gone") // by somebody else
		p.from.doubt = 1
	})
	p.settled()
	p.same()
	if n, _ := p.from.NamesInDoubt(); n != 0 {
		t.Errorf("%d are still in doubt", n)
	}
	p.from.write(f, 0, "more")
	p.settled()
	p.same()
	if p.src.status(p.id).Progress.Comparing != "" {
		t.Errorf("it compares again: %+v", p.src.status(p.id))
	}
	p.src.stop()
	p.from.around(func() { // and nothing is recorded
		delete(p.from.nodes[p.from.root].names, "file")
		p.from.doubt = 1
	})
	p.src.start()
	p.same()
}
