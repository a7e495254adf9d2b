package play

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func keep(string, string) (string, bool) { return "", false }

func TestRewrite(t *testing.T) {
	times := shift{from: 1795343000000, to: 1795344000000, by: 1000}
	token := func(key, value string) (string, bool) {
		return "fresh \"token\"", key == "token" && value == "old\"é"
	}
	for _, tt := range []struct{ name, in, want string }{
		{"whole number", `{"timestamp":1795343000000}`, `{"timestamp":1795343001000}`},
		{"fraction kept", `{"apiTS":1795343925027.4602}`, `{"apiTS":1795343926027.4602}`},
		{"at the edges", `[1795342999999,1795343000000,1795344000000,1795344000001]`, `[1795342999999,1795343001000,1795344001000,1795344000001]`},
		{"beyond 2^53", `{"priority":9115005270282338814,"n":18446744073709551615}`, `{"priority":9115005270282338814,"n":18446744073709551615}`},
		{"negative and exponent", `[-1795343000000,1.795343000000e12,0,-0.5]`, `[-1795343000000,1.795343000000e12,0,-0.5]`},
		{"in strings nothing moves", `{"id":"1795343000000-x","1795343000000":1}`, `{"id":"1795343000000-x","1795343000000":1}`},
		{"order, spacing, doubled keys", "{ \"b\" : 1795343000000 ,\n\"a\":1,\"b\":2}", "{ \"b\" : 1795343001000 ,\n\"a\":1,\"b\":2}"},
		{"value of a key", `{"token":"old\"\u00e9","x":"old\"é","y":["token","old\"é"]}`, `{"token":"fresh \"token\"","x":"old\"é","y":["token","old\"é"]}`},
		{"not JSON", `client_id=1795343000000&x={`, `client_id=1795343000000&x={`},
		{"empty", ``, ``},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, rewrite(tt.in, times, token)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// anyJSON makes values with keys, escapes and numbers of every spelling.
func anyJSON() *rapid.Generator[any] {
	return rapid.Custom(func(t *rapid.T) any { return drawJSON(t, 3) })
}

func drawJSON(t *rapid.T, depth int) any {
	kinds := 5
	if depth > 0 {
		kinds = 7
	}
	switch rapid.IntRange(0, kinds-1).Draw(t, "kind") {
	case 0:
		return nil
	case 1:
		return rapid.Bool().Draw(t, "bool")
	case 2:
		return rapid.String().Draw(t, "string")
	case 3:
		return json.Number(rapid.StringMatching(`-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,9})?([eE][+-]?[0-9]{1,2})?`).Draw(t, "number"))
	case 4:
		return rapid.Int64Range(0, 1<<42).Draw(t, "int")
	case 5:
		list := make([]any, rapid.IntRange(0, 4).Draw(t, "length"))
		for i := range list {
			list[i] = drawJSON(t, depth-1)
		}
		return list
	}
	object := make(map[string]any)
	for range rapid.IntRange(0, 4).Draw(t, "fields") {
		object[rapid.String().Draw(t, "key")] = drawJSON(t, depth-1)
	}
	return object
}

// Rewriting without anything to change changes no byte, and moving there and back gives the same bytes.
func TestRewriteLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text, err := json.Marshal(anyJSON().Draw(t, "value"))
		if err != nil {
			t.Fatal(err)
		}
		if got := rewrite(string(text), shift{}, keep); got != string(text) {
			t.Fatalf("nothing to change, and %s became %s", text, got)
		}
		const from, to, by = 1 << 40, 1 << 41, 1 << 45
		moved := rewrite(string(text), shift{from, to, by}, keep)
		if !json.Valid([]byte(moved)) {
			t.Fatalf("%s became %s, which is no JSON", text, moved)
		}
		if back := rewrite(moved, shift{from + by, to + by, -by}, keep); back != string(text) {
			t.Fatalf("%s came back as %s", text, back)
		}
	})
}

