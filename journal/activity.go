package journal

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"tandemfs/journal/crashpoint"
)

// After a power cut the records of the last moments may be missing, while content that was overwritten in place
// reached the disk, or its inode's new times did and the content did not: then neither a record nor the inode
// tells that the content is another than a peer has. What is needed to find such files is kept by the journal,
// durably, and ahead of the change (rule A2):
//
//   - A time, since: all that was changed before it is on the disk, content, attributes and names.
//   - The activity list: inodes whose content was changed after that. An inode is in it before its content
//     changes, unless it was made after that time: then its change time tells.
//
// So an inode that is not in the list, and whose change time on the disk is before since, has the content that
// it had then, and nothing of it was lost.
//
// Time is cut into rounds. A checkpoint begins one: no operation reaches over its beginning. Then all that was
// changed is made durable (Options.Settle), and then the inodes are taken off the list whose content was not
// changed in the new round, and the time of its beginning becomes since. So a file that is written all the time
// costs a write of the list once, not once in each round.
//
// Where many files are overwritten one after the other the list says "everything" instead, until a checkpoint
// finds that it can name what was changed since its beginning: so such a load does not wait for the disk at each
// file. What is on the disk is always as much as what is in memory or more.
const (
	// maxActiveRate is how many inodes are put on the list in a second before it says "everything".
	maxActiveRate = 64
	// checkpointEvery is the time from one checkpoint to the next, checkpointSoon where the list says "everything",
	// and checkpointIdle while nothing changes: so that since tells about when a machine was last alive.
	checkpointEvery = 30 * time.Second
	checkpointIdle  = 5 * time.Minute
	checkpointSoon  = 10 * time.Second
	checkpointTick  = time.Second
	// clockGrain is more than the kernel's time stamps lag behind the clock.
	clockGrain = 100 * time.Millisecond
	// epochStep is how many epochs are reserved at a time: what a power cut makes the journal skip. lostStep is
	// skipped when it is not known how many were.
	epochStep   = 1 << 20
	epochMargin = 1 << 10
	lostStep    = 1 << 32
)

// Activity is what was being changed when power was lost.
type Activity struct {
	All    bool      // it is not known what
	Since  time.Time // what was changed before was on the disk
	Inodes map[Ident]struct{}
}

// Doubts reports whether the content of an inode may be another than that which it is remembered with, though
// its size and its times are the same. changed is its change time (ctime).
func (a Activity) Doubts(id Ident, changed Time) bool {
	if _, listed := a.Inodes[id]; listed || a.All {
		return true
	}
	return !time.Unix(changed.Sec, int64(changed.Nsec)).Before(a.Since)
}

// activity is the list. Its mu is taken after the journal's, and is not held while the disk is waited for.
type activity struct {
	file *os.File

	mu       sync.Mutex
	wrote    *sync.Cond // on mu: a write of the file ended
	writing  bool
	version  uint64 // of what is below
	durable  uint64 // the version that the file has
	sequence uint64 // of the file's newest slot

	reserved Epoch
	since    time.Time
	inodes   map[Ident]listed
	all      bool
	allFrom  uint64    // the version from which all is true
	missed   uint64    // the last round in which an inode was changed that there was no room for
	left     *Activity // of a power cut that is not reconciled yet; nil: none
	unsure   bool      // something may never reach the disk, in this boot, though nobody will say so again
	second   time.Time // for maxActiveRate
	added    int

	quit   chan struct{}
	done   sync.WaitGroup
	ending sync.Once
}

// listed is an inode of the list.
type listed struct {
	round   uint64 // in which its content was changed last
	version uint64 // the first that has it
}

func newActivity() *activity {
	a := &activity{inodes: map[Ident]listed{}, quit: make(chan struct{})}
	a.wrote = sync.NewCond(&a.mu)
	return a
}

// An activityFound says how the list that an earlier process left is to be taken.
type activityFound struct {
	kept    bool // it was kept by programs that know of it
	settled bool // all that was changed is on the disk, by a clean close or since the machine was started anew
	unclean bool // power was lost, and that is not reconciled
}

// open reads what an earlier process left. It gives the epoch that no seal was given from.
func (a *activity) open(dir string, how activityFound) (Epoch, error) {
	f, l, err := openActive(dir)
	if err != nil {
		return 0, err
	}
	if !how.kept {
		l = activeList{sequence: l.sequence, all: true}
	}
	a.file, a.sequence, a.reserved = f, l.sequence, l.reserved
	inodes := map[Ident]struct{}{}
	for _, id := range l.inodes {
		inodes[id] = struct{}{}
	}
	if how.unclean {
		a.left = &Activity{All: l.all, Since: l.since, Inodes: inodes}
	}
	if how.settled {
		a.since = stamp()
		return l.reserved, nil
	}
	a.since, a.all, a.unsure = l.since, l.all, l.unsure
	for id := range inodes {
		a.inodes[id] = listed{}
	}
	return l.reserved, nil
}

