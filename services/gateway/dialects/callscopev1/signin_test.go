package callscopev1

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/callscope/callscope/internal/apps"
	"github.com/callscope/callscope/services/gateway/auth"
)

func TestSignInByProof(t *testing.T) {
	b := newBench(t, nil)
	c := b.dial(nil)
	c.send(object{"type": "hello", "appID": testApp, "userID": testUser, "clientVersion": "1.2.3", "lostMessages": 3})
	nonce := c.want("nonce")
	if raw, err := base64.RawURLEncoding.DecodeString(nonce["nonce"].(string)); err != nil || len(raw) != 32 || nonce["expiresInMs"] != 30000.0 {
		t.Fatalf("got %v", nonce)
	}
	c.send(object{"type": "proof", "proof": prove(testSecret, nonce["nonce"].(string), testApp, testUser, "")})
	got := c.want("signedIn")
	want := object{
		"type": "signedIn", "csError": "success", "csErrMsg": "Signed in.", "appID": testApp, "userID": testUser,
		"deviceID": got["session"], "session": got["session"], "resumed": false, "token": got["token"],
		"tokenExpiresInMs": got["tokenExpiresInMs"], "window": object{"messages": 8.0, "bytes": float64(256 << 10)},
		"maxFrameBytes": float64(64 << 10), "maxBatchMessages": 8.0, "submissionIntervalMs": 15000.0, "collectSDP": true,
		"pingIntervalMs": 10000.0, "serverTime": got["serverTime"],
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if ms := got["tokenExpiresInMs"].(float64); ms < 7_190_000 || ms > 7_200_000 {
		t.Errorf("the token lives %v ms, want 2 hours", ms)
	}
	identity, err := b.tokens.Verify(got["token"].(string), "")
	if err != nil || identity.AppID != testApp || identity.UserID != testUser {
		t.Errorf("the token says %+v, %v", identity, err)
	}
	if n := b.counter("callscope_gateway_client_lost_messages_total"); n != 3 {
		t.Errorf("counted %v lost messages, want 3", n)
	}

	// The same app, its other live secret, its id as a number, on a page.
	c = b.dial(http.Header{"Origin": {"https://anywhere.example"}})
	c.sendText(`{"type":"hello","appID":123456789,"userID":"u"}`)
	n := c.want("nonce")["nonce"].(string)
	c.send(object{"type": "proof", "proof": prove("an-older-secret", n, testApp, "u", "https://anywhere.example")})
	c.want("signedIn")
	if n := b.counter("callscope_gateway_protocol_statuses_total", "success"); n != 2 {
		t.Errorf("counted %v successes, want 2", n)
	}
}

// The vector stands in docs/reference/protocol.md; it was computed with Python's hmac module.
func TestProofVector(t *testing.T) {
	nonce, err := hex.DecodeString("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")
	must(t, err)
	got := base64.RawURLEncoding.EncodeToString(auth.Proof([]byte("correct horse battery staple"), nonce, "123456789", "alice@example.com/ü", "https://app.example.com"))
	if want := proofVector; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func (b *bench) customerToken(appID, userID string, exp time.Time) string {
	b.t.Helper()
	token, err := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{
		"appID": appID, "userID": userID, "keyID": "01", "exp": exp.Unix(), "jti": "j1",
	}).SignedString(b.key)
	must(b.t, err)
	return token
}

func TestSignInByTokens(t *testing.T) {
	b := newBench(t, nil)
	c := b.dial(nil)
	c.send(object{"type": "hello", "appID": testApp, "userID": testUser, "deviceID": "phone", "customerToken": b.customerToken(testApp, testUser, time.Now().Add(time.Minute))})
	first := c.want("signedIn")
	if first["deviceID"] != "phone" || first["resumed"] != false {
		t.Errorf("got %v", first)
	}

	// Our own token, and the session of before.
	c = b.dial(nil)
	c.send(object{"type": "hello", "appID": testApp, "userID": testUser, "token": first["token"], "session": first["session"]})
	second := c.want("signedIn")
	if second["session"] != first["session"] || second["resumed"] != true || second["token"] != first["token"] {
		t.Errorf("got %v, want the session and token of %v", second, first)
	}

	// Renewal on the open connection: the session goes on.
	c.send(object{"type": "hello", "appID": testApp, "userID": testUser})
	n := c.want("nonce")["nonce"].(string)
	c.send(batch(msg(1, event("userJoined", nil)))) // may come in between
	c.send(object{"type": "proof", "proof": prove(testSecret, n, testApp, testUser, "")})
	var third object
	for range 2 {
		if o := c.receive(); o["type"] == "signedIn" {
			third = o
		} else if o["type"] != "ack" {
			t.Fatalf("got %v", o)
		}
	}
	if third["session"] != first["session"] || third["token"] == first["token"] || third["resumed"] != true {
		t.Errorf("got %v, want a new token in the session of %v", third, first)
	}
	// But not for somebody else.
	c.send(object{"type": "hello", "appID": testApp, "userID": "bob"})
	if s := c.want("status"); s["csError"] != "csProtoError" || s["reason"] != "identity" {
		t.Errorf("got %v", s)
	}
}

func TestRefusedSignIns(t *testing.T) {
	b := newBench(t, func(c *Config) { c.SignInTimeout = 20 * time.Second })
	good := b.customerToken(testApp, testUser, time.Now().Add(time.Minute))
	token := func() string {
		c := b.dial(nil)
		return c.signIn(nil)["token"].(string)
	}()
	hs256, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"appID": testApp, "userID": testUser}).SignedString([]byte(testSecret))
	must(t, err)
	byProof := func(appID, userID, origin, secret, provenApp, provenUser, provenOrigin string) func(c *client) {
		return func(c *client) {
			c.send(object{"type": "hello", "appID": appID, "userID": userID})
			n := c.want("nonce")["nonce"].(string)
			c.send(object{"type": "proof", "proof": prove(secret, n, provenApp, provenUser, provenOrigin)})
		}
	}
	hello := func(o object) func(c *client) {
		return func(c *client) {
			h := object{"type": "hello", "appID": testApp, "userID": testUser}
			for k, v := range o {
				h[k] = v
			}
			c.send(h)
		}
	}
	refused := object{"type": "status", "csError": "authError", "csErrMsg": "The sign-in was refused.", "reason": "refused"}
	cases := []struct {
		name   string
		origin string
		do     func(c *client)
		want   object
	}{
		{"wrong secret", "", byProof(testApp, testUser, "", "wrong", testApp, testUser, ""), refused},
		{"empty secret", "", byProof(testApp, testUser, "", "", testApp, testUser, ""), refused},
		{"unknown app", "", byProof("999", testUser, "", testSecret, "999", testUser, ""), refused},
		{"empty app", "", byProof("", testUser, "", testSecret, "", testUser, ""), refused},
		{"proof for another app", "", byProof(testApp, testUser, "", testSecret, "2", testUser, ""), refused},
		{"proof for another user", "", byProof(testApp, testUser, "", testSecret, testApp, "bob", ""), refused},
		{"proof without the origin", "https://app.example.com", byProof("2", testUser, "", testSecret, "2", testUser, ""), refused},
		{"proof with an origin that was not sent", "", byProof(testApp, testUser, "", testSecret, testApp, testUser, "https://app.example.com"), refused},
		{"origin not on the list", "https://evil.example.com", byProof("2", testUser, "", testSecret, "2", testUser, "https://evil.example.com"), refused},
		{"no origin where there is a list", "", byProof("2", testUser, "", testSecret, "2", testUser, ""), refused},
		{"null origin where there is a list", "null", byProof("2", testUser, "", testSecret, "2", testUser, "null"), refused},
		{"proof without a nonce", "", func(c *client) { c.send(object{"type": "proof", "proof": "AAAA"}) }, refused},
		{"proof that is no base64url", "", func(c *client) {
			hello(nil)(c)
			c.want("nonce")
			c.send(object{"type": "proof", "proof": "+/=="})
		}, refused},
		{"proof with padding", "", func(c *client) {
			hello(nil)(c)
			n := c.want("nonce")["nonce"].(string)
			c.send(object{"type": "proof", "proof": prove(testSecret, n, testApp, testUser, "") + "="})
		}, refused},
		{"empty proof", "", func(c *client) { hello(nil)(c); c.want("nonce"); c.send(object{"type": "proof", "proof": ""}) }, refused},
		{"proof for the nonce before", "", func(c *client) {
			hello(nil)(c)
			n := c.want("nonce")["nonce"].(string)
			hello(nil)(c)
			c.want("nonce")
			c.send(object{"type": "proof", "proof": prove(testSecret, n, testApp, testUser, "")})
		}, refused},
		{"customer token of another user", "", hello(object{"userID": "bob", "customerToken": good}), refused},
		{"customer token of another app", "", hello(object{"appID": "2", "customerToken": good}), refused},
		{"customer token, altered", "", hello(object{"customerToken": good[:len(good)-4] + "AAAA"}), refused},
		{"app-secret token as customer token", "", hello(object{"customerToken": hs256}), refused},
		{"our token as customer token", "", hello(object{"customerToken": token}), refused},
		{"no token as customer token", "", hello(object{"customerToken": "x"}), refused},
		{"expired customer token", "", hello(object{"customerToken": b.customerToken(testApp, testUser, time.Now().Add(-time.Hour))}),
			object{"type": "status", "csError": "tokenGenerationError", "csErrMsg": "The customer token has expired: let the application make a new one.", "reason": "token_expired"}},
		{"expired customer token of another user", "", hello(object{"userID": "bob", "customerToken": b.customerToken(testApp, testUser, time.Now().Add(-time.Hour))}), refused},
		{"no customer token to be had", "", hello(object{"tokenError": "our server said 500"}),
			object{"type": "status", "csError": "tokenGenerationError", "csErrMsg": "The application could not make a customer token.", "reason": "application"}},
		{"our token for another user", "", hello(object{"userID": "bob", "token": token}), refused},
		{"our token for another app", "", hello(object{"appID": "2", "token": token}), refused},
		{"our token, altered", "", hello(object{"token": token[:len(token)-4] + "AAAA"}), refused},
		{"customer token as our token", "", hello(object{"token": good}), refused},
		{"messages before the sign-in", "", func(c *client) { c.send(batch(msg(1, event("userJoined", nil)))) },
			object{"type": "status", "csError": "authError", "csErrMsg": "Sign in before sending messages.", "reason": "not_signed_in", "frame": 1.0}},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			header := http.Header{}
			if test.origin != "" {
				header.Set("Origin", test.origin)
			}
			c := b.dial(header)
			c.t = t
			test.do(c)
			if diff := cmp.Diff(test.want, c.want("status")); diff != "" {
				t.Error(diff)
			}
			if o := c.receive(); o != nil || c.code != closeRefused {
				t.Errorf("then got %v, close code %d; want 4001", o, c.code)
			}
		})
	}
	if n := len(b.broker.all()); n != 0 {
		t.Errorf("%d messages of refused clients were stored", n)
	}
}

