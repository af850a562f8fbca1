// Command compare tells how two directory trees differ in anything that replication carries. It exits with
// 0 when they are equal, 1 when they differ, 2 when it cannot read them.
package main

import (
	"fmt"
	"os"

	"tandemfs/integration/tree"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: compare DIR DIR")
		os.Exit(2)
	}
	var trees [2]*tree.Manifest
	for i, dir := range os.Args[1:] {
		m, err := tree.Scan(dir)
		if err != nil {
			fmt.Fprintln(os.Stderr, "compare:", err)
			os.Exit(2)
		}
		trees[i] = m
	}
	diffs := tree.Compare(trees[0], trees[1], tree.Options{})
	for _, d := range diffs {
		fmt.Println(d)
	}
	if len(diffs) > 0 {
		os.Exit(1)
	}
	count := trees[0].Count()
	fmt.Printf("equal: %d files, %d directories, %d symlinks; names, modes, owners, times, links, attributes, content and holes\n",
		count["file"], count["directory"], count["symlink"])
}
