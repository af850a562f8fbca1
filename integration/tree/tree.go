// Package tree takes stock of a directory tree and tells how two trees differ. A manifest holds all that
// replication promises to carry: names, types, permissions, owners, modification times to the nanosecond,
// hard links, extended attributes with the ACLs among them, device numbers, symlink targets, content, and
// where the holes are. The guarantee: two trees whose manifests compare equal cannot be told apart by a
// reader, but for inode numbers, access and change times, and the size of directories.
//
// The walk goes from descriptor to descriptor, so that it stays inside the tree whatever is renamed
// meanwhile; but a manifest of a tree that changes is a mixture, so let the tree come to rest first.
package tree

import (
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// StateDir is the directory at the top of a protected tree that is left out of every manifest.
const StateDir = ".tandemfs"

// A Range is a stretch of bytes of a file, from Off up to but not including End.
type Range struct{ Off, End int64 }

// An Entry describes one name of a tree.
type Entry struct {
	Path   string // relative to the root, which is "."
	Mode   uint32 // as in stat(2): type and permissions
	UID    uint32
	GID    uint32
	Nlink  uint64 // 0 for directories, where filesystems count differently
	Rdev   uint64 // of devices
	Size   int64  // of regular files
	Mtime  time.Time
	Link   string            // the first path, in order, of the same inode: hard links share it
	Target string            // of a symlink
	Xattrs map[string]string // by name, the raw system.posix_acl_* among them
	Digest string            // of a regular file's content: holes and written zeros count the same
	Data   []Range           // what SEEK_DATA and SEEK_HOLE report as data
	// Unwritten is what is allocated but was never written (fallocate), where the filesystem tells. Whether
	// it shows as data or as a hole depends on what the page cache holds.
	Unwritten []Range

	inode inode
}

// A Manifest is a tree's entries, sorted by path.
type Manifest struct {
	Root    string // the directory, as Scan was given it
	Entries []Entry
}

// Scan reads the whole tree below dir, which it must have the right to do (as root). Dirty data of the
// filesystem is written back first, because until then a filesystem does not report holes exactly.
func Scan(dir string) (*Manifest, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	if err := unix.Syncfs(fd); err != nil {
		return nil, &fs.PathError{Op: "syncfs", Path: dir, Err: err}
	}
	s := &scanner{links: make(map[inode]string), buf: make([]byte, 1<<20)}
	if err := s.dir(fd, "."); err != nil {
		return nil, fmt.Errorf("scan %s: %w", dir, err)
	}
	slices.SortFunc(s.entries, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	s.nameLinks()
	return &Manifest{Root: dir, Entries: s.entries}, nil
}

// Count returns how many names of each type ("file", "directory", "symlink", ...) the manifest holds.
func (m *Manifest) Count() map[string]int {
	count := make(map[string]int)
	for _, e := range m.Entries {
		count[typeName(e.Mode)]++
	}
	return count
}

type inode struct{ dev, ino uint64 }

type scanner struct {
	entries []Entry
	links   map[inode]string // the first path of an inode, in order
	buf     []byte
}

// dir adds the directory open as fd under path, and all below it.
func (s *scanner) dir(fd int, path string) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &fs.PathError{Op: "fstat", Path: path, Err: err}
	}
	e := newEntry(path, &st)
	xattrs, err := readXattrs(fmt.Sprintf("/proc/self/fd/%d", fd), unix.Listxattr, unix.Getxattr)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	e.Xattrs = xattrs
	s.add(e, &st)
	names, err := readNames(fd)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, name := range names {
		if path == "." && name == StateDir {
			continue
		}
		if err := s.name(fd, name, join(path, name)); err != nil {
			return err
		}
	}
	return nil
}

// name adds one name of the directory open as dir.
func (s *scanner) name(dir int, name, path string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "fstatat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return &fs.PathError{Op: "openat", Path: path, Err: err}
		}
		defer unix.Close(fd)
		return s.dir(fd, path)
	}
	e := newEntry(path, &st)
	if err := s.content(dir, name, &e); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	s.add(e, &st)
	return nil
}

// content fills in what an entry that is no directory holds besides its attributes.
func (s *scanner) content(dir int, name string, e *Entry) error {
	at := fmt.Sprintf("/proc/self/fd/%d/%s", dir, name)
	xattrs, err := readXattrs(at, unix.Llistxattr, unix.Lgetxattr)
	if err != nil {
		return err
	}
	e.Xattrs = xattrs
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		e.Target, err = os.Readlink(at)
		return err
	case unix.S_IFREG:
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return s.file(fd, e)
	}
	return nil
}

func (s *scanner) add(e Entry, st *unix.Stat_t) {
	e.inode = inode{st.Dev, st.Ino}
	if first, seen := s.links[e.inode]; !seen || e.Path < first {
		s.links[e.inode] = e.Path
	}
	s.entries = append(s.entries, e)
}

// nameLinks gives each entry the first path of its inode, which is known when the walk is over.
func (s *scanner) nameLinks() {
	for i := range s.entries {
		s.entries[i].Link = s.links[s.entries[i].inode]
	}
}
