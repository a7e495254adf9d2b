package store

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	createTableRe = regexp.MustCompile(`(?s)^(?:--[^\n]*\n|\s)*CREATE TABLE IF NOT EXISTS \{database\}\.(\w+) \{on_cluster\}\n\(\n(.*?)\n\)\nENGINE`)
	columnRe      = regexp.MustCompile(`^ {4}(\w+) (.+?)(?: CODEC\(.*\))?,?$`)
)

// TestRowsAgreeWithTables reads the tables' columns out of the migrations and compares them, in order, with the rows.
func TestRowsAgreeWithTables(t *testing.T) {
	type pair struct{ Name, Type string }
	want := make(map[string][]pair)
	for _, m := range migrations {
		for _, statement := range m.statements {
			create := createTableRe.FindStringSubmatch(statement)
			if create == nil {
				continue
			}
			for line := range strings.SplitSeq(create[2], "\n") {
				if c := columnRe.FindStringSubmatch(line); c != nil && c[1] != "INDEX" {
					want[create[1]] = append(want[create[1]], pair{c[1], c[2]})
				}
			}
		}
	}
	if len(want) < 12 {
		t.Fatalf("only %d tables found in the migrations", len(want))
	}
	got := make(map[string][]pair)
	for name, table := range tables {
		for _, c := range table.columns {
			got[name] = append(got[name], pair{c.name, c.typ})
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("migrations and rows differ (-migrations +rows):\n%s", diff)
	}
}

func TestStatementsCanBeRepeated(t *testing.T) {
	for _, m := range migrations {
		for _, s := range m.statements {
			var first string
			for line := range strings.SplitSeq(s, "\n") {
				if !strings.HasPrefix(line, "--") && strings.TrimSpace(line) != "" {
					first = line
					break
				}
			}
			if !strings.HasPrefix(first, "CREATE TABLE IF NOT EXISTS {database}.") && !strings.HasPrefix(first, "CREATE OR REPLACE VIEW {database}.") {
				t.Errorf("migration %d: %q cannot be repeated safely", m.version, first)
			}
			if !strings.Contains(first, "{on_cluster}") {
				t.Errorf("migration %d: %q is not for a cluster", m.version, first)
			}
			for _, forbidden := range []string{"now()", "now64(", "MATERIALIZED VIEW", "DEFAULT"} {
				if strings.Contains(s, forbidden) {
					t.Errorf("migration %d: %q holds %s", m.version, first, forbidden)
				}
			}
		}
	}
}

func TestRender(t *testing.T) {
	const text = "CREATE TABLE {database}.x {on_cluster} ENGINE = {engine}(v) SETTINGS {deduplication}"
	single := Config{Addr: []string{"h:9000"}}.withDefaults()
	if diff := cmp.Diff("CREATE TABLE callscope.x  ENGINE = ReplacingMergeTree(v) SETTINGS non_replicated_deduplication_window = 10000", single.render(text)); diff != "" {
		t.Error(diff)
	}
	single.Cluster = "main"
	if diff := cmp.Diff("CREATE TABLE callscope.x ON CLUSTER main ENGINE = ReplicatedReplacingMergeTree(v) SETTINGS replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800", single.render(text)); diff != "" {
		t.Error(diff)
	}
	for _, m := range migrations {
		for _, s := range m.statements {
			if rendered := single.render(s); regexp.MustCompile(`\{\w+\}`).MatchString(rendered) {
				t.Errorf("migration %d has an unknown placeholder:\n%s", m.version, rendered)
			}
		}
	}
}

// TestClusterForm holds every statement of a cluster's schema against a golden file, and shows that the same files make
// a single server's. Released migrations never change, so neither does what they made.
func TestClusterForm(t *testing.T) {
	for _, form := range []struct {
		file string
		cfg  Config
	}{
		{"cluster.golden.sql", Config{Cluster: "main", Retention: Retention{SamplesDays: 30, Apps: []AppRetention{{ID: "7", SamplesDays: 7}, {ID: "8", SamplesDays: -1}}}}},
		{"single.golden.sql", Config{}},
	} {
		cfg := form.cfg.withDefaults()
		var text strings.Builder
		statements := []string{cfg.render("CREATE DATABASE IF NOT EXISTS {database} {on_cluster}"), cfg.render(bookkeeping)}
		for _, m := range migrations {
			for _, statement := range m.statements {
				statements = append(statements, cfg.render(statement))
			}
		}
		for _, table := range slices.Sorted(maps.Keys(retentionOf)) {
			if ttl := cfg.Retention.ttl(table); ttl != "" {
				statements = append(statements, cfg.render("ALTER TABLE {database}."+table+" {on_cluster} MODIFY TTL "+ttl))
			}
		}
		statements = append(statements, cfg.roleStatements()...)
		for _, statement := range statements {
			// Columns are the same in both forms and held by other tests: the golden file has what differs.
			inColumns := false
			for line := range strings.SplitSeq(statement, "\n") {
				switch {
				case strings.HasPrefix(line, "--"):
				case line == "(":
					inColumns = true
				case line == ")":
					inColumns = false
				case strings.HasPrefix(line, "AS"), strings.HasPrefix(line, "COMMENT"):
					inColumns = strings.HasPrefix(line, "AS") // of a view: the query
				case !inColumns:
					text.WriteString(line + "\n")
				}
			}
			text.WriteString(";\n")
		}
		if cfg.Cluster != "" {
			for line := range strings.SplitSeq(text.String(), "\n") {
				for _, first := range []string{"CREATE ", "ALTER ", "GRANT "} {
					if strings.HasPrefix(line, first) && !strings.Contains(line, "ON CLUSTER main") {
						t.Errorf("not on the cluster: %s", line)
					}
				}
			}
		}
		goldenText(t, filepath.Join("testdata", form.file), text.String())
	}
	for name := range tables {
		if _, ok := retentionOf[name]; !ok {
			t.Errorf("table %s has no retention", name)
		}
	}
}

func goldenText(t *testing.T, path, got string) {
	t.Helper()
	if os.Getenv("UPDATE_GOLDEN") == "1" {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("%s is not what it should be (UPDATE_GOLDEN=1 writes it; -file +now):\n%s", path, diff)
	}
}

func TestReadMigrations(t *testing.T) {
	files := fstest.MapFS{
		"migrations/0001_a.sql": {Data: []byte("-- Why; because.\nSELECT ';' -- ;\n;\n\n;\nSELECT\n  2\n;\n")},
		"migrations/0002_b.sql": {Data: []byte("SELECT 3\n;\n")},
	}
	list, err := readMigrations(files)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	for _, m := range list {
		got[m.name] = m.statements
	}
	if diff := cmp.Diff(map[string][]string{"a": {"-- Why; because.\nSELECT ';' -- ;", "SELECT\n  2"}, "b": {"SELECT 3"}}, got); diff != "" {
		t.Error(diff)
	}
	for name, wrong := range map[string]string{"a gap": "migrations/0004_c.sql", "a bad name": "migrations/3-c.sql"} {
		more := maps.Clone(files)
		more[wrong] = &fstest.MapFile{Data: []byte("SELECT 1")}
		if _, err := readMigrations(more); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func TestValidate(t *testing.T) {
	good := Config{Addr: []string{"a:8123", "b:8443"}}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	if p := good.withDefaults().Protocol; p != ProtocolHTTP {
		t.Errorf("protocol by port is %s", p)
	}
	if p := (Config{Addr: []string{"a:9000"}}).withDefaults().Protocol; p != ProtocolNative {
		t.Errorf("protocol by port is %s", p)
	}
	err := Config{Addr: []string{"nohost"}, Protocol: "grpc", Database: "a; DROP", Cluster: "x y", Compression: "br",
		MaxOpenConns: -1, DialTimeout: 1, InsertTimeout: 1, TLS: TLSConfig{CAFile: "x"}}.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	var keys []string
	for line := range strings.SplitSeq(err.Error(), "\n") {
		key, _, _ := strings.Cut(line, ": ")
		keys = append(keys, strings.TrimPrefix(key, "clickhouse."))
	}
	slices.Sort(keys)
	want := []string{"addr", "cluster", "compression", "database", "dial_timeout", "insert_timeout", "max_open_conns", "protocol", "tls.enabled"}
	if diff := cmp.Diff(want, keys); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
}

// TestLongStatements: the driver cuts a statement off after its ReadTimeout, whatever the server is doing.
func TestLongStatements(t *testing.T) {
	for _, protocol := range []string{ProtocolNative, ProtocolHTTP} {
		o, err := Config{Addr: []string{"h:1"}, Protocol: protocol}.withDefaults().options()
		if err != nil {
			t.Fatal(err)
		}
		if o.ReadTimeout < 12*time.Hour {
			t.Errorf("%s: a statement may take %s, which is less than an erasure may", protocol, o.ReadTimeout)
		}
	}
}
