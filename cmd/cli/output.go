package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/dustin/go-humanize"
)

// output writes for people. Everything passes through printable.
type output struct {
	to  io.Writer
	now func() time.Time
	err error // the first error of a write
}

// answer writes a command's result: as JSON, or in words.
func (c *call) answer(value any, words func(*output)) error {
	if c.Bool("json") {
		e := json.NewEncoder(c.env.Stdout)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		return e.Encode(value)
	}
	o := &output{to: c.env.Stdout, now: c.env.Now}
	words(o)
	return o.err
}

func (o *output) write(text string) {
	if _, err := io.WriteString(o.to, text); err != nil && o.err == nil {
		o.err = err
	}
}

// line writes one line.
func (o *output) line(format string, args ...any) {
	o.write(printable(fmt.Sprintf(format, args...)) + "\n")
}

// fields writes names and values below each other; what has no value is left out.
func (o *output) fields(pairs [][2]string) {
	var rows [][]string
	for _, pair := range pairs {
		if pair[1] != "" {
			rows = append(rows, []string{"  " + pair[0], pair[1]})
		}
	}
	o.table(rows)
}

// table writes rows in columns.
func (o *output) table(rows [][]string) {
	w := tabwriter.NewWriter(writerFunc(o.write), 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			row[i] = oneLine(cell)
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	_ = w.Flush() // its only errors are the writer's, and that has none
}

type writerFunc func(string)

func (f writerFunc) Write(p []byte) (int, error) { f(string(p)); return len(p), nil }

// printable keeps control characters from the terminal: names, paths and errors may come from elsewhere.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, text)
}

// oneLine is printable for what must not look like more than one line.
func oneLine(text string) string { return strings.ReplaceAll(printable(text), "\n", " ") }

// moment writes a time, here and relative to now; "" for none.
func (o *output) moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format(time.DateTime) + " (" + relative(o.now().Sub(t)) + ")"
}

// relative writes how long ago something was, or will be.
func relative(d time.Duration) string {
	switch {
	case d <= -time.Second:
		return "in " + duration(-d)
	case d < time.Second:
		return "now"
	}
	return duration(d) + " ago"
}

// duration writes a length of time in its two largest units.
func duration(d time.Duration) string {
	units := []struct {
		length time.Duration
		name   string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "min"}, {time.Second, "s"}}
	for i, unit := range units {
		if d < unit.length {
			continue
		}
		text := fmt.Sprintf("%d %s", d/unit.length, unit.name)
		if i+1 < len(units) {
			if rest := d % unit.length / units[i+1].length; rest > 0 {
				text += fmt.Sprintf(" %d %s", rest, units[i+1].name)
			}
		}
		return text
	}
	if d == 0 {
		return "0 s"
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// seconds is duration for a number of seconds.
func seconds(s float64) string { return duration(time.Duration(s * float64(time.Second))) }

// size writes a number of bytes in IEC units.
func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// hint writes a command so that it can be given to a shell.
func hint(command string, flags []string, args ...string) string {
	words := append([]string{"tandemfs " + command}, flags...)
	if slices.ContainsFunc(args, func(arg string) bool { return strings.HasPrefix(arg, "-") }) {
		words = append(words, "--")
	}
	words = append(words, args...)
	for i, word := range words[1:] {
		words[i+1] = shellWord(word)
	}
	return strings.Join(words, " ")
}

var plainWord = regexp.MustCompile(`^[\w@%+=:,./-]+$`)

// shellWord quotes a word that a shell would not take as it is.
func shellWord(word string) string {
	if plainWord.MatchString(word) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

func count(n int64) string { return humanize.Comma(n) }

// list writes names one after the other.
func list(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}
