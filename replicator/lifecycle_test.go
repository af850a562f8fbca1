package replicator

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tandemfs/replicator/wire"
)

var background = context.Background()

func TestARelationshipWaitsForAuthorization(t *testing.T) {
	p := newPair(t)
	p.from.file(p.from.root, "f", "x")
	p.propose()
	there := p.dst.status(p.id)
	cert, err := x509.ParseCertificate(p.src.config.Identity.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if there.State != StateAwaitingAuthorization || there.Job != JobWaiting || there.Source.Node != "alpha" || there.Source.Fingerprint != Fingerprint(cert) ||
		there.Source.Address != "127.0.0.1" || there.Source.Volume != "data" || there.Target.Volume != "copy" {
		t.Errorf("the proposal on the target: %+v", there)
	}
	if here := p.src.status(p.id); here.State != StateAwaitingAuthorization || here.Job != JobWaiting || here.Target.Node != "beta" || here.Target.Fingerprint == "" {
		t.Errorf("the proposal on the source: %+v", here)
	}
	if p.to.isReadOnly() || len(p.dst.VolumeInUse("copy")) != 0 || len(p.src.VolumeInUse("data")) != 1 {
		t.Error("a proposal has taken the target's volume, or not the source's")
	}
	if _, err := p.dst.Authorize(background, p.id, AuthorizeRequest{SourceFingerprint: "SHA256:other"}); !errors.Is(err, ErrConflict) {
		t.Errorf("another fingerprint than was shown: %v", err)
	}
	if _, err := p.src.Authorize(background, p.id, AuthorizeRequest{}); !errors.Is(err, ErrConflict) {
		t.Errorf("authorized on the source: %v", err)
	}
	p.src.restart()
	p.dst.restart()
	if _, err := p.dst.Authorize(background, p.id, AuthorizeRequest{SourceFingerprint: there.Source.Fingerprint}); err != nil {
		t.Fatal(err)
	}
	p.same()
	if !p.to.isReadOnly() || !p.dst.VolumeReadOnly("copy") || len(p.dst.VolumeInUse("copy")) != 1 {
		t.Error("the target's volume is not taken")
	}
}

func TestARejectedRelationshipEnds(t *testing.T) {
	p := newPair(t)
	p.propose()
	if err := p.dst.Reject(background, p.id); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the source hears of it", func() bool { return p.src.status(p.id).State == StateEnded })
	if s := p.src.status(p.id); !strings.Contains(s.EndReason, "rejected by beta") || len(p.src.VolumeInUse("data")) != 0 {
		t.Errorf("%+v", s)
	}
	if len(p.dst.List()) != 0 {
		t.Error("the target still lists it")
	}
	if _, err := p.src.SetEnabled(background, p.id, true); !errors.Is(err, ErrConflict) {
		t.Errorf("enabled after its end: %v", err)
	}
	if err := p.src.Delete(background, p.id); err != nil || len(p.src.List()) != 0 {
		t.Errorf("deleted after its end: %v", err)
	}
}

func TestASourceThatWasAwayHearsOfARejection(t *testing.T) {
	p := newPair(t)
	p.propose()
	p.src.stop()
	if err := p.dst.Reject(background, p.id); err != nil {
		t.Fatal(err)
	}
	p.dst.restart()
	p.src.start()
	eventually(t, "the source hears of it", func() bool { return p.src.status(p.id).State == StateEnded })
}

func TestATargetThatIsNotEmptyNeedsConsent(t *testing.T) {
	p := newPair(t)
	p.from.file(p.from.root, "mine", "x")
	p.to.file(p.to.mkdir(p.to.root, "theirs"), "f", "y")
	p.propose()
	if _, err := p.dst.Authorize(background, p.id, AuthorizeRequest{}); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "not empty") {
		t.Fatal(err)
	}
	if p.to.isReadOnly() {
		t.Error("the refusal has left the volume read-only")
	}
	if _, err := p.dst.Authorize(background, p.id, AuthorizeRequest{AllowNonEmpty: true}); err != nil {
		t.Fatal(err)
	}
	p.same()
}

