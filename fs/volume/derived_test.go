package volume

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// What is made from snapshots is compared with what the snapshots of a random history are known to show: the
// difference of two, and the restore of a path.

func (h *history) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"make": h.make, "make another": h.make, "link": h.link, "unlink": h.unlink, "rmdir": h.rmdir,
		"rename": h.rename, "rename another": h.rename, "write": h.write, "truncate": h.truncate, "punch": h.punch,
		"chmod": h.chmod, "xattr": h.setXattr, "snapshot": h.snapshot, "delete snapshot": h.deleteSnapshot,
		"restore": h.restore, "forget": h.forget,
	}
}

func TestADifferenceIsThatOfTheTwoSnapshots(t *testing.T) {
	checkHistories(t, func(rt *rapid.T, h *history) {
		actions := h.actions()
		actions["difference"] = h.difference
		rt.Repeat(actions)
	})
}

// idOf gives the inode at a path of what a snapshot is known to show.
func (s *modelSnapshot) idOf(path string) string {
	id, _, _ := strings.Cut(s.known[path], " ")
	return id
}

// entries gives each name by its directory's inode, as "directory name inode", with its path.
func (s *modelSnapshot) entries() map[string]string {
	all := map[string]string{}
	for p := range s.known {
		if p != "" {
			all[fmt.Sprintf("%s %s %s", s.idOf(path.Dir("/" + p)[1:]), path.Base(p), s.idOf(p))] = p
		}
	}
	return all
}

// substance is what makes an inode a modified one when it differs.
func (s *modelSnapshot) substance(path string) string {
	words := strings.Fields(s.known[path])
	for i := range words {
		if words[i] == "nlink" {
			words[i+1] = ""
		}
	}
	text := strings.Join(words[1:], " ")
	if s.more[path].data != nil || !strings.HasPrefix(words[1], "4") {
		text += fmt.Sprint(s.more[path].mtime)
	}
	return text
}

func (h *history) difference(t *rapid.T) {
	from, to := h.drawSnapshot(t), h.drawSnapshot(t)
	a, err := h.v.Snapshot(from)
	expect(t, err, nil)
	b, err := h.v.Snapshot(to)
	expect(t, err, nil)
	if a.Epoch > b.Epoch {
		from, to = to, from
	}
	changes, _, err := h.v.Diff(from, to, "", 10000)
	expect(t, err, nil)
	h.snapshots[from].compareChanges(t, h.snapshots[to], changes)
}

func (s *modelSnapshot) compareChanges(t *rapid.T, after *modelSnapshot, changes []Change) {
	lost, found := s.entries(), after.entries()
	for e := range lost {
		if _, stays := found[e]; stays {
			delete(lost, e)
			delete(found, e)
		}
	}
	gone, come := slices.Sorted(maps.Values(lost)), slices.Sorted(maps.Values(found))
	var saidGone, saidCome []string
	modified, renamed := map[string]bool{}, map[string]int{}
	for _, c := range changes {
		p := "/" + c.Path
		if c.Path == "." {
			p = ""
		}
		switch c.Kind {
		case ChangeCreated:
			saidCome = append(saidCome, p)
		case ChangeRemoved:
			saidGone = append(saidGone, p)
		case ChangeRenamed:
			saidCome, saidGone = append(saidCome, p), append(saidGone, "/"+c.From)
			renamed[after.idOf(p)]++
			if s.idOf("/"+c.From) != after.idOf(p) {
				t.Fatalf("%+v is of two inodes", c)
			}
		case ChangeModified:
			modified[after.idOf(p)] = true
		}
	}
	slices.Sort(saidGone)
	slices.Sort(saidCome)
	if !slices.Equal(gone, saidGone) || !slices.Equal(come, saidCome) {
		t.Fatalf("gone are %q, come %q;\nthe difference says %q and %q:\n%+v\n%v\n%v", gone, come, saidGone, saidCome, changes, s.known, after.known)
	}
	for _, p := range come {
		left := 0
		for _, q := range gone {
			if s.idOf(q) == after.idOf(p) {
				left++
			}
		}
		arrived := 0
		for _, q := range come {
			if after.idOf(q) == after.idOf(p) {
				arrived++
			}
		}
		if renamed[after.idOf(p)] != min(left, arrived) {
			t.Fatalf("%s was renamed %d times of %d", p, renamed[after.idOf(p)], min(left, arrived))
		}
	}
	was := map[string]string{}
	for p := range s.known {
		was[s.idOf(p)] = s.substance(p)
	}
	for p := range after.known {
		before, there := was[after.idOf(p)]
		if there && before != after.substance(p) && !modified[after.idOf(p)] {
			t.Fatalf("%q was\n%s, is\n%s, and is not said to be modified: %+v", p, before, after.substance(p), changes)
		}
		if !there && modified[after.idOf(p)] {
			t.Fatalf("%q is new, and is said to be modified", p)
		}
	}
}

