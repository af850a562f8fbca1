package wire

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tandemfs/journal/alloctest"
)

func identity(t testing.TB) tls.Certificate {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return certificate(t, public, private)
}

func certificate(t testing.TB, public, private any) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}
}

func fingerprintOf(t testing.TB, c tls.Certificate) string {
	t.Helper()
	cert, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return Fingerprint(cert)
}

// sockets gives the two ends of a TCP connection.
func sockets(t testing.TB) (client, server net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if client, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// shake runs both ends of a handshake.
func shake(t testing.TB, client, server Options) (c, s *Conn, clientErr, serverErr error) {
	t.Helper()
	a, b := sockets(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s, serverErr = Server(context.Background(), b, server)
	}()
	c, clientErr = Client(context.Background(), a, client)
	<-done
	t.Cleanup(func() {
		for _, conn := range []*Conn{c, s} {
			if conn != nil {
				conn.Close()
			}
		}
	})
	return c, s, clientErr, serverErr
}

func connected(t testing.TB, client, server Options) (c, s *Conn) {
	t.Helper()
	client.Identity, server.Identity = identity(t), identity(t)
	c, s, err, err2 := shake(t, client, server)
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	return c, s
}

func TestTwoNodesLearnWhoTheyAre(t *testing.T) {
	a, b := identity(t), identity(t)
	c, s, err, err2 := shake(t, Options{Identity: a, Node: "alpha", Fingerprint: fingerprintOf(t, b)}, Options{Identity: b, Node: "be\x1bta", Features: []string{"x"}})
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	if p := c.Peer(); p.Node != "be?ta" || p.Fingerprint != fingerprintOf(t, b) || p.Version != 1 || len(p.Features) != 1 {
		t.Errorf("the client sees %+v", p)
	}
	if p := s.Peer(); p.Node != "alpha" || p.Fingerprint != fingerprintOf(t, a) {
		t.Errorf("the server sees %+v", p)
	}
	if !strings.HasPrefix(fingerprintOf(t, a), "SHA256:") || len(fingerprintOf(t, a)) != 7+43 {
		t.Error(fingerprintOf(t, a))
	}
}

func TestMessagesAndRecordsArriveInOrder(t *testing.T) {
	c, s := connected(t, Options{}, Options{})
	var counted atomic.Int64
	c.CountInto(&counted)
	s.AllowRecords()
	if err := c.Queue(TypeBegin, Begin{Files: 5}); err != nil {
		t.Fatal(err)
	}
	if err := c.QueueRecords(append(make([]byte, HeaderSize), noise(100_000)...)); err != nil {
		t.Fatal(err)
	}
	if err := c.Send(TypeEnd, End{Items: 7}); err != nil {
		t.Fatal(err)
	}
	var b Begin
	if kind, content, err := s.Receive(nil); err != nil || kind != TypeBegin || Parse(content, &b) != nil || b.Files != 5 {
		t.Fatal(kind, content, err)
	}
	if kind, content, err := s.Receive(nil); err != nil || kind != TypeRecords || !bytes.Equal(content, noise(100_000)) {
		t.Fatal(kind, len(content), err)
	}
	if kind, _, err := s.Receive(nil); err != nil || kind != TypeEnd {
		t.Fatal(kind, err)
	}
	c.Close()
	if _, _, err := s.Receive(nil); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
	if n := counted.Load(); n < 100_000 || n > 110_000 {
		t.Errorf("%d bytes were counted", n)
	}
}

func TestRecordsAreNotAcceptedBeforeTheyAreAllowed(t *testing.T) {
	c, s := connected(t, Options{}, Options{})
	if err := c.QueueRecords(append(make([]byte, HeaderSize), noise(100_000)...)); err != nil {
		t.Fatal(err)
	}
	go c.Flush()
	if _, _, err := s.Receive(nil); !errors.Is(err, ErrFrame) {
		t.Error(err)
	}
}

func TestAnotherFingerprintIsRefused(t *testing.T) {
	_, _, err, _ := shake(t, Options{Identity: identity(t), Fingerprint: "SHA256:other"}, Options{Identity: identity(t)})
	if !errors.Is(err, ErrFingerprint) {
		t.Error(err)
	}
}

func TestVersionsAreAgreedOn(t *testing.T) {
	cases := []struct{ low, high, low2, high2, want uint16 }{
		{1, 1, 1, 1, 1}, {1, 5, 3, 9, 5}, {3, 9, 1, 5, 5}, {1, 2, 2, 4, 2}, {1, 1, 3, 4, 0}, {3, 4, 1, 1, 0},
	}
	for _, v := range cases {
		c, _, err, err2 := shake(t, Options{Identity: identity(t), Node: "alpha", Lowest: v.low, Highest: v.high},
			Options{Identity: identity(t), Node: "beta", Lowest: v.low2, Highest: v.high2})
		switch {
		case v.want == 0:
			if !errors.Is(err, ErrVersion) || !errors.Is(err2, ErrVersion) || !strings.Contains(err.Error(), "upgrade") {
				t.Errorf("%v: %v; %v", v, err, err2)
			}
		case err != nil || err2 != nil || c.Peer().Version != v.want:
			t.Errorf("%v: %v; %v", v, err, err2)
		}
	}
}

// answers is a server that says something and hangs up.
func answers(t *testing.T, what string) net.Conn {
	client, server := sockets(t)
	go func() {
		io.WriteString(server, what)
		io.Copy(io.Discard, server)
	}()
	return client
}

func TestWhatIsNotTandemIsToldSo(t *testing.T) {
	for name, what := range map[string]string{
		"HTTP":    "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
		"SSH":     "SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
		"garbage": string(noise(500)),
	} {
		_, err := Client(context.Background(), answers(t, what), Options{Identity: identity(t)})
		if !errors.Is(err, ErrNotTandem) {
			t.Errorf("a target that speaks %s: %v", name, err)
		}
		client, server := sockets(t)
		go io.WriteString(client, "GET / HTTP/1.1\r\n"+what)
		if _, err := Server(context.Background(), server, Options{Identity: identity(t)}); !errors.Is(err, ErrNotTandem) {
			t.Errorf("a source that speaks %s: %v", name, err)
		}
	}
}

func TestTLSOfAnotherKindIsToldSo(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other := certificate(t, &key.PublicKey, key)
	configs := map[string]*tls.Config{
		"a web server":         {Certificates: []tls.Certificate{other}},
		"one of another ALPN":  {Certificates: []tls.Certificate{other}, NextProtos: []string{"h2"}},
		"TLS 1.2":              {Certificates: []tls.Certificate{other}, NextProtos: []string{alpn}, MaxVersion: tls.VersionTLS12},
		"another kind of key":  {Certificates: []tls.Certificate{other}, NextProtos: []string{alpn}},
		"no Tandem behind TLS": {Certificates: []tls.Certificate{identity(t)}, NextProtos: []string{alpn}},
	}
	for name, config := range configs {
		client, server := sockets(t)
		go func() {
			s := tls.Server(server, config)
			io.WriteString(s, "HTTP/1.1 200 OK\r\n\r\n"+strings.Repeat("x", 100))
			io.Copy(io.Discard, s)
		}()
		_, err := Client(context.Background(), client, Options{Identity: identity(t), HandshakeTimeout: 5 * time.Second})
		if !errors.Is(err, ErrNotTandem) && !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
	client, server := sockets(t)
	go func() { // a browser: no certificate of its own
		c := tls.Client(client, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpn}})
		c.Handshake()
		io.Copy(io.Discard, c)
	}()
	if _, err := Server(context.Background(), server, Options{Identity: identity(t), HandshakeTimeout: 5 * time.Second}); !errors.Is(err, ErrNotTandem) {
		t.Errorf("a source without a certificate: %v", err)
	}
}

