// Package apps is the registry of apps, callscope's tenants: their secrets, public keys, allowed origins and settings.
//
// It answers who an app is and nothing else: it does not verify tokens (services/gateway/auth does) and holds no state
// of calls. The registry here is made once from the configuration; whatever replaces it later answers the same Lookup.
package apps

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// App is one tenant. It is immutable once a registry hands it out.
type App struct {
	ID      string // decimal number as text
	Name    string
	Secrets []Secret // any of them signs in; two are live during a rotation
	// PublicKeys are the P-256 keys of customer tokens by the key id that the token names.
	PublicKeys map[string]*ecdsa.PublicKey
	// Origins are the origins (scheme://host[:port]) whose pages may sign in. Empty allows every origin, and none.
	Origins  []string
	Settings Settings
}

// Settings are what the app's clients are told and what the app allows.
type Settings struct {
	SubmissionIntervalMS int  // how often clients send statistics
	CollectSDP           bool // whether clients send SDPs; also gates their pre-call tests
	// RESTTransport makes 3.52 clients use REST; false makes them use WebSocket. Other versions have no choice.
	RESTTransport bool
	// RequireExpiry refuses customer tokens without exp.
	RequireExpiry bool
}

// DefaultSettings are those of an app that sets nothing.
func DefaultSettings() Settings {
	return Settings{SubmissionIntervalMS: 15000, CollectSDP: true, RESTTransport: true}
}

// Secret is one app secret. It never prints its key.
type Secret struct {
	KeyID string // lower-case hex; empty when the secret names none
	Key   []byte // the HMAC key: the secret's characters as bytes
}

// ParseSecret reads a secret as customers hold it: the secret itself, or "<base64 key id>:<secret>", of which the part
// up to the next colon counts, as in the clients.
func ParseSecret(s string) (Secret, error) {
	id, rest, found := strings.Cut(s, ":")
	if !found {
		if s == "" {
			return Secret{}, errors.New("the secret is empty")
		}
		return Secret{Key: []byte(s)}, nil
	}
	keyID, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(id, "=")) // as lenient about padding as a browser
	if err != nil || len(keyID) == 0 {
		return Secret{}, errors.New("the part before the colon is not a key id in base64")
	}
	rest, _, _ = strings.Cut(rest, ":")
	if rest == "" {
		return Secret{}, errors.New("nothing follows the key id")
	}
	return Secret{KeyID: hex.EncodeToString(keyID), Key: []byte(rest)}, nil
}

// String hides the key from logs and error texts.
func (s Secret) String() string { return "[secret " + s.KeyID + "]" }

// GoString hides the key from %#v.
func (s Secret) GoString() string { return s.String() }

// AllowsOrigin reports whether a page of this origin may sign in. Origins are compared as RFC 6454 says: scheme, host
// and port, letters of scheme and host in any case, the default port written or not. With a list, a missing or opaque
// ("null") origin is refused.
func (a *App) AllowsOrigin(origin string) bool {
	if len(a.Origins) == 0 {
		return true
	}
	got, err := normalOrigin(origin)
	if err != nil {
		return false
	}
	for _, o := range a.Origins {
		if want, err := normalOrigin(o); err == nil && got == want {
			return true
		}
	}
	return false
}

func normalOrigin(origin string) (string, error) {
	u, err := url.Parse(origin)
	if err != nil {
		return "", err
	}
	host, port := strings.ToLower(u.Hostname()), u.Port()
	if host == "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "" || strings.ContainsAny(origin, "?#") {
		return "", fmt.Errorf("%q is not an origin: want scheme://host or scheme://host:port", origin)
	}
	scheme := strings.ToLower(u.Scheme)
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[scheme]
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", fmt.Errorf("%q is not an origin: no usable port", origin)
	}
	return scheme + "://" + net.JoinHostPort(host, port), nil
}

