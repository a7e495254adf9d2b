// Package erase tests `callscope erase` from the outside: a user who was erased is nowhere to be found, whatever happens
// afterwards, and every count is what it was.
package erase

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/callscope/callscope/internal/embedded"
	"github.com/callscope/callscope/test/chaintest"
)

const app = "123456789"

// run runs one command of the binary to its end.
func run(t *testing.T, want int, args ...string) string {
	t.Helper()
	out, err := exec.Command(chaintest.Binary, args...).CombinedOutput()
	code := 0
	if exit, ok := err.(*exec.ExitError); ok { //nolint:errorlint // exec returns it as it is
		code = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if code != want {
		t.Fatalf("callscope %s: exit %d, want %d\n%s", strings.Join(args, " "), code, want, out)
	}
	return string(out)
}

// found tells in which columns of which tables and views a text is, with the number of rows. Old versions count too.
func found(t *testing.T, engine, text string) (hits []string, counts map[string]float64) {
	t.Helper()
	columns := map[string][]string{}
	for _, row := range chaintest.MustQuery(t, engine, "SELECT table, name FROM system.columns WHERE database = 'callscope' AND table != 'schema_migrations' AND type LIKE '%String%' ORDER BY table, name").Records() {
		columns[row.Text("table")] = append(columns[row.Text("table")], row.Text("name"))
	}
	if len(columns) < 20 {
		t.Fatalf("found %d tables and views only", len(columns))
	}
	counts = map[string]float64{}
	for table, names := range columns {
		selects := []string{"count() AS rows"}
		for _, name := range names {
			selects = append(selects, fmt.Sprintf("countIf(position(toString(%[1]s), '%[2]s') > 0) AS has_%[1]s", name, text))
		}
		row := chaintest.MustQuery(t, engine, "SELECT "+strings.Join(selects, ", ")+" FROM "+table).Records()[0]
		for _, name := range names {
			if n, _ := row.Number("has_" + name); n > 0 {
				hits = append(hits, fmt.Sprintf("%s.%s in %v rows", table, name, n))
			}
		}
		if !strings.HasSuffix(table, "_rows") {
			counts[table], _ = row.Number("rows")
		}
	}
	return hits, counts
}

// chain is one `callscope all --demo`.
type chain struct {
	settings                string // the file
	gateway, broker, engine string
}

func start(t *testing.T) chain {
	t.Helper()
	if _, err := embedded.FindLibrary(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir := t.TempDir()
	admin := chaintest.FreeAddress(t)
	c := chain{filepath.Join(dir, "settings.yaml"), chaintest.FreeAddress(t), chaintest.FreeAddress(t), chaintest.FreeAddress(t)}
	text := fmt.Sprintf("data_dir: %s\nkafka: {embedded_addr: %q}\nclickhouse: {embedded_addr: %q}\ngateway: {addr: %q}\nadmin: {addr: %q}\n",
		filepath.Join(dir, "data"), c.broker, c.engine, c.gateway, admin)
	if err := os.WriteFile(c.settings, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := chaintest.Start(t, "callscope all", "all", "--demo", "--config", c.settings)
	chaintest.Ready(t, p, admin)
	return c
}

// TestBinary plays a recorded call through the real binary, erases one of its users, and looks for him again after a late
// message, after tables are loaded anew from the topics, and in exported files.
func TestBinary(t *testing.T) {
	c := start(t)
	settings, gateway, engine := c.settings, c.gateway, c.engine

	run(t, 2, "erase", "--config", settings, "--app", app)
	run(t, 2, "erase", "--config", settings, "--app", "none", "--user", "alice")
	run(t, 1, "erase", "--config", settings, "--app", "4711", "--user", "alice")
	run(t, 4, "erase", "--config", settings, "--app", app, "--user", "alice", "--set", "clickhouse.addr="+chaintest.FreeAddress(t))

	run(t, 0, "play", "--config", settings, "--gateway", "http://"+gateway, "--speed", "0", "../captures/mesh3.jsonl")
	terminated := func(n float64) {
		t.Helper()
		chaintest.Eventually(t, time.Minute, "all events being stored", func() string {
			got, _ := chaintest.MustQuery(t, engine, "SELECT count() AS n FROM events WHERE event_type = 'fabricTerminated'").Records()[0].Number("n")
			if got != n {
				return fmt.Sprintf("%v fabricTerminated of %v", got, n)
			}
			return ""
		})
		// The conference's summaries come with ticks; no row of it may be on its way while rows are counted.
		chaintest.Eventually(t, time.Minute, "the call being over", func() string {
			a := chaintest.MustQuery(t, engine, "SELECT state FROM conferences WHERE state = 'final' OR state = 'revised'")
			if len(a.Rows) == 0 {
				return "no final summary"
			}
			return ""
		})
	}
	terminated(6)
	hits, before := found(t, engine, "alice")
	if len(hits) == 0 {
		t.Fatal("the call shows no alice")
	}

	dry := run(t, 0, "erase", "--config", settings, "--app", app, "--user", "alice", "--dry-run")
	if strings.Contains(dry, "alice") || !strings.Contains(dry, "dry run: nothing was changed") {
		t.Errorf("dry run:\n%s", dry)
	}
	if again, _ := found(t, engine, "alice"); len(again) != len(hits) {
		t.Errorf("a dry run changed rows: %v", again)
	}
	out := run(t, 0, "erase", "--config", settings, "--app", app, "--user", "alice", "--json")
	var receipt struct {
		AppID     string `json:"app_id"`
		Pseudonym string
		Rows      float64
		Complete  bool
		Remains   []struct {
			Where string
			Until *time.Time
		}
	}
	if err := json.Unmarshal([]byte(out), &receipt); err != nil {
		t.Fatalf("%v in\n%s", err, out)
	}
	if strings.Contains(out, "alice") || receipt.AppID != app || !receipt.Complete || receipt.Rows == 0 || !strings.HasPrefix(receipt.Pseudonym, "erased-") {
		t.Errorf("the receipt says\n%s", out)
	}
	if len(receipt.Remains) < 7 || receipt.Remains[0].Until == nil || receipt.Remains[0].Until.Before(time.Now().Add(168*time.Hour)) {
		t.Errorf("the receipt says of what remains: %+v", receipt.Remains)
	}

	gone := func(when string, want map[string]float64) {
		t.Helper()
		hits, counts := found(t, engine, "alice")
		if len(hits) > 0 {
			t.Errorf("%s: alice is in\n%s", when, strings.Join(hits, "\n"))
		}
		for view, n := range want {
			if counts[view] != n {
				t.Errorf("%s: %v rows in %s, were %v", when, counts[view], view, n)
			}
		}
		a := chaintest.MustQuery(t, engine, "SELECT uniqExact(user_id) AS users, countIf(user_id = '"+receipt.Pseudonym+"') AS his FROM participants").Records()[0]
		users, _ := a.Number("users")
		if his, _ := a.Number("his"); users != 3 || his != 1 {
			t.Errorf("%s: %v users, %v participants of the erased one", when, users, his)
		}
	}
	gone("after the erasure", before)

	late(t, "http://"+gateway)
	terminated(7)
	before["events"]++
	gone("after a late message", before)

	run(t, 0, "replay", "--config", settings, "--from-enriched")
	gone("after loading from the topics", nil)

	archive := filepath.Join(t.TempDir(), "archive")
	day := func(n int) string { return time.Now().UTC().AddDate(0, 0, n).Format(time.DateOnly) }
	run(t, 0, "export", "--config", settings, "--from", day(-1), "--to", day(1), "--dir", archive)
	run(t, 0, "replay", "--config", settings, "--from", day(-1), "--to", day(1), "--from-files", archive)
	run(t, 0, "replay", "--config", settings, "--from", day(-1), "--to", day(1))
	gone("after replays", nil)

	again := run(t, 0, "erase", "--config", settings, "--app", app, "--user", "alice")
	if !strings.Contains(again, receipt.Pseudonym) {
		t.Errorf("another erasure gives another pseudonym:\n%s", again)
	}
	gone("after another erasure", nil)
}

// late signs Alice in as the recording does and posts her last message again, with another text in it: it comes after the
// end of a call that she was in, and joins none.
func late(t *testing.T, gateway string) {
	t.Helper()
	recording, err := os.ReadFile("../captures/mesh3.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	type message struct{ Method, Path, Body string }
	var signIn, last message
	for _, line := range strings.Split(string(recording), "\n") {
		var m message
		if line == "" || json.Unmarshal([]byte(line), &m) != nil || m.Method != "POST" {
			continue
		}
		if m.Path == "/authenticate" && strings.Contains(m.Body, "alice") {
			signIn = m
		}
		if strings.HasSuffix(m.Path, "/fabric/terminated") && strings.Contains(m.Body, `"localID":"alice"`) {
			last = m
		}
	}
	post := func(m message, contentType, token string, answer any) {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, gateway+m.Path, strings.NewReader(m.Body))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", contentType)
		request.Header.Set("Origin", "https://app.example.test")
		if token != "" {
			request.Header.Set("Authorization", "Bearer "+token)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s %s %v", m.Path, response.Status, body, err)
		}
		if err := json.Unmarshal(body, answer); err != nil {
			t.Fatalf("%s answered %s: %v", m.Path, body, err)
		}
	}
	var access struct {
		Token string `json:"access_token"`
	}
	post(signIn, "application/x-www-form-urlencoded", "", &access)
	last.Body = strings.Replace(last.Body, `"eventType"`, `"note":"alice was here","eventType"`, 1)
	var status map[string]any
	post(last, "application/json", access.Token, &status)
}
