package journal

import (
	"bytes"
	"encoding/binary"

	"github.com/dgraph-io/badger/v4"

	"tandemfs/journal/crashpoint"
)

// The store's history: what each epoch found of an inode or a name, kept by inode and name. It is there for
// epochs after the oldest held seal. Folding and sweeping take away what no held seal finds.

// pastKey is the key of an inode's history or image; its prefix without the epoch has them all in their order.
func pastKey(kind byte, id Ident, n Epoch) []byte {
	return binary.BigEndian.AppendUint64(putIdent([]byte{kind}, id), uint64(n))
}

// namedPrefix is what all keys of a name's history begin with. No name has a zero byte.
func namedPrefix(key nameKey) []byte {
	return append(append(putIdent([]byte{keyNamed}, key.dir), key.name...), 0)
}

func namedKey(key nameKey, n Epoch) []byte {
	return binary.BigEndian.AppendUint64(namedPrefix(key), uint64(n))
}

// epochOf reads the epoch that a key of the history ends with.
func epochOf(key []byte) Epoch { return Epoch(binary.BigEndian.Uint64(key[len(key)-8:])) }

// past reads an inode's history in (after, upto], oldest first.
func (s *store) past(after, upto Epoch, id Ident) (list []version[*inodeEntry], err error) {
	prefix := putIdent([]byte{keyPast}, id)
	err = s.scan(prefix, pastKey(keyPast, id, after+1), func(item *badger.Item) (bool, error) {
		n := epochOf(item.Key())
		if n > upto {
			return false, nil
		}
		return true, item.Value(func(value []byte) error {
			e, err := decodeInode(value)
			list = append(list, version[*inodeEntry]{n, e})
			return err
		})
	})
	return list, err
}

// imagePast reads the first image of an inode after an epoch; that of epoch 0 when there is none.
func (s *store) imagePast(after Epoch, id Ident) (first version[[]byte], err error) {
	prefix := putIdent([]byte{keyImage}, id)
	err = s.scan(prefix, pastKey(keyImage, id, after+1), func(item *badger.Item) (bool, error) {
		image, err := item.ValueCopy(nil)
		first = version[[]byte]{epochOf(item.Key()), image}
		return false, err
	})
	return first, err
}

// namePast reads what a name stood for in the first epoch after one that touched it; epoch 0 when none did.
func (s *store) namePast(after Epoch, key nameKey) (first version[Ident], err error) {
	err = s.scan(namedPrefix(key), namedKey(key, after+1), func(item *badger.Item) (bool, error) {
		return false, item.Value(func(value []byte) error {
			was, err := decodeWas(value)
			first = version[Ident]{epochOf(item.Key()), was}
			return err
		})
	})
	return first, err
}

// namesPast does the same for all names of a directory, where into does not have an earlier epoch.
func (s *store) namesPast(after Epoch, dir Ident, into map[string]version[Ident]) error {
	prefix := putIdent([]byte{keyNamed}, dir)
	last := []byte{0}
	return s.scan(prefix, nil, func(item *badger.Item) (bool, error) {
		key := item.Key()[len(prefix):]
		name := key[:len(key)-9]
		if epochOf(key) <= after || bytes.Equal(name, last) {
			return true, nil
		}
		last = append(last[:0], name...)
		return true, item.Value(func(value []byte) error {
			was, err := decodeWas(value)
			into[string(name)] = into[string(name)].or(version[Ident]{epochOf(key), was})
			return err
		})
	})
}

// putPast writes the history of one epoch.
func putPast(b *badger.WriteBatch, n Epoch, x *epochIndex) error {
	for id, e := range x.inodes {
		if !e.unsaved {
			continue
		}
		err := error(nil)
		if e.removed {
			err = b.Delete(pastKey(keyPast, id, n))
		} else {
			err = b.Set(pastKey(keyPast, id, n), encodeInode(e))
		}
		if err != nil {
			return err
		}
	}
	for id, image := range x.images {
		if err := b.Set(pastKey(keyImage, id, n), image); err != nil {
			return err
		}
	}
	for key, e := range x.names {
		if !e.unsaved {
			continue
		}
		if err := b.Set(namedKey(key, n), putIdent(nil, e.was)); err != nil {
			return err
		}
	}
	return nil
}

