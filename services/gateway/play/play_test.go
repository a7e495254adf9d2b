package play

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/gorilla/websocket"

	"github.com/callscope/callscope/internal/stream/streamtest"
)

const testSecret = "a-test-secret"

func unsigned(t *testing.T, header, claims string) string {
	t.Helper()
	enc := base64.RawURLEncoding
	return enc.EncodeToString([]byte(header)) + "." + enc.EncodeToString([]byte(claims)) + "." + enc.EncodeToString([]byte("x"))
}

// openToken verifies an HS256 token and gives its header and claims as JSON.
func openToken(t *testing.T, token string, key []byte) (header, claims string) {
	t.Helper()
	parsed, err := jwt.NewParser(jwt.WithValidMethods([]string{"HS256"}), jwt.WithJSONNumber()).
		Parse(token, func(*jwt.Token) (any, error) { return key, nil })
	if err != nil {
		t.Fatalf("the token does not verify: %v", err)
	}
	h, err := json.Marshal(parsed.Header)
	if err != nil {
		t.Fatal(err)
	}
	c, err := json.Marshal(parsed.Claims)
	if err != nil {
		t.Fatal(err)
	}
	return string(h), string(c)
}

// stub is a gateway that gives tokens and ucIDs of its own and writes down what it was sent.
type stub struct {
	*httptest.Server
	secret string
	// refuse may give another answer to a request than success; an empty one closes the connection without an answer.
	refuse func(r *http.Request, body string) (status int, answer string, ok bool)

	mu       sync.Mutex
	received []string // "user path body" or "user WSS frame"
	signIns  map[string]int
	times    []time.Time
	headers  []http.Header
}

func newStub(t *testing.T) *stub {
	s := &stub{secret: testSecret, signIns: make(map[string]int)}
	s.Server = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(s.Close)
	return s
}

func (s *stub) note(line string, header http.Header) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.received = append(s.received, line)
	s.times = append(s.times, time.Now())
	s.headers = append(s.headers, header)
}

func (s *stub) of(user string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for _, line := range s.received {
		if rest, ok := strings.CutPrefix(line, user+" "); ok {
			list = append(list, rest)
		}
	}
	return list
}

func (s *stub) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	user := "-"
	// Tokens are token/<user>/<number>.
	if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		user = strings.Split(token, "/")[1]
		defer s.note(user+" used "+token, r.Header)
	}
	if s.refuse != nil {
		if status, answer, ok := s.refuse(r, string(body)); ok {
			s.note(user+" refused "+r.RequestURI, r.Header)
			if status == 0 {
				panic(http.ErrAbortHandler)
			}
			w.WriteHeader(status)
			io.WriteString(w, answer)
			return
		}
	}
	switch {
	case r.RequestURI == "/csiows/collectCallStats":
		s.serveSocket(w, r)
	case r.RequestURI == "/clockSync":
		s.note("- /clockSync", r.Header)
		io.WriteString(w, `{"now":1}`)
	case strings.HasSuffix(r.RequestURI, "/authenticate"):
		form, err := url.ParseQuery(string(body))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_, err = jwt.Parse(form.Get("code"), func(*jwt.Token) (any, error) { return []byte(s.secret), nil }, jwt.WithValidMethods([]string{"HS256"}))
		if err != nil {
			w.WriteHeader(http.StatusUnauthorized)
			io.WriteString(w, `{"urn:x-callstats:auth:errorActions":[{"action":2}]}`)
			return
		}
		id := form.Get("client_id")
		user := id[:strings.LastIndex(id, "@")]
		s.mu.Lock()
		s.signIns[user]++
		token := fmt.Sprintf("token/%s/%d", user, s.signIns[user])
		s.mu.Unlock()
		fmt.Fprintf(w, `{"access_token":%q,"token_type":"bearer","expires_in":7200}`, token)
	default:
		s.note(user+" "+r.RequestURI+" "+string(body), r.Header)
		io.WriteString(w, `{"status":"success","ucID":"uc~new"}`)
	}
}

