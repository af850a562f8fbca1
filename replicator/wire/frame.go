package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"
	"github.com/pierrec/lz4/v4"
)

// A frame is a header and a payload; numbers are big endian.
//
//	 0      4    5     6        8       12         20
//	+------+----+-----+--------+--------+----------+---------+
//	|length|type|flags|reserved|raw     |xxh64     |payload  |
//	|u32   |u8  |u8   |u16 = 0 |length  |u64       |length   |
//	|      |    |     |        |u32     |          |bytes    |
//	+------+----+-----+--------+--------+----------+---------+
//
// The checksum covers the first 12 bytes and the payload as it is carried. With flag 1 the payload is one
// LZ4 block that unpacks to raw length bytes; without it length and raw length are the same.
const (
	// HeaderSize is the room that a frame's header takes, in bytes.
	HeaderSize = 20
	// MaxRaw is the longest that a frame's content can be, in bytes.
	MaxRaw = 1 << 20
	// maxPayload bounds what is carried: content that did not shrink, and a margin.
	maxPayload = MaxRaw + 4<<10

	flagLZ4 = 1
	// checksumAt is where the checksum stands, and how much of the header it covers.
	checksumAt = 12
)

// ErrFrame is wrapped by every error about bytes that are not a frame that this protocol knows.
var ErrFrame = errors.New("bad frame")

// Type says what a frame holds.
type Type uint8

// The types of frames. Their numbers never change.
const (
	TypeHello     Type = 1  // both ways, first: Hello
	TypePropose   Type = 2  // source: Propose
	TypeDecision  Type = 3  // target: Decision
	TypeAttach    Type = 4  // source: Attach
	TypePosition  Type = 5  // target: Position
	TypeBegin     Type = 6  // source: Begin
	TypeRecords   Type = 7  // source: packed records
	TypeEnd       Type = 8  // source: End
	TypeCommitted Type = 9  // target: Committed
	TypeFailed    Type = 10 // both ways: Failed
	TypeProgress  Type = 11 // both ways: Progress
	TypePing      Type = 12 // both ways: empty
	TypeBye       Type = 13 // both ways: Bye
	TypeWant      Type = 14 // target: Want
	TypeVerify    Type = 15 // source: Verify
	TypeDiffer    Type = 16 // target: Differ
	TypeVerified  Type = 17 // target: Verified

	TypeIncomplete Type = 18 // source: Incomplete
)

// header is a frame's header, decoded.
type header struct {
	length int
	kind   Type
	flags  uint8
	raw    int
	sum    uint64
}

// put encodes h but for the checksum.
func (h header) put(b []byte) {
	binary.BigEndian.PutUint32(b, uint32(h.length))
	b[4], b[5], b[6], b[7] = byte(h.kind), h.flags, 0, 0
	binary.BigEndian.PutUint32(b[8:], uint32(h.raw))
}

// parseHeader decodes and checks a header; limit bounds the content's length.
func parseHeader(b []byte, limit int) (header, error) {
	length, raw := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[8:])
	h := header{length: int(length), kind: Type(b[4]), flags: b[5], raw: int(raw), sum: binary.BigEndian.Uint64(b[checksumAt:])}
	switch {
	case h.kind < TypeHello || h.kind > TypeIncomplete:
		return h, fmt.Errorf("%w: unknown type %d", ErrFrame, h.kind)
	case h.flags&^flagLZ4 != 0 || b[6] != 0 || b[7] != 0:
		return h, fmt.Errorf("%w: unknown flags %#x", ErrFrame, b[5:8])
	case length > maxPayload || raw > uint32(limit):
		return h, fmt.Errorf("%w: %d bytes that unpack to %d are more than the %d allowed here", ErrFrame, length, raw, limit)
	case h.flags&flagLZ4 == 0 && length != raw, h.flags&flagLZ4 != 0 && length >= raw:
		return h, fmt.Errorf("%w: %d bytes cannot hold %d", ErrFrame, length, raw)
	}
	return h, nil
}

// checksum is what the header's checksum must be.
func checksum(head, payload []byte) uint64 {
	var d xxhash.Digest
	d.Reset()
	_, _ = d.Write(head[:checksumAt]) // never fails
	_, _ = d.Write(payload)
	return d.Sum64()
}

// frameWriter writes frames, each with one Write. It is not for concurrent use.
type frameWriter struct {
	to     io.Writer
	lz4    lz4.Compressor
	packed []byte
}

// write sends a frame whose content stands in buf after HeaderSize bytes, which are overwritten.
// With pack it is compressed where that saves at least a sixteenth.
func (w *frameWriter) write(kind Type, buf []byte, pack bool) error {
	raw := len(buf) - HeaderSize
	if raw > MaxRaw {
		return fmt.Errorf("%w: %d bytes are too long to send", ErrFrame, raw)
	}
	frame, flags := buf, uint8(0)
	if pack {
		if smaller := w.pack(buf[HeaderSize:]); smaller != nil {
			frame, flags = smaller, flagLZ4
		}
	}
	header{length: len(frame) - HeaderSize, kind: kind, flags: flags, raw: raw}.put(frame)
	binary.BigEndian.PutUint64(frame[checksumAt:], checksum(frame, frame[HeaderSize:]))
	_, err := w.to.Write(frame)
	return err
}

// minPack is the shortest content that is worth the try.
const minPack = 128

// pack gives room for a header and raw as an LZ4 block, or nil where that saves too little.
func (w *frameWriter) pack(raw []byte) []byte {
	room := len(raw) - len(raw)/16
	if len(raw) < minPack {
		return nil
	}
	if w.packed == nil {
		w.packed = make([]byte, HeaderSize+MaxRaw)
	}
	n, err := w.lz4.CompressBlock(raw, w.packed[HeaderSize:HeaderSize+room])
	if err != nil || n == 0 {
		return nil // it does not fit the room: not worth it
	}
	return w.packed[:HeaderSize+n]
}

// frameReader reads frames. It is not for concurrent use.
type frameReader struct {
	from   io.Reader
	limit  int // of a frame's content
	head   [HeaderSize]byte
	packed []byte
}

// read gives the next frame's type and content, in buf where that has the capacity. A clean end between
// two frames is io.EOF.
func (r *frameReader) read(buf []byte) (Type, []byte, error) {
	if _, err := io.ReadFull(r.from, r.head[:]); err != nil {
		return 0, nil, err
	}
	h, err := parseHeader(r.head[:], r.limit)
	if err != nil {
		return 0, nil, err
	}
	content := sized(buf, h.raw)
	payload := content
	if h.flags&flagLZ4 != 0 {
		r.packed = sized(r.packed, h.length)
		payload = r.packed
	}
	if _, err := io.ReadFull(r.from, payload); err != nil {
		return 0, nil, noEOF(err)
	}
	if checksum(r.head[:], payload) != h.sum {
		return 0, nil, fmt.Errorf("%w: its checksum is wrong", ErrFrame)
	}
	if h.flags&flagLZ4 != 0 {
		if n, err := lz4.UncompressBlock(payload, content); err != nil || n != h.raw {
			return 0, nil, fmt.Errorf("%w: it does not unpack to %d bytes", ErrFrame, h.raw)
		}
	}
	return h.kind, content, nil
}

// sized gives n bytes, those of buf where they suffice.
func sized(buf []byte, n int) []byte {
	if cap(buf) < n {
		return make([]byte, n)
	}
	return buf[:n]
}

// noEOF makes an end in the middle of something an error that does not look like a clean end.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
