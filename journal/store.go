package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"tandemfs/journal/failpoint"
)

// The store is what was absorbed from the intent logs, in Badger. Keys, all integers big endian so that
// the order of keys is the order of what they name:
//
//	| 'i' | epoch 8 | ino 8 | gen 8 |            -> an inode's change: what, extents
//	| 'n' | epoch 8 | ino 8 | gen 8 | name |     -> what the name stood for: ino 8, gen 8
//	| 'w' | epoch 8 | ino 8 | gen 8 |            -> one name of the inode: dir's ino 8, gen 8, name
//	| 'h' | ino 8 | gen 8 | epoch 8 |            -> the same as for 'i', for views
//	| 'b' | ino 8 | gen 8 | epoch 8 |            -> the encoded Image
//	| 'p' | ino 8 | gen 8 | name | 0 | epoch 8 | -> the same as for 'n', for views
//	| 's' |                                      -> the journal's own state, see state.go
//	| 'k' | key |                                -> SetState's value
//	| 'm' | length 1 | map's name | 'f' or 'r' | ino 8 | gen 8 | -> a Map's pair, forward or reverse
//	| 'f' |                                      -> nothing, see compact
//
// Badger does not sync what it is given; sync does, for all of it.
type store struct {
	db    *badger.DB
	dir   string
	room  func(bytes uint64) error
	dirty atomic.Bool // something was written since the last sync began

	syncing sync.Mutex // held during a sync: who finds nothing to sync waits for the one that does it
}

// storeName is the directory of the store, in the journal's.
const storeName = "store"

const (
	keyInode  = 'i'
	keyName   = 'n'
	keyWhere  = 'w'
	keyPast   = 'h'
	keyImage  = 'b'
	keyNamed  = 'p'
	keyState  = 's'
	keyValue  = 'k'
	keyMap    = 'm'
	keyFiller = 'f'
)

const (
	epochKeyLen  = 1 + 8
	inodeKeyLen  = epochKeyLen + 16
	memTableSize = 8 << 20
	// compactAfter bytes deleted the store is compacted, so that they go from the disk.
	compactAfter = 16 << 20
	// deleteStep is the number of keys that are deleted in one transaction.
	deleteStep = 4000
	fillerSize = 512 << 10
	// flushPatience is how long compact waits for a memtable to be written out.
	flushPatience = time.Second
)

// openStore opens Badger with little memory: a node may have several volumes. room gives an error where less than
// so many bytes are free.
func openStore(dir string, log *slog.Logger, room func(bytes uint64) error) (*store, error) {
	o := badger.DefaultOptions(dir).
		WithLogger(badgerLog{log}).
		WithMemTableSize(memTableSize).
		WithNumMemtables(2).
		WithNumLevelZeroTables(2).
		WithValueThreshold(1 << 20).
		WithValueLogFileSize(16 << 20).
		WithCompression(options.None).
		WithChecksumVerificationMode(options.OnBlockRead).
		WithBlockCacheSize(0).
		WithIndexCacheSize(0).
		WithNumCompactors(2).
		WithNumGoroutines(1).
		WithDetectConflicts(false).
		WithMetricsEnabled(false).
		WithSyncWrites(false)
	for _, kind := range []string{".mem", ".vlog"} {
		if err := removeUnbegun(dir, kind); err != nil {
			return nil, fmt.Errorf("%s: %w", dir, err)
		}
	}
	db, err := badger.Open(o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return &store{db: db, dir: dir, room: room}, nil
}

// removeUnbegun removes the newest file of a kind if it is empty: the process died after it had made the file and
// before it gave it a size. Badger takes one that it finds for one that it has just made, and fails.
func removeUnbegun(dir, kind string) error {
	names, err := filepath.Glob(filepath.Join(dir, "*"+kind)) // sorted, and numbered in equally many digits
	if err != nil || len(names) == 0 {
		return err
	}
	newest := names[len(names)-1]
	info, err := os.Stat(newest)
	if err != nil || info.Size() > 0 {
		return err
	}
	return os.Remove(newest)
}

func (s *store) close() error { return s.db.Close() }

// badgerLog hands Badger's messages on: its progress reports matter only to someone who debugs.
type badgerLog struct{ log *slog.Logger }

func (b badgerLog) Errorf(f string, a ...any)   { b.log.Error(badgerMessage(f, a)) }
func (b badgerLog) Warningf(f string, a ...any) { b.log.Warn(badgerMessage(f, a)) }
func (b badgerLog) Infof(f string, a ...any)    { b.log.Debug(badgerMessage(f, a)) }
func (b badgerLog) Debugf(f string, a ...any)   { b.log.Debug(badgerMessage(f, a)) }

func badgerMessage(format string, args []any) string {
	return "badger: " + strings.TrimSpace(fmt.Sprintf(format, args...))
}

func epochKey(kind byte, n Epoch) []byte {
	return binary.BigEndian.AppendUint64([]byte{kind}, uint64(n))
}

func putIdent(b []byte, id Ident) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, id.Ino), id.Gen)
}

