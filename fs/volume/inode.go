package volume

import (
	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
)

// Stat reads an inode's attributes.
func (v *Volume) Stat(id journal.Ident, out *Inode) error {
	o, err := v.open.get(id, reachPath)
	if err != nil {
		return err
	}
	defer v.open.put(o)
	return v.statOpen(o, out)
}

// What a Setting sets.
const (
	SetMode = 1 << iota
	SetUID
	SetGID
	SetSize
	SetTimes
)

// Setting is a change of attributes; Valid says which.
type Setting struct {
	Valid    uint32
	Mode     uint32 // permission bits
	UID      uint32
	GID      uint32
	Size     int64
	Atime    journal.Time // Nsec may be UTIME_NOW or UTIME_OMIT
	Mtime    journal.Time
	KillPriv bool  // a regular file's set-id bits and capabilities go
	Group    int64 // with KillPriv: the caller's, or AnyGroup
	Owner    int64 // with KillPriv: only of a file that belongs to this user; AnyOwner: of anybody's
}

// SetAttr changes attributes and reads them back.
func (v *Volume) SetAttr(id journal.Ident, s Setting, out *Inode) error {
	want, err := reachPath, error(nil)
	if s.Valid&SetSize != 0 {
		want, err = reachData, v.enterContent(id)
	} else {
		err = v.enter()
	}
	if err != nil {
		return err
	}
	defer v.leave()
	o, err := v.open.get(id, want)
	if err != nil {
		return err
	}
	defer v.open.put(o)
	if s.KillPriv || s.Valid&^SetSize != 0 {
		err = v.journal.TouchMeta(id, o)
	}
	if err == nil && s.KillPriv {
		err = s.killPriv(o)
	}
	if err == nil && s.Valid&SetSize != 0 {
		err = v.resize(o, s.Size)
	}
	if err == nil {
		err = apply(o, s)
	}
	if err != nil {
		return err
	}
	return v.statOpen(o, out)
}

// AnyOwner stands for the owner where that does not matter.
const AnyOwner = -1

// killPriv drops what the setting asks for. Where the file is of another user than s.Owner that is only a
// set-group-id bit without the group's right to execute: nothing but the kernel's asking tells that this
// one has to go, since it alone knows the caller's groups.
func (s *Setting) killPriv(o *openInode) error {
	var st unix.Statx_t
	if err := sys.Stat(o.fd, "", &st); err != nil {
		return err
	}
	if s.Owner == AnyOwner || s.Owner == int64(st.Uid) {
		return dropPrivileges(o, s.Group)
	}
	mode := uint32(st.Mode)
	if mode&unix.S_IFMT != unix.S_IFREG || mode&(unix.S_ISGID|unix.S_IXGRP) != unix.S_ISGID || s.Group == int64(st.Gid) {
		return nil
	}
	return sys.Chmod(o.fd, mode&^unix.S_ISGID)
}

// killPriv drops set-id bits and capabilities before a change of content, if the caller may not keep them.
func (o *openInode) killPriv(kill bool) error {
	if !kill {
		return nil
	}
	return dropPrivileges(o, AnyGroup)
}

// resize truncates or extends a file. What a truncation takes away counts as changed up to the largest
// offset, so that a file which grows again afterwards is known to hold zeros there. The block that the file then
// ends in counts too: a write past the former end may have made it data, of which nothing but zeros is left.
func (v *Volume) resize(o *openInode, size int64) error {
	var st unix.Statx_t
	if err := sys.Stat(o.fd, "", &st); err != nil {
		return err
	}
	var err error
	if size < int64(st.Size) {
		err = v.journal.TouchData(o.id, journal.Extent{Off: size - size%v.backing.BlockSize(), End: journal.MaxOffset}, o)
	} else {
		err = v.journal.TouchMeta(o.id, o)
	}
	if err != nil {
		return err
	}
	return sys.Truncate(o.fd, size)
}

// apply makes the changes of owner, mode and times, in the order in which one undoes none before it: a
// change of owner drops set-id bits.
func apply(o *openInode, s Setting) error {
	if s.Valid&(SetUID|SetGID) != 0 {
		uid, gid := -1, -1
		if s.Valid&SetUID != 0 {
			uid = int(s.UID)
		}
		if s.Valid&SetGID != 0 {
			gid = int(s.GID)
		}
		if err := sys.Chown(o.fd, uid, gid); err != nil {
			return err
		}
	}
	if s.Valid&SetMode != 0 {
		o.plain.Store(false)
		if err := sys.Chmod(o.fd, s.Mode); err != nil {
			return err
		}
	}
	if s.Valid&SetTimes != 0 {
		return sys.SetTimes(o.fd, s.Atime, s.Mtime)
	}
	return nil
}

// AnyGroup stands for a caller whose group does not matter, as root's.
const AnyGroup = -1

