package lab

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Namespace is a network of its own: a loopback interface, and a wire where it was joined to another. It
// lives in one thread, and what it is asked to do happens there, one thing after the other.
type Namespace struct {
	// Address is the namespace's IPv4 address: of its end of the wire, or 127.0.0.1.
	Address string

	jobs chan func()
	fd   int
}

// wire is the name of the interface at either end of a joined pair.
const wire = "wire"

// The main thread of a process cannot end before the process does: keep namespaces off it.
func init() { runtime.LockOSThread() }

// NewNamespace makes a network namespace with nothing but its loopback interface.
func NewNamespace(t T) *Namespace {
	t.Helper()
	n := &Namespace{Address: "127.0.0.1", jobs: make(chan func())}
	started := make(chan error)
	go n.serve(started)
	if err := <-started; err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() {
		close(n.jobs)
		unix.Close(n.fd)
	})
	n.ip(t, "link set lo up")
	return n
}

// serve owns the namespace's thread. It never unlocks it, so that the thread ends with the goroutine.
func (n *Namespace) serve(started chan<- error) {
	runtime.LockOSThread()
	err := unix.Unshare(unix.CLONE_NEWNET)
	if err == nil {
		n.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	started <- err
	if err != nil {
		return
	}
	for job := range n.jobs {
		job()
	}
}

// Do runs f in the namespace: sockets that it makes and processes that it starts belong there. f must not
// use the namespace again.
func (n *Namespace) Do(f func()) {
	done := make(chan struct{})
	n.jobs <- func() {
		defer close(done)
		f()
	}
	<-done
}

// Join makes two namespaces with a wire between them.
func Join(t T) (*Namespace, *Namespace) {
	t.Helper()
	a, b := NewNamespace(t), NewNamespace(t)
	a.Address, b.Address = "10.99.0.1", "10.99.0.2"
	a.ip(t, fmt.Sprintf("link add %s type veth peer name %s netns /proc/%d/fd/%d", wire, wire, os.Getpid(), b.fd))
	for _, n := range []*Namespace{a, b} {
		n.ip(t, fmt.Sprintf("addr add %s/24 dev %s", n.Address, wire))
		n.ip(t, "link set "+wire+" up")
	}
	return a, b
}

// Apart runs f in the namespace as Do does, but in a thread of its own, so that f may take long.
func (n *Namespace) Apart(f func()) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		err := unix.Setns(n.fd, unix.CLONE_NEWNET)
		if err == nil {
			f()
		}
		done <- err
	}()
	return <-done
}

// Listen listens on a free TCP port of the namespace's address.
func (n *Namespace) Listen(t T) net.Listener {
	t.Helper()
	var listener net.Listener
	var err error
	n.Do(func() { listener, err = net.Listen("tcp", n.Address+":0") })
	if err != nil {
		t.Fatalf("listen in a network namespace: %v", err)
	}
	return listener
}

// Dial connects over TCP, from the namespace.
func (n *Namespace) Dial(address string) (c net.Conn, err error) {
	if entered := n.Apart(func() { c, err = net.DialTimeout("tcp", address, dialTimeout) }); entered != nil {
		return nil, entered
	}
	return c, err
}

// dialTimeout is how long a connection may take to be made.
const dialTimeout = 10 * time.Second

// Mute makes the wire lose all that this end sends to the other, which goes on being heard. Unmute ends that.
func (n *Namespace) Mute(t T, other *Namespace) {
	// The other end takes no frame that is for a hardware address which is not its own.
	n.ip(t, fmt.Sprintf("neigh replace %s lladdr 02:00:00:00:00:00 dev %s nud permanent", other.Address, wire))
}

func (n *Namespace) Unmute(t T, other *Namespace) {
	n.ip(t, fmt.Sprintf("neigh del %s dev %s", other.Address, wire))
}

// Narrow makes what this end sends slow and late, and loses some of it when there is much. Widen ends that.
func (n *Namespace) Narrow(t T) {
	n.run(t, "tc", "qdisc replace dev "+wire+" root tbf rate 800kbit burst 4kb limit 16kb")
}

func (n *Namespace) Widen(t T) { n.run(t, "tc", "qdisc del dev "+wire+" root") }

// Cut takes the wire down at this end, Mend puts it back.
func (n *Namespace) Cut(t T)  { n.ip(t, "link set "+wire+" down") }
func (n *Namespace) Mend(t T) { n.ip(t, "link set "+wire+" up") }

func (n *Namespace) ip(t T, args string) {
	t.Helper()
	n.run(t, "ip", args)
}

// run runs a program in the namespace.
func (n *Namespace) run(t T, program, args string) {
	t.Helper()
	var out []byte
	var err error
	n.Do(func() { out, err = exec.Command(program, strings.Fields(args)...).CombinedOutput() })
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, args, err, out)
	}
}

// WireBytes is how many bytes have gone over the wire in both directions, all headers counted.
func (n *Namespace) WireBytes(t T) int64 {
	t.Helper()
	var received, sent int64
	err := fmt.Errorf("no interface %s", wire)
	n.Do(func() {
		f, e := os.Open("/proc/thread-self/net/dev")
		if e != nil {
			err = e
			return
		}
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			name, figures, _ := strings.Cut(strings.TrimSpace(lines.Text()), ":")
			if name != wire {
				continue
			}
			var skip int64
			_, err = fmt.Sscan(figures, &received, &skip, &skip, &skip, &skip, &skip, &skip, &skip, &sent)
		}
	})
	if err != nil {
		t.Fatalf("count the bytes on the wire: %v", err)
	}
	return received + sent
}
