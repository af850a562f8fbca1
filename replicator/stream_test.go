package replicator

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cespare/xxhash/v2"

	"tandemfs/journal"
	"tandemfs/replicator/wire"
)

// The streams in testdata/streams were recorded of earlier builds' transfers, as they were carried inside TLS: a
// first transfer of the tree that sourceTree makes, and one after changeTree. With TANDEM_KEEP_STREAM set, the
// test below records one of the present format.

// sourceTree makes a small tree with something of everything.
func sourceTree(v *tree) {
	d := v.mkdir(v.root, "dir")
	f := v.file(d, "file", strings.Repeat("content ", 2000))
	v.file(v.root, "empty", "")
	v.file(v.root, "noise", incompressible(300))
	v.symlink(d, "symlink", "file")
	v.hardlink(f, v.root, "hard link")
	v.add(v.root, "pipe", 0o010644)
	v.add(d, "device", 0o020600, func(n *node) { n.attr.Rdev = 259<<8 | 3 })
	sparse := v.add(v.root, "sparse", typeRegular|0o4755)
	v.write(sparse, 1<<20, "far away")
	v.truncate(sparse, 3<<20)
	v.file(v.mkdir(v.mkdir(v.root, "old"), "below"), "deep", "in a directory that moves")
	v.setAttr(f, func(a *journal.Attr, x map[string]string) {
		a.UID, a.GID, a.Mode = 7, 1<<32-2, typeRegular|0o6751
		x["user.a"], x["user.empty"] = "b", ""
	})
	v.setAttr(d, func(a *journal.Attr, x map[string]string) {
		a.Mode = typeDir | 0o2770
		x["system.posix_acl_default"] = "\x02\x00"
	})
}

// changeTree changes it in every way.
func changeTree(v *tree) {
	v.write(v.at("dir/file"), 100, "changed")
	v.punch(v.at("dir/file"), journal.Extent{Off: 4096, End: 8192})
	v.remove(v.root, "empty")
	v.rename(v.root, "old", v.at("dir"), "moved")
	v.exchange(v.root, "pipe", v.root, "sparse")
	v.file(v.mkdir(v.root, "new"), "fresh", "made between the two")
	v.hardlink(v.at("dir/moved/below/deep"), v.at("new"), "link")
	v.setAttr(v.root, func(a *journal.Attr, _ map[string]string) { a.Mode = typeDir | 0o711 })
}

// inTLS is how a peer is talked to below the frames.
func inTLS(identity tls.Certificate) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{identity}, NextProtos: []string{"tandem/1"}, MinVersion: tls.VersionTLS13,
		InsecureSkipVerify: true, ClientAuth: tls.RequireAnyClientCert}
}

// rawFrame frames any content, sound or not.
func rawFrame(kind wire.Type, content []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(content)))
	b = append(b, byte(kind), 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(content)))
	b = binary.BigEndian.AppendUint64(b, xxhash.Sum64(append(bytes.Clone(b), content...)))
	return append(b, content...)
}

// takeFrame takes the first frame off, as it is carried.
func takeFrame(b []byte) (kind wire.Type, whole, rest []byte) {
	n := wire.HeaderSize + int(binary.BigEndian.Uint32(b))
	return wire.Type(b[4]), b[:n], b[n:]
}

// recorder stands between two nodes with the keys of both, and keeps what the source says.
type recorder struct {
	mu   sync.Mutex
	said bytes.Buffer
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.said.Write(p)
}

func (r *recorder) stand(t *testing.T, p *pair) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	no(err)
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			from, err := tls.NewListener(ln, inTLS(p.dst.config.Identity)).Accept()
			if err != nil {
				return
			}
			to, err := tls.Dial("tcp", p.dst.address, inTLS(p.src.config.Identity))
			no(err)
			go func() { io.Copy(from, to); from.Close() }()
			go func() { io.Copy(io.MultiWriter(to, r), from); to.Close() }()
		}
	}()
	p.src.stop()
	p.src.config.Dial = func(ctx context.Context, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", ln.Addr().String())
	}
	p.src.start()
}

