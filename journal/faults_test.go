package journal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"tandemfs/journal/failpoint"
)

// play does everything with a journal, in an order that is always the same, and notes what was said to be
// recorded.
type play struct {
	j      *Journal
	told   []func(*Journal) error // each checks that it is told still
	failed error                  // what the first step that failed gave
	held   Epoch
}

// step does something. What it says to have done must be told from then on.
func (p *play) step(do func() error, check func(*Journal) error) {
	switch err := do(); {
	case err != nil && p.failed == nil:
		p.failed = err
	case err == nil && check != nil:
		p.told = append(p.told, check)
	}
}

func (p *play) touch(do func() error, check func(*Journal) error) {
	p.step(func() error { return inside(p.j, do) }, check)
}

// run plays it all but the opening and the closing.
func (p *play) run() {
	j := p.j
	p.step(func() (err error) { p.held, err = j.Seal(true); return err }, func(j *Journal) error {
		if !slices.Contains(j.Held(), p.held) || j.Epoch() <= p.held {
			return fmt.Errorf("seal %d is not held in epoch %d: %v", p.held, j.Epoch(), j.Held())
		}
		return nil
	})
	p.touch(func() error { return j.TouchName(ino(1), "a", ino(5)) }, p.name("a", ino(5)))
	p.touch(func() error { return j.TouchData(ino(20), Extent{0, 4096}, imageOf(77)) }, p.image(ino(20), 77))
	p.touch(func() error { return j.NoteCreated(ino(30)) }, p.what(ino(30), Created))
	p.step(func() error { return j.SetState("key", []byte("value")) }, stateIs("value"))
	p.step(func() error { return errors.Join(j.Map("m").Put(ino(7), ino(8)), j.Map("m").Flush()) }, isPaired(ino(7), ino(8)))
	for i := range 700 { // more than both logs hold
		id := Ident{Ino: 1 << 40, Gen: uint64(i)}
		p.touch(func() error { return j.TouchMeta(id, nil) }, p.what(id, Meta))
	}
	p.step(j.Sync, nil)
	p.step(func() error { _, err := j.Seal(false); return err }, nil)
	p.touch(func() error { return j.TouchName(ino(1), "b", ino(6)) }, p.name("b", ino(6)))
	p.touch(func() error { return j.TouchMeta(ino(21), imageOf(78)) }, p.image(ino(21), 78))
	p.step(func() error { return j.SetState("more", []byte("than that")) }, nil)
}

func (p *play) name(name string, was Ident) func(*Journal) error {
	return func(j *Journal) error {
		if p.held == 0 {
			return nil
		}
		if got, ok, err := j.NameAt(p.held, ino(1), name); err != nil || !ok || got != was {
			return fmt.Errorf("the name %q: %v, %v, %w", name, got, ok, err)
		}
		return nil
	}
}

func (p *play) image(id Ident, size int64) func(*Journal) error {
	return func(j *Journal) error {
		if p.held == 0 {
			return nil
		}
		if got, ok, err := j.ImageAt(p.held, id); err != nil || !ok || got.Attr.Size != size {
			return fmt.Errorf("the image of %s: %v, %v, %w", id, got, ok, err)
		}
		return nil
	}
}

func (p *play) what(id Ident, what What) func(*Journal) error {
	return func(j *Journal) error {
		c, err := j.Changes(0, p.held+1)
		if err == nil {
			var got InodeChange
			if got, _, err = c.Inode(id); err == nil && got.What&what == 0 {
				err = fmt.Errorf("it is told as %v", got)
			}
		}
		if err != nil {
			return fmt.Errorf("inode %s: %w", id, err)
		}
		return nil
	}
}

func stateIs(want string) func(*Journal) error {
	return func(j *Journal) error {
		if got, err := j.State("key"); err != nil || string(got) != want {
			return fmt.Errorf("the state: %q, %w", got, err)
		}
		return nil
	}
}

func isPaired(from, to Ident) func(*Journal) error {
	return func(j *Journal) error {
		if got, ok, err := j.Map("m").Get(from); err != nil || !ok || got != to {
			return fmt.Errorf("the map: %v, %v, %w", got, ok, err)
		}
		return nil
	}
}

// check gives what is not told any more, or what reading it gives.
func (p *play) check(j *Journal) error {
	for j.Epoch() <= p.held+1 { // so that changes can be asked for
		if _, err := j.Seal(false); err != nil {
			return err
		}
	}
	for _, check := range p.told {
		if err := check(j); err != nil {
			return err
		}
	}
	return nil
}