func TestOriginOfTheList(t *testing.T) {
	b := newBench(t, nil)
	c := b.dial(http.Header{"Origin": {"https://app.example.com"}})
	c.send(object{"type": "hello", "appID": "2", "userID": "u"})
	n := c.want("nonce")["nonce"].(string)
	c.send(object{"type": "proof", "proof": prove(testSecret, n, "2", "u", "https://app.example.com")})
	token := c.want("signedIn")["token"]

	// The token belongs to the page that it was made for.
	c = b.dial(http.Header{"Origin": {"https://evil.example.com"}})
	c.send(object{"type": "hello", "appID": "2", "userID": "u", "token": token})
	if s := c.want("status"); s["csError"] != "authError" {
		t.Errorf("got %v", s)
	}
	c.wantClose(closeRefused)
}

func TestNonceExpires(t *testing.T) {
	b := newBench(t, func(c *Config) { c.NonceLifetime = time.Nanosecond })
	c := b.dial(nil)
	c.send(object{"type": "hello", "appID": testApp, "userID": testUser})
	n := c.want("nonce")["nonce"].(string)
	c.send(object{"type": "proof", "proof": prove(testSecret, n, testApp, testUser, "")})
	if s := c.want("status"); s["csError"] != "authError" || s["reason"] != "refused" {
		t.Errorf("got %v", s)
	}
	c.wantClose(closeRefused)
}

