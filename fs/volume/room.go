package volume

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
)

const (
	// lookAgain is how much is written, in bytes, until the filesystem is asked again what it has free.
	lookAgain = 16 << 20
	// smallRoom is what a new inode or an extended attribute is taken to need, in bytes.
	smallRoom = 4096
	// applyRoom and applyInodes are what a transfer that ran out of room needs before it is worth trying again,
	// beside what is the journal's.
	applyRoom   = 16 << 20
	applyInodes = 64
)

// room is what may be written before the filesystem is asked again. Without room for itself the journal could not
// record that something is removed either: so whoever writes finds the disk full a little before it is.
type room struct{ left atomic.Int64 }

// roomFor gives ENOSPC where writing n more bytes would take what the journal needs.
func (v *Volume) roomFor(n int64) error {
	if v.room.left.Add(-n) >= 0 {
		return nil
	}
	v.room.left.Store(0)
	var st unix.Statfs_t
	if err := v.backing.Statfs(&st); err != nil {
		return err
	}
	free := int64(journal.FreeBytes(&st)) - journal.Reserve - n
	if free < 0 {
		return unix.ENOSPC
	}
	v.room.left.Store(min(free/2, lookAgain))
	return nil
}

// roomToWrite is roomFor for content of an open file. What is overwritten in place needs none.
func (v *Volume) roomToWrite(o *openInode, off, n int64) error {
	err := v.roomFor(n)
	if err != unix.ENOSPC {
		return err
	}
	if there, ok, seekErr := sys.NextData(o.fd, off, off+n); seekErr == nil && ok && there == (journal.Extent{Off: off, End: off + n}) {
		return nil
	}
	return err
}

// enterFor is enter for a change that makes something new.
func (v *Volume) enterFor(n int64) error {
	err := v.enter()
	if err != nil {
		return err
	}
	if err = v.roomFor(n); err != nil {
		v.leave()
	}
	return err
}

// Room gives an error that wraps ENOSPC where there is too little room for a transfer to be applied.
func (v *Volume) Room() error {
	var st unix.Statfs_t
	if err := v.backing.Statfs(&st); err != nil {
		return err
	}
	free := int64(journal.FreeBytes(&st))
	if free < journal.Reserve+applyRoom {
		return fmt.Errorf("the filesystem of %s has %d MiB free, at least %d are needed: %w", v.path, free>>20, (journal.Reserve+applyRoom)>>20, unix.ENOSPC)
	}
	if st.Files > 0 && st.Ffree < applyInodes {
		return fmt.Errorf("the filesystem of %s has %d inodes free, at least %d are needed: %w", v.path, st.Ffree, applyInodes, unix.ENOSPC)
	}
	return nil
}

// Statfs tells of the backing filesystem; what is the journal's is not free.
func (v *Volume) Statfs(st *unix.Statfs_t) error {
	if err := v.backing.Statfs(st); err != nil {
		return err
	}
	reserve := uint64(journal.Reserve) / uint64(max(st.Bsize, 1))
	st.Bfree -= min(st.Bfree, reserve)
	st.Bavail = min(st.Bavail, st.Bfree)
	return nil
}
