// Package acl makes POSIX access control lists in the form that the kernel takes them in the extended
// attributes system.posix_acl_access and system.posix_acl_default.
package acl

import "encoding/binary"

// The names of the extended attributes that hold ACLs.
const (
	Access  = "system.posix_acl_access"
	Default = "system.posix_acl_default"
)

// The tags of entries, in the order in which a list must hold them.
const (
	UserObj  = 0x01
	User     = 0x02
	GroupObj = 0x04
	Group    = 0x08
	Mask     = 0x10
	Other    = 0x20
)

// An Entry gives permissions (r is 4, w is 2, x is 1) to the user or group that ID names; ID counts for
// the tags User and Group only.
type Entry struct {
	Tag  uint16
	Perm uint16
	ID   uint32
}

// Encode gives the list's bytes: a version, then for each entry its tag, its permissions and its id,
// little endian.
func Encode(entries []Entry) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		id := e.ID
		if e.Tag != User && e.Tag != Group {
			id = ^uint32(0)
		}
		b = binary.LittleEndian.AppendUint16(b, e.Tag)
		b = binary.LittleEndian.AppendUint16(b, e.Perm)
		b = binary.LittleEndian.AppendUint32(b, id)
	}
	return b
}

// Minimal is a list with one named user and one named group besides the owner's entries.
func Minimal(user, group uint32, perm uint16) []byte {
	return Encode([]Entry{
		{Tag: UserObj, Perm: 7}, {Tag: User, Perm: perm, ID: user},
		{Tag: GroupObj, Perm: 5}, {Tag: Group, Perm: perm, ID: group},
		{Tag: Mask, Perm: 7}, {Tag: Other, Perm: 4},
	})
}
