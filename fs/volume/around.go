package volume

import (
	"errors"
	"math"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
)

// Changes that somebody makes in the backing directory around the mount are recorded as soon as they are known,
// which is after they were made: rule A1 cannot hold for them. So a view of an earlier seal may show the new
// content, and is without what was removed; but everything that was changed is sent, and from when it is recorded
// on it is kept for views like anything else.
//
// While the volume is open the kernel tells of them (sys.Watch); what was changed before is found by a sweep of
// change times after each start (sweep.go). Both record through foreign.go.
//
// On a read-only volume, which is a copy, such changes are reported and not recorded: what a transfer or the end
// of a relationship does there goes by what was applied.

// Around is what is known of changes around the mount.
type Around struct {
	Watched bool   // the kernel tells of them
	Reason  string // why not: then only the sweep after a start finds them

	Sweeping bool      // a sweep is under way
	Swept    time.Time // when the last one ended; zero: there was none since the start
	Seen     int64     // inodes that it has looked at, so far

	Changes  int64     // that were noticed since the start
	LastPath string    // of the last one, below the volume's root
	LastTime time.Time // when it was noticed

	// InDoubt counts the times that names were found to have been changed without saying which: see
	// Volume.NamesInDoubt.
	InDoubt uint64
	Error   string // why what was noticed cannot be recorded at present
}

const (
	// busyTick is how often the watch is looked at while the volume is being changed: how far back a sweep after a
	// kill has to look. Else that is idleTick.
	busyTick = 50 * time.Millisecond
	idleTick = time.Second
	// watchGather is how long events are let come together before they are read.
	watchGather = 20 * time.Millisecond
	// gapAhead is how long after an overflow its gap ends: what was in use meanwhile has a change time in it.
	gapAhead = time.Second
	// logFirst is how many changes are logged one by one; then each logEvery has one line.
	logFirst = 5
	logEvery = time.Minute
	// maxNoted bounds what is remembered of inodes that were noted.
	maxNoted = 1 << 15

	never = math.MaxUint64
)

// doubtKey is where the journal keeps the number of times that names came to be in doubt and were not settled.
const doubtKey = "volume/names-in-doubt"

// around notices such changes. One goroutine reads what the kernel tells, another one sweeps.
type around struct {
	v      *Volume
	watch  *sys.Watch   // nil: not possible
	record int          // descriptor of the file of watched
	began  journal.Time // from when on the watch tells
	quit   chan struct{}
	done   sync.WaitGroup

	current atomic.Pointer[sweep] // the sweep under way
	idle    atomic.Bool           // the next change wakes the reader

	// Of the goroutine that reads.
	operations uint64       // of the journal, when the file was last written; never: it has yet to be
	events     []sys.Event  // read and not recorded yet
	looked     journal.Time // when the last look at the watch began that found all there was
	places     map[journal.Ident]site

	looks atomic.Uint64 // that found all there was

	mu     sync.Mutex
	status Around
	known  watched // what is in the file
	// foreign is the last epoch that has records of what somebody else did: what is in it, or an earlier one, need
	// not be the process's own work.
	foreign   journal.Epoch
	foreignAt time.Time // when the last such record was made
	logged    time.Time
	born      map[journal.Ident]struct{}     // noted as new
	sent      map[journal.Ident]journal.Time // when content was last noted as touched
	untold    foreignDifferences

	doubting sync.Mutex // held while the journal is told of doubts; mu must not be, which operations wait for
	doubts   doubts
}

