package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The versions of the protocol that this node speaks.
const (
	VersionLowest  = 1
	VersionHighest = 1
)

// FeatureCompare is what a node can do that compares: transfers with Begin.Compare, and Verify.
const FeatureCompare = "compare"

// FeatureIncomplete is what a target can do that keeps a transfer which left something out: Incomplete.
const FeatureIncomplete = "incomplete"

// FeatureKeep is what a node can do that compares, and keeps what the source cannot read: KindKeep.
const FeatureKeep = "keep"

// Errors of the handshake.
var (
	// ErrNotTandem says that what answers is something else than a Tandem node.
	ErrNotTandem = errors.New("the peer does not speak Tandem's protocol")
	// ErrVersion says that the two nodes have no version in common.
	ErrVersion = errors.New("no common protocol version")
)

// Hello is the first frame that each end sends. Its form never changes, so that any two versions can
// read each other's:
//
//	magic "TNDM" | lowest u16 | highest u16 | n u8, n bytes of node name
//	             | features u8, each: n u8, n bytes | anything that a later version adds
type Hello struct {
	Lowest, Highest uint16
	Node            string   // the sender's name
	Features        []string // what it can do besides; unknown ones are ignored
}

var helloMagic = []byte("TNDM")

const (
	maxHello = 4 << 10
	// MaxNode is the longest name of a node, in bytes.
	MaxNode     = 255
	maxFeatures = 32
)

// append encodes h.
func (h Hello) append(b []byte) ([]byte, error) {
	if len(h.Node) > MaxNode || len(h.Features) > maxFeatures {
		return nil, fmt.Errorf("%w: a handshake with a node name of %d bytes and %d features", ErrFrame, len(h.Node), len(h.Features))
	}
	b = append(b, helloMagic...)
	b = binary.BigEndian.AppendUint16(b, h.Lowest)
	b = binary.BigEndian.AppendUint16(b, h.Highest)
	b = append(append(b, byte(len(h.Node))), h.Node...)
	b = append(b, byte(len(h.Features)))
	for _, f := range h.Features {
		b = append(append(b, byte(len(f))), f...)
	}
	return b, nil
}

// parseHello decodes what append made, or a later version's with more behind it.
func parseHello(b []byte) (Hello, error) {
	var h Hello
	if len(b) < len(helloMagic)+4 || !bytes.Equal(b[:len(helloMagic)], helloMagic) {
		return h, fmt.Errorf("%w: its handshake begins with %q", ErrNotTandem, b[:min(len(b), 8)])
	}
	b = b[len(helloMagic):]
	h.Lowest, h.Highest = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	node, b, ok := cutShort(b[4:])
	if !ok || len(b) == 0 || b[0] > maxFeatures || h.Lowest > h.Highest {
		return h, fmt.Errorf("%w: its handshake is cut short or not sound", ErrNotTandem)
	}
	n, b := int(b[0]), b[1:]
	for range n {
		var f string
		if f, b, ok = cutShort(b); !ok {
			return h, fmt.Errorf("%w: its handshake's features are cut short", ErrNotTandem)
		}
		h.Features = append(h.Features, f)
	}
	h.Node = Printable(node)
	return h, nil
}

// cutShort takes a string with its length in one byte before it.
func cutShort(b []byte) (string, []byte, bool) {
	if len(b) == 0 || len(b) < 1+int(b[0]) {
		return "", nil, false
	}
	n := 1 + int(b[0])
	return string(b[1:n]), b[n:], true
}

// Printable makes what a peer calls itself safe to show on a terminal.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// agree picks the highest version that both ends speak.
func agree(mine, theirs Hello) (uint16, error) {
	version := min(mine.Highest, theirs.Highest)
	if version >= mine.Lowest && version >= theirs.Lowest {
		return version, nil
	}
	older := "this node"
	if theirs.Highest < mine.Lowest {
		older = "the peer"
	}
	return 0, fmt.Errorf("%w: the peer (%s) speaks versions %d to %d, this node %d to %d: upgrade %s",
		ErrVersion, theirs.Node, theirs.Lowest, theirs.Highest, mine.Lowest, mine.Highest, older)
}
