package history

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dataKinds are the operations on the content of open files.
var dataKinds = []kind{
	{name: "write", weight: 34, draw: drawData,
		run: func(s *Side, op *Op) (string, error) {
			b, off := s.piece(op)
			n, err := unix.Pwrite(s.slots[op.Slot], b, off)
			return fmt.Sprintf("%d bytes", n), err
		}},
	{name: "write-at-position", weight: 6, draw: drawData, run: runWriteAtPosition},
	{name: "write-direct", weight: 8,
		draw: func(g *Generator, op *Op) {
			drawData(g, op)
			op.Off, op.Len = op.Off&^4095, int64(1+g.rng.IntN(16))*4096
		},
		run: func(s *Side, op *Op) (string, error) {
			b := aligned(op.Len)
			copy(b, content(op.Fill, op.Len))
			n, err := unix.Pwrite(s.slots[op.Slot], b, op.Off)
			return fmt.Sprintf("%d bytes", n), err
		}},
	{name: "read", weight: 16, draw: drawData, run: runRead},
	{name: "truncate", weight: 8, draw: drawData,
		run: func(s *Side, op *Op) (string, error) { return "", unix.Ftruncate(s.slots[op.Slot], op.Off) }},
	{name: "allocate", weight: 10,
		draw: func(g *Generator, op *Op) {
			drawData(g, op)
			op.Mode = []uint32{
				0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE,
				unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE,
				unix.FALLOC_FL_PUNCH_HOLE, // without KEEP_SIZE: an error
			}[g.rng.IntN(6)]
		},
		run: func(s *Side, op *Op) (string, error) {
			s.vague[s.born(op.Slot)] = true
			return "", unix.Fallocate(s.slots[op.Slot], op.Mode, op.Off, op.Len)
		}},
	{name: "seek", weight: 8,
		draw: func(g *Generator, op *Op) {
			drawData(g, op)
			op.Flags = []int{unix.SEEK_DATA, unix.SEEK_HOLE, unix.SEEK_SET, unix.SEEK_CUR, unix.SEEK_END}[g.rng.IntN(5)]
		},
		run: runSeek},
	{name: "copy-range", weight: 7,
		draw: func(g *Generator, op *Op) {
			drawData(g, op)
			op.Slot2, op.Off2 = g.slot(), g.offset()
		},
		run: runCopyRange},
	{name: "map-write", weight: 6, draw: drawData, run: runMapWrite},
	{name: "map-read", weight: 4, draw: drawData, run: runMapRead},
	{name: "sync", weight: 4, draw: drawData,
		run: func(s *Side, op *Op) (string, error) { return "", unix.Fsync(s.slots[op.Slot]) }},
	{name: "sync-data", weight: 2, draw: drawData,
		run: func(s *Side, op *Op) (string, error) { return "", unix.Fdatasync(s.slots[op.Slot]) }},
}

func drawData(g *Generator, op *Op) {
	op.Slot, op.Off, op.Len, op.Fill = g.slot(), g.offset(), g.length(), g.rng.Uint64N(1<<40)
}

// regular reports whether the slot holds a regular file: some operations could wait on other things.
func (s *Side) regular(slot int) error {
	var st unix.Stat_t
	if err := unix.Fstat(s.slots[slot], &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return unix.ESPIPE
	}
	return nil
}

// piece gives what to write and where. For a file that was opened with O_DIRECT it comes in whole blocks,
// as most filesystems demand; one behind FUSE would take anything, which is no fault of it.
func (s *Side) piece(op *Op) ([]byte, int64) {
	off, n := op.Off, op.Len
	if s.direct(op.Slot) {
		off, n = off&^4095, (n+4095)&^4095
	}
	b := aligned(n)
	copy(b, content(op.Fill, n))
	return b, off
}

