// Package auth decides who a client is: it signs users in with app-secret tokens or customer tokens, and makes and
// checks the gateway's own access tokens.
//
// It knows no transport: the dialects turn its refusals into what their clients understand. Any gateway that has the same
// key and knows the same apps accepts the tokens of any other; nothing is shared between them but that, so the replay
// cache of strict apps is each gateway's own.
package auth

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"

	"github.com/callscope/callscope/internal/apps"
)

var (
	// ErrExpired: the access token was good and its time is over, or its app's tokens were revoked. The client gets a
	// new one by signing in again.
	ErrExpired = errors.New("access token has expired")
	// ErrInvalid: this is not an access token of ours, not one for this page, or its app is no more.
	ErrInvalid = errors.New("access token is invalid")
)

const (
	// Lifetime of an access token. The spec promises 2 hours; clients renew after nine tenths of it.
	Lifetime = 2 * time.Hour
	// maxTokenBytes bounds what the JWT library gets to see.
	maxTokenBytes = 8 << 10
	// MinKeyBytes is the shortest key that NewTokens takes.
	MinKeyBytes = 16
)

// Identity is what a checked access token says.
type Identity struct {
	AppID     string
	UserID    string
	TokenID   string
	ExpiresAt time.Time

	epoch      uint64 // the app's token epoch when it was issued
	originHash string // of the page that signed in; empty for clients that are none
}

// Tokens makes and checks access tokens and conference handles, both with keys derived from one gateway key.
type Tokens struct {
	registry  Registry
	current   string            // id of the key that signs
	keys      map[string][]byte // by key id, which is the token's kid
	handleKey []byte
	parser    *jwt.Parser
}

// NewTokens takes the key that all gateways of one installation share, at least MinKeyBytes long, and the keys that it
// replaces: their tokens are accepted until they expire, and none is made with them. To change the key without signing
// anybody out, give the new one as previous to all gateways first, then exchange the two, then drop the old one after
// Lifetime.
func NewTokens(registry Registry, key []byte, previous ...[]byte) (*Tokens, error) {
	t := &Tokens{
		registry: registry,
		keys:     make(map[string][]byte),
		parser:   jwt.NewParser(jwt.WithValidMethods([]string{"HS256"}), jwt.WithExpirationRequired(), jwt.WithStrictDecoding()),
	}
	for i, k := range append([][]byte{key}, previous...) {
		if len(k) < MinKeyBytes {
			return nil, fmt.Errorf("a token key has %d bytes, at least %d are needed", len(k), MinKeyBytes)
		}
		tokenKey := derive(k, "access token")
		id := hex.EncodeToString(derive(tokenKey, "key id")[:6])
		t.keys[id] = tokenKey
		if i == 0 {
			t.current, t.handleKey = id, derive(k, "ucID")
		}
	}
	return t, nil
}

func derive(key []byte, use string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte("callscope " + use))
	return mac.Sum(nil)
}

// UcID returns the handle of a conference that callstats clients ask for: a keyed hash, equal for all participants and
// on every gateway, safe to put into a path.
func (t *Tokens) UcID(appID, conferenceID string) string {
	mac := hmac.New(sha256.New, t.handleKey)
	mac.Write([]byte(appID + "\x00" + conferenceID))
	return hex.EncodeToString(mac.Sum(nil)[:12])
}

// ingestedEvents opens every gate of the 3.73 clients.
var ingestedEvents = []string{
	"circuitBreaker", "oneWayMediaStart", "oneWayMediaStop", "applicationErrorLog", "sdpSubmissionEvent",
	"activeDeviceList", "connectedDeviceList", "dominantSpeaker", "mediaPlaybackStart", "mediaPlaybackSuspended",
	"userFeedback", "userFeedbackEvent", "precallTestResultsManual", "precallTestResultsAutomatic",
}

// accessClaims is the payload of an access token. Callstats clients read it without checking the signature.
type accessClaims struct {
	UserID             string           `json:"userID"` // as JavaScript's encodeURIComponent writes it
	AppID              json.Number      `json:"appID"`  // a number: the clients compare it strictly
	Expiry             string           `json:"expiry"`
	SubmissionInterval int              `json:"submissionInterval"`
	CollectSDP         bool             `json:"collectSDP"`
	TaasEnabled        bool             `json:"taasEnabled"`
	MLPipelineEnabled  bool             `json:"mlPipelineEnabled"`
	RESTAPITransport   bool             `json:"restApiTransport"`
	IngestedEvents     []string         `json:"ingestedEvents"`
	ID                 string           `json:"jti"`
	ExpiresAt          *jwt.NumericDate `json:"exp"`
	IssuedAt           *jwt.NumericDate `json:"iat"`
	Epoch              uint64           `json:"epoch"`
	OriginHash         string           `json:"origin,omitempty"`
}

func (c *accessClaims) GetExpirationTime() (*jwt.NumericDate, error) { return c.ExpiresAt, nil }
func (c *accessClaims) GetIssuedAt() (*jwt.NumericDate, error)       { return c.IssuedAt, nil }
func (c *accessClaims) GetNotBefore() (*jwt.NumericDate, error)      { return nil, nil }
func (c *accessClaims) GetIssuer() (string, error)                   { return "", nil }
func (c *accessClaims) GetSubject() (string, error)                  { return "", nil }
func (c *accessClaims) GetAudience() (jwt.ClaimStrings, error)       { return nil, nil }

