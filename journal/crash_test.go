package journal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// copyOf copies a journal's directory while it is open: what a process leaves that dies at this moment. A
// copy takes its time, so it counts only when the store did not make or remove files meanwhile.
func copyOf(t testing.TB, dir string) string {
	t.Helper()
	for {
		to, before := t.TempDir(), listing(t, dir)
		err := copyDir(dir, to)
		if listing(t, dir) == before {
			must(t, err)
			return to
		}
	}
}

func listing(t testing.TB, dir string) string {
	files, err := filepath.Glob(filepath.Join(dir, "store", "*"))
	must(t, err)
	manifest, err := os.ReadFile(filepath.Join(dir, "store", "MANIFEST"))
	must(t, err)
	return strings.Join(files, "\n") + string(manifest)
}

func copyDir(dir, to string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, name), 0o700)
		}
		return copySparse(path, filepath.Join(to, name))
	})
}

func copySparse(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	for off := int64(0); off < info.Size(); {
		data, err := unix.Seek(int(in.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(in.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(out, data), io.NewSectionReader(in, data, end-data)); err != nil {
			return err
		}
		off = end
	}
	return out.Truncate(info.Size())
}

// settle waits until the keeper has nothing to absorb, so that a copy does not fall into the middle of one.
func settle(j *Journal) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.frozen != nil && j.absorbErr == nil {
		j.progress.Wait()
	}
}

func TestWhatWasRecordedSurvivesTheProcess(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, Options{})
	touchName(t, j, ino(1), "a", ino(5))
	n := seal(t, j, true)
	touchData(t, j, ino(20), Extent{0, 4096}, imageOf(77))

	again := open(t, copyOf(t, dir), Options{})
	if again.ID() != j.ID() || again.Epoch() != n+1 || !again.Clean() {
		t.Errorf("id %s, epoch %d, clean %v", again.ID(), again.Epoch(), again.Clean())
	}
	if held := again.Held(); len(held) != 1 || held[0] != n {
		t.Errorf("held: %v", held)
	}
	if got := namesOf(t, again, 0, n)[nameKey{ino(1), "a"}]; got != ino(5) {
		t.Errorf("the name stood for %v", got)
	}
	image, ok, err := again.ImageAt(n, ino(20))
	if err != nil || !ok || image.Attr.Size != 77 {
		t.Errorf("image: %v, %v, %v", image, ok, err)
	}
	end := seal(t, again, false)
	if got := inodesOf(t, again, n, end)[ino(20)]; len(got.Extents) != 1 {
		t.Errorf("extents: %v", got)
	}
}

// Badger makes a file and gives it a size in two calls.
func TestAFileOfTheStoreThatWasJustMadeWhenTheProcessDiedIsNoDamage(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, Options{})
	for i := range 3 {
		touchData(t, j, ino(10+i), Extent{0, 4096}, nil)
		fill(t, j)
		settle(j)
	}
	for _, kind := range []string{"mem", "vlog"} {
		dead := copyOf(t, dir)
		names, err := filepath.Glob(filepath.Join(dead, "store", "*."+kind))
		must(t, err)
		if len(names) == 0 {
			t.Fatalf("the store has no file of kind %s", kind)
		}
		newest := filepath.Base(names[len(names)-1])
		number, err := strconv.Atoi(strings.TrimSuffix(newest, "."+kind))
		must(t, err)
		next := fmt.Sprintf("%0*d.%s", len(newest)-len(kind)-1, number+1, kind)
		must(t, os.WriteFile(filepath.Join(dead, "store", next), nil, 0o600))
		again := open(t, dead, Options{})
		n := seal(t, again, false)
		if got := inodesOf(t, again, 0, n); len(got[ino(12)].Extents) != 1 {
			t.Errorf("%s: recorded is %v", next, got[ino(12)])
		}
	}
}

func TestCleanTellsAPowerCutFromACleanCloseAndFromADeadProcess(t *testing.T) {
	boot := func(id string) Options { return Options{BootID: id} }
	dir := t.TempDir()
	j := open(t, dir, boot("one"))
	if !j.Clean() {
		t.Error("a new journal is not clean")
	}
	touchMeta(t, j, ino(1), nil)
	dead := copyOf(t, dir)
	if j := open(t, dead, boot("one")); !j.Clean() {
		t.Error("the death of the process made it unclean")
	}
	cut := open(t, copyOf(t, dir), boot("two"))
	if cut.Clean() {
		t.Error("a power cut left it clean")
	}
	must(t, cut.Close())
	must(t, j.Close())
	if j := open(t, copyOf(t, dir), boot("three")); !j.Clean() {
		t.Error("a clean close and a reboot left it unclean")
	}
}

