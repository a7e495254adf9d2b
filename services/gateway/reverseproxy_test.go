package gateway

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"

	"github.com/gorilla/websocket"
)

// TestBehindReverseProxy: a proxy that ends TLS, as docs/howto/point-clients.md describes it. Clients are told the
// proxy's address, and count and are stored by their own.
func TestBehindReverseProxy(t *testing.T) {
	for name, publicURL := range map[string]string{"host kept": "", "host changed": "https://collect.example.com"} {
		t.Run(name, func(t *testing.T) {
			r := start(t, func(c *Config) { c.TrustedProxies, c.PublicURL = []string{"127.0.0.1"}, publicURL })
			target, err := url.Parse("http://" + r.Addr())
			if err != nil {
				t.Fatal(err)
			}
			proxy := httptest.NewTLSServer(&httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
				p.SetURL(target)
				p.SetXForwarded()
				p.Out.Header.Set("X-Forwarded-For", "198.51.100.77") // where this proxy's client would be
				if publicURL == "" {
					p.Out.Host = p.In.Host
				}
			}})
			defer proxy.Close()
			client := proxy.Client()
			defer client.CloseIdleConnections()
			resp, err := client.PostForm(proxy.URL+"/authenticate", url.Values{
				"client_id": {"alice@" + appID}, "code": {clientToken(t, "alice", appID, secret)}, "grant_type": {"authorization_code"},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			var a granted
			if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
				t.Fatal(err)
			}
			want := publicURL
			if want == "" {
				want = proxy.URL
			}
			if got := a.Metadata.URLs.Events; got != want+"/v1/apps" {
				t.Errorf("clients are sent to %s, want %s", got, want+"/v1/apps")
			}
			req, err := http.NewRequest(http.MethodPost, proxy.URL+"/v1/apps/123456789/conferences/a%2Fb/u/events/user/alive", strings.NewReader(aliveBody))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+a.Token)
			event, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = event.Body.Close()
			records := r.broker.all()
			if event.StatusCode != http.StatusOK || len(records) != 1 || records[0].Claimed.ConferenceId != "a/b" || records[0].Observed.IpMasked != "198.51.100.0" {
				t.Errorf("status %d, stored %v", event.StatusCode, records)
			}
			dialer := websocket.Dialer{TLSClientConfig: client.Transport.(*http.Transport).TLSClientConfig.Clone(), Subprotocols: []string{"echo-protocol"}}
			dialer.TLSClientConfig.NextProtos = []string{"http/1.1"}
			conn, upgrade, err := dialer.Dial("wss"+strings.TrimPrefix(proxy.URL, "https")+"/csiows/collectCallStats", nil)
			if err != nil {
				t.Fatal(err)
			}
			_ = upgrade.Body.Close()
			defer conn.Close()
			if err := conn.WriteMessage(websocket.TextMessage, []byte("{}")); err != nil {
				t.Fatal(err)
			}
			if _, text, err := conn.ReadMessage(); err != nil || !strings.Contains(string(text), `"status":"Error"`) {
				t.Errorf("on the socket: %s, %v", text, err)
			}
		})
	}
}

// granted is what the sign-in's answer says to clients.
type granted struct {
	Token    string `json:"access_token"`
	Metadata struct {
		URLs struct{ Events string } `json:"urls"`
	} `json:"metadata"`
}
