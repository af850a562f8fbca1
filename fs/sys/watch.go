package sys

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/journal"
)

// Change says what happened to an inode or a name; several bits when the kernel merged several events.
type Change uint8

// What other processes do.
const (
	Modified   Change = 1 << iota // the content of Inode, by a system call
	Closed                        // Inode is no longer open for writing: content may have changed through a map
	Attributes                    // of Inode, its number of links among them
	Named                         // Dir's Name came to stand for Inode
	Unnamed                       // Dir's Name no longer stands for Inode
	Moved                         // Inode went from Dir's Name to NewDir's NewName
)

// Event is what a Watch tells. What it does not know is zero: the parent of an inode that was reached by its
// handle alone, for one.
type Event struct {
	What    Change
	Inode   journal.Ident
	Dir     journal.Ident
	Name    string
	NewDir  journal.Ident
	NewName string
}

// Watch tells of the changes that other processes make anywhere on the filesystem of a backing directory
// (fanotify, Linux 5.17). Which of them lie below the root is for its user to find out, with Within.
//
// Of this process's own changes those of content cost next to nothing: they are made through the private clone
// of the mount, which has an ignore mark. Others are read and left out by the process's number.
//
// Wait and Read are for one goroutine at a time; Wake and Close may be called from others.
type Watch struct {
	backing *Backing
	file    *os.File
	conn    syscall.RawConn
	buf     [64 << 10]byte
}

const (
	watched = unix.FAN_MODIFY | unix.FAN_CLOSE_WRITE | unix.FAN_ATTRIB | unix.FAN_CREATE | unix.FAN_DELETE |
		unix.FAN_RENAME | unix.FAN_ONDIR
	// byMount are the events that the kernel knows the mount of.
	byMount = unix.FAN_MODIFY | unix.FAN_CLOSE_WRITE
)

// Watch begins to watch. The error says why that is not possible here.
func (b *Backing) Watch() (*Watch, error) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|unix.FAN_REPORT_DFID_NAME_TARGET, unix.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("fanotify_init: %w", err)
	}
	w := &Watch{backing: b, file: os.NewFile(uintptr(fd), "fanotify")}
	if w.conn, err = w.file.SyscallConn(); err == nil {
		err = w.mark(fd)
	}
	if err != nil {
		w.file.Close()
		return nil, err
	}
	return w, nil
}

func (w *Watch) mark(fd int) error {
	const own = unix.FAN_MARK_ADD | unix.FAN_MARK_MOUNT | unix.FAN_MARK_IGNORED_MASK | unix.FAN_MARK_IGNORED_SURV_MODIFY
	if err := unix.FanotifyMark(fd, own, byMount, w.backing.fd, "."); err != nil {
		return fmt.Errorf("fanotify_mark of the daemon's own mount: %w", err)
	}
	if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, watched, w.backing.fd, "."); err != nil {
		return fmt.Errorf("fanotify_mark of the filesystem: %w", err)
	}
	return nil
}

// Close ends the watch, and a Wait that is under way.
func (w *Watch) Close() error { return w.file.Close() }

// Wake ends the Wait that is under way, or the next one.
func (w *Watch) Wake() { _ = w.file.SetReadDeadline(time.Unix(1, 0)) } // it fails once the watch is closed

// Wait returns when there is something to read, after d at the latest. It gives os.ErrClosed after Close.
func (w *Watch) Wait(d time.Duration) error {
	late := time.AfterFunc(d, w.Wake)
	defer late.Stop()
	err := w.conn.Read(readable)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = w.file.SetReadDeadline(time.Time{})
	}
	if err != nil { // there is no other reason, and package os has another word for it here
		return os.ErrClosed
	}
	return nil
}

func readable(fd uintptr) bool {
	set := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, _ := unix.Poll(set, 0)
	return n > 0
}

// Read appends events that have come to a list; more says that there may be others. ErrOverflow: the kernel has
// left some out.
func (w *Watch) Read(events []Event) (list []Event, more bool, err error) {
	var n int
	if failed := w.conn.Control(func(fd uintptr) {
		err = again("fanotify_read", func() error {
			n, err = unix.Read(int(fd), w.buf[:])
			return err
		})
	}); failed != nil {
		return events, false, failed
	}
	if err == unix.EAGAIN {
		return events, false, nil
	}
	if err != nil {
		return events, false, fmt.Errorf("read of fanotify: %w", err)
	}
	events, err = w.backing.parseEvents(w.buf[:n], int32(os.Getpid()), events)
	return events, true, err
}

// ErrOverflow: more happened than the kernel could keep in mind, so some of it is not told.
var ErrOverflow = errors.New("the kernel's queue of changes overflowed")

var errEvent = errors.New("fanotify: malformed event")

// Sizes of struct fanotify_event_metadata, and of struct fanotify_event_info_fid up to the handle's bytes.
const (
	eventHeader = 24
	infoHeader  = 20
)

