package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"tandemfs/cmd/api"
	"tandemfs/fs/volume"
	"tandemfs/journal/crashpoint"
)

// retryPause is how long a volume that failed is left alone before the next who asks has it tried again.
const retryPause = time.Second

// entry is one volume of the registry: what is kept of it, and what of it is running.
type entry struct {
	registry *registry
	log      *slog.Logger
	record   record // under registry.mu; only ReadOnly and ID ever change

	// mu is held for as long as the volume is being opened, switched or taken down. It is taken before
	// registry.mu, never after.
	mu      sync.Mutex
	volume  Volume // nil while not open
	mount   Mount  // nil while not mounted
	failure error  // why one of them is nil
	tried   time.Time
	removed bool

	// users are calls on the volume that outlast the hold of mu. They begin with mu held, so that whoever
	// holds it can wait for the last.
	users sync.WaitGroup
}

// bringUp opens and mounts what is not open or not mounted. Called with mu held.
func (e *entry) bringUp(create bool) error {
	e.tried = time.Now()
	e.failure = e.tryUp(create)
	if e.failure != nil {
		e.log.Error("volume cannot be used", "error", e.failure)
	}
	return e.failure
}

func (e *entry) tryUp(create bool) error {
	if err := e.registry.checkOpen(); err != nil {
		return err
	}
	kept := e.registry.recordOf(e)
	if err := e.open(kept, create); err != nil {
		return err
	}
	if err := e.mountVolume(kept); err != nil {
		return errors.Join(err, e.discard(create))
	}
	return nil
}

// open opens the volume, below whatever dead mount an earlier run has left over it.
func (e *entry) open(kept record, create bool) error {
	cleaned, err := e.registry.backend.CleanStale(kept.Mount)
	if err != nil {
		return fmt.Errorf("a dead mount at %s cannot be taken away: %w", kept.Mount, err)
	}
	if cleaned {
		e.log.Warn("a dead mount was taken away", "mount", kept.Mount)
	}
	if e.volume != nil {
		return nil
	}
	v, err := e.registry.backend.Open(kept.Name, kept.Path, kept.ID, create)
	if err != nil {
		return err
	}
	e.volume = v
	if err := e.registry.keepID(e, v.ID()); err != nil {
		return errors.Join(err, e.discard(create))
	}
	return nil
}

// rebuild has a volume that cannot be opened begin a new journal.
func (e *entry) rebuild() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.removed:
		return e.registry.noVolume(e.record.Name)
	case e.volume != nil:
		return api.Errorf(api.CodeConflict, "volume %s has a journal that can be read: there is nothing to rebuild", e.record.Name)
	}
	if err := e.bringUp(false); err == nil || !errors.Is(err, volume.ErrJournal) {
		return err
	}
	if e.record.ID == "" {
		return api.Errorf(api.CodeConflict, "volume %s was never open since its identity is kept: its relationships would not know "+
			"it again. Delete them, remove the volume, and make it anew", e.record.Name)
	}
	aside, err := e.registry.backend.SetJournalAside(e.record.Path)
	if err != nil {
		return fmt.Errorf("the journal of volume %s cannot be set aside: %w", e.record.Name, err)
	}
	crashpoint.Here("daemon/journal-aside")
	e.log.Warn("a damaged journal was set aside", "at", aside)
	return e.bringUp(false)
}

// mountVolume mounts the open volume. A read-only one is so before anybody can reach it.
func (e *entry) mountVolume(kept record) error {
	if err := e.volume.SetReadOnly(kept.ReadOnly); err != nil {
		return fmt.Errorf("volume %s cannot be set read-only: %w", kept.Name, err)
	}
	mount, err := e.registry.backend.Mount(e.volume, kept.Mount, MountOptions{kept.NoSuid, kept.NoDev, kept.ShowSnapshots})
	if err != nil {
		return fmt.Errorf("volume %s cannot be mounted at %s: %w", kept.Name, kept.Mount, err)
	}
	e.mount = mount
	go e.watch(mount) // until the mount goes; one that is detached but still used lives as long as its users
	e.log.Info("volume mounted", "path", kept.Path, "mount", kept.Mount, "read_only", kept.ReadOnly)
	return nil
}

// discard closes a volume that could not be mounted; a new one leaves nothing behind.
func (e *entry) discard(created bool) error {
	if created {
		return e.end(Volume.Remove)
	}
	return e.end(Volume.Close)
}

// end ends the open volume in one of the two ways, after those who still use it. Called with mu held.
func (e *entry) end(how func(Volume) error) error {
	v := e.volume
	e.volume = nil
	e.users.Wait()
	return how(v)
}

// use gives the open volume to a caller who calls done when that is over. Called with mu held.
func (e *entry) use() (v Volume, done func()) {
	e.users.Add(1)
	return e.volume, e.users.Done
}

// useIfUp is use for somebody who can do without: a volume that is not mounted is not brought up for it, and
// one that is busy is not waited for.
func (e *entry) useIfUp() (v Volume, done func(), up bool) {
	if !e.mu.TryLock() {
		return nil, nil, false
	}
	defer e.mu.Unlock()
	if e.volume == nil || e.mount == nil {
		return nil, nil, false
	}
	v, done = e.use()
	return v, done, true
}

// watch notes when a mount goes away by other hands: what is then written to the plain directory is written around
// it.
func (e *entry) watch(m Mount) {
	m.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.mount != m {
		return
	}
	e.mount = nil
	e.failure = errors.New("its mount was taken away by another program: changes made meanwhile are noticed only after they were made")
	e.log.Error("volume cannot be used", "error", e.failure)
}

