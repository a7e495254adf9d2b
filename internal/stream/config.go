package stream

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"

	"github.com/callscope/callscope/internal/config"
)

// Config says how to reach the Kafka cluster and how callscope's topics are made. A zero value means the default in
// the comment.
type Config struct {
	Brokers  []string `koanf:"brokers"`   // host:port of one or more brokers; required
	ClientID string   `koanf:"client_id"` // how the brokers' logs name this process; "callscope"

	// Partitions is the partition count of raw, enriched, summaries, the state topics and the reject topic when they
	// are created: 12. It is fixed for the life of the topics; afterwards what the topics have counts, not this.
	Partitions        int `koanf:"partitions"`
	ReplicationFactor int `koanf:"replication_factor"` // 1; with 3 or more, min.insync.replicas is 2

	SessionTimeout    time.Duration `koanf:"session_timeout"`    // 10 s: silence after which a group member is dead
	RebalanceTimeout  time.Duration `koanf:"rebalance_timeout"`  // 60 s: how long a rebalance waits for slow members
	HeartbeatInterval time.Duration `koanf:"heartbeat_interval"` // 2 s; at most a third of the session timeout
	RequestTimeout    time.Duration `koanf:"request_timeout"`    // 10 s: limit for one request, beyond what a fetch waits

	// How long records are kept. Used when topics are created.
	RawRetention       time.Duration `koanf:"raw_retention"`       // 168 h
	EnrichedRetention  time.Duration `koanf:"enriched_retention"`  // 72 h
	SummariesRetention time.Duration `koanf:"summaries_retention"` // 168 h
	RejectedRetention  time.Duration `koanf:"rejected_retention"`  // 720 h
	// RetentionBytes bounds raw, enriched, summaries and the reject topic, each partition for itself; 0 is unbounded.
	RetentionBytes int64 `koanf:"retention_bytes"`

	// Compression of what is written: none, lz4, zstd, snappy or gzip; none. It costs CPU and is worth it only where
	// the network to the brokers or their disks are the narrow place.
	Compression string `koanf:"compression"`

	TLS  TLSConfig  `koanf:"tls"`
	SASL SASLConfig `koanf:"sasl"`
}

// TLSConfig says how connections are encrypted.
type TLSConfig struct {
	Enabled    bool   `koanf:"enabled"`
	CAFile     string `koanf:"ca_file"`     // PEM file of the authorities to trust; the system's when empty
	ServerName string `koanf:"server_name"` // name to verify; the broker's host when empty
	CertFile   string `koanf:"cert_file"`   // PEM files of our own certificate and its key, where brokers ask for one
	KeyFile    string `koanf:"key_file"`
}

// SASLConfig says how to authenticate: mechanism PLAIN, when a user is set. It sends the password as it is, so use it
// with TLS.
type SASLConfig struct {
	User     string        `koanf:"user"`
	Password config.Secret `koanf:"password"`
}

func (s SASLConfig) mechanism() sasl.Mechanism {
	if s.User == "" {
		return nil
	}
	return plain.Mechanism{Username: s.User, Password: s.Password.Reveal()}
}

// load reads the files and returns nil where TLS is off.
func (c TLSConfig) load() (*tls.Config, error) {
	if !c.Enabled {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("reading kafka.tls.ca_file: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("reading kafka.tls.ca_file: %s holds no PEM certificate", c.CAFile)
		}
	}
	if c.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("reading kafka.tls.cert_file and kafka.tls.key_file: %w", err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}

var compressions = map[string]kafka.Compression{
	"none": 0, "gzip": kafka.Gzip, "snappy": kafka.Snappy, "lz4": kafka.Lz4, "zstd": kafka.Zstd,
}

func (c Config) withDefaults() Config {
	setDefault(&c.ClientID, "callscope")
	setDefault(&c.Partitions, 12)
	setDefault(&c.ReplicationFactor, 1)
	setDefault(&c.SessionTimeout, 10*time.Second)
	setDefault(&c.RebalanceTimeout, 60*time.Second)
	setDefault(&c.HeartbeatInterval, 2*time.Second)
	setDefault(&c.RequestTimeout, 10*time.Second)
	setDefault(&c.RawRetention, 168*time.Hour)
	setDefault(&c.EnrichedRetention, 72*time.Hour)
	setDefault(&c.SummariesRetention, 168*time.Hour)
	setDefault(&c.RejectedRetention, 720*time.Hour)
	setDefault(&c.Compression, "none")
	return c
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Validate returns one joined error; each line names the key it is about. Zero values stand for their defaults.
func (c Config) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("kafka."+key+": "+format, args...))
	}
	if len(c.Brokers) == 0 {
		bad("brokers", "is empty: give at least one host:port")
	}
	for _, b := range c.Brokers {
		if host, port, err := net.SplitHostPort(b); err != nil || host == "" || port == "" {
			bad("brokers", "%q is not host:port", b)
		}
	}
	c = c.withDefaults()
	if c.Partitions < 1 || c.Partitions > 10000 {
		bad("partitions", "%d is not between 1 and 10000", c.Partitions)
	}
	if c.ReplicationFactor < 1 || c.ReplicationFactor > 100 {
		bad("replication_factor", "%d is not between 1 and 100", c.ReplicationFactor)
	}
	for _, d := range []struct {
		key string
		v   time.Duration
	}{
		{"session_timeout", c.SessionTimeout}, {"rebalance_timeout", c.RebalanceTimeout},
		{"heartbeat_interval", c.HeartbeatInterval}, {"request_timeout", c.RequestTimeout},
		{"raw_retention", c.RawRetention}, {"enriched_retention", c.EnrichedRetention},
		{"summaries_retention", c.SummariesRetention}, {"rejected_retention", c.RejectedRetention},
	} {
		if d.v < time.Millisecond {
			bad(d.key, "%s is shorter than a millisecond", d.v)
		}
	}
	if c.HeartbeatInterval > c.SessionTimeout/3 {
		bad("heartbeat_interval", "%s is more than a third of kafka.session_timeout (%s)", c.HeartbeatInterval, c.SessionTimeout)
	}
	if c.RebalanceTimeout < c.SessionTimeout {
		bad("rebalance_timeout", "%s is shorter than kafka.session_timeout (%s)", c.RebalanceTimeout, c.SessionTimeout)
	}
	if c.RetentionBytes < 0 {
		bad("retention_bytes", "%d is negative; 0 is unbounded", c.RetentionBytes)
	}
	if _, ok := compressions[c.Compression]; !ok {
		bad("compression", "%q is not one of none, lz4, zstd, snappy, gzip", c.Compression)
	}
	if (c.SASL.User != "") != c.SASL.Password.IsSet() {
		bad("sasl", "needs both a user and a password")
	}
	if (c.TLS.CertFile != "") != (c.TLS.KeyFile != "") {
		bad("tls", "needs both cert_file and key_file, or neither")
	}
	if !c.TLS.Enabled && c.TLS != (TLSConfig{}) {
		bad("tls.enabled", "is false, but other settings of kafka.tls are given")
	}
	return errors.Join(errs...)
}
