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
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return total, err
			}
			if isDir(attr) {
				dirs = append(dirs, e.Ident)
			} else if attr.Nlink > 1 {
				if _, counted := linked[e.Ident]; counted {
					continue
				}
				linked[e.Ident] = struct{}{}
			}
			total.files++
			if isRegular(attr) {
				size, err := content(view, e.Ident, attr.Size)
				if err != nil {
					return total, err
				}
				total.bytes += size
			}
		}
	}
	return total, nil
}

// worthLooking is the size from which a file's holes matter to the count.
const worthLooking = 1 << 20

// content gives how much of a file is data. Small files are taken to have no holes.
func content(view View, id journal.Ident, size int64) (int64, error) {
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
