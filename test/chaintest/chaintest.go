// Package chaintest runs the real binary for tests: it builds callscope once, starts, pauses and kills its processes, and
// asks the engine over plain HTTP. It uses nothing of callscope's code.
package chaintest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Binary is the callscope that tests drive.
var Binary string

// FullEnv asks for the tests that take long: CALLSCOPE_FULL=1.
const FullEnv = "CALLSCOPE_FULL"

// Full says whether the long tests were asked for.
func Full() bool { return os.Getenv(FullEnv) == "1" }

// Main builds the binary, or takes the one that CALLSCOPE_TEST_BINARY names, and runs a package's tests.
func Main(m *testing.M) int {
	if Binary = os.Getenv("CALLSCOPE_TEST_BINARY"); Binary != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "callscope-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "making a folder for the binary:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	Binary = filepath.Join(dir, "callscope")
	build := exec.Command("go", "build", "-o", Binary, "github.com/callscope/callscope/cmd/callscope")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "building callscope:", err)
		return 1
	}
	return m.Run()
}

// FreeAddress returns a loopback address that nothing listens on now.
func FreeAddress(t testing.TB) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("finding a free port: %v", err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// Process is one callscope that a test started.
type Process struct {
	name   string
	cmd    *exec.Cmd
	output *lockedBuffer
	done   chan struct{}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Start runs callscope until the test ends, and then stops it by SIGTERM. It prints what the process said when the test
// failed.
func Start(t testing.TB, name string, args ...string) *Process {
	t.Helper()
	p := &Process{name: name, cmd: exec.Command(Binary, args...), output: &lockedBuffer{}, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	go func() {
		_ = p.cmd.Wait() // how it ended shows in what it said
		close(p.done)
	}()
	t.Cleanup(func() {
		p.Stop()
		if t.Failed() {
			said := p.output.String()
			if len(said) > 6000 {
				said = "…" + said[len(said)-6000:]
			}
			t.Logf("%s said:\n%s", name, said)
		}
	})
	return p
}

// Stop asks for a clean shutdown and kills the process when it does not come.
func (p *Process) Stop() { _ = p.StopWithin(30 * time.Second) }

// StopWithin asks for a clean shutdown. It is an error when the process has to be killed because it does not come.
func (p *Process) StopWithin(d time.Duration) error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	select {
	case <-p.done:
		return nil
	case <-time.After(d):
		p.Kill()
		return fmt.Errorf("%s did not end within %s of SIGTERM", p.name, d)
	}
}

// Pid is the process's id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Kill ends the process at once, as a crash would, and returns when it is gone.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Pause stops the process in mid-instruction, Resume lets it go on: a machine that slept, a long pause.
func (p *Process) Pause() error  { return p.cmd.Process.Signal(syscall.SIGSTOP) }
func (p *Process) Resume() error { return p.cmd.Process.Signal(syscall.SIGCONT) }

// Output is what the process has said so far.
func (p *Process) Output() string { return p.output.String() }

// Eventually polls until check returns "", and fails with the last reason why it did not.
func Eventually(t testing.TB, within time.Duration, what string, check func() string) {
	t.Helper()
	deadline := time.Now().Add(within)
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		reason := check()
		if reason == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %s", what, within, reason)
		}
		<-ticker.C
	}
}

// Ready waits until the process says that it is.
func Ready(t testing.TB, p *Process, admin string) {
	t.Helper()
	Eventually(t, 90*time.Second, p.name+" becoming ready", func() string {
		select {
		case <-p.done:
			t.Fatalf("%s ended while starting:\n%s", p.name, p.output)
		default:
		}
		response, err := http.Get("http://" + admin + "/readyz?verbose")
		if err != nil {
			return err.Error()
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode != http.StatusOK {
			return fmt.Sprintf("%s: %s %v", response.Status, body, err)
		}
		return ""
	})
}

// Listening waits until something accepts connections.
func Listening(t testing.TB, p *Process, address string) {
	t.Helper()
	Eventually(t, 60*time.Second, p.name+" listening on "+address, func() string {
		select {
		case <-p.done:
			t.Fatalf("%s ended while starting:\n%s", p.name, p.output)
		default:
		}
		connection, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return err.Error()
		}
		connection.Close()
		return ""
	})
}

// Answer is what a query gave.
type Answer struct {
	Columns  []string
	Rows     [][]any // JSON values: string, float64, bool, nil, []any
	ReadRows int64   // rows that the engine read for it
	Took     time.Duration
}

// Query runs one statement in the database callscope over the engine's HTTP interface.
func Query(engine, sql string) (a Answer, err error) {
	parameters := url.Values{"database": {"callscope"}, "output_format_json_quote_64bit_integers": {"0"}, "wait_end_of_query": {"1"}}
	text := sql
	if word := strings.ToUpper(strings.Fields(sql)[0]); word == "SELECT" || word == "WITH" || word == "EXPLAIN" {
		text += "\nFORMAT JSONCompactEachRowWithNames"
	}
	started := time.Now()
	response, err := http.Post("http://"+engine+"/?"+parameters.Encode(), "text/plain", strings.NewReader(text))
	if err != nil {
		return a, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return a, err
	}
	a.Took = time.Since(started)
	if response.StatusCode != http.StatusOK {
		return a, fmt.Errorf("%s: %s", response.Status, strings.TrimSpace(string(body)))
	}
	var summary struct {
		ReadRows string `json:"read_rows"`
	}
	if text := response.Header.Get("X-ClickHouse-Summary"); text != "" {
		if err := json.Unmarshal([]byte(text), &summary); err != nil {
			return a, fmt.Errorf("reading the summary %q: %w", text, err)
		}
		if a.ReadRows, err = strconv.ParseInt(summary.ReadRows, 10, 64); err != nil {
			return a, fmt.Errorf("reading the summary %q: %w", text, err)
		}
	}
	for i, line := range strings.Split(strings.TrimSpace(string(body)), "\n") {
		switch {
		case line == "":
		case i == 0:
			err = json.Unmarshal([]byte(line), &a.Columns)
		default:
			var row []any
			err = json.Unmarshal([]byte(line), &row)
			a.Rows = append(a.Rows, row)
		}
		if err != nil {
			return a, fmt.Errorf("reading %q: %w", line, err)
		}
	}
	return a, nil
}

// MustQuery is Query for statements that cannot fail.
func MustQuery(t testing.TB, engine, sql string) Answer {
	t.Helper()
	a, err := Query(engine, sql)
	if err != nil {
		t.Fatalf("querying %s: %v", sql, err)
	}
	return a
}

// Record is one row by its columns' names.
type Record map[string]any

// Records gives the rows by name.
func (a Answer) Records() []Record {
	var all []Record
	for _, row := range a.Rows {
		r := make(Record, len(row))
		for i, v := range row {
			r[a.Columns[i]] = v
		}
		all = append(all, r)
	}
	return all
}

// Text is a text column, "" for NULL.
func (r Record) Text(column string) string {
	s, _ := r[column].(string)
	return s
}

// Number is a number column; ok is false for NULL.
func (r Record) Number(column string) (n float64, ok bool) {
	n, ok = r[column].(float64)
	return n, ok
}
