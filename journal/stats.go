package journal

import (
	"io/fs"
	"path/filepath"
	"syscall"
)

// Stats describes a journal's size.
type Stats struct {
	Epochs      int   // epochs that have records, the current one included
	Inodes      int64 // inode records, estimated
	Names       int64 // name records, estimated
	LogBytes    int64 // bytes of the intent logs on the disk
	StoreBytes  int64 // bytes of the store on the disk
	MemoryBytes int64 // bytes of the index in memory, estimated; the store has its own, some 30 MiB
}

// Stats gives the journal's present size.
func (j *Journal) Stats() Stats {
	s := Stats{StoreBytes: j.store.size()}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, t := range j.state.totals {
		s.Epochs++
		s.Inodes += max(t.inodes, 0)
		s.Names += max(t.names, 0)
	}
	for _, g := range []*generation{j.active, j.frozen} {
		if g != nil {
			s.LogBytes += int64(len(g.log.data))
			s.MemoryBytes += int64(g.bytes)
		}
	}
	if j.spare != nil {
		s.LogBytes += int64(len(j.spare.data))
	}
	return s
}

// diskUsage is the number of bytes that the files in a directory take on the disk. Files that go meanwhile
// count as nothing.
func diskUsage(dir string) int64 {
	var bytes int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				bytes += st.Blocks * 512
			}
		}
		return nil
	})
	return bytes
}
