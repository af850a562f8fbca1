package cli

import (
	"context"
	"fmt"
	"path"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"tandemfs/cmd/api"
	"tandemfs/snapshotd"
)

// expiryWords says how an expiry is written.
const expiryWords = "never, a duration such as 90m, 36h, 7d or 4w, or a time such as 2027-01-31T18:00:00Z"

func snapshotCommands(env *Env) []*urfave.Command {
	return []*urfave.Command{
		env.clientCommand(command{
			name: "create", args: "VOL", run: createSnapshot, complete: volumeNames,
			about:       "keep what a volume is now",
			description: "Writers are not held up. A snapshot takes room only for what changes after it.",
			flags: []urfave.Flag{
				&urfave.StringFlag{Name: "name", Usage: "call the snapshot `NAME`; by default a name is made from the time"},
				&urfave.StringFlag{Name: "expires", Usage: "delete it by itself after `T`: " + expiryWords, DefaultText: snapshotd.Never},
			},
		}),
		env.clientCommand(command{
			name: "list", args: "VOL", run: listSnapshots, complete: volumeNames,
			about: "list a volume's snapshots, oldest first",
		}),
		env.clientCommand(command{
			name: "show", args: "VOL SNAPSHOT", run: showSnapshot, complete: volumeNames,
			about: "show one snapshot",
		}),
		env.clientCommand(command{
			name: "delete", args: "VOL SNAPSHOT", run: deleteSnapshot, complete: volumeNames,
			about: "delete a snapshot, and free what it alone holds",
			flags: []urfave.Flag{yesFlag()},
		}),
		env.clientCommand(command{
			name: "set-expiry", args: "VOL SNAPSHOT T", run: setSnapshotExpiry, complete: volumeNames,
			about:       "say when a snapshot is deleted by itself",
			description: "T is " + expiryWords + ".",
		}),
		env.clientCommand(command{
			name: "diff", args: "VOL A B", run: diffSnapshots, complete: volumeNames,
			about: "show what differs between two snapshots",
			description: "A line for each change: + what was made, ~ what was changed, - what was removed, > what was\n" +
				"renamed; directories end in a slash. Paths are meant from the volume's root on.",
			flags: diffFlags(),
		}),
		env.clientCommand(command{
			name: "restore", args: "VOL SNAPSHOT [PATH]", run: restoreSnapshot, complete: volumeNames,
			about: "make a volume, or a part of it, what it was",
			description: "PATH is meant from the volume's root on; without it the whole volume is restored. A snapshot is\n" +
				"taken first: restoring that one undoes it.",
			flags: []urfave.Flag{yesFlag()},
		}),
	}
}

func createSnapshot(ctx context.Context, c *call) error {
	volume := c.Args().First()
	want := api.CreateSnapshot{Name: c.String("name")}
	var err error
	if c.IsSet("expires") {
		if want.Expires, err = snapshotd.ParseExpiry(c.String("expires"), c.env.Now()); err != nil {
			return usage("--expires: %v", err)
		}
	}
	s, err := c.client.CreateSnapshot(ctx, volume, want)
	return c.snapshotAnswer(s, err, func(o *output) {
		o.line("snapshot %s of volume %s, %s", s.Name, volume, kept(o, s.Expires))
	})
}

// snapshotAnswer answers a command that comes to one snapshot.
func (c *call) snapshotAnswer(s api.Snapshot, err error, words func(*output)) error {
	if err != nil {
		return err
	}
	return c.answer(s, words)
}

// kept says in words how long a snapshot is kept.
func kept(o *output, expires time.Time) string {
	if expires.IsZero() {
		return "kept until somebody deletes it"
	}
	return "kept until " + o.moment(expires)
}

func listSnapshots(ctx context.Context, c *call) error {
	volume := c.Args().First()
	list, err := c.client.Snapshots(ctx, volume)
	if err != nil {
		return err
	}
	return c.answer(list, func(o *output) {
		if len(list.Snapshots) == 0 {
			o.line("no snapshots of volume %s yet: `%s` takes one", volume, hint("snapshot create", nil, volume))
			return
		}
		rows := [][]string{{"NAME", "CREATED", "EXPIRES", "ALONE HOLDS"}}
		for _, s := range list.Snapshots {
			rows = append(rows, []string{s.Name, o.moment(s.Created), expiry(o, s), size(s.Bytes)})
		}
		o.table(rows)
		o.line("all together hold %s", size(list.TotalBytes))
		for _, s := range list.Snapshots {
			if s.Suspect {
				o.line("%s: %s", s.Name, suspicion)
			}
		}
	})
}

