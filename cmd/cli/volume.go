package cli

import (
	"context"
	"fmt"
	"path/filepath"

	urfave "github.com/urfave/cli/v2"

	"tandemfs/cmd/api"
)

func volumeCommands(env *Env) []*urfave.Command {
	return []*urfave.Command{
		env.clientCommand(command{
			name: "create", args: "NAME DIR", run: createVolume,
			about: "protect a directory, with the files that are in it",
			description: "Without --mount the mount covers DIR itself, so that nothing can write around it. DIR may\n" +
				"hold files; they stay plain files of its filesystem. What the volume needs is kept in\n" +
				"DIR/.tandemfs, which the mount does not show.",
			flags: []urfave.Flag{
				&urfave.StringFlag{Name: "mount", Usage: "mount the volume at `PATH`, an empty directory"},
				&urfave.BoolFlag{Name: "nosuid", DisableDefaultText: true, Usage: "set-id bits have no effect on the mount"},
				&urfave.BoolFlag{Name: "nodev", DisableDefaultText: true, Usage: "device nodes cannot be opened on the mount"},
				&urfave.BoolFlag{Name: "show-snapshots", DisableDefaultText: true, Usage: "have listings of the mount's root name .snapshot"},
			},
		}),
		env.clientCommand(command{
			name: "list", run: listVolumes,
			about: "list this node's volumes",
		}),
		env.clientCommand(command{
			name: "show", args: "NAME", run: showVolume, complete: volumeNames,
			about: "show one volume",
		}),
		env.clientCommand(command{
			name: "rebuild", args: "NAME", run: rebuildVolume, complete: volumeNames,
			about: "begin a new journal where a volume's journal is damaged",
			description: "The old one is set aside in DIR/.tandemfs. The files stay, the snapshots are lost. What relationships\n" +
				"the volume has then compare both sides, and send what differs.",
			flags: []urfave.Flag{yesFlag()},
		}),
		env.clientCommand(command{
			name: "remove", args: "NAME", run: removeVolume, complete: volumeNames,
			about:       "end a directory's protection",
			description: "The volume is unmounted and DIR/.tandemfs deleted; DIR keeps its files. A volume that a\nrelationship uses is not removed.",
			flags:       []urfave.Flag{yesFlag()},
		}),
	}
}

func createVolume(ctx context.Context, c *call) error {
	want := api.CreateVolume{
		Name: c.Args().Get(0), NoSuid: c.Bool("nosuid"), NoDev: c.Bool("nodev"), ShowSnapshots: c.Bool("show-snapshots"),
	}
	var err error
	if want.Path, err = absolute(c.Args().Get(1)); err != nil {
		return err
	}
	if want.Mount, err = absolute(c.String("mount")); err != nil {
		return err
	}
	v, err := c.client.CreateVolume(ctx, want)
	if err != nil {
		return err
	}
	return c.answer(v, func(o *output) {
		o.line("volume %s protects %s, mounted at %s", v.Name, v.Path, v.Mount)
	})
}

// absolute completes a path here: the daemon has another working directory. None stays none.
func absolute(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	full, err := filepath.Abs(path)
	if err != nil {
		return "", usage("%s: %v", path, err)
	}
	return full, nil
}

func listVolumes(ctx context.Context, c *call) error {
	volumes, err := c.client.Volumes(ctx)
	if err != nil {
		return err
	}
	return c.answer(api.VolumeList{Volumes: volumes}, func(o *output) {
		if len(volumes) == 0 {
			o.line("no volumes yet: `tandemfs volume create NAME DIR` protects a directory")
			return
		}
		rows := [][]string{{"NAME", "DIRECTORY", "MOUNT", "STATE", "ACCESS", "RELATIONSHIPS"}}
		for _, v := range volumes {
			rows = append(rows, []string{v.Name, v.Path, v.Mount, volumeState(v), access(v.ReadOnly), fmt.Sprint(len(v.Relationships))})
		}
		o.table(rows)
	})
}

