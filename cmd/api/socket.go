package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"

	"golang.org/x/sys/unix"
)

// maxSocketPath is what the kernel takes as a socket's path, in bytes (unix(7), less the NUL at the end).
const maxSocketPath = 107

// Listen opens the node's socket, for its user alone (0600). What a dead node left at the path is taken
// away; a live one, or a file that is not a socket, is left and reported.
//
// It changes the umask of the process for a moment: call it before anything else makes files.
func Listen(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, Errorf(CodeInvalid, "the control socket's path %s has more than %d bytes: name a shorter one with --socket", path, maxSocketPath)
	}
	if err := clearPath(path); err != nil {
		return nil, err
	}
	old := unix.Umask(0o177)
	defer unix.Umask(old)
	ln, err := net.Listen("unix", path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, Errorf(CodeInvalid, "the folder of the control socket %s does not exist: make it, or name another path with --socket", path)
	}
	if err != nil {
		return nil, fmt.Errorf("the control socket cannot be made: %w", err)
	}
	return ln, nil
}

// clearPath makes sure that nothing stands at the socket's path.
func clearPath(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the control socket's path cannot be used: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return Errorf(CodeConflict, "%s exists and is not a socket: name another path with --socket", path)
	}
	c, err := net.Dial("unix", path)
	if errors.Is(err, unix.ECONNREFUSED) {
		return os.Remove(path)
	}
	if err == nil {
		_ = c.Close()
	}
	return Errorf(CodeConflict, "another daemon answers on %s: name another path with --socket", path)
}

// peerUID gives the user at the other end of a unix socket, as the kernel knows it.
func peerUID(c net.Conn) (uint32, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("%T has no peer credentials", c)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, credErr); err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

// onlyOwner lets root and the node's own user in. The socket's mode says the same; this holds also when
// somebody changes the mode, or hands an open connection on.
func onlyOwner(next http.Handler) http.Handler {
	owner := uint32(os.Geteuid())
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		uid, known := r.Context().Value(peer{}).(uint32)
		if known && (uid == 0 || uid == owner) {
			next.ServeHTTP(w, r)
			return
		}
		e := Errorf(CodeForbidden, "only root and the user who runs the daemon may do this")
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(httpStatus[e.Code])
		_ = json.NewEncoder(w).Encode(errorBody{e}) // the caller is turned away, delivered or not
	})
}

// notNil makes an empty list travel as [], not as null.
func notNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
