// Package failpoint lets a test make system calls fail. Each place where a volume or its journal makes one is
// marked there by Call or Transfer, with the call's name.
//
// It guarantees:
//
//   - Nothing but a test can make a call fail: Arm panics in a program that `go test` did not build.
//   - Where no test has armed them, a point is one load of a pointer that is nil.
//
// It is part of the journal's room since every room that makes such calls may import that one.
package failpoint

import (
	"flag"
	"sync/atomic"
)

// Fault is asked at each point: of a call that is about to be made, and that would move size bytes where it
// moves any. It gives how many of them the call may move, or the error that the call is to give without being
// made. It may be called by several goroutines at once.
type Fault func(call string, size int) (allowed int, err error)

// armed is nil but in tests.
var armed atomic.Pointer[Fault]

// Arm has a fault asked at every point of the process until the function that it gives is called.
func Arm(f Fault) (disarm func()) {
	if flag.Lookup("test.v") == nil {
		panic("failpoint: only a test may make calls fail")
	}
	armed.Store(&f)
	return func() { armed.Store(nil) }
}

// Call says that a system call is about to be made. With an error it must not be made, and has failed.
func Call(name string) error {
	if f := armed.Load(); f != nil {
		_, err := (*f)(name, 0)
		return err
	}
	return nil
}

// Transfer is Call for one that moves bytes. It gives how many it may move: fewer where a test wants it short.
func Transfer(name string, size int) (int, error) {
	if f := armed.Load(); f != nil {
		return (*f)(name, size)
	}
	return size, nil
}
