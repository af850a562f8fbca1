package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"tandemfs/journal"
	"tandemfs/journal/alloctest"
)

// records has one of every shape.
func records() []Record {
	id, dir := journal.Ident{Ino: 1 << 60, Gen: 1<<32 - 1}, journal.Ident{Ino: 2}
	attr := journal.Attr{Mode: 0o100644, UID: 1<<32 - 2, GID: 7, Size: 1 << 50,
		Atime: journal.Time{Sec: -1, Nsec: 999_999_999}, Mtime: journal.Time{Sec: 1 << 40, Nsec: 1}}
	device := attr
	device.Mode, device.Rdev, device.Size = 0o020600, 0xfff_fffff, 0
	link := attr
	link.Mode, link.Size = 0o120777, 6
	return []Record{
		{Kind: KindInode, Flags: FlagNew | FlagPlaced, Ident: id, Attr: attr, Dir: dir, Name: []byte("name"),
			Xattrs: []journal.Xattr{{Name: "user.a", Value: []byte("value")}, {Name: "user.empty", Value: []byte{}}}},
		{Kind: KindData, Off: 1 << 45, Data: []byte("content")},
		{Kind: KindHole, Off: 5, Len: 1 << 44},
		{Kind: KindInode, Flags: FlagNew, Ident: id, Attr: link, Symlink: []byte("target")},
		{Kind: KindInode, Flags: FlagGoesOn, Ident: id, Attr: attr},
		{Kind: KindInode, Flags: FlagNew, Ident: id, Attr: device},
		{Kind: KindAttach, Dir: dir, Name: []byte(strings.Repeat("n", MaxName)), Ident: id},
		{Kind: KindDetach, Dir: dir, Name: []byte("...")},
	}
}

// keeping is what belongs to comparisons of what cannot be read.
func keeping() []Record {
	return []Record{{Kind: KindKeep, Dir: journal.Ident{Ino: 2}, Name: []byte("name"), Ident: journal.Ident{Ino: 7, Gen: 9}},
		{Kind: KindKeep, Dir: journal.Ident{Ino: 2}, Name: []byte("other"), Ident: journal.Unknown}}
}

// comparing is what belongs to comparisons.
func comparing() []Record {
	id := journal.Ident{Ino: 7, Gen: 9}
	attr := journal.Attr{Mode: 0o100644, Size: 1 << 17}
	return []Record{
		{Kind: KindInode, Flags: FlagNew | FlagPlaced | FlagSuspect, Ident: id, Attr: attr, Dir: journal.Ident{Ino: 2}, Name: []byte("name")},
		{Kind: KindInode, Flags: FlagCompare, Ident: id, Attr: attr},
		{Kind: KindDigest, Off: 1 << 40, Len: MaxDigest, Data: []byte("0123456789abcdef0123456789abcdef")},
		{Kind: KindAsk},
	}
}

func encoded(t testing.TB, list []Record) []byte {
	t.Helper()
	var b []byte
	for i := range list {
		var err error
		if b, err = list[i].Append(b); err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
	}
	return b
}

func describe(t testing.TB, frame []byte) (lines []string) {
	t.Helper()
	var d Decoder
	var r Record
	d.Reset(frame)
	for {
		ok, err := d.Next(&r)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return lines
		}
		lines = append(lines, fmt.Sprintf("kind %d flags %d ident %v dir %v name %.8q off %d len %d data %q link %q mode %o size %d xattrs %d",
			r.Kind, r.Flags, r.Ident, r.Dir, r.Name, r.Off, r.Len, r.Data, r.Symlink, r.Attr.Mode, r.Attr.Size, len(r.Xattrs)))
	}
}

// kept is what the frames in testdata hold.
const kept = `kind 1 flags 3 ident 1152921504606846976.4294967295 dir 2.0 name "name" off 0 len 0 data "" link "" mode 100644 size 1125899906842624 xattrs 2
kind 2 flags 0 ident 0.0 dir 0.0 name "" off 35184372088832 len 0 data "content" link "" mode 0 size 0 xattrs 0
kind 3 flags 0 ident 0.0 dir 0.0 name "" off 5 len 17592186044416 data "" link "" mode 0 size 0 xattrs 0
kind 1 flags 1 ident 1152921504606846976.4294967295 dir 0.0 name "" off 0 len 0 data "" link "target" mode 120777 size 6 xattrs 0
kind 1 flags 4 ident 1152921504606846976.4294967295 dir 0.0 name "" off 0 len 0 data "" link "" mode 100644 size 1125899906842624 xattrs 0
kind 1 flags 1 ident 1152921504606846976.4294967295 dir 0.0 name "" off 0 len 0 data "" link "" mode 20600 size 0 xattrs 0
kind 4 flags 0 ident 1152921504606846976.4294967295 dir 2.0 name "nnnnnnnn" off 0 len 0 data "" link "" mode 0 size 0 xattrs 0
kind 5 flags 0 ident 0.0 dir 2.0 name "..." off 0 len 0 data "" link "" mode 0 size 0 xattrs 0`