// transfers gives the frames that belong to transfers, of all that was said.
func (r *recorder) transfers() (kept []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for rest := r.said.Bytes(); len(rest) >= wire.HeaderSize; {
		var kind wire.Type
		var whole []byte
		kind, whole, rest = takeFrame(rest)
		if kind == wire.TypeBegin || kind == wire.TypeRecords || kind == wire.TypeEnd {
			kept = append(kept, whole...)
		}
	}
	return kept
}

func TestAStreamOfThisVersionCanBeRecorded(t *testing.T) {
	p, r := newPair(t), &recorder{}
	r.stand(t, p)
	sourceTree(p.from)
	p.create().same()
	trees := []map[string]string{p.from.dump()}
	_, err := p.src.SetEnabled(background, p.id, false) // so that all changes are in one transfer
	no(err)
	changeTree(p.from)
	_, err = p.src.SetEnabled(background, p.id, true)
	no(err)
	p.same()
	trees = append(trees, p.from.dump())
	text, err := json.MarshalIndent(trees, "", "\t")
	no(err)
	if name := os.Getenv("TANDEM_KEEP_STREAM"); name != "" {
		no(os.WriteFile(filepath.Join("testdata/streams", name+".stream"), r.transfers(), 0o644))
		no(os.WriteFile(filepath.Join("testdata/streams", name+".json"), text, 0o644))
	}
	applied(t, r.transfers(), trees)
}

func TestStreamsOfEarlierBuildsAreStillApplied(t *testing.T) {
	names, err := filepath.Glob("testdata/streams/*.stream")
	if err != nil || len(names) == 0 {
		t.Fatal("no streams are kept", err)
	}
	for _, name := range names {
		stream, err := os.ReadFile(name)
		no(err)
		text, err := os.ReadFile(strings.TrimSuffix(name, ".stream") + ".json")
		no(err)
		var trees []map[string]string
		no(json.Unmarshal(text, &trees))
		applied(t, stream, trees)
	}
}

// applied says a stream's transfers to an empty target, which must be one tree after the other.
func applied(t *testing.T, stream []byte, trees []map[string]string) {
	t.Helper()
	p := newPair(t)
	p.propose()
	if _, err := p.dst.Authorize(background, p.id, AuthorizeRequest{}); err != nil {
		t.Fatal(err)
	}
	p.src.stop()
	conn, _ := speak(t, p)
	defer conn.Close()
	done := uint64(0)
	for i, want := range trees {
		for kind := wire.Type(0); kind != wire.TypeEnd; {
			var whole []byte
			kind, whole, stream = takeFrame(stream)
			_, err := conn.Write(whole)
			no(err)
		}
		eventually(t, "it is committed", func() bool { return p.dst.status(p.id).RecoveryPoint.Epoch > done })
		done = p.dst.status(p.id).RecoveryPoint.Epoch
		if d := differences(want, p.to.dump()); len(d) > 0 {
			t.Fatalf("transfer %d: %d differences (source, then target):\n%s", i, len(d), strings.Join(d, "\n"))
		}
	}
	if len(stream) > 0 {
		t.Errorf("%d bytes are left", len(stream))
	}
}

