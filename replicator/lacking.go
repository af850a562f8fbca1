package replicator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"tandemfs/journal"
	"tandemfs/replicator/wire"
)

// A file that the source cannot read does not stop the rest. What cannot be read is left out and remembered, all
// else is sent, and the target keeps it without publishing it: it has reached the seal, but lacks something of
// it. The next transfer builds on that, from a newer seal, and tries what is lacking again. Only one that leaves
// nothing out becomes a recovery point.
//
// Where it cannot be read what a name stands for, or which names a directory has, nobody knows what the target lacks.
// So then all transfers compare, until one can read everything; and the target keeps what it has there, and below.

// errUnreadable ends a transfer that had to leave something out.
var errUnreadable = errors.New("cannot be read")

const (
	// maxLacking inodes are left out at the most. Where more cannot be read, it is the disk and not some files.
	maxLacking = 200
	// maxGaps of one inode's content are left out, each on its own; then the rest of it is, since every try at
	// what cannot be read takes long.
	maxGaps = 16
	// gapBlock is what a gap is made of, in bytes: no filesystem's block is larger, so a hole is never told half.
	gapBlock = 64 << 10
	// maxLackingPath bounds a path that is remembered, in bytes: its end is.
	maxLackingPath = 300
	// fewLacking are named in an error.
	fewLacking = 3
)

// lacking is what the target lacks of an inode: its attributes, and some of its content.
type lacking struct {
	Ident   journal.Ident   `json:"ident"`
	Extents journal.Extents `json:"extents,omitempty"`
	Path    string          `json:"path,omitempty"` // below the volume's root, where that can be told
	Error   string          `json:"error"`
	// Names: of what a name stands for, and of what is below it, the target may lack anything.
	Names bool `json:"names,omitempty"`
}

// same reports whether both are of one inode, or of one name where the inode is not known.
func (l lacking) same(o lacking) bool {
	return l.Ident == o.Ident && (l.Ident != journal.Unknown || l.Path == o.Path)
}

// names reports whether the target may lack anything.
func names(list []lacking) bool {
	return slices.ContainsFunc(list, func(l lacking) bool { return l.Names })
}

func (l lacking) String() string {
	if l.Path == "" {
		return fmt.Sprintf("inode %s (%s)", l.Ident, l.Error)
	}
	return fmt.Sprintf("%q (%s)", l.Path, l.Error)
}

// lackingError says what was left out, and what to do.
func lackingError(list []lacking) error {
	files := "1 file or directory"
	if len(list) > 1 {
		files = fmt.Sprintf("%d files and directories", len(list))
	}
	var first []string
	for _, l := range list[:min(len(list), fewLacking)] {
		first = append(first, l.String())
	}
	if len(list) > fewLacking {
		first = append(first, "...")
	}
	return fmt.Errorf("%s of the source %w: %s. All else is sent, but no recovery point is made until what they hold can be read, is written anew or is removed",
		files, errUnreadable, strings.Join(first, ", "))
}

// unreadable reports whether an error is about one inode's content or attributes, as the disk under it gives
// them: not about the view as a whole, nor about the connection.
func unreadable(err error) bool { return journal.Unreadable(err) && !errors.Is(err, errView) }

// gaps are what a transfer had to leave out so far.
type gaps struct {
	list     []lacking
	remember func([]lacking) error // before the target can count what comes after
	names    bool                  // what names stand for may be left out too
}

// add leaves out the extent e, which may be empty, of an inode's content, and its attributes.
func (g *gaps) add(l lacking, e journal.Extent) error {
	i := slices.IndexFunc(g.list, l.same)
	if i < 0 && len(g.list) == maxLacking {
		return fmt.Errorf("more than %d files %w, the last of them %s: the disk needs care", maxLacking, errUnreadable, l)
	}
	list := slices.Clone(g.list)
	if i < 0 {
		i, list = len(list), append(list, l)
	}
	list[i].Names = list[i].Names || l.Names
	if e.Off < e.End {
		x := list[i].Extents.Add(wholeBlocks(e))
		if len(x) > maxGaps { // in the same step: the next try has to know where the rest begins
			x = x.Add(wholeBlocks(journal.Extent{Off: e.Off, End: journal.MaxOffset}))
		}
		list[i].Extents = x
	}
	if err := g.remember(list); err != nil {
		return err
	}
	g.list = list
	return nil
}

// wholeBlocks widens an extent to whole blocks of a gap.
func wholeBlocks(e journal.Extent) journal.Extent {
	e.Off -= e.Off % gapBlock
	if rest := e.End % gapBlock; rest > 0 && e.End <= journal.MaxOffset-gapBlock {
		e.End += gapBlock - rest
	}
	return e
}

