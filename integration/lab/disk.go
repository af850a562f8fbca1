package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The kinds of filesystem that Disk makes.
const (
	Ext4  = "ext4"
	XFS   = "xfs"
	Btrfs = "btrfs"
)

// mkfs says how to make a filesystem of each kind, and with which options to mount it.
var mkfs = map[string]struct {
	args  []string
	mount string
}{
	Ext4:  {[]string{"mkfs.ext4", "-q", "-F", "-E", "nodiscard"}, "noinit_itable"},
	XFS:   {[]string{"mkfs.xfs", "-q", "-f", "-K"}, ""},
	Btrfs: {[]string{"mkfs.btrfs", "-q", "-f", "-K"}, ""},
}

// Disk makes an empty filesystem of the kind on a loop device over a sparse image of so many bytes, and
// mounts it for as long as the test runs. It returns the mount point.
func Disk(t T, kind string, size int64) string {
	t.Helper()
	device, mountPoint := newDisk(t, kind, size, Dir(t))
	device.Close() // the mount keeps it from here on
	return mountPoint
}

// CutDisk is Disk, with a function that puts in the disk's place what a power cut at that moment leaves of it, of any
// kind of filesystem: a copy of what has come to the device, mounted anew. Nothing may use the disk then.
func CutDisk(t T, kind string, size int64) (mountPoint string, cut func()) {
	t.Helper()
	device, mountPoint := newDisk(t, kind, size, Dir(t))
	t.Cleanup(func() { device.Close() })
	return mountPoint, func() {
		t.Helper()
		left, err := os.CreateTemp(Dir(t), "left-")
		if err != nil {
			t.Fatalf("copy the disk: %v", err)
		}
		defer left.Close()
		out, err := exec.Command("dd", "if="+device.Name(), "of="+left.Name(), "bs=1M", "iflag=direct", "conv=sparse").CombinedOutput()
		if err != nil {
			t.Fatalf("copy the disk: %v\n%s", err, out)
		}
		if err := errors.Join(unmount(mountPoint), device.Close()); err != nil {
			t.Fatalf("take the disk away: %v", err)
		}
		if device, err = attachAny(left); err != nil {
			t.Fatalf("loop device: %v", err)
		}
		if err := unix.Mount(device.Name(), mountPoint, kind, 0, mkfs[kind].mount); err != nil {
			t.Fatalf("mount what is left: %v", err)
		}
	}
}

// newDisk is Disk in a directory that is given; the device is the caller's to close.
func newDisk(t T, kind string, size int64, dir string) (*os.File, string) {
	t.Helper()
	device, err := loopDevice(dir, size)
	if err != nil {
		t.Fatalf("loop device: %v", err)
	}
	mountPoint := MakeDir(t, dir, "disk")
	if err := format(device.Name(), mountPoint, kind); err != nil {
		device.Close()
		t.Fatalf("%v", err)
	}
	return device, mountPoint
}

// format makes a filesystem and mounts it.
func format(device, mountPoint, kind string) error {
	how := mkfs[kind]
	out, err := exec.Command(how.args[0], append(how.args[1:], device)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", how.args[0], err, out)
	}
	if err := unix.Mount(device, mountPoint, kind, 0, how.mount); err != nil {
		return fmt.Errorf("mount %s on %s: %w", kind, device, err)
	}
	if err := os.RemoveAll(filepath.Join(mountPoint, "lost+found")); err != nil {
		return fmt.Errorf("empty the filesystem: %w", err)
	}
	return nil
}

// loopDevice attaches a new image in dir to a free loop device, which clears itself when nobody has it
// open or mounted any more. The image loses its name at once.
func loopDevice(dir string, size int64) (*os.File, error) {
	image, err := os.CreateTemp(dir, "image-")
	if err != nil {
		return nil, err
	}
	defer image.Close()
	defer os.Remove(image.Name())
	if err := image.Truncate(size); err != nil {
		return nil, err
	}
	return attachAny(image)
}

// attachAny attaches an image to a free loop device.
func attachAny(image *os.File) (*os.File, error) {
	control, err := os.Open("/dev/loop-control")
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for range 100 {
		device, err := attach(control, image)
		if !errors.Is(err, unix.EBUSY) {
			return device, err
		}
	}
	return nil, errors.New("others took every free loop device")
}

// attach tries the device that is free at the moment; EBUSY means that somebody else was faster.
func attach(control, image *os.File) (*os.File, error) {
	number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return nil, fmt.Errorf("find a free loop device: %w", err)
	}
	device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", number), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	config := unix.LoopConfig{Fd: uint32(image.Fd())}
	config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
	copy(config.Info.File_name[:], image.Name()) // sysfs shows it, and so does Stock
	if err := unix.IoctlLoopConfigure(int(device.Fd()), &config); err != nil {
		device.Close()
		return nil, fmt.Errorf("attach %s: %w", device.Name(), err)
	}
	return device, nil
}
