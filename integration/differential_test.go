package integration

import (
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"golang.org/x/sys/unix"

	"tandemfs/integration/history"
	"tandemfs/integration/lab"
	"tandemfs/integration/tree"
)

func TestAVolumeOnExt4AnswersEveryOperationAsExt4Does(t *testing.T) {
	answersAlike(t, lab.Ext4, 20_000, 0)
}

func TestAVolumeOnXFSAnswersEveryOperationAsXFSDoes(t *testing.T) {
	answersAlike(t, lab.XFS, 8_000, 1)
}

func TestAVolumeOnBtrfsAnswersEveryOperationAsBtrfsDoes(t *testing.T) {
	answersAlike(t, lab.Btrfs, 4_000, 2)
}

// answersAlike plays a history on a volume and on a plain directory of the same kind of filesystem.
func answersAlike(t *testing.T, kind string, operations int, purpose uint64) {
	v := newVolume(t, alone(t), "data", kind, 4*gib, nil)
	plain := lab.MakeDir(t, lab.Disk(t, kind, 4*gib), "data")
	check(t, unix.Chmod(plain, 0o1777))
	l := &history.Lockstep{A: open(t, plain), B: open(t, v.Mount), Generator: history.New(seed(t, purpose))}
	const part = 2000
	for done := 0; done < operations; done += part {
		if err := l.Play(part); err != nil {
			t.Fatal(err)
		}
		below := scan(t, v.Backing)
		// Where the holes are, the history has asked all along, of the files where it can be told.
		sameTrees(t, "after the same operations", scan(t, plain), below, tree.Options{IgnoreTimes: true, IgnoreHoles: true})
		sameTrees(t, "seen from above and below", scan(t, v.Mount), below, tree.Options{})
	}
}

// notOurs are tests of the suite that say nothing about a mount. The suite's own run leaves the first out
// on plain directories too: it wants two traditional record locks of one process to conflict, which
// fcntl(2) says they never do.
var notOurs = map[string]bool{"FcntlFlockLocksFile": true}

func TestTheMountPassesTheFUSEConformanceSuite(t *testing.T) {
	for kind, without := range map[string]string{
		lab.Ext4: "XAttrLarge", // ext4 itself has no room for a value of 64 KiB
		lab.XFS:  "",
	} {
		v := newVolume(t, alone(t), "data", kind, smallDisk, nil)
		for name, test := range posixtest.All {
			if !notOurs[name] && name != without {
				t.Run(kind+"/"+name, func(t *testing.T) { test(t, lab.MakeDir(t, v.Mount, name)) })
			}
		}
	}
}
