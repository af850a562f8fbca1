package replicator

import (
	"fmt"
	"testing"
	"time"
)

// The relationships of one volume do not keep each other busy: what one seals is no change to another.
func TestManyTargetsComeToRest(t *testing.T) {
	p := newPair(t).create()
	pairs := []*pair{p}
	for i := range 3 {
		v := newTree(t, fmt.Sprint("more", i))
		p.dst.volumes.have[v.name] = v
		s, err := p.src.Create(background, CreateRequest{Source: "data", Target: p.dst.address, TargetVolume: v.name})
		no(err)
		_, err = p.dst.Authorize(background, s.ID, AuthorizeRequest{})
		no(err)
		pairs = append(pairs, &pair{t: t, src: p.src, dst: p.dst, from: p.from, to: v, id: s.ID})
	}
	for i, q := range pairs {
		q.same()
		q.to.setBroken(func(op string) error {
			if op == "commit" { // of different disks
				time.Sleep(time.Duration(20+30*i) * time.Millisecond)
			}
			return nil
		})
	}
	transfers := func() (n int64) {
		for _, q := range pairs {
			n += p.src.status(q.id).Transfers
		}
		return n
	}
	before := transfers()
	p.from.file(p.from.root, "f", "x")
	time.Sleep(2 * time.Second)
	if n := transfers() - before; n > 2*int64(len(pairs)) {
		t.Errorf("%d transfers of one change to %d targets", n, len(pairs))
	}
	for _, q := range pairs {
		q.same()
	}
}
