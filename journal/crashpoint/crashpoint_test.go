package crashpoint

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// TestMain is also the process that dies: it comes to two points, one of them twice.
func TestMain(m *testing.M) {
	if os.Getenv(Variable) == "" {
		os.Exit(m.Run())
	}
	for _, name := range []string{"first", "second", "first"} {
		Here(name)
		os.Stdout.WriteString(name + " ")
	}
	os.Exit(0)
}

func TestAProcessDiesAtThePointThatItsEnvironmentNames(t *testing.T) {
	for _, c := range []struct {
		armed, printed string
		killed         bool
	}{
		{"first", "", true},
		{"second", "first ", true},
		{"first:2", "first second ", true},
		{"first:3", "first second first ", false},
		{"another", "first second first ", false},
	} {
		t.Run(c.armed, func(t *testing.T) {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), Variable+"="+c.armed)
			out, err := cmd.Output()
			status := cmd.ProcessState.Sys().(syscall.WaitStatus)
			if killed := status.Signaled() && status.Signal() == syscall.SIGKILL; killed != c.killed {
				t.Errorf("killed %t, want %t: %v", killed, c.killed, err)
			}
			if string(out) != c.printed {
				t.Errorf("it printed %q before, want %q", out, c.printed)
			}
		})
	}
}

func TestNothingHappensWhereNoPointIsArmed(t *testing.T) {
	Here("first")
	if allocations := testing.AllocsPerRun(100, func() { Here("first") }); allocations != 0 {
		t.Errorf("a point costs %v allocations", allocations)
	}
}

func BenchmarkAPointThatIsNotArmed(b *testing.B) {
	for b.Loop() {
		Here("first")
	}
}
