package journal

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
)

// The model is a journal as simple as can be: everything in maps, extents as bits, nothing freed.
type model struct {
	epoch     Epoch
	forgotten Epoch
	base      Epoch // from which changes are asked for too
	held      map[Epoch]int
	epochs    map[Epoch]*modelEpoch
}

type modelEpoch struct {
	inodes map[Ident]*modelInode
	names  map[nameKey]Ident
	images map[Ident]int64
}

type modelInode struct {
	what    What
	removed bool
	bytes   bitmap
	tail    bool // 250 and all behind it
}

const modelEnd = 250

func newModel() *model {
	return &model{epoch: 1, held: map[Epoch]int{}, epochs: map[Epoch]*modelEpoch{}}
}

func (m *model) current() *modelEpoch {
	e := m.epochs[m.epoch]
	if e == nil {
		e = &modelEpoch{map[Ident]*modelInode{}, map[nameKey]Ident{}, map[Ident]int64{}}
		m.epochs[m.epoch] = e
	}
	return e
}

func (m *model) lowestHeld() Epoch {
	low := m.epoch
	for n := range m.held {
		low = min(low, n)
	}
	return low
}

// An action is one thing that is done to a journal and to its model.
type action struct {
	kind   string
	id     Ident
	name   string
	was    Ident
	extent Extent
	size   int64 // of the before image
	hold   bool
	epoch  Epoch
	base   Epoch // of a forget: from which changes will be asked for too
}

// nextAction draws an action that makes sense in the model's present state.
func (m *model) nextAction(r *rand.Rand) action {
	a := action{id: ino(1 + r.IntN(30)), name: fmt.Sprintf("%0*d", 1+r.IntN(20), r.IntN(6)),
		size: r.Int64N(1 << 40), hold: r.IntN(2) == 0}
	if r.IntN(3) > 0 {
		a.was = ino(r.IntN(1000))
	}
	if e := m.epochs[m.epoch]; e != nil && e.inodes[a.id] != nil && e.inodes[a.id].removed {
		a.kind = "created" // nothing else can happen to it that matters
		return a
	}
	switch p := r.IntN(1000); {
	case p < 450:
		a.kind, a.extent.Off = "data", r.Int64N(modelEnd)
		a.extent.End = min(a.extent.Off+r.Int64N(20), modelEnd)
		if r.IntN(10) == 0 {
			a.extent.End = MaxOffset
		}
	case p < 600:
		a.kind = "meta"
	case p < 850:
		a.kind = "name"
	case p < 900:
		a.kind = "created"
	case p < 930:
		a.kind = "removed"
	case p < 965:
		a.kind = "seal"
	case p < 985 && len(m.held) > 0:
		a.kind, a.epoch = "release", pick(r, m.held)
	case p < 990 && len(m.held) > 0:
		a.kind, a.epoch = "hold", pick(r, m.held)
	default:
		a.kind = "forget"
		known := m.told()
		a.epoch = known[r.IntN(len(known))]
		a.base = max(a.epoch, known[r.IntN(len(known))])
	}
	return a
}

// told lists the seals that are told apart from those around them, none forgotten: only they can be bases.
func (m *model) told() []Epoch {
	list := []Epoch{m.forgotten, m.epoch - 1, max(m.base, m.forgotten)}
	for n := range m.held {
		list = append(list, max(n, m.forgotten))
	}
	slices.Sort(list)
	return list
}

func pick(r *rand.Rand, held map[Epoch]int) Epoch {
	all := slices.Sorted(maps.Keys(held))
	return all[r.IntN(len(all))]
}

// apply does the action to the model.
func (m *model) apply(a action) {
	switch a.kind {
	case "data", "meta":
		m.touch(a)
	case "name":
		if e := m.current(); e.inodes[a.id] == nil || e.inodes[a.id].what&Created == 0 && !e.inodes[a.id].removed {
			if _, ok := e.names[nameKey{a.id, a.name}]; !ok {
				e.names[nameKey{a.id, a.name}] = a.was
			}
		}
	case "created":
		m.current().inodes[a.id] = &modelInode{what: Created}
	case "removed":
		if i := m.current().inodes[a.id]; i != nil && i.what&Created != 0 {
			*i = modelInode{removed: true}
		}
	case "seal":
		if a.hold {
			m.held[m.epoch]++
		}
		m.epoch++
	case "hold":
		m.held[a.epoch]++
	case "release":
		if m.held[a.epoch]--; m.held[a.epoch] == 0 {
			delete(m.held, a.epoch)
		}
	case "forget":
		m.forgotten, m.base = max(m.forgotten, a.epoch), a.base
	}
}

