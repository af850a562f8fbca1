package journal

import (
	"testing"

	"tandemfs/journal/alloctest"
)

// slack is what a fuzz target may take whatever it is given: the runtime's own needs are counted too.
const slack = 1 << 20

// bounded fails where decoding takes more memory than its input can be worth: an entry of a map for each byte.
func bounded(t *testing.T, input []byte, decode func()) {
	t.Helper()
	if n := alloctest.Bytes(decode); n > slack+256*uint64(len(input)) {
		t.Fatalf("%d bytes took %d of memory", len(input), n)
	}
}
