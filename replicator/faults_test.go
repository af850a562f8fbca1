package replicator

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tandemfs/journal"
	"tandemfs/replicator/wire"
)

// setCut makes the source's connections break after a number of bytes, the one it has and those to come.
func (c *cutter) setCut(after func() int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.after = after
	if c.last != nil {
		c.last.limit(after())
	}
}

func never() int64 { return -1 }

// fill makes a tree with something of everything and enough content for many frames.
func fill(v *tree) {
	d := v.mkdir(v.root, "d")
	for i := range 20 {
		f := v.file(d, fmt.Sprint("f", i), strings.Repeat(fmt.Sprint(i), 3000))
		if i%5 == 0 {
			v.hardlink(f, v.root, fmt.Sprint("link", i))
		}
	}
	v.file(v.root, "large", incompressible(1<<20))
	v.symlink(d, "symlink", "f1")
}

func incompressible(n int) string {
	rnd := rand.NewChaCha8([32]byte{9})
	b := make([]byte, n)
	rnd.Read(b)
	return string(b)
}

// The connection breaks after every so many bytes of a first transfer, each time once, and then for good a
// little later than the last time: the transfer ends, and what the target had is not sent again.
func TestATransferCutAnywhereGoesOn(t *testing.T) {
	for _, step := range []int64{1777, 9999, 70_001} {
		t.Run(fmt.Sprint("every ", step, " bytes"), func(t *testing.T) {
			p := newPair(t)
			fill(p.from)
			c := &cutter{after: never}
			p.src.config.Dial = c.dial
			p.src.restart()
			p.propose()
			cut := int64(3000)
			c.setCut(func() int64 {
				cut += step
				return cut
			})
			if _, err := p.dst.Authorize(background, p.id, AuthorizeRequest{}); err != nil {
				t.Fatal(err)
			}
			if step > 5000 {
				eventually(t, "it breaks several times", func() bool { return c.cuts.Load() >= 4 || p.src.status(p.id).RecoveryPoint.Epoch != 0 })
			} else {
				eventually(t, "it breaks many times", func() bool { return c.cuts.Load() >= 8 })
			}
			c.setCut(never)
			p.same()
		})
	}
}

