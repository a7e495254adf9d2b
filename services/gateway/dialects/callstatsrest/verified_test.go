package callstatsrest

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/callscope/callscope/internal/apps"
	"github.com/callscope/callscope/services/gateway/auth"
)

type registry map[string]*apps.App

func (r registry) Lookup(appID string) (*apps.App, bool) {
	app, known := r[appID]
	return app, known
}

// TestVerified: a remembered token is refused for the same reasons as a fresh one.
func TestVerified(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		app := &apps.App{ID: "1", Settings: apps.DefaultSettings()}
		known := registry{"1": app}
		tokens, err := auth.NewTokens(known, []byte("a token key for tests"))
		if err != nil {
			t.Fatal(err)
		}
		v := &verified{tokens: tokens, limit: 10}
		token, issued, err := tokens.Issue(app, "alice", "https://a.example")
		if err != nil {
			t.Fatal(err)
		}
		check := func(what, token, origin string, want error) {
			t.Helper()
			for range 2 {
				if got, err := v.verify(token, origin); !errors.Is(err, want) || err == nil && got.TokenID != issued.TokenID {
					t.Errorf("%s: %+v, %v; want %v", what, got, err, want)
				}
			}
		}
		check("good", token, "https://a.example", nil)
		check("another page", token, "https://b.example", auth.ErrInvalid)
		check("good again", token, "https://a.example", nil)
		check("forged", token+"x", "https://a.example", auth.ErrInvalid)
		revoked := *app
		revoked.TokenEpoch++
		known["1"] = &revoked
		check("revoked", token, "https://a.example", auth.ErrExpired)
		known["1"] = app
		check("good once more", token, "https://a.example", nil)
		delete(known, "1")
		check("app deleted", token, "https://a.example", auth.ErrInvalid)
		known["1"] = app
		check("good a last time", token, "https://a.example", nil)
		time.Sleep(auth.Lifetime + time.Minute) //nolint:forbidigo // fake time
		check("expired", token, "https://a.example", auth.ErrExpired)
		if len(v.identities) != 0 {
			t.Errorf("%d refused tokens are remembered", len(v.identities))
		}
	})
}

func TestVerifiedIsBounded(t *testing.T) {
	app := &apps.App{ID: "1", Settings: apps.DefaultSettings()}
	tokens, err := auth.NewTokens(registry{"1": app}, []byte("a token key for tests"))
	if err != nil {
		t.Fatal(err)
	}
	v := &verified{tokens: tokens, limit: 100}
	for i := range 200 {
		token, _, err := tokens.Issue(app, fmt.Sprint(i), "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.verify(token, ""); err != nil {
			t.Fatal(err)
		}
	}
	if len(v.identities) != 100 {
		t.Errorf("%d tokens are remembered, want 100", len(v.identities))
	}
}
