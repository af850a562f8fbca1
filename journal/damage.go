package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"

	"github.com/cespare/xxhash/v2"
	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/table"
)

// A journal whose files were damaged must not be taken for one in which less was recorded. Badger leaves out what
// it cannot read in several places: a table with a wrong checksum, a table that its manifest does not name any
// more, the end of a manifest. So its files are looked at before it opens them.

// errDamaged is what classify makes ErrCorrupt of.
var errDamaged = errors.New("damaged")

// sound checks the files of the store, as the journal's last close, or its process's death, left it.
func (m *mark) sound(dir string, sameBoot bool) error {
	store := filepath.Join(dir, storeName)
	if m.Store != "" {
		digest, err := storeDigest(store)
		if err == nil && digest != m.Store || errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%s is not what it was when the journal was closed: %w", store, errDamaged)
		}
		return err
	}
	tables, err := readManifest(store, sameBoot)
	if err != nil {
		return err
	}
	for id := range tables {
		name := table.NewFilename(id, store)
		if err := checkTable(name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// readManifest gives the tables that the store's manifest names; others are what Badger had not finished. The manifest
// must have been read to its end, unless the process died, or power was lost, in the middle of the last write to it:
// a write that is killed ends with a page.
func readManifest(store string, sameBoot bool) (map[uint64]badger.TableManifest, error) {
	name := filepath.Join(store, badger.ManifestFilename)
	f, err := openFile(name, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		tables, err := filepath.Glob(filepath.Join(store, "*.sst"))
		if len(tables) > 0 {
			err = fmt.Errorf("%s is missing: %w", name, errDamaged)
		}
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := fileSize(f)
	if err != nil {
		return nil, err
	}
	m, end, err := badger.ReplayManifestFile(f, 0, badger.Options{})
	if err == nil && end < size && sameBoot && size%pageSize != 0 {
		err = fmt.Errorf("it is cut short: %w", errDamaged)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return m.Tables, nil
}

// pageSize is that of the page cache.
const pageSize = 4096

// storeDigest is xxh64 of the names, sizes and content of all files in the store, in hexadecimal.
func storeDigest(dir string) (string, error) {
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		return "", err
	}
	h := xxhash.New()
	for _, e := range entries {
		content, err := readFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %d\n", e.Name(), len(content))
		h.Write(content)
	}
	return fmt.Sprintf("%016x", h.Sum64()), nil
}

// checkTable checks one of Badger's tables against its checksums. Badger itself does so in goroutines of its own,
// where it panics over some of what it may find.
func checkTable(name string) (err error) {
	content, err := readFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: it is missing", errDamaged)
	}
	if err != nil {
		return err
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: it cannot be read as a table", errDamaged)
		}
	}()
	t, err := table.OpenInMemoryTable(content, 0, &table.Options{ChkMode: options.OnBlockRead})
	if err != nil {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	if err := t.VerifyChecksum(); err != nil {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	return nil
}

// checkLogs checks that the logs go on where the store ends, and that none ends before its last record. After a
// power cut both may be so, and the journal is not trusted.
func (j *Journal) checkLogs(older, newer *intentLog) (err error) {
	defer catchFault(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	absorbed := j.state.absorbed
	lost := newer.generation > absorbed+2 ||
		newer.generation == absorbed+2 && older.generation != absorbed+1 ||
		newer.switched()
	for _, l := range []*intentLog{older, newer} {
		candidates := []uint64{l.generation}
		if l.generation == 0 {
			candidates = []uint64{absorbed + 1, absorbed + 2}
		}
		for _, generation := range candidates {
			if generation > absorbed {
				lost = lost || l.hidden(generation)
			}
		}
	}
	if lost {
		return fmt.Errorf("records are missing from the intent logs: %w", errDamaged)
	}
	return nil
}

// Bounds of the search for hidden records: how long one may be, and how much is looked at, in bytes.
const (
	hiddenRecord = 64 << 10
	hiddenSearch = 256 << 20
)

// last goes to the log's end and gives its last record's payload; nil where there is none.
func (l *intentLog) last() (payload []byte) {
	l.end = logHeader
	for next := l.recordAt(l.end); next != nil; next = l.recordAt(l.end) {
		l.end += recordSize(len(next))
		payload = next
	}
	return payload
}

// switched reports whether the next generation was begun, in the other log.
func (l *intentLog) switched() bool {
	probe := *l
	payload := probe.last()
	return len(payload) > 0 && recordKind(payload[0]) == recordSwitched
}

// unswitch takes the record of that away, from a log that was replayed.
func (l *intentLog) unswitch() (err error) {
	defer catchFault(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	if l.switched() {
		l.end -= recordSize(len(appendRecord(nil, &record{kind: recordSwitched})))
	}
	return nil
}

// hidden reports whether a record of a generation stands behind the place where the log ends.
func (l *intentLog) hidden(generation uint64) bool {
	probe := &intentLog{data: l.data, generation: generation, end: logHeader}
	if l.generation != 0 {
		probe.last()
	}
	looked := 0
	for at := probe.end; at+recordHeader <= len(l.data) && looked < hiddenSearch; at += 8 {
		length := binary.LittleEndian.Uint64(l.data[at+8:])
		if length == 0 || length > hiddenRecord {
			continue
		}
		looked += int(length)
		if probe.recordAt(at) != nil {
			return true
		}
	}
	return false
}

// checkPresent refuses a directory that has a journal's other files and no mark.
func checkPresent(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == storeName || e.Name() == logFiles[0] }) {
		return fmt.Errorf("%s is missing: %w", filepath.Join(dir, markFile), errDamaged)
	}
	return nil
}