func TestTheFirstTouchWinsWhereverItsRecordIs(t *testing.T) {
	never := before(func() (Image, error) { return Image{}, errors.New("a second image was asked for") })
	for name, between := range map[string]func(*testing.T, *Journal, string) *Journal{
		"in memory": func(_ *testing.T, j *Journal, _ string) *Journal { return j },
		"absorbed and dropped": func(t *testing.T, j *Journal, _ string) *Journal {
			fill(t, j)
			settle(j)
			if j.active.inode(j.Epoch(), ino(20)) != nil {
				t.Error("the entry is still in memory")
			}
			return j
		},
		"frozen": func(t *testing.T, j *Journal, _ string) *Journal {
			j.options.freeSpace = func(string) (uint64, error) { return 0, nil } // nothing is absorbed
			for i := 0; j.frozen == nil; i++ {
				touchMeta(t, j, Ident{Ino: 1 << 40, Gen: uint64(i)}, nil)
			}
			return j
		},
		"after a crash": func(t *testing.T, _ *Journal, dir string) *Journal { return open(t, copyOf(t, dir), small()) },
		"after absorbing and a crash": func(t *testing.T, j *Journal, dir string) *Journal {
			fill(t, j)
			settle(j)
			return open(t, copyOf(t, dir), small())
		},
		"after a restart": func(t *testing.T, j *Journal, dir string) *Journal {
			must(t, j.Close())
			return open(t, dir, small())
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			j := open(t, dir, small())
			n := seal(t, j, true)
			touchName(t, j, ino(1), "a", ino(5))
			touchData(t, j, ino(20), Extent{0, 10}, imageOf(77))
			touchMeta(t, j, ino(21), imageOf(78))
			created(t, j, ino(30))
			j = between(t, j, dir)
			touchName(t, j, ino(1), "a", ino(6))
			touchData(t, j, ino(20), Extent{20, 30}, never)
			touchData(t, j, ino(21), Extent{5, 6}, never)
			touchName(t, j, ino(30), "b", ino(7))
			touchData(t, j, ino(30), Extent{0, 5}, never)

			if was, ok, err := j.NameAt(n, ino(1), "a"); was != ino(5) || !ok || err != nil {
				t.Errorf("name: %v, %v, %v", was, ok, err)
			}
			for id, size := range map[Ident]int64{ino(20): 77, ino(21): 78} {
				if image, ok, err := j.ImageAt(n, id); image.Attr.Size != size || !ok || err != nil {
					t.Errorf("image of %v: %v, %v, %v", id, image, ok, err)
				}
			}
			end := seal(t, j, false)
			inodes := inodesOf(t, j, n, end)
			if got := inodes[ino(20)].Extents; !same(got, Extents{{0, 10}, {20, 30}}) {
				t.Errorf("extents: %v", got)
			}
			if got := inodes[ino(21)]; got.What != Meta|Data || !same(got.Extents, Extents{{5, 6}}) {
				t.Errorf("inode 21: %v", got)
			}
			if got := inodes[ino(30)]; got.What != Created {
				t.Errorf("inode 30: %v", got)
			}
			if got := namesOf(t, j, n, end); len(got) != 1 {
				t.Errorf("names: %v", got)
			}
		})
	}
}

func TestALostLogHeaderAfterAPowerCutLosesOnlyThatLog(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, Options{BootID: "one"})
	touchMeta(t, j, ino(1), nil)
	cut := copyOf(t, dir)
	for _, name := range logFiles {
		f, err := os.OpenFile(filepath.Join(cut, name), os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteAt(make([]byte, 512), 0)
		must(t, errors.Join(err, f.Close()))
	}
	again := open(t, cut, Options{BootID: "two"})
	if again.Clean() || again.Dirty() {
		t.Errorf("clean %v, dirty %v", again.Clean(), again.Dirty())
	}
	touchMeta(t, again, ino(2), nil)
	if got := inodesOf(t, again, 0, seal(t, again, false)); len(got) != 1 {
		t.Errorf("%v", got)
	}
}

func TestALogOfAnotherSizeIsTakenAsItIs(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, Options{logSize: 32 << 10})
	touchMeta(t, j, ino(1), nil)
	again := open(t, copyOf(t, dir), Options{})
	if got := inodesOf(t, again, 0, seal(t, again, false)); len(got) != 1 {
		t.Errorf("%v", got)
	}
}
