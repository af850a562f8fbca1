package replicator

import (
	"errors"
	"fmt"

	"tandemfs/journal"
)

// relocations remembers, before it happens, that an old directory goes into a new one. Should the transfer
// be given up, the next one knows nothing of that new directory and could not find the old one in it.
// Nothing has to be remembered of old directories in old ones, whose names the next transfer takes away.
type relocations struct {
	vol   Volume
	id    string // the relationship's
	noted int    // by this process, since the last takeBack or forget
}

// relocation is a directory and the new directory it is in, by their identities on the target.
type relocation struct {
	Epoch uint64        `json:"epoch"` // the transfer's
	Moved journal.Ident `json:"moved"`
	Into  journal.Ident `json:"into"`
}

func (r *relocations) key(n int) string { return fmt.Sprintf("replicator/%s/moved/%d", r.id, n) }

// note adds one; those that an earlier process noted in the same transfer come again.
func (r *relocations) note(epoch uint64, moved, into journal.Ident) error {
	err := remember(r.vol.Journal(), r.key(r.noted), relocation{epoch, moved, into})
	r.noted++
	return err
}

// takeBack moves all aside that were noted since the recovery point, and forgets them.
func (r *relocations) takeBack(recoveryPoint uint64) error {
	err := r.each(func(m relocation) error {
		ok, err := r.vol.Exists(m.Into)
		if err != nil || !ok || m.Epoch <= recoveryPoint {
			return err
		}
		entries, err := readDir(r.vol, m.Into)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.Ident == m.Moved {
				return r.vol.MoveAside(m.Into, e.Name)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return r.forget()
}

// forget is for when the transfer is committed.
func (r *relocations) forget() error {
	n := 0
	err := r.each(func(relocation) error { n++; return nil })
	for ; err == nil && n > 0; n-- { // backwards: what is left is found again
		err = r.vol.Journal().SetState(r.key(n-1), nil)
	}
	r.noted = 0
	return err
}

func (r *relocations) each(do func(relocation) error) error {
	for n := 0; ; n++ {
		var m relocation
		if err := recall(r.vol.Journal(), r.key(n), &m); err != nil || m.Moved.IsZero() {
			return err
		}
		if err := do(m); err != nil {
			return err
		}
	}
}

// readDir lists a directory of the target.
func readDir(vol Volume, dir journal.Ident) ([]DirEntry, error) {
	view, err := vol.Seal()
	if err != nil {
		return nil, err
	}
	entries, err := view.ReadDir(dir)
	return entries, errors.Join(err, view.Close())
}
