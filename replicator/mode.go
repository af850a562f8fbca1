package replicator

import "tandemfs/journal"

// The types of inodes as st_mode has them on Linux.
const (
	typeMask    = 0o170000
	typeRegular = 0o100000
	typeDir     = 0o040000
	typeSymlink = 0o120000
)

func isDir(a journal.Attr) bool     { return a.Mode&typeMask == typeDir }
func isRegular(a journal.Attr) bool { return a.Mode&typeMask == typeRegular }
func isSymlink(a journal.Attr) bool { return a.Mode&typeMask == typeSymlink }