// begin begins to watch, before anything can be changed through the volume. What was changed earlier is for the
// sweep.
func (a *around) begin(v *Volume, stateFD int) error {
	a.v, a.record = v, -1
	a.born, a.sent = map[journal.Ident]struct{}{}, map[journal.Ident]journal.Time{}
	fd, known, ok, err := openWatched(stateFD)
	if err != nil {
		return err
	}
	a.record, a.known = fd, known
	value, err := v.journal.State(doubtKey)
	if err != nil {
		return err
	}
	a.doubts = decodeDoubts(value)
	a.status.InDoubt = a.doubts.count
	watch, failed := v.backing.Watch()
	if a.watch = watch; failed != nil {
		a.status.Reason = failed.Error()
		v.log.Warn("changes around the mount are found at the next start only", "error", failed)
	}
	a.status.Watched = failed == nil
	if a.began, err = sys.Clock(); err != nil {
		return err
	}
	a.looked, a.operations = a.began, never
	if ok {
		return a.resume(known)
	}
	if v.journal.Dirty() || v.journal.Epoch() > 1 { // it was protected before, and nobody knows until when it was watched
		a.foreign = v.journal.Epoch()
		if err := a.doubt(time.Unix(0, 0)); err != nil {
			return err
		}
	}
	return a.reached(watched{until: a.began, epoch: v.journal.Epoch()})
}

// resume has a sweep look for what was changed since somebody watched last.
func (a *around) resume(known watched) error {
	until, err := sys.FineClock()
	if err != nil {
		return err
	}
	passed(clockTime(until)) // what the volume itself changes from now on is not in the gap
	g := gap{since: known.until, until: until}
	if a.v.journal.Died() {
		g.lived, g.epoch = later(known.until, aftermath), known.epoch
	}
	w := known.with(g)
	if known.met {
		if err := a.doubt(clockTime(w.gaps[0].since)); err != nil {
			return err
		}
	}
	if earlier(a.began, known.until) {
		a.v.log.Warn("the clock was put back: changes around the mount cannot be told by their time")
		if err := a.doubt(time.Time{}); err != nil {
			return err
		}
	}
	w.until, w.epoch, w.met = a.began, a.v.journal.Epoch(), false
	if known.epoch == 0 { // the epoch may be the same one
		a.foreign = w.epoch
	}
	return a.expect(w)
}

// start starts the goroutines, once.
func (a *around) start() {
	if a.quit != nil {
		return
	}
	a.quit = make(chan struct{})
	if s := a.current.Load(); s != nil {
		a.done.Go(s.run)
	}
	if a.watch != nil {
		a.done.Go(a.run)
	}
}

// stop ends them, after what is known by then is recorded.
func (a *around) stop() {
	if a.quit != nil && !a.stopping() {
		close(a.quit)
		a.soon()
		a.done.Wait()
	}
	if a.watch != nil {
		a.watch.Close()
		a.watch = nil
	}
	if a.v != nil && a.record >= 0 {
		sys.Close(a.record)
		a.record = -1
	}
}

func (a *around) stopping() bool {
	select {
	case <-a.quit:
		return true
	default:
		return false
	}
}

// soon has the watch looked at soon: what was sealed a moment ago will be forgotten once it is confirmed, and must
// not be taken for somebody else's change by a sweep then.
func (a *around) soon() {
	a.idle.Store(false)
	if a.watch != nil {
		a.watch.Wake()
	}
}

// busy is told of each change before it is made.
func (a *around) busy() {
	if a.idle.Load() {
		a.soon()
	}
}

// run reads the watch until the end.
func (a *around) run() {
	before := uint64(0)
	for {
		tick := busyTick
		now := a.v.journal.Operations()
		if now == before {
			tick = idleTick
		}
		a.idle.Store(now == before)
		before = now
		if err := a.watch.Wait(tick); err != nil {
			a.v.log.Error("changes around the mount are not noticed any more", "error", err)
			return
		}
		last := a.stopping()
		if last {
			passed(time.Now()) // what was changed through the volume until now is not found by the next sweep
		} else {
			time.Sleep(watchGather)
		}
		a.failed(a.catchUp())
		if last {
			return
		}
	}
}

