package play

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/golang-jwt/jwt/v5"
)

// appSecret is an app's secret as the client library reads it.
type appSecret struct {
	key   []byte
	keyID string // lower-case hex; empty when the secret names none
}

// parseSecret reads "secret" or "<base64 key id>:<secret>". The key is the characters taken as bytes, so none may be
// beyond U+00FF.
func parseSecret(text string) (appSecret, error) {
	var s appSecret
	if id, rest, found := strings.Cut(text, ":"); found {
		raw, err := base64.StdEncoding.DecodeString(id)
		if err != nil {
			return s, fmt.Errorf("the app secret has a colon, and what stands before it is not base64: %w", err)
		}
		s.keyID = hex.EncodeToString(raw)
		text, _, _ = strings.Cut(rest, ":")
	}
	for _, r := range text {
		if r > 0xFF {
			return s, errors.New("the app secret has a character that is not Latin-1, which no client library can use")
		}
		s.key = append(s.key, byte(r))
	}
	if len(s.key) == 0 {
		return s, errors.New("the app secret is empty")
	}
	return s, nil
}

// signInForm is the recorded authenticate form with a token signed afresh with the app's secret, for the recorded user
// and app. A recorded ES256 token becomes one of the app's secret too: its private key is the recorded app's own.
func signInForm(body string, secret appSecret) (string, error) {
	form, err := url.ParseQuery(body)
	if err != nil {
		return "", fmt.Errorf("reading the recorded form: %w", err)
	}
	recorded := jwt.MapClaims{}
	parser := jwt.NewParser(jwt.WithJSONNumber(), jwt.WithoutClaimsValidation())
	old, _, err := parser.ParseUnverified(form.Get("code"), recorded)
	if err != nil {
		return "", fmt.Errorf("reading the recorded token: %w", err)
	}
	claims := jwt.MapClaims{}
	for _, name := range []string{"userID", "appID", "generateTurnCredentials"} {
		if value, ok := recorded[name]; ok {
			claims[name] = value
		}
	}
	if secret.keyID != "" {
		name := "keyId"
		// The oldest clients write it with a capital D.
		if _, capital := recorded["keyID"]; capital && old.Method.Alg() == jwt.SigningMethodHS256.Alg() {
			name = "keyID"
		}
		claims[name] = secret.keyID
	}
	fresh := jwt.NewWithClaims(jwt.SigningMethodHS256, claims)
	delete(fresh.Header, "typ") // the clients send none
	code, err := fresh.SignedString(secret.key)
	if err != nil {
		return "", fmt.Errorf("signing a token: %w", err)
	}
	// The fields keep their recorded order and spelling.
	fields := strings.Split(body, "&")
	for i, f := range fields {
		if strings.HasPrefix(f, "code=") {
			fields[i] = "code=" + url.QueryEscape(code)
		}
	}
	return strings.Join(fields, "&"), nil
}

type signInAnswer struct {
	AccessToken string `json:"access_token"`
	TokenType   string `json:"token_type"`
	// ErrorActions make the whole answer a refusal, whatever its status.
	ErrorActions []json.RawMessage `json:"urn:x-callstats:auth:errorActions"`
}

// parseSignIn reads an answer as the client does; what is no answer of that kind gives the zero value.
func parseSignIn(body []byte) signInAnswer {
	var a signInAnswer
	if json.Unmarshal(body, &a) != nil || a.TokenType != "bearer" || len(a.ErrorActions) > 0 {
		return signInAnswer{}
	}
	return a
}