func TestATargetVolumeIsMadeOnAuthorization(t *testing.T) {
	p := newPair(t)
	p.from.file(p.from.root, "f", "x")
	delete(p.dst.volumes.have, "copy")
	p.propose()
	if _, err := p.dst.Authorize(background, p.id, AuthorizeRequest{}); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if _, err := p.dst.Authorize(background, p.id, AuthorizeRequest{CreateDir: "/srv/copy"}); err != nil {
		t.Fatal(err)
	}
	p.to = p.dst.volumes.have["copy"]
	p.same()
}

func TestASecondRelationshipIsRefusedWhereItWouldMix(t *testing.T) {
	p := newPair(t).create()
	p.same()
	other, more := newTree(t, "other"), newTree(t, "more")
	p.src.volumes.have["other"], p.dst.volumes.have["more"] = other, more
	create := func(n *testNode, source, address, target string) error {
		_, err := n.Create(background, CreateRequest{Source: source, Target: address, TargetVolume: target})
		return err
	}
	if err := create(p.src, "other", p.dst.address, "copy"); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "is the target of relationship") {
		t.Errorf("a second relationship onto a target: %v", err)
	} else if strings.Count(err.Error(), ErrConflict.Error()) != 1 {
		t.Errorf("both ends say what kind of refusal it is: %v", err)
	}
	if err := create(p.dst, "copy", p.src.address, "other"); !errors.Is(err, ErrConflict) {
		t.Errorf("a target as a source: %v", err)
	}
	if err := create(p.dst, "more", p.src.address, "data"); !errors.Is(err, ErrConflict) {
		t.Errorf("a source as a target: %v", err)
	}
	if err := create(p.src, "data", p.dst.address, "more"); err != nil {
		t.Errorf("the same source to a second target: %v", err)
	}
	if err := create(p.src, "none", p.dst.address, "more"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a source that does not exist: %v", err)
	}
	if err := create(p.src, "data", p.src.address, "other"); !errors.Is(err, ErrInvalid) {
		t.Errorf("a node as its own target: %v", err)
	}
}

