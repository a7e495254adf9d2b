package config

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

type app struct {
	ID      string   `koanf:"id"`
	Secrets []string `koanf:"secrets"`
	Every   *int     `koanf:"every"`
}

type squashed struct {
	Brokers    []string      `koanf:"brokers"`
	Partitions int           `koanf:"partitions"`
	Timeout    time.Duration `koanf:"timeout"`
	Password   string        `koanf:"password"` // hidden by the outer one
}

type settings struct {
	DataDir string `koanf:"data_dir"`
	Kafka   struct {
		Password Secret `koanf:"password"`
		squashed `koanf:",squash"`
		MaxBytes int64 `koanf:"max_bytes"`
		TLS      struct {
			Enabled bool `koanf:"enabled"`
		} `koanf:"tls"`
	} `koanf:"kafka"`
	Log struct {
		Level slog.Level `koanf:"level"`
	} `koanf:"log"`
	Ratio  float64           `koanf:"ratio"`
	Small  uint8             `koanf:"small"`
	Labels map[string]string `koanf:"labels"`
	Apps   []app             `koanf:"apps"`
	Other  string            // no tag: no setting
}

func defaults() *settings {
	s := &settings{DataDir: "data", Ratio: 0.5, Small: 3}
	s.Kafka.Partitions, s.Kafka.Timeout, s.Kafka.MaxBytes = 12, 10*time.Second, 1<<20
	return s
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLayers(t *testing.T) {
	file := write(t, "callscope.yaml", `
kafka:
  brokers: [a:1, b:2]
  partitions: 6
  timeout: 3s
  max_bytes: 64KiB
log:
labels: {a.b: c, d: e}
apps:
  - {id: 123456789, secrets: [one, two], every: 5}
`)
	s := defaults()
	l, err := Load(s, Sources{
		File: file,
		Environ: []string{"PATH=/bin", "CALLSCOPE_KAFKA__PARTITIONS=7", "CALLSCOPE_KAFKA__TIMEOUT=4s", "CALLSCOPE_LOG__LEVEL=debug",
			"CALLSCOPE_CONFIG=x", "CALLSCOPE_GATEWAY_SERVICE_HOST=10.0.0.1", "CALLSCOPE_KAFKA__TLS__ENABLED=TRUE"},
		Set:   []string{"kafka.timeout=5s", "ratio=0.25"},
		Flags: []Flag{{"--data", "data_dir", "/tmp/x=y"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := defaults()
	want.DataDir, want.Ratio, want.Log.Level = "/tmp/x=y", 0.25, slog.LevelDebug
	want.Kafka.squashed = squashed{[]string{"a:1", "b:2"}, 7, 5 * time.Second, ""}
	want.Kafka.MaxBytes, want.Kafka.TLS.Enabled = 64<<10, true
	want.Labels = map[string]string{"a.b": "c", "d": "e"}
	five := 5
	want.Apps = []app{{ID: "123456789", Secrets: []string{"one", "two"}, Every: &five}}
	if diff := cmp.Diff(want, s, cmp.Exporter(func(reflect.Type) bool { return true })); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
	for key, origin := range map[string]string{
		"kafka.brokers": file, "kafka.partitions": "environment variable CALLSCOPE_KAFKA__PARTITIONS", "kafka.timeout": "--set kafka.timeout",
		"data_dir": "--data", "small": "default", "labels": file, "kafka.tls.enabled": "environment variable CALLSCOPE_KAFKA__TLS__ENABLED",
	} {
		if got := l.Origin(key); got != origin {
			t.Errorf("origin of %s: %s, want %s", key, got, origin)
		}
	}
	if l.IsSet("small") || !l.IsSet("kafka.brokers") {
		t.Error("IsSet is wrong")
	}
	var yaml bytes.Buffer
	if err := l.WriteYAML(&yaml); err != nil {
		t.Fatal(err)
	}
	wantYAML := `data_dir: /tmp/x=y # --data
kafka:
  password: "" # default
  brokers: ['a:1', 'b:2'] # FILE
  partitions: 7 # environment variable CALLSCOPE_KAFKA__PARTITIONS
  timeout: 5s # --set kafka.timeout
  max_bytes: 65536 # FILE
  tls:
    enabled: true # environment variable CALLSCOPE_KAFKA__TLS__ENABLED
log:
  level: DEBUG # environment variable CALLSCOPE_LOG__LEVEL
ratio: 0.25 # --set ratio
small: 3 # default
labels: {a.b: c, d: e} # FILE
apps: [{every: 5, id: "123456789", secrets: [(hidden), (hidden)]}] # FILE
`
	if diff := cmp.Diff(wantYAML, strings.ReplaceAll(yaml.String(), file, "FILE")); diff != "" {
		t.Errorf("YAML (-want +got):\n%s", diff)
	}
	// What is printed is a configuration again, but for the secrets.
	again := defaults()
	if _, err := Load(again, Sources{File: write(t, "again.yaml", yaml.String())}); err != nil {
		t.Errorf("loading what was printed: %v", err)
	}
	if diff := cmp.Diff(s.Kafka.squashed, again.Kafka.squashed); diff != "" {
		t.Errorf("loaded again (-want +got):\n%s", diff)
	}
}

func TestProblems(t *testing.T) {
	file := write(t, "callscope.yaml", `
kafka:
  brokr: a
  partitions: many
  timeout: 10
  brokers: {a: b}
tls: {enabled: true}
log: 3
`)
	missing := filepath.Join(t.TempDir(), "none")
	_, err := Load(defaults(), Sources{
		File: file,
		Environ: []string{"CALLSCOPE_KAFKA__MAX_BYTES=1 parsec", "CALLSCOPE_KAFKA_BROKERS=a:1", "CALLSCOPE_SMALL__X=1", "CALLSCOPE_RATOI=3",
			"CALLSCOPE_KAFKA__PASSWORD_FILE=" + missing},
		Set: []string{"small=300", "ratio=NaN", "nonsense", "completely.different=1", "kafka.tls.enabled=yes", "log.level=loud", "apps=[{\"idd\":1}]", "kafka.password=x", "kafka.password_file=y"},
	})
	var bad *Error
	if !errors.As(err, &bad) {
		t.Fatalf("got %v", err)
	}
	want := []string{
		"kafka.brokers.a: unknown setting; did you mean kafka.brokers? (from FILE)",
		"kafka.brokr: unknown setting; did you mean kafka.brokers? (from FILE)",
		"log: is a section, not a setting; its settings are log.level (from FILE)",
		"tls.enabled: unknown setting; did you mean kafka.tls.enabled? (from FILE)",
		`kafka.partitions: "many" is not a whole number (from FILE)`,
		`kafka.timeout: "10" is not a duration; write a number with its unit, such as 500ms, 10s or 2h30m (from FILE)`,
		"environment variable CALLSCOPE_KAFKA_BROKERS is no setting; did you mean CALLSCOPE_KAFKA__BROKERS?",
		"environment variable CALLSCOPE_RATOI is no setting; did you mean CALLSCOPE_RATIO?",
		"CALLSCOPE_SMALL__X: unknown setting; did you mean CALLSCOPE_SMALL? (from environment variable CALLSCOPE_SMALL__X)",
		"CALLSCOPE_KAFKA__PASSWORD_FILE: cannot read the secret's file: open MISSING: no such file or directory (from environment variable CALLSCOPE_KAFKA__PASSWORD_FILE)",
		`CALLSCOPE_KAFKA__MAX_BYTES: "1 parsec" is not a size; write bytes, or a number with KB, MB, GB, KiB, MiB or GiB (from environment variable CALLSCOPE_KAFKA__MAX_BYTES)`,
		"--set nonsense: want --set section.key=value",
		"completely.different: unknown setting; `callscope config` prints those there are (from --set completely.different)",
		"kafka.password: given twice, also as kafka.password_file; keep one (from --set kafka.password)",
		`kafka.tls.enabled: "yes" is not true or false (from --set kafka.tls.enabled)`,
		`log.level: "loud" is not allowed: slog: level string "loud": unknown name (from --set log.level)`,
		`ratio: "NaN" is not a number (from --set ratio)`,
		"small: 300 is out of range; it must fit in 8 bits without a sign (from --set small)",
	}
	var got []string
	for _, p := range bad.Problems {
		got = append(got, strings.NewReplacer(file, "FILE", missing, "MISSING").Replace(p))
	}
	deep := got[len(got)-1]
	if diff := cmp.Diff(want, got[:len(got)-1]); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	if !strings.HasPrefix(deep, "apps: ") || !strings.Contains(deep, "idd") || !strings.HasSuffix(deep, "(from --set apps)") {
		t.Errorf("apps: %s", deep)
	}
}

func TestBrokenFile(t *testing.T) {
	for text, want := range map[string]string{
		"kafka: [":       "is not valid YAML",
		"\tkafka: 1":     "is not valid YAML",
		"- a":            "is not valid YAML",
		"a: 1\na: 2":     "is not valid YAML",
		"kafka:\n  x: 1": "kafka.x: unknown setting",
	} {
		if _, err := Load(defaults(), Sources{File: write(t, "x.yaml", text)}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want an error with %q", text, err, want)
		}
	}
	if _, err := Load(defaults(), Sources{File: "/nowhere/x.yaml"}); err == nil || !strings.Contains(err.Error(), "cannot read the configuration file /nowhere/x.yaml: no such file") {
		t.Errorf("got %v", err)
	}
}

func TestInvalid(t *testing.T) {
	l, err := Load(defaults(), Sources{Set: []string{"kafka.partitions=0"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Invalid(nil, errors.Join(nil)); err != nil {
		t.Errorf("nothing is wrong, and got %v", err)
	}
	err = l.Invalid(errors.Join(errors.New("kafka.partitions: 0 is not between 1 and 10"), errors.New("small: odd")), errors.New("no key"))
	want := "bad configuration, 3 problems:\n  kafka.partitions: 0 is not between 1 and 10 (from --set kafka.partitions)\n  small: odd (nobody set it)\n  no key"
	if err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
}

func TestSecretIsHidden(t *testing.T) {
	const text = "a-very-secret-text"
	s := defaults()
	l, err := Load(s, Sources{Environ: []string{"CALLSCOPE_KAFKA__PASSWORD_FILE=" + write(t, "pw", text+"\n")}, Set: []string{`apps=[{"id":"1","secrets":["` + text + `"]}]`}})
	if err != nil {
		t.Fatal(err)
	}
	if s.Kafka.Password.Reveal() != text {
		t.Errorf("got %q", s.Kafka.Password.Reveal())
	}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&out, verb+"\n", s.Kafka.Password)
		fmt.Fprintf(&out, verb+"\n", struct{ hidden Secret }{s.Kafka.Password})
	}
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "password", s.Kafka.Password)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "password", s.Kafka.Password)
	if err := errors.Join(l.WriteYAML(&out), l.WriteJSON(&out)); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), text) || !strings.Contains(out.String(), hidden) {
		t.Errorf("printed:\n%s", out.String())
	}
	if got := l.Origin("kafka.password"); !strings.HasPrefix(got, "file ") || !strings.HasSuffix(got, "/pw named by environment variable CALLSCOPE_KAFKA__PASSWORD_FILE") {
		t.Errorf("origin %q", got)
	}
	// A later layer's own value wins over an earlier layer's file.
	if _, err := Load(s, Sources{Environ: []string{"CALLSCOPE_KAFKA__PASSWORD_FILE=" + write(t, "pw", text)}, Set: []string{"kafka.password=later"}}); err != nil || s.Kafka.Password.Reveal() != "later" {
		t.Errorf("got %q, %v", s.Kafka.Password.Reveal(), err)
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "17": 17, "1KB": 1000, "2 MiB": 2 << 20, "3GiB": 3 << 30, "5B": 5, "-1": -1} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "MB", "1.5MB", "1 m", "99999999TB"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("kafka:\n  brokers: [a]\n", "CALLSCOPE_KAFKA__BROKERS=x", "apps=[{}]")
	f.Fuzz(func(t *testing.T, file, environ, set string) {
		// Whatever is there, it is loaded or explained.
		_, err := Load(defaults(), Sources{File: write(t, "x.yaml", file), Environ: []string{environ}, Set: []string{set}})
		var bad *Error
		if err != nil && !errors.As(err, &bad) {
			t.Errorf("got %T %v", err, err)
		}
	})
}
