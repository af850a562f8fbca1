package faultproxy

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// through starts a proxy and gives it, with what dials through it and what accepts behind it.
func through(t *testing.T) (p *Proxy, dial, accept func() net.Conn) {
	t.Helper()
	front, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	back, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	p = Start(front, func() (net.Conn, error) { return net.Dial("tcp", back.Addr().String()) }, 1)
	t.Cleanup(func() {
		check(t, p.Close())
		check(t, back.Close())
	})
	closing := func(c net.Conn, err error) net.Conn {
		t.Helper()
		check(t, err)
		t.Cleanup(func() { c.Close() })
		return c
	}
	return p, func() net.Conn { return closing(net.Dial("tcp", front.Addr().String())) },
		func() net.Conn { return closing(back.Accept()) }
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// sent sends bytes through the proxy and gives what arrives, and what the sender sees of the end.
func sent(t *testing.T, dial, accept func() net.Conn, what []byte) (got []byte, end error) {
	t.Helper()
	from, to := dial(), accept()
	go func() {
		from.Write(what) // it may break
		from.(*net.TCPConn).CloseWrite()
	}()
	got, end = io.ReadAll(to)
	to.(*net.TCPConn).CloseWrite()
	return got, end
}

func TestWithoutAFaultEveryByteArrives(t *testing.T) {
	p, dial, accept := through(t)
	what := noise(3 << 20)
	got, err := sent(t, dial, accept, what)
	check(t, err)
	if !bytes.Equal(got, what) || p.Struck() != 0 {
		t.Errorf("%d bytes arrive of %d, struck %d times", len(got), len(what), p.Struck())
	}
	from, to := dial(), accept()
	check(t, write(to, []byte("back")))
	check(t, to.Close())
	if got, err := io.ReadAll(from); err != nil || string(got) != "back" {
		t.Errorf("the other way %q arrives, %v", got, err)
	}
}

func TestEveryFaultDoesWhatItSays(t *testing.T) {
	what := noise(2 << 20)
	for fault, right := range map[Fault]func(got []byte, end error) bool{
		Flips: func(got []byte, end error) bool {
			return len(got) == len(what) && !bytes.Equal(got, what) && end == nil
		},
		Swaps:     func(got []byte, end error) bool { return !bytes.Equal(got, what) && end == nil },
		Doubles:   func(got []byte, end error) bool { return len(got) > len(what) && end == nil },
		Drops:     func(got []byte, end error) bool { return len(got) < len(what) && end == nil },
		Truncates: func(got []byte, _ error) bool { return len(got) < len(what) && bytes.HasPrefix(what, got) },
		Resets:    func(got []byte, end error) bool { return len(got) < len(what) && errors.Is(end, syscall.ECONNRESET) },
	} {
		t.Run(string(fault), func(t *testing.T) {
			p, dial, accept := through(t)
			p.Begin(fault)
			if got, end := sent(t, dial, accept, what); !right(got, end) || p.Struck() == 0 {
				t.Errorf("%d bytes arrive of %d, then %v; struck %d times", len(got), len(what), end, p.Struck())
			}
			p.End()
			if got, err := sent(t, dial, accept, what); err != nil || !bytes.Equal(got, what) {
				t.Errorf("after it %d bytes arrive of %d, %v", len(got), len(what), err)
			}
		})
	}
}

// arrives reports whether a byte that one end sends comes to the other within a moment.
func arrives(t *testing.T, from, to net.Conn) bool {
	t.Helper()
	check(t, write(from, []byte{7}))
	check(t, to.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
	_, err := io.ReadFull(to, make([]byte, 1))
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return err == nil
}

func TestWhatIsStalledArrivesWhenTheFaultEnds(t *testing.T) {
	for fault, passes := range map[Fault][2]bool{Stalls: {false, false}, StallsOut: {false, true}, StallsIn: {true, false}} {
		t.Run(string(fault), func(t *testing.T) {
			p, dial, accept := through(t)
			from, to := dial(), accept()
			p.Begin(fault)
			if out, in := arrives(t, from, to), arrives(t, to, from); out != passes[0] || in != passes[1] {
				t.Errorf("to the target %t, to the source %t, want %v", out, in, passes)
			}
			p.End()
			for _, c := range []net.Conn{from, to} {
				check(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
			}
			if !passes[0] {
				_, err := io.ReadFull(to, make([]byte, 1))
				check(t, err)
			}
			if !passes[1] {
				_, err := io.ReadFull(from, make([]byte, 1))
				check(t, err)
			}
		})
	}
}

func TestASilentPeerAnswersWhenTheFaultEnds(t *testing.T) {
	p, dial, accept := through(t)
	p.Begin(Silent)
	from := dial()
	check(t, write(from, []byte("early")))
	p.End()
	got := make([]byte, 5)
	if _, err := io.ReadFull(accept(), got); err != nil || string(got) != "early" {
		t.Errorf("%q arrives, %v", got, err)
	}
}

func TestASlowConnectionLosesNothingAndSpeedsUpAgain(t *testing.T) {
	p, dial, accept := through(t)
	p.Begin(Slow)
	time.AfterFunc(200*time.Millisecond, p.End)
	what := noise(1 << 20)
	if got, err := sent(t, dial, accept, what); err != nil || !bytes.Equal(got, what) || p.Struck() == 0 {
		t.Errorf("%d bytes arrive of %d, %v; struck %d times", len(got), len(what), err, p.Struck())
	}
}

func TestClosingEndsWhatIsStalled(t *testing.T) {
	p, dial, accept := through(t)
	from, _ := dial(), accept()
	p.Begin(Stalls)
	check(t, write(from, []byte("never")))
	dial()
	p.Begin(Silent)
	dial()
}
