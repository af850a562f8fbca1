package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { Main(m) }

func TestADiskIsAnEmptyFilesystemOfItsKind(t *testing.T) {
	magic := map[string]int64{Ext4: unix.EXT4_SUPER_MAGIC, XFS: unix.XFS_SUPER_MAGIC, Btrfs: unix.BTRFS_SUPER_MAGIC}
	for kind, want := range magic {
		t.Run(kind, func(t *testing.T) {
			dir := Disk(t, kind, 1<<30)
			var st unix.Statfs_t
			if err := unix.Statfs(dir, &st); err != nil {
				t.Fatal(err)
			}
			if st.Type != want {
				t.Errorf("its magic is %#x, want %#x", st.Type, want)
			}
			if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
				t.Errorf("it holds %v, %v", names, err)
			}
		})
	}
}

// failure is a T for a test that fails, so that the lab's own clean-up can be watched.
type failure struct {
	*testing.T
	cleanups []func()
}

func (f *failure) Cleanup(c func()) { f.cleanups = append(f.cleanups, c) }

func (f *failure) end() {
	for i := len(f.cleanups) - 1; i >= 0; i-- {
		f.cleanups[i]()
	}
}

func TestWhatATestMadeIsGoneAfterIt(t *testing.T) {
	before, err := TakeStock()
	if err != nil {
		t.Fatal(err)
	}
	f := &failure{T: t}
	disk := Disk(f, Ext4, 64<<20)
	Join(f)
	if err := unix.Mount("none", MakeDir(f, disk, "more"), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	left := strings.Join(before.missingFrom(stock(t)), "\n")
	for _, want := range []string{"mount: ext4", "mount: tmpfs", "loop device", "network namespace"} {
		if !strings.Contains(left, want) {
			t.Errorf("stock misses the %s: %s", want, left)
		}
	}
	f.end()
	if left := before.Left(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if dirs, _ := filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(disk)), filepath.Base(filepath.Dir(disk)))); len(dirs) > 0 {
		t.Errorf("left: %q", dirs)
	}
}

func stock(t *testing.T) *Stock {
	t.Helper()
	s, err := TakeStock()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestJoinedNamespacesReachEachOtherAndCountTheBytes(t *testing.T) {
	a, b := Join(t)
	var listener net.Listener
	var err error
	b.Do(func() { listener, err = net.Listen("tcp", b.Address+":3712") })
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	got := make(chan int64)
	go func() {
		defer close(got)
		if c, err := listener.Accept(); err == nil {
			n, _ := io.Copy(io.Discard, c)
			c.Close()
			got <- n
		}
	}()
	before := a.WireBytes(t)
	const sent = 1 << 20
	a.Do(func() { err = send(b.Address+":3712", sent) })
	if err != nil {
		t.Fatal(err)
	}
	if n := <-got; n != sent {
		t.Errorf("%d bytes arrived, want %d", n, sent)
	}
	if counted := a.WireBytes(t) - before; counted < sent || counted > sent*11/10 {
		t.Errorf("the wire counted %d bytes for %d", counted, sent)
	}
}

func send(address string, n int) error {
	c, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write(make([]byte, n))
	return err
}

// packets is an UDP socket in a namespace.
func packets(t *testing.T, n *Namespace) net.PacketConn {
	t.Helper()
	var c net.PacketConn
	var err error
	n.Do(func() { c, err = net.ListenPacket("udp", n.Address+":0") })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// heard reports whether a packet arrives within a moment.
func heard(t *testing.T, from, to net.PacketConn) bool {
	t.Helper()
	if _, err := from.WriteTo([]byte("x"), to.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	if err := to.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	_, _, err := to.ReadFrom(make([]byte, 1))
	return err == nil
}

func TestAMutedEndHearsAndIsNotHeard(t *testing.T) {
	a, b := Join(t)
	atA, atB := packets(t, a), packets(t, b)
	Eventually(t, 30*time.Second, "the wire carries packets both ways", func() error {
		if !heard(t, atA, atB) || !heard(t, atB, atA) {
			return errors.New("it does not yet")
		}
		return nil
	})
	a.Mute(t, b)
	if heard(t, atA, atB) || !heard(t, atB, atA) {
		t.Error("the muted end is heard, or does not hear")
	}
	a.Unmute(t, b)
	Eventually(t, 30*time.Second, "it is heard again", func() error {
		if !heard(t, atA, atB) {
			return errors.New("it is muted still")
		}
		return nil
	})
}

func TestANarrowWireCarriesAllOfAConnection(t *testing.T) {
	a, b := Join(t)
	listener := b.Listen(t)
	defer listener.Close()
	a.Narrow(t)
	c, err := a.Dial(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		c.Write(make([]byte, 100_000))
		c.Close()
	}()
	at, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	if n, err := io.Copy(io.Discard, at); n != 100_000 || err != nil {
		t.Errorf("%d bytes arrive, %v", n, err)
	}
	a.Widen(t)
}

func TestNobodyElseIsReachedFromANamespace(t *testing.T) {
	n := NewNamespace(t)
	var err error
	n.Do(func() { err = send("10.99.0.2:3712", 1) })
	if !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("got %v, want that the network is unreachable", err)
	}
}

func TestMountPointsWithBlanksAreReadBack(t *testing.T) {
	dir := filepath.Join(Dir(t), "a b\tc")
	if err := unix.Mount("none", MakeDir(t, dir), "tmpfs", unix.MS_NOSUID, ""); err != nil {
		t.Fatal(err)
	}
	mounts, err := Mounts(dir)
	if err != nil || len(mounts) != 1 || mounts[0].Path != dir || !mounts[0].Has("nosuid") {
		t.Errorf("got %+v, %v", mounts, err)
	}
}

func TestQuietMeansIdleAndNothingBehind(t *testing.T) {
	quiet := `{"job":"idle","recovery_point":{"epoch":3,"behind_seconds":0,"behind_bytes":0}}`
	for text, want := range map[string]bool{
		quiet: true,
		strings.Replace(quiet, "idle", "running", 1):                          false,
		strings.Replace(quiet, `"epoch":3`, `"epoch":0`, 1):                   false,
		strings.Replace(quiet, `"behind_bytes":0`, `"behind_bytes":1`, 1):     false,
		strings.Replace(quiet, `"behind_seconds":0`, `"behind_seconds":1`, 1): false,
		strings.Replace(quiet, `"behind_bytes":0`, `"behind_bytes":null`, 1):  false,
	} {
		var s Status
		if err := decode(text, &s); err != nil {
			t.Fatal(err)
		}
		if err := IsQuiet(s); (err == nil) != want {
			t.Errorf("%s: %v", text, fmt.Sprint(err))
		}
	}
}
