package volume

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"tandemfs/journal"
)

// An inode is noted as new only after it was made, its identity not being known before. A process that dies in
// between leaves one that stands under a touched name, or in a new directory, and has no record of its own: to
// everybody who asks what has changed it would be an old one that was renamed.
//
// Which they are can be told, since operations never reach over a seal: it was made in the epoch that was the
// current one. There an inode without a record that came to its name by a rename is what another name stood
// for before, and one that came to it by a link has a record.

// noteUnnoted notes what the process before made and could not note. It costs what was touched in the current
// epoch, and the names in the directories that were made in it.
func (v *Volume) noteUnnoted() error {
	n, err := v.unnotedIn()
	if err != nil || n == 0 {
		return err
	}
	changes, err := v.journal.Changes(n-1, n)
	if err != nil {
		return err
	}
	u := unnoted{v: v, changes: changes, found: map[journal.Ident]struct{}{}}
	if err := errors.Join(changes.Names(u.touched), changes.Inodes(u.created)); err != nil {
		return err
	}
	if err := changes.Names(u.renamed); err != nil {
		return err
	}
	for id := range u.found {
		if err := v.inside(func() error { return v.journal.NoteCreated(id) }); err != nil {
			return err
		}
		v.log.Info("an inode was being made when the process before died", "inode", id)
	}
	return v.journal.SetState(unnotedKey, nil)
}

// unnotedKey is where the journal keeps the epoch that is searched: the process that does it may die as well.
const unnotedKey = "volume/unnoted"

// unnotedIn gives the epoch in which a process may have made something that it could not note, sealed; 0: none.
func (v *Volume) unnotedIn() (journal.Epoch, error) {
	value, err := v.journal.State(unnotedKey)
	if err != nil {
		return 0, err
	}
	number, _ := binary.Uvarint(value)
	n := journal.Epoch(number)
	if n == 0 && v.journal.Died() && v.journal.Dirty() {
		n = v.journal.Epoch()
		err = v.journal.SetState(unnotedKey, binary.AppendUvarint(nil, uint64(n)))
	}
	if err == nil && n == v.journal.Epoch() {
		_, err = v.journal.Seal(false)
	}
	return n, err
}

// unnoted looks for inodes that have a name and no record.
type unnoted struct {
	v       *Volume
	changes *journal.Changes
	found   map[journal.Ident]struct{}
}

// touched looks at what a touched name stands for now.
func (u *unnoted) touched(c journal.NameChange) error {
	id, err := u.v.identOf(c.Dir, c.Name)
	if errors.Is(err, unix.ESTALE) || err == nil && (id.IsZero() || id == c.Was) {
		return nil
	}
	if err != nil {
		return err
	}
	return u.consider(id)
}

// created looks at the names in a new directory, which are not touched ones.
func (u *unnoted) created(c journal.InodeChange) error {
	if c.What&journal.Created == 0 {
		return nil
	}
	var n Inode
	err := u.v.Stat(c.Ident, &n)
	if isStale(err) || err == nil && !n.IsDir() {
		return nil
	}
	if err != nil {
		return err
	}
	d, err := u.v.open.get(c.Ident, reachDir)
	if err != nil {
		return err
	}
	defer u.v.open.put(d)
	return withDir(d.fd, ".", func(fd int) error {
		return eachName(fd, func(name string) error {
			id, err := u.v.backing.IdentAt(fd, name)
			if err != nil {
				return err
			}
			return u.consider(id)
		})
	})
}

func isStale(err error) bool { return errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ENOENT) }

// consider remembers an inode that has no record.
func (u *unnoted) consider(id journal.Ident) error {
	_, ok, err := u.changes.Inode(id)
	if err == nil && !ok {
		u.found[id] = struct{}{}
	}
	return err
}

// renamed leaves out what had a name before.
func (u *unnoted) renamed(c journal.NameChange) error {
	delete(u.found, c.Was)
	return nil
}
