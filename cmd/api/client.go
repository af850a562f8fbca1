package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"

	"tandemfs/replicator"
)

// maxAnswer bounds what the client reads: far more than any list or page needs.
const maxAnswer = 64 << 20

// Client speaks to a node's socket. Its methods may be called concurrently and return *Error.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient makes a client for the socket at a path. Nothing is opened before the first request.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Close gives the client's idle connections back.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Info describes the node.
func (c *Client) Info(ctx context.Context) (Info, error) {
	return call[Info](ctx, c, http.MethodGet, nil, "node")
}

// Volumes lists the node's volumes.
func (c *Client) Volumes(ctx context.Context) ([]Volume, error) {
	list, err := call[VolumeList](ctx, c, http.MethodGet, nil, "volumes")
	return list.Volumes, err
}

// Volume finds a volume.
func (c *Client) Volume(ctx context.Context, name string) (Volume, error) {
	return call[Volume](ctx, c, http.MethodGet, nil, "volumes", name)
}

// CreateVolume protects a directory.
func (c *Client) CreateVolume(ctx context.Context, want CreateVolume) (Volume, error) {
	return call[Volume](ctx, c, http.MethodPost, want, "volumes")
}

// RemoveVolume ends a directory's protection and gives the volume as it was.
func (c *Client) RemoveVolume(ctx context.Context, name string) (Volume, error) {
	return call[Volume](ctx, c, http.MethodDelete, nil, "volumes", name)
}

// RebuildVolume has a volume whose journal is damaged begin a new one.
func (c *Client) RebuildVolume(ctx context.Context, name string) (Volume, error) {
	return call[Volume](ctx, c, http.MethodPost, nil, "volumes", name, "rebuild")
}

// Relationships lists the node's relationships, as source and as target.
func (c *Client) Relationships(ctx context.Context) ([]replicator.Status, error) {
	list, err := call[RelationshipList](ctx, c, http.MethodGet, nil, "relationships")
	return list.Relationships, err
}

// Relationship gives a relationship's status; here and below a unique prefix of the id will do.
func (c *Client) Relationship(ctx context.Context, id string) (replicator.Status, error) {
	return call[replicator.Status](ctx, c, http.MethodGet, nil, "relationships", id)
}

// CreateRelationship proposes a relationship to a target.
func (c *Client) CreateRelationship(ctx context.Context, want replicator.CreateRequest) (replicator.Status, error) {
	return call[replicator.Status](ctx, c, http.MethodPost, want, "relationships")
}

// AuthorizeRelationship accepts a proposed relationship, on the target.
func (c *Client) AuthorizeRelationship(ctx context.Context, id string, r replicator.AuthorizeRequest) (replicator.Status, error) {
	return call[replicator.Status](ctx, c, http.MethodPost, r, "relationships", id, "authorize")
}

// RejectRelationship turns a proposed relationship down and gives it as it was.
func (c *Client) RejectRelationship(ctx context.Context, id string) (replicator.Status, error) {
	return call[replicator.Status](ctx, c, http.MethodPost, nil, "relationships", id, "reject")
}

// EnableRelationship lets a relationship run, or pauses it.
func (c *Client) EnableRelationship(ctx context.Context, id string, enabled bool) (replicator.Status, error) {
	verb := "disable"
	if enabled {
		verb = "enable"
	}
	return call[replicator.Status](ctx, c, http.MethodPost, nil, "relationships", id, verb)
}

// ReconcileRelationship makes the next transfer compare both sides and make the target what the source is.
func (c *Client) ReconcileRelationship(ctx context.Context, id string) (replicator.Status, error) {
	return call[replicator.Status](ctx, c, http.MethodPost, nil, "relationships", id, "reconcile")
}

// VerifyRelationship begins to compare both sides.
func (c *Client) VerifyRelationship(ctx context.Context, id string, r replicator.VerifyRequest) (replicator.Verification, error) {
	return call[replicator.Verification](ctx, c, http.MethodPost, r, "relationships", id, "verify")
}

// StopVerification ends a comparison of both sides.
func (c *Client) StopVerification(ctx context.Context, id string) (replicator.Verification, error) {
	return call[replicator.Verification](ctx, c, http.MethodDelete, nil, "relationships", id, "verify")
}

// Verification says how a comparison of both sides stands.
func (c *Client) Verification(ctx context.Context, id string) (replicator.Verification, error) {
	return call[replicator.Verification](ctx, c, http.MethodGet, nil, "relationships", id, "verify")
}

// DeleteRelationship ends a relationship and gives it as it was.
func (c *Client) DeleteRelationship(ctx context.Context, id string) (replicator.Status, error) {
	return call[replicator.Status](ctx, c, http.MethodDelete, nil, "relationships", id)
}

