package replicator

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"tandemfs/replicator/wire"
)

// errRefused says that the target will not take what the source wants to send.
var errRefused = errors.New("refused")

// errFull says that a disk has no room.
var errFull = errors.New("no space left")

// full reports whether an error passes by itself once there is room on a disk.
func full(err error) bool {
	return errors.Is(err, errFull) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// maxErrorText bounds what is kept and told of an error, in bytes: one that is about many files can be long.
const maxErrorText = 4 << 10

// errorText is what an error says, cut where that is too much.
func errorText(err error) string {
	text := err.Error()
	if len(text) > maxErrorText {
		text = text[:maxErrorText] + "..."
	}
	return text
}

// failedJob is what a job is after an error that is not the network's.
func failedJob(err error) JobState {
	if full(err) {
		return JobNoSpace
	}
	return JobFailed
}

// class tells the source what kind of error ended a transfer on the target.
func class(err error) wire.Class {
	var errno syscall.Errno
	var path *fs.PathError
	switch {
	case full(err):
		return wire.ClassNoSpace
	case errors.Is(err, errRefused):
		return wire.ClassRefused
	case errors.Is(err, errDivergence), errors.Is(err, wire.ErrRecord):
		return wire.ClassDivergence
	case errors.As(err, &errno), errors.As(err, &path):
		return wire.ClassIO
	}
	return wire.ClassInternal
}

// failure is an error of a transfer that is not the network's: the connection was fine.
type failure struct{ err error }

func (f failure) Error() string { return f.err.Error() }
func (f failure) Unwrap() error { return f.err }

// diverged is a failure that another transfer of the same seal would run into again.
type diverged struct{ error }

// failedThere is what the target has reported.
func failedThere(f wire.Failed) error {
	text := wire.Printable(f.Text)
	err := fmt.Errorf("on the target (%s): %s", f.Class, text)
	switch f.Class {
	case wire.ClassNoSpace:
		err = fmt.Errorf("%w on the target: make room there, and the transfer goes on by itself (%s)", errFull, text)
	case wire.ClassDivergence:
		err = diverged{err}
	}
	return failure{err}
}
