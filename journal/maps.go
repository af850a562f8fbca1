package journal

import (
	"errors"
	"fmt"
	"sync"

	"github.com/dgraph-io/badger/v4"
)

const (
	// mapBuffer is the number of pairs that a Map buffers. As many, with what they displace, fit into one
	// transaction of the store.
	mapBuffer  = 2000
	maxMapName = 255
	maxValue   = 512 << 10 // bytes of a state's value; it must fit into one transaction
)

// Map is a durable bijection between identities. Its methods may be called concurrently.
type Map struct {
	store  *store
	prefix []byte

	mu       sync.Mutex
	forward  map[Ident]Ident // what is not in the store yet; the zero Ident: deleted
	backward map[Ident]Ident
}

// Map gives the map of that name, of at most 255 bytes; it is empty when it was never used.
func (j *Journal) Map(name string) *Map {
	j.mu.Lock()
	defer j.mu.Unlock()
	m := j.maps[name]
	if m == nil {
		prefix := append([]byte{keyMap, byte(min(len(name), maxMapName))}, name...)
		m = &Map{store: j.store, prefix: prefix, forward: map[Ident]Ident{}, backward: map[Ident]Ident{}}
		j.maps[name] = m
	}
	return m
}

func (m *Map) key(direction byte, id Ident) []byte {
	key := make([]byte, 0, len(m.prefix)+17)
	return putIdent(append(append(key, m.prefix...), direction), id)
}

func (m *Map) check(ids ...Ident) error {
	if len(m.prefix) > 2+maxMapName {
		return fmt.Errorf("%w: map's name of %d bytes", ErrTooLarge, len(m.prefix)-2)
	}
	for _, id := range ids {
		if id.IsZero() {
			return errors.New("journal: a map does not take the zero identity")
		}
	}
	return nil
}

// Put pairs from with to, and ends the pairs that either had. It can be read at once, and survives the
// death of the process after Flush.
func (m *Map) Put(from, to Ident) error {
	if err := m.check(from, to); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	oldTo, paired, err := m.lookup(m.forward, 'f', from)
	if err != nil || paired && oldTo == to {
		return err
	}
	oldFrom, displaced, err := m.lookup(m.backward, 'r', to)
	if err != nil {
		return err
	}
	if paired {
		m.backward[oldTo] = Ident{}
	}
	if displaced {
		m.forward[oldFrom] = Ident{}
	}
	m.forward[from], m.backward[to] = to, from
	return m.flushWhenFull()
}

// Delete ends the pair of from. As with Put it is durable after Flush.
func (m *Map) Delete(from Ident) error {
	if err := m.check(from); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	to, ok, err := m.lookup(m.forward, 'f', from)
	if err != nil || !ok {
		return err
	}
	m.forward[from], m.backward[to] = Ident{}, Ident{}
	return m.flushWhenFull()
}

// Get gives what from is paired with; false when it is not.
func (m *Map) Get(from Ident) (Ident, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lookup(m.forward, 'f', from)
}

// Reverse gives what is paired with to; false when nothing is.
func (m *Map) Reverse(to Ident) (Ident, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lookup(m.backward, 'r', to)
}

func (m *Map) lookup(buffer map[Ident]Ident, direction byte, id Ident) (other Ident, ok bool, err error) {
	if other, ok = buffer[id]; ok {
		return other, !other.IsZero(), nil
	}
	ok, err = m.store.get(m.key(direction, id), func(v []byte) (err error) {
		other, err = decodeWas(v)
		return err
	})
	return other, ok, err
}

// Flush makes what was put and deleted survive the death of the process, in one piece.
func (m *Map) Flush() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.flush()
}

func (m *Map) flushWhenFull() error {
	if len(m.forward) < mapBuffer && len(m.backward) < mapBuffer {
		return nil
	}
	return m.flush()
}

func (m *Map) flush() error {
	if len(m.forward)+len(m.backward) == 0 {
		return nil
	}
	err := m.store.update(func(txn *badger.Txn) error {
		return errors.Join(m.put(txn, 'f', m.forward), m.put(txn, 'r', m.backward))
	})
	if err == nil {
		clear(m.forward)
		clear(m.backward)
	}
	return err
}

func (m *Map) put(txn *badger.Txn, direction byte, buffer map[Ident]Ident) error {
	for id, other := range buffer {
		key, err := m.key(direction, id), error(nil)
		if other.IsZero() {
			err = txn.Delete(key)
		} else {
			err = txn.Set(key, putIdent(nil, other))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Drop forgets the whole map. A crash may leave a part of it: Drop it again then.
func (m *Map) Drop() error {
	if err := m.check(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.forward)
	clear(m.backward)
	_, err := m.store.deletePrefix(m.prefix)
	return err
}

// flushMaps is for Close.
func (j *Journal) flushMaps() error {
	j.mu.Lock()
	var all []*Map
	for _, m := range j.maps {
		all = append(all, m)
	}
	j.mu.Unlock()
	var errs []error
	for _, m := range all {
		errs = append(errs, m.Flush())
	}
	return errors.Join(errs...)
}

// SetState keeps a value of at most 512 KiB under a key; nil removes it. It survives the death of the
// process when SetState returns, and a power cut after Sync.
func (j *Journal) SetState(key string, value []byte) error {
	if len(value) > maxValue {
		return fmt.Errorf("%w: state of %d bytes", ErrTooLarge, len(value))
	}
	return j.store.update(func(txn *badger.Txn) error {
		if value == nil {
			return txn.Delete(stateKey(key))
		}
		return txn.Set(stateKey(key), value)
	})
}

// State gives the value that is kept under a key; nil when there is none.
func (j *Journal) State(key string) (value []byte, err error) {
	_, err = j.store.get(stateKey(key), func(v []byte) error {
		value = append([]byte{}, v...)
		return nil
	})
	return value, err
}

// States gives all values whose keys begin with prefix, by their keys.
func (j *Journal) States(prefix string) (map[string][]byte, error) {
	values := map[string][]byte{}
	err := j.store.scan(stateKey(prefix), nil, func(item *badger.Item) (bool, error) {
		return true, item.Value(func(v []byte) error {
			values[string(item.Key()[1:])] = append([]byte{}, v...)
			return nil
		})
	})
	return values, err
}

func stateKey(key string) []byte { return append([]byte{keyValue}, key...) }
