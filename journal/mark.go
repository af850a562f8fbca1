package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cespare/xxhash/v2"
)

// A mark is the journal's small file `mark`: its format, its identity, and whether it was closed cleanly.
// It is text, one "key value" a line, and replaced as a whole:
//
//	tandem-journal 3
//	id 0f1e2d3c4b5a69788796a5b4c3d2e1f0
//	boot 7f0c1f3e-3f0b-4c58-9d0e-6d1c35f3a2b1
//	power lost
//	store 8b1c2d3e4f506172
//	closed cleanly
//	sum 0123456789abcdef
//
// "power lost" is there from the first opening after a power cut until the volume is reconciled, the two lines
// after it only while the journal is closed. The last is xxh64 of all before it.
type mark struct {
	Version string
	ID      string
	Boot    string // the boot in which the journal was last opened
	Lost    bool   // a power cut is not reconciled
	Clean   bool
	Store   string // when Clean: what storeDigest gave at the close
}

const (
	markFile    = "mark"
	markFormat  = "tandem-journal"
	markVersion = "3"
	// secondVersion had no activity list.
	secondVersion = "2"
	// firstVersion did not keep content: what it held is let go.
	firstVersion = "1"
)

// readMark reads the mark; the zero mark when the journal is new.
func readMark(dir string) (mark, error) {
	path := filepath.Join(dir, markFile)
	text, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return mark{}, nil
	}
	if err != nil {
		return mark{}, err
	}
	var m mark
	first := true
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if first && key != markFormat {
			break
		}
		switch key {
		case markFormat:
			if value != markVersion && value != secondVersion && value != firstVersion {
				return mark{}, fmt.Errorf("%w: %s has version %q, this program knows %s to %s", ErrVersion, dir, value, firstVersion, markVersion)
			}
			m.Version = value
		case "id":
			m.ID = value
		case "boot":
			m.Boot = value
		case "power":
			m.Lost = value == "lost"
		case "store":
			m.Store = value
		case "closed":
			m.Clean = value == "cleanly"
		}
		first = false
	}
	body, summed := cutSum(string(text))
	if m.ID == "" || !summed && (m.Version == markVersion || body != string(text)) {
		return mark{}, classify(fmt.Errorf("%s is not a journal's mark: %w", path, errDamaged))
	}
	return m, nil
}

const sumKey = "sum "

// sumLine is a mark's last line.
func sumLine(body string) string { return fmt.Sprintf("%s%016x\n", sumKey, xxhash.Sum64String(body)) }

// cutSum gives a mark's text without its last line, where it has one, and whether that is right.
func cutSum(text string) (body string, ok bool) {
	at := strings.LastIndex(text, sumKey)
	if at < 0 {
		return text, false
	}
	return text[:at], text[at:] == sumLine(text[:at])
}

// writeMark replaces the mark durably.
func writeMark(dir string, m mark) error {
	text := fmt.Sprintf("%s %s\nid %s\nboot %s\n", markFormat, m.Version, m.ID, m.Boot)
	if m.Lost {
		text += "power lost\n"
	}
	if m.Clean {
		text += fmt.Sprintf("store %s\nclosed cleanly\n", m.Store)
	}
	text += sumLine(text)
	path := filepath.Join(dir, markFile)
	if err := writeSynced(path+".new", text); err != nil {
		return err
	}
	if err := rename(path+".new", path); err != nil {
		return err
	}
	return syncPath(dir)
}

func writeSynced(path, text string) error {
	f, err := openFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	if err = writeAt(f, []byte(text), 0); err == nil {
		err = fsync(f)
	}
	return errors.Join(err, f.Close())
}