func TestARestoredPathIsWhatItWasAndAllElseStays(t *testing.T) {
	checkHistories(t, func(rt *rapid.T, h *history) {
		rt.Repeat(h.actions())
		if len(h.snapshots) > 0 {
			h.restorePath(rt)
		}
	})
}

func (h *history) restorePath(t *rapid.T) {
	name := h.drawSnapshot(t)
	s, before := h.snapshots[name], h.capture(t)
	paths := slices.Sorted(maps.Keys(s.known))[1:]
	if len(paths) == 0 {
		return
	}
	top := rapid.SampledFrom(paths).Draw(t, "path")
	safety, err := h.v.Restore(name, top[1:])
	expect(t, err, nil)
	after := &modelSnapshot{known: map[string]string{}, more: map[string]extras{}}
	describeTree(t, liveTree{h.v}, h.v.root, "", after.known, after.more)
	compareMaps(t, "restored "+top, s.part(top), after.part(top))
	compareMaps(t, "links in "+top, s.links(top), after.links(top))
	before.compareBeside(t, top, s, after)
	_, err = h.v.Restore(safety.Name, "")
	expect(t, err, nil)
	h.capture(t)
}

// isBelow reports whether a path is another one or lies below it.
func isBelow(path, top string) bool { return path == top || strings.HasPrefix(path, top+"/") }

// part gives the substance of what is at and below a path.
func (s *modelSnapshot) part(top string) map[string]string {
	part := map[string]string{}
	for p := range s.known {
		if isBelow(p, top) {
			part[p] = s.substance(p)
		}
	}
	return part
}

// links gives for each path at and below a path the first one there that has the same inode.
func (s *modelSnapshot) links(top string) map[string]string {
	links, first := map[string]string{}, map[string]string{}
	for _, p := range slices.Sorted(maps.Keys(s.part(top))) {
		if id := s.idOf(p); first[id] == "" {
			first[id] = p
		}
		links[p] = first[s.idOf(p)]
	}
	return links
}

// compareBeside compares what lies beside a path that was restored, but for the names of inodes that are, or were,
// at the path.
func (s *modelSnapshot) compareBeside(t *rapid.T, top string, source, after *modelSnapshot) {
	inside := map[string]bool{}
	for _, of := range []*modelSnapshot{s, source} {
		for p := range of.part(top) {
			inside[of.idOf(p)] = true
		}
	}
	want, got := map[string]string{}, map[string]string{}
	for p, text := range s.known {
		if !isBelow(p, top) && !inside[s.idOf(p)] {
			want[p] = text
		}
	}
	for p, text := range after.known {
		if !isBelow(p, top) && !inside[s.idOf(p)] && !inside[after.idOf(p)] {
			got[p] = text
		}
	}
	for p := path.Dir(top); p != "/"; p = path.Dir(p) { // may have been made, in place of something else
		delete(want, p)
		delete(got, p)
	}
	compareMaps(t, "beside "+top, want, got)
}
