package journal

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
)

// Totals of an epoch's records. They are estimates: a crash in the middle of an absorb may lose some.
type totals struct {
	inodes, names, bytes int64
	images               int64 // 0: the store has no history of it
}

// state is what the journal knows of itself besides the records. The intent log has every change of it
// since the last absorb; the store has it as it was then.
type state struct {
	epoch     Epoch // the current one
	forgotten Epoch
	absorbed  uint64             // the last generation of the log that is in the store whole
	held      map[Epoch]int      // how many hold a seal
	totals    map[Epoch]*totals  // of every epoch that has or had a record
	order     []Epoch            // the keys of totals, ascending; nil: to be sorted anew
	stored    map[Epoch]struct{} // the epochs that may have records in the store
	// bases are the seals, besides the held ones, from which changes may be asked for; nil until somebody has
	// said which they are. Not kept: whoever opens the journal says it again.
	bases []Epoch
}

func newState() state {
	return state{epoch: 1, held: map[Epoch]int{}, totals: map[Epoch]*totals{}, stored: map[Epoch]struct{}{}}
}

func (s *state) isStored(n Epoch) bool {
	_, ok := s.stored[n]
	return ok
}

// markStored notes that an epoch may have records in the store, and perhaps history.
func (s *state) markStored(n Epoch, history bool) {
	s.stored[n] = struct{}{}
	if t, _ := s.total(n); history {
		t.images = max(t.images, 1)
	}
}

// fold notes that the records of one stored epoch are another's now.
func (s *state) fold(into, from Epoch) {
	t, _ := s.total(into)
	f, _ := s.total(from)
	*t = totals{t.inodes + f.inodes, t.names + f.names, t.bytes + f.bytes, t.images + f.images}
	delete(s.stored, from)
	delete(s.totals, from)
	if i, ok := slices.BinarySearch(s.order, from); ok { // sorting anew for each of many would take long
		s.order = slices.Delete(s.order, i, i+1)
	}
}

// total gives an epoch's totals, made when absent; new says that they were.
func (s *state) total(n Epoch) (t *totals, new bool) {
	t = s.totals[n]
	if t == nil {
		t, new = &totals{}, true
		s.totals[n] = t
		if last := len(s.order) - 1; last >= 0 && s.order[last] < n {
			s.order = append(s.order, n)
		} else {
			s.order = nil
		}
	}
	return t, new
}

// forgetTotals drops an epoch's totals: it has no records any more.
func (s *state) forgetTotals(n Epoch) {
	delete(s.totals, n)
	s.order = nil
}

// sorted gives the epochs that may have records, ascending.
func (s *state) sorted() []Epoch {
	if s.order == nil {
		s.order = slices.Sorted(maps.Keys(s.totals))
	}
	return s.order
}

// within lists the epochs in (after, upto] that may have records, ascending.
func (s *state) within(after, upto Epoch) []Epoch {
	all := s.sorted()
	from, _ := slices.BinarySearch(all, after+1)
	to, _ := slices.BinarySearch(all, upto+1)
	return all[min(from, to):to:to]
}

// lowestHeld is the oldest seal that is held; the current epoch when none is.
func (s *state) lowestHeld() Epoch {
	low := s.epoch
	for n := range s.held {
		low = min(low, n)
	}
	return low
}

// hasHistory reports whether the store may have history, which it has of epochs after the oldest held seal.
func (s *state) hasHistory() bool {
	if len(s.held) == 0 {
		return false
	}
	low := s.lowestHeld()
	for n := range s.stored {
		if n > low {
			return true
		}
	}
	return false
}

// apart reports whether somebody may ask for what is between the epochs a < b: a seal in [a, b) is held, or a
// base.
func (s *state) apart(a, b Epoch) bool {
	for n := range s.held {
		if a <= n && n < b {
			return true
		}
	}
	return s.bases == nil || a <= s.forgotten && s.forgotten < b || slices.ContainsFunc(s.bases, func(n Epoch) bool { return a <= n && n < b })
}

// newestHeld is the newest seal that is held; 0 when none is.
func (s *state) newestHeld() Epoch {
	newest := Epoch(0)
	for n := range s.held {
		newest = max(newest, n)
	}
	return newest
}

// useless is the last epoch whose records nobody can ask for: forgotten, and before all views.
func (s *state) useless() Epoch { return min(s.forgotten, s.lowestHeld()) }

// encode gives the store's value for the state, all as unsigned varints:
//
//	| epoch | forgotten | absorbed | count | held seals | count | stored epochs with their totals |
//	stored: | epoch | inodes | names | bytes | images |
func (s *state) encode() []byte {
	var b []byte
	put := func(values ...uint64) {
		for _, v := range values {
			b = binary.AppendUvarint(b, v)
		}
	}
	put(uint64(s.epoch), uint64(s.forgotten), s.absorbed, uint64(len(s.held)))
	for _, n := range slices.Sorted(maps.Keys(s.held)) {
		put(uint64(n))
	}
	put(uint64(len(s.stored)))
	for _, n := range slices.Sorted(maps.Keys(s.stored)) {
		t := s.totals[n]
		put(uint64(n), uint64(t.inodes), uint64(t.names), uint64(t.bytes), uint64(t.images))
	}
	return b
}

func decodeState(v []byte) (state, error) {
	d := decoder{rest: v}
	s := newState()
	s.epoch, s.forgotten, s.absorbed = Epoch(d.uvarint()), Epoch(d.uvarint()), d.uvarint()
	for n := d.uvarint(); n > 0 && !d.bad; n-- {
		s.held[Epoch(d.uvarint())] = 1
	}
	for n := d.uvarint(); n > 0 && !d.bad; n-- {
		epoch := Epoch(d.uvarint())
		s.stored[epoch] = struct{}{}
		s.totals[epoch] = &totals{d.int(), d.int(), d.int(), d.int()}
	}
	d.check(s.epoch > 0)
	if err := d.end(); err != nil {
		return state{}, fmt.Errorf("journal's state: %w", err)
	}
	return s, nil
}
