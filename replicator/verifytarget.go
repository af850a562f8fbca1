package replicator

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"time"

	"tandemfs/journal"
	"tandemfs/replicator/wire"
)

// mostTold is how many differences a target tells of.
const mostTold = 100_000

// verified serves the connection of a source that compares a recovery point; content is its first message.
func (m *Manager) verified(conn *wire.Conn, content []byte) error {
	var q wire.Verify
	if err := wire.Parse(content, &q); err != nil {
		return err
	}
	r, d := m.admit(wire.Attach{ID: q.ID, VolumeID: q.VolumeID}, conn.Peer())
	if d != nil {
		return conn.Send(wire.TypeFailed, wire.Failed{Class: wire.ClassRefused, Text: string(d.Verdict) + ": " + d.Reason})
	}
	conn.CountInto(&r.wire)
	ctx, cancel := context.WithCancel(m.ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	part := &targetVerify{cancel: cancel, done: make(chan struct{})}
	defer close(part.done)
	if err := r.beginVerify(part); err != nil {
		return err
	}
	defer r.endVerify(part)
	c := &verifiedSession{ctx: ctx, r: r, conn: conn, sum: sha256.New()}
	if err := c.serve(m, q); err != nil {
		_ = conn.Send(wire.TypeFailed, wire.Failed{Class: class(err), Text: errorText(err)}) // else the connection is the reason
		return err
	}
	return nil
}

// targetVerify is how the target's part of a verification is ended.
type targetVerify struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func (v *targetVerify) end() {
	v.cancel()
	<-v.done
}

// beginVerify makes this the relationship's only verification: a source that connects again knows better than this
// end that the connection before is dead.
func (r *relationship) beginVerify(v *targetVerify) error {
	for {
		r.mu.Lock()
		before := r.target.verify
		switch {
		case r.removed:
			r.mu.Unlock()
			return ErrNotFound
		case before == nil:
			r.target.verify = v
			r.mu.Unlock()
			return nil
		}
		r.mu.Unlock()
		before.end()
		r.endVerify(before)
	}
}

// endVerification ends the one that runs, and waits for it.
func (r *relationship) endVerification() {
	r.mu.Lock()
	v := r.target.verify
	r.mu.Unlock()
	if v != nil {
		v.end()
	}
}

// endVerify is for when one has ended.
func (r *relationship) endVerify(v *targetVerify) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.target.verify == v {
		r.target.verify = nil
	}
}

// verifiedSession is a target's part of a verification.
type verifiedSession struct {
	ctx      context.Context
	now      View // of the volume not long ago; nil until it is asked for
	r        *relationship
	conn     *wire.Conn
	vol      Volume
	comparer *comparer
	cursor   wire.Cursor
	chain    wire.Chainer
	decoder  wire.Decoder
	record   wire.Record
	sum      hash.Hash
	told     time.Time
	found    wire.Differ // not told yet
	count    int64       // of differences
}

// serve holds the recovery point and compares it with what comes.
func (c *verifiedSession) serve(m *Manager, q wire.Verify) error {
	vol, err := m.config.Volumes.Volume(c.r.snapshot().Target.Volume)
	if err != nil {
		return err
	}
	var memory targetMemory
	if err := recall(vol.Journal(), targetKey(c.r.id), &memory); err != nil {
		return err
	}
	if memory.Epoch != q.Epoch || memory.SourceID != q.VolumeID {
		return fmt.Errorf("%w: the target's recovery point is seal %d, not %d", errRefused, memory.Epoch, q.Epoch)
	}
	view, err := vol.View(memory.Own)
	if err != nil {
		return err
	}
	c.vol = vol
	c.comparer = &comparer{ctx: c.ctx, view: view, ids: vol.Journal().Map(c.r.id), act: c, strict: true,
		ask:    func(w wire.Want) error { return c.conn.Send(wire.TypeWant, w) },
		doubts: func(journal.Ident, journal.Time) bool { return true }}
	defer func() { _ = c.comparer.close() }() // it was only read
	defer c.letGo()
	c.conn.AllowRecords()
	if err := c.conn.Send(wire.TypePosition, wire.Position{VolumeID: vol.ID(), Epoch: memory.Epoch, SourceID: memory.SourceID, Time: memory.Time}); err != nil {
		return err
	}
	return c.receive()
}

// receive takes frames until the end.
func (c *verifiedSession) receive() error {
	var buf []byte
	began := false
	for {
		kind, content, err := c.conn.Receive(buf)
		if err != nil {
			return fmt.Errorf("connection to the source: %w", err)
		}
		buf = content
		switch {
		case kind == wire.TypeBegin && !began:
			began = true
			var b wire.Begin
			if err = wire.Parse(content, &b); err == nil {
				err = c.comparer.begin(journal.Ident{Ino: b.RootIno, Gen: b.RootGen}, c.vol.Root())
			}
		case kind == wire.TypeRecords && began:
			c.sum.Write(content)
			err = c.records(content)
		case kind == wire.TypeEnd && began:
			return c.end(content)
		default:
			err = fmt.Errorf("%w: a frame of type %d in a verification", wire.ErrFrame, kind)
		}
		if err != nil {
			return err
		}
	}
}

