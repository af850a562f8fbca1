package wire

import (
	"encoding/json"
	"fmt"
	"time"
)

// Messages are JSON, so that a later version can add fields: what a reader does not know it ignores.
// maxMessage bounds one, in bytes.
const maxMessage = 32 << 10

// Propose asks for a relationship; the target answers with a Decision, and with another when a person has
// decided.
type Propose struct {
	ID           string `json:"id"`
	VolumeID     string `json:"volume_id"` // the source volume's
	Volume       string `json:"volume"`
	Path         string `json:"path"`
	TargetVolume string `json:"target_volume"`
	Disabled     bool   `json:"disabled,omitempty"`
}

// Verdict is what a target says of a relationship.
type Verdict string

// The verdicts.
const (
	VerdictAwaiting    Verdict = "awaiting-authorization"
	VerdictEstablished Verdict = "established"
	VerdictEnded       Verdict = "ended"    // for good; Reason says why
	VerdictConflict    Verdict = "conflict" // as things stand; Reason says why
)

// Decision answers Propose and, where there is nothing to attach to, Attach.
type Decision struct {
	Verdict Verdict `json:"verdict"`
	Reason  string  `json:"reason,omitempty"`
}

// Attach goes on with an established relationship; the target answers with its Position.
type Attach struct {
	ID       string `json:"id"`
	VolumeID string `json:"volume_id"`
	Volume   string `json:"volume"`
	Path     string `json:"path"`
}

// Position says what the target has.
type Position struct {
	VolumeID string `json:"volume_id"` // the target volume's own
	Path     string `json:"path"`
	ReadOnly bool   `json:"read_only"`
	// Epoch is the recovery point, of the volume SourceID; 0 before the first.
	SourceID string    `json:"source_id,omitempty"`
	Epoch    uint64    `json:"epoch"`
	Time     time.Time `json:"time,omitzero"`
	// Dirty says that a transfer was begun and not committed; Cursor, that it can go on.
	Dirty  bool    `json:"dirty,omitempty"`
	Cursor *Cursor `json:"cursor,omitempty"`
	// Holds says that there are files in the volume, though there is no recovery point.
	Holds bool `json:"holds,omitempty"`
	// Reached is a later seal that was applied but for what the source could not read; 0: none.
	Reached uint64 `json:"reached,omitempty"`
	// Begun is the newest seal of which a transfer was begun since the recovery point; 0: none.
	Begun uint64 `json:"begun,omitempty"`
}

// Cursor is a place in the stream of one transfer: so many whole items (every record but data and hole
// is one), and how far the content of the next one has come.
type Cursor struct {
	Base   uint64 `json:"base"`
	Epoch  uint64 `json:"epoch"`
	Over   bool   `json:"over,omitempty"`
	Items  int64  `json:"items"`
	Offset int64  `json:"offset,omitempty"`
	// Chain identifies the items before the cursor: see ChainItem.
	Chain uint64 `json:"chain"`
	// Files and Bytes are what has been transferred so far, for the progress.
	Files int64 `json:"files,omitempty"`
	Bytes int64 `json:"bytes,omitempty"`
}

// Begin starts a transfer, at the given cursor, from the seal Base, which the target must hold, to the seal Epoch.
// With Compare it builds on nothing but what the target finds: all inodes and names of the source follow, and of
// their content what the target then asks for.
type Begin struct {
	Compare bool      `json:"compare,omitempty"`
	Cursor  Cursor    `json:"cursor"` // Items 0 but when it goes on
	Time    time.Time `json:"time"`   // of the seal
	// RootIno and RootGen are the root directory's identity on the source.
	RootIno uint64 `json:"root_ino"`
	RootGen uint64 `json:"root_gen"`
	// Files and Bytes are the estimated totals.
	Files int64 `json:"files"`
	Bytes int64 `json:"bytes"`
}

// End ends a transfer's records. Digest is the SHA-256 over the content of all records frames since Begin, in hex.
type End struct {
	Items  int64  `json:"items"`
	Chain  uint64 `json:"chain"`
	Digest string `json:"digest"`
}

// Incomplete ends a transfer's records as End does, but something was left out that the source cannot read, as Text
// says. The target keeps the rest for a later transfer to build on, publishes nothing, and answers with its Position.
type Incomplete struct {
	End
	Text string `json:"text"`
}

