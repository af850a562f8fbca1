package sys

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"tandemfs/journal"
)

// Names of attributes that the kernel gives a meaning to.
const (
	XattrACLDefault = "system.posix_acl_default"
	XattrACLAccess  = "system.posix_acl_access"
	XattrCapability = "security.capability"
)

// The kernel's bounds, in bytes (XATTR_LIST_MAX, XATTR_SIZE_MAX).
const (
	MaxXattrList  = 64 << 10
	maxXattrValue = 64 << 10
)

// GetXattr reads an attribute into dest and returns its size; with an empty dest only the size. Any kind
// of descriptor will do, O_PATH too: there the inode is reached through /proc.
func GetXattr(fd int, name string, dest []byte) (n int, err error) {
	err = again("getxattr", func() error {
		n, err = unix.Fgetxattr(fd, name, dest)
		if err == unix.EBADF {
			n, err = unix.Getxattr(procPath(fd), name, dest)
		}
		return err
	})
	return n, err
}

// ListXattr is flistxattr(2), for any kind of descriptor.
func ListXattr(fd int, dest []byte) (n int, err error) {
	err = again("listxattr", func() error {
		n, err = unix.Flistxattr(fd, dest)
		if err == unix.EBADF {
			n, err = unix.Listxattr(procPath(fd), dest)
		}
		return err
	})
	return n, err
}

// SetXattr is fsetxattr(2), for any kind of descriptor.
func SetXattr(fd int, name string, value []byte, flags int) error {
	return again("setxattr", func() error {
		err := unix.Fsetxattr(fd, name, value, flags)
		if err == unix.EBADF {
			err = unix.Setxattr(procPath(fd), name, value, flags)
		}
		return err
	})
}

// RemoveXattr is fremovexattr(2), for any kind of descriptor.
func RemoveXattr(fd int, name string) error {
	return again("removexattr", func() error {
		err := unix.Fremovexattr(fd, name)
		if err == unix.EBADF {
			err = unix.Removexattr(procPath(fd), name)
		}
		return err
	})
}

// btrfsProperties begins the names under which btrfs shows inode flags of its own, compression for one.
// No other filesystem takes them.
const btrfsProperties = "btrfs."

// xfsACLs begins the names under which XFS shows POSIX ACLs a second time, as it stores them.
const xfsACLs = "trusted.SGI_ACL_"

// Xattrs reads all attributes of an inode, sorted by name, but for those that stand for something else on
// one filesystem only: btrfs's properties and XFS's own form of ACLs. A filesystem without any gives none.
func Xattrs(fd int) ([]journal.Xattr, error) {
	var small [512]byte
	list := small[:]
	n, err := ListXattr(fd, list)
	if err == unix.ERANGE {
		list = make([]byte, MaxXattrList)
		n, err = ListXattr(fd, list)
	}
	if err == unix.EOPNOTSUPP || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var attrs []journal.Xattr
	for _, name := range strings.Split(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if strings.HasPrefix(name, btrfsProperties) || strings.HasPrefix(name, xfsACLs) {
			continue
		}
		value, err := xattrValue(fd, name)
		if err == unix.ENODATA { // removed since the listing
			continue
		}
		if err != nil {
			return nil, err
		}
		attrs = append(attrs, journal.Xattr{Name: name, Value: value})
	}
	slices.SortFunc(attrs, func(a, b journal.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return attrs, nil
}

func xattrValue(fd int, name string) ([]byte, error) {
	var small [256]byte
	n, err := GetXattr(fd, name, small[:])
	if err == nil {
		return append([]byte(nil), small[:n]...), nil
	}
	if err != unix.ERANGE {
		return nil, err
	}
	large := make([]byte, maxXattrValue)
	if n, err = GetXattr(fd, name, large); err != nil {
		return nil, err
	}
	return large[:n:n], nil
}
