package gateway

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/callscope/callscope/services/gateway/limits"
)

// from sends a request as a proxy on loopback would forward it for a client.
func (r *running) from(client, method, path, token, body string) (answer, error) {
	req, err := http.NewRequest(method, r.url(path), strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("X-Forwarded-For", client)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if strings.HasSuffix(path, "/authenticate") {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(text)}, err
}

func behindProxy(l limits.Config) func(*Config) {
	return func(c *Config) { c.Limits, c.TrustedProxies = l, []string{"127.0.0.0/8", "10.1.2.3"} }
}

const alivePath, aliveBody = "/v1/apps/123456789/conferences/room/u/events/user/alive", `{"eventType":"userAlive","localID":"alice"}`

func TestRateLimitedMessages(t *testing.T) {
	for _, tc := range []struct {
		scope  string
		limits limits.Config
	}{
		{"address", limits.Config{AddressMessagesPerSecond: 1}},
		{"user", limits.Config{UserMessagesPerSecond: 1}},
		{"app", limits.Config{AppMessagesPerSecond: 1}},
	} {
		t.Run(tc.scope, func(t *testing.T) {
			r := start(t, behindProxy(tc.limits))
			token := r.signIn("alice", appID)
			passed := 0
			for range 30 {
				a, err := r.from("198.51.100.1", "POST", alivePath, token, aliveBody)
				if err != nil {
					t.Fatal(err)
				}
				switch {
				case a.status == 200 && a.json(t)["status"] == "success":
					passed++
				case a.status != 429 || a.json(t)["status"] != "error" || !strings.Contains(a.body, "limit of this "+tc.scope) || strings.Contains(a.body, "expired"):
					t.Errorf("refused with %d %s", a.status, a.body)
				}
			}
			limited := r.outcomes("rate_limited", tc.scope)
			if passed < 10 || passed > 15 || limited != float64(30-passed) {
				t.Errorf("%d of 30 passed, %v counted as limited; want 10 or a few more, and the rest", passed, limited)
			}
			// A userJoined beyond the limit does not silence its client.
			a, err := r.from("198.51.100.1", "POST", "/v1/apps/123456789/conferences/room", token, join)
			if err != nil || a.json(t)["status"] != "success" || a.json(t)["ucID"] == nil {
				t.Errorf("userJoined: %v %s", err, a.body)
			}
			// Another app, user and address is not affected.
			other := r.signIn("bob", "2")
			a, err = r.from("198.51.100.2", "POST", "/v1/apps/2/conferences/room/u/events/user/alive", other, aliveBody)
			if err != nil || a.status != 200 {
				t.Errorf("another tenant: %v %d %s", err, a.status, a.body)
			}
		})
	}
}

func TestRateLimitedFrames(t *testing.T) {
	r := start(t, func(c *Config) { c.Limits.UserMessagesPerSecond = 1 })
	token := r.signIn("alice", appID)
	c := r.dial()
	for i := range 30 {
		c.send(frame(token, "userAlive", i))
	}
	passed := 0
	for range 30 {
		switch got := c.receive(); {
		case strings.Contains(got, `"status":"200 OK"`):
			passed++
		case !strings.Contains(got, "Too many messages."):
			t.Errorf("answer %s", got)
		}
	}
	if limited := r.outcomes("rate_limited", "user"); passed < 10 || passed > 15 || limited != float64(30-passed) {
		t.Errorf("%d of 30 passed, %v counted as limited", passed, limited)
	}
	c.send(frame(token, "userJoined", 99))
	if got := c.receive(); !strings.Contains(got, `"event":"userJoined"`) || !strings.Contains(got, `"ucID":"`) {
		t.Errorf("userJoined: %s", got)
	}
}

// TestRateLimitedStrangers: frames that nobody signed in for count by their address, whatever is wrong with them, and end the
// connection beyond its limit.
func TestRateLimitedStrangers(t *testing.T) {
	for name, text := range map[string]string{
		"without token": `{"action":"userAlive","conferenceID":"r"}`, "no JSON": `{"action":`, "no conference": `{"action":"userAlive","token":"TOKEN"}`,
	} {
		r := start(t, behindProxy(limits.Config{AddressMessagesPerSecond: 1}))
		text = strings.ReplaceAll(text, "TOKEN", r.signIn("alice", appID))
		conn, resp, err := websocket.DefaultDialer.Dial("ws://"+r.Addr()+"/csiows/collectCallStats", http.Header{"X-Forwarded-For": {"198.51.100.1"}})
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		for range 30 {
			if conn.WriteMessage(websocket.TextMessage, []byte(text)) != nil {
				break
			}
		}
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		answered := 0
		for _, _, err = conn.ReadMessage(); err == nil; _, _, err = conn.ReadMessage() {
			answered++
		}
		_ = conn.Close()
		if !websocket.IsCloseError(err, websocket.CloseTryAgainLater) || answered < 10 || answered > 15 {
			t.Errorf("%s: %d of 30 answered, then %v", name, answered, err)
		}
		if n := r.outcomes("rate_limited", "address"); n != 1 {
			t.Errorf("%s: counted %v as limited", name, n)
		}
		r.stop()
	}
}

// TestManyConferences: an app beyond its cap is refused, on both transports, and another is not.
func TestManyConferences(t *testing.T) {
	r := start(t, func(c *Config) { c.Limits.AppConferencesPerHour = 20 })
	token, other := r.signIn("alice", appID), r.signIn("bob", "2")
	for i := range 50 {
		a := r.do("POST", fmt.Sprintf("/v1/apps/123456789/conferences/room%d", i), token, join)
		if want := i < 20; (a.json(t)["status"] == "success") != want || (a.json(t)["ucID"] != nil) != want {
			t.Errorf("conference %d: %d %s", i, a.status, a.body)
		}
	}
	if a := r.do("POST", "/v1/apps/123456789/conferences/room3/u/events/user/alive", token, aliveBody); a.status != 200 {
		t.Errorf("a known conference: %d %s", a.status, a.body)
	}
	c := r.dial()
	c.sendText(websocket.TextMessage, `{"action":"userJoined","conferenceID":"one more","localID":"alice","token":"`+token+`"}`)
	if got := c.receive(); !strings.Contains(got, "Too many") {
		t.Errorf("a new conference on a socket: %s", got)
	}
	if a := r.do("POST", "/v1/apps/2/conferences/a", other, join); a.status != 200 {
		t.Errorf("another app: %d %s", a.status, a.body)
	}
	if n := r.outcomes("rate_limited", "conferences"); n != 31 {
		t.Errorf("counted %v, want 31", n)
	}
}

// TestRateLimitedSignIns: the connection is closed without an answer, for any answer would be final or a storm.
func TestRateLimitedSignIns(t *testing.T) {
	for _, tc := range []struct {
		scope  string
		limits limits.Config
	}{
		{"address", limits.Config{AddressSignInsPerSecond: 1}},
		{"user", limits.Config{UserSignInsPerSecond: 1}},
		{"app", limits.Config{AppSignInsPerSecond: 1}},
	} {
		t.Run(tc.scope, func(t *testing.T) {
			r := start(t, behindProxy(tc.limits))
			form := url.Values{"client_id": {"alice@" + appID}, "code": {clientToken(t, "alice", appID, secret)}, "grant_type": {"authorization_code"}}.Encode()
			granted, closed := 0, 0
			for range 20 {
				a, err := r.from("198.51.100.1", "POST", "/authenticate", "", form)
				switch {
				case err != nil:
					closed++
				case a.status == 200:
					granted++
				default:
					t.Errorf("answered %d %s", a.status, a.body)
				}
			}
			if granted < 10 || granted > 14 || closed != 20-granted {
				t.Errorf("%d granted, %d closed", granted, closed)
			}
			if n := r.metric("callscope_gateway_limited_sign_ins_total", "scope", tc.scope); n < float64(closed) {
				t.Errorf("counted %v, want %d", n, closed)
			}
			other := url.Values{"client_id": {"bob@2"}, "code": {clientToken(t, "bob", "2", secret)}, "grant_type": {"authorization_code"}}.Encode()
			if a, err := r.from("198.51.100.2", "POST", "/authenticate", "", other); err != nil || a.status != 200 {
				t.Errorf("another tenant: %v %s", err, a.body)
			}
		})
	}
}

func TestRateLimitedGenerics(t *testing.T) {
	r := start(t, behindProxy(limits.Config{AddressGenericsPerSecond: 1}))
	for range 20 {
		if a, err := r.from("198.51.100.1", "POST", "/generics", "", `{}`); err != nil || a.json(t)["status"] != "success" {
			t.Fatalf("%v %s", err, a.body)
		}
	}
	kept, limited := r.outcomes("generics", ""), r.outcomes("rate_limited", "address")
	if kept < 10 || kept > 14 || kept+limited != 20 {
		t.Errorf("%v taken, %v limited", kept, limited)
	}
}

// TestRateLimitedConnections: handshakes of sockets count as sign-ins of their address.
func TestRateLimitedHandshakes(t *testing.T) {
	r := start(t, behindProxy(limits.Config{AddressSignInsPerSecond: 1}))
	opened := 0
	for range 20 {
		conn, resp, err := websocket.DefaultDialer.Dial("ws://"+r.Addr()+"/csiows/collectCallStats", http.Header{"X-Forwarded-For": {"198.51.100.1"}})
		if resp != nil {
			_ = resp.Body.Close()
		}
		if err == nil {
			opened++
			_ = conn.Close()
		}
	}
	if opened < 10 || opened > 14 {
		t.Errorf("%d of 20 were opened", opened)
	}
	if n := r.metric("callscope_gateway_limited_sign_ins_total", "scope", "address"); n != float64(20-opened) {
		t.Errorf("counted %v of %d", n, 20-opened)
	}
}

// TestClientAddress: only trusted proxies tell whom they forward, and only the part that they wrote counts.
func TestClientAddress(t *testing.T) {
	proxies, err := parseNetworks([]string{"127.0.0.0/8", "10.1.2.3", "2001:db8::/32"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		peer      string
		forwarded []string
		want      string
	}{
		{"203.0.113.9:5", nil, "203.0.113.9:5"},
		{"203.0.113.9:5", []string{"198.51.100.1"}, "203.0.113.9:5"},
		{"127.0.0.1:5", nil, "127.0.0.1:0"},
		{"127.0.0.1:5", []string{"198.51.100.1"}, "198.51.100.1:0"},
		{"127.0.0.1:5", []string{"6.6.6.6, 198.51.100.1"}, "198.51.100.1:0"},
		{"127.0.0.1:5", []string{"198.51.100.1, 10.1.2.3"}, "198.51.100.1:0"},
		{"127.0.0.1:5", []string{"198.51.100.1", "10.1.2.3"}, "198.51.100.1:0"},
		{"127.0.0.1:5", []string{"198.51.100.1, 10.1.2.4"}, "10.1.2.4:0"},
		{"127.0.0.1:5", []string{"nonsense"}, "127.0.0.1:0"},
		{"127.0.0.1:5", []string{"198.51.100.1, nonsense, 10.1.2.3"}, "10.1.2.3:0"},
		{"[2001:db8::1]:5", []string{"2a00::1"}, "[2a00::1]:0"},
		{"[::ffff:127.0.0.1]:5", []string{"198.51.100.1:4321"}, "198.51.100.1:0"},
	} {
		req := &http.Request{RemoteAddr: tc.peer, Header: http.Header{"X-Forwarded-For": tc.forwarded}}
		if got := proxies.clientAddr(req); got != tc.want {
			t.Errorf("%s with %q: %s, want %s", tc.peer, tc.forwarded, got, tc.want)
		}
	}
	if _, err := parseNetworks([]string{"proxy.example.test"}); err == nil {
		t.Error("a name was accepted")
	}
}

// TestStoredAddress: the client's address behind a proxy is the one that is stored, cut as configured.
func TestStoredAddress(t *testing.T) {
	for bits, want := range map[int]string{24: "198.51.100.0", 32: "198.51.100.77", 16: "198.51.0.0"} {
		r := start(t, func(c *Config) { c.TrustedProxies, c.IPv4Bits = []string{"127.0.0.1"}, bits })
		token := r.signIn("alice", appID)
		if a, err := r.from("198.51.100.77", "POST", alivePath, token, aliveBody); err != nil || a.status != 200 {
			t.Fatalf("%v %s", err, a.body)
		}
		if got := r.broker.all()[0].Observed.IpMasked; got != want {
			t.Errorf("with %d bits: %q, want %q", bits, got, want)
		}
	}
}
