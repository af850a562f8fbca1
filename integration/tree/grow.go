package tree

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/integration/acl"
)

// Grow fills the directory with at least the given number of files of all kinds in nested directories:
// small and larger ones, sparse, preallocated and empty ones, hard links across directories, symlinks,
// FIFOs, sockets and device nodes, with several owners, modes, times, extended attributes and ACLs. The
// same seed makes the same tree. It needs to be root and leaves what it made when it fails.
func Grow(dir string, files int, seed uint64) error {
	g := &grower{rng: rand.New(rand.NewPCG(seed, 1)), dirs: []string{dir}}
	for i := range files {
		if i%40 == 0 {
			if err := g.dir(i); err != nil {
				return err
			}
		}
		path := filepath.Join(g.dirs[g.rng.IntN(len(g.dirs))], g.name(i))
		if err := g.grow(i, path); err != nil {
			return err
		}
	}
	for _, d := range g.dirs[1:] { // last, because a new name changes a directory's times
		if err := g.dress(d); err != nil {
			return err
		}
	}
	return nil
}

type grower struct {
	rng   *rand.Rand
	dirs  []string
	files []string // regular files, for hard links
}

func (g *grower) dir(i int) error {
	parent := g.dirs[g.rng.IntN(len(g.dirs))]
	if len(parent) > 1000 {
		parent = g.dirs[0]
	}
	d := filepath.Join(parent, fmt.Sprintf("dir-%d", i))
	g.dirs = append(g.dirs, d)
	return os.Mkdir(d, 0o755)
}

func (g *grower) name(i int) string {
	switch g.rng.IntN(30) {
	case 0:
		return fmt.Sprintf(" spaced \n name\t%d ", i)
	case 1:
		return fmt.Sprintf("not-utf8-\xff\xfe-%d", i)
	case 2:
		return fmt.Sprintf("%0255d", i)
	case 3:
		return fmt.Sprintf("ünïcödé-%d", i)
	}
	return fmt.Sprintf("file-%d", i)
}

// grow makes one name; the kinds come in turn, so that every tree of some size has them all.
func (g *grower) grow(i int, path string) error {
	var err error
	switch i % 20 {
	case 0:
		err = os.Symlink(fmt.Sprintf("../dir-%d/file-%d", i, i), path)
	case 1:
		err = unix.Mknod(path, unix.S_IFIFO|0o640, 0)
	case 2:
		err = unix.Mknod(path, unix.S_IFSOCK|0o600, 0)
	case 3:
		err = unix.Mknod(path, unix.S_IFCHR|0o660, int(unix.Mkdev(1, uint32(3+i%2*2))))
	case 4:
		err = unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(259, uint32(1000+i))))
	case 5, 6:
		if len(g.files) == 0 {
			return g.file(i, path)
		}
		return os.Link(g.files[g.rng.IntN(len(g.files))], path)
	default:
		return g.file(i, path)
	}
	if err != nil {
		return err
	}
	return g.dress(path)
}

func (g *grower) file(i int, path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	g.files = append(g.files, path)
	switch i % 10 {
	case 7: // nothing in it
	case 8:
		err = g.sparse(f)
	case 9:
		err = g.write(f, 0, 1+g.rng.IntN(200_000))
	default:
		err = g.write(f, 0, 1+g.rng.IntN(6000))
	}
	if err != nil {
		return err
	}
	return g.dress(path)
}

// sparse writes some islands of data into a hole, and preallocates some space that is never written.
func (g *grower) sparse(f *os.File) error {
	for range 1 + g.rng.IntN(3) {
		if err := g.write(f, int64(g.rng.IntN(4<<20)), 1+g.rng.IntN(20_000)); err != nil {
			return err
		}
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 5<<20, int64(1+g.rng.IntN(100_000))); err != nil {
		return err
	}
	return f.Truncate(6<<20 + int64(g.rng.IntN(10_000)))
}

func (g *grower) write(f *os.File, off int64, n int) error {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte('a' + g.rng.IntN(4)) // compresses a little, as text does
	}
	_, err := f.WriteAt(b, off)
	return err
}

// dress gives what stands at path an owner, a mode, extended attributes and, last, times.
func (g *grower) dress(path string) error {
	if err := os.Lchown(path, g.rng.IntN(3)*1000, g.rng.IntN(3)*1000); err != nil {
		return err
	}
	fi, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if fi.Mode()&os.ModeSymlink == 0 {
		if err := unix.Chmod(path, uint32(0o400|g.rng.IntN(0o10000))); err != nil {
			return err
		}
	}
	if err := g.xattrs(path, fi.Mode()); err != nil {
		return err
	}
	when := time.Date(2001+g.rng.IntN(20), 1, 1, 0, 0, g.rng.IntN(1e6), g.rng.IntN(1e9), time.UTC)
	ts := []unix.Timespec{unix.NsecToTimespec(when.UnixNano()), unix.NsecToTimespec(when.UnixNano())}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, unix.AT_SYMLINK_NOFOLLOW)
}

func (g *grower) xattrs(path string, mode os.FileMode) error {
	set := func(name string, value []byte) error {
		if g.rng.IntN(8) != 0 {
			return nil
		}
		return unix.Lsetxattr(path, name, value, 0)
	}
	err := set("trusted.grown", []byte(fmt.Sprint(g.rng.IntN(1000))))
	if err == nil && (mode.IsRegular() || mode.IsDir()) {
		err = set("user.colour", []byte("\x00blue\xff"))
		if err == nil {
			err = set(acl.Access, acl.Minimal(1000, 2000, uint16(g.rng.IntN(8))))
		}
		if err == nil {
			err = set("user.long", make([]byte, 1000))
		}
	}
	if err == nil && mode.IsDir() {
		err = set(acl.Default, acl.Minimal(2000, 1000, uint16(g.rng.IntN(8))))
	}
	return err
}
