package replicator

import (
	"net"
	"slices"
	"sync"
)

// maxStrangers bounds the connections that have not said yet who they are and what they want.
const maxStrangers = 64

// strangers are those connections, oldest first. When there are too many the oldest has to go: a node
// says what it wants in a moment, so it is not a node that has waited longest. Its methods may be called
// concurrently.
type strangers struct {
	mu    sync.Mutex
	conns []net.Conn
}

// enter takes a connection in, closing the oldest where there is no room.
func (s *strangers) enter(nc net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) == maxStrangers {
		_ = s.conns[0].Close() // whoever serves it notices
		s.conns = s.conns[1:]
	}
	s.conns = append(s.conns, nc)
}

// leave is for a connection that is a stranger's no longer.
func (s *strangers) leave(nc net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.conns, nc); i >= 0 {
		s.conns = slices.Delete(s.conns, i, i+1)
	}
}
