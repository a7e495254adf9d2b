package embedded

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSplitInsert(t *testing.T) {
	type parts struct{ Statement, Format, Data string }
	for _, c := range []struct {
		text string
		want *parts // nil: no data follows
	}{
		{"INSERT INTO t (a, b) FORMAT Native", &parts{"INSERT INTO t (a, b) ", "Native", ""}},
		{"insert into t format JSONEachRow {\"a\":1}", &parts{"insert into t ", "JSONEachRow", `{"a":1}`}},
		{"INSERT INTO t FORMAT CSV\n\n1,2", &parts{"INSERT INTO t ", "CSV", "\n1,2"}},
		{"INSERT INTO t FORMAT CSV \r\n1,2", &parts{"INSERT INTO t ", "CSV", "1,2"}},
		{"INSERT INTO t FORMAT TSV\t\nx", &parts{"INSERT INTO t ", "TSV", "x"}},
		{"INSERT INTO t VALUES (1), (2)", &parts{"INSERT INTO t ", "Values", " (1), (2)"}},
		{"INSERT INTO t (a)VALUES(1)", &parts{"INSERT INTO t (a)", "Values", "(1)"}},
		{"INSERT INTO t SETTINGS x='FORMAT CSV', y = 1 FORMAT TSV\nz", &parts{"INSERT INTO t SETTINGS x='FORMAT CSV', y = 1 ", "TSV", "z"}},
		{"/* FORMAT A */ INSERT -- FORMAT B\n INTO `FORMAT` (`VALUES`, \"SELECT\") FORMAT C", &parts{"/* FORMAT A */ INSERT -- FORMAT B\n INTO `FORMAT` (`VALUES`, \"SELECT\") ", "C", ""}},
		{`INSERT INTO t SETTINGS x='it\'s FORMAT A' FORMAT B`, &parts{`INSERT INTO t SETTINGS x='it\'s FORMAT A' `, "B", ""}},
		{`INSERT INTO t SETTINGS x='it''s FORMAT A' FORMAT B`, &parts{`INSERT INTO t SETTINGS x='it''s FORMAT A' `, "B", ""}},
		{"INSERT INTO db.values FORMAT CSV", &parts{"INSERT INTO db.values ", "CSV", ""}},
		{"INSERT INTO TABLE values VALUES (1)", &parts{"INSERT INTO TABLE values ", "Values", " (1)"}},
		{"INSERT INTO FUNCTION file('FORMAT', 'CSV') FORMAT TSV", &parts{"INSERT INTO FUNCTION file('FORMAT', 'CSV') ", "TSV", ""}},
		{"INSERT INTO t (* EXCEPT(format)) FORMAT CSV", &parts{"INSERT INTO t (* EXCEPT(format)) ", "CSV", ""}},
		{"INSERT INTO t SELECT 1 FORMAT CSV", nil},
		{"INSERT INTO t (a) WITH x AS (SELECT 1) SELECT * FROM x", nil},
		{"INSERT INTO t FROM INFILE 'x' FORMAT CSV", nil},
		{"INSERT INTO t", nil},
		{"INSERT INTO t FORMAT", nil},
		{"INSERT INTO t (a, 'unfinished", nil},
		{"SELECT 1 FORMAT CSV", nil},
		{"-- INSERT\nSELECT 1 FORMAT CSV", nil},
		{"", nil},
	} {
		insert, ok := splitInsert(c.text)
		var got *parts
		if ok {
			got = &parts{insert.statement, insert.format, c.text[insert.data:]}
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("splitInsert(%q) (-want +got):\n%s", c.text, diff)
		}
	}
}

func FuzzSplitInsert(f *testing.F) {
	for _, s := range []string{"INSERT INTO t FORMAT CSV\n1", "INSERT INTO t VALUES (1)", "INSERT INTO `", "INSERT/*", "insert into t (a", "INSERT INTO t SETTINGS a='\\"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		insert, ok := splitInsert(text)
		if !ok {
			return
		}
		if !strings.HasPrefix(text, insert.statement) || insert.data < len(insert.statement) || insert.data > len(text) {
			t.Errorf("splitInsert(%q) = %+v", text, insert)
		}
		if between := strings.ToUpper(text[len(insert.statement):insert.data]); !strings.HasPrefix(between, "FORMAT") && between != "VALUES" {
			t.Errorf("splitInsert(%q) took %q for the format", text, between)
		}
	})
}

func TestStreamable(t *testing.T) {
	for _, c := range []struct {
		text, format string
		want         bool
	}{
		{"SELECT 1", "Native", true},
		{"-- x\n WITH 1 AS a SELECT a", "TabSeparated", true},
		{"SELECT 1 FORMAT JSONEachRow", "Native", true},
		{"SELECT 1 FORMAT JSON", "Native", false},
		{"SELECT 1 format\nCSVWithNames", "CSV", false},
		{"SELECT 1 FORMAT JSON SETTINGS x = 'FORMAT CSV'", "CSV", false},
		{"SELECT 1", "JSON", false},
		{"SELECT 1 FORMAT JSONEachRow SETTINGS output_format_json_array_of_rows = 1", "CSV", false},
		{"SHOW TABLES", "Native", false},
		{"DESCRIBE TABLE t", "Native", false},
		{"", "Native", false},
	} {
		q := &request{text: c.text, defaultFormat: c.format}
		if got := q.streamable(namedFormats(c.text)); got != c.want {
			t.Errorf("streamable(%q, %s) = %v", c.text, c.format, got)
		}
	}
}
