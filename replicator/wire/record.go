package wire

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"tandemfs/journal"
)

// A records frame holds records, one after the other, none split between two frames:
//
//	record  = kind u8 | body
//	inode   = flags u8 | ident | mode uid gid rdev size | atime mtime | xattrs | [symlink] | [dir name]
//	data    = offset varint | n u32 | n bytes, of the file that the last inode record named
//	hole    = offset varint | length varint, of that file
//	attach  = dir name ident
//	detach  = dir name
//	digest  = offset varint | length varint | 32 bytes, of that file
//	ask
//	keep    = dir name ident
//
// ident and dir are two varints each (inode number, generation); times are a zigzag varint of seconds and
// a varint of nanoseconds; names and values have their length before them as a varint. All varints are
// those of encoding/binary, numbers of fixed length are big endian.

// Kind says what a record is.
type Kind uint8

// The kinds of records. Their numbers never change.
const (
	KindInode  Kind = 1 // an inode: new, or all of its attributes
	KindData   Kind = 2 // content of the inode before
	KindHole   Kind = 3 // a hole in it
	KindAttach Kind = 4 // a name stands for an inode from now on
	KindDetach Kind = 5 // a name stands for nothing
	KindDigest Kind = 6 // the SHA-256 of content of the inode before, for the target to compare
	KindAsk    Kind = 7 // the target is to say what it wants, and then that it has said so: see Want
	KindKeep   Kind = 8 // what a name stands for cannot be read: the target keeps what it has of it, and below it
)

// Flags say more of an inode record.
type Flags uint8

// The flags of an inode record.
const (
	FlagNew     Flags = 1 << iota // the inode is made, unless it has been
	FlagPlaced                    // it is made as Dir and Name say, not aside
	FlagGoesOn                    // its content goes on where a transfer was interrupted
	FlagCompare                   // what follows of its content is for the target to compare: digests, and holes
	FlagSuspect                   // its content may be another though its size and its times are the target's
)

// Bounds of what a record can hold, in bytes, as Linux has them.
const (
	MaxName       = 255
	MaxSymlink    = 4095
	MaxXattrValue = 64 << 10
	MaxData       = 256 << 10
	// MaxDigest is the most content that one digest is of.
	MaxDigest = 128 << 10
	// maxXattrs bounds all extended attributes of an inode, so that its record fits a frame.
	maxXattrs = MaxRaw - 64<<10
	// mostXattrs is how many that can be: each has a name, and takes the room of two lengths.
	mostXattrs = maxXattrs / (1 + 2*binary.MaxVarintLen32)
	// maxRecordHead is more than a record takes besides names, values and content.
	maxRecordHead = 256
)

// ErrRecord is wrapped by every error about bytes that are not a sound record, or a record that cannot be
// carried.
var ErrRecord = errors.New("bad record")

// Record is one record; which fields it uses depends on its kind. A decoded record's byte slices belong to
// the frame that it was read from.
type Record struct {
	Kind    Kind
	Flags   Flags
	Ident   journal.Ident
	Dir     journal.Ident
	Name    []byte
	Attr    journal.Attr // but Nlink and Ctime
	Xattrs  []journal.Xattr
	Symlink []byte
	Off     int64
	Len     int64  // of a hole, or of what a digest is of
	Data    []byte // of data, or the digest
}

const (
	typeMask    = 0o170000 // S_IFMT
	typeSymlink = 0o120000 // S_IFLNK
)

// Size bounds what Append adds for r, in bytes.
func (r *Record) Size() int {
	n := maxRecordHead + len(r.Name) + len(r.Symlink) + len(r.Data)
	for _, x := range r.Xattrs {
		n += len(x.Name) + len(x.Value) + 2*binary.MaxVarintLen32
	}
	return n
}

// Append encodes r. Content can also be read straight into a frame: see AppendData.
func (r *Record) Append(b []byte) ([]byte, error) {
	if err := r.check(); err != nil {
		return b, err
	}
	b = append(b, byte(r.Kind))
	switch r.Kind {
	case KindInode:
		b = r.appendInode(b)
	case KindData:
		b = binary.AppendUvarint(b, uint64(r.Off))
		b = binary.BigEndian.AppendUint32(b, uint32(len(r.Data)))
		b = append(b, r.Data...)
	case KindHole:
		b = binary.AppendUvarint(b, uint64(r.Off))
		b = binary.AppendUvarint(b, uint64(r.Len))
	case KindAttach, KindKeep:
		b = appendBytes(appendIdent(b, r.Dir), r.Name)
		b = appendIdent(b, r.Ident)
	case KindDetach:
		b = appendBytes(appendIdent(b, r.Dir), r.Name)
	case KindDigest:
		b = binary.AppendUvarint(b, uint64(r.Off))
		b = binary.AppendUvarint(b, uint64(r.Len))
		b = append(b, r.Data...)
	}
	return b, nil
}

