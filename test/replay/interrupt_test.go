package replay

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/callscope/callscope/internal/store/storetest"
	"github.com/callscope/callscope/test/chaintest"
)

// gate stands before the engine and stops at the first statement that looks like a pattern, or a later one: it says so,
// and lets the statement pass when it is told to.
type gate struct {
	server  *httptest.Server
	pattern *regexp.Regexp

	matches atomic.Int32
	reached chan string   // gets the statement
	open    chan struct{} // closed when it may pass
	after   bool          // it passes first, and only its answer waits
	done    chan struct{} // closed when it has passed
}

func newGate(t testing.TB, pattern string, after bool, match int32) *gate {
	t.Helper()
	g := &gate{pattern: regexp.MustCompile(pattern), after: after, reached: make(chan string, 1), open: make(chan struct{}), done: make(chan struct{})}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: storetest.Addr(t)})
	proxy.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) } // the client is gone
	g.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the client is gone
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		text := r.URL.Query().Get("query") + " " + plain(body)
		if !g.pattern.MatchString(text) || g.matches.Add(1) != match {
			proxy.ServeHTTP(w, r)
			return
		}
		defer close(g.done)
		if g.after {
			answer := httptest.NewRecorder()
			proxy.ServeHTTP(answer, r)
			g.reached <- text
			<-g.open
			return
		}
		g.reached <- text
		<-g.open
		if r.Context().Err() == nil {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(g.server.Close)
	return g
}

func (g *gate) addr() string { return strings.TrimPrefix(g.server.URL, "http://") }

// plain is a request's body as text; rows are of no interest.
func plain(body []byte) string {
	if r, err := gzip.NewReader(bytes.NewReader(body)); err == nil {
		if text, err := io.ReadAll(io.LimitReader(r, 1<<20)); err == nil {
			return string(text)
		}
	}
	return string(body)
}

// damage makes stored rows differ from what a replay computes, in all three ways.
func damage(t testing.TB, c *chain) {
	t.Helper()
	for _, sql := range []string{
		"TRUNCATE TABLE samples_rows",
		"INSERT INTO fabrics_rows SELECT * REPLACE (rtt_ms + 1 AS rtt_ms, version + 4294967296 AS version) FROM fabrics_rows FINAL",
		"INSERT INTO events_rows SELECT * REPLACE (generateUUIDv4() AS record_uid) FROM events_rows FINAL WHERE conference_id IN ('early', 'room')",
	} {
		storetest.Exec(t, c.store, sql)
	}
}

func leftovers(t testing.TB, c *chain) [][]any {
	t.Helper()
	return storetest.Query(t, c.store, "SELECT name FROM system.tables WHERE database = currentDatabase() AND name LIKE 'replay%' ORDER BY name")
}

