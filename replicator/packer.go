package replicator

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"hash"

	"tandemfs/replicator/wire"
)

const (
	// frameFill is how full a frame gets before it is sent, in bytes.
	frameFill = 256 << 10
	// bufferSize holds a frame that is nearly full and one more data record.
	bufferSize = wire.HeaderSize + frameFill + wire.MaxData + 4<<10
	// buffers is how many frames are between planning and sending.
	buffers = 4
)

// packer gathers records in frames. While one is filled, a goroutine of its own hashes, compresses and
// sends those before, so that reading the volume and writing to the network go on at the same time. One
// goroutine uses it, for one transfer after the other; its buffers are kept in between.
type packer struct {
	free chan []byte
	made int
	cur  []byte
	full chan []byte
	sent chan error
	sum  hash.Hash
}

func newPacker() *packer { return &packer{free: make(chan []byte, buffers), sum: sha256.New()} }

// begin starts sending records over conn.
func (p *packer) begin(conn *wire.Conn) {
	p.full, p.sent = make(chan []byte, buffers), make(chan error, 1)
	p.sum.Reset()
	go p.ship(conn, p.full, p.sent)
}

// ship is the sending goroutine. After an error it goes on taking frames, so that nobody waits for it.
func (p *packer) ship(conn *wire.Conn, full chan []byte, sent chan<- error) {
	var err error
	for buf := range full {
		if err == nil {
			p.sum.Write(buf[wire.HeaderSize:])
			err = conn.QueueRecords(buf)
		}
		if err == nil && len(full) == 0 {
			err = conn.Flush()
		}
		p.free <- buf
	}
	sent <- err
}

// room makes sure that n more bytes fit what is being filled.
func (p *packer) room(ctx context.Context, n int) error {
	if p.cur != nil && len(p.cur)+n <= cap(p.cur) && len(p.cur) < wire.HeaderSize+frameFill {
		return nil
	}
	if err := p.flush(ctx); err != nil {
		return err
	}
	if p.made < buffers && len(p.free) == 0 {
		p.made++
		p.free <- make([]byte, 0, bufferSize)
	}
	select {
	case buf := <-p.free:
		if cap(buf) < wire.HeaderSize+n {
			buf = make([]byte, 0, wire.HeaderSize+n)
		}
		p.cur = buf[:wire.HeaderSize]
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// flush hands what was gathered to the sending goroutine.
func (p *packer) flush(ctx context.Context) error {
	if len(p.cur) <= wire.HeaderSize {
		return nil
	}
	select {
	case p.full <- p.cur:
		p.cur = nil
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// record adds one record.
func (p *packer) record(ctx context.Context, r *wire.Record) error {
	if err := p.room(ctx, r.Size()); err != nil {
		return err
	}
	b, err := r.Append(p.cur)
	p.cur = b
	return err
}

// data adds content that read puts straight into the frame, and gives how much there was.
func (p *packer) data(ctx context.Context, off int64, want int, read func([]byte) (int, error)) (int, error) {
	if err := p.room(ctx, wire.DataRoom+want); err != nil {
		return 0, err
	}
	b, n, err := wire.AppendData(p.cur, off, want, read)
	p.cur = b
	return n, err
}

// end stops the sending goroutine, after all that was gathered where ok, and gives the digest in hex.
func (p *packer) end(ctx context.Context, ok bool) (string, error) {
	var err error
	if ok {
		err = p.flush(ctx)
	}
	if p.cur != nil {
		p.free <- p.cur
		p.cur = nil
	}
	close(p.full)
	if shipErr := <-p.sent; shipErr != nil {
		err = shipErr
	}
	return hex.EncodeToString(p.sum.Sum(nil)), err
}
