package cli

import (
	"context"
	"encoding/json"
	"fmt"

	urfave "github.com/urfave/cli/v2"

	"tandemfs/cmd/api"
)

// cursorFlag may be empty: so it is where a loop over all pages begins.
const cursorFlag = "cursor"

func diffFlags() []urfave.Flag {
	return []urfave.Flag{
		&urfave.StringFlag{Name: "file", Usage: "show where the file at `PATH` differs"},
		&urfave.IntFlag{Name: "limit", Usage: "show at most `N`, and how to go on", DefaultText: "all"},
		&urfave.StringFlag{Name: cursorFlag, Usage: "go on at `C`, where a page before ended"},
	}
}

// diffSnapshots shows one page of a diff where a limit is given, else all of them.
func diffSnapshots(ctx context.Context, c *call) error {
	want, err := c.diffRequest()
	if err != nil {
		return err
	}
	if !c.IsSet("limit") {
		return c.allPages(ctx, want)
	}
	p, err := c.page(ctx, want)
	if err != nil {
		return err
	}
	return c.answer(p.value, func(o *output) {
		o.page(p, want.Cursor == "")
		if p.next != "" {
			o.line("more: %s", nextPage(c.Args().First(), want, p.next))
		}
	})
}

func (c *call) diffRequest() (api.Diff, error) {
	want := api.Diff{
		From: c.Args().Get(1), To: c.Args().Get(2), File: c.String("file"), Cursor: c.String(cursorFlag), Limit: c.Int("limit"),
	}
	if c.IsSet("limit") && (want.Limit < 1 || want.Limit > api.MaxLimit) {
		return want, usage("--limit must be a number from 1 to %d", api.MaxLimit)
	}
	return want, nil
}

// allPages writes page after page as they come: in JSON a line for each.
func (c *call) allPages(ctx context.Context, want api.Diff) error {
	o := &output{to: c.env.Stdout, now: c.env.Now}
	e := json.NewEncoder(c.env.Stdout)
	e.SetEscapeHTML(false)
	for {
		p, err := c.page(ctx, want)
		switch {
		case err != nil:
			return err
		case c.Bool("json"):
			err = e.Encode(p.value)
		default:
			o.page(p, want.Cursor == "")
			err = o.err
		}
		if err != nil || p.next == "" {
			return err
		}
		want.Cursor = p.next
	}
}

// page is a page of either kind of diff: as it travels, in lines, and the cursor of the next.
type page struct {
	value any
	lines []string
	next  string
}

// page asks for a page.
func (c *call) page(ctx context.Context, want api.Diff) (page, error) {
	if want.File != "" {
		list, err := c.client.DiffFile(ctx, c.Args().First(), want)
		return page{list, lines(list.Regions, regionLine), list.Cursor}, err
	}
	list, err := c.client.Diff(ctx, c.Args().First(), want)
	return page{list, lines(list.Changes, changeLine), list.Cursor}, err
}

func lines[T any](list []T, line func(T) string) []string {
	all := make([]string, len(list))
	for i, item := range list {
		all[i] = line(item)
	}
	return all
}

// page writes a page; first, when nothing was written before it.
func (o *output) page(p page, first bool) {
	if first && len(p.lines) == 0 && p.next == "" {
		o.line("no differences")
	}
	for _, line := range p.lines {
		o.line("%s", oneLine(line))
	}
}

// marks begin the line of each kind of change.
var marks = map[api.ChangeKind]string{api.ChangeCreated: "+", api.ChangeModified: "~", api.ChangeRemoved: "-", api.ChangeRenamed: ">"}

func changeLine(c api.Change) string {
	slash := ""
	if c.Dir {
		slash = "/"
	}
	if c.Kind == api.ChangeRenamed {
		return fmt.Sprintf("%s %s%s -> %s%s", marks[c.Kind], c.From, slash, c.Path, slash)
	}
	return fmt.Sprintf("%s %s%s", marks[c.Kind], c.Path, slash)
}

func regionLine(r api.Region) string {
	text := fmt.Sprintf("~ %d bytes at %d (%s)", r.Length, r.Offset, size(r.Length))
	if r.Hole {
		text += ", now a hole"
	}
	return text
}

// nextPage is the command that shows the page after one that ended at a cursor.
func nextPage(volume string, want api.Diff, cursor string) string {
	flags := []string{fmt.Sprintf("--limit=%d", want.Limit), "--cursor=" + cursor}
	if want.File != "" {
		flags = append(flags, "--file="+want.File)
	}
	return hint("snapshot diff", flags, volume, want.From, want.To)
}
