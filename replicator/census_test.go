package replicator

import (
	"context"
	"testing"
)

func TestAFirstTransferCarriesWhatWasCounted(t *testing.T) {
	for seed := range uint64(5) {
		p := newPair(t)
		newHistory(p.from, seed).run(400)
		p.create().same()
		view, err := p.from.Seal()
		if err != nil {
			t.Fatal(err)
		}
		total, err := census(context.Background(), view, p.from.Root())
		if err != nil {
			t.Fatal(err)
		}
		if err := view.Close(); err != nil {
			t.Fatal(err)
		}
		s := p.src.status(p.id).Progress
		// The holes of small files are counted, and not transferred.
		if !s.First || total.files != s.Files.Transferred || total.bytes < s.Bytes.Transferred || total.bytes > 2*s.Bytes.Transferred {
			t.Errorf("seed %d: counted %+v, transferred %+v", seed, total, s)
		}
	}
}
