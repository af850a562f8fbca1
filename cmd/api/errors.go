package api

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"

	"tandemfs/replicator"
)

// Code classes an error for whoever has to decide what to do next.
type Code string

// The codes. CodeUnreachable is the client's own: it never travels.
const (
	CodeInvalid     Code = "invalid"     // the request makes no sense; asking again will not help
	CodeForbidden   Code = "forbidden"   // the caller is neither root nor the node's user
	CodeNotFound    Code = "not_found"   // no such volume, snapshot, relationship or resource
	CodeConflict    Code = "conflict"    // refused in the present state
	CodeTooLarge    Code = "too_large"   // the request is longer than MaxRequest
	CodePeer        Code = "peer"        // the other node could not be reached, or refused
	CodeInternal    Code = "internal"    // anything else
	CodeUnreachable Code = "unreachable" // the daemon does not answer on its socket
)

// Error is an error with its code: what the node's parts return where they know the code, and what the
// client returns always.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message }

// Errorf makes an Error from a format.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// errorBody is an error as it travels.
type errorBody struct {
	Error *Error `json:"error"`
}

// classes gives the code of the errors that other rooms return, most telling first.
var classes = []struct {
	is   error
	code Code
}{
	{replicator.ErrNotFound, CodeNotFound},
	{replicator.ErrInvalid, CodeInvalid},
	{replicator.ErrConflict, CodeConflict},
	{replicator.ErrPeer, CodePeer},
	{fs.ErrNotExist, CodeNotFound},
	{fs.ErrExist, CodeConflict},
	{fs.ErrInvalid, CodeInvalid},
	{fs.ErrPermission, CodeConflict},
}

// AsError gives any error its code; this is the only place that decides it. The words of the outermost
// error stay.
func AsError(err error) *Error {
	var known *Error
	if errors.As(err, &known) {
		return &Error{Code: known.Code, Message: err.Error()}
	}
	var long *http.MaxBytesError
	if errors.As(err, &long) {
		return Errorf(CodeTooLarge, "the request is longer than %d bytes", long.Limit)
	}
	for _, class := range classes {
		if errors.Is(err, class.is) {
			return &Error{Code: class.code, Message: err.Error()}
		}
	}
	return &Error{Code: CodeInternal, Message: err.Error()}
}

// httpStatus gives the HTTP status of each code that travels.
var httpStatus = map[Code]int{
	CodeInvalid:   http.StatusBadRequest,
	CodeForbidden: http.StatusForbidden,
	CodeNotFound:  http.StatusNotFound,
	CodeConflict:  http.StatusConflict,
	CodeTooLarge:  http.StatusRequestEntityTooLarge,
	CodePeer:      http.StatusBadGateway,
	CodeInternal:  http.StatusInternalServerError,
}
