package daemon

import (
	"errors"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"tandemfs/fs/volume"
	"tandemfs/snapshotd"
)

// janitor deletes snapshots that have expired, and has what nobody needs dropped. One goroutine uses it.
type janitor struct {
	volumes *registry
	tend    func(volume string) error // the manager's: what no relationship needs goes
	now     func() time.Time
	log     *slog.Logger
	expiry  *sync.Mutex        // the node's: a snapshot whose expiry was put off is not deleted after that
	failed  map[expired]string // what could not be deleted last time, and why
}

// expired is a snapshot that is over.
type expired struct{ volume, snapshot string }

// startJanitor tidies at once and then again and again until the node stops.
func (n *node) startJanitor(every time.Duration) {
	j := &janitor{volumes: n.volumes, tend: n.manager.Tend, now: n.now, log: n.log, expiry: &n.expiry}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		j.run(every, quit)
	}()
	n.later(func() error {
		close(quit)
		<-done
		return nil
	})
}

func (j *janitor) run(every time.Duration, quit <-chan struct{}) {
	ticks := time.NewTicker(every)
	defer ticks.Stop()
	for {
		j.tidy()
		select {
		case <-quit:
			return
		case <-ticks.C:
		}
	}
}

// tidy goes once through all volumes that are mounted. A failure is logged when it is new, not every time.
func (j *janitor) tidy() {
	failed := map[expired]string{}
	for _, e := range j.volumes.all() {
		v, done, up := e.useIfUp()
		if !up {
			continue
		}
		j.tidyVolume(v, failed)
		done()
		if err := j.tend(v.Name()); err != nil {
			j.log.Debug("volume not tended", "volume", v.Name(), "error", err) // it was taken down meanwhile
		}
	}
	j.failed = failed
}

// tidyVolume deletes what has expired of a volume, and notes what could not be.
func (j *janitor) tidyVolume(v Volume, failed map[expired]string) {
	j.expiry.Lock()
	defer j.expiry.Unlock()
	for _, name := range snapshotd.Expired(expiries(v.Snapshots()), j.now()) {
		it := expired{v.Name(), name}
		if err := j.delete(v, it); err != nil {
			failed[it] = err.Error()
		}
	}
}

// delete deletes a snapshot; somebody else may have done so meanwhile.
func (j *janitor) delete(v Volume, it expired) error {
	err := v.DeleteSnapshot(it.snapshot)
	switch {
	case err == nil:
		j.log.Info("expired snapshot deleted", "volume", it.volume, "snapshot", it.snapshot)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case j.failed[it] != err.Error():
		j.log.Error("expired snapshot cannot be deleted", "volume", it.volume, "snapshot", it.snapshot, "error", err)
	}
	return err
}

// expiries is the part of a list of snapshots that snapshotd looks at.
func expiries(list []volume.Snapshot) []snapshotd.Snapshot {
	short := make([]snapshotd.Snapshot, len(list))
	for i, s := range list {
		short[i] = snapshotd.Snapshot{Name: s.Name, Expires: s.Expires}
	}
	return short
}
