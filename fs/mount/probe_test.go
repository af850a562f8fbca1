package mount

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The probe reads a mount in every way that it knows, from a process of its own, while the test publishes one
// state after the other. All that is there tells the number of its state. What one call saw is compared with what
// any call that ended before it saw: it must not be older.

// probedMount and probedShared name the variables that make this program a probe.
const (
	probedMount  = "TANDEMFS_TEST_PROBED_MOUNT"
	probedShared = "TANDEMFS_TEST_PROBED_SHARED"
)

// shared is memory that the test and its probe have in common.
type shared struct {
	started atomic.Int64 // the newest state that may be seen
	seen    atomic.Int64 // the newest state that was seen
	polls   atomic.Int64
	slowest atomic.Int64 // of all calls, in nanoseconds
}

func mapShared(path string) (*shared, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, 4096); err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return (*shared)(unsafe.Pointer(&mem[0])), nil
}

func raise(a *atomic.Int64, to int64) {
	for now := a.Load(); now < to && !a.CompareAndSwap(now, to); now = a.Load() {
	}
}

// A file's content is its state's number, in records, as often as the state says: the size goes up and down.
const recordSize = 16

func records(state int64, file string) int64 {
	if file == "large" {
		return 8<<10 + state*4099%(8<<10) // up to 256 KiB
	}
	return 1 + state*7919%1000
}

func content(state int64, file string) []byte {
	return bytes.Repeat(fmt.Appendf(nil, "%015d\n", state), int(records(state, file)))
}

// saw is what one call saw: the oldest and the newest state. exact is false when it was not what that state is.
type saw struct {
	oldest, newest int64
	exact          bool
}

func one(state int64) saw { return saw{state, state, true} }

// parse tells what content was seen.
func parse(p []byte, file string) (s saw, err error) {
	if len(p) == 0 || len(p)%recordSize != 0 {
		return s, fmt.Errorf("%d bytes", len(p))
	}
	s.oldest = 1 << 62
	var last int64
	for rest := p; len(rest) > 0; rest = rest[recordSize:] {
		n, err := strconv.ParseInt(string(rest[:recordSize-1]), 10, 64)
		if err != nil {
			return s, fmt.Errorf("record %d of %d is %q, after %d and %+v", (len(p)-len(rest))/recordSize, len(p)/recordSize,
				bytes.TrimRight(rest[:recordSize], "\x00"), last, s)
		}
		last, s.oldest, s.newest = n, min(s.oldest, n), max(s.newest, n)
	}
	s.exact = s.oldest == s.newest && int64(len(p)) == recordSize*records(s.newest, file)
	return s, nil
}

// prober is one way of looking.
type prober struct {
	name string
	look func(*shared) (saw, error)
}

// errNothing: nothing can be concluded.
var errNothing = errors.New("nothing seen")

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func probe(mnt, sharedPath string) {
	mem := must(mapShared(sharedPath))
	var stop atomic.Bool
	var wait sync.WaitGroup
	for _, p := range probers(mnt) {
		wait.Add(1)
		go func() {
			defer wait.Done()
			for !stop.Load() {
				if wrong := p.check(mem); wrong != "" {
					fmt.Printf("%s: %s\n", p.name, wrong)
				}
				time.Sleep(50 * time.Microsecond)
			}
		}()
	}
	os.Stdin.Read(make([]byte, 1))
	stop.Store(true)
	wait.Wait()
}

// check looks once and gives what is wrong with what was seen.
func (p *prober) check(mem *shared) string {
	before, began := mem.seen.Load(), time.Now()
	s, err := p.look(mem)
	raise(&mem.slowest, int64(time.Since(began)))
	mem.polls.Add(1)
	started := mem.started.Load()
	if err == errNothing {
		return ""
	}
	still := before == started // the newest state was there before the call, and no newer one until its end
	if err != nil {
		if still || !strings.Contains(err.Error(), "raced") {
			return fmt.Sprintf("state %d of %d: %v", before, started, err)
		}
		return ""
	}
	raise(&mem.seen, s.newest)
	switch {
	case s.oldest < before:
		return fmt.Sprintf("state %d was seen after %d (newest %d, started %d)", s.oldest, before, s.newest, started)
	case s.newest > started:
		return fmt.Sprintf("state %d was seen before it was published (%d)", s.newest, started)
	case still && !s.exact:
		return fmt.Sprintf("state %d was not whole: %+v", before, s)
	}
	return ""
}