const keptComparing = `kind 1 flags 19 ident 7.9 dir 2.0 name "name" off 0 len 0 data "" link "" mode 100644 size 131072 xattrs 0
kind 1 flags 8 ident 7.9 dir 0.0 name "" off 0 len 0 data "" link "" mode 100644 size 131072 xattrs 0
kind 6 flags 0 ident 0.0 dir 0.0 name "" off 1099511627776 len 131072 data "0123456789abcdef0123456789abcdef" link "" mode 0 size 0 xattrs 0
kind 7 flags 0 ident 0.0 dir 0.0 name "" off 0 len 0 data "" link "" mode 0 size 0 xattrs 0`

const keptKeeping = `kind 8 flags 0 ident 7.9 dir 2.0 name "name" off 0 len 0 data "" link "" mode 0 size 0 xattrs 0
kind 8 flags 0 ident 18446744073709551615.18446744073709551615 dir 2.0 name "other" off 0 len 0 data "" link "" mode 0 size 0 xattrs 0`

// With TANDEM_KEEP_FRAMES set this writes the fixtures of the present format.
func TestMain(m *testing.M) {
	if name := os.Getenv("TANDEM_KEEP_FRAMES"); name != "" {
		t := &testing.T{}
		hello, _ := Hello{Lowest: 1, Highest: 1, Node: "alpha", Features: []string{"one", "two"}}.append(nil)
		_ = os.WriteFile("testdata/frames/hello-"+name+".frame", framed(t, TypeHello, hello, false), 0o644)
		_ = os.WriteFile("testdata/frames/records-"+name+".frame", framed(t, TypeRecords, encoded(t, records()), true), 0o644)
		_ = os.WriteFile("testdata/frames/comparing-"+name+".frame", framed(t, TypeRecords, encoded(t, comparing()), true), 0o644)
		_ = os.WriteFile("testdata/frames/keeping-"+name+".frame", framed(t, TypeRecords, encoded(t, keeping()), true), 0o644)
	}
	os.Exit(m.Run())
}

func TestARecordArrivesAsItWasSent(t *testing.T) {
	want := slices.Concat(records(), comparing(), keeping())
	var d Decoder
	d.Reset(encoded(t, want))
	var got Record
	for i := range want {
		ok, err := d.Next(&got)
		if err != nil || !ok {
			t.Fatalf("record %d: %v, %v", i, ok, err)
		}
		if len(got.Xattrs) == 0 {
			got.Xattrs = nil
		}
		if !reflect.DeepEqual(got, want[i]) {
			t.Errorf("record %d\n got %+v\nwant %+v", i, got, want[i])
		}
		if n := len(encoded(t, want[i:i+1])); n > want[i].Size() {
			t.Errorf("record %d takes %d bytes, its Size says %d", i, n, want[i].Size())
		}
	}
	if ok, err := d.Next(&got); ok || err != nil {
		t.Errorf("after the last: %v, %v", ok, err)
	}
}

func TestContentIsReadStraightIntoTheFrame(t *testing.T) {
	b := make([]byte, 0, 200)
	b, n, err := AppendData(b, 77, 100, func(p []byte) (int, error) { return copy(p, "short"), nil })
	if n != 5 || err != nil {
		t.Fatal(n, err)
	}
	b, n, err = AppendData(b, 82, 10, func(p []byte) (int, error) { return 0, nil })
	if n != 0 || err != nil {
		t.Fatal(n, err)
	}
	if want := encoded(t, []Record{{Kind: KindData, Off: 77, Data: []byte("short")}}); !bytes.Equal(b, want) {
		t.Errorf("%x, want %x", b, want)
	}
}

