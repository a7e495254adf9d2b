package app

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/callscope/callscope/internal/stream"
	"github.com/callscope/callscope/internal/stream/streamtest"
)

const testMasterKey = "a master key of the tests, long enough"

// registryOf is a broker with callscope's topics and the settings of everything that uses it.
func registryOf(t *testing.T) (args []string) {
	t.Helper()
	addr := streamtest.StartBroker(t)
	client, err := stream.Open(stream.Config{Brokers: []string{addr}, Partitions: 2}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.EnsureTopics(t.Context()); err != nil {
		t.Fatal(err)
	}
	return []string{"--set", "kafka.brokers=" + addr, "--set", "registry.master_key=" + testMasterKey, "--log-level", "info"}
}

// cliTest runs commands against one registry.
type cliTest struct {
	*testing.T
	args []string
}

func (c cliTest) try(args ...string) (code int, stdout, stderr string) {
	c.Helper()
	return result(c.T, command(c.T, nil, append(slices.Clone(c.args), args...)...))
}

func (c cliTest) ok(args ...string) string {
	c.Helper()
	code, stdout, stderr := c.try(args...)
	if code != exitOK {
		c.Fatalf("callscope %s: exit code %d: %s", strings.Join(args, " "), code, stderr)
	}
	return stdout
}

func (c cliTest) json(v any, args ...string) {
	c.Helper()
	out := c.ok(append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), v); err != nil {
		c.Fatalf("callscope %s printed %s: %v", strings.Join(args, " "), out, err)
	}
}

// gatewayProcess is a running `callscope gateway`.
type gatewayProcess struct {
	addr   string
	stderr *strings.Builder
	stop   func()
}

func (c cliTest) gateway(extra ...string) gatewayProcess {
	c.Helper()
	g := gatewayProcess{addr: closedAddr(c.T), stderr: new(strings.Builder)}
	admin := closedAddr(c.T)
	args := append([]string{"gateway", "--set", "gateway.addr=" + g.addr, "--set", "admin.addr=" + admin, "--set", "gateway.token_key=0123456789abcdef"}, c.args...)
	cmd := command(c.T, nil, append(args, extra...)...)
	cmd.Stderr = g.stderr
	if err := cmd.Start(); err != nil {
		c.Fatal(err)
	}
	g.stop = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // fails only when it has ended, which Wait reports
		if err := cmd.Wait(); err != nil {
			c.Errorf("the gateway ended with %v:\n%s", err, g.stderr)
		}
	}
	eventually(c.T, func() error {
		answer, err := http.Get("http://" + admin + "/readyz")
		if err != nil {
			return err
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return fmt.Errorf("status %d", answer.StatusCode)
		}
		return nil
	})
	return g
}

