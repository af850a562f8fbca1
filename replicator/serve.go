package replicator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"tandemfs/replicator/wire"
)

// Serve accepts peers on ln, a plain TCP listener, until Close, which closes it. It returns nil then.
func (m *Manager) Serve(ln net.Listener) error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return ln.Close()
	}
	m.listeners = append(m.listeners, ln)
	m.running.Add(1)
	m.mu.Unlock()
	defer m.running.Done()
	for {
		nc, err := ln.Accept()
		if m.ctx.Err() != nil {
			if err == nil {
				_ = nc.Close()
			}
			return nil
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			m.log.Warn("accepting peers", "error", err) // too many open files, perhaps: it passes
			time.Sleep(shortestPause)
			continue
		}
		m.strangers.enter(nc)
		m.running.Go(func() {
			if err := m.peer(nc); err != nil && m.ctx.Err() == nil {
				m.log.Info("peer", "address", nc.RemoteAddr(), "error", err)
			}
		})
	}
}

// features are what this node can do besides what every version can.
var features = []string{wire.FeatureCompare, wire.FeatureIncomplete, wire.FeatureKeep}

// peer serves one connection.
func (m *Manager) peer(nc net.Conn) error {
	conn, kind, content, err := m.meet(nc)
	m.strangers.leave(nc)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	switch kind {
	case wire.TypePropose:
		return m.proposed(conn, content)
	case wire.TypeAttach:
		return m.attached(conn, content)
	case wire.TypeBye:
		return m.farewell(conn, content)
	case wire.TypeVerify:
		return m.verified(conn, content)
	}
	return fmt.Errorf("%w: a conversation does not start with type %d", wire.ErrFrame, kind)
}

// meet shakes hands and hears what the peer wants, within a time.
func (m *Manager) meet(nc net.Conn) (*wire.Conn, wire.Type, []byte, error) {
	ctx, cancel := context.WithTimeout(m.ctx, wire.HandshakeTimeout)
	defer cancel()
	conn, err := wire.Server(ctx, nc, wire.Options{Identity: m.config.Identity, Node: m.config.Node, Features: features})
	if err != nil {
		return nil, 0, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	kind, content, err := conn.Receive(nil)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close() // the error says more
		return nil, 0, nil, fmt.Errorf("waiting for the first message: %w", err)
	}
	return conn, kind, content, nil
}

// farewell is a source's word, over a connection of its own, that it has deleted a relationship.
func (m *Manager) farewell(conn *wire.Conn, content []byte) error {
	var b wire.Bye
	if err := wire.Parse(content, &b); err != nil {
		return err
	}
	m.mu.Lock()
	r := m.rels[b.ID]
	known := r != nil && r.role == RoleTarget && r.snapshot().Source.Fingerprint == conn.Peer().Fingerprint
	m.mu.Unlock()
	if !known {
		return conn.Send(wire.TypeDecision, wire.Decision{Verdict: wire.VerdictEnded, Reason: "the target does not know the relationship"})
	}
	if err := m.endTarget(r, "it was deleted at its source", false); err != nil {
		return err
	}
	return conn.Send(wire.TypeDecision, wire.Decision{Verdict: wire.VerdictEnded})
}

// proposed answers a proposal, and once more when a person has decided. Then the source may attach over
// the same connection.
func (m *Manager) proposed(conn *wire.Conn, content []byte) error {
	var p wire.Propose
	if err := wire.Parse(content, &p); err != nil {
		return err
	}
	r, d := m.consider(p, conn.Peer())
	if err := conn.Send(wire.TypeDecision, d); err != nil {
		return err
	}
	if d.Verdict == wire.VerdictEnded || d.Verdict == wire.VerdictConflict {
		return nil
	}
	leave := r.proposes(conn)
	defer leave()
	ctx, cancel := context.WithCancel(m.ctx)
	defer cancel()
	stop := context.AfterFunc(m.ctx, func() { _ = conn.Close() })
	defer stop()
	told := make(chan struct{})
	go func() {
		defer close(told)
		if d.Verdict == wire.VerdictAwaiting {
			tellDecision(ctx, r, conn)
		}
	}()
	kind, content, err := conn.Receive(nil)
	cancel()
	<-told
	leave()
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return err
	case kind == wire.TypeAttach:
		return m.attached(conn, content)
	case kind == wire.TypeBye: // the source is disabled; it comes back when it is not
		return nil
	}
	return fmt.Errorf("%w: type %d after a proposal", wire.ErrFrame, kind)
}

// proposes makes a connection the only one that waits for the decision, until leave is called: a source that connects
// again knows better than this end that the connection before is dead, and nobody can have more than one for each
// proposal.
func (r *relationship) proposes(conn *wire.Conn) (leave func()) {
	r.mu.Lock()
	before := r.target.proposer
	r.target.proposer = conn
	r.mu.Unlock()
	if before != nil {
		_ = before.Close() // whoever serves it notices
	}
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.target.proposer == conn {
			r.target.proposer = nil
		}
	}
}

// tellDecision sends the decision when there is one.
func tellDecision(ctx context.Context, r *relationship, conn *wire.Conn) {
	rec, err := r.await(ctx)
	if err != nil {
		return // the source is gone; it asks again
	}
	if err := conn.Send(wire.TypeDecision, rec.verdict()); err != nil {
		return // it asks again
	}
}

// verdict is what a source is told of a relationship.
func (rec record) verdict() wire.Decision {
	switch rec.State {
	case StateAwaitingAuthorization:
		return wire.Decision{Verdict: wire.VerdictAwaiting}
	case StateEstablished:
		return wire.Decision{Verdict: wire.VerdictEstablished}
	}
	return wire.Decision{Verdict: wire.VerdictEnded, Reason: rec.EndReason}
}

// host gives the address without its port: peers connect from any.
func host(address string) string {
	if h, _, err := net.SplitHostPort(address); err == nil {
		return h
	}
	return address
}

// withPort checks an address and gives it its port.
func withPort(address string) (string, error) {
	h, port, err := net.SplitHostPort(address)
	if err != nil { // no port, or no brackets around an IPv6 address
		h, port = strings.TrimSuffix(strings.TrimPrefix(address, "["), "]"), strconv.Itoa(DefaultPort)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if h == "" || strings.ContainsAny(h, "/[]@ \t\n") || strings.Contains(h, ":") && net.ParseIP(h) == nil || err != nil || n == 0 {
		return "", fmt.Errorf("%w: %q is not HOST or HOST:PORT", ErrInvalid, address)
	}
	return net.JoinHostPort(h, port), nil
}
