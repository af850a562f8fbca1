package volume

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/journal"
)

const (
	churnFiles = 4
	churnSize  = 200_000 // bytes that a file has at most, but for the rest of a block
	churnSeals = 15      // in each of the volume's lives
	churnLives = 3
	churnHeld  = 4        // views at a time
	churnLog   = 64 << 10 // bytes of an intent log, so that it is absorbed all the time
)

// churn is a file that one goroutine changes, with what it was after each call.
type churn struct {
	id journal.Ident
	r  *rand.Rand

	mu     sync.Mutex
	states []churnState // after the calls from first on
	first  int
	done   int // calls that have returned; one more may be under way, of which the state is there too
}

// churnState is what a file is after a call.
type churnState struct {
	call    string
	content []byte
}

// change makes one call.
func (c *churn) change(v *Volume) error {
	c.mu.Lock()
	n := modelNode{data: bytes.Clone(c.states[len(c.states)-1].content)}
	c.mu.Unlock()
	call, do := c.draw(v, &n)
	c.mu.Lock()
	c.states = append(c.states, churnState{call, n.data})
	c.mu.Unlock()
	if err := do(); err != nil {
		return fmt.Errorf("%s: %w", call, err)
	}
	c.mu.Lock()
	c.done++
	c.mu.Unlock()
	return nil
}

// draw draws a call, as a mount makes it or a transfer, and makes it on the model.
func (c *churn) draw(v *Volume, n *modelNode) (call string, do func() error) {
	off := c.r.Int64N(churnSize - 1)
	x := journal.Extent{Off: off, End: off + 1 + c.r.Int64N(min(60_000, churnSize-off))}
	if c.r.IntN(3) == 0 {
		x = journal.Extent{Off: x.Off / 4096 * 4096, End: (x.End/4096 + 1) * 4096}
	}
	switch kind, transfer := c.r.IntN(6), c.r.IntN(3) == 0; kind {
	case 0:
		n.resize(int(off))
		return fmt.Sprint("truncate to ", off), func() error {
			if transfer {
				return c.apply(v, func(f *ApplyFile) error { return f.Truncate(off) })
			}
			return v.SetAttr(c.id, Setting{Valid: SetSize, Size: off}, new(Inode))
		}
	case 1:
		if end := min(int(x.End), len(n.data)); int(x.Off) < end {
			clear(n.data[x.Off:end])
		}
		return fmt.Sprint("punch ", x), func() error {
			if transfer {
				return c.apply(v, func(f *ApplyFile) error { return f.Punch(x) })
			}
			return v.Allocate(c.id, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, x.Off, x.Len(), false)
		}
	default:
		p := bytes.Repeat([]byte{byte(1 + c.r.IntN(255))}, int(x.Len()))
		n.write(int(x.Off), p)
		return fmt.Sprint("write ", x), func() (err error) {
			if transfer {
				return c.apply(v, func(f *ApplyFile) error { _, err := f.WriteAt(p, x.Off); return err })
			}
			_, err = v.Write(c.id, [][]byte{p}, x.Off, false)
			return err
		}
	}
}

// apply changes the file as a transfer does.
func (c *churn) apply(v *Volume, change func(*ApplyFile) error) error {
	f, err := v.OpenForApply(c.id)
	if err != nil {
		return err
	}
	defer f.Close()
	return change(f)
}

// calls gives how many calls have returned, and how many have begun.
func (c *churn) calls() (done, begun int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.done, c.first + len(c.states) - 1
}

// after gives the states after low to high calls, and forgets those before.
func (c *churn) after(low, high int) []churnState {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.states = slices.Clone(c.states[low-c.first:])
	c.first = low
	return slices.Clone(c.states[:high-low+1])
}

// exactView is a view with what its files are.
type exactView struct {
	view     *View
	snapshot string // empty: it is a transfer's
	contents [][]byte
}

// TestEachCallIsInASealOrNot has files changed without a pause while the volume is sealed again and again. Each
// view must show every file as it was after some call: not before those that had returned when the seal was asked
// for, nor after those that had begun when it was there. It must show the same for as long as it is held, whatever
// other views come and go, whatever the journal absorbs, folds and forgets, and when the volume is opened again.
func TestEachCallIsInASealOrNot(t *testing.T) {
	dir, seed := t.TempDir(), rand.Uint64()
	t.Logf("seed %d", seed)
	v, err := Open(dir, Options{Name: "test", Create: true})
	must(t, err)
	var files []*churn
	for i := range churnFiles {
		files = append(files, &churn{id: v.mustFile(t, v.root, fmt.Sprint(i), ""),
			r: rand.New(rand.NewPCG(seed, uint64(i))), states: []churnState{{}}})
	}
	var views []*exactView
	for life := range churnLives {
		must(t, v.Close())
		for _, name := range []string{"intent-a.log", "intent-b.log"} {
			must(t, os.Truncate(filepath.Join(dir, StateDir, "journal", name), churnLog))
		}
		v, err = Open(dir, Options{Name: "test"})
		must(t, err)
		views = recall(t, v, views)
		views = sealMany(t, v, rand.New(rand.NewPCG(seed, uint64(churnFiles+life))), files, views)
	}
	must(t, v.Close())
}

