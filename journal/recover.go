package journal

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
)

var logFiles = [2]string{"intent-a.log", "intent-b.log"}

// openLogs opens both logs and replays what the store does not have, so that the journal goes on where it
// was: in the same epoch, with one generation frozen and one active when that was so.
func (j *Journal) openLogs(sameBoot bool) error {
	var logs [2]*intentLog
	for i, name := range logFiles {
		log, err := openLog(filepath.Join(j.dir, name), j.options.logSize)
		if err != nil {
			if i > 0 {
				logs[0].close()
			}
			return err
		}
		logs[i] = log
	}
	if logs[0].generation > logs[1].generation {
		logs[0], logs[1] = logs[1], logs[0]
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if sameBoot && j.died {
		if err := classify(j.checkLogs(logs[0], logs[1])); err != nil {
			return errors.Join(err, logs[0].close(), logs[1].close())
		}
	}
	if err := j.useLogs(logs[0], logs[1]); err != nil {
		return err
	}
	if !sameBoot {
		if err := j.clearTails(); err != nil {
			return err
		}
	}
	return syncPath(j.dir)
}

// clearTails has the logs end where they were found to end after a power cut, which may have taken a generation that
// was begun, too.
func (j *Journal) clearTails() error {
	for _, g := range j.generations() {
		var err error
		if g == j.active {
			err = g.log.unswitch()
		}
		if err = errors.Join(err, g.log.clearTail()); err != nil {
			return err
		}
	}
	return nil
}

// useLogs takes the logs into use, the older one first, and replays them.
func (j *Journal) useLogs(older, newer *intentLog) error {
	absorbed := j.state.absorbed
	switch {
	case newer.generation <= absorbed: // nothing to replay
		j.active, j.spare = newGeneration(older), newer
		if err := older.begin(absorbed + 1); err != nil {
			return err
		}
	case older.generation <= absorbed:
		j.active, j.spare = newGeneration(newer), older
	default:
		j.active = newGeneration(older)
		err := j.replay()
		j.frozen, j.active = j.active, newGeneration(newer)
		if err != nil {
			return err
		}
	}
	err := j.replay()
	for n := range j.state.held {
		j.state.held[n] = 1 // those who held it are gone; the user releases what it does not want
	}
	if err != nil {
		return err
	}
	j.dropUseless()
	j.signalAnew()
	return nil
}

// signalAnew makes Changed tell of the current epoch alone, whatever the replay came through.
func (j *Journal) signalAnew() {
	select {
	case <-j.changed:
	default:
	}
	if j.state.totals[j.state.epoch] != nil {
		j.signal()
	}
}

// replay applies the records of the active log to the index. All of them are applied as they were the
// first time: what the store or the frozen generation has already is found there, and the first touch wins.
func (j *Journal) replay() error {
	return j.active.log.replay(func(payload []byte) error {
		r, err := decodeRecord(payload)
		if err != nil {
			return classify(err)
		}
		r.image = slices.Clone(r.image) // the payload is the log's own memory
		if err := j.loadFor(&r); err != nil {
			return fmt.Errorf("replay: %w", err)
		}
		j.apply(&r)
		return nil
	})
}

// loadFor brings into the active generation what older records say of what r is about.
func (j *Journal) loadFor(r *record) error {
	switch r.kind {
	case recordInode, recordRemoved:
		if j.active.inode(r.epoch, r.ident) == nil {
			return j.loadInode(r.epoch, r.ident)
		}
	case recordName:
		_, err := j.loadName(r.epoch, nameKey{r.ident, r.name})
		return err
	}
	return nil
}
