package replicator

import "time"

// Role says which end of a relationship a node is.
type Role string

// The two ends.
const (
	RoleSource Role = "source"
	RoleTarget Role = "target"
)

// State is where a relationship stands, the same word on both ends.
type State string

// The states of a relationship.
const (
	StateAwaitingAuthorization State = "awaiting-authorization"
	StateEstablished           State = "established"
	StateEnded                 State = "ended" // EndReason says why; only delete is left to do
)

// Mode says what is replicated.
type Mode string

// ModeContinuous replicates every change as soon as the last transfer is done.
const ModeContinuous Mode = "continuous"

// JobState says what the relationship is doing.
type JobState string

// The states of a relationship's job.
const (
	JobIdle         JobState = "idle"         // all that is known to have changed is on the target
	JobRunning      JobState = "running"      // a transfer is under way
	JobDisconnected JobState = "disconnected" // the peer cannot be reached; RetryAt says when it is tried again
	JobWaiting      JobState = "waiting"      // for authorization
	JobDisabled     JobState = "disabled"
	JobNoSpace      JobState = "no-space" // a disk is full, LastError says whose; it goes on by itself when there is room
	JobFailed       JobState = "failed"   // the last try failed for a reason that is not the network; it is tried again
)

// End describes one side of a relationship, as either side knows it.
type End struct {
	Node        string `json:"node"`        // the node's name
	Fingerprint string `json:"fingerprint"` // of its certificate: "SHA256:" and base64
	Address     string `json:"address,omitempty"`
	Volume      string `json:"volume"`
	Path        string `json:"path,omitempty"`
	ReadOnly    bool   `json:"read_only"`
}

// Count is how much of something a transfer has done. Remaining is Total - Transferred - Unchanged.
type Count struct {
	Transferred int64 `json:"transferred"`
	Unchanged   int64 `json:"unchanged"`
	Remaining   int64 `json:"remaining"`
	Total       int64 `json:"total"`
}

// Progress is how far the running transfer is, or how the last one ended.
type Progress struct {
	First bool `json:"first"` // the first transfer of the relationship
	// Comparing says why the transfer, or the next one, compares both sides, on the source; empty where none does.
	Comparing       string    `json:"comparing,omitempty"`
	Started         time.Time `json:"started,omitzero"`
	RunSeconds      float64   `json:"run_seconds"`
	PercentComplete float64   `json:"percent_complete"`
	ETASeconds      *float64  `json:"eta_seconds"` // null when it cannot be told
	Files           Count     `json:"files"`
	Bytes           Count     `json:"bytes"` // of content
	WireBytes       int64     `json:"wire_bytes"`
	// Throughput in bytes of content per second: over the whole run, and over the last few seconds.
	ThroughputOverall float64 `json:"throughput_overall"`
	ThroughputCurrent float64 `json:"throughput_current"`
}

// RecoveryPoint is the newest seal of the source that the target holds whole.
type RecoveryPoint struct {
	Epoch uint64    `json:"epoch"` // the source's number for it; 0: none yet
	Time  time.Time `json:"time,omitzero"`
	// BehindSeconds is the age of the oldest change that the target does not have, 0 when it has all;
	// BehindBytes is how much content changed since. Null where this end cannot know (a target that is cut off).
	BehindSeconds *float64 `json:"behind_seconds"`
	BehindBytes   *int64   `json:"behind_bytes"`
}

// Unreadable is what the source cannot read: without it there is no recovery point.
type Unreadable struct {
	Count int              `json:"count"` // of inodes
	Files []UnreadableFile `json:"files"` // the first 20 of them
}

// UnreadableFile is an inode that cannot be read. Path is below the volume's root, empty where it cannot be told.
type UnreadableFile struct {
	Path  string `json:"path,omitempty"`
	Inode uint64 `json:"inode"`
	Error string `json:"error"`
}

// Status is a relationship as one end sees it.
type Status struct {
	ID            string        `json:"id"`
	Role          Role          `json:"role"`
	State         State         `json:"state"`
	EndReason     string        `json:"end_reason,omitempty"`
	Mode          Mode          `json:"mode"`
	Enabled       bool          `json:"enabled"`
	Source        End           `json:"source"`
	Target        End           `json:"target"`
	Job           JobState      `json:"job"`
	Progress      Progress      `json:"progress"`
	RecoveryPoint RecoveryPoint `json:"recovery_point"`
	// TotalWireBytes counts what this end has sent and received for the relationship since the node started.
	TotalWireBytes int64     `json:"total_wire_bytes"`
	Transfers      int64     `json:"transfers"` // committed since the node started
	LastError      string    `json:"last_error,omitempty"`
	LastErrorTime  time.Time `json:"last_error_time,omitzero"`
	RetryAt        time.Time `json:"retry_at,omitzero"`
	// Unreadable is, on the source, what could not be read at the last try; null: nothing.
	Unreadable *Unreadable `json:"unreadable,omitempty"`
	Created    time.Time   `json:"created"`
	// Verified is the newest recovery point that was found equal on both sides; it is known on the source.
	Verified VerifiedPoint `json:"verified,omitzero"`
	// Verification is the one that runs, or the last one since the node started, without what it found.
	Verification *Verification `json:"verification,omitempty"`
}

// VerifiedPoint is a recovery point that was found equal on both sides.
type VerifiedPoint struct {
	Epoch uint64    `json:"epoch"`
	Time  time.Time `json:"time"` // of the seal
}
