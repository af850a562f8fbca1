package wire

import (
	"bufio"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// rawConn stands between TLS and TCP: it gathers what TLS writes until Flush, counts bytes, and notices
// silence. Reading and writing are for one goroutine each; Close and Flush for any.
type rawConn struct {
	net.Conn
	mu      sync.Mutex // guards out
	out     *bufio.Writer
	in      *bufio.Reader
	live    atomic.Bool  // the handshake is done: writes wait for Flush
	silence atomic.Int64 // nanoseconds without a byte after which reading and writing fail; 0: never
	heard   atomic.Int64 // when something was last read, in Unix nanoseconds
	leaving atomic.Bool  // it is being closed: nothing is waited for any more
	count   atomic.Pointer[atomic.Int64]
	before  atomic.Int64 // bytes before there was a counter
}

// Sizes of the buffers below TLS, whose own records are of 16 KiB: fewer system calls.
const (
	outBuffer = 128 << 10
	inBuffer  = 64 << 10
	// farewell is how long Close tries to send what is left.
	farewell = time.Second
)

func newRawConn(nc net.Conn) *rawConn {
	c := &rawConn{Conn: nc}
	c.out = bufio.NewWriterSize(rawWriter{c}, outBuffer)
	c.in = bufio.NewReaderSize(rawReader{c}, inBuffer)
	return c
}

func (c *rawConn) Read(p []byte) (int, error) { return c.in.Read(p) }

func (c *rawConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.out.Write(p)
	if err == nil && !c.live.Load() {
		err = c.out.Flush()
	}
	return n, err
}

// Flush sends what was gathered.
func (c *rawConn) Flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Flush()
}

// Close sends what was gathered unless somebody is blocked in just that.
func (c *rawConn) Close() error {
	if c.mu.TryLock() {
		_ = c.SetWriteDeadline(time.Now().Add(farewell)) // an error shows in the flush
		_ = c.out.Flush()                                // the peer notices the end in any case
		c.mu.Unlock()
	}
	return c.Conn.Close()
}

// stuck reports whether somebody waits for the network to take what was gathered.
func (c *rawConn) stuck() bool {
	if !c.mu.TryLock() {
		return true
	}
	c.mu.Unlock()
	return false
}

// countInto makes total count all bytes of the connection, those of the past too.
func (c *rawConn) countInto(total *atomic.Int64) {
	c.count.Store(total)
	total.Add(c.before.Swap(0))
}

func (c *rawConn) counted(n int) {
	if total := c.count.Load(); total != nil {
		total.Add(int64(n))
		return
	}
	c.before.Add(int64(n))
}

type rawWriter struct{ c *rawConn }

// Write fails once the network has taken nothing, and nothing was read, for the time of silence. The reader alone does
// not notice a dead peer: it may wait for somebody who waits here. A peer that is busy and takes nothing for long is
// heard.
func (w rawWriter) Write(p []byte) (int, error) {
	c, done := w.c, 0
	for {
		silence := time.Duration(c.silence.Load())
		if silence > 0 && !c.leaving.Load() {
			if err := c.SetWriteDeadline(time.Now().Add(silence)); err != nil {
				return done, err
			}
		}
		n, err := c.Conn.Write(p[done:])
		c.counted(n)
		done += n
		lives := n > 0 || time.Now().UnixNano()-c.heard.Load() < int64(silence)
		if !errors.Is(err, os.ErrDeadlineExceeded) || !lives || c.leaving.Load() {
			return done, err
		}
	}
}

type rawReader struct{ c *rawConn }

func (r rawReader) Read(p []byte) (int, error) {
	if silence := r.c.silence.Load(); silence > 0 {
		if err := r.c.SetReadDeadline(time.Now().Add(time.Duration(silence))); err != nil {
			return 0, err
		}
	}
	n, err := r.c.Conn.Read(p)
	if n > 0 {
		r.c.heard.Store(time.Now().UnixNano())
	}
	r.c.counted(n)
	return n, err
}
