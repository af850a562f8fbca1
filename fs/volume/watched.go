package volume

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
)

// watched says up to when everything that was changed around the mount is known: what has an earlier change time
// is in the journal, whoever changed it. In the state directory it is the file
//
//	watched  "tandem-w" | seconds | nanoseconds | epoch | xxhash64 of all before
//
// of five 64 bit numbers, little-endian, the first being text. It is written as a whole, by one call, so it
// survives the process; after a power cut it may be an older one, or none.
type watched struct {
	until journal.Time
	epoch journal.Epoch // the current one then: what was changed since is in it or in a later one
}

const (
	watchedName  = "watched"
	watchedMagic = "tandem-w"
	watchedSize  = 40
)

func (w watched) encode() []byte {
	b := append(make([]byte, 0, watchedSize), watchedMagic...)
	for _, n := range []uint64{uint64(w.until.Sec), uint64(w.until.Nsec), uint64(w.epoch)} {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	return binary.LittleEndian.AppendUint64(b, xxhash.Sum64(b))
}

// decodeWatched reads what encode wrote; ok is false for anything else.
func decodeWatched(b []byte) (w watched, ok bool) {
	n := binary.LittleEndian
	const end = watchedSize - 8
	if len(b) != watchedSize || string(b[:8]) != watchedMagic || n.Uint64(b[end:]) != xxhash.Sum64(b[:end]) {
		return w, false
	}
	w.until = journal.Time{Sec: int64(n.Uint64(b[8:])), Nsec: uint32(n.Uint64(b[16:]))}
	w.epoch = journal.Epoch(n.Uint64(b[24:]))
	return w, true
}

// openWatched opens the file, made when absent, and reads it.
func openWatched(stateFD int) (fd int, w watched, ok bool, err error) {
	fd, err = sys.Open(stateFD, watchedName, unix.O_RDWR|unix.O_CREAT, 0o600)
	if err != nil {
		return -1, w, false, err
	}
	var buf [watchedSize + 1]byte
	n, err := sys.ReadAt(fd, buf[:], 0)
	if err != nil {
		sys.Close(fd)
		return -1, w, false, err
	}
	w, ok = decodeWatched(buf[:n])
	return fd, w, ok, nil
}

// earlier compares two moments.
func earlier(a, b journal.Time) bool { return a.Sec < b.Sec || a.Sec == b.Sec && a.Nsec < b.Nsec }
