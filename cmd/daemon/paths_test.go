package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tandemfs/cmd/api"
)

func TestBadPlacesAreRefusedBeforeAnythingIsTouched(t *testing.T) {
	r := newRig(t)
	file := filepath.Join(r.mkdir("plain"), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(r.dir, "link")
	full, free := r.mkdir("full"), r.mkdir("free")
	r.mkdir("full/something")
	r.mkdir("data/below")
	if err := os.Symlink(filepath.Join(r.dir, "data"), link); err != nil {
		t.Fatal(err)
	}
	r.start()
	data := r.protect("data")
	apart, err := r.client.CreateVolume(t.Context(), api.CreateVolume{Name: "apart", Path: r.mkdir("apart"), Mount: r.mkdir("seen")})
	if err != nil {
		t.Fatal(err)
	}
	before := len(r.backend.since(0))
	for _, c := range []struct {
		what string
		want api.CreateVolume
		code api.Code
		says string
	}{
		{"no name", api.CreateVolume{Path: free}, api.CodeInvalid, "cannot be a volume's name"},
		{"a name with a slash", api.CreateVolume{Name: "a/b", Path: free}, api.CodeInvalid, "cannot be a volume's name"},
		{"a name of dots", api.CreateVolume{Name: "..", Path: free}, api.CodeInvalid, "cannot be a volume's name"},
		{"a long name", api.CreateVolume{Name: strings.Repeat("n", 65), Path: free}, api.CodeInvalid, "1 to 64"},
		{"a name that is taken", api.CreateVolume{Name: "data", Path: free}, api.CodeConflict, "choose another name"},
		{"a relative path", api.CreateVolume{Name: "v", Path: "free"}, api.CodeInvalid, "absolute"},
		{"no path", api.CreateVolume{Name: "v"}, api.CodeInvalid, "absolute"},
		{"a missing directory", api.CreateVolume{Name: "v", Path: free + "/no"}, api.CodeInvalid, "mkdir -p"},
		{"a file", api.CreateVolume{Name: "v", Path: file}, api.CodeInvalid, "not a directory"},
		{"a path through a file", api.CreateVolume{Name: "v", Path: file + "/x"}, api.CodeInvalid, "not a directory"},
		{"the root", api.CreateVolume{Name: "v", Path: "/"}, api.CodeInvalid, "cannot be /"},
		{"the root, hidden", api.CreateVolume{Name: "v", Path: "/tmp/.."}, api.CodeInvalid, "cannot be /"},
		{"a protected directory", api.CreateVolume{Name: "v", Path: data.Path}, api.CodeConflict, "is the mount of volume data"},
		{"the same through a link", api.CreateVolume{Name: "v", Path: link}, api.CodeConflict, "is the mount of volume data"},
		{"inside a protected directory", api.CreateVolume{Name: "v", Path: data.Path + "/below"}, api.CodeConflict, "lies inside"},
		{"around a protected directory", api.CreateVolume{Name: "v", Path: r.dir}, api.CodeConflict, "contains"},
		{"a mount of ours", api.CreateVolume{Name: "v", Path: apart.Mount}, api.CodeConflict, "is the mount of volume apart"},
		{"the state folder", api.CreateVolume{Name: "v", Path: r.options.State}, api.CodeConflict, "this node's state folder"},
		{"inside the state folder", api.CreateVolume{Name: "v", Path: r.mkdir("state/x")}, api.CodeConflict, "this node's state folder"},
		{"a kernel filesystem below", api.CreateVolume{Name: "v", Path: "/dev"}, api.CodeConflict, "another filesystem is mounted inside"},
		{"a missing mount path", api.CreateVolume{Name: "v", Path: free, Mount: free + "/no"}, api.CodeInvalid, "mkdir -p"},
		{"a file as mount path", api.CreateVolume{Name: "v", Path: free, Mount: file}, api.CodeInvalid, "not a directory"},
		{"a full mount path", api.CreateVolume{Name: "v", Path: free, Mount: full}, api.CodeConflict, "is not empty"},
		{"a used mount path", api.CreateVolume{Name: "v", Path: free, Mount: "/proc"}, api.CodeConflict, "is used already"},
		{"a mount path inside the directory", api.CreateVolume{Name: "v", Path: full, Mount: full + "/something"}, api.CodeConflict, "inside each other"},
		{"a mount path around the directory", api.CreateVolume{Name: "v", Path: full + "/something", Mount: full}, api.CodeConflict, "inside each other"},
		{"a mount path inside a volume", api.CreateVolume{Name: "v", Path: free, Mount: data.Path + "/below"}, api.CodeConflict, "lies inside"},
		{"another's mount path", api.CreateVolume{Name: "v", Path: free, Mount: apart.Mount}, api.CodeConflict, "is the mount of volume apart"},
	} {
		_, err := r.client.CreateVolume(t.Context(), c.want)
		if err == nil {
			t.Errorf("%s was accepted", c.what)
			continue
		}
		if e := api.AsError(err); e.Code != c.code || !strings.Contains(e.Message, c.says) {
			t.Errorf("%s: %s: %s\nwant %s with %q", c.what, e.Code, e.Message, c.code, c.says)
		}
	}
	if touched := r.backend.since(before); len(touched) > 0 {
		t.Errorf("meanwhile the node did %q", touched)
	}
}

func TestPathsOfAVolumeAreKeptWithoutLinks(t *testing.T) {
	r := newRig(t)
	dir := r.mkdir("real")
	if err := os.Symlink(dir, filepath.Join(r.dir, "link")); err != nil {
		t.Fatal(err)
	}
	r.start()
	v, err := r.client.CreateVolume(t.Context(), api.CreateVolume{Name: "v", Path: r.dir + "/./link/../link/"})
	if err != nil || v.Path != dir || v.Mount != dir {
		t.Errorf("got %+v, %v, want the path %s", v, err, dir)
	}
}

func TestTheListOfMountsIsRead(t *testing.T) {
	const text = `22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:35 / /srv/with\040space rw - fuse.tandemfs data rw
41 40 0:36 / /srv/with\040space/sub\134n rw shared:3 master:1 - tmpfs tmpfs rw
`
	mounts, err := parseMounts(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]mountPoint{
		"/srv":                     {"/", "ext4"},
		"/srv/with space":          {"/srv/with space", "fuse.tandemfs"},
		"/srv/with space/a":        {"/srv/with space", "fuse.tandemfs"},
		"/srv/with spaces":         {"/", "ext4"},
		`/srv/with space/sub\n/b`:  {`/srv/with space/sub\n`, "tmpfs"},
		`/srv/with space/sub\n.tx`: {"/srv/with space", "fuse.tandemfs"},
	} {
		if got := mountOf(mounts, path); got != want {
			t.Errorf("%s is on %v, want %v", path, got, want)
		}
	}
	if _, err := parseMounts(strings.NewReader("what is this\n")); err == nil {
		t.Error("a line that is no mount was taken for one")
	}
}

func TestADirectoryInAMountOfAnotherDaemonIsRefused(t *testing.T) {
	mounts := []mountPoint{{"/", "ext4"}, {"/srv/data", fsType}}
	for _, path := range []string{"/srv/data", "/srv/data/x"} {
		if err := (place{path, path}).check(mounts); err == nil || !strings.Contains(err.Error(), "in a mount of tandemfs") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := (place{"/srv/other", "/srv/other"}).check(mounts); err != nil {
		t.Errorf("a directory beside it: %v", err)
	}
}