func TestSignInTimeout(t *testing.T) {
	b := newBench(t, func(c *Config) { c.SignInTimeout = 20 * time.Millisecond })
	c := b.dial(nil)
	if s := c.want("status"); s["csError"] != "authError" || s["reason"] != "timeout" {
		t.Errorf("got %v", s)
	}
	c.wantClose(closeSignInTimeout)
}

// A revoked app's clients are shown out, at the latest with the next ping.
func TestRevocation(t *testing.T) {
	b := newBench(t, func(c *Config) { c.PingInterval = 10 * time.Millisecond })
	c := b.dial(nil)
	c.signIn(nil)
	app, _ := b.registry.Lookup(testApp)
	revoked := *app
	revoked.TokenEpoch++
	b.registry.set(&revoked)
	if s := c.want("status"); s["csError"] != "authError" || s["reason"] != "token_ended" {
		t.Errorf("got %v", s)
	}
	c.wantClose(closeTokenEnded)
}

func TestTokenExpiring(t *testing.T) {
	b := newBench(t, func(c *Config) { c.PingInterval = 10 * time.Millisecond })
	c := b.dial(nil)
	app, _ := b.registry.Lookup(testApp)
	_, identity, err := b.tokens.Issue(app, testUser, "")
	must(t, err)
	c.signIn(nil)
	identity.ExpiresAt = time.Now().Add(auth.Lifetime / 20)
	b.h.mu.Lock()
	for connection := range b.h.connections {
		connection.share(identity)
	}
	b.h.mu.Unlock()
	if ms := c.want("tokenExpiring")["expiresInMs"].(float64); ms <= 0 || ms > float64((auth.Lifetime/20).Milliseconds()) {
		t.Errorf("got %v ms", ms)
	}
}

