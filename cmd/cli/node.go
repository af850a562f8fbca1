package cli

import (
	"context"
	"io"
	"runtime"

	urfave "github.com/urfave/cli/v2"
)

func nodeCommands(env *Env) []*urfave.Command {
	return []*urfave.Command{env.clientCommand(command{
		name: "show", run: showNode,
		about:       "show the node's name, its fingerprint and where it answers",
		description: "The fingerprint is what the other end of a relationship is asked to trust.",
	})}
}

func showNode(ctx context.Context, c *call) error {
	n, err := c.client.Info(ctx)
	if err != nil {
		return err
	}
	return c.answer(n, func(o *output) {
		o.line("node %s", n.Name)
		o.fields([][2]string{
			{"fingerprint", n.Fingerprint},
			{"listens at", n.Listen},
			{"version", n.Version},
			{"state folder", n.State},
			{"running since", o.moment(n.Started)},
		})
	})
}

// versionCommand tells what this program is, without asking the daemon.
func versionCommand(env *Env) *urfave.Command {
	return &urfave.Command{
		Name: "version", Usage: "show this program's version",
		HideHelpCommand: true, OnUsageError: usageError,
		Flags: []urfave.Flag{&urfave.BoolFlag{Name: "json", DisableDefaultText: true, Usage: "answer in JSON"}},
		Action: func(u *urfave.Context) error {
			if err := checkArgs(u, ""); err != nil {
				return err
			}
			version := struct {
				Version string `json:"version"`
				Go      string `json:"go"`
			}{env.Version, runtime.Version()}
			return (&call{Context: u, env: env}).answer(version, func(o *output) {
				o.line("tandemfs %s (%s)", version.Version, version.Go)
			})
		},
	}
}

// completionScript has the shell ask the program itself; zsh reads it through its own bashcompinit.
const completionScript = `_tandemfs() {
	local words
	words=$("${COMP_WORDS[@]:0:COMP_CWORD}" --generate-bash-completion 2>/dev/null)
	COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _tandemfs tandemfs
`

// completionCommand prints the script for the user's shell.
func completionCommand(env *Env) *urfave.Command {
	return &urfave.Command{
		Name: "completion", ArgsUsage: "SHELL", Usage: "print the completion script for bash or zsh",
		Description:     "Load it with: source <(tandemfs completion bash)",
		HideHelpCommand: true, OnUsageError: usageError,
		Action: func(u *urfave.Context) error {
			if err := checkArgs(u, "SHELL"); err != nil {
				return err
			}
			script := completionScript
			switch shell := u.Args().First(); shell {
			case "bash":
			case "zsh":
				script = "autoload -U +X bashcompinit && bashcompinit\n" + script
			default:
				return usage("there is no completion for %q: bash and zsh have one", shell)
			}
			_, err := io.WriteString(env.Stdout, script)
			return err
		},
	}
}