// fault is what befalls a play.
type fault struct {
	name    string
	err     error
	short   bool
	every   bool // not one call, but each once
	lasting bool
	applies func(call string) bool

	n    int
	mu   sync.Mutex
	all  []string
	hit  string
	just bool // the last call failed
}

func (f *fault) ask(call string, size int) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := len(f.all)
	f.all = append(f.all, call)
	again := f.just && f.err == unix.EINTR
	f.just = (n == f.n || f.lasting && n > f.n || f.every) && !again && (f.applies == nil || f.applies(call))
	if !f.just || f.short && size < 2 {
		return size, nil
	}
	if f.hit == "" {
		f.hit = call
	}
	if f.short {
		return size / 2, nil
	}
	return 0, f.err
}

// playWith plays it in a new directory with a fault, and gives what was said, and what close or open gave.
func playWith(dir string, f *fault) (*play, error) {
	defer failpoint.Arm(f.ask)()
	j, err := Open(dir, small())
	if err != nil {
		return &play{}, err
	}
	p := &play{j: j}
	p.run()
	return p, j.Close()
}

func isCall(call string) bool {
	return !strings.HasPrefix(call, "store ") && !strings.HasPrefix(call, "log ")
}

func takesRoom(call string) bool {
	return slices.Contains([]string{"open", "mkdir", "pwrite", "fallocate", "rename", "store update", "store flush"}, call)
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

// Each call fails in turn. What the journal has said to be recorded is told when it is opened again, and nothing
// that it could not record was said to be.
func TestWhateverCallFailsWhatWasRecordedIsTold(t *testing.T) {
	plain := &fault{n: -1}
	if p, err := playWith(t.TempDir(), plain); p.failed != nil || err != nil {
		t.Fatalf("nothing fails: %v, %v", p.failed, err)
	}
	had, tried := openFiles(t), 0
	for _, f := range []*fault{
		{name: "EINTR", err: unix.EINTR, every: true, applies: isCall},
		{name: "short", short: true, every: true},
		{name: "EIO", err: unix.EIO},
		{name: "ENOSPC", err: unix.ENOSPC, applies: takesRoom},
		{name: "EIO from then on", err: unix.EIO, lasting: true},
	} {
		met := map[string]int{}
		for n, call := range plain.all {
			if f.applies != nil && !f.applies(call) || f.every && n > 0 {
				continue
			}
			met[call]++
			alike := met[call] > 10 && n < len(plain.all)-50 // there are hundreds of some
			if !thorough && (alike && met[call]%50 != 0 || f.lasting && n%4 != 0) {
				continue
			}
			f.n, f.all, f.hit, f.just = n, nil, "", false
			tryFault(t, f)
			tried++
		}
	}
	if has := openFiles(t); has != had {
		t.Errorf("%d descriptors, before %d", has, had)
	}
	t.Logf("%d calls, %d plays", len(plain.all), tried)
}

// thorough has more of the faults tried that lie among others of their kind.
var thorough = os.Getenv("TANDEMFS_FAULTS") == "all"

func tryFault(t *testing.T, f *fault) {
	dir := t.TempDir()
	p, err := playWith(dir, f)
	what := fmt.Sprintf("call %d (%s) gives %s", f.n, f.hit, f.name)
	for _, err := range []error{p.failed, err} {
		switch {
		case err != nil && (f.every || f.hit == ""):
			t.Errorf("%s: the caller sees it: %v", what, err)
		case err != nil && !errors.Is(err, f.err):
			t.Errorf("%s: the caller is told something else: %v", what, err)
		}
	}
	j, err := Open(dir, small())
	if err != nil {
		t.Errorf("%s: it cannot be opened again: %v", what, err)
		return
	}
	if err := p.check(j); err != nil {
		t.Errorf("%s: not told any more: %v", what, err)
	}
	if err := j.Close(); err != nil {
		t.Errorf("%s: closed again: %v", what, err)
	}
}

// damage is what happens to a file.
type damage struct {
	name string
	do   func(path string, content []byte) error
}

func put(path string, content []byte) error { return os.WriteFile(path, content, 0o600) }

// damages are many ways to spoil a file, within what is used of it.
func damages(content []byte) []damage {
	used := len(bytes.TrimRight(content, "\x00"))
	list := []damage{
		{"removed", func(path string, _ []byte) error { return os.Remove(path) }},
		{"emptied", func(path string, _ []byte) error { return put(path, nil) }},
		{"cut in half", func(path string, c []byte) error { return put(path, c[:used/2]) }},
		{"cut by a byte", func(path string, c []byte) error { return put(path, c[:max(0, used-1)]) }},
		{"all zeros", func(path string, c []byte) error { clear(c); return put(path, c) }},
		{"the second half zeros", func(path string, c []byte) error { clear(c[used/2:]); return put(path, c) }},
	}
	for _, at := range []int{0, 4, 9, 17, 25, used / 4, used / 2, used - 40, used - 9, used - 1} {
		if at < 0 || at >= used {
			continue
		}
		list = append(list, damage{fmt.Sprintf("byte %d of %d flipped", at, used), func(path string, c []byte) error {
			c[at] ^= 0x15
			return put(path, c)
		}})
	}
	return list
}

// A journal with a damaged file tells everything that it was told, or says that it is damaged; also when it is opened
// once more.
func TestADamagedFileIsRecognised(t *testing.T) {
	dir := t.TempDir()
	j, err := Open(dir, small())
	must(t, err)
	p := &play{j: j}
	p.run()
	must(t, p.failed)
	settle(j)
	died := copyOf(t, dir)
	must(t, j.Close())
	for state, dir := range map[string]string{"closed": dir, "died": died} {
		t.Run(state, func(t *testing.T) { damageAll(t, dir, p) })
	}
}

func damageAll(t *testing.T, dir string, p *play) {
	recognised, told := 0, 0
	for _, name := range filesOf(t, dir) {
		content, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		for _, d := range damages(content) {
			damaged := t.TempDir()
			must(t, copyDir(dir, damaged))
			must(t, d.do(filepath.Join(damaged, name), bytes.Clone(content)))
			err := reread(damaged, p)
			switch {
			case err == nil:
				told++
			case errors.Is(err, ErrCorrupt), errors.Is(err, ErrVersion):
				recognised++
				// Badger may mend what does not matter.
				if err := reread(damaged, p); err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
					t.Errorf("%s, %s: opened once more: %v", name, d.name, err)
				}
			default:
				t.Errorf("%s, %s: %v", name, d.name, err)
			}
			must(t, os.RemoveAll(damaged))
		}
	}
	t.Logf("recognised %d times, harmless %d times", recognised, told)
	if recognised == 0 {
		t.Error("nothing was recognised")
	}
}