func TestAPeerThatSaysNothingIsGivenUp(t *testing.T) {
	client, _ := sockets(t)
	start := time.Now()
	_, err := Client(context.Background(), client, Options{Identity: identity(t), HandshakeTimeout: 50 * time.Millisecond})
	if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) > 5*time.Second {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
	client, _ = sockets(t)
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := Client(ctx, client, Options{Identity: identity(t)}); err == nil {
		t.Error("a cancelled handshake succeeds")
	}
}

func TestSilenceIsNoticedAndPingsPreventIt(t *testing.T) {
	quiet := Options{Silence: 100 * time.Millisecond, PingEvery: time.Hour}
	c, _ := connected(t, quiet, quiet)
	if _, _, err := c.Receive(nil); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a silent peer: %v", err)
	}
	alive := Options{Silence: 400 * time.Millisecond, PingEvery: 20 * time.Millisecond}
	c, s := connected(t, alive, alive)
	go s.Receive(nil)
	time.AfterFunc(time.Second, func() { s.Send(TypeBye, Bye{ID: "x"}) })
	if kind, _, err := c.Receive(nil); err != nil || kind != TypeBye {
		t.Errorf("with pings: type %d, %v", kind, err)
	}
}

// A write that the network takes nothing of fails once the peer has been silent for as long, though nobody reads at this
// end: it is the reader that may wait for the writer.
func TestAWriterNoticesADeadPeerToo(t *testing.T) {
	quiet := Options{Silence: 200 * time.Millisecond, PingEvery: time.Hour}
	c, _ := connected(t, quiet, quiet)
	stuck := make(chan error, 1)
	go func() { stuck <- flood(c, time.Hour) }()
	select {
	case err := <-stuck:
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it is still stuck")
	}
	alive := Options{Silence: 200 * time.Millisecond, PingEvery: 20 * time.Millisecond}
	c, s := connected(t, alive, alive)
	go c.Receive(nil) // pings
	go func() { stuck <- flood(c, 0) }()
	time.Sleep(time.Second)
	select {
	case err := <-stuck:
		t.Fatalf("a peer that lives and is busy: %v", err)
	default:
	}
	go io.Copy(io.Discard, s.tls)
	if err := <-stuck; err != nil {
		t.Error(err)
	}
}

