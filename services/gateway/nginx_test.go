package gateway

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gorilla/websocket"

	"github.com/callscope/callscope/internal/stream/streamtest"
	"github.com/callscope/callscope/services/gateway/play"
)

// nginxLines is the nginx file of docs/howto/point-clients.md with the addresses and files of a test in place of the
// examples. Each of them must be there.
func nginxLines(t *testing.T, replacements map[string]string) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/howto/point-clients.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(page), "```nginx\n")
	lines, _, closed := strings.Cut(rest, "```\n")
	if !found || !closed {
		t.Fatal("docs/howto/point-clients.md has no nginx file")
	}
	for example, here := range replacements {
		if strings.Count(lines, example) != 1 {
			t.Fatalf("the nginx file of docs/howto/point-clients.md does not have %q once", example)
		}
		lines = strings.Replace(lines, example, here, 1)
	}
	return lines
}

// nginx is a proxy that runs until the test ends.
type nginx struct {
	base   string // https://127.0.0.1:port
	tls    *tls.Config
	client *http.Client // connects from clientAddress
}

// clientAddress is where the test's own requests come from: loopback too, but no address that a test trusts.
const clientAddress = "127.9.8.7"

// startNginx runs nginx with the lines of the document before the gateway at an address. listen is the listen directive.
func startNginx(t *testing.T, gateway, listen string) *nginx {
	t.Helper()
	binary, err := exec.LookPath("nginx")
	if err != nil {
		t.Skipf("nginx is not installed, so the lines of docs/howto/point-clients.md are not run: %v", err)
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile, pool := certificate(t)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	_ = free.Close() // it only chose the port
	dir := t.TempDir()
	lines := nginxLines(t, map[string]string{
		"listen 443 ssl;":                  fmt.Sprintf(listen, addr),
		"server_name collect.example.com;": "server_name 127.0.0.1;",
		"10.0.0.5:8080":                    gateway,
		"/etc/ssl/collect.example.com.pem": certFile,
		"/etc/ssl/collect.example.com.key": keyFile,
	})
	// The user is looked at when nginx is started by root: its workers must get at the test's folder.
	config := fmt.Sprintf("user %s;\nworker_processes 1;\npid %s/pid;\nerror_log stderr;\nevents { worker_connections 256; }\nhttp {\n", me.Username, dir)
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		config += fmt.Sprintf("%s_temp_path %s/%s;\n", kind, dir, kind)
	}
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(config+lines+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	said := &lockedBuffer{}
	cmd := exec.Command(binary, "-p", dir, "-c", file, "-e", "stderr", "-g", "daemon off;")
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting nginx: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	trusting := &tls.Config{RootCAs: pool}
	transport := &http.Transport{
		TLSClientConfig: trusting, ForceAttemptHTTP2: strings.Contains(listen, "http2"),
		DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(clientAddress)}}).DialContext,
	}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself, and then said why
		<-done
		if t.Failed() {
			t.Logf("nginx said:\n%s", said)
		}
	})
	deadline := time.Now().Add(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			_ = conn.Close()
			return &nginx{base: "https://" + addr, tls: trusting, client: &http.Client{Transport: transport, Timeout: 20 * time.Second}}
		}
		if time.Now().After(deadline) {
			t.Fatalf("nginx does not listen: %v", err)
		}
		<-tick.C
	}
}

