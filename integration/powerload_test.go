package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/integration/lab"
	"tandemfs/integration/tree"
)

// A promise is what an fsync of a file has returned for: the file is there after a power cut, in the state of then or
// a later one. Of what was written after it each page may or may not be there.
type promise struct {
	ino    uint64
	names  map[string]bool // without their directories, since then
	gone   bool            // it may have lost its last name since
	states [][]byte        // what it held since
}

// sync syncs a file of the source; false when that failed.
func (p *power) sync(f fileName) bool {
	p.t.Helper()
	fd, err := unix.Open(filepath.Join(p.source.Mount, f.path), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &st), unix.Fsync(fd)); err != nil {
		return false
	}
	if p.going.Load() { // not before the power went: ext4 lets an fsync succeed whose transaction the shutdown has stopped
		return true
	}
	now, err := os.ReadFile(filepath.Join(p.plain, f.path))
	check(p.t, err)
	p.promises[f.inode] = &promise{ino: st.Ino, names: p.namesOf(f.inode), states: [][]byte{now}}
	return true
}

// namesOf lists the names of an inode of the history.
func (p *power) namesOf(inode int) map[string]bool {
	names := map[string]bool{}
	for _, f := range p.history.files {
		if f.inode == inode {
			names[filepath.Base(f.path)] = true
		}
	}
	return names
}

// follows notes what a call, which was made or may have been made, does to what was promised.
func (p *power) follows(c call) {
	p.t.Helper()
	for inode, promised := range p.promises {
		names := p.namesOf(inode)
		promised.gone = promised.gone || len(names) == 0
		for name := range names {
			promised.names[name] = true
		}
	}
	for _, f := range p.history.files {
		if promised := p.promises[f.inode]; promised != nil && f.path == c.file {
			now, err := os.ReadFile(filepath.Join(p.plain, f.path))
			check(p.t, err)
			promised.states = append(promised.states, now)
		}
	}
}

// areKept looks on the source's disk for what was promised.
func (p *power) areKept() {
	p.t.Helper()
	found := map[uint64][]string{}
	check(p.t, filepath.WalkDir(p.source.Backing, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Name() == tree.StateDir {
			return fs.SkipDir
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		found[st.Ino] = append(found[st.Ino], path)
		return nil
	}))
	for inode, promised := range p.promises {
		if promised.gone {
			continue
		}
		if err := promised.isKept(found[promised.ino]); err != nil {
			p.t.Errorf("round %d: an fsync of %v (inode %d of the history) had returned, and %v", p.round, promised.names, inode, err)
		}
		p.counts.kept++
	}
}

func (p *promise) isKept(paths []string) error {
	if len(paths) == 0 {
		return errors.New("the file is gone")
	}
	for _, path := range paths {
		if !p.names[filepath.Base(path)] {
			return fmt.Errorf("its name is %s", path)
		}
	}
	b, err := os.ReadFile(paths[0])
	if err != nil {
		return err
	}
	least, most := len(p.states[0]), 0
	for _, s := range p.states {
		least, most = min(least, len(s)), max(most, len(s))
	}
	if len(b) < least || len(b) > most {
		return fmt.Errorf("it has %d bytes; since then it had %d to %d", len(b), least, most)
	}
	for i, v := range b {
		if !p.had(i, v) {
			return fmt.Errorf("it has %d at %d of %d, which it never had since then", v, i, len(b))
		}
	}
	return nil
}

// had reports whether a byte was there in one of the states, or nothing was, which a hole stands for.
func (p *promise) had(i int, v byte) bool {
	for _, s := range p.states {
		if i < len(s) && s[i] == v || i >= len(s) && v == 0 {
			return true
		}
	}
	return false
}

// Weather is what else happens to the disks of machines before their power goes: the kernel writes some pages back and
// not others, and some transactions of a filesystem and not what they belong to.
type weather struct {
	quit chan struct{}
	done sync.WaitGroup
}

func newWeather(machines []*lab.Machine, r *rand.Rand) *weather {
	w := &weather{quit: make(chan struct{})}
	for _, m := range machines {
		calm := time.Duration(r.IntN(20)) * time.Millisecond
		own := rand.New(rand.NewPCG(r.Uint64(), 0))
		w.done.Go(func() {
			for {
				select {
				case <-w.quit:
					return
				case <-time.After(calm):
					blow(m.Disk, own)
				}
			}
		})
	}
	return w
}

// end is for when the power is gone.
func (w *weather) end() {
	close(w.quit)
	w.done.Wait()
}

// blow does one such thing. What fails does not matter: files go, and so does the disk.
func blow(disk string, r *rand.Rand) {
	switch n := r.IntN(40); {
	case n == 0:
		_ = withFileOf(disk, os.O_RDONLY, unix.Syncfs)
	case n < 8: // commits a transaction of ext4, with the times of files that are not written back
		_ = withFileOf(filepath.Join(disk, "unrelated"), os.O_CREATE|os.O_WRONLY, func(fd int) error {
			_, err := unix.Pwrite(fd, []byte{byte(n)}, 0)
			return errors.Join(err, unix.Fsync(fd))
		})
	default:
		files := filesOf(disk)
		if len(files) == 0 {
			return
		}
		_ = withFileOf(files[r.IntN(len(files))], os.O_RDONLY, func(fd int) error {
			off, length := r.Int64N(300_000)&^(page-1), r.Int64N(100_000)
			const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
			return unix.SyncFileRange(fd, off, length, all)
		})
	}
}

func withFileOf(path string, flags int, f func(fd int) error) error {
	file, err := os.OpenFile(path, flags, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	return f(int(file.Fd()))
}

// filesOf lists the files of a disk that somebody changes, the journal's among them.
func filesOf(disk string) (files []string) {
	_ = filepath.WalkDir(disk, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !strings.Contains(path, "/"+bulkDir+"/") {
			files = append(files, path)
		}
		return nil
	})
	return files
}
