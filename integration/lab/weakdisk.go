package lab

import (
	"bytes"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A WeakDisk is a filesystem of any kind that lies on one with checksums, in which single blocks can be spoiled:
// reading them fails with EIO then, as on a disk that gets old, until they are mended or written anew.
type WeakDisk struct {
	Path string // the mount point

	t      T
	below  *os.File // the device with the checksums
	spoilt []int64  // offsets of bytes that were flipped
}

// NewWeakDisk makes one for as long as the test runs.
func NewWeakDisk(t T, kind string, size int64) *WeakDisk {
	t.Helper()
	device, below := newDisk(t, Btrfs, size+size/2, Dir(t))
	w := &WeakDisk{Path: below, t: t, below: device}
	if kind != Btrfs {
		inner, above := newDisk(t, kind, size, MakeDir(t, below, "image"))
		inner.Close()
		w.Path = above
	}
	t.Cleanup(func() { device.Close() })
	return w
}

// Spoil makes every block of the disk that holds the content unreadable. The content has to be one that is nowhere
// else, and to begin at the beginning of a block.
func (w *WeakDisk) Spoil(content []byte) {
	w.t.Helper()
	const block = 4096
	unix.Sync()
	buf := make([]byte, 1<<20)
	found := false
	for off := int64(0); ; off += int64(len(buf)) {
		n, err := w.below.ReadAt(buf, off)
		for at := 0; at+block <= n; at += block {
			if bytes.HasPrefix(buf[at:n], content[:min(len(content), block)]) {
				w.flip(off + int64(at))
				w.spoilt, found = append(w.spoilt, off+int64(at)), true
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			w.t.Fatalf("read the device: %v", err)
		}
	}
	if !found {
		w.t.Fatalf("the content is not on the disk")
	}
	w.forget()
}

// Mend makes what was spoilt readable again.
func (w *WeakDisk) Mend() {
	w.t.Helper()
	for _, off := range w.spoilt {
		w.flip(off)
	}
	w.spoilt = nil
	w.forget()
}

func (w *WeakDisk) flip(off int64) {
	w.t.Helper()
	b := make([]byte, 1)
	_, err := w.below.ReadAt(b, off)
	if err == nil {
		b[0] ^= 0xff
		_, err = w.below.WriteAt(b, off)
	}
	if err == nil {
		err = w.below.Sync()
	}
	if err != nil {
		w.t.Fatalf("spoil the device: %v", err)
	}
}

// forget makes the kernel read the disk anew.
func (w *WeakDisk) forget() {
	w.t.Helper()
	unix.Sync()
	if err := os.WriteFile(filepath.Join("/proc/sys/vm", "drop_caches"), []byte("3"), 0); err != nil {
		w.t.Fatalf("drop caches: %v", err)
	}
}
