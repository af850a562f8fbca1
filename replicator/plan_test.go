package replicator

import (
	"maps"
	"testing"

	"tandemfs/journal"
)

// countingView is a view that counts how often each name is looked up.
type countingView struct {
	View
	lookups map[string]int
}

func (w countingView) Lookup(dir journal.Ident, name string) (journal.Ident, error) {
	w.lookups[name]++
	return w.View.Lookup(dir, name)
}

func TestATransferLooksANameUpOnce(t *testing.T) {
	v := newTree(t, "source")
	v.file(v.root, "a", "moves")
	v.file(v.root, "b", "goes")
	base, err := v.Seal()
	if err != nil {
		t.Fatal(err)
	}
	v.rename(v.root, "a", v.root, "c")
	v.remove(v.root, "b")
	view, err := v.Seal()
	if err != nil {
		t.Fatal(err)
	}
	changes, err := v.j.Changes(base.Epoch(), view.Epoch())
	if err != nil {
		t.Fatal(err)
	}
	lookups := map[string]int{}
	p := plan{view: countingView{view, lookups}, changes: changes, root: v.root}
	if err := p.steps(func(*step) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if want := map[string]int{"a": 1, "b": 1, "c": 1}; !maps.Equal(lookups, want) {
		t.Errorf("looked up %v, want %v", lookups, want)
	}
}
