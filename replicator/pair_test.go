package replicator

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

func testIdentity(t testing.TB) tls.Certificate {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}
}

// testVolumes is a node's volumes.
type testVolumes struct {
	mu   sync.Mutex
	t    testing.TB
	have map[string]*tree
}

func (v *testVolumes) Volume(name string) (Volume, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if vol := v.have[name]; vol != nil {
		return vol, nil
	}
	return nil, fs.ErrNotExist
}

func (v *testVolumes) CreateVolume(_ context.Context, name, dir string) (Volume, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.have[name] = newTree(v.t, name)
	return v.have[name], nil
}

// testNode is a node with its manager, which can be restarted.
type testNode struct {
	t       testing.TB
	name    string
	config  Config
	volumes *testVolumes
	address string

	*Manager
	served chan error
}

func newTestNode(t testing.TB, name string, volumes ...*tree) *testNode {
	t.Helper()
	n := &testNode{t: t, name: name, volumes: &testVolumes{t: t, have: map[string]*tree{}}, address: "127.0.0.1:0"}
	for _, v := range volumes {
		n.volumes.have[v.name] = v
	}
	level := slog.LevelError + 4
	if os.Getenv("TANDEM_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	n.config = Config{Node: name, Dir: t.TempDir(), Identity: testIdentity(t), Volumes: n.volumes,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})).With("node", name)}
	n.start()
	t.Cleanup(n.stop)
	return n
}

func (n *testNode) start() {
	n.t.Helper()
	m, err := NewManager(n.config)
	if err != nil {
		n.t.Fatal(err)
	}
	ln, err := net.Listen("tcp", n.address)
	if err != nil {
		n.t.Fatal(err)
	}
	n.address = ln.Addr().String()
	n.Manager, n.served = m, make(chan error, 1)
	go func() { n.served <- m.Serve(ln) }()
	if err := m.Start(context.Background()); err != nil {
		n.t.Fatal(err)
	}
}

func (n *testNode) stop() {
	if n.Manager == nil {
		return
	}
	if err := n.Close(); err != nil {
		n.t.Errorf("node %s: %v", n.name, err)
	}
	if err := <-n.served; err != nil {
		n.t.Errorf("node %s served: %v", n.name, err)
	}
	n.Manager = nil
}

func (n *testNode) restart() {
	n.t.Helper()
	n.stop()
	n.start()
}

func (n *testNode) status(id string) Status {
	n.t.Helper()
	s, err := n.Status(id)
	if err != nil {
		n.t.Fatalf("node %s: %v", n.name, err)
	}
	return s
}

// pair is a source and a target node with a volume each.
type pair struct {
	t        testing.TB
	src, dst *testNode
	from, to *tree
	id       string
}

func newPair(t testing.TB) *pair { return newPairOf(t, newTree(t, "data")) }

func newPairOf(t testing.TB, from *tree) *pair {
	p := &pair{t: t, from: from, to: newTree(t, "copy")}
	p.src, p.dst = newTestNode(t, "alpha", p.from), newTestNode(t, "beta", p.to)
	return p
}

// create makes the relationship, on both ends.
func (p *pair) create() *pair {
	p.t.Helper()
	p.propose()
	if _, err := p.dst.Authorize(context.Background(), p.id, AuthorizeRequest{}); err != nil {
		p.t.Fatal(err)
	}
	return p
}

func (p *pair) propose() {
	p.t.Helper()
	s, err := p.src.Create(context.Background(), CreateRequest{Source: "data", Target: p.dst.address, TargetVolume: "copy"})
	if err != nil {
		p.t.Fatal(err)
	}
	p.id = s.ID
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it does not happen: %s", what)
		}
	}
}

// settled waits until everything is on the target.
func (p *pair) settled() {
	p.t.Helper()
	ok := false
	for deadline := time.Now().Add(20 * time.Second); !ok && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		s := p.src.status(p.id)
		ok = s.Job == JobIdle && !p.from.j.Dirty() && s.RecoveryPoint.Epoch != 0 && *s.RecoveryPoint.BehindSeconds == 0
	}
	if !ok {
		p.t.Fatalf("the target does not catch up:\n source %+v\n target %+v", p.src.status(p.id), p.dst.status(p.id))
	}
}

// same fails where the two trees differ.
func (p *pair) same() {
	p.t.Helper()
	p.settled()
	if d := differences(p.from.dump(), p.to.dump()); len(d) > 0 {
		p.t.Fatalf("%d differences (source, then target):\n%s", len(d), strings.Join(d, "\n"))
	}
	p.to.mu.Lock()
	defer p.to.mu.Unlock()
	if len(p.to.aside) != 0 {
		p.t.Fatalf("%d inodes are left aside", len(p.to.aside))
	}
}
