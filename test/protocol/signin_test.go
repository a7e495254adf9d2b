package protocol

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/gorilla/websocket"
)

func diff(want, got any) string {
	if d := cmp.Diff(want, got); d != "" {
		return "(-want +got):\n" + d
	}
	return ""
}

func readPage(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "reference", "protocol.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}

// TestWorkedProof computes the worked example of section 2.1 from its inputs.
func TestWorkedProof(t *testing.T) {
	_, example, found := strings.Cut(readPage(t), "Worked example")
	if !found {
		t.Fatal("the page has no worked example")
	}
	value := func(name string) string {
		match := regexp.MustCompile(`(?m)^    ` + name + ` {2,}(.*?)(?: {4,}\(.*)?$`).FindStringSubmatch(example)
		if match == nil {
			t.Fatalf("the worked example has no %q", name)
		}
		return match[1]
	}
	_, rest, _ := strings.Cut(example, "HMAC input")
	hexInput, _, _ := strings.Cut(rest, "HMAC  ")
	wantInput := strings.Join(strings.Fields(hexInput), "")

	nonce, err := hex.DecodeString(value("nonce"))
	if err != nil {
		t.Fatal(err)
	}
	input := proofInput(nonce, value("appID"), value("userID"), value("origin"))
	if d := diff(wantInput, hex.EncodeToString(input)); d != "" {
		t.Errorf("HMAC input %s", d)
	}
	proof, err := proofOf(value("secret"), base64.RawURLEncoding.EncodeToString(nonce), value("appID"), value("userID"), value("origin"))
	if err != nil {
		t.Fatal(err)
	}
	if d := diff(value("proof"), proof); d != "" {
		t.Errorf("proof %s", d)
	}
	mac, err := base64.RawURLEncoding.DecodeString(proof)
	if err != nil {
		t.Fatal(err)
	}
	if d := diff(value("HMAC"), hex.EncodeToString(mac)); d != "" {
		t.Errorf("HMAC %s", d)
	}
}

func mustDial(t *testing.T, d *deployment, origin string) *connection {
	t.Helper()
	c, response, err := dial(d.gateway, origin)
	if err != nil {
		t.Fatalf("connecting: %v, %v", err, response)
	}
	t.Cleanup(func() { _ = c.ws.Close() })
	return c
}

// mustConnect signs a user in for a new session.
func mustConnect(t *testing.T, d *deployment, who credentials, hello object) *client {
	t.Helper()
	c := &client{gateway: d.gateway, who: who, hello: hello}
	if err := c.connect(); err != nil {
		t.Fatalf("signing in: %v", err)
	}
	t.Cleanup(func() { _ = c.ws.Close() })
	return c
}

func customerClaims(userID string) jwt.MapClaims {
	return jwt.MapClaims{"appID": openApp, "userID": userID, "keyID": customerKeyID}
}

func signIns(t *testing.T, d *deployment) {
	for name, who := range map[string]credentials{
		"challenge":                 {appID: openApp, userID: "alice@example.com/ü", secret: openSecret},
		"challenge with an origin":  {appID: openApp, userID: "browser", secret: openSecret, origin: "https://anywhere.example"},
		"challenge with a key id":   {appID: openApp, userID: "keyed", secret: keyedSecret},
		"challenge from the origin": {appID: pageApp, userID: "page", secret: pageSecret, origin: pageOrigin},
		"customer token": {appID: openApp, userID: "4358",
			customerToken: d.customerToken(t, d.key, customerClaims("4358"))},
		"customer token within its time": {appID: openApp, userID: "4359",
			customerToken: d.customerToken(t, d.key, jwt.MapClaims{"appID": openApp, "userID": "4359", "keyID": customerKeyID,
				"iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(), "jti": uuid.NewString()})},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := mustConnect(t, d, who, nil)
			got := c.signedIn
			if got.CSError != "success" || got.AppID != who.appID || got.UserID != who.userID || got.Resumed {
				t.Errorf("signedIn is not about this user: %s", got.text)
			}
			if _, err := uuid.Parse(got.Session); err != nil || got.DeviceID != got.Session {
				t.Errorf("session is no UUID, or no deviceID: %s", got.text)
			}
			checkMembers(t, got)

			// Our own token signs in again, in the same session.
			if err := c.cut(false); err != nil {
				t.Fatal(err)
			}
			first := c.session
			c.who.secret, c.who.customerToken = "not needed any more", ""
			if err := c.connect(); err != nil {
				t.Fatalf("resuming with the token: %v", err)
			}
			if !c.signedIn.Resumed || c.session != first {
				t.Errorf("session %s was not resumed: %s", first, c.signedIn.text)
			}
			if err := c.post("sign-ins", object{"eventType": "userJoined", "timestamp": now()}); err != nil {
				t.Fatal(err)
			}
			if err := c.awaitAck(1); err != nil {
				t.Fatal(err)
			}
		})
	}
	t.Run("appID as a number, and a device", func(t *testing.T) {
		t.Parallel()
		c := mustDial(t, d, "")
		f, err := c.signIn(credentials{appID: openApp, userID: "numeric", secret: openSecret},
			object{"appID": json.Number(openApp), "deviceID": "phone", "clientVersion": "example 1.0", "lostMessages": 3})
		if err != nil || f.Type != "signedIn" || f.AppID != openApp || f.DeviceID != "phone" {
			t.Errorf("got %s, %v", f.text, err)
		}
	})
	t.Run("renewal on the open connection", func(t *testing.T) {
		t.Parallel()
		who := credentials{appID: openApp, userID: "renewing", secret: openSecret}
		c := mustConnect(t, d, who, nil)
		if err := c.post("sign-ins", object{"eventType": "userJoined", "timestamp": now()}); err != nil {
			t.Fatal(err)
		}
		f, err := c.connection.signIn(who, nil)
		if err != nil || f.Type != "signedIn" || f.Session != c.session || !f.Resumed || f.Token == "" {
			t.Fatalf("renewing: %s, %v", f.text, err)
		}
		if err := c.post("sign-ins", object{"eventType": "userLeft", "timestamp": now()}); err != nil {
			t.Fatal(err)
		}
		if err := c.awaitAck(2); err != nil {
			t.Error(err)
		}
	})
}

// checkMembers holds signedIn against the table of section 2.4.
func checkMembers(t *testing.T, f frame) {
	t.Helper()
	_, section, _ := strings.Cut(readPage(t), "### 2.4 signedIn")
	section, _, _ = strings.Cut(section, "### ")
	want := []string{"type"}
	for _, line := range regexp.MustCompile("(?m)^\\| `.*$").FindAllString(section, -1) {
		for _, name := range regexp.MustCompile("`(\\w+)`").FindAllStringSubmatch(strings.Split(line, "|")[1], -1) {
			want = append(want, name[1])
		}
	}
	var members object
	if err := json.Unmarshal([]byte(f.text), &members); err != nil {
		t.Fatal(err)
	}
	var got []string
	for member := range members {
		got = append(got, member)
	}
	slices.Sort(want)
	slices.Sort(got)
	if d := diff(want, got); d != "" {
		t.Errorf("members of signedIn %s", d)
	}
}

func refusals(t *testing.T, d *deployment) {
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	token := mustConnect(t, d, credentials{appID: openApp, userID: "token owner", secret: openSecret}, nil).token
	pageToken := mustConnect(t, d, credentials{appID: pageApp, userID: "token owner", secret: pageSecret, origin: pageOrigin}, nil).token
	changed := []byte(token)
	changed[len(changed)/2] ^= 1

	type answer struct {
		CSError, Reason string
		Code            int
	}
	refused := answer{"authError", "refused", 4001}
	for name, test := range map[string]struct {
		who   credentials
		hello object
		want  answer
	}{
		"wrong secret":                      {who: credentials{appID: openApp, userID: "r", secret: "wrong"}, want: refused},
		"the whole of a keyed secret":       {who: credentials{appID: openApp, userID: "r", secret: ":" + strings.ReplaceAll(keyedSecret, ":", "-")}, want: refused},
		"unknown app":                       {who: credentials{appID: "555", userID: "r", secret: openSecret}, want: refused},
		"secret of another app":             {who: credentials{appID: openApp, userID: "r", secret: pageSecret}, want: refused},
		"wrong origin":                      {who: credentials{appID: pageApp, userID: "r", secret: pageSecret, origin: "https://evil.example"}, want: refused},
		"no origin where some are required": {who: credentials{appID: pageApp, userID: "r", secret: pageSecret}, want: refused},
		"token of another user":             {who: credentials{appID: openApp, userID: "r"}, hello: object{"token": token}, want: refused},
		"token of another app":              {who: credentials{appID: pageApp, userID: "token owner", origin: pageOrigin}, hello: object{"token": token}, want: refused},
		"token from another origin":         {who: credentials{appID: pageApp, userID: "token owner", origin: "https://evil.example"}, hello: object{"token": pageToken}, want: refused},
		"changed token":                     {who: credentials{appID: openApp, userID: "token owner"}, hello: object{"token": string(changed)}, want: refused},
		"customer token of another key": {who: credentials{appID: openApp, userID: "r",
			customerToken: d.customerToken(t, stranger, customerClaims("r"))}, want: refused},
		"customer token of another user": {who: credentials{appID: openApp, userID: "r",
			customerToken: d.customerToken(t, d.key, customerClaims("s"))}, want: refused},
		"customer token without keyID": {who: credentials{appID: openApp, userID: "r",
			customerToken: d.customerToken(t, d.key, jwt.MapClaims{"appID": openApp, "userID": "r"})}, want: refused},
		"customer token not yet good": {who: credentials{appID: openApp, userID: "r",
			customerToken: d.customerToken(t, d.key, jwt.MapClaims{"appID": openApp, "userID": "r", "keyID": customerKeyID,
				"nbf": time.Now().Add(time.Hour).Unix()})}, want: refused},
		"expired customer token": {who: credentials{appID: openApp, userID: "r",
			customerToken: d.customerToken(t, d.key, jwt.MapClaims{"appID": openApp, "userID": "r", "keyID": customerKeyID,
				"exp": time.Now().Add(-5 * time.Minute).Unix()})},
			want: answer{"tokenGenerationError", "token_expired", 4001}},
		"no customer token": {who: credentials{appID: openApp, userID: "r"}, hello: object{"tokenError": "our server is down"},
			want: answer{"tokenGenerationError", "application", 4001}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// Each user may sign in a few times in a second only.
			if test.who.userID == "r" && test.who.customerToken == "" {
				test.who.userID = "refused: " + name
			}
			c := mustDial(t, d, test.who.origin)
			f, err := c.signIn(test.who, test.hello)
			if err != nil {
				t.Fatal(err)
			}
			code, err := c.closeCode()
			if err != nil {
				t.Error(err)
			}
			if got := (answer{f.CSError, f.Reason, code}); got != test.want || f.Type != "status" || f.CSErrMsg == "" {
				t.Errorf("got %+v, want %+v: %s", got, test.want, f.text)
			}
		})
	}
	t.Run("a proof of no nonce ends a signed-in connection", func(t *testing.T) {
		t.Parallel()
		c := mustConnect(t, d, credentials{appID: openApp, userID: "proves twice", secret: openSecret}, nil)
		if err := c.send(object{"type": "proof", "proof": "O2iFtlqJYMJVo3h1JEX4yifYv_OhnMzMNsFVhtqHo60"}); err != nil {
			t.Fatal(err)
		}
		f, err := c.receive("status")
		if err != nil {
			t.Fatal(err)
		}
		code, err := c.closeCode()
		if f.CSError != "authError" || f.Reason != "refused" || code != 4001 || err != nil {
			t.Errorf("got %s and close code %d, %v", f.text, code, err)
		}
	})
	t.Run("a malformed frame and a ping before the sign-in", func(t *testing.T) {
		t.Parallel()
		c := mustDial(t, d, "")
		for _, text := range []string{`{"type":"hello","appID":"1"}`, `{"type":"ping","id":"early"}`} {
			if err := c.sendText(text); err != nil {
				t.Fatal(err)
			}
		}
		if f, err := c.receive("status", "pong"); err != nil || f.CSError != "csProtoError" || f.Reason != "missing_member" || f.Frame == nil || *f.Frame != 1 {
			t.Errorf("a hello without userID got %s, %v", f.text, err)
		}
		if f, err := c.receive("status", "pong"); err != nil || f.Type != "pong" || f.ID != "early" {
			t.Errorf("the ping got %s, %v", f.text, err)
		}
		if f, err := c.signIn(credentials{appID: openApp, userID: "second try", secret: openSecret}, nil); err != nil || f.Type != "signedIn" {
			t.Errorf("the sign-in after that got %s, %v", f.text, err)
		}
	})
	t.Run("a batch before the sign-in", func(t *testing.T) {
		t.Parallel()
		c := mustDial(t, d, "")
		if err := c.sendText(`{"type":"batch","messages":[{"seq":1,"conferenceID":"c","event":{"eventType":"userJoined","timestamp":1700000000000}}]}`); err != nil {
			t.Fatal(err)
		}
		f, err := c.receive("status")
		if err != nil {
			t.Fatal(err)
		}
		code, err := c.closeCode()
		if f.CSError != "authError" || f.Reason != "not_signed_in" || code != 4001 || err != nil {
			t.Errorf("got %s and close code %d, %v", f.text, code, err)
		}
	})
	t.Run("no sign-in", func(t *testing.T) {
		t.Parallel()
		c := mustDial(t, d, "")
		f, err := c.receive("status")
		if err != nil {
			t.Fatal(err)
		}
		code, err := c.closeCode()
		if f.CSError != "authError" || f.Reason != "timeout" || code != 4002 || err != nil {
			t.Errorf("got %s and close code %d, %v", f.text, code, err)
		}
	})
	t.Run("a nonce is replaced by the next hello", func(t *testing.T) {
		t.Parallel()
		c := mustDial(t, d, "")
		who := credentials{appID: openApp, userID: "two hellos", secret: openSecret}
		if err := c.send(object{"type": "hello", "appID": openApp, "userID": who.userID}); err != nil {
			t.Fatal(err)
		}
		first, err := c.receive("nonce", "status")
		if err != nil || first.Type != "nonce" || first.ExpiresInMs <= 0 {
			t.Fatalf("got %s, %v", first.text, err)
		}
		if err := c.send(object{"type": "hello", "appID": openApp, "userID": who.userID}); err != nil {
			t.Fatal(err)
		}
		second, err := c.receive("nonce", "status")
		if err != nil || second.Nonce == first.Nonce {
			t.Fatalf("got %s, %v", second.text, err)
		}
		proof, err := proofOf(openSecret, first.Nonce, openApp, who.userID, "")
		if err != nil {
			t.Fatal(err)
		}
		if err := c.send(object{"type": "proof", "proof": proof}); err != nil {
			t.Fatal(err)
		}
		f, err := c.receive("status", "signedIn")
		if err != nil || f.Reason != "refused" {
			t.Fatalf("the proof of the replaced nonce got %s, %v", f.text, err)
		}
	})
	t.Run("too many sign-ins of one user", func(t *testing.T) {
		t.Parallel()
		for range 200 {
			c := mustDial(t, d, "")
			f, err := c.signIn(credentials{appID: openApp, userID: "hasty", secret: openSecret}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if f.Type == "signedIn" {
				continue
			}
			code, err := c.closeCode()
			if f.CSError != "wsChannelFailure" || f.Reason != "rate_limited" || code != 1013 || err != nil {
				t.Errorf("got %s and close code %d, %v", f.text, code, err)
			}
			return
		}
		t.Error("200 sign-ins in a row were all taken")
	})
	t.Run("no WebSocket", func(t *testing.T) {
		t.Parallel()
		check := func(response *http.Response, statusCode int, reason string) {
			t.Helper()
			var f frame
			if err := json.NewDecoder(response.Body).Decode(&f); err != nil {
				t.Errorf("reading the answer: %v", err)
			}
			if response.StatusCode != statusCode || f.Type != "status" || f.CSError != "httpError" || f.Reason != reason || f.CSErrMsg == "" {
				t.Errorf("got %s, %+v; want %d %s", response.Status, f, statusCode, reason)
			}
		}
		response, err := http.Get("http://" + d.gateway + "/v1/ws")
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		check(response, http.StatusUpgradeRequired, "upgrade")
		ws, response, err := (&websocket.Dialer{Subprotocols: []string{"callscope.v0"}}).Dial("ws://"+d.gateway+"/v1/ws", nil)
		if err == nil {
			_ = ws.Close()
			t.Fatal("a subprotocol that does not exist was taken")
		}
		if response == nil {
			t.Fatalf("no answer: %v", err)
		}
		check(response, http.StatusBadRequest, "subprotocol")
	})
}
