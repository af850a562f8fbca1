package tree

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func newEntry(path string, st *unix.Stat_t) Entry {
	e := Entry{Path: path, Mode: st.Mode, UID: st.Uid, GID: st.Gid, Mtime: time.Unix(st.Mtim.Unix()).UTC()}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return e
	case unix.S_IFREG:
		e.Size = st.Size
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Rdev = st.Rdev
	}
	e.Nlink = st.Nlink
	return e
}

func join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

func readNames(dir int) ([]string, error) {
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), ".")
	defer f.Close()
	return f.Readdirnames(-1)
}

// readXattrs reads all extended attributes of what the path names. The ACLs are asked for by name too,
// for not every filesystem lists them. XFS's own form of them, which it lists besides, is left out.
func readXattrs(path string, list func(string, []byte) (int, error), get func(string, string, []byte) (int, error)) (map[string]string, error) {
	buf := make([]byte, 64<<10)
	n, err := list(path, buf)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return nil, fmt.Errorf("listxattr: %w", err)
	}
	names := strings.Split(strings.TrimSuffix(string(buf[:max(n, 0)]), "\x00"), "\x00")
	names = append(names, "system.posix_acl_access", "system.posix_acl_default")
	var all map[string]string
	for _, name := range names {
		if name == "" || strings.HasPrefix(name, "trusted.SGI_ACL_") {
			continue
		}
		n, err := get(path, name, buf)
		if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("getxattr %s: %w", name, err)
		}
		if all == nil {
			all = make(map[string]string)
		}
		all[name] = string(buf[:n])
	}
	return all, nil
}

// block is the grain in which content is told from holes.
const block = 4096

// file reads a regular file's data map, its unwritten extents and its content.
func (s *scanner) file(fd int, e *Entry) error {
	var err error
	if e.Data, err = dataRanges(fd, e.Size); err != nil {
		return fmt.Errorf("seek data: %w", err)
	}
	if e.Unwritten, err = unwritten(fd); err != nil {
		return fmt.Errorf("fiemap: %w", err)
	}
	digest := sha256.New()
	for _, r := range e.Data {
		if err := s.digest(digest, fd, Range{r.Off &^ (block - 1), r.End}); err != nil {
			return err
		}
	}
	e.Digest = hex.EncodeToString(digest.Sum(nil)[:16])
	return nil
}

// digest adds the blocks of the range that are not all zero, each with its place, so that a hole and
// written zeros give the same digest.
func (s *scanner) digest(w io.Writer, fd int, r Range) error {
	for off := r.Off; off < r.End; {
		n, err := unix.Pread(fd, s.buf[:min(int64(len(s.buf)), r.End-off)], off)
		if err != nil {
			return fmt.Errorf("read at %d: %w", off, err)
		}
		if n == 0 {
			return fmt.Errorf("read at %d: the file ends before its size", off)
		}
		for i := 0; i < n; i += block {
			piece := bytes.TrimRight(s.buf[i:min(i+block, n)], "\x00")
			if len(piece) == 0 {
				continue
			}
			var head [12]byte
			binary.BigEndian.PutUint64(head[:], uint64(off)+uint64(i))
			binary.BigEndian.PutUint32(head[8:], uint32(len(piece)))
			w.Write(head[:])
			w.Write(piece)
		}
		off += int64(n)
	}
	return nil
}

func dataRanges(fd int, size int64) ([]Range, error) {
	var all []Range
	for off := int64(0); off < size; {
		start, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		end, err := unix.Seek(fd, start, unix.SEEK_HOLE)
		if err != nil {
			return nil, err
		}
		all = append(all, Range{start, end})
		off = end
	}
	return all, nil
}

// fiemap is struct fiemap of linux/fiemap.h with room for some extents.
type fiemap struct {
	start, length  uint64
	flags, mapped  uint32
	count, padding uint32
	extents        [64]fiemapExtent
}

type fiemapExtent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

const (
	fsIocFiemap     = 0xC020660B
	extentLast      = 0x1
	extentUnwritten = 0x800
)

// unwritten lists the extents that are allocated but not written; none where the filesystem cannot tell.
func unwritten(fd int) ([]Range, error) {
	var all []Range
	for start := uint64(0); ; {
		m := fiemap{start: start, length: ^uint64(0) - start, count: 64}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fsIocFiemap, uintptr(unsafe.Pointer(&m)))
		if errno == unix.ENOTTY || errno == unix.EOPNOTSUPP || errno == unix.ENOSYS {
			return nil, nil
		}
		if errno != 0 {
			return nil, errno
		}
		for _, e := range m.extents[:m.mapped] {
			if e.flags&extentUnwritten != 0 {
				all = append(all, Range{int64(e.logical), int64(e.logical + e.length)})
			}
			if e.flags&extentLast != 0 {
				return all, nil
			}
			start = e.logical + e.length
		}
		if m.mapped == 0 {
			return all, nil
		}
	}
}
