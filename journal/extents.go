package journal

import (
	"slices"
	"sort"
)

// Extents is a set of bytes of one file: sorted, disjoint, not adjacent, none empty. The zero value is
// the empty set. All operations leave their inputs as they were.
type Extents []Extent

// outward extends an extent to whole blocks.
func (e Extent) outward(block int64) Extent {
	e.Off -= e.Off % block
	if rest := e.End % block; rest > 0 && e.End <= MaxOffset-block {
		e.End += block - rest
	}
	return e
}

// Covers reports whether every byte of e is in the set. An empty extent is covered by any set.
func (x Extents) Covers(e Extent) bool {
	if e.End <= e.Off {
		return true
	}
	i := x.after(e.Off)
	return i < len(x) && x[i].Off <= e.Off && e.End <= x[i].End
}

// after gives the index of the first extent that ends behind off.
func (x Extents) after(off int64) int {
	return sort.Search(len(x), func(i int) bool { return x[i].End > off })
}

// Add gives the set with the bytes of e in it.
func (x Extents) Add(e Extent) Extents {
	return slices.Clone(x).insert(e)
}

// insert is Add in place: x may be changed and must not be used again.
func (x Extents) insert(e Extent) Extents {
	if e.End <= e.Off {
		return x
	}
	from := sort.Search(len(x), func(i int) bool { return x[i].End >= e.Off })
	to := from
	for to < len(x) && x[to].Off <= e.End {
		e.Off = min(e.Off, x[to].Off)
		e.End = max(e.End, x[to].End)
		to++
	}
	if from == to {
		return slices.Insert(x, from, e)
	}
	x[from] = e
	return slices.Delete(x, from+1, to)
}

// Union gives the bytes that are in x or in y.
func (x Extents) Union(y Extents) Extents {
	if len(x) == 0 {
		return slices.Clone(y)
	}
	var out Extents
	for len(x) > 0 || len(y) > 0 {
		if len(y) == 0 || len(x) > 0 && x[0].Off <= y[0].Off {
			out, x = out.push(x[0]), x[1:]
		} else {
			out, y = out.push(y[0]), y[1:]
		}
	}
	return out
}

// push adds an extent that begins no earlier than the last one does.
func (x Extents) push(e Extent) Extents {
	if last := len(x) - 1; last >= 0 && e.Off <= x[last].End {
		x[last].End = max(x[last].End, e.End)
		return x
	}
	return append(x, e)
}

// Subtract gives the bytes that are in x and not in y.
func (x Extents) Subtract(y Extents) Extents {
	var out Extents
	for _, e := range x {
		for len(y) > 0 && y[0].End <= e.Off {
			y = y[1:]
		}
		for _, cut := range y {
			if cut.Off >= e.End {
				break
			}
			if cut.Off > e.Off {
				out = append(out, Extent{e.Off, cut.Off})
			}
			e.Off = min(cut.End, e.End)
		}
		if e.Off < e.End {
			out = append(out, e)
		}
	}
	return out
}

// Intersect gives the bytes of the set that lie in clip.
func (x Extents) Intersect(clip Extent) Extents {
	var out Extents
	for _, e := range x[x.after(clip.Off):] {
		e.Off, e.End = max(e.Off, clip.Off), min(e.End, clip.End)
		if e.Off >= e.End {
			break
		}
		out = append(out, e)
	}
	return out
}

// overlap is the number of bytes of e that are in the set.
func (x Extents) overlap(e Extent) int64 {
	var n int64
	for _, y := range x[x.after(e.Off):] {
		if y.Off >= e.End {
			break
		}
		n += min(y.End, e.End) - max(y.Off, e.Off)
	}
	return n
}

// Len is the number of bytes in the set. A set that reaches MaxOffset is open-ended; Len then says little.
func (x Extents) Len() int64 {
	var n int64
	for _, e := range x {
		n += e.Len()
	}
	return n
}

// Coarsen gives a set of at most max extents (max is at least 1) that holds every byte of x. It closes
// the smallest gaps, so that it adds as few bytes as possible.
func (x Extents) Coarsen(max int) Extents {
	if len(x) <= max {
		return slices.Clone(x)
	}
	gaps := make([]int64, 0, len(x)-1)
	for i := 1; i < len(x); i++ {
		gaps = append(gaps, x[i].Off-x[i-1].End)
	}
	slices.Sort(gaps)
	surplus := len(x) - max
	limit := gaps[surplus-1]
	ties := surplus - sort.Search(len(gaps), func(i int) bool { return gaps[i] >= limit })
	out := make(Extents, 0, max)
	for i, e := range x {
		if i == 0 {
			out = append(out, e)
			continue
		}
		gap := e.Off - out[len(out)-1].End
		close := gap < limit
		if gap == limit && ties > 0 {
			close, ties = true, ties-1
		}
		if close {
			out[len(out)-1].End = e.End
		} else {
			out = append(out, e)
		}
	}
	return out
}
