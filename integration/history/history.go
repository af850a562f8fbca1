// Package history makes random histories of file operations and plays them on directories. A history is
// drawn from a seed and nothing else: the same seed, with the same answers from the directory, gives the
// same operations. Every operation's answer (its errno, what it returned, and what can be seen of the
// inodes it named) is recorded, so that two directories that are driven in lock-step must give the same
// answers, operation by operation.
//
// Operations act as several users: each user of each directory has a thread whose credentials, umask and
// working directory are its own.
package history

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A User is somebody that operations act as.
type User struct {
	UID, GID int
	Groups   []int
}

// Users are the people of every history; the first is root. Each of the others shares a group with the next.
var Users = []User{
	{UID: 0, GID: 0},
	{UID: 1000, GID: 1000, Groups: []int{1000, 3000}},
	{UID: 2000, GID: 2000, Groups: []int{2000, 3000}},
	{UID: 4000, GID: 4000},
}

// slots is how many files a history holds open at most, plus one: slot 0 stands for none.
const slots = 13

// An Op is one operation. Which fields count depends on its kind.
type Op struct {
	kind        *kind
	User        int // index into Users
	Umask       int
	Path, Path2 string
	Slot, Slot2 int
	Off, Off2   int64
	Len         int64
	Mode        uint32
	Flags       int
	UID, GID    int
	Name        string // of an extended attribute
	Value       []byte // of it, or a symlink's target
	Times       [2]unix.Timespec
	Fill        uint64 // what written data is made from
}

// String gives the operation on one line, for a person.
func (op *Op) String() string {
	value := fmt.Sprintf("%q", op.Value)
	if len(op.Value) > 40 {
		value = fmt.Sprintf("%q... (%d bytes)", op.Value[:40], len(op.Value))
	}
	return fmt.Sprintf("%s uid=%d umask=%03o path=%q path2=%q slot=%d slot2=%d off=%d off2=%d len=%d mode=%07o flags=%#x owner=%d:%d name=%q value=%s times=%v",
		op.kind.name, Users[op.User].UID, op.Umask, op.Path, op.Path2, op.Slot, op.Slot2, op.Off, op.Off2, op.Len,
		op.Mode, op.Flags, op.UID, op.GID, op.Name, value, op.Times)
}

// Kind is the operation's name: "create", "rename", ...
func (op *Op) Kind() string { return op.kind.name }

// A kind says how operations of one kind are drawn and run.
type kind struct {
	name   string
	weight int // how often it is drawn, relative to the others
	draw   func(g *Generator, op *Op)
	run    func(s *Side, op *Op) (string, error)
	// learn tells the generator what a success has changed; nil when no name came, went or moved.
	learn func(g *Generator, op *Op)
}

// A Generator draws a history.
type Generator struct {
	Seed  uint64
	rng   *rand.Rand
	total int // of all weights
	// What is believed to exist: it may be stale, and a name that turns out to be gone is dropped.
	dirs, files []string
}

// New starts a history over an empty directory.
func New(seed uint64) *Generator {
	g := &Generator{Seed: seed, rng: rand.New(rand.NewPCG(seed, 2)), dirs: []string{"."}}
	for i := range kinds {
		g.total += kinds[i].weight
	}
	return g
}

// Adopt makes the names that are in a directory already known to the history. Names at the top that begin
// with a dot are left alone.
func (g *Generator) Adopt(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil || rel == "." {
			return err
		}
		if rel[0] == '.' && d.IsDir() {
			return filepath.SkipDir
		}
		if d.IsDir() {
			g.dirs = append(g.dirs, rel)
		} else if d.Type()&(os.ModeDevice|os.ModeIrregular) == 0 {
			g.files = append(g.files, rel)
		}
		return nil
	})
}

// Next draws an operation.
func (g *Generator) Next() *Op {
	n := g.rng.IntN(g.total)
	i := 0
	for ; n >= kinds[i].weight; i++ {
		n -= kinds[i].weight
	}
	op := &Op{kind: &kinds[i], Umask: []int{0o022, 0o022, 0, 0o077, 0o027}[g.rng.IntN(5)]}
	if g.rng.IntN(3) == 0 {
		op.User = g.rng.IntN(len(Users))
	}
	op.kind.draw(g, op)
	return op
}

// Learn tells the generator how an operation ended, so that later ones find names to work on.
func (g *Generator) Learn(op *Op, o Outcome) {
	switch o.Errno {
	case 0:
		if op.kind.learn != nil {
			op.kind.learn(g, op)
		}
	case unix.ENOENT, unix.ENOTDIR:
		g.forget(op.Path)
	}
}

func (g *Generator) forget(path string) {
	same := func(p string) bool { return p == path && p != "." }
	g.files = slices.DeleteFunc(g.files, same)
	g.dirs = slices.DeleteFunc(g.dirs, same)
}

// moved renames a path and all known paths below it.
func (g *Generator) moved(from, to string) {
	for _, list := range [][]string{g.dirs, g.files} {
		for i, p := range list {
			if p == from || strings.HasPrefix(p, from+"/") {
				list[i] = to + p[len(from):]
			}
		}
	}
}

// An Outcome is how an operation ended.
type Outcome struct {
	Errno unix.Errno // 0 for success
	Out   string     // what was returned, and what can be seen afterwards
}

// String gives the outcome on one line.
func (o Outcome) String() string {
	if o.Errno == 0 {
		return "ok " + o.Out
	}
	return fmt.Sprintf("%s (%d) %s", unix.ErrnoName(o.Errno), o.Errno, o.Out)
}
