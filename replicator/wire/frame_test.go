package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tandemfs/journal/alloctest"
)

// framed gives a frame's bytes.
func framed(t testing.TB, kind Type, content []byte, pack bool) []byte {
	t.Helper()
	var b bytes.Buffer
	w := frameWriter{to: &b}
	if err := w.write(kind, append(make([]byte, HeaderSize), content...), pack); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func noise(n int) []byte {
	rnd := rand.NewChaCha8([32]byte{1})
	b := make([]byte, n)
	rnd.Read(b)
	return b
}

func TestAFrameArrivesAsItWasSent(t *testing.T) {
	contents := map[string][]byte{
		"nothing":        {},
		"one byte":       {7},
		"compressible":   bytes.Repeat([]byte("abc"), 1000),
		"incompressible": noise(100_000),
		"the longest":    bytes.Repeat(noise(1024), 1024),
	}
	for name, content := range contents {
		for _, pack := range []bool{false, true} {
			b := framed(t, TypeRecords, content, pack)
			r := frameReader{from: bytes.NewReader(b), limit: MaxRaw}
			kind, got, err := r.read(nil)
			if err != nil || kind != TypeRecords || !bytes.Equal(got, content) {
				t.Errorf("%s, packed %v: type %d, %d bytes, %v", name, pack, kind, len(got), err)
			}
			if _, _, err := r.read(nil); err != io.EOF {
				t.Errorf("%s: after it comes %v, not a clean end", name, err)
			}
		}
	}
}

func TestOnlyWhatGetsSmallerIsCompressed(t *testing.T) {
	if b := framed(t, TypeRecords, bytes.Repeat([]byte("abc"), 1000), true); len(b) > 200 || b[5] != flagLZ4 {
		t.Errorf("3000 compressible bytes take %d", len(b))
	}
	if b := framed(t, TypeRecords, noise(3000), true); len(b) != 3000+HeaderSize || b[5] != 0 {
		t.Errorf("3000 bytes of noise take %d", len(b))
	}
}

func TestAFrameThatWasChangedIsNoticed(t *testing.T) {
	for _, content := range [][]byte{noise(300), bytes.Repeat([]byte("abc"), 300)} {
		good := framed(t, TypeRecords, content, true)
		for i := range good {
			bad := bytes.Clone(good)
			bad[i] ^= 0x10
			r := frameReader{from: bytes.NewReader(bad), limit: MaxRaw}
			if _, _, err := r.read(nil); err == nil {
				t.Errorf("byte %d of %d can be changed", i, len(good))
			}
		}
		for n := 1; n < len(good); n++ {
			r := frameReader{from: bytes.NewReader(good[:n]), limit: MaxRaw}
			if _, _, err := r.read(nil); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("cut to %d bytes: %v", n, err)
			}
		}
	}
}

// endless would go on for ever; reading more than is wanted fails.
type endless struct{ want int }

func (e *endless) Read(p []byte) (int, error) {
	if e.want -= len(p); e.want < 0 {
		panic("it read more than a header before it looked at the lengths")
	}
	return len(p), nil
}

func TestLengthsAreCheckedBeforeAnythingIsAllocated(t *testing.T) {
	head := func(length, raw uint32, flags byte) []byte {
		b := make([]byte, HeaderSize)
		binary.BigEndian.PutUint32(b, length)
		b[4], b[5] = byte(TypeRecords), flags
		binary.BigEndian.PutUint32(b[8:], raw)
		return b
	}
	cases := map[string][]byte{
		"too long":               head(MaxRaw+1, MaxRaw+1, 0),
		"as long as can be":      head(1<<32-1, 1<<32-1, 0),
		"unpacks to too much":    head(1000, MaxRaw+1, flagLZ4),
		"packed and not smaller": head(1000, 1000, flagLZ4),
		"lengths that differ":    head(1000, 1001, 0),
		"unknown flags":          head(1000, 1000, 2),
	}
	for name, b := range cases {
		r := frameReader{from: io.MultiReader(bytes.NewReader(b), &endless{}), limit: MaxRaw}
		if _, _, err := r.read(nil); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r := frameReader{from: bytes.NewReader(framed(t, TypeRecords, noise(5000), false)), limit: 4096}
	if _, _, err := r.read(nil); !errors.Is(err, ErrFrame) {
		t.Errorf("longer than is allowed here: %v", err)
	}
}

func FuzzFrame(f *testing.F) {
	f.Add(framed(f, TypeHello, []byte("TNDM"), false))
	f.Add(framed(f, TypeRecords, bytes.Repeat([]byte("abc"), 300), true))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: tandem\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := frameReader{from: bytes.NewReader(b), limit: MaxRaw}
		for {
			var kind Type
			var content []byte
			var err error
			if n := alloctest.Bytes(func() { kind, content, err = r.read(nil) }); n > MaxRaw+maxPayload+slack {
				t.Fatalf("a frame took %d bytes of memory", n)
			}
			if err != nil {
				return
			}
			if kind < TypeHello || kind > TypeBye || len(content) > MaxRaw {
				t.Fatalf("type %d, %d bytes", kind, len(content))
			}
		}
	})
}

// The frames in testdata/frames were written by earlier builds; every one must still be read.
func TestFramesOfEarlierBuildsAreStillRead(t *testing.T) {
	names, err := filepath.Glob("testdata/frames/*.frame")
	if err != nil || len(names) == 0 {
		t.Fatal("no frames are kept", err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		r := frameReader{from: bytes.NewReader(b), limit: MaxRaw}
		kind, content, err := r.read(nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		switch kind {
		case TypeHello:
			h, err := parseHello(content)
			if err != nil || h.Node != "alpha" || h.Lowest != 1 || h.Highest != 1 {
				t.Errorf("%s: %+v, %v", name, h, err)
			}
		case TypeRecords:
			want := kept
			if strings.Contains(name, "comparing") {
				want = keptComparing
			} else if strings.Contains(name, "keeping") {
				want = keptKeeping
			}
			if got := strings.Join(describe(t, content), "\n"); got != want {
				t.Errorf("%s holds\n%s\nwant\n%s", name, got, want)
			}
		default:
			t.Errorf("%s: type %d", name, kind)
		}
	}
}
