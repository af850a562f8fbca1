// Package faultproxy stands between two ends of TCP connections and does to them what networks do: it passes
// bytes on changed, twice, in another order or not at all, slowly or late, and breaks connections.
//
// It guarantees that without a fault every byte arrives as it was sent; that a fault begins and ends for all
// connections at once, those that are open too; and that what it does is drawn from a seed. What a fault has
// damaged stays damaged when the fault ends: to notice is up to the two ends.
package faultproxy

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// A Fault is what goes wrong.
type Fault string

// The faults.
const (
	None      Fault = ""
	Flips     Fault = "flips bits"
	Swaps     Fault = "swaps neighbouring segments"
	Doubles   Fault = "sends segments twice"
	Drops     Fault = "leaves segments out"
	Truncates Fault = "cuts segments short and closes"
	Resets    Fault = "resets connections"
	Stalls    Fault = "passes nothing on"
	StallsOut Fault = "passes nothing on to the target"
	StallsIn  Fault = "passes nothing on to the source"
	Slow      Fault = "passes a few KiB on in a second"
	Silent    Fault = "accepts and says nothing"
)

// Faults are all of them.
var Faults = []Fault{Flips, Swaps, Doubles, Drops, Truncates, Resets, Stalls, StallsOut, StallsIn, Slow, Silent}

const (
	// segment is how much is read, and damaged, at a time at most: about a record of TLS.
	segment = 16 << 10
	// oneIn says how many segments there are to one that is damaged.
	oneIn = 4
	// slowest and fastest are the bounds of a slow connection, in bytes per second.
	slowest, fastest = 8 << 10, 256 << 10
)

// A Proxy passes connections on. Its methods may be called concurrently.
type Proxy struct {
	listener net.Listener
	dial     func() (net.Conn, error)
	all      sync.WaitGroup

	mu      sync.Mutex
	r       *rand.Rand
	fault   Fault
	changed chan struct{} // closed when the fault changes or the proxy is closed, and replaced
	closed  bool
	open    map[net.Conn]struct{}
	struck  int
}

// errBroken ends a connection on purpose.
var errBroken = errors.New("the fault breaks the connection")

// Start passes on what the listener accepts to what dial gives, until Close.
func Start(listener net.Listener, dial func() (net.Conn, error), seed uint64) *Proxy {
	p := &Proxy{listener: listener, dial: dial, r: rand.New(rand.NewPCG(seed, 0)), changed: make(chan struct{}), open: map[net.Conn]struct{}{}}
	p.all.Go(p.accept)
	return p
}

// Begin ends the fault that there is, and begins another.
func (p *Proxy) Begin(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = f
	p.announce()
}

// End ends the fault.
func (p *Proxy) End() { p.Begin(None) }

// Struck is how often something was done to a connection so far.
func (p *Proxy) Struck() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.struck
}

// Close ends all connections and waits for what serves them.
func (p *Proxy) Close() error {
	p.mu.Lock()
	p.closed = true
	p.announce()
	for c := range p.open {
		c.Close()
	}
	p.mu.Unlock()
	err := p.listener.Close()
	p.all.Wait()
	return err
}

// announce is for holders of mu.
func (p *Proxy) announce() {
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *Proxy) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return // it was closed
		}
		p.all.Go(func() { p.serve(c) })
	}
}

// hold makes a connection one that Close closes. It reports whether the proxy is still there.
func (p *Proxy) hold(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		c.Close()
		return false
	}
	p.open[c] = struct{}{}
	return true
}

func (p *Proxy) drop(c net.Conn) {
	p.mu.Lock()
	delete(p.open, c)
	p.mu.Unlock()
	c.Close() // an error tells nothing that the other end needs
}

