package sys

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Dirent is one entry as getdents64(2) gives it. Name is only valid until the next call that refills the
// buffer it lies in.
type Dirent struct {
	Ino  uint64
	Off  int64 // where the entry after this one begins, for SeekDir
	Type uint8 // DT_*
	Name []byte
}

// direntHeader is the length of struct linux_dirent64 before the name.
const direntHeader = 19

// SeekDir moves a directory descriptor to a position that a Dirent gave, or to 0.
func SeekDir(fd int, off int64) error {
	_, err := Seek(fd, off, unix.SEEK_SET)
	return err
}

// Getdents fills buf with entries from the descriptor's position; 0 means the end.
func Getdents(fd int, buf []byte) (n int, err error) {
	err = again("getdents", func() error {
		n, err = unix.Getdents(fd, buf)
		return err
	})
	return n, err
}

// NextDirent takes the first entry off a filled buffer and returns the rest.
func NextDirent(buf []byte) (d Dirent, rest []byte) {
	size := binary.NativeEndian.Uint16(buf[16:])
	name := buf[direntHeader:size]
	if i := bytes.IndexByte(name, 0); i >= 0 {
		name = name[:i]
	}
	return Dirent{
		Ino:  binary.NativeEndian.Uint64(buf[0:]),
		Off:  int64(binary.NativeEndian.Uint64(buf[8:])),
		Type: buf[18],
		Name: name,
	}, buf[size:]
}

// IsDot reports whether the entry is "." or "..".
func (d Dirent) IsDot() bool {
	return len(d.Name) <= 2 && d.Name[0] == '.' && (len(d.Name) == 1 || d.Name[1] == '.')
}
