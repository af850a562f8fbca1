package integration

import (
	"bytes"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tandemfs/integration/lab"
	"tandemfs/integration/tree"
)

// The exit codes that docs/cli.md promises.
const (
	exitUsage    = 2
	exitNotFound = 3
	exitConflict = 4
)

// livesOn demands that a node still answers and that a volume can still be written to.
func livesOn(t *testing.T, v *volume) {
	t.Helper()
	v.Node.Must("volume", "list", "--json")
	write(t, "still alive", v.Mount, "alive")
}

func TestADirectoryThatCannotBeProtectedIsRefusedWithTheReason(t *testing.T) {
	n := alone(t)
	v := newVolume(t, n, "data", lab.Ext4, smallDisk, nil)
	disk := filepath.Dir(v.Backing)
	inner := lab.MakeDir(t, v.Backing, "inner")
	file := write(t, "x", disk, "file")
	full := lab.MakeDir(t, disk, "full")
	write(t, "x", full, "x")
	other := lab.MakeDir(t, disk, "other")
	for _, c := range []struct {
		name string
		args []string
		says string // any of the words, separated by |
	}{
		{"a directory that does not exist", []string{"new", disk + "/missing"}, "no such|does not exist|not exist"},
		{"a file", []string{"new", file}, "not a directory"},
		{"the root", []string{"new", "/"}, "root|/"},
		{"a directory that is protected already", []string{"new", v.Backing}, "protected|volume"},
		{"a directory inside a protected one", []string{"new", inner}, "protected|inside"},
		{"a directory that contains a protected one", []string{"new", disk}, "protected|contains"},
		{"a mount of ours", []string{"new", v.Mount}, "mount"},
		{"a directory inside a mount of ours", []string{"new", v.Mount + "/inner"}, "mount"},
		{"a name that is taken", []string{"data", other}, "data"},
		{"a name with a slash", []string{"a/b", other}, "name"},
		{"no name", []string{"", other}, "name"},
		{"a mount point that does not exist", []string{"new", other, "--mount", disk + "/missing"}, "no such|not exist"},
		{"a mount point that is not empty", []string{"new", other, "--mount", full}, "empty"},
		{"a mount point that is used", []string{"new", other, "--mount", v.Mount}, "mount|used"},
		{"a filesystem that cannot be protected", []string{"new", "/proc/self"}, "filesystem|proc|support"},
	} {
		t.Run(c.name, func(t *testing.T) {
			refusedCommand(t, n, c.says, append([]string{"volume", "create"}, c.args...)...)
			livesOn(t, v)
		})
	}
	var list struct{ Volumes []struct{ Name string } }
	n.Decode(&list, "volume", "list")
	if len(list.Volumes) != 1 {
		t.Errorf("the node has these volumes: %+v", list.Volumes)
	}
	if _, err := os.Stat(filepath.Join(other, ".tandemfs")); err == nil {
		t.Error("a refused directory was touched")
	}
}

// refusedCommand runs a command that must fail with an exit code of its own kind, and with an error that
// says one of the words.
func refusedCommand(t *testing.T, n *lab.Node, says string, args ...string) {
	t.Helper()
	r := n.Run(args...)
	if r.Code == 0 {
		t.Fatalf("tandemfs %q succeeded: %s", args, r.Stdout)
	}
	if r.Code < 0 || strings.Contains(r.Stderr, "panic") || strings.Contains(r.Stderr, "goroutine") {
		t.Errorf("tandemfs %q: exit code %d\n%s", args, r.Code, r.Stderr)
	}
	for word := range strings.SplitSeq(says, "|") {
		if strings.Contains(strings.ToLower(r.Stderr), word) {
			return
		}
	}
	t.Errorf("tandemfs %q: the error says none of %q: %s", args, says, r.Stderr)
}

