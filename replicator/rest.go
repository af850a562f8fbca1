package replicator

import "time"

// A transfer makes the target's disk durable and takes processors from those who write. So while changes
// keep coming a job rests between two transfers: a short while where little changes at a time, so that
// the copy stays close, and longer where much does, so that more of it goes at once.
const (
	restFactor  = 8 // times as long as the transfer took, at the most
	leastRest   = 20 * time.Millisecond
	restPerFile = time.Millisecond
	restPerMiB  = 16 * time.Millisecond
	longestRest = time.Second
)

// restAfter is how long to rest after a transfer that took so long and carried so much.
func restAfter(took time.Duration, done work) time.Duration {
	worth := longestRest
	if done.files < 1000 && done.bytes < 1<<30 {
		worth = leastRest + time.Duration(done.files)*restPerFile + time.Duration(done.bytes>>20)*restPerMiB
	}
	return min(restFactor*took, worth, longestRest)
}