// Snapshots lists a volume's snapshots, oldest first, and what they hold.
func (c *Client) Snapshots(ctx context.Context, volume string) (SnapshotList, error) {
	return call[SnapshotList](ctx, c, http.MethodGet, nil, "volumes", volume, "snapshots")
}

// Snapshot finds a snapshot.
func (c *Client) Snapshot(ctx context.Context, volume, name string) (Snapshot, error) {
	return call[Snapshot](ctx, c, http.MethodGet, nil, "volumes", volume, "snapshots", name)
}

// CreateSnapshot takes a snapshot.
func (c *Client) CreateSnapshot(ctx context.Context, volume string, want CreateSnapshot) (Snapshot, error) {
	return call[Snapshot](ctx, c, http.MethodPost, want, "volumes", volume, "snapshots")
}

// DeleteSnapshot deletes a snapshot and gives it as it was.
func (c *Client) DeleteSnapshot(ctx context.Context, volume, name string) (Snapshot, error) {
	return call[Snapshot](ctx, c, http.MethodDelete, nil, "volumes", volume, "snapshots", name)
}

// SetSnapshotExpiry says when a snapshot may be deleted.
func (c *Client) SetSnapshotExpiry(ctx context.Context, volume, name string, want SetExpiry) (Snapshot, error) {
	return call[Snapshot](ctx, c, http.MethodPost, want, "volumes", volume, "snapshots", name, "expiry")
}

// Diff gives a page of what differs between two snapshots.
func (c *Client) Diff(ctx context.Context, volume string, want Diff) (ChangeList, error) {
	return callDiff[ChangeList](ctx, c, volume, want)
}

// DiffFile gives a page of where a file differs between two snapshots.
func (c *Client) DiffFile(ctx context.Context, volume string, want Diff) (RegionList, error) {
	return callDiff[RegionList](ctx, c, volume, want)
}

// Restore makes a volume, or a part of it, what it was, and gives the snapshot that was taken first.
func (c *Client) Restore(ctx context.Context, volume string, want Restore) (Snapshot, error) {
	return call[Snapshot](ctx, c, http.MethodPost, want, "volumes", volume, "restore")
}

func callDiff[T any](ctx context.Context, c *Client, volume string, want Diff) (T, error) {
	place, err := address("volumes", volume, "diff")
	if err != nil {
		var none T
		return none, err
	}
	return send[T](ctx, c, http.MethodGet, nil, place+"?"+want.query())
}

// call makes one request to the resource that the parts below /v1 name.
func call[T any](ctx context.Context, c *Client, method string, body any, parts ...string) (T, error) {
	place, err := address(parts...)
	if err != nil {
		var none T
		return none, err
	}
	return send[T](ctx, c, method, body, place)
}

// address puts the parts below /v1 together, each escaped by itself.
func address(parts ...string) (string, error) {
	place := "http://tandemfs/v1"
	for _, part := range parts {
		if part == "" || part == "." || part == ".." {
			return "", Errorf(CodeInvalid, "%q is not a name", part)
		}
		place += "/" + url.PathEscape(part)
	}
	return place, nil
}

// send makes one request to an address.
func send[T any](ctx context.Context, c *Client, method string, body any, place string) (T, error) {
	var result T
	var sent bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&sent).Encode(body); err != nil {
			return result, Errorf(CodeInternal, "the request cannot be written: %v", err)
		}
	}
	request, err := http.NewRequestWithContext(ctx, method, place, &sent)
	if err != nil {
		return result, Errorf(CodeInternal, "the request cannot be made: %v", err)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return result, c.unreachable(err)
	}
	defer response.Body.Close()
	err = receive(response, &result)
	return result, err
}

// receive reads an answer: the value that was asked for, or the node's error.
func receive(response *http.Response, into any) error {
	data, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return Errorf(CodeUnreachable, "the daemon's answer broke off: %v", err)
	}
	if response.StatusCode >= 300 {
		var e errorBody
		if json.Unmarshal(data, &e) != nil || e.Error == nil {
			return Errorf(CodeInternal, "the daemon answered %s, in no form that is known here", response.Status)
		}
		return e.Error
	}
	if err := json.Unmarshal(data, into); err != nil {
		return Errorf(CodeInternal, "the daemon's answer cannot be read: %v", err)
	}
	return nil
}

// unreachable says why the daemon did not answer, and what to do.
func (c *Client) unreachable(err error) error {
	hint := "is `tandemfs serve` running? --socket or TANDEMFS_SOCKET names another socket"
	switch {
	case errors.Is(err, context.Canceled):
		return Errorf(CodeInternal, "interrupted")
	case errors.Is(err, os.ErrPermission):
		hint = "only root and the user who runs the daemon may use it"
	}
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	return &Error{CodeUnreachable, fmt.Sprintf("the daemon does not answer on %s (%v): %s", c.socket, err, hint)}
}
