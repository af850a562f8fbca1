package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/integration/lab"
)

// blockSize is how much one write changes.
const blockSize = 4 << 10

// freeing is how long the daemon may take to free what deleted snapshots held.
const freeing = time.Minute

// A volume is a protected directory and how to ask for its snapshots.
type volume struct {
	*lab.API
	t       lab.T
	name    string
	backing string
	mount   string
	files   int // that were there before it was protected
}

// protect makes a new filesystem, has fill put something there, and protects it.
func protect(t lab.T, node *lab.Node, name, kind string, size int64, fill func(dir string) error) *volume {
	v := &volume{API: node.API(), t: t, name: name,
		backing: lab.MakeDir(t, lab.Disk(t, kind, size), "data"), mount: lab.MakeDir(t, lab.Dir(t), name)}
	if err := fill(v.backing); err != nil {
		t.Fatalf("fill %s: %v", v.backing, err)
	}
	unix.Sync()
	node.Must("volume", "create", name, v.backing, "--mount", v.mount)
	t.Cleanup(func() { // the mount ends before the disk below it
		if node.Running() {
			node.Stop()
		}
	})
	return v
}

// adopt protects a directory with so many files, which were made before and have no content: what is measured
// never looks at it. The filesystem has the room for the inodes.
func adopt(t lab.T, node *lab.Node, name string, files int) *volume {
	t.Logf("making %d files", files)
	const spacePerInode, spare = 32 << 10, 8 << 30 // mkfs.ext4 makes an inode for each 16 KiB of the disk
	v := protect(t, node, name, lab.Ext4, int64(files)*spacePerInode+spare, func(dir string) error { return makeFiles(dir, files) })
	v.files = files
	return v
}

// perDirectory is how many files share a directory.
const perDirectory = 1000

func fileName(dir string, i int) string {
	return filepath.Join(dir, fmt.Sprintf("d%d", i/perDirectory), fmt.Sprintf("file-%d", i))
}

func makeFiles(dir string, files int) error {
	for i := range files {
		path := fileName(dir, i)
		if i%perDirectory == 0 {
			if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
				return err
			}
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		f.Close()
	}
	return nil
}

// snapshot takes a snapshot, delete deletes one.
func (v *volume) snapshot(name string) error { return v.CreateSnapshot(v.name, name) }
func (v *volume) delete(name string) error   { return v.DeleteSnapshot(v.name, name) }

// deleteAll deletes all snapshots and waits until what they held is free and everything is written back.
func (v *volume) deleteAll() error {
	list, err := v.Snapshots(v.name)
	if err != nil {
		return err
	}
	for _, s := range list {
		if err := v.delete(s.Name); err != nil {
			return err
		}
	}
	lab.Eventually(v.t, freeing, "volume "+v.name+" keeps nothing any more", func() error {
		kept, err := lab.KeptForSnapshots(v.backing)
		if err == nil && len(kept) > 0 {
			err = fmt.Errorf("there are %d files, the first is %s", len(kept), kept[0])
		}
		return err
	})
	unix.Sync()
	return nil
}

// writeBlocks makes or overwrites the blocks at these places of a file.
func writeBlocks(path string, at []int64, size int) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(i * 7)
	}
	for i, off := range at {
		b[0], b[1] = byte(i), byte(i>>8)
		if _, err := f.WriteAt(b, off); err != nil {
			f.Close()
			return err
		}
	}
	return f.Close()
}

// places are those of the blocks of a file.
func places(size, block int64) []int64 {
	var all []int64
	for off := int64(0); off < size; off += block {
		all = append(all, off)
	}
	return all
}
