package cli

import (
	"testing"
	"time"
)

func TestTimesAreWrittenForPeople(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "now", 900 * time.Millisecond: "now", time.Second: "1 s ago", 59 * time.Second: "59 s ago",
		61 * time.Second: "1 min 1 s ago", time.Hour: "1 h ago", 25*time.Hour + 30*time.Minute: "1 d 1 h ago",
		-500 * time.Millisecond: "now", -90 * time.Second: "in 1 min 30 s",
	} {
		if got := relative(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
	if got := seconds(0.25); got != "0.2 s" && got != "0.3 s" {
		t.Errorf("a quarter of a second is %q", got)
	}
}

func TestSizesAreInIECUnits(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 3 << 30: "3.0 GiB", -5: "0 B"} {
		if got := size(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}
