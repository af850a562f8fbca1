package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Stock is what a process holds that could leak: descriptors, children, mounts, loop devices and network
// namespaces.
type Stock struct {
	things map[string]int // a description, and how many of it
}

// TakeStock looks at what the calling process holds now.
func TakeStock() (*Stock, error) {
	s := &Stock{things: make(map[string]int)}
	for _, take := range []func() error{s.descriptors, s.children, s.mounts, s.loops, s.namespaces} {
		if err := take(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Left lists what is there now and was not there when stock was taken. What is just ending gets a few
// seconds to do so.
func (s *Stock) Left() []string {
	var left []string
	for range 100 {
		now, err := TakeStock()
		if err != nil {
			return []string{err.Error()}
		}
		left = s.missingFrom(now)
		if len(left) == 0 {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return left
}

func (s *Stock) missingFrom(now *Stock) []string {
	var left []string
	for thing, n := range now.things {
		if more := n - s.things[thing]; more > 0 {
			left = append(left, fmt.Sprintf("%s (%d)", thing, more))
		}
	}
	slices.Sort(left)
	return left
}

// descriptors counts open files by what they point to. The runtime's own, for polling, come and stay.
func (s *Stock) descriptors() error {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, fd := range fds {
		target, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err != nil || strings.HasPrefix(target, "anon_inode:[event") || strings.HasPrefix(target, "/proc/") {
			continue // the descriptor of this very listing is gone by now
		}
		kind, _, _ := strings.Cut(target, ":[")
		s.things["open file: "+kind]++
	}
	return nil
}

func (s *Stock) children() error {
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return err
	}
	for _, list := range lists {
		pids, err := os.ReadFile(list)
		if err != nil {
			continue // the thread ended meanwhile
		}
		for _, pid := range strings.Fields(string(pids)) {
			name, _ := os.ReadFile("/proc/" + pid + "/comm")
			s.things["child process: "+strings.TrimSpace(string(name))]++
		}
	}
	return nil
}

func (s *Stock) mounts() error {
	all, err := Mounts("/")
	for _, m := range all {
		s.things["mount: "+m.Type+" at "+m.Path]++
	}
	return err
}

// loops counts the loop devices whose image this process made.
func (s *Stock) loops() error {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	for _, f := range files {
		if image, err := os.ReadFile(f); err == nil && strings.Contains(string(image), own) {
			s.things["loop device: "+f]++
		}
	}
	return nil
}

func (s *Stock) namespaces() error {
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	links, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		return err
	}
	for _, link := range links {
		if ns, err := os.Readlink(link); err == nil && ns != own {
			s.things["thread in a network namespace"]++
		}
	}
	return nil
}
