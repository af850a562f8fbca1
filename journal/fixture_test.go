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
