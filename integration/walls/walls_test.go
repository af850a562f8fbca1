package walls

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"
)

func TestNoRoomImportsWhatItMustNotKnow(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Standard,Imports,TestImports,XTestImports,Error", "./...")
	cmd.Dir = "../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	packages, err := Read(bytes.NewReader(out))
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, p := range packages {
		seen[p.ImportPath] = true
	}
	if !seen[module+"/journal"] || !seen[module+"/integration/walls"] {
		t.Fatalf("go list named %d packages and not the module's own: nothing was checked", len(packages))
	}
	for _, broken := range Check(packages) {
		t.Error(broken)
	}
}

func TestAForbiddenImportIsReported(t *testing.T) {
	for _, c := range []struct {
		name     string
		importer string
		path     string
		want     string // part of the report; "" when the import is allowed
	}{
		{"journal may not know fs", "journal", "tandemfs/fs/volume", "room journal must know nothing of room fs"},
		{"fs may not know the replicator", "fs/volume", "tandemfs/replicator", "must know nothing of room replicator"},
		{"the replicator may not know fs", "replicator", "tandemfs/fs/volume", "must know nothing of room fs"},
		{"snapshotd decides from values alone", "snapshotd", "tandemfs/journal", "must know nothing of room journal"},
		{"cmd asks snapshotd", "cmd/daemon", "tandemfs/snapshotd", ""},
		{"nobody may know cmd", "integration/lab", "tandemfs/cmd/api", "must know nothing of room cmd"},
		{"a new top-level folder is no room", "util", "tandemfs/journal", "is not one of the project's rooms"},
		{"cmd wires the rooms", "cmd/daemon", "tandemfs/fs/mount", ""},
		{"a room knows itself", "replicator", "tandemfs/replicator/wire", ""},
		{"Badger is the journal's", "fs/volume", "github.com/dgraph-io/badger/v4", "records are kept in one place"},
		{"the journal has Badger", "journal", "github.com/dgraph-io/badger/v4/options", ""},
		{"only the mount speaks FUSE", "fs/volume", "github.com/hanwen/go-fuse/v2/fuse", "one package's business"},
		{"the mount speaks FUSE", "fs/mount", "github.com/hanwen/go-fuse/v2/fuse", ""},
		{"fs knows no network", "fs/volume", "net", "know no network"},
		{"not a part of it either", "journal", "net/http", "know no network"},
		{"one way of logging", "cmd/daemon", "log", "log/slog"},
		{"log/slog is that way", "cmd/daemon", "log/slog", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := strings.Join(Check([]Package{{ImportPath: module + "/" + c.importer, Imports: []string{c.path}}}), "\n")
			if c.want == "" && got != "" {
				t.Errorf("allowed import reported: %s", got)
			}
			if !strings.Contains(got, c.want) {
				t.Errorf("got %q, want something about %q", got, c.want)
			}
		})
	}
}

func TestImportsOfTestsAreCheckedToo(t *testing.T) {
	p := Package{ImportPath: module + "/journal", TestImports: []string{"net"}, XTestImports: []string{module + "/cmd/api"}}
	if got := Check([]Package{p}); len(got) != 2 {
		t.Errorf("got %q, want one line for each of the two", got)
	}
}
