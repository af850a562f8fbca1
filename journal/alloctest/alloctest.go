// Package alloctest measures what fuzz targets of all rooms may take from the heap. Only tests use it.
package alloctest

import "runtime/metrics"

// Bytes says roughly how many bytes f takes from the heap: what other goroutines take meanwhile is counted too.
func Bytes(f func()) uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	before := sample[0].Value.Uint64()
	f()
	metrics.Read(sample)
	return sample[0].Value.Uint64() - before
}
