package replicator

import (
	"encoding/binary"
	"encoding/json"
	"testing"

	"tandemfs/journal"
	"tandemfs/journal/alloctest"
	"tandemfs/replicator/wire"
)

// slack is what a fuzz target may take whatever it is given: the buffers of a connection's two ends above all.
const slack = 16 << 20

// said puts frames into a fuzz target's input: of each its type, its length and its content.
func said(frames ...[]byte) (input []byte) {
	for _, f := range frames {
		kind, whole, _ := takeFrame(f)
		input = append(input, byte(kind))
		input = binary.BigEndian.AppendUint16(input, uint16(len(whole)-wire.HeaderSize))
		input = append(input, whole[wire.HeaderSize:]...)
	}
	return input
}

// frames takes such an input apart; what is cut short is as long as it is.
func frames(input []byte) (out []byte) {
	for len(input) >= 3 {
		kind, n := wire.Type(input[0]), int(binary.BigEndian.Uint16(input[1:]))
		n = min(n, len(input)-3)
		out = append(out, rawFrame(kind, input[3:3+n])...)
		input = input[3+n:]
	}
	return out
}

// message frames a message.
func message(kind wire.Type, m any) []byte {
	content, err := json.Marshal(m)
	no(err)
	return rawFrame(kind, content)
}

// freshlyAuthorized gives a pair whose target waits for the source's first transfer, and whose source is silent.
func freshlyAuthorized(f *testing.F) *pair {
	p := newPair(f)
	p.propose()
	if _, err := p.dst.Authorize(background, p.id, AuthorizeRequest{}); err != nil {
		f.Fatal(err)
	}
	p.src.stop()
	return p
}

// Whatever an authorized source says, the target lives, takes a bounded amount of memory, commits nothing that is not
// whole, and serves the next connection.
func FuzzTargetSession(f *testing.F) {
	begin := wire.Begin{Cursor: wire.Cursor{Epoch: 5}, RootIno: 2, RootGen: 1}
	dir := wire.Record{Kind: wire.KindInode, Flags: wire.FlagNew, Ident: journal.Ident{Ino: 9}, Attr: journal.Attr{Mode: typeDir}}
	file := wire.Record{Kind: wire.KindInode, Flags: wire.FlagNew | wire.FlagPlaced, Ident: journal.Ident{Ino: 10}, Attr: journal.Attr{Mode: typeRegular, Size: 9},
		Dir: dir.Ident, Name: []byte("f"), Xattrs: []journal.Xattr{{Name: "user.a", Value: []byte("b")}}}
	data := wire.Record{Kind: wire.KindData, Off: 1 << 40, Data: []byte("content")}
	hole := wire.Record{Kind: wire.KindHole, Off: 5, Len: 1 << 50}
	named := wire.Record{Kind: wire.KindAttach, Dir: journal.Ident{Ino: 2, Gen: 1}, Name: []byte("d"), Ident: dir.Ident}
	gone := wire.Record{Kind: wire.KindDetach, Dir: journal.Ident{Ino: 2, Gen: 1}, Name: []byte("d")}
	records := func(r ...wire.Record) []byte { return rawFrame(wire.TypeRecords, frame(r...)[wire.HeaderSize:]) }
	over, on := begin, begin
	over.Cursor.Over, on.Cursor.Items, on.Cursor.Chain = true, 3, 1<<64-1
	f.Add(said(message(wire.TypeBegin, begin), records(dir, file, data, hole, named, gone), message(wire.TypeEnd, wire.End{Items: 4})))
	f.Add(said(message(wire.TypeBegin, over), records(dir), records(named), message(wire.TypeBegin, on)))
	for _, input := range comparisons() {
		f.Add(input)
	}
	f.Add(said(message(wire.TypeProgress, wire.Progress{TotalFiles: 1 << 62, BehindSeconds: 1e300}), message(wire.TypeBye, wire.Bye{Reason: "\x1b"})))
	f.Add(said(rawFrame(wire.TypePing, nil), rawFrame(wire.TypeBegin, []byte(`{"cursor":{"epoch":1e99}}`)), rawFrame(wire.TypeHello, []byte("TNDM"))))
	p := freshlyAuthorized(f)
	f.Fuzz(func(t *testing.T, input []byte) {
		n := alloctest.Bytes(func() {
			conn, over := speak(t, p)
			defer conn.Close()
			conn.Write(frames(input)) // it may be closed before all is read
			conn.CloseWrite()
			<-over
		})
		if n > slack+256*uint64(len(input)) {
			t.Fatalf("%d bytes took %d of memory", len(input), n)
		}
		if s, err := p.dst.Status(p.id); err != nil || s.State != StateEstablished || s.RecoveryPoint.Epoch != 0 || p.to.commits != 0 {
			t.Fatalf("after it the target is %+v", s)
		}
		forgetTransfer(p)
	})
}

