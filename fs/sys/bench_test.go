package sys

import (
	"testing"

	"golang.org/x/sys/unix"
)

// What a point at which a test can make calls fail costs a write of a block.
func BenchmarkWriteOfABlock(b *testing.B) {
	fd, err := Open(unix.AT_FDCWD, b.TempDir()+"/file", unix.O_RDWR|unix.O_CREAT, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	defer Close(fd)
	block := make([]byte, 4096)
	for name, write := range map[string]func() (int, error){
		"plain": func() (int, error) { return unix.Pwrite(fd, block, 0) },
		"here":  func() (int, error) { return WriteAt(fd, block, 0) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := write(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