// post sends what a page of app.example.test would. header holds more, in pairs.
func (n *nginx) post(path, contentType, body string, header ...string) (*http.Response, string, error) {
	req, err := http.NewRequest(http.MethodPost, n.base+path, strings.NewReader(body))
	if err != nil {
		return nil, "", err
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("Origin", "https://app.example.test")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := n.client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp, string(text), err
}

func (n *nginx) signIn(t *testing.T, token string) (granted, error) {
	t.Helper()
	form := url.Values{"client_id": {"alice@" + appID}, "code": {token}, "grant_type": {"authorization_code"}}
	resp, text, err := n.post("/authenticate", "application/x-www-form-urlencoded", form.Encode())
	if err != nil {
		return granted{}, err
	}
	var a granted
	if err := json.Unmarshal([]byte(text), &a); err != nil || resp.StatusCode != http.StatusOK || a.Token == "" {
		t.Fatalf("a sign-in was answered with status %d, %s", resp.StatusCode, text)
	}
	return a, nil
}

const (
	overHTTP1 = "listen %s ssl;"
	overHTTP2 = "listen %s ssl http2;"
)

// trustingNginx is a gateway that believes what nginx says about addresses.
func trustingNginx(c *Config) { c.TrustedProxies = []string{"127.0.0.1"} }

// TestBehindNginx runs nginx with the lines of docs/howto/point-clients.md.
func TestBehindNginx(t *testing.T) {
	t.Run("recorded calls arrive as without it", func(t *testing.T) {
		direct, behind := start(t, nil), start(t, trustingNginx)
		proxy := startNginx(t, behind.Addr(), overHTTP1)
		for _, capture := range []string{"two-users-hs256", "proxy-config", "rn-3.24.6-wss", "rn-3.52.0-wss"} {
			var before [2]int
			for i, r := range []*running{direct, behind} {
				before[i] = len(r.broker.all())
				cfg := play.Config{Gateway: []string{"http://" + r.Addr(), proxy.base}[i], RootCAs: proxy.tls.RootCAs}
				var err error
				if cfg.Recordings, err = play.ReadFiles([]string{"../../test/captures/" + capture + ".jsonl"}); err != nil {
					t.Fatal(err)
				}
				report, err := play.Run(t.Context(), cfg)
				if err != nil {
					t.Fatal(err)
				}
				for _, result := range report.Results {
					if !result.Outcome.OK() {
						t.Errorf("%s to %s: %s", capture, cfg.Gateway, result)
					}
				}
			}
			// Nobody answers a frame, so the last ones may still be on their way when their client has gone.
			streamtest.Eventually(t, 10*time.Second, func() string {
				var arrived [2][]string
				for i, r := range []*running{direct, behind} {
					for _, raw := range r.broker.all()[before[i]:] {
						c, o := raw.Claimed, raw.Observed
						arrived[i] = append(arrived[i], fmt.Sprint(raw.EventType, raw.OriginalType, c.ConferenceId, c.UserId, c.DeviceId, c.ConnectionId, c.RemoteId, o.Dialect, o.Origin, o.UserAgent))
					}
					slices.Sort(arrived[i])
				}
				if diff := cmp.Diff(arrived[0], arrived[1]); diff != "" || len(arrived[0]) < 10 {
					return fmt.Sprintf("%s: %d records; directly (-) and through nginx (+):\n%s", capture, len(arrived[0]), diff)
				}
				return ""
			})
		}
	})

	t.Run("addresses, paths and CORS", func(t *testing.T) {
		for name, tc := range map[string]struct {
			change func(*Config)
			masked string
		}{
			"trusted":     {trustingNginx, "127.9.8.0"},
			"not trusted": {nil, "127.0.0.0"},
		} {
			r := start(t, tc.change)
			proxy := startNginx(t, r.Addr(), overHTTP1)
			a, err := proxy.signIn(t, clientToken(t, "alice", appID, secret))
			if err != nil {
				t.Fatal(err)
			}
			if got := a.Metadata.URLs.Events; got != proxy.base+"/v1/apps" {
				t.Errorf("%s: clients are sent to %s, want %s", name, got, proxy.base+"/v1/apps")
			}
			// What the client itself says about addresses is never believed.
			resp, text, err := proxy.post("/v1/apps/123456789/conferences/a%2F%2Fb%3Fc/u/events/user/alive", "application/json", aliveBody,
				"Authorization", "Bearer "+a.Token, "X-Forwarded-For", "198.51.100.66")
			if err != nil {
				t.Fatal(err)
			}
			records := r.broker.all()
			if resp.StatusCode != http.StatusOK || len(records) != 1 || records[0].Claimed.ConferenceId != "a//b?c" || records[0].Observed.IpMasked != tc.masked {
				t.Errorf("%s: status %d %s, stored %v, want address %s", name, resp.StatusCode, text, records, tc.masked)
			}
			if got := resp.Header.Values("Access-Control-Allow-Origin"); len(got) != 1 {
				t.Errorf("%s: Access-Control-Allow-Origin %q, want it once", name, got)
			}
			preflight, err := http.NewRequest(http.MethodOptions, proxy.base+alivePath, nil)
			if err != nil {
				t.Fatal(err)
			}
			preflight.Header.Set("Origin", "https://app.example.test")
			preflight.Header.Set("Access-Control-Request-Method", "POST")
			preflight.Header.Set("Access-Control-Request-Headers", "authorization,content-type")
			allowed, err := proxy.client.Do(preflight)
			if err != nil {
				t.Fatal(err)
			}
			_ = allowed.Body.Close()
			for _, header := range []string{"Access-Control-Allow-Origin", "Access-Control-Allow-Headers"} {
				if got := allowed.Header.Values(header); len(got) != 1 || allowed.StatusCode/100 != 2 {
					t.Errorf("%s: preflight: status %d, %s %q, want it once", name, allowed.StatusCode, header, got)
				}
			}
			// A message of nearly the limit passes; of one above it the client hears a status and nobody asks again.
			for size, want := range map[int]int{1<<20 - 1024: http.StatusOK, 1<<20 + 1: http.StatusRequestEntityTooLarge} {
				body := `{"eventType":"userAlive","localID":"alice","x":"` + strings.Repeat("x", size-50) + `"}`
				resp, text, err := proxy.post(alivePath, "application/json", body, "Authorization", "Bearer "+a.Token)
				if err != nil || resp.StatusCode != want {
					t.Errorf("%s: %d bytes: %v %v %.200s, want status %d", name, len(body), err, resp, text, want)
				}
			}
		}
	})

	// While the gateway cannot take anything the connection is closed and no page is sent.
	for name, listen := range map[string]string{"HTTP/1.1": overHTTP1, "HTTP/2": overHTTP2} {
		t.Run("no error pages over "+name, func(t *testing.T) {
			r := start(t, trustingNginx)
			addr := r.Addr()
			proxy := startNginx(t, addr, listen)
			token := clientToken(t, "alice", appID, secret)
			a, err := proxy.signIn(t, token)
			if err != nil {
				t.Fatal(err)
			}
			dialer := websocket.Dialer{TLSClientConfig: proxy.tls.Clone(), Subprotocols: []string{"echo-protocol"}}
			dialer.TLSClientConfig.NextProtos = []string{"http/1.1"} // as browsers do for WebSockets
			conn, upgrade, err := dialer.Dial("wss"+strings.TrimPrefix(proxy.base, "https")+"/csiows/collectCallStats", nil)
			if err != nil {
				t.Fatal(err)
			}
			_ = upgrade.Body.Close()
			defer conn.Close()

			// A message is on its way when the gateway begins to drain; it is answered, and the WebSocket is closed in order.
			r.broker.down()
			answered := make(chan error, 1)
			go func() {
				resp, text, err := proxy.post(alivePath, "application/json", aliveBody, "Authorization", "Bearer "+a.Token)
				if err == nil && resp.StatusCode != http.StatusOK {
					err = fmt.Errorf("status %d %s", resp.StatusCode, text)
				}
				answered <- err
			}()
			r.eventually("the message is in the gateway", func() error {
				if r.metric("callscope_gateway_in_flight_bytes") == 0 {
					return errors.New("nothing is held")
				}
				return nil
			})
			stopped := make(chan struct{})
			go func() { defer close(stopped); r.stop() }()
			s := &socket{t: t, conn: conn}
			if code := s.closeCode(); code != websocket.CloseServiceRestart {
				t.Errorf("the socket was closed with %d", code)
			}
			r.broker.recover()
			if err := <-answered; err != nil {
				t.Errorf("a message that the draining gateway had was not answered: %v", err)
			}
			<-stopped

			if listen == overHTTP2 {
				// nginx leaves the stream without an answer, since the connection is others' too. Clients give up after
				// 5 s and back off as after a closed connection; here they wait less.
				proxy.client.Timeout = time.Second
			}
			if a, err = proxy.signIn(t, token); err == nil {
				t.Errorf("with the gateway away a sign-in was answered: %v", a)
			}
			if resp, _, err := proxy.post(alivePath, "application/json", aliveBody); err == nil {
				t.Errorf("with the gateway away an event was answered with status %d", resp.StatusCode)
			}
			if conn, refusal, err := dialer.Dial("wss"+strings.TrimPrefix(proxy.base, "https")+"/csiows/collectCallStats", nil); err == nil {
				_ = conn.Close()
				t.Error("with the gateway away a WebSocket was opened")
			} else if refusal != nil {
				t.Errorf("with the gateway away a WebSocket was refused with status %d", refusal.StatusCode)
			}

			r = start(t, func(c *Config) {
				trustingNginx(c)
				c.Addr, c.StoreTimeout, c.JoinPatience = addr, 200*time.Millisecond, 100*time.Millisecond
			})
			proxy.client.Timeout = 20 * time.Second
			if a, err = proxy.signIn(t, token); err != nil {
				t.Fatalf("after the gateway came back: %v", err)
			}
			if listen == overHTTP2 {
				proxy.client.Timeout = time.Second
			}
			// The gateway closes the connection of what Kafka does not take in time; nginx must not make a page of that.
			r.broker.down()
			if resp, _, err := proxy.post(alivePath, "application/json", aliveBody, "Authorization", "Bearer "+a.Token); err == nil {
				t.Errorf("with Kafka away an event was answered with status %d", resp.StatusCode)
			}
			r.broker.recover()
			proxy.client.Timeout = 20 * time.Second
			if resp, text, err := proxy.post(alivePath, "application/json", aliveBody, "Authorization", "Bearer "+a.Token); err != nil || resp.StatusCode != http.StatusOK {
				t.Errorf("with Kafka back: %v %s, %v", resp, text, err)
			}
		})
	}
}
