package integration

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// steps is a history of system calls that is drawn from a seed alone: so the tree after any number of them
// can be made again. Each change is followed by three calls that renew the file with the number of changes.
type steps struct {
	r     *rand.Rand
	files []fileName
	dirs  []string
	next  int // for new names
	calls int // drawn so far
}

// A fileName is a name of a file that there is; of two names with one inode neither is renamed over the other.
type fileName struct {
	path  string
	inode int
}

// A call is one system call of a history, or a few that are one change.
type call struct {
	number int
	what   string // for a report
	file   string // of which the content or the attributes change; "" for other calls
	do     func(dir string) error
	// died gives what was done one after the other, at most, by a call during which the daemon died; shown is
	// what there is since then. It is nil for a call that happens as a whole or not at all.
	died func(shown string) ([]func(dir string) error, error)
	// inPages makes a write a page at a time, and calls between after each but the last; nil for other calls.
	inPages func(dir string, between func()) error
	// repeats says that the call can be made again when it has been made, or a part of it.
	repeats bool
}

const (
	callsPerChange = 4
	counter        = "counter"
	counterBefore  = "counter.new"
)

// How many files and directories a history has at most.
const (
	mostFiles = 40
	mostDirs  = 6
)

func newSteps(seed uint64) *steps { return &steps{r: rand.New(rand.NewPCG(seed, 0))} }

// draw draws the next call.
func (s *steps) draw() (c call) {
	n := s.calls
	s.calls++
	switch n % callsPerChange {
	case 0:
		c = s.change()
	case 1:
		c = mknod(counterBefore)
	case 2:
		c = writeAt(counterBefore, fmt.Append(nil, n/callsPerChange+1), 0)
	case 3:
		c = rename(counterBefore, counter)
	}
	c.number = n
	return c
}

// call makes the next call in a directory.
func (s *steps) call(dir string) error { return s.draw().in(dir) }

// callInParts is call, and a write is made in those parts of which a point in time may have the first ones.
func (s *steps) callInParts(dir string, between func()) error {
	c := s.draw()
	if c.inPages != nil {
		return c.inPages(dir, between)
	}
	return c.in(dir)
}

// effects gives what the call may have done when the daemon died during it.
func (c call) effects(shown string) ([]func(dir string) error, error) {
	if c.died == nil {
		return []func(dir string) error{c.do}, nil
	}
	return c.died(shown)
}

// in makes the call in a directory.
func (c call) in(dir string) error {
	if err := c.do(dir); err != nil {
		return fmt.Errorf("call %d (%s): %w", c.number, c.what, err)
	}
	return nil
}

// change changes one of the files, or their names.
func (s *steps) change() call {
	kind := s.r.IntN(20)
	switch {
	case len(s.files) < 5:
		return s.newFile()
	case kind < 10:
		path := s.files[s.pick()].path
		c := s.changeFile(path, kind)
		c.file = path
		return c
	case kind < 16:
		return s.changeNames(kind)
	}
	return s.changeDirs(kind)
}

func (s *steps) pick() int { return s.r.IntN(len(s.files)) }

func (s *steps) changeFile(path string, kind int) call {
	switch kind {
	case 0:
		size := s.r.Int64N(300_000)
		return call{what: fmt.Sprintf("truncate %s to %d", path, size), do: func(dir string) error { return unix.Truncate(filepath.Join(dir, path), size) }}
	case 1:
		mode := uint32(0o600 + s.r.IntN(64))
		return call{do: func(dir string) error { return unix.Chmod(filepath.Join(dir, path), mode) }}
	case 2:
		value := fmt.Append(nil, s.r.Uint64())
		return call{do: func(dir string) error { return unix.Setxattr(filepath.Join(dir, path), "user.x", value, 0) }}
	case 3:
		off, length := s.r.Int64N(300_000), 1+s.r.Int64N(100_000)
		return call{what: fmt.Sprintf("punch %d bytes at %d of %s", length, off, path), do: func(dir string) error {
			return withFile(filepath.Join(dir, path), func(fd int) error {
				return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, length)
			})
		}}
	}
	b := bytes.Repeat(binary.BigEndian.AppendUint64(nil, s.r.Uint64()), 1+s.r.IntN(20_000))
	return writeAt(path, b, s.r.Int64N(300_000))
}

func (s *steps) changeNames(kind int) call {
	i := s.pick()
	from := s.files[i]
	switch {
	case kind < 12 && len(s.files) < mostFiles:
		return s.newFile()
	case kind == 12 && len(s.files) < mostFiles:
		to := s.newName("file")
		s.files = append(s.files, fileName{to, from.inode})
		return call{do: func(dir string) error { return unix.Link(filepath.Join(dir, from.path), filepath.Join(dir, to)) }}
	case kind == 13:
		s.files[i].path = s.newName("file")
		return rename(from.path, s.files[i].path)
	case kind == 14:
		if over := s.files[s.pick()]; over.inode != from.inode {
			s.files = slices.Delete(s.files, i, i+1)
			for k := range s.files {
				if s.files[k].path == over.path {
					s.files[k].inode = from.inode
				}
			}
			return rename(from.path, over.path)
		}
	}
	s.files = slices.Delete(s.files, i, i+1)
	return call{do: func(dir string) error { return unix.Unlink(filepath.Join(dir, from.path)) }}
}

