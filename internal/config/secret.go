package config

import (
	"encoding"
	"fmt"
	"log/slog"
)

// Secret is a setting that nobody may read in a log, an error, a dump or the output of `callscope config`. Only Reveal
// gives its text.
//
// The text sits behind a pointer, so that even a formatting of a surrounding struct that cannot call methods (an
// unexported field) shows an address and not the text.
type Secret struct{ text *string }

var (
	_ fmt.Formatter            = Secret{}
	_ encoding.TextMarshaler   = Secret{}
	_ encoding.TextUnmarshaler = (*Secret)(nil)
	_ slog.LogValuer           = Secret{}
)

const hidden = "(hidden)"

// NewSecret hides text.
func NewSecret(text string) Secret { return Secret{text: &text} }

// Reveal gives the text itself; the empty string when none is set.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// IsSet says whether there is any text.
func (s Secret) IsSet() bool { return s.Reveal() != "" }

// String is "(hidden)", or empty when no secret is set.
func (s Secret) String() string {
	if !s.IsSet() {
		return ""
	}
	return hidden
}

// GoString is String for %#v.
func (s Secret) GoString() string { return s.String() }

// Format writes String for every verb.
func (s Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.String()) }

// MarshalText is String for encoders.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText takes text as the secret.
func (s *Secret) UnmarshalText(text []byte) error {
	*s = NewSecret(string(text))
	return nil
}

// LogValue is String for slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }
