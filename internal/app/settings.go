package app

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/callscope/callscope/internal/apps"
	"github.com/callscope/callscope/internal/config"
	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/stream"
	"github.com/callscope/callscope/services/gateway"
	"github.com/callscope/callscope/services/sink"
)

// Config is every setting of callscope.
type Config struct {
	DataDir    string           `koanf:"data_dir"` // of the embedded broker and engine and of secrets made by callscope itself
	Log        LogConfig        `koanf:"log"`
	Admin      AdminConfig      `koanf:"admin"`
	Kafka      KafkaConfig      `koanf:"kafka"`
	ClickHouse ClickHouseConfig `koanf:"clickhouse"`
	Gateway    GatewayConfig    `koanf:"gateway"`
	Enricher   StageConfig      `koanf:"enricher"`
	Summarizer StageConfig      `koanf:"summarizer"`
	Sink       sink.Config      `koanf:"sink"`
	Apps       []apps.Config    `koanf:"apps"`
	Registry   RegistryConfig   `koanf:"registry"`
}

// RegistryConfig is of the apps that `callscope apps` keeps in Kafka, beside those of the setting apps.
type RegistryConfig struct {
	// MasterKey encrypts their secrets; the same on all gateways and wherever `callscope apps` is used.
	MasterKey config.Secret `koanf:"master_key"`
	// PreviousMasterKey still decrypts while `callscope apps rekey` replaces it.
	PreviousMasterKey config.Secret `koanf:"previous_master_key"`
	// ErasureKey recognises erased users; the master key by default. It stays when the master key changes.
	ErasureKey config.Secret `koanf:"erasure_key"`
}

// LogConfig says what is logged to standard error and how.
type LogConfig struct {
	Level  slog.Level `koanf:"level"`
	Format string     `koanf:"format"` // text or json
}

// AdminConfig is the server for operators: metrics, health, settings, profiles.
type AdminConfig struct {
	Addr string `koanf:"addr"`
}

// KafkaConfig is the cluster, or without brokers the embedded broker of `callscope all` and `callscope broker`.
type KafkaConfig struct {
	stream.Config `koanf:",squash"`
	EmbeddedAddr  string `koanf:"embedded_addr"`
	EmbeddedSync  bool   `koanf:"embedded_sync"` // write through to the disk before a record is acknowledged
}

// ClickHouseConfig is the server, or without an address the embedded engine of `callscope all` and `callscope engine`.
type ClickHouseConfig struct {
	store.Config           `koanf:",squash"`
	EmbeddedAddr           string `koanf:"embedded_addr"`
	EmbeddedMaxMemoryBytes int64  `koanf:"embedded_max_memory_bytes"`
}

// GatewayConfig is the gateway's, with its key as a secret.
type GatewayConfig struct {
	TokenKey         config.Secret `koanf:"token_key"`
	PreviousTokenKey config.Secret `koanf:"previous_token_key"`
	gateway.Config   `koanf:",squash"`
}

// StageConfig is what an operator may set of the enricher and the summarizer.
type StageConfig struct {
	SnapshotInterval time.Duration `koanf:"snapshot_interval"`
	// StartWithoutState consents to begin with nothing where stored state should be and is not.
	StartWithoutState bool `koanf:"start_without_state"`
}

const (
	defaultBrokerAddr     = "127.0.0.1:9092"
	defaultEngineAddr     = "127.0.0.1:8123"
	defaultGatewayAddr    = "127.0.0.1:8080"
	defaultGatewayTLSAddr = ":8443"
	clusterPartitions     = 12
	embeddedPartitions    = 4
)

// defaultConfig has every default in words, so that `callscope config` can print what is in force.
func defaultConfig() *Config {
	return &Config{
		DataDir: "callscope-data",
		Log:     LogConfig{Level: slog.LevelInfo, Format: "text"},
		Admin:   AdminConfig{Addr: "127.0.0.1:9090"},
		Kafka: KafkaConfig{
			Config: stream.Config{
				ClientID: "callscope", Partitions: clusterPartitions, ReplicationFactor: 1,
				SessionTimeout: 10 * time.Second, RebalanceTimeout: 60 * time.Second, HeartbeatInterval: 2 * time.Second,
				RequestTimeout: 10 * time.Second,
				RawRetention:   168 * time.Hour, EnrichedRetention: 72 * time.Hour, SummariesRetention: 168 * time.Hour,
				RejectedRetention: 720 * time.Hour,
				Compression:       "none",
			},
			EmbeddedAddr: defaultBrokerAddr,
			EmbeddedSync: true,
		},
		ClickHouse: ClickHouseConfig{
			Config: store.Config{
				Database: "callscope", Compression: "none", MaxOpenConns: 8, DialTimeout: 5 * time.Second, InsertTimeout: time.Minute,
			},
			EmbeddedAddr:           defaultEngineAddr,
			EmbeddedMaxMemoryBytes: 2 << 30,
		},
		Gateway: GatewayConfig{Config: gateway.Config{
			MaxMessageBytes: 1 << 20, BudgetBytes: 256 << 20, WindowMessages: 64, WindowBytes: 256 << 10,
			StoreTimeout: 4 * time.Second, JoinPatience: 3 * time.Second, ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout: 15 * time.Second, WriteTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute,
			PingInterval: 20 * time.Second, DrainTimeout: 10 * time.Second, DrainSpread: 5 * time.Second,
			IPv4Bits: 24, IPv6Bits: 48, Limits: gateway.DefaultLimits(),
		}},
		Enricher:   StageConfig{SnapshotInterval: 10 * time.Second},
		Summarizer: StageConfig{SnapshotInterval: 10 * time.Second},
		Sink:       sink.Config{MaxWait: time.Second, MaxRows: 50_000, MaxRangeBytes: 16 << 20, Parallel: 4},
	}
}

