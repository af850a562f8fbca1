package journal

import (
	"cmp"
	"container/heap"
	"maps"
	"slices"

	"github.com/dgraph-io/badger/v4"
)

func compareIdent(a, b Ident) int {
	return cmp.Or(cmp.Compare(a.Ino, b.Ino), cmp.Compare(a.Gen, b.Gen))
}

func compareName(a, b nameKey) int {
	return cmp.Or(compareIdent(a.dir, b.dir), cmp.Compare(a.name, b.name))
}

// pair is a key with what one layer says of it.
type pair[K, V any] struct {
	key   K
	value V
}

// version is what one epoch says of a key.
type version[V any] struct {
	epoch Epoch
	value V
}

// or gives the earlier of two versions. Epoch 0 stands for none.
func (v version[V]) or(other version[V]) version[V] {
	if v.epoch == 0 || other.epoch > 0 && other.epoch < v.epoch {
		return other
	}
	return v
}

// overlay makes one list, oldest first, of those of two layers. What the newer layer has of an epoch is the whole
// truth.
func overlay[V any](older, newer []version[V]) []version[V] {
	if len(older) == 0 {
		return newer
	}
	merged := make([]version[V], 0, len(older)+len(newer))
	for len(older) > 0 && len(newer) > 0 {
		switch c := cmp.Compare(older[0].epoch, newer[0].epoch); {
		case c < 0:
			merged, older = append(merged, older[0]), older[1:]
		case c > 0:
			merged, newer = append(merged, newer[0]), newer[1:]
		default:
			older = older[1:]
		}
	}
	return append(append(merged, older...), newer...)
}

// A source gives a layer's pairs in ascending order, a few at a time: those after the key, or from the
// start when it is nil. None means the end.
type source[K, V any] func(after *K) ([]pair[K, V], error)

// A merge goes through many sources in one order, holding a few pairs of each.
type merge[K, V any] struct {
	compare func(a, b K) int
	cursors []*cursor[K, V] // a heap by key, then by rank
}

type cursor[K, V any] struct {
	epoch Epoch
	rank  int // the order in which it was added
	pairs []pair[K, V]
	next  source[K, V]
}

func newMerge[K, V any](compare func(a, b K) int) *merge[K, V] {
	return &merge[K, V]{compare: compare}
}

// add adds a source. Epochs are added oldest first, within one the layer that counts first.
func (m *merge[K, V]) add(epoch Epoch, next source[K, V]) {
	m.cursors = append(m.cursors, &cursor[K, V]{epoch: epoch, rank: len(m.cursors), next: next})
}

// run calls f for each key, with what each epoch says of it, oldest first, until f fails. The versions
// are valid during the call.
func (m *merge[K, V]) run(f func(key K, versions []version[V]) error) error {
	all := m.cursors
	m.cursors = nil
	for _, c := range all {
		if err := m.push(c, nil); err != nil {
			return err
		}
	}
	var versions []version[V]
	for len(m.cursors) > 0 {
		key := m.cursors[0].pairs[0].key
		versions = versions[:0]
		for len(m.cursors) > 0 && m.compare(m.cursors[0].pairs[0].key, key) == 0 {
			c := heap.Pop(m).(*cursor[K, V])
			if last := len(versions) - 1; last < 0 || versions[last].epoch != c.epoch {
				versions = append(versions, version[V]{c.epoch, c.pairs[0].value})
			}
			c.pairs = c.pairs[1:]
			if err := m.push(c, &key); err != nil {
				return err
			}
		}
		if err := f(key, versions); err != nil {
			return err
		}
	}
	return nil
}

// push puts a cursor back that has something left after a key.
func (m *merge[K, V]) push(c *cursor[K, V], after *K) (err error) {
	if len(c.pairs) == 0 {
		if c.pairs, err = c.next(after); err != nil || len(c.pairs) == 0 {
			return err
		}
	}
	heap.Push(m, c)
	return nil
}

// Len, Less, Swap, Push and Pop are heap.Interface.
func (m *merge[K, V]) Len() int { return len(m.cursors) }

func (m *merge[K, V]) Less(a, b int) bool {
	x, y := m.cursors[a], m.cursors[b]
	return cmp.Or(m.compare(x.pairs[0].key, y.pairs[0].key), cmp.Compare(x.rank, y.rank)) < 0
}

func (m *merge[K, V]) Swap(a, b int) { m.cursors[a], m.cursors[b] = m.cursors[b], m.cursors[a] }
func (m *merge[K, V]) Push(c any)    { m.cursors = append(m.cursors, c.(*cursor[K, V])) }

func (m *merge[K, V]) Pop() any {
	last := len(m.cursors) - 1
	c := m.cursors[last]
	m.cursors = m.cursors[:last]
	return c
}

const (
	// pageEntries and pageBytes bound what is read from the store at a time for one epoch.
	pageEntries = 256
	pageBytes   = 32 << 10
)

// inodeSource reads a layer's inodes. An index must not change any more.
func (j *Journal) inodeSource(l layer) source[Ident, *inodeEntry] {
	if l.index != nil {
		return sorted(l.index.inodes, compareIdent)
	}
	prefix := epochKey(keyInode, l.epoch)
	return func(after *Ident) (page []pair[Ident, *inodeEntry], err error) {
		var from []byte
		if after != nil {
			from = append(inodeKey(keyInode, l.epoch, *after), 0)
		}
		err = j.scanPage(prefix, from, func(key, value []byte) error {
			e, err := decodeInode(value)
			page = append(page, pair[Ident, *inodeEntry]{takeIdent(key[epochKeyLen:]), e})
			return err
		})
		return page, err
	}
}

// nameSource reads a layer's names.
func (j *Journal) nameSource(l layer) source[nameKey, Ident] {
	if l.index != nil {
		names := make(map[nameKey]Ident, len(l.index.names))
		for key, e := range l.index.names {
			names[key] = e.was
		}
		return sorted(names, compareName)
	}
	prefix := epochKey(keyName, l.epoch)
	return func(after *nameKey) (page []pair[nameKey, Ident], err error) {
		var from []byte
		if after != nil {
			from = append(nameEntryKey(l.epoch, *after), 0)
		}
		err = j.scanPage(prefix, from, func(key, value []byte) error {
			was, err := decodeWas(value)
			page = append(page, pair[nameKey, Ident]{takeName(key), was})
			return err
		})
		return page, err
	}
}

// scanPage calls f for a page of the store's pairs with a prefix.
func (j *Journal) scanPage(prefix, from []byte, f func(key, value []byte) error) error {
	entries, bytes := 0, 0
	return j.store.scan(prefix, from, func(item *badger.Item) (bool, error) {
		err := item.Value(func(value []byte) error {
			entries++
			bytes += len(item.Key()) + len(value)
			return f(item.Key(), value)
		})
		return entries < pageEntries && bytes < pageBytes, err
	})
}

// sorted gives a map's pairs in one go.
func sorted[K comparable, V any](m map[K]V, compare func(a, b K) int) source[K, V] {
	return func(after *K) ([]pair[K, V], error) {
		if after != nil {
			return nil, nil
		}
		pairs := make([]pair[K, V], 0, len(m))
		for _, key := range slices.SortedFunc(maps.Keys(m), compare) {
			pairs = append(pairs, pair[K, V]{key, m[key]})
		}
		return pairs, nil
	}
}
