package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"tandemfs/integration/tree"
)

// isOnTrail fails unless a directory shows the source as it was after some call, not before the one that was
// found last. It gives the error of a directory that cannot be read. It reads it once: its daemon may come to the
// point at which it dies before all is compared.
func (c *crash) isOnTrail(dir string) error {
	c.t.Helper()
	off, err := c.offTrail(dir)
	if off != "" {
		c.t.Fatalf("round %d: %s", c.round, off)
	}
	return err
}

// offTrail is isOnTrail that tells what is wrong; "" if nothing is. The trail is at its end then.
func (c *crash) offTrail(dir string) (string, error) {
	c.t.Helper()
	seen, err := c.copyOf(dir)
	c.unused = append(c.unused, seen)
	if err != nil {
		return "", err
	}
	got := scan(c.t, seen)
	if names, err := os.ReadDir(seen); c.emptied && len(names) == 0 {
		return "", err
	}
	count, err := readCounter(seen)
	check(c.t, err)
	var near []string
	for {
		now, err := readCounter(c.trail)
		check(c.t, err)
		if now == count {
			differences := c.fromTrail(got, seen)
			if len(differences) == 0 {
				return "", nil
			}
			near = append(append(near, fmt.Sprintf("to the state %d%s:", c.ahead, c.beforeCall())), differences...)
			near = append(near, differentPages(seen, c.trail)...)
		}
		if c.ahead == len(c.behind) {
			again, err := tree.Scan(dir)
			if err == nil {
				near = append(near, "looked at again, it differs from the first look by:")
				near = append(near, tree.Compare(got, again, tree.Options{})...)
			}
			return fmt.Sprintf("%s, with counter %q, is at none of the source's states since the last look; the differences to those near it:\n%s",
				dir, count, strings.Join(near, "\n")), nil
		}
		c.follow()
	}
}

// differentPages tells which pages differ of the files that two directories both have.
func differentPages(dir, other string) []string {
	var found []string
	err := filepath.WalkDir(other, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(other, path)
		if err != nil {
			return err
		}
		want, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		got, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) { // the other differences tell
			return nil
		}
		var pages []int
		for i := 0; i*page < min(len(got), len(want)); i++ {
			if !bytes.Equal(got[i*page:min(len(got), (i+1)*page)], want[i*page:min(len(want), (i+1)*page)]) {
				pages = append(pages, i)
			}
		}
		if len(pages) > 0 {
			found = append(found, fmt.Sprintf("%q differs in pages %v, of %d bytes there are %d", name, pages, len(want), len(got)))
		}
		return err
	})
	if err != nil {
		found = append(found, err.Error())
	}
	return found
}

// beforeCall tells which call comes next on the trail.
func (c *crash) beforeCall() string {
	if c.ahead == len(c.behind) {
		return ", the last"
	}
	return fmt.Sprintf(", before call %d (%s)", c.behind[c.ahead].number, c.behind[c.ahead].what)
}

// readCounter gives how often a directory was changed; "" if never.
func readCounter(dir string) (string, error) {
	text, err := os.ReadFile(filepath.Join(dir, counter))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return string(text), err
}

// fromTrail tells how what was seen differs from the trail, which may have to make a part of the next call for it.
func (c *crash) fromTrail(got *tree.Manifest, seen string) []string {
	c.t.Helper()
	o := tree.Options{IgnoreTimes: true, IgnoreHoles: true}
	differences := tree.Compare(got, scan(c.t, c.trail), o)
	if len(differences) == 0 || c.ahead == len(c.behind) || !c.behind[c.ahead].repeats {
		return differences
	}
	parts, err := c.behind[c.ahead].effects(seen)
	if errors.Is(err, fs.ErrNotExist) {
		return differences
	}
	check(c.t, err)
	for _, part := range parts {
		check(c.t, part(c.trail))
	}
	if len(tree.Compare(got, scan(c.t, c.trail), o)) == 0 {
		return nil
	}
	return differences
}

// follow has the trail make one of the source's calls.
func (c *crash) follow() {
	c.t.Helper()
	check(c.t, c.behind[c.ahead].in(c.trail))
	c.ahead++
}
