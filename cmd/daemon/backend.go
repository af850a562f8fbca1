package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/cmd/api"
	"tandemfs/fs/mount"
	"tandemfs/fs/volume"
	"tandemfs/replicator"
)

// Run runs a node on this machine until ctx ends, or something breaks that the node cannot do without.
// It takes the process over: the umask becomes 0, since what is made through a mount has had its client's
// umask applied already; and a log that nobody reads any more does not end the node.
func Run(ctx context.Context, o Options) error {
	unix.Umask(0)
	signal.Ignore(unix.SIGPIPE)
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + waitingReaders)
	return run(ctx, o, parts{
		backend:    &system{log: o.Logger},
		newManager: func(c replicator.Config) (Manager, error) { return replicator.NewManager(c) },
		now:        time.Now,
		tidyEvery:  time.Minute,
	})
}

// waitingReaders is how many threads may wait for the kernel's next request without being in the way. Each keeps one
// of the Go scheduler's processors while it waits in read(2), until that is taken from it by polling; with none left
// the thread that a request wakes has to wait for the next poll.
const waitingReaders = 6

// GuardCommand is the command that runs Guard.
const GuardCommand = "guard"

// Guard is a process that a node starts of its own program, and that outlives it by a moment: see mount.Guard.
func Guard() error { return mount.Watch(os.Stdin, os.Stdout) }

// system is the Backend of real directories and mounts.
type system struct {
	log   *slog.Logger
	guard *mount.Guard
}

func (s *system) Guard(hold *os.File) (end func() error, err error) {
	command := exec.Command("/proc/self/exe", GuardCommand) // the same program also when its file was replaced
	command.Args[0], command.Stderr = os.Args[0], os.Stderr
	if s.guard, err = mount.StartGuard(command, hold); err != nil {
		return nil, err
	}
	var over atomic.Bool
	go func() {
		<-s.guard.Ended()
		if !over.Load() {
			s.log.Error("the guard of the mounts has ended: a daemon that is killed may not end before its mounts are forced (`umount -f`)")
		}
	}()
	return func() error {
		over.Store(true)
		return s.guard.Close()
	}, nil
}

func (s *system) Open(name, path, id string, create bool) (Volume, error) {
	if err := unprotected(path, create); err != nil {
		return nil, err
	}
	v, err := volume.Open(path, volume.Options{Name: name, ID: id, Create: create, Logger: s.log})
	if err == nil {
		return openVolume{v}, nil
	}
	if create && !errors.Is(err, volume.ErrBusy) { // there was no state before: what is there now is ours
		err = errors.Join(err, os.RemoveAll(filepath.Join(path, volume.StateDir)))
	}
	return nil, openError(name, path, err)
}

func (*system) SetJournalAside(path string) (string, error) {
	aside, err := volume.SetJournalAside(path)
	return filepath.Join(path, volume.StateDir, aside), err
}

// openError says in the user's words why a volume cannot be opened.
func openError(name, path string, err error) error {
	switch {
	case errors.Is(err, volume.ErrBusy):
		return api.Errorf(api.CodeConflict, "the directory %s is protected by another daemon that is running", path)
	case errors.Is(err, volume.ErrUnsupported):
		return api.Errorf(api.CodeInvalid, "the directory %s cannot be protected: %v", path, err)
	case errors.Is(err, volume.ErrJournal):
		return fmt.Errorf("volume %s cannot be opened, its journal is damaged (`tandemfs volume rebuild %s` begins a new one and compares "+
			"the volume with its peers; its snapshots are lost): %w", name, name, err)
	case errors.Is(err, fs.ErrNotExist):
		return api.Errorf(api.CodeConflict, "the directory %s or the volume's state in it is missing "+
			"(is its filesystem mounted?): %v", path, err)
	}
	return fmt.Errorf("volume %s cannot be opened: %w", name, err)
}

// unprotected refuses to make a volume where one is already, or was: files that changed meanwhile would
// not be known to its journal.
func unprotected(path string, create bool) error {
	state := filepath.Join(path, volume.StateDir)
	if _, err := os.Lstat(state); !create || err != nil {
		return nil
	}
	return api.Errorf(api.CodeConflict, "the directory %s is protected already, or was: it holds %s. If no daemon "+
		"uses it any more, delete that (rm -r %s) and try again", path, volume.StateDir, state)
}

func (s *system) Mount(v Volume, at string, o MountOptions) (Mount, error) {
	open, ok := v.(openVolume)
	if !ok {
		return nil, fmt.Errorf("%T is not a volume of this backend", v)
	}
	if err := s.guard.Add(at); err != nil { // a mount without a guard is better than none
		s.log.Warn("the mount is not guarded", "mount", at, "error", err)
	}
	server, err := mount.Mount(open.Volume, at, mount.Options{NoSuid: o.NoSuid, NoDev: o.NoDev, ShowSnapshots: o.ShowSnapshots, Logger: s.log})
	if err != nil {
		return nil, errors.Join(err, s.guard.Drop(at))
	}
	go func() {
		server.Wait()
		if err := s.guard.Drop(at); err != nil { // at the node's end it needs to be told no more
			s.log.Debug("the guard was not told of the end of a mount", "mount", at, "error", err)
		}
	}()
	return server, nil
}

func (*system) CleanStale(at string) (bool, error) { return mount.CleanStale(at) }
