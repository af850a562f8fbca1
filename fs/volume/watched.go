package volume

import (
	"encoding/binary"
	"time"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
)

// watched says of when everything that was changed around the mount is known: of any time before until that is in no
// gap. What has such a change time is in the journal, whoever changed it. In the state directory it is the file
//
//	watched  "tandem-w" | until | epoch | met | count | 4 gaps | xxhash64 of all before
//	gap:     since | until | lived | epoch
//
// of 64 bit numbers, little-endian, the first being text; a time is two of them, seconds and nanoseconds. It is
// written as a whole, by one call, so it survives the process; after a power cut it may be an older one, or none.
type watched struct {
	until journal.Time
	// epoch was the current one then: what the process changed since is in it or in a later one. 0: they have records
	// of what somebody else did, too, so having one says nothing.
	epoch journal.Epoch
	gaps  []gap // ascending; what a sweep has yet to find
	// met says that something with a change time in a gap was used through the volume, and the sweep had not recorded
	// it: its change time may be a later one by now.
	met bool
}

// gap is a time, without its end, of which changes are not known yet.
type gap struct {
	since, until journal.Time
	// lived is up to when a process can have made changes, and nobody else, that are in the journal in epoch or a later
	// one; epoch 0: there are none that can be told from others.
	lived journal.Time
	epoch journal.Epoch
}

const (
	watchedName  = "watched"
	watchedMagic = "tandem-w"
	mostGaps     = 4
	gapSize      = 7 * 8
	watchedSize  = 8 + 5*8 + mostGaps*gapSize + 8
)

// with adds a gap, the latest. When there are too many, two count as one with what is between them.
func (w watched) with(g gap) watched {
	gaps := append(w.gaps[:len(w.gaps):len(w.gaps)], g)
	if len(gaps) > mostGaps {
		gaps[1].since, gaps[1].lived, gaps[1].epoch = gaps[0].since, gaps[0].lived, gaps[0].epoch
		gaps = gaps[1:]
	}
	w.gaps = gaps
	return w
}

// within reports whether a change time lies in a gap. Times without nanoseconds are those of a filesystem that has
// none.
func (g *gap) within(t journal.Time) bool {
	if t.Nsec == 0 {
		return t.Sec >= g.since.Sec && t.Sec <= g.until.Sec
	}
	return !earlier(t, g.since) && earlier(t, g.until)
}

func (w watched) encode() []byte {
	b := append(make([]byte, 0, watchedSize), watchedMagic...)
	put := func(numbers ...uint64) {
		for _, n := range numbers {
			b = binary.LittleEndian.AppendUint64(b, n)
		}
	}
	met := uint64(0)
	if w.met {
		met = 1
	}
	put(uint64(w.until.Sec), uint64(w.until.Nsec), uint64(w.epoch), met, uint64(len(w.gaps)))
	for i := range mostGaps {
		var g gap
		if i < len(w.gaps) {
			g = w.gaps[i]
		}
		for _, t := range []journal.Time{g.since, g.until, g.lived} {
			put(uint64(t.Sec), uint64(t.Nsec))
		}
		put(uint64(g.epoch))
	}
	return binary.LittleEndian.AppendUint64(b, xxhash.Sum64(b))
}

// decodeWatched reads what encode wrote; ok is false for anything else.
func decodeWatched(b []byte) (w watched, ok bool) {
	const end = watchedSize - 8
	if len(b) != watchedSize || string(b[:8]) != watchedMagic || binary.LittleEndian.Uint64(b[end:]) != xxhash.Sum64(b[:end]) {
		return w, false
	}
	b = b[8:]
	next := func() (n uint64) {
		n, b = binary.LittleEndian.Uint64(b), b[8:]
		return n
	}
	moment := func() journal.Time { return journal.Time{Sec: int64(next()), Nsec: uint32(next())} }
	w.until, w.epoch, w.met = moment(), journal.Epoch(next()), next() != 0
	count := next()
	if count > mostGaps {
		return watched{}, false
	}
	for range count {
		w.gaps = append(w.gaps, gap{moment(), moment(), moment(), journal.Epoch(next())})
	}
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

// later gives the moment some time after another one.
func later(t journal.Time, d time.Duration) journal.Time {
	at := clockTime(t).Add(d)
	return journal.Time{Sec: at.Unix(), Nsec: uint32(at.Nanosecond())}
}

func clockTime(t journal.Time) time.Time { return time.Unix(t.Sec, int64(t.Nsec)) }
