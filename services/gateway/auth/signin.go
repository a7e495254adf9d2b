package auth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
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
	replays                      replays

	// What unknown apps and keys are checked with, so that they take as long as known ones. Nobody can sign with them.
	dummyKey    []byte
	dummyPublic *ecdsa.PublicKey
}

// NewAuthenticator registers its counters with reg, which may be nil.
func NewAuthenticator(registry Registry, tokens *Tokens, log *slog.Logger, reg prometheus.Registerer) (*Authenticator, error) {
	options := []jwt.ParserOption{jwt.WithLeeway(leeway), jwt.WithIssuedAt(), jwt.WithStrictDecoding()}
	a := &Authenticator{
		registry: registry,
		tokens:   tokens,
		log:      log,
		signIns: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "callscope_gateway_sign_ins_total",
			Help: "Sign-ins by method (app_secret, customer_token, proof, none), outcome (granted, refused) and reason.",
		}, []string{"method", "outcome", "reason"}),
		// App-secret tokens have neither exp nor iat; where one of them has, it counts.
		secretParser:   jwt.NewParser(append(options, jwt.WithValidMethods([]string{"HS256"}))...),
		customerParser: jwt.NewParser(append(options, jwt.WithValidMethods([]string{"ES256"}))...),
		replays:        replays{until: make(map[string]time.Time)},
		dummyKey:       make([]byte, 32),
	}
	if _, err := rand.Read(a.dummyKey); err != nil {
		return nil, fmt.Errorf("making the key that unknown apps are checked with: %w", err)
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the key that unknown apps are checked with: %w", err)
	}
	a.dummyPublic = &private.PublicKey
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
	errReplayed     = errors.New("replayed")
	errReplayCache  = errors.New("replay_cache_full")
	errOrigin       = errors.New("origin")
	errInternal     = errors.New("internal")
)

// attempt is one sign-in for the audit log: what the client claims, until it is granted.
type attempt struct {
	method, appID, userID, origin, jti, keyID string
}

// grant makes the access token of a sign-in that was found good.
func (a *Authenticator) grant(at attempt, app *apps.App) (*Grant, *Refusal) {
	token, identity, err := a.tokens.Issue(app, at.userID, at.origin)
	if err != nil {
		a.log.Error("making an access token failed", "app_id", app.ID, "error", err)
		return nil, a.refuse(at, errInternal)
	}
	a.signIns.WithLabelValues(at.method, "granted", "").Inc()
	a.log.Info("sign-in granted", append(at.attributes(), "token_id", identity.TokenID)...)
	return &Grant{Identity: identity, Token: token}, nil
}

func (a *Authenticator) refuse(at attempt, reason error) *Refusal {
	a.signIns.WithLabelValues(at.method, "refused", reason.Error()).Inc()
	a.log.Info("sign-in refused", append(at.attributes(), "reason", reason.Error())...)
	return &Refusal{TokenExpired: errors.Is(reason, errTokenExpired) && at.method == "customer_token"}
}

func (at attempt) attributes() []any {
	return []any{"method", at.method, "app_id", clip(at.appID), "user_id", clip(at.userID), "origin", clip(at.origin), "jti", clip(at.jti), "key_id", clip(at.keyID)}
}

// clip bounds what a stranger can put into the log.
func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), 128)], "\uFFFD") }

// SignIn checks the form fields client_id ("<userID>@<appID>", decoded) and code (a JWT) of a client on a page of the
// given origin. Exactly one of grant and refusal is set.
func (a *Authenticator) SignIn(clientID, code, origin string) (*Grant, *Refusal) {
	at := attempt{method: "none", origin: origin}
	split := strings.LastIndexByte(clientID, '@')
	at.userID, at.appID = clientID[:max(split, 0)], clientID[split+1:]
	return a.signIn(at, code, "")
}

// SignInCustomer checks a token that the customer's server signed (ES256) for the user of an app, on a page of the given
// origin. Exactly one of grant and refusal is set.
func (a *Authenticator) SignInCustomer(appID, userID, token, origin string) (*Grant, *Refusal) {
	return a.signIn(attempt{method: "none", appID: appID, userID: userID, origin: origin}, token, "ES256")
}

