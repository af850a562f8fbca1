package wire

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Times of a connection. A peer that sends nothing, not even a ping, for Silence is taken for dead, and so is one that
// takes nothing for as long while nothing is read from it.
const (
	HandshakeTimeout = 10 * time.Second
	Silence          = 15 * time.Second
	pingEvery        = 4 * time.Second
)

// Options of a connection.
type Options struct {
	Identity    tls.Certificate // this node's, of an Ed25519 key
	Node        string          // this node's name
	Fingerprint string          // the only one that is accepted; empty: any
	Features    []string

	// For tests; zero means the constants above.
	HandshakeTimeout, Silence, PingEvery time.Duration
	Lowest, Highest                      uint16 // versions spoken
}

// Peer is who is at the other end.
type Peer struct {
	Node        string
	Fingerprint string
	Address     string
	Features    []string
	Version     uint16 // of the protocol, agreed
}

// Can reports whether the peer has a feature.
func (p Peer) Can(feature string) bool { return slices.Contains(p.Features, feature) }

// Conn is a connection between two nodes, after the handshake. One goroutine may call Receive; any may send.
type Conn struct {
	raw  *rawConn
	tls  *tls.Conn
	peer Peer
	in   frameReader

	mu   sync.Mutex // guards out, text
	out  frameWriter
	text []byte

	sent   atomic.Int64 // when something was last sent, in Unix nanoseconds
	closed chan struct{}
	once   sync.Once
	pinger sync.WaitGroup
}

// Client makes a connection of one that was dialed. It owns nc from then on.
func Client(ctx context.Context, nc net.Conn, o Options) (*Conn, error) {
	raw := newRawConn(nc)
	return handshake(ctx, raw, tls.Client(raw, tlsConfig(o.Identity, o.Fingerprint)), o)
}

// Server makes a connection of one that was accepted. It owns nc from then on.
func Server(ctx context.Context, nc net.Conn, o Options) (*Conn, error) {
	raw := newRawConn(nc)
	return handshake(ctx, raw, tls.Server(raw, tlsConfig(o.Identity, o.Fingerprint)), o)
}

// handshake is the same on both ends: TLS, then each sends its Hello and reads the other's.
func handshake(ctx context.Context, raw *rawConn, t *tls.Conn, o Options) (*Conn, error) {
	o = o.withDefaults()
	c := &Conn{raw: raw, tls: t, closed: make(chan struct{})}
	c.in = frameReader{from: bufio.NewReaderSize(t, 32<<10), limit: maxHello}
	c.out = frameWriter{to: t}
	deadline := time.Now().Add(o.HandshakeTimeout)
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) }) // wakes whoever waits
	defer stop()
	err := raw.SetDeadline(deadline)
	if err == nil {
		err = t.HandshakeContext(ctx)
	}
	if err == nil {
		err = c.hello(o)
	}
	if err != nil {
		_ = raw.Close() // the handshake's error says more
		return nil, handshakeError(err)
	}
	if !stop() {
		_ = raw.Close()
		return nil, context.Cause(ctx)
	}
	return c, c.goLive(o)
}

func (o Options) withDefaults() Options {
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = HandshakeTimeout
	}
	if o.Silence == 0 {
		o.Silence = Silence
	}
	if o.PingEvery == 0 {
		o.PingEvery = pingEvery
	}
	if o.Highest == 0 {
		o.Lowest, o.Highest = VersionLowest, VersionHighest
	}
	return o
}

// hello exchanges the Hellos and agrees on a version.
func (c *Conn) hello(o Options) error {
	mine := Hello{Lowest: o.Lowest, Highest: o.Highest, Node: o.Node, Features: o.Features}
	buf, err := mine.append(make([]byte, HeaderSize))
	if err != nil {
		return err
	}
	if err := c.out.write(TypeHello, buf, false); err != nil {
		return err
	}
	kind, content, err := c.in.read(nil)
	if err != nil {
		return err
	}
	if kind != TypeHello {
		return fmt.Errorf("%w: it begins with a frame of type %d", ErrNotTandem, kind)
	}
	theirs, err := parseHello(content)
	if err != nil {
		return err
	}
	version, err := agree(mine, theirs)
	c.peer = Peer{Node: theirs.Node, Features: theirs.Features, Version: version, Address: c.raw.RemoteAddr().String(),
		Fingerprint: Fingerprint(c.tls.ConnectionState().PeerCertificates[0])}
	return err
}