// suspicion is what people are told of a snapshot that may not be whole.
const suspicion = "power was lost while this snapshot was kept: what was being changed just then may be wrong in it"

func expiry(o *output, s api.Snapshot) string {
	if s.Expires.IsZero() {
		return snapshotd.Never
	}
	return o.moment(s.Expires)
}

func showSnapshot(ctx context.Context, c *call) error {
	volume := c.Args().First()
	s, err := c.client.Snapshot(ctx, volume, c.Args().Get(1))
	return c.snapshotAnswer(s, err, func(o *output) {
		o.line("snapshot %s of volume %s", s.Name, volume)
		o.fields([][2]string{
			{"created", o.moment(s.Created)},
			{"expires", expiry(o, s)},
			{"alone holds", size(s.Bytes)},
		})
		if s.Suspect {
			o.line("%s", suspicion)
		}
	})
}

func deleteSnapshot(ctx context.Context, c *call) error {
	volume, name := c.Args().Get(0), c.Args().Get(1)
	s, err := c.client.Snapshot(ctx, volume, name)
	if err != nil {
		return err
	}
	taken := (&output{now: c.env.Now}).moment(s.Created)
	warning := fmt.Sprintf("Snapshot %s of volume %s, taken %s, will be deleted.\nWhat it alone holds, %s, is then gone for good.",
		s.Name, volume, taken, size(s.Bytes))
	if err := c.confirm(ctx, warning, "Delete the snapshot?"); err != nil {
		return err
	}
	s, err = c.client.DeleteSnapshot(ctx, volume, name)
	return c.snapshotAnswer(s, err, func(o *output) {
		o.line("snapshot %s of volume %s deleted: %s will be free", s.Name, volume, size(s.Bytes))
	})
}

func setSnapshotExpiry(ctx context.Context, c *call) error {
	volume := c.Args().Get(0)
	expires, err := snapshotd.ParseExpiry(c.Args().Get(2), c.env.Now())
	if err != nil {
		return usage("T: %v", err)
	}
	s, err := c.client.SetSnapshotExpiry(ctx, volume, c.Args().Get(1), api.SetExpiry{Expires: expires})
	return c.snapshotAnswer(s, err, func(o *output) {
		o.line("snapshot %s of volume %s, %s", s.Name, volume, kept(o, s.Expires))
	})
}

func restoreSnapshot(ctx context.Context, c *call) error {
	name := c.Args().Get(0)
	want := api.Restore{Snapshot: c.Args().Get(1), Path: strings.TrimPrefix(path.Clean("/"+c.Args().Get(2)), "/")}
	if strings.Contains("/"+c.Args().Get(2)+"/", "/../") {
		return usage("PATH: %q is not understood: write it without \"..\"", c.Args().Get(2))
	}
	v, err := c.client.Volume(ctx, name)
	if err != nil {
		return err
	}
	s, err := c.client.Snapshot(ctx, name, want.Snapshot)
	if err != nil {
		return err
	}
	taken := (&output{now: c.env.Now}).moment(s.Created)
	warning := restoration(v, want, taken)
	if s.Suspect {
		warning += "\nBeware: " + suspicion + "."
	}
	if err := c.confirm(ctx, warning, "Restore it?"); err != nil {
		return err
	}
	before, err := c.client.Restore(ctx, name, want)
	return c.snapshotAnswer(before, err, func(o *output) {
		args := []string{name, before.Name}
		if want.Path != "" {
			args = append(args, want.Path)
		}
		o.line("%s is what it was at snapshot %s", part(v, want.Path), s.Name)
		o.line("to undo it: %s", hint("snapshot restore", nil, args...))
	})
}

// part names a part of a volume, or all of it.
func part(v api.Volume, path string) string {
	if path == "" {
		return "volume " + v.Name
	}
	return fmt.Sprintf("%s in volume %s", path, v.Name)
}

// restoration says what a restore means; taken is the snapshot's time in words.
func restoration(v api.Volume, want api.Restore, taken string) string {
	where, what := "volume "+v.Name, "Everything at "+v.Mount
	if want.Path != "" {
		where, what = part(v, want.Path), path.Join(v.Mount, want.Path)+", with all that is below it,"
	}
	return fmt.Sprintf("Snapshot %s of %s was taken %s.\n%s becomes what it was then: what was changed or removed since is put\n"+
		"back, and what was made since is removed.\n"+
		"A snapshot of the present state is taken first: restoring that one undoes this.", want.Snapshot, where, taken, what)
}