func (s *steps) changeDirs(kind int) call {
	if len(s.dirs) < 2 || kind == 16 && len(s.dirs) < mostDirs {
		s.next++
		name := fmt.Sprint("dir", s.next)
		s.dirs = append(s.dirs, name)
		return call{do: func(dir string) error { return unix.Mkdir(filepath.Join(dir, name), 0o755) }}
	}
	from := s.dirs[s.r.IntN(len(s.dirs))]
	empty := slices.IndexFunc(s.dirs, func(d string) bool { return d != from && s.isEmpty(d) })
	switch {
	case kind == 17 && empty >= 0:
		name := s.dirs[empty]
		s.dirs = slices.Delete(s.dirs, empty, empty+1)
		return call{do: func(dir string) error { return unix.Rmdir(filepath.Join(dir, name)) }}
	case kind == 18 && empty >= 0:
		return s.moveDir(from, s.dirs[empty])
	}
	s.next++
	return s.moveDir(from, fmt.Sprint("dir", s.next))
}

func (s *steps) isEmpty(dir string) bool {
	return !slices.ContainsFunc(s.files, func(f fileName) bool { return strings.HasPrefix(f.path, dir+"/") })
}

// moveDir renames a directory, perhaps over an empty one, which may be left where the first was.
func (s *steps) moveDir(from, to string) call {
	s.dirs = slices.DeleteFunc(s.dirs, func(d string) bool { return d == from || d == to })
	s.dirs = append(s.dirs, to)
	for i, f := range s.files {
		if below, ok := strings.CutPrefix(f.path, from+"/"); ok {
			s.files[i].path = to + "/" + below
		}
	}
	c := rename(from, to)
	c.died = func(string) ([]func(dir string) error, error) {
		back := func(dir string) error { return unix.Mkdir(filepath.Join(dir, from), 0o755) }
		return []func(dir string) error{c.do, back}, nil
	}
	return c
}

func (s *steps) newFile() call {
	s.next++ // the inode's number, too
	name := s.newName("file")
	s.files = append(s.files, fileName{name, s.next})
	return mknod(name)
}

// newName gives a name that was never used, in one of the directories or at the top.
func (s *steps) newName(kind string) string {
	s.next++
	name := fmt.Sprint(kind, s.next)
	if i := s.r.IntN(len(s.dirs) + 2); i < len(s.dirs) {
		return s.dirs[i] + "/" + name
	}
	return name
}

func mknod(path string) call {
	return call{do: func(dir string) error { return unix.Mknod(filepath.Join(dir, path), unix.S_IFREG|0o644, 0) }}
}

func rename(from, to string) call {
	return call{what: "rename " + from + " to " + to, do: func(dir string) error {
		return unix.Rename(filepath.Join(dir, from), filepath.Join(dir, to))
	}}
}

// writeAt writes into a file. The kernel may make several requests of it: a point in time may have only the
// beginning, and so may a file whose daemon was killed.
func writeAt(path string, b []byte, off int64) call {
	write := func(dir string, b []byte) error {
		return withFile(filepath.Join(dir, path), func(fd int) error {
			n, err := unix.Pwrite(fd, b, off)
			if err == nil && n < len(b) {
				err = io.ErrShortWrite // what came after its beginning has failed
			}
			return err
		})
	}
	return call{
		what:    fmt.Sprintf("write %d bytes at %d of %s", len(b), off, path),
		repeats: true,
		do:      func(dir string) error { return write(dir, b) },
		inPages: func(dir string, between func()) error {
			for end := page - int(off%page); end < len(b); end += page {
				if err := write(dir, b[:end]); err != nil {
					return err
				}
				between()
			}
			return write(dir, b)
		},
		died: func(shown string) ([]func(dir string) error, error) {
			now, err := os.ReadFile(filepath.Join(shown, path))
			now = now[min(int64(len(now)), off):]
			same := 0
			for same < min(len(now), len(b)) && now[same] == b[same] {
				same++
			}
			return []func(dir string) error{func(dir string) error { return write(dir, b[:same]) }}, err
		},
	}
}

const page = 4096

func withFile(path string, f func(fd int) error) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return f(fd)
}

// play makes calls until it is told to stop, or has made so many.
func (s *steps) play(dir string, upto int, stop <-chan struct{}) error {
	for s.calls < upto {
		select {
		case <-stop:
			return nil
		default:
		}
		if err := s.call(dir); err != nil {
			return err
		}
	}
	return nil
}
