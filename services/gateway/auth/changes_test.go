package auth

import (
	"crypto/ecdsa"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/callscope/callscope/internal/apps"
)

// TestBoundToOrigin: a token that one page got is of no use to another.
func TestBoundToOrigin(t *testing.T) {
	app := &apps.App{ID: "1"}
	tokens := newTokens(t, knowing(app))
	issue := func(origin string) string {
		token, _, err := tokens.Issue(app, "alice", origin)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	page, opaque, native := issue("https://app.example.test"), issue("null"), issue("")
	for _, tc := range []struct {
		name, token, origin string
		want                error
	}{
		{"the same page", page, "https://app.example.test", nil},
		{"the same, written otherwise", page, "HTTPS://App.Example.test:443", nil},
		{"without an Origin header, as of a GET of one's own site", page, "", nil},
		{"another host", page, "https://evil.tk", ErrInvalid},
		{"another port", page, "https://app.example.test:8443", ErrInvalid},
		{"another scheme", page, "http://app.example.test", ErrInvalid},
		{"an opaque page", page, "null", ErrInvalid},
		{"no origin at all", page, "https://app.example.test/", ErrInvalid},
		{"an opaque page's", opaque, "null", nil},
		{"an opaque page's elsewhere", opaque, "https://app.example.test", ErrInvalid},
		// React Native sends no origin when it signs in and one when it opens a WebSocket.
		{"a program's", native, "https://gateway.example.test", nil},
		{"a program's, without", native, "", nil},
	} {
		if _, err := tokens.Verify(tc.token, tc.origin); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
}

// TestTokenKeyRotation: new key announced, exchanged, old one dropped; nobody is signed out on the way.
func TestTokenKeyRotation(t *testing.T) {
	app := &apps.App{ID: "1"}
	registry := knowing(app)
	with := func(keys ...string) *Tokens {
		var previous [][]byte
		for _, k := range keys[1:] {
			previous = append(previous, []byte(k))
		}
		tokens, err := NewTokens(registry, []byte(keys[0]), previous...)
		if err != nil {
			t.Fatal(err)
		}
		return tokens
	}
	const oldKey, newKey = "the old key, 16 and more", "the new key, 16 and more"
	gateways := []*Tokens{with(oldKey), with(oldKey, newKey), with(newKey, oldKey), with(newKey)}
	for i, from := range gateways {
		token, _, err := from.Issue(app, "alice", "")
		if err != nil {
			t.Fatal(err)
		}
		for j, to := range gateways {
			_, err := to.Verify(token, "")
			// Only those at least two steps apart do not know each other's key.
			oldToken := i <= 1
			knows := oldToken && j <= 2 || !oldToken && j >= 1
			if (err == nil) != knows {
				t.Errorf("step %d's token at step %d: %v", i, j, err)
			}
		}
	}
	if _, err := NewTokens(registry, []byte(oldKey), []byte("short")); err == nil {
		t.Error("a short previous key was accepted")
	}
}

// TestRevokeTokens: an app's tokens end at once, others' do not, and new ones hold.
func TestRevokeTokens(t *testing.T) {
	f := newFixture(t)
	signIn := func() string {
		grant, refusal := f.SignIn("alice@123456789", clientToken("synthetic-app-secret-01", `{"userID":"alice","appID":123456789}`), "")
		if refusal != nil {
			t.Fatal("refused")
		}
		return grant.Token
	}
	before := signIn()
	other, _, err := f.tokens.Issue(f.apps[1], "bob", "")
	if err != nil {
		t.Fatal(err)
	}
	identity, err := f.tokens.Verify(before, "")
	if err != nil {
		t.Fatal(err)
	}
	// Another gateway already knows of the revocation, this one does not yet: its tokens hold here, too.
	ahead := *f.apps[0]
	ahead.TokenEpoch = 8
	early, _, err := f.tokens.Issue(&ahead, "alice", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.tokens.Verify(early, ""); err != nil {
		t.Errorf("a token from after the revocation: %v", err)
	}
	f.registry.set(&ahead)
	if _, err := f.tokens.Verify(before, ""); !errors.Is(err, ErrExpired) {
		t.Errorf("a revoked token: %v, want ErrExpired, which makes clients sign in again", err)
	}
	if err := f.tokens.Recheck(identity, ""); !errors.Is(err, ErrExpired) {
		t.Errorf("a revoked token on an open connection: %v", err)
	}
	for name, token := range map[string]string{"other app": other, "from another gateway": early, "fresh": signIn()} {
		if _, err := f.tokens.Verify(token, ""); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	f.registry.remove("123456789")
	if _, err := f.tokens.Verify(early, ""); !errors.Is(err, ErrInvalid) {
		t.Errorf("a token of an app that is no more: %v", err)
	}
	if _, refusal := f.SignIn("alice@123456789", clientToken("synthetic-app-secret-01", `{"userID":"alice","appID":123456789}`), ""); refusal == nil {
		t.Error("signed in to an app that is no more")
	}
}

// TestRevokedKey: what is taken out of the app signs in no more, at once; the rest does.
func TestRevokedKey(t *testing.T) {
	f := newFixture(t)
	customer := f.customerToken(t, jwt.MapClaims{"userID": "alice", "appID": 123456789, "keyID": "0102030405060709", "exp": time.Now().Unix() + 300})
	secret := clientToken("another-synthetic-secret", `{"userID":"alice","appID":123456789}`)
	refused := func(code string) bool {
		_, refusal := f.SignIn("alice@123456789", code, "")
		return refusal != nil
	}
	if refused(customer) || refused(secret) {
		t.Fatal("refused before anything was revoked")
	}
	without := *f.apps[0]
	without.PublicKeys = map[string]*ecdsa.PublicKey{}
	f.registry.set(&without)
	if !refused(customer) || refused(secret) {
		t.Error("after revoking the key")
	}
	without.Secrets = without.Secrets[:1]
	f.registry.set(&without)
	if !refused(secret) || refused(clientToken("synthetic-app-secret-01", `{"userID":"alice","appID":123456789}`)) {
		t.Error("after revoking a secret")
	}
}

// TestRotationWhileSigningIn: clients sign in all the time while an operator adds a secret, has it distributed and revokes
// the old one. Nobody with a secret that was live throughout their sign-in is refused, and nobody else gets in.
func TestRotationWhileSigningIn(t *testing.T) {
	f := newFixture(t)
	f.log = nil
	f.Authenticator.log = quiet()
	secret := func(i int) apps.Secret { return apps.Secret{Key: fmt.Appendf(nil, "secret number %d", i)} }
	code := func(i int) string { return clientToken(string(secret(i).Key), `{"userID":"alice","appID":"2"}`) }
	const rotations = 30
	var live [rotations + 2]atomic.Bool  // it can be used
	var ended [rotations + 2]atomic.Bool // it has been revoked
	app := func(secrets ...apps.Secret) *apps.App { return &apps.App{ID: "2", Secrets: secrets} }
	f.registry.set(app(secret(0)))
	live[0].Store(true)
	stop := make(chan struct{})
	var granted, denied, wrong atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				i := n % (rotations + 2)
				was, over := live[i].Load(), ended[i].Load()
				_, refusal := f.SignIn("alice@2", code(i), "")
				still := live[i].Load()
				switch {
				case refusal == nil && over, refusal != nil && was && still:
					wrong.Add(1)
				case refusal == nil:
					granted.Add(1)
				default:
					denied.Add(1)
				}
			}
		})
	}
	for i := range rotations {
		target := granted.Load() + 2
		f.registry.set(app(secret(i), secret(i+1)))
		live[i+1].Store(true)
		for granted.Load() < target && wrong.Load() == 0 {
			<-time.After(time.Millisecond)
		}
		live[i].Store(false)
		f.registry.set(app(secret(i + 1)))
		ended[i].Store(true)
	}
	close(stop)
	wg.Wait()
	if wrong.Load() > 0 || granted.Load() == 0 || denied.Load() == 0 {
		t.Errorf("%d granted, %d denied, %d wrongly one of both", granted.Load(), denied.Load(), wrong.Load())
	}
}

