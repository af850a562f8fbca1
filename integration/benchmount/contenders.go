package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"tandemfs/integration/lab"
)

// The contenders.
const (
	nativeName   = "native"
	loopbackName = "loopback"
	tandemName   = "tandem"
)

// loopbackCommand makes this program serve the loopback example, in a process of its own as tandemfs is.
const loopbackCommand = "serve-loopback"

type contender struct {
	name  string
	dir   string
	quiet func() // waits until it does nothing in the background; nil if it never does
}

// prepare makes the three directories on one filesystem and mounts what is to be mounted.
func prepare(t *host, o options) []contender {
	disk := o.dir
	if disk == "" {
		disk = lab.Disk(t, o.kind, 16<<30)
	} else {
		dir, err := os.MkdirTemp(disk, "benchmount-")
		if err != nil {
			t.Fatalf("%v", err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		disk = dir
	}
	native := lab.MakeDir(t, disk, "native")
	pair, tandem := startTandem(t, lab.MakeDir(t, disk, "tandem"), o.kind)
	return []contender{
		{nativeName, native, nil},
		{loopbackName, startLoopback(t, lab.MakeDir(t, disk, "loopback")), nil},
		{tandemName, tandem, func() { pair.Quiet(10 * time.Minute) }},
	}
}

// startTandem protects the directory and gives the volume a copy on a second node, on another disk.
func startTandem(t *host, dir, kind string) (*lab.Pair, string) {
	a, b := lab.Join(t)
	copied := lab.MakeDir(t, lab.Disk(t, kind, 16<<30), "copy")
	mount, copyMount := lab.MakeDir(t, lab.Dir(t), "data"), lab.MakeDir(t, lab.Dir(t), "copy")
	source, target := lab.StartNode(t, a, "alpha"), lab.StartNode(t, b, "beta")
	source.Must("volume", "create", "data", dir, "--mount", mount)
	target.Must("volume", "create", "copy", copied, "--mount", copyMount)
	return lab.Relate(t, source, "data", target, "copy"), mount
}

func startLoopback(t *host, dir string) string {
	mount := lab.MakeDir(t, lab.Dir(t), "loopback")
	cmd := exec.Command("/proc/self/exe", loopbackCommand, mount, dir)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("loopback: %v", err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	lab.Eventually(t, 10*time.Second, "the loopback example is mounted", func() error {
		mounts, err := lab.Mounts(mount)
		if err == nil && len(mounts) == 0 {
			err = fmt.Errorf("nothing is mounted on %s", mount)
		}
		return err
	})
	return mount
}

// serveLoopback is go-fuse's example/loopback with -allow-other and its other options as they are, except
// that passthrough is off.
func serveLoopback(mount, original string) error {
	root, err := fs.NewLoopbackRoot(original)
	if err != nil {
		return err
	}
	second := time.Second
	server, err := fs.Mount(mount, root, &fs.Options{
		AttrTimeout:     &second,
		EntryTimeout:    &second,
		NullPermissions: true,
		MountOptions: fuse.MountOptions{
			AllowOther:           true,
			DirectMount:          true, // the host may have no fusermount
			Options:              []string{"default_permissions"},
			FsName:               original,
			Name:                 "loopback",
			DisabledCapabilities: fuse.CAP_PASSTHROUGH,
		},
	})
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		server.Unmount()
	}()
	server.Wait()
	return nil
}

// A host is what the lab needs where there is no test.
type host struct {
	cleanups []func()
	failed   bool
}

func (t *host) Helper()                         {}
func (t *host) Name() string                    { return filepath.Base(os.Args[0]) }
func (t *host) Failed() bool                    { return t.failed }
func (t *host) Cleanup(f func())                { t.cleanups = append(t.cleanups, f) }
func (t *host) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// Errorf reports a failure; the program goes on and exits with 1 at its end.
func (t *host) Errorf(format string, args ...any) {
	t.failed = true
	t.Logf(format, args...)
}

// Fatalf reports a failure, cleans up and exits with 1.
func (t *host) Fatalf(format string, args ...any) {
	t.Errorf(format, args...)
	t.end()
}

// end cleans up, in the reverse order. What fails on the way does not stop the rest.
func (t *host) end() {
	for len(t.cleanups) > 0 {
		last := t.cleanups[len(t.cleanups)-1]
		t.cleanups = t.cleanups[:len(t.cleanups)-1]
		last()
	}
	if t.failed {
		os.Exit(1)
	}
}
