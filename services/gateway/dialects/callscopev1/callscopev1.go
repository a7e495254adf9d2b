// Package callscopev1 speaks callscope's own protocol, callscope.v1, over WebSocket: sign-in by challenge and proof, by a
// customer's token or by a token of ours; numbered messages in batches; cumulative acknowledgements once Kafka has the
// messages. docs/reference/protocol.md is its contract and docs/reference/asyncapi.yaml its schema; whoever changes one
// of the three changes all.
//
// It keeps nothing but the open connection: what is acknowledged is in Kafka, and what a client sends again after a cut is
// recognised by session and number in the enricher. It has no message queue of its own beyond the window.
package callscopev1

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"github.com/callscope/callscope/services/gateway/auth"
	"github.com/callscope/callscope/services/gateway/intake"
	"github.com/callscope/callscope/services/gateway/limits"
)

const (
	// Path is the address of the socket.
	Path = "/v1/ws"
	// Subprotocol is what a client has to ask for.
	Subprotocol = "callscope.v1"
	// dialect is the label of the message counters.
	dialect = "callscope_v1"
)

// Config of the dialect. The gateway fills it from its own; zero durations of the last group have the defaults in their
// comments.
type Config struct {
	MaxFrameBytes int64
	// What one connection may have received and not stored; then its frames stay in the network.
	WindowMessages int
	WindowBytes    int64
	// StoreTimeout is how long the messages of a connection that has ended may still take into Kafka. While a
	// connection lives they have no limit: its client is slowed instead.
	StoreTimeout time.Duration
	WriteTimeout time.Duration
	PingInterval time.Duration
	Limits       *limits.Limiter // nil: none

	SignInTimeout   time.Duration // 10 s: from the upgrade to the sign-in
	NonceLifetime   time.Duration // 30 s: from a nonce to its proof
	ThrottleAfter   time.Duration // 500 ms: how long the window may be full until the client is told
	ReconnectSpread time.Duration // 45 s: over how long the clients of a gateway that shuts down are told to come back
}

func (c Config) withDefaults() Config {
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{
		{&c.SignInTimeout, 10 * time.Second}, {&c.NonceLifetime, 30 * time.Second},
		{&c.ThrottleAfter, 500 * time.Millisecond}, {&c.ReconnectSpread, 45 * time.Second},
	} {
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	return c
}

// maxBatch is how many messages one frame may carry.
func (c Config) maxBatch() int { return min(c.WindowMessages, 64) }

// Handler serves connections. They are hijacked from the HTTP server, so it keeps them itself.
type Handler struct {
	cfg           Config
	registry      auth.Registry
	authenticator *auth.Authenticator
	tokens        *auth.Tokens
	intake        *intake.Intake
	log           *slog.Logger
	upgrader      websocket.Upgrader
	parsing       chan struct{}          // places for parsing: a parsed frame takes many times its size
	statuses      *prometheus.CounterVec // cs_error, reason
	throttled     prometheus.Counter
	lost          prometheus.Counter

	mu          sync.Mutex
	connections map[*connection]struct{}
	draining    bool
	running     sync.WaitGroup
	open        atomic.Int64
}

// New does no I/O. reg may be nil.
func New(cfg Config, registry auth.Registry, authenticator *auth.Authenticator, tokens *auth.Tokens, in *intake.Intake, log *slog.Logger, reg prometheus.Registerer) (*Handler, error) {
	h := &Handler{
		cfg: cfg.withDefaults(), registry: registry, authenticator: authenticator, tokens: tokens, intake: in, log: log,
		parsing:     make(chan struct{}, 2*runtime.GOMAXPROCS(0)),
		connections: make(map[*connection]struct{}),
		statuses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "callscope_gateway_protocol_statuses_total",
			Help: "Status messages that clients of our own protocol were sent, by csError and reason.",
		}, []string{"cs_error", "reason"}),
		throttled: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "callscope_gateway_protocol_throttles_total",
			Help: "Times a client of our own protocol was told to slow down because its window, its quota or the gateway's memory was full.",
		}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "callscope_gateway_client_lost_messages_total",
			Help: "Messages that clients of our own protocol say they dropped unsent, because their buffers were full.",
		}),
	}
	h.upgrader = websocket.Upgrader{
		HandshakeTimeout: 5 * time.Second,
		Subprotocols:     []string{Subprotocol},
		ReadBufferSize:   4096,
		WriteBufferSize:  1024,
		WriteBufferPool:  &sync.Pool{},
		// Nothing here rests on cookies, and an app's origins are checked when its client signs in.
		CheckOrigin: func(*http.Request) bool { return true },
		Error: func(w http.ResponseWriter, _ *http.Request, status int, reason error) {
			h.httpError(w, status, "upgrade", reason.Error())
		},
	}
	if reg == nil {
		return h, nil
	}
	if err := errors.Join(reg.Register(h.statuses), reg.Register(h.throttled), reg.Register(h.lost)); err != nil {
		return nil, fmt.Errorf("registering the counters of %s: %w", Subprotocol, err)
	}
	return h, nil
}