// parseEvents appends what a read of fanotify gave, but for what the process own did, and for what is about
// inodes of other subvolumes.
func (b *Backing) parseEvents(buf []byte, own int32, events []Event) ([]Event, error) {
	n := binary.NativeEndian
	var lost error
	for len(buf) > 0 {
		if len(buf) < eventHeader {
			return events, errEvent
		}
		size, header := int(n.Uint32(buf)), int(n.Uint16(buf[6:]))
		if buf[4] != unix.FANOTIFY_METADATA_VERSION || header < eventHeader || size < header || size > len(buf) {
			return events, errEvent
		}
		mask, pid := n.Uint64(buf[8:]), int32(n.Uint32(buf[20:]))
		switch {
		case mask&unix.FAN_Q_OVERFLOW != 0:
			lost = ErrOverflow
		case pid != own:
			e := Event{What: changeOf(mask)}
			ok, err := b.parseInfo(buf[header:size], &e)
			if err != nil {
				return events, err
			}
			if ok && e.What != 0 {
				events = append(events, e)
			}
		}
		buf = buf[size:]
	}
	return events, lost
}

func changeOf(mask uint64) (c Change) {
	for _, m := range [...]struct {
		bit  uint64
		what Change
	}{
		{unix.FAN_MODIFY, Modified}, {unix.FAN_CLOSE_WRITE, Closed}, {unix.FAN_ATTRIB, Attributes},
		{unix.FAN_CREATE, Named}, {unix.FAN_DELETE, Unnamed}, {unix.FAN_RENAME, Moved},
	} {
		if mask&m.bit != 0 {
			c |= m.what
		}
	}
	return c
}

// parseInfo reads what comes with an event. ok is false when it is about something that cannot be of the volume.
func (b *Backing) parseInfo(info []byte, e *Event) (ok bool, err error) {
	n := binary.NativeEndian
	for len(info) > 0 {
		if len(info) < infoHeader {
			return false, errEvent
		}
		kind, size := info[0], int(n.Uint16(info[2:]))
		var h fileHandle
		h.bytes, h.kind = n.Uint32(info[12:]), int32(n.Uint32(info[16:]))
		if size > len(info) || h.bytes > maxHandle || infoHeader+int(h.bytes) > size {
			return false, errEvent
		}
		rest := info[infoHeader:size]
		copy(h.data[:], rest[:h.bytes])
		name, _, _ := strings.Cut(string(rest[h.bytes:]), "\x00")
		id, err := b.decode(&h)
		if err != nil {
			return false, nil
		}
		e.take(kind, id, name)
		info = info[size:]
	}
	return true, nil
}

// take puts one piece of information where it belongs. What happens to a directory itself is told with the name
// "." in it.
func (e *Event) take(kind byte, id journal.Ident, name string) {
	switch kind {
	case unix.FAN_EVENT_INFO_TYPE_FID:
		e.Inode = id
	case unix.FAN_EVENT_INFO_TYPE_DFID_NAME, unix.FAN_EVENT_INFO_TYPE_OLD_DFID_NAME:
		if name == "." {
			e.Inode = id
			return
		}
		e.Dir, e.Name = id, name
	case unix.FAN_EVENT_INFO_TYPE_NEW_DFID_NAME:
		e.NewDir, e.NewName = id, name
	}
}

// Within opens a directory by its identity (O_PATH) and gives its path below the root, "/" for the root itself;
// the caller closes fd. Of a path that is too long for the kernel it is the beginning, with "..." at the end. A directory
// that is gone, or lies elsewhere on the filesystem, gives ESTALE.
func (b *Backing) Within(dir journal.Ident) (fd int, path string, err error) {
	fd, err = b.OpenIdent(dir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return -1, "", err
	}
	var st unix.Statx_t
	if err = Stat(fd, "", &st); err == nil && st.Nlink == 0 {
		err = unix.ESTALE
	}
	if err == nil { // the kernel does not walk up from what a mount does not reach
		if _, err = b.IdentAt(fd, ".."); err == unix.ENOENT {
			err = unix.ESTALE
		}
	}
	if err == nil {
		path, err = pathOrStart(fd)
	}
	if err != nil {
		Close(fd)
		return -1, "", err
	}
	return fd, path, nil
}

// pathOrStart is PathOf for a directory whose path may be too long.
func pathOrStart(fd int) (path string, err error) {
	for at, rest := fd, ""; ; {
		path, err = PathOf(at)
		up := -1
		if errors.Is(err, unix.ENAMETOOLONG) {
			rest = "/..."
			up, err = Open(at, "..", unix.O_PATH|unix.O_DIRECTORY, 0)
		}
		if at != fd {
			Close(at)
		}
		if up < 0 {
			return path + rest, err
		}
		at = up
	}
}

// Clock is the clock that the kernel takes change times from: what is changed after it was read has a change time
// that is not earlier.
func Clock() (journal.Time, error) { return clock(unix.CLOCK_REALTIME_COARSE) }

// FineClock is ahead of Clock, by up to a tick: what was changed before it is read has an earlier change time, also
// where the kernel takes one from it to tell two changes apart (Linux 6.13).
func FineClock() (journal.Time, error) { return clock(unix.CLOCK_REALTIME) }

func clock(id int32) (journal.Time, error) {
	var now unix.Timespec
	err := unix.ClockGettime(id, &now)
	return journal.Time{Sec: now.Sec, Nsec: uint32(now.Nsec)}, err
}
