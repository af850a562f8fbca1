package replicator

import (
	"errors"
	"fmt"
	"time"

	"tandemfs/journal"
	"tandemfs/replicator/wire"
)

// meeting is what the two ends of a relationship know when they meet.
type meeting struct {
	volume    string        // the source volume's identity
	forgotten journal.Epoch // its journal knows nothing of epochs up to this one
	memory    sourceMemory
	there     wire.Position
	compares  bool // the target's version can compare
}

// verdict is what follows from a meeting.
type verdict uint8

const (
	inAgreement  verdict = iota // the next transfer goes on, or builds on the recovery point
	otherVolume                 // the target's recovery point is of another volume: a person has to decide
	committed                   // the pending transfer was committed, which was not heard of here
	putBack                     // the source was put back to an earlier state: a person has to decide
	comparing                   // the next transfer compares already
	comparingNew                // the same, with a seal of its own instead of the pending one
	notTheSame                  // the two do not remember the same: the next transfer compares
	holdsFiles                  // the target's volume had files before: the next transfer compares
	otherBase                   // the pending transfer does not build on what the target has
)

// verdict says what follows (rule A5).
func (m meeting) verdict() verdict {
	has, pending := journal.Epoch(m.there.Epoch), m.memory.Pending
	switch {
	case has != 0 && m.there.SourceID != m.volume:
		return otherVolume
	case pending != nil && has == pending.Epoch && m.there.Time.Equal(pending.Time):
		return committed
	case m.isAhead(has):
		return putBack
	case pending != nil && pending.Compare != nil, m.memory.Compare != nil && pending == nil:
		return comparing
	case m.memory.Compare != nil:
		return comparingNew
	case m.memory.Compared != nil && m.there.Reached != 0 && m.there.Reached == uint64(m.memory.Reached):
		if pending != nil && pending.Base != m.memory.Reached { // whatever the recovery point is: the two were compared since
			return otherBase
		}
	case has != m.memory.Epoch, has != 0 && (has < m.forgotten || !m.there.Time.Equal(m.memory.Time)):
		return notTheSame
	case has == 0 && m.there.Holds && m.there.Reached == 0 && !m.goesOn() && m.compares:
		return holdsFiles
	case pending != nil && pending.Base != baseOf(m.there):
		return otherBase
	}
	return inAgreement
}

// isAhead reports whether the target's recovery point, or what was sent to it since, is of a history that this end has
// not seen, and nobody has decided what is to become of it. What there is without a recovery point is sent anew anyway.
func (m meeting) isAhead(has journal.Epoch) bool {
	if c := m.memory.comparing(); c != nil && (c.Asked || c.Unsure) {
		return has != 0 && !c.explains(m.there.Time)
	}
	return has != 0 && max(has, journal.Epoch(m.there.Begun)) > max(m.memory.Epoch, m.memory.Given)
}

// goesOn reports whether the target is in the middle of the transfer that is pending.
func (m meeting) goesOn() bool {
	p, c := m.memory.Pending, m.there.Cursor
	return p != nil && c != nil && c.Base == uint64(p.Base) && c.Epoch == uint64(p.Epoch)
}

// baseOf gives the seal that the next transfer builds on: what the target has reached, or else its recovery point.
func baseOf(there wire.Position) journal.Epoch {
	if there.Reached != 0 {
		return journal.Epoch(there.Reached)
	}
	return journal.Epoch(there.Epoch)
}

// agree brings together what this end and the target remember. Where they do not fit the next transfer compares,
// or a person has to decide.
func (s *sourceSession) agree() error {
	m := meeting{volume: s.origin.vol.ID(), forgotten: s.origin.vol.Journal().Forgotten(), there: s.pos,
		compares: s.conn.Peer().Can(wire.FeatureCompare)}
	s.r.mu.Lock()
	m.memory = s.r.source.memory
	s.r.mu.Unlock()
	switch m.verdict() {
	case otherVolume:
		return failure{errors.New("the target's recovery point is of another volume; delete the relationship and create it anew, with --allow-non-empty on the target")}
	case committed:
		return s.origin.confirm(s.r)
	case putBack:
		return failure{fmt.Errorf("the target, whose recovery point is of %s, has a later state of this volume than the volume itself: it was put back to an earlier state. To make the target what the source is now: tandemfs relationship reconcile %s", s.pos.Time.Local().Format(time.DateTime), s.r.id)}
	case comparing:
		return s.canCompare()
	case comparingNew:
		return errors.Join(s.canCompare(), s.origin.drop(s.r))
	case notTheSame:
		return s.compare(reasonTarget)
	case holdsFiles:
		return s.compare(reasonHolds)
	case otherBase:
		return s.origin.drop(s.r)
	}
	return nil
}

// compare makes the next transfer compare everything.
func (s *sourceSession) compare(reason string) error {
	if err := s.canCompare(); err != nil {
		return err
	}
	s.m.log.Warn("the next transfer compares both sides", "relationship", s.r.id, "reason", reason)
	return errors.Join(s.origin.drop(s.r), s.origin.compare(s.r, comparison{Reason: reason, All: true}, true))
}

// canCompare fails where the target is of a version that cannot compare.
func (s *sourceSession) canCompare() error {
	if s.conn.Peer().Can(wire.FeatureCompare) {
		return nil
	}
	return failure{errors.New("both sides have to be compared, which the target's version of tandemfs cannot do: upgrade the target")}
}
