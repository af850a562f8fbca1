package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// treeRows unpack the sources of Go's standard library, and build one of its packages there.
func treeRows(o options) []row {
	archive := sync.OnceValues(packSources)
	unpack := func(dir string) (float64, error) {
		a, err := archive()
		if err != nil {
			return 0, err
		}
		return float64(a.files), unpackInto(dir, a.tar)
	}
	return []row{
		{name: "unpack a source tree", unit: "files", work: unpack,
			prepare: func(string) error { // once, so that no turn pays for the packing
				_, err := archive()
				return err
			}},
		{name: "build in it", unit: "builds",
			prepare: func(dir string) error {
				_, err := unpack(dir)
				return err
			},
			work: func(dir string) (float64, error) { return 1, build(dir, o.build) }},
	}
}

type archived struct {
	tar   []byte
	files int
}

// packSources reads the standard library, without commands and test data, into an archive in memory.
func packSources() (*archived, error) {
	var a archived
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	goroot, err := goroot()
	if err != nil {
		return nil, err
	}
	root := filepath.Join(goroot, "src")
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || path == filepath.Join(root, "cmd")) {
			return filepath.SkipDir
		}
		if !d.IsDir() && strings.HasSuffix(path, "_test.go") {
			return nil
		}
		a.files++
		return add(w, root, path)
	})
	if err != nil {
		return nil, fmt.Errorf("pack Go's sources: %w", err)
	}
	a.tar = buf.Bytes()
	return &a, w.Close()
}

func goroot() (string, error) {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	return strings.TrimSpace(string(out)), err
}

func add(w *tar.Writer, root, path string) error {
	fi, err := os.Lstat(path)
	if err != nil {
		return err
	}
	h, err := tar.FileInfoHeader(fi, "")
	if err != nil {
		return err
	}
	if h.Name, err = filepath.Rel(root, path); err != nil {
		return err
	}
	if err := w.WriteHeader(h); err != nil || !fi.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// unpackInto does what tar does: make, write, set the mode and the times.
func unpackInto(dir string, archive []byte) error {
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		path := filepath.Join(dir, "src", h.Name)
		if h.Typeflag == tar.TypeDir {
			if err := os.MkdirAll(path, 0o755); err != nil {
				return err
			}
			continue
		}
		if err := unpackFile(path, h, r); err != nil {
			return err
		}
	}
}

func unpackFile(path string, h *tar.Header, content io.Reader) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, content); err != nil {
		return err
	}
	if err := f.Chmod(fs.FileMode(h.Mode).Perm()); err != nil {
		return err
	}
	return os.Chtimes(path, h.ModTime, h.ModTime)
}

// build builds a standard package from the sources in dir, with its cache and its temporary files there.
func build(dir, name string) error {
	goroot, err := goroot()
	if err != nil {
		return err
	}
	for _, link := range []string{"pkg", "bin", "lib", "go.env", "VERSION"} {
		if err := os.Symlink(filepath.Join(goroot, link), filepath.Join(dir, link)); err != nil {
			return err
		}
	}
	temporary := filepath.Join(dir, "tmp")
	if err := os.Mkdir(temporary, 0o755); err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(goroot, "bin", "go"), "build", "-o", filepath.Join(dir, "built.a"), name)
	cmd.Dir = filepath.Join(dir, "src")
	cmd.Env = append(os.Environ(), "GOROOT="+dir, "GOCACHE="+filepath.Join(dir, "cache"), "GOTMPDIR="+temporary,
		"GOTOOLCHAIN=local", "GOFLAGS=", "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("go build %s: %w\n%s", name, err, out)
	}
	return nil
}
