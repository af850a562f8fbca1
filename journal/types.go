package journal

import (
	"fmt"
	"math"
)

// Ident names an inode for as long as the backing filesystem exists: its number and its generation,
// as the filesystem's file handles carry them. An inode number may be used again after a removal; an
// Ident is not. The zero Ident stands for "no inode".
type Ident struct {
	Ino uint64
	Gen uint64
}

// IsZero reports whether the identity stands for no inode.
func (id Ident) IsZero() bool { return id == Ident{} }

// Unknown stands for some inode of which nothing else is known, and that is not there any more: what a name stood
// for that was changed by somebody who did not ask before. No inode has this identity.
var Unknown = Ident{Ino: math.MaxUint64, Gen: math.MaxUint64}

// String gives the identity as "ino.gen" in decimal.
func (id Ident) String() string { return fmt.Sprintf("%d.%d", id.Ino, id.Gen) }

// Less orders identities by number, then by generation.
func (id Ident) Less(other Ident) bool {
	if id.Ino != other.Ino {
		return id.Ino < other.Ino
	}
	return id.Gen < other.Gen
}

// Epoch numbers the pieces that a volume's time is cut into. The first is 1; sealing epoch N ends it
// and starts N+1, and what the volume held at that instant is snapshot N. Zero is "before everything".
type Epoch uint64

// Extent is a range of bytes of a file, from Off up to but not including End.
type Extent struct {
	Off int64
	End int64
}

// MaxOffset is the largest offset that a file can have, so Extent{off, MaxOffset} is "from off on".
const MaxOffset = math.MaxInt64

// Len is the extent's length in bytes.
func (e Extent) Len() int64 { return e.End - e.Off }

// What says which parts of an inode were touched in an epoch.
type What uint8

// The parts of an inode. Created implies all others: such an inode is new as a whole (rule B1).
const (
	Created What = 1 << iota // the inode was made in this epoch
	Meta                     // owner, mode, times, size, extended attributes
	Data                     // content; the extents say where

	// Lost and Found are of an inode that lost its last name, while a view needed it, and may get one again.
	// Of several in one epoch only the first is recorded: it tells whether the inode had a name before.
	Lost
	Found

	fate = Lost | Found
)

// Time is a moment as the kernel keeps it for a file.
type Time struct {
	Sec  int64
	Nsec uint32
}

// Attr is what an inode holds besides its content, its names and its extended attributes.
type Attr struct {
	Mode  uint32 // type and permission bits, as in stat(2)
	Nlink uint32
	UID   uint32
	GID   uint32
	Rdev  uint64 // for devices, as in stat(2)
	Size  int64  // bytes
	Atime Time
	Mtime Time
	Ctime Time
}

// Xattr is one extended attribute. POSIX ACLs are among them, as the kernel stores them.
type Xattr struct {
	Name  string
	Value []byte
}

// Image is what an inode's attributes and extended attributes were: the before image of Meta.
// Xattrs are sorted by name.
type Image struct {
	Attr   Attr
	Xattrs []Xattr
}
