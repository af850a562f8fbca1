// Package crashpoint lets a test kill the process in the middle of an operation that has several steps. Each
// place where the process may die with a step done and the next one not is marked there by Here, with a name.
//
// It guarantees:
//
//   - Nothing that comes from a peer, a client or a user of the mount can reach a point: names are constants
//     in the code, and which of them counts is said by the environment of the process at its start, once.
//   - Where the environment says nothing, a point is one comparison of a variable that never changes.
//   - The process dies as it does by SIGKILL: no deferred call, no last write, nothing of it runs on.
//
// It is part of the journal's room since every room that changes a volume may import that one, and since what
// is in the journal decides what a process that died has left behind.
package crashpoint

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Variable names the environment variable that arms a point: its name, and after a colon when it kills, the
// first time if that is left out.
const Variable = "TANDEMFS_CRASHPOINT"

// point is the one that is armed.
type point struct {
	name string
	left atomic.Int64 // how often it is still to be reached
}

// armed is nil where the environment names no point.
var armed = parse(os.Getenv(Variable))

func parse(text string) *point {
	if text == "" {
		return nil
	}
	name, count, _ := strings.Cut(text, ":")
	p := &point{name: name}
	p.left.Store(1)
	if n, err := strconv.ParseInt(count, 10, 64); err == nil {
		p.left.Store(n)
	}
	return p
}

// Here says that the process has come to a point.
func Here(name string) {
	if armed != nil {
		armed.reached(name)
	}
}

// reached ends the process if the time has come.
func (p *point) reached(name string) {
	if p.counts(name) {
		_ = unix.Kill(unix.Getpid(), unix.SIGKILL) // one's own process can always be killed
		select {}
	}
}

// counts reports whether this is the time at which the point kills.
func (p *point) counts(name string) bool { return name == p.name && p.left.Add(-1) == 0 }
