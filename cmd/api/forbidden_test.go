package api

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
)

func TestOnlyRootAndTheOwnerAreLetIn(t *testing.T) {
	inside := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	owner := uint32(os.Geteuid())
	for name, c := range map[string]struct {
		ctx  context.Context
		want int
	}{
		"root":       {context.WithValue(t.Context(), peer{}, uint32(0)), http.StatusOK},
		"owner":      {context.WithValue(t.Context(), peer{}, owner), http.StatusOK},
		"a stranger": {context.WithValue(t.Context(), peer{}, owner+1000), http.StatusForbidden},
		"nobody":     {t.Context(), http.StatusForbidden},
	} {
		w := httptest.NewRecorder()
		onlyOwner(inside).ServeHTTP(w, httptest.NewRequestWithContext(c.ctx, http.MethodGet, "/v1/node", nil))
		if w.Code != c.want {
			t.Errorf("%s: %d, want %d", name, w.Code, c.want)
		}
	}
}

func TestEveryCodeThatTravelsHasAStatus(t *testing.T) {
	for _, code := range []Code{CodeInvalid, CodeForbidden, CodeNotFound, CodeConflict, CodeTooLarge, CodePeer, CodeInternal} {
		if httpStatus[code] < 400 {
			t.Errorf("%s has status %d", code, httpStatus[code])
		}
	}
}
