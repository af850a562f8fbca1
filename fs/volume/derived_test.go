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
		"chmod": h.chmod, "xattr": h.setXattr, "snapshot": h.snapshot, "another snapshot": h.snapshot,
		"delete snapshot": h.deleteSnapshot,
		"restore":         h.restore, "forget": h.forget,
	}
}

func TestADifferenceIsThatOfTheTwoSnapshots(t *testing.T) {
	checkHistories(t, func(rt *rapid.T, h *history) {
		rt.Repeat(h.actions())
		for from := range h.snapshots {
			for to := range h.snapshots {
				h.compareDifference(rt, from, to)
			}
		}
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
			all[fmt.Sprintf("%s %s %s", s.idOf(strings.TrimSuffix(path.Dir(p), "/")), path.Base(p), s.idOf(p))] = p
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
	if !strings.HasPrefix(words[1], "4") { // the times of directories change with their names
		text += fmt.Sprint(s.more[path].mtime)
	}
	return text
}

func (h *history) compareDifference(t *rapid.T, from, to string) {
	a, err := h.v.Snapshot(from)
	expect(t, err, nil)
	b, err := h.v.Snapshot(to)
	expect(t, err, nil)
	if a.Epoch > b.Epoch {
		return
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
	renamed := map[string]int{}
	for _, c := range changes {
		p, from := "/"+c.Path, "/"+c.From
		switch c.Kind {
		case ChangeCreated:
			saidCome = append(saidCome, p)
		case ChangeRemoved:
			saidGone = append(saidGone, p)
		case ChangeRenamed:
			saidCome, saidGone = append(saidCome, p), append(saidGone, from)
			renamed[after.idOf(p)]++
			if s.idOf(from) != after.idOf(p) {
				t.Fatalf("%+v is of two inodes", c)
			}
		}
	}
	slices.Sort(saidGone)
	slices.Sort(saidCome)
	if !slices.Equal(gone, saidGone) || !slices.Equal(come, saidCome) {
		t.Fatalf("gone are %q, come %q; the difference says %q and %q: %+v", gone, come, saidGone, saidCome, changes)
	}
	left, arrived := s.count(gone), after.count(come)
	for id := range arrived {
		if renamed[id] != min(left[id], arrived[id]) {
			t.Fatalf("%s lost %d names and got %d: %+v", id, left[id], arrived[id], changes)
		}
	}
	s.compareModified(t, after, changes)
}

// count gives how many of the paths each inode has.
func (s *modelSnapshot) count(paths []string) map[string]int {
	names := map[string]int{}
	for _, p := range paths {
		names[s.idOf(p)]++
	}
	return names
}

func (s *modelSnapshot) compareModified(t *rapid.T, after *modelSnapshot, changes []Change) {
	modified := map[string]bool{}
	for _, c := range changes {
		if c.Kind == ChangeModified {
			modified[after.idOf(strings.TrimSuffix("/"+c.Path, "/."))] = true
		}
	}
	was := map[string]string{}
	for p := range s.known {
		was[s.idOf(p)] = s.substance(p)
	}
	for p := range after.known {
		id := after.idOf(p)
		before, there := was[id]
		if there && before != after.substance(p) && !modified[id] {
			t.Fatalf("%q was\n%s, is\n%s, and is not said to be modified: %+v", p, before, after.substance(p), changes)
		}
		if !there && modified[id] {
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