// signIn takes tokens signed with one method only, or with either when only is empty.
func (a *Authenticator) signIn(at attempt, code, only string) (*Grant, *Refusal) {
	app, err := a.check(&at, code, only)
	if err != nil {
		return nil, a.refuse(at, err)
	}
	return a.grant(at, app)
}

func (a *Authenticator) check(at *attempt, code, only string) (*apps.App, error) {
	if !validUserID(at.userID) {
		return nil, errClientID
	}
	alg, err := signingMethod(code)
	switch {
	case err != nil:
		return nil, err
	case only != "" && alg != only:
		return nil, errMethod
	}
	app, known := a.registry.Lookup(at.appID)
	if !known {
		app = &apps.App{ID: at.appID}
	}
	var claims signInClaims
	switch alg {
	case "HS256":
		at.method = "app_secret"
		err = a.verifySecret(app, code, &claims)
	case "ES256":
		at.method = "customer_token"
		err = a.verifyCustomer(app, code, &claims)
	default:
		return nil, errMethod
	}
	at.jti, at.keyID = claims.ID, claims.keyID
	switch {
	case !known:
		return nil, errUnknownApp
	case err != nil && !errors.Is(err, errTokenExpired):
		return nil, err
	case claims.userID != at.userID || claims.appID != app.ID:
		return nil, errClaims
	case !app.AllowsOrigin(at.origin):
		return nil, errOrigin
	case err != nil:
		return nil, err
	}
	if at.method == "customer_token" && app.Settings.StrictTokens {
		return app, a.useOnce(app, &claims)
	}
	return app, nil
}

func validUserID(userID string) bool {
	return userID != "" && len(userID) <= MaxUserIDBytes && utf8.ValidString(userID)
}

// verifySecret checks a token that the client signed with the app secret. It computes at least as many signatures for a
// bad token as an app in the middle of a rotation has secrets.
func (a *Authenticator) verifySecret(app *apps.App, code string, claims *signInClaims) error {
	_, err := a.secretParser.ParseWithClaims(code, claims, func(*jwt.Token) (any, error) {
		var keys jwt.VerificationKeySet
		for _, s := range app.Secrets {
			if claims.keyID == "" || s.KeyID == "" || claims.keyID == s.KeyID {
				keys.Keys = append(keys.Keys, clientKey(s.Key))
			}
		}
		for len(keys.Keys) < apps.MaxSecrets {
			keys.Keys = append(keys.Keys, a.dummyKey)
		}
		return keys, nil
	})
	return reason(err)
}

// clientKey is the key that callstats clients make of a secret: its characters as Latin-1, where ours has them as UTF-8.
func clientKey(secret []byte) []byte {
	var key []byte
	for _, r := range string(secret) {
		if r > 0xFF {
			return secret
		}
		key = append(key, byte(r))
	}
	return key
}

// verifyCustomer checks a token that the customer's server signed for its user.
func (a *Authenticator) verifyCustomer(app *apps.App, code string, claims *signInClaims) error {
	_, err := a.customerParser.ParseWithClaims(code, claims, func(*jwt.Token) (any, error) {
		if key := app.PublicKeys[claims.keyID]; key != nil && claims.keyID != "" {
			return key, nil
		}
		return a.dummyPublic, nil
	})
	if err == nil && (app.Settings.RequireExpiry || app.Settings.StrictTokens) && claims.ExpiresAt == nil {
		return errClaims
	}
	return reason(err)
}

// useOnce is for apps that accept every customer token once.
func (a *Authenticator) useOnce(app *apps.App, claims *signInClaims) error {
	if !claims.jtiText || claims.ID == "" || len(claims.ID) > maxJTIBytes || time.Until(claims.ExpiresAt.Time) > maxStrictLifetime {
		return errClaims
	}
	return a.replays.use(app.ID, claims.ID, claims.ExpiresAt.Add(leeway))
}

func reason(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jwt.ErrTokenMalformed):
		return errCode
	case errors.Is(err, jwt.ErrTokenSignatureInvalid), errors.Is(err, jwt.ErrTokenUnverifiable):
		return errCredential
	case errors.Is(err, errClaims):
		return errClaims
	case errors.Is(err, jwt.ErrTokenNotValidYet), errors.Is(err, jwt.ErrTokenUsedBeforeIssued):
		return errNotYet // also when it has expired as well: no time was ever right
	case errors.Is(err, jwt.ErrTokenExpired):
		return errTokenExpired
	default:
		return errClaims
	}
}
