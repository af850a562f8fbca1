package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"tandemfs/integration/lab"
	"tandemfs/integration/tree"
)

// nothing is for points that calls alone lead to.
func (c *crash) nothing(*volume) {}

// anything does one of all things.
func (c *crash) anything(victim *volume) {
	switch c.r.IntN(8) {
	case 0:
		c.restore(victim)
	case 1:
		if victim == c.target {
			c.breakAndRelate(victim)
		}
	case 2, 3:
		c.snapshotOf(c.source, victim)
	case 4, 5:
		c.snapshotOf(c.target, victim)
	}
}

func (c *crash) restoreOrNot(victim *volume) {
	if victim == c.source {
		c.restore(victim)
	}
}

// snapshot takes or deletes a snapshot of the victim.
func (c *crash) snapshot(victim *volume) { c.snapshotOf(victim, victim) }

// try runs a command on a volume's node. Where the death of the victim interrupts it, outcome says after the
// restart what has happened, and otherwise what is to be done now, unless the daemon dies then.
func (c *crash) try(v, victim *volume, outcome func() error, args ...string) bool {
	c.t.Helper()
	err := run(v.Node, args...)
	if err == nil {
		err = outcome()
	}
	if err == nil {
		return true
	}
	if v != victim {
		c.t.Fatalf("round %d, node %s: %v", c.round, v.Node.Name, err)
	}
	c.interrupted(err, outcome)
	return false
}

// snapshotOf takes a snapshot of a volume, or deletes one.
func (c *crash) snapshotOf(v, victim *volume) {
	c.t.Helper()
	names := slices.Sorted(maps.Keys(c.kept[v]))
	if len(names) > 0 && (len(names) >= mostOfVolume || c.r.IntN(2) == 0) {
		name := names[c.r.IntN(len(names))]
		c.try(v, victim, func() error { return c.takeStock(v) }, "snapshot", "delete", v.Name, name, "--yes")
		return
	}
	c.serial++
	c.try(v, victim, func() error { return c.takeStock(v) }, "snapshot", "create", v.Name, "--name", fmt.Sprint("s", c.serial))
}

// takeStock learns which snapshots a volume has. A new one must show what the source is now, or what the
// target showed when it was taken.
func (c *crash) takeStock(v *volume) error {
	c.t.Helper()
	names, err := c.list(v)
	if err != nil {
		return err
	}
	for name := range c.kept[v] {
		if !slices.Contains(names, name) {
			delete(c.kept[v], name)
			c.unused = append(c.unused, c.saved[name].dir)
			delete(c.saved, name)
		}
	}
	for _, name := range names {
		if c.kept[v][name] != nil {
			continue
		}
		if err := c.keep(v, name); err != nil {
			return err
		}
	}
	return nil
}

// list gives the names of a volume's snapshots.
func (c *crash) list(v *volume) ([]string, error) {
	r := v.Node.Run("snapshot", "list", v.Name, "--json")
	if r.Code != 0 {
		return nil, errors.New(r.Stderr)
	}
	var list struct{ Snapshots []struct{ Name string } }
	err := json.Unmarshal([]byte(r.Stdout), &list)
	var names []string
	for _, s := range list.Snapshots {
		names = append(names, s.Name)
	}
	return names, err
}

// keep notes what a new snapshot shows.
func (c *crash) keep(v *volume, name string) error {
	c.t.Helper()
	shown, err := tree.Scan(v.snapshotPath(name))
	if err != nil {
		return err
	}
	if v == c.target {
		if err := c.isOnTrail(v.snapshotPath(name)); err != nil {
			return err
		}
	} else {
		sameTrees(c.t, fmt.Sprintf("round %d, snapshot %s", c.round, name), scan(c.t, c.plain), shown, tree.Options{IgnoreTimes: true, IgnoreHoles: true})
		saved, err := c.copyOf(c.plain)
		check(c.t, err)
		c.saved[name] = savedTree{saved, slices.Clone(c.history.files), slices.Clone(c.history.dirs)}
	}
	c.kept[v][name] = shown
	return nil
}

// copyOf copies a directory to a new one.
func (c *crash) copyOf(dir string) (string, error) {
	c.serial++
	to := filepath.Join(filepath.Dir(c.plain), fmt.Sprint("copy", c.serial))
	out, err := exec.Command("cp", "-a", dir, to).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("cp: %w\n%s", err, out)
	}
	return to, err
}

// become makes a directory equal to another one.
func become(dir, other string) error {
	names, err := os.ReadDir(dir)
	for _, n := range names {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, n.Name())))
	}
	if err != nil {
		return err
	}
	out, err := exec.Command("cp", "-a", other+"/.", dir).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("cp: %w\n%s", err, out)
	}
	return err
}

// restore brings a snapshot of the source back.
func (c *crash) restore(victim *volume) {
	c.t.Helper()
	names := slices.Sorted(maps.Keys(c.kept[c.source]))
	if len(names) == 0 || len(names) > mostOfVolume {
		c.snapshotOf(c.source, victim)
		return
	}
	name := names[c.r.IntN(len(names))]
	c.try(c.source, victim, func() error {
		if err := c.takeStock(c.source); err != nil { // with the one that was taken first
			return err
		}
		shown, err := tree.Scan(c.source.Mount)
		if err != nil {
			return err
		}
		if len(tree.Compare(shown, scan(c.t, c.plain), tree.Options{IgnoreTimes: true, IgnoreHoles: true})) > 0 {
			c.restored(c.saved[name])
		}
		return nil
	}, "snapshot", "restore", c.source.Name, name, "--yes")
}