// sweepPast takes away the history, up to an epoch, of what was touched under a label in the store.
func (s *store) sweepPast(label, upto Epoch) (deleted int64, err error) {
	return s.thinPast(label, func(_ Ident, prefix []byte) (doomed, error) { return s.laterKeys(prefix, 0, upto, false) })
}

// dedupePast takes away, of the history of what was touched under a label, what an earlier epoch in (low, high]
// has too. No seal in between is held.
func (s *store) dedupePast(label, low, high Epoch) (deleted int64, err error) {
	return s.thinPast(label, func(id Ident, prefix []byte) (doomed, error) {
		if prefix[0] == keyPast {
			return s.repeatedPast(id, low, high)
		}
		return s.laterKeys(prefix, low, high, true)
	})
}

// doomed are keys that are to be deleted, and roughly how many bytes they take with their values.
type doomed struct {
	keys  [][]byte
	bytes int64
}

func (d *doomed) add(more doomed) {
	d.keys, d.bytes = append(d.keys, more.keys...), d.bytes+more.bytes
}

// thinPast deletes the keys that choose gives for each inode's and name's history.
func (s *store) thinPast(label Epoch, choose func(id Ident, prefix []byte) (doomed, error)) (deleted int64, err error) {
	inodes, err := s.eachKey(epochKey(keyInode, label), func(key []byte) (doomed, error) {
		id := takeIdent(key[epochKeyLen:])
		past, err := choose(id, putIdent([]byte{keyPast}, id))
		if err != nil {
			return past, err
		}
		images, err := choose(id, putIdent([]byte{keyImage}, id))
		past.add(images)
		return past, err
	})
	if err != nil {
		return inodes, err
	}
	names, err := s.eachKey(epochKey(keyName, label), func(key []byte) (doomed, error) {
		name := takeName(key)
		return choose(name.dir, namedPrefix(name))
	})
	return inodes + names, err
}

// laterKeys lists the keys of epochs in (low, high], without the first if that is to be kept.
func (s *store) laterKeys(prefix []byte, low, high Epoch, keepFirst bool) (d doomed, err error) {
	from := binary.BigEndian.AppendUint64(bytes.Clone(prefix), uint64(low+1))
	err = s.scan(prefix, from, func(item *badger.Item) (bool, error) {
		if epochOf(item.Key()) > high {
			return false, nil
		}
		if !keepFirst {
			d.add(doomed{[][]byte{item.KeyCopy(nil)}, item.EstimatedSize()})
		}
		keepFirst = false
		return true, nil
	})
	return d, err
}

// repeatedPast lists the keys of an inode's history in (low, high] that say nothing which an earlier one does not.
func (s *store) repeatedPast(id Ident, low, high Epoch) (d doomed, err error) {
	list, err := s.past(low, high, id)
	var before Extents
	seen := What(0)
	for _, v := range list {
		own := v.value.extents.flat()
		if v.value.what&^seen == 0 && len(own.Subtract(before)) == 0 {
			key := pastKey(keyPast, id, v.epoch)
			d.add(doomed{[][]byte{key}, int64(len(key))})
			continue
		}
		before, seen = before.Union(own), seen|v.value.what
		if seen&fate != 0 {
			seen |= fate // the first one counts
		}
	}
	return d, err
}

