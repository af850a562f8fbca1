package daemon

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"tandemfs/cmd/api"
)

// fsType is how the kernel lists the mounts of tandemfs.
const fsType = "fuse.tandemfs"

var volumeName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// checkName refuses what cannot be a volume's name.
func checkName(name string) error {
	if !volumeName.MatchString(name) || name == "." || name == ".." {
		return api.Errorf(api.CodeInvalid,
			"%q cannot be a volume's name: use 1 to 64 letters, digits, dots, underscores and dashes", name)
	}
	return nil
}

// cleanDir gives a directory's path without symbolic links, or says what is wrong with it. what is the
// word for the directory in the message.
func cleanDir(what, path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", api.Errorf(api.CodeInvalid, "the %s must be an absolute path, not %q", what, path)
	}
	real, err := filepath.EvalSymlinks(path)
	if err == nil {
		err = isDir(real)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", api.Errorf(api.CodeInvalid, "the %s %s does not exist: make it first (mkdir -p %s)", what, path, path)
	case errors.Is(err, syscall.ENOTDIR):
		return "", api.Errorf(api.CodeInvalid, "the %s %s is not a directory", what, path)
	case errors.Is(err, syscall.ENOTCONN):
		return "", api.Errorf(api.CodeConflict, "a dead FUSE mount covers the %s %s: take it away first (umount %s)", what, path, path)
	case err != nil:
		return "", api.Errorf(api.CodeInvalid, "the %s cannot be used: %v", what, err)
	case real == "/":
		return "", api.Errorf(api.CodeInvalid, "the %s cannot be /: name a directory below it", what)
	}
	return real, nil
}

func isDir(path string) error {
	info, err := os.Stat(path)
	if err == nil && !info.IsDir() {
		err = syscall.ENOTDIR
	}
	return err
}

// place is where a volume is: the directory that it protects and where it is mounted, cleaned.
type place struct{ path, mount string }

// cleanPlace cleans the paths that somebody asked for. No mount path stands for the directory itself.
func cleanPlace(path, mount string) (place, error) {
	path, err := cleanDir("directory", path)
	if err != nil {
		return place{}, err
	}
	p := place{path, path}
	if mount != "" {
		p.mount, err = cleanDir("mount path", mount)
	}
	return p, err
}

// check refuses a place that the filesystem does not allow.
func (p place) check(mounts []mountPoint) error {
	if p.mount != p.path {
		if err := p.checkMount(mounts); err != nil {
			return err
		}
	}
	return p.checkBelow(mounts)
}

// checkMount refuses a mount path apart from the directory that is not free.
func (p place) checkMount(mounts []mountPoint) error {
	if within(p.mount, p.path) || within(p.path, p.mount) {
		return api.Errorf(api.CodeConflict, "the mount path %s and the directory %s lie inside each other: "+
			"name a mount path elsewhere, or none to mount over the directory itself", p.mount, p.path)
	}
	for _, m := range mounts {
		if m.path == p.mount {
			return api.Errorf(api.CodeConflict, "the mount path %s is used already: something is mounted there (%s)", p.mount, m.fsType)
		}
	}
	f, err := os.Open(p.mount)
	if err != nil {
		return api.Errorf(api.CodeInvalid, "the mount path cannot be used: %v", err)
	}
	defer f.Close()
	names, err := f.Readdirnames(1)
	if err != nil && !errors.Is(err, io.EOF) {
		return api.Errorf(api.CodeInvalid, "the mount path cannot be read: %v", err)
	}
	if len(names) > 0 {
		return api.Errorf(api.CodeConflict, "the mount path %s is not empty: the mount would hide what is in it", p.mount)
	}
	return nil
}

// checkBelow refuses a directory that is or lies in a mount of tandemfs, or that has another filesystem
// mounted below it: the volume's journal knows the files of one filesystem.
func (p place) checkBelow(mounts []mountPoint) error {
	if m := mountOf(mounts, p.path); m.fsType == fsType {
		return api.Errorf(api.CodeConflict, "the directory %s is in a mount of tandemfs already (%s)", p.path, m.path)
	}
	for _, m := range mounts {
		if m.path != p.path && within(m.path, p.path) {
			return api.Errorf(api.CodeConflict, "another filesystem is mounted inside %s, at %s: "+
				"a volume protects one filesystem; unmount that one first, or protect it as a volume of its own", p.path, m.path)
		}
	}
	return nil
}

// claim is a path that belongs to somebody; what says to whom, and as what.
type claim struct{ path, what string }

// clash says why a volume cannot be at p while others have their claims; "" when it can.
func (p place) clash(claims []claim) string {
	for _, mine := range []claim{{p.path, "directory"}, {p.mount, "mount path"}} {
		for _, theirs := range claims {
			switch {
			case mine.path == theirs.path:
				return fmt.Sprintf("the %s %s is %s", mine.what, mine.path, theirs.what)
			case within(mine.path, theirs.path):
				return fmt.Sprintf("the %s %s lies inside %s, %s", mine.what, mine.path, theirs.path, theirs.what)
			case within(theirs.path, mine.path):
				return fmt.Sprintf("the %s %s contains %s, %s", mine.what, mine.path, theirs.path, theirs.what)
			}
		}
	}
	return ""
}

// within reports whether a cleaned path is the folder, or lies in it.
func within(path, folder string) bool {
	return path == folder || folder == "/" || strings.HasPrefix(path, folder+"/")
}

// mountPoint is one line of the kernel's list of mounts.
type mountPoint struct{ path, fsType string }

// systemMounts reads the mounts that this process sees.
func systemMounts() ([]mountPoint, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("the list of mounts cannot be read: %w", err)
	}
	defer f.Close()
	return parseMounts(f)
}

// parseMounts reads the format of /proc/self/mountinfo: the fifth field is the mount point, and the
// filesystem's type is the first field after a lone dash.
func parseMounts(r io.Reader) ([]mountPoint, error) {
	var all []mountPoint
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(kind) == 0 {
			return nil, fmt.Errorf("the list of mounts has a line that is not understood: %q", lines.Text())
		}
		all = append(all, mountPoint{unescapeMount.Replace(fields[4]), kind[0]})
	}
	return all, lines.Err()
}

// unescapeMount undoes what the kernel does to the characters that separate fields.
var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// mountOf gives the mount that a path is on: the deepest, and of those at one path the last.
func mountOf(mounts []mountPoint, path string) mountPoint {
	var found mountPoint
	for _, m := range mounts {
		if within(path, m.path) && len(m.path) >= len(found.path) {
			found = m
		}
	}
	return found
}