// serve passes one connection on, both ways, until both ways have ended or one is broken.
func (p *Proxy) serve(from net.Conn) {
	if !p.hold(from) {
		return
	}
	defer p.drop(from)
	if !p.wait(Silent) {
		return
	}
	to, err := p.dial()
	if err != nil || !p.hold(to) {
		return
	}
	defer p.drop(to)
	var both sync.WaitGroup
	both.Go(func() { p.pass(from, to, StallsOut) })
	both.Go(func() { p.pass(to, from, StallsIn) })
	both.Wait()
}

// wait waits while one of the faults is there. It reports false when the proxy is closed.
func (p *Proxy) wait(faults ...Fault) bool {
	struck := false
	for {
		p.mu.Lock()
		changed, closed, waits := p.changed, p.closed, false
		for _, f := range faults {
			waits = waits || p.fault == f
		}
		if waits && !struck {
			struck = true
			p.struck++
		}
		p.mu.Unlock()
		if closed || !waits {
			return !closed
		}
		<-changed
	}
}

// pass passes on one way. An end that comes of itself is passed on too; after any other both ways are closed.
func (p *Proxy) pass(from, to net.Conn, stall Fault) {
	var held []byte
	for {
		b := make([]byte, segment)
		n, err := from.Read(b)
		if !p.wait(Stalls, stall) {
			return
		}
		if n > 0 {
			if held, err = p.damage(to, append(held, b[:n]...), len(held)); err != nil {
				p.breakOff(from, to, err)
				return
			}
			continue
		}
		if errors.Is(err, io.EOF) {
			to.(*net.TCPConn).CloseWrite() // if it cannot be closed it is
			return
		}
		if err != nil {
			p.breakOff(from, to, err)
			return
		}
	}
}

// breakOff ends both connections: as if the peer had closed them, or else with a reset.
func (p *Proxy) breakOff(from, to net.Conn, why error) {
	for _, c := range []net.Conn{from, to} {
		if !errors.Is(why, errBroken) {
			c.(*net.TCPConn).SetLinger(0) // an error means that it is closed already
		}
		c.Close()
	}
}

// draw gives the fault, and whether it strikes this segment; if so, a number to do it by.
func (p *Proxy) draw() (fault Fault, strikes bool, number int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	number = p.r.Int()
	strikes = p.fault == Slow || p.fault != None && p.r.IntN(oneIn) == 0
	if strikes {
		p.struck++
	}
	return p.fault, strikes, number
}

// damage writes a segment, as the fault wants it. before is how many of its bytes were held back earlier, to be
// swapped with the rest now. What it returns is to be held back.
func (p *Proxy) damage(to io.Writer, b []byte, before int) (held []byte, err error) {
	if before > 0 {
		return nil, write(to, b[before:], b[:before])
	}
	fault, strikes, number := p.draw()
	if !strikes {
		return nil, write(to, b)
	}
	switch fault {
	case Flips:
		b[number%len(b)] ^= 1 << (number >> 32 & 7)
	case Swaps:
		return b, nil
	case Doubles:
		return nil, write(to, b, b)
	case Drops:
		return nil, nil
	case Truncates:
		return nil, errors.Join(write(to, b[:number%len(b)]), errBroken)
	case Resets:
		return nil, fmt.Errorf("the fault %s", fault)
	case Slow:
		return nil, p.crawl(to, b, slowest+number%(fastest-slowest))
	}
	return nil, write(to, b)
}

func write(to io.Writer, pieces ...[]byte) error {
	for _, b := range pieces {
		if _, err := to.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// crawl writes so many bytes per second, for as long as the fault lasts.
func (p *Proxy) crawl(to io.Writer, b []byte, rate int) error {
	const piece = 1 << 10
	for len(b) > piece {
		p.mu.Lock()
		changed, slow := p.changed, p.fault == Slow
		p.mu.Unlock()
		if !slow {
			break
		}
		select {
		case <-changed:
		case <-time.After(time.Second * piece / time.Duration(rate)):
		}
		if err := write(to, b[:piece]); err != nil {
			return err
		}
		b = b[piece:]
	}
	return write(to, b)
}
