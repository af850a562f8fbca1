package journal

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// unpack puts an archive of testdata into a new directory.
func unpack(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name))
	must(t, err)
	defer f.Close()
	unzipped, err := gzip.NewReader(f)
	must(t, err)
	dir := t.TempDir()
	for files := tar.NewReader(unzipped); ; {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		must(t, err)
		path := filepath.Join(dir, filepath.Clean("/"+header.Name))
		if header.Typeflag == tar.TypeDir {
			must(t, os.MkdirAll(path, 0o700))
			continue
		}
		content, err := io.ReadAll(files)
		must(t, err)
		must(t, os.WriteFile(path, content, 0o600))
	}
}

// The archive was made by the first version: two epochs, of which the first was held, partly in the store.
func TestAJournalOfTheFirstVersionIsRead(t *testing.T) {
	dir := unpack(t, "journal-v1.tar.gz")
	j := open(t, dir, small())
	if held := j.Held(); len(held) != 0 {
		t.Errorf("held: %v; its views have no content", held)
	}
	if j.Epoch() != 2 || !j.Clean() {
		t.Errorf("epoch %d, clean %v", j.Epoch(), j.Clean())
	}
	want := map[Ident]InodeChange{
		ino(20): {Ident: ino(20), What: Meta | Data, Extents: []Extent{{0, 10}}},
		ino(30): {Ident: ino(30), What: Created},
	}
	if got := inodesOf(t, j, 0, 1); !reflect.DeepEqual(got, want) {
		t.Errorf("inodes: %v, want %v", got, want)
	}
	n := seal(t, j, false)
	if got := inodesOf(t, j, 1, n); len(got) != 1502 || got[ino(20)].What != Meta|Data {
		t.Errorf("%d inodes in the second epoch, %v", len(got), got[ino(20)])
	}
	if value, err := j.State("key"); string(value) != "value" || err != nil {
		t.Errorf("state: %q, %v", value, err)
	}
	if to, ok, err := j.Map("map").Get(ino(1)); to != ino(2) || !ok || err != nil {
		t.Errorf("map: %v, %v, %v", to, ok, err)
	}
	must(t, j.Close())
	m, err := readMark(dir)
	must(t, err)
	if m.Version != markVersion {
		t.Errorf("its version is %q now", m.Version)
	}
}

// The archive was made by the second version, and is what its process left that died: an epoch that is held, and
// the one after it.
func TestAJournalOfTheSecondVersionIsRead(t *testing.T) {
	dir := unpack(t, "journal-v2.tar.gz")
	lost := unpack(t, "journal-v2.tar.gz")
	o := small()
	o.BootID = "the boot of the fixture"
	j := open(t, dir, o)
	if held := j.Held(); len(held) != 1 || held[0] != 1 || j.Epoch() != 2 || !j.Clean() {
		t.Errorf("held %v, epoch %d, clean %v", held, j.Epoch(), j.Clean())
	}
	want := map[Ident]InodeChange{
		ino(20): {Ident: ino(20), What: Meta | Data, Extents: []Extent{{0, 10}}},
		ino(30): {Ident: ino(30), What: Created},
	}
	if got := inodesOf(t, j, 0, 1); !reflect.DeepEqual(got, want) {
		t.Errorf("inodes: %v, want %v", got, want)
	}
	if image, ok, err := j.ImageAt(1, ino(21)); image.Attr.Size != 78 || !ok || err != nil {
		t.Errorf("image: %v, %v, %v", image, ok, err)
	}
	n := seal(t, j, false)
	if got := inodesOf(t, j, 1, n); len(got) != 1502 || !same(got[ino(20)].Extents, Extents{{4096, 8192}}) {
		t.Errorf("%d inodes in the second epoch, %v", len(got), got[ino(20)])
	}
	if value, err := j.State("key"); string(value) != "value" || err != nil {
		t.Errorf("state: %q, %v", value, err)
	}
	if to, ok, err := j.Map("map").Get(ino(1)); to != ino(2) || !ok || err != nil {
		t.Errorf("map: %v, %v, %v", to, ok, err)
	}
	must(t, j.Close())
	if m, err := readMark(dir); m.Version != markVersion || err != nil {
		t.Errorf("its version is %q now, %v", m.Version, err)
	}

	o.BootID = "another"
	after := open(t, lost, o)
	if after.Clean() || !after.Active().All || after.Epoch() < 1<<32 {
		t.Errorf("after a power cut: clean %v, %v, epoch %d", after.Clean(), after.Active(), after.Epoch())
	}
}
