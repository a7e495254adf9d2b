package app

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/callscope/callscope/internal/config"
)

func load(t *testing.T, set ...string) *settings {
	t.Helper()
	s, err := loadSettings(config.Sources{Set: set})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// What is in force with nothing set; a new setting shows up here.
func TestDefaults(t *testing.T) {
	var b bytes.Buffer
	if err := load(t).loaded.WriteYAML(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "defaults.yaml", b.String())
	if err := load(t).check(needData, needAdmin, needKafkaOrBroker, needClickHouseOrEngine, needGateway(true, true), needSink); err != nil {
		t.Errorf("the defaults are wrong: %v", err)
	}
}

func TestDefaultsThatDepend(t *testing.T) {
	for _, tt := range []struct {
		set        string
		partitions int
		addr       string
	}{
		{"log.format=text", 4, "127.0.0.1:8080"},
		{"kafka.brokers=a:1", 12, "127.0.0.1:8080"},
		{"kafka.partitions=7", 7, "127.0.0.1:8080"},
		{"gateway.tls_cert_file=x", 4, ":8443"},
		{"gateway.addr=127.0.0.1:1", 4, "127.0.0.1:1"},
	} {
		s := load(t, tt.set)
		if s.Kafka.Partitions != tt.partitions || s.Gateway.Addr != tt.addr {
			t.Errorf("with %s: %d partitions, gateway at %s", tt.set, s.Kafka.Partitions, s.Gateway.Addr)
		}
	}
}

func TestSecretsAreNotShown(t *testing.T) {
	const text = "do-not-show-this-text"
	s := load(t, "gateway.token_key="+text, "clickhouse.password="+text, `apps=[{"id":"1","secrets":["`+text+`"]}]`)
	var b bytes.Buffer
	if err := s.loaded.WriteYAML(&b); err != nil {
		t.Fatal(err)
	}
	if err := s.loaded.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), text) {
		t.Errorf("shown:\n%s", b.String())
	}
	if got := s.gatewayConfig().TokenKey; got != text {
		t.Errorf("the gateway gets the key %q", got)
	}
}

func TestRegistry(t *testing.T) {
	s := load(t, `apps=[{"id":"7","secrets":["x"],"origins":["https://a.example"]}]`)
	for _, demo := range []bool{false, true} {
		reg, err := s.staticApps(demo)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := reg.Lookup("7"); !ok {
			t.Error("the configured app is missing")
		}
		a, ok := reg.Lookup(demoAppID)
		if ok != demo {
			t.Errorf("demo %t, and the demo app is there: %t", demo, ok)
		}
		if demo && (string(a.Secrets[0].Key) != demoAppSecret || !a.AllowsOrigin("https://any.example")) {
			t.Errorf("demo app %+v", a)
		}
	}
	if _, err := load(t, `apps=[{"id":"123456789","secrets":["x"]}]`).staticApps(true); err == nil || !strings.Contains(err.Error(), "apps: app 123456789 is there twice") {
		t.Errorf("got %v", err)
	}
}

func TestLocalSecret(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data", "secrets")
	secrets := make([]string, 8)
	var wg sync.WaitGroup
	for i := range secrets {
		wg.Go(func() {
			s, err := localSecret(dir, "key")
			if err != nil {
				t.Error(err)
			}
			secrets[i] = s.Reveal()
		})
	}
	wg.Wait()
	for _, s := range secrets {
		if s != secrets[0] || len(s) != 64 {
			t.Errorf("secrets differ or are short: %q", secrets)
			break
		}
	}
	names := make(map[string]fs.FileMode)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		names[filepath.Base(path)] = info.Mode().Perm()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]fs.FileMode{"secrets": 0o700, "key": 0o600}, names); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if err := os.WriteFile(filepath.Join(dir, "key"), []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := localSecret(dir, "key"); err == nil || !strings.Contains(err.Error(), "is cut short; delete the file") {
		t.Errorf("got %v", err)
	}
	other, err := localSecret(t.TempDir(), "key")
	if err != nil || other.Reveal() == secrets[0] {
		t.Errorf("two installations have one secret: %v", err)
	}
}

// Kubernetes puts a group of variables into every container of a namespace for every service of it, whatever its name
// is; those of a service that is called callscope or callscope-gateway are no settings and no mistyped ones.
func TestVariablesOfKubernetes(t *testing.T) {
	for _, name := range []string{"CALLSCOPE", "CALLSCOPE_GATEWAY", "CALLSCOPE_KAFKA", "CALLSCOPE_KAFKA_BROKERS", "CALLSCOPE_CLICKHOUSE", "CALLSCOPE_ADMIN", "CALLSCOPE_APPS"} {
		environ := []string{name + "_SERVICE_HOST=10.0.0.1", name + "_SERVICE_PORT=8080", name + "_SERVICE_PORT_HTTP=8080", name + "_PORT=tcp://10.0.0.1:8080",
			name + "_PORT_8080_TCP=tcp://10.0.0.1:8080", name + "_PORT_8080_TCP_PROTO=tcp", name + "_PORT_8080_TCP_PORT=8080", name + "_PORT_8080_TCP_ADDR=10.0.0.1"}
		if _, err := loadSettings(config.Sources{Environ: environ}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What stands in no section is set by its own name.
func TestVariablesWithoutSection(t *testing.T) {
	s, err := loadSettings(config.Sources{Environ: []string{"CALLSCOPE_DATA_DIR=/somewhere", `CALLSCOPE_APPS=[{"id":"1","secrets":["x"]}]`}})
	if err != nil {
		t.Fatal(err)
	}
	if s.DataDir != "/somewhere" || len(s.Apps) != 1 || s.loaded.Origin("data_dir") != "environment variable CALLSCOPE_DATA_DIR" {
		t.Errorf("data_dir %q of %s, apps %v", s.DataDir, s.loaded.Origin("data_dir"), s.Apps)
	}
}

// Stopping fits into what Kafka and the rest of the process allow, whatever the session timeout is.
func TestTimesOfStopping(t *testing.T) {
	for _, tt := range []struct{ session, heartbeat, stop, drain string }{
		{"10s", "2s", "5s", "15s"}, {"4s", "1s", "2s", "15s"}, {"40s", "2s", "5s", "30s"},
	} {
		p := newProcess(load(t, "kafka.brokers=a:1", "kafka.session_timeout="+tt.session, "kafka.heartbeat_interval="+tt.heartbeat), discard(), false)
		if err := p.check(needKafka); err != nil {
			t.Fatal(err)
		}
		if stop, drain := p.stopTimeout().String(), p.consumerDrain().String(); stop != tt.stop || drain != tt.drain || p.stopTimeout() >= p.kafka.SessionTimeout {
			t.Errorf("a session of %s: the last state has %s, the whole %s; want %s and %s", tt.session, stop, drain, tt.stop, tt.drain)
		}
	}
}
