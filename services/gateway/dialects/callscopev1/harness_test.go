package callscopev1

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/callscope/callscope/internal/apps"
	"github.com/callscope/callscope/internal/stream"
	v1 "github.com/callscope/callscope/proto/callscope/v1"
	"github.com/callscope/callscope/services/gateway/auth"
	"github.com/callscope/callscope/services/gateway/intake"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testApp    = "123456789"
	testSecret = "synthetic-app-secret-01"
	testUser   = "alice@example.com/ü"
)

// broker records what is produced. It may be made to hold, as a Kafka that does not answer, or to fail.
type broker struct {
	mu       sync.Mutex
	records  []*v1.Raw
	keys     []string
	up       chan struct{} // closed while it is up
	failAt   int           // the number of the record, from 1, at which it fails for good; 0: never
	tooLarge int
}

func newBroker() *broker {
	b := &broker{up: make(chan struct{}), tooLarge: stream.MaxRecordBytes}
	close(b.up)
	return b
}

func (b *broker) down() { b.mu.Lock(); b.up = make(chan struct{}); b.mu.Unlock() }
func (b *broker) rise() { b.mu.Lock(); close(b.up); b.mu.Unlock() }

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
	if b.failAt > 0 && len(b.records)+1 >= b.failAt {
		return errors.New("this cluster refuses for good")
	}
	b.records = append(b.records, raw)
	b.keys = append(b.keys, string(key))
	return nil
}

func (b *broker) all() []*v1.Raw {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]*v1.Raw(nil), b.records...)
}

// bench is a handler behind an HTTP server on loopback.
type bench struct {
	t        testing.TB
	h        *Handler
	in       *intake.Intake
	broker   *broker
	reg      *prometheus.Registry
	registry *switchable
	tokens   *auth.Tokens
	key      *ecdsa.PrivateKey
	url      string
	http     *httptest.Server
}

// switchable is a registry whose apps a test may change.
type switchable struct {
	mu   sync.Mutex
	apps map[string]*apps.App
}

func (s *switchable) Lookup(id string) (*apps.App, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.apps[id]
	return a, ok
}

func (s *switchable) set(a *apps.App) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.apps[a.ID] = a
}

func newBench(t testing.TB, change func(*Config)) *bench {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	secret, err := apps.ParseSecret(testSecret)
	must(t, err)
	old, err := apps.ParseSecret("S0lE:an-older-secret")
	must(t, err)
	registry := &switchable{apps: make(map[string]*apps.App)}
	registry.set(&apps.App{
		ID: testApp, Secrets: []apps.Secret{old, secret}, PublicKeys: map[string]*ecdsa.PublicKey{"01": &key.PublicKey},
		Settings: apps.DefaultSettings(),
	})
	registry.set(&apps.App{ID: "2", Secrets: []apps.Secret{secret}, Origins: []string{"https://app.example.com"}, Settings: apps.DefaultSettings()})
	b := &bench{t: t, broker: newBroker(), reg: prometheus.NewRegistry(), registry: registry, key: key}
	log := slog.New(slog.NewTextHandler(&bytes.Buffer{}, nil))
	b.tokens, err = auth.NewTokens(registry, []byte("a token key for tests"))
	must(t, err)
	authenticator, err := auth.NewAuthenticator(registry, b.tokens, slog.New(slog.DiscardHandler), b.reg)
	must(t, err)
	b.in, err = intake.New(b.broker, 64<<20, log, b.reg)
	must(t, err)
	cfg := Config{
		MaxFrameBytes: 64 << 10, WindowMessages: 8, WindowBytes: 256 << 10, StoreTimeout: 2 * time.Second,
		WriteTimeout: 2 * time.Second, PingInterval: 10 * time.Second, ReconnectSpread: time.Second,
	}
	if change != nil {
		change(&cfg)
	}
	b.h, err = New(cfg, registry, authenticator, b.tokens, b.in, log, b.reg)
	must(t, err)
	b.http = httptest.NewServer(b.h)
	b.url = "ws" + strings.TrimPrefix(b.http.URL, "http") + Path
	t.Cleanup(func() {
		b.in.GiveUp()
		b.h.Drain()
		b.http.Close()
		b.in.Close()
		b.balanced()
	})
	return b
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// counter is the sum of a counter's series whose labels contain all of the given values.
func (b *bench) counter(name string, labels ...string) float64 {
	b.t.Helper()
	families, err := b.reg.Gather()
	must(b.t, err)
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	series:
		for _, m := range f.GetMetric() {
			for _, want := range labels {
				found := false
				for _, l := range m.GetLabel() {
					found = found || l.GetValue() == want
				}
				if !found {
					continue series
				}
			}
			sum += m.GetCounter().GetValue()
		}
	}
	return sum
}

