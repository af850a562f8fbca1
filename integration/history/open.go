package history

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// openKinds are the operations that open and close files.
var openKinds = []kind{
	{name: "create", weight: 22, learn: learnFile,
		draw: func(g *Generator, op *Op) {
			op.Path, op.Mode, op.Slot = g.fresh(), g.permissions(), g.slot()
			op.Flags = unix.O_CREAT | g.openFlags()
			if g.rng.IntN(4) == 0 {
				op.Flags |= unix.O_EXCL
			}
		},
		run: runOpen},
	{name: "open", weight: 22,
		draw: func(g *Generator, op *Op) { op.Path, op.Slot, op.Flags = g.any(), g.slot(), g.openFlags() },
		run:  runOpen},
	{name: "open-nameless", weight: 4,
		draw: func(g *Generator, op *Op) {
			op.Path, op.Mode, op.Slot = g.dir(), g.permissions(), g.slot()
			op.Flags = unix.O_TMPFILE | []int{unix.O_RDWR, unix.O_WRONLY, unix.O_RDWR | unix.O_EXCL}[g.rng.IntN(3)]
		},
		run: runOpen},
	{name: "name-open-file", weight: 5,
		draw: func(g *Generator, op *Op) { op.Slot, op.Path2 = g.slot(), g.fresh() },
		run: func(s *Side, op *Op) (string, error) {
			from := fmt.Sprintf("/proc/self/fd/%d", s.slots[op.Slot])
			if s.slots[op.Slot] < 0 {
				return "", unix.EBADF
			}
			return "", unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, op.Path2, unix.AT_SYMLINK_FOLLOW)
		},
		learn: func(g *Generator, op *Op) { g.addFile(op.Path2) }},
	{name: "close", weight: 4,
		draw: func(g *Generator, op *Op) { op.Slot = g.slot() },
		run: func(s *Side, op *Op) (string, error) {
			fd := s.slots[op.Slot]
			s.slots[op.Slot] = -1
			return "", unix.Close(fd)
		}},
	{name: "truncate-path", weight: 6,
		// Not to nothing: behind FUSE that looks like an open with O_TRUNC, which moves an empty file's times.
		draw: func(g *Generator, op *Op) { op.Path, op.Off = g.any(), 1+g.offset() },
		run:  func(_ *Side, op *Op) (string, error) { return "", unix.Truncate(op.Path, op.Off) }},
	{name: "stat", weight: 4, // what is seen is looked up after every operation anyway; this one asks as a user
		draw: func(g *Generator, op *Op) { op.Path = g.any() },
		run: func(_ *Side, op *Op) (string, error) {
			var st unix.Stat_t
			return "", unix.Lstat(op.Path, &st)
		}},
	{name: "access", weight: 4,
		draw: func(g *Generator, op *Op) { op.Path, op.Mode = g.any(), uint32(g.rng.IntN(8)) },
		run:  func(_ *Side, op *Op) (string, error) { return "", unix.Access(op.Path, op.Mode) }},
}

// openFlags never waits for the other end of a FIFO. What truncates is drawn seldom, so that files grow.
func (g *Generator) openFlags() int {
	flags := unix.O_NONBLOCK | unix.O_CLOEXEC | []int{unix.O_RDWR, unix.O_RDWR, unix.O_RDONLY, unix.O_WRONLY}[g.rng.IntN(4)]
	for _, extra := range []struct{ flag, seldom int }{
		{unix.O_APPEND, 8}, {unix.O_TRUNC, 8}, {unix.O_DIRECT, 10}, {unix.O_NOFOLLOW, 5}, {unix.O_SYNC, 20},
		{unix.O_DSYNC, 20}, {unix.O_NOATIME, 12}, {unix.O_DIRECTORY, 25}, {unix.O_PATH, 40},
	} {
		if g.rng.IntN(extra.seldom) == 0 {
			flags |= extra.flag
		}
	}
	if flags&unix.O_DIRECT != 0 {
		flags &^= unix.O_APPEND // a file's end is seldom where a block ends
	}
	return flags
}

// runOpen opens into a slot, and closes what was open there.
func runOpen(s *Side, op *Op) (string, error) {
	fd, err := unix.Open(op.Path, op.Flags, op.Mode&0o7777)
	if err != nil {
		return "", err
	}
	if old := s.slots[op.Slot]; old >= 0 {
		unix.Close(old)
	}
	s.slots[op.Slot] = fd
	return "", nil
}
