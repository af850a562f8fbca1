// Package walls keeps the rooms of the project apart. It reads what `go list` says about every package
// of the module and reports each import that a room must not have. The guarantee: an import that breaks
// the order "cmd, then fs, replicator and snapshotd, then journal", or that brings a library into a room
// that does not own it, fails the build.
package walls

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// module is the import path that all rooms share.
const module = "tandemfs"

// A Package is the part of `go list -json` that the walls look at.
type Package struct {
	ImportPath   string
	Standard     bool
	Imports      []string
	TestImports  []string
	XTestImports []string
	Error        *struct{ Err string }
}

// rooms says for each room which other rooms it may import, besides itself.
var rooms = map[string][]string{
	"journal":     {},
	"fs":          {"journal"},
	"replicator":  {"journal"},
	"snapshotd":   {}, // it decides from values alone
	"cmd":         {"fs", "journal", "replicator", "snapshotd"},
	"integration": {}, // it drives the real binary, and knows the rooms from outside only
}

// owners says who may import a library, and why nobody else: each entry holds for the import path and
// all below it. An owner is a room or a package of one.
var owners = []struct {
	library string
	by      []string
	why     string
	exact   bool // the path itself only, nothing below it
}{
	{library: "github.com/dgraph-io/badger", by: []string{"journal"}, why: "records are kept in one place"},
	{library: "github.com/hanwen/go-fuse", by: []string{"fs/mount", "integration"}, why: "the mount is one package's business"},
	{library: "github.com/urfave/cli", by: []string{"cmd"}, why: "the command line is cmd's"},
	{library: "github.com/schollz/progressbar", by: []string{"cmd"}, why: "what a terminal shows is cmd's"},
	{library: "golang.org/x/term", by: []string{"cmd"}, why: "what a terminal shows is cmd's"},
	{library: "github.com/pierrec/lz4", by: []string{"replicator"}, why: "compression belongs to the wire"},
	{library: "net", by: []string{"replicator", "cmd", "integration"}, why: "journal, fs and snapshotd know no network"},
	{library: "crypto/tls", by: []string{"replicator", "cmd", "integration"}, why: "journal, fs and snapshotd know no peers"},
	{library: "log", by: []string{}, why: "messages go through log/slog", exact: true},
}

// Read decodes the stream of objects that `go list -json` prints. A package that go list could not load
// is an error: what cannot be read cannot be checked.
func Read(r io.Reader) ([]Package, error) {
	var all []Package
	dec := json.NewDecoder(r)
	for {
		var p Package
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read go list: %w", err)
		}
		if p.Error != nil {
			return nil, fmt.Errorf("go list cannot load %s: %s", p.ImportPath, p.Error.Err)
		}
		all = append(all, p)
	}
}

// Check returns one line for each forbidden import, sorted; none when the walls stand.
func Check(packages []Package) []string {
	var broken []string
	for _, p := range packages {
		if !within(p.ImportPath, module) {
			continue
		}
		for _, imports := range [][]string{p.Imports, p.TestImports, p.XTestImports} {
			for _, path := range imports {
				if why := forbidden(p.ImportPath, path); why != "" {
					broken = append(broken, fmt.Sprintf("%s imports %s: %s", p.ImportPath, path, why))
				}
			}
		}
	}
	slices.Sort(broken)
	return slices.Compact(broken)
}

// forbidden gives the reason why importer must not import path, or "" when it may.
func forbidden(importer, path string) string {
	from := strings.TrimPrefix(strings.TrimPrefix(importer, module), "/")
	if within(path, module) {
		return forbiddenRoom(room(from), room(strings.TrimPrefix(path, module+"/")))
	}
	for _, o := range owners {
		matches := path == o.library || (!o.exact && within(path, o.library))
		if matches && !ownedBy(from, o.by) {
			return o.why
		}
	}
	return ""
}

func forbiddenRoom(from, to string) string {
	if from == to {
		return ""
	}
	may, known := rooms[from]
	if !known {
		return fmt.Sprintf("%q is not one of the project's rooms", from)
	}
	if !slices.Contains(may, to) {
		return fmt.Sprintf("room %s must know nothing of room %s", from, to)
	}
	return ""
}

func ownedBy(from string, owners []string) bool {
	return slices.ContainsFunc(owners, func(o string) bool { return within(from, o) })
}

// within reports whether path is root or lies below it.
func within(path, root string) bool {
	return path == root || strings.HasPrefix(path, root+"/")
}

func room(path string) string {
	first, _, _ := strings.Cut(path, "/")
	return first
}