// passed waits until the clock of change times, which is coarse, is past a moment.
func passed(moment time.Time) {
	for {
		now, err := sys.Clock()
		if err != nil || time.Unix(now.Sec, int64(now.Nsec)).After(moment) {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// failed notes whether recording has failed; a new reason is logged.
func (a *around) failed(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	a.mu.Lock()
	before := a.status.Error
	a.status.Error = text
	a.mu.Unlock()
	if text != "" && text != before {
		a.v.log.Error("changes around the mount cannot be recorded, trying again", "error", err)
	}
}

// catchUp records all that the watch tells.
func (a *around) catchUp() error {
	operations, told := a.v.journal.Operations(), false
	at := watched{epoch: a.v.journal.Epoch()}
	var err error
	if at.until, err = sys.Clock(); err != nil {
		return err
	}
	a.places = map[journal.Ident]site{}
	defer a.tell()
	for more := true; more; {
		if err := a.recordEvents(at.until); err != nil {
			return err
		}
		a.events, more, err = a.watch.Read(a.events[:0])
		if errors.Is(err, sys.ErrOverflow) {
			err = a.overflowed()
		}
		if err != nil {
			return err
		}
		told = told || more
	}
	a.looked = at.until
	a.looks.Add(1)
	if err := a.trust(at.epoch); err != nil {
		return err
	}
	if !told && operations == a.operations && !a.stopping() { // nothing happens: the disk may sleep
		return nil
	}
	a.operations = operations
	return a.reached(at)
}

// trust begins an epoch once nobody else has changed anything for a while, so that the records of it say again what
// the process itself did.
func (a *around) trust(epoch journal.Epoch) error {
	a.mu.Lock()
	due := a.foreign >= epoch && time.Since(a.foreignAt) > idleTick
	a.mu.Unlock()
	if !due {
		return nil
	}
	_, err := a.v.journal.Seal(false)
	return err
}

// recordEvents records what was read. What could not be recorded stays for the next time.
func (a *around) recordEvents(now journal.Time) error {
	for i := range a.events {
		e := &a.events[i]
		err := a.event(e, now)
		if journal.Unreadable(err) {
			err = a.pass("inode "+e.Inode.String(), a.looked, err)
		}
		if err != nil {
			a.events = append(a.events[:0], a.events[i:]...)
			return err
		}
	}
	a.events = a.events[:0]
	return nil
}

// overflowed has a sweep look for what the kernel did not tell. Most of that will be what the volume itself did, which
// is recorded again: its records would explain what somebody else did to the same inodes, too.
func (a *around) overflowed() error {
	a.v.log.Warn("too many changes at once around the mount, or beside the volume on its filesystem: a sweep looks for those that were missed")
	now, err := sys.Clock()
	for err == nil {
		until := later(now, gapAhead)
		failed := a.expectMissed(until)
		if now, err = sys.Clock(); failed != nil || err != nil || earlier(now, until) {
			a.done.Go(a.current.Load().run) // even if the file does not say that it is due
			return errors.Join(failed, err)
		}
	}
	return err
}

// expectMissed makes the sweep for what was missed since the last look, and has each inode looked at before it is used
// the next time. Those in use get their new change times before it returns.
func (a *around) expectMissed(until journal.Time) error {
	a.mu.Lock()
	known := a.known
	a.mu.Unlock()
	err := a.expect(known.with(gap{since: a.looked, until: until}))
	a.v.open.renew()
	a.v.journal.Barrier()
	return err
}

// reached notes that everything is known up to a moment, but for what a sweep has yet to find.
func (a *around) reached(w watched) error {
	return a.save(func(known *watched) { known.until, known.epoch = w.until, w.epoch })
}

// save changes what the file of watched says.
func (a *around) save(how func(*watched)) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	how(&a.known)
	if a.known.epoch <= a.foreign { // it has, or may have, foreign records
		a.known.epoch = 0
	}
	_, err := sys.WriteAt(a.record, a.known.encode(), 0)
	return err
}

// report counts a change, and logs it.
func (a *around) report(what, at string) {
	now := time.Now()
	a.mu.Lock()
	a.status.Changes++
	a.status.LastPath, a.status.LastTime = at, now
	count := a.status.Changes
	quiet := count > logFirst && now.Sub(a.logged) < logEvery
	if !quiet {
		a.logged = now
	}
	a.mu.Unlock()
	if !quiet {
		a.v.log.Warn("changed around the mount", "what", what, "file", at, "changes_so_far", count)
	}
}

// Around tells what is known of changes around the mount.
func (v *Volume) Around() Around {
	a := &v.around
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.status
}

// site is where a directory lies.
type site struct {
	path   string
	inside bool // the volume, but not the state directory
}

// at looks for a directory.
func (a *around) at(dir journal.Ident) (p site, err error) {
	p, ok := a.places[dir]
	if ok || dir.IsZero() {
		return p, nil
	}
	if p, err = a.v.siteOf(dir); err == nil {
		a.places[dir] = p
	}
	return p, err
}

// siteOf finds out where a directory lies. One that is gone lies nowhere, as does what is none; of one that cannot be
// asked nobody knows.
func (v *Volume) siteOf(dir journal.Ident) (site, error) {
	fd, p, err := v.backing.Within(dir)
	if isStale(err) || errors.Is(err, unix.ENOTDIR) {
		return site{}, nil
	}
	if err != nil {
		return site{}, err
	}
	sys.Close(fd)
	return site{p, p != "/"+StateDir && !strings.HasPrefix(p, "/"+StateDir+"/")}, nil
}

// event records what the kernel has told.
func (a *around) event(e *sys.Event, now journal.Time) error {
	from, err := a.at(e.Dir)
	if err != nil {
		return err
	}
	to, err := a.at(e.NewDir)
	if err != nil {
		return err
	}
	at := path.Join(from.path, e.Name)
	switch {
	case e.Dir.IsZero() && e.NewDir.IsZero(): // a directory itself, or a file whose name is not known
		self, err := a.at(e.Inode)
		if err != nil {
			return err
		}
		if at = self.path; !self.inside {
			return a.nameless(e, now)
		}
	case from.inside && a.v.hidden(e.Dir, e.Name), to.inside && a.v.hidden(e.NewDir, e.NewName):
		return nil
	case !from.inside && !to.inside:
		return nil
	case !from.inside:
		at = path.Join(to.path, e.NewName)
	}
	if e.What == sys.Closed && !a.written(e.Inode) {
		return nil
	}
	if !a.v.ReadOnly() {
		if err := a.recordEvent(e, from.inside, to.inside, now); err != nil {
			return err
		}
	}
	a.report(whatHappened(e.What), at)
	return nil
}

// nameless records what is told of a file without a directory: its number of links has changed, of which the
// directory's event tells more, or it was reached by its handle.
func (a *around) nameless(e *sys.Event, now journal.Time) error {
	a.letGo(e.Inode)
	if !a.v.mounted().Refers(e.Inode) || a.v.ReadOnly() {
		return nil
	}
	if s := a.current.Load(); s != nil {
		if err := s.disturbed(e.Inode); err != nil {
			return err
		}
	}
	return a.changed(e.Inode, e.What, now)
}

func whatHappened(c sys.Change) string {
	switch {
	case c&sys.Moved != 0:
		return "moved"
	case c&(sys.Named|sys.Unnamed) == sys.Named:
		return "made"
	case c&sys.Unnamed != 0:
		return "removed"
	case c&(sys.Modified|sys.Closed) != 0:
		return "written"
	}
	return "attributes"
}

// tell has the mount forget what was changed around it.
func (a *around) tell() {
	a.mu.Lock()
	d := a.untold
	a.untold = foreignDifferences{}
	a.mu.Unlock()
	if len(d.inodes)+len(d.names) == 0 {
		return
	}
	a.v.turning.Lock()
	defer a.v.turning.Unlock()
	if err := a.v.mounted().Turn(d, func() {}); err != nil {
		a.v.log.Warn("programs may still see what was changed around the mount as it was, trying again", "error", err)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.untold.add(d)
	}
}
