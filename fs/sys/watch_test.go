package sys

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/journal"
)

// around runs a shell command in a directory: what it does is another process's doing.
func around(t *testing.T, dir, command string) {
	t.Helper()
	c := exec.Command("sh", "-c", command)
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
}

// watching opens a directory and watches its filesystem until the test ends.
func watching(t *testing.T, dir string) (*Backing, *Watch) {
	t.Helper()
	b, err := OpenBacking(dir)
	if err != nil {
		t.Fatal(err)
	}
	w, err := b.Watch()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close(); b.Close() })
	return b, w
}

// told reads all events so far that lie below the root, as text.
func told(t *testing.T, b *Backing, w *Watch) []string {
	t.Helper()
	var list []string
	for more := true; more; {
		var events []Event
		var err error
		events, more, err = w.Read(nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			if text := describe(b, e); text != "" {
				list = append(list, text)
			}
		}
	}
	return list
}

func describe(b *Backing, e Event) string {
	var words []string
	for i, word := range []string{"modified", "closed", "attributes", "named", "unnamed", "moved"} {
		if e.What&(1<<i) != 0 {
			words = append(words, word)
		}
	}
	text, inside := strings.Join(words, "+"), false
	for _, at := range []struct {
		dir  journal.Ident
		name string
	}{{e.Dir, e.Name}, {e.NewDir, e.NewName}} {
		fd, path, err := b.Within(at.dir)
		if err != nil {
			text += " -"
			continue
		}
		Close(fd)
		inside = true
		text += " " + filepath.Join(path, at.name)
	}
	if !inside {
		if fd, path, err := b.Within(e.Inode); err == nil { // a directory itself
			Close(fd)
			return text + " " + path
		}
		return ""
	}
	return text
}

func TestAWatchTellsWhatOthersDoBelowTheRootAndNothingElse(t *testing.T) {
	above := t.TempDir()
	root := filepath.Join(above, "root")
	around(t, above, "mkdir -p root/dir elsewhere; touch root/file elsewhere/in")
	b, w := watching(t, root)
	for _, c := range []struct {
		command string
		want    []string
	}{
		{"echo x >>file", []string{"modified+closed /file -"}},
		{"chmod 600 file", []string{"attributes /file -"}},
		{"touch dir", []string{"attributes - - /dir"}},
		{"mkdir dir/new", []string{"named /dir/new -"}},
		{"mv file dir/moved", []string{"moved /file /dir/moved"}},
		{"mv dir/moved ../elsewhere/out", []string{"moved /dir/moved -"}},
		{"mv ../elsewhere/in dir/in", []string{"moved - /dir/in"}},
		{"rmdir dir/new", []string{"unnamed /dir/new -"}},
		{"echo x >../elsewhere/out; chmod 600 ../elsewhere/out; mkdir ../elsewhere/more", nil},
	} {
		around(t, root, c.command)
		if got := told(t, b, w); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.command, got, c.want)
		}
	}
}

