package journal

import (
	"bytes"
	"errors"
	"reflect"
	"testing"
)

var sampleRecords = []record{
	{kind: recordInode, epoch: 1, ident: Ident{12, 3}, what: Created},
	{kind: recordInode, epoch: 1 << 40, ident: Ident{1 << 63, 1 << 31}, what: Meta | Data, extent: Extent{4096, MaxOffset},
		image: []byte("an image")},
	{kind: recordInode, epoch: 7, ident: Ident{1, 1}, what: Meta},
	{kind: recordName, epoch: 7, ident: Ident{2, 1}, name: "a name", was: Ident{9, 9}},
	{kind: recordName, epoch: 7, ident: Ident{2, 1}, name: "\xff\x00", was: Ident{}},
	{kind: recordRemoved, epoch: 7, ident: Ident{2, 1}},
	{kind: recordSealed, epoch: 7, hold: true},
	{kind: recordSealed, epoch: 8},
	{kind: recordHeld, epoch: 7},
	{kind: recordReleased, epoch: 7},
	{kind: recordForgot, epoch: 300},
	{kind: recordSwitched},
}

func TestARecordReadsAsItWasWritten(t *testing.T) {
	for _, r := range sampleRecords {
		payload := appendRecord(nil, &r)
		if len(payload) > r.bound() {
			t.Errorf("%+v takes %d bytes, its bound is %d", r, len(payload), r.bound())
		}
		got, err := decodeRecord(payload)
		if len(got.image) == 0 {
			got.image = nil
		}
		if err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("got %+v, %v, want %+v", got, err, r)
		}
		for n := range payload {
			// What is cut short is refused, or a shorter record of those that reach to the end.
			if short, err := decodeRecord(payload[:n]); err == nil && short.kind != recordName && short.kind != recordInode {
				t.Errorf("%d of %d bytes of %+v were taken as %+v", n, len(payload), r, short)
			}
		}
	}
}

// TestTheWorkedExampleOfTheFormatPage keeps docs/format-journal.md true.
func TestTheWorkedExampleOfTheFormatPage(t *testing.T) {
	r := record{kind: recordName, epoch: 3, ident: Ident{2, 0}, name: "notes", was: Ident{300, 7}}
	want := []byte{0x02, 0x03, 0x02, 0x00, 0xac, 0x02, 0x07, 'n', 'o', 't', 'e', 's'}
	if got := appendRecord(nil, &r); !bytes.Equal(got, want) {
		t.Errorf("the record of the example is % x", got)
	}
	key := nameEntryKey(3, nameKey{Ident{2, 0}, "notes"})
	want = append([]byte{'n', 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0}, "notes"...)
	if !bytes.Equal(key, want) {
		t.Errorf("the key of the example is % x", key)
	}
	e := inodeEntry{what: Meta | Data, extents: setOf(Extents{{4096, 8192}, {12288, 12289}})}
	want = []byte{0x06, 0x80, 0x20, 0x80, 0x20, 0x80, 0x20, 0x01}
	if got := encodeInode(&e); !bytes.Equal(got, want) {
		t.Errorf("the value of the example is % x", got)
	}
}

func FuzzRecord(f *testing.F) {
	for _, r := range sampleRecords {
		f.Add(appendRecord(nil, &r))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		var r record
		var err error
		bounded(t, payload, func() { r, err = decodeRecord(payload) })
		if err != nil {
			return
		}
		again, err := decodeRecord(appendRecord(nil, &r))
		if err != nil || !reflect.DeepEqual(again, r) {
			t.Fatalf("%+v was written and read as %+v, %v", r, again, err)
		}
	})
}

func FuzzStoreValues(f *testing.F) {
	f.Add([]byte{6, 0x80, 0x20, 0x80, 0x20, 0x80, 0x20, 0x01})
	image := testImage(5)
	f.Add(appendImage(nil, &image))
	s := newState()
	s.markStored(3, false)
	s.held[2] = 1
	f.Add(s.encode())
	f.Fuzz(func(t *testing.T, value []byte) {
		bounded(t, value, func() {
			_, _ = decodeInode(value)
			_, _ = decodeImage(value)
			_, _ = decodeState(value)
			_, _ = decodeWas(value)
		})
		if e, err := decodeInode(value); err == nil {
			if again, err := decodeInode(encodeInode(e)); err != nil || !reflect.DeepEqual(again, e) {
				t.Fatalf("inode %+v was read as %+v, %v", e, again, err)
			}
			if x := e.extents.flat(); !same(x, x.Union(nil)) {
				t.Fatalf("extents are not in order: %v", e.extents)
			}
		}
		if m, err := decodeImage(value); err == nil {
			if again, err := decodeImage(appendImage(nil, &m)); err != nil || !reflect.DeepEqual(again, m) {
				t.Fatalf("image %+v was read as %+v, %v", m, again, err)
			}
		}
		if s, err := decodeState(value); err == nil {
			if again, err := decodeState(s.encode()); err != nil || !reflect.DeepEqual(again, s) {
				t.Fatalf("state %+v was read as %+v, %v", s, again, err)
			}
		}
	})
}

func TestAnImageReadsAsItWasWritten(t *testing.T) {
	m := Image{Attr: Attr{Mode: 0o104755, Nlink: 2, UID: 1000, GID: 1<<32 - 1, Rdev: 1 << 40, Size: 1 << 50,
		Atime: Time{-1, 999999999}, Mtime: Time{1 << 40, 0}, Ctime: Time{0, 1}},
		Xattrs: []Xattr{{"security.selinux", []byte{1, 0, 2}}, {"user.empty", []byte{}}}}
	encoded, err := encodeImage(&m)
	must(t, err)
	got, err := decodeImage(encoded)
	if err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("got %+v, %v", got, err)
	}
	m.Xattrs = append(m.Xattrs, Xattr{"user.huge", make([]byte, maxImage)})
	if _, err := encodeImage(&m); !errors.Is(err, ErrTooLarge) {
		t.Errorf("an image beyond the bound: %v", err)
	}
}