func (s *Side) direct(slot int) bool {
	flags, err := unix.FcntlInt(uintptr(s.slots[slot]), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_DIRECT != 0
}

func runWriteAtPosition(s *Side, op *Op) (string, error) {
	if err := s.regular(op.Slot); err != nil {
		return "", err
	}
	b, off := s.piece(op)
	if _, err := unix.Seek(s.slots[op.Slot], off, unix.SEEK_SET); err != nil {
		return "", err
	}
	n, err := unix.Write(s.slots[op.Slot], b)
	if err != nil {
		return "", err
	}
	at, err := unix.Seek(s.slots[op.Slot], 0, unix.SEEK_CUR)
	return fmt.Sprintf("%d bytes, then at %d", n, at), err
}

func runRead(s *Side, op *Op) (string, error) {
	off, b := op.Off&^4095, aligned((op.Len+4095)&^4095) // what O_DIRECT wants
	n, err := unix.Pread(s.slots[op.Slot], b, off)
	return fmt.Sprintf("%d bytes, sum %s", n, sum(b[:max(n, 0)])), err
}

func runSeek(s *Side, op *Op) (string, error) {
	if err := s.regular(op.Slot); err != nil {
		return "", err
	}
	if op.Flags == unix.SEEK_DATA || op.Flags == unix.SEEK_HOLE {
		// Until it is written back, data that was only just written may look otherwise to a filesystem.
		if err := unix.Fsync(s.slots[op.Slot]); err != nil {
			return "", err
		}
	}
	at, err := unix.Seek(s.slots[op.Slot], op.Off, op.Flags)
	if s.vague[s.born(op.Slot)] && err != unix.EINVAL {
		return "somewhere", nil
	}
	return fmt.Sprintf("at %d", at), err
}

func runCopyRange(s *Side, op *Op) (string, error) {
	from, to, left := op.Off, op.Off2, op.Len
	if s.direct(op.Slot) || s.direct(op.Slot2) {
		return "", unix.EINVAL // what the filesystem says at the file's end, which seldom is a block's: see piece
	}
	s.vague[s.born(op.Slot2)] = s.vague[s.born(op.Slot2)] || s.vague[s.born(op.Slot)] // the blocks may be shared
	for left > 0 {
		n, err := unix.CopyFileRange(s.slots[op.Slot], &from, s.slots[op.Slot2], &to, int(left), 0)
		if err != nil {
			return "", err
		}
		if n == 0 {
			break
		}
		left -= int64(n)
	}
	return fmt.Sprintf("%d bytes are missing", left), nil
}

// mapped maps the part of an operation's range that the file has: touching what lies past its end is a
// signal, not an error.
func (s *Side) mapped(op *Op, protection int) ([]byte, error) {
	var st unix.Stat_t
	if err := unix.Fstat(s.slots[op.Slot], &st); err != nil {
		return nil, err
	}
	off := op.Off &^ 4095
	if st.Mode&unix.S_IFMT != unix.S_IFREG || off+op.Len > st.Size {
		return nil, unix.EINVAL
	}
	return unix.Mmap(s.slots[op.Slot], off, int(op.Len), protection, unix.MAP_SHARED)
}

func runMapWrite(s *Side, op *Op) (string, error) {
	s.vague[s.born(op.Slot)] = true
	b, err := s.mapped(op, unix.PROT_READ|unix.PROT_WRITE)
	if err != nil {
		return "", err
	}
	defer unix.Munmap(b)
	copy(b, content(op.Fill, op.Len))
	return "", unix.Msync(b, unix.MS_SYNC)
}

func runMapRead(s *Side, op *Op) (string, error) {
	b, err := s.mapped(op, unix.PROT_READ)
	if err != nil {
		return "", err
	}
	defer unix.Munmap(b)
	return "sum " + sum(b), nil
}

// aligned gives a buffer that starts on a page.
func aligned(n int64) []byte {
	b := make([]byte, n+4096)
	skip := (4096 - int(uintptr(unsafe.Pointer(&b[0]))&4095)) & 4095
	return b[skip : skip+int(n)]
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:8])
}
