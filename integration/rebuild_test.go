package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tandemfs/integration/tree"
)

// A journal that is damaged, or gone, is not trusted; a new one takes its place, and only what differs goes over.
func TestAVolumeIsRebuiltWithoutAFullTransfer(t *testing.T) {
	source, target, pair := replicated(t, smallDisk, func(dir string) {
		grow(t, 500)(dir)
		write(t, string(random(20<<20, seed(t, 79))), dir, "large")
	})
	sameCopy(t, "at first", source, target, pair)
	for _, v := range []*volume{source, target, source} {
		journal := filepath.Join(v.Backing, tree.StateDir, "journal")
		for how, damage := range map[string]func(){
			"the mark is garbled": func() { check(t, os.WriteFile(filepath.Join(journal, "mark"), []byte("nonsense"), 0o600)) },
			"the store is garbled": func() {
				check(t, os.WriteFile(filepath.Join(journal, "store", "MANIFEST"), []byte("nonsense"), 0o600))
			},
		} {
			v.Node.Stop()
			damage()
			v.Node.Start()
			if shown := v.Node.Must("volume", "show", v.Name); !strings.Contains(shown, "failed") || !strings.Contains(shown, "tandemfs volume rebuild "+v.Name) {
				t.Fatalf("%s of %s: %s", how, v.Name, shown)
			}
			before := pair.Status(source.Node).TotalWireBytes
			v.Node.Must("volume", "rebuild", "--yes", v.Name)
			write(t, how, source.Mount, how+" of "+v.Name)
			sameCopy(t, how+" of "+v.Name, source, target, pair)
			if n := pair.Status(source.Node).TotalWireBytes - before; n > 2<<20 {
				t.Errorf("%s of %s: %d bytes went over", how, v.Name, n)
			}
		}
		if r := v.Node.Run("volume", "rebuild", "--yes", v.Name); r.Code == 0 {
			t.Error("a sound journal is set aside")
		}
	}
	if v := verify(t, pair); v.Differences != 0 {
		t.Errorf("%+v", v)
	}
}
