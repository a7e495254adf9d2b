package auth

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"pgregory.net/rapid"

	"github.com/callscope/callscope/internal/apps"
)

// changing is a registry that tests change.
type changing struct {
	mu   sync.Mutex
	apps map[string]*apps.App
}

func knowing(list ...*apps.App) *changing {
	c := &changing{apps: make(map[string]*apps.App)}
	for _, a := range list {
		c.set(a)
	}
	return c
}

func (c *changing) set(a *apps.App) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.apps[a.ID] = a
}

func (c *changing) remove(appID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.apps, appID)
}

func (c *changing) Lookup(appID string) (*apps.App, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, ok := c.apps[appID]
	return a, ok
}

func newTokens(t testing.TB, registry Registry) *Tokens {
	t.Helper()
	tokens, err := NewTokens(registry, []byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

// payloadOf reads a token's payload as the clients do: split, plain base64, JSON.
func payloadOf(t reporter, token string) map[string]any {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("%d segments", len(parts))
	}
	if strings.ContainsAny(parts[1], "-_") {
		t.Fatalf("the payload segment %s cannot be read with atob", parts[1])
	}
	text, err := base64.RawStdEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatalf("%v", err)
	}
	for _, c := range text {
		if c >= 0x80 {
			t.Fatalf("the payload is not ASCII")
		}
	}
	var claims map[string]any
	if err := json.Unmarshal(text, &claims); err != nil {
		t.Fatalf("%v", err)
	}
	return claims
}

type reporter interface {
	Fatalf(format string, args ...any)
}

// TestAccessTokenForAnyUser: whatever the user is called, old clients can read the token, and we take it back.
func TestAccessTokenForAnyUser(t *testing.T) {
	app := &apps.App{ID: "123456789", Settings: apps.DefaultSettings()}
	tokens := newTokens(t, knowing(app))
	user := rapid.OneOf(rapid.StringN(1, 64, 256), rapid.StringOf(rapid.SampledFrom([]rune("~>?-_\x7f!*'() %@é😀"))))
	rapid.Check(t, func(rt *rapid.T) {
		name := user.Draw(rt, "user")
		token, issued, err := tokens.Issue(app, name, "")
		if err != nil {
			rt.Fatal(err)
		}
		claims := payloadOf(rt, token)
		if decoded, err := url.PathUnescape(claims["userID"].(string)); err != nil || decoded != name {
			rt.Fatalf("userID %q of %q", claims["userID"], name)
		}
		got, err := tokens.Verify(token, "")
		if err != nil || got != issued || got.UserID != name {
			rt.Fatalf("verified as %+v (%v), issued %+v", got, err, issued)
		}
	})
}

// TestAccessTokenClaims checks what wire 2.4 says a client reads.
func TestAccessTokenClaims(t *testing.T) {
	app := &apps.App{ID: "123456789", Settings: apps.Settings{SubmissionIntervalMS: 20000, CollectSDP: true}}
	token, issued, err := newTokens(t, knowing(app)).Issue(app, "alice@example.test/~", "https://é.example")
	if err != nil {
		t.Fatal(err)
	}
	claims := payloadOf(t, token)
	for name, want := range map[string]any{
		"appID": 123456789.0, "userID": "alice%40example.test%2F~", "submissionInterval": 20000.0, "collectSDP": true,
		"taasEnabled": false, "restApiTransport": false, "jti": issued.TokenID,
	} {
		if claims[name] != want {
			t.Errorf("%s is %v, want %v", name, claims[name], want)
		}
	}
	expiry, err := time.Parse("2006-01-02T15:04:05.000Z", claims["expiry"].(string))
	if in := time.Until(expiry); err != nil || in < 119*time.Minute || in > 2*time.Hour {
		t.Errorf("expiry %v: in %s, %v", claims["expiry"], in, err)
	}
	events := make(map[string]bool)
	for _, e := range claims["ingestedEvents"].([]any) {
		events[e.(string)] = true
	}
	for _, e := range strings.Fields("circuitBreaker oneWayMediaStart oneWayMediaStop applicationErrorLog sdpSubmissionEvent activeDeviceList connectedDeviceList dominantSpeaker mediaPlaybackStart mediaPlaybackSuspended userFeedback precallTestResultsManual precallTestResultsAutomatic") {
		if !events[e] {
			t.Errorf("%s is not ingested", e)
		}
	}
}

func TestAccessTokenExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tokens := newTokens(t, knowing(&apps.App{ID: "1"}))
		token, _, err := tokens.Issue(&apps.App{ID: "1"}, "alice", "")
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(2*time.Hour - 2*time.Second)
		if _, err := tokens.Verify(token, ""); err != nil {
			t.Errorf("refused before its time: %v", err)
		}
		<-time.After(4 * time.Second)
		if _, err := tokens.Verify(token, ""); !errors.Is(err, ErrExpired) {
			t.Errorf("error %v, want ErrExpired", err)
		}
	})
}

func TestVerifyRefuses(t *testing.T) {
	registry := knowing(&apps.App{ID: "1"})
	tokens := newTokens(t, registry)
	good, _, err := tokens.Issue(&apps.App{ID: "1"}, "alice", "")
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewTokens(registry, []byte("another key, as long"))
	if err != nil {
		t.Fatal(err)
	}
	foreign, _, err := other.Issue(&apps.App{ID: "1"}, "alice", "")
	if err != nil {
		t.Fatal(err)
	}
	none, err := jwt.NewWithClaims(jwt.SigningMethodNone, jwt.MapClaims{"appID": 1, "userID": "alice", "exp": time.Now().Add(time.Hour).Unix()}).SignedString(jwt.UnsafeAllowNoneSignatureType)
	if err != nil {
		t.Fatal(err)
	}
	byUs := func(kid any, key []byte, claims jwt.MapClaims) string {
		unsigned := jwt.NewWithClaims(jwt.SigningMethodHS256, claims)
		unsigned.Header["kid"] = kid
		token, err := unsigned.SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	live := jwt.MapClaims{"appID": 1, "userID": "alice", "exp": time.Now().Add(time.Hour).Unix()}
	current := tokens.keys[tokens.current]
	if _, err := tokens.Verify(byUs(tokens.current, current, live), ""); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	eternal := byUs(tokens.current, current, jwt.MapClaims{"appID": 1, "userID": "alice"})
	// The key that a gateway signs conference handles with, and the configured one, sign no tokens.
	handle := byUs(tokens.current, []byte("0123456789abcdef"), live)
	cases := map[string]string{
		"empty": "", "no token": "stub", "two segments": "a.b", "foreign key": foreign, "alg none": none, "no exp": eternal, "configured key": handle,
		"no kid": byUs(nil, current, live), "unknown kid": byUs("x", current, live), "kid of another type": byUs(7, current, live),
		"signed with the handle key": byUs(tokens.current, tokens.handleKey, live),
		"unknown app":                byUs(tokens.current, current, jwt.MapClaims{"appID": 2, "userID": "alice", "exp": time.Now().Add(time.Hour).Unix()}),
		"line break":                 good[:20] + "\n" + good[20:], "padding": good + "=", "user id is no escape": byUs(tokens.current, current, jwt.MapClaims{"appID": 1, "userID": "%zz", "exp": time.Now().Add(time.Hour).Unix()}),
		"longer": good + "x", "many dots": strings.Repeat(".", 1<<20), "payload changed": strings.Replace(good, ".e", ".f", 1),
	}
	for i := range len(good) {
		if i%7 == 0 {
			cases["cut "+good[:i]] = good[:i]
		}
	}
	for name, token := range cases {
		if id, err := tokens.Verify(token, ""); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %+v, %v", name, id, err)
		}
	}
}

func TestUcID(t *testing.T) {
	a, b := newTokens(t, knowing()), newTokens(t, knowing())
	id := a.UcID("1", "Demo room / 1 😀")
	if id != b.UcID("1", "Demo room / 1 😀") {
		t.Error("two gateways with one key disagree")
	}
	if id == a.UcID("2", "Demo room / 1 😀") || id == a.UcID("1", "Demo room / 2") || a.UcID("1", "2x") == a.UcID("12", "x") {
		t.Error("different conferences have one ucID")
	}
	if url.PathEscape(id) != id || len(id) < 16 {
		t.Errorf("%q is not safe in a path", id)
	}
}

