package volume

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"tandemfs/fs/sys"
	"tandemfs/journal"
)

// What is small is copied one way and what is large another; neither may show.
func TestWhatIsKeptIsTheContentAndItsHoles(t *testing.T) {
	const chunk = 256 << 10
	lengths := []int64{1, 4096, smallCopy - 1, smallCopy, smallCopy + 1, smallCopy + 4096}
	dir := t.TempDir()
	live, err := os.Create(filepath.Join(dir, "live"))
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	content := make([]byte, int64(len(lengths))*chunk-100)
	for i, n := range lengths {
		part := content[i*chunk:][:n]
		copy(part, bytes.Repeat([]byte{byte(i + 1)}, int(n)))
		if _, err := live.WriteAt(part, int64(i*chunk)); err != nil {
			t.Fatal(err)
		}
	}
	if err := live.Truncate(int64(len(content))); err != nil {
		t.Fatal(err)
	}
	for _, copied := range []int64{0, smallCopy} {
		state, err := os.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer state.Close()
		k, err := openKept(int(state.Fd()), 0)
		if err != nil {
			t.Fatal(err)
		}
		k.copied = copied
		id := journal.Ident{Ino: 7}
		if err := k.keep(3, id, int(live.Fd()), journal.Extents{{Off: 0, End: 3 * chunk}, {Off: 3 * chunk, End: int64(len(content))}}); err != nil {
			t.Fatal(err)
		}
		k.close()
		kept, err := os.Open(filepath.Join(state.Name(), keptName, "3", entryName(contentPrefix, id)))
		if err != nil {
			t.Fatal(err)
		}
		defer kept.Close()
		got := make([]byte, len(content))
		if _, err := sys.ReadAt(int(kept.Fd()), got, 0); err != nil || !bytes.Equal(got, content) {
			t.Errorf("copied up to %d bytes: other content (%v)", copied, err)
		}
		for i, n := range lengths {
			hole := (int64(i*chunk) + n + 4095) &^ 4095
			if e, ok, err := sys.NextData(int(kept.Fd()), hole, int64(i+1)*chunk); ok || err != nil {
				t.Errorf("copied up to %d bytes: the hole at %d has data at %d (%v)", copied, hole, e.Off, err)
			}
		}
	}
}
