// Package dumps imports dumps of browsers and of rtcstats into a running callscope with the real binary, and compares
// the rows with its own, naive reading of the same files. Of callscope's code it uses what writes and watches the log.
package dumps

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/callscope/callscope/internal/stream"
	"github.com/callscope/callscope/test/chaintest"
)

func TestMain(m *testing.M) { os.Exit(chaintest.Main(m)) }

const (
	appID    = "123456789"
	beginMs  = 1_790_000_000_000 // of the files in internal/dumps/testdata
	testdata = "../../internal/dumps/testdata"
)

var (
	epochs = regexp.MustCompile(`\b1790\d{9}\b`)
	zulus  = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z`)
	locals = regexp.MustCompile(`\d{1,2}/\d{1,2}/\d{4}, \d{1,2}:\d\d:\d\d [AP]M`)
)

// moved writes a dump of the test data as if the call had been so much later.
func moved(t *testing.T, dir, name string, later time.Duration) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(testdata, name))
	if err != nil {
		t.Fatal(err)
	}
	text := epochs.ReplaceAllStringFunc(string(data), func(s string) string {
		ms, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return strconv.FormatInt(ms+later.Milliseconds(), 10)
	})
	for _, format := range []struct {
		re     *regexp.Regexp
		layout string
	}{{zulus, "2006-01-02T15:04:05.000Z"}, {locals, "1/2/2006, 3:04:05 PM"}} {
		text = format.re.ReplaceAllStringFunc(text, func(s string) string {
			at, err := time.Parse(format.layout, s)
			if err != nil {
				t.Fatal(err)
			}
			return at.Add(later).Format(format.layout)
		})
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// chain is one `callscope all`.
type chain struct {
	gateway, engine string
	flags           []string
	client          *stream.Client // nil where the chain has its own broker
}

func start(t *testing.T) *chain {
	t.Helper()
	c := &chain{gateway: chaintest.FreeAddress(t), engine: chaintest.FreeAddress(t)}
	dir, admin := t.TempDir(), chaintest.FreeAddress(t)
	config := filepath.Join(dir, "callscope.yaml")
	text := fmt.Sprintf("apps: [{id: %q, name: test, secrets: [a secret of the test alone]}]\ngateway: {addr: %q}\nadmin: {addr: %q}\nkafka: {embedded_addr: %q}\nclickhouse: {embedded_addr: %q}\n",
		appID, c.gateway, admin, chaintest.FreeAddress(t), c.engine)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c.flags = []string{"--config", config, "--data", filepath.Join(dir, "data")}
	p := chaintest.Start(t, "callscope all", append([]string{"all", "--log-level", "warn"}, c.flags...)...)
	chaintest.Ready(t, p, admin)
	return c
}

// run runs a command and returns what it printed and its exit code.
func run(t *testing.T, stdin []byte, args ...string) (out string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), chaintest.Binary, args...)
	cmd.Stdin = bytes.NewReader(stdin)
	text, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("running callscope %v: %v", args, err)
	}
	return string(text), cmd.ProcessState.ExitCode()
}

func (c *chain) importDump(t *testing.T, wantCode int, args ...string) string {
	t.Helper()
	out, code := run(t, nil, append(append([]string{"import-dump", "--app", appID}, c.flags...), args...)...)
	if code != wantCode {
		t.Fatalf("import-dump %v: exit code %d, want %d:\n%s", args, code, wantCode, out)
	}
	return out
}

// ended waits until the conference is final.
func (c *chain) ended(t *testing.T, conference string) {
	t.Helper()
	chaintest.Eventually(t, 2*time.Minute, conference+" is over", func() string {
		a, err := chaintest.Query(c.engine, "SELECT state FROM conferences WHERE conference_id = '"+conference+"'")
		if err != nil {
			return err.Error()
		}
		if rows := a.Records(); len(rows) != 1 || rows[0].Text("state") != "final" {
			return fmt.Sprint(rows)
		}
		return ""
	})
}

// expected is what a dump says of one participant, read the simplest way there is.
type expected struct {
	Fabrics map[string]fabric
	Samples map[string]int // by "direction ssrc"
}

type fabric struct {
	Outcome    string
	SetupMs    float64 // -1 for none
	FailureFn  string
	FailureMs  float64 // -1 for none
	Disruption float64
}

// readInternals reads a dump of chrome://webrtc-internals whose times are epoch milliseconds.
func readInternals(t *testing.T, path string) expected {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var dump struct {
		PeerConnections map[string]struct {
			UpdateLog []struct{ Time, Type, Value string } `json:"updateLog"`
			Stats     map[string]struct{ StatsType, Values string }
		}
	}
	if err := json.Unmarshal(data, &dump); err != nil {
		t.Fatal(err)
	}
	out := expected{map[string]fabric{}, map[string]int{}}
	for id, pc := range dump.PeerConnections {
		f := fabric{Outcome: "aborted", SetupMs: -1, FailureMs: -1}
		first, broken := -1.0, 0.0
		for _, u := range pc.UpdateLog {
			at, err := strconv.ParseFloat(u.Time, 64)
			if err != nil {
				t.Fatal(err)
			}
			if first < 0 {
				first = at
			}
			if u.Type != "iceconnectionstatechange" {
				continue
			}
			switch {
			case u.Value == "connected" && f.SetupMs < 0:
				f.SetupMs, f.Outcome = at-first, "setup"
			case u.Value == "connected":
				f.Disruption += at - broken
			case u.Value == "disconnected":
				broken = at
			}
		}
		out.Fabrics[id] = f
		for name, series := range pc.Stats {
			if strings.HasSuffix(name, "-ssrc") {
				var values []int64
				if err := json.Unmarshal([]byte(series.Values), &values); err != nil {
					t.Fatal(err)
				}
				out.Samples[strings.TrimSuffix(series.StatsType, "-rtp")+" "+strconv.FormatInt(values[0], 10)] = len(values)
			}
		}
	}
	return out
}

// rows is what the views say of one participant.
func (c *chain) rows(t *testing.T, conference, user string) expected {
	t.Helper()
	where := " WHERE conference_id = '" + conference + "' AND user_id = '" + user + "'"
	out := expected{map[string]fabric{}, map[string]int{}}
	number := func(r chaintest.Record, column string) float64 {
		if n, ok := r.Number(column); ok {
			return n
		}
		return -1
	}
	for _, r := range chaintest.MustQuery(t, c.engine, "SELECT connection_id, outcome, setup_delay_ms, failure_function, failure_delay_ms, disruption_ms FROM fabrics"+where).Records() {
		out.Fabrics[r.Text("connection_id")] = fabric{r.Text("outcome"), number(r, "setup_delay_ms"), r.Text("failure_function"), number(r, "failure_delay_ms"), number(r, "disruption_ms")}
	}
	for _, r := range chaintest.MustQuery(t, c.engine, "SELECT direction, ssrc, toUInt32(count()) AS n FROM samples"+where+" GROUP BY direction, ssrc").Records() {
		out.Samples[r.Text("direction")+" "+r.Text("ssrc")] = int(number(r, "n"))
	}
	return out
}

// everything is all visible rows, to compare.
func (c *chain) everything(t *testing.T) map[string][][]any {
	t.Helper()
	all := map[string][][]any{}
	for _, view := range []string{"conferences", "participants", "fabrics", "streams", "samples", "events", "failures"} {
		all[view] = chaintest.MustQuery(t, c.engine, "SELECT * FROM "+view+" WHERE app_id = '"+appID+"' ORDER BY ALL").Rows
		if len(all[view]) == 0 {
			t.Fatalf("%s is empty", view)
		}
	}
	return all
}

func TestImportedDumpsBecomeRows(t *testing.T) {
	c := start(t)
	dir := t.TempDir()
	// Whole days, so that the zone of the old layout stays.
	later := time.Since(time.UnixMilli(beginMs)).Truncate(24*time.Hour) - 48*time.Hour
	alice, bob := moved(t, dir, "internals-new-alice.json", later), moved(t, dir, "internals-new-bob.json", later)
	old, jitsi, third := moved(t, dir, "internals-old.json", later), moved(t, dir, "rtcstats-2-jitsi.jsonl", later), moved(t, dir, "rtcstats-3.jsonl", later)

	standup := []string{alice, bob, "--conference", "standup", "--user", "alice", "--user", "bob"}
	out := c.importDump(t, 0, standup...)
	for _, want := range []string{`conference "standup"`, `user "alice", 1 fabrics`, "records written", "callscope sql"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
	others := []string{old, jitsi, third}
	c.importDump(t, 0, others...)
	for _, conference := range []string{"standup", "internals-old", "rtcstats-2-jitsi", "rtcstats-3"} {
		c.ended(t, conference)
	}

	t.Run("both ends of a call", func(t *testing.T) {
		for user, file := range map[string]string{"alice": alice, "bob": bob} {
			if diff := cmp.Diff(readInternals(t, file), c.rows(t, "standup", user)); diff != "" {
				t.Errorf("%s: %s", user, diff)
			}
		}
		owners := map[string]string{}
		for _, r := range chaintest.MustQuery(t, c.engine, "SELECT user_id, direction, ssrc, owner_user_id, remote_id FROM streams WHERE conference_id = 'standup'").Records() {
			owners[r.Text("user_id")+" "+r.Text("direction")+" "+r.Text("ssrc")] = r.Text("owner_user_id") + " " + r.Text("remote_id")
		}
		// By hand: Alice sends 1001 and 1002, Bob 2001 and 2002, to each other.
		want := map[string]string{
			"alice outbound 1001": "alice bob", "alice outbound 1002": "alice bob", "alice inbound 2001": "bob bob", "alice inbound 2002": "bob bob",
			"bob outbound 2001": "bob alice", "bob outbound 2002": "bob alice", "bob inbound 1001": "alice alice", "bob inbound 1002": "alice alice",
		}
		if diff := cmp.Diff(want, owners); diff != "" {
			t.Error(diff)
		}
		r := chaintest.MustQuery(t, c.engine, "SELECT outcome, participants, fabrics, duration_ms, toUnixTimestamp64Milli(started_at) AS started FROM conferences WHERE conference_id = 'standup'").Records()[0]
		if n, _ := r.Number("duration_ms"); n != 7000 || r.Text("outcome") != "success" {
			t.Errorf("conference: %v", r)
		}
		if ms := fmt.Sprint(r["started"]); ms != fmt.Sprint(beginMs+later.Milliseconds()) && ms != fmt.Sprint(float64(beginMs+later.Milliseconds())) {
			t.Errorf("it started at %s, want %d", ms, beginMs+later.Milliseconds())
		}
	})
	t.Run("other formats", func(t *testing.T) {
		// By hand from the files.
		for _, tc := range []struct {
			conference, user string
			want             expected
		}{
			{"internals-old", "internals-old", expected{map[string]fabric{"11-1": {"dropped", 2000, "", -1, 0}}, map[string]int{"outbound 71": 5, "inbound 72": 4}}},
			{"rtcstats-2-jitsi", "c0ffee01", expected{
				map[string]fabric{"PC_0": {"failed", -1, "createOffer", 50, 0}, "PC_1": {"dropped", 370, "", -1, 3500}}, map[string]int{"outbound 601": 4, "inbound 501": 4},
			}},
			{"rtcstats-3", "dave", expected{
				map[string]fabric{"PC_7": {"failed", -1, "iceConnectionFailure", 15100, 0}, "PC_8": {"setup", 400, "", -1, 0}}, map[string]int{"inbound 901": 3},
			}},
		} {
			if diff := cmp.Diff(tc.want, c.rows(t, tc.conference, tc.user)); diff != "" {
				t.Errorf("%s: %s", tc.conference, diff)
			}
		}
		functions := fmt.Sprint(chaintest.MustQuery(t, c.engine, "SELECT conference_id, function, name FROM failures ORDER BY ALL").Rows)
		want := "[[internals-old getUserMedia NotAllowedError] [rtcstats-2-jitsi createOffer OperationError] [rtcstats-2-jitsi getUserMedia NotFoundError] [rtcstats-3 iceConnectionFailure ]]"
		if functions != want {
			t.Errorf("failures: %s, want %s", functions, want)
		}
		if names := chaintest.MustQuery(t, c.engine, "SELECT browser, client_version FROM participants WHERE user_id = 'c0ffee01'").Rows; fmt.Sprint(names) != "[[Firefox rtcstats-jitsi/2]]" {
			t.Errorf("participant: %v", names)
		}
	})
	t.Run("again", func(t *testing.T) {
		before := c.everything(t)
		for _, args := range [][]string{standup, others} {
			if out := c.importDump(t, 0, args...); strings.Contains(out, "records written") || !strings.Contains(out, "nothing was written") {
				t.Errorf("the same files again:\n%s", out)
			}
		}
		if diff := cmp.Diff(before, c.everything(t)); diff != "" {
			t.Error(diff)
		}
	})
	// Within the time that the enricher remembers uids, records that are there are dropped.
	visible := func() string {
		return fmt.Sprint(chaintest.MustQuery(t, c.engine, "SELECT * FROM fabrics WHERE conference_id = 'rtcstats-3' ORDER BY ALL").Rows,
			chaintest.MustQuery(t, c.engine, "SELECT * FROM events WHERE conference_id = 'rtcstats-3' ORDER BY ALL").Rows,
			chaintest.MustQuery(t, c.engine, "SELECT * FROM conferences WHERE conference_id = 'rtcstats-3' ORDER BY ALL").Rows)
	}
	first := visible()
	if out := c.importDump(t, 0, third, "--again"); !strings.Contains(out, "records written") {
		t.Error(out)
	}
	t.Run("a file more is another conference", func(t *testing.T) {
		c.importDump(t, 0, alice, "--conference", "standup", "--user", "alice")
		chaintest.Eventually(t, time.Minute, "two conferences", func() string {
			return cmp.Diff("[[1 final] [2 final]]", fmt.Sprint(chaintest.MustQuery(t, c.engine, "SELECT toUInt8(participants), state FROM conferences WHERE conference_id = 'standup' ORDER BY ALL").Rows))
		})
	})
	t.Run("an open conference is left alone", func(t *testing.T) {
		c.importDump(t, 0, alice, "--conference", "busy")
		chaintest.Eventually(t, time.Minute, "it is open", func() string {
			return cmp.Diff("[[partial]]", fmt.Sprint(chaintest.MustQuery(t, c.engine, "SELECT state FROM conferences WHERE conference_id = 'busy'").Rows))
		})
		if out := c.importDump(t, 1, bob, "--conference", "busy"); !strings.Contains(out, "is open") {
			t.Error(out)
		}
		c.ended(t, "busy")
	})
	if diff := cmp.Diff(first, visible()); diff != "" {
		t.Errorf("after --again: %s", diff)
	}
	t.Run("an app of the registry", func(t *testing.T) {
		if out, code := run(t, nil, append([]string{"apps", "create", "--id", "4711", "--no-secret", "--collect-sdp", "false"}, c.flags...)...); code != 0 {
			t.Fatal(out)
		}
		if out, code := run(t, nil, append([]string{"import-dump", jitsi, "--app", "4711"}, c.flags...)...); code != 0 {
			t.Fatal(out)
		}
		chaintest.Eventually(t, time.Minute, "its rows", func() string {
			return cmp.Diff("[[1 0]]", fmt.Sprint(chaintest.MustQuery(t, c.engine,
				"SELECT toUInt8(uniqExact(conference_uid)), toUInt8(countIf(event_type = 'sdpSubmissionEvent')) FROM events WHERE app_id = '4711'").Rows))
		})
		if out, code := run(t, nil, append([]string{"import-dump", jitsi, "--app", "4712"}, c.flags...)...); code != 1 || !strings.Contains(out, "apps create") {
			t.Errorf("an unknown app: %d\n%s", code, out)
		}
	})
}

func TestBadImports(t *testing.T) {
	dir := t.TempDir()
	alice := filepath.Join(testdata, "internals-new-alice.json")
	data, err := os.ReadFile(alice)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	half, foreign := file("half.json", string(data[:len(data)/2])), file("foreign.json", `{"a":1}`)
	same := file("same.json", string(data))
	future := file("future.json", epochs.ReplaceAllString(string(data), "3790000000000"))
	nobody := []string{"--set", "kafka.embedded_addr=127.0.0.1:1"}
	for _, tc := range []struct {
		name string
		args []string
		code int
		want []string
	}{
		{"no app", []string{alice}, 2, []string{"--app is missing"}},
		{"an app that is none", []string{alice, "--app", "me"}, 2, []string{"--app"}},
		{"no file", []string{"--app", appID}, 2, []string{"arg"}},
		{"a missing file", []string{filepath.Join(dir, "none.json"), "--app", appID}, 1, []string{"none.json", "nothing was written"}},
		{"every bad file is named", []string{half, foreign, "--app", appID}, 1, []string{"half.json", "not complete", "foreign.json", "PeerConnections", "nothing was written"}},
		{"every bad file of a conference is named", []string{alice, half, foreign, "--conference", "c", "--app", appID}, 1, []string{"half.json", "foreign.json", "nothing was written"}},
		{"bad files and no server", append([]string{alice, half, foreign, "--app", appID}, nobody...), 4, []string{"half.json", "foreign.json"}},
		{"one file twice", []string{alice, same, "--conference", "c", "--app", appID}, 1, []string{"same.json", "the same as"}},
		{"users for some", []string{alice, half, "--app", appID, "--user", "a"}, 2, []string{"--user is given 1 times for 2 files"}},
		{"standard input without a name", []string{"-", "--app", appID}, 2, []string{"--conference is missing"}},
		{"standard input twice", []string{"-", "-", "--conference", "c", "--app", appID}, 2, []string{"given twice"}},
		{"two calls of one name", []string{alice, filepath.Join(dir, "other", "internals-new-alice.json"), "--app", appID}, 2, []string{"would be one conference", "--conference"}},
		{"a conference id that is too long", []string{alice, "--conference", strings.Repeat("x", 300), "--app", appID}, 2, []string{"at most 256"}},
		{"a user called as the PeerConnection", []string{alice, "--user", "21-1", "--app", appID, "--dry-run"}, 1, []string{"another --user"}},
		{"a call that is yet to come", []string{future, "--app", appID, "--dry-run"}, 1, []string{"future.json", "yet to come"}},
		{"no server", append([]string{alice, "--app", appID}, nobody...), 4, nil},
	} {
		out, code := run(t, nil, append([]string{"import-dump"}, tc.args...)...)
		if code != tc.code {
			t.Errorf("%s: exit code %d, want %d:\n%s", tc.name, code, tc.code, out)
		}
		for _, want := range tc.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: %q is missing in\n%s", tc.name, want, out)
			}
		}
	}
}

func TestDryRun(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(testdata, "rtcstats-3.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	// 2026 may be yet to come.
	text := strings.ReplaceAll(string(data), "1790", "1690")
	out, code := run(t, []byte(text), "import-dump", "-", "--app", appID, "--conference", "it's", "--dry-run")
	if code != 0 || !strings.Contains(out, `conference "it's"`) || !strings.Contains(out, `rtcstats/3, user "dave", 2 fabrics`) || !strings.Contains(out, "would be written") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
}
