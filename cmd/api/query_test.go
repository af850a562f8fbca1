package api

import "testing"

// What is read of a query is within its bounds, and is read again from what the client would write of it.
func FuzzDiffQuery(f *testing.F) {
	for _, query := range []string{"from=a&to=b", "from=a&to=b&limit=10000", "from=a&to=b&file=x%2fy&cursor=eA", "from=a&to=b&limit=-1", "from=a;to=b", "%"} {
		f.Add(query)
	}
	f.Fuzz(func(t *testing.T, query string) {
		d, err := readDiff(query)
		if err != nil {
			if AsError(err).Code != CodeInvalid {
				t.Fatalf("%q: %v", query, err)
			}
			return
		}
		if d.From == "" || d.To == "" || d.Limit < 1 || d.Limit > MaxLimit {
			t.Fatalf("%q is read as %+v", query, d)
		}
		if again, err := readDiff(d.query()); err != nil || again != d {
			t.Fatalf("%+v is read again as %+v, %v", d, again, err)
		}
	})
}