// flood sends more than the network takes, for so long at the least.
func flood(c *Conn, long time.Duration) (err error) {
	for start, n := time.Now(), 0; err == nil && (n < 100 || time.Since(start) < long); n++ {
		if err = c.QueueRecords(append(make([]byte, HeaderSize), noise(200_000)...)); err == nil {
			err = c.Flush()
		}
	}
	return err
}

func TestCloseWakesAWriterThatNobodyReads(t *testing.T) {
	c, _ := connected(t, Options{}, Options{})
	stuck := make(chan error)
	go func() {
		var err error
		for err == nil {
			if err = c.QueueRecords(append(make([]byte, HeaderSize), noise(200_000)...)); err == nil {
				err = c.Flush()
			}
		}
		stuck <- err
	}()
	time.Sleep(50 * time.Millisecond)
	go c.Close()
	select {
	case <-stuck:
	case <-time.After(10 * time.Second):
		t.Fatal("it is still stuck")
	}
}

func FuzzHello(f *testing.F) {
	h, err := Hello{Lowest: 1, Highest: 2, Node: "alpha", Features: []string{"a", ""}}.append(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(h)
	f.Add([]byte("TNDM"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var h Hello
		var err error
		if n := alloctest.Bytes(func() { h, err = parseHello(b) }); n > slack+2*uint64(len(b)) {
			t.Fatalf("%d bytes took %d of memory", len(b), n)
		}
		if err != nil {
			return
		}
		if len(h.Features) > maxFeatures || h.Lowest > h.Highest || binary.BigEndian.Uint16(b[4:]) != h.Lowest {
			t.Fatalf("%+v", h)
		}
		if strings.ContainsFunc(h.Node, func(r rune) bool { return r < ' ' }) {
			t.Fatalf("%q can be harmful to a terminal", h.Node)
		}
	})
}

func TestALaterVersionsHelloIsRead(t *testing.T) {
	b, err := Hello{Lowest: 3, Highest: 9, Node: "later", Features: []string{"unheard of"}}.append(nil)
	if err != nil {
		t.Fatal(err)
	}
	h, err := parseHello(append(b, "and more that only it knows"...))
	if err != nil || h.Highest != 9 || h.Node != "later" {
		t.Errorf("%+v, %v", h, err)
	}
}
