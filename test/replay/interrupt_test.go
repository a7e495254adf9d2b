package replay

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/callscope/callscope/internal/store/storetest"
	"github.com/callscope/callscope/test/chaintest"
)

// gate stands before the engine and stops at the first statement that looks like a pattern: it says so, and lets the
// statement pass when it is told to.
type gate struct {
	server  *httptest.Server
	pattern *regexp.Regexp

	matches atomic.Int32
	reached chan string   // gets the statement
	open    chan struct{} // closed when it may pass
	pass    func()        // closes open, any number of times
	after   bool          // it passes first, and only its answer waits
	done    chan struct{} // closed when it has passed
}

func newGate(t testing.TB, pattern string, after bool) *gate {
	t.Helper()
	g := &gate{pattern: regexp.MustCompile(pattern), after: after, reached: make(chan string, 1), open: make(chan struct{}), done: make(chan struct{})}
	g.pass = sync.OnceFunc(func() { close(g.open) })
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: storetest.Addr(t)})
	proxy.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) } // the client is gone
	g.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the client is gone
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		text := r.URL.Query().Get("query") + " " + plain(body)
		if !g.pattern.MatchString(text) || g.matches.Add(1) != 1 {
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
		{name: "before a partition is noted", pattern: `replay_\w+_progress SELECT 'partition'`},
		{name: "behind a partition", pattern: `replay_\w+_progress SELECT 'partition'`, after: true},
		{name: "comparing", pattern: `FULL OUTER JOIN`},
		{name: "comparing the last table", pattern: `FULL OUTER JOIN \(SELECT .*precall_associations_rows`, after: true},
		{name: "before the generation is noted", pattern: `replay_\w+_progress SELECT 'writing'`},
		{name: "behind the generation", pattern: `replay_\w+_progress SELECT 'writing'`, after: true},
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
				code, stderr := stopAt(t, c, newGate(t, test.pattern, test.after), signal, args)
				switch {
				case signal == os.Interrupt && (code != 130 || !strings.Contains(stderr, "run it again with --resume to go on\n") || !strings.HasSuffix(stderr, "callscope: interrupted\n")):
					t.Errorf("exit code %d: %s", code, stderr)
				case signal == os.Kill && code != -1:
					t.Errorf("it was not killed, exit code %d: %s", code, stderr)
				}
				if diff := changed(damaged, allRows(t, c.store)); diff != "" && !test.writes {
					t.Errorf("rows that queries see have changed: %s", diff)
				}
				if signal == os.Kill {
					age(t, c, 2*time.Minute)
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

// held is callscope in a process of its own that has come to a gate and waits there.
type held struct {
	cmd   *exec.Cmd
	gate  *gate
	errs  *bytes.Buffer // of a process that has ended
	ended chan struct{}
}

func hold(t testing.TB, c *chain, g *gate, args ...string) *held {
	t.Helper()
	cmd, _, errs := process(t, c, g.addr(), args...)
	h := &held{cmd: cmd, gate: g, errs: errs, ended: make(chan struct{})}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait() // how it ended is in its state
		close(h.ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		<-h.ended
		g.pass()
	})
	select {
	case <-g.reached:
	case <-h.ended:
		t.Fatalf("it ended before it came to %q: %s", g.pattern, errs)
	}
	return h
}

func (h *held) signal(t testing.TB, signal os.Signal) {
	t.Helper()
	if err := h.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}

// end opens the gate and waits for the process.
func (h *held) end() (code int, stderr string) {
	h.gate.pass()
	<-h.ended
	<-h.gate.done
	return h.cmd.ProcessState.ExitCode(), h.errs.String()
}

// stopAt runs a command until a gate stops it, and ends it there by a signal.
func stopAt(t testing.TB, c *chain, g *gate, signal os.Signal, args []string) (code int, stderr string) {
	t.Helper()
	h := hold(t, c, g, args...)
	h.signal(t, signal)
	if signal == syscall.SIGKILL {
		<-h.ended
	}
	// Interrupted, it may wait for the answer, or not.
	return h.end()
}

// age makes all that replays have noted older, as waiting would.
func age(t testing.TB, c *chain, d time.Duration) {
	t.Helper()
	for _, table := range leftovers(t, c) {
		if name := table[0].(string); strings.HasSuffix(name, "_progress") {
			storetest.Exec(t, c.store, fmt.Sprintf("ALTER TABLE %s UPDATE at = at - toIntervalSecond(%d) WHERE 1 SETTINGS mutations_sync = 2", name, int(d.Seconds())))
		}
	}
}
