// Command benchmount measures what a protected volume costs: the same work on a native directory, on
// go-fuse's loopback example over such a directory (passthrough off, or it would never see a write), and
// on a volume whose relationship to a second node is running. All three lie on one filesystem and take
// turns, round by round and each first as often as the others; what is printed are medians over the
// rounds, and how the volume's rate compares to the other two.
//
// Between two turns the copy catches up and everything is written back, so that nobody works in another's
// time. In a row called cold the kernel's caches were dropped just before, in one called warm the same
// thing was done once before.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/integration/figures"
	"tandemfs/integration/lab"
)

// options are the flags.
type options struct {
	rounds int
	rows   *regexp.Regexp
	size   int64 // of the file that is read and written, in bytes
	files  int   // how many small ones
	dir    string
	kind   string
	build  string // the package that is built
}

func main() {
	if len(os.Args) == 4 && os.Args[1] == loopbackCommand {
		if err := serveLoopback(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, "loopback:", err)
			os.Exit(1)
		}
		return
	}
	o := parse()
	if err := lab.Private(); err != nil {
		fmt.Fprintln(os.Stderr, "benchmount:", err)
		os.Exit(1)
	}
	t := &lab.Host{}
	defer t.End()
	measure(t, o)
}

func parse() options {
	var o options
	rows := flag.String("rows", ".", "measure the rows whose names match this regular `expression`")
	mib := flag.Int64("size", 128, "size of the large file, in MiB")
	flag.IntVar(&o.rounds, "rounds", 5, "how often each contender does each row")
	flag.IntVar(&o.files, "files", 3000, "how many small files")
	flag.StringVar(&o.dir, "dir", "", "an existing `directory` to work in (default: a new filesystem on a loop device)")
	flag.StringVar(&o.kind, "kind", lab.Ext4, "which filesystem to make: ext4, xfs or btrfs")
	flag.StringVar(&o.build, "build", "strconv", "the standard `package` to build")
	flag.Parse()
	o.size = *mib << 20
	var err error
	if o.rows, err = regexp.Compile(*rows); err != nil || flag.NArg() > 0 || o.rounds < 1 || o.files < 10 || *mib < 2 {
		fmt.Fprintln(os.Stderr, "benchmount: an argument makes no sense:", strings.Join(os.Args[1:], " "))
		os.Exit(2)
	}
	if os.Getenv(lab.BinaryVariable) == "" {
		fmt.Fprintf(os.Stderr, "benchmount: set %s to the tandemfs binary, or use make bench-mount\n", lab.BinaryVariable)
		os.Exit(2)
	}
	return o
}

// measure lets the contenders take turns and prints the table.
func measure(t *lab.Host, o options) {
	contenders := prepare(t, o)
	var table results
	for _, row := range rows(o) {
		if !o.rows.MatchString(row.name) {
			continue
		}
		for round := range o.rounds {
			for i := range contenders {
				c := contenders[(round+i)%len(contenders)]
				settled := func() { settle(contenders) }
				settled()
				rate, err := row.measure(filepath.Join(c.dir, fmt.Sprintf("%s-%d", row.directory(), round)), settled)
				if err != nil {
					t.Fatalf("%s on %s: %v", row.name, c.name, err)
				}
				table.add(row, c.name, rate)
			}
		}
		fmt.Fprintf(os.Stderr, "measured: %s\n", row.name)
	}
	table.print(os.Stdout, o)
}

// settle waits until the copy has caught up and everything is on the disk.
func settle(contenders []contender) {
	for _, c := range contenders {
		if c.quiet != nil {
			c.quiet()
		}
	}
	unix.Sync()
	time.Sleep(50 * time.Millisecond)
}

// results are the rates of each row, by contender, in the order in which the rows came.
type results struct {
	rows  []row
	rates map[string]map[string][]float64
}

func (r *results) add(of row, contender string, rate float64) {
	if r.rates == nil {
		r.rates = make(map[string]map[string][]float64)
	}
	if r.rates[of.name] == nil {
		r.rates[of.name] = make(map[string][]float64)
		r.rows = append(r.rows, of)
	}
	r.rates[of.name][contender] = append(r.rates[of.name][contender], rate)
}

func (r *results) print(to *os.File, o options) {
	where := "a new " + o.kind + " on a loop device"
	if o.dir != "" {
		where = o.dir
	}
	fmt.Fprintf(to, "Medians of %d rounds, on %s; rates per second, more is better.\n\n", o.rounds, where)
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "row\tunit\tnative\tloopback\ttandem\ttandem/native\ttandem/loopback\t")
	for _, row := range r.rows {
		rates := r.rates[row.name]
		native, loopback, tandem := figures.Median(rates[nativeName]), figures.Median(rates[loopbackName]), figures.Median(rates[tandemName])
		fmt.Fprintf(w, "%s\t%s\t%.6g\t%.6g\t%.6g\t%.2f\t%.2f\t\n", row.name, row.unit, rounded(native), rounded(loopback),
			rounded(tandem), tandem/native, tandem/loopback)
	}
	w.Flush()
}

// rounded takes away the digits that mean nothing.
func rounded(rate float64) float64 {
	if rate >= 1000 {
		return float64(int64(rate/10) * 10)
	}
	return float64(int64(rate*100)) / 100
}
