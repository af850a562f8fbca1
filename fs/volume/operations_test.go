package volume

import (
	"bytes"
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"

	"tandemfs/fs/sys"
	"tandemfs/journal"
)

// block is what the operations below count in.
const block = 4096

func blocks(n int) []byte { return bytes.Repeat([]byte("new"), n*block)[:n*block] }

func nothing(*scene) {}

// operations are those that package faults_test tries: all that change a volume, and those that read it.
var operations = []operation{
	{name: "create", set: nothing, do: func(s *scene) error {
		return s.v.CreateFile(s.dir, "new", 0o640, nobody, &s.out)
	}},
	{name: "mknod", set: nothing, do: func(s *scene) error {
		return s.v.Mknod(s.dir, "new", unix.S_IFCHR|0o600, unix.Mkdev(1, 3), Caller{Umask: 0o22}, &s.out)
	}},
	{name: "mkdir", set: nothing, do: func(s *scene) error {
		return s.v.Mkdir(s.dir, "new", 0o777, Caller{Umask: 0o22}, &s.out)
	}},
	{name: "symlink", set: nothing, do: func(s *scene) error {
		return s.v.Symlink(s.dir, "new", "to/where", Caller{}, &s.out)
	}},
	{name: "link", set: func(s *scene) { s.file("a", block) }, do: func(s *scene) error {
		return s.v.Link(s.id["a"], s.dir, "b", &s.out)
	}},
	{name: "tmpfile", set: nothing, do: func(s *scene) error {
		err := s.v.Tmpfile(s.dir, 0o600, nobody, &s.out)
		if err == nil {
			s.id["tmpfile"] = s.out.ID
			s.open("tmpfile")
		}
		return err
	}},
	{name: "link a tmpfile", set: func(s *scene) {
		s.must(s.v.Tmpfile(s.dir, 0o600, Caller{}, &s.out))
		s.id["tmpfile"] = s.out.ID
		s.open("tmpfile")
	}, do: func(s *scene) error {
		return s.v.Link(s.id["tmpfile"], s.dir, "named", &s.out)
	}},
	{name: "unlink", set: func(s *scene) { s.file("a", 3*block) }, do: unlinkA},
	{name: "unlink what is open", set: func(s *scene) { s.file("a", 3*block); s.open("a") }, do: unlinkA},
	{name: "unlink one of two names", set: func(s *scene) {
		s.must(s.v.Link(s.file("a", block), s.dir, "b", &s.out))
	}, do: unlinkA},
	{name: "rmdir", set: func(s *scene) { s.directory("a") }, do: rmdirA},
	{name: "rmdir what is open", set: func(s *scene) { s.directory("a"); s.open("a") }, do: rmdirA},
	{name: "rename", set: func(s *scene) { s.file("a", block) }, do: renameA("b", 0)},
	{name: "rename without replacing", set: func(s *scene) { s.file("a", block) }, do: renameA("b", unix.RENAME_NOREPLACE)},
	{name: "rename over a file", set: func(s *scene) { s.file("a", block); s.file("b", 2*block) }, do: renameA("b", 0)},
	{name: "rename over an open file", set: func(s *scene) {
		s.file("a", block)
		s.file("b", 2*block)
		s.open("b")
	}, do: renameA("b", 0)},
	{name: "rename over one of two names", set: func(s *scene) {
		s.file("a", block)
		s.must(s.v.Link(s.file("b", block), s.dir, "c", &s.out))
	}, do: renameA("b", 0)},
	{name: "rename over a directory", set: func(s *scene) { s.directory("a"); s.file("a/x", 0); s.directory("b") }, do: renameA("b", 0)},
	{name: "rename over an open directory", set: func(s *scene) {
		s.directory("a")
		s.directory("b")
		s.open("b")
	}, do: renameA("b", 0)},
	{name: "rename to another directory", set: func(s *scene) { s.directory("a"); s.directory("d") }, do: func(s *scene) error {
		return s.v.Rename(s.dir, "a", s.id["d"], "b", 0)
	}},
	{name: "exchange", set: func(s *scene) { s.directory("a"); s.file("b", block) }, do: renameA("b", unix.RENAME_EXCHANGE)},
	{name: "write", steps: true, set: func(s *scene) { s.file("a", 5*block) }, do: write(block, blocks(2), false)},
	{name: "write within blocks", steps: true, set: func(s *scene) { s.file("a", 2*block) }, do: write(block-3, []byte("seven b"), false)},
	{name: "write at the end", steps: true, set: func(s *scene) { s.file("a", block+1) }, do: write(block, blocks(2), false)},
	{name: "write to a set-uid file", steps: true, set: func(s *scene) { s.setUID(s.file("a", block)) }, do: write(0, blocks(1), true)},
	{name: "truncate", steps: true, set: func(s *scene) { s.file("a", 5*block) }, do: truncate(block + 5)},
	{name: "truncate a set-uid file", steps: true, set: func(s *scene) { s.setUID(s.file("a", 5*block)) }, do: func(s *scene) error {
		return s.v.SetAttr(s.id["a"], Setting{Valid: SetSize, Size: 5, KillPriv: true, Group: AnyGroup, Owner: AnyOwner}, &s.out)
	}},
	{name: "extend", steps: true, set: func(s *scene) { s.file("a", 10) }, do: truncate(2*block + 5)},
	{name: "allocate", set: func(s *scene) { s.file("a", 10) }, do: allocate(0, block, 3*block)},
	{name: "allocate ahead", set: func(s *scene) { s.file("a", 10) }, do: allocate(unix.FALLOC_FL_KEEP_SIZE, block, 3*block)},
	{name: "punch a hole", set: func(s *scene) { s.file("a", 6*block) }, do: allocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, block, 3*block)},
	{name: "zero a range", set: func(s *scene) { s.file("a", 6*block) }, do: allocate(unix.FALLOC_FL_ZERO_RANGE, block, 3*block)},
	{name: "allocate for a set-uid file", steps: true, set: func(s *scene) { s.setUID(s.file("a", block)) }, do: func(s *scene) error {
		return s.v.Allocate(s.id["a"], 0, block, block, true)
	}},
	{name: "copy a range", set: func(s *scene) { s.file("a", 5*block); s.file("from", 6*block) }, do: func(s *scene) error {
		for done := 0; done < 3*block; {
			n, err := s.v.Copy(s.id["from"], int64(block+done), s.id["a"], int64(done), int64(3*block-done), false)
			if err != nil {
				return err
			}
			done += n
		}
		return nil
	}, steps: true},
	{name: "chmod", steps: true, set: func(s *scene) { s.file("a", block) }, do: setAttr(Setting{Valid: SetMode, Mode: 0o4751})},
	{name: "chown", steps: true, set: func(s *scene) { s.file("a", block) }, do: setAttr(Setting{Valid: SetUID | SetGID, UID: 7, GID: 8})},
	{name: "set times", steps: true, set: func(s *scene) { s.directory("a") }, do: setAttr(Setting{Valid: SetTimes, Atime: journal.Time{Sec: 5}, Mtime: journal.Time{Sec: 6, Nsec: 7}})},
	{name: "set all attributes", steps: true, set: func(s *scene) { s.setUID(s.file("a", 3*block)) }, do: setAttr(Setting{
		Valid: SetMode | SetUID | SetGID | SetSize | SetTimes, Mode: 0o640, UID: 3, GID: 4, Size: block,
		Atime: journal.Time{Sec: 5}, Mtime: journal.Time{Sec: 6}, KillPriv: true, Group: AnyGroup, Owner: AnyOwner,
	})},
	{name: "set an attribute", set: func(s *scene) { s.file("a", block); s.xattr("user.one", "1") }, do: func(s *scene) error {
		return s.v.SetXattr(s.id["a"], "user.two", bytes.Repeat([]byte("2"), 300), 0, false)
	}},
	{name: "remove an attribute", set: func(s *scene) { s.file("a", block); s.xattr("user.one", "1") }, do: func(s *scene) error {
		if err := s.v.RemoveXattr(s.id["a"], "user.one"); err != unix.ENODATA {
			return err
		}
		return nil
	}},
	{name: "set an ACL", steps: true, set: func(s *scene) {
		s.must(s.v.SetAttr(s.file("a", block), Setting{Valid: SetMode, Mode: 0o2755}, &s.out))
	}, do: func(s *scene) error { return s.v.SetXattr(s.id["a"], sys.XattrACLAccess, anACL, 0, true) }},
	{name: "create below a default ACL", set: func(s *scene) {
		s.must(s.v.SetXattr(s.dir, sys.XattrACLDefault, anACL, 0, false))
	}, do: func(s *scene) error { return s.v.CreateFile(s.dir, "new", 0o666, Caller{Umask: 0o77}, &s.out) }},
	{name: "set flags", set: func(s *scene) { s.file("a", block); s.learnFlags() }, do: func(s *scene) error {
		return s.v.SetFlags(s.id["a"], false, flagNoDump|s.flags)
	}},
	{name: "sync a file", set: func(s *scene) { s.file("a", block) }, do: func(s *scene) error {
		return s.v.Fsync(s.id["a"], false, false)
	}},
	{name: "sync a directory", set: func(s *scene) { s.file("a", block) }, do: func(s *scene) error {
		return s.v.Fsync(s.dir, true, true)
	}},
	{name: "read", set: func(s *scene) { s.file("a", 2*block); s.xattr("user.one", "1"); s.symlink("l") }, do: read},
	{name: "read a snapshot", steps: true, set: func(s *scene) { s.file("a", 2*block); s.directory("d"); s.symlink("l"); s.file("gone", block) }, do: readSnapshot},
	{name: "take a snapshot", set: func(s *scene) { s.file("a", block) }, do: takeSnapshot},
	{name: "delete a snapshot", set: func(s *scene) { s.file("a", 2*block); s.must(takeSnapshot(s)); s.change("a") }, do: func(s *scene) error {
		if err := s.v.DeleteSnapshot("another"); !isGone(err) {
			return err
		}
		return nil
	}},
	{name: "free what a snapshot held", set: func(s *scene) {
		s.file("a", 4*block)
		s.file("b", block)
		s.directory("d")
		s.must(takeSnapshot(s))
		s.change("a")
		s.must(s.v.Unlink(s.dir, "b"))
		s.must(s.v.Rmdir(s.dir, "d"))
		s.must(s.v.DeleteSnapshot("another"))
	}, do: func(s *scene) error { return s.v.reclaim() }},
	{name: "what snapshots take", set: func(s *scene) { s.file("a", 4*block); s.must(takeSnapshot(s)); s.change("a") }, do: func(s *scene) error {
		_, _, err := s.v.SnapshotSpace()
		return err
	}},
	{name: "restore", set: history1, do: func(s *scene) error {
		return s.restore("")
	}},
	{name: "restore a path", set: history1, do: func(s *scene) error {
		return s.restore(s.name + "/d")
	}},
	{name: "freeze, change and thaw", set: func(s *scene) { s.file("a", 2*block); s.directory("d") }, do: func(s *scene) error {
		if err := s.v.Freeze(); err != nil {
			return err
		}
		if err := s.write("a"); err != nil {
			return err
		}
		return s.v.Thaw()
	}},
	{name: "publish", steps: true, set: func(s *scene) {
		s.file("a", 2*block)
		s.must(s.v.Freeze())
		time.Sleep(5 * time.Millisecond) // a tick of the clock that files have their times from
		s.must(s.write("a"))
	}, do: func(s *scene) error {
		if s.committed == 0 {
			n, err := s.v.Commit()
			if err != nil {
				return err
			}
			s.committed = n
		}
		if err := s.v.Publish(s.committed); err != nil {
			return err
		}
		return s.v.Thaw()
	}},
	{name: "apply a new file", steps: true, set: func(s *scene) { s.file("a", block) }, do: func(s *scene) error {
		id, err := s.v.Create(unix.S_IFREG, 0, "", journal.Ident{}, "")
		if err == nil {
			err = s.apply(id, 3*block)
		}
		if err == nil {
			err = s.v.Place(id, s.dir, "a")
		}
		if err == nil {
			err = s.drop()
		}
		return err
	}},
	{name: "apply new inodes in place", steps: true, set: func(s *scene) { s.file("f", block) }, do: func(s *scene) error {
		for name, mode := range map[string]uint32{"f": unix.S_IFREG, "d": unix.S_IFDIR, "l": unix.S_IFLNK, "p": unix.S_IFIFO} {
			id, err := s.v.Create(mode, 0, "target", s.dir, name)
			if err == nil {
				err = s.v.SetImage(id, journal.Image{Attr: journal.Attr{Mode: mode | 0o640, UID: 3, GID: 4, Mtime: journal.Time{Sec: 9}}})
			}
			if err != nil {
				return err
			}
		}
		return s.drop()
	}},
	{name: "apply a swap of names", steps: true, set: func(s *scene) { s.directory("a"); s.file("b", block) }, do: func(s *scene) error {
		if err := s.v.MoveAside(s.dir, "a"); err != nil {
			return err
		}
		if err := s.v.Place(s.id["a"], s.dir, "b"); err != nil {
			return err
		}
		if err := s.v.Place(s.id["b"], s.dir, "a"); err != nil {
			return err
		}
		return s.drop()
	}},
	{name: "apply moves and links", steps: true, set: func(s *scene) {
		s.directory("from")
		s.directory("from/moved")
		s.directory("to")
		s.file("linked", block)
	}, do: func(s *scene) error {
		if err := s.v.Place(s.id["from/moved"], s.id["to"], "moved"); err != nil {
			return err
		}
		if err := s.v.Place(s.id["linked"], s.id["to"], "linked"); err != nil {
			return err
		}
		return s.drop()
	}},
	{name: "apply a removal", steps: true, set: func(s *scene) {
		s.directory("d")
		s.directory("d/e")
		s.file("d/e/f", 2*block)
		s.file("a", block)
	}, do: func(s *scene) error {
		if err := s.v.MoveAside(s.dir, "d"); err != nil {
			return err
		}
		if err := s.v.MoveAside(s.dir, "a"); err != nil {
			return err
		}
		return s.drop()
	}},
	{name: "apply content", steps: true, set: func(s *scene) { s.file("a", 6*block) }, do: func(s *scene) error {
		return s.apply(s.id["a"], 5*block)
	}},
	{name: "apply attributes", steps: true, set: func(s *scene) { s.file("a", 6*block); s.xattr("user.one", "1"); s.xattr("user.two", "2") }, do: func(s *scene) error {
		return s.v.SetImage(s.id["a"], journal.Image{
			Attr:   journal.Attr{Mode: unix.S_IFREG | 0o4711, UID: 5, GID: 6, Size: 7, Atime: journal.Time{Sec: 8}, Mtime: journal.Time{Sec: 9}},
			Xattrs: []journal.Xattr{{Name: "user.three", Value: []byte("3")}, {Name: "user.two", Value: []byte("other")}},
		})
	}},
	{name: "commit", set: func(s *scene) { s.file("a", block); s.must(s.v.Freeze()) }, do: func(s *scene) error {
		_, err := s.v.Commit()
		if err == nil {
			err = s.v.Thaw()
		}
		return err
	}},
}

