package history

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tandemfs/integration/tree"
)

// pair opens two new directories that everybody may use.
func pair(t *testing.T) *Lockstep {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("a history acts as several users: run this test as root")
	}
	l := &Lockstep{Generator: New(20261123)}
	for _, side := range []**Side{&l.A, &l.B} {
		dir := t.TempDir()
		if err := unix.Chmod(dir, 0o1777); err != nil {
			t.Fatal(err)
		}
		s, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		*side = s
	}
	return l
}

func TestTwoPlainDirectoriesLiveTheSameHistory(t *testing.T) {
	l := pair(t)
	if err := l.Play(12_000); err != nil {
		t.Fatal(err)
	}
	a, err := tree.Scan(l.A.dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := tree.Scan(l.B.dir)
	if err != nil {
		t.Fatal(err)
	}
	if diffs := tree.Compare(a, b, tree.Options{IgnoreTimes: true}); len(diffs) > 0 {
		t.Errorf("the trees differ:\n%s", strings.Join(diffs, "\n"))
	}
	t.Logf("the tree: %v", a.Count())
	for i := range kinds {
		c := l.Counts()[kinds[i].name]
		t.Logf("%-18s %5d succeeded %5d failed", kinds[i].name, c[0], c[1])
		if c[0] == 0 {
			t.Errorf("no %s ever succeeded: the history does not test it", kinds[i].name)
		}
	}
}

func TestADirectoryThatBehavesOtherwiseIsFoundOut(t *testing.T) {
	l := pair(t)
	if err := l.Play(300); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(l.B.dir, 0o1775); err != nil { // some users may not create there any more
		t.Fatal(err)
	}
	err := l.Play(3000)
	if err == nil {
		t.Fatal("nobody noticed")
	}
	for _, part := range []string{"seed 20261123", l.A.dir, l.B.dir} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the report lacks %q: %v", part, err)
		}
	}
}

func TestTheSameSeedDrawsTheSameHistory(t *testing.T) {
	draw := func() string {
		g, text := New(5), ""
		g.files = []string{"a1", "b2", "c3"}
		for range 200 {
			op := g.Next()
			g.Learn(op, Outcome{Errno: unix.EPERM}) // as if nothing ever came or went
			text += op.String() + "\n"
		}
		return text
	}
	first, second := draw(), draw()
	if first != second {
		t.Error("two histories of one seed differ")
	}
}

func TestUsersHaveTheirOwnCredentialsAndUmask(t *testing.T) {
	l := pair(t)
	for i, u := range Users {
		op := &Op{kind: &nameKinds[1], User: i, Umask: 0o077, Path: "d" + string(rune('0'+i)), Mode: 0o777}
		if o := l.A.Run(op); o.Errno != 0 {
			t.Fatalf("%s: %s", op, o)
		}
		var st unix.Stat_t
		if err := unix.Stat(l.A.dir+"/"+op.Path, &st); err != nil {
			t.Fatal(err)
		}
		if int(st.Uid) != u.UID || int(st.Gid) != u.GID || st.Mode&0o7777 != 0o700 {
			t.Errorf("user %d made a directory of %d:%d, mode %o", u.UID, st.Uid, st.Gid, st.Mode)
		}
	}
}
