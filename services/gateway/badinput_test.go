package gateway

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"

	"github.com/callscope/callscope/services/gateway/limits"
)

func unlimited(c *Config) {
	c.Limits = limits.Config{
		AppMessagesPerSecond: -1, AppBytesPerSecond: -1, UserMessagesPerSecond: -1, UserBytesPerSecond: -1,
		AddressMessagesPerSecond: -1, AddressBytesPerSecond: -1, AddressGenericsPerSecond: -1,
	}
}

// golden is the smallest recorded message of a type and transport.
type golden struct{ name, path, text string } // path: of REST, "" for frames

func goldenMessages(t *testing.T) []golden {
	t.Helper()
	files, err := filepath.Glob("../../test/captures/*.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	smallest := make(map[string]golden)
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, 16<<20)
		for lines.Scan() {
			var line struct{ Kind, Method, Path, Body, Data string }
			if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
				t.Fatal(err)
			}
			g := golden{path: line.Path, text: line.Body}
			switch {
			case line.Kind == "ws-client":
				g = golden{text: line.Data}
			case line.Method != "POST" || !strings.Contains(line.Path, "/conferences/") && !strings.HasSuffix(line.Path, "/events/precall"):
				continue
			}
			var m map[string]any
			if json.Unmarshal([]byte(g.text), &m) != nil {
				continue
			}
			kind := "REST"
			if g.path == "" {
				kind = "frame 3.24"
				if m["confID"] != nil {
					kind = "frame 3.52"
				}
			}
			g.name = fmt.Sprint(kind, " ", m["eventType"], " ", m["action"], " ", m["channel"])
			if old, found := smallest[g.name]; !found || len(g.text) < len(old.text) {
				smallest[g.name] = g
			}
		}
		_ = f.Close()
		if err := lines.Err(); err != nil {
			t.Fatal(err)
		}
	}
	var all []golden
	for _, g := range smallest {
		all = append(all, g)
	}
	slices.SortFunc(all, func(a, b golden) int { return strings.Compare(a.name, b.name) })
	return all
}

// sender sends one message and returns what the client sees: "" for acceptance, else the text of the refusal.
type sender struct {
	r     *running
	token string
	conn  *socket
}

func (s *sender) post(path, body string) string {
	req := httptest.NewRequest("POST", path, strings.NewReader(body))
	req.Header.Set("Authorization", "Bearer "+s.token)
	w := httptest.NewRecorder()
	s.r.ServeHTTP(w, req)
	var a struct{ Status, Msg string }
	if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil {
		return "no JSON: " + w.Body.String()
	}
	if a.Status == "success" {
		return ""
	}
	return a.Msg
}

// frame sends a frame and a marker behind it whose answer shows that the frame is done.
func (s *sender) frame(text string) string {
	s.conn.sendText(websocket.TextMessage, text)
	s.conn.sendText(websocket.TextMessage, `{"action":"clockSync","conferenceID":"marker","token":"`+s.token+`"}`)
	refusal := ""
	for {
		var a struct{ Status, Event, Reason string }
		if err := json.Unmarshal([]byte(s.conn.receive()), &a); err != nil {
			return "no JSON"
		}
		if a.Event == "clockSync" {
			return refusal
		}
		if a.Status != "200 OK" {
			refusal = a.Reason
		}
	}
}

func (s *sender) send(g golden, text string) string {
	if g.path == "" {
		return s.frame(text)
	}
	return s.post(g.path, text)
}

var firstNumber = regexp.MustCompile(`:(-?[0-9][0-9.]*)([,}])`)

