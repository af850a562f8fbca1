package journal

import (
	"cmp"
	"errors"
	"slices"
)

// What was at a seal is told by the history: of an inode or a name what each epoch found when it first touched
// it. In the store it is kept by inode and name, not by epoch, so that a look costs the same however many
// epochs there were since. While a generation is absorbed, or after that was broken off, any part of it may be in
// the store and all of it in memory: so it is the epochs that say what came first, not where it is found. A record
// that moves from memory to the store during a look is found: memory is looked at before the store.

// NameAt gives what dir's name stood for at seal n; ok is false when nothing was recorded since, so that
// the live value holds. Whoever compares with the live value reads that one first. It fails with
// ErrNotHeld unless n is held.
func (j *Journal) NameAt(n Epoch, dir Ident, name string) (was Ident, ok bool, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.checkView(n); err != nil {
		return Ident{}, false, err
	}
	key := nameKey{dir, name}
	var first version[Ident]
	for _, g := range j.generations() {
		for _, epoch := range g.named[dir] {
			if e, here := g.name(epoch, key); here && epoch > n {
				first = first.or(version[Ident]{epoch, e.was})
			}
		}
	}
	if j.state.hasHistory() {
		j.mu.Unlock()
		defer j.mu.Lock()
		stored, err := j.store.namePast(n, key)
		if err != nil {
			return Ident{}, false, err
		}
		first = first.or(stored)
	}
	return first.value, first.epoch > 0, nil
}

// generations gives those that are in memory, the older one first.
func (j *Journal) generations() []*generation {
	if j.frozen == nil {
		return []*generation{j.active}
	}
	return []*generation{j.frozen, j.active}
}

// NamesAt gives all names of dir that were touched since seal n, with what they stood for at n. It fails
// as NameAt does.
func (j *Journal) NamesAt(n Epoch, dir Ident) (map[string]Ident, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.checkView(n); err != nil {
		return nil, err
	}
	first := map[string]version[Ident]{}
	for _, g := range j.generations() {
		for _, epoch := range g.named[dir] {
			if x := g.epochs[epoch]; x != nil && epoch > n {
				x.eachName(dir, func(name string, was Ident) {
					first[name] = first[name].or(version[Ident]{epoch, was})
				})
			}
		}
	}
	if j.state.hasHistory() {
		j.mu.Unlock()
		defer j.mu.Lock()
		if err := j.store.namesPast(n, dir, first); err != nil {
			return nil, err
		}
	}
	names := make(map[string]Ident, len(first))
	for name, v := range first {
		names[name] = v.value
	}
	return names, nil
}

// past gives what the epochs in (after, upto] have of an inode, oldest first. mu is held, and dropped where the
// store has to be asked; an entry of the current epoch goes on changing when it is let go.
func (j *Journal) past(after, upto Epoch, id Ident) ([]version[*inodeEntry], error) {
	var list []version[*inodeEntry]
	for _, g := range j.generations() {
		var own []version[*inodeEntry]
		for _, n := range g.touched[id] {
			if e := g.inode(n, id); n > after && n <= upto && e != nil {
				own = append(own, version[*inodeEntry]{n, e})
			}
		}
		list = overlay(list, own)
	}
	if !j.state.hasHistory() {
		return list, nil
	}
	j.mu.Unlock()
	defer j.mu.Lock()
	stored, err := j.store.past(after, upto, id)
	return overlay(stored, list), err
}

// pastSince is past since a seal that must be held.
func (j *Journal) pastSince(n Epoch, id Ident) ([]version[*inodeEntry], error) {
	if err := j.checkView(n); err != nil {
		return nil, err
	}
	return j.past(n, j.state.epoch, id)
}

// ImageAt gives the attributes and extended attributes of id at seal n; false when nothing was recorded
// since. It fails as NameAt does.
func (j *Journal) ImageAt(n Epoch, id Ident) (Image, bool, error) {
	encoded, err := j.imageAt(n, id)
	if err != nil || encoded == nil {
		return Image{}, false, err
	}
	image, err := decodeImage(encoded)
	return image, err == nil, err
}

func (j *Journal) imageAt(n Epoch, id Ident) ([]byte, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.checkView(n); err != nil {
		return nil, err
	}
	var first version[[]byte]
	for _, g := range j.generations() {
		for _, epoch := range g.touched[id] {
			if x := g.epochs[epoch]; x != nil && epoch > n && x.images[id] != nil {
				first = first.or(version[[]byte]{epoch, x.images[id]})
			}
		}
	}
	if j.state.hasHistory() {
		j.mu.Unlock()
		defer j.mu.Lock()
		stored, err := j.store.imagePast(n, id)
		if err != nil {
			return nil, err
		}
		first = first.or(stored)
	}
	return first.value, nil
}

// CreatedAfter reports whether id did not exist at seal n: it was made after it, or had lost its last name
// before it and got one again. It fails as NameAt does.
func (j *Journal) CreatedAfter(n Epoch, id Ident) (bool, error) {
	b, err := j.birthAfter(n, id)
	return b != 0, err
}

// birthAfter gives how an inode that did not exist at seal n came about: Created or Found; 0 for one that did.
func (j *Journal) birthAfter(n Epoch, id Ident) (birth What, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	list, err := j.pastSince(n, id)
	if err != nil {
		return 0, err
	}
	for _, v := range list {
		if what := v.value.what; what&(Created|fate) != 0 {
			return what & (Created | Found), nil
		}
	}
	return 0, nil
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
	j.mu.Lock()
	defer j.mu.Unlock()
	list, err := j.pastSince(n, id)
	if err != nil {
		return nil, err
	}
	var kept []Kept
	var covered Extents
	for _, v := range list {
		parts := v.value.extents.within(x)
		for _, new := range parts.Subtract(covered) {
			kept = append(kept, Kept{new, v.epoch})
		}
		if covered = covered.Union(parts); covered.Covers(x) {
			break
		}
	}
	slices.SortFunc(kept, func(a, b Kept) int { return cmp.Compare(a.Off, b.Off) })
	return kept, nil
}

// Within gives what happened to one inode in the epochs (after, upto], the current one included: the union
// of what was touched, false when nothing was. Unlike Changes it is not bound to what Forget has left, but to what
// held seals need: epochs up to the oldest of them may be missing from the answer.
func (j *Journal) Within(after, upto Epoch, id Ident) (InodeChange, bool, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.within(after, upto, id)
}

// within is Within, called with mu held, which it may drop meanwhile.
func (j *Journal) within(after, upto Epoch, id Ident) (InodeChange, bool, error) {
	list, err := j.past(after, min(upto, j.state.epoch), id)
	c, ok := unite(id, list)
	return c, ok, err
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
