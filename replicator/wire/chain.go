package wire

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"

	"tandemfs/journal"
)

// IsItem reports whether a record counts as an item of the stream; content belongs to the item before.
func (k Kind) IsItem() bool {
	return k == KindInode || k == KindAttach || k == KindDetach || k == KindKeep
}

// Chainer computes the chain: a number that stands for all items up to one, so that two ends that both
// count n items also know that they count the same ones. It is not for concurrent use.
type Chainer struct{ buf []byte }

// Next gives the chain after the item r, from the chain before it. Content and attributes do not take
// part: only what, where and in which order.
func (c *Chainer) Next(chain uint64, r *Record) uint64 {
	b := binary.BigEndian.AppendUint64(c.buf[:0], chain)
	b = append(b, byte(r.Kind), byte(r.Flags&^FlagGoesOn))
	for _, id := range []journal.Ident{r.Ident, r.Dir} {
		b = binary.BigEndian.AppendUint64(b, id.Ino)
		b = binary.BigEndian.AppendUint64(b, id.Gen)
	}
	c.buf = append(b, r.Name...)
	return xxhash.Sum64(c.buf)
}
