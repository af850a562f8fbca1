package replicator

import (
	"tandemfs/journal"
	"time"
)

// Volume is what replication needs of one protected directory, on either side. Package fs/volume
// implements it; tests use a tree in memory. All methods may be called concurrently.
type Volume interface {
	// Name is what people call the volume on this node; Path is the directory that it protects.
	Name() string
	Path() string
	// ID is the volume's own, made once, the same for as long as its journal exists.
	ID() string
	// Root is the identity of the volume's root directory.
	Root() journal.Ident
	// Journal is the volume's journal: what was touched, in which epoch.
	Journal() *journal.Journal

	Source
	Target
}

// Source is the reading side of a volume.
type Source interface {
	// Seal ends the current epoch and returns a view of the volume at that instant. The caller closes it.
	Seal() (View, error)
	// View opens the view of an earlier seal that the journal still holds.
	View(journal.Epoch) (View, error)
	// ReleaseUnclaimed lets go of the seals that an earlier process held and that View was not called for.
	ReleaseUnclaimed()
	// NamesInDoubt is not zero when names were changed that the journal does not have: what is sent by its records
	// may leave names on the target that are gone. The content of what was changed from a moment on is in doubt with
	// them; zero: none. NamesSettled says that a comparison is seen to, with the number from before; what came into
	// doubt since then stays.
	NamesInDoubt() (uint64, time.Time)
	NamesSettled(uint64) error
	// Usage gives the inodes and bytes in use on the backing filesystem below the volume as far as they are
	// known without reading it all: a hint for the progress of a first transfer, not an exact figure.
	Usage() (inodes, bytes int64)
}

// View is a volume as it was at one seal. Reading it neither stops writers nor waits for them. What did
// not exist at the seal gives fs.ErrNotExist. Methods may be called concurrently.
type View interface {
	Epoch() journal.Epoch
	Stat(journal.Ident) (journal.Attr, error)
	// Lookup gives the inode that a name stood for, or the zero Ident where there was none.
	Lookup(dir journal.Ident, name string) (journal.Ident, error)
	// ReadDir gives all names of a directory, sorted, without "." and "..".
	ReadDir(dir journal.Ident) ([]DirEntry, error)
	Readlink(journal.Ident) (string, error)
	// PathOf gives a path of the inode below the root, slash-separated and empty for the root itself, where one is
	// known without looking for it.
	PathOf(journal.Ident) (path string, ok bool)
	// Xattrs gives the extended attributes, sorted by name.
	Xattrs(journal.Ident) ([]journal.Xattr, error)
	// Open opens a regular file's content.
	Open(journal.Ident) (File, error)
	Close() error
}

// DirEntry is one name of a directory.
type DirEntry struct {
	Name  string
	Ident journal.Ident
	Err   error // why what the name stands for cannot be read: then Ident may be journal.Unknown
}

// File is a regular file's content in a View.
type File interface {
	// ReadAt is io.ReaderAt; what lies past the file's end reads as io.EOF.
	ReadAt(p []byte, off int64) (int, error)
	// NextData gives the first stretch of data at or after off and before end, as the filesystem reports
	// holes (SEEK_DATA, SEEK_HOLE). ok is false when only a hole is left.
	NextData(off, end int64) (e journal.Extent, ok bool, err error)
	Close() error
}

// Target is the applying side of a volume. While a volume is a target only the applier changes it. Every
// method can be called again after a crash with the same arguments and then changes nothing more.
type Target interface {
	// SetReadOnly makes the mount refuse every write with EROFS, or accept writes again, at once.
	SetReadOnly(bool) error
	// IsEmpty reports whether the root directory has no names.
	IsEmpty() (bool, error)
	// Create makes an inode of the type that mode names (S_IFREG, S_IFDIR, S_IFLNK, S_IFIFO, S_IFSOCK,
	// S_IFCHR, S_IFBLK), owned by root and closed to others until SetImage. With a zero dir it is made
	// aside, with no name in the tree, for Place; otherwise as dir/name, and whatever an earlier, lost try
	// left under that name is removed.
	Create(c Creation) (journal.Ident, error)
	// Exists reports whether the inode is still there, under a name or aside.
	Exists(journal.Ident) (bool, error)
	// OpenForApply opens a regular file's content for writing.
	OpenForApply(journal.Ident) (ApplyFile, error)
	// SetImage gives an inode all of an attribute set: owner, mode, times, extended attributes (those not
	// listed are removed), and for a regular file its size. Nlink, Rdev and Ctime are not settable.
	SetImage(journal.Ident, journal.Image) error
	// MoveAside takes the name away; the inode lives on, aside, until DropAside. A name that is not there
	// is no error.
	MoveAside(dir journal.Ident, name string) error
	// Place gives an inode a name: a directory moves there from aside, or from where it is; anything else
	// moves from aside or is linked. What stood there under another identity is moved aside first.
	Place(id, dir journal.Ident, name string) error
	// DropAside removes what is still aside and calls gone for every inode that has no name left.
	DropAside(gone func(journal.Ident) error) error
	// Commit makes all that was applied durable and seals it: the epoch returned is the target's own
	// number for this recovery point.
	Commit() (journal.Epoch, error)
	// Room gives an error that wraps syscall.ENOSPC where the filesystem has too little room for a transfer.
	Room() error
	// Freeze makes readers go on seeing what they see now, whatever is applied, until Publish or Thaw.
	Freeze() error
	// Publish makes readers see a seal that Commit gave: all of it, at once. One that is not newer than what
	// they see changes nothing.
	Publish(journal.Epoch) error
	// Thaw undoes what was applied since the seal that readers see, and ends Freeze.
	Thaw() error
}

// Creation describes an inode for Target.Create.
type Creation struct {
	Mode    uint32
	Rdev    uint64
	Symlink string        // the link's target, for S_IFLNK
	Dir     journal.Ident // zero: aside
	Name    string
}

// ApplyFile is a regular file that a transfer writes to.
type ApplyFile interface {
	WriteAt(p []byte, off int64) (int, error)
	// Punch makes the range a hole without changing the size.
	Punch(journal.Extent) error
	Truncate(size int64) error
	Close() error
}