func FuzzRewrite(f *testing.F) {
	f.Add(`{"timestamp":1795343925027.4602,"ucID":"x\\\"","a":[{"b":-1e5}]}`)
	f.Add(`"`)
	f.Fuzz(func(t *testing.T, text string) {
		got := rewrite(text, shift{from: 1, to: 9, by: 1}, func(key, _ string) (string, bool) { return "new", key == "ucID" })
		if json.Valid([]byte(text)) != json.Valid([]byte(got)) {
			t.Errorf("%q became %q", text, got)
		}
	})
}

func TestSignInForm(t *testing.T) {
	recorded := "client_id=alice%40example.test%40123456789&code=" + unsigned(t, `{"alg":"HS256"}`,
		`{"userID":"alice@example.test","appID":123456789,"generateTurnCredentials":false,"keyId":"ff"}`) + "&grant_type=authorization_code"
	es256 := "client_id=bob%401&code=" + unsigned(t, `{"alg":"ES256","typ":"JWT"}`,
		`{"userID":"bob","appID":"1","keyID":"0102","iat":1,"nbf":1,"exp":2,"jti":"x"}`) + "&grant_type=authorization_code"
	old := "client_id=bob%401&code=" + unsigned(t, `{"alg":"HS256"}`, `{"userID":"bob","appID":1,"keyID":"0102"}`)
	for _, tt := range []struct{ name, form, secret, header, claims, key string }{
		{"plain", recorded, "s3cret", `{"alg":"HS256"}`, `{"appID":123456789,"generateTurnCredentials":false,"userID":"alice@example.test"}`, "s3cret"},
		{"key id", recorded, "AQIDBAUGBwk=:another:tail", `{"alg":"HS256"}`,
			`{"appID":123456789,"generateTurnCredentials":false,"keyId":"0102030405060709","userID":"alice@example.test"}`, "another"},
		{"old spelling of the key id", old, "AQIDBAUGBwk=:another", `{"alg":"HS256"}`, `{"appID":1,"keyID":"0102030405060709","userID":"bob"}`, "another"},
		{"ES256 becomes the app's", es256, "s3cret", `{"alg":"HS256"}`, `{"appID":"1","userID":"bob"}`, "s3cret"},
		{"Latin-1", old, "gehe\u00efm", `{"alg":"HS256"}`, `{"appID":1,"userID":"bob"}`, "gehe\xefm"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			secret, err := parseSecret(tt.secret)
			if err != nil {
				t.Fatal(err)
			}
			form, err := signInForm(tt.form, secret)
			if err != nil {
				t.Fatal(err)
			}
			before, rest, _ := strings.Cut(form, "&code=")
			code, after, _ := strings.Cut(rest, "&")
			wantBefore, wantRest, _ := strings.Cut(tt.form, "&code=")
			_, wantAfter, _ := strings.Cut(wantRest, "&")
			if before != wantBefore || after != wantAfter {
				t.Errorf("the other fields changed: %s", form)
			}
			header, claims := openToken(t, code, []byte(tt.key))
			if header != tt.header || claims != tt.claims {
				t.Errorf("got header %s, claims %s", header, claims)
			}
		})
	}
}

func TestParseSecretErrors(t *testing.T) {
	for secret, want := range map[string]string{
		"":           "empty",
		"AQ==:":      "empty",
		"%%:secret":  "base64",
		"gehe\u20ac": "Latin-1",
	} {
		if _, err := parseSecret(secret); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parseSecret(%q): %v, want an error with %q", secret, err, want)
		}
	}
}

func TestParseRecordingErrors(t *testing.T) {
	for text, want := range map[string]string{
		"{\"seq\":1,\"kind\":\"http\"}\n\n{broken": "x.jsonl, line 3",
		"{\"user\":\"alice\",\"t\":1}":             `has no "kind"`,
	} {
		if _, err := parseRecording("x.jsonl", bytes.NewReader([]byte(text))); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want an error with %q", text, err, want)
		}
	}
}
