// Package stream owns everything Kafka: the topics and their settings, appending and producing records, fetching them,
// consumer groups with fenced commits, the reject topic and lag. Every other package reaches Kafka only through it.
//
// It gives plain records of one partition at a time and keeps no state of its own beyond connections. It does not
// decode messages, does not choose what a stage writes, does not deduplicate (a record whose acknowledgement was lost is
// written twice: consumers drop by origin or uid) and does not use Kafka transactions.
package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"
)

// Record is one Kafka record. Topic, Partition and Offset are set on records read; on records to append they are ignored.
// Time has milliseconds; zero on a record to append means the time of sending. It is the writer's clock, never the broker's.
type Record struct {
	Topic      string
	Partition  int32
	Offset     int64
	Key, Value []byte
	Time       time.Time
	Headers    []Header
}

// Header is one name and value beside a record. Only the reject topic uses them.
type Header struct {
	Key   string
	Value []byte
}

// Client talks to one Kafka cluster. It is safe for concurrent use.
type Client struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	addr    net.Addr
	// transport pools connections and caches the layout of the cluster. It makes a connection for each request in
	// flight, so a long poll never delays a produce.
	transport   *kafka.Transport
	compression kafka.Compression
	tls         *tls.Config // nil for plain connections
	closed      atomic.Bool
	outside     sync.Map // of groups that this process should be in and is not, the last error of joining
}

// Open checks the configuration, reads the certificate files it names and returns a client. It connects to nothing: use Ping or CheckTopics to learn whether the
// cluster can be reached. reg may be nil; clients that share a registerer share its counters.
func Open(cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("checking the Kafka settings: %w", err)
	}
	cfg = cfg.withDefaults()
	tlsConfig, err := cfg.TLS.load()
	if err != nil {
		return nil, err
	}
	m, err := newMetrics(reg)
	if err != nil {
		return nil, fmt.Errorf("registering the Kafka metrics: %w", err)
	}
	c := &Client{
		cfg:         cfg,
		log:         log,
		metrics:     m,
		addr:        kafka.TCP(cfg.Brokers...),
		compression: compressions[cfg.Compression],
		tls:         tlsConfig,
	}
	c.transport = c.newTransport()
	return c, nil
}

func (c *Client) newTransport() *kafka.Transport {
	return &kafka.Transport{
		Dial:        (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext,
		DialTimeout: dialTimeout,
		IdleTimeout: 2 * time.Minute,
		// After a broker restart or a change of leader the old layout serves until the next refresh, so the library's
		// 6 s would be added to every outage.
		MetadataTTL: 2 * time.Second,
		ClientID:    c.cfg.ClientID,
		TLS:         c.tls,
		SASL:        c.cfg.SASL.mechanism(),
	}
}

const dialTimeout = 3 * time.Second

// api returns kafka-go's client with a limit for one request.
func (c *Client) api(timeout time.Duration) *kafka.Client {
	return &kafka.Client{Addr: c.addr, Transport: c.transport, Timeout: timeout}
}

// Close gives up all connections. Calls made afterwards return ErrClosed; producers and groups must have ended before.
func (c *Client) Close() error {
	if !c.closed.Swap(true) {
		c.transport.CloseIdleConnections()
	}
	return nil
}

// open returns ErrClosed after Close: a request sent later would make a new connection pool that nobody closes.
func (c *Client) open() error {
	if c.closed.Load() {
		return ErrClosed
	}
	return nil
}

// Ping asks the configured brokers, one after the other, until one answers as a Kafka broker. If none does, the error
// has one line for each, with the reason and what to look at.
func (c *Client) Ping(ctx context.Context) error {
	if err := c.open(); err != nil {
		return err
	}
	var errs []error
	for _, broker := range c.cfg.Brokers {
		err := c.pingBroker(ctx, broker)
		if err == nil {
			return nil
		}
		if errors.Is(ctx.Err(), context.Canceled) {
			return fmt.Errorf("reaching Kafka broker %s: %w", broker, context.Cause(ctx))
		}
		errs = append(errs, fmt.Errorf("reaching Kafka broker %s: %w; %s", broker, err, adviceFor(err)))
	}
	return errors.Join(errs...)
}

func (c *Client) pingBroker(ctx context.Context, broker string) error {
	outer := ctx
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := c.dialer().DialContext(ctx, "tcp", broker)
	if err != nil {
		return err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	// kafka-go's call knows no context, and somebody who stops the process must not wait for it.
	defer context.AfterFunc(outer, func() {
		if errors.Is(outer.Err(), context.Canceled) {
			_ = conn.Close() // the call learns
		}
	})()
	_, err = conn.ApiVersions()
	return err
}

func (c *Client) dialer() *kafka.Dialer {
	return &kafka.Dialer{
		ClientID: c.cfg.ClientID, Timeout: dialTimeout, KeepAlive: 15 * time.Second,
		TLS: c.tls, SASLMechanism: c.cfg.SASL.mechanism(),
	}
}

// adviceFor says what a person can do about a broker that does not answer.
func adviceFor(err error) string {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		return "the name does not resolve: check kafka.brokers"
	case errors.Is(err, kafka.SASLAuthenticationFailed), errors.Is(err, kafka.UnsupportedSASLMechanism):
		return "the broker refused the user, the password or the mechanism PLAIN: check kafka.sasl"
	case strings.Contains(err.Error(), "connection refused"):
		return "nothing listens there: start Kafka or correct kafka.brokers"
	case errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		return "no answer in time: check the network and firewalls between here and the broker"
	default:
		return "the peer closed the connection or does not speak Kafka's protocol: check host, port and whether the listener expects TLS or SASL"
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