func (r *Record) appendInode(b []byte) []byte {
	b = append(b, byte(r.Flags))
	b = appendIdent(b, r.Ident)
	for _, v := range []uint64{uint64(r.Attr.Mode), uint64(r.Attr.UID), uint64(r.Attr.GID), r.Attr.Rdev, uint64(r.Attr.Size)} {
		b = binary.AppendUvarint(b, v)
	}
	b = appendTime(appendTime(b, r.Attr.Atime), r.Attr.Mtime)
	b = binary.AppendUvarint(b, uint64(len(r.Xattrs)))
	for _, x := range r.Xattrs {
		b = binary.AppendUvarint(b, uint64(len(x.Name)))
		b = append(b, x.Name...)
		b = appendBytes(b, x.Value)
	}
	if r.Attr.Mode&typeMask == typeSymlink && r.Flags&FlagNew != 0 {
		b = appendBytes(b, r.Symlink)
	}
	if r.Flags&FlagPlaced != 0 {
		b = appendBytes(appendIdent(b, r.Dir), r.Name)
	}
	return b
}

func appendIdent(b []byte, id journal.Ident) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(b, id.Ino), id.Gen)
}

func appendTime(b []byte, t journal.Time) []byte {
	return binary.AppendUvarint(binary.AppendVarint(b, t.Sec), uint64(t.Nsec))
}

func appendBytes(b, s []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// dataHead is the kind, the longest offset and the length.
const dataHead = 1 + binary.MaxVarintLen64 + 4

// DataRoom bounds what AppendData adds besides the content, in bytes.
const DataRoom = dataHead

// AppendData adds a data record whose content read puts straight into b, which must have the room for
// DataRoom and want bytes more. read gives how much there was; nothing makes no record.
func AppendData(b []byte, off int64, want int, read func([]byte) (int, error)) ([]byte, int, error) {
	start := len(b)
	b = append(b, byte(KindData))
	b = binary.AppendUvarint(b, uint64(off))
	at := len(b)
	b = b[:at+4+want]
	n, err := read(b[at+4:])
	if err != nil || n == 0 {
		return b[:start], 0, err
	}
	binary.BigEndian.PutUint32(b[at:], uint32(n))
	return b[:at+4+n], n, nil
}

// check refuses what the wire does not carry.
func (r *Record) check() error {
	switch r.Kind {
	case KindInode:
		return r.checkInode()
	case KindData:
		if len(r.Data) == 0 || len(r.Data) > MaxData || r.Off < 0 || r.Off+int64(len(r.Data)) < 0 {
			return fmt.Errorf("%w: %d bytes of data at %d", ErrRecord, len(r.Data), r.Off)
		}
	case KindHole:
		if r.Off < 0 || r.Len <= 0 || r.Off+r.Len < 0 {
			return fmt.Errorf("%w: a hole of %d at %d", ErrRecord, r.Len, r.Off)
		}
	case KindDigest:
		if r.Off < 0 || r.Len <= 0 || r.Len > MaxDigest || r.Off+r.Len < 0 || len(r.Data) != sha256.Size {
			return fmt.Errorf("%w: a digest of %d at %d in %d bytes", ErrRecord, r.Len, r.Off, len(r.Data))
		}
	case KindAsk:
	case KindAttach, KindDetach, KindKeep:
		if r.Kind != KindDetach && r.Ident.IsZero() || r.Dir.IsZero() {
			return fmt.Errorf("%w: no identity", ErrRecord)
		}
		return checkName(r.Name)
	default:
		return fmt.Errorf("%w: unknown kind %d", ErrRecord, r.Kind)
	}
	return nil
}

func (r *Record) checkInode() error {
	a := &r.Attr
	if r.Ident.IsZero() || a.Size < 0 || a.Atime.Nsec >= 1e9 || a.Mtime.Nsec >= 1e9 || r.Flags&^(FlagNew|FlagPlaced|FlagGoesOn|FlagCompare|FlagSuspect) != 0 {
		return fmt.Errorf("%w: inode %s is not sound", ErrRecord, r.Ident)
	}
	if a.Mode&typeMask == typeSymlink && r.Flags&FlagNew != 0 && (len(r.Symlink) == 0 || len(r.Symlink) > MaxSymlink) {
		return fmt.Errorf("%w: inode %s has a link target of %d bytes", ErrRecord, r.Ident, len(r.Symlink))
	}
	all := 0
	for _, x := range r.Xattrs {
		if len(x.Name) == 0 || len(x.Name) > MaxName || strings.IndexByte(x.Name, 0) >= 0 || len(x.Value) > MaxXattrValue {
			return fmt.Errorf("%w: inode %s has an extended attribute with a name of %d and a value of %d bytes", ErrRecord, r.Ident, len(x.Name), len(x.Value))
		}
		all += len(x.Name) + len(x.Value) + 2*binary.MaxVarintLen32
	}
	if all > maxXattrs {
		return fmt.Errorf("%w: the extended attributes of inode %s take %d bytes, %d can be carried", ErrRecord, r.Ident, all, maxXattrs)
	}
	if r.Flags&FlagPlaced == 0 {
		return nil
	}
	if r.Dir.IsZero() {
		return fmt.Errorf("%w: inode %s is placed nowhere", ErrRecord, r.Ident)
	}
	return checkName(r.Name)
}

func checkName(name []byte) error {
	if len(name) == 0 || len(name) > MaxName || string(name) == "." || string(name) == ".." {
		return fmt.Errorf("%w: %q is not a name", ErrRecord, name[:min(len(name), MaxName)])
	}
	for _, c := range name {
		if c == 0 || c == '/' {
			return fmt.Errorf("%w: %q is not a name", ErrRecord, name)
		}
	}
	return nil
}