func TestWhatLinuxDoesNotHaveIsRefused(t *testing.T) {
	id := journal.Ident{Ino: 1}
	regular, link := journal.Attr{Mode: 0o100600}, journal.Attr{Mode: 0o120777}
	value := func(n int) []journal.Xattr { return []journal.Xattr{{Name: "user.x", Value: make([]byte, n)}} }
	var many []journal.Xattr
	for range 20 {
		many = append(many, value(MaxXattrValue)...)
	}
	cases := map[string]Record{
		"an unknown kind":        {Kind: 9},
		"no identity":            {Kind: KindInode, Attr: regular},
		"unknown flags":          {Kind: KindInode, Ident: id, Flags: 32},
		"a name with a slash":    {Kind: KindDetach, Dir: id, Name: []byte("a/b")},
		"a name with a zero":     {Kind: KindDetach, Dir: id, Name: []byte("a\x00")},
		"an empty name":          {Kind: KindDetach, Dir: id},
		"dot":                    {Kind: KindAttach, Dir: id, Ident: id, Name: []byte(".")},
		"dot dot":                {Kind: KindInode, Flags: FlagNew | FlagPlaced, Ident: id, Attr: regular, Dir: id, Name: []byte("..")},
		"placed nowhere":         {Kind: KindInode, Flags: FlagNew | FlagPlaced, Ident: id, Attr: regular, Name: []byte("a")},
		"a long name":            {Kind: KindDetach, Dir: id, Name: make([]byte, MaxName+1)},
		"no link target":         {Kind: KindInode, Flags: FlagNew, Ident: id, Attr: link},
		"a long link target":     {Kind: KindInode, Flags: FlagNew, Ident: id, Attr: link, Symlink: make([]byte, MaxSymlink+1)},
		"a long value":           {Kind: KindInode, Ident: id, Attr: regular, Xattrs: value(MaxXattrValue + 1)},
		"too many attributes":    {Kind: KindInode, Ident: id, Attr: regular, Xattrs: many},
		"a time that is none":    {Kind: KindInode, Ident: id, Attr: journal.Attr{Mtime: journal.Time{Nsec: 1e9}}},
		"a negative size":        {Kind: KindInode, Ident: id, Attr: journal.Attr{Size: -1}},
		"empty data":             {Kind: KindData},
		"too much data":          {Kind: KindData, Data: make([]byte, MaxData+1)},
		"data past all files":    {Kind: KindData, Off: journal.MaxOffset, Data: []byte("x")},
		"an empty hole":          {Kind: KindHole, Off: 1},
		"a digest of nothing":    {Kind: KindDigest, Data: make([]byte, 32)},
		"a digest of too much":   {Kind: KindDigest, Len: MaxDigest + 1, Data: make([]byte, 32)},
		"a digest past all":      {Kind: KindDigest, Off: journal.MaxOffset, Len: 5, Data: make([]byte, 32)},
		"half a digest":          {Kind: KindDigest, Len: 5, Data: make([]byte, 16)},
		"a hole past all files":  {Kind: KindHole, Off: 5, Len: journal.MaxOffset},
		"a name without a inode": {Kind: KindAttach, Dir: id, Name: []byte("a")},
	}
	for name, r := range cases {
		if _, err := r.Append(nil); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAttributesThatAreTooManyAreRefusedBeforeTheyAreKept(t *testing.T) {
	r := Record{Kind: KindInode, Ident: journal.Ident{Ino: 1}, Attr: journal.Attr{Mode: 0o100600}}
	b := encoded(t, []Record{r})
	b = append(binary.AppendUvarint(b[:len(b)-1], MaxRaw), make([]byte, 2*MaxRaw)...) // all without name and value
	var d Decoder
	d.Reset(b)
	var err error
	if n := alloctest.Bytes(func() { _, err = d.Next(&r) }); !errors.Is(err, ErrRecord) || n > slack {
		t.Errorf("%d bytes of memory were taken, %v", n, err)
	}
}

func TestARecordThatIsCutShortIsNoticed(t *testing.T) {
	for _, r := range records() {
		whole := encoded(t, []Record{r})
		for n := 1; n < len(whole); n++ {
			var d Decoder
			d.Reset(whole[:n])
			if ok, err := d.Next(&Record{}); ok && err == nil {
				t.Errorf("kind %d cut to %d of %d bytes is taken for whole", r.Kind, n, len(whole))
			}
		}
	}
}

// perAttribute bounds the memory that one byte of extended attributes can cost: two bytes are one of them at
// least, and a slice that grows was nearly as large before.
const perAttribute = 64

// What is decoded is sound, and encodes to something that decodes to the same.
func FuzzRecords(f *testing.F) {
	all := records()
	for i := range all {
		f.Add(encoded(f, all[i:i+1]))
	}
	f.Add(encoded(f, all))
	f.Fuzz(func(t *testing.T, b []byte) {
		var d Decoder
		var r Record
		d.Reset(b)
		for range len(b) + 1 {
			var ok bool
			var err error
			if n := alloctest.Bytes(func() { ok, err = d.Next(&r) }); n > slack+perAttribute*uint64(len(b)) {
				t.Fatalf("a record in %d bytes took %d of memory", len(b), n)
			}
			if err != nil || !ok {
				return
			}
			again, err := r.Append(nil)
			if err != nil {
				t.Fatalf("%+v was decoded and cannot be encoded: %v", r, err)
			}
			if len(again) > r.Size() {
				t.Fatalf("%d bytes, Size says %d", len(again), r.Size())
			}
			var d2 Decoder
			var r2 Record
			d2.Reset(again)
			if ok, err := d2.Next(&r2); !ok || err != nil || fmt.Sprint(r) != fmt.Sprint(r2) {
				t.Fatalf("%+v became %+v, %v", r, r2, err)
			}
		}
		t.Fatal("more records than bytes")
	})
}

func TestTheChainTellsStreamsApart(t *testing.T) {
	all := records()
	sum := func(list []Record) (chain uint64) {
		var c Chainer
		for i := range list {
			if list[i].Kind.IsItem() {
				chain = c.Next(chain, &list[i])
			}
		}
		return chain
	}
	want := sum(all)
	goesOn := records()
	goesOn[0].Flags |= FlagGoesOn
	if sum(goesOn) != want {
		t.Error("an item that goes on is another item")
	}
	swapped := records()
	swapped[6], swapped[7] = swapped[7], swapped[6]
	renamed := records()
	renamed[6].Name = []byte("other")
	for name, list := range map[string][]Record{"one less": all[:7], "another order": swapped, "another name": renamed} {
		if sum(list) == want {
			t.Errorf("%s gives the same chain", name)
		}
	}
}
