package volume

import (
	"errors"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
)

// aside is the directory, inside the state directory, of inodes that a transfer made but has not placed
// yet, or took from their place and has not removed yet. It lies on the same filesystem, so moving there
// and back is a rename. The names in it are numbers that mean nothing.
type aside struct {
	fd int

	mu    sync.Mutex
	next  uint64
	names map[journal.Ident][]string
}

const asideName = "aside"

// openAside opens the directory and learns what an earlier run left in it.
func openAside(b *sys.Backing, stateFD int) (*aside, error) {
	if err := sys.Mkdir(stateFD, asideName, 0o700); err != nil && err != unix.EEXIST {
		return nil, err
	}
	fd, err := sys.Open(stateFD, asideName, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	a := &aside{fd: fd, names: make(map[journal.Ident][]string)}
	err = eachName(fd, func(name string) error {
		id, err := b.IdentAt(fd, name)
		if err != nil {
			return err
		}
		if n, err := strconv.ParseUint(name, 10, 64); err == nil {
			a.next = max(a.next, n+1)
		}
		a.names[id] = append(a.names[id], name)
		return nil
	})
	if err != nil {
		sys.Close(fd)
		return nil, err
	}
	return a, nil
}

func (a *aside) close() { sys.Close(a.fd) }

// newName gives a name that is not in use.
func (a *aside) newName() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.next++
	return strconv.FormatUint(a.next-1, 10)
}

// add notes that an inode has a name in the directory.
func (a *aside) add(id journal.Ident, name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.names[id] = append(a.names[id], name)
}

// peek gives a name of the inode, if it has one here.
func (a *aside) peek(id journal.Ident) (string, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	names := a.names[id]
	if len(names) == 0 {
		return "", false
	}
	return names[len(names)-1], true
}

// taken notes that the name that peek gave is here no longer.
func (a *aside) taken(id journal.Ident) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if names := a.names[id]; len(names) > 1 {
		a.names[id] = names[:len(names)-1]
	} else {
		delete(a.names, id)
	}
}

// idents gives all inodes that have a name here.
func (a *aside) idents() []journal.Ident {
	a.mu.Lock()
	defer a.mu.Unlock()
	ids := make([]journal.Ident, 0, len(a.names))
	for id := range a.names {
		ids = append(ids, id)
	}
	return ids
}

// eachName calls visit for every name of an open directory, "." and ".." left out. The directory may
// change below it: the names are read first.
func eachName(fd int, visit func(string) error) error {
	var names []string
	buf := direntBuffers.Get().(*[direntBuffer]byte)
	defer direntBuffers.Put(buf)
	if err := sys.SeekDir(fd, 0); err != nil {
		return err
	}
	for {
		n, err := sys.Getdents(fd, buf[:])
		if err == unix.ENOENT { // the directory itself was removed
			break
		}
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		for rest := buf[:n]; len(rest) > 0; {
			var e sys.Dirent
			if e, rest = sys.NextDirent(rest); !e.IsDot() {
				names = append(names, string(e.Name))
			}
		}
	}
	var errs error
	for _, name := range names {
		errs = errors.Join(errs, visit(name))
	}
	return errs
}