// The command is interrupted or killed wherever it may be: nothing is half done that --resume does not bring to its end.
func TestInterruptedProcess(t *testing.T) {
	c := newChain(t)
	someCalls(t).write(c.client, at(60))
	c.live()
	before := allRows(t, c.store)
	args := []string{"replay", "--from", stamp(-10), "--to", stamp(60)}
	for i, test := range []struct {
		name    string
		pattern string
		after   bool
		writes  bool // rows may be written at that point
		over    bool // nothing is left to resume
	}{
		{name: "before the first rows are computed", pattern: `INSERT INTO \S*replay_\w+_rows`},
		{name: "behind the first computed rows", pattern: `INSERT INTO \S*replay_\w+_rows`, after: true},
		{name: "before a partition is noted", pattern: `INSERT INTO \S*replay_\w+_progress`},
		{name: "behind a partition", pattern: `INSERT INTO \S*replay_\w+_progress`, after: true},
		{name: "comparing", pattern: `FULL OUTER JOIN`},
		{name: "comparing the last table", pattern: `FULL OUTER JOIN \(SELECT .*precall_associations_rows`, after: true},
		{name: "before the generation is noted", pattern: `replay_\w+_progress SELECT -1,`},
		{name: "behind the generation", pattern: `replay_\w+_progress SELECT -1,`, after: true},
		{name: "before the first write", pattern: `INSERT INTO \S*\.fabrics_rows .* SELECT`, writes: true},
		{name: "behind a write", pattern: `INSERT INTO \S*\.fabrics_rows .* LEFT JOIN .* o\.replay_present = 0 OR`, after: true, writes: true},
		{name: "before removing", pattern: `INSERT INTO \S*\.events_rows .* WHERE n\.replay_present = 0`, writes: true},
		{name: "behind the last write", pattern: `INSERT INTO \S*\.events_rows .* o\.replay_present = 0 OR`, after: true, writes: true},
		{name: "before clearing up", pattern: `DROP TABLE IF EXISTS \S*replay_\w+_samples_rows SYNC`, writes: true, over: true},
	} {
		signals := []os.Signal{os.Interrupt, os.Kill}
		switch {
		case test.over:
			signals = signals[1:] // interrupted, it ends its work first
		case !chaintest.Full():
			signals = signals[i%2 : i%2+1]
		}
		for _, signal := range signals {
			t.Run(test.name+", "+signal.String(), func(t *testing.T) {
				damage(t, c)
				damaged := allRows(t, c.store)
				if damaged == before {
					t.Fatal("nothing is damaged")
				}
				match := int32(1)
				if test.over {
					match = 2 // a run drops such tables before it begins, too
				}
				code, stderr := stopAt(t, c, newGate(t, test.pattern, test.after, match), signal, args)
				switch {
				case signal == os.Interrupt && (code != 130 || !strings.Contains(stderr, "run it again with --resume to go on\n") || !strings.HasSuffix(stderr, "callscope: interrupted\n")):
					t.Errorf("exit code %d: %s", code, stderr)
				case signal == os.Kill && code != -1:
					t.Errorf("it was not killed, exit code %d: %s", code, stderr)
				}
				if diff := changed(damaged, allRows(t, c.store)); diff != "" && !test.writes {
					t.Errorf("rows that queries see have changed: %s", diff)
				}
				again := append(args, "--resume")
				if test.over {
					if code, _, stderr := command(t, c, again...); code != 2 || !strings.Contains(stderr, "nothing to resume") {
						t.Errorf("resuming what is over: %d, %s", code, stderr)
					}
					again = args
					// What is left may be of another logic.
					for _, left := range leftovers(t, c) {
						if name := left[0].(string); strings.HasSuffix(name, "_events_rows") {
							storetest.Exec(t, c.store, "INSERT INTO "+name+" SELECT * REPLACE (generateUUIDv4() AS record_uid) FROM "+name)
						}
					}
				}
				code, stdout, stderr := command(t, c, again...)
				if code != 0 || !strings.Contains(stdout, "rows differ in total\n") {
					t.Errorf("going on: exit code %d: %s%s", code, stdout, stderr)
				}
				if diff := changed(before, allRows(t, c.store)); diff != "" {
					t.Errorf("after going on: %s", diff)
				}
				if left := leftovers(t, c); len(left) > 0 {
					t.Errorf("tables are left: %v", left)
				}
			})
		}
	}
}

// stopAt runs a command until a gate stops it, and ends it there by a signal.
func stopAt(t testing.TB, c *chain, g *gate, signal os.Signal, args []string) (code int, stderr string) {
	t.Helper()
	cmd, _, errs := process(t, c, g.addr(), args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in its state
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		<-ended
	})
	select {
	case <-g.reached:
	case <-ended:
		t.Fatalf("it ended before it came to %q: %s", g.pattern, errs)
	}
	if err := cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	if signal == syscall.SIGKILL {
		<-ended
	}
	// Interrupted, it may wait for the answer, or not.
	close(g.open)
	<-ended
	<-g.done
	return cmd.ProcessState.ExitCode(), errs.String()
}
