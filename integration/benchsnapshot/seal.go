package main

import (
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// sealRounds is in how many goes the snapshots of a volume are taken, in turns with the other volume.
const sealRounds = 5

// sealTimes is what taking snapshots of a volume under load gave.
type sealTimes struct {
	requests []time.Duration // that a snapshot be taken, until the answer
	// The longest operation of any writer in equal stretches of time: with no snapshot there, from the request
	// on, and with the snapshot there for a while.
	without, around, during []time.Duration
}

// A window is a stretch of time in which a writer's longest operation is looked for.
type window struct {
	from, to time.Duration
	into     *[]time.Duration
}

func sealTable(volumes []*volume, o options, out io.Writer) error {
	times := make([]sealTimes, len(volumes))
	for left, round := o.seals, 0; left > 0; round++ {
		seals := min(left, max(o.seals/sealRounds, 1))
		left -= seals
		for i := range volumes {
			at := (round + i) % len(volumes)
			if err := times[at].measure(volumes[at], seals, o); err != nil {
				return fmt.Errorf("%d files: %w", volumes[at].files, err)
			}
		}
	}
	fmt.Fprintf(out, "Snapshots under load: %d writers overwriting blocks of 4 KiB, removing and making files; windows of %v.\n\n",
		o.writers, o.window)
	w := columns(out, slices.Concat([]string{"files", "what"}, distributionTitles)...)
	for i, v := range volumes {
		for _, row := range []struct {
			what  string
			times []time.Duration
		}{
			{"request for a snapshot", times[i].requests},
			{"longest wait of a writer, no snapshot", times[i].without},
			{"longest wait of a writer, a snapshot is taken", times[i].around},
			{"longest wait of a writer, a snapshot is kept", times[i].during},
		} {
			line(w, slices.Concat([]string{fmt.Sprint(v.files), row.what}, distribution(row.times))...)
		}
	}
	w.Flush()
	fmt.Fprintln(out)
	return nil
}

// measure takes and deletes so many snapshots while writers work.
func (s *sealTimes) measure(v *volume, seals int, o options) error {
	unix.Sync()
	l, err := startLoad(filepath.Join(v.mount, "load"), o.writers)
	if err != nil {
		return err
	}
	time.Sleep(o.window) // so that all are at work
	var windows []window
	for i := range seals {
		three, err := s.take(v, l, fmt.Sprintf("seal-%d", i), o.window)
		if err != nil {
			l.end()
			return err
		}
		windows = append(windows, three...)
	}
	if err := l.end(); err != nil {
		return err
	}
	for _, w := range windows {
		*w.into = append(*w.into, l.longest(w.from, w.to))
	}
	return v.deleteAll()
}

// take takes one snapshot, lets the writers go on for a while with it and deletes it again, with a rest for
// freeing what it held.
func (s *sealTimes) take(v *volume, l *load, name string, length time.Duration) ([]window, error) {
	start := l.now()
	time.Sleep(length)
	request := l.now()
	if err := v.snapshot(name); err != nil {
		return nil, err
	}
	answer := l.now()
	s.requests = append(s.requests, answer-request)
	time.Sleep(request + length - answer)
	kept := l.now()
	time.Sleep(length)
	end := l.now()
	if err := v.delete(name); err != nil {
		return nil, err
	}
	time.Sleep(length)
	return []window{{start, request, &s.without}, {request, kept, &s.around}, {kept, end, &s.during}}, nil
}
