// Package queries holds the queries of docs/howto/queries.md against recorded calls, and measures what they cost on many.
package queries

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/callscope/callscope/test/chaintest"
)

func TestMain(m *testing.M) { os.Exit(chaintest.Main(m)) }

// question is one section of the document.
type question struct{ title, sql string }

var sectionRe = regexp.MustCompile("(?ms)^## ([^\n]+)\n.*?^```sql\n(.*?)^```$")

func questions(t testing.TB) []question {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "howto", "queries.md"))
	if err != nil {
		t.Fatal(err)
	}
	var all []question
	for _, m := range sectionRe.FindAllStringSubmatch(string(text), -1) {
		all = append(all, question{m[1], strings.TrimSpace(m[2])})
	}
	if headings := strings.Count(string(text), "\n## "); headings != len(all) || len(all) < 25 {
		t.Fatalf("%d headings and %d queries in the document, want as many and at least 25", headings, len(all))
	}
	return all
}

// recordings are all captures that hold a call.
var recordings = []string{
	"two-users-hs256", "mesh3", "failed-setup", "two-users-default-config", "rn-3.24.6-wss", "rn-3.52.0-wss",
	"es256-token-generator", "event-errors", "join-fails", "no-submission-interval", "precall", "proxy-config",
}

// expectation is a file of test/expected: what the rules give for a recording, by programs that share nothing with
// callscope.
type expectation struct {
	Conferences []struct {
		ConferenceID string `json:"conference_id"`
		Participants []struct {
			User      string `json:"user"`
			Joins     int    `json:"joins"`
			Intervals []struct {
				LeftReason string `json:"left_reason"`
			} `json:"intervals"`
		} `json:"participants"`
		Fabrics []struct {
			User                   string   `json:"user"`
			Remote                 string   `json:"remote"`
			ConnectionID           string   `json:"connection_id"`
			Outcome                string   `json:"outcome"`
			SetupDelayMs           *float64 `json:"setup_delay_ms"`
			DelaySource            *string  `json:"delay_source"`
			IceGatheringDelayMs    *float64 `json:"ice_gathering_delay_ms"`
			IceConnectivityDelayMs *float64 `json:"ice_connectivity_delay_ms"`
			FailureReason          *string  `json:"failure_reason"`
			Disruptions            float64  `json:"disruptions"`
		} `json:"fabrics"`
	} `json:"conferences"`
	Events  map[string]int `json:"events"`
	Streams []struct {
		Direction string `json:"direction"`
		Owner     string `json:"owner"`
	} `json:"streams"`
	Feedback []struct {
		User    string   `json:"user"`
		Overall *float64 `json:"overall"`
		Comment *string  `json:"comment"`
	} `json:"feedback"`
	Failures []struct {
		User     string  `json:"user"`
		Function string  `json:"function"`
		Reason   string  `json:"reason"`
		IsLog    bool    `json:"is_log"`
		Message  string  `json:"message"`
		Name     *string `json:"name"`
	} `json:"failures"`
	PrecallWithoutConference int `json:"precall_without_conference"`
}

// world is what the answers are held against: the expectations, and the rows of the views as they are. test/e2e holds
// those against the recordings; here they are put together again without SQL.
type world struct {
	day   string // of the calls, UTC
	want  map[string]expectation
	views map[string][]chaintest.Record
}

func (w world) all(view string, keep func(chaintest.Record) bool) []chaintest.Record {
	var kept []chaintest.Record
	for _, r := range w.views[view] {
		if keep == nil || keep(r) {
			kept = append(kept, r)
		}
	}
	return kept
}

// ranAWhole keeps a run of the test within one UTC day.
const ranAWhole = 10 * time.Minute

