package lab

import (
	"fmt"
	"os"
	"path/filepath"
)

// A Host is what the lab needs where there is no test. A program makes one in its main and defers End.
type Host struct {
	cleanups []func()
	failed   bool
}

// Helper does nothing: there are no lines of a test to point at.
func (h *Host) Helper() {}

// Name is the program's.
func (h *Host) Name() string { return filepath.Base(os.Args[0]) }

// Failed reports whether Errorf was called.
func (h *Host) Failed() bool { return h.failed }

// Cleanup has f called by End.
func (h *Host) Cleanup(f func()) { h.cleanups = append(h.cleanups, f) }

// Logf writes to the standard error.
func (h *Host) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// Errorf reports a failure; the program goes on and exits with 1 at its end.
func (h *Host) Errorf(format string, args ...any) {
	h.failed = true
	h.Logf(format, args...)
}

// Fatalf reports a failure, cleans up and exits with 1.
func (h *Host) Fatalf(format string, args ...any) {
	h.Errorf(format, args...)
	h.End()
}

// End cleans up, in the reverse order. What fails on the way does not stop the rest.
func (h *Host) End() {
	for len(h.cleanups) > 0 {
		last := h.cleanups[len(h.cleanups)-1]
		h.cleanups = h.cleanups[:len(h.cleanups)-1]
		last()
	}
	if h.failed {
		os.Exit(1)
	}
}
