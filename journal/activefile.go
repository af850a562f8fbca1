package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cespare/xxhash/v2"
)

// The file `active` holds the activity list (see activity.go) in two slots of fixed size, their blocks written
// once, so that one more version of the list changes no metadata. Each version goes to the slot that the one
// before is not in. All integers are little endian:
//
//	  0          8          16         24         32      40      48      56      64
//	| "TNDMACT1" | checksum | sequence | reserved | since | flags | count | zeros | count times: ino 8, gen 8 |
//
// The checksum is xxh64 of what follows it, up to the end of the last identity. A slot that does not match, or
// is not the other's neighbour in sequence, makes the file say "everything": the write that the power cut tore
// had not returned, but nobody can tell it from one that had and was damaged later.
const (
	activeName    = "active"
	activeMagic   = "TNDMACT1"
	activeHeader  = 64
	maxActive     = 1024 // identities in a slot
	activeSlot    = (activeHeader + maxActive*identBytes + activePage - 1) / activePage * activePage
	activePage    = 4096 // what is written is padded to whole pages, so that nothing need be read for it
	identBytes    = 16
	activeAllFlag = 1
	activeUnsure  = 1 // in the place of since
)

// An activeList is one version of the list, as the file holds it.
type activeList struct {
	sequence uint64
	reserved Epoch     // no seal from this one on was ever given
	since    time.Time // what was changed before is on the disk; zero: nothing is known to be
	unsure   bool      // since will not be known before the journal is opened in another boot; implies all
	all      bool
	inodes   []Ident // maxActive at most
}

func (l *activeList) encode() []byte {
	size := activeHeader + len(l.inodes)*identBytes
	b := make([]byte, (size+activePage-1)/activePage*activePage)
	copy(b, activeMagic)
	binary.LittleEndian.PutUint64(b[16:], l.sequence)
	binary.LittleEndian.PutUint64(b[24:], uint64(l.reserved))
	switch {
	case l.unsure:
		binary.LittleEndian.PutUint64(b[32:], activeUnsure)
	case !l.since.IsZero():
		binary.LittleEndian.PutUint64(b[32:], uint64(l.since.UnixNano()))
	}
	if l.all {
		binary.LittleEndian.PutUint64(b[40:], activeAllFlag)
	}
	binary.LittleEndian.PutUint64(b[48:], uint64(len(l.inodes)))
	for i, id := range l.inodes {
		binary.LittleEndian.PutUint64(b[activeHeader+i*identBytes:], id.Ino)
		binary.LittleEndian.PutUint64(b[activeHeader+i*identBytes+8:], id.Gen)
	}
	binary.LittleEndian.PutUint64(b[8:], xxhash.Sum64(b[16:size]))
	return b
}

// decodeActive reads a slot; false when it is none.
func decodeActive(b []byte) (l activeList, ok bool) {
	if len(b) < activeHeader || string(b[:8]) != activeMagic {
		return l, false
	}
	count := binary.LittleEndian.Uint64(b[48:])
	if count > uint64(len(b)-activeHeader)/identBytes {
		return l, false
	}
	size := activeHeader + int(count)*identBytes
	if binary.LittleEndian.Uint64(b[8:]) != xxhash.Sum64(b[16:size]) {
		return l, false
	}
	l.sequence = binary.LittleEndian.Uint64(b[16:])
	l.reserved = Epoch(binary.LittleEndian.Uint64(b[24:]))
	switch nanos := int64(binary.LittleEndian.Uint64(b[32:])); nanos {
	case 0:
	case activeUnsure:
		l.unsure = true
	default:
		l.since = time.Unix(0, nanos)
	}
	l.all = binary.LittleEndian.Uint64(b[40:])&activeAllFlag != 0
	for at := b[activeHeader:size]; len(at) > 0; at = at[identBytes:] {
		l.inodes = append(l.inodes, Ident{binary.LittleEndian.Uint64(at), binary.LittleEndian.Uint64(at[8:])})
	}
	return l, true
}

// decodeActiveFile gives the newest version of the list that a file holds. Where it cannot be relied on it says
// "everything", since ever, and skips what a lost version may have reserved.
func decodeActiveFile(b []byte) activeList {
	newest, sound := activeList{}, len(b) == 2*activeSlot
	for at := 0; at < 2 && len(b) >= (at+1)*activeSlot; at++ {
		l, ok := decodeActive(b[at*activeSlot : (at+1)*activeSlot])
		sound = sound && ok && l.sequence%2 == uint64(at) && (at == 0 || l.sequence == newest.sequence+1 || l.sequence+1 == newest.sequence)
		if ok && l.sequence >= newest.sequence {
			l.reserved = max(l.reserved, newest.reserved)
			newest = l
		}
	}
	if !sound {
		newest.all, newest.since = true, time.Time{}
		if newest.reserved > 0 {
			newest.reserved += epochStep
		}
	}
	return newest
}

// openActive opens the file and reads it. One that is missing, or not sound, is laid out anew by the next writes.
func openActive(dir string) (*os.File, activeList, error) {
	f, err := openFile(filepath.Join(dir, activeName), os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, activeList{}, err
	}
	b := make([]byte, 2*activeSlot)
	n, err := readFull(f, b)
	if err == nil && n < len(b) {
		keepInPlace(f)
		err = errors.Join(fillWithZeros(f, int64(len(b))), fsync(f))
	}
	if err != nil {
		return nil, activeList{}, errors.Join(fmt.Errorf("activity list: %w", err), f.Close())
	}
	return f, decodeActiveFile(b[:n]), nil
}

// readFull reads a file from its start, as far as it goes.
func readFull(f *os.File, b []byte) (n int, err error) {
	size, err := fileSize(f)
	if err != nil {
		return 0, err
	}
	n = int(min(int64(len(b)), size))
	return n, readAt(f, b[:n])
}
