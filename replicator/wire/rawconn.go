package wire

import (
	"bufio"
	"net"
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
	silence atomic.Int64 // nanoseconds without a byte after which reading fails; 0: never
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

func (w rawWriter) Write(p []byte) (int, error) {
	n, err := w.c.Conn.Write(p)
	w.c.counted(n)
	return n, err
}

type rawReader struct{ c *rawConn }

func (r rawReader) Read(p []byte) (int, error) {
	if silence := r.c.silence.Load(); silence > 0 {
		if err := r.c.SetReadDeadline(time.Now().Add(time.Duration(silence))); err != nil {
			return 0, err
		}
	}
	n, err := r.c.Conn.Read(p)
	r.c.counted(n)
	return n, err
}
