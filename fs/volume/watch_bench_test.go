package volume

import (
	"fmt"
	"testing"

	"tandemfs/journal"
)

// BenchmarkWatch measures what the watch costs the volume's own changes: each is made with it and without it.
func BenchmarkWatch(b *testing.B) {
	block := [][]byte{make([]byte, 4096)}
	for _, c := range []struct {
		name   string
		change func(b *testing.B, v *Volume, dir, file journal.Ident, i int)
	}{
		{"write 4 KiB", func(b *testing.B, v *Volume, _, file journal.Ident, i int) {
			if _, err := v.Write(file, block, int64(i%4096)*4096, false); err != nil {
				b.Fatal(err)
			}
		}},
		{"create and remove", func(b *testing.B, v *Volume, dir, _ journal.Ident, i int) {
			if err := v.CreateFile(dir, fmt.Sprint(i), 0o644, Caller{}, new(Inode)); err != nil {
				b.Fatal(err)
			}
			if err := v.Unlink(dir, fmt.Sprint(i)); err != nil {
				b.Fatal(err)
			}
		}},
	} {
		for _, watched := range []bool{false, true, false, true} {
			b.Run(fmt.Sprintf("%s/watched=%v", c.name, watched), func(b *testing.B) {
				v, err := Open(b.TempDir(), Options{Name: "test", Create: true})
				if err != nil {
					b.Fatal(err)
				}
				defer v.Close()
				v.SetKernel(noKernel{})
				if !watched {
					v.around.stop()
				}
				var dir, file Inode
				if err := v.Mkdir(v.root, "dir", 0o755, Caller{}, &dir); err != nil {
					b.Fatal(err)
				}
				if err := v.CreateFile(v.root, "file", 0o644, Caller{}, &file); err != nil {
					b.Fatal(err)
				}
				for i := 0; b.Loop(); i++ {
					c.change(b, v, dir.ID, file.ID, i)
				}
			})
		}
	}
}
