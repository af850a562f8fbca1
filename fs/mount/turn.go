package mount

import (
	"errors"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"tandemfs/fs/volume"
	"tandemfs/journal"
)

// A turn changes at once what all readers of the mount see, from one tree to another. The kernel can be told to
// forget what it knows, but only one thing at a time, and each such message may have to wait for requests: one
// about the content of a file waits for the READs of it, whose pages are locked, and one about a name for the
// requests in its directory. So a request must not be held back while a message waits for it, and one that is
// answered may leave something old in the kernel's caches behind the message. A turn goes through these stages:
//
//  1. Everything that differs is passing: it is still answered from the old tree, but not for the kernel to keep.
//     Where the kernel keeps something in spite of that (the pages of a file and of a directory's listing, a
//     size, an ACL), a request marks the inode. Requests that began before are waited for.
//  2. The kernel is told of everything that differs, and then of what was marked meanwhile, for a few rounds.
//  3. Listings: a directory that was not marked while the kernel was told of it is closed, that is, requests that
//     list it wait. This is first, because the kernel locks a directory while a request looks up a name in it.
//  4. Attributes: answers with the attributes of anything that differs wait from here on. The kernel is told of
//     those that were marked, so that it drops answers that are on their way.
//  5. Content: a file that was not marked while the kernel was told of it is closed: READs wait, and hold locks
//     of the pages of closed files alone. What is waiting was asked after the kernel was last told of the file,
//     so an answer that ends early, because the file is shorter now, sets the size that the kernel knows. A file
//     that is read without a pause is sifted, unless it becomes shorter.
//  6. When nothing is marked, the tree is changed, and all that waits is answered from the new one. What differed
//     stays passing for a moment: the kernel takes the attributes for valid just before it has noted the size, so
//     what it is to keep should be what it has noted already.
//
// Stages 3 to 6 take some microseconds for an inode that is in use. They may not take longer than patience: then
// everything is opened again, all that waits is answered from the old tree, and the turn goes back to stage 2. That
// is also why there can be no deadlock, whatever a message waits for. What the guarantee is about is operations
// that begin after somebody saw something new; one that is under way meanwhile, such as a read(2) of many pages,
// may see some of both, as with any writer.
const (
	patience    = 50 * time.Millisecond // how long requests may be made to wait
	turnTimeout = 10 * time.Second      // from when on a turn is given up: the caller tries again
	linger      = 20 * time.Millisecond // how long what differed stays passing afterwards
	healAgain   = time.Second           // between the two times that files are healed
	// rounds is how often the kernel is told of what was marked before requests are made to wait.
	rounds = 3
)

var errTurn = errors.New("the volume's readers did not let go of what they read")

// growth is a file that became longer.
type growth struct {
	turn *transition
	end  int64 // before
}

// Turn is volume.Kernel's.
func (s *Server) Turn(d volume.Differences, swap func()) error {
	t, err := collect(d)
	if err != nil {
		return err
	}
	if t.nothing() {
		swap()
		s.readers.drain() // those that still read the volume as it is: it may be changed from now on
		return nil
	}
	s.telling.Lock()
	defer s.telling.Unlock()
	s.turn.Store(t)
	defer time.AfterFunc(linger, func() {
		s.turn.CompareAndSwap(t, nil)
		s.heal(t, false)
		time.AfterFunc(healAgain, func() { s.heal(t, true) })
	})
	defer t.end()
	s.readers.drain()
	if err := s.tellAll(t, d); err != nil {
		return err
	}
	return s.finish(t, swap)
}

// tellAll tells the kernel of everything that differs. Of a directory's listing it is told after all names, which
// waits for requests that list the directory.
func (s *Server) tellAll(t *transition, d volume.Differences) error {
	dirs := map[journal.Ident]uint64{}
	err := d.Names(func(dir journal.Ident, name string) error {
		if number, ok := s.table.number(dir); ok {
			dirs[dir] = number
			s.notified(s.fuse.EntryNotify(number, name), "name", dir)
		}
		return nil
	})
	for dir := range dirs {
		s.tellOrMark(t, dir, itsContent)
	}
	return errors.Join(err, d.Inodes(func(id journal.Ident, content bool) error {
		if content {
			s.noteGrowth(t, id)
		}
		s.tellOrMark(t, id, differs(content))
		return nil
	}))
}