func probers(mnt string) []prober {
	path := func(name string) string { return filepath.Join(mnt, name) }
	open := func(name string, flags int) int { return must(unix.Open(path(name), flags|unix.O_CLOEXEC, 0)) }
	list := []prober{
		{"a name that is replaced", func(*shared) (saw, error) { return readLink(path("link")) }},
		{"names that change places", func(m *shared) (saw, error) { return swapped(path("x"), m) }},
		{"a listing by an open directory", lister(open("dir", unix.O_DIRECTORY))},
		{"a listing by a fresh one", func(m *shared) (saw, error) { return listFresh(path("dir")) }},
		{"a name that is not there yet", func(m *shared) (saw, error) { return ahead(path("dir"), m) }},
		{"a name that was there", func(m *shared) (saw, error) { return behind(path("dir"), m) }},
		{"mmap", mapper(open("small", unix.O_RDONLY))},
	}
	for _, file := range []string{"small", "large"} {
		fd := open(file, unix.O_RDONLY)
		direct := open(file, unix.O_RDONLY|unix.O_DIRECT)
		list = append(list,
			prober{"pread of " + file, func(*shared) (saw, error) { return preadAll(fd, file) }},
			prober{"first record of " + file, func(*shared) (saw, error) { return preadFirst(fd) }},
			prober{"O_DIRECT of " + file, func(*shared) (saw, error) { return preadAll(direct, file) }},
			prober{"open of " + file, func(*shared) (saw, error) { return readFresh(path(file), file) }},
			prober{"fstat of " + file, func(*shared) (saw, error) { return fstat(fd, file) }},
			prober{"stat of " + file, func(*shared) (saw, error) { return stat(path(file), file) }},
			prober{"xattr of " + file, func(*shared) (saw, error) { return xattr(fd) }},
		)
	}
	return list
}

var largest = int(recordSize * (16 << 10))

// aligned gives a buffer that O_DIRECT takes.
func aligned() []byte {
	buf := make([]byte, largest+8192)
	return buf[4096-int(uintptr(unsafe.Pointer(&buf[0]))%4096):][:largest+4096]
}

var buffers = sync.Pool{New: func() any {
	buf := aligned()
	return &buf
}}

func preadAll(fd int, file string) (saw, error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	n, err := unix.Pread(fd, *buf, 0)
	if err != nil {
		return saw{}, err
	}
	return parse((*buf)[:n], file)
}

// preadFirst reads no more than is there in any state, so that the kernel has no reason to ask for the size.
func preadFirst(fd int) (saw, error) {
	var buf [recordSize]byte
	if _, err := unix.Pread(fd, buf[:], 0); err != nil {
		return saw{}, err
	}
	s, err := parse(buf[:], "")
	s.exact = true
	return s, err
}

func readFresh(path, file string) (saw, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return saw{}, err
	}
	defer unix.Close(fd)
	return preadAll(fd, file)
}

func fromStat(st *unix.Stat_t, file string) (saw, error) {
	s := one(st.Mtim.Sec)
	s.exact = st.Size == recordSize*records(st.Mtim.Sec, file)
	return s, nil
}

func fstat(fd int, file string) (saw, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return saw{}, err
	}
	return fromStat(&st, file)
}

func stat(path, file string) (saw, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return saw{}, err
	}
	return fromStat(&st, file)
}

func xattr(fd int) (saw, error) {
	var buf [32]byte
	n, err := unix.Fgetxattr(fd, "user.state", buf[:])
	if err != nil {
		return saw{}, err
	}
	state, err := strconv.ParseInt(string(buf[:n]), 10, 64)
	return one(state), err
}

func readLink(path string) (saw, error) {
	var buf [32]byte
	n, err := unix.Readlink(path, buf[:])
	if err != nil {
		return saw{}, err
	}
	state, err := strconv.ParseInt(string(buf[:n]), 10, 64)
	return one(state), err
}

