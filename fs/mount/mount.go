// Package mount serves a volume to the kernel through FUSE's raw protocol. It guarantees that every
// change a program makes reaches the volume as one operation when it is made (write-through), that the
// kernel caches names, absence, attributes and content for as long as it likes, that nothing but known, harmless
// ioctls reaches the backing files, and that the volume can show its readers another state of it at once: after
// anybody saw something of the new state, nobody who begins an operation later sees something of the old one,
// whatever the kernel had cached (Turn).
//
// Every directory shows what it was at each snapshot of the volume below the name volume.SnapshotDir, read-only.
//
// OPEN and OPENDIR are answered ENOSYS once, so that the kernel sends no more of them, nor RELEASE or
// FLUSH: opening a file that is known costs no message.
package mount

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"tandemfs/fs/volume"
	"tandemfs/journal"
)

// fsType is what /proc/self/mounts calls the filesystem, after "fuse.".
const fsType = "tandemfs"

// Options of Mount.
type Options struct {
	NoSuid bool // set-id programs on the mount get no rights
	NoDev  bool // device nodes on the mount do nothing
	Debug  bool // log every request
	// ShowSnapshots lists volume.SnapshotDir in the root. It can be reached by its name in any case.
	ShowSnapshots bool
	Logger        *slog.Logger
}

// Server is a mounted volume.
type Server struct {
	volume     *volume.Volume
	mountpoint string
	device     string // of the mount, as the kernel's list of mounts has it
	log        *slog.Logger
	fuse       *fuse.Server
	table      *table
	done       chan struct{}

	readers       readers
	turn          atomic.Pointer[transition] // the one under way
	telling       sync.Mutex                 // held while a turn, or heal after one, tells the kernel
	grown         map[journal.Ident]growth   // what heal is for; telling protects it
	shown         shownSnapshots
	showSnapshots bool

	flagMu sync.Mutex // held while the mount's flags change
	flags  uintptr
}

// maxWrite is the largest request: FUSE_MAX_MAX_PAGES of 4 KiB.
const maxWrite = 1 << 20

// maxRead is the largest read request. What the kernel reads ahead comes as several of them, served side by
// side, so that one waits for the disk while another is copied.
const maxRead = 256 << 10

// readAhead is how far the kernel reads ahead, in KiB.
const readAhead = 1024

// Mount mounts the volume. The mount point may be the volume's own directory.
func Mount(v *volume.Volume, mountpoint string, o Options) (*Server, error) {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	var root volume.Inode
	if err := v.Stat(v.Root(), &root); err != nil {
		return nil, fmt.Errorf("read the volume's root: %w", err)
	}
	s := &Server{
		volume: v, mountpoint: mountpoint, done: make(chan struct{}),
		log:   o.Logger.With("volume", v.Name(), "mount", mountpoint),
		table: newTable(v.Root(), uint32(root.Stat.Mode)&unix.S_IFMT),
		flags: mountFlags(o, v.ReadOnly()),
		shown: shownSnapshots{byName: map[string]*shown{}}, showSnapshots: o.ShowSnapshots,
		grown: map[journal.Ident]growth{},
	}
	server, err := fuse.NewServer(&rawFS{RawFileSystem: fuse.NewDefaultRawFileSystem(), s: s, v: v, t: s.table},
		mountpoint, s.fuseOptions(o))
	if err != nil {
		return nil, fmt.Errorf("mount on %s: %w", mountpoint, err)
	}
	s.fuse = server
	v.SetKernel(s) // the first request may come before this returns
	go func() {
		server.Serve()
		v.KernelGone(s)
		s.closeSnapshots()
		close(s.done)
	}()
	if err := server.WaitMount(); err != nil {
		return nil, errors.Join(fmt.Errorf("mount on %s: %w", mountpoint, err), server.Unmount())
	}
	if s.device, _, err = topmost(mountpoint); err != nil {
		return nil, errors.Join(err, server.Unmount())
	}
	s.raiseReadAhead()
	return s, nil
}