// TestStrict: every token of a strict app gets one user in once, until it expires; other apps' tokens may come again.
func TestStrict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		token := func(appID int, keyID, jti string, lives time.Duration) string {
			return f.customerToken(t, jwt.MapClaims{"userID": "alice", "appID": appID, "keyID": keyID, "jti": jti, "exp": time.Now().Add(lives).Unix()})
		}
		granted := func(appID, code string) bool {
			_, refusal := f.SignIn("alice@"+appID, code, "")
			if refusal != nil && refusal.TokenExpired {
				t.Error("a client is told that its token has expired")
			}
			return refusal == nil
		}
		first := token(4, "s", "one", 5*time.Minute)
		if !granted("4", first) {
			t.Fatalf("refused: %s", f.log)
		}
		// Refused for something else, a token is not used up.
		second := token(4, "s", "two", 5*time.Minute)
		if _, refusal := f.SignIn("bob@4", second, ""); refusal == nil {
			t.Error("another user's token")
		}
		for name, tc := range map[string]struct {
			code string
			want bool
		}{
			"again":                      {first, false},
			"the same jti, signed again": {token(4, "s", "one", 6*time.Minute), false},
			"the next one":               {second, true},
		} {
			if granted("4", tc.code) != tc.want {
				t.Errorf("%s: granted %v", name, !tc.want)
			}
		}
		if n := f.refused(t, "replayed"); n != 2 {
			t.Errorf("counted %v replays", n)
		}
		if !strings.Contains(f.log.String(), "jti=one") || !strings.Contains(f.log.String(), "reason=replayed") {
			t.Errorf("log: %s", f.log)
		}
		relaxed := token(123456789, "0102030405060709", "one", 5*time.Minute)
		for range 2 {
			if !granted("123456789", relaxed) {
				t.Error("an app that is not strict refuses a token the second time")
			}
		}
		// Still refused within the leeway after exp, and forgotten afterwards.
		<-time.After(5*time.Minute + 30*time.Second)
		if granted("4", first) {
			t.Error("replayed within the leeway")
		}
		<-time.After(2 * time.Minute)
		if !granted("4", token(4, "s", "three", time.Minute)) {
			t.Error("a fresh token is refused")
		}
		f.replays.mu.Lock()
		if n := len(f.replays.until); n != 1 {
			t.Errorf("%d entries are kept, want the fresh one only", n)
		}
		for i := len(f.replays.until); i < replayEntries; i++ {
			f.replays.until[fmt.Sprint(i)] = time.Now().Add(time.Hour)
		}
		f.replays.mu.Unlock()
		if granted("4", token(4, "s", "four", time.Minute)) || f.refused(t, "replay_cache_full") != 1 {
			t.Error("a full cache lets a token through that it cannot remember")
		}
	})
}

