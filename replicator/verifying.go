package replicator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"tandemfs/journal"
	"tandemfs/replicator/wire"
)

// verifying is a verification that runs, over a connection of its own.
type verifying struct {
	s        *sourceSession
	r        *relationship
	v        *verification
	view     View
	conn     *wire.Conn
	asked    *asked
	verified chan wire.Verified
	pace     func(int) error
	told     int64 // differences, by the receiving goroutine
	// unread is what the source cannot read, toldUnread what of it the target has told as different. Both are guarded
	// by the relationship's mu.
	unread     []lacking
	toldUnread []journal.Ident
}

// connect finds the target at the recovery point, which it holds from then on.
func (c *verifying) connect(ctx context.Context) error {
	if err := c.s.canCompare(); err != nil {
		return err
	}
	rec := c.r.snapshot()
	conn, err := c.s.m.dial(ctx, rec.Target.Address, rec.Target.Fingerprint)
	if err != nil {
		return err
	}
	conn.CountInto(&c.r.wire)
	c.conn = conn
	ctx, cancel := context.WithTimeout(ctx, wire.HandshakeTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := conn.Send(wire.TypeVerify, wire.Verify{ID: rec.ID, VolumeID: rec.SourceID, Epoch: uint64(c.view.Epoch())}); err != nil {
		return err
	}
	kind, content, err := conn.Receive(nil)
	switch {
	case err != nil:
		return err
	case kind == wire.TypePosition:
		return nil
	case kind == wire.TypeFailed:
		return c.failed(content)
	}
	return fmt.Errorf("%w: type %d does not answer a verification", wire.ErrFrame, kind)
}

func (c *verifying) failed(content []byte) error {
	var f wire.Failed
	if err := wire.Parse(content, &f); err != nil {
		return err
	}
	return failedThere(f)
}

// run compares everything.
func (c *verifying) run(parent context.Context) error {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { _ = c.conn.Close() })
	defer stop()
	received := make(chan struct{})
	go func() {
		defer close(received)
		cancel(c.receive())
	}()
	err := c.send(ctx)
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, errVerified) {
		err = cause
	}
	_ = c.conn.Close() // nothing is lost with it
	<-received
	return err
}

// errVerified ends the connection of a verification that is done.
var errVerified = errors.New("verified")

// send sends the inventory, and waits for what the target makes of it.
func (c *verifying) send(ctx context.Context) error {
	root := c.s.origin.vol.Root()
	from := wire.Cursor{Epoch: uint64(c.view.Epoch())}
	if err := c.conn.Queue(wire.TypeBegin, wire.Begin{Compare: true, Cursor: from, RootIno: root.Ino, RootGen: root.Gen}); err != nil {
		return err
	}
	out := newPacker()
	out.begin(c.conn)
	send := &sender{ctx: ctx, view: c.view, out: out, from: from, gaps: gaps{remember: c.leftOut, names: c.conn.Peer().Can(wire.FeatureKeep)}}
	inv := &inventory{sender: send, asked: c.asked, pace: c.pace,
		suspect: func(journal.Ident, journal.Attr) (bool, error) { return false, nil }} // the target compares every file
	err := inv.send(&plan{view: c.view, root: root})
	digest, sent := out.end(ctx, err == nil)
	if err = errors.Join(err, sent); err != nil {
		return err
	}
	if err := c.conn.Send(wire.TypeEnd, wire.End{Items: inv.cursor.Items, Chain: inv.cursor.Chain, Digest: digest}); err != nil {
		return err
	}
	<-ctx.Done() // by the answer too
	if cause := context.Cause(ctx); !errors.Is(cause, errVerified) {
		return cause
	}
	done := <-c.verified
	c.r.mu.Lock()
	c.v.Files, c.v.Bytes, c.v.Differences = done.Files, done.Bytes, done.Differences
	c.r.mu.Unlock()
	return nil
}

// leftOut notes what the source cannot read: the target will find that it differs.
func (c *verifying) leftOut(list []lacking) error {
	c.s.m.log.Error("a verification cannot read something of the source", "relationship", c.r.id, "file", list[len(list)-1])
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	c.unread = list
	return nil
}

// kind is what a difference is called here. It is for holders of the relationship's mu.
func (c *verifying) kind(d wire.Difference) DifferenceKind {
	id := journal.Ident{Ino: d.Ino, Gen: d.Gen}
	if slices.ContainsFunc(c.unread, func(l lacking) bool { return l.Ident == id }) {
		return DifferUnreadable
	}
	return DifferenceKind(wire.Printable(d.Kind))
}

// receive takes what the target says until the connection ends.
func (c *verifying) receive() error {
	var buf []byte
	for {
		kind, content, err := c.conn.Receive(buf)
		if err != nil {
			return fmt.Errorf("connection to the target: %w", err)
		}
		buf = content
		if err := c.received(kind, content); err != nil {
			return err
		}
	}
}

