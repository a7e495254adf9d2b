package gateway

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/callscope/callscope/services/gateway/auth"
	"github.com/callscope/callscope/services/gateway/intake"
	"github.com/callscope/callscope/services/gateway/limits"
)

// Config of the gateway. A zero value means the default in the comment.
type Config struct {
	Addr string `koanf:"addr"` // host:port to listen on; 127.0.0.1:8080, or :8443 with TLS
	// PublicURL is where clients reach the gateway (https://collect.example.com), without a path. Empty: the scheme and
	// host of each client's sign-in. Set it behind a reverse proxy that changes either.
	PublicURL string `koanf:"public_url"`
	// AllowPlain permits listening without TLS on other than loopback addresses, for gateways behind a proxy that ends
	// TLS.
	AllowPlain  bool   `koanf:"allow_plain"`
	TLSCertFile string `koanf:"tls_cert_file"`
	TLSKeyFile  string `koanf:"tls_key_file"`
	// TrustedProxies are networks (10.0.0.0/8) or addresses of the reverse proxies before the gateway. Their
	// X-Forwarded-For tells a client's address; everybody else's is ignored.
	TrustedProxies []string `koanf:"trusted_proxies"`

	// TokenKey signs access tokens and makes the conference handles; at least 16 bytes, the same on all gateways.
	// Empty: random, so tokens end with the process and only one gateway may run.
	TokenKey string `koanf:"token_key"`
	// PreviousTokenKey is accepted and signs nothing. To change the key: set the new one here on all gateways, exchange
	// the two, and drop this one after 2 hours.
	PreviousTokenKey string `koanf:"previous_token_key"`

	MaxMessageBytes int64 `koanf:"max_message_bytes"` // 1 MiB (1048576): one event, statistics report or frame
	BudgetBytes     int64 `koanf:"budget_bytes"`      // 256 MiB: all messages received and not yet stored
	WindowMessages  int   `koanf:"window_messages"`   // 64: of one WebSocket connection, received and not yet stored
	WindowBytes     int64 `koanf:"window_bytes"`      // 256 KiB: likewise

	Limits limits.Config `koanf:"limits"`

	// What is stored of a client's address: this many leading bits. 32 and 128 keep it all.
	IPv4Bits int `koanf:"ipv4_bits"` // 24
	IPv6Bits int `koanf:"ipv6_bits"` // 48
	// MaxMind files (GeoLite2 or GeoIP2, .mmdb), looked up before the address is cut. Empty: not looked up.
	CountryFile string `koanf:"country_file"` // a Country or City database
	NetworkFile string `koanf:"network_file"` // an ASN or ISP database

	StoreTimeout      time.Duration `koanf:"store_timeout"`       // 4 s: until a message is shed; clients wait 5 s
	JoinPatience      time.Duration `koanf:"join_patience"`       // 3 s: until a userJoined is answered anyway
	ReadHeaderTimeout time.Duration `koanf:"read_header_timeout"` // 5 s
	ReadTimeout       time.Duration `koanf:"read_timeout"`        // 15 s: a whole request
	WriteTimeout      time.Duration `koanf:"write_timeout"`       // 5 s: one answer on a WebSocket
	IdleTimeout       time.Duration `koanf:"idle_timeout"`        // 120 s: a kept-alive connection without requests
	PingInterval      time.Duration `koanf:"ping_interval"`       // 20 s: WebSocket pings
	// At shutdown: the gateway is not ready from the start, listens for DrainDelay more, so that load balancers can
	// notice, and closes the WebSockets spread over DrainSpread, so that their clients do not come back all at once.
	// DrainTimeout bounds all but the delay.
	DrainDelay   time.Duration `koanf:"drain_delay"`   // 0 s
	DrainSpread  time.Duration `koanf:"drain_spread"`  // 5 s
	DrainTimeout time.Duration `koanf:"drain_timeout"` // 10 s
}

