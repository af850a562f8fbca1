package replicator

import (
	"math/rand/v2"
	"time"
)

// The pauses between two tries: they double from the shortest to the longest.
const (
	shortestPause = 100 * time.Millisecond
	longestPause  = 30 * time.Second
	// longestFull is the longest while a disk is full: its owner waits for the transfer to go on. Until there is room
	// a try costs an answer.
	longestFull = 5 * time.Second
)

// backoff grows the pauses between failures. The zero value starts with the shortest.
type backoff struct {
	failures int
	least    time.Duration // of the next pause
}

// next gives the pause after one more failure. Up to half of it is taken away at random, so that many
// nodes that lost the same peer do not come back all at once.
func (b *backoff) next() time.Duration {
	pause := longestPause
	if b.failures < 20 {
		pause = min(longestPause, shortestPause<<b.failures)
	}
	b.failures++
	pause = max(pause-rand.N(pause/2), b.least)
	b.least = 0
	return pause
}

// atLeast makes the next pause no shorter.
func (b *backoff) atLeast(d time.Duration) { b.least = d }

// reset is for after a success.
func (b *backoff) reset() { b.failures = 0 }