// stamp is a time that what changes from now on is not stamped before.
func stamp() time.Time { return time.Now().Add(-clockGrain).Round(0) }

// close ends the list's use.
func (a *activity) close() error {
	if a.file == nil {
		return nil
	}
	return a.file.Close()
}

// note makes sure that the list names an inode whose content is about to change, in this round, before it
// returns.
func (a *activity) note(id Ident, round uint64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	l, ok := a.inodes[id]
	if !ok {
		l.version = a.add()
	}
	if ok || len(a.inodes) < maxActive {
		a.inodes[id] = listed{max(l.round, round), l.version} // the word of an earlier round may come late
	} else {
		a.missed = max(a.missed, round)
	}
	return a.await(l.version)
}

// add gives the version that has an inode which is about to be added, or makes up for its absence.
func (a *activity) add() uint64 {
	room := len(a.inodes) < maxActive
	switch {
	case a.all:
		return a.allFrom
	case a.left != nil && a.left.All:
		a.all, a.allFrom = !room, 0
		return 0
	}
	a.version++
	if !room || a.hurry() {
		a.all, a.allFrom = true, a.version
	}
	return a.version
}

// hurry reports whether inodes are added so fast that nobody should wait for each.
func (a *activity) hurry() bool {
	if now := time.Now(); now.Sub(a.second) >= time.Second {
		a.second, a.added = now, 0
	}
	a.added++
	return a.added > maxActiveRate
}

// await waits until the file has a version. Of those who wait one writes for all. mu is held, and dropped
// meanwhile.
func (a *activity) await(version uint64) error {
	for a.durable < version {
		if a.writing {
			a.wrote.Wait()
			continue
		}
		if err := a.write(); err != nil {
			return err
		}
	}
	return nil
}

// write brings the file up to date. mu is held, and dropped meanwhile. When it fails the slot is written again
// by the next one: the other has the list as it was.
func (a *activity) write() error {
	l := a.list()
	version := a.version
	a.writing = true
	a.mu.Unlock()
	err := writeAt(a.file, l.encode(), int64(l.sequence%2)*activeSlot)
	if err == nil {
		err = fdatasync(a.file)
	}
	crashpoint.Here("journal/active-written")
	a.mu.Lock()
	a.writing = false
	if err == nil {
		a.durable, a.sequence = version, l.sequence
	}
	a.wrote.Broadcast()
	if err != nil {
		return fmt.Errorf("activity list: %w", err)
	}
	return nil
}

// list gives what the file is to hold next.
func (a *activity) list() activeList {
	l := activeList{sequence: a.sequence + 1, reserved: a.reserved, since: a.since, all: a.all, unsure: a.unsure}
	for id := range a.inodes {
		l.inodes = append(l.inodes, id)
	}
	if a.left == nil {
		return l
	}
	l.all = l.all || a.left.All
	if a.left.Since.Before(l.since) {
		l.since = a.left.Since
	}
	for id := range a.left.Inodes {
		if _, ok := a.inodes[id]; !ok {
			l.inodes = append(l.inodes, id)
		}
	}
	if len(l.inodes) > maxActive {
		l.all, l.inodes = true, l.inodes[:maxActive]
	}
	return l
}

// begin is for the beginning of a round. While the file says "everything" there is no need to know what it
// stands for, but room is needed for the inodes of the new round.
func (a *activity) begin() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.all {
		clear(a.inodes)
	}
}

// settled is for when all that was changed before a round is on the disk.
func (a *activity) settled(round uint64, since time.Time) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, l := range a.inodes {
		if l.round < round {
			delete(a.inodes, id)
		}
	}
	if !a.unsure {
		a.since, a.all = since, a.all && a.missed >= round
	}
	a.version++
	return a.await(a.version)
}

// fail is for when something could not be made durable: from now on the list says "everything", since ever.
func (a *activity) fail() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.unsure {
		a.version++
		a.unsure, a.since, a.all, a.allFrom = true, time.Time{}, true, a.version
	}
	return a.await(a.allFrom)
}

// failed reports whether something could not be made durable.
func (a *activity) failed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.unsure
}

// reserve makes sure that seals up to some after n can be given.
func (a *activity) reserve(n Epoch) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n+epochMargin < a.reserved {
		return nil
	}
	a.reserved = n + epochStep
	a.version++
	return a.await(a.version)
}

// store writes the list as it is after open; twice where the file had nothing, so that both slots are sound.
func (a *activity) store() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for first := a.sequence == 0; ; first = false {
		a.version++
		if err := a.await(a.version); err != nil || !first {
			return err
		}
	}
}

