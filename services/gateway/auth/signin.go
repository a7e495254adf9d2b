package auth

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/golang-jwt/jwt/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/callscope/callscope/internal/apps"
)

// Registry knows the apps.
type Registry interface {
	Lookup(appID string) (*apps.App, bool)
}

// Grant is a successful sign-in.
type Grant struct {
	Identity
	Token string
}

// Refusal is an unsuccessful sign-in. It says nothing about what was wrong, except that a customer's token, good
// otherwise, has expired; the log has the reason.
type Refusal struct {
	// TokenExpired: the customer's server has to make a new token.
	TokenExpired bool
}

// MaxUserIDBytes is the longest user id. The spec says 128 in its tables and 256 in its text.
const MaxUserIDBytes = 256

// leeway for the clocks of customers' servers.
const leeway = 60 * time.Second

// Authenticator signs users in.
type Authenticator struct {
	registry Registry
	tokens   *Tokens
	log      *slog.Logger
	signIns  *prometheus.CounterVec // method, outcome, reason

	secretParser, customerParser *jwt.Parser
	dummyKey                     []byte
}

// NewAuthenticator registers its counters with reg, which may be nil.
func NewAuthenticator(registry Registry, tokens *Tokens, log *slog.Logger, reg prometheus.Registerer) (*Authenticator, error) {
	a := &Authenticator{
		registry: registry,
		tokens:   tokens,
		log:      log,
		signIns: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "callscope_gateway_sign_ins_total",
			Help: "Sign-ins by method (app_secret, customer_token, none), outcome (granted, refused) and reason.",
		}, []string{"method", "outcome", "reason"}),
		// App-secret tokens have neither exp nor iat; where one of them has, it counts.
		secretParser:   jwt.NewParser(jwt.WithValidMethods([]string{"HS256"}), jwt.WithLeeway(leeway)),
		customerParser: jwt.NewParser(jwt.WithValidMethods([]string{"ES256"}), jwt.WithLeeway(leeway)),
		dummyKey:       make([]byte, 32),
	}
	if _, err := rand.Read(a.dummyKey); err != nil {
		return nil, fmt.Errorf("making the key that unknown apps are checked with: %w", err)
	}
	if reg != nil {
		if err := reg.Register(a.signIns); err != nil {
			return nil, fmt.Errorf("registering the sign-in counter: %w", err)
		}
	}
	return a, nil
}

// Why a sign-in was refused, for the log and the counter.
var (
	errClientID     = errors.New("client_id")
	errCode         = errors.New("malformed_code")
	errMethod       = errors.New("method")
	errUnknownApp   = errors.New("unknown_app")
	errCredential   = errors.New("signature")
	errClaims       = errors.New("claims")
	errTokenExpired = errors.New("expired")
	errNotYet       = errors.New("not_yet_valid")
	errOrigin       = errors.New("origin")
	errInternal     = errors.New("internal")
)

// SignIn checks the form fields client_id ("<userID>@<appID>", decoded) and code (a JWT) of a client on a page of the
// given origin. Exactly one of grant and refusal is set.
func (a *Authenticator) SignIn(clientID, code, origin string) (*Grant, *Refusal) {
	method, app, claims, err := a.check(clientID, code, origin)
	if err != nil {
		a.signIns.WithLabelValues(method, "refused", err.Error()).Inc()
		a.log.Info("sign-in refused", "reason", err.Error(), "method", method, "app_id", clientAppID(clientID), "origin", clip(origin), "jti", clip(claims.ID))
		return nil, &Refusal{TokenExpired: errors.Is(err, errTokenExpired) && method == "customer_token"}
	}
	token, identity, err := a.tokens.Issue(app, claims.userID)
	if err != nil {
		a.signIns.WithLabelValues(method, "refused", errInternal.Error()).Inc()
		a.log.Error("making an access token failed", "app_id", app.ID, "error", err)
		return nil, &Refusal{}
	}
	a.signIns.WithLabelValues(method, "granted", "").Inc()
	a.log.Debug("sign-in granted", "method", method, "app_id", app.ID, "origin", clip(origin), "jti", clip(claims.ID), "token_id", identity.TokenID)
	return &Grant{Identity: identity, Token: token}, nil
}

