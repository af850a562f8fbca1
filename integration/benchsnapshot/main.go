// Command benchsnapshot measures what snapshots cost: how long one takes and how much it holds up those who
// write meanwhile, what overwriting costs while snapshots are kept, how fast they are read beside the live files,
// and how long the difference of two takes.
// The daemon is asked over its socket directly, so that no start of a program is in the figures.
//
// What is compared takes turns within one run. Nothing is synced within a measured time; what was written is
// written back between two turns, when nothing is measured.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"text/tabwriter"
	"time"

	"tandemfs/integration/figures"
	"tandemfs/integration/lab"
)

// options are the flags.
type options struct {
	tables *regexp.Regexp
	few    int // files in the small volume
	many   int // files in the large one

	seals   int           // snapshots taken of each volume under load
	writers int           // who make the load
	window  time.Duration // in which a writer's longest wait is looked for

	size   int64 // of the file that is overwritten or read, in bytes
	rounds int   // how often it is, for each number of snapshots

	diffs int // differences asked for in each volume
}

func main() {
	o, err := parse(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchsnapshot:", err)
		os.Exit(2)
	}
	if err := lab.Private(); err != nil {
		fmt.Fprintln(os.Stderr, "benchsnapshot:", err)
		os.Exit(1)
	}
	t := &lab.Host{}
	defer t.End()
	measure(t, o, os.Stdout)
}

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("benchsnapshot", flag.ExitOnError)
	tables := flags.String("tables", ".", "make the tables whose names match this regular `expression`: seal, overwrite, read, diff")
	mib := flags.Int64("size", 128, "size of the file that is overwritten, and of the one that is read, in MiB")
	flags.IntVar(&o.few, "few", 10_000, "how many files are in the small volume")
	flags.IntVar(&o.many, "many", 1_000_000, "how many files are in the large volume")
	flags.IntVar(&o.seals, "seals", 100, "how many snapshots are taken of each volume under load")
	flags.IntVar(&o.writers, "writers", 4, "how many writers make the load")
	flags.DurationVar(&o.window, "window", 100*time.Millisecond, "the time in which a writer's longest wait is looked for")
	flags.IntVar(&o.rounds, "rounds", 5, "how often the file is overwritten with each number of snapshots, and read")
	flags.IntVar(&o.diffs, "diffs", 50, "how many differences are asked for in each volume")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	o.size = *mib << 20
	var err error
	if o.tables, err = regexp.Compile(*tables); err != nil {
		return o, err
	}
	if flags.NArg() > 0 || *mib < 1 || min(o.few, o.many) < 100 || min(o.seals, o.writers, o.rounds, o.diffs) < 1 || o.window <= 0 {
		return o, fmt.Errorf("an argument makes no sense: %s", strings.Join(args, " "))
	}
	if os.Getenv(lab.BinaryVariable) == "" {
		return o, fmt.Errorf("set %s to the tandemfs binary, or use make bench-snapshot", lab.BinaryVariable)
	}
	return o, nil
}

// measure makes the tables that were asked for and prints each as soon as it is there.
func measure(t lab.T, o options, out io.Writer) {
	node := lab.StartNode(t, lab.NewNamespace(t), "alpha")
	var volumes []*volume
	if o.tables.MatchString("seal") || o.tables.MatchString("diff") {
		volumes = []*volume{adopt(t, node, "few", o.few), adopt(t, node, "many", o.many)}
	}
	for _, table := range []struct {
		name string
		make func() error
	}{
		{"seal", func() error { return sealTable(volumes, o, out) }},
		{"overwrite", func() error { return overwriteTable(t, node, o, out) }},
		{"read", func() error { return readTable(t, node, o, out) }},
		{"diff", func() error { return diffTable(volumes, o, out) }},
	} {
		if !o.tables.MatchString(table.name) {
			continue
		}
		if err := table.make(); err != nil {
			t.Fatalf("%s: %v", table.name, err)
		}
	}
}

// columns starts a table.
func columns(out io.Writer, titles ...string) *tabwriter.Writer {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	line(w, titles...)
	return w
}

func line(w io.Writer, cells ...string) { fmt.Fprintln(w, strings.Join(cells, "\t")+"\t") }

// distributionTitles are those of distribution's cells.
var distributionTitles = []string{"times", "min ms", "median ms", "p99 ms", "max ms"}

// distribution tells how times are distributed: how many there are, the least, the median, what 99 in 100 do
// not exceed, the most.
func distribution(times []time.Duration) []string {
	cells := []string{fmt.Sprint(len(times))}
	for _, q := range []float64{0, 0.5, 0.99, 1} {
		cells = append(cells, fmt.Sprintf("%.2f", float64(figures.Quantile(times, q))/float64(time.Millisecond)))
	}
	return cells
}
