package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"tandemfs/integration/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

func TestEveryTableIsMadeOfSmallVolumes(t *testing.T) {
	o, err := parse([]string{"-few", "200", "-many", "2000", "-seals", "3", "-writers", "2", "-window", "5ms",
		"-size", "1", "-rounds", "1", "-diffs", "2"})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	measure(t, o, &out)
	t.Logf("\n%s", &out)
	for text, lines := range map[string]int{"request for a snapshot": 2, "longest wait of a writer": 6, "ext4": 2, "xfs": 2, "small files, warm": 2, "large file": 2} {
		if n := strings.Count(out.String(), text); n != lines {
			t.Errorf("%q is there %d times, want %d", text, n, lines)
		}
	}
}

func TestTheLongestWaitIsThatOfAnOperationUnderWayInTheWindow(t *testing.T) {
	l := &load{writers: []*writer{
		{operations: []operation{{0, 10}, {10, 12}, {12, 40}, {40, 41}}},
		{operations: []operation{{0, 15}, {16, 19}, {30, 36}}},
	}}
	for _, c := range []struct{ from, to, want time.Duration }{
		{11, 11, 15}, {20, 25, 28}, {0, 5, 15}, {41, 50, 1}, {50, 60, 0}, {16, 18, 28},
	} {
		if got := l.longest(c.from, c.to); got != c.want {
			t.Errorf("from %d to %d: %d, want %d", c.from, c.to, got, c.want)
		}
	}
}

func TestADistributionHasTheLeastTheMedianAndTheMost(t *testing.T) {
	times := []time.Duration{3 * time.Millisecond, time.Millisecond, 2500 * time.Microsecond}
	if got, want := strings.Join(distribution(times), " "), "3 1.00 2.50 3.00 3.00"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestArgumentsThatMakeNoSenseAreRefused(t *testing.T) {
	for _, args := range [][]string{{"-few", "1"}, {"-seals", "0"}, {"-window", "0s"}, {"-tables", "("}, {"word"}} {
		if _, err := parse(args); err == nil {
			t.Errorf("%q was accepted", args)
		}
	}
}
