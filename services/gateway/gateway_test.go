package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/callscope/callscope/internal/apps"
	"github.com/callscope/callscope/internal/stream"
	v1 "github.com/callscope/callscope/proto/callscope/v1"
)

func TestMain(m *testing.M) {
	if os.Getenv(benchServerEnv) != "" { // the server process of a benchmark
		benchServer()
		return
	}
	goleak.VerifyTestMain(m)
}

const (
	appID    = "123456789"
	secret   = "synthetic-app-secret-01"
	tokenKey = "a token key for tests"
)

// broker records what is produced. While it is down it takes nothing, as a Kafka that does not answer.
type broker struct {
	mu       sync.Mutex
	keys     []string
	records  []*v1.Raw
	up       chan struct{} // closed while it is up
	tooLarge int
}

func newBroker() *broker {
	b := &broker{up: make(chan struct{}), tooLarge: stream.MaxRecordBytes}
	close(b.up)
	return b
}

func (b *broker) down() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.up = make(chan struct{})
}

func (b *broker) recover() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.up)
}

func (b *broker) Produce(ctx context.Context, key, value []byte) error {
	if len(key)+len(value) > b.tooLarge {
		return fmt.Errorf("producing: %w", stream.ErrTooLarge)
	}
	b.mu.Lock()
	up := b.up
	b.mu.Unlock()
	select {
	case <-up:
	case <-ctx.Done():
		return ctx.Err()
	}
	raw := &v1.Raw{}
	if err := raw.UnmarshalVT(value); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.keys = append(b.keys, string(key))
	b.records = append(b.records, raw)
	return nil
}

func (b *broker) all() []*v1.Raw {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]*v1.Raw(nil), b.records...)
}

// running is a gateway on a loopback port.
type running struct {
	*Gateway
	t      testing.TB
	broker *broker
	reg    *prometheus.Registry
	key    *ecdsa.PrivateKey
	stop   func()
	log    *lockedBuffer
	client *http.Client
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func start(t testing.TB, change func(*Config)) *running {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := apps.ParseSecret(secret)
	if err != nil {
		t.Fatal(err)
	}
	registry, err := apps.NewStatic(
		&apps.App{ID: appID, Secrets: []apps.Secret{parsed}, PublicKeys: map[string]*ecdsa.PublicKey{"01": &key.PublicKey}, Settings: apps.DefaultSettings()},
		&apps.App{ID: "2", Secrets: []apps.Secret{parsed}, Settings: apps.DefaultSettings()})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Addr: "127.0.0.1:0", TokenKey: tokenKey, DrainSpread: 20 * time.Millisecond}
	if change != nil {
		change(&cfg)
	}
	r := &running{t: t, broker: newBroker(), reg: prometheus.NewRegistry(), key: key, log: &lockedBuffer{}}
	r.Gateway, err = New(cfg, registry, r.broker, slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})), r.reg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	transport := &http.Transport{MaxIdleConnsPerHost: 4}
	r.client = &http.Client{Transport: transport, Timeout: 20 * time.Second}
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			transport.CloseIdleConnections()
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run returned %v", err)
			}
			r.balanced()
		})
	}
	t.Cleanup(r.stop)
	r.eventually("the gateway is ready", func() error { return r.Ready() })
	return r
}

// eventually polls until check returns nil.
func (r *running) eventually(what string, check func() error) {
	r.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: not yet: %v", what, err)
		}
		<-tick.C
	}
}

// metric sums the samples of a metric that have the given labels.
func (r *running) metric(name string, labels ...string) float64 {
	families, err := r.reg.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	total := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			has := make(map[string]string)
			for _, l := range m.GetLabel() {
				has[l.GetName()] = l.GetValue()
			}
			match := true
			for i := 0; i < len(labels); i += 2 {
				match = match && has[labels[i]] == labels[i+1]
			}
			if match {
				total += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return total
}

func (r *running) outcomes(outcome, reason string) float64 {
	return r.metric("callscope_gateway_messages_total", "outcome", outcome, "reason", reason)
}

// balanced: every received message has an outcome, and all memory is given back.
func (r *running) balanced() {
	r.t.Helper()
	if received, outcomes := r.metric("callscope_gateway_received_total"), r.metric("callscope_gateway_messages_total"); received != outcomes {
		r.t.Errorf("received %v messages, but counted %v outcomes", received, outcomes)
	}
	if bytes := r.metric("callscope_gateway_in_flight_bytes"); bytes != 0 {
		r.t.Errorf("%v bytes are still in flight", bytes)
	}
}

func (r *running) url(path string) string { return "http://" + r.Addr() + path }

type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) json(t testing.TB) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(a.body), &m); err != nil {
		t.Fatalf("the answer is no JSON object: %q", a.body)
	}
	return m
}

func (r *running) try(method, path, token, body string) (answer, error) {
	req, err := http.NewRequest(method, r.url(path), strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Origin", "https://app.example.test")
	resp, err := r.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(text)}, err
}

func (r *running) do(method, path, token, body string) answer {
	r.t.Helper()
	a, err := r.try(method, path, token, body)
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, path, err)
	}
	if a.header.Get("Access-Control-Allow-Origin") != "*" || a.header.Get("Access-Control-Max-Age") != "7200" {
		r.t.Errorf("%s %s: CORS headers are missing: %v", method, path, a.header)
	}
	return a
}

func clientToken(t testing.TB, user, app, key string) string {
	t.Helper()
	token := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"userID": user, "appID": app, "generateTurnCredentials": false})
	token.Header = map[string]any{"alg": "HS256"}
	code, err := token.SignedString([]byte(key))
	if err != nil {
		t.Fatal(err)
	}
	return code
}

func (r *running) postForm(path string, form url.Values) answer {
	r.t.Helper()
	resp, err := r.client.PostForm(r.url(path), form)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(text)}
}

func (r *running) signIn(user, app string) string {
	r.t.Helper()
	a := r.postForm("/authenticate", url.Values{
		"client_id": {user + "@" + app}, "code": {clientToken(r.t, user, app, secret)}, "grant_type": {"authorization_code"},
	})
	token, _ := a.json(r.t)["access_token"].(string)
	if a.status != 200 || token == "" {
		r.t.Fatalf("signing in: %d %s", a.status, a.body)
	}
	return token
}