func (m *model) touch(a action) {
	e := m.current()
	i := e.inodes[a.id]
	if i == nil {
		i = &modelInode{}
		e.inodes[a.id] = i
	}
	if i.what&Created != 0 || i.removed {
		return
	}
	if i.what == 0 && len(m.held) > 0 && !m.newSinceHeld(a.id) {
		e.images[a.id] = a.size
	}
	i.what |= Meta
	if a.extent.End > a.extent.Off {
		i.what |= Data
		i.tail = i.tail || a.extent.End == MaxOffset
		i.bytes.set(Extent{a.extent.Off, min(a.extent.End, modelEnd)})
	}
}

// newSinceHeld reports whether no held seal has the inode.
func (m *model) newSinceHeld(id Ident) bool {
	newest := Epoch(0)
	for n := range m.held {
		newest = max(newest, n)
	}
	for n := newest + 1; n < m.epoch; n++ {
		if e := m.epochs[n]; e != nil && e.inodes[id] != nil && e.inodes[id].what&Created != 0 {
			return true
		}
	}
	return false
}

// run does the action to a journal.
func (a action) run(j *Journal) (err error) {
	switch a.kind {
	case "seal":
		_, err = j.Seal(a.hold)
	case "hold":
		err = j.Hold(a.epoch)
	case "release":
		j.Release(a.epoch)
	case "forget":
		err = j.Forget(a.epoch, a.base)
	default:
		err = inside(j, func() error { return a.runInside(j) })
	}
	return err
}

func (a action) runInside(j *Journal) error {
	switch a.kind {
	case "data":
		return j.TouchData(a.id, a.extent, imageOf(a.size))
	case "meta":
		return j.TouchMeta(a.id, imageOf(a.size))
	case "name":
		return j.TouchName(a.id, a.name, a.was)
	case "created":
		return j.NoteCreated(a.id)
	}
	j.NoteRemoved(a.id)
	return nil
}

// changes gives what the model says of the range (after, upto].
func (m *model) changes(after, upto Epoch) (map[Ident]InodeChange, map[nameKey]Ident) {
	inodes, names := map[Ident]InodeChange{}, map[nameKey]Ident{}
	type union struct {
		what  What
		bytes bitmap
		tail  bool
	}
	all := map[Ident]*union{}
	for n := after + 1; n <= upto; n++ {
		e := m.epochs[n]
		if e == nil {
			continue
		}
		for id, i := range e.inodes {
			if all[id] == nil {
				all[id] = &union{}
			}
			u := all[id]
			u.what, u.tail = u.what|i.what, u.tail || i.tail
			u.bytes = *u.bytes.combine(&i.bytes, func(a, b bool) bool { return a || b })
		}
		for key, was := range e.names {
			if _, ok := names[key]; !ok {
				names[key] = was
			}
		}
	}
	for id, u := range all {
		x := u.bytes.extents()
		if u.tail {
			x = x.Add(Extent{modelEnd, MaxOffset})
		}
		switch {
		case u.what&Created != 0:
			inodes[id] = InodeChange{Ident: id, What: Created, Extents: nil}
		case u.what != 0:
			inodes[id] = InodeChange{Ident: id, What: u.what, Extents: x}
		}
	}
	for key := range names {
		if inodes[key.dir].What == Created {
			delete(names, key)
		}
	}
	return inodes, names
}

// diff says how the journal differs from the model; empty: it does not.
func (m *model) diff(t *testing.T, j *Journal) string {
	if j.Epoch() != m.epoch || j.Forgotten() != m.forgotten || !slices.Equal(j.Held(), slices.Sorted(maps.Keys(m.held))) {
		return fmt.Sprintf("epoch %d, forgotten %d, held %v; the model has %d, %d, %v",
			j.Epoch(), j.Forgotten(), j.Held(), m.epoch, m.forgotten, m.held)
	}
	asked := append(slices.Sorted(maps.Keys(m.held)), m.forgotten)
	if m.base > m.forgotten {
		asked = append(asked, m.base)
	}
	for _, after := range asked {
		if after < min(m.forgotten, m.lowestHeld()) {
			continue
		}
		wantInodes, wantNames := m.changes(after, m.epoch-1)
		gotInodes := inodesOf(t, j, after, m.epoch-1)
		for id, want := range wantInodes {
			if got := gotInodes[id]; got.What != want.What || !same(got.Extents, want.Extents) {
				return fmt.Sprintf("inode %v after %d: %v, the model has %v", id, after, got, want)
			}
		}
		if len(gotInodes) != len(wantInodes) {
			return fmt.Sprintf("%d inodes after %d, the model has %d", len(gotInodes), after, len(wantInodes))
		}
		if d := diffMaps(namesOf(t, j, after, m.epoch-1), wantNames); d != "" {
			return fmt.Sprintf("names after %d: %s", after, d)
		}
	}
	held := slices.Sorted(maps.Keys(m.held))
	for i, n := range held {
		if i > 0 && i < len(held)-1 && i != len(held)/2 {
			continue // three views are enough
		}
		if d := m.diffView(t, j, n); d != "" {
			return d
		}
	}
	return ""
}

