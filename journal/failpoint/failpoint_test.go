package failpoint

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var errFault = errors.New("fault")

func TestAPointFailsWhileItIsArmed(t *testing.T) {
	if err := Call("any"); err != nil {
		t.Errorf("not armed: %v", err)
	}
	disarm := Arm(func(call string, size int) (int, error) {
		if call == "fails" {
			return 0, errFault
		}
		return size / 2, nil
	})
	if err := Call("fails"); !errors.Is(err, errFault) {
		t.Errorf("armed: %v", err)
	}
	if err := Call("other"); err != nil {
		t.Errorf("another call: %v", err)
	}
	if n, err := Transfer("other", 10); n != 5 || err != nil {
		t.Errorf("a short call: %d, %v", n, err)
	}
	disarm()
	if n, err := Transfer("fails", 10); n != 10 || err != nil {
		t.Errorf("disarmed: %d, %v", n, err)
	}
}

// A program that go test did not build is built here, and tries.
func TestNoOtherProgramCanArmOne(t *testing.T) {
	program := filepath.Join(t.TempDir(), "main.go")
	text := "package main\n\nimport \"tandemfs/journal/failpoint\"\n\nfunc main() { failpoint.Arm(nil) }\n"
	if err := os.WriteFile(program, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	said, err := exec.Command("go", "run", program).CombinedOutput()
	if err == nil || !strings.Contains(string(said), "only a test") {
		t.Errorf("%v: %s", err, said)
	}
}

func BenchmarkAPointThatIsNotArmed(b *testing.B) {
	for b.Loop() {
		if err := Call("any"); err != nil {
			b.Fatal(err)
		}
	}
}
