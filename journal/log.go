package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

	"tandemfs/journal/failpoint"
)

// An intent log is a file of fixed size, mapped into memory. Appending is a copy into the page cache,
// which keeps it when the process dies. All integers are little endian:
//
//	  0          8            16         24        64
//	| "TNDMLOG1" | generation | checksum | zeros   | record | record | ... whatever was there before
//
//	record:
//	  0          8        16
//	| checksum | length | payload, padded with zeros to a multiple of 8
//
// The log's checksum is xxh64 of its first 16 bytes. A record's is xxh64 of the payload, mixed with the
// generation, the record's offset and its length, so that what an earlier generation left is no record.
// The end of a log is where the first record does not match.
const (
	logMagic     = "TNDMLOG1"
	logHeader    = 64
	recordHeader = 16
	minLogSize   = 4096
)

type intentLog struct {
	file       *os.File
	data       []byte // the mapping
	generation uint64
	end        int // where the next record goes
}

// openLog opens or creates the log at path. Its blocks are allocated, so that a full disk is an error
// here and not a fault at an append.
func openLog(path string, size int) (*intentLog, error) {
	f, err := openFile(path, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, err
	}
	l := &intentLog{file: f}
	if err := l.open(size); err != nil {
		_ = l.close() // whatever of it is open
		return nil, fmt.Errorf("intent log %s: %w", path, err)
	}
	return l, nil
}

func (l *intentLog) open(size int) (err error) {
	defer catchFault(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	was, err := fileSize(l.file)
	if err != nil {
		return err
	}
	if was >= minLogSize && was <= 1<<30 {
		size = int(was) &^ 7
	} else {
		keepInPlace(l.file)
	}
	if err := allocate(l.file, int64(size)); err != nil {
		return err
	}
	if l.data, err = mapFile(l.file, size); err != nil {
		return err
	}
	l.readHeader()
	return nil
}

// keepInPlace asks a copy-on-write filesystem to overwrite this file in place: the allocated blocks
// would otherwise not be the ones that are written. Others refuse, and need no asking.
func keepInPlace(f *os.File) {
	const noCow = 0x00800000 // FS_NOCOW_FL
	if flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS); err == nil {
		_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|noCow)
	}
}

// allocate gives the file real blocks up to size.
func allocate(f *os.File, size int64) error {
	err := onFile("fallocate", f, func(fd int) error { return unix.Fallocate(fd, 0, 0, size) })
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fillWithZeros(f, size)
	}
	return err
}

// fillWithZeros extends the file by writing, where the filesystem cannot allocate.
func fillWithZeros(f *os.File, size int64) error {
	off, err := fileSize(f)
	zeros := make([]byte, 1<<16)
	for err == nil && off < size {
		p := zeros[:min(int64(len(zeros)), size-off)]
		err = writeAt(f, p, off)
		off += int64(len(p))
	}
	return err
}

// readHeader finds the generation; it stays zero for a log that was never begun.
func (l *intentLog) readHeader() {
	h := l.data[:logHeader]
	if string(h[:8]) == logMagic && binary.LittleEndian.Uint64(h[16:]) == xxhash.Sum64(h[:16]) {
		l.generation = binary.LittleEndian.Uint64(h[8:])
	}
	l.end = logHeader
}

// begin empties the log for a new generation.
func (l *intentLog) begin(generation uint64) (err error) {
	defer catchFault(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	if err := failpoint.Call("log begin"); err != nil {
		return err
	}
	var h [24]byte
	copy(h[:], logMagic)
	binary.LittleEndian.PutUint64(h[8:], generation)
	binary.LittleEndian.PutUint64(h[16:], xxhash.Sum64(h[:16]))
	copy(l.data, h[:])
	l.generation, l.end = generation, logHeader
	return nil
}

// recordSize is what a payload of n bytes takes in the log.
func recordSize(n int) int { return recordHeader + (n+7)&^7 }

// switchedSize is what the last record of a log takes at most; there is always room for it.
const switchedSize = recordHeader + 16

// room is the number of bytes left for other records.
func (l *intentLog) room() int { return len(l.data) - l.end - switchedSize }

// append adds a record. The caller has made sure that it fits. A disk that cannot take the page is an
// error, not the end of the process.
func (l *intentLog) append(payload []byte) (err error) {
	defer catchFault(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	if err := failpoint.Call("log append"); err != nil {
		return err
	}
	at := l.data[l.end : l.end+recordSize(len(payload))]
	clear(at[recordHeader+copy(at[recordHeader:], payload):])
	binary.LittleEndian.PutUint64(at[8:], uint64(len(payload)))
	binary.LittleEndian.PutUint64(at, l.checksum(l.end, payload))
	l.end += len(at)
	return nil
}

func (l *intentLog) checksum(off int, payload []byte) uint64 {
	h := xxhash.Sum64(payload)
	for _, v := range [...]uint64{l.generation, uint64(off), uint64(len(payload))} {
		h = (h ^ v) * 0x9E3779B97F4A7C15
		h ^= h >> 32
	}
	return h
}

// catchFault turns a fault in the mapping (an I/O error or a full disk under it) into an error.
func catchFault(err *error) {
	r := recover()
	if r == nil {
		return
	}
	if _, ok := r.(interface{ Addr() uintptr }); !ok {
		panic(r)
	}
	*err = fmt.Errorf("intent log cannot be read or written: %w", unix.EIO)
}

// replay calls f with every record from the start and leaves the log ready to go on at its end. The
// payload is valid only during the call.
func (l *intentLog) replay(f func(payload []byte) error) (err error) {
	defer catchFault(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	l.end = logHeader
	for {
		payload := l.recordAt(l.end)
		if payload == nil {
			return nil
		}
		if err := f(payload); err != nil {
			return fmt.Errorf("record at %d: %w", l.end, err)
		}
		l.end += recordSize(len(payload))
	}
}

// recordAt gives the payload of the record at off; nil when there is none.
func (l *intentLog) recordAt(off int) []byte {
	if len(l.data)-off < recordHeader {
		return nil
	}
	at := l.data[off:]
	length := binary.LittleEndian.Uint64(at[8:])
	if length == 0 || length > uint64(len(at)-recordHeader) {
		return nil
	}
	payload := at[recordHeader : recordHeader+length]
	if binary.LittleEndian.Uint64(at) != l.checksum(off, payload) {
		return nil
	}
	return payload
}

// clearTail wipes what follows the end. After a power cut whole records may stand behind a lost one;
// they must not come back to life when new records close the gap.
func (l *intentLog) clearTail() (err error) {
	defer catchFault(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	clear(l.data[l.end:])
	return nil
}

// sync makes what was appended survive a power cut.
func (l *intentLog) sync() error { return fdatasync(l.file) }

func (l *intentLog) close() error {
	return errors.Join(unix.Munmap(l.data), l.file.Close())
}