// mutations of a valid message. Some are no fault: clients write numbers as strings, and what is out of range is not
// used but kept.
var mutations = []struct {
	name            string
	change          func(string) string
	outcome, reason string
	answer          string
}{
	{"unchanged", func(s string) string { return s }, "accepted", "", ""},
	{"trailing comma", func(s string) string { return s[:len(s)-1] + ",}" }, "invalid", "json", "not valid JSON"},
	{"trailing garbage", func(s string) string { return s + "x" }, "invalid", "json", "not valid JSON"},
	{"twice", func(s string) string { return s + s }, "invalid", "json", "not valid JSON"},
	{"in an array", func(s string) string { return "[" + s + "]" }, "invalid", "json", "not a JSON object"},
	{"in a string", func(s string) string { b, _ := json.Marshal(s); return string(b) }, "invalid", "json", "not a JSON object"},
	{"byte order mark", func(s string) string { return "\ufeff" + s }, "invalid", "json", "not valid JSON"},
	{"single quotes", func(s string) string { return strings.ReplaceAll(s, `"`, `'`) }, "invalid", "json", "not valid JSON"},
	{"invalid UTF-8", func(s string) string { return `{"x":"` + "\xc3\x28" + `",` + s[1:] }, "invalid", "utf8", "UTF-8"},
	{"surrogate in UTF-8", func(s string) string { return `{"x":"` + "\xed\xa0\x80" + `",` + s[1:] }, "invalid", "utf8", "UTF-8"},
	{"line break in a string", func(s string) string { return "{\"x\":\"a\nb\"," + s[1:] }, "invalid", "json", "not valid JSON"},
	{"unknown escape", func(s string) string { return `{"x":"\q",` + s[1:] }, "invalid", "json", "not valid JSON"},
	{"NaN", func(s string) string { return `{"x":NaN,` + s[1:] }, "invalid", "json", "not valid JSON"},
	{"Infinity", func(s string) string { return `{"x":-Infinity,` + s[1:] }, "invalid", "json", "not valid JSON"},
	{"number with two points", func(s string) string { return `{"x":1.2.3,` + s[1:] }, "invalid", "json", "not valid JSON"},
	{"10,000 arrays deep", func(s string) string {
		return `{"x":` + strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000) + "," + s[1:]
	}, "invalid", "depth", "nested"},
	{"10,000 objects deep", func(s string) string {
		return `{"x":` + strings.Repeat(`{"a":`, 10_000) + "1" + strings.Repeat("}", 10_000) + "," + s[1:]
	}, "invalid", "depth", "nested"},
	{"long user id", func(s string) string {
		return s[:len(s)-1] + `,"localID":"` + strings.Repeat("u", 257) + `"}`
	}, "invalid", "user_id", "257 bytes"},
	{"long remote id", func(s string) string {
		return s[:len(s)-1] + `,"remoteID":"` + strings.Repeat("u", 257) + `"}`
	}, "invalid", "remote_id", "257 bytes"},
	{"long device id", func(s string) string {
		return s[:len(s)-1] + `,"deviceID":"` + strings.Repeat("u", 257) + `"}`
	}, "invalid", "device_id", "257 bytes"},
	{"2^63", func(s string) string { return `{"x":9223372036854775808,` + s[1:] }, "accepted", "", ""},
	{"time 2^63", func(s string) string { return s[:len(s)-1] + `,"timestamp":9223372036854775808}` }, "accepted", "", ""},
	{"1e999", func(s string) string { return firstNumber.ReplaceAllString(s, ":1e999$2") }, "", "", ""},
	{"numbers as strings", func(s string) string { return firstNumber.ReplaceAllString(s, `:"$1"$2`) }, "accepted", "", ""},
	{"duplicate keys", func(s string) string { return s[:len(s)-1] + "," + s[1:] }, "accepted", "", ""},
}