func mountFlags(o Options, readOnly bool) uintptr {
	flags := uintptr(unix.MS_MGC_VAL) // go-fuse takes no flags at all for its own default
	if o.NoSuid {
		flags |= unix.MS_NOSUID
	}
	if o.NoDev {
		flags |= unix.MS_NODEV
	}
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	return flags
}

func (s *Server) fuseOptions(o Options) *fuse.MountOptions {
	return &fuse.MountOptions{
		AllowOther:               true,
		Options:                  []string{"default_permissions", fmt.Sprint("max_read=", maxRead)},
		FsName:                   s.volume.Path(),
		Name:                     fsType,
		DirectMountStrict:        true,
		DirectMountFlags:         s.flags,
		MaxWrite:                 maxWrite,
		MaxReadAhead:             maxWrite,
		MaxBackground:            64,
		EnableAcl:                true,
		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true,
		Debug:                    o.Debug,
		Logger:                   slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ExtraCapabilities: fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_NO_OPENDIR_SUPPORT | fuse.CAP_DONT_MASK |
			fuse.CAP_SETXATTR_EXT | fuse.CAP_ASYNC_DIO | fuse.CAP_IOCTL_DIR,
		// Passthrough would take writes out of our sight.
		DisabledCapabilities: fuse.CAP_PASSTHROUGH,
	}
}

// raiseReadAhead lets the kernel read ahead as much as one request can carry. Its default for FUSE is an
// eighth of that; where /sys is not writable that is what stays.
func (s *Server) raiseReadAhead() {
	var st unix.Stat_t
	if err := unix.Stat(s.mountpoint, &st); err != nil {
		return
	}
	file := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))
	if err := os.WriteFile(file, []byte(fmt.Sprint(readAhead)), 0); err != nil {
		s.log.Debug("read-ahead stays at the kernel's default", "error", err)
	}
}

// Mountpoint is where the volume is mounted.
func (s *Server) Mountpoint() string { return s.mountpoint }

// Wait waits until the mount is gone.
func (s *Server) Wait() { <-s.done }

// Done is closed when the mount is gone, by Unmount or by somebody's umount(8).
func (s *Server) Done() <-chan struct{} { return s.done }

// OnTop reports whether the mount is what programs find at its path: not when it was detached while it was in use, nor
// when something else is mounted over it.
func (s *Server) OnTop() (bool, error) {
	device, _, err := topmost(s.mountpoint)
	return device == s.device, err
}

// unmountPatience is how long Unmount and Release wait for programs to let go of the mount.
const unmountPatience = 2 * time.Second

// Unmount unmounts. A mount that stays busy is detached: it is gone from the path at once, and programs that
// still use it get errors from when the daemon ends; that is logged.
func (s *Server) Unmount() error {
	err := s.Release()
	if errors.Is(err, unix.EBUSY) {
		err = s.left(s.unmount(unix.MNT_DETACH), 0)
	}
	return err
}

// Release unmounts unless programs use the mount: then it fails with EBUSY and the mount stays.
func (s *Server) Release() error {
	for end := time.Now().Add(unmountPatience); ; time.Sleep(50 * time.Millisecond) {
		err := s.unmount(0)
		if err != unix.EBUSY || time.Now().After(end) {
			return s.left(err, unmountPatience)
		}
	}
}

// unmount takes the mount off its path. What else is there, over the mount or in its stead, is somebody's own; then it
// gives EINVAL, as umount(2) does where nothing is mounted.
func (s *Server) unmount(flags int) error {
	onTop, err := s.OnTop()
	if err != nil {
		return err
	}
	if !onTop {
		return unix.EINVAL
	}
	return unix.Unmount(s.mountpoint, flags)
}

// left waits for a while for the end of a mount that err says is off its path. It does not come while programs hold a
// mount that was detached, or another mount namespace has a copy of it.
func (s *Server) left(err error, patience time.Duration) error {
	if err != nil && err != unix.EINVAL { // EINVAL: not mounted any more
		return fmt.Errorf("unmount %s: %w", s.mountpoint, err)
	}
	select {
	case <-s.done:
	case <-time.After(patience):
		s.log.Warn("the mount was in use and is detached: programs that hold files on it will get errors")
	}
	return nil
}

