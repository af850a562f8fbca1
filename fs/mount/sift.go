package mount

import (
	"slices"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"tandemfs/journal"
)

// A file that many read without a pause may have a READ under way whenever the kernel is told of it, and then
// cannot be closed. Sifting makes READs wait first, and tells the kernel of one part after the other, leaving out
// those that are being waited for: their pages are locked and empty, so they hold nothing old. A READ of the part
// that the kernel is just told of is let through, since telling may wait for it, and its part is told again. So
// every reader comes to wait, and what is left can be told.
//
// A file that becomes shorter is not sifted, since READs are waiting while the kernel is told of it (see tell).

// part is what a READ is for, in whole pages.
type part struct {
	journal.Extent
	direct bool // perhaps past the page cache, and then no page is locked
}

const pageSize = 4096

func partOf(in *fuse.ReadIn) part {
	off, end := int64(in.Offset), int64(in.Offset)+int64(in.Size)
	return part{
		Extent: journal.Extent{Off: off &^ (pageSize - 1), End: (end + pageSize - 1) &^ (pageSize - 1)},
		direct: in.Flags&unix.O_DIRECT != 0,
	}
}

// sifted is the state of a file that is being sifted. The transition's mu protects it.
type sifted struct {
	window  journal.Extent   // of what the kernel is being told
	stale   journal.Extents  // of what it has to be told yet
	waiting []journal.Extent // the READs that wait and have locked pages
}

// lets reports whether a READ may not wait.
func (f *sifted) lets(p part) bool { return p.Off < f.window.End && f.window.Off < p.End }

// await waits for a change. Called with the transition's mu held, which wake releases meanwhile.
func (m *mark) await(wake *sync.Cond, p part) {
	if m == nil || p.direct || p.End == 0 {
		wake.Wait()
		return
	}
	m.sifted.waiting = append(m.sifted.waiting, p.Extent)
	wake.Wait()
	i := slices.Index(m.sifted.waiting, p.Extent)
	m.sifted.waiting = slices.Delete(m.sifted.waiting, i, i+1)
}

// hold makes all READs of a file wait, with all of it to be told.
func (t *transition) hold(id journal.Ident) {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.mark(id, 0)
	m.closed = !t.late
	m.sifted.stale = journal.Extents{{Off: 0, End: journal.MaxOffset}}
}

// nextWindow gives the next part of which the kernel is to be told; false when there is none, or it is too late.
func (t *transition) nextWindow(id journal.Ident) (journal.Extent, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.marks[id]
	f := &m.sifted
	f.window = journal.Extent{}
	if t.late {
		m.what |= itsContent // all of it has to be told another time
		return f.window, false
	}
	rest := f.stale
	for _, x := range f.waiting {
		rest = rest.Subtract(journal.Extents{x})
	}
	if len(rest) == 0 {
		return f.window, false
	}
	f.window = rest[0]
	f.stale = f.stale.Subtract(rest[:1])
	t.wake.Broadcast()
	return f.window, true
}

// gathering is how long READs that were sent may take to arrive.
const gathering = 500 * time.Microsecond

// sift closes a file that is read without a pause.
func (s *Server) sift(t *transition, id journal.Ident) {
	number, ok := s.table.number(id)
	if !ok {
		return
	}
	t.hold(id)
	time.Sleep(gathering)
	for x, ok := t.nextWindow(id); ok; x, ok = t.nextWindow(id) {
		s.notified(s.fuse.InodeNotify(number, x.Off, x.End-x.Off), "content", id)
	}
}

// shrinks reports whether a file becomes shorter.
func (s *Server) shrinks(id journal.Ident) bool {
	before, after := s.sizes(id)
	return after < before
}
