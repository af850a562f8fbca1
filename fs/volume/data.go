package volume

import (
	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
)

// maxCopy bounds one copy inside the filesystem, so that no seal waits for a long one. Callers of
// copy_file_range(2) go on by themselves after a short count.
const maxCopy = 16 << 20

// Read reads content; n < len(p) with a nil error means the end of the file.
func (v *Volume) Read(id journal.Ident, p []byte, off int64) (int, error) {
	c, err := v.Content(id)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return sys.ReadAt(c.o.fd, p, off)
}

// Content is a file's content, held open for one reading.
type Content struct {
	v *Volume
	o *openInode
}

// Content gives a regular file's content; the caller closes it.
func (v *Volume) Content(id journal.Ident) (Content, error) {
	o, err := v.open.get(id, reachRead)
	return Content{v: v, o: o}, err
}

// FD is a descriptor that the content can be read from until Close.
func (c Content) FD() int { return c.o.fd }

// Close gives the content back.
func (c Content) Close() { c.v.open.put(c.o) }

// Write writes the pieces one after the other. killPriv: the caller may not keep set-id bits and
// capabilities. What was written before an error counts: then n > 0 and the error is nil, as write(2) has it.
func (v *Volume) Write(id journal.Ident, pieces [][]byte, off int64, killPriv bool) (n int, err error) {
	if err := v.enterContent(id); err != nil {
		return 0, err
	}
	defer v.leave()
	o, err := v.open.get(id, reachData)
	if err != nil {
		return 0, err
	}
	defer v.open.put(o)
	var size int
	for _, p := range pieces {
		size += len(p)
	}
	if err := v.roomToWrite(o, off, int64(size)); err != nil {
		return 0, err
	}
	if err := v.journal.TouchData(id, journal.Extent{Off: off, End: off + int64(size)}, o); err != nil {
		return 0, err
	}
	if err := o.killPriv(killPriv); err != nil {
		return 0, err
	}
	for _, p := range pieces {
		m, err := sys.WriteAt(o.fd, p, off+int64(n))
		n += m
		if err != nil && n == 0 {
			return 0, err
		}
		if err != nil {
			return n, nil
		}
	}
	return n, nil
}

// Allocate is fallocate(2) with the modes that the backing filesystem has; killPriv as for Write.
func (v *Volume) Allocate(id journal.Ident, mode uint32, off, length int64, killPriv bool) error {
	if err := v.enterContent(id); err != nil {
		return err
	}
	defer v.leave()
	o, err := v.open.get(id, reachData)
	if err != nil {
		return err
	}
	defer v.open.put(o)
	if off < 0 || length <= 0 || off > journal.MaxOffset-length {
		return unix.EINVAL
	}
	if mode&unix.FALLOC_FL_PUNCH_HOLE == 0 {
		if err := v.roomToWrite(o, off, length); err != nil {
			return err
		}
	}
	if err := v.journal.TouchData(id, journal.Extent{Off: off, End: off + length}, o); err != nil {
		return err
	}
	if err := o.killPriv(killPriv); err != nil {
		return err
	}
	return sys.Fallocate(o.fd, mode, off, length)
}

// Copy is copy_file_range(2); it may copy less than n. killPriv as for Write.
func (v *Volume) Copy(in journal.Ident, offIn int64, out journal.Ident, offOut int64, n int64, killPriv bool) (int, error) {
	if err := v.enterContent(out); err != nil {
		return 0, err
	}
	defer v.leave()
	from, err := v.open.get(in, reachRead)
	if err != nil {
		return 0, err
	}
	defer v.open.put(from)
	to, err := v.open.get(out, reachData)
	if err != nil {
		return 0, err
	}
	defer v.open.put(to)
	n = min(n, maxCopy, journal.MaxOffset-offOut)
	if err := v.roomToWrite(to, offOut, n); err != nil {
		return 0, err
	}
	if err := v.journal.TouchData(out, journal.Extent{Off: offOut, End: offOut + n}, to); err != nil {
		return 0, err
	}
	if err := to.killPriv(killPriv); err != nil {
		return 0, err
	}
	return sys.CopyRange(from.fd, offIn, to.fd, offOut, int(n))
}

// Seek is lseek(2) with SEEK_DATA or SEEK_HOLE.
func (v *Volume) Seek(id journal.Ident, off int64, whence int) (int64, error) {
	o, err := v.open.get(id, reachRead)
	if err != nil {
		return 0, err
	}
	defer v.open.put(o)
	return sys.Seek(o.fd, off, whence)
}

// Fsync makes an inode durable, and before it everything that the journal recorded (rule A2).
func (v *Volume) Fsync(id journal.Ident, dir, dataOnly bool) error {
	if err := v.journal.Sync(); err != nil {
		return err
	}
	o, err := v.open.get(id, contentReach(dir))
	if err != nil {
		return err
	}
	defer v.open.put(o)
	return sys.Fsync(o.fd, dataOnly)
}