// TestAuditOfGrants: who, where, with what, and which access token came of it.
func TestAuditOfGrants(t *testing.T) {
	f := newFixture(t)
	code := f.customerToken(t, jwt.MapClaims{"userID": "alice", "appID": 123456789, "keyID": "0102030405060709", "jti": "the-jti"})
	grant, refusal := f.SignIn("alice@123456789", code, "https://app.example.test")
	if refusal != nil {
		t.Fatal("refused")
	}
	line := f.log.String()
	for _, want := range []string{`msg="sign-in granted"`, "method=customer_token", "app_id=123456789", "user_id=alice", "origin=https://app.example.test", "jti=the-jti", "key_id=0102030405060709", "token_id=" + grant.TokenID} {
		if !strings.Contains(line, want) {
			t.Errorf("the log misses %s: %s", want, line)
		}
	}
	if strings.Contains(line, grant.Token) || strings.Contains(line, code) {
		t.Error("the log has a token")
	}
	// What a stranger sends cannot make lines of its own.
	f.log.Reset()
	f.SignIn("x\nlevel=ERROR msg=forged@1", "a.b.c", "https://a\r\nlevel=ERROR")
	if n := strings.Count(strings.TrimSpace(f.log.String()), "\n"); n != 0 {
		t.Errorf("%d line breaks in the log: %s", n, f.log)
	}
}

func TestSignInCustomer(t *testing.T) {
	f := newFixture(t)
	code := f.customerToken(t, jwt.MapClaims{"userID": "a@b", "appID": "123456789", "keyID": "0102030405060709"})
	if grant, _ := f.SignInCustomer("123456789", "a@b", code, ""); grant == nil || grant.UserID != "a@b" {
		t.Errorf("refused: %s", f.log)
	}
	for name, c := range map[string][3]string{
		"other app": {"2", "a@b", code}, "other user": {"123456789", "a", code}, "no user": {"123456789", "", code},
		"app secret": {"123456789", "a@b", clientToken("synthetic-app-secret-01", `{"userID":"a@b","appID":"123456789"}`)}, "nothing": {"", "", ""},
	} {
		if grant, refusal := f.SignInCustomer(c[0], c[1], c[2], ""); grant != nil || refusal == nil {
			t.Errorf("%s: signed in", name)
		}
	}
}

// BenchmarkRefusal compares what a wrong credential costs at apps and keys that there are and are not.
func BenchmarkRefusal(b *testing.B) {
	f := newFixture(b)
	f.Authenticator.log = quiet()
	customer := func(appID int, keyID string) string {
		text, _, _ := cutLast(f.customerToken(b, jwt.MapClaims{"userID": "alice", "appID": appID, "keyID": keyID}))
		_, signature, _ := cutLast(f.customerToken(b, jwt.MapClaims{"userID": "mallory"}))
		return text + "." + signature
	}
	for _, bm := range []struct{ name, clientID, code string }{
		{"app_secret/known", "alice@123456789", clientToken("wrong", `{"userID":"alice","appID":123456789}`)},
		{"app_secret/unknown_app", "alice@999999999", clientToken("wrong", `{"userID":"alice","appID":999999999}`)},
		{"customer/known", "alice@123456789", customer(123456789, "0102030405060709")},
		{"customer/unknown_key", "alice@123456789", customer(123456789, "0102030405060708")},
		{"customer/unknown_app", "alice@999999999", customer(999999999, "0102030405060709")},
	} {
		b.Run(bm.name, func(b *testing.B) {
			for b.Loop() {
				if grant, _ := f.SignIn(bm.clientID, bm.code, ""); grant != nil {
					b.Fatal("granted")
				}
			}
		})
	}
}
