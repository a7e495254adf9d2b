package apps

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseSecret(t *testing.T) {
	for _, tc := range []struct {
		in    string
		keyID string
		key   string
		fails bool
	}{
		{in: "synthetic-app-secret-01", key: "synthetic-app-secret-01"},
		{in: "AQIDBAUGBwk=:another-synthetic-secret", keyID: "0102030405060709", key: "another-synthetic-secret"},
		{in: "AQIDBAUGBwk=:secret:rest", keyID: "0102030405060709", key: "secret"},
		{in: "", fails: true},
		{in: ":secret", fails: true},
		{in: "not base64!:secret", fails: true},
		{in: "AQIDBAUGBwk=:", fails: true},
	} {
		got, err := ParseSecret(tc.in)
		if (err != nil) != tc.fails {
			t.Errorf("%q: error %v, want failure %v", tc.in, err, tc.fails)
		}
		if got.KeyID != tc.keyID || string(got.Key) != tc.key {
			t.Errorf("%q: key id %q, key %q", tc.in, got.KeyID, got.Key)
		}
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	a, err := New(Config{ID: "1", Secrets: []string{"AQIDBAUGBwk=:planted-marker"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(format, a.Secrets); strings.Contains(text, "planted") || strings.Contains(text, "112 108") {
			t.Errorf("%s prints the secret: %s", format, text)
		}
	}
	if _, err := New(Config{ID: "1", Secrets: []string{"planted marker:x"}}); err == nil || strings.Contains(err.Error(), "planted") {
		t.Errorf("the error of a bad secret is %v", err)
	}
}

func publicKeyPEM(t *testing.T, curve elliptic.Curve) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func TestNew(t *testing.T) {
	no, interval := false, 20000
	a, err := New(Config{
		ID: "123456789", Name: "demo", Secrets: []string{"one", "two"}, Origins: []string{"https://app.example.test"},
		PublicKeys:           map[string]string{"0102": publicKeyPEM(t, elliptic.P256())},
		SubmissionIntervalMS: &interval, CollectSDP: &no,
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Settings{SubmissionIntervalMS: 20000, RESTTransport: true}, a.Settings); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
	if len(a.Secrets) != 2 || a.PublicKeys["0102"] == nil {
		t.Errorf("made %+v", a)
	}

	short := 10
	for _, tc := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"no id", Config{Secrets: []string{"s"}}, "decimal number"},
		{"leading zero", Config{ID: "0123", Secrets: []string{"s"}}, "leading zeros"},
		{"letters", Config{ID: "12a", Secrets: []string{"s"}}, "decimal number"},
		{"too large for JavaScript", Config{ID: "9007199254740992", Secrets: []string{"s"}}, "decimal number"},
		{"nobody can sign in", Config{ID: "1"}, "neither a secret nor a public key"},
		{"empty secret", Config{ID: "1", Secrets: []string{""}}, "secret 1"},
		{"key is no PEM", Config{ID: "1", PublicKeys: map[string]string{"k": "x"}}, `public key "k"`},
		{"wrong curve", Config{ID: "1", PublicKeys: map[string]string{"k": publicKeyPEM(t, elliptic.P384())}}, "P-256"},
		{"origin with a path", Config{ID: "1", Secrets: []string{"s"}, Origins: []string{"https://a.test/x"}}, "not an origin"},
		{"interval", Config{ID: "1", Secrets: []string{"s"}, SubmissionIntervalMS: &short}, "submission_interval_ms"},
	} {
		if _, err := New(tc.cfg); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want one about %q", tc.name, err, tc.want)
		}
	}
}

func TestAllowsOrigin(t *testing.T) {
	listed := &App{Origins: []string{"https://app.example.test", "http://localhost:8000", "https://[2001:db8::1]:8443"}}
	for origin, want := range map[string]bool{
		"https://app.example.test":         true,
		"https://app.example.test:443":     true,
		"HTTPS://App.Example.Test":         true,
		"http://localhost:8000":            true,
		"https://[2001:db8::1]:8443":       true,
		"http://app.example.test":          false,
		"https://app.example.test:8443":    false,
		"https://app.example.test.":        false,
		"https://app.example.test.evil.tk": false,
		"https://evil.tk/app.example.test": false,
		"https://app.example.test@evil.tk": false,
		"https://x@app.example.test":       false,
		"https://app.example.test#":        false,
		"https://app.example.test?":        false,
		"https://xapp.example.test":        false,
		"null":                             false,
		"":                                 false,
		"file://":                          false,
		"app.example.test":                 false,
	} {
		if got := listed.AllowsOrigin(origin); got != want {
			t.Errorf("%q allowed: %v, want %v", origin, got, want)
		}
	}
	for _, origin := range []string{"", "null", "https://anything.test"} {
		if !new(App).AllowsOrigin(origin) {
			t.Errorf("%q is refused without a list", origin)
		}
	}
}

func TestStatic(t *testing.T) {
	one, two := &App{ID: "1"}, &App{ID: "2"}
	s, err := NewStatic(one, two)
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := s.Lookup("2"); !ok || got != two {
		t.Errorf("Lookup(2) = %v, %v", got, ok)
	}
	if _, ok := s.Lookup("3"); ok {
		t.Error("an unknown app was found")
	}
	if _, err := NewStatic(one, &App{ID: "1"}); err == nil {
		t.Error("two apps with one id were accepted")
	}
}
