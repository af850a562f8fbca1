package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// A record is one thing that the journal was told. The payload of a record in the intent log, all
// integers as unsigned varints unless said otherwise:
//
//	inode    | 1 | epoch | ino | gen | what: 1 byte | off | end - off | image, to the end (may be empty) |
//	name     | 2 | epoch | dir ino | dir gen | was ino | was gen | name, to the end |
//	removed  | 3 | epoch | ino | gen |
//	sealed   | 4 | epoch | held: 1 byte |
//	held     | 5 | epoch |
//	released | 6 | epoch |
//	forgot   | 7 | epoch |
//	where    | 8 | epoch | ino | gen | dir ino | dir gen | name, to the end |
//	switched | 9 | epoch, always 0 |
//
// docs/format-journal.md has a worked example.
type record struct {
	kind   recordKind
	epoch  Epoch
	ident  Ident // the inode, or the directory that has the name
	what   What
	extent Extent
	image  []byte // an encoded Image; empty: none
	was    Ident  // what the name stood for; of a where record, the directory
	name   string
	hold   bool
}

type recordKind byte

const (
	recordInode    recordKind = 1
	recordName     recordKind = 2
	recordRemoved  recordKind = 3
	recordSealed   recordKind = 4
	recordHeld     recordKind = 5
	recordReleased recordKind = 6
	recordForgot   recordKind = 7
	recordWhere    recordKind = 8
	recordSwitched recordKind = 9 // the last of a log: the next generation has begun
)

const (
	maxName  = math.MaxUint16 // bytes; any filesystem's names are shorter
	maxImage = 1 << 20        // bytes of an encoded Image; a store's value must fit into one transaction
	allWhat  = Created | Meta | Data | fate
)

var errRecord = errors.New("journal: malformed record")

// bound is the most bytes that the record takes when encoded.
func (r *record) bound() int {
	return 2 + 7*binary.MaxVarintLen64 + len(r.image) + len(r.name)
}

func appendIdent(b []byte, id Ident) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(b, id.Ino), id.Gen)
}

// appendRecord appends the payload of r to b.
func appendRecord(b []byte, r *record) []byte {
	b = append(b, byte(r.kind))
	b = binary.AppendUvarint(b, uint64(r.epoch))
	switch r.kind {
	case recordInode:
		b = append(appendIdent(b, r.ident), byte(r.what))
		b = binary.AppendUvarint(b, uint64(r.extent.Off))
		b = binary.AppendUvarint(b, uint64(r.extent.Len()))
		b = append(b, r.image...)
	case recordName, recordWhere:
		b = appendIdent(appendIdent(b, r.ident), r.was)
		b = append(b, r.name...)
	case recordRemoved:
		b = appendIdent(b, r.ident)
	case recordSealed:
		b = append(b, flag(r.hold))
	}
	return b
}

func flag(on bool) byte {
	if on {
		return 1
	}
	return 0
}

// decodeRecord reads what appendRecord wrote. The result shares p's memory.
func decodeRecord(p []byte) (record, error) {
	d := decoder{rest: p}
	r := record{kind: recordKind(d.byte()), epoch: Epoch(d.uvarint())}
	switch r.kind {
	case recordInode:
		r.ident, r.what = d.ident(), What(d.byte())
		r.extent = d.extent(0)
		r.image = d.take()
		d.check(r.what != 0 && r.what&^allWhat == 0 && len(r.image) <= maxImage)
	case recordName, recordWhere:
		r.ident, r.was = d.ident(), d.ident()
		r.name = string(d.take())
		d.check(len(r.name) > 0 && len(r.name) <= maxName)
	case recordRemoved:
		r.ident = d.ident()
	case recordSealed:
		hold := d.byte()
		r.hold = hold == 1
		d.check(hold <= 1)
	case recordHeld, recordReleased, recordForgot, recordSwitched:
	default:
		return record{}, fmt.Errorf("%w: kind %d", errRecord, r.kind)
	}
	if err := d.end(); err != nil {
		return record{}, err
	}
	return r, nil
}

// decoder reads integers and bytes from the front of a slice. After the first failure it gives zeros,
// and end reports it. Nothing that it reads makes it allocate.
type decoder struct {
	rest []byte
	bad  bool
}

func (d *decoder) check(ok bool) {
	if !ok {
		d.bad, d.rest = true, nil
	}
}

// end is nil when all was well and all was read.
func (d *decoder) end() error {
	if d.bad || len(d.rest) > 0 {
		return errRecord
	}
	return nil
}

func (d *decoder) byte() byte {
	if len(d.rest) == 0 {
		d.check(false)
		return 0
	}
	b := d.rest[0]
	d.rest = d.rest[1:]
	return b
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.rest)
	if n <= 0 {
		d.check(false)
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

// int is a uvarint that fits into an int64.
func (d *decoder) int() int64 {
	v := d.uvarint()
	d.check(v <= math.MaxInt64)
	if d.bad {
		return 0
	}
	return int64(v)
}

func (d *decoder) ident() Ident { return Ident{Ino: d.uvarint(), Gen: d.uvarint()} }

// extent reads an extent that lies from base on: its distance and its length.
func (d *decoder) extent(base int64) Extent {
	gap, length := d.int(), d.int()
	d.check(gap <= math.MaxInt64-base && length <= math.MaxInt64-base-gap)
	if d.bad {
		return Extent{}
	}
	return Extent{Off: base + gap, End: base + gap + length}
}

// bytes reads a length and that many bytes.
func (d *decoder) bytes() []byte {
	n := d.uvarint()
	d.check(n <= uint64(len(d.rest)))
	if d.bad {
		return nil
	}
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b
}

// take reads all that is left.
func (d *decoder) take() []byte {
	b := d.rest
	d.rest = nil
	return b
}
