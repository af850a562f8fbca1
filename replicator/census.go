package replicator

import (
	"context"
	"errors"
	"io/fs"

	"tandemfs/journal"
)

// census counts the files of a view and their content, for the progress of a first transfer: what a
// backing filesystem says of its usage is about more than the volume. It runs ahead of the transfer,
// reading names and attributes only, which the transfer then finds in the kernel's caches.
func census(ctx context.Context, view View, root journal.Ident) (work, error) {
	var total work
	linked := map[journal.Ident]struct{}{} // with several names, and counted
	dirs := []journal.Ident{root}
	for len(dirs) > 0 {
		if ctx.Err() != nil {
			return total, context.Cause(ctx)
		}
		dir := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		entries, err := view.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return total, err
		}
		for _, e := range entries {
			attr, err := view.Stat(e.Ident)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return total, err
			}
			if _, counted := linked[e.Ident]; counted || err != nil {
				continue
			}
			if isDir(attr) {
				dirs = append(dirs, e.Ident)
			} else if attr.Nlink > 1 {
				linked[e.Ident] = struct{}{}
			}
			bytes, err := content(view, e.Ident, attr)
			if err != nil {
				return total, err
			}
			total = work{total.files + 1, total.bytes + bytes}
		}
	}
	return total, nil
}

// worthLooking is the size from which a file's holes matter to the count.
const worthLooking = 1 << 20

// content gives how much of a file is data. Small files are taken to have no holes.
func content(view View, id journal.Ident, attr journal.Attr) (int64, error) {
	if !isRegular(attr) {
		return 0, nil
	}
	size := attr.Size
	if size < worthLooking {
		return size, nil
	}
	f, err := view.Open(id)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var data int64
	for off := int64(0); ; {
		e, ok, err := f.NextData(off, size)
		if err != nil || !ok {
			return data, err
		}
		data += e.Len()
		off = e.End
	}
}