func TestAWatchLeavesOutWhatThisProcessDoes(t *testing.T) {
	b, w := watching(t, t.TempDir())
	fd, err := Open(b.FD(), "file", unix.O_CREAT|unix.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer Close(fd)
	if _, err := WriteAt(fd, []byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(Chmod(fd, 0o644), Rename(b.FD(), "file", b.FD(), "other", 0), Unlink(b.FD(), "other")); err != nil {
		t.Fatal(err)
	}
	if got := told(t, b, w); len(got) > 0 {
		t.Errorf("told %q", got)
	}
}

func TestAWriteThroughTheOwnMountCausesNoEventAtAll(t *testing.T) {
	b, w := watching(t, t.TempDir())
	fd, err := Open(b.FD(), "file", unix.O_CREAT|unix.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer Close(fd)
	if ownEvents(t, w) == 0 {
		t.Error("there is no event of a new file")
	}
	if _, err := WriteAt(fd, []byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	if n := ownEvents(t, w); n > 0 {
		t.Errorf("there were %d", n)
	}
}

// ownEvents reads all events so far and counts those of this process. Others may use the filesystem meanwhile.
func ownEvents(t *testing.T, w *Watch) (count int) {
	t.Helper()
	n, buf := binary.NativeEndian, make([]byte, 64<<10)
	for {
		size, err := 0, error(nil)
		if failed := w.conn.Control(func(fd uintptr) { size, err = unix.Read(int(fd), buf) }); failed != nil {
			t.Fatal(failed)
		}
		if err == unix.EAGAIN {
			return count
		}
		if err != nil {
			t.Fatal(err)
		}
		for e := buf[:size]; len(e) > 0; e = e[n.Uint32(e):] {
			if int(n.Uint32(e[20:])) == os.Getpid() {
				count++
			}
		}
	}
}

func TestAChangeTimeIsBeforeTheFineClockAndNotBeforeTheOther(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	at := func(t journal.Time) time.Time { return time.Unix(t.Sec, int64(t.Nsec)) }
	for range 200 {
		before, err := Clock()
		if err = errors.Join(err, os.WriteFile(file, []byte("x"), 0o600)); err != nil {
			t.Fatal(err)
		}
		var st unix.Statx_t // what was looked at gets a time of its own with the next change, where the kernel can
		if err := Stat(unix.AT_FDCWD, file, &st); err != nil {
			t.Fatal(err)
		}
		after, err := FineClock()
		if changed := at(Stamp(st.Ctime)); err != nil || changed.Before(at(before)) || changed.After(at(after)) {
			t.Fatalf("changed at %v, between %v and %v, %v", changed, at(before), at(after), err)
		}
	}
}

func TestWhatIsWrittenThroughAMapIsToldWhenItEnds(t *testing.T) {
	dir := t.TempDir()
	around(t, dir, "echo some content >file")
	b, w := watching(t, dir)
	c := exec.Command(os.Args[0], "-test.run=^TestWritesThroughAMap$")
	c.Env = append(os.Environ(), "MAPPED="+filepath.Join(dir, "file"))
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got := told(t, b, w); !slices.Equal(got, []string{"closed /file -"}) {
		t.Errorf("told %q", got)
	}
}

// TestWritesThroughAMap is the other process of the test before.
func TestWritesThroughAMap(t *testing.T) {
	path := os.Getenv("MAPPED")
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 4, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	m[0] = 'A'
	if err := unix.Munmap(m); err != nil {
		t.Fatal(err)
	}
}

func TestWaitEndsForAnEventForTheTimeAndForWake(t *testing.T) {
	dir := t.TempDir()
	_, w := watching(t, dir)
	if err := w.Wait(20 * time.Millisecond); err != nil { // that it ends; others may do something on the filesystem before
		t.Error(err)
	}
	w.Wake()
	if err := w.Wait(time.Hour); err != nil {
		t.Error(err)
	}
	time.AfterFunc(10*time.Millisecond, w.Wake)
	if err := w.Wait(time.Hour); err != nil {
		t.Error(err)
	}
	around(t, dir, "touch file")
	if err := w.Wait(time.Hour); err != nil {
		t.Error(err)
	}
	time.AfterFunc(10*time.Millisecond, func() { w.Close() })
	for { // what is there to read does not keep Close from ending it
		if err := w.Wait(time.Hour); err != nil {
			if !errors.Is(err, os.ErrClosed) {
				t.Error(err)
			}
			return
		}
	}
}

// event is a fanotify event as the kernel has it, about a name in a directory.
func event(mask uint64, pid uint32, h *fileHandle, name string) []byte {
	n := binary.NativeEndian
	info := make([]byte, infoHeader, 64)
	info[0] = unix.FAN_EVENT_INFO_TYPE_DFID_NAME
	n.PutUint32(info[12:], h.bytes)
	n.PutUint32(info[16:], uint32(h.kind))
	info = append(append(append(info, h.data[:h.bytes]...), name...), 0)
	n.PutUint16(info[2:], uint16(len(info)))
	e := make([]byte, eventHeader)
	n.PutUint32(e, uint32(eventHeader+len(info)))
	e[4] = unix.FANOTIFY_METADATA_VERSION
	n.PutUint16(e[6:], eventHeader)
	n.PutUint64(e[8:], mask)
	n.PutUint32(e[20:], pid)
	return append(e, info...)
}

func FuzzEventsOfTheKernel(f *testing.F) {
	b := &Backing{kind: fileidIno32Gen}
	var h fileHandle
	b.encode(journal.Ident{Ino: 12, Gen: 34}, &h)
	f.Add(event(unix.FAN_CREATE, 2, &h, "name"))
	f.Add(append(event(unix.FAN_DELETE, 1, &h, "own"), event(unix.FAN_Q_OVERFLOW, 0, &h, "")...))
	f.Fuzz(func(t *testing.T, buf []byte) {
		events, err := b.parseEvents(buf, 1, nil)
		if err != nil && !errors.Is(err, ErrOverflow) && !errors.Is(err, errEvent) {
			t.Error(err)
		}
		if len(events) > len(buf)/eventHeader {
			t.Errorf("%d events in %d bytes", len(events), len(buf))
		}
	})
}

func TestAnOverflowIsToldWithTheEventsAroundIt(t *testing.T) {
	b := &Backing{kind: fileidIno32Gen}
	var h fileHandle
	b.encode(journal.Ident{Ino: 12, Gen: 34}, &h)
	buf := slices.Concat(event(unix.FAN_CREATE, 2, &h, "a"), event(unix.FAN_Q_OVERFLOW, 0, &h, ""), event(unix.FAN_DELETE, 2, &h, "b"))
	events, err := b.parseEvents(buf, 1, nil)
	if !errors.Is(err, ErrOverflow) || fmt.Sprint(events) != fmt.Sprint([]Event{
		{What: Named, Dir: journal.Ident{Ino: 12, Gen: 34}, Name: "a"}, {What: Unnamed, Dir: journal.Ident{Ino: 12, Gen: 34}, Name: "b"},
	}) {
		t.Errorf("%v, %v", events, err)
	}
}
