package auth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"
)

// credential is one sign-in that must be refused.
type credential struct {
	name, clientID, code, origin string
	reason                       string
}

var raw = base64.RawURLEncoding

// handMade is a JWT of exactly these texts. sign gets what is signed and returns the signature's bytes.
func handMade(header, payload string, sign func(text string) []byte) string {
	text := raw.EncodeToString([]byte(header)) + "." + raw.EncodeToString([]byte(payload))
	return text + "." + raw.EncodeToString(sign(text))
}

func hs256(secret string) func(string) []byte {
	return func(text string) []byte {
		mac := hmac.New(sha256.New, []byte(secret))
		mac.Write([]byte(text))
		return mac.Sum(nil)
	}
}

func es256(t *testing.T, key *ecdsa.PrivateKey) func(string) []byte {
	return func(text string) []byte {
		digest := sha256.Sum256([]byte(text))
		r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	}
}

// badCredentials are sign-ins to the fixture's apps: 123456789 with two secrets and a key, 2 with a secret and an origin,
// 3 with a key and required exp, and 4, which is strict.
func badCredentials(t *testing.T, f *fixture) []credential {
	const app, key = "123456789", "0102030405060709"
	const secret = "synthetic-app-secret-01"
	now := time.Now().Unix()
	hsHead, esHead := `{"alg":"HS256"}`, `{"alg":"ES256","typ":"JWT"}`
	hsGood := `{"userID":"alice","appID":123456789}`
	esGood := fmt.Sprintf(`{"userID":"alice","appID":123456789,"keyID":%q,"iat":%d,"exp":%d,"jti":"j-1"}`, key, now, now+300)
	hs, es := hs256(secret), es256(t, f.key)
	nothing := func(string) []byte { return nil }
	const alice = "alice@" + app

	var list []credential
	add := func(name, clientID, code, reason string) {
		list = append(list, credential{name, clientID, code, "", reason})
	}

	// The method is pinned, whoever signed.
	for _, alg := range strings.Fields("none None NONE nOnE hs256 Hs256 HS-256 HS384 HS512 RS256 RS384 RS512 PS256 PS384 PS512 ES384 ES512 ES256K es256 EdDSA dir A128KW ECDH-ES HS256, HS256/ES256 ＨＳ256") {
		header := fmt.Sprintf(`{"alg":%q}`, alg)
		add("alg "+alg+" with the app secret", alice, handMade(header, hsGood, hs), "method")
		add("alg "+alg+" with the customer's key", alice, handMade(header, esGood, es), "method")
		add("alg "+alg+" without a signature", alice, handMade(header, esGood, nothing), "method")
	}
	add("alg is empty", alice, handMade(`{"alg":""}`, hsGood, hs), "method")

	// Headers that would choose the key, or must be understood.
	for _, extra := range []string{`"jwk":{"kty":"oct","k":"c2VjcmV0"}`, `"jku":"https://evil.tk/keys"`, `"x5u":"https://evil.tk/cert"`, `"x5c":["MII"]`, `"crit":["exp"]`, `"crit":[]`, `"b64":false`, `"zip":"DEF"`, `"jwk":null`} {
		add("header "+extra+", HS256", alice, handMade(`{"alg":"HS256",`+extra+`}`, hsGood, hs), "method")
		add("header "+extra+", ES256", alice, handMade(`{`+extra+`,"alg":"ES256"}`, esGood, es), "method")
	}
	for _, header := range []string{``, `null`, `[]`, `"HS256"`, `7`, `{}`, `{"alg":null}`, `{"alg":5}`, `{"alg":["HS256"]}`, `{"ALG":"HS256"}`, `{"alg":"HS256"`, `{"alg":"HS256"}}`, `{"alg":"HS256"}{}`,
		`{"alg":"HS256","alg":"HS256"}`, `{"alg":"none","alg":"HS256"}`, `{"alg":"HS256","alg":"none"}`, `{"alg":"HS256","kid":"a","kid":"b"}`, "{\"alg\":\"HS256\",\"x\":\"\xff\"}", "\ufeff" + `{"alg":"HS256"}`, `{'alg':'HS256'}`} {
		reason := "malformed_code"
		if header == `{"alg":null}` {
			reason = "method" // an absent name, to encoding/json
		}
		add("header "+header, alice, handMade(header, hsGood, hs), reason)
	}

	// Damaged signatures.
	hsCode, esCode := handMade(hsHead, hsGood, hs), handMade(esHead, esGood, es)
	for kind, code := range map[string]string{"HS256": hsCode, "ES256": esCode} {
		text, signature, _ := cutLast(code)
		bytes, err := raw.DecodeString(signature)
		if err != nil {
			t.Fatal(err)
		}
		with := func(b []byte) string { return text + "." + raw.EncodeToString(b) }
		for i := range bytes {
			damaged := append([]byte(nil), bytes...)
			damaged[i] ^= 1 << (i % 8)
			add(fmt.Sprintf("%s signature with a bit of byte %d changed", kind, i), alice, with(damaged), "signature")
		}
		for name, b := range map[string][]byte{
			"none": nil, "one byte": bytes[:1], "short": bytes[:len(bytes)-1], "long": append(append([]byte(nil), bytes...), 0), "zeros": make([]byte, len(bytes)),
			"doubled": append(append([]byte(nil), bytes...), bytes...), "in hex": []byte(hex.EncodeToString(bytes)), "in base64": []byte(signature), "leading zero": append([]byte{0}, bytes...),
		} {
			add(kind+" signature "+name, alice, with(b), "signature")
		}
		add(kind+" padded", alice, code+"=", "malformed_code")
		add(kind+" with a line break", alice, code[:30]+"\n"+code[30:], "malformed_code")
		add(kind+" with a line break at the end", alice, code+"\r\n", "malformed_code")
		add(kind+" with a space in front", alice, " "+code, "malformed_code")
		add(kind+" in the other alphabet", alice, code[:len(code)-4]+"++//", "malformed_code")
		add(kind+" with another spelling of its last character", alice, text+"."+signature[:len(signature)-1]+string(nextInAlphabet(signature[len(signature)-1])), "malformed_code")
		add(kind+" as Bearer", alice, "Bearer "+code, "malformed_code")
		add(kind+" with a fourth segment", alice, code+".", "malformed_code")
		add(kind+" without its signature segment", alice, text, "malformed_code")
		add(kind+" of 9 KiB", alice, code+strings.Repeat("A", 9<<10), "malformed_code")
		add(kind+" with NUL", alice, code+"\x00", "malformed_code")
	}
	n := elliptic.P256().Params().N
	full := func(r, s *big.Int) []byte {
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	}
	one, zero := big.NewInt(1), new(big.Int)
	for name, b := range map[string][]byte{
		"r and s are 0": full(zero, zero), "r is 0": full(zero, one), "s is 0": full(one, zero), "r and s are 1": full(one, one), "r and s are n": full(n, n), "r is n": full(n, one), "s is n": full(one, n),
		"r and s are n-1": full(new(big.Int).Sub(n, one), new(big.Int).Sub(n, one)), "all ones": []byte(strings.Repeat("\xff", 64)),
	} {
		add("ES256 "+name, alice, handMade(esHead, esGood, func(string) []byte { return b }), "signature")
	}
	add("ES256 in DER", alice, handMade(esHead, esGood, func(text string) []byte {
		b := es(text)
		der, err := asn1.Marshal([]*big.Int{new(big.Int).SetBytes(b[:32]), new(big.Int).SetBytes(b[32:])})
		if err != nil {
			t.Fatal(err)
		}
		return der
	}), "signature")
	_, tail, _ := strings.Cut(esCode, ".")
	add("ES256 with the header of HS256", alice, raw.EncodeToString([]byte(hsHead))+"."+tail, "signature")
	add("signature of another token", alice, handMade(hsHead, hsGood, func(string) []byte { return hs("x") }), "signature")

	// Other keys.
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&f.key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	public := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	point, err := f.key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]string{
		"wrong": "synthetic-app-secret-02", "empty": "", "upper case": strings.ToUpper(secret), "with a space": secret + " ", "with a line break": secret + "\n", "cut": secret[:len(secret)-1], "base64 of it": base64.StdEncoding.EncodeToString([]byte(secret)),
		"of another app": "second", "with its key id": "AQIDBAUGBwk=:another-synthetic-secret", "key id": "AQIDBAUGBwk=", "the app's id": app, "the user's id": "alice", "the public key in PEM": public, "the public key in DER": string(der), "the public key's point": string(point), "the public key in PEM, trimmed": strings.TrimSpace(public),
		"the gateway's token key": "0123456789abcdef", "the derived token key": string(f.tokens.keys[f.tokens.current]), "zeros": strings.Repeat("\x00", 32),
	} {
		add("secret: "+name, alice, handMade(hsHead, hsGood, hs256(s)), "signature")
		if strings.HasPrefix(name, "the public key") {
			add("secret: "+name+", claims of a customer token", alice, handMade(hsHead, esGood, hs256(s)), "signature")
		}
	}
	add("another customer's key", alice, handMade(esHead, esGood, es256(t, other)), "signature")
	for _, keyID := range []string{"k", "0102030405060708", "01020304050607090", strings.ToUpper("0102030405060709") + " ", "../0102030405060709", "", "0", "' OR 1=1"} {
		add("key id "+keyID, alice, handMade(esHead, fmt.Sprintf(`{"userID":"alice","appID":123456789,"keyID":%q,"exp":%d}`, keyID, now+300), es), "signature")
	}
	add("no key id", alice, handMade(esHead, fmt.Sprintf(`{"userID":"alice","appID":123456789,"exp":%d}`, now+300), es), "signature")
	add("key id in the header only", alice, handMade(`{"alg":"ES256","kid":"`+key+`"}`, fmt.Sprintf(`{"userID":"alice","appID":123456789,"exp":%d}`, now+300), es), "signature")
	add("secret of the other key id", alice, handMade(hsHead, `{"userID":"alice","appID":123456789,"keyId":"ffff"}`, hs256("another-synthetic-secret")), "signature")

	// One app's credentials at another.
	for _, at := range []string{"2", "3", "4"} {
		add("key of the first app at app "+at, "alice@"+at, handMade(esHead, fmt.Sprintf(`{"userID":"alice","appID":%s,"keyID":%q,"exp":%d}`, at, key, now+300), es), "signature")
		add("secret of the first app at app "+at, "alice@"+at, handMade(hsHead, fmt.Sprintf(`{"userID":"alice","appID":%s}`, at), hs), "signature")
		add("token of the first app at app "+at, "alice@"+at, hsCode, "signature")
	}
	add("secret of app 2 at the first app", alice, handMade(hsHead, hsGood, hs256("second")), "signature")
	add("no app claims another", alice, handMade(hsHead, `{"userID":"alice","appID":2}`, hs), "claims")

	// Apps that are none.
	for _, id := range []string{"999", "0123456789", "123456789.0", "1.23456789e8", "+123456789", "-123456789", "123456788", "1234567890", "", "null", "0x75bcd15", "123456789 ", " 123456789", "１２３４５６７８９", "9007199254740993"} {
		claimed := id
		if claimed == "" {
			claimed = "none"
		}
		add("app "+id+", HS256", "alice@"+id, handMade(hsHead, fmt.Sprintf(`{"userID":"alice","appID":%q}`, claimed), hs), "unknown_app")
		add("app "+id+", ES256", "alice@"+id, handMade(esHead, fmt.Sprintf(`{"userID":"alice","appID":%q,"keyID":%q}`, claimed, key), es), "unknown_app")
	}

	// Client ids that are none, or another's.
	for _, id := range []string{"", "alice", "@", "@" + app, "al\xffice@" + app, strings.Repeat("u", 257) + "@" + app, strings.Repeat("é", 129) + "@" + app} {
		add("client id "+clip(id), id, hsCode, "client_id")
	}
	for _, id := range []string{"Alice@" + app, "alice @" + app, " alice@" + app, "alice%40example.test@" + app, "bob@" + app, "alice@x@" + app, "alice\x00@" + app, "ａlice@" + app, "alicé@" + app, strings.Repeat("u", 256) + "@" + app} {
		add("client id "+clip(id), id, hsCode, "claims")
		add("client id "+clip(id)+", ES256", id, esCode, "claims")
	}

	// Claims. Those of an app-secret token count as well where it has them.
	type claim struct{ name, payload, reason string }
	claims := []claim{}
	for _, v := range []string{`null`, `5`, `true`, `["alice"]`, `{}`} {
		reason := "malformed_code"
		claims = append(claims, claim{"userID is " + v, `"userID":` + v + `,"appID":123456789`, reason})
	}
	for _, v := range []string{`""`, `"Alice"`, `"alice "`, `"alice\u0000"`, `"alice%20"`, `"bob"`} {
		claims = append(claims, claim{"userID is " + v, `"userID":` + v + `,"appID":123456789`, "claims"})
	}
	for _, v := range []string{`null`, `"0123456789"`, `123456789.0`, `123456789.5`, `1.23456789e8`, `1234567890`, `-123456789`, `true`, `["123456789"]`, `{}`, `""`, `"x"`, `" 123456789"`, `2`, `9007199254740993`, `1e400`, `"１２３４５６７８９"`} {
		claims = append(claims, claim{"appID is " + v, `"userID":"alice","appID":` + v, "claims"})
	}
	claims = append(claims,
		claim{"no userID", `"appID":123456789`, "claims"}, claim{"no appID", `"userID":"alice"`, "claims"},
		claim{"userid", `"userid":"alice","appID":123456789`, "claims"}, claim{"USERID", `"USERID":"alice","appID":123456789`, "claims"},
		claim{"appId", `"userID":"alice","appId":123456789`, "claims"}, claim{"appid", `"userID":"alice","appid":123456789`, "claims"},
		claim{"sub", `"sub":"alice","appID":123456789`, "claims"},
	)
	both := `"userID":"alice","appID":123456789,`
	for _, name := range []string{"exp", "nbf", "iat"} {
		for _, v := range []string{`null`, `"soon"`, fmt.Sprintf(`"%d"`, now), `true`, `[1]`, `{}`, `-1`, `1e300`, `253402300800`, `9223372036854775808`, `""`} {
			claims = append(claims, claim{name + " is " + v, both + `"` + name + `":` + v, "malformed_code"})
		}
	}
	for _, v := range []string{`NaN`, `Infinity`, `0x10`, `01`, `1.`} {
		claims = append(claims, claim{"exp is " + v, both + `"exp":` + v, "malformed_code"})
	}
	claims = append(claims,
		claim{"nbf ahead", both + fmt.Sprintf(`"nbf":%d`, now+90), "not_yet_valid"}, claim{"nbf far ahead", both + `"nbf":253402300799`, "not_yet_valid"},
		claim{"iat ahead", both + fmt.Sprintf(`"iat":%d`, now+90), "not_yet_valid"}, claim{"nbf in milliseconds", both + fmt.Sprintf(`"nbf":%d`, 100*now), "not_yet_valid"},
		claim{"expired and not yet valid", both + fmt.Sprintf(`"exp":%d,"nbf":%d`, now-90, now-95), "expired"},
		claim{"nbf is exp", both + fmt.Sprintf(`"exp":%d,"nbf":%d`, now+120, now+120), "claims"}, claim{"nbf is exp, now", both + fmt.Sprintf(`"exp":%d,"nbf":%d`, now, now), "claims"},
		claim{"nbf is exp, past", both + fmt.Sprintf(`"exp":%d,"nbf":%d`, now-500, now-500), "claims"}, claim{"nbf after exp", both + fmt.Sprintf(`"exp":%d,"nbf":%d`, now-10, now+10), "claims"},
		claim{"iat after exp", both + fmt.Sprintf(`"exp":%d,"iat":%d`, now+10, now+20), "claims"},
		claim{"exp just beyond the leeway", both + fmt.Sprintf(`"exp":%d`, now-61), "expired"}, claim{"exp long ago", both + `"exp":1`, "expired"}, claim{"exp 0", both + `"exp":0`, "expired"},
		claim{"exp with a fraction", both + fmt.Sprintf(`"exp":%d.5`, now-63), "expired"},
		claim{"keyID is a number", both + `"keyID":102030405060709`, "malformed_code"}, claim{"keyID is null", both + `"keyID":null`, "malformed_code"},
		claim{"keyID and keyId", both + `"keyId":"0102030405060709","keyID":"0102030405060709"`, "malformed_code"},
	)
	for _, twice := range []string{`"userID":"mallory"`, `"userID":"alice"`, `"appID":2`, `"appID":123456789`} {
		claims = append(claims, claim{"twice " + twice, both + twice, "malformed_code"}, claim{"twice, before, " + twice, twice + "," + strings.TrimSuffix(both, ","), "malformed_code"})
	}
	for _, twice := range []string{`"exp":1,"exp":99999999999`, `"exp":99999999999,"exp":1`, `"nbf":1,"nbf":1`, `"iat":1,"iat":1`, `"jti":"a","jti":"b"`, `"x":1,"x":2`, `"":1,"":2`} {
		claims = append(claims, claim{"twice " + twice, both + twice, "malformed_code"})
	}
	for _, c := range claims {
		if c.reason != "expired" { // of a customer token: tested below, since it may be told
			payload := c.payload
			if !strings.Contains(payload, `"keyID"`) && !strings.Contains(payload, `"keyId"`) {
				payload += `,"keyID":"` + key + `"`
			}
			add("ES256, "+c.name, alice, handMade(esHead, `{`+payload+`}`, es), c.reason)
		}
		add("HS256, "+c.name, alice, handMade(hsHead, `{`+c.payload+`}`, hs), c.reason)
	}
	for _, payload := range []string{``, `[]`, `"alice"`, `7`, `{`, `{}}`, hsGood + hsGood, hsGood + ` x`, "{\"userID\":\"al\xffice\",\"appID\":123456789}", `{"userID":"alice","appID":123456789,}`, strings.Repeat(`[`, 3000), `{"x":` + strings.Repeat(`[`, 2500) + strings.Repeat(`]`, 2500) + `,`} {
		add("payload "+clip(payload), alice, handMade(hsHead, payload, hs), "malformed_code")
	}
	add("payload null", alice, handMade(hsHead, `null`, hs), "claims")
	add("payload {}", alice, handMade(hsHead, `{}`, hs), "claims")

	// Structure.
	for _, code := range []string{"", ".", "..", "...", "secret", "a.b", "a.b.c.d", "a.b.c", "e30.e30.e30", strings.Repeat(".", 8<<10), strings.Repeat(".", 1<<20), strings.Repeat("a", 1<<20), "null", "undefined", "[object Object]", hsHead + "." + hsGood + ".x", "ey.ey.ey"} {
		add("code "+clip(code), alice, code, "malformed_code")
	}

	// The page.
	two := handMade(hsHead, `{"userID":"a","appID":2}`, hs256("second"))
	for _, o := range []string{"", "null", "http://app.example.test", "https://app.example.test.", "https://app.example.test:8443", "https://app.example.test.evil.tk", "https://evil.tk", "https://app.example.test@evil.tk", "https://app.example.test/", "https://*.example.test", "app.example.test"} {
		list = append(list, credential{"origin " + o, "a@2", two, o, "origin"})
	}

	// Apps that ask for more.
	es3 := func(claims string) string {
		return handMade(esHead, `{"userID":"alice","appID":3,"keyID":"k"`+claims+`}`, es)
	}
	add("exp is required", "alice@3", es3(``), "claims")
	add("exp is required, nbf is not enough", "alice@3", es3(`,"nbf":1,"iat":1`), "claims")
	es4 := func(claims string) string {
		return handMade(esHead, `{"userID":"alice","appID":4,"keyID":"s"`+claims+`}`, es)
	}
	in5 := fmt.Sprintf(`,"exp":%d`, now+300)
	for _, claims := range []string{in5, in5 + `,"jti":""`, in5 + `,"jti":42`, in5 + `,"jti":null`, in5 + `,"jti":["a"]`, in5 + `,"jti":"` + strings.Repeat("j", 257) + `"`, `,"jti":"a"`, fmt.Sprintf(`,"jti":"a","exp":%d`, now+25*3600)} {
		add("strict with "+clip(claims), "alice@4", es4(claims), "claims")
	}
	return list
}

