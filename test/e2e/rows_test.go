package e2e

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/callscope/callscope/test/chaintest"
)

// row is one row of a public view, as ClickHouse's JSONEachRow gives it.
type row map[string]any

func (r row) text(column string) string {
	switch v := r[column].(type) {
	case nil:
		return ""
	case string:
		return v
	default:
		return fmt.Sprint(v)
	}
}

func (r row) number(column string) *float64 {
	if v, ok := r[column].(float64); ok {
		return &v
	}
	return nil
}

// millis reads a DateTime64(3,'UTC') column as epoch milliseconds.
func (r row) millis(t *testing.T, column string) float64 {
	t.Helper()
	at, err := time.Parse("2006-01-02 15:04:05.000", r.text(column))
	if err != nil {
		t.Fatalf("column %s: %v", column, err)
	}
	return float64(at.UnixMilli())
}

// query runs one statement over the engine's HTTP interface, with nothing of
// callscope in between.
func query(engine, sql string) ([]row, error) {
	answer, err := chaintest.Query(engine, sql)
	if err != nil {
		return nil, err
	}
	var rows []row
	for _, r := range answer.Records() {
		rows = append(rows, row(r))
	}
	return rows, nil
}

func mustQuery(t *testing.T, engine, sql string) []row {
	t.Helper()
	rows, err := query(engine, sql)
	if err != nil {
		t.Fatalf("querying %s: %v", sql, err)
	}
	return rows
}

func quote(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

// views are the public views that hold one call.
var views = []string{"conferences", "participants", "fabrics", "streams", "samples", "fabric_samples", "events", "feedback", "failures"}

// differing are columns that come from the gateway's clock or from the order in
// which the messages of different clients arrive, so that they differ between
// two runs of the same recording. A video score is of the second kind: what the
// sender's camera gives is known from the report of the sender, which may come
// before or after that of the viewer.
var differing = []string{"duration_ms", "presence_ms", "participant_minutes", "media_participant_minutes", "revision",
	"first_raw_offset", "last_raw_offset", "muted_ms", "paused_ms", "shared_ms", "dominant_ms", "talk_ms", "score_reasons"}

var (
	moment = regexp.MustCompile(`^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`)
	perRun = regexp.MustCompile(`\b1[78]\d{11}(\.\d+)?\b|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+|[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}`)
)

// comparable renders what a view says of a conference so that two runs of the
// same recording give the same text: in any order, without identities and
// times, and with moments inside JSON texts blanked.
func comparable(t *testing.T, engine, view, conferenceID string) []string {
	t.Helper()
	rows := mustQuery(t, engine, fmt.Sprintf("SELECT * FROM %s WHERE conference_id = %s", view, quote(conferenceID)))
	var out []string
	for _, r := range rows {
		columns := make([]string, 0, len(r))
		for column, value := range r {
			if strings.HasSuffix(column, "_uid") || strings.HasPrefix(column, "video_score") || slices.Contains(differing, column) || moment.MatchString(r.text(column)) {
				continue
			}
			if number, ok := value.(float64); ok {
				value = math.Round(number*100) / 100
			}
			columns = append(columns, fmt.Sprintf("%s=%v", column, value))
		}
		slices.Sort(columns)
		out = append(out, perRun.ReplaceAllString(strings.Join(columns, " "), "*"))
	}
	slices.Sort(out)
	return out
}