// restAt gives from where on nothing more of an inode is to be tried: the end of all files if nothing is left out so.
func (g *gaps) restAt(id journal.Ident) int64 {
	for _, l := range g.list {
		if n := len(l.Extents); l.Ident == id && n > 0 && l.Extents[n-1].End == journal.MaxOffset {
			return l.Extents[n-1].Off
		}
	}
	return journal.MaxOffset
}

// leaveOut notes that an extent, which may be empty, of the step's content could not be read, or its attributes. It
// gives back an error that is none of that file alone.
func (s *sender) leaveOut(t *step, e journal.Extent, err error) error {
	return s.leave(t, journal.Extents{e}, false, err)
}

// leave is leaveOut for several extents, or for all that a name stands for.
func (s *sender) leave(t *step, x journal.Extents, names bool, err error) error {
	if !unreadable(err) || s.gaps.remember == nil || names && !s.gaps.names {
		return err
	}
	l := lacking{Ident: t.Ident, Path: s.path(t), Error: errnoText(err), Names: names}
	err = s.gaps.add(l, journal.Extent{})
	for _, e := range x {
		if err == nil && e.Off < e.End {
			err = s.gaps.add(l, e)
		}
	}
	return err
}

// errnoText is the system's word for an error.
func errnoText(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}

// path tells where the step's inode is, if that is known.
func (s *sender) path(t *step) string {
	path, ok := "", false
	if t.Ident != journal.Unknown {
		path, ok = s.view.PathOf(t.Ident)
	}
	if !ok && len(t.Name) > 0 {
		if path, ok = s.view.PathOf(t.Dir); ok {
			path = strings.TrimPrefix(path+"/"+string(t.Name), "/")
		}
	}
	if !ok {
		return ""
	}
	return wire.Printable(path[max(0, len(path)-maxLackingPath):])
}

// lackingOf gives the content that the base lacks of an inode.
func (p *plan) lackingOf(id journal.Ident) journal.Extents {
	i, ok := slices.BinarySearchFunc(p.lacking, id, func(l lacking, id journal.Ident) int { return compareIdents(l.Ident, id) })
	if !ok {
		return nil
	}
	return p.lacking[i].Extents
}

func compareIdents(a, b journal.Ident) int {
	return cmp.Or(cmp.Compare(a.Ino, b.Ino), cmp.Compare(a.Gen, b.Gen))
}

