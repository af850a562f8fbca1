package journal

// NameAt gives what dir's name stood for at seal n; false when the live value holds.
func (j *Journal) NameAt(n Epoch, dir Ident, name string) (was Ident, ok bool, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for e := n + 1; e <= j.epoch && !ok; e++ {
		if r := j.epochs[e]; r != nil {
			was, ok = r.names[nameKey{dir, name}]
		}
	}
	return was, ok, nil
}

// NamesAt gives all names of dir that were touched after seal n, with what they stood for at n.
func (j *Journal) NamesAt(n Epoch, dir Ident) (map[string]Ident, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := map[string]Ident{}
	for e := n + 1; e <= j.epoch; e++ {
		r := j.epochs[e]
		if r == nil {
			continue
		}
		for k, was := range r.names {
			if _, ok := out[k.name]; k.dir == dir && !ok {
				out[k.name] = was
			}
		}
	}
	return out, nil
}

// ImageAt gives the attributes of id at seal n; false when the live ones hold.
func (j *Journal) ImageAt(n Epoch, id Ident) (Image, bool, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for e := n + 1; e <= j.epoch; e++ {
		if r := j.epochs[e]; r != nil && r.inodes[id] != nil && r.inodes[id].image != nil {
			return *r.inodes[id].image, true, nil
		}
	}
	return Image{}, false, nil
}

// CreatedAfter reports whether id was created after seal n.
func (j *Journal) CreatedAfter(n Epoch, id Ident) (bool, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for e := n + 1; e <= j.epoch; e++ {
		if r := j.epochs[e]; r != nil && r.inodes[id] != nil && r.inodes[id].what&Created != 0 {
			return true, nil
		}
	}
	return false, nil
}