func filesOf(t *testing.T, dir string) (names []string) {
	t.Helper()
	for _, pattern := range []string{"*", storeName + "/*"} {
		paths, err := filepath.Glob(filepath.Join(dir, pattern))
		must(t, err)
		for _, path := range paths {
			name, err := filepath.Rel(dir, path)
			must(t, err)
			if name != "lock" && name != storeName {
				names = append(names, name)
			}
		}
	}
	return names
}

// reread opens a journal and gives what is wrong with it.
func reread(dir string, p *play) error {
	j, err := Open(dir, small())
	if err != nil {
		return err
	}
	defer j.Close()
	return p.check(j)
}

// Badger's files are mapped, without blocks of their own: a full disk would end the process.
func TestWithoutRoomAStateIsNotSetAndThatIsSaid(t *testing.T) {
	free := uint64(1 << 40)
	o := small()
	o.freeSpace = func(string) (uint64, error) { return free, nil }
	j := open(t, t.TempDir(), o)
	must(t, j.SetState("key", []byte("value")))
	free = updateReserve - 1
	if err := j.SetState("key", []byte("other")); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("SetState gave %v", err)
	}
	must(t, j.Map("m").Put(ino(1), ino(2)))
	if err := j.Map("m").Flush(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Flush gave %v", err)
	}
	if got, err := j.State("key"); string(got) != "value" || err != nil {
		t.Errorf("the state is %q, %v", got, err)
	}
	free = updateReserve // still too little for much more
	must(t, j.SetState("key", nil))
	must(t, j.Map("m").Flush())
	if to, ok, err := j.Map("m").Get(ino(1)); to != ino(2) || !ok || err != nil {
		t.Errorf("the map: %v, %v, %v", to, ok, err)
	}
	free = 1 << 40
}
