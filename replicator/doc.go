// Package replicator keeps a volume on one node a copy of a volume on another.
//
// It guarantees, in the words of the design's rules: a recovery point is published on the target only when
// every record of the stream has arrived in order, the stream's digest matches, everything is durable, and
// the recovery point before was the one that the stream was computed from (A3, A5); the source's journal
// forgets a record only after every relationship of the volume has confirmed a recovery point that covers it
// (A4); no error of the target is skipped, no file of the source that cannot be read is left out silently.
// What a crash or a cut leaves half done is gone on with, or done over, and then ends the same.
//
// A relationship has two ends. The source's end runs a job (source.go) that seals the volume, plans what to
// send (plan.go), sends it (send.go) and waits for the commit. The target's end (target.go) receives, applies
// (apply.go) and commits. What either has to remember across restarts stands in three places: the
// relationship itself in a file (store.go), what belongs to a volume's epochs in the volume's journal
// (durable.go), the identity map there too. Package wire is how the two ends speak.
package replicator
