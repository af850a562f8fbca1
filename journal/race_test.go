//go:build race

package journal

// raced: the tests run with the race detector.
const raced = true