func TestThingsThatAreNotThereAreNotFound(t *testing.T) {
	n := alone(t)
	for _, args := range [][]string{
		{"volume", "show", "nothing"},
		{"volume", "remove", "nothing", "--yes"},
		{"relationship", "status", "0123456789abcdef"},
		{"relationship", "authorize", "0123456789abcdef", "--yes"},
		{"relationship", "delete", "0123456789abcdef", "--yes"},
		{"relationship", "create", "--source", "nothing", "--target", "127.0.0.1", "--target-volume", "x"},
	} {
		if r := n.Run(args...); r.Code != exitNotFound {
			t.Errorf("tandemfs %q: exit code %d, want %d\n%s", args, r.Code, exitNotFound, r.Stderr)
		}
	}
	if r := n.Run("relationship", "create"); r.Code != exitUsage {
		t.Errorf("a command without what it needs: exit code %d, want %d", r.Code, exitUsage)
	}
}

func TestASecondRelationshipOntoTheSameTargetIsRefused(t *testing.T) {
	source, target, pair := replicated(t, smallDisk, nil)
	pair.Quiet(time.Minute)
	second := newVolume(t, source.Node, "second", lab.Ext4, smallDisk, nil)
	complains(t, source.Node, "target", "relationship", "create", "--source", second.Name,
		"--target", target.Node.Namespace.Address, "--target-volume", target.Name)
	refusedCommand(t, target.Node, "target|read-only|relationship", "relationship", "create", "--source", target.Name,
		"--target", source.Node.Namespace.Address, "--target-volume", "elsewhere")
	if r := target.Node.Run("volume", "remove", target.Name, "--yes"); r.Code != exitConflict {
		t.Errorf("removing a volume that is in use: exit code %d, want %d\n%s", r.Code, exitConflict, r.Stderr)
	}
	write(t, "x", source.Mount, "x")
	sameCopy(t, "after what was refused", source, target, pair)
}

// complains runs a command that creates a relationship which cannot work: it fails, or the relationship's
// status says soon why it does not go on. Either way the words come up, and the relationship can be deleted.
func complains(t *testing.T, n *lab.Node, says string, args ...string) {
	t.Helper()
	r := n.Run(append(args, "--json")...)
	if r.Code != 0 {
		refusedCommand(t, n, says, args...)
		return
	}
	var s statusOf
	check(t, json.Unmarshal([]byte(r.Stdout), &s))
	lab.Eventually(t, 30*time.Second, "the status tells what is wrong", func() error {
		n.Decode(&s, "relationship", "status", s.ID)
		told := strings.ToLower(s.LastError + " " + s.EndReason)
		for word := range strings.SplitSeq(says, "|") {
			if strings.Contains(told, word) {
				t.Logf("the status tells: %s", strings.TrimSpace(s.LastError+" "+s.EndReason))
				return nil
			}
		}
		return fmt.Errorf("last error %q, end reason %q, want one of %q", s.LastError, s.EndReason, says)
	})
	n.Must("relationship", "delete", s.ID, "--yes")
}

func TestATargetThatIsNotThereIsSaid(t *testing.T) {
	a, b := two(t)
	v := newVolume(t, a, "data", lab.Ext4, smallDisk, nil)
	for _, c := range []struct{ name, target, says string }{
		{"a closed port", b.Namespace.Address + ":1", "refused"},
		{"an address where nobody is", "10.99.0.77", "route|timeout|unreachable|deadline"},
		{"a network that cannot be reached", "192.0.2.1", "unreachable"},
		{"a name that does not exist", "no-such-host.invalid", "no-such-host.invalid|lookup|resolve"},
		{"no port", "10.99.0.2:what", "port|address|what"},
		{"nothing", ":", "host|address|target"},
	} {
		t.Run(c.name, func(t *testing.T) {
			complains(t, a, c.says, "relationship", "create", "--source", "data", "--target", c.target, "--target-volume", "x")
			livesOn(t, v)
		})
	}
}

// An impostor does what it likes with a connection that a node has made.
type impostor func(net.Conn)