// TestMalformedMessages sends every recorded type of message in every mutation, and cut at every byte. Each has one
// expected outcome; a message of another tenant in between is accepted.
func TestMalformedMessages(t *testing.T) {
	r := start(t, unlimited)
	s := &sender{r: r, token: r.signIn("alice", appID), conn: r.dial()}
	other := &sender{r: r, token: r.signIn("bob", "2")}
	messages := goldenMessages(t)
	cases, truncated, accepted := 0, 0, 0
	counted := func() (float64, float64) {
		return r.metric("callscope_gateway_received_total"), r.metric("callscope_gateway_messages_total")
	}
	markers := func(g golden) float64 {
		if g.path == "" {
			return 1
		}
		return 0
	}
	for _, g := range messages {
		text := g.text
		if g.path == "" { // a token that is ours, where the recorded one stood
			var m map[string]json.RawMessage
			if err := json.Unmarshal([]byte(text), &m); err != nil {
				t.Fatal(err)
			}
			m["token"], _ = json.Marshal(s.token)
			b, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			text = string(b)
		}
		for _, m := range mutations {
			bad := m.change(text)
			outcome, reason, answer := m.outcome, m.reason, m.answer
			if outcome == "" { // the member may be one that must hold: any single outcome, but nothing breaks
				before, _ := counted()
				s.send(g, bad)
				if received, outcomes := counted(); received != before+1+markers(g) || received != outcomes {
					t.Errorf("%s, %s: received %v, outcomes %v", g.name, m.name, received, outcomes)
				}
				cases++
				continue
			}
			if g.path != "" && strings.Contains(bad, `"localID":"uuu`) && reason != "user_id" {
				t.Fatalf("%s, %s: the mutation is wrong", g.name, m.name)
			}
			before := r.outcomes(outcome, reason)
			_, all := counted()
			got := s.send(g, bad)
			if (got == "") != (outcome == "accepted") || !strings.Contains(got, answer) {
				t.Errorf("%s, %s: answered %q, want %q", g.name, m.name, got, answer)
			}
			if n := r.outcomes(outcome, reason); n != before+1 {
				t.Errorf("%s, %s: outcome %s(%s) counted %v times", g.name, m.name, outcome, reason, n-before)
			}
			if _, n := counted(); n != all+1+markers(g) {
				t.Errorf("%s, %s: %v outcomes", g.name, m.name, n-all)
			}
			if outcome == "accepted" {
				accepted++
			} else {
				cases++
			}
		}

		// Cut at every byte of the first 600; further ones are the same kinds of places again.
		wantUTF8, wantJSON := r.outcomes("invalid", "utf8"), r.outcomes("invalid", "json")
		for n := range min(len(text), 600) {
			if utf8.ValidString(text[:n]) {
				wantJSON++
			} else {
				wantUTF8++
			}
			if g.path == "" {
				s.conn.sendText(websocket.TextMessage, text[:n])
				if got := s.conn.receive(); !strings.Contains(got, `"status":"Error"`) || strings.Contains(got, "token") {
					t.Errorf("%s cut at %d: %s", g.name, n, got)
				}
			} else if got := s.post(g.path, text[:n]); got == "" || strings.Contains(got, "expired") {
				t.Errorf("%s cut at %d: %q", g.name, n, got)
			}
			truncated++
		}
		if gotUTF8, gotJSON := r.outcomes("invalid", "utf8"), r.outcomes("invalid", "json"); gotUTF8 != wantUTF8 || gotJSON != wantJSON {
			t.Errorf("%s cut at every byte: %v utf8 and %v json, want %v and %v", g.name, gotUTF8, gotJSON, wantUTF8, wantJSON)
		}
		cases++ // as one
		if got := other.post("/v1/apps/2/conferences/room/u/events/user/alive", aliveBody); got != "" {
			t.Errorf("another tenant, after %s: %s", g.name, got)
		}
	}
	t.Logf("%d types of messages: %d malformed messages with one outcome each, %d cut ones beside, %d odd ones accepted", len(messages), cases, truncated, accepted)
	if cases < 500 {
		t.Errorf("%d malformed messages, want at least 500", cases)
	}
}

