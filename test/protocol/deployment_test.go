// Package protocol holds a client of callscope.v1 that was written from
// docs/reference/protocol.md and asyncapi.yaml alone, and drives the real binary with it:
// what the page says must be enough to write a client, and true. It uses nothing
// of callscope's code.
package protocol

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// The apps of the deployment.
const (
	openApp       = "123456789" // any origin
	openSecret    = "correct horse battery staple"
	keyedSecret   = "key1:the part that signs:the rest"
	pageApp       = "987654321" // pages of pageOrigin only
	pageSecret    = "a secret of the page, ü"
	pageOrigin    = "https://app.example.com"
	customerKeyID = "key-2026"
)

// deployment is one `callscope all` and its data.
type deployment struct {
	gateway, engine string
	key             *ecdsa.PrivateKey // makes customer tokens of openApp
	process         *process
	start           func() // starts it again, on the same data
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("finding a free port: %v", err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func startDeployment(t *testing.T) *deployment {
	t.Helper()
	dir := t.TempDir()
	binary := filepath.Join(dir, "callscope")
	if out, err := exec.Command("go", "build", "-o", binary, "github.com/callscope/callscope/cmd/callscope").CombinedOutput(); err != nil {
		t.Fatalf("building callscope: %v\n%s", err, out)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	pemText := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))
	d := &deployment{gateway: freeAddress(t), engine: freeAddress(t), key: key}
	admin := freeAddress(t)
	// JSON is YAML.
	config, err := json.Marshal(object{
		"data_dir":   filepath.Join(dir, "data"),
		"admin":      object{"addr": admin},
		"kafka":      object{"embedded_addr": freeAddress(t)},
		"clickhouse": object{"embedded_addr": d.engine},
		"gateway":    object{"addr": d.gateway},
		"apps": []object{
			{"id": openApp, "secrets": []string{openSecret, keyedSecret}, "public_keys": object{customerKeyID: pemText}},
			{"id": pageApp, "secrets": []string{pageSecret}, "origins": []string{pageOrigin}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "callscope.yaml")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatalf("writing the configuration: %v", err)
	}
	d.start = func() {
		p := &process{cmd: exec.Command(binary, "all", "--config", file), output: &lockedBuffer{}, done: make(chan struct{})}
		p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
		if err := p.cmd.Start(); err != nil {
			t.Fatalf("starting callscope: %v", err)
		}
		go func() {
			_ = p.cmd.Wait()
			close(p.done)
		}()
		d.process = p
		t.Cleanup(func() {
			if err := p.stop(); err != nil {
				t.Error(err)
			}
			if t.Failed() {
				said := p.output.String()
				t.Logf("callscope all said, at the end:\n%s", said[max(0, len(said)-12000):])
			}
		})
		eventually(t, 3*time.Minute, "callscope all becoming ready", func() string {
			select {
			case <-p.done:
				t.Fatalf("callscope all ended while starting:\n%s", p.output)
			default:
			}
			response, err := http.Get("http://" + admin + "/readyz?verbose")
			if err != nil {
				return err.Error()
			}
			defer response.Body.Close()
			body, _ := io.ReadAll(response.Body)
			if response.StatusCode != http.StatusOK {
				return fmt.Sprintf("%s: %s", response.Status, body)
			}
			return ""
		})
	}
	d.start()
	return d
}

// process is one `callscope all`.
type process struct {
	cmd    *exec.Cmd
	output *lockedBuffer
	done   chan struct{}
}

// stop asks it to end and waits until it has.
func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return nil
	case <-time.After(60 * time.Second):
		p.kill()
		return errors.New("callscope all did not end within 60 s of SIGTERM")
	}
}

// kill ends it at once, as a crash would.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// customerToken is what the app's own server makes (2.2).
func (d *deployment) customerToken(t *testing.T, key *ecdsa.PrivateKey, claims jwt.MapClaims) string {
	t.Helper()
	token, err := jwt.NewWithClaims(jwt.SigningMethodES256, claims).SignedString(key)
	if err != nil {
		t.Fatalf("signing a customer token: %v", err)
	}
	return token
}

// eventually polls until check returns "", and fails with the last reason why
// it did not.
func eventually(t *testing.T, within time.Duration, what string, check func() string) {
	t.Helper()
	deadline := time.Now().Add(within)
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for {
		reason := check()
		if reason == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %s", what, within, reason)
		}
		<-ticker.C
	}
}

// row is one row of a public view, as ClickHouse's JSONEachRow gives it.
type row = map[string]any

// query runs one statement over the engine's HTTP interface.
func (d *deployment) query(sql string) ([]row, error) {
	parameters := url.Values{
		"database": {"callscope"},
		"query":    {sql + " FORMAT JSONEachRow"},
		"output_format_json_quote_64bit_integers": {"0"},
	}
	response, err := http.Get("http://" + d.engine + "/?" + parameters.Encode())
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", response.Status, strings.TrimSpace(string(body)))
	}
	var rows []row
	for decoder := json.NewDecoder(bytes.NewReader(body)); decoder.More(); {
		var r row
		if err := decoder.Decode(&r); err != nil {
			return nil, fmt.Errorf("reading %q: %w", body, err)
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// wantRows waits until a statement gives the wanted rows, in order.
func (d *deployment) wantRows(t *testing.T, sql string, want []row) {
	t.Helper()
	eventually(t, 2*time.Minute, sql, func() string {
		got, err := d.query(sql)
		if err != nil {
			return err.Error()
		}
		return diff(want, got)
	})
}
