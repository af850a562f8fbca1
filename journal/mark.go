package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// A mark is the journal's small file `mark`: its format, its identity, and whether it was closed cleanly.
// It is text, one "key value" a line, and replaced as a whole:
//
//	tandem-journal 3
//	id 0f1e2d3c4b5a69788796a5b4c3d2e1f0
//	boot 7f0c1f3e-3f0b-4c58-9d0e-6d1c35f3a2b1
//	power lost
//	closed cleanly
//
// "power lost" is there from the first opening after a power cut until the volume is reconciled, the last line
// only while the journal is closed.
type mark struct {
	Version string
	ID      string
	Boot    string // the boot in which the journal was last opened
	Lost    bool   // a power cut is not reconciled
	Clean   bool
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
		case "closed":
			m.Clean = value == "cleanly"
		}
		first = false
	}
	if m.ID == "" {
		return mark{}, classify(fmt.Errorf("%s is not a journal's mark", path))
	}
	return m, nil
}

// writeMark replaces the mark durably.
func writeMark(dir string, m mark) error {
	text := fmt.Sprintf("%s %s\nid %s\nboot %s\n", markFormat, m.Version, m.ID, m.Boot)
	if m.Lost {
		text += "power lost\n"
	}
	if m.Clean {
		text += "closed cleanly\n"
	}
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
