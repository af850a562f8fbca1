package journal

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"
)

// unreadable are the errnos of what a filesystem does not give of one inode, name or block, though it has it: the disk
// does not (EIO, EREMOTEIO, ENODATA, EILSEQ, as the block layer tells one failure of a device from another), what it
// gives is not sound (EUCLEAN, EBADMSG), or it is encrypted and there is no key (ENOKEY).
var unreadable = []unix.Errno{unix.EIO, unix.EREMOTEIO, unix.ENODATA, unix.EILSEQ, unix.EUCLEAN, unix.EBADMSG, unix.ENOKEY}

// Unreadable reports whether an error is of something that is there and cannot be read, so that all else may go on
// without it; what says that the journal lacks something is no such error. It stands here since who reads the
// backing directory and who leaves out what cannot be read have to mean the same.
func Unreadable(err error) bool {
	if errors.Is(err, ErrNotHeld) || errors.Is(err, ErrGone) || errors.Is(err, ErrCorrupt) {
		return false
	}
	return slices.ContainsFunc(unreadable, func(errno unix.Errno) bool { return errors.Is(err, errno) })
}
