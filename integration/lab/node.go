package lab

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// How long a node may take to answer after its start, and to end after SIGTERM.
const (
	startTimeout = 30 * time.Second
	stopTimeout  = 30 * time.Second
)

// A Node runs the real binary in a network namespace, with a state folder of its own.
type Node struct {
	Name      string
	Namespace *Namespace
	State     string // the state folder
	Socket    string // of the control API
	Log       string // the file that the daemon's messages go to

	t       T
	process *exec.Cmd
	ended   chan struct{} // closed when process has been waited for
}

// StartNode starts a node on its namespace's address. At the end of the test it is ended by SIGTERM, and
// if the test failed the end of its log is shown.
func StartNode(t T, namespace *Namespace, name string) *Node {
	t.Helper()
	return startNode(t, namespace, name, filepath.Join(Dir(t), "state"))
}

// startNode is StartNode with the state folder at a given place.
func startNode(t T, namespace *Namespace, name, state string) *Node {
	t.Helper()
	dir := Dir(t)
	n := &Node{
		Name: name, Namespace: namespace, t: t,
		State: state, Socket: filepath.Join(dir, "socket"), Log: filepath.Join(dir, "log"),
	}
	t.Cleanup(n.cleanup)
	n.Start()
	return n
}

// Start starts the daemon, again after Stop or Kill, and waits until it answers.
func (n *Node) Start() {
	n.t.Helper()
	if !n.TryStart() {
		n.t.Fatalf("node %s ended at its start: %v\n%s", n.Name, n.process.ProcessState, n.logTail())
	}
}

// TryStart is Start with further variables in the daemon's environment, which may have it end at its start: it
// reports whether the daemon answers.
func (n *Node) TryStart(environment ...string) bool {
	n.t.Helper()
	n.launch(environment)
	Eventually(n.t, startTimeout, "node "+n.Name+" answers", func() error {
		if r := n.Run("node", "show", "--json"); r.Code != 0 && n.Running() {
			return fmt.Errorf("exit code %d: %s", r.Code, r.Stderr)
		}
		return nil
	})
	return n.Running()
}

func (n *Node) launch(environment []string) {
	n.t.Helper()
	log, err := os.OpenFile(n.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		n.t.Fatalf("node %s: %v", n.Name, err)
	}
	defer log.Close()
	n.process = exec.Command(os.Getenv(BinaryVariable), "serve", "--state", n.State, "--socket", n.Socket,
		"--name", n.Name, "--listen", n.Namespace.Address+":3712")
	n.process.Env = append(os.Environ(), environment...)
	n.process.Stdout, n.process.Stderr = log, log
	n.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	n.Namespace.Do(func() { err = n.process.Start() })
	if err != nil {
		n.t.Fatalf("start node %s: %v", n.Name, err)
	}
	n.ended = make(chan struct{})
	go func(process *exec.Cmd, ended chan struct{}) {
		process.Wait() // the state tells how it ended
		close(ended)
	}(n.process, n.ended)
}

// PID is the daemon's process id.
func (n *Node) PID() int { return n.process.Process.Pid }

// Running reports whether the daemon's process is there.
func (n *Node) Running() bool {
	select {
	case <-n.ended:
		return false
	default:
		return true
	}
}

// Stop ends the daemon by SIGTERM and demands that it ends cleanly.
func (n *Node) Stop() {
	n.t.Helper()
	if err := n.end(syscall.SIGTERM); err != nil {
		n.t.Fatalf("node %s: %v\n%s", n.Name, err, n.logTail())
	}
	if state := n.process.ProcessState; !state.Success() {
		n.t.Fatalf("node %s ended with %v after SIGTERM\n%s", n.Name, state, n.logTail())
	}
}

// Ends waits for the daemon to end by itself, and reports whether it did.
func (n *Node) Ends(within time.Duration) bool {
	select {
	case <-n.ended:
		return true
	case <-time.After(within):
		return false
	}
}

// WasKilled reports whether the daemon has ended by SIGKILL.
func (n *Node) WasKilled() bool {
	if n.Running() {
		return false
	}
	status, ok := n.process.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// Kill ends the daemon by SIGKILL: its mounts stay, dead.
func (n *Node) Kill() {
	n.t.Helper()
	if err := n.end(syscall.SIGKILL); err != nil {
		n.t.Fatalf("node %s: %v", n.Name, err)
	}
}

func (n *Node) end(signal syscall.Signal) error {
	n.process.Process.Signal(signal) // an error means that it has ended already
	select {
	case <-n.ended:
		return nil
	case <-time.After(stopTimeout):
		return fmt.Errorf("still there %v after %v", stopTimeout, signal)
	}
}

func (n *Node) cleanup() {
	if n.process != nil && n.process.Process != nil {
		if err := n.end(syscall.SIGTERM); err != nil {
			n.t.Errorf("node %s: %v", n.Name, err)
			n.end(syscall.SIGQUIT) // a last word on what it waits for, in the log
		}
	}
	if n.t.Failed() {
		n.t.Logf("the end of node %s's log:\n%s", n.Name, n.logTail())
	}
}

// logTail is the end of the daemon's messages.
func (n *Node) logTail() string {
	const most = 12_000
	f, err := os.Open(n.Log)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if fi, err := f.Stat(); err == nil && fi.Size() > most {
		f.Seek(-most, io.SeekEnd)
	}
	tail, _ := io.ReadAll(f)
	return string(tail)
}

// A Result is how a command ended.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// Run runs a client command against the node, without a terminal, for a minute at most.
func (n *Node) Run(args ...string) Result {
	n.t.Helper()
	cmd := exec.Command(os.Getenv(BinaryVariable), args...)
	cmd.Env = append(os.Environ(), "TANDEMFS_SOCKET="+n.Socket)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		n.t.Fatalf("tandemfs %s: %v", strings.Join(args, " "), err)
	}
	stop := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer stop.Stop()
	cmd.Wait() // the exit code tells how it ended
	return Result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// Must runs a client command that must succeed, and returns what it printed.
func (n *Node) Must(args ...string) string {
	n.t.Helper()
	r := n.Run(args...)
	if r.Code != 0 {
		n.t.Fatalf("node %s: tandemfs %s: exit code %d\n%s%s", n.Name, strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// Decode runs a client command that must print JSON, and decodes it.
func (n *Node) Decode(into any, args ...string) {
	n.t.Helper()
	out := n.Must(append(args, "--json")...)
	if err := decode(out, into); err != nil {
		n.t.Fatalf("node %s: tandemfs %s: %v", n.Name, strings.Join(args, " "), err)
	}
}

func decode(out string, into any) error {
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("%w in %q", err, out)
	}
	return nil
}