// dropPrivileges removes a regular file's set-id bits and capabilities, as the kernel does when somebody
// without CAP_FSETID changes its content; with FUSE's HANDLE_KILLPRIV_V2 that is the server's to do. A
// set-group-id bit without the group's right to execute goes where the file is of another group than group,
// if that is known; the caller's further groups are not. It stays where group is AnyGroup.
func dropPrivileges(o *openInode, group int64) error {
	if o.plain.Load() {
		return nil
	}
	var st unix.Statx_t
	if err := sys.Stat(o.fd, "", &st); err != nil {
		return err
	}
	mode := uint32(st.Mode)
	if mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	drop := mode & unix.S_ISUID
	if mode&unix.S_IXGRP != 0 || group != AnyGroup && group != int64(st.Gid) {
		drop |= mode & unix.S_ISGID
	}
	if drop != 0 {
		if err := sys.Chmod(o.fd, mode&^drop); err != nil {
			return err
		}
	}
	if err := sys.RemoveXattr(o.fd, sys.XattrCapability); err != nil && err != unix.ENODATA && err != unix.EOPNOTSUPP {
		return err
	}
	o.plain.Store(mode&^drop&unix.S_ISGID == 0)
	return nil
}

// GetXattr reads an extended attribute into dest and returns its size; with an empty dest only the size.
func (v *Volume) GetXattr(id journal.Ident, name string, dest []byte) (int, error) {
	o, err := v.open.get(id, reachPath)
	if err != nil {
		return 0, err
	}
	defer v.open.put(o)
	return sys.GetXattr(o.fd, name, dest)
}

// ListXattr lists the names of extended attributes, each ended by a zero byte.
func (v *Volume) ListXattr(id journal.Ident, dest []byte) (int, error) {
	o, err := v.open.get(id, reachPath)
	if err != nil {
		return 0, err
	}
	defer v.open.put(o)
	return sys.ListXattr(o.fd, dest)
}

// How many bytes all extended attributes of an inode may have together, and their names alone: all of them go into one
// record of the journal and one of a transfer, and XFS and btrfs have no bound.
const (
	mostXattrs     = 768 << 10
	mostXattrNames = sys.MaxXattrList - 4<<10
)

// fitsXattr gives ENOSPC where an inode would have too many extended attributes with this one.
func (o *openInode) fitsXattr(name string, value []byte) error {
	have, err := sys.Xattrs(o.fd)
	if err != nil {
		return err
	}
	names, size := len(name)+1, len(value)
	for _, x := range have {
		if x.Name != name {
			names, size = names+len(x.Name)+1, size+len(x.Value)
		}
	}
	if names > mostXattrNames || names+size > mostXattrs {
		return unix.ENOSPC
	}
	return nil
}

// SetXattr sets an extended attribute. killSGID: a POSIX ACL is set by somebody who is not in the file's
// group, so its set-group-id bit goes.
func (v *Volume) SetXattr(id journal.Ident, name string, value []byte, flags int, killSGID bool) error {
	return v.changeXattr(id, func(o *openInode) error {
		if err := o.fitsXattr(name, value); err != nil {
			return err
		}
		if err := sys.SetXattr(o.fd, name, value, flags); err != nil || !killSGID {
			return err
		}
		var st unix.Statx_t
		if err := sys.Stat(o.fd, "", &st); err != nil || st.Mode&unix.S_ISGID == 0 {
			return err
		}
		return sys.Chmod(o.fd, uint32(st.Mode)&^unix.S_ISGID)
	})
}

// RemoveXattr removes an extended attribute.
func (v *Volume) RemoveXattr(id journal.Ident, name string) error {
	return v.changeXattr(id, func(o *openInode) error { return sys.RemoveXattr(o.fd, name) })
}

func (v *Volume) changeXattr(id journal.Ident, call func(*openInode) error) error {
	if err := v.enter(); err != nil {
		return err
	}
	defer v.leave()
	o, err := v.open.get(id, reachPath)
	if err != nil {
		return err
	}
	defer v.open.put(o)
	if err := v.journal.TouchMeta(id, o); err != nil {
		return err
	}
	o.plain.Store(false)
	return call(o)
}

// settableFlags are the inode flags (chattr(1)) that a user of the mount may change: those that neither
// stop the daemon from working on the inode nor change how the filesystem stores others.
const settableFlags = flagSync | flagNoDump | flagNoAtime | flagDirSync

// Inode flags as in linux/fs.h (FS_SYNC_FL and so on).
const (
	flagSync    = 0x00000008
	flagNoDump  = 0x00000040
	flagNoAtime = 0x00000080
	flagDirSync = 0x00010000
)

// Flags reads an inode's flags, as FS_IOC_GETFLAGS does.
func (v *Volume) Flags(id journal.Ident, dir bool) (uint32, error) {
	o, err := v.open.get(id, contentReach(dir))
	if err != nil {
		return 0, err
	}
	defer v.open.put(o)
	return sys.Flags(o.fd)
}

// SetFlags changes an inode's flags, as FS_IOC_SETFLAGS does. A change of others than nodump, noatime,
// sync and dirsync gives EOPNOTSUPP.
func (v *Volume) SetFlags(id journal.Ident, dir bool, flags uint32) error {
	if err := v.enter(); err != nil {
		return err
	}
	defer v.leave()
	o, err := v.open.get(id, contentReach(dir))
	if err != nil {
		return err
	}
	defer v.open.put(o)
	old, err := sys.Flags(o.fd)
	if err != nil {
		return err
	}
	if (old^flags)&^settableFlags != 0 {
		return unix.EOPNOTSUPP
	}
	if err := v.journal.TouchMeta(id, o); err != nil {
		return err
	}
	return sys.SetFlags(o.fd, flags)
}

func contentReach(dir bool) reach {
	if dir {
		return reachDir
	}
	return reachRead
}