func (a *Authenticator) check(clientID, code, origin string) (method string, app *apps.App, claims signInClaims, err error) {
	method = "none"
	at := strings.LastIndexByte(clientID, '@')
	if at <= 0 || at > MaxUserIDBytes || !utf8.ValidString(clientID) {
		return method, nil, claims, errClientID
	}
	userID, appID := clientID[:at], clientID[at+1:]
	app, known := a.registry.Lookup(appID)
	if !known {
		app = &apps.App{ID: appID, Secrets: []apps.Secret{{Key: a.dummyKey}}}
	}
	switch signingMethod(code) {
	case "HS256":
		method = "app_secret"
		err = a.verifySecret(app, code, &claims)
	case "ES256":
		method = "customer_token"
		err = a.verifyCustomer(app, code, &claims)
	case "":
		return method, nil, claims, errCode
	default:
		return method, nil, claims, errMethod
	}
	switch {
	case !known:
		return method, nil, claims, errUnknownApp
	case err != nil && !errors.Is(err, errTokenExpired):
		return method, nil, claims, err
	case claims.userID != userID || claims.appID != app.ID:
		return method, nil, claims, errClaims
	case !app.AllowsOrigin(origin):
		return method, nil, claims, errOrigin
	}
	return method, app, claims, err
}

// signingMethod reads the header of a JWT. It returns "" for what is none.
func signingMethod(code string) string {
	head, _, found := strings.Cut(code, ".")
	if !found || len(code) > maxTokenBytes || strings.Count(code, ".") != 2 {
		return ""
	}
	text, err := base64.RawURLEncoding.DecodeString(head)
	if err != nil {
		return ""
	}
	var header map[string]json.RawMessage
	var alg string
	if json.Unmarshal(text, &header) != nil || json.Unmarshal(header["alg"], &alg) != nil {
		return ""
	}
	if _, critical := header["crit"]; critical {
		return "crit" // RFC 7515: what must be understood is not
	}
	return alg
}

// verifySecret checks a token that the client signed with the app secret.
func (a *Authenticator) verifySecret(app *apps.App, code string, claims *signInClaims) error {
	_, err := a.secretParser.ParseWithClaims(code, claims, func(*jwt.Token) (any, error) {
		var keys jwt.VerificationKeySet
		for _, s := range app.Secrets {
			if claims.keyID == "" || s.KeyID == "" || claims.keyID == s.KeyID {
				keys.Keys = append(keys.Keys, s.Key)
			}
		}
		if len(keys.Keys) == 0 {
			keys.Keys = append(keys.Keys, a.dummyKey)
		}
		return keys, nil
	})
	return reason(err)
}

// verifyCustomer checks a token that the customer's server signed for its user.
func (a *Authenticator) verifyCustomer(app *apps.App, code string, claims *signInClaims) error {
	_, err := a.customerParser.ParseWithClaims(code, claims, func(*jwt.Token) (any, error) {
		key := app.PublicKeys[claims.keyID]
		if key == nil {
			return nil, errCredential
		}
		return key, nil
	})
	if err == nil && app.Settings.RequireExpiry && claims.ExpiresAt == nil {
		return errClaims
	}
	return reason(err)
}

func reason(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jwt.ErrTokenMalformed):
		return errCode
	case errors.Is(err, jwt.ErrTokenSignatureInvalid), errors.Is(err, jwt.ErrTokenUnverifiable):
		return errCredential
	case errors.Is(err, jwt.ErrTokenNotValidYet), errors.Is(err, jwt.ErrTokenUsedBeforeIssued):
		return errNotYet // also when it has expired as well: no time was ever right
	case errors.Is(err, jwt.ErrTokenExpired):
		return errTokenExpired
	default:
		return errClaims
	}
}

// signInClaims are the claims of app-secret and customer tokens.
type signInClaims struct {
	jwt.RegisteredClaims
	userID string
	appID  string // decimal text, whether the token has a string or a number
	keyID  string
}

// UnmarshalJSON reads names in their exact case: keyID and keyId are two spellings of one claim, userid is none.
func (c *signInClaims) UnmarshalJSON(text []byte) error {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(text, &all); err != nil {
		return err
	}
	if err := unmarshalClaim(all["userID"], &c.userID); err != nil {
		return fmt.Errorf("userID: %w", err)
	}
	if n := json.Number(""); json.Unmarshal(all["appID"], &n) == nil {
		c.appID = n.String() // a number or, as encoding/json allows, a string that holds one
	}
	for _, name := range []string{"keyID", "keyId"} {
		if err := unmarshalClaim(all[name], &c.keyID); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := unmarshalClaim(all["jti"], &c.ID); err != nil {
		c.ID = "" // it is for the log only; some servers write a number
	}
	for name, date := range map[string]**jwt.NumericDate{"exp": &c.ExpiresAt, "nbf": &c.NotBefore, "iat": &c.IssuedAt} {
		if err := unmarshalClaim(all[name], date); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func unmarshalClaim(text json.RawMessage, dst any) error {
	if len(text) == 0 {
		return nil
	}
	return json.Unmarshal(text, dst)
}

// clip bounds what a stranger can put into the log.
func clip(s string) string { return s[:min(len(s), 128)] }

func clientAppID(clientID string) string {
	return clip(clientID[strings.LastIndexByte(clientID, '@')+1:])
}
