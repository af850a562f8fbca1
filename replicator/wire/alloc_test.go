package wire

import "runtime/metrics"

// allocated says roughly how many bytes f takes from the heap.
func allocated(f func()) uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	before := sample[0].Value.Uint64()
	f()
	metrics.Read(sample)
	return sample[0].Value.Uint64() - before
}

// slack is what a fuzz target may take whatever it is given: the runtime's own needs are counted too.
const slack = 1 << 20
