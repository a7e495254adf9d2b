package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// pageCommands are the indented lines of docs/howto/point-clients.md that begin with one of the words, with their
// continuation lines.
func pageCommands(t *testing.T, words ...string) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/howto/point-clients.md")
	if err != nil {
		t.Fatal(err)
	}
	var commands strings.Builder
	open := false
	for line := range strings.Lines(string(page)) {
		command, indented := strings.CutPrefix(line, "    ")
		for _, word := range words {
			open = open || indented && strings.HasPrefix(command, word)
		}
		if open {
			commands.WriteString(command)
		}
		open = open && strings.HasSuffix(line, "\\\n")
	}
	return commands.String()
}

// shell runs commands in a folder and returns what they print.
func shell(t *testing.T, dir, commands string, env ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("sh", "-e", "-c", commands)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = errors.New(err.Error() + ": " + string(exit.Stderr))
	}
	return string(out), err
}

// TestPrivateDNS makes a CA and a certificate with the page's commands and reaches the gateway under every name of
// callstats.io, with curl as the page does and as browsers would.
func TestPrivateDNS(t *testing.T) {
	for _, tool := range []string{"openssl", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("the commands of docs/howto/point-clients.md need %s: %v", tool, err)
		}
	}
	dir := t.TempDir()
	commands := pageCommands(t, "openssl ", "echo ")
	if n := strings.Count(commands, "openssl "); n != 3 {
		t.Fatalf("%d openssl commands in docs/howto/point-clients.md:\n%s", n, commands)
	}
	if _, err := shell(t, dir, commands); err != nil {
		t.Fatalf("%v\n%s", err, commands)
	}
	r := start(t, func(c *Config) {
		c.TLSCertFile, c.TLSKeyFile = filepath.Join(dir, "gateway.pem"), filepath.Join(dir, "gateway.key")
	})
	_, port, err := net.SplitHostPort(r.Addr())
	if err != nil {
		t.Fatal(err)
	}

	here := strings.NewReplacer(":443:192.0.2.10", ":"+port+":127.0.0.1", ".callstats.io/", ".callstats.io:"+port+"/", "curl ", "curl --silent --show-error ")
	curl := here.Replace(pageCommands(t, "R=", "curl "))
	token := "TOKEN=" + clientToken(t, "alice", appID, secret)
	out, err := shell(t, dir, curl, token)
	if err != nil || !strings.Contains(out, `{"now":`) || !strings.Contains(out, `"events":"https://auth.callstats.io:`+port+`/v1/apps"`) {
		t.Errorf("curl printed %s, %v\n%s", out, err, curl)
	}
	if out, err := shell(t, dir, strings.Replace(curl, "--cacert ca.pem", "", 1), token); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without the CA curl printed %s, %v", out, err)
	}

	ca, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		t.Fatalf("no certificate in %s", ca)
	}
	toGateway := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, r.Addr())
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DialContext: toGateway, DisableKeepAlives: true}
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	for name, path := range map[string]string{ // the table of the page
		"auth": "/clockSync", "collector": "/clockSync", "appsettings": "/clockSync", "events": "/clockSync", "stats": "/clockSync",
		"dashboard": "/api-internal/v1/qmodelthresholds",
	} {
		resp, err := client.Get("https://" + name + ".callstats.io" + path)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: status %d", name, resp.StatusCode)
		}
	}
	dialer := websocket.Dialer{TLSClientConfig: &tls.Config{RootCAs: pool}, NetDialContext: toGateway, Subprotocols: []string{"echo-protocol"}}
	conn, upgrade, err := dialer.Dial("wss://collector.callstats.io:443/csiows/collectCallStats", nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = upgrade.Body.Close()
	_ = conn.Close()
}

// TestProxyConfigLines sends what a client with the page's setProxyConfig() would: paths are appended to the addresses
// as they are.
func TestProxyConfigLines(t *testing.T) {
	page, err := os.ReadFile("../../docs/howto/point-clients.md")
	if err != nil {
		t.Fatal(err)
	}
	r := start(t, nil)
	bases := make(map[string]string)
	for _, m := range regexp.MustCompile(`(?m)^ +(\w+URL): +"(https|wss)://collect\.example\.com(/[^"]*)"`).FindAllStringSubmatch(string(page), -1) {
		bases[m[1]] = m[3]
	}
	if len(bases) != 7 {
		t.Fatalf("the addresses of setProxyConfig in docs/howto/point-clients.md: %v", bases)
	}
	signedIn := r.postForm(bases["authServiceURL"]+"authenticate", url.Values{
		"client_id": {"alice@" + appID}, "code": {clientToken(t, "alice", appID, secret)}, "grant_type": {"authorization_code"},
	})
	token, _ := signedIn.json(t)["access_token"].(string)
	for _, tc := range []struct{ method, path, body string }{
		{"GET", bases["collectorURL"] + "clockSync", ""},
		{"POST", bases["collectorURL"] + "generics", `{"appID":null,"userID":"null","version":"3.73.16","eventType":"error"}`},
		{"GET", bases["appSettingsURL"] + appID + "/configurations", ""},
		{"GET", bases["appSettingsURL"] + appID + "/configurations/internal", ""},
		{"POST", bases["restEventURL"] + appID + "/conferences/room/u/events/user/alive", aliveBody},
		{"POST", bases["restStatsURL"] + appID + "/conferences/room/u/stats", `{"eventType":"stats","localID":"alice"}`},
		{"GET", bases["csioInternalAPIURL"] + "v1/qmodelthresholds", ""},
	} {
		if a := r.do(tc.method, tc.path, token, tc.body); a.status != http.StatusOK {
			t.Errorf("%s %s: status %d %s", tc.method, tc.path, a.status, a.body)
		}
	}
	dialer := websocket.Dialer{Subprotocols: []string{"echo-protocol"}}
	conn, upgrade, err := dialer.Dial("ws://"+r.Addr()+bases["wsURL"], nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = upgrade.Body.Close()
	_ = conn.Close()
}
