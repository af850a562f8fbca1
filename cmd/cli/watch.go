package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/schollz/progressbar/v3"

	"tandemfs/replicator"
)

// watchPause is how long a watch waits before it asks again.
const watchPause = 250 * time.Millisecond

// watch shows a relationship until it ends, or the user has seen enough.
func watch(ctx context.Context, c *call) error {
	show := c.viewer()
	defer show.close()
	for {
		s, err := c.client.Relationship(ctx, c.Args().First())
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if err := show.status(s); err != nil {
			return err
		}
		if s.State == replicator.StateEnded {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchPause):
		}
	}
}

// viewer shows a status again and again.
type viewer interface {
	status(replicator.Status) error
	close()
}

// viewer chooses how a watch shows what it sees.
func (c *call) viewer() viewer {
	switch {
	case c.Bool("json"):
		return &changes{write: func(s replicator.Status) error { return json.NewEncoder(c.env.Stdout).Encode(s) }}
	case c.env.Shows:
		return &live{env: c.env}
	}
	return &changes{write: func(s replicator.Status) error {
		now := c.env.Now()
		_, err := fmt.Fprintf(c.env.Stdout, "%s %s\n", now.Local().Format(time.DateTime), liveLine(s, now))
		return err
	}}
}

// changes writes a status when it says something else than the one before.
type changes struct {
	write func(replicator.Status) error
	last  change
}

// change is what of a status is worth a new line: not the figures that move all the time.
type change struct {
	state     replicator.State
	enabled   bool
	job       replicator.JobState
	first     bool
	percent   int
	epoch     uint64
	lastError string
}

func (v *changes) status(s replicator.Status) error {
	now := change{s.State, s.Enabled, s.Job, s.Progress.First, int(s.Progress.PercentComplete), s.RecoveryPoint.Epoch, s.LastError}
	if now == v.last {
		return nil
	}
	v.last = now
	return v.write(s)
}

func (v *changes) close() {}

// live keeps one line of a terminal up to date: a progress bar while the first transfer runs, the state of
// things after that.
type live struct {
	env *Env
	bar *progressbar.ProgressBar
}

// barSteps is the bar's resolution: it counts whole steps, the status has a percentage.
const barSteps = 10_000

func (v *live) status(s replicator.Status) error {
	if s.Progress.First && s.Job == replicator.JobRunning {
		return v.progress(s.Progress)
	}
	if err := v.endBar(s); err != nil {
		return err
	}
	line := liveLine(s, v.env.Now())
	_, err := fmt.Fprintf(v.env.Stdout, "\r\033[K%s", cut(line, v.env.Width()-1))
	return err
}

// progress draws the bar. Rate and end come from the status, not from the bar: it cannot know what was
// done before it was there to see.
func (v *live) progress(p replicator.Progress) error {
	if v.bar == nil {
		v.bar = progressbar.NewOptions(barSteps,
			progressbar.OptionSetWriter(v.env.Stdout),
			progressbar.OptionSetDescription(transferRate(p)),
			progressbar.OptionSetWidth(max(10, min(40, v.env.Width()-60))),
			progressbar.OptionSetPredictTime(false),
			progressbar.OptionSetElapsedTime(false),
			progressbar.OptionShowDescriptionAtLineEnd(),
			progressbar.OptionUseANSICodes(true),
		)
	}
	v.bar.Describe(transferRate(p))
	return v.bar.Set(min(int(p.PercentComplete*barSteps/100), barSteps-1)) // full only when it is committed
}

// endBar leaves the bar on its line: full, when the first transfer ended well.
func (v *live) endBar(s replicator.Status) error {
	if v.bar == nil {
		return nil
	}
	bar := v.bar
	v.bar = nil
	if s.RecoveryPoint.Epoch > 0 {
		if p := s.Progress; p.First { // still the one that the bar was for
			bar.Describe(fmt.Sprintf("%s in %s, %s/s", size(p.Bytes.Total), seconds(p.RunSeconds), size(int64(p.ThroughputOverall))))
		}
		if err := bar.Finish(); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(v.env.Stdout)
	return err
}

// close leaves the last line where it is.
func (v *live) close() { fmt.Fprintln(v.env.Stdout) }

// cut shortens a line to a terminal's width, so that it does not wrap.
func cut(line string, width int) string {
	if width < 1 || utf8.RuneCountInString(line) <= width {
		return line
	}
	return string([]rune(line)[:width-1]) + "…"
}
