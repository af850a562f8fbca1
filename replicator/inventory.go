package replicator

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"tandemfs/journal"
	"tandemfs/replicator/wire"
)

// inventory sends all inodes and names of a view, and of the content what the target then asks for: digests, or
// the bytes. What it asks for is served between the items, so that neither end gathers much.
type inventory struct {
	*sender
	asked *asked
	// suspect says of which inodes the content is to be compared though their times have not changed.
	suspect func(journal.Ident, journal.Attr) (bool, error)
	// pace, if set, waits until n more bytes of content may be read.
	pace   func(n int) error
	unsent int    // bytes of content whose digests were not sent yet, where there is a pace
	buf    []byte // a digest's content
	unread int    // pieces of the file that could not be read
}

// send runs through the whole inventory, and serves what is asked for until nothing is.
func (i *inventory) send(p *plan) error {
	i.cursor = wire.Cursor{Base: i.from.Base, Epoch: i.from.Epoch}
	p.leave, p.compares = i.leave, true
	err := p.steps(func(t *step) error {
		if err := i.serve(); err != nil {
			return err
		}
		t.whole, t.extents = false, nil
		if isRegular(t.Attr) {
			suspect, err := i.suspect(t.Ident, t.Attr)
			if err != nil {
				return describe(t, err)
			}
			if suspect {
				t.Flags |= wire.FlagSuspect
			}
		}
		return i.step(t)
	})
	for err == nil {
		if err = i.out.record(i.ctx, &wire.Record{Kind: wire.KindAsk}); err == nil {
			err = i.out.flush(i.ctx)
		}
		if err != nil {
			break
		}
		if err = i.asked.answered(i.ctx); err != nil {
			break
		}
		if i.asked.none() {
			return nil
		}
		err = i.serve()
	}
	return err
}

// serve sends what was asked for so far.
func (i *inventory) serve() error {
	for {
		w, ok := i.asked.next()
		if !ok {
			return context.Cause(i.ctx)
		}
		if err := i.file(w); err != nil {
			return err
		}
	}
}

// file sends a file's attributes and its content, or digests of that.
func (i *inventory) file(w wire.WantFile) error {
	id := journal.Ident{Ino: w.Ino, Gen: w.Gen}
	attr, err := i.view.Stat(id)
	if err != nil {
		return fmt.Errorf("inode %s, which the target asks for: %w", id, err)
	}
	t := step{Record: wire.Record{Kind: wire.KindInode, Ident: id, Attr: attr}}
	if !isRegular(attr) {
		return fmt.Errorf("%w: the target asks for the content of inode %s, which has none", wire.ErrFrame, id)
	}
	if !w.Compare {
		for _, e := range w.Extents {
			t.extents = append(t.extents, journal.Extent{Off: max(0, e[0]), End: e[1]})
		}
		return i.step(&t)
	}
	t.Flags = wire.FlagCompare
	if err := i.step(&t); err != nil {
		return err
	}
	i.unread = 0
	return describe(&t, i.digests(&t, attr.Size))
}

// digests sends what a file's content is, as digests of its data.
func (i *inventory) digests(t *step, size int64) error {
	f, err := i.view.Open(t.Ident)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: it has inode %s without its content", errView, t.Ident)
	}
	if err != nil {
		return i.noDigests(t, journal.Extent{End: size}, err)
	}
	at, sent := int64(0), error(nil)
	err = stretches(f, journal.Extent{End: size}, func(x journal.Extent, data bool) error {
		at = x.End
		if data {
			sent = eachDigest(x, func(x journal.Extent) error { return i.digest(t, f, x) })
		} else {
			sent = i.out.record(i.ctx, &wire.Record{Kind: wire.KindHole, Off: x.Off, Len: x.Len()})
		}
		return sent
	})
	if err != nil && sent == nil { // what is data and what a hole cannot be told
		err = i.noDigests(t, journal.Extent{Off: at, End: size}, err)
	}
	return errors.Join(err, f.Close())
}

