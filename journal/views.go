package journal

import (
	"cmp"
	"errors"
	"math"
	"slices"

	"github.com/dgraph-io/badger/v4"
)

// NameAt gives what dir's name stood for at seal n; ok is false when nothing was recorded since, so that
// the live value holds. Whoever compares with the live value reads that one first. It fails with
// ErrNotHeld unless n is held.
func (j *Journal) NameAt(n Epoch, dir Ident, name string) (was Ident, ok bool, err error) {
	key := nameKey{dir, name}
	err = j.firstAfter(n, func(l layer) (bool, error) {
		if l.index == nil {
			was, ok, err = j.store.name(l.epoch, key)
			return ok, err
		}
		e, here := l.index.names[key]
		was, ok = e.was, here
		return ok, nil
	})
	return was, ok, err
}

// NamesAt gives all names of dir that were touched since seal n, with what they stood for at n. It fails
// as NameAt does.
func (j *Journal) NamesAt(n Epoch, dir Ident) (map[string]Ident, error) {
	names := map[string]Ident{}
	add := func(name string, was Ident) {
		if _, ok := names[name]; !ok {
			names[name] = was
		}
	}
	err := j.firstAfter(n, func(l layer) (bool, error) {
		if l.index != nil {
			l.index.eachName(dir, add)
			return false, nil
		}
		return false, j.store.scan(inodeKey(keyName, l.epoch, dir), nil, func(item *badger.Item) (bool, error) {
			return true, item.Value(func(value []byte) error {
				was, err := decodeWas(value)
				if err == nil {
					add(takeName(item.Key()).name, was)
				}
				return err
			})
		})
	})
	return names, err
}

// ImageAt gives the attributes and extended attributes of id at seal n; false when nothing was recorded
// since. It fails as NameAt does.
func (j *Journal) ImageAt(n Epoch, id Ident) (Image, bool, error) {
	var encoded []byte
	err := j.firstAfter(n, func(l layer) (_ bool, err error) {
		if l.index != nil {
			encoded = l.index.images[id]
		} else {
			encoded, err = j.store.image(l.epoch, id)
		}
		return encoded != nil, err
	})
	if err != nil || encoded == nil {
		return Image{}, false, err
	}
	image, err := decodeImage(encoded)
	return image, err == nil, err
}

// CreatedAfter reports whether id did not exist at seal n: it was made after it, or had lost its last name
// before it and got one again. It fails as NameAt does.
func (j *Journal) CreatedAfter(n Epoch, id Ident) (bool, error) {
	b, err := j.birthAfter(n, id)
	return b != 0, err
}

// birthAfter gives how an inode that did not exist at seal n came about: Created or Found; 0 for one that did.
func (j *Journal) birthAfter(n Epoch, id Ident) (birth What, err error) {
	answered := Epoch(0)
	err = j.firstAfter(n, func(l layer) (bool, error) {
		if l.epoch == answered {
			return false, nil // a newer layer of the epoch says that it was removed again
		}
		e, err := j.inodeIn(l, id)
		if e == nil || err != nil {
			return false, err
		}
		answered = l.epoch
		birth = e.what & (Created | Found)
		return e.what&(Created|fate) != 0, nil
	})
	return birth, err
}

// Kept is a part of a file's content of which a copy was kept.
type Kept struct {
	Extent
	Epoch Epoch // the one under which Before.Keep was called
}