// diffMaps names one difference.
func diffMaps[K comparable](got, want map[K]Ident) string {
	for key, was := range want {
		if g, ok := got[key]; !ok || g != was {
			return fmt.Sprintf("%v: %v, %v, the model has %v", key, g, ok, was)
		}
	}
	for key, was := range got {
		if _, ok := want[key]; !ok {
			return fmt.Sprintf("%v: %v, the model has nothing", key, was)
		}
	}
	return ""
}

// diffView compares the before images of one view.
func (m *model) diffView(t *testing.T, j *Journal, n Epoch) string {
	names, images, made := map[nameKey]Ident{}, map[Ident]int64{}, map[Ident]bool{}
	for e := n + 1; e <= m.epoch; e++ {
		if m.epochs[e] == nil {
			continue
		}
		for key, was := range m.epochs[e].names {
			if _, ok := names[key]; !ok {
				names[key] = was
			}
		}
		for id, size := range m.epochs[e].images {
			if _, ok := images[id]; !ok {
				images[id] = size
			}
		}
		for id, i := range m.epochs[e].inodes {
			made[id] = made[id] || i.what&Created != 0
		}
	}
	for i := 1; i <= 30; i++ {
		id := ino(i)
		image, ok, err := j.ImageAt(n, id)
		must(t, err)
		if size, there := images[id]; ok != there || ok && !reflect.DeepEqual(image, testImage(size)) {
			return fmt.Sprintf("image of %v at %d: %v, %v, the model has %v, %v", id, n, image, ok, size, there)
		}
		isNew, err := j.CreatedAfter(n, id)
		must(t, err)
		if isNew != made[id] {
			return fmt.Sprintf("%v created after %d: %v, the model has %v", id, n, isNew, made[id])
		}
		if d := m.diffNames(t, j, n, id, names); d != "" {
			return d
		}
	}
	return ""
}

func (m *model) diffNames(t *testing.T, j *Journal, n Epoch, dir Ident, names map[nameKey]Ident) string {
	want := map[string]Ident{}
	for key, was := range names {
		if key.dir == dir {
			want[key.name] = was
		}
	}
	got, err := j.NamesAt(n, dir)
	must(t, err)
	if d := diffMaps(got, want); d != "" {
		return fmt.Sprintf("names of %v at %d: %s", dir, n, d)
	}
	for name, was := range want {
		if got, ok, err := j.NameAt(n, dir, name); got != was || !ok || err != nil {
			return fmt.Sprintf("name %v/%s at %d: %v, %v, %v, the model has %v", dir, name, n, got, ok, err, was)
		}
	}
	return ""
}

// restarted is what a restart does to the model: each hold has one holder.
func (m *model) restarted() {
	for n := range m.held {
		m.held[n] = 1
	}
}

func TestARandomHistoryAgreesWithTheModelThroughRestartsAndCrashes(t *testing.T) {
	for seed := uint64(1); seed <= 3; seed++ {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { randomHistory(t, seed, 2000) })
	}
}

func randomHistory(t *testing.T, seed uint64, steps int) {
	r := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	j := open(t, dir, small())
	m := newModel()
	for step := range steps {
		a := m.nextAction(r)
		if err := a.run(j); err != nil {
			t.Fatalf("step %d, %+v: %v", step, a, err)
		}
		m.apply(a)
		switch r.IntN(400) {
		case 0:
			must(t, j.Close())
			j = open(t, dir, small())
			m.restarted()
		case 1:
			settle(j)
			dead := copyOf(t, dir)
			must(t, j.Close())
			dir = dead
			j = open(t, dir, small())
			m.restarted()
		case 2:
			must(t, j.Sync())
		case 3:
		default:
			continue
		}
		if d := m.diff(t, j); d != "" {
			t.Fatalf("step %d: %s", step, d)
		}
	}
	if d := m.diff(t, j); d != "" {
		t.Fatal(d)
	}
}
