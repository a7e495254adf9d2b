// Package apps is the registry of apps, callscope's tenants: their secrets, public keys, allowed origins and settings.
//
// Apps come from the configuration, which wins, and from the compacted topic callscope.apps.v1, which `callscope apps`
// writes and every gateway follows. The package answers who an app is and nothing else: it does not verify tokens
// (services/gateway/auth does) and holds no state of calls.
package apps

import (
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
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
	// TokenEpoch only grows. Access tokens issued under a smaller one have been revoked.
	TokenEpoch uint64
}

// Settings are what the app's clients are told and what the app allows.
type Settings struct {
	SubmissionIntervalMS int  // how often clients send statistics
	CollectSDP           bool // whether clients send SDPs; also gates their pre-call tests
	// RESTTransport makes 3.52 clients use REST; false makes them use WebSocket. Other versions have no choice.
	RESTTransport bool
	// RequireExpiry refuses customer tokens without exp.
	RequireExpiry bool
	// StrictTokens accepts only customer tokens with jti and exp, and each of them once per gateway. callstats clients
	// may present a token of the page's cache again, so it is off unless the customer's server makes one each time.
	StrictTokens bool
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
	StrictTokens         *bool             `koanf:"strict_tokens"`
}

// maxID is the largest number that JavaScript clients hold exactly; the id travels as a number in their tokens.
const maxID = 1<<53 - 1

// New makes an app. The error names what is wrong, never a secret.
func New(cfg Config) (*App, error) {
	if err := CheckID(cfg.ID); err != nil {
		return nil, err
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
		if _, err := NormalOrigin(o); err != nil {
			return nil, fmt.Errorf("app %s: origins: %w", cfg.ID, err)
		}
	}
	if v := cfg.SubmissionIntervalMS; v != nil {
		if err := checkInterval(*v); err != nil {
			return nil, fmt.Errorf("app %s: submission_interval_ms: %w", cfg.ID, err)
		}
		a.Settings.SubmissionIntervalMS = *v
	}
	set(&a.Settings.CollectSDP, cfg.CollectSDP)
	set(&a.Settings.RESTTransport, cfg.RESTTransport)
	set(&a.Settings.RequireExpiry, cfg.RequireExpiry)
	set(&a.Settings.StrictTokens, cfg.StrictTokens)
	if len(a.Secrets) == 0 && len(a.PublicKeys) == 0 {
		return nil, fmt.Errorf("app %s: has neither a secret nor a public key, so nobody could sign in", cfg.ID)
	}
	return a, nil
}

// CheckID returns an error for what is no app id: a decimal number as text that JavaScript can hold.
func CheckID(id string) error {
	n, err := strconv.ParseUint(id, 10, 64)
	if err != nil || n == 0 || n > maxID || strconv.FormatUint(n, 10) != id {
		return fmt.Errorf("app %q: the id must be a decimal number between 1 and %d without leading zeros", id, uint64(maxID))
	}
	return nil
}

// checkInterval: clients poll every 5 s, so less gives nothing; without any value they would send n² messages.
func checkInterval(ms int) error {
	if ms < 1000 || ms > 3600_000 {
		return fmt.Errorf("%d is not between 1000 and 3600000", ms)
	}
	return nil
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
	return parsePKIX(block.Bytes)
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
