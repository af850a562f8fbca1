package journal

import (
	"encoding/binary"
	"fmt"
	"math"
)

// An encoded Image, all integers as unsigned varints unless said otherwise:
//
//	| mode | nlink | uid | gid | rdev | size | atime | mtime | ctime | count of xattrs | xattrs |
//	time:  | seconds, as a signed varint | nanoseconds |
//	xattr: | length | name | length | value |

// appendImage appends the encoding of m to b.
func appendImage(b []byte, m *Image) []byte {
	a := &m.Attr
	for _, v := range [...]uint64{uint64(a.Mode), uint64(a.Nlink), uint64(a.UID), uint64(a.GID), a.Rdev, uint64(a.Size)} {
		b = binary.AppendUvarint(b, v)
	}
	for _, t := range [...]Time{a.Atime, a.Mtime, a.Ctime} {
		b = binary.AppendUvarint(binary.AppendVarint(b, t.Sec), uint64(t.Nsec))
	}
	b = binary.AppendUvarint(b, uint64(len(m.Xattrs)))
	for _, x := range m.Xattrs {
		b = append(binary.AppendUvarint(b, uint64(len(x.Name))), x.Name...)
		b = append(binary.AppendUvarint(b, uint64(len(x.Value))), x.Value...)
	}
	return b
}

// encodeImage is appendImage with the bound that the journal sets on an image.
func encodeImage(m *Image) ([]byte, error) {
	b := appendImage(nil, m)
	if len(b) > maxImage {
		return nil, fmt.Errorf("%w: attributes of %d bytes, at most %d can be kept", ErrTooLarge, len(b), maxImage)
	}
	return b, nil
}

func (d *decoder) uint32() uint32 {
	v := d.uvarint()
	d.check(v <= math.MaxUint32)
	return uint32(v)
}

func (d *decoder) time() Time {
	sec, n := binary.Varint(d.rest)
	if n <= 0 {
		d.check(false)
		return Time{}
	}
	d.rest = d.rest[n:]
	return Time{Sec: sec, Nsec: d.uint32()}
}

// decodeImage reads what appendImage wrote. The result has its own memory.
func decodeImage(p []byte) (Image, error) {
	d := decoder{rest: p}
	m := Image{Attr: Attr{Mode: d.uint32(), Nlink: d.uint32(), UID: d.uint32(), GID: d.uint32(),
		Rdev: d.uvarint(), Size: d.int(), Atime: d.time(), Mtime: d.time(), Ctime: d.time()}}
	// Nothing is allocated from the count: it only ends the loop.
	for n := d.uvarint(); n > 0 && !d.bad; n-- {
		x := Xattr{Name: string(d.bytes()), Value: append([]byte{}, d.bytes()...)}
		m.Xattrs = append(m.Xattrs, x)
	}
	if err := d.end(); err != nil {
		return Image{}, fmt.Errorf("before image: %w", err)
	}
	return m, nil
}
