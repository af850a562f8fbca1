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

// class tells the source what kind of error ended a transfer on the target.
func class(err error) wire.Class {
	var errno syscall.Errno
	var path *fs.PathError
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
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

// failedThere is what the target has reported.
func failedThere(f wire.Failed) error {
	return failure{fmt.Errorf("on the target (%s): %s", f.Class, wire.Printable(f.Text))}
}
