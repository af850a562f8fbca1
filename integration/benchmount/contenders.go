package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"tandemfs/integration/lab"
)

// The contenders.
const (
	nativeName   = "native"
	loopbackName = "loopback"
	tandemName   = "tandem"
)

// loopbackCommand makes this program serve the loopback example, in a process of its own as tandemfs is.
const loopbackCommand = "serve-loopback"

type contender struct {
	name  string
	dir   string
	quiet func() // waits until it does nothing in the background; nil if it never does
}

// prepare makes the three directories on one filesystem and mounts what is to be mounted.
func prepare(t *lab.Host, o options) []contender {
	disk := o.dir
	if disk == "" {
		disk = lab.Disk(t, o.kind, diskSize(o, contenderCount))
	} else {
		dir, err := os.MkdirTemp(disk, "benchmount-")
		if err != nil {
			t.Fatalf("%v", err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		disk = dir
	}
	native := lab.MakeDir(t, disk, "native")
	pair, tandem := startTandem(t, lab.MakeDir(t, disk, "tandem"), o)
	return []contender{
		{nativeName, native, nil},
		{loopbackName, startLoopback(t, lab.MakeDir(t, disk, "loopback")), nil},
		{tandemName, tandem, func() { pair.Quiet(10 * time.Minute) }},
	}
}

// contenderCount is how many contenders share a disk.
const contenderCount = 3

// What diskSize counts with.
const (
	smallFileRows, smallFileSpace = 7, 8 << 10   // rows, and bytes of a file with its inode and its share of a directory
	treeRowCount, treeSpace       = 2, 144 << 20 // rows, and bytes of the sources with what is built in them
	largeFiles                    = 4            // one, what a transfer keeps of it, and as much again not freed yet
	spareSpace                    = 2 << 30      // journals, and what filesystems keep for themselves
)

// diskSize is what so many contenders need for a whole run. What the rows on small files and on trees write
// stays, since filesystems avoid inodes that were freed a moment ago; large files go after each turn.
func diskSize(o options, contenders int64) int64 {
	perRound := smallFileRows*smallFileSpace*int64(o.files) + treeRowCount*treeSpace
	return contenders*(int64(o.rounds)*perRound+largeFiles*o.size) + spareSpace
}

// startTandem protects the directory and gives the volume a copy on a second node, on another disk.
func startTandem(t *lab.Host, dir string, o options) (*lab.Pair, string) {
	a, b := lab.Join(t)
	copied := lab.MakeDir(t, lab.Disk(t, o.kind, diskSize(o, 1)), "copy")
	mount, copyMount := lab.MakeDir(t, lab.Dir(t), "data"), lab.MakeDir(t, lab.Dir(t), "copy")
	source, target := lab.StartNode(t, a, "alpha"), lab.StartNode(t, b, "beta")
	source.Must("volume", "create", "data", dir, "--mount", mount)
	target.Must("volume", "create", "copy", copied, "--mount", copyMount)
	return lab.Relate(t, source, "data", target, "copy"), mount
}

func startLoopback(t *lab.Host, dir string) string {
	mount := lab.MakeDir(t, lab.Dir(t), "loopback")
	cmd := exec.Command("/proc/self/exe", loopbackCommand, mount, dir)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("loopback: %v", err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	lab.Eventually(t, 10*time.Second, "the loopback example is mounted", func() error {
		mounts, err := lab.Mounts(mount)
		if err == nil && len(mounts) == 0 {
			err = fmt.Errorf("nothing is mounted on %s", mount)
		}
		return err
	})
	return mount
}

// serveLoopback is go-fuse's example/loopback with -allow-other and its other options as they are, except
// that passthrough is off.
func serveLoopback(mount, original string) error {
	root, err := fs.NewLoopbackRoot(original)
	if err != nil {
		return err
	}
	second := time.Second
	server, err := fs.Mount(mount, root, &fs.Options{
		AttrTimeout:     &second,
		EntryTimeout:    &second,
		NullPermissions: true,
		MountOptions: fuse.MountOptions{
			AllowOther:           true,
			DirectMount:          true, // the host may have no fusermount
			Options:              []string{"default_permissions"},
			FsName:               original,
			Name:                 "loopback",
			DisabledCapabilities: fuse.CAP_PASSTHROUGH,
		},
	})
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		server.Unmount()
	}()
	server.Wait()
	return nil
}