// TestInflationBombs: nothing is ever inflated.
func TestInflationBombs(t *testing.T) {
	r := start(t, nil)
	token := r.signIn("alice", appID)
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	if _, err := z.Write(make([]byte, 64<<20)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for _, encoding := range []string{"gzip", "deflate", "br", "zstd", "gzip, gzip"} {
		req, err := http.NewRequest("POST", r.url(alivePath), bytes.NewReader(bomb.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Content-Encoding", encoding)
		resp, err := r.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusUnsupportedMediaType {
			t.Errorf("%s: status %d", encoding, resp.StatusCode)
		}
	}
	if n := r.outcomes("unsupported", "encoding"); n != 5 {
		t.Errorf("counted %v", n)
	}
	// A compressed frame, although compression was not agreed on: the test client offers it, the gateway does not take it.
	c := r.dial()
	if _, err := c.conn.NetConn().Write([]byte{0xc1, 0x80 | 5, 1, 2, 3, 4, 'a', 'b', 'c', 'd', 'e'}); err != nil { // RSV1, masked
		t.Fatal(err)
	}
	if code := c.closeCode(); code != websocket.CloseProtocolError {
		t.Errorf("closed with %d", code)
	}
	// The close frame is sent before the outcome is counted.
	r.eventually("the frame's outcome", func() error {
		if n := r.outcomes("invalid", "frame"); n != 1 {
			return fmt.Errorf("counted %v", n)
		}
		return nil
	})
}

// TestSlowloris: who sends too slowly is cut off, and others are served meanwhile.
func TestSlowloris(t *testing.T) {
	r := start(t, func(c *Config) {
		c.ReadHeaderTimeout, c.ReadTimeout = 100*time.Millisecond, 200*time.Millisecond
		c.PingInterval, c.WriteTimeout = 50*time.Millisecond, 50*time.Millisecond
	})
	token := r.signIn("alice", appID)
	open := func(text string) net.Conn {
		conn, err := net.Dial("tcp", r.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	halfFrame := func() net.Conn {
		conn := r.dial().conn.NetConn()
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "\x81\xfe\x10\x00\x01\x02\x03\x04abc"); err != nil { // 3 of 4096 bytes
			t.Fatal(err)
		}
		return conn
	}
	var slow []net.Conn
	for range 50 {
		slow = append(slow,
			open(""), open("POST /v1/apps/1/conferences/x HTTP/1.1\r\nHost: "),
			open("POST "+alivePath+" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+token+"\r\nContent-Length: 1000\r\n\r\n{\"a"),
			halfFrame())
	}
	if a := r.do("POST", alivePath, token, aliveBody); a.status != 200 {
		t.Errorf("another client: %d %s", a.status, a.body)
	}
	for i, conn := range slow {
		if _, err := io.ReadAll(conn); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("slow connection %d was not cut: %v", i, err)
		}
	}
	r.eventually("every slow message is counted", func() error {
		if n := r.outcomes("invalid", "incomplete"); n != 100 {
			return fmt.Errorf("%v of 100", n)
		}
		return nil
	})
}

// openSockets are an address and a subprotocol of each dialect on WebSockets.
var openSockets = map[string]string{"/csiows/collectCallStats": "echo-protocol", "/v1/ws": "callscope.v1"}

// rawSocket opens a WebSocket whose frames the test writes itself.
func (r *running) rawSocket(path, subprotocol string) *websocket.Conn {
	r.t.Helper()
	d := websocket.Dialer{Subprotocols: []string{subprotocol}}
	conn, resp, err := d.Dial("ws://"+r.Addr()+path, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	_ = resp.Body.Close()
	r.t.Cleanup(func() { _ = conn.Close() })
	if err := conn.NetConn().SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		r.t.Fatal(err)
	}
	return conn
}

// TestUnfinishedFrames: large frames that do not end count against the budget while they arrive.
func TestUnfinishedFrames(t *testing.T) {
	for path, subprotocol := range openSockets {
		r := start(t, func(c *Config) {
			c.BudgetBytes = 2 << 20
			c.StoreTimeout, c.JoinPatience = 100*time.Millisecond, 50*time.Millisecond
		})
		var sockets []*websocket.Conn
		for range 4 {
			sockets = append(sockets, r.rawSocket(path, subprotocol))
		}
		for _, conn := range sockets { // 900 KiB of 1 MiB
			frame := append([]byte("\x81\xff\x00\x00\x00\x00\x00\x10\x00\x00\x01\x02\x03\x04"), make([]byte, 900<<10)...)
			_, _ = conn.NetConn().Write(frame) // it may be refused before the last byte
		}
		r.eventually(path+": what there is no memory for is shed", func() error {
			if n := r.outcomes("shed", "memory"); n < 1 {
				return fmt.Errorf("%v shed, %v bytes in flight", n, r.metric("callscope_gateway_in_flight_bytes"))
			}
			return nil
		})
		for _, conn := range sockets {
			_ = conn.Close()
		}
		r.stop()
	}
}

// TestSlowFragments: a message that does not end is cut off though its client answers pings.
func TestSlowFragments(t *testing.T) {
	r := start(t, func(c *Config) { c.PingInterval, c.WriteTimeout = 300*time.Millisecond, time.Second })
	for path, subprotocol := range openSockets {
		conn := r.rawSocket(path, subprotocol)
		if _, err := conn.NetConn().Write([]byte("\x01\x83\x00\x00\x00\x00abc")); err != nil { // a fragment that is not the last
			t.Fatal(err)
		}
		pings := 0
		answer := conn.PingHandler()
		conn.SetPingHandler(func(data string) error { pings++; return answer(data) })
		_, _, err := conn.ReadMessage()
		var network net.Error
		if errors.As(err, &network) && network.Timeout() {
			t.Errorf("%s: still open after %d answered pings", path, pings)
		}
	}
	r.eventually("both messages are counted", func() error {
		if n := r.outcomes("invalid", "incomplete"); n != 2 {
			return fmt.Errorf("%v of 2", n)
		}
		return nil
	})
}

// TestSlowReader: who does not read answers is evicted, and what they sent is stored.
func TestSlowReader(t *testing.T) {
	r := start(t, func(c *Config) { unlimited(c); c.WriteTimeout = 50 * time.Millisecond })
	token := r.signIn("alice", appID)
	c := r.dial()
	message := `{"action":"userAlive","conferenceID":"` + strings.Repeat("r", 250) + `","localID":"alice","token":"` + token + `"}`
	sent := 0
	for ; r.metric("callscope_gateway_evicted_total") == 0 && sent < 500_000; sent++ {
		if err := c.conn.WriteMessage(websocket.TextMessage, []byte(message)); err != nil {
			break
		}
	}
	r.eventually("the connection is gone", func() error {
		if n := r.metric("callscope_gateway_websocket_connections"); n != 0 {
			return fmt.Errorf("%v open", n)
		}
		return nil
	})
	if n := r.metric("callscope_gateway_evicted_total"); n != 1 {
		t.Errorf("%v evicted after %d messages", n, sent)
	}
	if stored, accepted := len(r.broker.all()), r.outcomes("accepted", ""); float64(stored) != accepted {
		t.Errorf("%d stored, %v accepted", stored, accepted)
	}
}