func (s *stub) serveSocket(w http.ResponseWriter, r *http.Request) {
	conn, err := (&websocket.Upgrader{Subprotocols: []string{"echo-protocol"}, CheckOrigin: func(*http.Request) bool { return true }}).Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer conn.Close()
	for {
		_, text, err := conn.ReadMessage()
		if err != nil {
			s.note("- WSS closed "+err.Error(), nil)
			return
		}
		var f struct{ Token, Action, Channel, ConferenceID string }
		if err := json.Unmarshal(text, &f); err != nil {
			return
		}
		s.note(strings.Split(f.Token, "/")[1]+" "+string(text), r.Header)
		switch {
		case f.Action == "userJoined", f.Action == "userAlive":
			err = conn.WriteJSON(map[string]any{"status": "200 OK", "event": f.Action, "conferenceID": f.ConferenceID, "ucID": "uc~new", "conferenceDuration": 0})
		case f.Channel == "userFeedbackEvent":
			err = conn.WriteJSON(map[string]any{"status": "200 OK", "event": "feedback"})
		case f.Action == "refuseMe":
			err = conn.WriteJSON(map[string]any{"status": "Error", "reason": "no such action"})
		}
		if err != nil {
			return
		}
	}
}

// capture builds a recording. Its clock: t = 0 is recordedEpoch.
type capture struct {
	t     *testing.T
	lines []map[string]any
}

const recordedEpoch = 1795343000000

func (c *capture) add(atMs int, kind string, fields map[string]any) *capture {
	l := map[string]any{"seq": len(c.lines) + 1, "t": atMs, "kind": kind}
	for k, v := range fields {
		l[k] = v
	}
	c.lines = append(c.lines, l)
	return c
}

func (c *capture) http(atMs int, method, path, token, body, answer string) *capture {
	headers := map[string]string{"origin": "https://app.example.test", "content-type": "application/json"}
	if token != "" {
		headers["authorization"] = "Bearer " + token
	}
	return c.add(atMs, "http", map[string]any{
		"host": "events.callstats.io", "method": method, "path": path, "headers": headers, "body": body,
		"response": map[string]any{"status": 200, "body": answer},
	})
}

func (c *capture) signIn(atMs int, user, recordedToken string) *capture {
	code := unsigned(c.t, `{"alg":"HS256"}`, fmt.Sprintf(`{"userID":%q,"appID":1}`, user))
	return c.http(atMs, "POST", "/authenticate", "", "client_id="+url.QueryEscape(user+"@1")+"&code="+code+"&grant_type=authorization_code",
		fmt.Sprintf(`{"access_token":%q,"token_type":"bearer"}`, recordedToken))
}

func (c *capture) recording() Recording {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	for _, l := range c.lines {
		if err := enc.Encode(l); err != nil {
			c.t.Fatal(err)
		}
	}
	return Recording{Name: "test.jsonl", Lines: strings.NewReader(b.String())}
}

const room = "/v1/apps/1/conferences/Demo%20room%20%2F%201"

// restCall is Alice and Bob, who joins 400 ms later.
func restCall(t *testing.T) *capture {
	c := &capture{t: t}
	c.http(0, "GET", "/clockSync", "", "", fmt.Sprintf(`{"now":%d}`, recordedEpoch))
	c.signIn(10, "alice@x", "old-a1")
	c.http(20, "OPTIONS", room, "", "", "")
	c.http(30, "POST", room, "old-a1", `{"eventType":"userJoined","localID":"alice@x","timestamp":1795343000025.25}`, `{"status":"success","ucID":"uc-old"}`)
	c.http(40, "POST", room+"/uc-old/stats", "old-a1", `{"eventType":"stats","stats":[{"timestamp":1795343000039,"priority":9115005270282338814}]}`, "")
	c.signIn(400, "bob", "old-b1")
	c.http(420, "POST", room, "old-b1", `{"eventType":"userJoined","localID":"bob","timestamp":1795343000419}`, "")
	c.signIn(430, "alice@x", "old-a2") // a renewal
	c.http(440, "POST", room+"/uc-old/events/fabric/setup", "old-a2", `{"eventType":"fabricSetup","timestamp":1795343000439}`, "")
	c.http(500, "POST", room+"/uc-old/events/feedback", "old-b1", `{"eventType":"userFeedbackEvent","timestamp":1795343000499}`, "")
	return c
}

