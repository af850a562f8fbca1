package mount

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A process ends when its last thread has. A thread that waits inside the kernel for an answer of its own process, such
// as one that has the kernel drop a page which is just being read, cannot be killed before that answer comes, which
// nobody gives any more; and while it is there the connection stays open, so that the kernel goes on waiting. Somebody
// else has to end the connection: the guard.

// Guard is a second process that ends the connections of a daemon's mounts when the daemon has been killed. The mounts
// stay, dead, until CleanStale: what is below them does not come to light. Its methods may be called concurrently.
type Guard struct {
	mu      sync.Mutex // held while a mount point is told and acknowledged
	command *exec.Cmd
	tell    io.WriteCloser
	heard   *bufio.Reader
	ended   chan struct{} // closed when the process has ended
	failure error         // how, once it has
}

// What the guard is told of a mount point, by the byte before it.
const (
	added   = '+'
	dropped = '-'
)

// diedSignal tells the guard that the daemon dies. Signals that people and service managers send to a whole group of
// processes are of no concern to it.
const diedSignal = unix.SIGUSR1

// StartGuard starts the command, whose process has to call Watch. It also keeps the file open for as long as it runs:
// a lock on that is given up only after the connections have been ended.
func StartGuard(command *exec.Cmd, hold *os.File) (*Guard, error) {
	g := &Guard{command: command, ended: make(chan struct{})}
	tell, err := command.StdinPipe()
	if err != nil {
		return nil, err
	}
	heard, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	g.tell, g.heard = tell, bufio.NewReader(heard)
	command.ExtraFiles = []*os.File{hold}
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: diedSignal}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the signal is sent when the thread ends that has started the process
		err := command.Start()
		started <- err
		if err == nil {
			g.failure = command.Wait()
			close(g.ended)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start the guard of the mounts: %w", err)
	}
	return g, nil
}

// Add has the guard end the connection of what will be mounted at the mount point, and returns when it knows.
func (g *Guard) Add(mountpoint string) error { return g.say(added, mountpoint) }

// Drop takes an Add back, once what was mounted is gone: another daemon may mount there then.
func (g *Guard) Drop(mountpoint string) error { return g.say(dropped, mountpoint) }

func (g *Guard) say(what byte, mountpoint string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, err := g.tell.Write(append(append([]byte{what}, mountpoint...), 0))
	if err == nil {
		_, err = g.heard.ReadByte()
	}
	if err != nil {
		return fmt.Errorf("tell the guard of the mount %s: %w", mountpoint, err)
	}
	return nil
}

// Ended is closed when the process has ended, by Close or by other hands.
func (g *Guard) Ended() <-chan struct{} { return g.ended }

// Close ends the guard, if it runs still. What it was told of is unmounted, or is left to the kernel.
func (g *Guard) Close() error {
	select {
	case <-g.ended: // by other hands, as Ended has told
		return nil
	default:
	}
	err := g.tell.Close()
	<-g.ended
	return errors.Join(err, g.failure)
}

// Watch is what the guard's process does: it reads what it is told of mount points, each with a NUL at its end,
// acknowledges each by a byte, and returns when the daemon has closed its end, or was killed and the connections are ended.
func Watch(told io.Reader, acknowledge io.Writer) error {
	died := make(chan os.Signal, 1)
	signal.Notify(died, diedSignal)
	defer signal.Stop(died)
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGPIPE)
	mounts := make(chan string)
	go func() {
		defer close(mounts)
		lines := bufio.NewScanner(told)
		lines.Split(splitNUL)
		for lines.Scan() {
			mounts <- lines.Text()
		}
	}()
	known := map[string]int{} // how many mounts at each mount point
	for {
		select {
		case <-died:
			return abortAll(known)
		case line, more := <-mounts:
			if !more {
				return nil
			}
			note(known, line)
			if _, err := acknowledge.Write([]byte{'\n'}); err != nil {
				return err
			}
		}
	}
}

// note changes what is known by a line.
func note(known map[string]int, line string) {
	what, at := line[0], line[1:]
	if what == added {
		known[at]++
	} else if known[at]--; known[at] == 0 {
		delete(known, at)
	}
}

func splitNUL(data []byte, _ bool) (advance int, token []byte, err error) {
	if i := bytes.IndexByte(data, 0); i >= 0 {
		return i + 1, data[:i], nil
	}
	return 0, nil, nil
}

func abortAll(mountpoints map[string]int) error {
	var errs []error
	for at := range mountpoints {
		if err := abort(at); err != nil {
			errs = append(errs, fmt.Errorf("end the connection of the mount %s: %w", at, err))
		}
	}
	return errors.Join(errs...)
}

// abort ends the connection of a mount of ours and leaves the mount. A forced unmount does the first, and not the
// second to a mount that is in use: the descriptor uses it. None of the calls asks the daemon.
func abort(mountpoint string) error {
	ours, err := isOurs(mountpoint)
	if err != nil || !ours {
		return err
	}
	fd, err := unix.Open(mountpoint, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Unmount(fmt.Sprint("/proc/self/fd/", fd), unix.MNT_FORCE); err != unix.EBUSY {
		return err
	}
	return nil
}
