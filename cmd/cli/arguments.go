package cli

import (
	"slices"
	"strings"

	urfave "github.com/urfave/cli/v2"
)

// completionFlag is what the shells' completion puts last; such a line is not rearranged.
const completionFlag = "--generate-bash-completion"

// flagsFirst moves the flags of a command before its other arguments, so that people may write them in any
// order: the parser stops at the first argument that is not a flag. What follows a lone "--" stays.
func flagsFirst(app *urfave.App, args []string) []string {
	if len(args) == 0 || args[len(args)-1] == completionFlag {
		return args
	}
	command, depth := findCommand(app.Commands, args)
	if command == nil || len(command.Subcommands) > 0 {
		return args
	}
	var flags, others []string
	rest := args[depth:]
	for i := 0; i < len(rest); i++ {
		arg := rest[i]
		switch {
		case arg == "--":
			others = append(others, rest[i+1:]...)
			i = len(rest)
		case len(arg) < 2 || arg[0] != '-':
			others = append(others, arg)
		case arg == "--help" || arg == "-h":
			return append(slices.Clone(args[:depth]), arg) // with more, the parser looks for a topic
		default:
			flags = append(flags, arg)
			if takesValue(command, arg) && i+1 < len(rest) {
				i++
				flags = append(flags, rest[i])
			}
		}
	}
	return slices.Concat(args[:depth], flags, []string{"--"}, others)
}

// findCommand follows the names at the beginning of args; depth is how many arguments they are.
func findCommand(commands []*urfave.Command, args []string) (found *urfave.Command, depth int) {
	for depth = 1; depth < len(args); depth++ {
		i := slices.IndexFunc(commands, func(c *urfave.Command) bool { return c.HasName(args[depth]) })
		if i < 0 {
			break
		}
		found, commands = commands[i], commands[i].Subcommands
	}
	return found, depth
}

// takesValue reports whether the next argument belongs to the flag.
func takesValue(command *urfave.Command, arg string) bool {
	if strings.Contains(arg, "=") {
		return false
	}
	for _, flag := range command.Flags {
		if slices.Contains(flag.Names(), strings.TrimLeft(arg, "-")) {
			_, is := flag.(*urfave.BoolFlag)
			return !is
		}
	}
	return false
}
