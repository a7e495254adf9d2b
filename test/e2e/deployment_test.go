// Package e2e drives the real binary: it plays recorded calls through it and
// holds the rows in SQL against an independent reading of the recordings. It
// uses nothing of callscope's code but the player's entry point.
package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// binary is the callscope that the tests drive, built once.
var binary string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "callscope-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "making a folder for the binary:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "callscope")
	build := exec.Command("go", "build", "-o", binary, "github.com/callscope/callscope/cmd/callscope")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "building callscope:", err)
		return 1
	}
	return m.Run()
}

// freeAddress returns a loopback address that nothing listens on now.
func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("finding a free port: %v", err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// process is one callscope that the test started.
type process struct {
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

// start runs callscope until the test ends, and then stops it by SIGTERM. It
// prints what the process said when the test failed.
func start(t *testing.T, name string, args ...string) *process {
	t.Helper()
	p := &process{name: name, cmd: exec.Command(binary, args...), output: &lockedBuffer{}, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			t.Logf("%s said:\n%s", name, tail(p.output.String(), 12000))
		}
	})
	return p
}

func tail(s string, bytes int) string {
	if len(s) > bytes {
		return "…" + s[len(s)-bytes:]
	}
	return s
}

// stop asks for a clean shutdown and kills the process when it does not come.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		p.kill()
	}
}

// kill ends the process at once, as a crash would.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// eventually polls until check returns "", and fails with the last reason why
// it did not.
func eventually(t *testing.T, within time.Duration, what string, check func() string) {
	t.Helper()
	deadline := time.Now().Add(within)
	ticker := time.NewTicker(200 * time.Millisecond)
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

func ready(t *testing.T, p *process, admin string) {
	t.Helper()
	eventually(t, 90*time.Second, p.name+" becoming ready", func() string {
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
		body, _ := io.ReadAll(response.Body)
		if response.StatusCode != http.StatusOK {
			return fmt.Sprintf("%s: %s", response.Status, body)
		}
		return ""
	})
}

// deployment is a whole running chain.
type deployment struct {
	gateway string // address of the gateway
	engine  string // address of the engine's HTTP interface
	admin   string // address of the admin server, of one process
	one     *process
	again   func() *process // starts the one process again, same data
}

// oneProcess runs the chain as `callscope all` with everything embedded.
func oneProcess(t *testing.T) *deployment {
	t.Helper()
	dir := t.TempDir()
	d := &deployment{gateway: freeAddress(t), engine: freeAddress(t), admin: freeAddress(t)}
	broker := freeAddress(t)
	d.again = func() *process {
		p := start(t, "callscope all", "all", "--demo", "--data", dir,
			"--set", "gateway.addr="+d.gateway, "--set", "admin.addr="+d.admin,
			"--set", "kafka.embedded_addr="+broker, "--set", "clickhouse.embedded_addr="+d.engine)
		ready(t, p, d.admin)
		return p
	}
	d.one = d.again()
	return d
}

// separateProcesses runs each service as a process of its own. Without brokers
// the embedded broker runs in one more.
func separateProcesses(t *testing.T, brokers string) *deployment {
	t.Helper()
	dir := t.TempDir()
	d := &deployment{gateway: freeAddress(t), engine: freeAddress(t)}
	if brokers == "" {
		brokers = freeAddress(t)
		p := start(t, "callscope broker", "broker", "--data", dir, "--set", "kafka.embedded_addr="+brokers)
		listening(t, p, brokers)
	}
	p := start(t, "callscope engine", "engine", "--data", filepath.Join(dir, "engine"), "--addr", d.engine)
	listening(t, p, d.engine)

	config := filepath.Join(dir, "callscope.yaml")
	text := fmt.Sprintf(`
kafka:
  brokers: [%q]
  partitions: 4
clickhouse:
  addr: [%q]
  protocol: http
gateway:
  addr: %q
  token_key: an-end-to-end-test-token-key-0123456789
apps:
  - id: "123456789"
    name: recordings
    secrets: [synthetic-app-secret-01]
`, brokers, d.engine, d.gateway)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatalf("writing the configuration: %v", err)
	}
	out, err := exec.Command(binary, "migrate", "--config", config).CombinedOutput()
	if err != nil {
		t.Fatalf("callscope migrate: %v\n%s", err, out)
	}
	for _, service := range []string{"sink", "summarizer", "enricher", "gateway"} {
		admin := freeAddress(t)
		ready(t, start(t, "callscope "+service, service, "--config", config, "--set", "admin.addr="+admin), admin)
	}
	return d
}

func listening(t *testing.T, p *process, address string) {
	t.Helper()
	eventually(t, 60*time.Second, p.name+" listening on "+address, func() string {
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

// playAll plays recordings side by side at their recorded speed and wants every
// request answered.
func playAll(t *testing.T, d *deployment, captures ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var players sync.WaitGroup
	for _, capture := range captures {
		players.Go(func() {
			args := []string{"play", filepath.Join("..", "captures", capture), "--gateway", "http://" + d.gateway}
			if out, err := exec.CommandContext(ctx, binary, args...).CombinedOutput(); err != nil {
				t.Errorf("callscope play %s: %v\n%s", capture, err, tail(string(out), 4000))
			}
		})
	}
	players.Wait()
}

// settled waits until the given number of conferences has a final summary and
// nothing is on its way any more.
func settled(t *testing.T, d *deployment, conferences int) {
	t.Helper()
	eventually(t, 3*time.Minute, "the calls ending", func() string {
		rows, err := query(d.engine, "SELECT conference_id, state FROM conferences")
		if err != nil {
			return err.Error()
		}
		final := 0
		var open []string
		for _, r := range rows {
			if s := r.text("state"); s == "final" || s == "revised" {
				final++
			} else {
				open = append(open, r.text("conference_id")+" is "+s)
			}
		}
		if final != conferences {
			return fmt.Sprintf("%d of %d have ended; %s", final, conferences, strings.Join(open, ", "))
		}
		return ""
	})
}