// Announce makes it durable that the content of an inode is about to be changed, where that has to be (rule
// A2). It is called before Enter, so that no seal waits for the disk; without it TouchData does the same.
func (j *Journal) Announce(id Ident) error {
	j.mu.Lock()
	round := j.round
	noted := j.noted(id)
	j.mu.Unlock()
	if noted {
		return nil
	}
	return j.activity.note(id, round)
}

// noted reports whether an inode was put on the list in this round, or made, as far as that is in memory.
func (j *Journal) noted(id Ident) bool {
	for _, g := range [...]*generation{j.active, j.frozen} {
		if g == nil {
			continue
		}
		epochs := g.touched[id]
		for _, n := range epochs[max(0, len(epochs)-2):] {
			if e := g.inode(n, id); e != nil && e.round == j.round {
				return true
			}
		}
	}
	return false
}

// announced is Announce inside an operation, after the record of the change. The round cannot change meanwhile.
// mu is held, and dropped where the disk is waited for.
func (j *Journal) announced(id Ident) error {
	if !j.noted(id) {
		round := j.round
		j.mu.Unlock()
		err := j.activity.note(id, round)
		j.mu.Lock()
		if err != nil {
			return err
		}
	}
	if e := j.active.inode(j.state.epoch, id); e != nil {
		e.round = j.round
	}
	return nil
}

// checkpoint makes all that was changed durable and takes off the list what need not be on it any more.
func (j *Journal) checkpoint() error {
	round, since := j.beginRound()
	crashpoint.Here("journal/checkpoint-begun")
	if err := errors.Join(j.settle(), j.Sync()); err != nil {
		return err
	}
	return j.activity.settled(round, since)
}

// settle is Options.Settle.
func (j *Journal) settle() error { return j.unsure(j.options.Settle()) }

// unsure takes note of an error of something that was to be made durable. The kernel tells of what it could not write
// once, and a second try succeeds without it. Nothing is wrong before power is lost; but then everything is in doubt.
func (j *Journal) unsure(err error) error {
	if err == nil {
		return nil
	}
	return errors.Join(err, j.activity.fail())
}

// beginRound begins a round, between two operations.
func (j *Journal) beginRound() (round uint64, since time.Time) {
	j.gate.Lock()
	defer j.gate.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.round++
	j.activity.begin()
	return j.round, stamp()
}

// start has checkpoints made, until stop.
func (a *activity) start(j *Journal) {
	a.done.Go(func() {
		tick := time.NewTicker(checkpointTick)
		defer tick.Stop()
		var last time.Time
		alive := time.Now() // the last checkpoint, or the start
		operations := uint64(0)
		for {
			select {
			case <-a.quit:
				return
			case <-tick.C:
			}
			now := j.Operations()
			if !a.due(time.Since(last), now != operations) && time.Since(alive) < checkpointIdle {
				continue
			}
			if err := j.checkpoint(); err != nil {
				j.options.Logger.Warn("journal: cannot make a checkpoint, trying again", "dir", j.dir, "error", err)
			}
			last, operations = time.Now(), now
			alive = last
		}
	})
}

// due reports whether a checkpoint is to be made, so long after the last one.
func (a *activity) due(after time.Duration, busy bool) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	putBack := time.Now().Round(0).Before(a.since) // the clock: what changes now would seem to be older
	return putBack || a.all && !a.unsure && after >= checkpointSoon || busy && after >= checkpointEvery
}

// stop ends the checkpoints.
func (a *activity) stop() {
	a.ending.Do(func() { close(a.quit) })
	a.done.Wait()
}

// Active tells what was being changed when power was lost, until that is reconciled: nothing while Clean is true.
func (j *Journal) Active() Activity {
	a := j.activity
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.left == nil {
		return Activity{Since: a.since}
	}
	return *a.left
}

// Reconciled says that what a power cut made doubtful was found and dealt with: from now on the journal is
// trusted again, after a restart too.
func (j *Journal) Reconciled() error {
	if j.Clean() {
		return nil
	}
	if err := j.Sync(); err != nil {
		return err
	}
	j.marking.Lock()
	defer j.marking.Unlock()
	if j.Clean() {
		return nil
	}
	if err := j.usable(); err != nil {
		return err
	}
	m := j.mark
	m.Lost = false
	if err := writeMark(j.dir, m); err != nil {
		return err
	}
	j.mark = m
	j.clean.Store(true)
	a := j.activity
	a.mu.Lock()
	defer a.mu.Unlock()
	a.left = nil
	a.version++
	return a.await(a.version)
}

// usable gives why no record can be written any more.
func (j *Journal) usable() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.failed
}
