package history

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"tandemfs/integration/acl"
)

// attributeKinds are the operations on owners, modes, times, extended attributes and ACLs: by path, or by
// open file where no path is drawn.
var attributeKinds = []kind{
	{name: "chmod", weight: 10,
		draw: func(g *Generator, op *Op) { g.target(op); op.Mode = g.permissions() },
		run: func(s *Side, op *Op) (string, error) {
			if op.Path == "" {
				return "", unix.Fchmod(s.slots[op.Slot], op.Mode)
			}
			return "", unix.Chmod(op.Path, op.Mode)
		}},
	{name: "chown", weight: 8,
		draw: func(g *Generator, op *Op) {
			g.target(op)
			op.UID, op.GID = g.owner()
			if op.UID == -1 && op.GID == -1 {
				op.GID = 3000 // what changes nothing is never heard of behind FUSE
			}
		},
		run: func(s *Side, op *Op) (string, error) {
			if op.Path == "" {
				return "", unix.Fchown(s.slots[op.Slot], op.UID, op.GID)
			}
			return "", unix.Lchown(op.Path, op.UID, op.GID)
		}},
	{name: "set-times", weight: 8,
		draw: func(g *Generator, op *Op) {
			g.target(op)
			for i := range op.Times {
				op.Times[i] = g.time()
			}
		},
		run: runSetTimes},
	{name: "set-attribute", weight: 9,
		draw: func(g *Generator, op *Op) {
			g.target(op)
			op.Name, op.Value = g.attribute(), g.value()
			if op.Name == "security.capability" && len(op.Value) == 0 {
				op.Value = capability // the kernel stores an empty one, and nobody can read it afterwards
			}
			op.Flags = []int{0, 0, unix.XATTR_CREATE, unix.XATTR_REPLACE}[g.rng.IntN(4)]
		},
		run: func(s *Side, op *Op) (string, error) {
			if op.Path == "" {
				return "", unix.Fsetxattr(s.slots[op.Slot], op.Name, op.Value, op.Flags)
			}
			return "", unix.Lsetxattr(op.Path, op.Name, op.Value, op.Flags)
		}},
	{name: "remove-attribute", weight: 4,
		draw: func(g *Generator, op *Op) { g.target(op); op.Name = g.attribute() },
		run: func(s *Side, op *Op) (string, error) {
			if op.Path == "" {
				return "", unix.Fremovexattr(s.slots[op.Slot], op.Name)
			}
			return "", unix.Lremovexattr(op.Path, op.Name)
		}},
	{name: "get-attribute", weight: 5,
		draw: func(g *Generator, op *Op) { g.target(op); op.Name = g.attribute() },
		run:  runGetAttribute},
	{name: "list-attributes", weight: 5,
		draw: func(g *Generator, op *Op) { g.target(op) },
		run:  runListAttributes},
	{name: "set-acl", weight: 5,
		draw: func(g *Generator, op *Op) {
			g.target(op)
			op.Name = []string{acl.Access, acl.Access, acl.Default}[g.rng.IntN(3)]
			op.Value = g.acl()
		},
		run: func(s *Side, op *Op) (string, error) {
			if op.Path == "" {
				return "", unix.Fsetxattr(s.slots[op.Slot], op.Name, op.Value, 0)
			}
			return "", unix.Lsetxattr(op.Path, op.Name, op.Value, 0)
		}},
}

// target draws a path, or now and then an open file.
func (g *Generator) target(op *Op) {
	if g.rng.IntN(4) == 0 {
		op.Slot = g.slot()
		return
	}
	op.Path = g.any()
}

func (g *Generator) time() unix.Timespec {
	switch g.rng.IntN(8) {
	case 0:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	case 1:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	case 2:
		return unix.Timespec{Sec: -int64(g.rng.IntN(1 << 30)), Nsec: int64(g.rng.IntN(1e9))} // before 1970
	}
	return unix.Timespec{Sec: int64(g.rng.IntN(1 << 32)), Nsec: int64(g.rng.IntN(1e9))}
}

func runSetTimes(s *Side, op *Op) (string, error) {
	var err error
	if op.Path == "" {
		err = unix.UtimesNanoAt(s.slots[op.Slot], "", op.Times[:], unix.AT_EMPTY_PATH)
	} else {
		err = unix.UtimesNanoAt(unix.AT_FDCWD, op.Path, op.Times[:], unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil || op.Path == "" || op.Times[1].Nsec == unix.UTIME_NOW || op.Times[1].Nsec == unix.UTIME_OMIT {
		return "", err
	}
	var st unix.Stat_t
	err = unix.Lstat(op.Path, &st)
	return fmt.Sprintf("mtime %d.%09d", st.Mtim.Sec, st.Mtim.Nsec), err
}

func (g *Generator) attribute() string {
	if g.rng.IntN(3) > 0 {
		return []string{"user.a", "user.b", "trusted.t", "security.capability"}[g.rng.IntN(4)]
	}
	names := []string{"user.c", "user." + strings.Repeat("n", 250), "user." + strings.Repeat("n", 251),
		"nonsense", "user.", "system.other", acl.Access, acl.Default}
	return names[g.rng.IntN(len(names))]
}

// capability is a valid file capability: cap_net_raw, permitted and effective.
var capability = []byte{1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

// value gives an attribute's value: short most times, a file capability now and then, and seldom more
// than a filesystem takes.
func (g *Generator) value() []byte {
	switch g.rng.IntN(12) {
	case 0:
		return nil
	case 1, 2:
		return capability
	case 3:
		return content(g.rng.Uint64(), 1000)
	case 4:
		return content(g.rng.Uint64(), 65537) // more than the kernel takes
	}
	return content(g.rng.Uint64(), int64(1+g.rng.IntN(60)))
}

// acl gives a list: a good one most times.
func (g *Generator) acl() []byte {
	perm := uint16(g.rng.IntN(8))
	switch g.rng.IntN(6) {
	case 0:
		return acl.Encode(nil)
	case 1: // no more than the mode says
		return acl.Encode([]acl.Entry{{Tag: acl.UserObj, Perm: 6}, {Tag: acl.GroupObj, Perm: perm}, {Tag: acl.Other, Perm: 4}})
	case 2: // no mask: an error
		return acl.Encode([]acl.Entry{{Tag: acl.UserObj, Perm: 6}, {Tag: acl.User, Perm: 6, ID: 1000}, {Tag: acl.GroupObj}, {Tag: acl.Other}})
	}
	return acl.Minimal(uint32(1000*(1+g.rng.IntN(4))), 3000, perm)
}

func runGetAttribute(s *Side, op *Op) (string, error) {
	b := make([]byte, 70_000)
	var n int
	var err error
	if op.Path == "" {
		n, err = unix.Fgetxattr(s.slots[op.Slot], op.Name, b)
	} else {
		n, err = unix.Lgetxattr(op.Path, op.Name, b)
	}
	return fmt.Sprintf("%d bytes, sum %s", n, sum(b[:max(n, 0)])), err
}

func runListAttributes(s *Side, op *Op) (string, error) {
	b := make([]byte, 70_000)
	var n int
	var err error
	if op.Path == "" {
		n, err = unix.Flistxattr(s.slots[op.Slot], b)
	} else {
		n, err = unix.Llistxattr(op.Path, b)
	}
	names := strings.Split(string(b[:max(n, 0)]), "\x00")
	slices.Sort(names)
	return strings.Join(names, " "), err
}
