package journal

import (
	"slices"
	"sort"
)

// An extentSet is Extents in pieces, so that an extent added in the middle of very many moves only its
// piece: with random writes to a large file, one slice would be moved as a whole at every write. The zero
// value is the empty set.
type extentSet struct {
	pieces []Extents // none empty; what follows from one to the next is as within Extents
	count  int       // extents in all pieces
}

// pieceMax is the number of extents at which a piece is split.
const pieceMax = 256

// setOf takes over sorted extents.
func setOf(x Extents) extentSet {
	s := extentSet{count: len(x)}
	for piece := range slices.Chunk(x, pieceMax) {
		s.pieces = append(s.pieces, slices.Clip(piece))
	}
	return s
}

// flat gives the set as one slice of its own.
func (s *extentSet) flat() Extents {
	if s.count == 0 {
		return nil
	}
	return slices.Concat(s.pieces...)
}

// at gives the index of the piece where off belongs: the last one that begins at or before it, or the first.
func (s *extentSet) at(off int64) int {
	return max(0, sort.Search(len(s.pieces), func(i int) bool { return s.pieces[i][0].Off > off })-1)
}

func (s *extentSet) covers(e Extent) bool {
	return s.count > 0 && s.pieces[s.at(e.Off)].Covers(e)
}

// within gives the bytes of e that are in the set.
func (s *extentSet) within(e Extent) Extents {
	var out Extents
	for i := s.at(e.Off); i < len(s.pieces) && s.pieces[i][0].Off < e.End; i++ {
		out = append(out, s.pieces[i].Intersect(e)...)
	}
	return out
}

// overlap is the number of bytes of e that are in the set.
func (s *extentSet) overlap(e Extent) (n int64) {
	for i := s.at(e.Off); i < len(s.pieces) && s.pieces[i][0].Off < e.End; i++ {
		n += s.pieces[i].overlap(e)
	}
	return n
}

// insert adds the bytes of e, which is not empty.
func (s *extentSet) insert(e Extent) {
	if s.count == 0 {
		*s = extentSet{pieces: []Extents{{e}}, count: 1}
		return
	}
	i := s.at(e.Off)
	s.count -= len(s.pieces[i])
	s.pieces[i] = s.pieces[i].insert(e)
	s.swallow(i)
	s.count += len(s.pieces[i])
	if half := len(s.pieces[i]) / 2; half >= pieceMax/2 {
		right := slices.Clone(s.pieces[i][half:])
		s.pieces[i] = s.pieces[i][:half]
		s.pieces = slices.Insert(s.pieces, i+1, right)
	}
}

// swallow merges into the last extent of piece i what following pieces have that it reaches.
func (s *extentSet) swallow(i int) {
	last := &s.pieces[i][len(s.pieces[i])-1]
	next := i + 1
	for ; next < len(s.pieces) && s.pieces[next][0].Off <= last.End; next++ {
		piece := s.pieces[next]
		gone := sort.Search(len(piece), func(k int) bool { return piece[k].Off > last.End })
		last.End = max(last.End, piece[gone-1].End)
		s.count -= gone
		if gone < len(piece) {
			s.pieces[next] = piece[gone:]
			break
		}
	}
	s.pieces = slices.Delete(s.pieces, i+1, next)
}

// coarsen leaves at most n extents that hold every byte of the set.
func (s *extentSet) coarsen(n int) { *s = setOf(s.flat().Coarsen(n)) }

func (s *extentSet) clone() extentSet { return setOf(s.flat()) }

// bytes is the number of bytes in the set, without an extent that is open-ended.
func (s *extentSet) bytes() (n int64) {
	for _, piece := range s.pieces {
		n += piece.Len()
	}
	if s.count > 0 {
		piece := s.pieces[len(s.pieces)-1]
		if last := piece[len(piece)-1]; last.End == MaxOffset {
			n -= last.Len()
		}
	}
	return n
}