// goLive ends the handshake's rules: from now on writes are gathered and silence is death.
func (c *Conn) goLive(o Options) error {
	if err := c.raw.SetDeadline(time.Time{}); err != nil {
		_ = c.raw.Close()
		return err
	}
	c.raw.live.Store(true)
	c.raw.silence.Store(int64(o.Silence))
	c.in.limit = maxMessage
	c.pinger.Go(func() { c.ping(o.PingEvery) })
	return nil
}

// handshakeError says what an error of the handshake means to a person.
func handshakeError(err error) error {
	var record tls.RecordHeaderError
	var network net.Error
	var alert *net.OpError // TLS tells of the peer's alerts in this form
	switch {
	case errors.Is(err, ErrNotTandem), errors.Is(err, ErrVersion), errors.Is(err, ErrFingerprint):
		return err
	case errors.As(err, &record):
		return fmt.Errorf("%w: it does not speak TLS (what it sends begins with %q)", ErrNotTandem, record.RecordHeader[:])
	case errors.As(err, &alert) && alert.Op == "remote error":
		return fmt.Errorf("%w: it refused the TLS handshake (%w)", ErrNotTandem, err)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the peer did not finish the handshake in time: %w", err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("the peer closed the connection during the handshake: %w", noEOF(err))
	case errors.As(err, &network), errors.Is(err, context.Canceled), errors.Is(err, net.ErrClosed):
		return fmt.Errorf("handshake with the peer: %w", err)
	}
	return fmt.Errorf("%w: %w", ErrNotTandem, err)
}

// Peer says who is at the other end.
func (c *Conn) Peer() Peer { return c.peer }

// CountInto makes total count every byte of the connection below TLS, both ways, from its beginning.
func (c *Conn) CountInto(total *atomic.Int64) { c.raw.countInto(total) }

// AllowRecords lets the peer send frames of any length from now on. Until then only messages are
// accepted. For the goroutine that calls Receive.
func (c *Conn) AllowRecords() { c.in.limit = MaxRaw }

// Send sends a message at once.
func (c *Conn) Send(kind Type, message any) error {
	if err := c.Queue(kind, message); err != nil {
		return err
	}
	return c.Flush()
}

// Queue sends a message with what is flushed next.
func (c *Conn) Queue(kind Type, message any) error {
	text, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if len(text) > maxMessage {
		return fmt.Errorf("%w: a message of %d bytes", ErrFrame, len(text))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text = append(sized(c.text, HeaderSize), text...)
	return c.write(kind, c.text, true)
}

// QueueRecords sends the records in buf after HeaderSize bytes, which are overwritten, with what is flushed next.
func (c *Conn) QueueRecords(buf []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.write(TypeRecords, buf, true)
}

// write is for holders of mu.
func (c *Conn) write(kind Type, buf []byte, pack bool) error {
	c.sent.Store(time.Now().UnixNano())
	return c.out.write(kind, buf, pack)
}

// Flush sends what was queued.
func (c *Conn) Flush() error { return c.raw.Flush() }

// Receive gives the next frame's type and content, in buf where that has the capacity. Pings are not
// shown. io.EOF is the end that the peer made between two frames.
func (c *Conn) Receive(buf []byte) (Type, []byte, error) {
	for {
		kind, content, err := c.in.read(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return 0, nil, fmt.Errorf("the peer fell silent: %w", err)
		case err != nil:
			return 0, nil, err
		case kind == TypeHello:
			return 0, nil, fmt.Errorf("%w: a second handshake", ErrFrame)
		case kind != TypePing:
			return kind, content, nil
		}
	}
}

// ping lets the peer know that this end lives while there is nothing else to say.
func (c *Conn) ping(every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-c.closed:
			return
		case <-tick.C:
		}
		if time.Now().UnixNano()-c.sent.Load() < int64(every)/2 {
			continue
		}
		if c.sendPing() != nil {
			return // whoever receives learns of it too
		}
	}
}

func (c *Conn) sendPing() error {
	c.mu.Lock()
	err := c.write(TypePing, make([]byte, HeaderSize), false)
	c.mu.Unlock()
	if err != nil {
		return err
	}
	return c.Flush()
}

// Close ends the connection; whoever waits in it gets an error. It can be called more than once.
func (c *Conn) Close() error {
	var err error
	c.once.Do(func() {
		close(c.closed)
		c.raw.leaving.Store(true)
		if c.raw.stuck() {
			err = c.raw.Close() // a farewell would wait for the network too
		} else {
			err = c.tls.Close() // closes raw
		}
	})
	c.pinger.Wait()
	return err
}
