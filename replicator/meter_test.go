package replicator

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestThePercentageNeverGoesBackAndEndsWithTheCommit(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 7))
	for range 200 {
		var m meter
		now := time.Unix(1000, 0)
		total := work{rnd.Int64N(1000), rnd.Int64N(1 << 30)} // an estimate, as good or bad as it may be
		m.start(now, true, false, work{}, total, 0)
		var done work
		last := 0.0
		for range 50 {
			now = now.Add(time.Duration(rnd.IntN(500)) * time.Millisecond)
			done = work{done.files + rnd.Int64N(100), done.bytes + rnd.Int64N(1<<26)}
			m.progress(now, done, work{})
			p := m.report(now, 0)
			if p.PercentComplete < last || p.PercentComplete > almost || p.Bytes.Remaining < 0 || p.Files.Remaining < 0 {
				t.Fatalf("after %v: %+v", last, p)
			}
			last = p.PercentComplete
		}
		m.finish(now, true, done, 5)
		p := m.report(now, 99)
		if p.PercentComplete != 100 || p.Bytes.Total != done.bytes || p.Bytes.Remaining != 0 || p.Files.Transferred != done.files || p.WireBytes != 5 {
			t.Fatalf("at the end: %+v", p)
		}
	}
}

func TestThroughputAndTimeLeftFollowTheLastSeconds(t *testing.T) {
	var m meter
	now := time.Unix(1000, 0)
	m.start(now, true, false, work{}, work{0, 100e6}, 0)
	if p := m.report(now, 0); p.ETASeconds != nil {
		t.Error("a time is left before anything is known")
	}
	m.progress(now.Add(time.Second), work{0, 1e6}, work{})
	if p := m.report(now.Add(time.Second), 0); p.ETASeconds != nil {
		t.Error("a time is left while the total is a guess")
	}
	m.start(now, true, false, work{}, work{0, 1e12}, 0)
	m.expect(work{0, 100e6})
	bytes := int64(0)
	for i := range 100 { // ten seconds at 0.5 MB/s, then ten at 2 MB/s
		bytes += 100e3
		if i >= 50 {
			bytes += 300e3
		}
		now = now.Add(200 * time.Millisecond)
		m.progress(now, work{0, bytes}, work{})
	}
	p := m.report(now, 0)
	if p.ThroughputCurrent < 1.9e6 || p.ThroughputCurrent > 2.1e6 {
		t.Errorf("now %.0f bytes a second", p.ThroughputCurrent)
	}
	if p.ThroughputOverall < 1.2e6 || p.ThroughputOverall > 1.3e6 || p.RunSeconds != 20 {
		t.Errorf("overall %.0f bytes a second in %v s", p.ThroughputOverall, p.RunSeconds)
	}
	if want := float64(100e6-bytes) / 2e6; *p.ETASeconds < 0.95*want || *p.ETASeconds > 1.05*want {
		t.Errorf("%.1f s are left, want about %.1f", *p.ETASeconds, want)
	}
}

func TestATransferThatGoesOnKeepsItsStart(t *testing.T) {
	var m meter
	start := time.Unix(1000, 0)
	m.start(start, true, false, work{}, work{10, 1000}, 100)
	m.progress(start.Add(time.Second), work{5, 500}, work{})
	m.finish(start.Add(2*time.Second), false, work{}, 700)
	if p := m.report(start.Add(time.Minute), 900); p.RunSeconds != 2 || p.WireBytes != 600 || p.PercentComplete == 100 {
		t.Errorf("interrupted: %+v", p)
	}
	m.start(start.Add(time.Minute), true, true, work{5, 500}, work{10, 1000}, 900)
	if p := m.report(start.Add(time.Minute), 950); p.RunSeconds != 60 || p.WireBytes != 850 || p.Bytes.Transferred != 500 {
		t.Errorf("going on: %+v", p)
	}
}

func TestPausesGrowAndAreNotAllTheSame(t *testing.T) {
	var b backoff
	longest := time.Duration(0)
	for i := range 40 {
		p := b.next()
		full := min(longestPause, shortestPause<<min(i, 10))
		if p > full || p <= full/2-1 {
			t.Errorf("pause %d is %v of %v", i, p, full)
		}
		longest = max(longest, p)
	}
	if longest < longestPause/2 {
		t.Errorf("the longest pause is %v", longest)
	}
	b.reset()
	if p := b.next(); p > shortestPause {
		t.Errorf("after a success %v", p)
	}
}