// ready makes sure that the volume is up, trying again what failed a while ago. Called with mu held.
func (e *entry) ready() error {
	switch {
	case e.removed:
		return e.registry.noVolume(e.record.Name)
	case e.volume != nil && e.mount != nil:
		return nil
	case e.failure != nil && time.Since(e.tried) < retryPause:
		return e.failure
	}
	return e.bringUp(false)
}

// usable is ready, with the error that somebody gets who wants to use the volume. Called with mu held.
func (e *entry) usable() error {
	err := e.ready()
	if err == nil || e.removed {
		return err
	}
	return absent{api.Errorf(api.CodeConflict, "volume %s cannot be used: %v", e.record.Name, err)}
}

// setReadOnly switches the volume, its mount and its record, all or none. The record says "read-only" for at
// least as long as the volume is, so that a node which dies in between errs on the safe side.
func (e *entry) setReadOnly(readOnly bool) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.ready(); err != nil {
		return err
	}
	if readOnly {
		if err := e.registry.keepReadOnly(e, true); err != nil {
			return err
		}
		crashpoint.Here("daemon/read-only-kept")
	}
	if err := e.switchVolume(readOnly); err != nil {
		if readOnly {
			err = errors.Join(err, e.registry.keepReadOnly(e, false))
		}
		return err
	}
	crashpoint.Here("daemon/read-only-switched")
	if !readOnly {
		return e.registry.keepReadOnly(e, false)
	}
	return nil
}

// release makes the volume writable, at once where it is up and else when it comes up.
func (e *entry) release() error {
	err := e.setReadOnly(false)
	if err == nil {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.volume != nil && e.mount != nil {
		return err
	}
	return e.registry.keepReadOnly(e, false)
}

func (e *entry) switchVolume(readOnly bool) error {
	if err := e.volume.SetReadOnly(readOnly); err != nil {
		return errors.Join(fmt.Errorf("volume %s cannot be switched: %w", e.record.Name, err), e.volume.SetReadOnly(!readOnly))
	}
	e.log.Info("volume switched", "read_only", readOnly)
	return nil
}

// takeDown unmounts and closes the volume, whoever uses it. Called with mu held.
func (e *entry) takeDown() error {
	if err := e.unmount(Mount.Unmount); err != nil {
		return err
	}
	if e.volume == nil {
		return nil
	}
	return e.end(Volume.Close)
}

// unmount ends the mount, if there is one, in one of the two ways.
func (e *entry) unmount(end func(Mount) error) error {
	m := e.mount
	if m == nil {
		return nil
	}
	e.mount = nil // watch must not take this for a loss
	err := end(m)
	if err == nil {
		return nil
	}
	e.mount = m
	at := e.record.Mount
	if errors.Is(err, syscall.EBUSY) {
		return api.Errorf(api.CodeConflict, "%s is in use: end the programs that use it (`fuser -vm %s` lists them), then try again", at, at)
	}
	return fmt.Errorf("%s cannot be unmounted: %w", at, err)
}

// erase takes the volume down and its state out of the directory. left says what could not be taken away
// because the volume cannot be opened any more. Called with mu held.
func (e *entry) erase() (left error, err error) {
	if err := e.unmount(Mount.Release); err != nil {
		return nil, err
	}
	if err := e.open(e.registry.recordOf(e), false); err != nil {
		return fmt.Errorf("what the volume kept in %s/.tandemfs, if it is there, stays there: it cannot be opened: %w", e.record.Path, err), nil
	}
	if err := e.end(Volume.Remove); err != nil {
		return nil, fmt.Errorf("the volume's state in %s cannot be taken away: %w", e.record.Path, err)
	}
	return nil, nil
}

// describe gives the volume as the API shows it. One that is busy is not waited for.
func (e *entry) describe() api.Volume {
	kept := e.registry.recordOf(e)
	v := api.Volume{
		Name: kept.Name, Path: kept.Path, Mount: kept.Mount, State: api.VolumeBusy,
		ReadOnly: kept.ReadOnly, NoSuid: kept.NoSuid, NoDev: kept.NoDev, ShowSnapshots: kept.ShowSnapshots,
		Created: kept.Created,
	}
	if !e.mu.TryLock() {
		return v
	}
	defer e.mu.Unlock()
	if err := e.ready(); err != nil {
		v.State, v.Error = api.VolumeFailed, err.Error()
		return v
	}
	v.State, v.ID = api.VolumeMounted, e.volume.ID()
	if onTop, err := e.mount.OnTop(); err == nil && !onTop {
		v.State = api.VolumeFailed
		v.Error = fmt.Sprintf("its mount is not what programs find at %s: it was detached while it was in use, or something else is "+
			"mounted there; what is changed there is noticed only after it was made. Take that away, or restart the node", kept.Mount)
	}
	v.Around = around(e.volume.Around())
	return v
}

// around is what a volume knows of changes around its mount, as the API shows it.
func around(a volume.Around) *api.Around {
	return &api.Around{
		Watched: a.Watched, Reason: a.Reason, Error: a.Error,
		Sweeping: a.Sweeping, Swept: whenever(a.Swept), SweptFiles: a.Seen,
		Changes: a.Changes, LastPath: a.LastPath, LastTime: whenever(a.LastTime), NamesInDoubt: a.InDoubt,
	}
}

// whenever gives a time as the API has it; nil for none.
func whenever(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}