// SetReadOnly changes the mount's own flag, so that the kernel refuses writes before they get here.
func (s *Server) SetReadOnly(on bool) error {
	s.flagMu.Lock()
	defer s.flagMu.Unlock()
	flags := s.flags &^ unix.MS_RDONLY
	if on {
		s.flush()
		flags |= unix.MS_RDONLY
	}
	// A remount is refused with EBUSY while a file is open for writing. The volume refuses such writes
	// itself as soon as this returns; the flag is only the second lock.
	err := unix.Mount("", s.mountpoint, "", flags|unix.MS_REMOUNT, "")
	if err != nil && !(on && err == unix.EBUSY) {
		return fmt.Errorf("remount %s: %w", s.mountpoint, err)
	}
	if err != nil {
		s.awaitFlushed()
		s.log.Warn("files are open for writing: writes to them are refused, the mount's own flag is not set")
		return nil
	}
	s.flags = flags
	return nil
}

// flush has the kernel send the dirty pages of mapped files, which nobody would take from it later. A remount that
// changes nothing does what syncfs(2) does, and needs nothing to be opened: that would wait for an answer of this very
// process, and one that is killed while it waits for itself never ends, since it keeps the connection open.
func (s *Server) flush() {
	if err := unix.Mount("", s.mountpoint, "", s.flags|unix.MS_REMOUNT, ""); err != nil {
		s.log.Warn("what programs wrote through maps of files may be lost", "error", err)
	}
}

// awaitFlushed waits for the pages that flush had sent, which syncfs(2) does not do for FUSE: dropping a
// file's pages does. Where nothing is open for writing there are none.
func (s *Server) awaitFlushed() {
	for _, node := range s.table.files() {
		s.fuse.InodeNotify(node, 0, 0)
	}
}

// Refers is volume.Kernel's.
func (s *Server) Refers(id journal.Ident) bool {
	_, ok := s.table.number(id)
	return ok
}

// Where is volume.Kernel's.
func (s *Server) Where(id journal.Ident) (dir journal.Ident, name string, ok bool) {
	return s.table.where(id)
}

// Moved is volume.Kernel's.
func (s *Server) Moved(id, dir journal.Ident, name string) { s.table.moved(id, dir, name) }

// Removed is volume.Kernel's.
func (s *Server) Removed(dir journal.Ident) { s.table.removed(dir) }

func (s *Server) notified(status fuse.Status, what string, id journal.Ident) {
	if !status.Ok() && status != fuse.ENOENT {
		s.log.Debug("the kernel's cache was not told", "what", what, "inode", id, "status", status)
	}
}

// CleanStale detaches a mount of ours whose daemon is gone: every access gives ENOTCONN. It reports
// whether there was one. Other mounts, and ours while they live, are left alone.
func CleanStale(mountpoint string) (bool, error) {
	cleaned := false
	for {
		ours, err := isOurs(mountpoint)
		if err != nil || !ours {
			return cleaned, err
		}
		// The daemon must be asked: the kernel may still know the attributes of a dead mount.
		var st unix.Statx_t
		err = unix.Statx(unix.AT_FDCWD, mountpoint, unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &st)
		if err != unix.ENOTCONN {
			return cleaned, nil
		}
		if err := unix.Unmount(mountpoint, unix.MNT_DETACH); err != nil {
			return cleaned, fmt.Errorf("detach the dead mount on %s: %w", mountpoint, err)
		}
		cleaned = true
	}
}

// isOurs reports whether the topmost mount on a path is a tandemfs.
func isOurs(mountpoint string) (bool, error) {
	_, kind, err := topmost(mountpoint)
	return kind == "fuse."+fsType, err
}

// topmost gives the device and the filesystem's type of the topmost mount on a path, "" where there is none.
func topmost(mountpoint string) (device, kind string, err error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", "", err
	}
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) < 7 || unescape(fields[4]) != filepath.Clean(mountpoint) {
			continue
		}
		for i, f := range fields {
			if f == "-" && i+1 < len(fields) {
				device, kind = fields[2], fields[i+1] // the last line for a path is the topmost mount
			}
		}
	}
	return device, kind, nil
}

// unescape undoes the octal escapes of /proc/self/mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