func TestAuthenticateAnswers(t *testing.T) {
	r := start(t, nil)
	for _, path := range []string{"/authenticate", "/auth/authenticate"} {
		a := r.postForm(path, url.Values{"client_id": {"alice@example.test@123456789"}, "code": {clientToken(t, "alice@example.test", appID, secret)}, "grant_type": {"authorization_code"}})
		got := a.json(t)
		if got["token_type"] != "bearer" || got["expires_in"] != 7200.0 || got["urn:x-callstats:auth:errorActions"] != nil {
			t.Errorf("%s: %s", path, a.body)
		}
		urls := got["metadata"].(map[string]any)["urls"].(map[string]any)
		want := r.url("/v1/apps")
		if diff := cmp.Diff(map[string]any{"events": want, "stats": want, "config": want}, urls); diff != "" {
			t.Errorf("%s: urls (-want +got):\n%s", path, diff)
		}
	}

	refusal := `{"urn:x-callstats:auth:errorActions":[{"action":2,"params":{"errorReason":"Invalid credentials","errorCode":1}}]}`
	good := clientToken(t, "alice", appID, secret)
	for name, form := range map[string]url.Values{
		"unknown app":      {"client_id": {"alice@999"}, "code": {clientToken(t, "alice", "999", secret)}, "grant_type": {"authorization_code"}},
		"wrong secret":     {"client_id": {"alice@123456789"}, "code": {clientToken(t, "alice", appID, "wrong")}, "grant_type": {"authorization_code"}},
		"other user":       {"client_id": {"bob@123456789"}, "code": {good}, "grant_type": {"authorization_code"}},
		"no code":          {"client_id": {"alice@123456789"}, "grant_type": {"authorization_code"}},
		"nothing":          {},
		"other grant type": {"client_id": {"alice@123456789"}, "code": {good}, "grant_type": {"password"}},
		"huge":             {"client_id": {"alice@123456789"}, "code": {strings.Repeat("x", 100<<10)}, "grant_type": {"authorization_code"}},
	} {
		a := r.postForm("/authenticate", form)
		if a.status != 401 || a.body != refusal {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	if a := r.do("GET", "/authenticate", "", ""); a.status != 401 || a.body != refusal {
		t.Errorf("GET: %d %s", a.status, a.body)
	}
	if a := r.do("POST", "/authenticate", "", "%%%;%zz"); a.status != 401 || a.body != refusal {
		t.Errorf("a form that is none: %d %s", a.status, a.body)
	}

	expired, err := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{"userID": "alice", "appID": 123456789, "keyID": "01", "exp": time.Now().Unix() - 100}).SignedString(r.key)
	if err != nil {
		t.Fatal(err)
	}
	a := r.postForm("/authenticate", url.Values{"client_id": {"alice@123456789"}, "code": {expired}, "grant_type": {"authorization_code"}})
	if want := `{"urn:x-callstats:auth:errorActions":[{"action":1,"params":{}},{"action":2,"params":{"errorReason":"Invalid credentials","errorCode":1}}]}`; a.body != want {
		t.Errorf("expired customer token: %s", a.body)
	}
	if n := r.metric("callscope_gateway_sign_ins_total", "outcome", "granted"); n != 2 {
		t.Errorf("counted %v grants", n)
	}
	if n := r.metric("callscope_gateway_sign_ins_total", "outcome", "refused"); n != 10 {
		t.Errorf("counted %v refusals", n)
	}
	if strings.Contains(r.log.String(), secret) || strings.Contains(r.log.String(), tokenKey) {
		t.Error("the log has a secret")
	}
}

func TestPublicURL(t *testing.T) {
	r := start(t, func(c *Config) { c.PublicURL = "https://collect.example.test/" })
	a := r.postForm("/authenticate", url.Values{"client_id": {"a@123456789"}, "code": {clientToken(t, "a", appID, secret)}, "grant_type": {"authorization_code"}})
	if !strings.Contains(a.body, `"events":"https://collect.example.test/v1/apps"`) {
		t.Errorf("answer %s", a.body)
	}
}

// TestSmallAnswers checks what needs no token (wire 9).
func TestSmallAnswers(t *testing.T) {
	r := start(t, nil)
	for _, path := range []string{"/clockSync", "/collector/clockSync"} {
		a := r.do("GET", path, "", "")
		now, ok := a.json(t)["now"].(float64)
		if skew := time.Since(time.UnixMilli(int64(now))); a.status != 200 || !ok || skew < -time.Minute || skew > time.Minute {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	for _, tc := range []struct {
		method, path, body, want string
		status                   int
	}{
		{"POST", "/generics", `{"eventType":"log"}`, `{"status":"success"}`, 200},
		{"POST", "/collector/generics", strings.Repeat("x", 70<<10), `{"status":"success"}`, 200},
		{"POST", "/generics", ``, `{"status":"success"}`, 200},
		{"GET", "/v1/apps/123456789/configurations/internal", "", `{}`, 200},
		{"GET", "/v1/apps/123456789/configurations", "", `{}`, 200},
		{"POST", "/123456789/configurations", `{"app_id":1}`, `{}`, 200},
		{"GET", "/api-internal/v1/qmodelthresholds", "", `{}`, 200},
		{"OPTIONS", "/v1/apps/123456789/conferences/a/b/stats", "", "", 204},
		{"OPTIONS", "/anything", "", "", 204},
	} {
		if a := r.do(tc.method, tc.path, "", tc.body); a.status != tc.status || a.body != tc.want {
			t.Errorf("%s %s: %d %s", tc.method, tc.path, a.status, a.body)
		}
	}
	a := r.do("OPTIONS", "/v1/apps/123456789/conferences/a", "", "")
	if a.header.Get("Access-Control-Allow-Headers") != "authorization, content-type" || a.header.Get("Access-Control-Allow-Methods") != "GET, POST, OPTIONS" {
		t.Errorf("preflight answer %v", a.header)
	}
	for _, script := range []string{"/static/callstats.min.js", "/static/callstats-ws.min.js"} {
		if a := r.do("GET", script, "", ""); a.status != 404 || !strings.Contains(a.body, "client library") {
			t.Errorf("%s: %d %s", script, a.status, a.body)
		}
	}
	if a := r.do("GET", "/", "", ""); a.status != 404 || a.json(t)["status"] != "error" {
		t.Errorf("/: %d %s", a.status, a.body)
	}
	if n := r.outcomes("generics", ""); n != 3 {
		t.Errorf("counted %v generics, want 3", n)
	}
	if n := len(r.broker.all()); n != 0 {
		t.Errorf("%d records were written", n)
	}
}

const join = `{"callstatsVersion":"3.73.16","timestamp":1795343322076.06,"eventType":"userJoined","localID":"alice","deviceID":"d1","remoteID":"bob"}`

func TestEventIsStored(t *testing.T) {
	r := start(t, nil)
	token := r.signIn("alice", appID)
	before := time.Now().UnixMilli()
	a := r.do("POST", "/v1/apps/123456789/conferences/Demo%20room%20%2F%201", token, join)
	ucID, _ := a.json(t)["ucID"].(string)
	if a.status != 200 || a.json(t)["status"] != "success" || ucID == "" {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if again := r.do("POST", "/v1/apps/123456789/conferences/Demo%20room%20%2F%201", token, join).json(t)["ucID"]; again != ucID {
		t.Errorf("the same join has ucID %v, then %v", ucID, again)
	}
	a = r.do("POST", "/123456789/conferences/Demo%20room%20%2F%201/"+ucID+"/events/user/alive", token, `{"eventType":"userAlive","localID":"alice"}`)
	if a.body != `{"status":"success"}` {
		t.Errorf("userAlive: %s", a.body)
	}
	records := r.broker.all()
	if len(records) != 3 {
		t.Fatalf("%d records", len(records))
	}
	if want := appID + "\x00Demo room / 1"; r.broker.keys[0] != want || r.broker.keys[2] != want {
		t.Errorf("keys %q", r.broker.keys)
	}
	raw := records[0]
	uid, err := uuid.FromBytes(raw.Uid)
	if err != nil || uid.Version() != 7 {
		t.Errorf("uid %v: %v", uid, err)
	}
	o := raw.Observed
	if o.AppId != appID || o.TokenUserId != "alice" || o.TokenId == "" || o.Origin != "https://app.example.test" || o.UserAgent == "" || o.IpMasked != "127.0.0.0" || o.Dialect != v1.Dialect_DIALECT_CALLSTATS_REST {
		t.Errorf("observed %v", o)
	}
	if o.ReceivedAtMs < before || o.ReceivedAtMs > time.Now().UnixMilli() {
		t.Errorf("received at %d", o.ReceivedAtMs)
	}
	if !bytes.Equal(o.ContentHash, records[1].Observed.ContentHash) || bytes.Equal(raw.Uid, records[1].Uid) {
		t.Error("a repeated body must have the same hash and another uid")
	}
	if bytes.Equal(o.ContentHash, records[2].Observed.ContentHash) || len(o.ContentHash) != 32 {
		t.Error("another body has the same hash")
	}
	if n := r.outcomes("accepted", ""); n != 3 {
		t.Errorf("counted %v accepted", n)
	}
}

func TestPreCall(t *testing.T) {
	r := start(t, nil)
	token := r.signIn("alice", appID)
	a := r.do("POST", "/v1/apps/123456789/events/precall", token, `{"eventType":"preCallTestResults","localID":"alice","results":{"id":"x"}}`)
	if a.body != `{"status":"success"}` {
		t.Fatalf("%s", a.body)
	}
	if want := appID + "\x00\x00alice"; r.broker.keys[0] != want {
		t.Errorf("key %q", r.broker.keys[0])
	}
	a = r.do("POST", "/v1/apps/123456789/events/precall", token, join)
	if a.status != 400 || r.outcomes("invalid", "route") != 1 {
		t.Errorf("a join without conference: %d %s", a.status, a.body)
	}
}

// oddIDs are ids that are unusual and right: each arrives byte for byte, and each is another one than all others.
var oddIDs = []string{
	"a", "/", "a/b", "//", "%", "100% sure", "%2F", "%252F", "%zz", "%00", "a b", " ", "  ", " a", "a ", "+", "a+b", "?", "#", "a?b=c#d", "..", ".", "../../etc", "./a", "a/..", "conferences", "123/conferences/x",
	"😀", "👩\u200d👩\u200d👧", "🇫🇮", "مرحبا", "שלום", "\u202eabc", "\u2066a\u2069", "é", "e\u0301", "\x00", "a\x00b", "a\x00", "\n", "\r\n", "\t", "\"quoted\"", "\"", "'", "`", "\\", "\\u0041", "<script>", "a;b", "a&b=c", "{}", "[]", "\u2028",
	"https://www.example.test/room/1?x=y", "events", "stats", "authenticate", "clockSync", strings.Repeat("é", 128), strings.Repeat("x", 255), strings.Repeat("x", 256), strings.Repeat("😀", 64),
	"null", "undefined", "NaN", "true", "0", "-1", "00", "9007199254740993", "1e3",
	"ＡＢＣ", "ABC", "АВС", "admin", "аdmin", "\ufeffbom", "\u200b", "\u00a0", "A", "\x7f", "\x1b[31m", "~", "*", "()", "!", "-_.", "会議室", "भारत", "ﬁ", "fi", "ß", "ss", "İ", "i\u0307", "K", "\u212a", "\ufffd", "\uffff", "\U0010FFFF",
	"' OR 1=1 --", "${x}", "a@b", "a:b", "a,b", "a|b", "^", "=",
}

// badID is an id that is refused, as it stands in a path, with the reason that is counted.
type badID struct{ name, segment string }

var badConferenceIDs = []badID{
	{"empty", ""},
	{"257 bytes", strings.Repeat("x", 257)},
	{"257 bytes of two-byte characters", strings.Repeat("%C3%A9", 128) + "x"},
	{"260 bytes of emoji", strings.Repeat("%F0%9F%98%80", 65)},
	{"no UTF-8 at all", "%FF"},
	{"a broken sequence", "%C3%28"},
	{"a cut sequence", "a%E2%82"},
	{"a continuation alone", "%80"},
	{"an overlong slash", "%C0%AF"},
	{"a surrogate", "%ED%A0%80"},
	{"above U+10FFFF", "%F4%90%80%80"},
}

// wantIDs: what is wanted of oddIDs holds for at least 60 of them, all different.
func wantIDs(t *testing.T, n int) {
	t.Helper()
	distinct := make(map[string]bool)
	for _, id := range oddIDs {
		distinct[id] = true
	}
	if len(distinct) != len(oddIDs) {
		t.Errorf("%d odd ids, of which only %d are different", len(oddIDs), len(distinct))
	}
	if n < 60 {
		t.Errorf("%d odd ids, want at least 60", n)
	}
}

// TestOddConferenceIDs: ids arrive as they were before encodeURIComponent, and what is no id has one refusal.
func TestOddConferenceIDs(t *testing.T) {
	r := start(t, unlimited)
	token := r.signIn("alice", appID)
	const body = `{"eventType":"userAlive","localID":"alice"}`
	for i, id := range oddIDs {
		path := "/v1/apps/123456789/conferences/" + encodeURIComponent(id) + "/events/user/alive"
		// A URL that net/http would parse and clean is not what a browser sends, so the request is written by hand.
		if status, answer := r.raw("POST", path, token, body); status != 200 || answer != `{"status":"success"}` {
			t.Errorf("%q: %d %s", id, status, answer)
		}
		if accepted, all := r.outcomes("accepted", ""), r.metric("callscope_gateway_messages_total"); accepted != float64(i+1) || all != accepted {
			t.Fatalf("%q: %v accepted of %v outcomes after %d messages", id, accepted, all, i+1)
		}
	}
	var got []string
	for _, raw := range r.broker.all() {
		got = append(got, raw.Claimed.ConferenceId)
	}
	if diff := cmp.Diff(oddIDs, got); diff != "" {
		t.Errorf("ids (-want +got):\n%s", diff)
	}
	for i, bad := range badConferenceIDs {
		status, answer := r.raw("POST", "/v1/apps/123456789/conferences/"+bad.segment+"/x", token, body)
		if status != 400 || !strings.Contains(answer, `"status":"error"`) || r.outcomes("invalid", "conference_id") != float64(i+1) {
			t.Errorf("%s: %d %s", bad.name, status, answer)
		}
		if n := r.metric("callscope_gateway_messages_total"); n != float64(len(oddIDs)+i+1) {
			t.Errorf("%s: %v outcomes after %d messages", bad.name, n, len(oddIDs)+i+1)
		}
	}
	// net/http itself refuses a path with a broken escape, before it is a message.
	if status, _ := r.raw("POST", "/v1/apps/123456789/conferences/%zz/x", token, "{}"); status != 400 {
		t.Errorf("a broken escape: %d", status)
	}
	if n := len(r.broker.all()); n != len(oddIDs) {
		t.Errorf("%d records, %d ids are right", n, len(oddIDs))
	}
	wantIDs(t, len(got))
	t.Logf("%d odd ids arrived, %d were refused", len(got), len(badConferenceIDs))
}

// TestOddUserIDs: the users' ids arrive like those of conferences, over REST in the body as they are, over WebSockets
// percent-encoded, with the conference's beside it.
func TestOddUserIDs(t *testing.T) {
	r := start(t, unlimited)
	s := &sender{r: r, token: r.signIn("alice", appID), conn: r.dial()}
	quoted := func(text string) string {
		b, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	type ids struct{ User, Conference string }
	var want []ids
	accepted := func(name, refusal string) {
		if refusal != "" || r.outcomes("accepted", "") != float64(len(want)) {
			t.Fatalf("%s: answered %q, %v accepted after %d messages", name, refusal, r.outcomes("accepted", ""), len(want))
		}
	}
	for _, id := range append(slices.Clone(oddIDs), "") {
		user := id
		if user == "" { // a message that names no user is of the user who signed in
			user = "alice"
		}
		want = append(want, ids{user, "room"})
		accepted(fmt.Sprintf("REST, %q", id), s.post("/v1/apps/123456789/conferences/room/u/events/user/alive", `{"eventType":"userAlive","localID":`+quoted(id)+`}`))
	}
	for _, id := range oddIDs {
		want = append(want, ids{id, id})
		encoded := quoted(encodeURIComponent(id))
		accepted(fmt.Sprintf("WebSocket, %q", id), s.frame(`{"action":"userAlive","conferenceID":`+encoded+`,"localID":`+encoded+`,"token":"`+s.token+`"}`))
	}
	var got []ids
	for _, raw := range r.broker.all() {
		got = append(got, ids{raw.Claimed.UserId, raw.Claimed.ConferenceId})
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ids (-want +got):\n%s", diff)
	}
	for _, bad := range []struct{ name, id, reason string }{
		{"257 bytes", strings.Repeat("u", 257), "user_id"},
		{"260 bytes of emoji", strings.Repeat("😀", 65), "user_id"},
		{"258 bytes of Greek", strings.Repeat("α", 129), "user_id"},
		{"no UTF-8", "\xff", "utf8"},
		{"a cut sequence", "a\xe2\x82", "utf8"},
		{"a surrogate", "\xed\xa0\x80", "utf8"},
		{"an overlong slash", "\xc0\xaf", "utf8"},
		{"a bare line break", "a\nb", "json"},
		{"a bare NUL", "a\x00b", "json"},
	} {
		for _, transport := range []struct {
			name string
			send func() string
		}{
			{"REST", func() string {
				return s.post("/v1/apps/123456789/conferences/room/u/events/user/alive", `{"eventType":"userAlive","localID":"`+bad.id+`"}`)
			}},
			{"WebSocket", func() string {
				return s.frame(`{"action":"userAlive","conferenceID":"room","localID":"` + bad.id + `","token":"` + s.token + `"}`)
			}},
		} {
			before, refused := r.outcomes("invalid", bad.reason), r.metric("callscope_gateway_messages_total", "outcome", "invalid")
			if answer := transport.send(); answer == "" {
				t.Errorf("%s, %s: accepted", transport.name, bad.name)
			}
			if n := r.outcomes("invalid", bad.reason); n != before+1 || r.metric("callscope_gateway_messages_total", "outcome", "invalid") != refused+1 {
				t.Errorf("%s, %s: invalid(%s) counted %v times", transport.name, bad.name, bad.reason, n-before)
			}
		}
	}
	// Percent-encoded bytes that are no UTF-8 can only come over WebSockets.
	for i, bad := range badConferenceIDs[4:] {
		if answer := s.frame(`{"action":"userAlive","conferenceID":"room","localID":"` + bad.segment + `","token":"` + s.token + `"}`); answer == "" {
			t.Errorf("WebSocket, %s percent-encoded: accepted", bad.name)
		}
		if n := r.outcomes("invalid", "user_id"); n != float64(6+i+1) {
			t.Errorf("WebSocket, %s percent-encoded: %v refused", bad.name, n)
		}
	}
	if n := len(r.broker.all()); n != len(want) {
		t.Errorf("%d records, want %d", n, len(want))
	}
	wantIDs(t, len(oddIDs))
}

func hmacSHA256(key, text []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(text)
	return mac.Sum(nil)
}

// encodeURIComponent is JavaScript's.
func encodeURIComponent(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if regexp.MustCompile(`^[A-Za-z0-9\-_.!~*'()]$`).Match([]byte{c}) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// raw sends a request whose path nothing has touched.
func (r *running) raw(method, path, token, body string) (int, string) {
	r.t.Helper()
	conn, err := net.Dial("tcp", r.Addr())
	if err != nil {
		r.t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: collector.callstats.io\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", method, path, token, len(body), body)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		r.t.Fatalf("%s: %v", path, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func TestBadEvents(t *testing.T) {
	r := start(t, func(c *Config) { c.MaxMessageBytes = 64 << 10 })
	r.broker.tooLarge = 50 << 10
	token := r.signIn("alice", appID)
	const path = "/v1/apps/123456789/conferences/room/u/events/user/alive"
	const alive = `{"eventType":"userAlive","localID":"alice"}`
	expired, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"appID": 1, "exp": 5}).SignedString([]byte("no key"))
	if err != nil {
		t.Fatal(err)
	}
	const renew = "Token has expired"
	for _, tc := range []struct {
		name, method, path, token, body string
		status                          int
		msg                             string // in the answer
		outcome, reason                 string
	}{
		{"no token", "POST", path, "", alive, 401, renew, "invalid", "token"},
		{"forged token", "POST", path, token + "x", alive, 401, renew, "invalid", "token"},
		{"forged expired token", "POST", path, expired, alive, 401, renew, "invalid", "token"},
		{"token of another app", "POST", strings.Replace(path, appID, "2", 1), token, alive, 403, "another app", "invalid", "app"},
		{"unknown app in the path", "POST", strings.Replace(path, appID, "999", 1), token, alive, 403, "another app", "invalid", "app"},
		{"empty body", "POST", path, token, "", 400, "not valid JSON", "invalid", "json"},
		{"broken JSON", "POST", path, token, `{"eventType":`, 400, "not valid JSON", "invalid", "json"},
		{"array", "POST", path, token, `[]`, 400, "not a JSON object", "invalid", "json"},
		{"NaN", "POST", path, token, `{"eventType":"x","a":NaN}`, 400, "not valid JSON", "invalid", "json"},
		{"invalid UTF-8", "POST", path, token, "{\"eventType\":\"x\xff\"}", 400, "UTF-8", "invalid", "utf8"},
		{"deep", "POST", path, token, `{"eventType":"x","a":` + strings.Repeat("[", 10000) + `}`, 400, "nested", "invalid", "depth"},
		{"no event type", "POST", path, token, `{"localID":"a"}`, 400, "names no event", "invalid", "event_type"},
		{"long user", "POST", path, token, `{"eventType":"x","localID":"` + strings.Repeat("u", 257) + `"}`, 400, "257 bytes", "invalid", "user_id"},
		{"oversized", "POST", path, token, `{"eventType":"x","a":"` + strings.Repeat("x", 64<<10) + `"}`, 413, "larger", "oversized", "body"},
		{"oversized record", "POST", path, token, `{"eventType":"x","a":"` + strings.Repeat("x", 60<<10) + `"}`, 413, "stored record", "oversized", "record"},
		{"GET", "GET", path, token, "", 405, "POST", "unsupported", "method"},
		{"no such route", "POST", "/v1/apps/123456789/other", token, alive, 404, "nothing at this address", "unsupported", "route"},
		{"app is no number", "POST", "/v1/apps/abc/conferences/x", token, alive, 404, "nothing at this address", "unsupported", "route"},
		{"unknown event type", "POST", path, token, `{"eventType":"somethingNew","localID":"alice"}`, 200, "", "accepted", ""},
		{"unknown ucID and suffix", "POST", "/v1/apps/123456789/conferences/nobody-joined/whatever/events/x/y", token, alive, 200, "", "accepted", ""},
	} {
		before, received := r.outcomes(tc.outcome, tc.reason), r.metric("callscope_gateway_received_total")
		a := r.do(tc.method, tc.path, tc.token, tc.body)
		msg, _ := a.json(t)["msg"].(string)
		if a.status != tc.status || !strings.Contains(msg, tc.msg) || (a.json(t)["status"] == "success") != (tc.status == 200) {
			t.Errorf("%s: %d %s", tc.name, a.status, a.body)
		}
		if (msg == renew) != (tc.msg == renew) {
			t.Errorf("%s: only a bad token may make a client sign in again: %s", tc.name, a.body)
		}
		if got := r.outcomes(tc.outcome, tc.reason); got != before+1 || r.metric("callscope_gateway_received_total") != received+1 {
			t.Errorf("%s: outcome %s(%s) counted %v times", tc.name, tc.outcome, tc.reason, got-before)
		}
	}
	if records := r.broker.all(); len(records) != 2 || records[0].GetOther() == nil || records[1].GetUserAlive() == nil {
		t.Errorf("stored %v", records)
	}
}

func TestChunkedBody(t *testing.T) {
	r := start(t, nil)
	token := r.signIn("alice", appID)
	req, err := http.NewRequest("POST", r.url("/v1/apps/123456789/conferences/room/u/stats"), io.MultiReader(strings.NewReader(`{"eventType":"stats",`), strings.NewReader(`"stats":[]}`)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "bearer "+token)
	resp, err := r.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, _ := io.ReadAll(resp.Body); string(text) != `{"status":"success"}` || r.broker.all()[0].GetStats() == nil {
		t.Errorf("%s", text)
	}
}

func TestExpiredToken(t *testing.T) {
	r := start(t, nil)
	expired := r.expiredToken()
	a := r.do("POST", "/v1/apps/123456789/conferences/room/u/stats", expired, `{"eventType":"stats"}`)
	if a.body != `{"msg":"Token has expired","status":"error"}` || r.outcomes("auth_expired", "") != 1 {
		t.Errorf("%d %s", a.status, a.body)
	}
	c := r.dial()
	defer c.close()
	c.send(map[string]any{"version": "3.24.6", "action": "userAlive", "channel": "callStatsEvent", "conferenceID": "r", "localID": "alice", "token": expired})
	if got := c.receive(); got != `{"status":"Error","reason":"Invalid client token."}` || r.outcomes("auth_expired", "") != 2 {
		t.Errorf("on the socket: %s", got)
	}
}

// expiredToken is one of ours whose time is over, signed as the gateway signs.
func (r *running) expiredToken() string {
	r.t.Helper()
	mac := hmacSHA256([]byte(tokenKey), []byte("callscope access token"))
	unsigned := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"appID": 123456789, "userID": "alice", "jti": "x", "exp": time.Now().Add(-time.Minute).Unix()})
	unsigned.Header["kid"] = fmt.Sprintf("%x", hmacSHA256(mac, []byte("callscope key id"))[:6])
	token, err := unsigned.SignedString(mac)
	if err != nil {
		r.t.Fatal(err)
	}
	return token
}

// TestBrokerDown: what cannot be stored in time is counted as shed and its connection closed without an answer, but a
// userJoined is answered, because its client would report nothing otherwise.
func TestBrokerDown(t *testing.T) {
	r := start(t, func(c *Config) { c.StoreTimeout, c.JoinPatience = 200*time.Millisecond, 100*time.Millisecond })
	token := r.signIn("alice", appID)
	r.broker.down()
	if a, err := r.try("POST", "/v1/apps/123456789/conferences/room/u/stats", token, `{"eventType":"stats","stats":[]}`); err == nil {
		t.Errorf("answered %d %s while nothing could be stored", a.status, a.body)
	}
	// net/http's client repeats a POST on a fresh connection only when it may, so every attempt is counted.
	if n := r.outcomes("shed", "store"); n < 1 {
		t.Errorf("counted %v shed", n)
	}
	a := r.do("POST", "/v1/apps/123456789/conferences/room", token, join)
	if a.status != 200 || a.json(t)["ucID"] == nil || r.outcomes("join_unconfirmed", "") != 1 {
		t.Errorf("userJoined: %d %s", a.status, a.body)
	}
	if n := len(r.broker.all()); n != 0 {
		t.Errorf("%d records", n)
	}
	r.broker.recover()
	r.eventually("the join is stored", func() error {
		if n := r.metric("callscope_gateway_unconfirmed_joins_total", "result", "stored"); n != 1 {
			return fmt.Errorf("stored %v", n)
		}
		return nil
	})
	if records := r.broker.all(); len(records) != 1 || records[0].GetUserJoined() == nil {
		t.Errorf("stored %v", records)
	}
	if a := r.do("POST", "/v1/apps/123456789/conferences/room/u/stats", token, `{"eventType":"stats"}`); a.status != 200 {
		t.Errorf("after the recovery: %d %s", a.status, a.body)
	}
}

// TestJoinLost: a join that was answered and never stored is counted when the gateway ends.
func TestJoinLost(t *testing.T) {
	r := start(t, func(c *Config) { c.JoinPatience, c.DrainTimeout = 20*time.Millisecond, 50*time.Millisecond })
	token := r.signIn("alice", appID)
	r.broker.down()
	if a := r.do("POST", "/v1/apps/123456789/conferences/room", token, join); a.json(t)["ucID"] == nil {
		t.Errorf("%s", a.body)
	}
	r.stop()
	if n := r.metric("callscope_gateway_unconfirmed_joins_total", "result", "lost"); n != 1 {
		t.Errorf("counted %v lost joins", n)
	}
}

// TestBudget: what there is no memory for is shed at once.
func TestBudget(t *testing.T) {
	r := start(t, func(c *Config) {
		c.MaxMessageBytes, c.BudgetBytes = 64<<10, 64<<10
	})
	token := r.signIn("alice", appID)
	early, err := net.Dial("tcp", r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	r.broker.down()
	first := make(chan error, 1)
	body := `{"eventType":"x","a":"` + strings.Repeat("x", 60<<10) + `"}`
	go func() {
		a, err := r.try("POST", "/v1/apps/123456789/conferences/room/u/x", token, body)
		if err == nil && a.status != 200 {
			err = fmt.Errorf("%d %s", a.status, a.body)
		}
		first <- err
	}()
	r.eventually("the first message is in flight", func() error {
		if n := r.metric("callscope_gateway_in_flight_bytes"); n < 60<<10 {
			return fmt.Errorf("%v bytes", n)
		}
		return nil
	})
	// Who is connected is served while there is room, new connections are not let in before that.
	fmt.Fprintf(early, "POST /v1/apps/123456789/conferences/room/u/x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s", token, len(body), body)
	if text, err := io.ReadAll(early); len(text) > 0 {
		t.Errorf("answered %q (%v) without room", text, err)
	}
	if n := r.outcomes("shed", "memory"); n != 1 {
		t.Errorf("counted %v shed", n)
	}
	if a, err := r.try("GET", "/clockSync", "", ""); err == nil {
		t.Errorf("a new connection was let in: %d %s", a.status, a.body)
	}
	if n := r.metric("callscope_gateway_refused_connections_total", "reason", "budget"); n < 1 {
		t.Errorf("counted %v refused connections", n)
	}
	r.broker.recover()
	if err := <-first; err != nil {
		t.Errorf("the first message: %v", err)
	}
}

func TestAddressInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	registry, err := apps.NewStatic()
	if err != nil {
		t.Fatal(err)
	}
	g, err := New(Config{Addr: l.Addr().String(), TokenKey: tokenKey}, registry, newBroker(), slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	err = g.Run(context.Background())
	if err == nil || !strings.Contains(err.Error(), l.Addr().String()) || !strings.Contains(err.Error(), "gateway.addr") || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %v", err)
	}
	if g.Ready() == nil || g.Addr() != "" {
		t.Errorf("ready %v at %q", g.Ready(), g.Addr())
	}
}

func TestValidate(t *testing.T) {
	if err := (Config{}).Validate(); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
	for _, tc := range []struct {
		want string
		cfg  Config
	}{
		{"gateway.addr", Config{Addr: "8080"}},
		{"gateway.addr", Config{Addr: "0.0.0.0:8080"}},
		{"gateway.addr", Config{Addr: ":8080"}},
		{"gateway.tls_cert_file", Config{TLSCertFile: "x"}},
		{"gateway.public_url", Config{PublicURL: "collect.example.test"}},
		{"gateway.public_url", Config{PublicURL: "https://collect.example.test/v1/apps"}},
		{"gateway.token_key", Config{TokenKey: "short"}},
		{"gateway.max_message_bytes", Config{MaxMessageBytes: 1000}},
		{"gateway.budget_bytes", Config{BudgetBytes: 1000}},
		{"gateway.store_timeout", Config{StoreTimeout: 6 * time.Second}},
		{"gateway.ping_interval", Config{PingInterval: -1}},
	} {
		if err := tc.cfg.Validate(); err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "short\"") {
			t.Errorf("%+v: error %v, want one about %s", tc.cfg, err, tc.want)
		}
	}
	for _, cfg := range []Config{{Addr: "0.0.0.0:80", AllowPlain: true}, {Addr: "[::1]:0"}, {Addr: "localhost:0"}, {TLSCertFile: "c", TLSKeyFile: "k"}} {
		if err := cfg.Validate(); err != nil {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}

// TestCapturesPlay sends every recorded HTTP request and frame to the gateway, with tokens of its own, and reads the
// answers as the clients do.
func TestCapturesPlay(t *testing.T) {
	files, err := filepath.Glob("../../test/captures/*.jsonl")
	if err != nil || len(files) < 10 {
		t.Fatalf("found %d recordings: %v", len(files), err)
	}
	r := start(t, nil)
	tokens := make(map[string]string)
	tokenOf := func(user string) string {
		if tokens[user] == "" {
			tokens[user] = r.signIn(user, appID)
		}
		return tokens[user]
	}
	var wantEvents, gotEvents []string
	sockets := make(map[string]*socket)
	for _, name := range files {
		if strings.HasSuffix(name, ".callbacks.jsonl") {
			continue
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, 16<<20)
		for lines.Scan() {
			var line struct {
				Seq, Conn                      int
				Kind, Method, Path, Body, Data string
			}
			if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
				t.Fatal(err)
			}
			var message map[string]any
			text := line.Body
			if line.Kind == "ws-client" {
				text = line.Data
			}
			event := ""
			if json.Unmarshal([]byte(text), &message) == nil {
				for _, k := range []string{"channel", "action", "eventType"} {
					if s, ok := message[k].(string); ok {
						event = s
					}
				}
			}
			user, _ := message["localID"].(string)
			if user == "" {
				user, _ = message["userID"].(string)
			}
			conn := fmt.Sprint(name, line.Conn)
			switch {
			case line.Kind == "ws-open":
				sockets[conn] = r.dial()
			case line.Kind == "ws-client":
				message["token"] = tokenOf(user)
				sockets[conn].send(message)
				wantEvents = append(wantEvents, event)
				switch event {
				case "userJoined", "userAlive", "fabricSetupFailed":
					want := message["conferenceID"]
					if want == nil {
						want = message["confID"]
					}
					var got map[string]any
					if err := json.Unmarshal([]byte(sockets[conn].receive()), &got); err != nil || got["status"] != "200 OK" || got["event"] != event || got["conferenceID"] != want || got["ucID"] == "" || got["conferenceDuration"] != 0.0 {
						t.Errorf("%s: answer %v", event, got)
					}
				case "userFeedbackEvent":
					if got := sockets[conn].receive(); got != `{"status":"200 OK","event":"feedback"}` {
						t.Errorf("feedback: %s", got)
					}
				}
			case line.Kind == "ws-close":
				sockets[conn].close()
			case line.Kind != "http" || strings.HasSuffix(line.Path, "/authenticate"):
			case line.Method == "OPTIONS":
				if a := r.do("OPTIONS", line.Path, "", ""); a.status != 204 {
					t.Errorf("%s: preflight %d", line.Path, a.status)
				}
			case strings.Contains(line.Path, "/conferences/") || strings.HasSuffix(line.Path, "/events/precall"):
				wantEvents = append(wantEvents, event)
				status, body := r.raw(line.Method, line.Path, tokenOf(user), line.Body)
				var got map[string]any
				if err := json.Unmarshal([]byte(body), &got); err != nil || status != 200 || got["status"] != "success" || (event == "userJoined") != (got["ucID"] != nil) {
					t.Errorf("%s line %d: %d %s", name, line.Seq, status, body)
				}
			default:
				if a := r.do(line.Method, line.Path, "", line.Body); a.status != 200 || a.json(t) == nil {
					t.Errorf("%s %s: %d %s", line.Method, line.Path, a.status, a.body)
				}
			}
		}
		if err := lines.Err(); err != nil {
			t.Fatal(err)
		}
	}
	r.eventually("everything is stored", func() error {
		if n := len(r.broker.all()); n != len(wantEvents) {
			return fmt.Errorf("%d records of %d", n, len(wantEvents))
		}
		return nil
	})
	count := func(names []string) map[string]int {
		n := make(map[string]int)
		for _, name := range names {
			n[name]++
		}
		return n
	}
	for _, raw := range r.broker.all() {
		name := raw.OriginalType
		if name == "" {
			name = raw.EventType
		}
		gotEvents = append(gotEvents, name)
		if raw.Claimed.DeviceId == "" {
			t.Errorf("%s of %s has no device", raw.EventType, raw.Claimed.UserId)
		}
		if raw.Observed.TokenUserId != raw.Claimed.UserId {
			t.Errorf("%s of %s came with the token of %s", raw.EventType, raw.Claimed.UserId, raw.Observed.TokenUserId)
		}
	}
	if diff := cmp.Diff(count(wantEvents), count(gotEvents)); diff != "" {
		t.Errorf("events (-sent +stored):\n%s", diff)
	}
	if n := r.outcomes("accepted", ""); n != float64(len(wantEvents)) {
		t.Errorf("counted %v accepted of %d", n, len(wantEvents))
	}
}

// socket is a client of the WebSocket dialects.
type socket struct {
	t    testing.TB
	conn *websocket.Conn
}

func (r *running) dial() *socket {
	r.t.Helper()
	d := websocket.Dialer{Subprotocols: []string{"echo-protocol"}, EnableCompression: true}
	conn, resp, err := d.Dial("ws://"+r.Addr()+"/csiows/collectCallStats", http.Header{"Origin": {"https://app.example.test"}})
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	if conn.Subprotocol() != "echo-protocol" {
		r.t.Errorf("subprotocol %q: a browser would refuse it", conn.Subprotocol())
	}
	s := &socket{t: r.t, conn: conn}
	r.t.Cleanup(s.close)
	return s
}

func (s *socket) send(message map[string]any) {
	s.t.Helper()
	if err := s.conn.WriteJSON(message); err != nil {
		s.t.Fatal(err)
	}
}

func (s *socket) sendText(kind int, text string) {
	s.t.Helper()
	if err := s.conn.WriteMessage(kind, []byte(text)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *socket) receive() string {
	s.t.Helper()
	if err := s.conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		s.t.Fatal(err)
	}
	_, text, err := s.conn.ReadMessage()
	if err != nil {
		s.t.Fatalf("waiting for an answer: %v", err)
	}
	return string(text)
}

// closeCode reads until the connection ends and returns the code that it was closed with, 0 for none.
func (s *socket) closeCode() int {
	s.t.Helper()
	if err := s.conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		s.t.Fatal(err)
	}
	for {
		if _, _, err := s.conn.ReadMessage(); err != nil {
			var closed *websocket.CloseError
			if errors.As(err, &closed) {
				return closed.Code
			}
			s.t.Logf("the connection ended with %v", err)
			return 0
		}
	}
}

func (s *socket) close() { _ = s.conn.Close() }

func frame(token, action string, n int) map[string]any {
	return map[string]any{
		"version": "3.24.6", "channel": "callStatsEvent", "action": action, "conferenceID": "Demo%20room%20%2F%201", "localID": "alice%40x", "remoteID": "bob",
		"pcID": "p", "deviceID": "d1", "appID": 123456789, "ucID": nil, "apiTS": n, "timeShift": 0, "token": token, "value": map[string]any{},
	}
}

func TestSocketAnswers(t *testing.T) {
	r := start(t, nil)
	token := r.signIn("alice@x", appID)
	c := r.dial()
	ucID := r.do("POST", "/v1/apps/123456789/conferences/Demo%20room%20%2F%201", token, join).json(t)["ucID"].(string)
	for _, action := range []string{"userJoined", "userAlive", "fabricSetupFailed"} {
		c.send(frame(token, action, 1))
		if want := fmt.Sprintf(`{"status":"200 OK","event":%q,"conferenceID":"Demo%%20room%%20%%2F%%201","ucID":%q,"conferenceDuration":0}`, action, ucID); c.receive() != want {
			t.Errorf("%s: the answer is not %s", action, want)
		}
	}
	c.send(map[string]any{"channel": "userFeedbackEvent", "conferenceID": "r", "userID": "alice", "userQoe": map[string]any{"overall": 4}, "token": token, "version": "3.24.6"})
	if got := c.receive(); got != `{"status":"200 OK","event":"feedback"}` {
		t.Errorf("feedback: %s", got)
	}
	records := r.broker.all()
	last := records[len(records)-1]
	if last.Claimed.DeviceId != "d1" {
		t.Errorf("a message without device has device %q, want the one last seen on the socket", last.Claimed.DeviceId)
	}
	if last.Observed.Dialect != v1.Dialect_DIALECT_CALLSTATS_WS_324 || last.Observed.Origin != "https://app.example.test" || last.Observed.IpMasked != "127.0.0.0" {
		t.Errorf("observed %v", last.Observed)
	}
	c.send(map[string]any{"action": "clockSync", "token": token})
	if got := c.receive(); !strings.HasPrefix(got, `{"status":"200 OK","event":"clockSync","now":1`) {
		t.Errorf("clockSync: %s", got)
	}
}

// TestSocketOrder: many frames in a row arrive in order, and their answers too.
func TestSocketOrder(t *testing.T) {
	r := start(t, func(c *Config) { c.WindowMessages, c.WindowBytes = 4, 4096 })
	token := r.signIn("alice@x", appID)
	c := r.dial()
	r.broker.down()
	const n = 300
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for i := range n {
			action := "userAlive"
			if i%2 == 0 {
				action = "audioMute"
			}
			c.send(frame(token, action, i+1))
		}
	}()
	r.eventually("the window is full", func() error {
		if got := r.metric("callscope_gateway_received_total"); got < 3 {
			return fmt.Errorf("received %v", got)
		}
		return nil
	})
	if bytes := r.metric("callscope_gateway_in_flight_bytes"); bytes > 3*4096 {
		t.Errorf("%v bytes in memory for a window of 4096", bytes)
	}
	r.broker.recover()
	for range n / 2 {
		c.receive()
	}
	<-sent
	for i, raw := range r.broker.all() {
		if raw.Claimed.TimeMs != float64(i+1) {
			t.Fatalf("record %d is message %v", i, raw.Claimed.TimeMs)
		}
	}
	if got := r.outcomes("accepted", ""); got != n {
		t.Errorf("accepted %v of %d", got, n)
	}
}

func TestBadFrames(t *testing.T) {
	r := start(t, func(c *Config) { c.MaxMessageBytes = 64 << 10 })
	r.broker.tooLarge = 50 << 10
	token := r.signIn("alice", appID)
	c := r.dial()
	withToken := func(body string) string { return strings.Replace(body, "TOKEN", token, 1) }
	for _, tc := range []struct {
		name            string
		kind            int
		body, answer    string
		outcome, reason string
	}{
		{"no JSON", websocket.TextMessage, "hello", "not valid JSON", "invalid", "json"},
		{"empty", websocket.TextMessage, "", "not valid JSON", "invalid", "json"},
		{"array", websocket.TextMessage, "[1]", "not a JSON object", "invalid", "json"},
		{"deep", websocket.TextMessage, `{"action":"x","a":` + strings.Repeat("[", 10000), "nested", "invalid", "depth"},
		{"invalid UTF-8", websocket.TextMessage, "{\"action\":\"x\xff\"}", "UTF-8", "invalid", "utf8"},
		{"binary", websocket.BinaryMessage, "{}", "text frames", "unsupported", "binary"},
		{"no token", websocket.TextMessage, `{"action":"userAlive","conferenceID":"r"}`, "Invalid client token.", "invalid", "token"},
		{"forged token", websocket.TextMessage, `{"action":"userAlive","conferenceID":"r","token":"e30.e30.e30"}`, "Invalid client token.", "invalid", "token"},
		{"token is an object", websocket.TextMessage, `{"action":"userAlive","conferenceID":"r","token":{}}`, "Invalid client token.", "invalid", "token"},
		{"another app", websocket.TextMessage, withToken(`{"action":"userAlive","conferenceID":"r","appID":2,"token":"TOKEN"}`), "another app", "invalid", "app"},
		{"no action", websocket.TextMessage, withToken(`{"conferenceID":"r","token":"TOKEN"}`), "names no event", "invalid", "event_type"},
		{"no conference", websocket.TextMessage, withToken(`{"action":"userAlive","token":"TOKEN"}`), "names no conference", "invalid", "conference_id"},
		{"long conference", websocket.TextMessage, withToken(`{"action":"userAlive","conferenceID":"` + strings.Repeat("x", 257) + `","token":"TOKEN"}`), "257 bytes", "invalid", "conference_id"},
		{"too large", websocket.TextMessage, `{"action":"` + strings.Repeat("x", 64<<10) + `"}`, "too large", "oversized", "frame"},
		{"too large for Kafka", websocket.TextMessage, withToken(`{"action":"x","conferenceID":"r","token":"TOKEN","a":"` + strings.Repeat("x", 60<<10) + `"}`), "stored record", "oversized", "record"},
	} {
		before := r.outcomes(tc.outcome, tc.reason)
		c.sendText(tc.kind, tc.body)
		var got map[string]any
		if err := json.Unmarshal([]byte(c.receive()), &got); err != nil || got["status"] != "Error" || !strings.Contains(got["reason"].(string), tc.answer) {
			t.Errorf("%s: answer %v, want one about %q", tc.name, got, tc.answer)
		}
		if n := r.outcomes(tc.outcome, tc.reason); n != before+1 {
			t.Errorf("%s: outcome %s(%s) counted %v times", tc.name, tc.outcome, tc.reason, n-before)
		}
	}
	// Nothing else is lost: the same connection still serves.
	c.sendText(websocket.TextMessage, withToken(`{"action":"userAlive","conferenceID":"r","localID":"alice","token":"TOKEN"}`))
	if got := c.receive(); !strings.Contains(got, `"status":"200 OK"`) {
		t.Errorf("after all that: %s", got)
	}
	if n := len(r.broker.all()); n != 1 {
		t.Errorf("%d records", n)
	}
	// Far beyond the limit the connection is given up.
	c.sendText(websocket.TextMessage, strings.Repeat("x", 17*64<<10))
	if code := c.closeCode(); code != websocket.CloseMessageTooBig {
		t.Errorf("closed with %d", code)
	}
}

// TestDrain: what was received is stored before the gateway ends, and sockets are closed with 1012.
func TestDrain(t *testing.T) {
	r := start(t, nil)
	token := r.signIn("alice@x", appID)
	c, idle := r.dial(), r.dial()
	r.broker.down()
	c.send(frame(token, "audioMute", 1))
	c.send(frame(token, "userAlive", 2))
	r.eventually("both frames are in", func() error {
		if got := r.metric("callscope_gateway_received_total"); got != 2 {
			return fmt.Errorf("received %v", got)
		}
		return nil
	})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		r.stop()
	}()
	if code := idle.closeCode(); code != websocket.CloseServiceRestart {
		t.Errorf("an idle socket was closed with %d", code)
	}
	idle.close()
	r.broker.recover()
	if got := c.receive(); !strings.Contains(got, `"event":"userAlive"`) {
		t.Errorf("answer %s", got)
	}
	if code := c.closeCode(); code != websocket.CloseServiceRestart {
		t.Errorf("closed with %d", code)
	}
	c.close()
	<-stopped
	if n := len(r.broker.all()); n != 2 {
		t.Errorf("%d of 2 frames were stored", n)
	}
	if r.Ready() == nil || r.Addr() != "" {
		t.Errorf("ready %v at %q after the end", r.Ready(), r.Addr())
	}
}

// TestDrainWithoutBroker: shutdown ends although nothing can be stored, and what was not is counted.
func TestDrainWithoutBroker(t *testing.T) {
	r := start(t, func(c *Config) { c.DrainTimeout = 100 * time.Millisecond })
	token := r.signIn("alice@x", appID)
	c := r.dial()
	r.broker.down()
	for i := range 3 {
		c.send(frame(token, "audioMute", i))
	}
	r.eventually("the frames are in", func() error {
		if got := r.metric("callscope_gateway_received_total"); got != 3 {
			return fmt.Errorf("received %v", got)
		}
		return nil
	})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		r.stop()
	}()
	if code := c.closeCode(); code != websocket.CloseTryAgainLater {
		t.Errorf("closed with %d", code)
	}
	c.close()
	<-stopped
	if n := r.outcomes("shed", "store"); n != 3 {
		t.Errorf("counted %v shed", n)
	}
}

