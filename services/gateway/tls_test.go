package gateway

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/callscope/callscope/internal/apps"
)

// certificate writes a self-signed certificate for 127.0.0.1 and returns the files and a pool that trusts it.
func certificate(t testing.TB) (certFile, keyFile string, pool *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(certFile, certPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600); err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return certFile, keyFile, pool
}

func TestTLS(t *testing.T) {
	certFile, keyFile, pool := certificate(t)
	r := start(t, func(c *Config) { c.TLSCertFile, c.TLSKeyFile = certFile, keyFile })
	trusting := &tls.Config{RootCAs: pool}
	transport := &http.Transport{TLSClientConfig: trusting}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	form := "client_id=alice%40123456789&grant_type=authorization_code&code=" + clientToken(t, "alice", appID, secret)
	resp, err := client.Post("https://"+r.Addr()+"/authenticate", "application/x-www-form-urlencoded", strings.NewReader(form))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(text), `"events":"https://`+r.Addr()+`/v1/apps"`) {
		t.Errorf("answer %s, %v", text, err)
	}

	old := &tls.Config{RootCAs: pool, MaxVersion: tls.VersionTLS11}
	if conn, err := tls.Dial("tcp", r.Addr(), old); err == nil {
		_ = conn.Close()
		t.Error("TLS 1.1 was accepted")
	}

	dialer := websocket.Dialer{TLSClientConfig: trusting, Subprotocols: []string{"echo-protocol"}}
	conn, upgrade, err := dialer.Dial("wss://"+r.Addr()+"/csiows/collectCallStats", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer upgrade.Body.Close()
	s := &socket{t: t, conn: conn}
	s.sendText(websocket.TextMessage, "{}")
	if got := s.receive(); !strings.Contains(got, `"status":"Error"`) {
		t.Errorf("answer %s", got)
	}
	go r.stop()
	if code := s.closeCode(); code != websocket.CloseServiceRestart {
		t.Errorf("closed with %d", code)
	}
	s.close()
}

func TestTLSFilesMissing(t *testing.T) {
	registry, err := apps.NewStatic()
	if err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(t.TempDir(), "none.pem")
	g, err := New(Config{Addr: "127.0.0.1:0", TokenKey: tokenKey, TLSCertFile: missing, TLSKeyFile: missing}, registry, newBroker(), slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Run(context.Background()); err == nil || !strings.Contains(err.Error(), missing) || !strings.Contains(err.Error(), "gateway.tls_cert_file") {
		t.Errorf("error %v", err)
	}
}
