// Package cli is the command line: it reads what a person or a script types, asks the node's daemon over
// its socket, and shows the answer.
//
// It guarantees that with --json the answer has the API's own form and nothing else is written to the
// standard output; that the exit code tells what kind of failure there was; that nothing which loses or
// exposes something happens without a yes; and that what another node sends cannot steer the terminal.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"tandemfs/cmd/api"
	"tandemfs/cmd/daemon"
)

// Env is all that the commands touch of the process that they run in.
type Env struct {
	Args    []string // the program's name first
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	Version string

	Asks  bool       // a person is there to answer: the standard input is a terminal
	Shows bool       // a person is there to watch: the standard output is a terminal
	Width func() int // columns of that terminal
	Now   func() time.Time

	// Serve runs a node until the context ends.
	Serve func(context.Context, daemon.Options) error
	// Guard is the process that a node starts to guard its mounts.
	Guard func() error
}

// Run does what the arguments say and gives the exit code.
func Run(ctx context.Context, env Env) int {
	app := newApp(&env)
	err := app.RunContext(ctx, flagsFirst(app, env.Args))
	if err != nil {
		env.report(err)
	}
	return exitCode(err)
}

// report writes an error where errors go: in words, or with --json in the API's form.
func (e *Env) report(err error) {
	if slices.Contains(e.Args, "--json") {
		_ = json.NewEncoder(e.Stderr).Encode(map[string]*api.Error{"error": api.AsError(err)})
		return
	}
	fmt.Fprintf(e.Stderr, "tandemfs: %s\n", printable(err.Error()))
}

// The exit codes; docs/cli.md has them for users.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitRefused     = 4
	exitUnreachable = 5
	exitPeer        = 6
	exitDifferent   = 7
)

// exitCodes gives the exit code of each of the API's codes.
var exitCodes = map[api.Code]int{
	api.CodeInvalid:     exitUsage,
	api.CodeTooLarge:    exitUsage,
	api.CodeNotFound:    exitNotFound,
	api.CodeConflict:    exitRefused,
	api.CodeForbidden:   exitRefused,
	api.CodeUnreachable: exitUnreachable,
	api.CodePeer:        exitPeer,
	api.CodeInternal:    exitFailure,
}

func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	if errors.Is(err, errDifferent) {
		return exitDifferent
	}
	return exitCodes[api.AsError(err).Code]
}

// usage makes the error of somebody who typed what cannot be understood.
func usage(format string, args ...any) error { return api.Errorf(api.CodeInvalid, format, args...) }
