package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

// A load is writers at work on a volume, each as fast as it can go and each with files of its own. Times are
// counted from its start.
type load struct {
	began   time.Time
	stop    atomic.Bool
	writers []*writer
	working sync.WaitGroup
}

// A writer overwrites blocks of one file, and every now and then replaces a small file by a new one. Its
// fields belong to its goroutine while the load runs.
type writer struct {
	dir        string
	large      *os.File
	rng        *rand.Rand
	block      []byte
	operations []operation // in the order of their times, which do not overlap
	err        error
}

// An operation is when a writer began something, and when it was done.
type operation struct{ begun, done time.Duration }

const (
	loadBlocks  = 4096 // of each writer's large file
	smallFiles  = 256  // of each writer
	betweenNews = 8    // one operation in so many makes a file, another one removes the one that was there
)

// startLoad lets n writers work in dir, which a load may have worked in before.
func startLoad(dir string, n int) (*load, error) {
	l := &load{}
	for i := range n {
		w, err := newWriter(filepath.Join(dir, fmt.Sprintf("writer-%d", i)), uint64(i))
		if err != nil {
			return nil, errors.Join(err, l.end())
		}
		l.writers = append(l.writers, w)
	}
	l.began = time.Now()
	for _, w := range l.writers {
		l.working.Go(func() { w.work(l) })
	}
	return l, nil
}

func newWriter(dir string, seed uint64) (*writer, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "large")
	if err := writeBlocks(path, places(loadBlocks*blockSize, blockSize), blockSize); err != nil {
		return nil, err
	}
	large, err := os.OpenFile(path, os.O_WRONLY, 0)
	return &writer{dir: dir, large: large, rng: rand.New(rand.NewPCG(seed, 1)), block: make([]byte, blockSize)}, err
}

// now is the time since the load began.
func (l *load) now() time.Duration { return time.Since(l.began) }

// end lets the writers end, and gives their errors.
func (l *load) end() error {
	l.stop.Store(true)
	l.working.Wait()
	var errs error
	for _, w := range l.writers {
		errs = errors.Join(errs, w.err, w.large.Close())
	}
	return errs
}

// work goes on until the load ends, or something fails.
func (w *writer) work(l *load) {
	for i := 0; !l.stop.Load() && w.err == nil; i++ {
		begun := l.now()
		w.err = w.step(i)
		w.operations = append(w.operations, operation{begun, l.now()})
	}
}

// step is the writer's i-th operation.
func (w *writer) step(i int) error {
	small := filepath.Join(w.dir, fmt.Sprint(i/betweenNews%smallFiles))
	switch i % betweenNews {
	case betweenNews - 2:
		if err := os.Remove(small); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	case betweenNews - 1:
		return os.WriteFile(small, w.block, 0o644)
	}
	_, err := w.large.WriteAt(w.block, w.rng.Int64N(loadBlocks)*blockSize)
	return err
}

// longest is the longest time that any operation took of those that were under way between two moments. The
// load must have ended.
func (l *load) longest(from, to time.Duration) (longest time.Duration) {
	for _, w := range l.writers {
		first := sort.Search(len(w.operations), func(i int) bool { return w.operations[i].done >= from })
		for _, o := range w.operations[first:] {
			if o.begun > to {
				break
			}
			longest = max(longest, o.done-o.begun)
		}
	}
	return longest
}
