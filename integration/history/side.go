package history

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Side is one directory that a history is played on. It is used by one goroutine at a time.
type Side struct {
	dir     string
	workers []*worker // one for each of Users
	slots   [slots]int
	// vague are the files in which nobody can be held to where the holes are: where space was allocated
	// without being written, it counts as data or not by what happens to be in the page cache, and a write
	// to mapped memory allocates as much as happens to be cached in one piece.
	vague map[birth]bool
}

// A birth tells an inode from all others of its filesystem, past ones too.
type birth struct {
	ino  uint64
	time unix.StatxTimestamp
}

// born gives the birth of the file that is open in a slot; the zero birth if there is none.
func (s *Side) born(slot int) birth {
	var st unix.Statx_t
	if unix.Statx(s.slots[slot], "", unix.AT_EMPTY_PATH, unix.STATX_BTIME|unix.STATX_INO, &st) != nil {
		return birth{}
	}
	return birth{st.Ino, st.Btime}
}

// Open makes a directory ready to be played on. Close it before its filesystem is unmounted.
func Open(dir string) (*Side, error) {
	s := &Side{dir: dir, vague: make(map[birth]bool)}
	for i := range s.slots {
		s.slots[i] = -1
	}
	for _, u := range Users {
		w, err := newWorker(dir, u)
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("act as user %d in %s: %w", u.UID, dir, err)
		}
		s.workers = append(s.workers, w)
	}
	return s, nil
}

// Close closes the files that the history left open and ends the threads.
func (s *Side) Close() {
	for i, fd := range s.slots {
		if fd >= 0 {
			unix.Close(fd)
			s.slots[i] = -1
		}
	}
	for _, w := range s.workers {
		close(w.jobs)
		<-w.ended
	}
	s.workers = nil
}

// Run performs an operation and tells how it ended.
func (s *Side) Run(op *Op) Outcome {
	before := s.look(op)
	var out string
	var err error
	s.workers[op.User].do(func() {
		unix.Umask(op.Umask)
		out, err = op.kind.run(s, op)
	})
	o := Outcome{Out: out + s.look(op).since(before)}
	if err != nil && !errors.As(err, &o.Errno) {
		o.Errno, o.Out = unix.EIO, "not an errno: "+err.Error()
	}
	return o
}

// A worker is a thread with a user's credentials, its own umask and its own working directory.
type worker struct {
	jobs  chan func()
	ended chan struct{}
}

func newWorker(dir string, u User) (*worker, error) {
	w := &worker{jobs: make(chan func()), ended: make(chan struct{})}
	started := make(chan error)
	go func() {
		defer close(w.ended)
		runtime.LockOSThread() // and never unlock: the thread is of no use to others
		err := become(dir, u)
		started <- err
		if err != nil {
			return
		}
		for job := range w.jobs {
			job()
		}
		unix.Chdir("/") // the thread may live on for a moment
	}()
	return w, <-started
}

// As lets f run in a directory as a user, with the usual umask of 022.
func As(u User, dir string, f func() error) error {
	w, err := newWorker(dir, u)
	if err != nil {
		return fmt.Errorf("act as user %d in %s: %w", u.UID, dir, err)
	}
	w.do(func() {
		unix.Umask(0o022)
		err = f()
	})
	close(w.jobs)
	<-w.ended
	return err
}

// become changes the calling thread only, which the raw system calls do and the wrappers do not.
func become(dir string, u User) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Chdir(dir); err != nil {
		return &fs.PathError{Op: "chdir", Path: dir, Err: err}
	}
	groups := make([]uint32, len(u.Groups)+1)
	for i, g := range u.Groups {
		groups[i] = uint32(g)
	}
	for _, call := range [][4]uintptr{
		{unix.SYS_SETGROUPS, uintptr(len(u.Groups)), uintptr(unsafe.Pointer(&groups[0])), 0},
		{unix.SYS_SETRESGID, uintptr(u.GID), uintptr(u.GID), uintptr(u.GID)},
		{unix.SYS_SETRESUID, uintptr(u.UID), uintptr(u.UID), uintptr(u.UID)},
	} {
		if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
			return errno
		}
	}
	return nil
}

func (w *worker) do(f func()) {
	done := make(chan struct{})
	w.jobs <- func() {
		defer close(done)
		f()
	}
	<-done
}

// A sight is what can be seen of the inodes that an operation names.
type sight [4]*unix.Stat_t

// look lets root, who sees everything, look at an operation's paths and open files.
func (s *Side) look(op *Op) sight {
	var seen sight
	s.workers[0].do(func() {
		for i, path := range []string{op.Path, op.Path2} {
			var st unix.Stat_t
			if path != "" && unix.Lstat(path, &st) == nil {
				seen[i] = &st
			}
		}
		for i, slot := range []int{op.Slot, op.Slot2} {
			var st unix.Stat_t
			if slot > 0 && s.slots[slot] >= 0 && unix.Fstat(s.slots[slot], &st) == nil {
				seen[2+i] = &st
			}
		}
	})
	return seen
}

// since describes what is seen now, and which times have moved since the look before.
func (now sight) since(before sight) string {
	var text string
	for i, st := range now {
		if st == nil {
			continue
		}
		size := st.Size
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			size = 0 // every filesystem has its own idea
		}
		text += fmt.Sprintf(" [%d: mode=%07o links=%d owner=%d:%d size=%d rdev=%#x", i, st.Mode, st.Nlink, st.Uid, st.Gid, size, st.Rdev)
		if old := before[i]; old != nil && old.Ino == st.Ino {
			text += fmt.Sprintf(" mtime-moved=%t ctime-moved=%t", old.Mtim != st.Mtim, old.Ctim != st.Ctim)
		}
		text += "]"
	}
	return text
}
