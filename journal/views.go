package journal

import "github.com/dgraph-io/badger/v4"

// NameAt gives what dir's name stood for at seal n; ok is false when nothing was recorded since, so that
// the live value holds. Whoever compares with the live value reads that one first. It fails with
// ErrNotHeld unless n, or an older seal, is held.
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

// CreatedAfter reports whether id was created after seal n, so that it did not exist then. It fails as
// NameAt does.
func (j *Journal) CreatedAfter(n Epoch, id Ident) (bool, error) {
	created, answered := false, Epoch(0)
	err := j.firstAfter(n, func(l layer) (bool, error) {
		if l.epoch == answered {
			return false, nil // a newer layer of the epoch says that it was removed again
		}
		e, err := j.inodeIn(l, id)
		if e != nil {
			created, answered = e.what&Created != 0, l.epoch
		}
		return created, err
	})
	return created, err
}

// firstAfter asks the layers of the epochs after seal n, oldest first, until one has the answer. Memory is
// asked under mu, the store without it: a record that moves from memory to the store meanwhile is there in
// both.
func (j *Journal) firstAfter(n Epoch, ask func(layer) (bool, error)) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.checkView(n); err != nil {
		return err
	}
	for _, l := range j.layers(n, j.state.epoch) {
		done, err := j.askLayer(l, ask)
		if err != nil || done {
			return err
		}
	}
	return nil
}

func (j *Journal) askLayer(l layer, ask func(layer) (bool, error)) (bool, error) {
	if l.index == nil {
		j.mu.Unlock()
		defer j.mu.Lock()
	}
	return ask(l)
}