// Open is the number of open connections.
func (h *Handler) Open() int64 { return h.open.Load() }

// ServeHTTP returns when the connection has ended and everything that it sent is counted.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case !websocket.IsWebSocketUpgrade(r):
		w.Header().Set("Upgrade", "websocket")
		h.httpError(w, http.StatusUpgradeRequired, "upgrade", "This address is a WebSocket: connect to it with wss and the subprotocol "+Subprotocol+".")
		return
	case !slices.Contains(websocket.Subprotocols(r), Subprotocol):
		h.httpError(w, http.StatusBadRequest, "subprotocol", "Ask for the subprotocol "+Subprotocol+".")
		return
	case h.cfg.Limits != nil && !h.cfg.Limits.SignIn(r.RemoteAddr):
		h.intake.SignInRefused(string(limits.Address))
		w.Header().Set("Retry-After", "5")
		h.httpError(w, http.StatusTooManyRequests, "rate_limited", "Too many connections from this address: try again after the time in Retry-After.")
		return
	case h.intake.Crowded():
		h.intake.SignInRefused("budget")
		w.Header().Set("Retry-After", "5")
		h.httpError(w, http.StatusServiceUnavailable, "crowded", "The gateway has no room for more clients now: try again after the time in Retry-After.")
		return
	}
	if !h.enter() {
		w.Header().Set("Retry-After", strconv.Itoa(1+int(h.comeBack()/time.Second)))
		h.httpError(w, http.StatusServiceUnavailable, "draining", "The gateway is shutting down: try again after the time in Retry-After.")
		return
	}
	defer h.leave()
	socket, err := h.upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // the upgrader has answered
	}
	c := &connection{
		h: h, socket: socket,
		origin: r.Header.Get("Origin"), userAgent: r.UserAgent(), remoteAddr: r.RemoteAddr,
		queue:    make(chan job, h.cfg.WindowMessages),
		messages: semaphore.NewWeighted(int64(h.cfg.WindowMessages)),
		bytes:    semaphore.NewWeighted(h.cfg.WindowBytes),
	}
	h.mu.Lock()
	h.connections[c] = struct{}{}
	if h.draining {
		c.stopReading()
	}
	h.mu.Unlock()
	h.open.Add(1)
	c.run()
	h.open.Add(-1)
	h.mu.Lock()
	delete(h.connections, c)
	h.mu.Unlock()
}

// enter counts a connection in, unless the gateway drains.
func (h *Handler) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.draining {
		return false
	}
	h.running.Add(1)
	return true
}

func (h *Handler) leave() { h.running.Done() }

// httpError refuses a request that has not become a WebSocket.
func (h *Handler) httpError(w http.ResponseWriter, status int, reason, text string) {
	h.statuses.WithLabelValues(httpError, reason).Inc()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(statusFrame{Type: "status", CsError: httpError, CsErrMsg: text, Reason: reason}) // the client may be gone
}

// Drain tells every client when to come back, spread over ReconnectSpread, finishes what was received, closes the connections
// with 1012 (service restart) and returns when all have ended. New ones are refused from now on.
func (h *Handler) Drain() {
	h.mu.Lock()
	h.draining = true
	for c := range h.connections {
		c.stopReading()
	}
	h.mu.Unlock()
	h.running.Wait()
}