// eachDigest yields the extents that have a digest each.
func eachDigest(x journal.Extent, yield func(journal.Extent) error) error {
	for off := x.Off; off < x.End; {
		end := min(x.End, (off/wire.MaxDigest+1)*wire.MaxDigest)
		if err := yield(journal.Extent{Off: off, End: end}); err != nil {
			return err
		}
		off = end
	}
	return nil
}

// noDigest is sent for what cannot be read: no content has it. So the target asks for that content, and is told then
// what of it cannot be read.
var noDigest [sha256.Size]byte

// noDigests sends that of a whole extent, where something may be left out.
func (i *inventory) noDigests(t *step, x journal.Extent, err error) error {
	if err := i.leaveOut(t, journal.Extent{}, err); err != nil {
		return err
	}
	i.unread++
	return eachDigest(x, func(x journal.Extent) error { return i.digested(x, noDigest) })
}

func (i *inventory) digested(x journal.Extent, sum [sha256.Size]byte) error {
	return i.out.record(i.ctx, &wire.Record{Kind: wire.KindDigest, Off: x.Off, Len: x.Len(), Data: sum[:]})
}

// digest sends one.
func (i *inventory) digest(t *step, f File, x journal.Extent) error {
	if i.unread > maxGaps { // every try at what cannot be read takes long
		return i.digested(x, noDigest)
	}
	if i.buf == nil {
		i.buf = make([]byte, wire.MaxDigest)
	}
	p := i.buf[:x.Len()]
	if i.pace != nil {
		if err := i.paced(len(p)); err != nil {
			return err
		}
	}
	n, err := f.ReadAt(p, x.Off)
	if err != nil && !errors.Is(err, io.EOF) {
		return i.noDigests(t, x, err)
	}
	clear(p[n:])
	return i.digested(x, sha256.Sum256(p))
}

// mostAsked bounds the files that a target asks for ahead, and their extents: more than the files of the frames that
// can be under way, or the digests in them that differ.
const mostAsked = 1 << 18

// pacedFlush is after how much content digests are sent that do not fill a frame: the target reads as much at once.
const pacedFlush = 1 << 20

// paced waits until n more bytes may be read.
func (i *inventory) paced(n int) error {
	if i.unsent += n; i.unsent >= pacedFlush {
		i.unsent = 0
		if err := i.out.flush(i.ctx); err != nil {
			return err
		}
	}
	return i.pace(n)
}

// asked is what the target has asked for and has not been sent. Its methods may be called concurrently.
type asked struct {
	mu      sync.Mutex
	files   []wire.WantFile
	extents int           // of all files
	done    chan struct{} // gets a value for each Want that is done
}

func newAsked() *asked { return &asked{done: make(chan struct{}, 1)} }

// add takes a message up.
func (a *asked) add(w wire.Want) error {
	extents := 0
	for _, f := range w.Files {
		extents += len(f.Extents)
	}
	if len(w.Files) > wire.MaxWantFiles || extents > wire.MaxWantExtents {
		return fmt.Errorf("%w: it asks for %d files and %d extents at once", wire.ErrFrame, len(w.Files), extents)
	}
	a.mu.Lock()
	a.files = append(a.files, w.Files...)
	a.extents += extents
	files, extents := len(a.files), a.extents
	a.mu.Unlock()
	if files > mostAsked || extents > mostAsked {
		return fmt.Errorf("%w: it asks for %d files and %d extents, and does not wait for them", wire.ErrFrame, files, extents)
	}
	if !w.Done {
		return nil
	}
	select {
	case a.done <- struct{}{}:
		return nil
	default:
		return fmt.Errorf("%w: an answer that nobody asked for", wire.ErrFrame)
	}
}

// answered waits until the target has said that it has asked for everything.
func (a *asked) answered(ctx context.Context) error {
	select {
	case <-a.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// next gives a file that was asked for, the oldest.
func (a *asked) next() (wire.WantFile, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.files) == 0 {
		a.files = nil
		return wire.WantFile{}, false
	}
	w := a.files[0]
	a.files = a.files[1:]
	a.extents -= len(w.Extents)
	return w, true
}

func (a *asked) none() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.files) == 0
}
