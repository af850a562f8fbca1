package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/integration/history"
	"tandemfs/integration/lab"
)

// A verification is what the command says of one.
type verification struct {
	State       string
	Files       int64
	Bytes       int64
	Differences int64
	Repairing   bool
	Found       []struct{ Kind, Path string }
}

// exitDifferent is the exit code of `relationship verify` that docs/cli.md has for differences.
const exitDifferent = 7

// verify compares both sides, and gives what the command says.
func verify(t *testing.T, pair *lab.Pair, options ...string) (v verification) {
	t.Helper()
	r := pair.Source.Run(append([]string{"relationship", "verify", "--json", pair.ID}, options...)...)
	if r.Code != 0 && r.Code != exitDifferent {
		t.Fatalf("verify: exit code %d: %s", r.Code, r.Stderr)
	}
	check(t, json.Unmarshal([]byte(r.Stdout), &v))
	if v.State != "done" || (v.Differences > 0) != (r.Code == exitDifferent) {
		t.Fatalf("exit code %d, %+v", r.Code, v)
	}
	return v
}

func TestWhatWasChangedOnTheTargetBehindItsBackIsFoundAndRepaired(t *testing.T) {
	for _, kind := range []string{lab.Ext4, lab.XFS} {
		t.Run(kind, func(t *testing.T) {
			a, b := two(t)
			source := newVolume(t, a, "data", lab.Ext4, smallDisk, grow(t, 300))
			target := newVolume(t, b, "copy", kind, smallDisk, nil)
			pair := relate(t, source, target)
			for name, content := range map[string]string{"overwritten": "what was written", "shorter": "long", "gone": "g", "moded": "m", "moved": "m", "linked": "l"} {
				write(t, strings.Repeat(content, 3000), source.Mount, name)
			}
			check(t, os.Link(filepath.Join(source.Mount, "linked"), filepath.Join(source.Mount, "link")))
			pair.Quiet(time.Minute)
			if v := verify(t, pair); v.Differences != 0 || v.Files < 200 {
				t.Fatalf("before anything was changed: %+v", v)
			}

			at := func(name string) string { return filepath.Join(target.Backing, name) }
			var before unix.Stat_t
			check(t, unix.Stat(at("overwritten"), &before))
			overwrite(t, at("overwritten"), 5000, []byte("WHAT"))
			check(t, unix.UtimesNanoAt(unix.AT_FDCWD, at("overwritten"), []unix.Timespec{before.Atim, before.Mtim}, 0)) // as a disk would
			check(t, os.Truncate(at("shorter"), 100))
			check(t, os.Remove(at("gone")))
			check(t, os.Chmod(at("moded"), 0o600))
			check(t, os.Rename(at("moved"), at("moved-away")))
			check(t, os.Remove(at("link")))
			check(t, os.WriteFile(at("link"), []byte("not linked"), 0o644))
			check(t, os.MkdirAll(at("extra/deep"), 0o755))

			v := verify(t, pair, "--repair")
			found := map[string]string{}
			for _, d := range v.Found {
				if d.Path != "" || d.Kind != "attributes" { // the root's own time
					found[d.Path] += d.Kind + " "
				}
			}
			want := map[string]string{"overwritten": "content ", "shorter": "content attributes ", "gone": "missing ", "moded": "attributes ",
				"moved": "missing ", "moved-away": "extra ", "link": "identity ", "extra": "extra "}
			if fmt.Sprint(found) != fmt.Sprint(want) {
				t.Errorf("found %v\nwant %v", found, want)
			}
			pair.Await(pair.Source, time.Minute, "repaired", func(lab.Status) error {
				var now verification
				check(t, json.Unmarshal([]byte(pair.Source.Must("relationship", "verify", "--json", "--show", pair.ID)), &now))
				if now.Repairing {
					return fmt.Errorf("it is being repaired")
				}
				return nil
			})
			sameCopy(t, "after the repair", source, target, pair)
			if v := verify(t, pair); v.Differences != 0 {
				t.Errorf("after the repair: %+v", v)
			}
		})
	}
}

func TestVerificationsUnderLoadFindNothing(t *testing.T) {
	source, target, pair := replicated(t, smallDisk, grow(t, 300))
	stop, done := make(chan struct{}), make(chan struct{})
	h := history.New(seed(t, 77))
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				play(t, source.Mount, h, 20)
			}
		}
	}()
	for range 10 {
		if v := verify(t, pair); v.Differences != 0 {
			t.Errorf("%+v", v)
		}
	}
	close(stop)
	<-done
	sameCopy(t, "afterwards", source, target, pair)
}

// A target that holds a copy which another tool made is compared, not filled anew.
func TestAFirstTransferOntoACopySendsWhatDiffers(t *testing.T) {
	a, b := two(t)
	source := newVolume(t, a, "data", lab.Ext4, smallDisk, func(dir string) {
		grow(t, 500)(dir)
		write(t, string(random(20<<20, seed(t, 78))), dir, "large")
	})
	target := newVolume(t, b, "copy", lab.XFS, smallDisk, func(dir string) {
		if out, err := exec.Command("cp", "-a", source.Mount+"/.", dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		write(t, "only here", dir, "only-here")
		overwrite(t, filepath.Join(dir, "large"), 3<<20, []byte("other"))
	})
	pair := lab.Relate(t, a, "data", b, "copy", "--allow-non-empty")
	s := pair.Quiet(2 * time.Minute)
	if s.TotalWireBytes > 2<<20 {
		t.Errorf("%d bytes went over for a few that differ", s.TotalWireBytes)
	}
	sameCopy(t, "after the first transfer", source, target, pair)
	if v := verify(t, pair); v.Differences != 0 {
		t.Errorf("%+v", v)
	}
}