func (c Config) withDefaults() Config {
	if c.TLSCertFile != "" {
		setDefault(&c.Addr, ":8443")
	}
	setDefault(&c.Addr, "127.0.0.1:8080")
	setDefault(&c.MaxMessageBytes, 1<<20)
	setDefault(&c.BudgetBytes, 256<<20)
	setDefault(&c.WindowMessages, 64)
	setDefault(&c.WindowBytes, 256<<10)
	setDefault(&c.StoreTimeout, 4*time.Second)
	setDefault(&c.JoinPatience, 3*time.Second)
	setDefault(&c.ReadHeaderTimeout, 5*time.Second)
	setDefault(&c.ReadTimeout, 15*time.Second)
	setDefault(&c.WriteTimeout, 5*time.Second)
	setDefault(&c.IdleTimeout, 120*time.Second)
	setDefault(&c.PingInterval, 20*time.Second)
	setDefault(&c.DrainTimeout, 10*time.Second)
	setDefault(&c.DrainSpread, min(5*time.Second, c.DrainTimeout/2))
	setDefault(&c.IPv4Bits, intake.DefaultIPv4Bits)
	setDefault(&c.IPv6Bits, intake.DefaultIPv6Bits)
	c.Limits = c.Limits.WithDefaults()
	c.PublicURL = strings.TrimSuffix(c.PublicURL, "/")
	return c
}

// DefaultLimits are the limits in force where nothing is set.
func DefaultLimits() limits.Config { return limits.Defaults() }

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
		errs = append(errs, fmt.Errorf("gateway."+key+": "+format, args...))
	}
	c = c.withDefaults()
	host, _, err := net.SplitHostPort(c.Addr)
	if err != nil {
		bad("addr", "%q is not host:port", c.Addr)
	}
	if (c.TLSCertFile == "") != (c.TLSKeyFile == "") {
		bad("tls_cert_file", "and gateway.tls_key_file must be given together")
	}
	if err == nil && c.TLSCertFile == "" && !c.AllowPlain && !isLoopback(host) {
		bad("addr", "%s is not a loopback address, and without TLS tokens would cross the network in the clear: set gateway.tls_cert_file and gateway.tls_key_file, or gateway.allow_plain behind a proxy that ends TLS", c.Addr)
	}
	if c.PublicURL != "" {
		u, err := url.Parse(c.PublicURL)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.User != nil {
			bad("public_url", "%q is not http(s)://host[:port]", c.PublicURL)
		}
	}
	if c.TokenKey != "" && len(c.TokenKey) < auth.MinKeyBytes {
		bad("token_key", "has %d bytes, at least %d are needed", len(c.TokenKey), auth.MinKeyBytes)
	}
	if c.PreviousTokenKey != "" && len(c.PreviousTokenKey) < auth.MinKeyBytes {
		bad("previous_token_key", "has %d bytes, at least %d are needed", len(c.PreviousTokenKey), auth.MinKeyBytes)
	}
	for _, n := range []struct {
		key           string
		v, least, max int64
	}{
		{"max_message_bytes", c.MaxMessageBytes, 64 << 10, 64 << 20}, // SDPs and large calls' statistics need 64 KiB
		{"budget_bytes", c.BudgetBytes, c.MaxMessageBytes, 1 << 40},
		{"window_messages", int64(c.WindowMessages), 1, 1 << 16},
		{"window_bytes", c.WindowBytes, 1, 1 << 30},
		{"ipv4_bits", int64(c.IPv4Bits), 1, 32},
		{"ipv6_bits", int64(c.IPv6Bits), 1, 128},
	} {
		if n.v < n.least || n.v > n.max {
			bad(n.key, "%d is not between %d and %d", n.v, n.least, n.max)
		}
	}
	for _, d := range []struct {
		key string
		v   time.Duration
	}{
		{"store_timeout", c.StoreTimeout}, {"join_patience", c.JoinPatience}, {"read_header_timeout", c.ReadHeaderTimeout},
		{"read_timeout", c.ReadTimeout}, {"write_timeout", c.WriteTimeout}, {"idle_timeout", c.IdleTimeout},
		{"ping_interval", c.PingInterval}, {"drain_timeout", c.DrainTimeout},
		{"drain_spread", c.DrainSpread},
	} {
		if d.v < time.Millisecond {
			bad(d.key, "%s is shorter than a millisecond", d.v)
		}
	}
	if c.StoreTimeout >= 5*time.Second || c.JoinPatience >= 5*time.Second {
		bad("store_timeout", "and gateway.join_patience must be below 5 s, after which clients give up")
	}
	if c.DrainDelay < 0 {
		bad("drain_delay", "%s is negative", c.DrainDelay)
	}
	if c.DrainSpread >= c.DrainTimeout {
		bad("drain_spread", "%s is not below gateway.drain_timeout (%s)", c.DrainSpread, c.DrainTimeout)
	}
	if _, err := parseNetworks(c.TrustedProxies); err != nil {
		bad("trusted_proxies", "%w", err)
	}
	if err := c.Limits.Validate(c.MaxMessageBytes); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
