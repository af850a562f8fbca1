package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"
	"unicode/utf8"

	urfave "github.com/urfave/cli/v2"

	"tandemfs/cmd/api"
)

// defaultSocket is where a node answers its own user, unless told otherwise.
const defaultSocket = "/run/tandemfs.sock"

// newApp puts the commands together.
func newApp(env *Env) *urfave.App {
	return &urfave.App{
		Name:      "tandemfs",
		UsageText: "tandemfs COMMAND ...",
		Usage:     "protect a directory, and keep a second host's copy of it a moment behind",
		Description: "Run a node with `tandemfs serve` on each host. Protect a directory with `volume create`,\n" +
			"propose its replication with `relationship create`, and accept that on the other host with\n" +
			"`relationship authorize`. Every command explains itself with --help.",
		Version:              env.Version,
		Writer:               env.Stdout,
		ErrWriter:            env.Stderr,
		HideHelpCommand:      true,
		EnableBashCompletion: true,
		ExitErrHandler:       func(*urfave.Context, error) {}, // Run reports
		OnUsageError:         usageError,
		Action:               noCommand,
		Commands: []*urfave.Command{
			serveCommand(env),
			guardCommand(env),
			group("volume", "protect directories", volumeCommands(env)),
			group("snapshot", "keep, compare and bring back what volumes were", snapshotCommands(env)),
			group("relationship", "replicate volumes to other nodes", relationshipCommands(env)),
			group("node", "look at the node itself", nodeCommands(env)),
			versionCommand(env),
			completionCommand(env),
		},
	}
}

// group makes a command that only holds others.
func group(name, about string, commands []*urfave.Command) *urfave.Command {
	return &urfave.Command{
		Name: name, Usage: about, UsageText: "tandemfs " + name + " COMMAND ...", Subcommands: commands,
		HideHelpCommand: true, OnUsageError: usageError, Action: noCommand,
	}
}

func usageError(_ *urfave.Context, err error, _ bool) error { return usage("%v (see --help)", err) }

// noCommand answers a line that names no command.
func noCommand(c *urfave.Context) error {
	path := strings.TrimSpace(c.Command.HelpName)
	if path == "" {
		path = c.App.Name
	}
	if c.Args().Present() {
		return usage("`%s` has no command %q (see %s --help)", path, c.Args().First(), path)
	}
	if err := urfave.ShowSubcommandHelp(c); err != nil {
		return err
	}
	return usage("a command is missing")
}

// command describes one command: what it is called, which arguments it takes (a word each, in brackets when it
// may be left out), and what it does.
type command struct {
	name, args, about, description string
	flags                          []urfave.Flag
	run                            func(context.Context, *call) error
	complete                       func(context.Context, *api.Client) []string // what the last argument may be
}

// socketFlag names the control socket. An empty variable in the environment is as good as none.
func socketFlag(usage string) urfave.Flag {
	const variable = "TANDEMFS_SOCKET"
	return &urfave.StringFlag{
		Name: "socket", Value: cmp.Or(os.Getenv(variable), defaultSocket), Usage: usage,
		DefaultText: fmt.Sprintf("%q, or what %s says", defaultSocket, variable),
	}
}

// call is a command that was given: with its arguments, and what it needs to carry them out.
type call struct {
	*urfave.Context
	env    *Env
	client *api.Client
}

// clientCommand makes a command that asks the daemon.
func (e *Env) clientCommand(c command) *urfave.Command {
	flags := []urfave.Flag{
		socketFlag("the daemon's control socket, a `PATH`"),
		&urfave.BoolFlag{Name: "json", DisableDefaultText: true, Usage: "answer in the API's JSON"},
	}
	return &urfave.Command{
		Name: c.name, ArgsUsage: c.args, Usage: c.about, Description: c.description,
		Flags: append(c.flags, flags...), HideHelpCommand: true, OnUsageError: usageError,
		Action: func(u *urfave.Context) error {
			if err := checkLine(u, c.args); err != nil {
				return err
			}
			client := api.NewClient(u.String("socket"))
			defer client.Close()
			return c.run(u.Context, &call{u, e, client})
		},
		BashComplete: func(u *urfave.Context) { e.complete(u, c) },
	}
}

// checkLine refuses what cannot be meant: other arguments than a command takes, and flags without a value.
func checkLine(u *urfave.Context, args string) error {
	if err := checkArgs(u, args); err != nil {
		return err
	}
	for _, flag := range u.Command.Flags {
		f, text := flag.(*urfave.StringFlag)
		if !text || !u.IsSet(f.Name) || f.Name == cursorFlag {
			continue
		}
		if u.String(f.Name) == "" { // a script's variable may be: without the flag the command does something else
			return usage("--%s is empty", f.Name)
		}
		if err := checkText(u.String(f.Name)); err != nil {
			return err
		}
	}
	return nil
}

// checkText refuses what cannot be told to the daemon as it is: JSON has no other text.
func checkText(text string) error {
	if !utf8.ValidString(text) {
		return usage("%q is not UTF-8, and cannot be named here", text)
	}
	return nil
}

// checkArgs refuses more or fewer arguments than a command takes.
func checkArgs(u *urfave.Context, want string) error {
	words, got := strings.Fields(want), u.Args().Slice()
	if len(got) > len(words) {
		return usage("%q is too much: %s %s (see --help)", got[len(words)], u.Command.HelpName, want)
	}
	for i, word := range words {
		name := strings.Trim(word, "[]")
		switch {
		case i >= len(got) && name == word:
			return usage("%s is missing: %s %s (see --help)", name, u.Command.HelpName, want)
		case i < len(got) && got[i] == "": // also where it could be left out: a script's variable may be empty
			return usage("%s is empty", name)
		}
		if i < len(got) {
			if err := checkText(got[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// complete prints what may follow on the line: the flags, and the names that the daemon knows.
func (e *Env) complete(u *urfave.Context, c command) {
	urfave.DefaultCompleteWithFlags(u.Command)(u)
	if c.complete == nil || u.Args().Len() > 0 {
		return
	}
	client := api.NewClient(u.String("socket"))
	defer client.Close()
	for _, name := range c.complete(u.Context, client) {
		fmt.Fprintln(e.Stdout, name)
	}
}