// recall opens the views of the snapshots again; those of transfers are gone.
func recall(t *testing.T, v *Volume, views []*exactView) []*exactView {
	t.Helper()
	v.ReleaseUnclaimed()
	views = slices.DeleteFunc(views, func(e *exactView) bool { return e.snapshot == "" })
	for _, e := range views {
		_, view, err := v.OpenSnapshot(e.snapshot)
		must(t, err)
		e.view = view
	}
	return views
}

// sealMany seals a volume while its files are changed, and looks at the views.
func sealMany(t *testing.T, v *Volume, r *rand.Rand, files []*churn, views []*exactView) []*exactView {
	t.Helper()
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for _, c := range files {
		writers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := c.change(v); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	rest := sync.OnceFunc(func() {
		close(stop)
		writers.Wait()
	})
	defer rest()
	for range churnSeals {
		views = append(views, sealOnce(t, v, files, r.IntN(3) == 0))
		for _, e := range views {
			e.check(t, files)
		}
		for len(views) > churnHeld || len(views) > 0 && r.IntN(2) == 0 {
			i := r.IntN(len(views))
			views[i].end(t, v)
			views = slices.Delete(views, i, i+1)
		}
		if r.IntN(3) == 0 {
			must(t, v.journal.Forget(v.journal.Epoch()-1))
		}
	}
	rest()
	for _, e := range views {
		e.check(t, files)
		must(t, e.view.Close())
	}
	return views
}

// sealOnce takes a seal and finds out what each file was.
func sealOnce(t *testing.T, v *Volume, files []*churn, named bool) *exactView {
	t.Helper()
	e := &exactView{}
	low, high := make([]int, len(files)), make([]int, len(files))
	for i, c := range files {
		low[i], _ = c.calls()
	}
	var err error
	if named {
		var s Snapshot
		s, err = v.CreateSnapshot("", time.Time{})
		must(t, err)
		e.snapshot = s.Name
		_, e.view, err = v.OpenSnapshot(s.Name)
	} else {
		e.view, err = v.Seal()
	}
	must(t, err)
	for i, c := range files {
		_, high[i] = c.calls()
	}
	for i, c := range files {
		content := e.look(t, c.id)
		states := c.after(low[i], high[i])
		if !slices.ContainsFunc(states, func(s churnState) bool { return bytes.Equal(s.content, content) }) {
			t.Fatalf("seal %d, file %d, of %d bytes, is what it was after none of these calls:%s", e.view.Epoch(), i, len(content), churnDifferences(content, states))
		}
		e.contents = append(e.contents, content)
	}
	return e
}

// check compares a view with what it was at first.
func (e *exactView) check(t *testing.T, files []*churn) {
	t.Helper()
	for i, c := range files {
		if got, was := e.look(t, c.id), e.contents[i]; !bytes.Equal(got, was) {
			t.Fatalf("seal %d, file %d, of %d bytes, is not what it was at first:%s", e.view.Epoch(), i, len(got), churnDifferences(got, []churnState{{"that", was}}))
		}
	}
}

// end lets go of a view, and of its snapshot.
func (e *exactView) end(t *testing.T, v *Volume) {
	t.Helper()
	must(t, e.view.Close())
	if e.snapshot != "" {
		must(t, v.DeleteSnapshot(e.snapshot))
	}
}

// look reads a file, of which nothing that is a hole may have data.
func (e *exactView) look(t *testing.T, id journal.Ident) []byte {
	t.Helper()
	f, err := e.view.Open(id)
	must(t, err)
	defer f.Close()
	content := make([]byte, churnSize+8192)
	n, err := f.read(content, 0)
	must(t, err)
	size, err := f.size()
	must(t, err)
	if int64(n) != size {
		t.Fatalf("seal %d: %d bytes can be read of %d", e.view.Epoch(), n, size)
	}
	content = content[:n]
	for at := int64(0); at < size; {
		data, ok, err := f.NextData(at, size)
		must(t, err)
		if !ok {
			data = journal.Extent{Off: size, End: size}
		}
		if len(bytes.Trim(content[at:data.Off], "\x00")) > 0 {
			t.Fatalf("seal %d: there is data between %d and %d, which is said to be a hole", e.view.Epoch(), at, data.Off)
		}
		at = data.End
	}
	return content
}

// churnDifferences tells in which blocks some content differs from states.
func churnDifferences(content []byte, states []churnState) (text string) {
	for _, s := range states {
		var blocks journal.Extents
		for at := range min(len(content), len(s.content)) {
			if off := int64(at) / 4096 * 4096; content[at] != s.content[at] && !blocks.Covers(journal.Extent{Off: off, End: off + 1}) {
				blocks = blocks.Add(journal.Extent{Off: off, End: off + 4096})
			}
		}
		text += fmt.Sprintf("\n%s: %d bytes, other ones in %v", s.call, len(s.content), blocks)
	}
	return text
}