func takeIdent(b []byte) Ident {
	return Ident{Ino: binary.BigEndian.Uint64(b), Gen: binary.BigEndian.Uint64(b[8:])}
}

func inodeKey(kind byte, n Epoch, id Ident) []byte { return putIdent(epochKey(kind, n), id) }

func nameEntryKey(n Epoch, key nameKey) []byte {
	return append(inodeKey(keyName, n, key.dir), key.name...)
}

// get calls f with the value of a key and reports whether there is one. The value is valid during f.
func (s *store) get(key []byte, f func(value []byte) error) (bool, error) {
	if err := failpoint.Call("store get"); err != nil {
		return false, storeError(err)
	}
	err := s.db.View(func(txn *badger.Txn) error {
		item, err := txn.Get(key)
		if err != nil {
			return err
		}
		return item.Value(f)
	})
	if errors.Is(err, badger.ErrKeyNotFound) {
		return false, nil
	}
	return err == nil, err
}

// inode reads an inode's change in an epoch; nil when there is none.
func (s *store) inode(n Epoch, id Ident) (*inodeEntry, error) {
	var e *inodeEntry
	_, err := s.get(inodeKey(keyInode, n, id), func(v []byte) (err error) {
		e, err = decodeInode(v)
		return err
	})
	return e, err
}

// name reads what a name stood for before an epoch.
func (s *store) name(n Epoch, key nameKey) (was Ident, ok bool, err error) {
	ok, err = s.get(nameEntryKey(n, key), func(v []byte) (err error) {
		was, err = decodeWas(v)
		return err
	})
	return was, ok, err
}

// where reads where an inode was when it was touched in an epoch.
func (s *store) where(n Epoch, id Ident) (at nameKey, ok bool, err error) {
	ok, err = s.get(inodeKey(keyWhere, n, id), func(v []byte) error {
		if len(v) <= 16 {
			return fmt.Errorf("inode's place: %w", errRecord)
		}
		at = nameKey{takeIdent(v), string(v[16:])}
		return nil
	})
	return at, ok, err
}

// scan calls f for the items whose keys have a prefix, from the key `from` on when that is not nil, until f
// returns false. An item is valid during the call.
func (s *store) scan(prefix, from []byte, f func(*badger.Item) (bool, error)) error {
	if err := failpoint.Call("store scan"); err != nil {
		return storeError(err)
	}
	return s.db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: prefix})
		defer it.Close()
		if from == nil {
			from = prefix
		}
		for it.Seek(from); it.Valid(); it.Next() {
			if more, err := f(it.Item()); err != nil || !more {
				return err
			}
		}
		return nil
	})
}

// update writes in one transaction: after a crash all of it is there or nothing.
func (s *store) update(f func(txn *badger.Txn) error) error {
	err := failpoint.Call("store update")
	if err == nil {
		err = s.room(updateReserve)
	}
	if err == nil {
		err = s.db.Update(f)
	}
	s.dirty.Store(true)
	return storeError(err)
}

// batch writes without a bound on the amount; a crash may leave a part of it.
func (s *store) batch(f func(b *badger.WriteBatch) error) error {
	if err := s.room(updateReserve); err != nil {
		return err
	}
	b := s.db.NewWriteBatch()
	b.SetMaxPendingTxns(2)
	defer b.Cancel()
	err := f(b)
	if err == nil {
		err = failpoint.Call("store flush")
	}
	if err == nil {
		err = b.Flush()
	}
	s.dirty.Store(true)
	return storeError(err)
}

func storeError(err error) error {
	if err != nil {
		return fmt.Errorf("journal store: %w", err)
	}
	return nil
}

