package app

import (
	"errors"
	"flag"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/stream"
)

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func rowsOf(rows [][]any, last error) rowSeq {
	return func(yield func([]any, error) bool) {
		for _, r := range rows {
			if !yield(r, nil) {
				return
			}
		}
		if last != nil {
			yield(nil, last)
		}
	}
}

var resultColumns = []store.Column{
	{Name: "conference_id", Type: "String"},
	{Name: "at", Type: "DateTime64(3, 'UTC')"},
	{Name: "left_at", Type: "Nullable(DateTime64(3, 'UTC'))"},
	{Name: "second", Type: "DateTime('UTC')"},
	{Name: "day", Type: "Date"},
	{Name: "loss", Type: "Nullable(Float64)"},
	{Name: "bytes", Type: "UInt64"},
	{Name: "uid", Type: "UUID"},
	{Name: "marks", Type: "Array(UInt8)"},
	{Name: "times", Type: "Array(DateTime64(3, 'UTC'))"},
	{Name: "tags", Type: "Map(String, Int64)"},
	{Name: "ok", Type: "Bool"},
}

func resultRows() [][]any {
	at := time.Date(2026, 11, 24, 13, 5, 9, 120_000_000, time.FixedZone("east", 3600))
	uid := uuid.MustParse("0192f0c1-2b3c-7d4e-8f50-112233445566")
	return [][]any{
		{"Demo room / 1", at, nil, at, at, 0.1, uint64(math.MaxUint64), uid, []uint8{1, 2}, []time.Time{at}, map[string]int64{"b": 2, "a": 1}, true},
		{"Konferenz “ü”\n会議\ttab, \"quoted\" <&>", at, at.Add(time.Millisecond), at, at, nil, uint64(0), uid, []uint8{}, []time.Time{}, map[string]int64{}, false},
		{"", at, nil, at, at, math.NaN(), uint64(7), uid, []uint8{255}, []time.Time{at, at}, map[string]int64{"x": -1}, true},
		{`\N`, at, nil, at, at, 1e21, uint64(7), uid, []uint8{}, []time.Time{}, map[string]int64{}, true},
	}
}

func TestSQLOutput(t *testing.T) {
	for _, output := range []string{"table", "json", "ndjson", "csv"} {
		t.Run(output, func(t *testing.T) {
			for name, rows := range map[string][][]any{"rows": resultRows(), "empty": nil} {
				var b strings.Builder
				if err := writeRows(&b, output, resultColumns, rowsOf(rows, nil)); err != nil {
					t.Fatal(err)
				}
				golden(t, "sql-"+name+"."+output, b.String())
			}
			var b strings.Builder
			if err := writeRows(&b, output, nil, rowsOf(nil, nil)); err != nil || b.Len() > 0 {
				t.Errorf("a statement without columns: %v, %q", err, b.String())
			}
			broken := errors.New("connection lost")
			for _, columns := range [][]store.Column{resultColumns, nil} {
				if err := writeRows(&b, output, columns, rowsOf(nil, broken)); !errors.Is(err, broken) {
					t.Errorf("got %v", err)
				}
			}
		})
	}
}

func TestServerError(t *testing.T) {
	got := serverError(errors.New("querying: sendQuery: [HTTP 500] code: 47, message: Unknown identifier `nope`\nin scope"))
	same(t, "server's", got, "ClickHouse answered with error 47: Unknown identifier `nope`\nin scope")
	same(t, "other", serverError(errors.New("EOF")), "EOF")
	if serverError(nil) != nil {
		t.Error("no error became one")
	}
}

func TestLagOutput(t *testing.T) {
	now := time.Date(2026, 11, 24, 13, 0, 10, 0, time.UTC)
	list := []groupLag{
		newGroupLag("callscope-enricher", []stream.PartitionLag{
			{Topic: "callscope.raw.v1", Partition: 0, Committed: 90, End: 100, Lag: 10, BehindSince: now.Add(-2500 * time.Millisecond)},
			{Topic: "callscope.raw.v1", Partition: 1, Committed: 0, End: 0},
			{Topic: "callscope.raw.v1", Partition: 2, Committed: 5, End: 7, Lag: 2, BehindSince: now.Add(time.Minute)},
		}, now),
		newGroupLag("callscope-sink", []stream.PartitionLag{{Topic: "callscope.enriched.v1", Committed: -1, End: 12345, Lag: 12345, BehindSince: now.Add(-time.Hour)}}, now),
		newGroupLag("callscope-none", nil, now),
	}
	var text, json strings.Builder
	if err := errors.Join(writeLagTable(&text, list), writeLagJSON(&json, list)); err != nil {
		t.Fatal(err)
	}
	golden(t, "lag.table", text.String())
	golden(t, "lag.json", json.String())
}

func TestBuildOutput(t *testing.T) {
	var b strings.Builder
	err := build{Version: "v1.2.3", Revision: "abc+changes", Time: "2026-11-24T13:00:00Z", GoVersion: "go1.26.0", Platform: "linux/amd64"}.write(&b)
	if want := "callscope v1.2.3\n  revision abc+changes\n  of 2026-11-24T13:00:00Z\n  built with go1.26.0\n  for linux/amd64\n"; err != nil || b.String() != want {
		t.Errorf("%v: %s", err, b.String())
	}
	b.Reset()
	if err := (build{Version: "(devel)"}).write(&b); err != nil || b.String() != "callscope (devel)\n" {
		t.Errorf("%v: %s", err, b.String())
	}
}
