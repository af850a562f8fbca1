package volume

import (
	"slices"

	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
)

// SnapshotSpace gives the bytes that each snapshot alone holds (deleting just it would free them), and what
// all together hold, with what transfers and readers hold at the moment. Bytes that a filesystem shares with
// the files themselves count as if they were not.
func (v *Volume) SnapshotSpace() (alone map[string]int64, total int64, err error) {
	bySeal, total, err := v.spaceBySeal()
	if err != nil {
		return nil, 0, err
	}
	users := map[journal.Epoch]int{}
	list := v.Snapshots()
	for _, s := range list {
		users[s.Epoch]++
	}
	alone = make(map[string]int64, len(list))
	for _, s := range list {
		if users[s.Epoch] == 1 {
			alone[s.Name] = bySeal[s.Epoch]
		}
	}
	return alone, total, nil
}

// spaceBySeal gives what each held seal alone needs, and all that is kept.
func (v *Volume) spaceBySeal() (alone map[journal.Epoch]int64, total int64, err error) {
	held := v.journal.Held()
	epochs, err := v.before.epochs()
	if err != nil {
		return nil, 0, err
	}
	alone = map[journal.Epoch]int64{}
	for _, e := range epochs {
		i, _ := slices.BinarySearch(held, e)
		if i == 0 {
			continue // being freed
		}
		older, newest := journal.Epoch(0), held[i-1]
		if i > 1 {
			older = held[i-2]
		}
		err := v.before.entries(e, func(dir int, name string, prefix byte, id journal.Ident) error {
			bytes, mine, err := v.spaceOf(dir, name, prefix, id, older, newest)
			total += bytes
			alone[newest] += mine
			return ignoreAbsent(err)
		})
		if err != nil {
			return nil, 0, err
		}
	}
	return alone, total, nil
}

// spaceOf gives the bytes that one entry takes, and those of them that the seal newest needs and older, the
// one before it that is held, does not: it finds them earlier, or has no such inode.
func (v *Volume) spaceOf(dir int, name string, prefix byte, id journal.Ident, older, newest journal.Epoch) (bytes, mine int64, err error) {
	var st unix.Statx_t
	if err := sys.Stat(dir, name, &st); err != nil {
		return 0, 0, err
	}
	bytes = int64(st.Blocks) * 512
	if older == 0 {
		return bytes, bytes, nil
	}
	between, ok, err := v.journal.Within(older, newest, id)
	switch {
	case err != nil || !ok:
		return bytes, 0, err
	case between.What&journal.Created != 0:
		return bytes, bytes, nil
	case prefix == removedPrefix:
		return bytes, 0, nil
	}
	mine, err = dataWithin(dir, name, between.Extents)
	return bytes, min(mine, bytes), err
}

// dataWithin is the number of bytes of data that a file has within extents.
func dataWithin(dir int, name string, extents journal.Extents) (n int64, err error) {
	fd, err := sys.Open(dir, name, unix.O_RDONLY, 0)
	if err != nil {
		return 0, err
	}
	defer sys.Close(fd)
	for _, e := range extents {
		for off := e.Off; off < e.End; {
			data, ok, err := sys.NextData(fd, off, e.End)
			if err != nil || !ok {
				if err != nil {
					return n, err
				}
				break
			}
			n += data.Len()
			off = data.End
		}
	}
	return n, nil
}
