package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// fileSize is how much is in a small file.
const fileSize = 2 << 10

// fileRows are the rows on many small files.
func fileRows(o options) []row {
	create := func(dir string) error { return createFiles(dir, o.files) }
	each := func(do func(path string, i int) error) func(dir string) (float64, error) {
		return func(dir string) (float64, error) {
			for i := range o.files {
				if err := do(smallFile(dir, i), i); err != nil {
					return 0, err
				}
			}
			return float64(o.files), nil
		}
	}
	read := func(path string, _ int) error {
		_, err := os.ReadFile(path)
		return err
	}
	stat := func(path string, _ int) error {
		_, err := os.Lstat(path)
		return err
	}
	rename := func(path string, _ int) error { return os.Rename(path, path+".new") }
	remove := func(path string, _ int) error { return os.Remove(path) }
	return []row{
		{name: "create small files", unit: "files", work: func(dir string) (float64, error) { return float64(o.files), create(dir) }},
		{name: "read small files, cold", unit: "files", prepare: create, cold: true, work: each(read)},
		{name: "read small files, warm", unit: "files", prepare: create, warm: true, work: each(read)},
		{name: "stat small files, cold", unit: "files", prepare: create, cold: true, work: each(stat)},
		{name: "stat small files, warm", unit: "files", prepare: create, warm: true, work: each(stat)},
		{name: "rename small files", unit: "files", prepare: create, work: each(rename)},
		{name: "remove small files", unit: "files", prepare: create, work: each(remove)},
	}
}

// perDirectory is how many small files share a directory.
const perDirectory = 100

func smallFile(dir string, i int) string {
	return filepath.Join(dir, fmt.Sprintf("d%d", i/perDirectory), fmt.Sprintf("file-%d", i))
}

func createFiles(dir string, n int) error {
	content := make([]byte, fileSize)
	for i := range n {
		path := smallFile(dir, i)
		if i%perDirectory == 0 {
			if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}
