package store_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/store/storetest"
)

//go:generate env UPDATE_GOLDEN=1 go test -count=1 -run ^TestSQLReference$ .

// views in the order in which a reader needs them, with the column that says when and the one that counts the age of a
// row for retention.
var viewOrder = []struct{ name, time, retention string }{
	{"conferences", "started_at", "summaries_days"},
	{"participants", "joined_at", "summaries_days"},
	{"participants_named", "joined_at", "names_days"},
	{"fabrics", "started_at", "summaries_days"},
	{"streams", "started_at", "summaries_days"},
	{"samples", "time", "samples_days"},
	{"fabric_samples", "time", "samples_days"},
	{"events", "time", "events_days"},
	{"failures", "time", "failures_days"},
	{"feedback", "time", "feedback_days"},
	{"precall_tests", "time", "precall_days"},
	{"apps_usage", "day", "summaries_days"},
}

const referenceHead = `# SQL reference

Generated from the schema (` + "`go generate ./internal/store`" + `): do not edit.

Everything below is in the ClickHouse database ` + "`callscope`" + ` (setting ` + "`clickhouse.database`" + `). The views are the public
interface: they only grow, so a query written today works next year. The tables behind them (` + "`…_rows`" + `) are not part of it.

- A view shows each thing once, and of a summary the newest revision only. Add no ` + "`FINAL`" + ` and no ` + "`DISTINCT`" + `.
- Times are ` + "`DateTime64(3, 'UTC')`" + `. Ids are text as the customer gave it, byte by byte; a ` + "`_uid`" + ` is made by callscope.
- Unknown is NULL, never 0. Ratios are 0 to 1. Aggregates of ClickHouse leave NULL out.
- ` + "`state`" + ` of a summary is ` + "`partial`" + ` while the call goes on, then ` + "`final`" + `; ` + "`revised`" + ` when something came late.
- To find one conference give its ` + "`conference_uid`" + ` or its ` + "`conference_id`" + `, with ` + "`app_id`" + ` where you know it. To find a time
  give a range of the view's time column: both are indexed.
- A measure with percentiles has the columns ` + "`x`" + ` (mean), ` + "`x_min`, `x_p10`, `x_median`, `x_p90`, `x_max`" + ` and
  ` + "`x_share_below`" + `, the share of the measured time in which the value was below its threshold: 3.5 for ` + "`audio_mos`" + `, 3 for
  ` + "`video_score`" + `, 0.05 for loss, 100 for jitter, 300 for round-trip times. Of scores that is the bad share, of the others the
  share that was not bad. Bitrates have no threshold, and theirs is always NULL.
- Roles: ` + "`callscope_analyst`" + ` reads every view but ` + "`participants_named`" + `; ` + "`callscope_support`" + ` reads that one too.

Questions with their queries: [howto/queries.md](../howto/queries.md).
`

// TestSQLReference keeps docs/reference/sql.md what the schema says.
func TestSQLReference(t *testing.T) {
	s := storetest.Engine(t)
	var text strings.Builder
	text.WriteString(referenceHead)
	var inSchema []string
	for _, row := range storetest.Query(t, s, "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine = 'View' ORDER BY name") {
		inSchema = append(inSchema, row[0].(string))
	}
	var described []string
	for _, view := range viewOrder {
		described = append(described, view.name)
		comment := storetest.Query(t, s, "SELECT comment FROM system.tables WHERE database = currentDatabase() AND name = '"+view.name+"'")[0][0]
		fmt.Fprintf(&text, "\n## %s\n\n%s Time column: `%s`. Kept as long as %s says.\n\n| column | type | unit | what it is |\n|---|---|---|---|\n",
			view.name, comment, view.time, "`clickhouse.retention."+view.retention+"`")
		found := false
		for _, row := range storetest.Query(t, s, "SELECT name, type, comment FROM system.columns WHERE database = currentDatabase() AND table = '"+view.name+"' ORDER BY position") {
			name, typ, comment := row[0].(string), row[1].(string), row[2].(string)
			unit, what, ok := strings.Cut(comment, ". ")
			if !ok {
				unit, what = "", comment
			}
			found = found || name == view.time
			fmt.Fprintf(&text, "| `%s` | %s | %s | %s |\n", name, strings.ReplaceAll(typ, "|", `\|`), cell(unit), cell(what))
		}
		if !found {
			t.Errorf("view %s has no column %s", view.name, view.time)
		}
	}
	for _, name := range inSchema {
		if !strings.Contains(" "+strings.Join(described, " ")+" ", " "+name+" ") {
			t.Errorf("view %s is not in the reference: add it to viewOrder", name)
		}
	}
	path := filepath.Join("..", "..", "docs", "reference", "sql.md")
	if os.Getenv("UPDATE_GOLDEN") == "1" {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(text.String(), "\n")); diff != "" {
		t.Errorf("docs/reference/sql.md is not what the schema says: run `go generate ./internal/store` (-file +schema):\n%s", diff)
	}
}

func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }

// TestEveryStatementParses gives the statements of both forms to the engine's parser: a cluster is not at hand.
func TestEveryStatementParses(t *testing.T) {
	s := storetest.Engine(t)
	n := 0
	kept := store.Retention{SummariesDays: 700, SamplesDays: 30, Apps: []store.AppRetention{{ID: "7", SamplesDays: 7, EventsDays: 3}, {ID: "8", SamplesDays: -1}}}
	for _, cfg := range []store.Config{{}, {Retention: kept}, {Cluster: "main", Retention: kept}} {
		for _, statement := range store.SchemaStatements(cfg) {
			storetest.Exec(t, s, "EXPLAIN AST "+statement)
			n++
		}
	}
	if n < 3*29 {
		t.Errorf("only %d statements", n)
	}
}
