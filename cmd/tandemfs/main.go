// Command tandemfs is the whole of Tandem: the daemon of a node, and the commands that speak to it.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/term"

	"tandemfs/cmd/cli"
	"tandemfs/cmd/daemon"
)

// version is set by the build.
var version = "0.1.0"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(cli.Run(ctx, cli.Env{
		Args: os.Args, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Version: version,
		Asks: term.IsTerminal(int(os.Stdin.Fd())), Shows: term.IsTerminal(int(os.Stdout.Fd())),
		Width: terminalWidth, Now: time.Now, Serve: daemon.Run, Guard: daemon.Guard,
	}))
}

// terminalWidth gives the columns of the standard output's terminal; 80 where it does not say.
func terminalWidth() int {
	width, _, err := term.GetSize(int(os.Stdout.Fd()))
	if err != nil || width < 1 {
		return 80
	}
	return width
}