func cutLast(code string) (text, signature string, ok bool) {
	i := strings.LastIndexByte(code, '.')
	return code[:i], code[i+1:], i >= 0
}

// nextInAlphabet changes only the bits of a last character that say nothing.
func nextInAlphabet(c byte) byte {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return alphabet[strings.IndexByte(alphabet, c)^1]
}

// TestBadCredentials: none gets in, every one is counted once under its reason, logged once with who, where and why, and
// answered like every other.
func TestBadCredentials(t *testing.T) {
	f := newFixture(t)
	list := badCredentials(t, f)
	if len(list) < 250 {
		t.Fatalf("only %d bad credentials", len(list))
	}
	for _, c := range list {
		f.log.Reset()
		all, before := f.refusedInAll(t), f.refused(t, c.reason)
		grant, refusal := f.SignIn(c.clientID, c.code, c.origin)
		if grant != nil || refusal == nil || *refusal != (Refusal{}) {
			t.Errorf("%s: grant %v, refusal %+v", c.name, grant, refusal)
		}
		lines := strings.Split(strings.TrimSpace(f.log.String()), "\n")
		if f.refused(t, c.reason) != before+1 || f.refusedInAll(t) != all+1 {
			t.Errorf("%s: not counted as %s; log: %s", c.name, c.reason, lines[0])
		}
		if len(lines) != 1 || !strings.Contains(lines[0], `msg="sign-in refused"`) || !strings.Contains(lines[0], "reason="+c.reason) || !strings.Contains(lines[0], " app_id=") ||
			!strings.Contains(lines[0], " user_id=") || !strings.Contains(lines[0], " origin=") || !strings.Contains(lines[0], " jti=") || len(lines[0]) > 2000 {
			t.Errorf("%s: the log has %d lines: %s", c.name, len(lines), clip(lines[0]))
		}
	}
	t.Logf("%d bad credentials", len(list))
}

func (f *fixture) refusedInAll(t *testing.T) float64 {
	t.Helper()
	return f.counted(t, func(labels map[string]string) bool { return labels["outcome"] == "refused" })
}
