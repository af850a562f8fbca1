// Package lab gives tests and benchmarks a machine to play with: filesystems of several kinds on loop
// devices, network namespaces joined by a wire, and nodes that run the real tandemfs binary. The
// guarantee: nothing of it outlives the process, however the process ends.
//
//   - Mounts are made in a mount namespace of the process's own (see Private): it ends with the last
//     process in it, and the mounts with it.
//   - A loop device clears itself when its mount goes; its image has no name from the start.
//   - A network namespace has no name either, only a thread and a descriptor.
//   - A node gets SIGTERM from the kernel when the thread that started it dies.
//
// What a test made is ended in reverse order when the test is over, also when it failed or panicked, and
// Main fails a run that leaves something behind all the same.
package lab

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// T is what the lab needs of a test: *testing.T and *testing.B have it, and so can a program.
type T interface {
	Helper()
	Name() string
	Failed() bool
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Cleanup(func())
}

// Prefix starts the name of every directory that the lab makes under the system's temporary directory.
const Prefix = "tandem-lab-"

// own is the prefix of this process's directories: others may run tests at the same time.
var own = fmt.Sprintf("%s%d-", Prefix, os.Getpid())

// Dir makes a directory that belongs to the test. At its end everything that is still mounted below the
// directory is unmounted, whoever mounted it, and the directory removed.
func Dir(t T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", own)
	if err != nil {
		t.Fatalf("make a directory: %v", err)
	}
	t.Cleanup(func() {
		if err := unmountBelow(dir); err != nil {
			t.Errorf("clean up: %v", err)
			return // never remove what may still be somebody's mount
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return dir
}

// Mounts lists the mount points at or below dir, in the order in which they were mounted; all with "/".
func Mounts(dir string) ([]Mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var found []Mount
	for lines := bufio.NewScanner(f); lines.Scan(); {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if len(fields) < 6 || len(kind) < 2 {
			return nil, fmt.Errorf("mountinfo: cannot read %q", lines.Text())
		}
		path := unescape(fields[4])
		if path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/") {
			found = append(found, Mount{Path: path, Type: kind[0], Options: strings.Split(fields[5], ",")})
		}
	}
	return found, nil
}

// A Mount is a line of /proc/self/mountinfo.
type Mount struct {
	Path    string
	Type    string   // of the filesystem
	Options []string // of the mount, not of the filesystem: "ro", "nosuid", ...
}

// Has reports whether the mount has the option.
func (m Mount) Has(option string) bool { return slices.Contains(m.Options, option) }

// unescape undoes the octal escapes that mountinfo writes for blanks.
func unescape(s string) string {
	for i := 0; i+3 < len(s); i++ {
		if s[i] != '\\' {
			continue
		}
		if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
			s = s[:i] + string(rune(c)) + s[i+4:]
		}
	}
	return s
}

// unmountBelow unmounts all that is mounted at or below dir, the last mount first.
func unmountBelow(dir string) error {
	mounts, err := Mounts(dir)
	if err != nil {
		return err
	}
	var all error
	for _, m := range slices.Backward(mounts) {
		all = errors.Join(all, unmount(m.Path))
	}
	return all
}

// unmount waits a little for a mount that is busy. One that stays busy is detached, so that the process
// can go on, and reported, because somebody holds it.
func unmount(path string) error {
	var err error
	for range 100 {
		if err = unix.Unmount(path, unix.UMOUNT_NOFOLLOW); !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err == nil || errors.Is(err, unix.EINVAL) { // EINVAL: not mounted any more
		return nil
	}
	return errors.Join(fmt.Errorf("unmount %s: %w", path, err), unix.Unmount(path, unix.MNT_DETACH))
}

// Eventually tries check until it gives nil, or fails the test with its last error when the time is up.
func Eventually(t T, within time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after %v: %v", what, within, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// MakeDir makes a directory, with its parents, and returns its path.
func MakeDir(t T, elements ...string) string {
	t.Helper()
	path := filepath.Join(elements...)
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatalf("make a directory: %v", err)
	}
	return path
}