// Committed says that the target holds the seal, durably.
type Committed struct {
	Epoch uint64 `json:"epoch"`
	Files int64  `json:"files"`
	Bytes int64  `json:"bytes"`
	// SameFiles and SameBytes are what the transfer has found to be there already.
	SameFiles int64 `json:"same_files,omitempty"`
	SameBytes int64 `json:"same_bytes,omitempty"`
}

// Class says what kind of error ended a transfer.
type Class string

// The classes of errors.
const (
	ClassNoSpace    Class = "no-space"
	ClassIO         Class = "io"
	ClassDivergence Class = "divergence" // the stream does not fit what the target has
	ClassRefused    Class = "refused"    // the target will not do that as things stand
	ClassInternal   Class = "internal"
)

// Failed says that the sender of it cannot go on with the transfer.
type Failed struct {
	Class Class  `json:"class"`
	Text  string `json:"text"`
}

// Progress is sent about once a second while connected: by the source how far behind the target is and how
// much there is to transfer in all, as soon as it has counted that; by the target how much it has applied.
type Progress struct {
	TotalFiles    int64   `json:"total_files,omitempty"`
	TotalBytes    int64   `json:"total_bytes,omitempty"`
	BehindSeconds float64 `json:"behind_seconds,omitempty"`
	BehindBytes   int64   `json:"behind_bytes,omitempty"`
	Items         int64   `json:"items,omitempty"`
	Files         int64   `json:"files,omitempty"`
	Bytes         int64   `json:"bytes,omitempty"`
	// SameFiles and SameBytes are what a transfer that compares has found to be equal.
	SameFiles int64 `json:"same_files,omitempty"`
	SameBytes int64 `json:"same_bytes,omitempty"`
}

// Want is what a target asks for that compares. Done says that all is asked for that the records before the
// last Ask gave reason to.
type Want struct {
	Files []WantFile `json:"files,omitempty"`
	Done  bool       `json:"done,omitempty"`
}

// WantFile asks for a regular file: its attributes and, with Compare, digests of all its content, otherwise the
// content of Extents, each an offset and the offset of its end.
type WantFile struct {
	Ino     uint64     `json:"ino"`
	Gen     uint64     `json:"gen"`
	Compare bool       `json:"compare,omitempty"`
	Extents [][2]int64 `json:"extents,omitempty"`
}

// What a Want message can hold, so that it fits a frame.
const (
	MaxWantFiles   = 200
	MaxWantExtents = 200 // in all files together
)

// Verify asks to compare the recovery point Epoch, over a connection of its own; the target, if that is what it
// holds, answers with its Position. Then come Begin with Compare and what goes with it; nothing is changed.
type Verify struct {
	ID       string `json:"id"`
	VolumeID string `json:"volume_id"`
	Epoch    uint64 `json:"epoch"`
}

// Differ tells of differences that the target has found.
type Differ struct {
	Found []Difference `json:"found"`
}

// Difference is one that was found: its kind, the path below the volume's root, and the source's inode where
// its content differs.
type Difference struct {
	Kind string `json:"kind"`
	Path string `json:"path"`
	Ino  uint64 `json:"ino,omitempty"`
	Gen  uint64 `json:"gen,omitempty"`
}

// What a Differ message can hold, so that it fits a frame: differences, and bytes of a path, the end of a longer one.
const (
	MaxDiffer     = 5
	MaxDifferPath = 1000
)

// Verified ends a comparison: how many inodes and bytes of content were compared, and the count of all differences,
// those among them that were not told.
type Verified struct {
	Files       int64 `json:"files"`
	Bytes       int64 `json:"bytes"`
	Differences int64 `json:"differences"`
}

// Bye ends something: the connection, because the source was disabled, or the relationship.
type Bye struct {
	ID     string `json:"id"`
	Ended  bool   `json:"ended"` // the relationship, for good
	Reason string `json:"reason,omitempty"`
}

// Parse decodes a message's content into to, a pointer to the struct that its type names.
func Parse(content []byte, to any) error {
	if len(content) > maxMessage {
		return fmt.Errorf("%w: a message of %d bytes", ErrFrame, len(content))
	}
	if err := json.Unmarshal(content, to); err != nil {
		return fmt.Errorf("%w: %w", ErrFrame, err)
	}
	return nil
}