// restored notes that the source is what it was when a snapshot was taken.
func (c *crash) restored(s savedTree) {
	c.t.Helper()
	c.happened(call{do: func(dir string) error { return become(dir, s.dir) }})
	c.history.files, c.history.dirs = slices.Clone(s.files), slices.Clone(s.dirs)
}

// breakAndRelate ends the relationship at the target and begins another one.
func (c *crash) breakAndRelate(victim *volume) {
	c.t.Helper()
	if c.pair != nil && !c.try(c.target, victim, c.ended, "relationship", "delete", "--yes", c.pair.ID) {
		return
	}
	c.relate(victim)
}

// emptyAndRelate has another relationship begin with a target that has nothing.
func (c *crash) emptyAndRelate(victim *volume) {
	c.t.Helper()
	if c.pair != nil && !c.try(c.target, victim, c.ended, "relationship", "delete", "--yes", c.pair.ID) {
		return
	}
	c.emptied = true
	if err := c.empty(); err != nil {
		c.interrupted(err, c.empty)
		return
	}
	c.relate(victim)
}

// empty removes all that is on the target.
func (c *crash) empty() error {
	names, err := os.ReadDir(c.target.Mount)
	for _, n := range names {
		err = errors.Join(err, os.RemoveAll(filepath.Join(c.target.Mount, n.Name())))
	}
	return err
}

// rebuild has the source begin a new journal, because the one that it had is damaged.
func (c *crash) rebuild(victim *volume) {
	c.t.Helper()
	n := c.source.Node
	n.Stop()
	check(c.t, os.WriteFile(filepath.Join(c.source.Backing, tree.StateDir, "journal", "mark"), []byte("nonsense"), 0o600))
	n.TryStart(c.armed)
	c.try(c.source, victim, func() error {
		if err := run(n, "volume", "show", c.source.Name); err != nil {
			return err
		}
		c.shrinkLogs(c.source)
		return c.takeStock(c.source)
	}, "volume", "rebuild", "--yes", c.source.Name)
}

// ended makes sure that the relationship is no more, and the target a recovery point that can be written to.
func (c *crash) ended() error {
	if c.pair == nil {
		return nil
	}
	if c.b.Run("relationship", "status", c.pair.ID).Code != exitNotFound {
		if err := run(c.b, "relationship", "delete", "--yes", c.pair.ID); err != nil {
			return err
		}
	}
	if err := c.isOnTrail(c.target.Mount); err != nil {
		return err
	}
	probe := filepath.Join(c.target.Mount, "writable")
	if err := os.WriteFile(probe, nil, 0o600); err != nil {
		return err
	}
	if err := os.Remove(probe); err != nil {
		return err
	}
	c.a.Run("relationship", "delete", "--yes", c.pair.ID) // it may not know yet that it is over
	c.pair = nil
	return nil
}

// relate makes the target a copy of the source, as far as it is not, unless the victim dies meanwhile.
func (c *crash) relate(victim *volume) {
	c.t.Helper()
	if c.pair == nil && !c.propose(victim) {
		return
	}
	lab.Eventually(c.t, time.Minute, "the relationship is established", func() error {
		if victim != nil && !victim.Node.Running() {
			return nil
		}
		var s statusOf
		r := c.b.Run("relationship", "status", c.pair.ID, "--json")
		if r.Code != 0 {
			return errors.New(r.Stderr)
		}
		if err := json.Unmarshal([]byte(r.Stdout), &s); err != nil {
			return err
		}
		switch s.State {
		case "established":
			return nil
		case "awaiting-authorization":
			c.b.Run("relationship", "authorize", "--yes", "--allow-non-empty", c.pair.ID)
		}
		return fmt.Errorf("it is %s", s.State)
	})
	if victim != nil && !victim.Node.Running() { // agree goes on with it
		c.interrupted(errors.New("the beginning of a relationship"), func() error { return nil })
	}
}

// propose creates a relationship, unless the victim dies meanwhile.
func (c *crash) propose(victim *volume) bool {
	c.t.Helper()
	r := c.a.Run("relationship", "create", "--source", c.source.Name,
		"--target", c.b.Namespace.Address, "--target-volume", c.target.Name, "--json")
	var created statusOf
	err := json.Unmarshal([]byte(r.Stdout), &created)
	if r.Code == 0 && err == nil {
		c.pair = lab.Related(c.t, c.a, c.b, created.ID)
		return true
	}
	if victim == nil || !victim.Node.Ends(10*time.Second) {
		c.t.Fatalf("round %d: create a relationship: %v\n%s", c.round, err, r.Stderr)
	}
	c.interrupted(errors.New(r.Stderr), func() error { return nil })
	return false
}

// comeAndGo makes another volume and removes it.
func (c *crash) comeAndGo(victim *volume) {
	c.t.Helper()
	n := victim.Node
	gone := func() error {
		if r := n.Run("volume", "show", "extra"); r.Code != exitNotFound {
			if err := run(n, "volume", "remove", "extra", "--yes"); err != nil {
				return err
			}
		}
		names, err := os.ReadDir(c.extra)
		if err == nil && len(names) > 0 {
			err = fmt.Errorf("the directory of the volume that was removed has %v", names)
		}
		return err
	}
	c.try(victim, victim, gone, "volume", "create", "extra", c.extra)
}