// settings is the configuration in force with the origins of its values.
type settings struct {
	*Config
	loaded *config.Loaded
}

func loadSettings(src config.Sources) (*settings, error) {
	cfg := defaultConfig()
	loaded, err := config.Load(cfg, src)
	if err != nil {
		return nil, err
	}
	s := &settings{cfg, loaded}
	if s.embedsBroker() && !loaded.IsSet("kafka.partitions") {
		cfg.Kafka.Partitions = embeddedPartitions
	}
	if cfg.Gateway.Addr == "" {
		cfg.Gateway.Addr = defaultGatewayAddr
		if cfg.Gateway.TLSCertFile != "" {
			cfg.Gateway.Addr = defaultGatewayTLSAddr
		}
	}
	return s, nil
}

func (s *settings) embedsBroker() bool { return len(s.Kafka.Brokers) == 0 }
func (s *settings) embedsEngine() bool { return len(s.ClickHouse.Addr) == 0 }

func (s *settings) brokerDir() string  { return filepath.Join(s.DataDir, "broker") }
func (s *settings) engineDir() string  { return filepath.Join(s.DataDir, "engine") }
func (s *settings) secretsDir() string { return filepath.Join(s.DataDir, "secrets") }

// need is a part of the configuration that a command uses and that therefore must be right.
type need func(*settings) error

// check returns everything that is wrong with what a command needs.
func (s *settings) check(needs ...need) error {
	errs := []error{needLog(s)}
	for _, n := range needs {
		errs = append(errs, n(s))
	}
	return s.loaded.Invalid(errs...)
}

func needLog(s *settings) error {
	if s.Log.Format != "text" && s.Log.Format != "json" {
		return fmt.Errorf("log.format: %q is not one of text, json", s.Log.Format)
	}
	return nil
}

func needData(s *settings) error {
	if s.DataDir == "" {
		return errors.New("data_dir: is empty: give a directory")
	}
	return nil
}

func needAdmin(s *settings) error { return hostPort("admin.addr", s.Admin.Addr) }

// needKafka is for commands that use a cluster and cannot embed a broker.
func needKafka(s *settings) error { return s.Kafka.Validate() }

// needKafkaOrBroker is for `callscope all` and `callscope broker`.
func needKafkaOrBroker(s *settings) error {
	if !s.embedsBroker() {
		return s.Kafka.Validate()
	}
	cfg := s.Kafka.Config
	cfg.Brokers = []string{defaultBrokerAddr}
	return errors.Join(cfg.Validate(), loopback("kafka.embedded_addr", s.Kafka.EmbeddedAddr))
}

func needClickHouse(s *settings) error { return s.ClickHouse.Validate() }

// needClickHouseOrEngine is for `callscope all`.
func needClickHouseOrEngine(s *settings) error {
	if !s.embedsEngine() {
		return s.ClickHouse.Validate()
	}
	cfg := s.ClickHouse.Config
	cfg.Addr = []string{defaultEngineAddr}
	return errors.Join(cfg.Validate(), needEngine(s))
}

func needEngine(s *settings) error {
	err := loopback("clickhouse.embedded_addr", s.ClickHouse.EmbeddedAddr)
	if m := s.ClickHouse.EmbeddedMaxMemoryBytes; m < 256<<20 {
		err = errors.Join(err, fmt.Errorf("clickhouse.embedded_max_memory_bytes: %d is less than 256MiB, with which nothing works", m))
	}
	return err
}

// needGateway is for commands that run the gateway. In `callscope all` there is only one, and it may make its own key.
func needGateway(demo, alone bool) need {
	return func(s *settings) error {
		_, err := s.staticApps(demo)
		_, keyErr := s.masterKey()
		err = errors.Join(err, keyErr, s.gatewayConfig().Validate())
		if demo && !isLoopback(s.Gateway.Addr) {
			err = errors.Join(err, fmt.Errorf("gateway.addr: %q can be reached from elsewhere, and the secret of the --demo app is public; use 127.0.0.1:PORT or leave --demo out", s.Gateway.Addr))
		}
		if !alone && !s.Gateway.TokenKey.IsSet() {
			err = errors.Join(err, errors.New("gateway.token_key: is empty: give the same random text of at least 16 characters to every gateway, best in a file named by gateway.token_key_file"))
		}
		return err
	}
}

func (s *settings) gatewayConfig() gateway.Config {
	cfg := s.Gateway.Config
	cfg.TokenKey = s.Gateway.TokenKey.Reveal()
	cfg.PreviousTokenKey = s.Gateway.PreviousTokenKey.Reveal()
	return cfg
}

func needSink(s *settings) error { return s.Sink.Validate() }

func hostPort(key, addr string) error {
	if _, port, err := net.SplitHostPort(addr); err != nil || port == "" {
		return fmt.Errorf("%s: %q is not host:port, such as 127.0.0.1:8080", key, addr)
	}
	return nil
}

func loopback(key, addr string) error {
	if err := hostPort(key, addr); err != nil {
		return err
	}
	if !isLoopback(addr) {
		return fmt.Errorf("%s: %q is not on this machine alone; use 127.0.0.1:PORT", key, addr)
	}
	return nil
}

// isLoopback says whether nobody from elsewhere can reach addr, a host:port.
func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

func environValue(environ []string, name string) string {
	for _, e := range environ {
		if value, ok := strings.CutPrefix(e, name+"="); ok {
			return value
		}
	}
	return ""
}