func showVolume(ctx context.Context, c *call) error {
	v, err := c.client.Volume(ctx, c.Args().First())
	if err != nil {
		return err
	}
	return c.answer(v, func(o *output) {
		o.line("volume %s", v.Name)
		o.fields(append([][2]string{
			{"directory", v.Path},
			{"mount", v.Mount + mountOptions(v)},
			{"state", volumeState(v)},
			{"access", access(v.ReadOnly)},
			{"relationships", list(v.Relationships)},
			{"id", v.ID},
			{"created", o.moment(v.Created)},
		}, aroundFields(o, v.Around)...))
	})
}

func rebuildVolume(ctx context.Context, c *call) error {
	name := c.Args().First()
	v, err := c.client.Volume(ctx, name)
	if err != nil {
		return err
	}
	warning := fmt.Sprintf("Volume %s begins a new journal. %s keeps its files; the snapshots of the volume are lost.", v.Name, v.Path)
	if err := c.confirm(ctx, warning, "Rebuild the volume?"); err != nil {
		return err
	}
	if v, err = c.client.RebuildVolume(ctx, name); err != nil {
		return err
	}
	return c.answer(v, func(o *output) { o.line("volume %s rebuilt, mounted at %s", v.Name, v.Mount) })
}

// aroundFields says what is known of changes around the mount.
func aroundFields(o *output, a *api.Around) [][2]string {
	if a == nil {
		return nil
	}
	watched := "yes"
	if !a.Watched {
		watched = "no, changes are found at the next start: " + a.Reason
	}
	sweep := "not needed"
	switch {
	case a.Sweeping:
		sweep = "under way, " + count(a.SweptFiles) + " files so far"
	case a.Swept != nil:
		sweep = "done " + o.moment(*a.Swept) + ", " + count(a.SweptFiles) + " files"
	}
	changes := count(a.Changes)
	if a.LastTime != nil {
		changes += ", the last one " + o.moment(*a.LastTime) + ": " + a.LastPath
	}
	if a.Error != "" {
		changes += "; cannot be recorded: " + a.Error
	}
	fields := [][2]string{{"watched", watched}, {"sweep", sweep}, {"around mount", changes}}
	if a.NamesInDoubt > 0 {
		fields = append(fields, [2]string{"names", "changed while nobody watched: the next transfer compares all of them"})
	}
	return fields
}

func removeVolume(ctx context.Context, c *call) error {
	name := c.Args().First()
	v, err := c.client.Volume(ctx, name)
	if err != nil {
		return err
	}
	warning := fmt.Sprintf("Volume %s will be unmounted from %s, and what it keeps in %s/.tandemfs deleted.\n"+
		"%s keeps its files and is not protected any more.", v.Name, v.Mount, v.Path, v.Path)
	if err := c.confirm(ctx, warning, "Remove the volume?"); err != nil {
		return err
	}
	if v, err = c.client.RemoveVolume(ctx, name); err != nil {
		return err
	}
	return c.answer(v, func(o *output) {
		o.line("volume %s removed: %s is a plain directory again", v.Name, v.Path)
		if v.Error != "" {
			o.line("note: %s", v.Error)
		}
	})
}

func volumeState(v api.Volume) string {
	if v.Error != "" {
		return string(v.State) + ": " + v.Error
	}
	return string(v.State)
}

func access(readOnly bool) string {
	if readOnly {
		return "read-only"
	}
	return "writable"
}

func mountOptions(v api.Volume) string {
	text := ""
	if v.NoSuid {
		text += ", nosuid"
	}
	if v.NoDev {
		text += ", nodev"
	}
	if v.ShowSnapshots {
		text += ", .snapshot shown"
	}
	return text
}

// volumeNames is for the shell's completion, which has no use for an error.
func volumeNames(ctx context.Context, client *api.Client) []string {
	volumes, _ := client.Volumes(ctx)
	var names []string
	for _, v := range volumes {
		names = append(names, v.Name)
	}
	return names
}