// untouchedLacking calls f for what the base lacks and was not touched since.
func (p *plan) untouchedLacking(f func(lacking) error) error {
	for _, l := range p.lacking {
		_, touched, err := p.changes.Inode(l.Ident)
		if err == nil && !touched {
			err = f(l)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// leftOut remembers what the pending transfer leaves out.
func (o *origin) leftOut(r *relationship, list []lacking) error {
	return o.change(r, func(m *sourceMemory) error {
		if m.Pending == nil {
			return errEnded
		}
		p := *m.Pending
		p.Lacking = list
		if p.Compare != nil && !p.Compare.All { // the target has its size and times now: the next try has to ask for it again
			c := *p.Compare
			c.Suspects = slices.Clone(c.Suspects)
			c.suspect(list)
			p.Compare = &c
		}
		m.Pending = &p
		return nil
	}, nil)
}

// reach notes that the target has all of the pending transfer but what was left out: the next one builds on it.
func (o *origin) reach(r *relationship) error {
	return o.settle(r, false, func(m *sourceMemory) {
		list := slices.Clone(m.Pending.Lacking)
		slices.SortFunc(list, func(a, b lacking) int { return compareIdents(a.Ident, b.Ident) })
		if names(list) {
			m.compareAgain(list)
		} else {
			m.Compared = m.Pending.Compare.and(m.Compared)
		}
		m.Reached, m.Lacking = m.Pending.Epoch, list
	}, (*sourceEnd).unseal)
}

// incomplete ends a transfer that left something out: the target keeps what it got. It always gives an error.
func (s *sourceSession) incomplete(ctx context.Context, p pendingTransfer, all wire.End, list []lacking) error {
	cause := lackingError(list)
	if err := s.conn.Send(wire.TypeIncomplete, wire.Incomplete{End: all, Text: cause.Error()}); err != nil {
		return err
	}
	pos, err := answer[wire.Position](ctx, s)
	if err != nil {
		return err
	}
	if pos.Reached != uint64(p.Epoch) {
		return fmt.Errorf("%w: the target has reached seal %d, not %d", wire.ErrFrame, pos.Reached, p.Epoch)
	}
	if names(list) { // comparing takes long
		s.pause.atLeast(time.Since(s.began))
	}
	if s.pos.Reached == 0 { // the first of its kind: what failed before was something else
		s.pause.reset()
	}
	return failure{errors.Join(cause, s.origin.reach(s.r))}
}

// lacking is what the target lacks of the seal that a transfer builds on.
func (s *sourceSession) lacking(p pendingTransfer) []lacking {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	if p.Base == 0 || p.Base != s.r.source.memory.Reached {
		return nil
	}
	return s.r.source.memory.Lacking
}

// gaps are those of a transfer so far: of one that compares, which begins anew each time, none. To a target of a
// version that cannot keep it what cannot be read stops a transfer.
func (s *sourceSession) gaps(p pendingTransfer) gaps {
	if !s.conn.Peer().Can(wire.FeatureIncomplete) {
		return gaps{}
	}
	g := gaps{remember: func(list []lacking) error { return s.origin.leftOut(s.r, list) }}
	if p.Compare == nil {
		g.list = p.Lacking
	}
	g.names = s.keeps()
	return g
}

// keeps reports whether the target can keep what cannot be read.
func (s *sourceSession) keeps() bool {
	return s.conn.Peer().Can(wire.FeatureCompare) && s.conn.Peer().Can(wire.FeatureKeep)
}

// compareNames gives the pending transfer up for one that compares, since it came to names that cannot be read. Where
// the target has reached a seal it has the content of that, but for what is lacking.
func (o *origin) compareNames(r *relationship) error {
	return errors.Join(o.drop(r), o.change(r, func(m *sourceMemory) error {
		c := &comparison{Reason: reasonUnread, Base: m.Epoch, Reached: m.Reached}
		c.suspect(m.Lacking)
		m.Compare, m.Compared = c.and(m.Compare), nil
		return nil
	}, nil))
}

// compareAgain has the next transfer compare, since the pending one left out what is not known: the same as that one
// compared, or if it was the first what changes from now on.
func (m *sourceMemory) compareAgain(list []lacking) {
	c := m.Pending.Compare
	if c == nil {
		c = &comparison{Reason: reasonUnread, Base: m.Epoch, Reached: m.Pending.Epoch}
		c.suspect(list)
	}
	m.Compare, m.Compared = c.and(m.Compare), nil
}

// suspect adds what is lacking to the files of which the content is compared.
func (c *comparison) suspect(list []lacking) {
	for _, l := range list {
		if l.Ident != journal.Unknown && !slices.Contains(c.Suspects, l.Ident) {
			c.Suspects = append(c.Suspects, l.Ident)
		}
	}
}

// agreeReached brings together what this end and the target remember of a seal that was reached. One that this end
// does not know of it cannot build on.
func (s *sourceSession) agreeReached() error {
	s.r.mu.Lock()
	memory, reached := s.r.source.memory, journal.Epoch(s.pos.Reached)
	s.r.mu.Unlock()
	gaps := memory.Pending != nil && len(memory.Pending.Lacking) > 0
	switch p := memory.Pending; {
	case p != nil && uint64(p.Epoch) == s.pos.Epoch && p.Time.Equal(s.pos.Time): // it was committed: see agree
		return nil
	case gaps && !s.conn.Peer().Can(wire.FeatureIncomplete): // it could before
		return s.origin.drop(s.r)
	case gaps && reached == memory.Pending.Epoch:
		return s.origin.reach(s.r) // the target's answer was not heard here
	case reached == memory.Reached:
		return nil
	}
	if reached != 0 {
		s.pos.Reached, s.pos.Dirty, s.pos.Cursor = 0, true, nil
	}
	return s.origin.change(s.r, func(m *sourceMemory) error {
		m.Compare = m.Compared.and(m.Compare)
		m.Reached, m.Lacking, m.Compared = 0, nil, nil
		return nil
	}, nil)
}

// shownLacking are shown in a status.
const shownLacking = 20

// unreadable is what the status shows of what could not be read. It is for holders of the relationship's mu.
func (e *sourceEnd) unreadable() *Unreadable {
	list := e.memory.Lacking
	if p := e.memory.Pending; p != nil && len(p.Lacking) > 0 {
		list = p.Lacking
	}
	if len(list) == 0 {
		return nil
	}
	u := &Unreadable{Count: len(list)}
	for _, l := range list[:min(len(list), shownLacking)] {
		f := UnreadableFile{Path: l.Path, Inode: l.Ident.Ino, Error: l.Error}
		if l.Ident == journal.Unknown {
			f.Inode = 0
		}
		u.Files = append(u.Files, f)
	}
	return u
}