// records compares one frame's.
func (c *verifiedSession) records(frame []byte) error {
	c.decoder.Reset(frame)
	for {
		ok, err := c.decoder.Next(&c.record)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if err := c.one(&c.record); err != nil {
			return err
		}
	}
	c.letGo()
	if err := c.comparer.say(false); err != nil {
		return err
	}
	if time.Since(c.told) < tellEvery {
		return nil
	}
	c.told = time.Now()
	return c.conn.Send(wire.TypeProgress, wire.Progress{Files: c.comparer.done.files, Bytes: c.comparer.done.bytes})
}

func (c *verifiedSession) one(r *wire.Record) error {
	if r.Kind.IsItem() {
		if err := c.comparer.finish(); err != nil {
			return err
		}
		c.cursor.Items++
		c.cursor.Chain = c.chain.Next(c.cursor.Chain, r)
	}
	if !c.comparer.takes(r) {
		return fmt.Errorf("%w: content in a verification", wire.ErrRecord)
	}
	return c.comparer.record(r)
}

// end says what was found.
func (c *verifiedSession) end(content []byte) error {
	var e wire.End
	if err := wire.Parse(content, &e); err != nil {
		return err
	}
	if err := errors.Join(c.comparer.finish(), c.comparer.satisfied()); err != nil {
		return err
	}
	if e.Items != c.cursor.Items || e.Chain != c.cursor.Chain || e.Digest != hex.EncodeToString(c.sum.Sum(nil)) {
		return fmt.Errorf("%w: what arrived is not what was sent", errDivergence)
	}
	if err := c.tell(); err != nil {
		return err
	}
	return c.conn.Send(wire.TypeVerified, wire.Verified{Files: c.comparer.done.files, Bytes: c.comparer.done.bytes, Differences: c.count})
}

// differ notes a difference; from is the source's inode where its content has to be sent again.
func (c *verifiedSession) differ(kind DifferenceKind, path string, from journal.Ident) error {
	if c.count++; c.count > mostTold {
		return nil
	}
	if len(path) > wire.MaxDifferPath {
		path = "..." + path[len(path)-wire.MaxDifferPath+3:]
	}
	c.found.Found = append(c.found.Found, wire.Difference{Kind: string(kind), Path: path, Ino: from.Ino, Gen: from.Gen})
	if len(c.found.Found) < wire.MaxDiffer {
		return nil
	}
	return c.tell()
}

// tell tells the source what was found since the last time.
func (c *verifiedSession) tell() error {
	if len(c.found.Found) == 0 {
		return nil
	}
	err := c.conn.Send(wire.TypeDiffer, c.found)
	c.found.Found = c.found.Found[:0]
	return err
}

func (c *verifiedSession) surplus(at *listing, name string) error {
	return c.differ(DifferExtra, at.path()+name, journal.Ident{})
}

func (c *verifiedSession) lacking(at *listing, r *wire.Record, stands journal.Ident) (none journal.Ident, err error) {
	kind := DifferMissing
	if !stands.IsZero() {
		kind = DifferType
		attr, err := c.comparer.view.Stat(stands)
		if err != nil {
			return none, err
		}
		if (attr.Mode^r.Attr.Mode)&typeMask == 0 && !isSymlink(attr) && attr.Rdev == r.Attr.Rdev {
			kind = DifferIdentity
		}
	}
	return none, c.differ(kind, at.path()+string(r.Name), journal.Ident{})
}

// pair: what was removed since the recovery point is not paired any more, and that is no difference. The view of now
// is good for a frame's records: what it does not have yet, being removed since, is still paired when it is made, or
// asked about again.
func (c *verifiedSession) pair(at *listing, r *wire.Record, here journal.Ident) error {
	for fresh := false; ; fresh = true {
		if c.now == nil || fresh {
			c.letGo()
			now, err := c.vol.Seal()
			if err != nil {
				return err
			}
			c.now, fresh = now, true
		}
		_, err := c.now.Stat(here)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case fresh:
			return c.differ(DifferIdentity, at.path()+string(r.Name), journal.Ident{})
		}
	}
}

// letGo closes the view of now.
func (c *verifiedSession) letGo() {
	if c.now != nil {
		_ = c.now.Close() // it was only read
		c.now = nil
	}
}

func (c *verifiedSession) misplaced(at *listing, name string, here, stands journal.Ident) error {
	if stands.IsZero() {
		return c.differ(DifferMissing, at.path()+name, journal.Ident{})
	}
	return c.differ(DifferIdentity, at.path()+name, journal.Ident{})
}

func (c *verifiedSession) attributes(path func() string, _, _ journal.Ident, _ journal.Image) error {
	return c.differ(DifferAttributes, path(), journal.Ident{})
}

func (c *verifiedSession) content(f *comparedFile, _ journal.Extents) (journal.Extents, error) {
	return nil, c.differ(DifferContent, f.path(), f.from)
}