func TestOneSourceHasTwoTargets(t *testing.T) {
	p := newPair(t).create()
	p.from.file(p.from.root, "f", "x")
	p.same()
	more := newTree(t, "more")
	p.dst.volumes.have["more"] = more
	s, err := p.src.Create(background, CreateRequest{Source: "data", Target: p.dst.address, TargetVolume: "more"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.dst.Authorize(background, s.ID, AuthorizeRequest{}); err != nil {
		t.Fatal(err)
	}
	second := &pair{t: t, src: p.src, dst: p.dst, from: p.from, to: more, id: s.ID}
	second.same()
	if _, err := p.src.SetEnabled(background, p.id, false); err != nil {
		t.Fatal(err)
	}
	h := newHistory(p.from, 1)
	for range 5 { // what the second confirms is kept for the first
		h.run(40)
		second.same()
	}
	if _, err := p.src.SetEnabled(background, p.id, true); err != nil {
		t.Fatal(err)
	}
	p.same()
	second.same()
}

func TestARelationshipIsDisabledAndEnabled(t *testing.T) {
	p := newPair(t)
	s, err := p.src.Create(background, CreateRequest{Source: "data", Target: p.dst.address, TargetVolume: "copy", Disabled: true})
	if err != nil {
		t.Fatal(err)
	}
	p.id = s.ID
	if _, err := p.dst.Authorize(background, p.id, AuthorizeRequest{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the source hears of the authorization", func() bool { s := p.src.status(p.id); return s.State == StateEstablished && s.Job == JobDisabled })
	p.from.file(p.from.root, "f", "x")
	if _, err := p.src.SetEnabled(background, p.id, true); err != nil {
		t.Fatal(err)
	}
	p.same()
	if s, err := p.src.SetEnabled(background, p.id, false); err != nil || s.Enabled || s.Job != JobDisabled {
		t.Fatal(s, err)
	}
	eventually(t, "the target hears of it", func() bool { s := p.dst.status(p.id); return !s.Enabled && s.Job == JobDisabled })
	p.from.file(p.from.root, "g", "y")
	p.src.restart()
	time.Sleep(20 * time.Millisecond)
	if !p.to.at("g").IsZero() {
		t.Error("a disabled relationship replicates")
	}
	if _, err := p.dst.SetEnabled(background, p.id, true); !errors.Is(err, ErrConflict) {
		t.Errorf("enabled on the target: %v", err)
	}
	if _, err := p.src.SetEnabled(background, p.id, true); err != nil {
		t.Fatal(err)
	}
	p.same()
	if !p.dst.status(p.id).Enabled {
		t.Error("the target does not know that it is enabled")
	}
}

func TestTheTargetSaysWhyItsSourceIsGone(t *testing.T) {
	p, conn, _ := talk(t)
	conn.Close()
	eventually(t, "the target says it", func() bool {
		s := p.dst.status(p.id)
		return s.Job == JobDisconnected && strings.Contains(s.LastError, "the source closed the connection") && !s.LastErrorTime.IsZero()
	})
	p, conn, _ = talk(t)
	no(conn.Send(wire.TypeBye, wire.Bye{ID: p.id, Reason: "disabled"}))
	eventually(t, "the target knows that it is disabled", func() bool { return p.dst.status(p.id).Job == JobDisabled })
	if s := p.dst.status(p.id); s.LastError != "" {
		t.Errorf("a source that took its leave is an error: %q", s.LastError)
	}
}

func TestDeletedOnTheSourceTheTargetIsFree(t *testing.T) {
	p := newPair(t).create()
	p.from.file(p.from.root, "f", "x")
	p.same()
	if err := p.src.Delete(background, p.id); err != nil {
		t.Fatal(err)
	}
	if len(p.src.List()) != 0 || len(p.dst.List()) != 0 || p.to.isReadOnly() || p.to.at("f").IsZero() {
		t.Error("something of it is left")
	}
	if files, err := os.ReadDir(p.src.config.Dir); err != nil || len(files) != 0 {
		t.Errorf("files are left: %v, %v", files, err)
	}
	if held := p.from.j.Held(); len(held) != 0 {
		t.Errorf("seals are still held: %v", held)
	}
	if _, err := p.src.Status(p.id); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

func TestDeletedOnTheTargetTheSourceHearsOfIt(t *testing.T) {
	p := newPair(t).create()
	p.from.file(p.from.root, "f", "x")
	p.same()
	if err := p.dst.Delete(background, p.id); err != nil {
		t.Fatal(err)
	}
	if p.to.isReadOnly() || len(p.dst.List()) != 0 || p.dst.VolumeReadOnly("copy") {
		t.Error("the target is not free")
	}
	eventually(t, "the source hears of it", func() bool { s := p.src.status(p.id); return s.State == StateEnded && s.Job == JobDisabled })
	if p.src.status(p.id).Target.ReadOnly {
		t.Error("the source goes on saying that the target is read-only")
	}
	if s := p.src.status(p.id); !strings.Contains(s.EndReason, "beta") {
		t.Errorf("%+v", s)
	}
}

func TestDeletedWhileTheOtherEndIsGone(t *testing.T) {
	p := newPair(t).create()
	p.from.file(p.from.root, "f", "x")
	p.same()
	p.src.stop()
	if err := p.dst.Delete(background, p.id); err != nil {
		t.Fatal(err)
	}
	if p.to.isReadOnly() {
		t.Error("the target's volume is not free")
	}
	p.dst.restart()
	p.src.start()
	eventually(t, "the source hears of it when it is back", func() bool { return p.src.status(p.id).State == StateEnded })

	q := newPair(t).create()
	q.same()
	q.dst.stop()
	if err := q.src.Delete(background, q.id); err != nil || len(q.src.List()) != 0 {
		t.Fatal(err)
	}
	q.dst.start()
	if s := q.dst.status(q.id); s.State != StateEstablished || s.Job != JobDisconnected || !q.to.isReadOnly() {
		t.Errorf("the target without its source: %+v", s)
	}
	if err := q.dst.Delete(background, q.id); err != nil || q.to.isReadOnly() {
		t.Fatal(err)
	}
}

func TestADeletedTransferLeavesNothingAside(t *testing.T) {
	p := newPair(t).create()
	newHistory(p.from, 1).run(100)
	p.same()
	var n atomic.Int64
	p.to.setBroken(func(string) error {
		if n.Add(1) > 20 {
			return errIO
		}
		return nil
	})
	newHistory(p.from, 2).run(60)
	eventually(t, "the transfer fails", func() bool { return p.src.status(p.id).Job == JobFailed })
	p.to.setBroken(nil)
	if err := p.dst.Delete(background, p.id); err != nil {
		t.Fatal(err)
	}
	if len(p.to.aside) != 0 || p.to.isReadOnly() {
		t.Error("the target's volume is not free")
	}
}

func TestAnErrorOfTheTargetIsToldAndRetried(t *testing.T) {
	p := newPair(t).create()
	p.same()
	p.to.setBroken(func(op string) error {
		if op == "write" {
			return errIO
		}
		return nil
	})
	before := p.src.status(p.id).RecoveryPoint
	f := p.from.file(p.from.root, "f", "x")
	eventually(t, "the source says so", func() bool { s := p.src.status(p.id); return s.Job == JobFailed && !s.RetryAt.IsZero() })
	s := p.src.status(p.id)
	if !strings.Contains(s.LastError, "on the target (io)") || !strings.Contains(s.LastError, f.String()) || s.LastErrorTime.IsZero() {
		t.Errorf("the error is %q", s.LastError)
	}
	if s.RecoveryPoint.Epoch != before.Epoch || *s.RecoveryPoint.BehindSeconds <= 0 {
		t.Errorf("the recovery point is %+v, it was %+v", s.RecoveryPoint, before)
	}
	p.to.setBroken(nil)
	p.same()
}

func TestNewsIsOnTheTargetAtOnce(t *testing.T) {
	p := newPair(t).create()
	p.same()
	var took []time.Duration
	for i := range 20 {
		name := fmt.Sprint("f", i)
		start := time.Now()
		p.from.file(p.from.root, name, "x")
		eventually(t, "the file is there", func() bool { return !p.to.at(name).IsZero() })
		took = append(took, time.Since(start))
		p.settled()
	}
	fast := 0
	for _, d := range took {
		if d < 50*time.Millisecond {
			fast++
		}
	}
	if fast < len(took)/2 {
		t.Errorf("it took %v", took)
	}
}

func TestStrangersCanOnlyPropose(t *testing.T) {
	p := newPair(t).create()
	p.from.file(p.from.root, "f", "x")
	p.same()
	stranger := newTestNode(t, "gamma", newTree(t, "data"))
	dial := func() *wire.Conn {
		c, err := stranger.dial(background, p.dst.address, "")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	d, err := ask(background, dial(), wire.TypeAttach, wire.Attach{ID: p.id, VolumeID: p.from.ID()})
	if err != nil || d.Verdict != wire.VerdictConflict || !strings.Contains(d.Reason, "fingerprint") {
		t.Errorf("attaching to another's relationship: %+v, %v", d, err)
	}
	d, err = ask(background, dial(), wire.TypeBye, wire.Bye{ID: p.id, Ended: true})
	if err != nil || d.Verdict != wire.VerdictEnded || len(p.dst.List()) != 1 || !p.to.isReadOnly() {
		t.Errorf("ending another's relationship: %+v, %v", d, err)
	}
	d, err = ask(background, dial(), wire.TypePropose, wire.Propose{ID: p.id, VolumeID: "v", Volume: "v", Path: "/", TargetVolume: "new"})
	if err != nil || d.Verdict != wire.VerdictConflict {
		t.Errorf("proposing under another's id: %+v, %v", d, err)
	}
	for _, bad := range []wire.Propose{{ID: "../../x", VolumeID: "v", Volume: "v", Path: "/", TargetVolume: "t"}, {ID: p.id, VolumeID: "v", Volume: "a\x1b[2J", Path: "/", TargetVolume: "t"}, {}} {
		if d, err := ask(background, dial(), wire.TypePropose, bad); err != nil || d.Verdict != wire.VerdictConflict {
			t.Errorf("%+v: %+v, %v", bad, d, err)
		}
	}
	if _, err := ask(background, dial(), wire.TypeBegin, wire.Begin{}); err == nil {
		t.Error("a transfer out of the blue is answered")
	}
}

func TestProposalsAreBoundedAndReplaced(t *testing.T) {
	p := newPair(t)
	propose := func(volume string, i int) wire.Decision {
		_, d := p.dst.consider(wire.Propose{ID: fmt.Sprintf("%016x", i), VolumeID: volume, Volume: "v", Path: "/", TargetVolume: "copy"}, wire.Peer{Fingerprint: "SHA256:x"})
		return d
	}
	for i := range 5 {
		if d := propose("the same", i); d.Verdict != wire.VerdictAwaiting || len(p.dst.List()) != 1 {
			t.Fatalf("%+v, %d proposals", d, len(p.dst.List()))
		}
	}
	for i := range maxProposals + 5 {
		propose(fmt.Sprint(i), 100+i)
	}
	if n := len(p.dst.List()); n != maxProposals {
		t.Errorf("%d proposals are kept", n)
	}
	if d := propose("one more", 9999); d.Verdict != wire.VerdictConflict {
		t.Errorf("%+v", d)
	}
	if files, _ := filepath.Glob(filepath.Join(p.dst.config.Dir, "*.json")); len(files) != maxProposals {
		t.Errorf("%d files are kept", len(files))
	}
}

func TestAWrongTargetIsAnErrorThatLeavesNothing(t *testing.T) {
	p := newPair(t)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	cases := map[string]struct {
		target, fingerprint string
		want                error
	}{
		"a closed port":       {closed.Addr().String(), "", ErrPeer},
		"a host without name": {"no.such.host.invalid", "", ErrPeer},
		"no address":          {"", "", ErrInvalid},
		"a bad address":       {"a:b:c", "", ErrInvalid},
		"a URL":               {"http://host/", "", ErrInvalid},
		"another fingerprint": {p.dst.address, "SHA256:other", wire.ErrFingerprint},
	}
	for name, c := range cases {
		_, err := p.src.Create(background, CreateRequest{Source: "data", Target: c.target, TargetVolume: "copy", TargetFingerprint: c.fingerprint})
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(p.src.List()) != 0 || len(p.dst.List()) != 0 {
		t.Error("something is left")
	}
}

func TestAnAddressGetsItsPort(t *testing.T) {
	for in, want := range map[string]string{"host": "host:3712", "host:1": "host:1", "10.0.0.1": "10.0.0.1:3712", "::1": "[::1]:3712", "[::1]": "[::1]:3712", "[::1]:5": "[::1]:5"} {
		if got, err := withPort(in); got != want || err != nil {
			t.Errorf("%s: %s, %v", in, got, err)
		}
	}
}

func TestATargetWithAnotherKeyIsRefusedLater(t *testing.T) {
	p := newPair(t).create()
	p.same()
	p.dst.config.Identity = testIdentity(t)
	p.dst.restart()
	eventually(t, "the source refuses it", func() bool {
		return strings.Contains(p.src.status(p.id).LastError, wire.ErrFingerprint.Error())
	})
	p.from.file(p.from.root, "secret", "x")
	time.Sleep(50 * time.Millisecond)
	if !p.to.at("secret").IsZero() {
		t.Error("it was sent all the same")
	}
}

func TestASourceWhoseVolumeIsNotThereDoesNotSayHowFarTheTargetIsBehind(t *testing.T) {
	p := newPair(t).create()
	p.settled()
	p.src.stop()
	p.src.volumes.have = map[string]*tree{}
	p.src.start()
	if r := p.src.status(p.id).RecoveryPoint; r.BehindBytes != nil || r.BehindSeconds != nil {
		t.Errorf("it says %+v", r)
	}
	p.src.volumes.mu.Lock()
	p.src.volumes.have["data"] = p.from
	p.src.volumes.mu.Unlock()
	p.settled()
}
