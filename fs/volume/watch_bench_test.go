package volume

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// BenchmarkWatch measures what the watch costs the volume's own changes. Rounds with it and without it take turns;
// of each the median and the least are given, per change. -benchtime 20x makes 20 rounds.
func BenchmarkWatch(b *testing.B) {
	block := [][]byte{make([]byte, 4096)}
	for _, c := range []struct {
		name   string
		change func(v *Volume, dir, file *Inode, i int) error
	}{
		{"write 4 KiB", func(v *Volume, _, file *Inode, i int) error {
			_, err := v.Write(file.ID, block, int64(i%4096)*4096, false)
			return err
		}},
		{"create", func(v *Volume, dir, _ *Inode, i int) error {
			return v.CreateFile(dir.ID, fmt.Sprint(i), 0o644, Caller{}, new(Inode))
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			var times [2][]float64
			for b.Loop() {
				for i, watched := range []bool{false, true} {
					times[i] = append(times[i], round(b, watched, c.change))
				}
			}
			b.ReportMetric(0, "ns/op")
			for i, name := range []string{"unwatched", "watched"} {
				slices.Sort(times[i])
				b.ReportMetric(times[i][0], name+"-ns-least")
				b.ReportMetric(times[i][len(times[i])/2], name+"-ns-median")
			}
		})
	}
}

// round makes changes to a new volume and gives how long one takes, in nanoseconds.
func round(b *testing.B, watched bool, change func(v *Volume, dir, file *Inode, i int) error) float64 {
	const changes = 3000
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
	began := time.Now()
	for i := range changes {
		if err := change(v, &dir, &file, i); err != nil {
			b.Fatal(err)
		}
	}
	return float64(time.Since(began).Nanoseconds()) / changes
}
