// Package integration holds the tests that need the real thing: the tandemfs binary, its mounts on real
// filesystems, and two nodes with a wire between them. They know the rooms from outside only: by the
// command line, the mount, and what goes over the wire. The packages below it are their tools.
package integration
