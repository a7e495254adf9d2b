package auth

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/golang-jwt/jwt/v5"
)

// signInClaims are the claims of app-secret and customer tokens.
type signInClaims struct {
	jwt.RegisteredClaims
	userID  string
	appID   string // decimal text, whether the token has a string or a number
	keyID   string
	jtiText bool // jti is a string, as RFC 7519 says
}

var errDuplicate = errors.New("a name is there twice")

// UnmarshalJSON reads names in their exact case: keyID and keyId are two spellings of one claim, userid is none. A name
// that is there twice would be read differently by different programs, so it is refused.
func (c *signInClaims) UnmarshalJSON(text []byte) error {
	all, err := object(text)
	if err != nil {
		return err
	}
	if err := unmarshalClaim(all["userID"], &c.userID); err != nil {
		return fmt.Errorf("userID: %w", err)
	}
	if n := json.Number(""); json.Unmarshal(all["appID"], &n) == nil {
		c.appID = n.String() // a number or, as encoding/json allows, a string that holds one
	}
	if all["keyID"] != nil && all["keyId"] != nil {
		return fmt.Errorf("keyID and keyId: %w", errDuplicate)
	}
	for _, name := range []string{"keyID", "keyId"} {
		if err := unmarshalClaim(all[name], &c.keyID); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if jti := all["jti"]; jti != nil {
		if c.jtiText = json.Unmarshal(jti, &c.ID) == nil && jti[0] == '"'; !c.jtiText {
			c.ID = clip(string(jti)) // for the log; some servers write a number
		}
	}
	for name, date := range map[string]**jwt.NumericDate{"exp": &c.ExpiresAt, "nbf": &c.NotBefore, "iat": &c.IssuedAt} {
		if *date, err = numericDate(all[name]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// Validate is called by the library beside its own checks of exp, nbf and iat.
func (c *signInClaims) Validate() error {
	switch {
	case c.ExpiresAt == nil:
		return nil
	case c.NotBefore != nil && !c.NotBefore.Before(c.ExpiresAt.Time): // as in the spec's sample, which was never valid
		return fmt.Errorf("nbf is not before exp: %w", errClaims)
	case c.IssuedAt != nil && c.IssuedAt.After(c.ExpiresAt.Time):
		return fmt.Errorf("iat is after exp: %w", errClaims)
	}
	return nil
}

// object reads a JSON object in valid UTF-8 without duplicate names at its top level.
func object(text []byte) (map[string]json.RawMessage, error) {
	if !utf8.Valid(text) {
		return nil, errors.New("not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(text))
	if start, err := d.Token(); err != nil || start != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	all := make(map[string]json.RawMessage)
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, err
		}
		text, _ := name.(string) // an object's names are
		if all[text] != nil {
			return nil, errDuplicate
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, err
		}
		all[text] = value
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON object")
	}
	return all, nil
}

func unmarshalClaim(text json.RawMessage, dst *string) error {
	if len(text) == 0 {
		return nil
	}
	if text[0] != '"' {
		return errors.New("not a string")
	}
	return json.Unmarshal(text, dst)
}

// maxDate is the end of the year 9999.
const maxDate = 253402300799

// numericDate reads seconds since 1970, maybe with a fraction, and nil where there is none.
func numericDate(text json.RawMessage) (*jwt.NumericDate, error) {
	if len(text) == 0 {
		return nil, nil
	}
	var seconds float64
	if text[0] == 'n' || json.Unmarshal(text, &seconds) != nil || seconds < 0 || seconds > maxDate {
		return nil, errors.New("not a number of seconds since 1970")
	}
	whole, fraction := math.Modf(seconds)
	return jwt.NewNumericDate(time.Unix(int64(whole), int64(fraction*1e9))), nil
}

// dangerous header fields would have a verifier take its key from the token, or are to be understood and are not.
var dangerous = []string{"crit", "jwk", "jku", "x5u", "x5c", "b64", "zip"}

// signingMethod reads the header of a JWT. The error is errCode for what is none and errMethod for what must not be.
func signingMethod(code string) (string, error) {
	head, _, _ := strings.Cut(code, ".")
	if len(code) > maxTokenBytes || strings.Count(code, ".") != 2 || !isTokenText(code) {
		return "", errCode
	}
	text, err := base64.RawURLEncoding.Strict().DecodeString(head)
	if err != nil {
		return "", errCode
	}
	header, err := object(text)
	if err != nil {
		return "", errCode
	}
	var alg string
	if json.Unmarshal(header["alg"], &alg) != nil {
		return "", errCode
	}
	if slices.ContainsFunc(dangerous, func(name string) bool { return header[name] != nil }) {
		return "", errMethod
	}
	return alg, nil
}
