package volume

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"tandemfs/journal"
	"tandemfs/journal/crashpoint"
	"tandemfs/journal/failpoint"
)

const childVariable = "VOLUME_TEST_CHILD"

// TestMain is also the process that dies: it does what makes an inode in several ways.
func TestMain(m *testing.M) {
	if dir := os.Getenv(childVariable); dir != "" {
		fmt.Fprintln(os.Stderr, makeSome(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// makeSome makes names in old directories and in a new one. The last of them is never noted.
func makeSome(dir string) error {
	v, err := Open(dir, Options{Name: "test"})
	if err != nil {
		return err
	}
	var a, d, n Inode
	return errors.Join(
		v.Lookup(v.root, "a", &a),
		v.Rename(v.root, "a", v.root, "renamed", 0),
		v.Link(a.ID, v.root, "linked", &n),
		v.Rename(v.root, "b", v.root, "c", 0),
		v.Mkdir(v.root, "d", 0o755, Caller{}, &d),
		v.Rename(v.root, "c", d.ID, "moved", 0),
		v.Mknod(d.ID, "in a new directory", 0o100644, 0, Caller{}, &n),
		v.Mknod(v.root, "in an old directory", 0o100644, 0, Caller{}, &n),
	)
}

// died runs makeSome until the third, or the second, inode was made and not noted.
func died(t *testing.T, dir string, inodes int) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+dir, fmt.Sprint(crashpoint.Variable, "=volume/made:", inodes))
	if out, err := cmd.CombinedOutput(); err == nil || cmd.ProcessState.Exited() {
		t.Fatalf("the child ended by itself: %v\n%s", err, out)
	}
}

// diedMaking gives a directory in which a process died when it had made so many inodes, and the seal from before that.
func diedMaking(t *testing.T, inodes int) (dir string, base journal.Epoch) {
	t.Helper()
	dir = t.TempDir()
	v, err := Open(dir, Options{Name: "test", Create: true})
	must(t, err)
	v.mustFile(t, v.root, "a", "")
	v.mustFile(t, v.root, "b", "")
	base, err = v.journal.Seal(false)
	must(t, err)
	must(t, v.Close())
	died(t, dir, inodes)
	return dir, base
}

func TestAnInodeThatWasMadeWhileTheProcessDiedIsNew(t *testing.T) {
	for inodes, want := range map[int]string{2: "in a new directory", 3: "in an old directory"} {
		t.Run(want, func(t *testing.T) {
			dir, base := diedMaking(t, inodes)
			v, err := Open(dir, Options{Name: "test"})
			must(t, err)
			defer v.Close()
			if got := v.createdSince(t, base); !got["d"] || !got[want] || len(got) != inodes {
				t.Errorf("new since the base are %v, want d and %q among %d", got, want, inodes)
			}
		})
	}
}

// The start that looks for such an inode may die itself, before it has noted it.
func TestAnInodeThatWasMadeWhileTheProcessDiedIsNewThoughTheNextOneDiesToo(t *testing.T) {
	dir, base := diedMaking(t, 3)
	for n, reached := 1, true; reached; n++ {
		records := 0
		disarm := failpoint.Arm(func(call string, size int) (int, error) {
			if call == "log append" {
				records++
			}
			if records >= n { // it is as good as dead
				return 0, unix.EIO
			}
			return size, nil
		})
		v, err := Open(dir, Options{Name: "test"})
		disarm()
		if reached = records >= n; err == nil {
			_ = v.Close() // it may have failed since
		}
	}
	v, err := Open(dir, Options{Name: "test"})
	must(t, err)
	defer v.Close()
	if got := v.createdSince(t, base); !got["in an old directory"] || len(got) != 3 {
		t.Errorf("new since the base are %v", got)
	}
}

// createdSince gives the names, in the root and the directory "d", of what the journal says is new.
func (v *Volume) createdSince(t *testing.T, base journal.Epoch) map[string]bool {
	t.Helper()
	upto, err := v.journal.Seal(false)
	must(t, err)
	changes, err := v.journal.Changes(base, upto)
	must(t, err)
	created := map[string]bool{}
	must(t, changes.Inodes(func(c journal.InodeChange) error {
		if c.What&journal.Created != 0 {
			created[v.nameOf(t, c.Ident)] = true
		}
		return nil
	}))
	return created
}

// nameOf finds the name of an inode in the root, or in the directory "d".
func (v *Volume) nameOf(t *testing.T, id journal.Ident) string {
	t.Helper()
	var d, n Inode
	must(t, v.Lookup(v.root, "d", &d))
	for _, dir := range []journal.Ident{v.root, d.ID} {
		for _, name := range []string{"renamed", "linked", "moved", "d", "in a new directory", "in an old directory"} {
			if v.Lookup(dir, name, &n) == nil && n.ID == id {
				return name
			}
		}
	}
	return id.String()
}