// KeptAt gives those parts of x, of a file's content at seal n, that were touched since, each with the epoch
// whose copy has it; sorted, and disjoint. What is not among them is in the file as it was. It fails as
// NameAt does.
func (j *Journal) KeptAt(n Epoch, id Ident, x Extent) ([]Kept, error) {
	var kept []Kept
	rest, answered := Extents{x}, Epoch(0)
	err := j.firstAfter(n, func(l layer) (bool, error) {
		if l.epoch == answered {
			return false, nil
		}
		e, err := j.inodeIn(l, id)
		if e == nil || err != nil {
			return false, err
		}
		answered = l.epoch
		for _, part := range e.extents.within(x) {
			for _, new := range rest.Intersect(part) {
				kept = append(kept, Kept{new, l.epoch})
			}
			rest = rest.Subtract(Extents{part})
		}
		return len(rest) == 0, nil
	})
	slices.SortFunc(kept, func(a, b Kept) int { return cmp.Compare(a.Off, b.Off) })
	return kept, err
}

// Within gives what happened to one inode in the epochs (after, upto], the current one included: the union
// of what was touched, false when nothing was. Unlike Changes it is not bound to what Forget has left; what
// nobody can ask for any more may be missing from the answer.
func (j *Journal) Within(after, upto Epoch, id Ident) (InodeChange, bool, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.within(after, upto, id)
}

// within is Within, called with mu held, which it may drop meanwhile.
func (j *Journal) within(after, upto Epoch, id Ident) (InodeChange, bool, error) {
	var versions []version[*inodeEntry]
	err := j.eachLayer(after, min(upto, j.state.epoch), func(l layer) (bool, error) {
		if last := len(versions) - 1; last >= 0 && versions[last].epoch == l.epoch {
			return false, nil // a newer layer of the epoch had it
		}
		e, err := j.inodeIn(l, id)
		if e != nil && err == nil {
			// The current epoch's entry goes on changing.
			versions = append(versions, version[*inodeEntry]{l.epoch, &inodeEntry{what: e.what, extents: e.extents.clone()}})
		}
		return false, err
	})
	c, ok := unite(id, versions)
	return c, ok, err
}

// firstAfter asks the layers of the epochs after seal n, oldest first, until one has the answer.
func (j *Journal) firstAfter(n Epoch, ask func(layer) (bool, error)) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.checkView(n); err != nil {
		return err
	}
	return j.eachLayer(n, j.state.epoch, ask)
}

// eachLayer calls ask with the layers of the epochs in (after, upto], oldest first, until it returns true.
// Memory is asked under mu, the store without it: a record that moves from memory to the store meanwhile is
// there in both.
func (j *Journal) eachLayer(after, upto Epoch, ask func(layer) (bool, error)) error {
	for n := j.state.next(after); n <= upto; n = j.state.next(n) {
		for _, g := range [...]*generation{j.active, j.frozen} {
			if g == nil || g.epochs[n] == nil {
				continue
			}
			if done, err := ask(layer{n, g.epochs[n]}); err != nil || done {
				return err
			}
		}
		if !j.state.isStored(n) {
			continue
		}
		if done, err := j.askStore(n, ask); err != nil || done {
			return err
		}
	}
	return nil
}

// never is an epoch that never comes.
const never = Epoch(math.MaxUint64)

func (j *Journal) askStore(n Epoch, ask func(layer) (bool, error)) (bool, error) {
	j.mu.Unlock()
	defer j.mu.Lock()
	return ask(layer{n, nil})
}

// Needed reports whether a held seal before an epoch has an inode, which exists in that epoch.
func (j *Journal) Needed(id Ident, in Epoch) (bool, error) {
	for n := j.heldBefore(in); n > 0; n = j.heldBefore(n) {
		birth, err := j.birthAfter(n, id)
		switch {
		case errors.Is(err, ErrNotHeld): // released meanwhile
		case err != nil || birth == 0:
			return err == nil, err
		case birth&Created != 0: // then no older one has it either
			return false, nil
		}
	}
	return false, nil
}

// heldBefore gives the newest held seal before n; 0 when there is none.
func (j *Journal) heldBefore(n Epoch) Epoch {
	j.mu.Lock()
	defer j.mu.Unlock()
	newest := Epoch(0)
	for held := range j.state.held {
		if held < n {
			newest = max(newest, held)
		}
	}
	return newest
}
