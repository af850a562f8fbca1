package volume

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// drops is what is known of writes that the filesystem could not bring to the disk. It tells whoever syncs it next,
// and nobody after that, and goes on with what it has in memory: so each of those here who need to know is told from
// this.
type drops struct {
	syncing sync.Mutex  // held during a sync, so that what it is told is known before another one begins
	applied atomic.Bool // since applied was asked last
	ever    atomic.Bool // since the volume was opened
}

var errDropped = errors.New("the filesystem could not write some of what was written to it")

// sync makes everything durable.
func (v *Volume) sync() error {
	v.drops.syncing.Lock()
	defer v.drops.syncing.Unlock()
	err := v.backing.SyncFilesystem()
	if err != nil {
		v.drops.applied.Store(true)
		v.drops.ever.Store(true)
		err = fmt.Errorf("%w: %w", errDropped, err)
	}
	return err
}

// syncApplied makes what a transfer, a restore or a thaw has written durable. It fails also where something was dropped
// since the last time, which somebody else was told of: all that was written since then is to be written again.
func (v *Volume) syncApplied() error {
	err := v.sync()
	if v.drops.applied.Swap(false) && err == nil {
		err = errDropped
	}
	return err
}

// syncRecorded makes what the journal's records are about durable. Once something was dropped it always fails: nobody
// knows which inodes may have another content after a power cut, so the journal must take none off its list.
func (v *Volume) syncRecorded() error {
	err := v.sync()
	if err == nil && v.drops.ever.Load() {
		err = fmt.Errorf("%w, so that the list of what is being changed is kept until the machine was started anew", errDropped)
	}
	return err
}
