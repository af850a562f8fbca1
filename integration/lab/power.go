package lab

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Machine is what loses its power at once: a disk, and a node whose state folder is on it. Each time that it
// is started after that, it has another boot id.
type Machine struct {
	Node *Node
	Disk string // the mount point

	t      T
	kind   string
	device *os.File // keeps the loop device while nothing is mounted
	boots  *Boots
	boot   string
}

// Boots stands in for the kernel's boot id as long as a test runs: the processes that a machine starts find its
// own there.
type Boots struct {
	t    T
	file string
}

// kernelBootID is where a process finds the boot's id.
const kernelBootID = "/proc/sys/kernel/random/boot_id"

// NewBoots puts a file of the lab's in the place of the kernel's.
func NewBoots(t T) *Boots {
	t.Helper()
	b := &Boots{t: t, file: filepath.Join(Dir(t), "boot_id")}
	b.is("not yet")
	if err := unix.Mount(b.file, kernelBootID, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("mount over %s: %v", kernelBootID, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(kernelBootID, unix.UMOUNT_NOFOLLOW); err != nil {
			t.Errorf("unmount %s: %v", kernelBootID, err)
		}
	})
	return b
}

// Next begins another boot, for processes that are started from now on.
func (b *Boots) Next() {
	b.t.Helper()
	b.is(newBootID())
}

func (b *Boots) is(id string) {
	b.t.Helper()
	if err := os.WriteFile(b.file, []byte(id+"\n"), 0o644); err != nil {
		b.t.Fatalf("set the boot id: %v", err)
	}
}

func newBootID() string {
	var b [16]byte
	rand.Read(b[:])
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// StartMachine makes a disk and starts a node on it.
func StartMachine(t T, boots *Boots, namespace *Namespace, name, kind string, size int64) *Machine {
	t.Helper()
	device, disk := newDisk(t, kind, size, Dir(t))
	t.Cleanup(func() { device.Close() })
	m := &Machine{Disk: disk, t: t, kind: kind, device: device, boots: boots, boot: newBootID()}
	boots.is(m.boot)
	m.Node = startNode(t, namespace, name, filepath.Join(disk, "state"))
	return m
}

// CutPower takes the power: what the filesystem has not on its disk is lost, and so is the daemon. Where the disk
// goes first the daemon may see it fail.
func (m *Machine) CutPower(diskFirst bool) error {
	kill := func() error { return syscall.Kill(m.Node.PID(), syscall.SIGKILL) }
	steps := []func() error{kill, m.shutDown}
	if diskFirst {
		steps = []func() error{m.shutDown, kill}
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("cut the power of %s: %w", m.Node.Name, err)
		}
	}
	return nil
}

// shutDown makes the filesystem forget what is not on the disk, its log not flushed.
func (m *Machine) shutDown() error {
	const (
		shutdown   = 0x8004587d // EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN
		noLogFlush = 2
	)
	fd, err := unix.Open(m.Disk, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.IoctlSetPointerInt(fd, shutdown, noLogFlush), unix.Close(fd))
}

// Recover mounts the disk again after CutPower, by which the filesystem goes through its log. Nothing may have a
// file of it open.
func (m *Machine) Recover() {
	m.t.Helper()
	m.Node.Kill()
	if err := unmount(m.Disk); err != nil {
		m.t.Fatalf("%v", err)
	}
	if err := unix.Mount(m.device.Name(), m.Disk, m.kind, 0, mkfs[m.kind].mount); err != nil {
		m.t.Fatalf("mount %s again: %v", m.device.Name(), err)
	}
	m.boot = newBootID()
}

// Start starts the node, in the machine's present boot.
func (m *Machine) Start() {
	m.t.Helper()
	m.boots.is(m.boot)
	m.Node.Start()
}
