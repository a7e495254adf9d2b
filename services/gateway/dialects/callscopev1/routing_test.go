package callscopev1_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/callscope/callscope/internal/apps"
	"github.com/callscope/callscope/services/gateway"
	"github.com/callscope/callscope/services/gateway/dialects/callscopev1"
)

type nowhere struct{}

func (nowhere) Produce(context.Context, []byte, []byte) error { return nil }

// The gateway serves this dialect at its path, and at no other.
func TestRouting(t *testing.T) {
	registry, err := apps.NewStatic()
	if err != nil {
		t.Fatal(err)
	}
	g, err := gateway.New(gateway.Config{TokenKey: "a token key for tests"}, registry, nowhere{}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	for path, ours := range map[string]bool{callscopev1.Path: true, "/v1/ws/": false, "/x/v1/ws": false, "/v1/wss": false} {
		w := httptest.NewRecorder()
		g.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if got := w.Code == http.StatusUpgradeRequired; got != ours {
			t.Errorf("%s: got status %d", path, w.Code)
		}
	}
}