// MarshalJSON writes the claims so that their base64url text has neither "-" nor "_": callstats clients run plain atob
// on it and treat a token with one of them as invalid for ever. In ASCII text only > ? ~ and DEL can make a sextet of
// 62 or 63, so those are written as JSON escapes.
func (c *accessClaims) MarshalJSON() ([]byte, error) {
	type plain accessClaims
	text, err := json.Marshal((*plain)(c))
	if err != nil {
		return nil, err
	}
	for _, r := range []byte(">?~\x7f") {
		text = bytes.ReplaceAll(text, []byte{r}, fmt.Appendf(nil, `\u%04x`, r))
	}
	return text, nil
}

// Issue makes an access token for a user of an app, on a page of the given origin ("" for clients that are no page).
func (t *Tokens) Issue(app *apps.App, userID, origin string) (string, Identity, error) {
	now := time.Now()
	expires := now.Add(Lifetime)
	id, err := uuid.NewRandom()
	if err != nil {
		return "", Identity{}, fmt.Errorf("making a token id: %w", err)
	}
	claims := &accessClaims{
		UserID:             EncodeURIComponent(userID),
		AppID:              json.Number(app.ID),
		Expiry:             expires.UTC().Format("2006-01-02T15:04:05.000Z"),
		SubmissionInterval: app.Settings.SubmissionIntervalMS,
		CollectSDP:         app.Settings.CollectSDP,
		RESTAPITransport:   app.Settings.RESTTransport,
		IngestedEvents:     ingestedEvents,
		ID:                 id.String(),
		ExpiresAt:          jwt.NewNumericDate(expires),
		IssuedAt:           jwt.NewNumericDate(now),
		Epoch:              app.TokenEpoch,
		OriginHash:         hashOrigin(origin),
	}
	unsigned := jwt.NewWithClaims(jwt.SigningMethodHS256, claims)
	unsigned.Header["kid"] = t.current
	token, err := unsigned.SignedString(t.keys[t.current])
	if err != nil {
		return "", Identity{}, fmt.Errorf("signing an access token: %w", err)
	}
	return token, claims.identity(userID), nil
}

func (c *accessClaims) identity(userID string) Identity {
	return Identity{AppID: c.AppID.String(), UserID: userID, TokenID: c.ID, ExpiresAt: c.ExpiresAt.Time, epoch: c.Epoch, originHash: c.OriginHash}
}

// Verify checks an access token that came with the given Origin header ("" for none) and returns who it belongs to. The
// error is ErrExpired or ErrInvalid.
func (t *Tokens) Verify(token, origin string) (Identity, error) {
	if len(token) > maxTokenBytes || !isTokenText(token) {
		return Identity{}, ErrInvalid
	}
	var claims accessClaims
	_, err := t.parser.ParseWithClaims(token, &claims, func(parsed *jwt.Token) (any, error) {
		kid, _ := parsed.Header["kid"].(string)
		key := t.keys[kid]
		if key == nil {
			return nil, ErrInvalid
		}
		return key, nil
	})
	if errors.Is(err, jwt.ErrTokenExpired) {
		return Identity{}, ErrExpired
	}
	if err != nil {
		return Identity{}, ErrInvalid
	}
	userID, err := url.PathUnescape(claims.UserID)
	if err != nil {
		return Identity{}, ErrInvalid
	}
	identity := claims.identity(userID)
	if err := t.Recheck(identity, origin); err != nil {
		return Identity{}, err
	}
	return identity, nil
}

// Recheck says whether what Verify returned still holds: it is cheap, for connections that keep an identity. The error is
// as Verify's.
func (t *Tokens) Recheck(id Identity, origin string) error {
	app, known := t.registry.Lookup(id.AppID)
	switch {
	case !known:
		return ErrInvalid
	case origin != "" && id.originHash != "" && hashOrigin(origin) != id.originHash:
		return ErrInvalid
	case !time.Now().Before(id.ExpiresAt):
		return ErrExpired
	case id.epoch < app.TokenEpoch: // a later one was issued by a gateway that knows of a revocation before we do
		return ErrExpired
	}
	return nil
}

// hashOrigin binds a token to an origin without putting the customer's text, of any script, where clients read ASCII.
func hashOrigin(origin string) string {
	if origin == "" {
		return ""
	}
	if normal, err := apps.NormalOrigin(origin); err == nil {
		origin = normal
	}
	sum := sha256.Sum256([]byte(origin))
	return hex.EncodeToString(sum[:12])
}

// isTokenText reports whether s has only what a JWT is written with. The library would skip line breaks, which makes one
// token of many texts.
func isTokenText(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.') {
			return false
		}
	}
	return true
}

// EncodeURIComponent is JavaScript's function of that name: everything but letters, digits and -_.!~*'() becomes
// percent-escaped UTF-8.
func EncodeURIComponent(s string) string {
	const hexDigits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-_.!~*'()", c) >= 0:
			b.WriteByte(c)
		default:
			b.WriteByte('%')
			b.WriteByte(hexDigits[c>>4])
			b.WriteByte(hexDigits[c&15])
		}
	}
	return b.String()
}
