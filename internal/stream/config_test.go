package stream

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestValidateNamesTheKey(t *testing.T) {
	ok := func() Config { return Config{Brokers: []string{"127.0.0.1:9092"}} }
	if err := ok().Validate(); err != nil {
		t.Fatalf("defaults: %v", err)
	}
	for _, tc := range []struct {
		name string
		bad  func(*Config)
		keys []string
	}{
		{"no brokers", func(c *Config) { c.Brokers = nil }, []string{"kafka.brokers"}},
		{"broker without port", func(c *Config) { c.Brokers = []string{"localhost"} }, []string{"kafka.brokers"}},
		{"partitions", func(c *Config) { c.Partitions = -1 }, []string{"kafka.partitions"}},
		{"replication", func(c *Config) { c.ReplicationFactor = -2 }, []string{"kafka.replication_factor"}},
		{"heartbeat too slow", func(c *Config) { c.HeartbeatInterval = 5 * time.Second }, []string{"kafka.heartbeat_interval"}},
		{"rebalance shorter than session", func(c *Config) { c.RebalanceTimeout = time.Second }, []string{"kafka.rebalance_timeout"}},
		{"negative session", func(c *Config) { c.SessionTimeout = -time.Second }, []string{"kafka.session_timeout", "kafka.heartbeat_interval"}},
		{"request timeout", func(c *Config) { c.RequestTimeout = time.Microsecond }, []string{"kafka.request_timeout"}},
		{"raw retention", func(c *Config) { c.RawRetention = -1 }, []string{"kafka.raw_retention"}},
		{"enriched retention", func(c *Config) { c.EnrichedRetention = -1 }, []string{"kafka.enriched_retention"}},
		{"summaries retention", func(c *Config) { c.SummariesRetention = -1 }, []string{"kafka.summaries_retention"}},
		{"rejected retention", func(c *Config) { c.RejectedRetention = -1 }, []string{"kafka.rejected_retention"}},
		{"retention bytes", func(c *Config) { c.RetentionBytes = -1 }, []string{"kafka.retention_bytes"}},
		{"compression", func(c *Config) { c.Compression = "lzma" }, []string{"kafka.compression"}},
		{"user without password", func(c *Config) { c.SASL.User = "u" }, []string{"kafka.sasl"}},
		{"certificate without key", func(c *Config) { c.TLS = TLSConfig{Enabled: true, CertFile: "c.pem"} }, []string{"kafka.tls"}},
		{"TLS files without TLS", func(c *Config) { c.TLS.CAFile = "ca.pem" }, []string{"kafka.tls.enabled"}},
		{"several", func(c *Config) { c.Brokers = nil; c.Partitions = -1 }, []string{"kafka.brokers", "kafka.partitions"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := ok()
			tc.bad(&c)
			err := c.Validate()
			if err == nil {
				t.Fatal("accepted")
			}
			var keys []string
			for line := range strings.SplitSeq(err.Error(), "\n") {
				key, _, _ := strings.Cut(line, ":")
				keys = append(keys, key)
			}
			if diff := cmp.Diff(tc.keys, keys); diff != "" {
				t.Errorf("keys (-want +got):\n%s\nerror: %v", diff, err)
			}
			if _, err := Open(c, nil, nil); err == nil {
				t.Error("Open accepts it")
			}
		})
	}
}

func TestTopicsOfThreeReplicasNeedTwo(t *testing.T) {
	for factor, want := range map[int]string{1: "1", 2: "1", 3: "2", 5: "2"} {
		c, err := Open(Config{Brokers: []string{"127.0.0.1:1"}, ReplicationFactor: factor}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, topic := range c.Topics() {
			if got := topic.Configs["min.insync.replicas"]; got != want {
				t.Errorf("factor %d: %s has min.insync.replicas %s, want %s", factor, topic.Name, got, want)
			}
		}
		c.Close()
	}
}

func TestOpenReadsCertificates(t *testing.T) {
	dir := t.TempDir()
	notPEM := filepath.Join(dir, "not.pem")
	if err := os.WriteFile(notPEM, []byte("nothing of use"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		tls  TLSConfig
		want string
	}{
		{TLSConfig{CAFile: filepath.Join(dir, "missing.pem")}, "kafka.tls.ca_file"},
		{TLSConfig{CAFile: notPEM}, "holds no PEM certificate"},
		{TLSConfig{CertFile: notPEM, KeyFile: notPEM}, "kafka.tls.cert_file"},
	} {
		tc.tls.Enabled = true
		if _, err := Open(Config{Brokers: []string{"127.0.0.1:1"}, TLS: tc.tls}, nil, nil); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v", tc.tls, err)
		}
	}
}