func TestHTTPRefusals(t *testing.T) {
	b := newBench(t, nil)
	address := b.http.URL + Path
	upgrade := http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"AQIDBAUGBwgJCgsMDQ4PEA=="}}
	with := func(more http.Header) http.Header {
		h := upgrade.Clone()
		for k, v := range more {
			h[k] = v
		}
		return h
	}
	check := func(name string, header http.Header, status int, reason string) {
		t.Helper()
		request, err := http.NewRequest(http.MethodGet, address, nil)
		must(t, err)
		request.Header = header
		response, err := http.DefaultTransport.RoundTrip(request)
		must(t, err)
		text, err := io.ReadAll(response.Body)
		must(t, err)
		must(t, response.Body.Close())
		var got statusFrame
		if err := json.Unmarshal(text, &got); err != nil || response.StatusCode != status || got.CsError != "httpError" || got.Reason != reason || got.Type != "status" {
			t.Errorf("%s: got %d %s, want %d with reason %s", name, response.StatusCode, text, status, reason)
		}
	}
	check("no upgrade", http.Header{}, http.StatusUpgradeRequired, "upgrade")
	check("no subprotocol", upgrade, http.StatusBadRequest, "subprotocol")
	check("another subprotocol", with(http.Header{"Sec-Websocket-Protocol": {"echo-protocol"}}), http.StatusBadRequest, "subprotocol")
	check("another WebSocket version", with(http.Header{"Sec-Websocket-Protocol": {Subprotocol}, "Sec-Websocket-Version": {"8"}}), http.StatusBadRequest, "upgrade")

	for b.in.Reserve(1 << 20) {
	}
	check("crowded", with(http.Header{"Sec-Websocket-Protocol": {Subprotocol}}), http.StatusServiceUnavailable, "crowded")
	b.in.Free(64 << 20)
	b.h.Drain()
	check("draining", with(http.Header{"Sec-Websocket-Protocol": {Subprotocol}}), http.StatusServiceUnavailable, "draining")
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	if n := b.counter("callscope_gateway_protocol_statuses_total", "httpError"); n != 6 {
		t.Errorf("counted %v, want 6", n)
	}
}

func TestMalformedHellos(t *testing.T) {
	b := newBench(t, nil)
	c := b.dial(nil)
	long := strings.Repeat("x", 257)
	frame := 0
	for name, h := range map[string]object{
		"user_id":        {"userID": ""},
		"credentials":    {"token": "x", "customerToken": "y"},
		"session":        {"session": "1"},
		"client_version": {"clientVersion": strings.Repeat("v", 65)},
		"device_id":      {"deviceID": long},
		"app_id":         {"appID": long},
		"member_type":    {"deviceID": 5},
		"unknown_member": {"secret": "x"},
	} {
		frame++
		o := object{"type": "hello", "appID": testApp, "userID": testUser}
		for k, v := range h {
			o[k] = v
		}
		c.send(o)
		want := object{"type": "status", "csError": "csProtoError", "reason": name, "frame": float64(frame)}
		ignore := cmpopts.IgnoreMapEntries(func(k string, _ any) bool { return k == "csErrMsg" })
		if diff := cmp.Diff(want, c.want("status"), ignore); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	c.signIn(nil) // the connection is as good as before
}

func TestRemovedApp(t *testing.T) {
	b := newBench(t, nil)
	c := b.dial(nil)
	token := c.signIn(nil)["token"]
	b.registry.mu.Lock()
	b.registry.apps = map[string]*apps.App{}
	b.registry.mu.Unlock()
	c = b.dial(nil)
	c.send(object{"type": "hello", "appID": testApp, "userID": testUser, "token": token})
	c.want("status")
	c.wantClose(closeRefused)
}

const proofVector = "O2iFtlqJYMJVo3h1JEX4yifYv_OhnMzMNsFVhtqHo60"
