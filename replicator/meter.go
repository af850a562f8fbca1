package replicator

import (
	"sync"
	"time"
)

// meter measures one transfer after the other. All methods may be called concurrently. Its clock is a
// parameter everywhere, so that it is a pure calculation.
type meter struct {
	mu       sync.Mutex
	running  bool
	first    bool
	rough    bool // total is a guess until expect
	started  time.Time
	ended    time.Time
	done     work
	same     work // found to be there already
	before   work // of done, what earlier connections had transferred
	total    work
	percent  float64 // the highest that was shown
	wire     int64   // the relationship's wire bytes when it started
	wireUsed int64   // of the transfer that ended
	samples  []sample
}

// work is an amount of transfer.
type work struct{ files, bytes int64 }

// perFile is how many bytes of content a file's own cost is worth in the percentage.
const perFile = 16 << 10

func (w work) weight() float64 { return float64(w.bytes) + perFile*float64(w.files) }

func (w work) plus(o work) work { return work{w.files + o.files, w.bytes + o.bytes} }

// atLeast gives the larger of each.
func (w work) atLeast(o work) work { return work{max(w.files, o.files), max(w.bytes, o.bytes)} }

type sample struct {
	at         time.Time
	done, same work
}

const (
	window     = 5 * time.Second // that the current throughput is measured over
	sampleStep = 200 * time.Millisecond
	// almost is the most that is shown before the commit.
	almost = 99.9
)

// start begins a transfer, of which before was transferred earlier; wire is the count of wire bytes so far.
// The same transfer going on over a new connection keeps its start.
func (m *meter) start(now time.Time, first, goesOn bool, before, total work, wire int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !goesOn || m.started.IsZero() {
		m.started, m.percent, m.wire = now, 0, wire
	}
	m.running, m.first, m.rough, m.ended = true, first, first, time.Time{}
	m.done, m.same, m.before, m.total = before, work{}, before, total.atLeast(before)
	m.samples = append(m.samples[:0], sample{at: now, done: before})
}

// expect says how much there is to transfer in all, now that it was counted.
func (m *meter) expect(total work) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.running {
		m.total, m.rough = total.atLeast(m.done.plus(m.same)), false
	}
}

// expected gives what expect said, zero before that.
func (m *meter) expected() work {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rough || !m.running {
		return work{}
	}
	return m.total
}

// progress notes how much is done and how much was there already, and reports whether that is more than before.
func (m *meter) progress(now time.Time, done, same work) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	was := m.done.plus(m.same)
	m.done, m.same = m.done.atLeast(done), m.same.atLeast(same)
	is := m.done.plus(m.same)
	more := is.files > was.files || is.bytes > was.bytes
	m.total = m.total.atLeast(is)
	if last := m.samples; len(last) == 0 || now.Sub(last[len(last)-1].at) >= sampleStep {
		m.samples = append(m.samples, sample{now, m.done, m.same})
	}
	for len(m.samples) > 2 && now.Sub(m.samples[1].at) > window {
		m.samples = m.samples[1:]
	}
	return more
}

// finish ends the transfer: committed, with the exact amounts, or not.
func (m *meter) finish(now time.Time, committed bool, done work, wire int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.running {
		return
	}
	m.running, m.ended, m.wireUsed = false, now, wire-m.wire
	if committed {
		m.done, m.total, m.percent = done, done.plus(m.same), 100
	}
}

// moved is how much the running transfer has done, or the last one did.
func (m *meter) moved() work {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.done
}

// left is how much is not done yet of the running transfer.
func (m *meter) left() work {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.running {
		return work{}
	}
	return work{m.total.files - m.done.files - m.same.files, m.total.bytes - m.done.bytes - m.same.bytes}
}

// report gives the transfer's progress; wire is the relationship's count of wire bytes.
func (m *meter) report(now time.Time, wire int64) Progress {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := Progress{
		First: m.first, Started: m.started, PercentComplete: m.percentNow(), WireBytes: m.wireUsed,
		Files: count(m.done.files, m.same.files, m.total.files), Bytes: count(m.done.bytes, m.same.bytes, m.total.bytes),
	}
	if m.started.IsZero() {
		return p
	}
	if m.running {
		p.WireBytes = wire - m.wire
		p.ThroughputCurrent, p.ETASeconds = m.rate(now)
		p.RunSeconds = now.Sub(m.started).Seconds()
	} else {
		p.RunSeconds = m.ended.Sub(m.started).Seconds()
	}
	if p.RunSeconds > 0 {
		p.ThroughputOverall = float64(m.done.bytes) / p.RunSeconds
	}
	return p
}

func count(done, same, total int64) Count {
	return Count{Transferred: done, Unchanged: same, Total: total, Remaining: total - done - same}
}

// percentNow never goes back, and reaches 100 only by finish.
func (m *meter) percentNow() float64 {
	if m.running && m.total.weight() > 0 {
		m.percent = max(m.percent, min(almost, 100*m.done.plus(m.same).weight()/m.total.weight()))
	}
	return m.percent
}

// rate gives the current throughput in bytes per second, and the seconds that are left at the current pace.
func (m *meter) rate(now time.Time) (float64, *float64) {
	if len(m.samples) == 0 {
		return 0, nil
	}
	oldest := m.samples[0]
	seconds := now.Sub(oldest.at).Seconds()
	if seconds <= 0 {
		return 0, nil
	}
	bytes := float64(m.done.bytes-oldest.done.bytes) / seconds
	pace := (m.done.plus(m.same).weight() - oldest.done.plus(oldest.same).weight()) / seconds
	if pace <= 0 || m.total.weight() <= 0 || m.rough {
		return bytes, nil
	}
	eta := (m.total.weight() - m.done.plus(m.same).weight()) / pace
	return bytes, &eta
}