// signIn returns the access token, "" when it was refused.
func (g gatewayProcess) signIn(ctx context.Context, clientID, code, origin string) (string, error) {
	form := url.Values{"client_id": {clientID}, "code": {strings.TrimSpace(code)}, "grant_type": {"authorization_code"}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+g.addr+"/authenticate", strings.NewReader(form.Encode()))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if origin != "" {
		req.Header.Set("Origin", origin)
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	var got struct {
		Token string `json:"access_token"`
	}
	return got.Token, json.NewDecoder(answer.Body).Decode(&got)
}

// within2s waits until a sign-in is granted or refused as wanted, at most two seconds, and returns the last token.
func (c cliTest) within2s(g gatewayProcess, what, clientID, code, origin string, granted bool) (token string) {
	c.Helper()
	began := time.Now()
	eventually(c.T, func() (err error) {
		token, err = g.signIn(c.Context(), clientID, code, origin)
		if err == nil && (token != "") != granted {
			err = errors.New("the sign-in has the other outcome")
		}
		return err
	})
	if took := time.Since(began); took > 2*time.Second {
		c.Errorf("%s: took %s", what, took)
	}
	return token
}

// TestApps is an operator's day: an app is made, changed and deleted with the command line while two gateways run.
func TestApps(t *testing.T) {
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	c := cliTest{t, registryOf(t)}
	one, two := c.gateway(), c.gateway("--set", `apps=[{"id":"55","secrets":["configured"]}]`)

	var made changed
	c.json(&made, "apps", "create", "--name", "Demo", "--submission-interval-ms", "20000")
	if !regexp.MustCompile(`^[1-9][0-9]{8}$`).MatchString(made.App) || made.Secret == "" || made.SecretID == "" {
		t.Fatalf("created %+v", made)
	}
	app := made.App
	code := c.ok("token", "mint", "--app", app, "--user", "alice@example.test")
	for _, g := range []gatewayProcess{one, two} {
		c.within2s(g, "create", "alice@example.test@"+app, code, "", true)
	}

	// A rotation: second secret, with a key id; no third; the first one is revoked.
	table := c.ok("apps", "secret", "add", app, "--with-key-id")
	second := regexp.MustCompile(`(?m)^secret: +([A-Za-z0-9+/=]+:\S+)$`).FindStringSubmatch(table)
	if second == nil || !strings.Contains(table, "shown this once only") {
		t.Fatalf("printed %s", table)
	}
	if code, _, stderr := c.try("apps", "secret", "add", app); code != exitFailed || !strings.Contains(stderr, "has 2 secrets already") {
		t.Errorf("a third secret: %d %s", code, stderr)
	}
	c.ok("apps", "secret", "revoke", app, made.SecretID)
	for _, g := range []gatewayProcess{one, two} {
		c.within2s(g, "revoke", "alice@example.test@"+app, code, "", false)
	}
	code = c.ok("token", "mint", "--app", app, "--user", "alice")
	c.within2s(one, "the new secret", "alice@"+app, code, "", true)

	// Nothing shows a secret again.
	shown := c.ok("apps", "show", app) + c.ok("apps", "list") + c.ok("apps", "show", app, "-o", "json") + c.ok("apps", "list", "-o", "json")
	for _, secret := range []string{made.Secret, second[1], strings.SplitN(second[1], ":", 2)[1]} {
		if strings.Contains(shown, secret) {
			t.Errorf("shown again:\n%s", shown)
		}
	}
	for _, want := range []string{"Demo", "20000", "any", app} {
		if !strings.Contains(shown, want) {
			t.Errorf("%q is not shown:\n%s", want, shown)
		}
	}

	// Customer tokens.
	dir := t.TempDir()
	private, public := keyFiles(t, dir)
	c.ok("apps", "key", "add", app, public, "--key-id", "0102")
	customer := c.ok("token", "mint", "--app", app, "--user", "bob", "--private-key", private, "--key-id", "0102")
	token := c.within2s(two, "key add", "bob@"+app, customer, "", true)
	c.ok("apps", "key", "revoke", app, "0102")
	c.within2s(two, "key revoke", "bob@"+app, customer, "", false)

	// Origins.
	if out := c.ok("apps", "origin", "add", app, "HTTPS://App.Example.Test"); !strings.Contains(out, "added origin https://app.example.test:443") {
		t.Errorf("printed %s", out)
	}
	c.within2s(one, "origin add", "alice@"+app, code, "https://evil.test", false)
	c.within2s(one, "origin add", "alice@"+app, code, "https://app.example.test", true)
	if code, _, stderr := c.try("apps", "origin", "remove", app, "https://app.example.test"); code != exitFailed || !strings.Contains(stderr, "--allow-all") {
		t.Errorf("removing the last origin: %d %s", code, stderr)
	}
	c.ok("apps", "origin", "remove", app, "https://app.example.test", "--allow-all")
	c.within2s(one, "origin remove", "alice@"+app, code, "https://evil.test", true)

	// Access tokens.
	event := func(g gatewayProcess) (string, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+g.addr+"/v1/apps/"+app+"/conferences/room", strings.NewReader(`{"eventType":"userJoined","localID":"bob","deviceID":"d","timestamp":1}`))
		if err != nil {
			return "", err
		}
		req.Header.Set("Authorization", "Bearer "+token)
		answer, err := http.DefaultClient.Do(req)
		if err != nil {
			return "", err
		}
		defer answer.Body.Close()
		var got struct{ Msg string }
		return got.Msg, json.NewDecoder(answer.Body).Decode(&got)
	}
	if msg, err := event(two); err != nil || msg != "" {
		t.Errorf("before the tokens are revoked: %q, %v", msg, err)
	}
	c.ok("apps", "revoke-tokens", app)
	eventually(t, func() error {
		msg, err := event(two)
		if err == nil && msg != "Token has expired" {
			err = fmt.Errorf("answered %q", msg)
		}
		return err
	})

	c.ok("apps", "update", app, "--strict-tokens", "true", "--name", "Renamed")
	if out := c.ok("apps", "show", app); !regexp.MustCompile(`strict_tokens +true`).MatchString(out) || !strings.Contains(out, "Renamed") || !regexp.MustCompile(`submission_interval_ms +20000`).MatchString(out) {
		t.Errorf("after the update:\n%s", out)
	}
	c.ok("apps", "delete", app)
	for _, g := range []gatewayProcess{one, two} {
		c.within2s(g, "delete", "alice@"+app, code, "", false)
	}
	var list []appJSON
	if c.json(&list, "apps", "list"); len(list) != 0 {
		t.Errorf("after deletion: %+v", list)
	}

	// A secret that clients have already; and what is in the configuration stays there.
	file := filepath.Join(dir, "secret")
	if err := os.WriteFile(file, []byte("the customer's own secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := c.ok("apps", "create", "--id", "77", "--secret-file", file); strings.Contains(out, "own secret") {
		t.Errorf("printed %s", out)
	}
	c.within2s(two, "imported", "alice@77", c.ok("token", "mint", "--app", "77", "--user", "alice"), "", true)
	static := []string{"--set", `apps=[{"id":"55","secrets":["configured"]}]`}
	if code, _, stderr := c.try(append([]string{"apps", "create", "--id", "55"}, static...)...); code != exitFailed || !strings.Contains(stderr, "in the setting apps") {
		t.Errorf("creating a configured app: %d %s", code, stderr)
	}
	c.within2s(two, "configured", "alice@55", c.ok(append([]string{"token", "mint", "--app", "55", "--user", "alice"}, static...)...), "", true)

	one.stop()
	two.stop()
	for _, g := range []gatewayProcess{one, two} {
		if text := g.stderr.String(); strings.Contains(text, made.Secret) || strings.Contains(text, testMasterKey) || strings.Contains(text, token) || !strings.Contains(text, "sign-in granted") || !strings.Contains(text, "sign-in refused") {
			t.Errorf("the log of a gateway:\n%s", text)
		}
	}
	// A gateway that starts later knows it all.
	three := c.gateway()
	c.within2s(three, "restart", "alice@77", c.ok("token", "mint", "--app", "77", "--user", "alice"), "", true)
	c.within2s(three, "restart", "alice@"+app, code, "", false)
	three.stop()
}

// keyFiles writes a P-256 key pair as two PEM files.
func keyFiles(t *testing.T, dir string) (private, public string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte, err error) string {
		path := filepath.Join(dir, name)
		if err == nil {
			err = os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	private = write("private.pem", "PRIVATE KEY", der, err)
	der, err = x509.MarshalPKIXPublicKey(&key.PublicKey)
	return private, write("public.pem", "PUBLIC KEY", der, err)
}

func TestAppsRefuses(t *testing.T) {
	c := cliTest{t, registryOf(t)}
	c.ok("apps", "create", "--id", "1")
	without := cliTest{t, []string{"--set", c.args[1]}}
	other := cliTest{t, []string{"--set", c.args[1], "--set", "registry.master_key=another master key of tests, long enough"}}
	nobody := cliTest{t, []string{"--set", "kafka.embedded_addr=" + closedAddr(t)}}
	noTopics := cliTest{t, []string{"--set", "kafka.brokers=" + streamtest.StartBroker(t)}}
	for _, tt := range []struct {
		name string
		c    cliTest
		args []string
		code int
		says string
	}{
		{"no master key", without, []string{"apps", "create"}, exitFailed, "callscope: no master key is set: give the gateways' registry.master_key .*registry.master_key_file.*--data.*\n"},
		{"no master key is needed", without, []string{"apps", "list"}, exitOK, ""},
		{"no master key for a token", without, []string{"token", "mint", "--app", "1", "--user", "a"}, exitFailed, "callscope: secret/.*: no master key is set.*\n"},
		{"wrong master key", other, []string{"apps", "secret", "add", "1"}, exitFailed, "callscope: the registry's secrets .* were encrypted with another master key: .*: give the registry.master_key that the gateways have, .*registry.previous_master_key the one before it\n"},
		{"wrong master key for a token", other, []string{"token", "mint", "--app", "1", "--user", "a"}, exitFailed, "callscope: .*encrypted with another master key.*\n"},
		{"short master key", c, []string{"apps", "list", "--set", "registry.master_key=short"}, exitConfiguration, "callscope: bad configuration: registry.master_key: has 5 bytes, at least 32 are needed .from --set registry.master_key.\n"},
		{"short master key of a gateway", c, []string{"gateway", "--set", "gateway.token_key=0123456789abcdef", "--set", "registry.master_key=short"}, exitConfiguration, "callscope: bad configuration: registry.master_key: has 5 bytes.*\n"},
		{"exists", c, []string{"apps", "create", "--id", "1"}, exitFailed, "callscope: app 1: it is there already\n"},
		{"bad id", c, []string{"apps", "create", "--id", "x"}, exitFailed, "callscope: app \"x\": the id must be a decimal number.*\n"},
		{"unknown app", c, []string{"apps", "show", "2"}, exitFailed, "callscope: app 2: the registry has no such app\n"},
		{"unknown secret", c, []string{"apps", "secret", "revoke", "1", "x"}, exitFailed, "callscope: secret/x of app 1: the app has no such item\n"},
		{"unknown app for a token", c, []string{"token", "mint", "--app", "2", "--user", "a"}, exitFailed, "callscope: app 2: the registry has no such app\n"},
		{"bad setting", c, []string{"apps", "update", "1", "--strict-tokens", "yes"}, exitFailed, "callscope: strict_tokens: \"yes\" is neither true nor false\n"},
		{"nothing to change", c, []string{"apps", "update", "1"}, exitUsage, "callscope: nothing to change.*\n"},
		{"bad origin", c, []string{"apps", "origin", "add", "1", "https://a.test/x"}, exitFailed, "callscope: .*is not an origin.*\n"},
		{"international origin", c, []string{"apps", "origin", "add", "1", "https://bücher.example"}, exitFailed, "callscope: .*xn--.*\n"},
		{"no key file", c, []string{"apps", "key", "add", "1", "none.pem"}, exitFailed, "callscope: reading the public key: open none.pem.*\n"},
		{"output", c, []string{"apps", "list", "-o", "xml"}, exitUsage, "callscope: --output: .*\n"},
		{"no user", c, []string{"token", "mint", "--app", "1"}, exitUsage, "callscope: --app and --user are needed\n"},
		{"no broker", nobody, []string{"apps", "list"}, exitUnreachable, "callscope: reaching Kafka broker .*\n"},
		{"no topics", noTopics, []string{"apps", "list"}, exitFailed, "callscope: reading the apps registry: .*callscope migrate.*\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.c.T = t
			code, stdout, stderr := tt.c.try(tt.args...)
			if !regexp.MustCompile(`^`+tt.says+`$`).MatchString(stderr) || code != tt.code || strings.Contains(stderr, testMasterKey) {
				t.Errorf("exit code %d, want %d; want %s, got %s%s", code, tt.code, tt.says, stderr, stdout)
			}
		})
	}
}
