package volume

import (
	"sync"

	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
)

// direntBuffer is how much of a directory is read at once, at most. minDirents holds an entry of any name.
const (
	direntBuffer = 64 << 10
	minDirents   = 512
)

var direntBuffers = sync.Pool{New: func() any { return new([direntBuffer]byte) }}

// ReadDir hands a directory's entries to yield, from a position that an entry's Off gave earlier (0: the
// beginning), "." and ".." included, until yield returns false. No more than about size bytes are read at
// once: what yield has room for. Names made or removed meanwhile may or may not be met, as readdir(3) has
// it; all others are met exactly once.
func (v *Volume) ReadDir(dir journal.Ident, off int64, size int, yield func(*sys.Dirent) bool) error {
	d, err := v.open.get(dir, reachDir)
	if err != nil {
		return err
	}
	defer v.open.put(d)
	buf := direntBuffers.Get().(*[direntBuffer]byte)
	defer direntBuffers.Put(buf)
	for {
		n, err := d.entriesFrom(off, buf[:min(max(size, minDirents), direntBuffer)])
		if err != nil || n == 0 {
			return err
		}
		for rest := buf[:n]; len(rest) > 0; {
			var e sys.Dirent
			e, rest = sys.NextDirent(rest)
			off = e.Off
			if dir == v.root && string(e.Name) == StateDir {
				continue
			}
			if !yield(&e) {
				return nil
			}
		}
	}
}

// entriesFrom reads entries at a position. All readers of the directory share the descriptor's.
func (o *openInode) entriesFrom(off int64, buf []byte) (int, error) {
	o.seek.Lock()
	defer o.seek.Unlock()
	if err := sys.SeekDir(o.fd, off); err != nil {
		return 0, err
	}
	n, err := sys.Getdents(o.fd, buf)
	if err == unix.ENOENT { // removed while open: nothing is in it
		return 0, nil
	}
	return n, err
}
