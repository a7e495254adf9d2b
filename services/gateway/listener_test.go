package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// TestCertificateReload: new connections get a replaced certificate without a restart, old ones go on, and a broken file
// changes nothing.
func TestCertificateReload(t *testing.T) {
	certFile, keyFile, oldPool := certificate(t)
	newCert, newKey, newPool := certificate(t)
	r := start(t, func(c *Config) { c.TLSCertFile, c.TLSKeyFile = certFile, keyFile })
	dial := func(pool *x509.CertPool) error {
		conn, err := tls.Dial("tcp", r.Addr(), &tls.Config{RootCAs: pool})
		if err == nil {
			_ = conn.Close()
		}
		return err
	}
	held, err := tls.Dial("tcp", r.Addr(), &tls.Config{RootCAs: oldPool})
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()

	replace := func(name, with string, change func([]byte) []byte) {
		text, err := os.ReadFile(with)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name+".new", change(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(name+".new", name); err != nil {
			t.Fatal(err)
		}
	}
	same := func(b []byte) []byte { return b }
	replace(certFile, newCert, func(b []byte) []byte { return b[:len(b)/2] })
	r.eventually("the broken file is noticed", func() error {
		if err := dial(oldPool); err != nil {
			t.Fatalf("with a broken file: %v", err)
		}
		if !strings.Contains(r.log.String(), "was not replaced") {
			return fmt.Errorf("not in the log")
		}
		return nil
	})
	replace(keyFile, newKey, same)
	replace(certFile, newCert, same)
	r.eventually("the new certificate is used", func() error { return dial(newPool) })
	if dial(oldPool) == nil {
		t.Error("the old certificate is still used")
	}
	if _, err := io.WriteString(held, "GET /clockSync HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(held); err != nil || !strings.Contains(string(text), `{"now":`) {
		t.Errorf("the old connection: %q, %v", text, err)
	}
}

// TestConnectionRate: the guard closes what an address opens beyond its limit. Loopback and proxies have none, so the
// guard itself is asked.
func TestConnectionRate(t *testing.T) {
	r := start(t, func(c *Config) {
		c.Limits.AddressConnectionsPerSecond, c.TrustedProxies = 1, []string{"203.0.113.9"}
	})
	for address, want := range map[string]int{"198.51.100.1:5": 10, "127.0.0.1:5": 20, "203.0.113.9:5": 20} {
		passed := 0
		for range 20 {
			if r.refuseConnection(address) == "" {
				passed++
			}
		}
		if passed != want {
			t.Errorf("%s: %d of 20 passed, want %d", address, passed, want)
		}
	}
	client, server := net.Pipe()
	defer client.Close()
	refused := 0
	l := &guarded{&pipeListener{conns: []net.Conn{server}}, func(string) string { return refusedRate }, func(string) { refused++ }}
	if _, err := l.Accept(); !errors.Is(err, io.EOF) || refused != 1 {
		t.Errorf("accepted: %v, refused %d", err, refused)
	}
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the refused connection was not closed: %v", err)
	}
}

type pipeListener struct {
	net.Listener
	conns []net.Conn
}

func (l *pipeListener) Accept() (net.Conn, error) {
	if len(l.conns) == 0 {
		return nil, io.EOF
	}
	conn := l.conns[0]
	l.conns = l.conns[1:]
	return conn, nil
}

// TestDrainSpread: readiness drops first, then the sockets are closed one after the other, and those that wait for it
// are served until then.
func TestDrainSpread(t *testing.T) {
	r := start(t, func(c *Config) { c.DrainDelay, c.DrainSpread = 200*time.Millisecond, time.Second })
	token := r.signIn("alice@x", appID)
	var sockets []*socket
	for range 10 {
		sockets = append(sockets, r.dial())
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		r.stop()
	}()
	r.eventually("readiness drops", func() error {
		if r.Ready() == nil {
			return fmt.Errorf("still ready")
		}
		return nil
	})
	late := r.dial() // it still listens
	late.send(frame(token, "userAlive", 1))
	if got := late.receive(); !strings.Contains(got, "200 OK") {
		t.Errorf("during the delay: %s", got)
	}
	sockets = append(sockets, late)
	closed := make(chan time.Time, len(sockets))
	for _, s := range sockets {
		go func() {
			if code := s.closeCode(); code != websocket.CloseServiceRestart {
				t.Errorf("closed with %d", code)
			}
			closed <- time.Now()
			s.close()
		}()
	}
	first := <-closed
	last := first
	for range len(sockets) - 1 {
		last = <-closed
	}
	<-stopped
	if spread := last.Sub(first); spread < 500*time.Millisecond {
		t.Errorf("all sockets were closed within %s, want about a second", spread)
	}
}
