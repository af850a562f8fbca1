package cli

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	urfave "github.com/urfave/cli/v2"

	"tandemfs/cmd/daemon"
	"tandemfs/replicator"
)

// serveCommand runs a node.
func serveCommand(env *Env) *urfave.Command {
	return &urfave.Command{
		Name:  "serve",
		Usage: "run this host's node until it is told to end (SIGTERM, SIGINT)",
		Description: "The node mounts its volumes, resumes its relationships, and then logs \"ready\". What it\n" +
			"keeps is in the state folder, its identity among it: keep a backup of identity.pem. A second\n" +
			"signal ends it at once, without a clean end.",
		HideHelpCommand: true, OnUsageError: usageError,
		Flags: []urfave.Flag{
			&urfave.StringFlag{Name: "state", Value: "/var/lib/tandemfs", Usage: "the node's own `DIR`, made at the first start"},
			&urfave.StringFlag{Name: "listen", Value: fmt.Sprintf(":%d", replicator.DefaultPort), Usage: "answer peers at `ADDR:PORT`"},
			socketFlag("answer this host's commands at `PATH`"),
			&urfave.StringFlag{Name: "name", Usage: "the node's `NAME` (default: the host's)"},
			&urfave.BoolFlag{Name: "log-json", DisableDefaultText: true, Usage: "log in JSON"},
			&urfave.BoolFlag{Name: "debug", DisableDefaultText: true, Usage: "log more"},
		},
		Action: func(u *urfave.Context) error {
			if err := checkLine(u, ""); err != nil {
				return err
			}
			options, err := serveOptions(u, env)
			if err != nil {
				return err
			}
			return env.Serve(u.Context, options)
		},
	}
}

// guardCommand is for the node alone, which starts it.
func guardCommand(env *Env) *urfave.Command {
	return &urfave.Command{
		Name: daemon.GuardCommand, Hidden: true, HideHelpCommand: true,
		Action: func(*urfave.Context) error { return env.Guard() },
	}
}

func serveOptions(u *urfave.Context, env *Env) (daemon.Options, error) {
	o := daemon.Options{
		Name: u.String("name"), Listen: u.String("listen"), Version: env.Version,
		Logger: slog.New(logHandler(u, env)),
	}
	var err error
	if o.Name == "" {
		if o.Name, err = os.Hostname(); err != nil {
			return o, usage("this host has no name (%v): give the node one with --name", err)
		}
	}
	if o.State, err = filepath.Abs(u.String("state")); err != nil {
		return o, usage("--state: %v", err)
	}
	if o.Socket, err = filepath.Abs(u.String("socket")); err != nil {
		return o, usage("--socket: %v", err)
	}
	return o, nil
}

func logHandler(u *urfave.Context, env *Env) slog.Handler {
	options := &slog.HandlerOptions{Level: slog.LevelInfo}
	if u.Bool("debug") {
		options.Level = slog.LevelDebug
	}
	if u.Bool("log-json") {
		return slog.NewJSONHandler(env.Stderr, options)
	}
	return slog.NewTextHandler(env.Stderr, options)
}