func unlinkA(s *scene) error { return s.v.Unlink(s.dir, "a") }
func rmdirA(s *scene) error  { return s.v.Rmdir(s.dir, "a") }

func renameA(to string, flags uint) func(*scene) error {
	return func(s *scene) error { return s.v.Rename(s.dir, "a", s.dir, to, flags) }
}

// write calls Write until all is written, as a program does; in two pieces, as a mount may have it.
func write(off int64, p []byte, killPriv bool) func(*scene) error {
	return func(s *scene) error {
		n, err := s.v.Write(s.id["a"], [][]byte{p[:len(p)/2], p[len(p)/2:]}, off, killPriv)
		if err == nil && n < len(p) {
			_, err = s.v.Write(s.id["a"], [][]byte{p[n:]}, off+int64(n), killPriv)
		}
		return err
	}
}

func truncate(size int64) func(*scene) error { return setAttr(Setting{Valid: SetSize, Size: size}) }

func setAttr(set Setting) func(*scene) error {
	return func(s *scene) error { return s.v.SetAttr(s.id["a"], set, &s.out) }
}

func allocate(mode uint32, off, length int64) func(*scene) error {
	return func(s *scene) error { return s.v.Allocate(s.id["a"], mode, off, length, false) }
}

// anACL is user::rw-, user:1:r--, group::r--, mask::r--, other::---, as the kernel has it.
var anACL = func() []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range [][3]uint32{{1, 6, ^uint32(0)}, {2, 4, 1}, {4, 4, ^uint32(0)}, {16, 4, ^uint32(0)}, {32, 0, ^uint32(0)}} {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return b
}()

