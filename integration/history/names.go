package history

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// kinds are all kinds of operations. A weight of 10 is common.
var kinds = slices.Concat(nameKinds, openKinds, dataKinds, attributeKinds)

// nameKinds are the operations on names.
var nameKinds = []kind{
	{name: "mknod", weight: 6, learn: learnFile,
		draw: func(g *Generator, op *Op) {
			op.Path, op.Mode = g.fresh(), g.permissions()
			// Devices that do no harm when somebody opens them: null, zero, and a block device that has no driver.
			devices := []struct{ kind, major, minor uint32 }{
				{unix.S_IFREG, 0, 0}, {unix.S_IFIFO, 0, 0}, {unix.S_IFSOCK, 0, 0},
				{unix.S_IFCHR, 1, 3}, {unix.S_IFCHR, 1, 5}, {unix.S_IFBLK, 120, 7}, {unix.S_IFDIR, 0, 0},
			}
			d := devices[g.rng.IntN(len(devices))]
			op.Mode |= d.kind
			op.Off = int64(unix.Mkdev(d.major, d.minor))
		},
		run: func(_ *Side, op *Op) (string, error) { return "", unix.Mknod(op.Path, op.Mode, int(op.Off)) }},
	{name: "mkdir", weight: 9,
		draw:  func(g *Generator, op *Op) { op.Path, op.Mode = g.fresh(), g.permissions()|0o100 },
		run:   func(_ *Side, op *Op) (string, error) { return "", unix.Mkdir(op.Path, op.Mode) },
		learn: func(g *Generator, op *Op) { g.addDir(op.Path) }},
	{name: "symlink", weight: 6, learn: learnFile,
		draw: func(g *Generator, op *Op) { op.Path, op.Value = g.fresh(), g.linkTarget() },
		run:  func(_ *Side, op *Op) (string, error) { return "", unix.Symlink(string(op.Value), op.Path) }},
	{name: "link", weight: 9,
		draw: func(g *Generator, op *Op) { op.Path, op.Path2 = g.any(), g.fresh() },
		run: func(_ *Side, op *Op) (string, error) {
			return "", unix.Linkat(unix.AT_FDCWD, op.Path, unix.AT_FDCWD, op.Path2, 0)
		},
		learn: func(g *Generator, op *Op) { g.addFile(op.Path2) }},
	{name: "rename", weight: 18, draw: drawRename, run: runRename, learn: learnRename},
	{name: "rename-directory", weight: 6, run: runRename, learn: learnRename,
		draw: func(g *Generator, op *Op) {
			op.Path = g.dir()
			op.Path2 = []string{g.fresh(), g.dir(), join(g.dir(), "into"), join(op.Path, "below-itself")}[g.rng.IntN(4)]
			op.Flags = []int{0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE}[g.rng.IntN(4)]
		}},
	{name: "unlink", weight: 12, learn: learnGone,
		draw: func(g *Generator, op *Op) { op.Path = g.any() },
		run:  func(_ *Side, op *Op) (string, error) { return "", unix.Unlink(op.Path) }},
	{name: "rmdir", weight: 6, learn: learnGone,
		draw: func(g *Generator, op *Op) { op.Path = g.dir() },
		run: func(_ *Side, op *Op) (string, error) {
			if op.Path == "." {
				return "", unix.EINVAL // as the kernel says of ".", but never try it on the root
			}
			return "", unix.Rmdir(op.Path)
		}},
	{name: "readdir", weight: 5,
		draw: func(g *Generator, op *Op) { op.Path = g.dir() },
		run:  runReaddir},
	{name: "readlink", weight: 3,
		draw: func(g *Generator, op *Op) { op.Path = g.file() },
		run: func(_ *Side, op *Op) (string, error) {
			b := make([]byte, 5000)
			n, err := unix.Readlink(op.Path, b)
			return string(b[:max(n, 0)]), err
		}},
	{name: "fsync-directory", weight: 2,
		draw: func(g *Generator, op *Op) { op.Path = g.dir() },
		run: func(_ *Side, op *Op) (string, error) {
			fd, err := unix.Open(op.Path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return "", err
			}
			defer unix.Close(fd)
			return "", unix.Fsync(fd)
		}},
}

func learnFile(g *Generator, op *Op) { g.addFile(op.Path) }
func learnGone(g *Generator, op *Op) { g.forget(op.Path) }

func drawRename(g *Generator, op *Op) {
	op.Path = g.file()
	op.Path2 = []string{g.fresh(), g.fresh(), g.file(), g.any()}[g.rng.IntN(4)]
	op.Flags = []int{0, 0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE}[g.rng.IntN(5)]
}

func runRename(_ *Side, op *Op) (string, error) {
	return "", unix.Renameat2(unix.AT_FDCWD, op.Path, unix.AT_FDCWD, op.Path2, uint(op.Flags))
}

func learnRename(g *Generator, op *Op) {
	if op.Flags == unix.RENAME_EXCHANGE || op.Path == op.Path2 {
		return // both names are still there
	}
	g.forget(op.Path2)
	g.moved(op.Path, op.Path2)
}

// linkTarget gives what a symlink says. No target leads out of the tree: a history must not follow it there.
func (g *Generator) linkTarget() []byte {
	switch g.rng.IntN(10) {
	case 0:
		return []byte(strings.Repeat("long/", 800)) // 4000 bytes
	case 1:
		return nil // an empty target is an error
	case 2:
		return []byte("\xff no such name")
	case 3:
		return []byte(strings.Repeat("x", 5000)) // too long
	}
	return fmt.Appendf(nil, "%c%d", 'a'+g.rng.IntN(26), g.rng.IntN(12))
}

func runReaddir(_ *Side, op *Op) (string, error) {
	f, err := os.OpenFile(op.Path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	entries, err := f.ReadDir(-1)
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, fmt.Sprintf("%q %v", e.Name(), e.Type()))
	}
	slices.Sort(names)
	return fmt.Sprintf("%d names, sum %s", len(names), sum([]byte(strings.Join(names, "\n")))), err
}

func join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}
