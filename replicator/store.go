package replicator

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// record is what is kept of a relationship in its file. What changes with every transfer stands in the
// volumes' journals instead.
type record struct {
	ID            string    `json:"id"`
	Role          Role      `json:"role"`
	State         State     `json:"state"`
	EndReason     string    `json:"end_reason,omitempty"`
	Enabled       bool      `json:"enabled"`
	Source        End       `json:"source"`
	Target        End       `json:"target"`
	SourceID      string    `json:"source_id"`           // the source volume's own id
	TargetID      string    `json:"target_id,omitempty"` // the target volume's, when known
	AllowNonEmpty bool      `json:"allow_non_empty,omitempty"`
	Created       time.Time `json:"created"`
	// Verify, on the source, is the verification that goes on for ever; VerifiedEpoch and VerifiedTime are of the
	// newest recovery point that was found equal on both sides.
	Verify        VerifyRequest `json:"verify,omitzero"`
	VerifiedEpoch uint64        `json:"verified_epoch,omitempty"`
	VerifiedTime  time.Time     `json:"verified_time,omitzero"`
}

// tombstone remembers a relationship that was ended here, for a peer that comes back.
type tombstone struct {
	ID          string `json:"id"`
	Fingerprint string `json:"fingerprint"` // the peer's
	Reason      string `json:"reason"`
}

// maxTombstones bounds how many are kept: the newest.
const maxTombstones = 1000

const (
	recordSuffix   = ".json"
	tombstonesFile = "ended.list"
	unfinished     = ".new-"
)

// store keeps records in a directory, one file each, readable only by the owner. A file is either as it
// was or as it is to be, whenever the power is cut. It is not for concurrent use of the same record.
type store struct{ dir string }

// load reads all records and tombstones. A file that cannot be read is an error: a relationship that is
// forgotten would leave a target writable.
func (s store) load() ([]record, []tombstone, error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, nil, err
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, nil, err
	}
	var records []record
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), unfinished) { // of a process that died
			if err := os.Remove(filepath.Join(s.dir, e.Name())); err != nil {
				return nil, nil, err
			}
		}
		if id, ok := strings.CutSuffix(e.Name(), recordSuffix); ok {
			var r record
			if err := s.read(e.Name(), &r); err != nil {
				return nil, nil, err
			}
			if r.ID != id || !validID(id) {
				return nil, nil, fmt.Errorf("%s holds a relationship of another name", filepath.Join(s.dir, e.Name()))
			}
			records = append(records, r)
		}
	}
	var stones []tombstone
	if err := s.read(tombstonesFile, &stones); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	return records, stones, nil
}

func (s store) read(name string, to any) error {
	b, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, to); err != nil {
		return fmt.Errorf("%s: %w", filepath.Join(s.dir, name), err)
	}
	return nil
}

func (s store) save(r record) error { return s.write(r.ID+recordSuffix, r) }

func (s store) saveTombstones(t []tombstone) error { return s.write(tombstonesFile, t) }

func (s store) remove(id string) error {
	err := os.Remove(filepath.Join(s.dir, id+recordSuffix))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return s.sync()
}

// write replaces a file: the new one is durable before it takes the name.
func (s store) write(name string, what any) error {
	b, err := json.MarshalIndent(what, "", "\t")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(s.dir, unfinished+"*")
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(s.dir, name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return s.sync()
}

// sync makes the names in the directory durable.
func (s store) sync() error {
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// idLength is that of a relationship's id, in hexadecimal digits.
const idLength = 16

func validID(id string) bool {
	if len(id) != idLength {
		return false
	}
	for _, c := range id {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