func (c *verifying) received(kind wire.Type, content []byte) error {
	switch kind {
	case wire.TypeWant:
		var w wire.Want
		if err := wire.Parse(content, &w); err != nil {
			return err
		}
		return c.asked.add(w)
	case wire.TypeDiffer:
		var d wire.Differ
		if err := wire.Parse(content, &d); err != nil {
			return err
		}
		c.found(d)
		return nil
	case wire.TypeProgress:
		var p wire.Progress
		if err := wire.Parse(content, &p); err != nil {
			return err
		}
		c.r.mu.Lock()
		c.v.Files, c.v.Bytes = p.Files, p.Bytes
		c.r.mu.Unlock()
		return nil
	case wire.TypeVerified:
		var done wire.Verified
		if err := wire.Parse(content, &done); err != nil {
			return err
		}
		if done.Differences < c.told {
			return fmt.Errorf("%w: %d differences in all, after %d were told", wire.ErrFrame, done.Differences, c.told)
		}
		c.verified <- done
		return errVerified
	case wire.TypeFailed:
		return c.failed(content)
	}
	return fmt.Errorf("%w: type %d is not for a verification", wire.ErrFrame, kind)
}

// found notes differences.
func (c *verifying) found(d wire.Differ) {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	for _, f := range d.Found {
		c.told++
		kind, id := c.kind(f), journal.Ident{Ino: f.Ino, Gen: f.Gen}
		c.v.differs(kind, strings.ToValidUTF8(f.Path, "?"))
		switch {
		case kind == DifferUnreadable: // the target may have a good copy, which nothing here can better
			c.toldUnread = append(c.toldUnread, id)
		case f.Ino != 0 && len(c.v.suspects) <= mostSuspects:
			c.v.suspects = append(c.v.suspects, id)
		}
	}
}

// differs notes one difference. It is for holders of the relationship's mu.
func (v *verification) differs(kind DifferenceKind, path string) {
	v.Differences++
	if len(v.Found) < mostFound {
		v.Found = append(v.Found, Difference{kind, path})
	}
}

// unproven adds what the source could not read and the target had nothing against: nobody knows whether it is equal.
// It gives how many differences there are besides.
func (c *verifying) unproven() (known int64) {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	known = c.v.Differences - int64(len(c.toldUnread))
	for _, l := range c.unread {
		if !slices.Contains(c.toldUnread, l.Ident) {
			c.v.differs(DifferUnreadable, l.Path)
		}
	}
	return known
}

// ended goes on with what follows from how it ended, and says so.
func (c *verifying) ended(ctx context.Context, err error) {
	err = errors.Join(err, c.view.Close())
	if c.conn != nil {
		_ = c.conn.Close() // nothing is lost with it
	}
	if err == nil {
		err = c.conclude()
	}
	c.r.mu.Lock()
	switch {
	case err == nil:
		c.v.end(VerifyDone, nil)
	case ctx.Err() != nil:
		c.v.end(VerifyStopped, nil)
	default:
		c.v.end(VerifyFailed, err)
	}
	result := c.v.Verification
	c.r.mu.Unlock()
	log := c.s.m.log.With("relationship", c.r.id, "recovery point", result.Epoch, "files", result.Files, "differences", result.Differences)
	switch {
	case result.State != VerifyDone:
		log.Warn("verification ended early", "state", result.State, "error", err)
	case result.Differences > 0:
		log.Error("verification found differences", "first", result.Found[:min(len(result.Found), 3)])
	default:
		log.Info("verification found both sides equal")
	}
	c.again(result)
}

// conclude notes that both sides are equal, or marks what differs for sending.
func (c *verifying) conclude() error {
	known := c.unproven()
	c.r.mu.Lock()
	v, suspects := c.v.Verification, c.v.suspects
	c.r.mu.Unlock()
	if v.Differences == 0 {
		return c.r.update(func(rec *record) { rec.VerifiedEpoch, rec.VerifiedTime = v.Epoch, v.Time })
	}
	if !v.Repair || known == 0 {
		return nil
	}
	repair := comparison{Reason: reasonRepair, Suspects: suspects}
	if known > c.told-int64(len(c.toldUnread)) || len(suspects) > mostSuspects { // not all of the files are known
		repair.All, repair.Suspects = true, nil
	}
	c.r.mu.Lock()
	c.r.source.repairing = true // before it can be over
	c.r.mu.Unlock()
	err := c.s.origin.compare(c.r, repair, false)
	c.r.wake()
	return err
}

// again begins the next one after a while, where they go on for ever.
func (c *verifying) again(result Verification) {
	if !result.Always || result.State == VerifyStopped {
		return
	}
	select {
	case <-time.After(betweenVerifications):
	case <-c.s.m.ctx.Done():
		return
	}
	c.r.mu.Lock()
	if c.r.source.verify == c.v && c.r.rec.Verify.Always && !c.r.removed {
		c.r.source.verify = newVerification(result.VerifyRequest)
	}
	c.r.mu.Unlock()
	c.r.wake()
}
