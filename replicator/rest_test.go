package replicator

import (
	"testing"
	"time"
)

func TestAJobRestsByHowMuchThereIsToDo(t *testing.T) {
	for _, c := range []struct {
		what string
		took time.Duration
		done work
		want time.Duration
	}{
		{"a quick one", time.Millisecond, work{1, 100}, 8 * time.Millisecond},
		{"a small one on a slow disk", 100 * time.Millisecond, work{1, 100}, 21 * time.Millisecond},
		{"many files", 100 * time.Millisecond, work{200, 1 << 20}, 236 * time.Millisecond},
		{"a large file", time.Second, work{1, 10 << 20}, 181 * time.Millisecond},
		{"the first transfer", time.Hour, work{1 << 40, 1 << 60}, time.Second},
	} {
		if got := restAfter(c.took, c.done); got != c.want {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
}