func TestAPeerThatSpeaksSomethingElseIsSaid(t *testing.T) {
	a, b := two(t)
	v := newVolume(t, a, "data", lab.Ext4, smallDisk, nil)
	certificate := selfSigned(t)
	for _, c := range []struct {
		name string
		peer impostor
	}{
		{"SSH", func(c net.Conn) { fmt.Fprint(c, "SSH-2.0-OpenSSH_9.2p1\r\n"); io.Copy(io.Discard, c) }},
		{"HTTP", func(c net.Conn) { fmt.Fprint(c, "HTTP/1.1 400 Bad Request\r\n\r\n"); c.Close() }},
		{"garbage", func(c net.Conn) { c.Write(random(1<<16, 1)); io.Copy(io.Discard, c) }},
		{"nothing at all", func(c net.Conn) { c.Close() }},
		{"TLS of another kind", overTLS(certificate, "h2", func(c net.Conn) { io.Copy(io.Discard, c) })},
		{"garbage inside TLS", overTLS(certificate, "tandem/1", func(c net.Conn) { c.Write(random(1<<16, 2)); io.Copy(io.Discard, c) })},
		{"an oversized frame inside TLS", overTLS(certificate, "tandem/1", func(c net.Conn) {
			c.Write(oversizedFrame())
			io.Copy(io.Discard, c)
		})},
	} {
		t.Run(c.name, func(t *testing.T) {
			listener := listen(t, b.Namespace, c.peer)
			complains(t, a, "peer|tls|handshake|protocol|eof|closed|tandem|reset", "relationship", "create", "--source", "data",
				"--target", listener, "--target-volume", "x")
			livesOn(t, v)
		})
	}
}

// listen lets an impostor answer on a free port of a namespace, until the test ends.
func listen(t *testing.T, n *lab.Namespace, peer impostor) string {
	t.Helper()
	var l net.Listener
	var err error
	n.Do(func() { l, err = net.Listen("tcp", n.Address+":0") })
	check(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(time.Minute))
				peer(c)
			}()
		}
	}()
	return l.Addr().String()
}

func overTLS(certificate tls.Certificate, protocol string, then impostor) impostor {
	return func(c net.Conn) {
		secured := tls.Server(c, &tls.Config{
			Certificates: []tls.Certificate{certificate}, NextProtos: []string{protocol}, ClientAuth: tls.RequestClientCert,
		})
		if secured.Handshake() == nil {
			then(secured)
		}
	}
}

// selfSigned makes an identity like a node's.
func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	check(t, err)
	template := x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(nil, &template, &template, public, private)
	check(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}
}

// oversizedFrame is the head of a frame that claims nearly 4 GiB, wherever the length stands in it.
func oversizedFrame() []byte {
	return bytes.Repeat([]byte{0xFF, 0xFF, 0xFF, 0xF0}, 16)
}