// TestGoneClient: what a client sent before it left is stored.
func TestGoneClient(t *testing.T) {
	r := start(t, nil)
	token := r.signIn("alice@x", appID)
	c := r.dial()
	c.send(frame(token, "fabricTerminated", 1))
	c.close()
	r.eventually("the frame is stored", func() error {
		if n := len(r.broker.all()); n != 1 {
			return fmt.Errorf("%d records", n)
		}
		return nil
	})
	r.eventually("the connection is forgotten", func() error {
		if n := r.metric("callscope_gateway_websocket_connections"); n != 0 {
			return fmt.Errorf("%v open", n)
		}
		return nil
	})
}

// TestSilentClient: a peer that answers no ping is dropped.
func TestSilentClient(t *testing.T) {
	r := start(t, func(c *Config) { c.PingInterval, c.WriteTimeout = 20*time.Millisecond, 50*time.Millisecond })
	r.dial() // nobody reads from it, so nobody answers pings
	r.eventually("it is dropped", func() error {
		if n := r.metric("callscope_gateway_websocket_connections"); n != 0 {
			return fmt.Errorf("%v open", n)
		}
		return nil
	})
}

func TestNotAWebSocket(t *testing.T) {
	r := start(t, nil)
	resp, err := r.client.Get(r.url("/csiows/collectCallStats"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != 400 || !strings.Contains(string(text), "WebSocket") {
		t.Errorf("%d %s", resp.StatusCode, text)
	}
}

func TestRandomTokenKeyWarns(t *testing.T) {
	var log bytes.Buffer
	registry, err := apps.NewStatic()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{}, registry, newBroker(), slog.New(slog.NewTextHandler(&log, nil)), nil); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "gateway.token_key") {
		t.Errorf("log %q", log.String())
	}
}
