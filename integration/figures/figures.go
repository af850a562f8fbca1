// Package figures sums measurements up. What it gives is always one of the measurements, or lies in the
// middle between two neighbours: nothing is estimated.
package figures

import (
	"cmp"
	"math"
	"slices"
)

// Median is the middle one of the values, or lies between the middle two. There must be a value.
func Median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// Quantile is the smallest of the values that is not exceeded by a share q of them, from 0 (the least) to 1
// (the most). There must be a value.
func Quantile[V cmp.Ordered](values []V, q float64) V {
	sorted := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(q * float64(len(sorted))))
	return sorted[max(rank, 1)-1]
}
