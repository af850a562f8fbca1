package journal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func newLog(t *testing.T, path string, size int) *intentLog {
	t.Helper()
	l, err := openLog(path, size)
	must(t, err)
	t.Cleanup(func() { l.close() })
	return l
}

func payloads(t *testing.T, l *intentLog) []string {
	t.Helper()
	var got []string
	must(t, l.replay(func(p []byte) error {
		got = append(got, string(p))
		return nil
	}))
	return got
}

func TestALogGivesBackWhatWasAppendedAndGoesOnThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l := newLog(t, path, 1<<16)
	must(t, l.begin(5))
	for i := range 100 {
		must(t, l.append(fmt.Appendf(nil, "record %0*d", i%9, i)))
	}
	end := l.end
	again := newLog(t, path, 1<<16)
	if got := payloads(t, again); len(got) != 100 || got[7] != "record 0000007" {
		t.Errorf("read %d records: %q", len(got), got)
	}
	if again.generation != 5 || again.end != end {
		t.Errorf("generation %d, end %d, want 5, %d", again.generation, again.end, end)
	}
}

func TestAnOlderGenerationsRecordsAreNotSeen(t *testing.T) {
	l := newLog(t, filepath.Join(t.TempDir(), "log"), 1<<16)
	must(t, l.begin(1))
	for range 50 {
		must(t, l.append([]byte("the same record")))
	}
	must(t, l.begin(3))
	must(t, l.append([]byte("the same record")))
	if got := payloads(t, l); len(got) != 1 {
		t.Errorf("%d records, want 1", len(got))
	}
}

func TestATornOrGarbledTailEndsTheLog(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for round := range 200 {
		l := newLog(t, filepath.Join(t.TempDir(), "log"), minLogSize)
		must(t, l.begin(uint64(round)))
		var ends []int // of the payloads; the padding behind one may be anything
		for l.room() > 200 {
			payload := make([]byte, 1+r.IntN(100))
			ends = append(ends, l.end+recordHeader+len(payload))
			must(t, l.append(payload))
		}
		// From some byte on, everything is lost: zeros, garbage, or one byte flipped.
		at := logHeader + r.IntN(l.end-logHeader)
		switch round % 3 {
		case 0:
			clear(l.data[at:])
		case 1:
			for i := at; i < len(l.data); i++ {
				l.data[i] = byte(r.Uint32())
			}
		case 2:
			l.data[at] ^= 1 << r.IntN(8)
		}
		whole := 0
		for whole < len(ends) && ends[whole] <= at {
			whole++
		}
		// Payloads and padding are zeros, so zeros may hit nothing that counts; then more is whole.
		if got := len(payloads(t, l)); got != whole && (round%3 == 1 || got < whole) {
			t.Fatalf("round %d: %d records before the damage at %d, %d read", round, whole, at, got)
		}
	}
}

func TestAnAppendAfterAPowerCutDoesNotReviveWhatStoodBehindTheGap(t *testing.T) {
	l := newLog(t, filepath.Join(t.TempDir(), "log"), minLogSize)
	must(t, l.begin(1))
	must(t, l.append([]byte("first")))
	gap := l.end
	must(t, l.append([]byte("lost!")))
	must(t, l.append([]byte("stale")))
	clear(l.data[gap : gap+8])
	if got := payloads(t, l); len(got) != 1 {
		t.Fatalf("%q", got)
	}
	must(t, l.clearTail())
	must(t, l.append([]byte("other")))
	if got := payloads(t, l); len(got) != 2 {
		t.Errorf("%q", got)
	}
}

func TestADiskThatCannotTakeTheLogsPageIsAnError(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, small())
	touchMeta(t, j, ino(1), nil)
	for _, name := range logFiles {
		must(t, os.Truncate(filepath.Join(dir, name), 4096)) // the pages behind fault like those of a failing disk
	}
	var err error
	for i := 0; i < 1000 && err == nil; i++ {
		err = inside(j, func() error { return j.TouchMeta(ino(100+i), nil) })
	}
	if !errors.Is(err, unix.EIO) {
		t.Fatalf("got %v", err)
	}
	if err := inside(j, func() error { return j.TouchName(ino(1), "a", Ident{}) }); !errors.Is(err, unix.EIO) {
		t.Errorf("after the failure: %v", err)
	}
	if _, err := j.Seal(false); !errors.Is(err, unix.EIO) {
		t.Errorf("sealing after the failure: %v", err)
	}
}

func FuzzLogReplay(f *testing.F) {
	path := filepath.Join(f.TempDir(), "log")
	l, err := openLog(path, minLogSize)
	must(f, err)
	must(f, l.begin(1))
	for _, r := range sampleRecords {
		must(f, l.append(appendRecord(nil, &r)))
	}
	f.Add(append([]byte{}, l.data...))
	must(f, l.close())
	f.Fuzz(func(t *testing.T, content []byte) {
		l := &intentLog{data: make([]byte, minLogSize)}
		copy(l.data, content)
		l.readHeader()
		must(t, l.replay(func(p []byte) error {
			decodeRecord(p)
			return nil
		}))
		if l.end > len(l.data) {
			t.Fatalf("end %d behind the log", l.end)
		}
	})
}
