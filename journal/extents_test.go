package journal

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
)

// bitmap is the model of Extents: the bytes 0 to 254.
type bitmap [255]bool

func (b *bitmap) set(e Extent) {
	for i := e.Off; i < e.End; i++ {
		b[i] = true
	}
}

// extents gives the model's bytes in the normal form: sorted, disjoint, not adjacent, none empty.
func (b *bitmap) extents() Extents {
	var x Extents
	for i := range b {
		switch {
		case !b[i]:
		case i > 0 && b[i-1]:
			x[len(x)-1].End++
		default:
			x = append(x, Extent{int64(i), int64(i) + 1})
		}
	}
	return x
}

func (b *bitmap) combine(c *bitmap, f func(a, b bool) bool) *bitmap {
	var out bitmap
	for i := range b {
		out[i] = f(b[i], c[i])
	}
	return &out
}

// modelled makes a set and its model from pairs of bytes.
func modelled(raw []byte) (Extents, *bitmap) {
	var x Extents
	var b bitmap
	for ; len(raw) >= 2; raw = raw[2:] {
		e := Extent{int64(min(raw[0], raw[1])), int64(max(raw[0], raw[1]))}
		x = x.Add(e)
		b.set(e)
	}
	return x, &b
}

func same(a, b Extents) bool { return len(a) == 0 && len(b) == 0 || reflect.DeepEqual(a, b) }

// checkExtents compares every operation on two sets with the model.
func checkExtents(t *testing.T, first, second []byte, clip Extent) {
	t.Helper()
	x, bx := modelled(first)
	y, by := modelled(second)
	keptX, keptY := slices.Clone(x), slices.Clone(y)
	var c bitmap
	c.set(clip)
	expect := func(name string, got Extents, want *bitmap) {
		t.Helper()
		if !same(got, want.extents()) {
			t.Fatalf("%s of %v, %v, %v: got %v, want %v", name, x, y, clip, got, want.extents())
		}
	}
	expect("Add", x, bx)
	expect("Union", x.Union(y), bx.combine(by, func(a, b bool) bool { return a || b }))
	expect("Subtract", x.Subtract(y), bx.combine(by, func(a, b bool) bool { return a && !b }))
	inside := bx.combine(&c, func(a, b bool) bool { return a && b })
	expect("Intersect", x.Intersect(clip), inside)
	if got := x.overlap(clip); got != inside.extents().Len() {
		t.Fatalf("overlap of %v, %v: got %d", x, clip, got)
	}
	if covered := same(inside.extents(), c.extents()); x.Covers(clip) != covered {
		t.Fatalf("%v covers %v: got %v", x, clip, !covered)
	}
	for most := 1; most <= len(x)+1; most++ {
		checkCoarsen(t, x, most)
	}
	if !same(x, keptX) || !same(y, keptY) {
		t.Fatalf("an operation changed its input %v to %v, or %v to %v", keptX, x, keptY, y)
	}
}

func checkCoarsen(t *testing.T, x Extents, most int) {
	t.Helper()
	got := x.Coarsen(most)
	if len(got) != min(len(x), most) {
		t.Fatalf("Coarsen(%d) of %v has %d extents", most, x, len(got))
	}
	if len(x.Subtract(got)) != 0 {
		t.Fatalf("Coarsen(%d) of %v lost bytes: %v", most, x, got)
	}
	var gaps []int64
	for i := 1; i < len(x); i++ {
		gaps = append(gaps, x[i].Off-x[i-1].End)
	}
	slices.Sort(gaps)
	least := x.Len()
	for _, gap := range gaps[:len(x)-len(got)] {
		least += gap
	}
	if got.Len() != least {
		t.Fatalf("Coarsen(%d) of %v: %d bytes, %d suffice", most, x, got.Len(), least)
	}
}

func TestExtentsAgreeWithABitmap(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	raw := func() []byte {
		b := make([]byte, 2*r.IntN(20))
		for i := range b {
			b[i] = byte(r.IntN(255))
			if i%2 == 1 && r.IntN(2) == 0 {
				b[i] = b[i-1] + byte(r.IntN(8)) // many short ones, some inverted by overflow
			}
			b[i] = min(b[i], 254)
		}
		return b
	}
	for range 3000 {
		off := int64(r.IntN(200))
		checkExtents(t, raw(), raw(), Extent{off, off + int64(r.IntN(50))})
	}
}

func TestASetInPiecesAgreesWithOneSlice(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for round := range 6 {
		var s extentSet
		var x Extents
		for step := range 20_000 {
			e := Extent{Off: r.Int64N(1 << 20)}
			e.End = e.Off + 1 + r.Int64N(20)
			switch {
			case r.IntN(100) == 0:
				e.End = e.Off + 1 + r.Int64N(1<<15) // over several pieces
			case round%2 == 1 && r.IntN(5000) == 0:
				e.End = MaxOffset
			case r.IntN(5000) == 0:
				s.coarsen(max(1, s.count/2))
				x = x.Coarsen(max(1, len(x)/2))
			}
			if e.End < MaxOffset && s.overlap(e) != x.overlap(e) || s.covers(e) != x.Covers(e) {
				t.Fatalf("step %d, %v: overlap %d, want %d; covers %v, want %v",
					step, e, s.overlap(e), x.overlap(e), s.covers(e), x.Covers(e))
			}
			s.insert(e)
			x = x.insert(e)
			if s.count != len(x) || step%500 == 0 && !same(s.flat(), x) {
				t.Fatalf("step %d, %v: %d extents, want %d", step, e, s.count, len(x))
			}
		}
		if clone := s.clone(); !same(clone.flat(), x) {
			t.Error("a clone differs")
		}
		for _, piece := range s.pieces {
			if len(piece) == 0 || len(piece) > pieceMax {
				t.Errorf("a piece of %d extents", len(piece))
			}
		}
	}
}

func FuzzExtents(f *testing.F) {
	f.Add([]byte{1, 5, 7, 9}, []byte{3, 8}, byte(2), byte(10))
	f.Add([]byte{0, 1, 2, 3, 4, 5, 8, 9}, []byte{}, byte(0), byte(254))
	f.Fuzz(func(t *testing.T, first, second []byte, off, end byte) {
		bound := func(b []byte) []byte {
			b = slices.Clone(b[:min(len(b), 64)])
			for i := range b {
				b[i] = min(b[i], 254)
			}
			return b
		}
		checkExtents(t, bound(first), bound(second), Extent{int64(min(off, end, 254)), int64(min(max(off, end), 254))})
	})
}

func TestAnOpenEndedExtentStaysOpenEnded(t *testing.T) {
	x := Extents{}.Add(Extent{100, MaxOffset}).Add(Extent{0, 10})
	if got := x.Add(Extent{50, 200}); !same(got, Extents{{0, 10}, {50, MaxOffset}}) {
		t.Errorf("Add: %v", got)
	}
	if !x.Covers(Extent{1 << 60, MaxOffset}) || x.Covers(Extent{99, 101}) {
		t.Error("Covers is wrong at the edges of an open-ended extent")
	}
	if got := x.Intersect(Extent{0, 150}); !same(got, Extents{{0, 10}, {100, 150}}) {
		t.Errorf("Intersect: %v", got)
	}
}