// pairThatWentOn gives a pair whose first transfer was cut in the middle of a large file, and went on.
func pairThatWentOn(t *testing.T) *pair {
	t.Helper()
	p := newPair(t)
	p.from.file(p.from.root, "large", incompressible(24<<20))
	c := &cutter{after: never}
	p.src.config.Dial = c.dial
	p.src.restart()
	p.propose()
	c.setCut(func() int64 {
		if c.cuts.Load() > 0 {
			return -1
		}
		return 8 << 20
	})
	if _, err := p.dst.Authorize(background, p.id, AuthorizeRequest{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it breaks", func() bool { return c.cuts.Load() > 0 })
	p.same()
	return p
}

func TestWhatTheTargetHasIsNotSentAgain(t *testing.T) {
	p := pairThatWentOn(t)
	s := p.src.status(p.id)
	if s.TotalWireBytes > 27<<20 {
		t.Errorf("%d bytes were sent for 24 MiB", s.TotalWireBytes)
	}
	if s.Progress.Bytes.Transferred != 24<<20 || !s.Progress.First || s.Progress.PercentComplete != 100 {
		t.Errorf("%+v", s.Progress)
	}
	if got := p.dst.status(p.id).Progress; got.Bytes.Transferred != 24<<20 || got.PercentComplete != 100 {
		t.Errorf("on the target: %+v", got)
	}
}

// A transfer that went on inside a file leaves nothing to the one after it on the same connection.
func TestATransferAfterOneThatWentOnStartsAtItsStart(t *testing.T) {
	p := pairThatWentOn(t)
	before := p.dst.status(p.id)
	p.from.file(p.from.root, "small", "more")
	p.same()
	if s := p.dst.status(p.id); s.LastErrorTime != before.LastErrorTime {
		t.Errorf("the target refuses it: %s", s.LastError)
	}
}

func TestAFirstTransferGoesOnAfterRestartsOfBothNodes(t *testing.T) {
	p := newPair(t)
	for i := range 40 {
		p.from.file(p.from.root, fmt.Sprint("f", i), incompressible(1<<20))
	}
	var writes atomic.Int64
	p.to.setBroken(func(op string) error {
		if op == "write" && writes.Add(1) == 100 {
			return errIO
		}
		return nil
	})
	p.create()
	eventually(t, "it stops in the middle", func() bool { return writes.Load() >= 100 })
	p.src.stop()
	p.dst.restart()
	p.src.start()
	p.same()
	if n := writes.Load(); n > 40*4+20 {
		t.Errorf("%d writes for 40 files of 4 records", n)
	}
}

// meddler passes what the source sends on to the target, changed.
type meddler struct {
	net.Conn
	meddle func([]byte) []byte
}

func (m *meddler) Write(p []byte) (int, error) {
	if q := m.meddle(bytes.Clone(p)); q != nil {
		if _, err := m.Conn.Write(q); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// Below TLS nothing can be changed, left out, repeated or put in another order without being noticed.
func TestAMeddlerGetsNothingThrough(t *testing.T) {
	meddlers := map[string]func() func([]byte) []byte{
		"one bit": func() func([]byte) []byte {
			return func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
		},
		"a write left out": func() func([]byte) []byte {
			left := true
			return func(b []byte) []byte {
				if left {
					left, b = false, nil
				}
				return b
			}
		},
		"a write repeated": func() func([]byte) []byte {
			return func(b []byte) []byte { return append(b, b...) }
		},
		"two writes swapped": func() func([]byte) []byte {
			var kept []byte
			return func(b []byte) []byte {
				if kept == nil {
					kept = b
					return nil
				}
				b, kept = append(b, kept...), nil
				return b
			}
		},
	}
	for name, meddle := range meddlers {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			p.from.file(p.from.root, "f", incompressible(2<<20))
			var mu sync.Mutex
			left := 3 // connections that are meddled with
			p.src.stop()
			p.src.config.Dial = func(ctx context.Context, address string) (net.Conn, error) {
				nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
				mu.Lock()
				defer mu.Unlock()
				if err != nil || left <= 0 {
					return nc, err
				}
				left--
				change, writes := meddle(), 0
				return &meddler{nc, func(b []byte) []byte {
					if writes++; writes > 8+left {
						return change(b)
					}
					return b
				}}, nil
			}
			p.src.start()
			p.create()
			p.same()
		})
	}
}

// talk is a source that the target has authorized and that says whatever a test wants.
func talk(t *testing.T) (*pair, *wire.Conn, wire.Position) {
	t.Helper()
	p := newPair(t)
	p.propose()
	if _, err := p.dst.Authorize(background, p.id, AuthorizeRequest{}); err != nil {
		t.Fatal(err)
	}
	p.src.stop()
	m, err := NewManager(p.src.config)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := m.dial(background, p.dst.address, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	no(conn.Send(wire.TypeAttach, wire.Attach{ID: p.id, VolumeID: p.from.ID(), Volume: "data", Path: "/"}))
	kind, content, err := conn.Receive(nil)
	var pos wire.Position
	if err != nil || kind != wire.TypePosition || wire.Parse(content, &pos) != nil {
		t.Fatal(kind, err)
	}
	return p, conn, pos
}

// hear waits for the target's answer to what it was told.
func hear(t *testing.T, conn *wire.Conn) (wire.Failed, bool) {
	t.Helper()
	for {
		kind, content, err := conn.Receive(nil)
		var f wire.Failed
		switch {
		case err != nil:
			return f, false
		case kind == wire.TypeFailed:
			no(wire.Parse(content, &f))
			return f, true
		case kind == wire.TypeCommitted:
			t.Fatal("it is committed")
		}
	}
}

func frame(records ...wire.Record) []byte {
	b := make([]byte, wire.HeaderSize)
	for i := range records {
		var err error
		b, err = records[i].Append(b)
		no(err)
	}
	return b
}

func TestAWrongStreamIsNotCommitted(t *testing.T) {
	root := journal.Ident{Ino: 2, Gen: 1}
	begin := wire.Begin{Cursor: wire.Cursor{Epoch: 5}, RootIno: 2, RootGen: 1}
	dir := wire.Record{Kind: wire.KindInode, Flags: wire.FlagNew, Ident: journal.Ident{Ino: 9}, Attr: journal.Attr{Mode: typeDir}}
	cases := map[string]struct {
		class wire.Class
		send  func(c *wire.Conn)
	}{
		"a base that the target does not have": {wire.ClassRefused, func(c *wire.Conn) {
			c.Queue(wire.TypeBegin, wire.Begin{Cursor: wire.Cursor{Base: 3, Epoch: 5}})
		}},
		"a place that the target has not come to": {wire.ClassRefused, func(c *wire.Conn) {
			c.Queue(wire.TypeBegin, wire.Begin{Cursor: wire.Cursor{Epoch: 5, Items: 7}})
		}},
		"records without a begin": {wire.ClassDivergence, func(c *wire.Conn) { c.QueueRecords(frame(dir)) }},
		"an end without a begin":  {wire.ClassDivergence, func(c *wire.Conn) { c.Queue(wire.TypeEnd, wire.End{}) }},
		"a second begin": {wire.ClassDivergence, func(c *wire.Conn) {
			c.Queue(wire.TypeBegin, begin)
			c.Queue(wire.TypeBegin, begin)
		}},
		"a record that is none": {wire.ClassDivergence, func(c *wire.Conn) {
			c.Queue(wire.TypeBegin, begin)
			c.QueueRecords(append(make([]byte, wire.HeaderSize), "garbage"...))
		}},
		"an unknown directory": {wire.ClassDivergence, func(c *wire.Conn) {
			c.Queue(wire.TypeBegin, begin)
			c.QueueRecords(frame(dir, wire.Record{Kind: wire.KindAttach, Dir: journal.Ident{Ino: 8}, Name: []byte("x"), Ident: dir.Ident}))
		}},
		"an unknown inode": {wire.ClassDivergence, func(c *wire.Conn) {
			c.Queue(wire.TypeBegin, begin)
			c.QueueRecords(frame(wire.Record{Kind: wire.KindAttach, Dir: root, Name: []byte("x"), Ident: journal.Ident{Ino: 8}}))
		}},
		"content that belongs to nothing": {wire.ClassDivergence, func(c *wire.Conn) {
			c.Queue(wire.TypeBegin, begin)
			c.QueueRecords(frame(dir, wire.Record{Kind: wire.KindData, Data: []byte("x")}))
		}},
		"another digest": {wire.ClassDivergence, func(c *wire.Conn) {
			c.Queue(wire.TypeBegin, begin)
			c.QueueRecords(frame(dir))
			c.Queue(wire.TypeEnd, wire.End{Items: 1, Digest: strings.Repeat("0", 64)})
		}},
		"a message that is none": {wire.ClassInternal, func(c *wire.Conn) { c.Queue(wire.TypeBegin, "a string") }},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			p, conn, _ := talk(t)
			c.send(conn)
			no(conn.Flush())
			if f, ok := hear(t, conn); !ok || f.Class != c.class {
				t.Errorf("the target says %+v, %v", f, ok)
			}
			conn.Close()
			eventually(t, "the session is over", func() bool { return p.dst.status(p.id).Job == JobDisconnected })
			if p.dst.status(p.id).RecoveryPoint.Epoch != 0 || p.to.commits != 0 {
				t.Error("there is a recovery point")
			}
			fill(p.from)
			p.src.start()
			p.same() // the real source is served as if nothing had been
		})
	}
}

func TestMessagesOutOfTheirTurnEndTheConnection(t *testing.T) {
	for _, kind := range []wire.Type{wire.TypeDecision, wire.TypePosition, wire.TypeCommitted, wire.TypePropose, wire.TypeAttach} {
		_, conn, _ := talk(t)
		no(conn.Send(kind, struct{}{}))
		if _, ok := hear(t, conn); ok {
			t.Errorf("type %d is answered", kind)
		}
	}
}

func TestStrangeConnectionsLeaveTheNodeAlive(t *testing.T) {
	p := newPair(t)
	fill(p.from)
	raw := func(what string) {
		nc, err := net.Dial("tcp", p.dst.address)
		if err != nil {
			t.Fatal(err)
		}
		nc.SetDeadline(time.Now().Add(5 * time.Second))
		io.WriteString(nc, what)
		io.Copy(io.Discard, nc)
		nc.Close()
	}
	raw("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	raw("SSH-2.0-OpenSSH\r\n")
	raw(incompressible(10_000))
	inside := func(what []byte) {
		nc, err := tls.Dial("tcp", p.dst.address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"tandem/1"}, Certificates: []tls.Certificate{testIdentity(t)}})
		if err != nil {
			t.Fatal(err)
		}
		nc.SetDeadline(time.Now().Add(5 * time.Second))
		nc.Write(what)
		io.Copy(io.Discard, nc)
		nc.Close()
	}
	inside([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	inside(bytes.Repeat([]byte{0xff}, 1000))
	var silent []net.Conn
	for range maxStrangers + 10 { // who says nothing takes no place for long, and takes none from others
		nc, err := net.Dial("tcp", p.dst.address)
		if err != nil {
			t.Fatal(err)
		}
		silent = append(silent, nc)
	}
	for _, nc := range silent {
		nc.Close()
	}
	p.create().same()
}

func TestTargetsThatAreNotTandemAreNamed(t *testing.T) {
	p := newPair(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			io.WriteString(nc, "SSH-2.0-OpenSSH_9.2\r\n")
			defer nc.Close()
		}
	}()
	_, err = p.src.Create(background, CreateRequest{Source: "data", Target: ln.Addr().String(), TargetVolume: "copy"})
	if err == nil || !strings.Contains(err.Error(), wire.ErrNotTandem.Error()) {
		t.Error(err)
	}
}

func TestNothingRunsOnAfterClose(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 3 {
		p := newPair(t).create()
		fill(p.from)
		p.same()
		p.from.file(p.from.root, "on the way", incompressible(4<<20))
		p.src.stop()
		p.dst.stop()
		no(p.from.j.Close())
		no(p.to.j.Close())
	}
	eventually(t, "all goroutines end", func() bool { return runtime.NumGoroutine() <= before+2 })
}

func TestADeadPeerIsLeftByClose(t *testing.T) {
	p := newPair(t).create()
	p.same()
	blocked := make(chan struct{})
	p.to.setBroken(func(op string) error {
		if op == "write" {
			<-blocked
		}
		return nil
	})
	for i := range 24 {
		p.from.file(p.from.root, fmt.Sprint("f", i), incompressible(1<<20))
	}
	eventually(t, "the transfer runs", func() bool { return p.src.status(p.id).Job == JobRunning })
	time.Sleep(50 * time.Millisecond)
	start := time.Now()
	p.src.stop()
	if d := time.Since(start); d > 8*time.Second {
		t.Errorf("closing took %v", d)
	}
	close(blocked)
}

// Operation n of the target fails, for every n until a transfer runs through; now and then a node is started
// anew before it is tried again.
func TestATransferThatFailsAnywhereGoesOn(t *testing.T) {
	p := newPair(t)
	fill(p.from)
	p.from.remove(p.from.root, "large")
	p.create().same()
	for n, done := int64(1), false; !done; n++ {
		var at atomic.Int64
		p.to.setBroken(func(string) error {
			if at.Add(1) == n {
				return errIO
			}
			return nil
		})
		turnAround(p.from, n)
		if n%8 == 0 {
			eventually(t, "it fails or passes", func() bool { return at.Load() >= n || p.src.status(p.id).Job == JobIdle })
			[]*testNode{p.src, p.dst}[n/8%2].restart()
		}
		p.same()
		done = at.Load() < n
	}
}

// turnAround changes a tree in several ways at once; two times make nearly what was before.
func turnAround(v *tree, n int64) {
	name := func(odd, even string) string {
		if n%2 == 1 {
			return odd
		}
		return even
	}
	old, fresh := name("d", "e"), name("e", "d")
	v.rename(v.root, old, v.root, fresh)
	made := v.mkdir(v.root, name("made", "made again"))
	v.file(made, "small", fmt.Sprint(n))
	v.hardlink(v.at(fresh+"/f1"), made, "link")
	if n > 1 {
		before := name("made again", "made")
		v.rename(v.root, before, made, "before")
		v.remove(v.at(name("made", "made again")+"/before"), "link")
		v.remove(v.at(name("made", "made again")+"/before"), "small")
		if n > 2 {
			v.remove(v.at(name("made", "made again")+"/before"), "before")
		}
	}
	v.write(v.at(fresh+"/f2"), n*100, "changed")
	v.exchange(v.root, "link0", v.root, "link5")
}