// Config describes one app in the configuration. Unset settings have their defaults.
type Config struct {
	ID                   string            `koanf:"id"`
	Name                 string            `koanf:"name"`
	Secrets              []string          `koanf:"secrets"`     // as ParseSecret reads them
	PublicKeys           map[string]string `koanf:"public_keys"` // key id to PEM ("PUBLIC KEY", P-256)
	Origins              []string          `koanf:"origins"`
	SubmissionIntervalMS *int              `koanf:"submission_interval_ms"`
	CollectSDP           *bool             `koanf:"collect_sdp"`
	RESTTransport        *bool             `koanf:"rest_transport"`
	RequireExpiry        *bool             `koanf:"require_expiry"`
}

// maxID is the largest number that JavaScript clients hold exactly; the id travels as a number in their tokens.
const maxID = 1<<53 - 1

// New makes an app. The error names what is wrong, never a secret.
func New(cfg Config) (*App, error) {
	n, err := strconv.ParseUint(cfg.ID, 10, 64)
	if err != nil || n == 0 || n > maxID || strconv.FormatUint(n, 10) != cfg.ID {
		return nil, fmt.Errorf("app %q: the id must be a decimal number between 1 and %d without leading zeros", cfg.ID, uint64(maxID))
	}
	a := &App{ID: cfg.ID, Name: cfg.Name, Origins: cfg.Origins, PublicKeys: make(map[string]*ecdsa.PublicKey), Settings: DefaultSettings()}
	for i, s := range cfg.Secrets {
		secret, err := ParseSecret(s)
		if err != nil {
			return nil, fmt.Errorf("app %s: secret %d: %w", cfg.ID, i+1, err)
		}
		a.Secrets = append(a.Secrets, secret)
	}
	for id, text := range cfg.PublicKeys {
		key, err := ParsePublicKey([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("app %s: public key %q: %w", cfg.ID, id, err)
		}
		a.PublicKeys[id] = key
	}
	for _, o := range cfg.Origins {
		if _, err := normalOrigin(o); err != nil {
			return nil, fmt.Errorf("app %s: origins: %w", cfg.ID, err)
		}
	}
	if v := cfg.SubmissionIntervalMS; v != nil {
		// Clients poll every 5 s, so less gives nothing; without any value they would send n² messages.
		if *v < 1000 || *v > 3600_000 {
			return nil, fmt.Errorf("app %s: submission_interval_ms: %d is not between 1000 and 3600000", cfg.ID, *v)
		}
		a.Settings.SubmissionIntervalMS = *v
	}
	set(&a.Settings.CollectSDP, cfg.CollectSDP)
	set(&a.Settings.RESTTransport, cfg.RESTTransport)
	set(&a.Settings.RequireExpiry, cfg.RequireExpiry)
	if len(a.Secrets) == 0 && len(a.PublicKeys) == 0 {
		return nil, fmt.Errorf("app %s: has neither a secret nor a public key, so nobody could sign in", cfg.ID)
	}
	return a, nil
}

func set[T any](dst, v *T) {
	if v != nil {
		*dst = *v
	}
}

// ParsePublicKey reads a P-256 public key in PEM, as ES256 needs it.
func ParsePublicKey(text []byte) (*ecdsa.PublicKey, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, errors.New(`no PEM block "PUBLIC KEY"`)
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading the key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("not an ECDSA key on P-256, which ES256 needs")
	}
	return key, nil
}

// Static is a registry that never changes.
type Static struct{ byID map[string]*App }

// NewStatic makes a registry of the given apps. Two apps with one id are an error.
func NewStatic(list ...*App) (*Static, error) {
	s := &Static{byID: make(map[string]*App, len(list))}
	for _, a := range list {
		if s.byID[a.ID] != nil {
			return nil, fmt.Errorf("app %s is there twice", a.ID)
		}
		s.byID[a.ID] = a
	}
	return s, nil
}

// Lookup returns the app with this id.
func (s *Static) Lookup(appID string) (*App, bool) {
	a, ok := s.byID[appID]
	return a, ok
}
