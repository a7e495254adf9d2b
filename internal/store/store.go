// Package store owns everything ClickHouse: connections, migrations, the tables and the public views behind them,
// inserts of whole blocks with a deduplication token, and queries.
//
// It moves rows that others have made and decides nothing about calls. It does not repeat a failed insert (whoever owns
// the rows does, with the same token), does not batch, and does not read Kafka.
package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/prometheus/client_golang/prometheus"
)

// Store talks to one ClickHouse server or replicated cluster. It is safe for concurrent use.
type Store struct {
	cfg     Config
	options clickhouse.Options
	log     *slog.Logger
	metrics *metrics
	conn    driver.Conn
}

// Open checks the configuration and returns a store. It connects when it is first used: call Ping to learn whether the
// server can be reached. reg may be nil.
func Open(cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("checking the ClickHouse settings: %w", err)
	}
	cfg = cfg.withDefaults()
	m, err := newMetrics(reg)
	if err != nil {
		return nil, fmt.Errorf("registering the ClickHouse metrics: %w", err)
	}
	options, err := cfg.options()
	if err != nil {
		return nil, err
	}
	conn, err := open(options)
	if err != nil {
		return nil, fmt.Errorf("preparing connections to ClickHouse: %w", err)
	}
	return &Store{cfg: cfg, options: options, log: log, metrics: m, conn: conn}, nil
}

// longestStatement bounds a statement that nothing else bounds. The driver's own 5 minutes are the whole time of a statement,
// not that between two signs of life: people's queries, and an erasure that waits until a large table is rewritten, take
// longer. Inserts have InsertTimeout; a dead server is noticed by TCP.
const longestStatement = 24 * time.Hour

// open gives the driver options of its own: it writes into them.
func open(options clickhouse.Options) (driver.Conn, error) { return clickhouse.Open(&options) }

func (c Config) options() (clickhouse.Options, error) {
	o := clickhouse.Options{
		Addr:             c.Addr,
		Protocol:         clickhouse.Native,
		Auth:             clickhouse.Auth{Database: c.Database, Username: c.Username, Password: c.Password.Reveal()},
		DialTimeout:      c.DialTimeout,
		ReadTimeout:      longestStatement,
		MaxOpenConns:     c.MaxOpenConns,
		MaxIdleConns:     c.MaxOpenConns,
		ConnOpenStrategy: clickhouse.ConnOpenInOrder,
		Compression:      &clickhouse.Compression{Method: clickhouse.CompressionNone},
		ClientInfo: clickhouse.ClientInfo{Products: []struct{ Name, Version string }{
			{Name: "callscope"},
		}},
	}
	if c.Protocol == ProtocolHTTP {
		o.Protocol = clickhouse.HTTP
	}
	if c.Compression == "lz4" {
		o.Compression.Method = clickhouse.CompressionLZ4
	}
	if c.TLS.Enabled {
		o.TLS = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.TLS.ServerName}
		if c.TLS.CAFile != "" {
			pem, err := os.ReadFile(c.TLS.CAFile)
			if err != nil {
				return o, fmt.Errorf("reading clickhouse.tls.ca_file: %w", err)
			}
			o.TLS.RootCAs = x509.NewCertPool()
			if !o.TLS.RootCAs.AppendCertsFromPEM(pem) {
				return o, fmt.Errorf("reading clickhouse.tls.ca_file: %s holds no PEM certificate", c.TLS.CAFile)
			}
		}
	}
	return o, nil
}

// Close gives up all connections.
func (s *Store) Close() error { return s.conn.Close() }

// Database is the name of the database that holds tables and views.
func (s *Store) Database() string { return s.cfg.Database }

// Ping asks the server for an answer and waits InsertTimeout for it. The error says which address failed, why and what to
// do about it. It is ErrNoDatabase when the server answers and has no such database yet.
func (s *Store) Ping(ctx context.Context) error {
	// A deadline would be sent as a setting, which a user who may only read may not change.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	limit := time.AfterFunc(s.cfg.InsertTimeout, cancel)
	var one uint8
	// The driver's own ping over HTTP does not notice a missing database.
	err := s.conn.QueryRow(ctx, "SELECT 1").Scan(&one)
	if !limit.Stop() && err != nil {
		err = context.DeadlineExceeded
	}
	if err != nil {
		return s.unreachable(err)
	}
	return nil
}

// ErrNoDatabase: the server is there and has no such database.
var ErrNoDatabase = errors.New("the database does not exist")

const (
	codeUnknownTable     = 60
	codeUnknownDatabase  = 81
	codeAuthentication   = 516
	codeUnknownUser      = 192
	codeWrongPassword    = 193
	codeRequiredPassword = 194
	codeAccessDenied     = 497
)

// unreachable words an error of a first contact for people.
func (s *Store) unreachable(err error) error {
	if code(err) == codeUnknownDatabase {
		return fmt.Errorf("ClickHouse at %s: %w (%s): run `callscope migrate`", strings.Join(s.cfg.Addr, ", "), ErrNoDatabase, s.cfg.Database)
	}
	return fmt.Errorf("reaching ClickHouse at %s (%s protocol): %w; %s", strings.Join(s.cfg.Addr, ", "), s.cfg.Protocol, err, s.cfg.adviceFor(err))
}

func (c Config) adviceFor(err error) string {
	var dns *net.DNSError
	text := err.Error()
	switch {
	case code(err) == codeAuthentication, code(err) == codeUnknownUser, code(err) == codeWrongPassword, code(err) == codeRequiredPassword:
		return fmt.Sprintf("the server does not accept user %q with this password: check clickhouse.username and clickhouse.password", c.Username)
	case errors.As(err, &dns):
		return "the name does not resolve: check clickhouse.addr"
	case strings.Contains(text, "connection refused"):
		return "nothing listens there: start ClickHouse or correct clickhouse.addr"
	case strings.Contains(text, "unexpected packet [72]"):
		return "an HTTP server answered: set clickhouse.protocol to http, or give the native port (9000)"
	case strings.Contains(text, "malformed HTTP"), strings.Contains(text, "is for clickhouse-client program"):
		return "that is the native port: set clickhouse.protocol to native, or give the HTTP port (8123)"
	case strings.Contains(text, "tls:"), strings.Contains(text, "x509:"):
		return "the TLS handshake failed: check clickhouse.tls, and whether this port expects TLS"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, clickhouse.ErrAcquireConnTimeout):
		return "no answer in time: check the network and firewalls between here and the server"
	default:
		return "check clickhouse.addr, clickhouse.protocol and the server's log"
	}
}

// Replicated says whether a deduplication token is committed together with its rows. ClickHouse does that for replicated
// tables only: a single server writes the token to a log of its own before it commits the rows, so that a server killed in
// between remembers the token, lacks the rows, and drops them when they come again under it (measured on 26.7).
func (s *Store) Replicated() bool { return s.cfg.Cluster != "" }
