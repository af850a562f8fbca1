package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// BinaryVariable names the environment variable that says which tandemfs binary to test. Main builds one
// and sets it where it is not set.
const BinaryVariable = "TANDEMFS_TEST_BINARY"

// privateVariable marks the process that Private started.
const privateVariable = "TANDEMFS_LAB_PRIVATE"

// tools are the programs that the lab runs, with the Debian packages that hold them.
var tools = map[string]string{
	"mkfs.ext4":  "e2fsprogs",
	"mkfs.xfs":   "xfsprogs",
	"mkfs.btrfs": "btrfs-progs",
	"ip":         "iproute2",
	"tc":         "iproute2",
	"go":         "golang (1.26 or newer, from go.dev)",
}

// Main is a test binary's TestMain: it moves to a mount namespace of its own, makes sure that all is there
// that the tests need, builds the binary under test, runs the tests, and fails when they leave something
// behind. Nothing is ever skipped: what is missing is a failure that says so.
func Main(m *testing.M) {
	if err := Private(); err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		os.Exit(1)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	built, remove, err := buildBinary()
	if err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		return 1
	}
	defer remove()
	os.Setenv(BinaryVariable, built)
	before, err := TakeStock()
	if err != nil {
		fmt.Fprintln(os.Stderr, "FAIL: take stock:", err)
		return 1
	}
	code := m.Run()
	if left := before.Left(); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "FAIL: the tests left behind:\n  %s\n", strings.Join(left, "\n  "))
		return 1
	}
	return code
}

// Private checks what the lab needs and then starts the program again in a mount namespace of its own. In
// the new process it returns at once. Call it first in main, before anything is open or running.
func Private() error {
	if os.Getenv(privateVariable) != "" {
		return os.Unsetenv(privateVariable)
	}
	if err := requirements(); err != nil {
		return err
	}
	runtime.LockOSThread() // the thread that unshares is the one that execs
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts in the namespace: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return fmt.Errorf("exec %s: %w", self, unix.Exec(self, os.Args, append(os.Environ(), privateVariable+"=1")))
}

// requirements reports all that is missing at once.
func requirements() error {
	var missing []error
	if os.Getuid() != 0 {
		missing = append(missing, errors.New("these tests mount filesystems and act as several users: run them as root"))
	}
	for tool, from := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			missing = append(missing, fmt.Errorf("the program %s is missing: install %s", tool, from))
		}
	}
	for _, device := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(device); err != nil {
			missing = append(missing, fmt.Errorf("the device %s is missing: the kernel must offer FUSE and loop devices here", device))
		}
	}
	return errors.Join(missing...)
}

// buildBinary gives the path of the binary under test, and what removes it if it was built here.
func buildBinary() (string, func(), error) {
	if given := os.Getenv(BinaryVariable); given != "" {
		_, err := os.Stat(given)
		return given, func() {}, err
	}
	dir, err := os.MkdirTemp("", own)
	if err != nil {
		return "", nil, err
	}
	remove := func() { os.RemoveAll(dir) }
	binary := filepath.Join(dir, "tandemfs")
	out, err := exec.Command("go", "build", "-o", binary, "tandemfs/cmd/tandemfs").CombinedOutput()
	if err != nil {
		remove()
		return "", nil, fmt.Errorf("build tandemfs: %w\n%s", err, out)
	}
	return binary, remove, nil
}
