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
	// Given is the newest seal that a transfer was ever begun to: a target that has a later one has it of another
	// history.
	Given journal.Epoch `json:"given,omitempty"`
	// Pending is the transfer that was begun: its view is held until it is confirmed or given up.
	Pending *pendingTransfer `json:"pending,omitempty"`
	// Compare says that the next transfer compares.
	Compare *comparison `json:"compare,omitempty"`
	// Reached is a later seal that the target has, unpublished, but for what is Lacking, by identity: the next
	// transfer builds on it. 0: none.
	Reached journal.Epoch `json:"reached,omitempty"`
	Lacking []lacking     `json:"lacking,omitempty"`
	// Compared is why a transfer on the way to Reached compared: who loses Reached has to compare again.
	Compared *comparison `json:"compared,omitempty"`
}

// comparing gives the comparison that is under way, or is next.
func (m *sourceMemory) comparing() *comparison {
	if m.Pending != nil && m.Pending.Compare != nil {
		return m.Pending.Compare
	}
	if m.Compare != nil {
		return m.Compare
	}
	return m.Compared
}

// comparison is why a transfer compares, and of which files it compares the content whatever their times say:
// of all; or of some, of those with a change time from Since on, and of those that the journal knows to have changed
// since Base, if that is the target's recovery point, or since Reached, which the target had unpublished. If its
// recovery point is another, of all.
type comparison struct {
	Reason   string          `json:"reason"`
	All      bool            `json:"all,omitempty"`
	Suspects []journal.Ident `json:"suspects,omitempty"`
	Since    time.Time       `json:"since,omitzero"`
	Base     journal.Epoch   `json:"base,omitempty"`
	Reached  journal.Epoch   `json:"reached,omitempty"`
	// Asked: somebody has decided that the target becomes what the source is.
	Asked bool `json:"asked,omitempty"`
	// Unsure: the source may have lost what it knew, from the time Lost on; zero: all of it, or nobody knows since when.
	Unsure bool      `json:"unsure,omitempty"`
	Lost   time.Time `json:"lost,omitzero"`
}

// lostWithin is more than passes between a change and the time when it is known to be on the disk (see the
// journal's Active), whatever the disk takes.
const lostWithin = 15 * time.Minute

// reached gives the seal since which content has to be compared that has changed; 0: since the recovery point.
func (c *comparison) reached() journal.Epoch {
	if c == nil {
		return 0
	}
	return c.Reached
}

// explains reports whether the loss of power explains that the target has a recovery point of that time. One that is
// much newer was made by a history that this end does not have: it was put back to an earlier state.
func (c *comparison) explains(point time.Time) bool {
	return c.Asked || c.Unsure && (c.Lost.IsZero() || !point.After(c.Lost.Add(lostWithin)))
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
	both := &comparison{Reason: o.Reason, Asked: c.Asked || o.Asked, Unsure: c.Unsure || o.Unsure, Lost: earliest(c.Lost, o.Lost)}
	reached := min(c.Reached, o.Reached)
	if c.All || o.All || c.Base != o.Base || c.Base == 0 && reached == 0 || len(c.Suspects)+len(o.Suspects) > mostSuspects {
		both.All = true
		return both
	}
	both.Base, both.Reached, both.Since, both.Suspects = c.Base, reached, earliest(c.Since, o.Since), slices.Concat(c.Suspects, o.Suspects)
	return both
}

// suspects gives what tells the files of which the content is compared. changes are those since Base, nil where
// they are not known.
func (c *comparison) suspects(changes *journal.Changes) func(journal.Ident, journal.Attr) (bool, error) {
	doubt := journal.Activity{All: c.All || changes == nil, Since: c.Since, Inodes: make(map[journal.Ident]struct{}, len(c.Suspects))}
	for _, id := range c.Suspects {
		doubt.Inodes[id] = struct{}{}
	}
	if c.Since.IsZero() {
		doubt.Since = time.Unix(1<<60, 0)
	}
	return func(id journal.Ident, attr journal.Attr) (bool, error) {
		if doubt.Doubts(id, attr.Ctime) {
			return true, nil
		}
		change, _, err := changes.Inode(id)
		return change.What&(journal.Data|journal.Created) != 0, err // of what is new the target may have an earlier form
	}
}

// pendingTransfer is a transfer from the seal Base to the seal Epoch.
type pendingTransfer struct {
	Base  journal.Epoch `json:"base"`
	Epoch journal.Epoch `json:"epoch"`
	Time  time.Time     `json:"time"` // of the seal
	// Compare: it compares, whatever the target has.
	Compare *comparison `json:"compare,omitempty"`
	// Lacking is what this transfer has left out so far.
	Lacking []lacking `json:"lacking,omitempty"`
}

// targetMemory is the target's.
type targetMemory struct {
	SourceID string        `json:"source_id,omitempty"` // the volume that Epoch counts
	Epoch    uint64        `json:"epoch"`               // the recovery point; 0: none yet
	Time     time.Time     `json:"time"`                // of its seal on the source
	Own      journal.Epoch `json:"own"`                 // the target volume's own epoch of it
	// Reached is a later seal that was applied, but for something that the source could not read. It is not
	// published; the next transfer builds on it. 0: none.
	Reached uint64 `json:"reached,omitempty"`
	// Begun is the newest seal of which a transfer was begun since the recovery point.
	Begun uint64 `json:"begun,omitempty"`
	// Dirty says that something of a transfer was applied that is neither committed nor reached; Cursor, how far
	// it came, where it can be gone on with.
	Dirty  bool         `json:"dirty,omitempty"`
	Cursor *wire.Cursor `json:"cursor,omitempty"`
}

// base is the seal that the next transfer builds on.
func (m *targetMemory) base() uint64 {
	if m.Reached != 0 {
		return m.Reached
	}
	return m.Epoch
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