// TestQuestions plays every recording once and asks every question of the document.
func TestQuestions(t *testing.T) {
	if left := time.Until(time.Now().UTC().Truncate(24 * time.Hour).Add(24 * time.Hour)); left < ranAWhole {
		t.Logf("it is shortly before midnight UTC: waiting for %s, because the questions are about days", left)
		<-time.After(left + time.Second)
	}
	asked := questions(t)
	dir := t.TempDir()
	gateway, engine, admin := chaintest.FreeAddress(t), chaintest.FreeAddress(t), chaintest.FreeAddress(t)
	chain := chaintest.Start(t, "callscope all", "all", "--demo", "--data", dir, "--log-level", "warn", "--set", "gateway.addr="+gateway,
		"--set", "admin.addr="+admin, "--set", "kafka.embedded_addr="+chaintest.FreeAddress(t), "--set", "clickhouse.embedded_addr="+engine)
	chaintest.Ready(t, chain, admin)

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var players sync.WaitGroup
	for _, capture := range recordings {
		players.Go(func() {
			out, err := exec.CommandContext(ctx, chaintest.Binary, "play", filepath.Join("..", "captures", capture+".jsonl"), "--gateway", "http://"+gateway).CombinedOutput()
			if err != nil {
				t.Errorf("callscope play %s: %v\n%s", capture, err, out)
			}
		})
	}
	// While the calls go on, somebody is in them.
	now := asked[slices.IndexFunc(asked, func(q question) bool { return q.title == "Who is in a call right now?" })]
	chaintest.Eventually(t, 2*time.Minute, now.title, func() string {
		a, err := chaintest.Query(engine, now.sql)
		if err != nil {
			return err.Error()
		}
		var present []string
		for _, r := range a.Records() {
			if r.Text("conference_id") == "Demo room / 1" {
				present = append(present, r.Text("user_id"))
			}
		}
		if fmt.Sprint(present) != "[alice@example.test bob@example.test]" {
			return fmt.Sprintf("in the call are %v", present)
		}
		return ""
	})
	players.Wait()
	chaintest.Eventually(t, 3*time.Minute, "the calls ending", func() string {
		a, err := chaintest.Query(engine, "SELECT countIf(state IN ('final', 'revised')) AS n FROM conferences")
		if err != nil {
			return err.Error()
		}
		if n := a.Rows[0][0].(float64); int(n) != len(recordings) {
			return fmt.Sprintf("%v of %d have ended", n, len(recordings))
		}
		return ""
	})

	w := world{want: map[string]expectation{}, views: map[string][]chaintest.Record{}}
	for _, capture := range recordings {
		text, err := os.ReadFile(filepath.Join("..", "expected", capture+".json"))
		if err != nil {
			t.Fatal(err)
		}
		var e expectation
		if err := json.Unmarshal(text, &e); err != nil {
			t.Fatal(err)
		}
		w.want[capture] = e
	}
	for _, view := range []string{"conferences", "participants", "fabrics", "streams", "samples", "events", "feedback", "failures", "precall_tests"} {
		w.views[view] = chaintest.MustQuery(t, engine, "SELECT * FROM "+view).Records()
	}
	w.day = w.views["conferences"][0].Text("started_at")[:10]

	// The questions are asked on the day after the calls.
	days := strings.NewReplacer("yesterday()", "toDate('"+w.day+"')", "today()", "(toDate('"+w.day+"') + 1)")
	checked := map[string]bool{}
	for _, q := range asked {
		t.Run(q.title, func(t *testing.T) {
			answer := chaintest.MustQuery(t, engine, days.Replace(q.sql))
			check, ok := checks[q.title]
			if !ok {
				t.Fatal("nothing is known about the right answer: add it to checks")
			}
			checked[q.title] = true
			same(t, check(w), answer.Rows)
		})
	}
	for title := range checks {
		if !checked[title] {
			t.Errorf("the document does not ask %q any more", title)
		}
	}
}

// near is a number that was rounded to some decimals.
type near struct {
	value    float64
	decimals int
}

func same(t *testing.T, want, got [][]any) {
	t.Helper()
	if len(want) == 0 {
		t.Logf("the right answer has no rows")
	}
	if len(want) != len(got) {
		t.Errorf("%d rows, want %d\ngot:  %v\nwant: %v", len(got), len(want), got, want)
		return
	}
	for i := range want {
		if len(want[i]) != len(got[i]) {
			t.Errorf("row %d has %d columns, want %d: %v", i, len(got[i]), len(want[i]), got[i])
			continue
		}
		for k := range want[i] {
			if !equal(want[i][k], got[i][k]) {
				t.Errorf("row %d, column %d is %v, want %v\ngot:  %v\nwant: %v", i, k, got[i][k], want[i][k], got[i], want[i])
			}
		}
	}
}

func equal(want, got any) bool {
	switch want := want.(type) {
	case anything:
		return got != nil
	case near:
		n, ok := got.(float64)
		return ok && math.Abs(n-want.value) <= 0.51*math.Pow10(-want.decimals)
	case float64:
		n, ok := got.(float64)
		return ok && math.Abs(n-want) <= 1e-6*max(1, math.Abs(want))
	case int:
		n, ok := got.(float64)
		return ok && n == float64(want)
	case []any:
		list, ok := got.([]any)
		return ok && fmt.Sprint(want) == fmt.Sprint(list)
	default:
		return want == got
	}
}

// anything is a value that is only known not to be NULL.
type anything struct{}
