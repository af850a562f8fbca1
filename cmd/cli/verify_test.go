package cli

import (
	"slices"
	"strings"
	"testing"

	"tandemfs/replicator"
)

func TestAVerificationIsAwaitedAndDifferencesAreAnExitCode(t *testing.T) {
	d := newDesk(t)
	d.node.verifications = []replicator.Verification{
		{State: replicator.VerifyWaiting},
		{State: replicator.VerifyRunning, Files: 3},
		{State: replicator.VerifyDone, Files: 1234, Bytes: 5 << 20, Epoch: 7, Time: noon, Differences: 3,
			Found: []replicator.Difference{{Kind: replicator.DifferContent, Path: "a/\x1bb"}, {Kind: replicator.DifferMissing, Path: "c"}}},
	}
	code, out, errs := d.run("relationship verify abc --rate 20MiB --repair")
	if code != exitDifferent || !strings.Contains(errs, "the two sides differ") {
		t.Errorf("exit code %d, %q", code, errs)
	}
	for _, want := range []string{"done, 1,234 files, 5.0 MiB compared, 3 differences", "epoch 7", "content     /a/\uFFFDb", "missing     /c", "and 1 more"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	if want := []string{"verify abc {Rate:20971520 Repair:true Always:false}"}; !slices.Equal(d.node.did, want) {
		t.Errorf("the node did %q", d.node.did)
	}
}

func TestAVerificationSaysHowFarItsRepairIs(t *testing.T) {
	v := replicator.Verification{VerifyRequest: replicator.VerifyRequest{Repair: true}, State: replicator.VerifyDone, Files: 2, Differences: 1, Repairing: true}
	if got := verificationLine(v); got != "done, 2 files, 0 B compared, 1 difference, being repaired" {
		t.Error(got)
	}
	v.Repairing = false
	if got := verificationLine(v); got != "done, 2 files, 0 B compared, 1 difference, repaired since" {
		t.Error(got)
	}
}

func TestAVerificationThatFindsNothingSucceeds(t *testing.T) {
	d := newDesk(t)
	d.node.verifications = []replicator.Verification{{State: replicator.VerifyDone, Files: 2}}
	d.must("relationship verify abc", "done, 2 files, 0 B compared, 0 differences\n")
	d.must("relationship verify abc --show", "done, 2 files, 0 B compared, 0 differences\n")
	d.must("relationship verify abc --stop", "stopped, 0 files, 0 B of about 0 B compared\n")
	if d.node.did[len(d.node.did)-1] != "stop verifying abc" {
		t.Errorf("the node did %q", d.node.did)
	}
}

func TestAVerificationThatIsStoppedDoesNotSucceed(t *testing.T) {
	d := newDesk(t)
	d.node.verifications = []replicator.Verification{{State: replicator.VerifyRunning}, {State: replicator.VerifyStopped, Files: 2}}
	if code, _, errs := d.run("relationship verify abc"); code != exitFailure || !strings.Contains(errs, "stopped before its end") {
		t.Errorf("exit code %d, %q", code, errs)
	}
}

func TestOneThatGoesOnForEverIsNotAwaited(t *testing.T) {
	d := newDesk(t)
	d.node.verifications = []replicator.Verification{{State: replicator.VerifyWaiting}}
	d.must("relationship verify abc --always --rate 1MiB", "waiting for a recovery point\n")
}

func TestAVerificationThatCannotBeMeantOrFailsSaysWhy(t *testing.T) {
	d := newDesk(t)
	d.mustFail("relationship verify abc --rate fast", exitUsage, "is not a size")
	d.mustFail("relationship verify abc --rate 0", exitUsage, "is not a size")
	d.mustFail("relationship verify abc --show --stop", exitUsage, "no other option")
	d.mustFail("relationship verify abc --show --repair", exitUsage, "no other option")
	if len(d.node.did) != 0 {
		t.Errorf("the node did %q", d.node.did)
	}
	d.node.verifications = []replicator.Verification{{State: replicator.VerifyFailed, Error: "the network"}}
	if code, _, errs := d.run("relationship verify abc"); code != exitFailure || !strings.Contains(errs, "the network") {
		t.Errorf("exit code %d, %q", code, errs)
	}
}
