package journal

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
)

func TestAMapIsABijectionWhateverIsPutIntoIt(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	dir := t.TempDir()
	j := open(t, dir, Options{})
	m := j.Map("rel")
	other := j.Map("re") // a name that is the start of the first one
	must(t, other.Put(ino(1), ino(2)))
	model := map[Ident]Ident{}
	for step := range 6000 {
		from, to := ino(1+r.IntN(300)), ino(1000+r.IntN(300))
		switch r.IntN(20) {
		case 0:
			delete(model, from)
			must(t, m.Delete(from))
		case 1:
			must(t, m.Flush())
		default:
			for f, v := range model {
				if v == to {
					delete(model, f)
				}
			}
			model[from] = to
			must(t, m.Put(from, to))
		}
		if step%1500 == 1499 {
			checkMap(t, m, model)
			must(t, j.Close())
			j = open(t, dir, Options{})
			m, other = j.Map("rel"), j.Map("re")
			checkMap(t, m, model)
		}
	}
	must(t, m.Drop())
	checkMap(t, m, nil)
	if to, ok, err := other.Get(ino(1)); to != ino(2) || !ok || err != nil {
		t.Errorf("another map's pair: %v, %v, %v", to, ok, err)
	}
}

func checkMap(t *testing.T, m *Map, model map[Ident]Ident) {
	t.Helper()
	back := map[Ident]Ident{}
	for from, to := range model {
		back[to] = from
	}
	for i := 1; i < 1400; i++ {
		to, ok, err := m.Get(ino(i))
		must(t, err)
		if want, there := model[ino(i)]; ok != there || ok && to != want {
			t.Fatalf("Get(%d) = %v, %v, want %v, %v", i, to, ok, want, there)
		}
		from, ok, err := m.Reverse(ino(i))
		must(t, err)
		if want, there := back[ino(i)]; ok != there || ok && from != want {
			t.Fatalf("Reverse(%d) = %v, %v, want %v, %v", i, from, ok, want, there)
		}
	}
}

func TestAMapsBufferIsBounded(t *testing.T) {
	m := open(t, t.TempDir(), Options{}).Map("m")
	for i := 1; i < 3*mapBuffer; i++ {
		must(t, m.Put(ino(i), ino(i)))
		if len(m.forward) > mapBuffer || len(m.backward) > mapBuffer {
			t.Fatalf("%d and %d entries are buffered", len(m.forward), len(m.backward))
		}
	}
}

func TestAMapRefusesTheZeroIdentity(t *testing.T) {
	m := open(t, t.TempDir(), Options{}).Map("m")
	if m.Put(Ident{}, ino(1)) == nil || m.Put(ino(1), Ident{}) == nil || m.Delete(Ident{}) == nil {
		t.Error("it was taken")
	}
}

func TestAStateSurvivesTheProcess(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, Options{})
	must(t, j.SetState("cursor", []byte("here")))
	must(t, j.SetState("gone", []byte("x")))
	must(t, j.SetState("gone", nil))
	must(t, j.SetState("empty", []byte{}))
	if err := j.SetState("huge", make([]byte, maxValue+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a value beyond the bound: %v", err)
	}
	j = open(t, copyOf(t, dir), Options{})
	if v, err := j.State("cursor"); err != nil || !bytes.Equal(v, []byte("here")) {
		t.Errorf("cursor: %q, %v", v, err)
	}
	if v, err := j.State("gone"); err != nil || v != nil {
		t.Errorf("gone: %q, %v", v, err)
	}
	if v, err := j.State("empty"); err != nil || v == nil || len(v) != 0 {
		t.Errorf("empty: %q, %v", v, err)
	}
}