// noteGrowth notes a file that becomes longer, as far as one can know: the volume has the new state by now. What an
// earlier turn noted of the file is void. Called with telling held.
func (s *Server) noteGrowth(t *transition, id journal.Ident) {
	delete(s.grown, id)
	if _, ok := s.table.number(id); !ok {
		return
	}
	if before, after := s.sizes(id); after > before {
		s.grown[id] = growth{t, before}
	}
}

// sizes gives the size of a file that readers see and that in the volume, which they will see; 0 where there is none.
func (s *Server) sizes(id journal.Ident) (before, after int64) {
	tree := s.volume.Current()
	defer tree.Done()
	var n volume.Inode
	if tree.Stat(id, &n) == nil {
		before = int64(n.Stat.Size)
	}
	if s.volume.Stat(id, &n) == nil {
		after = int64(n.Stat.Size)
	}
	return before, after
}

// heal has the kernel read again what is behind the former end of files that became longer. A thread that got the
// former size in answer may have been stopped after it noted the size and before it cleared the pages behind, where
// the kernel looks whether another thread should run; and then clears what was read since. A file that another turn
// changes is left alone: it may be shorter again, and then must not be told while it is read (see tell).
func (s *Server) heal(t *transition, last bool) {
	s.telling.Lock()
	defer s.telling.Unlock()
	for id, g := range s.grown {
		if g.turn != t {
			continue
		}
		if number, ok := s.table.number(id); ok {
			s.notified(s.fuse.InodeNotify(number, g.end&^(pageSize-1), 0), "content", id)
		}
		if last {
			delete(s.grown, id)
		}
	}
}

func (s *Server) tellOrMark(t *transition, id journal.Ident, w what) {
	if !s.tell(t, id, w) {
		t.again(id)
	}
}

// barrier is a name that stands for nothing in any directory that a sane program made. To be told of a name, of
// whatever kind, the kernel waits until nobody lists the directory.
const barrier = "\x01"

// tell has the kernel forget what it knows of an inode. It gives false where the kernel does not know the inode but
// will, since an answer is on its way to it, or gave it up and has yet to say so.
//
// Of a file whose content differs the kernel is never told without the content, which waits for READs that were sent
// before. Such a READ must not be answered from the new tree: where an answer ends early the kernel does not take
// the size from it if it was told of the inode since it sent the READ.
func (s *Server) tell(t *transition, id journal.Ident, w what) bool {
	number, ok := s.table.number(id)
	if !ok {
		return true
	}
	if w&itsNames != 0 {
		s.notified(s.fuse.EntryNotify(number, barrier), "listing", id)
	}
	off := int64(-1) // attributes only
	if w&(itsContent|itsNames) != 0 || t.differsIn(id, itsContent) {
		off = 0
	}
	status := s.fuse.InodeNotify(number, off, 0)
	s.notified(status, "inode", id)
	return status != fuse.ENOENT
}

// finish goes through the stages from the second on, until it comes to the end.
func (s *Server) finish(t *transition, swap func()) error {
	end := time.Now().Add(turnTimeout)
	for pause := time.Millisecond; ; pause = min(2*pause, patience) {
		for range rounds {
			for id, w := range t.marked(itsAll) {
				s.tellOrMark(t, id, w)
			}
		}
		if s.attempt(t, swap) {
			return nil
		}
		if time.Now().After(end) {
			return errTurn
		}
		time.Sleep(pause)
	}
}

// attempt goes through the stages in which requests wait.
func (s *Server) attempt(t *transition, swap func()) bool {
	t.retry()
	defer time.AfterFunc(patience, t.reopen).Stop()
	return s.close(t, itsNames, func() { t.stage = stageListings }) &&
		s.settleAttrs(t) &&
		s.close(t, itsContent, func() {
			swap()
			t.stage = stageOver
		})
}

// close closes inodes until nothing is marked.
func (s *Server) close(t *transition, w what, done func()) bool {
	for tries := 0; ; tries++ {
		list, ok := t.next(w, done)
		if !ok || len(list) == 0 {
			return ok
		}
		for id := range list {
			if w == itsContent && tries >= rounds && !s.shrinks(id) {
				s.sift(t, id)
				continue
			}
			s.tell(t, id, w)
			t.close(id, w)
		}
	}
}

// settleAttrs tells the kernel of all attributes that were answered, when no more are.
func (s *Server) settleAttrs(t *transition) bool {
	list, ok := t.closeAttrs()
	for id := range list {
		for ok && !s.tell(t, id, itsAttrs) {
			time.Sleep(20 * time.Microsecond)
			ok = !t.isLate()
		}
		if !ok {
			t.again(id)
		}
	}
	return ok
}
