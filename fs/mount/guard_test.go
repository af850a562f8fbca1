package mount

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// guardedMount names the variable that makes this program one that waits for itself, or its guard.
const guardedMount = "TANDEMFS_TEST_GUARDED_MOUNT"

// What the variable holds for the guard, which is no path.
const asGuard = "guard"

func TestADaemonThatIsKilledWhileItWaitsForItselfEnds(t *testing.T) {
	dir := t.TempDir()
	mnt, hold := filepath.Join(dir, "mnt"), filepath.Join(dir, "hold")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	daemon := exec.Command("/proc/self/exe")
	daemon.Env = append(os.Environ(), guardedMount+"="+mnt)
	daemon.Stderr = os.Stderr
	out, err := daemon.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mnt, unix.MNT_FORCE|unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); line != "mounted\n" {
		t.Fatal(line, err)
	}
	reader := exec.Command("cat", filepath.Join(mnt, "file"))
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := lines.ReadString('\n'); line != "waiting\n" {
		t.Fatal(line, err)
	}
	time.Sleep(100 * time.Millisecond) // then the page is waited for
	if err := daemon.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- daemon.Wait() }()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
	if err := reader.Wait(); err == nil {
		t.Error("the program that read got what nobody gave")
	}
	if ours, err := isOurs(mnt); err != nil || !ours {
		t.Errorf("what is below the mount came to light: %v", err)
	}
	f, err := os.Open(hold + ".lock")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for end := time.Now().Add(10 * time.Second); unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the guard goes on")
		}
	}
}

func TestAMountThatTheGuardWasToldIsGoneIsNotEnded(t *testing.T) {
	for _, dropped := range []bool{false, true} {
		mnt, dir, _ := mounted(t)
		hold, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer hold.Close()
		command := exec.Command("/proc/self/exe")
		command.Env, command.Stderr = append(os.Environ(), guardedMount+"="+asGuard), os.Stderr
		g, err := StartGuard(command, hold)
		if err != nil {
			t.Fatal(err)
		}
		err = g.Add(mnt)
		if dropped {
			err = errors.Join(err, g.Add(mnt), g.Drop(mnt), g.Drop(mnt))
		}
		if err := errors.Join(err, command.Process.Signal(diedSignal)); err != nil {
			t.Fatal(err)
		}
		<-g.Ended()
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.ReadDir(mnt); (err == nil) != dropped {
			t.Errorf("dropped: %v, and the mount gives %v", dropped, err)
		}
	}
}

// waitForOneself serves a mount, and has the kernel drop a page whose content it does not give.
func waitForOneself(mnt string) {
	if mnt == asGuard {
		if err := Watch(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	lock, err := os.Create(filepath.Join(filepath.Dir(mnt), "hold.lock"))
	insist(err)
	insist(unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	guard := exec.Command("/proc/self/exe")
	guard.Env, guard.Stderr = append(os.Environ(), guardedMount+"="+asGuard), os.Stderr
	g, err := StartGuard(guard, lock)
	insist(err)
	insist(g.Add(mnt))
	s := &oneFile{RawFileSystem: fuse.NewDefaultRawFileSystem(), asked: make(chan struct{})}
	server, err := fuse.NewServer(s, mnt, &fuse.MountOptions{Name: fsType, DirectMountStrict: true})
	insist(err)
	go server.Serve()
	insist(server.WaitMount())
	fmt.Println("mounted")
	<-s.asked
	fmt.Println("waiting")
	server.InodeNotify(2, 0, 0)
}

// oneFile has one file, which nobody can read.
type oneFile struct {
	fuse.RawFileSystem
	asked chan struct{}
}

func (f *oneFile) attr(node uint64, a *fuse.Attr) {
	a.Ino, a.Nlink, a.Mode, a.Size = node, 1, unix.S_IFDIR|0o755, 0
	if node == 2 {
		a.Mode, a.Size = unix.S_IFREG|0o644, 4096
	}
}

func (f *oneFile) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	f.attr(in.NodeId, &out.Attr)
	return fuse.OK
}

func (f *oneFile) Lookup(_ <-chan struct{}, _ *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if name != "file" {
		return fuse.ENOENT
	}
	out.NodeId = 2
	f.attr(2, &out.Attr)
	return fuse.OK
}

func (f *oneFile) Read(_ <-chan struct{}, _ *fuse.ReadIn, _ []byte) (fuse.ReadResult, fuse.Status) {
	close(f.asked)
	select {}
}

func insist(err error) {
	if err != nil {
		panic(err)
	}
}
