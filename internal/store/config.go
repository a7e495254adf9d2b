package store

import (
	"errors"
	"fmt"
	"net"
	"regexp"
	"time"

	"github.com/callscope/callscope/internal/config"
)

// The protocols that ClickHouse servers speak with clients.
const (
	ProtocolNative = "native"
	ProtocolHTTP   = "http"
)

// Config says how to reach ClickHouse. A zero value means the default in the comment.
type Config struct {
	Addr []string `koanf:"addr"` // host:port of one or more servers with the same data; required

	// Protocol is native or http; by default http where every port is 8123 or 8443, native otherwise.
	Protocol string        `koanf:"protocol"`
	Database string        `koanf:"database"` // callscope
	Username string        `koanf:"username"` // the server's default user
	Password config.Secret `koanf:"password"`
	TLS      TLSConfig     `koanf:"tls"`

	// Cluster names the cluster on which migrations run; tables are then replicated. Empty: a single server.
	Cluster string `koanf:"cluster"`

	// Compression of what goes over the network: none or lz4; none, because on a fast network it costs more than it
	// saves.
	Compression   string        `koanf:"compression"`
	MaxOpenConns  int           `koanf:"max_open_conns"` // 8: statements in flight; more wait
	DialTimeout   time.Duration `koanf:"dial_timeout"`   // 5 s, also the longest wait for a free connection
	InsertTimeout time.Duration `koanf:"insert_timeout"` // 60 s: limit for one insert

	Retention Retention `koanf:"retention"`
}

// TLSConfig says how connections are encrypted.
type TLSConfig struct {
	Enabled    bool   `koanf:"enabled"`
	CAFile     string `koanf:"ca_file"`     // PEM file of the authorities to trust; the system's when empty
	ServerName string `koanf:"server_name"` // name to verify; the host of addr when empty
}

func (c Config) withDefaults() Config {
	if c.Protocol == "" {
		c.Protocol = protocolByPort(c.Addr)
	}
	setDefault(&c.Database, "callscope")
	setDefault(&c.Compression, "none")
	setDefault(&c.MaxOpenConns, 8)
	setDefault(&c.DialTimeout, 5*time.Second)
	setDefault(&c.InsertTimeout, time.Minute)
	return c
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

func protocolByPort(addrs []string) string {
	for _, a := range addrs {
		if _, port, err := net.SplitHostPort(a); err != nil || port != "8123" && port != "8443" {
			return ProtocolNative
		}
	}
	return ProtocolHTTP
}

// Names go into statements unquoted, so they are limited to what needs no quotes.
var nameRe = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,63}$`)

// Validate returns one joined error; each line names the key it is about. Zero values stand for their defaults.
func (c Config) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("clickhouse."+key+": "+format, args...))
	}
	if len(c.Addr) == 0 {
		bad("addr", "is empty: give at least one host:port")
	}
	for _, a := range c.Addr {
		if host, port, err := net.SplitHostPort(a); err != nil || host == "" || port == "" {
			bad("addr", "%q is not host:port", a)
		}
	}
	c = c.withDefaults()
	if c.Protocol != ProtocolNative && c.Protocol != ProtocolHTTP {
		bad("protocol", "%q is not one of native, http", c.Protocol)
	}
	if !nameRe.MatchString(c.Database) {
		bad("database", "%q is not a name of letters, digits and underscores", c.Database)
	}
	if c.Cluster != "" && !nameRe.MatchString(c.Cluster) {
		bad("cluster", "%q is not a name of letters, digits and underscores", c.Cluster)
	}
	if c.Compression != "none" && c.Compression != "lz4" {
		bad("compression", "%q is not one of none, lz4", c.Compression)
	}
	if c.MaxOpenConns < 1 || c.MaxOpenConns > 1000 {
		bad("max_open_conns", "%d is not between 1 and 1000", c.MaxOpenConns)
	}
	if c.DialTimeout < time.Millisecond {
		bad("dial_timeout", "%s is shorter than a millisecond", c.DialTimeout)
	}
	if c.InsertTimeout < time.Second {
		bad("insert_timeout", "%s is shorter than a second", c.InsertTimeout)
	}
	c.Retention.validate(bad)
	if !c.TLS.Enabled && (c.TLS.CAFile != "" || c.TLS.ServerName != "") {
		bad("tls.enabled", "is false although tls.ca_file or tls.server_name is set")
	}
	return errors.Join(errs...)
}