func play(t *testing.T, s *stub, cfg Config) Report {
	t.Helper()
	cfg.Gateway, cfg.Secret = s.URL, testSecret
	report, err := Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func TestREST(t *testing.T) {
	s := newStub(t)
	began := time.Now().UnixMilli()
	report := play(t, s, Config{Recordings: []Recording{restCall(t).recording()}, Speed: 5})
	ended := time.Now().UnixMilli()
	if !report.OK() || len(report.Results) != 9 || report.Skipped != 1 {
		t.Fatalf("got %d results, %d skipped: %v", len(report.Results), report.Skipped, report.Results)
	}
	// The recording lasts 500 ms, so it plays in 100 ms, and its last moment is when the playing ends: not before it
	// began plus 100 ms, and not after it ended.
	moved := func(line string, recorded int64) string {
		for _, field := range strings.FieldsFunc(line, func(r rune) bool { return r < '0' || r > '9' }) {
			var n int64
			if _, err := fmt.Sscan(field, &n); err == nil && len(field) == 13 {
				if end := recordedEpoch + 500 + n - recorded; end < began+100 || end > ended+100 {
					t.Errorf("the call ends at %d, want about %d to %d: %s", end, began+100, ended, line)
				}
				return strings.Replace(line, field, fmt.Sprint(recorded), 1)
			}
		}
		t.Errorf("no timestamp in %s", line)
		return line
	}
	want := map[string][]string{
		"alice@x": {
			room + ` {"eventType":"userJoined","localID":"alice@x","timestamp":1795343000025.25}`, "used token/alice@x/1",
			room + `/uc~new/stats {"eventType":"stats","stats":[{"timestamp":1795343000039,"priority":9115005270282338814}]}`, "used token/alice@x/1",
			room + `/uc~new/events/fabric/setup {"eventType":"fabricSetup","timestamp":1795343000439}`, "used token/alice@x/2",
		},
		"bob": {
			room + ` {"eventType":"userJoined","localID":"bob","timestamp":1795343000419}`, "used token/bob/1",
			room + `/uc~new/events/feedback {"eventType":"userFeedbackEvent","timestamp":1795343000499}`, "used token/bob/1",
		},
	}
	recorded := map[string][]int64{"alice@x": {1795343000025, 1795343000039, 1795343000439}, "bob": {1795343000419, 1795343000499}}
	for user := range want {
		got := s.of(user)
		for i := range got {
			if i%2 == 0 && i/2 < len(recorded[user]) {
				got[i] = moved(got[i], recorded[user][i/2])
			}
		}
		if diff := cmp.Diff(want[user], got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", user, diff)
		}
	}
	for i, h := range s.headers {
		if h.Get("Origin") != "https://app.example.test" || !strings.HasPrefix(s.received[i], "-") && h.Get("Content-Type") != "application/json" {
			t.Errorf("%s came with headers %v", s.received[i], h)
		}
	}
	if spacing := s.times[len(s.times)-1].Sub(s.times[0]); spacing < 90*time.Millisecond {
		t.Errorf("500 ms at speed 5 took only %s", spacing)
	}
}

// At speed 0 nobody overtakes somebody else's message of more than a second before.
func TestFastKeepsOrderAcrossClients(t *testing.T) {
	s := newStub(t)
	s.refuse = func(r *http.Request, body string) (int, string, bool) {
		if strings.Contains(body, `"slow"`) {
			select {
			case <-time.After(50 * time.Millisecond):
			case <-r.Context().Done():
			}
		}
		return 0, "", false
	}
	c := &capture{t: t}
	c.signIn(0, "alice", "old-a")
	c.signIn(0, "bob", "old-b")
	var want []string
	for i := range 10 {
		user := []string{"alice", "bob"}[i%2]
		body := `{"n":` + fmt.Sprint(i) + `,"x":"slow"}`
		if i%2 == 1 {
			body = `{"n":` + fmt.Sprint(i) + `}`
		}
		c.http(5000*(i+1), "POST", "/v1/apps/1/events/precall", "old-"+user[:1], body, "")
		want = append(want, user+" /v1/apps/1/events/precall "+body)
	}
	report := play(t, s, Config{Recordings: []Recording{c.recording()}})
	if !report.OK() {
		t.Fatal(report.Results)
	}
	var got []string
	for _, line := range s.received {
		if strings.Contains(line, "/precall") {
			got = append(got, line)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

func TestRefusalsAndFailures(t *testing.T) {
	s := newStub(t)
	s.refuse = func(r *http.Request, body string) (int, string, bool) {
		switch {
		case strings.Contains(r.RequestURI, "/stats"):
			return 0, "", true
		case strings.Contains(body, "fabricSetup"):
			return 401, `{"status":"error","msg":"Token has expired"}`, true
		case strings.Contains(body, `"bob"`):
			return 200, `{"status":"success"}`, true // a userJoined without a ucID
		}
		return 0, "", false
	}
	report := play(t, s, Config{Recordings: []Recording{restCall(t).recording()}})
	got := make(map[int]Outcome)
	for _, r := range report.Results {
		got[r.Seq] = r.Outcome
	}
	want := map[int]Outcome{
		1: Accepted, 2: Accepted, 4: Accepted, 5: Failed, 6: Accepted, 7: Refused, 8: Accepted, 9: Refused,
		10: NotSent, // Bob has no ucID
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("outcomes (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string][]int{"test.jsonl": {1, 2, 4, 6, 8}}, report.Accepted()); diff != "" {
		t.Errorf("accepted (-want +got):\n%s", diff)
	}
	sent := 0
	for _, line := range s.received {
		if strings.Contains(line, "refused "+room+"/uc~new/stats") {
			sent++
		}
	}
	if sent != 1 {
		t.Errorf("the stats were sent %d times; clients send nothing twice", sent)
	}
	var summary strings.Builder
	report.Duration = 1500 * time.Millisecond
	if err := report.WriteSummary(&summary); err != nil {
		t.Fatal(err)
	}
	wantSummary := `test.jsonl
  1  accepted 200  GET /clockSync
  3  accepted 200  POST /authenticate
  1  accepted 200  POST /v1/apps/{appID}/conferences/{conferenceID}
  1  failed        POST /v1/apps/{appID}/conferences/{conferenceID}/{ucID}/stats
  1  refused 200   POST /v1/apps/{appID}/conferences/{conferenceID}
  1  refused 401   POST /v1/apps/{appID}/conferences/{conferenceID}/{ucID}/events/fabric/setup
  1  not sent      POST /v1/apps/{appID}/conferences/{conferenceID}/{ucID}/events/feedback
test.jsonl line 5 of alice@x: POST /v1/apps/{appID}/conferences/{conferenceID}/{ucID}/stats: failed: EOF
test.jsonl line 7 of bob: POST /v1/apps/{appID}/conferences/{conferenceID} (userJoined): refused 200: the answer to userJoined has no ucID: {"status":"success"}
test.jsonl line 9 of alice@x: POST /v1/apps/{appID}/conferences/{conferenceID}/{ucID}/events/fabric/setup (fabricSetup): refused 401: status 401: {"status":"error","msg":"Token has expired"}
test.jsonl line 10 of bob: POST /v1/apps/{appID}/conferences/{conferenceID}/{ucID}/events/feedback (userFeedbackEvent): not sent: the client has no ucID: its userJoined was not answered with one
played 9 messages of 2 clients in 1.5s: 5 accepted, 4 not
`
	if diff := cmp.Diff(wantSummary, summary.String()); diff != "" {
		t.Errorf("summary (-want +got):\n%s", diff)
	}
}

func TestWrongSecret(t *testing.T) {
	s := newStub(t)
	s.secret = "another"
	report := play(t, s, Config{Recordings: []Recording{restCall(t).recording()}})
	for _, r := range report.Results {
		want := NotSent
		switch {
		case r.Seq == 1:
			want = Accepted
		case strings.HasSuffix(r.Route, "/authenticate"):
			want = Refused
		}
		if r.Outcome != want {
			t.Errorf("%s, want %s", r, want)
		}
	}
}

// A sign-in whose connection fails is repeated, as the clients do.
func TestSignInIsRepeated(t *testing.T) {
	s := newStub(t)
	attempts := 0
	s.refuse = func(r *http.Request, _ string) (int, string, bool) {
		if strings.HasSuffix(r.RequestURI, "/authenticate") {
			attempts++
			return 0, "", attempts < 3
		}
		return 0, "", false
	}
	c := (&capture{t: t}).signIn(0, "alice", "old-a")
	c.http(10, "GET", "/v1/apps/1/configurations", "old-a", "", "")
	if report := play(t, s, Config{Recordings: []Recording{c.recording()}}); !report.OK() || attempts != 3 {
		t.Errorf("%d attempts: %v", attempts, report.Results)
	}
}

// wsCall is a call over WebSocket. The gateway's answer to userJoined gives the ucID for what follows.
func wsCall(t *testing.T) *capture {
	c := &capture{t: t}
	frame := func(atMs int, data string) { c.add(atMs, "ws-client", map[string]any{"conn": 7, "data": data}) }
	c.http(0, "GET", "/clockSync", "", "", fmt.Sprintf(`{"now":%d}`, recordedEpoch))
	c.signIn(5, "alice", "old-a")
	c.add(10, "ws-open", map[string]any{"conn": 7, "host": "collector.callstats.io", "path": "/csiows/collectCallStats",
		"headers": map[string]string{"origin": "https://app.example.test"}})
	frame(20, `{"apiTS":1795343000020.5,"action":"userJoined","localID":"alice","conferenceID":"a%20room","ucID":null,"channel":"callStatsEvent","token":"old-a"}`)
	c.add(21, "ws-server", map[string]any{"conn": 7, "data": `{"status":"200 OK","event":"userJoined","ucID":"uc-old"}`})
	frame(30, `{"channel":"processedStats","apiTS":1795343000030,"conferenceID":"a%20room","ucID":"uc-old","token":"old-a","n":9115005270282338814}`)
	frame(40, `{"action":"userAlive","conferenceID":"a%20room","ucID":"uc-old","token":"old-a","value":{"ucID":"uc-old"}}`)
	frame(50, `{"channel":"userFeedbackEvent","conferenceID":"a%20room","ucID":"uc-old","token":"old-a","userQoe":{"overall":4}}`)
	c.add(60, "ws-close", map[string]any{"conn": 7, "code": 1001})
	return c
}

func TestWebSocket(t *testing.T) {
	s := newStub(t)
	report := play(t, s, Config{Recordings: []Recording{wsCall(t).recording()}})
	got := make(map[int]Outcome)
	for _, r := range report.Results {
		got[r.Seq] = r.Outcome
	}
	want := map[int]Outcome{1: Accepted, 2: Accepted, 3: Accepted, 4: Accepted, 6: Sent, 7: Accepted, 8: Accepted}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("outcomes (-want +got):\n%s\n%v", diff, report.Results)
	}
	var frames []map[string]any
	for _, text := range s.of("alice") {
		var f map[string]any
		if err := json.Unmarshal([]byte(text), &f); err != nil {
			t.Fatal(err)
		}
		frames = append(frames, f)
	}
	if len(frames) != 4 {
		t.Fatalf("got %d frames", len(frames))
	}
	if frames[0]["ucID"] != nil {
		t.Errorf("the userJoined has the ucID %v", frames[0]["ucID"])
	}
	for _, f := range frames[1:] {
		if f["ucID"] != "uc~new" || f["token"] != "token/alice/1" {
			t.Errorf("frame with ucID %v and token %v", f["ucID"], f["token"])
		}
	}
	if value := frames[2]["value"].(map[string]any); value["ucID"] != "uc~new" {
		t.Errorf("userAlive with value %v", value)
	}
	if stats := s.of("alice")[1]; !strings.Contains(stats, `"n":9115005270282338814`) || strings.Contains(stats, "1795343000030") {
		t.Errorf("stats: %s", stats)
	}
	// Nobody answers a goodbye, so the server may see it after the player has gone.
	streamtest.Eventually(t, 10*time.Second, func() string {
		closed := s.of("-")
		if slices.ContainsFunc(closed, func(l string) bool { return strings.Contains(l, "1001") }) {
			return ""
		}
		return fmt.Sprintf("no goodbye with 1001: %q", closed)
	})
}

func TestWebSocketRefusal(t *testing.T) {
	s := newStub(t)
	c := wsCall(t)
	c.lines = c.lines[:4]
	c.add(60, "ws-client", map[string]any{"conn": 7, "data": `{"action":"refuseMe","conferenceID":"a%20room","ucID":"uc-old","token":"old-a"}`})
	var progress []string
	report := play(t, s, Config{Recordings: []Recording{c.recording()}, Progress: func(r Result) {
		if r.Client != "" {
			progress = append(progress, fmt.Sprint(r.Seq, " ", r.Outcome))
		}
	}})
	last := report.Results[len(report.Results)-1]
	if last.Outcome != Refused || last.Reason != "Error no such action" {
		t.Errorf("got %s", last)
	}
	if diff := cmp.Diff([]string{"2 accepted", "3 accepted", "4 accepted", "5 sent", "5 refused"}, progress); diff != "" {
		t.Errorf("progress (-want +got):\n%s", diff)
	}
}

func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	_, err = Run(t.Context(), Config{Recordings: []Recording{restCall(t).recording()}, Gateway: "http://" + addr})
	if err == nil || !strings.Contains(err.Error(), "cannot be reached at http://"+addr) {
		t.Errorf("got %v", err)
	}
}

func TestInterrupted(t *testing.T) {
	for name, speed := range map[string]float64{"in time": 0.001, "fast": 0} {
		t.Run(name, func(t *testing.T) {
			s := newStub(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			s.refuse = func(r *http.Request, body string) (int, string, bool) {
				cancel()
				return 0, "", false
			}
			report, err := Run(ctx, Config{Recordings: []Recording{restCall(t).recording()}, Gateway: s.URL, Secret: testSecret, Speed: speed})
			if !errors.Is(err, context.Canceled) || len(report.Results) > 3 {
				t.Errorf("got %v with %v", err, report.Results)
			}
		})
	}
}

// Without a clockSync answer the messages' own times tell when the recording was.
func TestEpochStart(t *testing.T) {
	c := &capture{t: t}
	c.http(100, "POST", room, "x", `{"localID":"a","timestamp":1795343000070.5}`, "")
	c.add(200, "ws-client", map[string]any{"conn": 1, "data": `{"apiTS":1795343000195,"token":"x"}`})
	r := c.recording()
	parsed, err := parseRecording(r.Name, r.Lines)
	if err != nil {
		t.Fatal(err)
	}
	if want := int64(1795343000195 - 200); parsed.began != want {
		t.Errorf("t = 0 is %d, want %d", parsed.began, want)
	}
	if got := parsed.clock(1795343000195 + 1000); got.by != 1000 {
		t.Errorf("moved by %d", got.by)
	}
	empty := &recording{steps: []step{{}}}
	if got := empty.clock(5); got != (shift{}) {
		t.Errorf("without any time moved by %+v", got)
	}
}