func (s *scene) setUID(id journal.Ident) {
	s.must(s.v.SetAttr(id, Setting{Valid: SetMode, Mode: 0o4755}, &s.out))
	s.must(s.v.SetXattr(id, sys.XattrCapability, append([]byte{1, 0, 0, 2}, make([]byte, 16)...), 0, false))
}

func (s *scene) xattr(name, value string) {
	s.must(s.v.SetXattr(s.id["a"], name, []byte(value), 0, false))
}

func (s *scene) symlink(name string) {
	s.must(s.v.Symlink(s.dir, name, "to/"+name, Caller{}, &s.out))
	s.id[name] = s.out.ID
}

func (s *scene) learnFlags() {
	var err error
	s.flags, err = s.v.Flags(s.id["a"], false)
	s.must(err)
}

// write writes to a file as a transfer does, change as a user.
func (s *scene) write(name string) error {
	f, err := s.v.OpenForApply(s.id[name])
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(blocks(1), block/2)
	return err
}

func (s *scene) change(name string) {
	_, err := s.v.Write(s.id[name], [][]byte{blocks(1)}, 0, false)
	s.must(err)
}

// apply gives a file content, a hole and a size.
func (s *scene) apply(id journal.Ident, size int64) error {
	f, err := s.v.OpenForApply(id)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err = f.WriteAt(blocks(2), block); err == nil {
		err = f.Punch(journal.Extent{Off: 2 * block, End: 3 * block})
	}
	if err == nil {
		err = f.Truncate(size)
	}
	return err
}

