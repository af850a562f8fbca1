package replicator

import (
	"testing"
	"time"

	"tandemfs/replicator/wire"
)

func TestWhatFollowsWhenTheEndsMeet(t *testing.T) {
	day := func(n int) time.Time { return time.Date(2026, 11, n, 12, 0, 0, 0, time.UTC) }
	there := func(epoch uint64, at time.Time) wire.Position {
		return wire.Position{SourceID: "v", Epoch: epoch, Time: at}
	}
	held := sourceMemory{Epoch: 5, Time: day(5), Given: 9}
	with := func(m sourceMemory, how func(*sourceMemory)) sourceMemory {
		how(&m)
		return m
	}
	pending := with(held, func(m *sourceMemory) { m.Pending = &pendingTransfer{Base: 5, Epoch: 9, Time: day(9)} })
	compare := with(held, func(m *sourceMemory) { m.Compare = &comparison{Reason: reasonAsked, All: true} })
	lost := sourceMemory{Given: 9, Compare: &comparison{Reason: reasonPower, All: true, Unsure: true, Lost: day(5)}}
	for name, c := range map[string]struct {
		meeting
		want verdict
	}{
		"nothing was sent yet":                      {meeting{}, inAgreement},
		"both remember the same":                    {meeting{memory: held, there: there(5, day(5))}, inAgreement},
		"in the middle of a transfer":               {meeting{memory: pending, there: there(5, day(5))}, inAgreement},
		"a recovery point of another volume":        {meeting{memory: held, there: wire.Position{SourceID: "w", Epoch: 5, Time: day(5)}}, otherVolume},
		"the commit was not heard of":               {meeting{memory: pending, there: there(9, day(9))}, committed},
		"another history has a seal of that number": {meeting{memory: pending, there: there(9, day(8))}, notTheSame},
		"a seal that was never given":               {meeting{memory: held, there: there(10, day(10))}, putBack},
		"a seal that was given and given up":        {meeting{memory: held, there: there(8, day(8))}, notTheSame},
		"an older recovery point":                   {meeting{memory: held, there: there(4, day(4))}, notTheSame},
		"none at all":                               {meeting{memory: held, there: wire.Position{}}, notTheSame},
		"the same number at another time":           {meeting{memory: held, there: there(5, day(6))}, notTheSame},
		"what came after it is forgotten":           {meeting{memory: held, there: there(5, day(5)), forgotten: 6}, notTheSame},
		"that, and a verification has found differences": {meeting{memory: with(held, func(m *sourceMemory) {
			m.Compare = &comparison{Reason: reasonRepair, Base: 5}
		}), there: there(10, day(10))}, putBack},
		"that, while both are compared": {meeting{memory: with(held, func(m *sourceMemory) {
			m.Pending = &pendingTransfer{Epoch: 9, Time: day(9), Compare: &comparison{Reason: reasonAround}}
		}), there: there(10, day(10))}, putBack},
		"power was lost": {meeting{memory: lost, there: there(12, day(5))}, comparing},
		"power was lost, and the target is far ahead": {meeting{memory: lost, there: there(12, day(7))}, putBack},
		"that, and somebody has decided": {meeting{memory: with(lost, func(m *sourceMemory) {
			m.Compare = &comparison{Reason: reasonAsked, All: true, Asked: true, Unsure: true, Lost: day(5)}
		}), there: there(12, day(7))}, comparing},
		"somebody asked for a comparison": {meeting{memory: compare, there: there(5, day(5))}, comparing},
		"that, in the middle of a transfer": {meeting{memory: with(compare, func(m *sourceMemory) {
			m.Pending = pending.Pending
		}), there: there(5, day(5))}, comparingNew},
		"a comparison is under way": {meeting{memory: with(held, func(m *sourceMemory) {
			m.Pending = &pendingTransfer{Epoch: 9, Time: day(9), Compare: compare.Compare}
		}), there: there(5, day(5))}, comparing},
		"a target that has files":            {meeting{there: wire.Position{Holds: true}, compares: true}, holdsFiles},
		"that, which cannot compare":         {meeting{there: wire.Position{Holds: true}}, inAgreement},
		"that, which an earlier try brought": {meeting{there: wire.Position{Holds: true, Reached: 3}, compares: true, memory: sourceMemory{Reached: 3}}, inAgreement},
		"that, in the middle of the first transfer": {meeting{compares: true, there: wire.Position{Holds: true, Cursor: &wire.Cursor{Epoch: 3, Items: 7}},
			memory: sourceMemory{Pending: &pendingTransfer{Epoch: 3}}}, inAgreement},
		"the target has reached more than the pending transfer builds on": {meeting{memory: pending,
			there: wire.Position{SourceID: "v", Epoch: 5, Time: day(5), Reached: 7}}, otherBase},
	} {
		c.volume = "v"
		if got := c.verdict(); got != c.want {
			t.Errorf("%s: verdict %d, want %d", name, got, c.want)
		}
	}
}
