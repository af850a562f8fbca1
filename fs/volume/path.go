package volume

import (
	"strings"

	"tandemfs/fs/sys"
	"tandemfs/journal"
)

// PathOf gives a path that an inode has in the view, slash-separated and relative to the root, whose own is empty.
// Where neither the mount nor the kernel knows one it is not looked for, and ok is false.
func (w *View) PathOf(id journal.Ident) (path string, ok bool) {
	p := newPaths(w.v, w)
	p.moved = map[journal.Ident]place{}
	if path, err := p.dir(id); err == nil {
		return path, true
	}
	if dir, name, ok := w.v.mounted().Where(id); ok {
		path, err := p.of(place{dir, name})
		if err == nil && w.isAt(id, path) {
			return path, true
		}
	}
	o, err := w.v.open.get(id, reachPath)
	if err != nil {
		return "", false
	}
	defer w.v.open.put(o)
	if path, err = sys.PathOf(o.fd); err != nil {
		return "", false
	}
	path = strings.TrimPrefix(path, "/")
	return path, w.isAt(id, path)
}

// isAt reports whether a path leads to the inode.
func (w *View) isAt(id journal.Ident, path string) bool {
	at, err := w.resolve(path)
	return err == nil && at == id
}
