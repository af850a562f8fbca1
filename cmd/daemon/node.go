package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"tandemfs/cmd/api"
	"tandemfs/replicator"
)

// shutdownGrace is how long requests that are under way may take to end when the node stops.
const shutdownGrace = 5 * time.Second

// Options says how a node runs.
type Options struct {
	Name    string // what people call the node
	State   string // its folder
	Listen  string // HOST:PORT where peers are answered
	Socket  string // where its own user is answered
	Version string
	Logger  *slog.Logger
}

// node is a running node. It implements api.Node, in service.go and snapshots.go.
type node struct {
	info    api.Info
	log     *slog.Logger
	now     func() time.Time
	state   *stateFolder
	volumes *registry
	manager Manager
	peers   net.Listener
	control net.Listener
	server  *http.Server
	failed  chan error
	servers sync.WaitGroup
	atRest  []func() error // what ends the parts that were started, last started first
	binding sync.RWMutex   // held for writing while a volume must not become part of a relationship
	expiry  sync.Mutex     // held while an expiry is changed, and while what has expired is deleted
}

// run runs a node until ctx ends or something breaks that it cannot do without.
func run(ctx context.Context, o Options, p parts) error {
	n, err := start(ctx, o, p)
	if err != nil {
		return err
	}
	n.log.Info("ready", "name", n.info.Name, "fingerprint", n.info.Fingerprint, "listen", n.info.Listen,
		"socket", o.Socket, "state", n.info.State, "version", n.info.Version)
	notify(n.log, "READY=1")
	select {
	case <-ctx.Done():
		n.log.Info("stopping")
	case err = <-n.failed:
		n.log.Error("stopping", "error", err)
	}
	notify(n.log, "STOPPING=1")
	err = errors.Join(err, n.stop())
	if err == nil {
		n.log.Info("stopped")
	}
	return err
}

// start brings a node up; on an error it has taken down again what it had brought up.
func start(ctx context.Context, o Options, p parts) (*node, error) {
	n := &node{log: o.Logger, now: p.now, failed: make(chan error, 2)}
	for _, step := range []func() error{
		func() error { return replicator.CheckNode(o.Name) },
		func() error { return n.openFolder(o) },
		func() error { return n.listen(o) },
		func() error { return n.startGuard(p.backend) },
		func() error { return n.openVolumes(o, p.backend) },
		func() error { return n.startReplication(ctx, o, p) },
		func() error { n.startJanitor(p.tidyEvery); return nil },
	} {
		if err := step(); err != nil {
			return nil, errors.Join(err, n.stop())
		}
	}
	n.serve()
	return n, nil
}

// later has a part's end called when the node stops.
func (n *node) later(end func() error) { n.atRest = append(n.atRest, end) }

// stop ends everything, in the opposite order of its start.
func (n *node) stop() error {
	var errs []error
	for len(n.atRest) > 0 {
		last := len(n.atRest) - 1
		errs = append(errs, n.atRest[last]())
		n.atRest = n.atRest[:last]
	}
	n.servers.Wait()
	return errors.Join(errs...)
}

func (n *node) openFolder(o Options) error {
	var err error
	if n.state, err = openState(o.State); err != nil {
		return err
	}
	n.later(n.state.close)
	n.info = api.Info{Name: o.Name, Version: o.Version, State: n.state.dir, Started: time.Now().UTC().Truncate(time.Second)}
	return nil
}

// listen takes the node's two addresses. Whoever connects waits until the node is ready.
func (n *node) listen(o Options) error {
	var err error
	if n.control, err = api.Listen(o.Socket); err != nil {
		return err
	}
	n.later(func() error { return closeListener(n.control) })
	if n.peers, err = net.Listen("tcp", o.Listen); err != nil {
		code := api.CodeInvalid
		if errors.Is(err, syscall.EADDRINUSE) {
			code = api.CodeConflict
		}
		return api.Errorf(code, "peers cannot be answered at %s (--listen names another address): %v", o.Listen, err)
	}
	n.later(func() error { return closeListener(n.peers) })
	n.info.Listen = n.peers.Addr().String()
	return nil
}

// startGuard comes before the mounts that are guarded.
func (n *node) startGuard(b Backend) error {
	end, err := b.Guard(n.state.lock)
	if err != nil {
		return err
	}
	n.later(end)
	return nil
}

// closeListener closes a listener that whoever serves on it may have closed already.
func closeListener(ln net.Listener) error {
	if err := ln.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func (n *node) openVolumes(o Options, b Backend) error {
	folder, err := filepath.EvalSymlinks(filepath.Dir(o.Socket))
	if err != nil {
		return fmt.Errorf("the control socket's folder: %w", err)
	}
	own := []claim{
		{n.state.dir, "this node's state folder"},
		{filepath.Join(folder, filepath.Base(o.Socket)), "this node's control socket"},
	}
	if n.volumes, err = openRegistry(n.state, b, own, n.log); err != nil {
		return err
	}
	n.later(n.volumes.close)
	return nil
}

func (n *node) startReplication(ctx context.Context, o Options, p parts) error {
	identity, err := n.state.identity(o.Name)
	if err != nil {
		return err
	}
	n.info.Fingerprint = replicator.Fingerprint(identity.Leaf)
	n.manager, err = p.newManager(replicator.Config{
		Node: o.Name, Dir: n.state.path(relationshipsDir), Identity: identity, Volumes: n.volumes, Logger: n.log,
	})
	if err != nil {
		return fmt.Errorf("the relationships cannot be loaded: %w", err)
	}
	n.later(n.manager.Close)
	if err := n.manager.Start(ctx); err != nil {
		return fmt.Errorf("the relationships cannot be started: %w", err)
	}
	n.releaseTargets()
	return nil
}

// serve begins to answer, peers and the node's own user.
func (n *node) serve() {
	n.servers.Go(func() {
		if err := n.manager.Serve(n.peers); err != nil && !errors.Is(err, net.ErrClosed) {
			n.failed <- fmt.Errorf("peers are not answered any more: %w", err)
		}
	})
	n.server = api.NewServer(n, n.log)
	n.servers.Go(func() {
		if err := n.server.Serve(n.control); !errors.Is(err, http.ErrServerClosed) {
			n.failed <- fmt.Errorf("the control socket is not served any more: %w", err)
		}
	})
	n.later(n.stopServer)
}

// stopServer lets requests that are under way end, for a while.
func (n *node) stopServer() error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownGrace)
	defer cancel()
	if err := n.server.Shutdown(ctx); err != nil {
		n.log.Warn("requests were cut off", "error", err)
		return n.server.Close()
	}
	return nil
}

// releaseTargets makes volumes writable that were targets when the node last ran, of relationships that
// are gone: the node may have died between the end of one and the switch. Nothing may bind a volume to a
// relationship meanwhile.
func (n *node) releaseTargets() {
	for _, e := range n.volumes.all() {
		kept := n.volumes.recordOf(e)
		if !kept.ReadOnly || len(n.manager.VolumeInUse(kept.Name)) > 0 {
			continue
		}
		if err := e.release(); err != nil {
			n.log.Error("volume stays read-only", "volume", kept.Name, "error", err)
		}
	}
}
