package wire

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"tandemfs/journal"
)

// Decoder takes a frame's records apart. The zero value has none.
type Decoder struct {
	b   []byte
	bad bool // a read went past the end
}

// Reset starts over with a frame's content, which must stay as it is while its records are used.
func (d *Decoder) Reset(frame []byte) { *d = Decoder{b: frame} }

// Next decodes the next record into r, reusing what r holds; false at the end.
func (d *Decoder) Next(r *Record) (bool, error) {
	if len(d.b) == 0 {
		return false, nil
	}
	*r = Record{Kind: Kind(d.u8()), Xattrs: r.Xattrs[:0]}
	switch r.Kind {
	case KindInode:
		d.inode(r)
	case KindData:
		r.Off = int64(d.uvarint())
		r.Data = d.take(uint64(d.u32()))
	case KindHole:
		r.Off, r.Len = int64(d.uvarint()), int64(d.uvarint())
	case KindAttach, KindKeep:
		r.Dir, r.Name, r.Ident = d.ident(), d.bytes(MaxName), d.ident()
	case KindDetach:
		r.Dir, r.Name = d.ident(), d.bytes(MaxName)
	case KindDigest:
		r.Off, r.Len = int64(d.uvarint()), int64(d.uvarint())
		r.Data = d.take(sha256.Size)
	}
	if d.bad {
		return false, fmt.Errorf("%w: cut short, or a length out of bounds", ErrRecord)
	}
	return true, r.check()
}

func (d *Decoder) inode(r *Record) {
	r.Flags = Flags(d.u8())
	r.Ident = d.ident()
	a := &r.Attr
	a.Mode, a.UID, a.GID = d.uvarint32(), d.uvarint32(), d.uvarint32()
	a.Rdev, a.Size = d.uvarint(), int64(d.uvarint())
	a.Atime, a.Mtime = d.time(), d.time()
	n := d.uvarint()
	if n > mostXattrs {
		d.bad = true
	}
	for ; n > 0 && !d.bad; n-- {
		name := string(d.bytes(MaxName))
		r.Xattrs = append(r.Xattrs, journal.Xattr{Name: name, Value: d.bytes(MaxXattrValue)})
	}
	if a.Mode&typeMask == typeSymlink && r.Flags&FlagNew != 0 {
		r.Symlink = d.bytes(MaxSymlink)
	}
	if r.Flags&FlagPlaced != 0 {
		r.Dir, r.Name = d.ident(), d.bytes(MaxName)
	}
}

// take gives the next n bytes, and remembers when there are not that many.
func (d *Decoder) take(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.b, d.bad = nil, true
		return nil
	}
	out := d.b[:n:n]
	d.b = d.b[n:]
	return out
}

func (d *Decoder) u8() uint8 {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *Decoder) u32() uint32 {
	if b := d.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (d *Decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.b, d.bad = nil, true
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *Decoder) uvarint32() uint32 {
	v := d.uvarint()
	if v > 1<<32-1 {
		d.bad = true
	}
	return uint32(v)
}

func (d *Decoder) bytes(most uint64) []byte {
	n := d.uvarint()
	if n > most {
		d.bad = true
		return nil
	}
	return d.take(n)
}

func (d *Decoder) ident() journal.Ident {
	return journal.Ident{Ino: d.uvarint(), Gen: d.uvarint()}
}

func (d *Decoder) time() journal.Time {
	sec, n := binary.Varint(d.b)
	if n <= 0 {
		d.b, d.bad = nil, true
		return journal.Time{}
	}
	d.b = d.b[n:]
	return journal.Time{Sec: sec, Nsec: d.uvarint32()}
}
