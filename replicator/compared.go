package replicator

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"tandemfs/journal"
	"tandemfs/replicator/wire"
)

// How a comparer compares the content of files: what may differ is asked for, as digests or as bytes, while the
// inventory goes on.

// compare compares an inode that is no directory, or asks for what it takes.
func (c *comparer) compare(r *wire.Record, f *comparedFile, how found) error {
	c.done.files++
	fresh := how == foundNot
	if c.wanted[f.from] != nil {
		return fmt.Errorf("%w: inode %s comes twice", wire.ErrRecord, f.from)
	}
	if !isRegular(r.Attr) || fresh && r.Attr.Size == 0 {
		c.same.files++
		return c.attributes(f.path, r, f.here, fresh)
	}
	if fresh {
		return c.request(f, journal.Extents{{End: r.Attr.Size}})
	}
	have, err := c.view.Stat(f.here)
	if err != nil {
		return err
	}
	same := have.Size == r.Attr.Size && (have.Mtime == r.Attr.Mtime || have.Size == 0)
	distrusted := c.strict || how == foundByName || r.Flags&wire.FlagSuspect != 0 || c.doubts(f.here, have.Ctime)
	if same && (!distrusted || have.Size == 0) {
		c.same = c.same.plus(work{1, have.Size})
		return c.attributes(f.path, r, f.here, false)
	}
	f.compare = true
	return c.request(f, nil)
}

// request asks for a file's content, or for digests of it.
func (c *comparer) request(f *comparedFile, x journal.Extents) error {
	x = x.Coarsen(wire.MaxWantExtents)
	if len(c.want.Files) == wire.MaxWantFiles || c.ranges+len(x) > wire.MaxWantExtents {
		if err := c.say(false); err != nil {
			return err
		}
	}
	w := wire.WantFile{Ino: f.from.Ino, Gen: f.from.Gen, Compare: f.compare}
	for _, e := range x {
		w.Extents = append(w.Extents, [2]int64{e.Off, e.End})
	}
	c.wanted[f.from] = f
	c.want.Files = append(c.want.Files, w)
	c.ranges += len(x)
	return nil
}

// say tells the source what is wanted so far.
func (c *comparer) say(done bool) error {
	if len(c.want.Files) == 0 && !done {
		return nil
	}
	c.want.Done = done
	err := c.ask(c.want)
	c.want, c.ranges = wire.Want{}, 0
	return err
}

// open begins a file whose digests come.
func (c *comparer) open(r *wire.Record) error {
	f := c.wanted[r.Ident]
	delete(c.wanted, r.Ident)
	f.image = journal.Image{Attr: r.Attr, Xattrs: cloneXattrs(r.Xattrs)}
	var err error
	if f.content, err = c.view.Open(f.here); err != nil {
		return err
	}
	c.file = f
	return nil
}

// part compares what comes of the open file: a digest, or a hole.
func (c *comparer) part(r *wire.Record) error {
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	f := c.file
	x := journal.Extent{Off: r.Off, End: r.Off + r.Len}
	if r.Off < f.end || x.End > f.image.Attr.Size {
		return fmt.Errorf("%w: content at %d that belongs to nothing", wire.ErrRecord, r.Off)
	}
	f.end = x.End
	var same bool
	var err error
	switch r.Kind {
	case wire.KindDigest:
		c.done.bytes += x.Len()
		same, err = c.sameDigest(f.content, x, r.Data)
	case wire.KindHole:
		same, err = c.sameHole(f.content, x)
	default:
		return fmt.Errorf("%w: kind %d among digests", wire.ErrRecord, r.Kind)
	}
	if err == nil && !same {
		f.differs = f.differs.Add(x)
	}
	return err
}

// sameDigest compares data. What cannot be read here is different: it is replaced.
func (c *comparer) sameDigest(from File, x journal.Extent, digest []byte) (bool, error) {
	p := c.buf[:x.Len()]
	n, err := from.ReadAt(p, x.Off)
	if journal.Unreadable(err) {
		return false, nil
	}
	if err != nil || int64(n) < x.Len() {
		return false, ignoreEOF(err)
	}
	if sum := sha256.Sum256(p); !bytes.Equal(sum[:], digest) {
		return false, nil
	}
	if !c.exact {
		return true, nil
	}
	data, ok, err := from.NextData(x.Off, x.End)
	return ok && data == x, err
}

// sameHole compares a hole.
func (c *comparer) sameHole(from File, x journal.Extent) (bool, error) {
	for off := x.Off; off < x.End; {
		data, ok, err := from.NextData(off, x.End)
		if err != nil || !ok {
			return err == nil, err
		}
		if c.exact {
			return false, nil
		}
		for at := data.Off; at < data.End; at += int64(len(c.buf)) {
			p := c.buf[:min(int64(len(c.buf)), data.End-at)]
			n, err := from.ReadAt(p, at)
			if journal.Unreadable(err) || c.ctx.Err() != nil {
				return false, context.Cause(c.ctx)
			}
			if ignoreEOF(err) != nil || bytes.Count(p[:n], zero) != n {
				return false, ignoreEOF(err)
			}
		}
		off = data.End
	}
	return true, nil
}

var zero = []byte{0}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// finish ends the open file, if there is one.
func (c *comparer) finish() error {
	f := c.file
	if f == nil {
		return nil
	}
	c.file = nil
	if err := f.content.Close(); err != nil {
		return err
	}
	if f.end != f.image.Attr.Size {
		return fmt.Errorf("%w: the digests of inode %s end at %d of %d bytes", wire.ErrRecord, f.from, f.end, f.image.Attr.Size)
	}
	c.same.bytes += f.image.Attr.Size - f.differs.Len()
	if len(f.differs) > 0 {
		x, err := c.act.content(f, f.differs)
		if err != nil {
			return err
		}
		if len(x) > 0 {
			f.compare = false
			return c.request(f, x)
		}
	}
	c.same.files++
	same, err := c.sameImage(f.here, f.image)
	if err != nil || same {
		return err
	}
	return c.act.attributes(f.path, f.from, f.here, f.image)
}
