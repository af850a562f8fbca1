package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/cmd/api"
)

// What the state folder holds. stateFormat is what formatFile says; a folder that says something else is
// left alone.
const (
	formatFile       = "format"
	lockFile         = "lock"
	identityFile     = "identity.pem"
	volumesFile      = "volumes.json"
	relationshipsDir = "relationships"
	stateFormat      = "tandemfs state 1\n"

	newSuffix = ".new" // of a file that will take another's place
)

// stateFolder is the node's own folder, locked against a second daemon.
type stateFolder struct {
	dir  string
	lock *os.File
}

// openState opens or makes the state folder, for its user alone (0700), and locks it.
func openState(dir string) (*stateFolder, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("the state folder cannot be made: %w", err)
	}
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, fmt.Errorf("the state folder cannot be found: %w", err)
	}
	s := &stateFolder{dir: dir}
	known, err := s.check()
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("the state folder cannot be closed to others: %w", err)
	}
	if err := s.acquire(); err != nil {
		return nil, err
	}
	if !known {
		if err := s.write(formatFile, []byte(stateFormat)); err != nil {
			return nil, errors.Join(err, s.close())
		}
	}
	return s, nil
}

// check reports whether the folder is a state folder already, and refuses one that is somebody else's: a
// folder that was named by mistake must not be closed to its users.
func (s *stateFolder) check() (known bool, err error) {
	format, err := os.ReadFile(s.path(formatFile))
	switch {
	case err == nil && string(format) == stateFormat:
		return true, nil
	case err == nil:
		return false, fmt.Errorf("%s is of a format that this version does not know (%q): use the version that made it", s.dir, format)
	case !errors.Is(err, fs.ErrNotExist):
		return false, fmt.Errorf("the state folder cannot be read: %w", err)
	}
	names, err := os.ReadDir(s.dir)
	if err != nil {
		return false, fmt.Errorf("the state folder cannot be read: %w", err)
	}
	for _, name := range names {
		if name.Name() != lockFile && name.Name() != formatFile+newSuffix { // these come first: a start may have died right after
			return false, api.Errorf(api.CodeInvalid, "%s is not empty and not a state folder of tandemfs: name another with --state", s.dir)
		}
	}
	return false, nil
}

func (s *stateFolder) acquire() error {
	f, err := os.OpenFile(s.path(lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("the state folder cannot be locked: %w", err)
	}
	if err := lock(f); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return s.busy(f)
		}
		return fmt.Errorf("the state folder cannot be locked: %w", err)
	}
	s.lock = f
	if f.Truncate(0) == nil { // only words depend on it: a full folder does not keep a node from starting
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0)
	}
	return nil
}

// dyingPatience is how long a daemon that was killed, and its guard, may take to end.
const dyingPatience = 5 * time.Second

// lock locks the file, at once or, where who holds the lock is dying, a moment later.
func lock(f *os.File) error {
	for end := time.Now().Add(dyingPatience); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(end) {
			return err
		}
		if _, running := holder(f); running {
			return err
		}
	}
}

// holder gives the process that holds the lock or held it last, and whether it runs, rather than being dead or waiting
// for its last threads to end.
func holder(f *os.File) (pid string, running bool) {
	var text [20]byte
	n, _ := f.ReadAt(text[:], 0)
	if pid = string(text[:n]); pid == "" {
		return pid, true // it is just about to write its number
	}
	stat, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	if errors.Is(err, fs.ErrNotExist) {
		return pid, false
	}
	_, rest, ok := bytes.Cut(stat, []byte(") "))
	return pid, !ok || rest[0] != 'Z'
}

// busy says who holds the lock. A daemon that was killed together with its guard may not end before its mounts are
// forced, and looks like a running one.
func (s *stateFolder) busy(f *os.File) error {
	if pid, running := holder(f); !running {
		return api.Errorf(api.CodeConflict, "the daemon that ran on %s (process %s) was killed, and its mounts keep it from ending: `umount -f` each of them, then start again", s.dir, pid)
	}
	return api.Errorf(api.CodeConflict, "another daemon runs on %s: name another folder with --state", s.dir)
}

// close gives the lock up.
func (s *stateFolder) close() error { return s.lock.Close() }

func (s *stateFolder) path(name string) string { return filepath.Join(s.dir, name) }

// write replaces a file of the folder: after it, and after a power cut during it, the file holds either
// all of data or all of what it held before.
func (s *stateFolder) write(name string, data []byte) error {
	temporary := s.path(name + newSuffix)
	if err := writeSynced(temporary, data); err != nil {
		return fmt.Errorf("%s cannot be written: %w", name, err)
	}
	if err := os.Rename(temporary, s.path(name)); err != nil {
		return fmt.Errorf("%s cannot be replaced: %w", name, err)
	}
	folder, err := os.Open(s.dir)
	if err != nil {
		return fmt.Errorf("%s cannot be made durable: %w", name, err)
	}
	defer folder.Close()
	if err := folder.Sync(); err != nil {
		return fmt.Errorf("%s cannot be made durable: %w", name, err)
	}
	return nil
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// volumesDocument is volumes.json.
type volumesDocument struct {
	Version int      `json:"version"`
	Volumes []record `json:"volumes"`
}

// volumesVersion is the only version of volumes.json so far.
const volumesVersion = 1

// record is what is kept of a volume.
type record struct {
	api.CreateVolume
	// ReadOnly is kept so that a target is never writable, not even while a node starts.
	ReadOnly bool      `json:"read_only"`
	Created  time.Time `json:"created"`
	// ID is the volume's own identity, which outlives its journal; empty until it was open once.
	ID string `json:"id,omitempty"`
}

// loadVolumes reads volumes.json; none yet is no error.
func (s *stateFolder) loadVolumes() ([]record, error) {
	data, err := os.ReadFile(s.path(volumesFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the list of volumes cannot be read: %w", err)
	}
	var d volumesDocument
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", s.path(volumesFile), err)
	}
	if d.Version != volumesVersion {
		return nil, fmt.Errorf("%s has version %d, this tandemfs knows %d: use the version that wrote it",
			s.path(volumesFile), d.Version, volumesVersion)
	}
	return d.Volumes, nil
}

func (s *stateFolder) saveVolumes(volumes []record) error {
	data, err := json.MarshalIndent(volumesDocument{volumesVersion, volumes}, "", "  ")
	if err != nil {
		return fmt.Errorf("the list of volumes cannot be written: %w", err)
	}
	return s.write(volumesFile, append(data, '\n'))
}