func (b *bench) outcome(labels ...string) float64 {
	return b.counter("callscope_gateway_messages_total", append(labels, dialect)...)
}

// balanced checks that every message received has one outcome, once nothing is under way.
func (b *bench) balanced() {
	b.t.Helper()
	received, counted := b.counter("callscope_gateway_received_total", dialect), b.outcome()
	if received != counted {
		b.t.Errorf("%v messages received, %v outcomes counted", received, counted)
	}
}

// client is a client as docs/reference/protocol.md describes it. It keeps no state but the socket.
type client struct {
	t      testing.TB
	socket *websocket.Conn
	code   int // of the close
	// recorded gets every frame that goes either way.
	recorded func(fromServer bool, text []byte)
}

type object = map[string]any

func (b *bench) dial(header http.Header) *client {
	b.t.Helper()
	dialer := websocket.Dialer{Subprotocols: []string{Subprotocol}, HandshakeTimeout: 5 * time.Second}
	socket, response, err := dialer.Dial(b.url, header)
	if err != nil {
		b.t.Fatalf("dialling: %v (%v)", err, response)
	}
	_ = response.Body.Close()
	c := &client{t: b.t, socket: socket}
	if socket.Subprotocol() != Subprotocol {
		b.t.Fatalf("got subprotocol %q", socket.Subprotocol())
	}
	b.t.Cleanup(func() { _ = socket.Close() })
	return c
}

func (c *client) send(v any) {
	c.t.Helper()
	text, err := json.Marshal(v)
	must(c.t, err)
	c.sendText(string(text))
}

func (c *client) sendText(text string) {
	c.t.Helper()
	if c.recorded != nil {
		c.recorded(false, []byte(text))
	}
	must(c.t, c.socket.WriteMessage(websocket.TextMessage, []byte(text)))
}

// receive returns the next frame, nil once the connection is closed.
func (c *client) receive() object {
	c.t.Helper()
	must(c.t, c.socket.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, text, err := c.socket.ReadMessage()
	var closed *websocket.CloseError
	if errors.As(err, &closed) {
		c.code = closed.Code
		return nil
	}
	if err != nil {
		c.t.Fatalf("receiving: %v", err)
	}
	if c.recorded != nil {
		c.recorded(true, text)
	}
	var o object
	must(c.t, json.Unmarshal(text, &o))
	return o
}

// want receives the next frame and checks its type.
func (c *client) want(typ string) object {
	c.t.Helper()
	o := c.receive()
	if o == nil || o["type"] != typ {
		c.t.Fatalf("got %v (close code %d), want a frame %s", o, c.code, typ)
	}
	return o
}

// wantClose receives until the connection is closed.
func (c *client) wantClose(code int) {
	c.t.Helper()
	for o := c.receive(); o != nil; o = c.receive() {
		c.t.Logf("before the close: %v", o)
	}
	if c.code != code {
		c.t.Fatalf("closed with %d, want %d", c.code, code)
	}
}

// prove computes a proof from the text of the documentation, apart from the product's code.
func prove(secret, nonce, appID, userID, origin string) string {
	raw, err := base64.RawURLEncoding.DecodeString(nonce)
	if err != nil {
		panic(err)
	}
	var input bytes.Buffer
	for _, part := range []string{"callscope.v1 proof", string(raw), appID, userID, origin} {
		if err := binary.Write(&input, binary.BigEndian, uint32(len(part))); err != nil {
			panic(err)
		}
		input.WriteString(part)
	}
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(input.Bytes())
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// signIn signs in by challenge and proof and returns the signedIn frame.
func (c *client) signIn(more object) object {
	c.t.Helper()
	h := object{"type": "hello", "appID": testApp, "userID": testUser}
	for k, v := range more {
		h[k] = v
	}
	c.send(h)
	nonce := c.want("nonce")
	c.send(object{"type": "proof", "proof": prove(testSecret, nonce["nonce"].(string), testApp, testUser, "")})
	return c.want("signedIn")
}

func event(eventType string, more object) object {
	e := object{"eventType": eventType, "timestamp": 1700000000000.5}
	for k, v := range more {
		e[k] = v
	}
	return e
}

func msg(seq int, e object) object {
	return object{"seq": seq, "conferenceID": "room 1/ü", "event": e}
}

func batch(messages ...object) object { return object{"type": "batch", "messages": messages} }

// eventually polls until why returns "", which otherwise says what is not there yet.
func eventually(t testing.TB, why func() string) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for {
		reason := why()
		if reason == "" {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal(reason)
		}
	}
}

func arrival(c *connection) *intake.Arrival {
	return &intake.Arrival{Identity: c.identity, ReceivedAt: time.UnixMilli(1700000000000), RemoteAddr: "192.0.2.1:5"}
}