// eachKey calls f for each key with a prefix, and deletes what it gives.
func (s *store) eachKey(prefix []byte, f func(key []byte) (doomed, error)) (deleted int64, err error) {
	for from := prefix; ; {
		var page [][]byte
		var all doomed
		err := s.scan(prefix, from, func(item *badger.Item) (bool, error) {
			page = append(page, item.KeyCopy(nil))
			return len(page) < pageEntries, nil
		})
		for _, key := range page {
			if err == nil {
				var more doomed
				more, err = f(key)
				all.add(more)
			}
		}
		if err == nil {
			err = s.deleteKeys(all.keys)
		}
		if err != nil {
			return deleted, err
		}
		if deleted += all.bytes; len(page) < pageEntries {
			return deleted, nil
		}
		from = append(page[len(page)-1], 0)
	}
}

// deleteKeys deletes in transactions that the store can take.
func (s *store) deleteKeys(keys [][]byte) error {
	for len(keys) > 0 {
		n := min(len(keys), deleteStep)
		err := s.update(func(txn *badger.Txn) error {
			for _, key := range keys[:n] {
				if err := txn.Delete(key); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}

// fold moves the records of changes of the epoch from into those of the epoch into, which is before it. A crash
// in the middle leaves some in both, which is the same.
func (s *store) fold(into, from Epoch) (deleted int64, err error) {
	for _, kind := range []struct {
		key byte
		put func(b *badger.WriteBatch, to, value []byte) error
	}{
		{keyInode, s.foldInode},
		{keyName, s.foldName},
		{keyWhere, func(b *badger.WriteBatch, to, value []byte) error { return b.Set(to, value) }},
	} {
		if err := s.foldKind(kind.key, into, from, kind.put); err != nil {
			return deleted, err
		}
		crashpoint.Here("journal/fold-put")
		n, err := s.deletePrefix(epochKey(kind.key, from))
		if deleted += n; err != nil {
			return deleted, err
		}
	}
	return deleted, nil
}

// foldKind has put add each value of one kind to the key that it has in the other epoch.
func (s *store) foldKind(kind byte, into, from Epoch, put func(b *badger.WriteBatch, to, value []byte) error) error {
	prefix := epochKey(kind, from)
	for at := prefix; ; {
		var keys, values [][]byte
		err := s.scan(prefix, at, func(item *badger.Item) (bool, error) {
			value, err := item.ValueCopy(nil)
			keys, values = append(keys, item.KeyCopy(nil)), append(values, value)
			return len(keys) < pageEntries, err
		})
		if err == nil {
			err = s.batch(func(b *badger.WriteBatch) error {
				for i, key := range keys {
					if err := put(b, append(epochKey(kind, into), key[epochKeyLen:]...), values[i]); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err != nil || len(keys) < pageEntries {
			return err
		}
		at = append(keys[len(keys)-1], 0)
	}
}

// foldInode adds what a later epoch says of an inode.
func (s *store) foldInode(b *badger.WriteBatch, to, value []byte) error {
	later, err := decodeInode(value)
	if err != nil {
		return err
	}
	earlier, err := s.inode(epochOf(to[:epochKeyLen]), takeIdent(to[epochKeyLen:]))
	if err != nil {
		return err
	}
	if earlier == nil {
		return b.Set(to, value)
	}
	return b.Set(to, encodeInode(earlier.and(later)))
}

// and is what two epochs, the receiver's before the other's, say of an inode together.
func (e *inodeEntry) and(later *inodeEntry) *inodeEntry {
	what := later.what
	if e.what&fate != 0 {
		what &^= fate
	}
	if what |= e.what; what&Created != 0 {
		return &inodeEntry{what: Created}
	}
	return &inodeEntry{what: what, extents: setOf(e.extents.flat().Union(later.extents.flat()))}
}

// foldName keeps what a name stood for in the earlier epoch.
func (s *store) foldName(b *badger.WriteBatch, to, value []byte) error {
	key := takeName(to)
	if _, ok, err := s.name(epochOf(to[:epochKeyLen]), key); ok || err != nil {
		return err
	}
	return b.Set(to, value)
}
