// Package auth decides who a client is: it signs users in with app-secret tokens or customer tokens, and makes and
// checks the gateway's own access tokens.
//
// It knows no transport: the dialects turn its refusals into what their clients understand. It keeps no state, so any
// gateway that has the same key accepts the tokens of any other.
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
	// ErrExpired: the access token was good and its time is over. The client gets a new one by signing in again.
	ErrExpired = errors.New("access token has expired")
	// ErrInvalid: this is not an access token of ours.
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
}

// Tokens makes and checks access tokens and conference handles, both with keys derived from one gateway key.
type Tokens struct {
	tokenKey, handleKey []byte
	parser              *jwt.Parser
}

// NewTokens takes the key that all gateways of one installation share, at least MinKeyBytes long.
func NewTokens(key []byte) (*Tokens, error) {
	if len(key) < MinKeyBytes {
		return nil, fmt.Errorf("the token key has %d bytes, at least %d are needed", len(key), MinKeyBytes)
	}
	return &Tokens{
		tokenKey:  derive(key, "access token"),
		handleKey: derive(key, "ucID"),
		parser:    jwt.NewParser(jwt.WithValidMethods([]string{"HS256"}), jwt.WithExpirationRequired()),
	}, nil
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

// Issue makes an access token for a user of an app.
func (t *Tokens) Issue(app *apps.App, userID string) (string, Identity, error) {
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
	}
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString(t.tokenKey)
	if err != nil {
		return "", Identity{}, fmt.Errorf("signing an access token: %w", err)
	}
	return token, Identity{AppID: app.ID, UserID: userID, TokenID: claims.ID, ExpiresAt: claims.ExpiresAt.Time}, nil
}

// Verify checks an access token and returns who it belongs to. The error is ErrExpired or ErrInvalid.
func (t *Tokens) Verify(token string) (Identity, error) {
	if len(token) > maxTokenBytes {
		return Identity{}, ErrInvalid
	}
	var claims accessClaims
	_, err := t.parser.ParseWithClaims(token, &claims, func(*jwt.Token) (any, error) { return t.tokenKey, nil })
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
	return Identity{AppID: claims.AppID.String(), UserID: userID, TokenID: claims.ID, ExpiresAt: claims.ExpiresAt.Time}, nil
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