func TestAStrangerAtTheDoorCostsTheNodeNothing(t *testing.T) {
	source, target, pair := replicated(t, smallDisk, nil)
	pair.Quiet(time.Minute)
	address := target.Node.Namespace.Address + ":3712"
	certificate := selfSigned(t)
	before := len(descriptors(t, target.Node))
	strangers := map[string]impostor{
		"HTTP":            func(c net.Conn) { fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n") },
		"garbage":         func(c net.Conn) { c.Write(random(1<<20, 3)) },
		"silence":         func(net.Conn) {},
		"TLS 1.2":         strangerTLS(&tls.Config{MaxVersion: tls.VersionTLS12}, nil),
		"no certificate":  strangerTLS(&tls.Config{NextProtos: []string{"tandem/1"}}, []byte("hello")),
		"other protocol":  strangerTLS(&tls.Config{NextProtos: []string{"h2"}, Certificates: []tls.Certificate{certificate}}, nil),
		"garbage in TLS":  strangerTLS(&tls.Config{NextProtos: []string{"tandem/1"}, Certificates: []tls.Certificate{certificate}}, random(1<<16, 4)),
		"oversized frame": strangerTLS(&tls.Config{NextProtos: []string{"tandem/1"}, Certificates: []tls.Certificate{certificate}}, oversizedFrame()),
	}
	t.Run("each is shown the door", func(t *testing.T) {
		for name, say := range strangers {
			t.Run(name, func(t *testing.T) {
				t.Parallel() // some of them just wait
				knock(t, source.Node.Namespace, address, say)
			})
		}
	})
	lab.Eventually(t, 10*time.Second, "the target holds no more descriptors than before", func() error {
		if now := descriptors(t, target.Node); len(now) > before+2 {
			return fmt.Errorf("%d now, %d before:\n%s", len(now), before, strings.Join(now, "\n"))
		}
		return nil
	})
	write(t, "x", source.Mount, "x")
	sameCopy(t, "after the strangers", source, target, pair)
}

// knock connects, says something and demands that the node does not wait for more for ever.
func knock(t *testing.T, from *lab.Namespace, address string, say impostor) {
	t.Helper()
	var c net.Conn
	var err error
	from.Do(func() { c, err = net.DialTimeout("tcp", address, 5*time.Second) })
	check(t, err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	say(c)
	var timeout net.Error
	if _, err := io.Copy(io.Discard, c); errors.As(err, &timeout) && timeout.Timeout() {
		t.Error("the node still holds the connection after 20 s")
	}
}

// strangerTLS says something inside TLS, if it gets that far.
func strangerTLS(config *tls.Config, words []byte) impostor {
	return func(c net.Conn) {
		config := config.Clone()
		config.InsecureSkipVerify = true
		secured := tls.Client(c, config)
		if secured.Handshake() == nil {
			secured.Write(words)
			io.Copy(io.Discard, secured)
		}
	}
}

func TestARejectedProposalEndsTheRelationshipAndSaysSo(t *testing.T) {
	a, b := two(t)
	source := newVolume(t, a, "data", lab.Ext4, smallDisk, nil)
	target := newVolume(t, b, "copy", lab.Ext4, smallDisk, nil)
	pair := lab.Propose(t, a, source.Name, b, target.Name)
	b.Must("relationship", "reject", pair.ID)
	endsThere(t, source, pair)
	a.Must("relationship", "delete", pair.ID, "--yes")
	livesOn(t, target)
}

func TestATargetThatHoldsFilesIsNotOverwrittenUnasked(t *testing.T) {
	a, b := two(t)
	source := newVolume(t, a, "data", lab.Ext4, smallDisk, func(dir string) { write(t, "new", dir, "file") })
	target := newVolume(t, b, "copy", lab.Ext4, smallDisk, func(dir string) { write(t, "precious", dir, "mine") })
	pair := lab.Propose(t, a, source.Name, b, target.Name)
	refusedCommand(t, b, "empty", "relationship", "authorize", pair.ID, "--yes")
	if got := mustRead(t, target.Mount, "mine"); got != "precious" {
		t.Errorf("read %q", got)
	}
	livesOn(t, target)
	b.Must("relationship", "authorize", pair.ID, "--yes", "--allow-non-empty")
	sameCopy(t, "once it was allowed", source, target, pair)
}

func TestATargetVolumeCanBeMadeByTheAuthorization(t *testing.T) {
	a, b := two(t)
	source := newVolume(t, a, "data", lab.Ext4, smallDisk, grow(t, 200))
	dir := lab.MakeDir(t, lab.Disk(t, lab.Ext4, smallDisk), "made")
	t.Cleanup(b.Stop)
	pair := lab.Relate(t, a, source.Name, b, "made", "--create", dir)
	pair.Quiet(time.Minute)
	if !onlyMount(t, dir).Has("ro") {
		t.Error("the target that was made is writable")
	}
	sameTrees(t, "after the first transfer", scan(t, source.Mount), scan(t, dir), tree.Options{})
}
