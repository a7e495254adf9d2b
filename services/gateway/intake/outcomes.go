package intake

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// Outcome is what became of a received message. Every message has exactly one.
type Outcome string

const (
	Accepted        Outcome = "accepted"         // acknowledged by Kafka on all replicas
	Invalid         Outcome = "invalid"          // malformed; the reason says how
	Oversized       Outcome = "oversized"        // larger than a body or a Kafka record may be
	RateLimited     Outcome = "rate_limited"     // beyond a quota; the reason is its scope
	Shed            Outcome = "shed"             // not stored in time, or no memory for it
	AuthExpired     Outcome = "auth_expired"     // the token's time was over
	Unsupported     Outcome = "unsupported"      // a route or frame that no dialect has
	JoinUnconfirmed Outcome = "join_unconfirmed" // a userJoined answered before Kafka acknowledged it
	Generics        Outcome = "generics"         // about the client library itself: log posts and clock samples, which are not kept
)

// Dialect labels of the counters. The two WebSocket generations share one, because a frame that cannot be read belongs
// to neither.
const (
	DialectREST = "callstats_rest"
	DialectWS   = "callstats_ws"
)

// Metrics counts messages. received is always the sum of all outcomes, plus what is being worked on.
type Metrics struct {
	received   *prometheus.CounterVec // dialect
	messages   *prometheus.CounterVec // dialect, outcome, reason
	joins      *prometheus.CounterVec // result
	signIns    *prometheus.CounterVec // scope
	evicted    prometheus.Counter
	longUsers  prometheus.Counter
	truncated  prometheus.Counter
	storeTimes prometheus.Histogram
	inFlight   prometheus.GaugeFunc
}

func newMetrics(reg prometheus.Registerer, inFlight func() float64) (*Metrics, error) {
	m := &Metrics{
		received: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "callscope_gateway_received_total",
			Help: "Client messages received.",
		}, []string{"dialect"}),
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "callscope_gateway_messages_total",
			Help: "What became of client messages: one outcome each, with the reason where there are several.",
		}, []string{"dialect", "outcome", "reason"}),
		joins: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "callscope_gateway_unconfirmed_joins_total",
			Help: "userJoined messages that were answered before Kafka had them, by what became of them later (stored, lost).",
		}, []string{"result"}),
		signIns: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "callscope_gateway_limited_sign_ins_total",
			Help: "Sign-ins and WebSocket handshakes whose connection was closed, by the limit (app, user, address) or for want of memory (budget).",
		}, []string{"scope"}),
		evicted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "callscope_gateway_evicted_total",
			Help: "WebSocket connections closed because the client did not read its answers.",
		}),
		longUsers: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "callscope_gateway_long_user_ids_total",
			Help: "Accepted messages whose user id is longer than the 128 bytes of the spec's tables.",
		}),
		truncated: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "callscope_gateway_truncated_total",
			Help: "Accepted messages with a text that was cut to the length that the spec allows.",
		}),
		storeTimes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "callscope_gateway_store_seconds",
			Help:    "Time until Kafka acknowledged a message.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
		inFlight: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "callscope_gateway_in_flight_bytes",
			Help: "Bytes of messages received and not yet answered.",
		}, inFlight),
	}
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.received, m.messages, m.joins, m.signIns, m.evicted, m.longUsers, m.truncated, m.storeTimes, m.inFlight} {
		errs = append(errs, reg.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("registering the gateway's message counters: %w", err)
	}
	return m, nil
}

// Received counts a message that has arrived, before anything is known about it.
func (m *Metrics) Received(dialect string) { m.received.WithLabelValues(dialect).Inc() }

// Outcome counts what became of a message. reason must come from a fixed set of words; "" where the outcome says all.
func (m *Metrics) Outcome(dialect string, o Outcome, reason string) {
	m.messages.WithLabelValues(dialect, string(o), reason).Inc()
}

// SignInRefused counts a sign-in or a WebSocket handshake that was not even looked at. scope is whose limit was reached,
// or budget.
func (m *Metrics) SignInRefused(scope string) { m.signIns.WithLabelValues(scope).Inc() }

// Evicted counts a connection that was closed because its client does not read.
func (m *Metrics) Evicted() { m.evicted.Inc() }
