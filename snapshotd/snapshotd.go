// Package snapshotd decides how long snapshots are kept. It takes values and gives values: no clock, no disk.
//
// It guarantees that only a snapshot whose own time has come is named for deletion, one without an expiry
// never; and that an expiry which passes here lies in the future, and near enough that every place which
// stores a time can hold it.
package snapshotd

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Snapshot is what matters here of a snapshot.
type Snapshot struct {
	Name    string
	Expires time.Time // zero: never
}

// Expired names the snapshots that may be deleted now, in the order of the list.
func Expired(list []Snapshot, now time.Time) []string {
	var names []string
	for _, s := range list {
		if !s.Expires.IsZero() && !s.Expires.After(now) {
			names = append(names, s.Name)
		}
	}
	return names
}

// Never is how people write that a snapshot does not expire.
const Never = "never"

// day and what follows from it: a day has 24 hours here, whatever the local clocks do.
const (
	day  = 24 * time.Hour
	week = 7 * day
	year = 365 * day

	// maxAhead bounds an expiry. It is far below the 292 years that a time.Duration can hold.
	maxAhead = 100 * year
)

// units are what a duration may be counted in.
var units = map[byte]time.Duration{'m': time.Minute, 'h': time.Hour, 'd': day, 'w': week}

// ParseExpiry reads an expiry: "never" (the zero time), how long from now as a whole number with one unit (90m,
// 36h, 7d, 4w), or a time in RFC 3339. What it gives has passed CheckExpiry, and is in UTC.
func ParseExpiry(text string, now time.Time) (time.Time, error) {
	if text == Never {
		return time.Time{}, nil
	}
	expires, err := time.Parse(time.RFC3339, text)
	if err != nil {
		if expires, err = parseAhead(text, now); err != nil {
			return time.Time{}, err
		}
	}
	if expires.IsZero() { // the year 1 in so many words does not mean never
		return time.Time{}, errPast
	}
	if err := CheckExpiry(expires, now); err != nil {
		return time.Time{}, err
	}
	return expires.UTC(), nil
}

// errPast refuses what would be deleted at once.
var errPast = errors.New("this is not in the future: name a later time, or delete the snapshot")

// CheckExpiry refuses an expiry that is not in the future, or absurdly far in it. The zero time, never, passes.
func CheckExpiry(expires, now time.Time) error {
	switch {
	case expires.IsZero():
		return nil
	case !expires.After(now):
		return errPast
	case expires.After(now.Add(maxAhead)):
		return fmt.Errorf("this is more than %d years ahead: say %q", maxAhead/year, Never)
	}
	return nil
}

// parseAhead reads how long from now. Parts of a second are dropped: nobody asks for them.
func parseAhead(text string, now time.Time) (time.Time, error) {
	unit, known := time.Duration(0), false
	if text != "" {
		unit, known = units[text[len(text)-1]]
	}
	if !known {
		return time.Time{}, notUnderstood(text)
	}
	digits := text[:len(text)-1]
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return time.Time{}, notUnderstood(text)
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n > int64(maxAhead/unit) { // the only error that is left is a number that is too large
		n = int64(maxAhead/unit) + 1
	}
	if n == 0 {
		return time.Time{}, errPast
	}
	return now.Add(time.Duration(n) * unit).Truncate(time.Second), nil
}

func notUnderstood(text string) error {
	return fmt.Errorf("%q is not understood: say %q, a number of minutes, hours, days or weeks such as 90m, 36h, 7d or 4w, "+
		"or a time such as 2027-01-31T18:00:00Z", text, Never)
}
