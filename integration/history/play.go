package history

import (
	"fmt"
	"slices"
	"strings"
)

// Play draws n operations and performs them on one directory.
func Play(s *Side, g *Generator, n int) {
	for range n {
		op := g.Next()
		g.Learn(op, s.Run(op))
	}
}

// remembered is how many operations before a difference are looked through for those that led to it.
const remembered = 400

// A Lockstep plays one history on two directories.
type Lockstep struct {
	A, B      *Side
	Generator *Generator

	done    int
	history []string
	counts  map[string][2]int // successes and failures, by kind
}

// Play performs n further operations on both sides. It returns an error at the first that ends otherwise
// on one side than on the other: with the seed, the operation, both outcomes, and what went before on the
// same paths and slots.
func (l *Lockstep) Play(n int) error {
	for range n {
		op := l.Generator.Next()
		a, b := l.A.Run(op), l.B.Run(op)
		l.count(op, a)
		if a != b {
			return fmt.Errorf("seed %d, operation %d: %s\n  %s: %s\n  %s: %s\nbefore it:\n%s", l.Generator.Seed, l.done, op,
				l.A.dir, a, l.B.dir, b, strings.Join(l.related(op), "\n"))
		}
		l.history = append(l.history, fmt.Sprintf("  %d: %s\n      %s", l.done, op, a))
		if len(l.history) > 2*remembered {
			l.history = slices.Clone(l.history[remembered:])
		}
		l.Generator.Learn(op, a)
		l.done++
	}
	return nil
}

func (l *Lockstep) count(op *Op, o Outcome) {
	if l.counts == nil {
		l.counts = make(map[string][2]int)
	}
	c := l.counts[op.Kind()]
	if o.Errno == 0 {
		c[0]++
	} else {
		c[1]++
	}
	l.counts[op.Kind()] = c
}

// Counts tells how many operations of each kind have succeeded and failed.
func (l *Lockstep) Counts() map[string][2]int { return l.counts }

// related are the last remembered operations that name a path or slot of op.
func (l *Lockstep) related(op *Op) []string {
	var marks []string
	for _, p := range []string{op.Path, op.Path2} {
		if p != "" && p != "." {
			marks = append(marks, fmt.Sprintf("%q", p))
		}
	}
	for _, slot := range []int{op.Slot, op.Slot2} {
		if slot > 0 {
			marks = append(marks, fmt.Sprintf("slot=%d ", slot), fmt.Sprintf("slot2=%d ", slot))
		}
	}
	var found []string
	for _, line := range l.history {
		if slices.ContainsFunc(marks, func(m string) bool { return strings.Contains(line, m) }) {
			found = append(found, line)
		}
	}
	return found[max(0, len(found)-25):]
}
