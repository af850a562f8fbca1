package integration

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/integration/history"
	"tandemfs/integration/lab"
	"tandemfs/integration/tree"
)

// The sizes of the filesystems that tests make: the images are sparse.
const (
	gib       = 1 << 30
	smallDisk = 2 * gib
)

// seedFlag makes another history than the usual one; every test prints the seed that it uses.
var seedFlag = flag.Uint64("seed", 20261123, "the seed of all random histories")

func TestMain(m *testing.M) { lab.Main(m) }

// seed prints the seed and gives it, a different one for each purpose.
func seed(t *testing.T, purpose uint64) uint64 {
	t.Helper()
	t.Logf("seed %d (go test -run '%s' ./integration -seed %d)", *seedFlag+purpose, t.Name(), *seedFlag)
	return *seedFlag + purpose
}

// A volume is a protected directory whose mount is elsewhere, so that a test sees both.
type volume struct {
	Node    *lab.Node
	Name    string
	Backing string
	Mount   string
}

// newVolume protects a new directory of a new filesystem; fill, if not nil, puts something there before.
func newVolume(t *testing.T, n *lab.Node, name, kind string, size int64, fill func(dir string)) *volume {
	t.Helper()
	backing := lab.MakeDir(t, lab.Disk(t, kind, size), "data")
	check(t, unix.Chmod(backing, 0o1777))
	if fill != nil {
		fill(backing)
	}
	return protect(t, n, name, backing)
}

// protect makes a volume of an existing directory, mounted elsewhere.
func protect(t *testing.T, n *lab.Node, name, backing string) *volume {
	t.Helper()
	v := &volume{Node: n, Name: name, Backing: backing, Mount: lab.MakeDir(t, lab.Dir(t), name)}
	n.Must("volume", "create", name, backing, "--mount", v.Mount)
	t.Cleanup(func() { v.remove(t) })
	return v
}

// remove ends the volume's mount, so that the disk below can go; the daemon may be dead or the volume
// removed already.
func (v *volume) remove(t *testing.T) {
	mounts, err := lab.Mounts(v.Mount)
	if err != nil || len(mounts) == 0 {
		return
	}
	if v.Node.Running() {
		v.Node.Stop()
	}
}

// alone gives a node in a network of its own.
func alone(t *testing.T) *lab.Node {
	t.Helper()
	return lab.StartNode(t, lab.NewNamespace(t), "alpha")
}

// two gives two nodes with a wire between them.
func two(t *testing.T) (*lab.Node, *lab.Node) {
	t.Helper()
	a, b := lab.Join(t)
	return lab.StartNode(t, a, "alpha"), lab.StartNode(t, b, "beta")
}

// replicated gives a source volume on one node and its copy on another.
func replicated(t *testing.T, size int64, fill func(dir string)) (source, target *volume, pair *lab.Pair) {
	t.Helper()
	a, b := two(t)
	source = newVolume(t, a, "data", lab.Ext4, size, fill)
	target = newVolume(t, b, "copy", lab.Ext4, size, nil)
	return source, target, relate(t, source, target)
}

// open makes a directory ready for a history, until the test ends.
func open(t *testing.T, dir string) *history.Side {
	t.Helper()
	side, err := history.Open(dir)
	check(t, err)
	t.Cleanup(side.Close)
	return side
}

// play performs n operations of a history on a directory.
func play(t *testing.T, dir string, g *history.Generator, n int) {
	t.Helper()
	side, err := history.Open(dir)
	check(t, err)
	defer side.Close()
	history.Play(side, g, n)
}

// scan takes stock of a tree.
func scan(t *testing.T, dir string) *tree.Manifest {
	t.Helper()
	m, err := tree.Scan(dir)
	check(t, err)
	return m
}

// sameTrees fails the test, with the differences, unless the trees are equal.
func sameTrees(t *testing.T, when string, a, b *tree.Manifest, o tree.Options) {
	t.Helper()
	diffs := tree.Compare(a, b, o)
	if len(diffs) == 0 {
		return
	}
	const most = 25
	more := ""
	if len(diffs) > most {
		more = fmt.Sprintf("\n... and %d more", len(diffs)-most)
	}
	t.Fatalf("%s, %s and %s differ:\n%s%s", when, a.Root, b.Root, strings.Join(diffs[:min(len(diffs), most)], "\n"), more)
}

// sameCopy waits until the target has caught up and compares backing directories and mounts.
func sameCopy(t *testing.T, when string, source, target *volume, pair *lab.Pair) {
	t.Helper()
	pair.Quiet(2 * time.Minute)
	at := scan(t, source.Backing)
	sameTrees(t, when, at, scan(t, target.Backing), tree.Options{})
	sameTrees(t, when, at, scan(t, source.Mount), tree.Options{})
	sameTrees(t, when, at, scan(t, target.Mount), tree.Options{})
}

// check fails the test when there is an error.
func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// write makes or replaces a file.
func write(t *testing.T, content string, path ...string) string {
	t.Helper()
	p := filepath.Join(path...)
	check(t, os.WriteFile(p, []byte(content), 0o644))
	return p
}

// mustRead gives a file's content.
func mustRead(t *testing.T, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	check(t, err)
	return string(b)
}

// statusOf is short for what tests look at most.
type statusOf = lab.Status

// relate makes the target volume a copy of the source volume.
func relate(t *testing.T, source, target *volume) *lab.Pair {
	t.Helper()
	return lab.Relate(t, source.Node, source.Name, target.Node, target.Name)
}

// find gives a manifest's entry, or nil.
func find(m *tree.Manifest, path string) *tree.Entry {
	for i := range m.Entries {
		if m.Entries[i].Path == path {
			return &m.Entries[i]
		}
	}
	return nil
}
