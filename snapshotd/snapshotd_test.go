package snapshotd

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// now is the time at which all tests run.
var now = time.Date(2026, 11, 23, 12, 0, 0, 500, time.UTC)

func TestOnlyWhatHasExpiredIsNamed(t *testing.T) {
	list := []Snapshot{
		{"kept for good", time.Time{}},
		{"long over", now.Add(-1000 * time.Hour)},
		{"over at this very moment", now},
		{"about to be", now.Add(time.Nanosecond)},
		{"just over, elsewhere", now.Add(-1).In(time.FixedZone("", 3600))},
	}
	want := []string{"long over", "over at this very moment", "just over, elsewhere"}
	if got := Expired(list, now); !slices.Equal(got, want) {
		t.Errorf("named %q, want %q", got, want)
	}
	if got := Expired(nil, now); len(got) != 0 {
		t.Errorf("of none it named %q", got)
	}
}

func TestAnExpiryIsReadInAllItsForms(t *testing.T) {
	whole := now.Truncate(time.Second)
	for text, want := range map[string]time.Time{
		"never":                     {},
		"1m":                        whole.Add(time.Minute),
		"90m":                       whole.Add(90 * time.Minute),
		"36h":                       whole.Add(36 * time.Hour),
		"7d":                        whole.Add(7 * 24 * time.Hour),
		"007d":                      whole.Add(7 * 24 * time.Hour),
		"4w":                        whole.Add(28 * 24 * time.Hour),
		"36500d":                    whole.Add(36500 * 24 * time.Hour),
		"2027-01-31T18:00:00Z":      time.Date(2027, 1, 31, 18, 0, 0, 0, time.UTC),
		"2027-01-31T18:00:00+02:00": time.Date(2027, 1, 31, 16, 0, 0, 0, time.UTC),
		"2026-11-23T12:00:00.5Z":    time.Date(2026, 11, 23, 12, 0, 0, 5e8, time.UTC),
	} {
		if got, err := ParseExpiry(text, now); err != nil || got != want {
			t.Errorf("%q is %v (%v), want %v", text, got, err, want)
		}
	}
}

func TestAnExpiryThatMakesNoSenseIsRefused(t *testing.T) {
	for text, says := range map[string]string{
		"":                          "is not understood",
		"tomorrow":                  "is not understood",
		"Never":                     "is not understood",
		"7":                         "is not understood",
		"d":                         "is not understood",
		"7s":                        "is not understood",
		"7 d":                       "is not understood",
		"1d12h":                     "is not understood",
		"1.5h":                      "is not understood",
		"-7d":                       "is not understood",
		"+7d":                       "is not understood",
		"7d\n":                      "is not understood",
		"2027-01-31":                "is not understood",
		"2027-02-31T18:00:00Z":      "is not understood",
		"0m":                        "not in the future",
		"000w":                      "not in the future",
		"2026-11-23T12:00:00Z":      "not in the future",
		"2026-11-23T12:59:59+01:00": "not in the future",
		"0001-01-01T00:00:00Z":      "not in the future",
		"36501d":                    "100 years",
		"99999999999w":              "100 years",
		"9223372036854775807w":      "100 years",
		"9223372036854775808w":      "100 years",
		"9999-12-31T23:59:59-10:00": "100 years",
	} {
		if got, err := ParseExpiry(text, now); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q is %v (%v), want an error with %q", text, got, err, says)
		}
	}
}

func TestNeverPassesAndThePastDoesNot(t *testing.T) {
	for _, c := range []struct {
		expires time.Time
		passes  bool
	}{{time.Time{}, true}, {now.Add(1), true}, {now, false}, {now.Add(maxAhead), true}, {now.Add(maxAhead + 1), false}} {
		if err := CheckExpiry(c.expires, now); (err == nil) != c.passes {
			t.Errorf("%v: %v", c.expires, err)
		}
	}
}

func FuzzParseExpiry(f *testing.F) {
	for _, text := range []string{Never, "90m", "36h", "7d", "4w", "0d", "-1d", "99999999999999999999w", "2027-01-31T18:00:00Z",
		"9999-12-31T23:59:59-23:59", "0000-01-01T00:00:00+23:59", "2027-01-31T18:00:00,5Z"} {
		f.Add(text, now.Unix())
	}
	f.Fuzz(func(t *testing.T, text string, seconds int64) {
		now := time.Unix(seconds%(1<<33), 0) // up to the year 2242
		got, err := ParseExpiry(text, now)
		switch {
		case err != nil:
			if !got.IsZero() || strings.TrimSpace(err.Error()) == "" {
				t.Errorf("%q: %v with %v", text, got, err)
			}
		case got.IsZero() != (text == Never):
			t.Errorf("%q is taken for never, or never is not", text)
		case got.IsZero():
		case !got.After(now) || got.After(now.Add(maxAhead)) || len(Expired([]Snapshot{{"s", got}}, now)) != 0:
			t.Errorf("%q at %v is %v", text, now, got)
		default:
			again, err := ParseExpiry(got.Format(time.RFC3339Nano), now)
			if err != nil || !again.Equal(got) {
				t.Errorf("%q is %v, which is %v (%v)", text, got, again, err)
			}
		}
	})
}