func (s *scene) drop() error { return s.v.DropAside(func(journal.Ident) error { return nil }) }

func takeSnapshot(s *scene) error {
	_, err := s.v.CreateSnapshot("another", time.Time{})
	return err
}

// history1 is a snapshot with changes of all kinds after it.
func history1(s *scene) {
	s.directory("d")
	s.file("d/kept", 3*block)
	s.file("d/removed", block)
	s.file("d/replaced", block)
	s.directory("d/e")
	s.must(takeSnapshot(s))
	s.change("d/kept")
	s.must(s.v.SetAttr(s.id["d/kept"], Setting{Valid: SetMode, Mode: 0o600}, &s.out))
	s.must(s.v.Unlink(s.id["d"], "removed"))
	s.file("d/new", block)
	s.must(s.v.Rename(s.id["d"], "new", s.id["d"], "replaced", 0))
	s.must(s.v.Rmdir(s.id["d"], "e"))
	s.must(s.v.Rename(s.dir, "d", s.dir, "renamed", 0))
	s.directory("d")
}

// restore goes back to that snapshot, after an earlier try that could not even be taken back.
func (s *scene) restore(path string) error {
	if s.v.ReadOnly() {
		if err := s.v.SetReadOnly(false); err != nil {
			return err
		}
	}
	_, err := s.v.Restore("another", path)
	return err
}

