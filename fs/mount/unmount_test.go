package mount

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/fs/volume"
)

// overDisk mounts a volume over a filesystem of somebody else's that is mounted at the same path.
func overDisk(t *testing.T) (s *Server, at string) {
	t.Helper()
	base := t.TempDir()
	dir, at := filepath.Join(base, "dir"), filepath.Join(base, "at")
	for _, d := range []string{dir, at} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("disk", at, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	v, err := volume.Open(dir, volume.Options{Name: "test", Create: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	if s, err = Mount(v, at, Options{}); err != nil {
		t.Fatal(err)
	}
	return s, at
}

// onTopIs fails unless the mount is what programs find at its path, or is not.
func onTopIs(t *testing.T, s *Server, want bool) {
	t.Helper()
	if onTop, err := s.OnTop(); err != nil || onTop != want {
		t.Errorf("on top: %v, %v; want %v", onTop, err, want)
	}
}

func TestAnUnmountLeavesAloneWhatIsAtThePathInsteadOfTheMount(t *testing.T) {
	s, at := overDisk(t)
	held, err := os.Create(filepath.Join(at, "held"))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	onTopIs(t, s, true)
	if err := unix.Unmount(at, unix.MNT_DETACH); err != nil { // as umount -l does
		t.Fatal(err)
	}
	onTopIs(t, s, false)
	unmountsInTime(t, s)
	if _, kind, err := topmost(at); kind != "tmpfs" {
		t.Errorf("at the path is %q (%v), want the filesystem that was there before", kind, err)
	}
}

func TestAnUnmountLeavesAloneWhatIsMountedOverTheMount(t *testing.T) {
	s, at := overDisk(t)
	if err := unix.Mount("other", at, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	onTopIs(t, s, false)
	unmountsInTime(t, s)
	if device, _, _ := topmost(at); device == s.device {
		t.Error("what was mounted over the mount is gone")
	}
	for range 2 { // that one, and the mount below it
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}
}

func TestAnUnmountDoesNotWaitForAnotherMountNamespace(t *testing.T) {
	s, _ := overDisk(t)
	elsewhere := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep 60")
	out, err := elsewhere.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := elsewhere.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = elsewhere.Process.Kill()
		_ = elsewhere.Wait()
	}()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	unmountsInTime(t, s)
}

func unmountsInTime(t *testing.T, s *Server) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- s.Unmount() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(3 * unmountPatience):
		t.Fatal("it does not end")
	}
}
