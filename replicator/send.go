package replicator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"tandemfs/journal"
	"tandemfs/replicator/wire"
)

// errCursor says that the target's cursor is not of the stream that this view gives.
var errCursor = errors.New("the interrupted transfer cannot be gone on with")

// sender turns a plan's steps into records, from a cursor on.
type sender struct {
	ctx    context.Context
	view   View
	out    *packer
	from   wire.Cursor // items before it are not sent
	chain  wire.Chainer
	cursor wire.Cursor // where the stream has come
	gaps   gaps        // what could not be read
}

// send runs the whole plan.
func (s *sender) send(p *plan) error {
	s.cursor = wire.Cursor{Base: s.from.Base, Epoch: s.from.Epoch, Over: s.from.Over}
	p.leave = s.leave
	err := p.steps(s.step)
	if err == nil && s.cursor.Items < s.from.Items {
		return fmt.Errorf("%w: the target has %d items of %d", errCursor, s.from.Items, s.cursor.Items)
	}
	return err
}

// step sends one item, unless the target has it.
func (s *sender) step(t *step) error {
	offset := int64(0)
	if s.cursor.Items == s.from.Items {
		offset = s.from.Offset
	}
	s.cursor.Items++
	s.cursor.Chain = s.chain.Next(s.cursor.Chain, &t.Record)
	if s.cursor.Items <= s.from.Items {
		return s.skip()
	}
	if offset > 0 {
		t.Flags |= wire.FlagGoesOn
	}
	return describe(t, s.item(t, offset))
}

// skip passes over an item, and checks that the items so far are those that the target counted.
func (s *sender) skip() error {
	if s.cursor.Items == s.from.Items && s.cursor.Chain != s.from.Chain {
		return fmt.Errorf("%w: its first %d items are others", errCursor, s.from.Items)
	}
	return context.Cause(s.ctx)
}

// describe says which inode an error is about.
func describe(t *step, err error) error {
	if err == nil {
		return nil
	}
	if len(t.Name) > 0 {
		return fmt.Errorf("inode %s (%q): %w", t.Ident, t.Name, err)
	}
	return fmt.Errorf("inode %s: %w", t.Ident, err)
}

// item sends an item's records, content from offset on.
func (s *sender) item(t *step, offset int64) (err error) {
	if t.Kind != wire.KindInode {
		return s.out.record(s.ctx, &t.Record)
	}
	isNewDir := isDir(t.Attr) && t.Flags&wire.FlagNew != 0 // its attributes come after what is in it
	if !isNewDir {
		if t.Xattrs, err = s.view.Xattrs(t.Ident); err != nil && !errors.Is(err, fs.ErrNotExist) {
			if err := s.leaveOut(t, journal.Extent{}, err); err != nil {
				return err
			}
		}
	}
	if err := s.out.record(s.ctx, &t.Record); err != nil {
		return err
	}
	return s.content(t, offset)
}

// content sends what there is to send of a regular file's bytes at or after offset. A file that was
// removed since the seal may have no content any more; the next transfer removes it on the target too.
func (s *sender) content(t *step, offset int64) error {
	extents := t.extents
	if t.whole {
		extents = []journal.Extent{{Off: 0, End: t.Attr.Size}}
	}
	extents = clip(extents, offset, t.Attr.Size)
	if len(extents) == 0 {
		return nil
	}
	f, err := s.view.Open(t.Ident)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return s.leaveOut(t, journal.Extent{Off: extents[0].Off, End: journal.MaxOffset}, err)
	}
	for _, e := range extents {
		if e.End = min(e.End, s.gaps.restAt(t.Ident)); e.Off >= e.End {
			break
		}
		if err = s.extent(t, f, e); err != nil {
			break
		}
	}
	return errors.Join(err, f.Close())
}

// clip cuts extents to [from, to), leaving out what is empty then.
func clip(extents []journal.Extent, from, to int64) []journal.Extent {
	var out []journal.Extent
	for _, e := range extents {
		if e = (journal.Extent{Off: max(e.Off, from), End: min(e.End, to)}); e.Off < e.End {
			out = append(out, e)
		}
	}
	return out
}

// extent sends one extent: data as data, and holes, where there may have been data, as holes.
func (s *sender) extent(t *step, f File, e journal.Extent) error {
	at, sent := e.Off, error(nil)
	err := stretches(f, e, func(x journal.Extent, data bool) error {
		at = x.End
		switch {
		case data:
			more := false
			if more, sent = s.data(t, f, x); sent == nil && !more {
				sent = io.EOF
			}
		case !t.whole:
			sent = s.out.record(s.ctx, &wire.Record{Kind: wire.KindHole, Off: x.Off, Len: x.Len()})
		}
		return sent
	})
	switch {
	case errors.Is(sent, io.EOF):
		return nil
	case err != nil && sent == nil: // what is data and what a hole cannot be told
		return s.leaveOut(t, journal.Extent{Off: at, End: e.End}, err)
	}
	return err
}

// stretches yields the data and the holes of an extent, in order.
func stretches(f File, e journal.Extent, yield func(x journal.Extent, data bool) error) error {
	for at := e.Off; at < e.End; {
		data, ok, err := f.NextData(at, e.End)
		if err != nil {
			return err
		}
		if !ok {
			data = journal.Extent{Off: e.End, End: e.End}
		}
		if data.Off > at {
			if err := yield(journal.Extent{Off: at, End: data.Off}, false); err != nil {
				return err
			}
		}
		if data.Off < data.End {
			if err := yield(data, true); err != nil {
				return err
			}
		}
		at = data.End
	}
	return nil
}

// data sends one stretch of data; false when there is nothing to send after it: the file ends before it does, or
// too little of it can be read.
func (s *sender) data(t *step, f File, e journal.Extent) (bool, error) {
	for off := e.Off; off < e.End; {
		want := min(wire.MaxData, e.End-off)
		var unread error
		n, err := s.out.data(s.ctx, off, int(want), func(p []byte) (n int, err error) {
			n, err = f.ReadAt(p, off)
			if errors.Is(err, io.EOF) {
				err = nil
			}
			unread = err
			return n, err
		})
		switch {
		case unread != nil:
			if err := s.leaveOut(t, journal.Extent{Off: off, End: off + want}, unread); err != nil || s.gaps.restAt(t.Ident) <= off {
				return false, err
			}
		case err != nil || int64(n) < want:
			return false, err
		}
		off += want
	}
	return true, nil
}