// What is inside TLS is checked again: a bit that changes, and whole frames that are left out, come twice or out of
// turn, each with a checksum that is right.
func TestAStreamThatWasChangedIsNotCommitted(t *testing.T) {
	stream, err := os.ReadFile("testdata/streams/v1.stream")
	no(err)
	var frames [][]byte
	for rest := stream; len(rest) > 0; {
		var whole []byte
		_, whole, rest = takeFrame(rest)
		frames = append(frames, whole)
	}
	begin, records, end, records2, end2 := frames[0], frames[1], frames[2], frames[4], frames[5]
	changed := map[string][]byte{
		"records left out":             slices.Concat(begin, end),
		"records twice":                slices.Concat(begin, records, records, end),
		"records of another transfer":  slices.Concat(begin, records2, end),
		"more records":                 slices.Concat(begin, records, records2, end),
		"another order":                slices.Concat(begin, records2, records, end),
		"the end of another transfer":  slices.Concat(begin, records, end2),
		"the begin of another":         slices.Concat(frames[3], records, end),
		"the end cut short":            slices.Concat(begin, records, end[:len(end)-1]),
		"records behind the transfers": slices.Concat(begin, records, records2),
	}
	first := slices.Concat(begin, records, end)
	for i := 0; i < len(first); i += 23 {
		b := bytes.Clone(first)
		b[i] ^= 0x10
		changed[fmt.Sprint("byte ", i)] = b
	}
	p := newPair(t)
	p.propose()
	if _, err := p.dst.Authorize(background, p.id, AuthorizeRequest{}); err != nil {
		t.Fatal(err)
	}
	p.src.stop()
	for what, said := range changed {
		conn, over := speak(t, p)
		conn.Write(said) // it may be closed before all is read
		conn.CloseWrite()
		<-over
		conn.Close()
		if s := p.dst.status(p.id); s.RecoveryPoint.Epoch != 0 || p.to.commits != 0 {
			t.Fatalf("%s: it is committed", what)
		}
		forgetTransfer(p)
	}
	conn, over := speak(t, p)
	conn.Write(first) // unchanged it would have been
	conn.CloseWrite()
	<-over
	conn.Close()
	if p.to.commits != 1 {
		t.Error("what is right is not committed either")
	}
}

// forgetTransfer makes the target take the next transfer as if none had been begun.
func forgetTransfer(p *pair) { no(p.to.j.SetState(targetKey(p.id), nil)) }

// speak attaches to the target with the source's key, and leaves the rest to the test. over is closed when the target
// has closed the connection.
func speak(t testing.TB, p *pair) (conn *tls.Conn, over <-chan struct{}) {
	t.Helper()
	return speakFirst(t, p, wire.TypeAttach, wire.Attach{ID: p.id, VolumeID: p.from.ID(), Volume: "data", Path: "/"})
}

// speakFirst is speak with any first message.
func speakFirst(t testing.TB, p *pair, kind wire.Type, first any) (conn *tls.Conn, over <-chan struct{}) {
	t.Helper()
	conn, err := tls.Dial("tcp", p.dst.address, inTLS(p.src.config.Identity))
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		io.Copy(io.Discard, conn)
	}()
	hello, err := os.ReadFile("wire/testdata/frames/hello-v1.frame")
	no(err)
	if _, err := conn.Write(append(hello, message(kind, first)...)); err != nil {
		t.Fatal(err)
	}
	return conn, closed
}

// later answers as a node whose oldest version is later than any that this node speaks.
func later(t *testing.T) (address string) {
	ln, err := tls.Listen("tcp", "127.0.0.1:0", inTLS(testIdentity(t)))
	no(err)
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			hello := append([]byte("TNDM\x01\x00\x01\x05\x05gamma\x00"), "what only it knows"...)
			conn.Write(rawFrame(wire.TypeHello, hello)) // the peer hangs up, or not
			io.Copy(io.Discard, conn)
			conn.Close()
		}
	}()
	return ln.Addr().String()
}

func TestAPeerOfALaterVersionIsRefusedInPlainWords(t *testing.T) {
	p := newPair(t)
	_, err := p.src.Create(background, CreateRequest{Source: "data", Target: later(t), TargetVolume: "copy"})
	const words = "the peer (gamma) speaks versions 256 to 261, this node 1 to 1: upgrade this node"
	if !errors.Is(err, ErrPeer) || !strings.Contains(err.Error(), words) {
		t.Errorf("%v, want %q", err, words)
	}
}
