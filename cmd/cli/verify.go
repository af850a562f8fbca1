package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dustin/go-humanize"
	urfave "github.com/urfave/cli/v2"

	"tandemfs/replicator"
)

// errDifferent ends a verification that found differences.
var errDifferent = errors.New("the two sides differ")

func verifyCommand(env *Env) *urfave.Command {
	return env.clientCommand(command{
		name: "verify", args: "ID", run: verify, complete: relationshipIDs,
		about: "compare both sides at a recovery point (on the source)",
		description: "Names, attributes, and the content by a strong hash, while both sides go on working. Each\n" +
			"difference is shown. An interruption stops it. With --always it begins again whenever it has ended, and\n" +
			"the command returns at once.",
		flags: []urfave.Flag{
			&urfave.StringFlag{Name: "rate", Usage: "read no more than `SIZE` of content per second on each side (such as 20MiB)"},
			&urfave.BoolFlag{Name: "repair", DisableDefaultText: true, Usage: "send what differs"},
			&urfave.BoolFlag{Name: "always", DisableDefaultText: true, Usage: "verify for ever, also after a restart; it needs a rate"},
			&urfave.BoolFlag{Name: "show", DisableDefaultText: true, Usage: "begin nothing: show how the last one stands"},
			&urfave.BoolFlag{Name: "stop", DisableDefaultText: true, Usage: "end the one that runs, and those that would follow"},
		},
	})
}

func verify(ctx context.Context, c *call) error {
	id := c.Args().First()
	if c.Bool("show") || c.Bool("stop") {
		if c.Bool("show") && c.Bool("stop") || c.Bool("always") || c.Bool("repair") || c.String("rate") != "" {
			return usage("--show and --stop go with no other option")
		}
		get := c.client.Verification
		if c.Bool("stop") {
			get = c.client.StopVerification
		}
		v, err := get(ctx, id)
		if err != nil {
			return err
		}
		return c.answer(v, func(o *output) { writeVerification(o, v) })
	}
	q := replicator.VerifyRequest{Repair: c.Bool("repair"), Always: c.Bool("always")}
	if text := c.String("rate"); text != "" {
		n, err := humanize.ParseBytes(text)
		if err != nil || n == 0 || n > 1<<50 {
			return usage("--rate %s is not a size, such as 20MiB", text)
		}
		q.Rate = int64(n)
	}
	v, err := c.client.VerifyRelationship(ctx, id, q)
	if err != nil {
		return err
	}
	if !q.Always {
		if v, err = awaitVerification(ctx, c, id, v); err != nil {
			return err
		}
	}
	if err := c.answer(v, func(o *output) { writeVerification(o, v) }); err != nil {
		return err
	}
	switch {
	case v.State == replicator.VerifyFailed:
		return errors.New("the verification failed: " + v.Error)
	case v.Differences > 0:
		return errDifferent
	case v.State == replicator.VerifyStopped:
		return errors.New("the verification was stopped before its end")
	}
	return nil
}

// awaitVerification waits for the end; an interruption makes it end.
func awaitVerification(ctx context.Context, c *call, id string, v replicator.Verification) (replicator.Verification, error) {
	for v.State == replicator.VerifyWaiting || v.State == replicator.VerifyRunning {
		if c.env.Shows && !c.Bool("json") {
			fmt.Fprintf(c.env.Stderr, "\r\x1b[K%s", verificationLine(v))
		}
		select {
		case <-ctx.Done():
			return c.client.StopVerification(context.WithoutCancel(ctx), id)
		case <-time.After(watchPause):
		}
		var err error
		if v, err = c.client.Verification(context.WithoutCancel(ctx), id); err != nil {
			return v, err
		}
	}
	if c.env.Shows && !c.Bool("json") {
		fmt.Fprint(c.env.Stderr, "\r\x1b[K")
	}
	return v, nil
}

// verificationLine is a verification in one line.
func verificationLine(v replicator.Verification) string {
	switch v.State {
	case replicator.VerifyNone:
		return "never since the node started"
	case replicator.VerifyWaiting:
		return "waiting for a recovery point"
	}
	text := fmt.Sprintf("%s, %s files, %s of about %s compared", v.State, count(v.Files), size(v.Bytes), size(v.TotalBytes))
	if v.State == replicator.VerifyDone {
		text = fmt.Sprintf("done, %s files, %s compared", count(v.Files), size(v.Bytes))
	}
	if v.Differences > 0 || v.State == replicator.VerifyDone {
		text += ", " + differences(v.Differences)
	}
	switch {
	case v.Repairing:
		text += ", being repaired"
	case v.Repair && v.State == replicator.VerifyDone && v.Differences > 0:
		text += ", repaired since"
	}
	return text
}

func differences(n int64) string {
	if n == 1 {
		return "1 difference"
	}
	return count(n) + " differences"
}

// writeVerification writes all that is known of a verification.
func writeVerification(o *output, v replicator.Verification) {
	o.line("%s", verificationLine(v))
	if !v.Time.IsZero() {
		o.fields([][2]string{{"recovery point", fmt.Sprintf("%s, epoch %d", o.moment(v.Time), v.Epoch)}, {"error", v.Error}})
	}
	if len(v.Found) == 0 {
		return
	}
	rows := [][]string{{"DIFFERENCE", "PATH"}}
	for _, d := range v.Found {
		rows = append(rows, []string{string(d.Kind), "/" + d.Path})
	}
	o.table(rows)
	if more := v.Differences - int64(len(v.Found)); more > 0 {
		o.line("and %s more", count(more))
	}
}