// clientToken signs as callstats clients do: a header without typ, the secret's characters as key.
func clientToken(secret, payload string) string {
	enc := base64.RawURLEncoding
	head := enc.EncodeToString([]byte(`{"alg":"HS256"}`)) + "." + enc.EncodeToString([]byte(payload))
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(head))
	return head + "." + enc.EncodeToString(mac.Sum(nil))
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

type fixture struct {
	*Authenticator
	log  *bytes.Buffer
	key  *ecdsa.PrivateKey
	reg  *prometheus.Registry
	apps []*apps.App
	// registry has the apps; tests change it.
	registry *changing
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	secret := func(s string) apps.Secret {
		parsed, err := apps.ParseSecret(s)
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	f := &fixture{log: &bytes.Buffer{}, key: key, reg: prometheus.NewRegistry()}
	f.apps = []*apps.App{
		{ID: "123456789", Secrets: []apps.Secret{secret("synthetic-app-secret-01"), secret("AQIDBAUGBwk=:another-synthetic-secret")},
			PublicKeys: map[string]*ecdsa.PublicKey{"0102030405060709": &key.PublicKey}, Settings: apps.DefaultSettings()},
		{ID: "2", Secrets: []apps.Secret{secret("second")}, Origins: []string{"https://app.example.test"}, Settings: apps.DefaultSettings()},
		{ID: "3", PublicKeys: map[string]*ecdsa.PublicKey{"k": &key.PublicKey}, Settings: apps.Settings{RequireExpiry: true}},
		{ID: "5", Secrets: []apps.Secret{secret("geheimer-Schlüssel"), secret("κλειδί")}, Settings: apps.DefaultSettings()},
		{ID: "4", PublicKeys: map[string]*ecdsa.PublicKey{"s": &key.PublicKey}, Settings: apps.Settings{StrictTokens: true}},
	}
	f.registry = knowing(f.apps...)
	f.Authenticator, err = NewAuthenticator(f.registry, newTokens(t, f.registry), slog.New(slog.NewTextHandler(f.log, nil)), f.reg)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fixture) customerToken(t testing.TB, claims jwt.MapClaims) string {
	t.Helper()
	token, err := jwt.NewWithClaims(jwt.SigningMethodES256, claims).SignedString(f.key)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestSignIn(t *testing.T) {
	f := newFixture(t)
	now := time.Now().Unix()
	for _, tc := range []struct {
		name, clientID, code, origin, user string
	}{
		{"as recorded from 3.73", "alice@example.test@123456789", "eyJhbGciOiJIUzI1NiJ9.eyJ1c2VySUQiOiJhbGljZUBleGFtcGxlLnRlc3QiLCJhcHBJRCI6IjEyMzQ1Njc4OSIsImdlbmVyYXRlVHVybkNyZWRlbnRpYWxzIjpmYWxzZX0.ZQzKG9aCpBH7q5MUBHPykcIq4_jW0IXuwmE0fZEwfoA", "", "alice@example.test"},
		{"as recorded from 3.24", "alice@123456789", "eyJhbGciOiJIUzI1NiJ9.eyJ1c2VySUQiOiJhbGljZSIsImFwcElEIjoxMjM0NTY3ODl9.9tH4BW-bXW3WeLnEHADII0Bll08ekej53n-Lg5VSJCk", "", "alice"},
		{"key id as 3.52 writes it", "a@123456789", clientToken("another-synthetic-secret", `{"userID":"a","appID":123456789,"keyId":"0102030405060709"}`), "", "a"},
		{"key id as 3.24 writes it", "a@123456789", clientToken("another-synthetic-secret", `{"userID":"a","appID":123456789,"keyID":"0102030405060709"}`), "", "a"},
		{"second live secret", "a@123456789", clientToken("another-synthetic-secret", `{"userID":"a","appID":"123456789"}`), "", "a"},
		{"secret that is not ASCII", "a@5", clientToken("geheimer-Schl\xfcssel", `{"userID":"a","appID":5}`), "", "a"},
		{"secret that is not Latin-1", "a@5", clientToken("κλειδί", `{"userID":"a","appID":5}`), "", "a"},
		{"user of any script", "ali/ce 😀@123456789", clientToken("synthetic-app-secret-01", `{"userID":"ali/ce 😀","appID":"123456789"}`), "", "ali/ce 😀"},
		{"allowed origin", "a@2", clientToken("second", `{"userID":"a","appID":2}`), "https://app.example.test", "a"},
		{"customer token", "alice@123456789", f.customerToken(t, jwt.MapClaims{"userID": "alice", "appID": 123456789, "keyID": "0102030405060709", "iat": now, "nbf": now - 300, "exp": now + 300, "jti": "x"}), "", "alice"},
		{"customer token, app id as text", "alice@123456789", f.customerToken(t, jwt.MapClaims{"userID": "alice", "appID": "123456789", "keyID": "0102030405060709"}), "", "alice"},
		{"customer token that has just expired", "alice@123456789", f.customerToken(t, jwt.MapClaims{"userID": "alice", "appID": 123456789, "keyID": "0102030405060709", "exp": now - 30}), "", "alice"},
		{"customer token for in a moment", "alice@123456789", f.customerToken(t, jwt.MapClaims{"userID": "alice", "appID": 123456789, "keyID": "0102030405060709", "iat": now + 30, "nbf": now + 30, "exp": float64(now) + 300.5}), "", "alice"},
		{"customer token with a number as jti", "alice@123456789", f.customerToken(t, jwt.MapClaims{"userID": "alice", "appID": 123456789, "keyID": "0102030405060709", "jti": 42}), "", "alice"},
		{"required expiry", "alice@3", f.customerToken(t, jwt.MapClaims{"userID": "alice", "appID": 3, "keyID": "k", "exp": now + 300}), "", "alice"},
	} {
		grant, refusal := f.SignIn(tc.clientID, tc.code, tc.origin)
		if refusal != nil {
			t.Errorf("%s: refused; log: %s", tc.name, f.log)
			continue
		}
		id, err := f.tokens.Verify(grant.Token, tc.origin)
		if err != nil || id.UserID != tc.user || id.AppID != tc.clientID[strings.LastIndex(tc.clientID, "@")+1:] {
			t.Errorf("%s: token of %+v, %v", tc.name, id, err)
		}
	}
	if n := testutil.ToFloat64(f.signIns.WithLabelValues("customer_token", "granted", "")); n != 6 {
		t.Errorf("counted %v grants by customer token, want 6", n)
	}
	if n := testutil.ToFloat64(f.signIns.WithLabelValues("app_secret", "granted", "")); n != 9 {
		t.Errorf("counted %v grants by app secret, want 9", n)
	}
}

func TestSignInRefuses(t *testing.T) {
	f := newFixture(t)
	now := time.Now().Unix()
	good := `{"userID":"alice","appID":123456789}`
	customer := func(change func(jwt.MapClaims)) string {
		claims := jwt.MapClaims{"userID": "alice", "appID": 123456789, "keyID": "0102030405060709", "exp": now + 300}
		change(claims)
		return f.customerToken(t, claims)
	}
	otherKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(m jwt.SigningMethod, key any, claims jwt.MapClaims) string {
		token, err := jwt.NewWithClaims(m, claims).SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	full := jwt.MapClaims{"userID": "alice", "appID": 123456789, "keyID": "0102030405060709"}
	public, err := x509.MarshalPKIXPublicKey(&f.key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	publicAsSecret := sign(jwt.SigningMethodHS256, public, full)
	withHeader := func(header string) string {
		parts := strings.Split(clientToken("synthetic-app-secret-01", good), ".")
		return base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + parts[1] + "." + parts[2]
	}

	for _, tc := range []struct {
		name, clientID, code, reason string
	}{
		{"nothing", "", "", "client_id"},
		{"no app", "alice", clientToken("synthetic-app-secret-01", good), "client_id"},
		{"no user", "@123456789", clientToken("synthetic-app-secret-01", `{"userID":"","appID":123456789}`), "client_id"},
		{"long user", strings.Repeat("u", 257) + "@123456789", clientToken("synthetic-app-secret-01", good), "client_id"},
		{"user is no UTF-8", "al\xffice@123456789", clientToken("synthetic-app-secret-01", good), "client_id"},
		{"no code", "alice@123456789", "", "malformed_code"},
		{"no JWT", "alice@123456789", "secret", "malformed_code"},
		{"two segments", "alice@123456789", "e30.e30", "malformed_code"},
		{"many dots", "alice@123456789", strings.Repeat(".", 1<<20), "malformed_code"},
		{"long code", "alice@123456789", clientToken("synthetic-app-secret-01", `{"userID":"alice","appID":123456789,"x":"`+strings.Repeat("x", 8<<10)+`"}`), "malformed_code"},
		{"header is no JSON", "alice@123456789", withHeader("alg"), "malformed_code"},
		{"header without alg", "alice@123456789", withHeader(`{}`), "malformed_code"},
		{"alg is a number", "alice@123456789", withHeader(`{"alg":5}`), "malformed_code"},
		{"payload is no JSON", "alice@123456789", clientToken("synthetic-app-secret-01", "hello"), "malformed_code"},
		{"alg none", "alice@123456789", sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, full), "method"},
		{"alg None", "alice@123456789", withHeader(`{"alg":"None"}`), "method"},
		{"HS512", "alice@123456789", sign(jwt.SigningMethodHS512, []byte("synthetic-app-secret-01"), full), "method"},
		{"ES384", "alice@123456789", sign(jwt.SigningMethodES384, p384, full), "method"},
		{"crit", "alice@123456789", withHeader(`{"alg":"HS256","crit":["x"]}`), "method"},
		{"header says HS256 of another's", "alice@123456789", withHeader(`{"alg":"HS256","typ":"JWT"}`), "signature"},
		{"unknown app", "alice@999", clientToken("synthetic-app-secret-01", `{"userID":"alice","appID":999}`), "unknown_app"},
		{"unknown app, customer token", "alice@999", f.customerToken(t, jwt.MapClaims{"userID": "alice", "appID": 999, "keyID": "k"}), "unknown_app"},
		{"app as text with zero", "alice@0123456789", clientToken("synthetic-app-secret-01", good), "unknown_app"},
		{"wrong secret", "alice@123456789", clientToken("synthetic-app-secret-02", good), "signature"},
		{"empty secret", "alice@123456789", clientToken("", good), "signature"},
		{"other app's secret", "alice@123456789", clientToken("second", good), "signature"},
		{"secret of another key id", "alice@123456789", clientToken("another-synthetic-secret", `{"userID":"alice","appID":123456789,"keyId":"ffff"}`), "signature"},
		{"secret with its key id in front", "alice@123456789", clientToken("AQIDBAUGBwk=:another-synthetic-secret", good), "signature"},
		{"public key as secret", "alice@123456789", publicAsSecret, "signature"},
		{"other user", "mallory@123456789", clientToken("synthetic-app-secret-01", good), "claims"},
		{"other app", "alice@123456789", clientToken("synthetic-app-secret-01", `{"userID":"alice","appID":2}`), "claims"},
		{"no app claim", "alice@123456789", clientToken("synthetic-app-secret-01", `{"userID":"alice"}`), "claims"},
		{"no user claim", "alice@123456789", clientToken("synthetic-app-secret-01", `{"appID":123456789}`), "claims"},
		{"claim in another case", "alice@123456789", clientToken("synthetic-app-secret-01", `{"USERID":"alice","appID":123456789}`), "claims"},
		{"app as a fraction", "alice@123456789", clientToken("synthetic-app-secret-01", `{"userID":"alice","appID":123456789.5}`), "claims"},
		{"app in scientific form", "alice@123456789", clientToken("synthetic-app-secret-01", `{"userID":"alice","appID":1.23456789e8}`), "claims"},
		{"user is a number", "4358@123456789", clientToken("synthetic-app-secret-01", `{"userID":4358,"appID":123456789}`), "malformed_code"},
		{"secret token that has expired", "alice@123456789", clientToken("synthetic-app-secret-01", `{"userID":"alice","appID":123456789,"exp":1000}`), "expired"},
		{"no origin", "a@2", clientToken("second", `{"userID":"a","appID":2}`), "origin"},
		{"customer's other key", "alice@123456789", sign(jwt.SigningMethodES256, otherKey, full), "signature"},
		{"unknown key id", "alice@123456789", customer(func(c jwt.MapClaims) { c["keyID"] = "k" }), "signature"},
		{"no key id", "alice@123456789", customer(func(c jwt.MapClaims) { delete(c, "keyID") }), "signature"},
		{"key of another app", "alice@2", customer(func(c jwt.MapClaims) { c["appID"] = 2 }), "signature"},
		{"other customer user", "bob@123456789", customer(func(jwt.MapClaims) {}), "claims"},
		{"expired and of another user", "bob@123456789", customer(func(c jwt.MapClaims) { c["exp"] = now - 61 }), "claims"},
		{"not yet valid", "alice@123456789", customer(func(c jwt.MapClaims) { c["nbf"] = now + 90 }), "not_yet_valid"},
		{"sample of the spec: nbf is exp", "alice@123456789", customer(func(c jwt.MapClaims) { c["nbf"], c["exp"] = now+120, now+120 }), "claims"},
		{"exp is a word", "alice@123456789", customer(func(c jwt.MapClaims) { c["exp"] = "soon" }), "malformed_code"},
		{"expiry required", "alice@3", f.customerToken(t, jwt.MapClaims{"userID": "alice", "appID": 3, "keyID": "k"}), "claims"},
	} {
		before := f.refused(t, tc.reason)
		grant, refusal := f.SignIn(tc.clientID, tc.code, "")
		if grant != nil || refusal == nil || refusal.TokenExpired {
			t.Errorf("%s: grant %v, refusal %+v", tc.name, grant, refusal)
		}
		if f.refused(t, tc.reason) != before+1 {
			t.Errorf("%s: not counted as %s; log: %s", tc.name, tc.reason, lastLine(f.log.String()))
		}
	}

	grant, refusal := f.SignIn("alice@123456789", customer(func(c jwt.MapClaims) { c["exp"], c["jti"] = now-90, "the-jti" }), "")
	if grant != nil || refusal == nil || !refusal.TokenExpired {
		t.Errorf("an expired customer token: %v, %+v", grant, refusal)
	}
	if line := lastLine(f.log.String()); !strings.Contains(line, "reason=expired") || !strings.Contains(line, "jti=the-jti") {
		t.Errorf("the log says %s", line)
	}
	for _, secret := range []string{"synthetic-app-secret-01", "another-synthetic-secret", "0123456789abcdef"} {
		if strings.Contains(f.log.String(), secret) {
			t.Errorf("the log has the secret %s", secret)
		}
	}
}

// refused is the number of refusals for a reason, whatever the method.
func (f *fixture) refused(t *testing.T, reason string) float64 {
	t.Helper()
	return f.counted(t, func(labels map[string]string) bool {
		return labels["outcome"] == "refused" && labels["reason"] == reason
	})
}

// counted adds up the sign-ins with the labels that count.
func (f *fixture) counted(t *testing.T, counts func(labels map[string]string) bool) float64 {
	t.Helper()
	families, err := f.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	total := 0.0
	for _, family := range families {
		for _, m := range family.GetMetric() {
			labels := make(map[string]string)
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if counts(labels) {
				total += m.GetCounter().GetValue()
			}
		}
	}
	return total
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

func FuzzSignIn(f *testing.F) {
	fx := newFixture(f)
	f.Add("alice@123456789", clientToken("synthetic-app-secret-02", `{"userID":"alice","appID":123456789}`))
	f.Add("@", "e30.e30.e30")
	f.Add("a@3", "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.eyJ1c2VySUQiOiJhbGljZSIsImFwcElEIjoxLCJleHAiOiIxZTMwMCJ9.AAAA")
	f.Fuzz(func(t *testing.T, clientID, code string) {
		fx.log.Reset()
		if grant, refusal := fx.SignIn(clientID, code, ""); grant != nil || refusal == nil {
			t.Fatalf("signed in as %+v without knowing a secret", grant)
		}
	})
}

func FuzzVerify(f *testing.F) {
	registry := knowing(&apps.App{ID: "1"})
	tokens := newTokens(f, registry)
	other, err := NewTokens(registry, []byte("fedcba9876543210"))
	if err != nil {
		f.Fatal(err)
	}
	token, _, err := other.Issue(&apps.App{ID: "1"}, "alice", "")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token)
	f.Fuzz(func(t *testing.T, token string) {
		if id, err := tokens.Verify(token, ""); err == nil {
			t.Fatalf("verified as %+v", id)
		}
	})
}
