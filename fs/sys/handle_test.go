package sys

import (
	"errors"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"tandemfs/journal"
)

// An inode's number is given to the next file while others still ask for the inode that is gone.
func TestAnIdentityWhoseNumberIsUsedAgainIsStale(t *testing.T) {
	b, err := OpenBacking(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	var gone atomic.Pointer[journal.Ident]
	made := make(chan error, 1)
	go func() { made <- makeAndRemove(b, &gone, 20_000) }()
	for asked := 0; ; asked++ {
		select {
		case err := <-made:
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("asked %d times", asked)
			return
		default:
		}
		id := gone.Load()
		if id == nil {
			continue
		}
		fd, err := b.OpenIdent(*id, unix.O_RDONLY)
		if err == nil {
			err = unix.Close(fd)
		}
		if err != nil && !errors.Is(err, unix.ESTALE) {
			t.Fatalf("after %d times: %v", asked, err)
		}
	}
}

// makeAndRemove makes a file and removes it, n times, and tells the identity of the last.
func makeAndRemove(b *Backing, last *atomic.Pointer[journal.Ident], n int) error {
	for range n {
		fd, err := unix.Openat(b.FD(), "file", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		id, err := b.IdentAt(fd, "")
		if err = errors.Join(err, unix.Close(fd)); err != nil {
			return err
		}
		last.Store(&id)
		if err := unix.Unlinkat(b.FD(), "file", 0); err != nil {
			return err
		}
	}
	return nil
}
