package history

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// file gives the path of something that is no directory, most times.
func (g *Generator) file() string {
	if len(g.files) == 0 || g.rng.IntN(25) == 0 {
		return g.fresh()
	}
	return g.files[g.rng.IntN(len(g.files))]
}

// dir gives the path of a directory, most times.
func (g *Generator) dir() string {
	if g.rng.IntN(40) == 0 {
		return g.file()
	}
	return g.dirs[g.rng.IntN(len(g.dirs))]
}

// any gives the path of anything.
func (g *Generator) any() string {
	if g.rng.IntN(4) == 0 {
		return g.dir()
	}
	return g.file()
}

// maxDepth bounds how deep a history nests directories by itself.
const maxDepth = 6

// fresh gives a name that may or may not exist, in a directory that most times does.
func (g *Generator) fresh() string {
	dir := g.dir()
	if strings.Count(dir, "/") >= maxDepth {
		dir = "."
	}
	var name string
	switch g.rng.IntN(60) {
	case 0:
		name = strings.Repeat("n", 255)
	case 1:
		name = strings.Repeat("n", 256) // one too long
	case 2:
		name = fmt.Sprintf("\xff\xfe not utf-8 \n%d", g.rng.IntN(5))
	case 3:
		name = fmt.Sprintf("ŝĉ-%d", g.rng.IntN(20))
	default:
		name = fmt.Sprintf("%c%d", 'a'+g.rng.IntN(26), g.rng.IntN(12))
	}
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

// slot gives the number of an open file, or of one that might be.
func (g *Generator) slot() int { return 1 + g.rng.IntN(slots-1) }

// offset gives a place in a file: near the start most times, on a block's edge often, far away seldom.
func (g *Generator) offset() int64 {
	switch g.rng.IntN(12) {
	case 0:
		return 0
	case 1, 2, 3:
		return int64(g.rng.IntN(64)) * 4096
	case 4:
		return int64(g.rng.IntN(64))*4096 - int64(g.rng.IntN(2))
	case 5:
		return int64(g.rng.IntN(4 << 20))
	case 6:
		return int64(g.rng.Int64N(64 << 20))
	}
	return int64(g.rng.IntN(40_000))
}

// length gives how many bytes: few most times.
func (g *Generator) length() int64 {
	switch g.rng.IntN(12) {
	case 0:
		return int64(1+g.rng.IntN(16)) * 4096
	case 1:
		return int64(1 + g.rng.IntN(300_000))
	case 2:
		return 0
	}
	return int64(1 + g.rng.IntN(9000))
}

// owner gives a user and a group to give something to: seldom "as it is".
func (g *Generator) owner() (uid, gid int) {
	ids := []int{-1, 0, 1000, 2000, 3000, 4000}
	return ids[g.rng.IntN(len(ids))], ids[g.rng.IntN(len(ids))]
}

// permissions are ordinary most times; the set-id and sticky bits come as well.
func (g *Generator) permissions() uint32 {
	if g.rng.IntN(3) > 0 {
		return []uint32{0o644, 0o755, 0o666, 0o777, 0o600, 0o700}[g.rng.IntN(6)]
	}
	return uint32(g.rng.IntN(0o10000))
}

func (g *Generator) addFile(path string) {
	if !slices.Contains(g.files, path) {
		g.files = append(g.files, path)
	}
}

func (g *Generator) addDir(path string) {
	if !slices.Contains(g.dirs, path) {
		g.dirs = append(g.dirs, path)
	}
}

// content makes data of so many bytes: the same for the same fill.
func content(fill uint64, n int64) []byte {
	b := make([]byte, n)
	if fill%7 == 0 {
		return b // zeros are data too
	}
	rng := rand.NewPCG(fill, 3)
	for i := 0; i+8 <= len(b); i += 8 {
		word := rng.Uint64()
		for k := range 8 {
			b[i+k] = byte(word >> (8 * k))
		}
	}
	if n > 0 {
		b[n-1] = byte(fill)
	}
	return b
}
