package embedded

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/compress"
	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
)

// testEngine is an engine in a child process.
type testEngine struct {
	*childProcess
	addr, dir string
}

func startEngine(t *testing.T, dir string, args ...string) *testEngine {
	t.Helper()
	needLibrary(t)
	e := &testEngine{addr: freeAddr(t), dir: dir}
	e.childProcess = startChild(t, append([]string{"engine", "--addr", e.addr, "--data", dir}, args...)...)
	eventually(t, func() string {
		if answers(t.Context(), e.addr, e.cmd.Process.Pid) {
			return ""
		}
		select {
		case err := <-e.exited:
			t.Fatalf("the engine ended: %v: %s", err, e.output.last())
		default:
		}
		return "the engine does not answer"
	})
	return e
}

// What lies in the directory where the engine is started, or in the user's home, is not for it. A relative data directory
// means that directory all the same.
func TestEngineReadsNoConfigurationOfOthers(t *testing.T) {
	needLibrary(t)
	library, err := FindLibrary()
	if err != nil {
		t.Fatal(err)
	}
	if library, err = filepath.Abs(library); err != nil {
		t.Fatal(err)
	}
	const foreign = "<clickhouse><mark_cache_size>4242</mark_cache_size><max_table_size_to_drop>4242</max_table_size_to_drop></clickhouse>"
	for _, tc := range []struct{ name, file, text string }{
		{"no file", "", ""},
		{"config.xml", "work/config.xml", foreign},
		{"a config.xml that is none", "work/config.xml", "{"},
		{"clickhouse-local.xml", "work/clickhouse-local.xml", foreign},
		{"home", "home/.clickhouse-local/config.xml", foreign},
		{"a file of its own that was changed", "work/data/" + configFile, foreign},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			work, home := filepath.Join(dir, "work"), filepath.Join(dir, "home")
			for _, folder := range []string{work, home, filepath.Dir(filepath.Join(dir, tc.file))} {
				if err := os.MkdirAll(folder, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if tc.file != "" {
				if err := os.WriteFile(filepath.Join(dir, tc.file), []byte(tc.text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("HOME", home)
			t.Setenv(libraryEnv, library)
			t.Chdir(work)
			e := startEngine(t, "data")
			got := e.get(t, "SELECT name, value FROM system.server_settings WHERE name IN ('mark_cache_size', 'max_table_size_to_drop') ORDER BY name")
			// The engine's own setting is a sixteenth of 2 GiB, the other one is ClickHouse's default.
			if want := "mark_cache_size\t134217728\nmax_table_size_to_drop\t50000000000\n"; got != want {
				t.Errorf("settings: %q, want %q", got, want)
			}
			if answer, code := e.post(t, "", "CREATE TABLE r ENGINE = MergeTree ORDER BY a AS SELECT 7 AS a"); code != "" {
				t.Fatal(answer)
			}
			if _, err := os.Stat(filepath.Join(work, "data", "store")); err != nil {
				t.Errorf("a relative data directory: %v", err)
			}
		})
	}
}

func (e *testEngine) open(t *testing.T, change func(*clickhouse.Options)) driver.Conn {
	t.Helper()
	opts := &clickhouse.Options{Protocol: clickhouse.HTTP, Addr: []string{e.addr}, Auth: clickhouse.Auth{Username: "default"}}
	if change != nil {
		change(opts)
	}
	conn, err := clickhouse.Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.Ping(t.Context()); err != nil {
		t.Fatalf("ping: %v", err)
	}
	return conn
}

func mustExec(t *testing.T, conn driver.Conn, statements ...string) {
	t.Helper()
	for _, s := range statements {
		if err := conn.Exec(t.Context(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

func count(t *testing.T, conn driver.Conn, table string) (n uint64) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), "SELECT count() FROM "+table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

type row struct {
	S  string
	LC string
	T  time.Time
	F  *float64
	ID uuid.UUID
	A  []string
	M  map[string]string
	N  uint64
	B  bool
}

func TestEngineRoundTrip(t *testing.T) {
	e := startEngine(t, t.TempDir())
	half := 0.5
	want := []row{
		{S: "", LC: "x", T: time.UnixMilli(1_700_000_000_123).UTC(), F: &half, ID: uuid.MustParse("00112233-4455-6677-8899-aabbccddeeff"), A: []string{"a", "", "ü"}, M: map[string]string{"k": "v", "": "\x00"}, N: 1<<64 - 1, B: true},
		{S: "it's \\ \x00 \xff", LC: "", T: time.UnixMilli(0).UTC(), A: []string{}, M: map[string]string{}},
	}
	for _, method := range []clickhouse.CompressionMethod{clickhouse.CompressionNone, clickhouse.CompressionLZ4, clickhouse.CompressionZSTD, clickhouse.CompressionGZIP} {
		t.Run(method.String(), func(t *testing.T) {
			conn := e.open(t, func(o *clickhouse.Options) { o.Compression = &clickhouse.Compression{Method: method, Level: 1} })
			table := "roundtrip_" + method.String()
			mustExec(t, conn, "CREATE TABLE "+table+` (S String, LC LowCardinality(String), T DateTime64(3, 'UTC'), F Nullable(Float64),
				ID UUID, A Array(String), M Map(String, String), N UInt64, B Bool) ENGINE = MergeTree ORDER BY N DESC SETTINGS allow_experimental_reverse_key = 1`)
			batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO "+table)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range want {
				if err := batch.Append(r.S, r.LC, r.T, r.F, r.ID, r.A, r.M, r.N, r.B); err != nil {
					t.Fatal(err)
				}
			}
			if err := batch.Send(); err != nil {
				t.Fatal(err)
			}
			rows, err := conn.Query(t.Context(), "SELECT * FROM "+table+" ORDER BY N DESC")
			if err != nil {
				t.Fatal(err)
			}
			defer rows.Close()
			var got []row
			for rows.Next() {
				var r row
				if err := rows.Scan(&r.S, &r.LC, &r.T, &r.F, &r.ID, &r.A, &r.M, &r.N, &r.B); err != nil {
					t.Fatal(err)
				}
				got = append(got, r)
			}
			if err := rows.Err(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-written +read):\n%s", diff)
			}
		})
	}
}

func TestEngineSpeaksUTC(t *testing.T) {
	t.Setenv("TZ", "Asia/Tokyo")
	e := startEngine(t, t.TempDir())
	version, err := e.open(t, nil).ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	if version.Timezone.String() != "UTC" || version.Version.Major < 26 {
		t.Errorf("the driver sees %v", version)
	}
	if got := e.get(t, "SELECT timezone(), toString(toDateTime('1970-01-02 00:00:00')::UInt32)"); got != "UTC\t86400\n" {
		t.Errorf("the engine sees %q", got)
	}
}

func TestEngineBoundParameters(t *testing.T) {
	e := startEngine(t, t.TempDir())
	conn := e.open(t, nil)
	var wait sync.WaitGroup
	for g := range 8 {
		wait.Go(func() {
			for i := range 50 {
				text := fmt.Sprintf("%d-%d it's \\ \t\n {x:String} ü", g, i)
				var gotText string
				var gotNumber uint64
				err := conn.QueryRow(t.Context(), "SELECT {text:String}, {number:UInt64} + 1",
					clickhouse.Named("text", text), clickhouse.Named("number", i)).Scan(&gotText, &gotNumber)
				if err != nil || gotText != text || gotNumber != uint64(i)+1 {
					t.Errorf("got %q, %d, %v, want %q", gotText, gotNumber, err, text)
					return
				}
			}
		})
	}
	wait.Wait()
	var n uint64
	if err := conn.QueryRow(t.Context(), "SELECT sum(arrayJoin({a:Array(UInt64)}))", clickhouse.Named("a", []uint64{1, 2, 3})).Scan(&n); err != nil || n != 6 {
		t.Errorf("array parameter: %d, %v", n, err)
	}
	var null *string
	if err := conn.QueryRow(t.Context(), "SELECT {a:Nullable(String)}", clickhouse.Named("a", nil)).Scan(&null); err != nil || null != nil {
		t.Errorf("NULL parameter: %v, %v", null, err)
	}
	mustExec(t, conn, "CREATE TABLE p (a UInt64, s String) ENGINE = MergeTree ORDER BY a")
	if err := conn.Exec(t.Context(), "INSERT INTO p VALUES ({a:UInt64}, {s:String})", clickhouse.Named("a", 7), clickhouse.Named("s", "it's")); err != nil {
		t.Fatal(err)
	}
	if err := conn.Exec(t.Context(), "INSERT INTO p VALUES (?, ?)", 8, "it's"); err != nil {
		t.Fatal(err)
	}
	if got := e.get(t, "SELECT * FROM p ORDER BY a FORMAT TSVRaw"); got != "7\tit's\n8\tit's\n" {
		t.Errorf("inserted with parameters: %q", got)
	}
}

func TestEngineExceptions(t *testing.T) {
	e := startEngine(t, t.TempDir())
	conn := e.open(t, nil)
	for _, c := range []struct {
		name, statement string
		settings        clickhouse.Settings
		code            int32
	}{
		{"while running", "SELECT throwIf(1)", nil, 395},
		{"unknown table", "SELECT * FROM nosuch", nil, 60},
		{"syntax", "SELEC 1", nil, 62},
		{"several statements", "SELECT 1; SELECT 2", nil, 62},
		{"unknown setting", "SELECT 1", clickhouse.Settings{"nosuch": 1}, 115},
		{"value of a setting", "SELECT 1", clickhouse.Settings{"max_threads": "many"}, 27},
		{"statement too long for its limit", "SELECT sleepEachRow(1) FROM numbers(20)", clickhouse.Settings{"max_execution_time": 1, "max_block_size": 1}, 159},
		{"memory limit", "SELECT groupArray(number) FROM numbers(100000000)", clickhouse.Settings{"max_memory_usage": 10_000_000}, 241},
		{"insert into an unknown table", "INSERT INTO nosuch VALUES (1)", nil, 60},
		{"after 3 million rows", "SELECT throwIf(number = 3000000) FROM numbers(4000000)", nil, 395},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx := clickhouse.Context(t.Context(), clickhouse.WithSettings(c.settings))
			rows, err := conn.Query(ctx, c.statement)
			n := 0
			if err == nil {
				for rows.Next() {
					n++
				}
				err = rows.Err()
				rows.Close()
			}
			var exception *clickhouse.Exception
			if !errors.As(err, &exception) || exception.Code != c.code {
				t.Errorf("after %d rows: %v, want an exception with code %d", n, err, c.code)
			}
		})
	}
}

func TestEngineBreaksOffAfterAMidStreamException(t *testing.T) {
	e := startEngine(t, t.TempDir())
	for _, c := range []string{"", "&compress=1"} {
		resp, err := http.Post(e.url("default_format=CSV"+c), "", strings.NewReader("SELECT throwIf(number = 3000000) FROM numbers(4000000)"))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("status %d, %v, want 200 and a broken-off body", resp.StatusCode, err)
		}
		if c == "" && !bytes.Contains(body, []byte("__exception__\r\n"+resp.Header.Get("X-ClickHouse-Exception-Tag")+"\r\nCode: 395.")) {
			t.Errorf("the body ends without the exception: %q", body[max(0, len(body)-300):])
		}
	}
}

func TestEngineDeduplicationToken(t *testing.T) {
	e := startEngine(t, t.TempDir())
	conn := e.open(t, nil)
	mustExec(t, conn, "CREATE TABLE d (a UInt64) ENGINE = MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 100")
	insert := func(token string, values ...uint64) {
		t.Helper()
		ctx := clickhouse.Context(t.Context(), clickhouse.WithSettings(clickhouse.Settings{"insert_deduplication_token": token, "async_insert": 0}))
		batch, err := conn.PrepareBatch(ctx, "INSERT INTO d")
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range values {
			if err := batch.Append(v); err != nil {
				t.Fatal(err)
			}
		}
		if err := batch.Send(); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		token string
		want  uint64
	}{{"a'b", 2}, {"a'b", 2}, {"c", 4}, {"a'b", 4}} {
		insert(c.token, 1, 2)
		if got := count(t, conn, "d"); got != c.want {
			t.Errorf("after token %q: %d rows, want %d", c.token, got, c.want)
		}
	}
}

func TestEngineRequestsDoNotLeak(t *testing.T) {
	e := startEngine(t, t.TempDir(), "--connections", "1")
	const probe = "SELECT currentDatabase(), getSetting('max_block_size'), getSetting('final'), (SELECT count() FROM system.tables WHERE is_temporary)"
	fresh := e.get(t, probe)
	if !strings.HasPrefix(fresh, "default\t") {
		t.Fatalf("probe = %q", fresh)
	}
	for _, c := range []struct{ params, statement string }{
		{"max_block_size=7&final=1", "SELECT 1"},
		{"max_block_size=7", "SELECT nosuch"},
		{"database=system", "SELECT count() FROM settings"},
		{"", "SET max_block_size = 7"},
		{"", "USE system"},
		{"", "CREATE TEMPORARY TABLE t (a UInt8)"},
		{"", "SELECT 1 SETTINGS max_block_size = 7, final = 1"},
		{"param_x=1", "SELECT {x:UInt8}"},
	} {
		e.post(t, c.params, c.statement)
		if got := e.get(t, probe); got != fresh {
			t.Errorf("after %q %q: %q, want %q", c.params, c.statement, got, fresh)
		}
	}
	if _, code := e.post(t, "", "SELECT {x:UInt8}"); code != "456" {
		t.Errorf("a parameter outlived its request: code %q", code)
	}
	if got, _ := e.post(t, "max_block_size=7&final=1&database=system", probe); got != "system\t7\ttrue\t0\n" {
		t.Errorf("within a request: %q", got)
	}
}

func TestEngineKeepsAcknowledgedRowsOverKill(t *testing.T) {
	dir := t.TempDir()
	e := startEngine(t, dir)
	conn := e.open(t, nil)
	mustExec(t, conn, "CREATE TABLE k (a UInt64, s LowCardinality(String)) ENGINE = MergeTree ORDER BY a")
	var acknowledged uint64
	for i := range 20 {
		batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO k")
		if err != nil {
			t.Fatal(err)
		}
		for j := range 500 {
			if err := batch.Append(uint64(i*500+j), "s"); err != nil {
				t.Fatal(err)
			}
		}
		if err := batch.Send(); err != nil {
			t.Fatal(err)
		}
		acknowledged += 500
	}
	conn.Close()
	e.kill(t)
	if got := count(t, startEngine(t, dir).open(t, nil), "k"); got != acknowledged {
		t.Errorf("after kill -9: %d rows, acknowledged %d", got, acknowledged)
	}
}

func TestEngineStreamsLargeResults(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("reads the peak memory from /proc")
	}
	e := startEngine(t, t.TempDir())
	resp, err := http.Post(e.url("default_format=Native"), "", strings.NewReader("SELECT number, repeat('x', 1000) FROM numbers(1000000) SETTINGS max_block_size = 8192"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil || n < 1_000_000_000 {
		t.Fatalf("%d bytes, %v", n, err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", e.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), "VmHWM:")
	kib, err := strconv.Atoi(strings.Fields(after)[0])
	if err != nil {
		t.Fatal(err)
	}
	if kib > 600_000 {
		t.Errorf("peak memory %d KiB for a result of 1 GB", kib)
	}
	t.Logf("peak memory %d MiB for a result of %d MiB", kib>>10, n>>20)
}

// What is sent block by block must be the same bytes as the whole.
func TestEngineStreamedEqualsWhole(t *testing.T) {
	e := startEngine(t, t.TempDir())
	if answer, code := e.post(t, "", "CREATE TABLE s ENGINE = MergeTree ORDER BY a AS SELECT number AS a, toLowCardinality(toString(number % 7)) AS s FROM numbers(300000)"); code != "" {
		t.Fatal(answer)
	}
	for _, c := range []struct{ params, statement string }{
		{"", "SELECT number FROM numbers(200000)"},
		{"", "SELECT 1 WHERE 0"},
		{"", "SELECT * FROM s WHERE a < 10 OR a > 299990 ORDER BY a"},
		{"", "SELECT * FROM s ORDER BY a DESC LIMIT 100000, 100000"},
		{"", "SELECT s, count() FROM s GROUP BY s WITH TOTALS ORDER BY s"},
		{"", "SELECT s, a > 5, count() FROM s GROUP BY 1, 2 WITH ROLLUP ORDER BY 1, 2"},
		{"extremes=1", "SELECT a FROM s WHERE a < 3 ORDER BY a"},
		{"max_block_size=1", "SELECT number, sleepEachRow(0.05) FROM numbers(5) WHERE number != 2"},
		{"max_block_size=100", "SELECT number FROM numbers(100000) WHERE number IN (5, 50005, 99999)"},
		{"max_threads=1", "SELECT a FROM s WHERE a = 1 UNION ALL SELECT a FROM s WHERE a = 299999"},
		{"", "WITH (SELECT max(a) FROM s) AS highest SELECT highest, arrayJoin([1, 2, 3])"},
		{"", "SELECT s, groupArray(a) FROM s GROUP BY s ORDER BY s"},
	} {
		for _, format := range []string{"TabSeparated", "Native", "JSONEachRow", "CSV", "RowBinary"} {
			params := c.params + "&default_format=" + format
			streamed, code := e.post(t, params, c.statement)
			whole, _ := e.post(t, params+"&wait_end_of_query=1", c.statement)
			// Native blocks may be cut in another way; their number of bytes
			// then differs by the repeated column names, so compare text only.
			if code != "" || format != "Native" && streamed != whole || (streamed == "") != (whole == "") {
				t.Errorf("%s %q as %s: %d bytes streamed, %d bytes whole, code %q", c.params, c.statement, format, len(streamed), len(whole), code)
			}
		}
	}
}

// A client that goes away must not occupy the engine.
func TestEngineEndsAStreamWithoutReader(t *testing.T) {
	e := startEngine(t, t.TempDir(), "--connections", "1")
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url("default_format=Native"), strings.NewReader("SELECT number FROM system.numbers"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	resp.Body.Close()
	if got := e.get(t, "SELECT 1"); got != "1\n" {
		t.Errorf("next statement: %q", got)
	}
}

// Nor must one whose statement gives nothing for hours, while it reads and after the engine is told to stop.
func TestEngineKillsStatementsWithoutClient(t *testing.T) {
	e := startEngine(t, t.TempDir())
	const hours = "sum(sipHash64(number)) AS s FROM numbers(1000000000000)"
	running := func() string {
		return strings.TrimSpace(e.get(t, "SELECT count() FROM system.processes WHERE query LIKE '%numbers(1000000000000)%' AND query NOT LIKE '%processes%'"))
	}
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	var clients sync.WaitGroup
	ask := func(params, statement string) {
		clients.Go(func() {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url(params), strings.NewReader(statement))
			if err != nil {
				t.Error(err)
				return
			}
			if resp, err := http.DefaultClient.Do(req); err == nil {
				t.Errorf("%s was answered with status %d", statement, resp.StatusCode)
				resp.Body.Close()
			}
		})
	}
	ask("", "SELECT "+hours)
	ask("log_comment=it%27s%20mine", "SELECT "+hours+" FORMAT JSON")
	ask("", "CREATE TABLE t ENGINE = MergeTree ORDER BY s AS SELECT "+hours)
	eventually(t, func() string {
		if n := running(); n != "3" {
			return n + " of 3 statements are running"
		}
		return ""
	})
	if got := e.get(t, "SELECT count() FROM system.processes WHERE startsWith(Settings['log_comment'], 'it''s mine')"); got != "1\n" {
		t.Errorf("%s statements with the client's own log_comment", got)
	}
	leave()
	clients.Wait()
	eventually(t, func() string {
		if n := running(); n != "0" {
			return n + " statements are still running"
		}
		return ""
	})

	ctx, leave = context.WithCancel(t.Context())
	defer leave()
	ask("", "SELECT "+hours)
	eventually(t, func() string {
		if n := running(); n != "1" {
			return n + " of 1 statements are running"
		}
		return ""
	})
	leave()
	clients.Wait()
	if err := e.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-e.exited; err != nil { // it says so when something still ran after 8 s
		t.Errorf("the engine ended with %v: %s", err, e.output.last())
	}
}

func (e *testEngine) url(params string) string { return "http://" + e.addr + "/?" + params }

func (e *testEngine) get(t *testing.T, statement string) string {
	t.Helper()
	resp, err := http.Get(e.url("query=" + url.QueryEscape(statement)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return readAll(t, resp.Body)
}

// post returns the answer and the exception code.
func (e *testEngine) post(t *testing.T, params, body string) (answer, code string) {
	t.Helper()
	resp, err := http.Post(e.url(params), "", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return readAll(t, resp.Body), resp.Header.Get("X-ClickHouse-Exception-Code")
}

func zipped(t *testing.T, s string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write([]byte(s)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func blocks(t *testing.T, s string) string {
	t.Helper()
	w := compress.NewWriter(compress.LevelZero, compress.LZ4)
	if err := w.Compress([]byte(s)); err != nil {
		t.Fatal(err)
	}
	return string(w.Data)
}

func TestEngineHTTP(t *testing.T) {
	e := startEngine(t, t.TempDir())
	if answer, code := e.post(t, "", "CREATE TABLE h (a UInt64, s String) ENGINE = MergeTree ORDER BY a"); code != "" {
		t.Fatal(answer)
	}
	q := func(statement string) string { return "query=" + url.QueryEscape(statement) }
	clean := func() { e.post(t, "", "TRUNCATE TABLE h") }
	const all = "SELECT * FROM h ORDER BY a FORMAT CSV"
	for _, c := range []struct {
		name, method, params, body string
		header                     map[string]string
		status                     int    // 0: 200
		code                       string // of an exception
		want                       string // answer without an exception
		stored                     string // rows of h afterwards
	}{
		{name: "nothing asked", method: "GET", want: "Ok.\n"},
		{name: "statement in the URL", method: "GET", params: q("SELECT 1"), want: "1\n"},
		{name: "statement in the body", method: "POST", body: "SELECT 2", want: "2\n"},
		{name: "statement in both", method: "POST", params: q("SELECT 1 +"), body: "2", want: "3\n"},
		{name: "default format", method: "POST", params: "default_format=JSONEachRow", body: "SELECT 1 AS a", want: "{\"a\":1}\n"},
		{name: "format in the text wins", method: "POST", params: "default_format=Native", body: "SELECT 1 AS a, 'x' AS b FORMAT CSVWithNames", want: "\"a\",\"b\"\n1,\"x\"\n"},
		{name: "format before settings", method: "POST", body: "SELECT number AS a FROM numbers(100000) WHERE a IN (1, 99999) FORMAT JSONCompactColumns SETTINGS max_block_size = 10", want: "[\n\t[1, 99999]\n]\n"},
		{name: "no rows", method: "POST", params: "default_format=Native", body: "SELECT 1 WHERE 0", want: ""},
		{name: "buffered", method: "POST", params: "wait_end_of_query=1", body: "SELECT 1", want: "1\n"},
		{name: "gzip statement", method: "POST", body: zipped(t, "SELECT 5"), header: map[string]string{"Content-Encoding": "gzip"}, want: "5\n"},
		{name: "driver's extra parameters", method: "POST", params: "query_id=x&user=u&password=p&quota_key=k&network_compression_method=LZ4&role=r", body: "SELECT 1", want: "1\n"},
		{name: "setting", method: "POST", params: "max_result_rows=5", body: "SELECT number FROM numbers(10)", status: 500, code: "396"},
		{name: "show", method: "GET", params: q("SHOW TABLES"), want: "h\n"},
		{name: "show create with database", method: "GET", params: "database=system&" + q("EXISTS TABLE one"), want: "1\n"},
		{name: "unknown database", method: "GET", params: "database=no`such&" + q("SELECT 1"), status: 500, code: "81"},

		{name: "insert values in the body", method: "POST", body: "INSERT INTO h VALUES (1, 'a'), (1 + 1, concat('b', ';'))", stored: "1,\"a\"\n2,\"b;\"\n"},
		{name: "insert values in the URL", method: "POST", params: q("INSERT INTO h VALUES (1, 'a')"), stored: "1,\"a\"\n"},
		{name: "insert values in both", method: "POST", params: q("INSERT INTO h VALUES (1, 'a'),"), body: "(2, 'b')", stored: "1,\"a\"\n2,\"b\"\n"},
		{name: "insert, format in the URL", method: "POST", params: q("INSERT INTO h (s, a) FORMAT CSV"), body: "x,1\ny,2\n", stored: "1,\"x\"\n2,\"y\"\n"},
		{name: "insert, everything in the body", method: "POST", body: "INSERT INTO h FORMAT JSONEachRow\n{\"a\":1}\n\n{\"a\":2}", stored: "1,\"\"\n2,\"\"\n"},
		{name: "insert, gzip", method: "POST", params: q("INSERT INTO h FORMAT TSV"), body: zipped(t, "1\tz\n"), header: map[string]string{"Content-Encoding": "gzip"}, stored: "1,\"z\"\n"},
		{name: "insert, compressed blocks", method: "POST", params: "decompress=1&" + q("INSERT INTO h FORMAT TSV"), body: blocks(t, "1\ty") + blocks(t, "y\n2\tz\n"), stored: "1,\"yy\"\n2,\"z\"\n"},
		{name: "insert asynchronously", method: "POST", params: "async_insert=1&wait_for_async_insert=1&" + q("INSERT INTO h FORMAT TSV"), body: "1\tz\n", stored: "1,\"z\"\n"},
		{name: "insert select", method: "POST", body: "INSERT INTO h SELECT number, 'n' FROM numbers(2)", stored: "0,\"n\"\n1,\"n\"\n"},
		{name: "insert select in the URL", method: "POST", params: q("INSERT INTO h SELECT 1, 'n'"), stored: "1,\"n\"\n"},
		{name: "insert of nothing", method: "POST", params: q("INSERT INTO h FORMAT Native"), status: 400, code: "108"},
		{name: "insert of broken data", method: "POST", params: q("INSERT INTO h FORMAT TSV"), body: "1\ta\nx\tb\n", status: 500, code: "27"},
		{name: "insert of half a block", method: "POST", params: q("INSERT INTO h FORMAT Native"), body: "\x02\x01\x01a", status: 500, code: "32"},
		{name: "insert of a broken block", method: "POST", params: "decompress=1&" + q("INSERT INTO h FORMAT TSV"), body: blocks(t, "1\ty\n") + blocks(t, "2\tz\n")[:27], status: 400, code: "33"},
		{name: "insert of a block's head", method: "POST", params: "decompress=1&" + q("INSERT INTO h FORMAT TSV"), body: blocks(t, "1\ty\n") + blocks(t, "2\tz\n")[:25], status: 400, code: "33"},
		{name: "insert of a damaged block", method: "POST", params: "decompress=1&" + q("INSERT INTO h FORMAT TSV"), body: blocks(t, "1\ty\n")[:29] + "x", status: 400, code: "33"},
		{name: "insert in an unknown format", method: "POST", params: q("INSERT INTO h FORMAT NoSuch"), body: "1", status: 500, code: "73"},
		{name: "statement after the values", method: "POST", body: "INSERT INTO h VALUES (1, 'a'); DROP TABLE h", status: 400, code: "62"},

		{name: "insert over GET", method: "GET", params: q("INSERT INTO h SELECT 1, 'a'"), status: 500, code: "164"},
		{name: "insert of values over GET", method: "GET", params: q("INSERT INTO h VALUES (1, 'a')"), status: 500, code: "164"},
		{name: "drop over GET", method: "GET", params: q("DROP TABLE h"), status: 500, code: "164"},
		{name: "PUT", method: "PUT", params: q("SELECT 1"), status: 405, code: "48"},
		{name: "empty statement", method: "POST", body: " \n", status: 400, code: "62"},
		{name: "HTTP session", method: "POST", params: "session_id=1", body: "SELECT 1", status: 400, code: "344"},
		{name: "external table", method: "POST", params: q("SELECT 1"), header: map[string]string{"Content-Type": "multipart/form-data; boundary=x"}, status: 501, code: "48"},
		{name: "brotli", method: "POST", params: q("SELECT 1"), header: map[string]string{"Content-Encoding": "br"}, status: 415, code: "89"},
		{name: "no gzip", method: "POST", body: "SELECT 1", header: map[string]string{"Content-Encoding": "gzip"}, status: 400, code: "33"},
		{name: "not a setting's name", method: "POST", params: "a%27b=1", body: "SELECT 1", status: 400, code: "115"},
		{name: "not a format's name", method: "POST", params: "default_format=A%27", body: "SELECT 1", status: 400, code: "73"},
		{name: "page of another site", method: "POST", body: "SELECT 1", header: map[string]string{"Origin": "https://example.com"}, status: 403},
		{name: "name that resolves to loopback", method: "GET", params: q("SELECT 1"), header: map[string]string{"Host": "evil.example.com"}, status: 421},
	} {
		t.Run(c.name, func(t *testing.T) {
			clean()
			req, err := http.NewRequestWithContext(t.Context(), c.method, e.url(c.params), strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			for k, v := range c.header {
				req.Header.Set(k, v)
			}
			req.Host = c.header["Host"]
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			answer := readAll(t, resp.Body)
			if want := max(c.status, 200); resp.StatusCode != want {
				t.Errorf("status %d, want %d", resp.StatusCode, want)
			}
			if got := resp.Header.Get("X-ClickHouse-Exception-Code"); got != c.code {
				t.Errorf("exception code %q, want %q: %s", got, c.code, answer)
			}
			if c.status == 0 && answer != c.want {
				t.Errorf("answer %q, want %q", answer, c.want)
			}
			if stored := e.get(t, all); stored != c.stored {
				t.Errorf("rows %q, want %q", stored, c.stored)
			}
		})
	}

	t.Run("summary", func(t *testing.T) {
		resp, err := http.Post(e.url(q("INSERT INTO h FORMAT CSV")), "", strings.NewReader("1,a\n2,b\n"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("X-ClickHouse-Summary"); !strings.Contains(got, `"written_rows":"2"`) {
			t.Errorf("summary of an insert: %s", got)
		}
		if resp, err = http.Post(e.url(""), "", strings.NewReader("SELECT number FROM numbers(7)")); err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("X-ClickHouse-Summary"); !strings.Contains(got, `"read_rows":"7"`) || !strings.Contains(got, `"result_rows":"7"`) {
			t.Errorf("summary of a select: %s", got)
		}
	})
	t.Run("compressed answer", func(t *testing.T) {
		for _, n := range []int{1, 500_000} { // one block, several
			resp, err := http.Post(e.url("compress=1"), "", strings.NewReader(fmt.Sprintf("SELECT number FROM numbers(%d)", n)))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			var want strings.Builder
			for i := range n {
				fmt.Fprintln(&want, i)
			}
			got := make([]byte, want.Len())
			if _, err := io.ReadFull(compress.NewReader(resp.Body), got); err != nil || string(got) != want.String() {
				t.Errorf("answer of %d numbers: %v, starts with %.20q", n, err, got)
			}
		}
	})
}

// An upload that breaks off must store nothing, whatever of it had arrived.
func TestEngineStoresNothingOfABrokenUpload(t *testing.T) {
	e := startEngine(t, t.TempDir())
	e.post(t, "", "CREATE TABLE u (a UInt64) ENGINE = MergeTree ORDER BY a")
	for name, head := range map[string]string{
		"chunked": "Transfer-Encoding: chunked\r\n\r\n6\r\n1\n2\n3\n\r\n",
		"length":  "Content-Length: 100\r\n\r\n1\n2\n3\n",
	} {
		conn, err := net.Dial("tcp", e.addr)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST /?query=INSERT+INTO+u+FORMAT+TSV HTTP/1.1\r\nHost: %s\r\n%s", e.addr, head)
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if answer := readAll(t, conn); !strings.Contains(answer, "400 Bad Request") {
			t.Errorf("%s: answer %q", name, answer)
		}
		conn.Close()
		if got := e.get(t, "SELECT count() FROM u"); got != "0\n" {
			t.Errorf("%s: %s rows stored", name, got)
		}
	}
}

func TestEngineFinishesStatementsWhenStopped(t *testing.T) {
	dir := t.TempDir()
	e := startEngine(t, dir)
	type result struct {
		body string
		err  error
	}
	results := make(chan result, 1)
	go func() {
		resp, err := http.Post(e.url(""), "", strings.NewReader("SELECT sleep(2)"))
		if err != nil {
			results <- result{err: err}
			return
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		results <- result{string(body), err}
	}()
	eventually(t, func() string {
		if got := e.get(t, "SELECT count() FROM system.processes WHERE query LIKE '%sleep(2)%' AND query NOT LIKE '%processes%'"); got != "1\n" {
			return "the statement is not running: " + got
		}
		return ""
	})
	if err := e.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if r := <-results; r.err != nil || r.body != "0\n" {
		t.Errorf("the running statement: %q, %v", r.body, r.err)
	}
	if err := <-e.exited; err != nil {
		t.Errorf("the engine ended with %v: %s", err, e.output.last())
	}
	release, err := lockDir("test", dir)
	if err != nil {
		t.Fatal(err)
	}
	release()
}

func TestEngineRefuses(t *testing.T) {
	lockedDir := t.TempDir()
	release, err := lockDir("the embedded ClickHouse engine", lockedDir)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	library := t.TempDir() + "/libchdb.so"
	if err := os.WriteFile(library, []byte("not a library"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		cfg  EngineConfig
		want []string
	}{
		{"locked directory", EngineConfig{DataDir: lockedDir, Addr: "127.0.0.1:0", Library: library}, []string{lockedDir, "in use by another process", "pid"}},
		{"port in use", EngineConfig{DataDir: t.TempDir(), Addr: taken.Addr().String(), Library: library}, []string{taken.Addr().String(), "another process uses this port", "clickhouse.embedded_addr"}},
		{"all interfaces", EngineConfig{DataDir: t.TempDir(), Addr: "0.0.0.0:8123", Library: library}, []string{"loopback"}},
		{"broken library", EngineConfig{DataDir: t.TempDir(), Addr: "127.0.0.1:0", Library: library}, []string{library}},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := NewEngine(c.cfg, testLog()).Run(t.Context())
			if err == nil {
				t.Fatal("Run = nil")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
}
