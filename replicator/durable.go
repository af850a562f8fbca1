package replicator

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"tandemfs/journal"
	"tandemfs/replicator/wire"
)

// What either end remembers in its volume's journal, as JSON under a key that names the relationship. It
// survives the death of the process when it is set, and a power cut from the next Sync of the journal on.

// sourceMemory is the source's.
type sourceMemory struct {
	// Epoch is the newest seal that the target has confirmed, and when it was made. 0: none.
	Epoch journal.Epoch `json:"epoch"`
	Time  time.Time     `json:"time"`
	// Pending is the transfer that was begun: its view is held until it is confirmed or given up.
	Pending *pendingTransfer `json:"pending,omitempty"`
	// Compare says that the next transfer compares.
	Compare *comparison `json:"compare,omitempty"`
}

// comparison is why a transfer compares, and of which files it compares the content whatever their times say.
type comparison struct {
	Reason   string          `json:"reason"`
	All      bool            `json:"all,omitempty"`
	Suspects []journal.Ident `json:"suspects,omitempty"`
}

// mostSuspects is how many files are remembered each; more are all.
const mostSuspects = 4096

// and gives what both are for; either may be nil.
func (c *comparison) and(o *comparison) *comparison {
	switch {
	case c == nil:
		return o
	case o == nil:
		return c
	}
	both := &comparison{Reason: o.Reason, All: c.All || o.All}
	if both.All || len(c.Suspects)+len(o.Suspects) > mostSuspects {
		both.All = true
		return both
	}
	both.Suspects = slices.Concat(c.Suspects, o.Suspects)
	return both
}

// suspects gives what tells the files of which the content is compared.
func (c *comparison) suspects() func(journal.Ident) bool {
	set := make(map[journal.Ident]struct{}, len(c.Suspects))
	for _, id := range c.Suspects {
		set[id] = struct{}{}
	}
	return func(id journal.Ident) bool {
		_, in := set[id]
		return c.All || in
	}
}

// pendingTransfer is a transfer from the seal Base to the seal Epoch.
type pendingTransfer struct {
	Base  journal.Epoch `json:"base"`
	Epoch journal.Epoch `json:"epoch"`
	Time  time.Time     `json:"time"` // of the seal
	// Compare: it compares, whatever the target has.
	Compare *comparison `json:"compare,omitempty"`
}

// targetMemory is the target's.
type targetMemory struct {
	SourceID string        `json:"source_id,omitempty"` // the volume that Epoch counts
	Epoch    uint64        `json:"epoch"`               // the recovery point; 0: none yet
	Time     time.Time     `json:"time"`                // of its seal on the source
	Own      journal.Epoch `json:"own"`                 // the target volume's own epoch of it
	// Dirty says that something of a transfer was applied that is not committed; Cursor, how far it came,
	// where it can be gone on with.
	Dirty  bool         `json:"dirty,omitempty"`
	Cursor *wire.Cursor `json:"cursor,omitempty"`
}

func sourceKey(id string) string { return "replicator/" + id + "/source" }
func targetKey(id string) string { return "replicator/" + id + "/target" }

// recall reads what was remembered under key into to; nothing leaves it as it is.
func recall(j *journal.Journal, key string, to any) error {
	b, err := j.State(key)
	if err != nil || b == nil {
		return err
	}
	if err := json.Unmarshal(b, to); err != nil {
		return fmt.Errorf("what the journal remembers as %s: %w", key, err)
	}
	return nil
}

// remember writes what recall reads.
func remember(j *journal.Journal, key string, what any) error {
	b, err := json.Marshal(what)
	if err != nil {
		return err
	}
	return j.SetState(key, b)
}