// swapped looks at a name that stands for one of two files that never change, by turns.
func swapped(path string, mem *shared) (saw, error) {
	state := mem.seen.Load()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return saw{}, err
	}
	defer unix.Close(fd)
	var buf [1]byte
	if _, err := unix.Pread(fd, buf[:], 0); err != nil {
		return saw{}, err
	}
	if odd := buf[0] == 'y'; odd == (state%2 == 1) {
		return saw{}, errNothing // this one or the one after the next
	}
	return one(state + 1), nil
}

func lister(fd int) func(*shared) (saw, error) {
	return func(*shared) (saw, error) { return listDir(fd) }
}

func listFresh(path string) (saw, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return saw{}, err
	}
	defer unix.Close(fd)
	return listDir(fd)
}

// listDir reads a whole directory, which takes several calls: between them the state may change.
func listDir(fd int) (saw, error) {
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		return saw{}, err
	}
	var buf [64 << 10]byte
	var names []string
	for {
		n, err := unix.Getdents(fd, buf[:])
		if err != nil {
			return saw{}, err
		}
		if n == 0 {
			break
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
	s, files := saw{oldest: 1 << 62}, 0
	for _, name := range names {
		if number, ok := strings.CutPrefix(name, "state-"); ok {
			n := must(strconv.ParseInt(number, 10, 64))
			s.oldest, s.newest = min(s.oldest, n), max(s.newest, n)
		} else {
			files++
		}
	}
	s.exact = s.oldest == s.newest && files == dirFiles
	if s.newest == 0 {
		return s, errors.New("raced: no state listed")
	}
	return s, nil
}

// dirFiles is how many other names the directory has.
const dirFiles = 20

func stateName(dir string, state int64) string {
	return filepath.Join(dir, fmt.Sprintf("state-%d", state))
}

// ahead looks for the name of the next state, which the kernel remembers to be absent.
func ahead(dir string, mem *shared) (saw, error) {
	next := mem.seen.Load() + 1
	var st unix.Stat_t
	switch err := unix.Stat(stateName(dir, next), &st); err {
	case nil:
		return one(next), nil
	case unix.ENOENT: // or it is gone again
		return saw{}, errNothing
	default:
		return saw{}, err
	}
}

// behind looks for the name of the state that was seen last: when it is gone, the next one is there.
func behind(dir string, mem *shared) (saw, error) {
	state := mem.seen.Load()
	var st unix.Stat_t
	switch err := unix.Stat(stateName(dir, state), &st); err {
	case nil:
		return one(state), nil
	case unix.ENOENT:
		return one(state + 1), nil
	default:
		return saw{}, err
	}
}

func mapper(fd int) func(*shared) (saw, error) {
	mem := must(unix.Mmap(fd, 0, 4096, unix.PROT_READ, unix.MAP_SHARED))
	return func(*shared) (saw, error) {
		s, err := parse(bytes.Clone(mem[:recordSize]), "")
		s.exact = true
		return s, err
	}
}

// hammeredFile names the variable that makes this program read a file without a pause, until it is killed.
const hammeredFile = "TANDEMFS_TEST_HAMMERED_FILE"

// hammer reads with many threads, of which some read what the kernel has not cached, or drop what it has.
func hammer(path string) {
	size := must(os.Stat(path)).Size()
	for i := range 24 {
		go func() {
			flags := unix.O_RDONLY | unix.O_CLOEXEC
			if i%4 == 1 {
				flags |= unix.O_DIRECT
			}
			fd := must(unix.Open(path, flags, 0))
			if i%4 == 2 {
				must(0, unix.Fadvise(fd, 0, 0, unix.FADV_RANDOM))
			}
			buf := aligned()[:8192]
			for off := int64(i) << 12; ; off = (off*5 + 4096*7) % size &^ 4095 {
				must(unix.Pread(fd, buf, off))
				if i%4 == 3 {
					must(0, unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED))
				}
			}
		}()
	}
	os.Stdout.Write([]byte("reading"))
	os.Stdin.Read(make([]byte, 1))
}
