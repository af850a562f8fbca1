package journal

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"
)

const childVariable = "JOURNAL_TEST_CHILD"

// TestMain is also the child of the kill test: it does what it reads and reports each thing done.
func TestMain(m *testing.M) {
	if dir := os.Getenv(childVariable); dir != "" {
		if err := child(dir, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func child(dir string, in io.Reader, out io.Writer) error {
	j, err := Open(dir, small())
	if err != nil {
		return err
	}
	for lines := bufio.NewScanner(in); lines.Scan(); {
		a, err := parseAction(lines.Text())
		if err != nil {
			return err
		}
		if err := a.run(j); err != nil {
			return fmt.Errorf("%+v: %w", a, err)
		}
		if _, err := out.Write([]byte{'.'}); err != nil {
			return err
		}
	}
	return j.Close()
}

const actionFormat = "%q %d %d %q %d %d %d %d %d %t %d"

func (a action) String() string {
	return fmt.Sprintf(actionFormat, a.kind, a.id.Ino, a.id.Gen, a.name, a.was.Ino, a.was.Gen,
		a.extent.Off, a.extent.End, a.size, a.hold, a.epoch)
}

func parseAction(line string) (a action, err error) {
	_, err = fmt.Sscanf(line, actionFormat, &a.kind, &a.id.Ino, &a.id.Gen, &a.name, &a.was.Ino, &a.was.Gen,
		&a.extent.Off, &a.extent.End, &a.size, &a.hold, &a.epoch)
	return a, err
}

// killed runs a child on dir, gives it actions until it was killed at a random moment, and returns the
// actions that it got and how many of them it reported as done.
func killed(t *testing.T, dir string, after time.Duration, next func() action) (given []action, done int) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+dir)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	reports := make(chan struct{}, 1<<16)
	go func() {
		defer close(reports)
		for b := make([]byte, 1); ; {
			if _, err := out.Read(b); err != nil {
				return
			}
			reports <- struct{}{}
		}
	}()
	var kill *time.Timer
	for alive := true; alive; {
		if len(given)-done < 8 { // few enough to try which of them were done
			a := next()
			given = append(given, a)
			if _, err := fmt.Fprintln(in, a); err == nil {
				continue
			}
		}
		_, alive = <-reports
		if alive {
			done++
		}
		if kill == nil {
			kill = time.AfterFunc(after, func() { cmd.Process.Kill() })
		}
	}
	for range reports {
		done++
	}
	if err := cmd.Wait(); cmd.ProcessState.Exited() {
		t.Fatalf("the child ended by itself: %v", err)
	}
	return given, done
}

func TestWhatWasAcknowledgedIsThereAfterAKillAtAnyInstruction(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d; the moments of the kills are not repeatable", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	m := newModel()
	total := 0
	for round := range 8 {
		ahead := m.clone()
		given, done := killed(t, dir, time.Duration(r.IntN(60_000))*time.Microsecond, func() action {
			a := ahead.nextAction(r)
			ahead.apply(a)
			return a
		})
		total += done
		m = afterKill(t, dir, m, given, done, round)
	}
	t.Logf("%d actions were acknowledged", total)
}

// afterKill opens what the killed child left, and finds the state that it is in: all that was acknowledged
// and perhaps some of what was on the way.
func afterKill(t *testing.T, dir string, m *model, given []action, done, round int) *model {
	t.Helper()
	j := open(t, dir, small())
	defer func() { must(t, j.Close()) }()
	for _, a := range given[:done] {
		m.apply(a)
	}
	seal := action{kind: "seal"} // so that what was on the way is seen too
	must(t, seal.run(j))
	differences := ""
	for i := done; ; i++ {
		now := m.clone()
		now.restarted()
		now.apply(seal)
		d := now.diff(t, j)
		if d == "" {
			return now
		}
		differences += "\n" + d
		if i == len(given) {
			t.Fatalf("round %d: after %d actions acknowledged of %d the journal agrees with none of the states:%s",
				round, done, len(given), differences)
		}
		m.apply(given[i])
	}
}

func (m *model) clone() *model {
	c := newModel()
	c.epoch, c.forgotten = m.epoch, m.forgotten
	for n, count := range m.held {
		c.held[n] = count
	}
	for n, e := range m.epochs {
		m := &modelEpoch{map[Ident]*modelInode{}, map[nameKey]Ident{}, map[Ident]int64{}}
		for id, i := range e.inodes {
			copied := *i
			m.inodes[id] = &copied
		}
		for key, was := range e.names {
			m.names[key] = was
		}
		for id, size := range e.images {
			m.images[id] = size
		}
		c.epochs[n] = m
	}
	return c
}