// read reads all that can be read. What an error keeps from being read must not look like something else.
func read(s *scene) error {
	var n Inode
	buf := make([]byte, 3*block)
	steps := []func() error{
		func() error { return s.v.Lookup(s.dir, "a", &n) },
		func() error { return s.v.Stat(s.id["a"], &n) },
		func() error { return wanted(s.v.Read(s.id["a"], buf, 0))(2 * block) },
		func() error { return wanted(s.v.GetXattr(s.id["a"], "user.one", buf))(1) },
		func() error { return wanted(s.v.ListXattr(s.id["a"], buf))(len("user.one") + 1) },
		func() error {
			_, err := s.v.Seek(s.id["a"], 0, unix.SEEK_HOLE)
			return err
		},
		func() error {
			_, err := s.v.Readlink(s.id["l"])
			return err
		},
		func() error {
			_, err := s.v.Flags(s.id["a"], false)
			return err
		},
		func() error {
			names := 0
			err := s.v.ReadDir(s.dir, 0, direntBuffer, func(*sys.Dirent) bool { names++; return true })
			return wanted(names, err)(4)
		},
	}
	return inTurn(steps)
}

func inTurn(steps []func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// wanted turns a result that is not the wanted one into an error of its own.
func wanted(got int, err error) func(want int) error {
	return func(want int) error {
		if err == nil && got != want {
			return journal.ErrCorrupt // an error that no call gives
		}
		return err
	}
}

// readSnapshot reads what was changed since a snapshot was taken, where there is one.
func readSnapshot(s *scene) error {
	if s.snapshot == "" {
		return nil
	}
	if err := s.v.SetAttr(s.id["a"], Setting{Valid: SetSize, Size: 1}, &s.out); err != nil {
		return err
	}
	if err := s.v.Unlink(s.dir, "gone"); err != nil && err != unix.ENOENT {
		return err
	}
	_, view, err := s.v.OpenSnapshot(s.snapshot)
	if err != nil {
		return err
	}
	defer view.Close()
	tree, _ := view.Tree()
	defer tree.Done()
	buf := make([]byte, 3*block)
	var n Inode
	return inTurn([]func() error{
		func() error { return tree.Lookup(s.dir, "a", &n) },
		func() error { return tree.Lookup(s.dir, "gone", &n) },
		func() error { return wanted(tree.Read(s.id["a"], buf, 0))(2 * block) },
		func() error { return wanted(tree.Read(s.id["gone"], buf, 0))(block) },
		func() error {
			_, err := tree.Seek(s.id["a"], 0, unix.SEEK_HOLE)
			return err
		},
		func() error {
			_, err := tree.Readlink(s.id["l"])
			return err
		},
		func() error {
			names := 0
			err := tree.ReadDir(s.dir, 0, direntBuffer, func(*sys.Dirent) bool { names++; return true })
			return wanted(names, err)(6)
		},
	})
}
