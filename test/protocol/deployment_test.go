// Package protocol holds a client of callscope.v1 that was written from
// docs/reference/protocol.md and asyncapi.yaml alone, and drives the real binary with it:
// what the page says must be enough to write a client, and true. It uses nothing
// of callscope's code.
package protocol

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/callscope/callscope/test/chaintest"
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
	process         *chaintest.Process
	start           func() // starts it again, on the same data
}

func TestMain(m *testing.M) { os.Exit(chaintest.Main(m)) }

func startDeployment(t *testing.T) *deployment {
	t.Helper()
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	pemText := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))
	d := &deployment{gateway: chaintest.FreeAddress(t), engine: chaintest.FreeAddress(t), key: key}
	admin := chaintest.FreeAddress(t)
	// JSON is YAML.
	config, err := json.Marshal(object{
		"data_dir":   filepath.Join(dir, "data"),
		"admin":      object{"addr": admin},
		"kafka":      object{"embedded_addr": chaintest.FreeAddress(t)},
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
		d.process = chaintest.Start(t, "callscope all", "all", "--config", file)
		chaintest.Ready(t, d.process, admin)
	}
	d.start()
	return d
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

// row is one row of a public view, as ClickHouse's JSONEachRow gives it.
type row = map[string]any

// query runs one statement over the engine's HTTP interface.
func (d *deployment) query(sql string) ([]row, error) {
	answer, err := chaintest.Query(d.engine, sql)
	if err != nil {
		return nil, err
	}
	var rows []row
	for _, r := range answer.Records() {
		rows = append(rows, row(r))
	}
	return rows, nil
}

// wantRows waits until a statement gives the wanted rows, in order.
func (d *deployment) wantRows(t *testing.T, sql string, want []row) {
	t.Helper()
	chaintest.Eventually(t, 2*time.Minute, sql, func() string {
		got, err := d.query(sql)
		if err != nil {
			return err.Error()
		}
		return diff(want, got)
	})
}
