package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"tandemfs/integration/history"
	"tandemfs/integration/lab"
	"tandemfs/integration/tree"
)

// grow fills a directory with a tree of all kinds of files.
func grow(t *testing.T, files int) func(dir string) {
	return func(dir string) {
		t.Helper()
		check(t, tree.Grow(dir, files, seed(t, 10)))
	}
}

func TestTheCopyEqualsTheSourceAtEveryQuietMoment(t *testing.T) {
	source, target, pair := replicated(t, 4*gib, grow(t, 10_500))
	count := scan(t, source.Backing).Count()
	t.Logf("the tree: %v", count)
	if count["file"]+count["symlink"]+count["FIFO"]+count["socket"]+count["character device"]+count["block device"] < 10_000 {
		t.Fatalf("the tree is too small: %v", count)
	}
	sameCopy(t, "after the first transfer", source, target, pair)
	g := history.New(seed(t, 11))
	check(t, g.Adopt(source.Backing))
	const rounds, operations = 6, 3000
	for round := range rounds {
		play(t, source.Mount, g, operations)
		sameCopy(t, fmt.Sprintf("after %d operations", (round+1)*operations), source, target, pair)
	}
}

func TestACopyOnAnyFilesystemEqualsItsSourceOnAny(t *testing.T) {
	for purpose, kinds := range [][2]string{{lab.XFS, lab.XFS}, {lab.Btrfs, lab.Btrfs}, {lab.XFS, lab.Ext4}, {lab.Btrfs, lab.Ext4}} {
		t.Run(kinds[0]+" to "+kinds[1], func(t *testing.T) {
			a, b := two(t)
			source := newVolume(t, a, "data", kinds[0], 4*gib, grow(t, 1500))
			target := newVolume(t, b, "copy", kinds[1], 4*gib, nil)
			pair := relate(t, source, target)
			g := history.New(seed(t, 70+uint64(purpose)))
			check(t, g.Adopt(source.Backing))
			for range 2 {
				play(t, source.Mount, g, 1500)
				pair.Quiet(time.Minute)
				// Filesystems of different kinds, and those that allocate ahead, have holes where they like.
				sameTrees(t, "at a quiet moment", scan(t, source.Backing), scan(t, target.Backing), tree.Options{IgnoreHoles: true})
			}
		})
	}
}

func TestAHistoryDuringTheFirstTransferIsCarriedToo(t *testing.T) {
	a, b := two(t)
	source := newVolume(t, a, "data", "ext4", 4*gib, grow(t, 3000))
	target := newVolume(t, b, "copy", "ext4", 4*gib, nil)
	g := history.New(seed(t, 12))
	check(t, g.Adopt(source.Backing))
	play(t, source.Mount, g, 500)
	pair := relate(t, source, target)
	play(t, source.Mount, g, 3000)
	sameCopy(t, "after the first transfer", source, target, pair)
}

func TestTheCopyCatchesUpAfterTheSourceWasKilled(t *testing.T) {
	source, target, pair := replicated(t, 4*gib, grow(t, 1000))
	g := history.New(seed(t, 13))
	for round := range 4 {
		play(t, source.Mount, g, 700)
		source.Node.Kill()
		source.Node.Start()
		play(t, source.Mount, g, 50)
		sameCopy(t, fmt.Sprintf("after the source was killed %d times", round+1), source, target, pair)
	}
}

func TestTheCopyCatchesUpAfterTheTargetWasKilled(t *testing.T) {
	source, target, pair := replicated(t, 4*gib, grow(t, 3000)) // killed in its first transfer, at first
	g := history.New(seed(t, 14))
	for round := range 4 {
		target.Node.Kill()
		play(t, source.Mount, g, 300)
		target.Node.Start()
		play(t, source.Mount, g, 300)
		if round%2 == 1 {
			sameCopy(t, fmt.Sprintf("after the target was killed %d times", round+1), source, target, pair)
		}
	}
}

func TestACutWireIsTriedAgainAndSaidOnBothEnds(t *testing.T) {
	source, target, pair := replicated(t, smallDisk, grow(t, 200))
	pair.Quiet(time.Minute)
	source.Node.Namespace.Cut(t)
	write(t, "written while the wire was cut", source.Mount, "cut")
	for _, n := range []*lab.Node{source.Node, target.Node} {
		pair.Await(n, silenceIsSaid, "says that the peer is gone", isGone)
	}
	source.Node.Namespace.Mend(t)
	sameCopy(t, "after the wire was mended", source, target, pair)
}

func TestADisabledRelationshipSendsNothingUntilItIsEnabled(t *testing.T) {
	source, target, pair := replicated(t, smallDisk, grow(t, 200))
	pair.Quiet(time.Minute)
	source.Node.Must("relationship", "disable", pair.ID)
	write(t, "written while disabled", source.Mount, "later")
	time.Sleep(500 * time.Millisecond)
	if s := pair.Status(source.Node); s.Enabled || s.Job != "disabled" {
		t.Errorf("enabled %t, job %s", s.Enabled, s.Job)
	}
	if names := scan(t, target.Backing); find(names, "later") != nil {
		t.Error("the target has what was written while the relationship was disabled")
	}
	source.Node.Must("relationship", "enable", pair.ID)
	sameCopy(t, "after it was enabled", source, target, pair)
}

// A write past a file's end makes the block that it begins in data; a truncation may leave nothing of the write but
// that block.
func TestABlockThatOnlyATruncationLeftIsDataOnTheCopyToo(t *testing.T) {
	source, target, pair := replicated(t, smallDisk, nil)
	path := write(t, strings.Repeat("x", 3000), source.Mount, "file")
	pair.Quiet(time.Minute)
	source.Node.Must("relationship", "disable", pair.ID) // so that it all is one transfer, with no seal held before
	overwrite(t, path, 11_948, []byte(strings.Repeat("y", 6224)))
	check(t, os.Truncate(path, 11_008))
	source.Node.Must("relationship", "enable", pair.ID)
	sameCopy(t, "after the truncation", source, target, pair)
}
