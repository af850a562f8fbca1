package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"tandemfs/replicator"
)

// MaxRequest is how many bytes the body of a request may have.
const MaxRequest = 64 << 10

// NewServer makes the HTTP server for a node. Serve it on a listener from Listen.
func NewServer(node Node, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           onlyOwner((&handler{node: node, log: log}).routes()),
		ConnContext:       withPeer,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

// handler answers requests from a node. It is made once and keeps nothing between requests.
type handler struct {
	node Node
	log  *slog.Logger
}

// answer is what a request comes to: a value that is sent as JSON with the status, or an error.
type answer func(r *http.Request) (status int, value any, err error)

// routes names every resource once; docs/api.md describes them.
func (h *handler) routes() *http.ServeMux {
	mux := http.NewServeMux()
	for pattern, a := range h.snapshotRoutes() {
		mux.Handle(pattern, h.serve(a))
	}
	for pattern, a := range map[string]answer{
		"GET /v1/node":                          h.info,
		"GET /v1/volumes":                       h.volumes,
		"POST /v1/volumes":                      h.createVolume,
		"GET /v1/volumes/{name}":                h.volume,
		"DELETE /v1/volumes/{name}":             h.removeVolume,
		"POST /v1/volumes/{name}/rebuild":       h.rebuildVolume,
		"GET /v1/relationships":                 h.relationships,
		"POST /v1/relationships":                h.createRelationship,
		"GET /v1/relationships/{id}":            h.relationship,
		"DELETE /v1/relationships/{id}":         h.deleteRelationship,
		"POST /v1/relationships/{id}/authorize": h.authorizeRelationship,
		"POST /v1/relationships/{id}/reject":    h.rejectRelationship,
		"POST /v1/relationships/{id}/enable":    h.enableRelationship(true),
		"POST /v1/relationships/{id}/disable":   h.enableRelationship(false),
		"POST /v1/relationships/{id}/reconcile": h.reconcileRelationship,
		"GET /v1/relationships/{id}/verify":     h.verification,
		"POST /v1/relationships/{id}/verify":    h.verifyRelationship,
		"DELETE /v1/relationships/{id}/verify":  h.stopVerification,
		"/":                                     h.unknown,
	} {
		mux.Handle(pattern, h.serve(a))
	}
	return mux
}

// serve turns an answer into HTTP.
func (h *handler) serve(a answer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, MaxRequest)
		status, value, err := a(r)
		if err != nil {
			h.fail(w, r, err)
			return
		}
		h.send(w, r, status, value)
	})
}

func (h *handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	e := AsError(err)
	if e.Code == CodeInternal {
		h.log.Error("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	h.send(w, r, httpStatus[e.Code], errorBody{e})
}

func (h *handler) send(w http.ResponseWriter, r *http.Request, status int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(value); err != nil {
		h.log.Debug("answer not delivered", "method", r.Method, "path", r.URL.Path, "error", err)
	}
}

// decode reads the one JSON value of a request. No body at all stands for the zero value.
func decode(r *http.Request, into any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil {
		if _, err = d.Token(); errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = errors.New("more than one value")
		}
	}
	var long *http.MaxBytesError
	if errors.As(err, &long) {
		return err
	}
	return Errorf(CodeInvalid, "the request cannot be read: %v", err)
}

func (h *handler) unknown(r *http.Request) (int, any, error) {
	return 0, nil, Errorf(CodeNotFound, "nothing answers to %s %s", r.Method, r.URL.Path)
}

func (h *handler) info(*http.Request) (int, any, error) {
	return http.StatusOK, h.node.Info(), nil
}

func (h *handler) volumes(*http.Request) (int, any, error) {
	return http.StatusOK, VolumeList{notNil(h.node.Volumes())}, nil
}

func (h *handler) volume(r *http.Request) (int, any, error) {
	v, err := h.node.Volume(r.PathValue("name"))
	return http.StatusOK, v, err
}

func (h *handler) createVolume(r *http.Request) (int, any, error) {
	var want CreateVolume
	if err := decode(r, &want); err != nil {
		return 0, nil, err
	}
	v, err := h.node.CreateVolume(r.Context(), want)
	return http.StatusCreated, v, err
}

func (h *handler) removeVolume(r *http.Request) (int, any, error) {
	v, err := h.node.RemoveVolume(context.WithoutCancel(r.Context()), r.PathValue("name"))
	return http.StatusOK, v, err
}

func (h *handler) relationships(*http.Request) (int, any, error) {
	return http.StatusOK, RelationshipList{notNil(h.node.Relationships())}, nil
}

func (h *handler) relationship(r *http.Request) (int, any, error) {
	s, err := h.node.Relationship(r.PathValue("id"))
	return http.StatusOK, s, err
}

func (h *handler) createRelationship(r *http.Request) (int, any, error) {
	var want replicator.CreateRequest
	if err := decode(r, &want); err != nil {
		return 0, nil, err
	}
	s, err := h.node.CreateRelationship(r.Context(), want)
	return http.StatusCreated, s, err
}

func (h *handler) authorizeRelationship(r *http.Request) (int, any, error) {
	var want replicator.AuthorizeRequest
	if err := decode(r, &want); err != nil {
		return 0, nil, err
	}
	s, err := h.node.AuthorizeRelationship(r.Context(), r.PathValue("id"), want)
	return http.StatusOK, s, err
}

func (h *handler) rejectRelationship(r *http.Request) (int, any, error) {
	s, err := h.node.RejectRelationship(r.Context(), r.PathValue("id"))
	return http.StatusOK, s, err
}

// deleteRelationship goes on when the caller hangs up: half a failover helps nobody.
func (h *handler) deleteRelationship(r *http.Request) (int, any, error) {
	s, err := h.node.DeleteRelationship(context.WithoutCancel(r.Context()), r.PathValue("id"))
	return http.StatusOK, s, err
}

func (h *handler) enableRelationship(enabled bool) answer {
	return func(r *http.Request) (int, any, error) {
		s, err := h.node.EnableRelationship(r.Context(), r.PathValue("id"), enabled)
		return http.StatusOK, s, err
	}
}

// rebuildVolume goes on when the caller hangs up.
func (h *handler) rebuildVolume(r *http.Request) (int, any, error) {
	v, err := h.node.RebuildVolume(context.WithoutCancel(r.Context()), r.PathValue("name"))
	return http.StatusOK, v, err
}

func (h *handler) reconcileRelationship(r *http.Request) (int, any, error) {
	s, err := h.node.ReconcileRelationship(r.Context(), r.PathValue("id"))
	return http.StatusOK, s, err
}

func (h *handler) verification(r *http.Request) (int, any, error) {
	v, err := h.node.Verification(r.PathValue("id"))
	return http.StatusOK, v, err
}

func (h *handler) verifyRelationship(r *http.Request) (int, any, error) {
	var want replicator.VerifyRequest
	if err := decode(r, &want); err != nil {
		return 0, nil, err
	}
	v, err := h.node.VerifyRelationship(r.Context(), r.PathValue("id"), want)
	return http.StatusAccepted, v, err
}

func (h *handler) stopVerification(r *http.Request) (int, any, error) {
	v, err := h.node.StopVerification(r.Context(), r.PathValue("id"))
	return http.StatusOK, v, err
}

// peer is the key under which a connection's context has the user at the other end.
type peer struct{}

// withPeer notes who is at the other end of a connection.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	uid, err := peerUID(c)
	if err != nil {
		return ctx
	}
	return context.WithValue(ctx, peer{}, uid)
}