// comparisons are inventories, in whole and in part.
func comparisons() [][]byte {
	root := journal.Ident{Ino: 2, Gen: 1}
	begin := wire.Begin{Compare: true, Cursor: wire.Cursor{Epoch: 5}, RootIno: root.Ino, RootGen: root.Gen}
	dir := wire.Record{Kind: wire.KindInode, Flags: wire.FlagNew | wire.FlagPlaced, Ident: journal.Ident{Ino: 9}, Attr: journal.Attr{Mode: typeDir}, Dir: root, Name: []byte("d")}
	file := wire.Record{Kind: wire.KindInode, Flags: wire.FlagNew | wire.FlagPlaced | wire.FlagSuspect, Ident: journal.Ident{Ino: 10},
		Attr: journal.Attr{Mode: typeRegular, Size: 1 << 62}, Dir: dir.Ident, Name: []byte("f1")}
	again := wire.Record{Kind: wire.KindInode, Flags: wire.FlagCompare, Ident: file.Ident, Attr: file.Attr}
	digest := wire.Record{Kind: wire.KindDigest, Len: 3000, Data: make([]byte, 32)}
	hole := wire.Record{Kind: wire.KindHole, Off: 3000, Len: 1<<62 - 3000}
	link := wire.Record{Kind: wire.KindAttach, Dir: dir.Ident, Name: []byte("f2"), Ident: file.Ident}
	left, end := dir, dir
	left.Flags, end.Flags, end.Ident = 0, 0, root
	records := func(r ...wire.Record) []byte { return rawFrame(wire.TypeRecords, frame(r...)[wire.HeaderSize:]) }
	ask := wire.Record{Kind: wire.KindAsk}
	return [][]byte{
		said(message(wire.TypeBegin, begin), records(dir, file, link, left, end, ask, again, digest, hole, ask), message(wire.TypeEnd, wire.End{Items: 6})),
		said(message(wire.TypeBegin, begin), records(dir, file, again, digest, ask, left)),
		said(message(wire.TypeBegin, begin), records(left), records(ask, ask, ask)),
	}
}

// Whatever a source says in a verification, the target lives, takes a bounded amount of memory and stays what it is.
func FuzzVerifySession(f *testing.F) {
	for _, input := range comparisons() {
		f.Add(input)
	}
	p := newPair(f).create()
	fill(p.from)
	p.same()
	p.src.stop()
	before := p.to.dump()
	first := wire.Verify{ID: p.id, VolumeID: p.from.ID(), Epoch: p.dst.status(p.id).RecoveryPoint.Epoch}
	f.Fuzz(func(t *testing.T, input []byte) {
		n := alloctest.Bytes(func() {
			conn, over := speakFirst(t, p, wire.TypeVerify, first)
			defer conn.Close()
			conn.Write(frames(input)) // it may be closed before all is read
			conn.CloseWrite()
			<-over
		})
		if n > slack+256*uint64(len(input)) {
			t.Fatalf("%d bytes took %d of memory", len(input), n)
		}
		if d := differences(before, p.to.dump()); len(d) > 0 {
			t.Fatalf("it has changed the target: %v", d)
		}
	})
}

// Whatever a target says, the source's end lives, and takes a bounded amount of memory.
func FuzzSourceSession(f *testing.F) {
	for _, b := range [][]byte{
		message(wire.TypeDecision, wire.Decision{Verdict: wire.VerdictConflict, Reason: "\x1b[2J"}),
		message(wire.TypePosition, wire.Position{Epoch: 1<<64 - 1, Dirty: true, Cursor: &wire.Cursor{Items: -1, Offset: -1}}),
		message(wire.TypeCommitted, wire.Committed{Epoch: 5, Files: -1}),
		message(wire.TypeFailed, wire.Failed{Class: "unheard of", Text: "\x00"}),
		message(wire.TypeProgress, wire.Progress{Files: -1 << 63, Bytes: 1<<63 - 1}),
		message(wire.TypeBye, wire.Bye{Ended: true}),
		message(wire.TypeWant, wire.Want{Done: true, Files: []wire.WantFile{{Ino: 1 << 63, Compare: true}, {Extents: [][2]int64{{-1, 1 << 62}}}}}),
		rawFrame(wire.TypeRecords, []byte("not for a source")),
	} {
		f.Add(said(b))
	}
	p := freshlyAuthorized(f)
	p.src.start()
	f.Cleanup(p.src.stop)
	r := p.src.rels[p.id]
	f.Fuzz(func(t *testing.T, input []byte) {
		s := &sourceSession{m: p.src.Manager, r: r, replies: make(chan any, 4)}
		n := alloctest.Bytes(func() {
			for rest := frames(input); len(rest) > 0; {
				kind, whole, after := takeFrame(rest)
				rest = after
				_ = s.received(kind, whole[wire.HeaderSize:]) // most of it is refused
			}
		})
		if n > slack+256*uint64(len(input)) {
			t.Fatalf("%d bytes took %d of memory", len(input), n)
		}
		status, err := p.src.Status(p.id)
		if err == nil {
			_, err = json.Marshal(status)
		}
		if err != nil {
			t.Fatalf("the status cannot be shown: %v", err)
		}
	})
}
