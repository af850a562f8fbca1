package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"

	urfave "github.com/urfave/cli/v2"
)

func yesFlag() urfave.Flag {
	return &urfave.BoolFlag{Name: "yes", Aliases: []string{"y"}, DisableDefaultText: true, Usage: "do not ask"}
}

// errNotConfirmed ends a command whose question was not answered with yes.
var errNotConfirmed = errors.New("not confirmed: nothing was changed")

// confirm says what is about to happen and asks. --yes answers beforehand; without it and without anybody
// to ask, the command is refused.
func (c *call) confirm(ctx context.Context, warning, question string) error {
	if c.Bool("yes") {
		return nil
	}
	if !c.env.Asks {
		return usage("%s\nThere is no terminal to ask on: say --yes if that is what you want", warning)
	}
	fmt.Fprintf(c.env.Stderr, "%s\n%s [y/N] ", printable(warning), question)
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(c.env.Stdin).ReadString('\n') // the end of the input is a no
		answer <- line
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(c.env.Stderr)
		return errNotConfirmed
	case line := <-answer:
		switch strings.ToLower(strings.TrimSpace(line)) {
		case "y", "yes":
			return nil
		}
		return errNotConfirmed
	}
}