// deletePrefix deletes all keys with the prefix and returns how many bytes they took, roughly. It goes in
// steps, each with transactions of its own: while one is open, Badger keeps what was deleted after it began.
func (s *store) deletePrefix(prefix []byte) (deleted int64, err error) {
	var keys [][]byte
	for from := prefix; ; from = keys[len(keys)-1] {
		keys = keys[:0]
		err := s.scan(prefix, from, func(item *badger.Item) (bool, error) {
			keys = append(keys, item.KeyCopy(nil))
			deleted += item.EstimatedSize()
			return len(keys) < deleteStep, nil
		})
		if err != nil || len(keys) == 0 {
			return deleted, storeError(err)
		}
		err = s.update(func(txn *badger.Txn) error {
			for _, key := range keys {
				if err := txn.Delete(key); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return deleted, err
		}
	}
}

// compact takes deleted keys off the disk. Deletions count only once they have left the memtable, which
// Badger cannot be asked to write out, so a filler pushes them out first.
func (s *store) compact() error {
	filler := make([]byte, fillerSize)
	for range memTableSize/fillerSize + 1 {
		if err := s.update(func(txn *badger.Txn) error { return txn.Set([]byte{keyFiller}, filler) }); err != nil {
			return err
		}
	}
	if err := s.update(func(txn *badger.Txn) error { return txn.Delete([]byte{keyFiller}) }); err != nil {
		return err
	}
	for deadline := time.Now().Add(flushPatience); time.Now().Before(deadline); time.Sleep(flushPatience / 100) {
		if files, err := s.memtables(); err != nil || len(files) < 2 {
			break
		}
	}
	return storeError(s.db.Flatten(1))
}

// memtables lists the files of the memtables: of the one in use and of those that are being written out.
func (s *store) memtables() ([]string, error) { return filepath.Glob(filepath.Join(s.dir, "*.mem")) }

// sync makes all that was written survive a power cut. DB.Sync covers only the memtable in use: one
// that was rotated out and is not flushed yet has its own file, not synced by anyone. So all of them
// are synced here, until no new one has appeared meanwhile. Tables and the manifest are synced by Badger
// when it makes them.
func (s *store) sync() error {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	if !s.dirty.Swap(false) {
		return nil
	}
	err := s.syncFiles()
	if err != nil {
		s.dirty.Store(true)
		return fmt.Errorf("journal store: %w", err)
	}
	return nil
}

func (s *store) syncFiles() error {
	synced := map[string]bool{}
	for {
		files, err := s.memtables()
		if err != nil {
			return err
		}
		fresh := 0
		for _, name := range append(files, s.dir) {
			if synced[name] {
				continue
			}
			if err := syncPath(name); err != nil {
				return err
			}
			synced[name] = true
			fresh++
		}
		if fresh == 0 {
			return nil
		}
	}
}

// syncAll makes the files of a store that is closed durable: Badger cuts some of them to their length last.
func (s *store) syncAll() error {
	files, err := filepath.Glob(filepath.Join(s.dir, "*"))
	for _, name := range append(files, s.dir) {
		err = errors.Join(err, syncPath(name))
	}
	return err
}

// size is the number of bytes on the disk.
func (s *store) size() int64 { return diskUsage(s.dir) }

// maxInodeValue holds as many extents as an inode has in an epoch by default, however far apart they lie: so
// what is kept of the content never has less exact extents in the store than it had in memory.
const maxInodeValue = 896 << 10

// encodeInode gives the store's value for an inode's change:
//
//	| what: 1 byte | then for each extent, as unsigned varints: gap since the last one's end | length |
//
// Extents that would be more than the store takes in one value are made coarser.
func encodeInode(e *inodeEntry) []byte {
	x := e.extents.flat()
	for {
		b := make([]byte, 1, 1+6*len(x))
		b[0] = byte(e.what)
		end := int64(0)
		for _, x := range x {
			b = binary.AppendUvarint(b, uint64(x.Off-end))
			b = binary.AppendUvarint(b, uint64(x.Len()))
			end = x.End
		}
		if len(b) <= maxInodeValue {
			return b
		}
		x = x.Coarsen(len(x) / 2)
	}
}

func decodeInode(v []byte) (*inodeEntry, error) {
	d := decoder{rest: v}
	what := What(d.byte())
	d.check(what != 0 && what&^allWhat == 0)
	var extents Extents
	end := int64(0)
	for len(d.rest) > 0 {
		x := d.extent(end)
		d.check(x.Len() > 0 && (x.Off > end || len(extents) == 0))
		extents, end = append(extents, x), x.End
	}
	if err := d.end(); err != nil {
		return nil, fmt.Errorf("inode's change: %w", err)
	}
	return &inodeEntry{what: what, extents: setOf(extents)}, nil
}

func decodeWas(v []byte) (Ident, error) {
	if len(v) != 16 {
		return Ident{}, fmt.Errorf("name's change: %w", errRecord)
	}
	return takeIdent(v), nil
}

// takeName takes a name's key apart.
func takeName(key []byte) nameKey {
	return nameKey{takeIdent(key[epochKeyLen:]), string(key[inodeKeyLen:])}
}
