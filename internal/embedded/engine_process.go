package embedded

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	maxFailedStarts   = 5                // in a row, before giving up
	startTimeout      = 2 * time.Minute  // from the start of the process to the first answer
	killTimeout       = 10 * time.Second // from SIGTERM to SIGKILL
	firstBackoff      = 100 * time.Millisecond
	maxBackoff        = 10 * time.Second
	stableAfter       = time.Minute // a process that lived this long resets the back-off
	pingInterval      = 50 * time.Millisecond
	keptOutputLines   = 20
	maxOutputLineSize = 64 << 10
)

// ProcessConfig configures an EngineProcess.
type ProcessConfig struct {
	DataDir    string   // required
	Addr       string   // host:port on loopback, default 127.0.0.1:8123; port 0 takes a free port
	Library    string   // path of the ClickHouse library, default FindLibrary()
	Executable string   // default os.Executable()
	Args       []string // added after "engine --addr ADDR --data DIR --lifeline"
}

// EngineProcess runs `callscope engine` as a child process and keeps it
// running. The child ends with this process, however this one ends.
type EngineProcess struct {
	cfg      ProcessConfig
	log      *slog.Logger
	restarts prometheus.Counter
	ready    chan struct{}
	addr     string // written before ready is closed
}

// NewEngineProcess returns a process that is not started until Run. It
// registers callscope_engine_restarts_total.
func NewEngineProcess(cfg ProcessConfig, log *slog.Logger, reg prometheus.Registerer) *EngineProcess {
	if cfg.Addr == "" {
		cfg.Addr = defaultEngineAddr
	}
	restarts := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "callscope_engine_restarts_total",
		Help: "Times the embedded ClickHouse engine's process was started again after it ended by itself.",
	})
	reg.MustRegister(restarts)
	return &EngineProcess{cfg: cfg, log: log, restarts: restarts, ready: make(chan struct{})}
}

// Ready is closed when the engine answers for the first time. It may be away
// for a moment later, while it is restarted; its clients have to try again.
func (p *EngineProcess) Ready() <-chan struct{} { return p.ready }

// Addr is the engine's host:port, the same after a restart. It is empty until
// Ready is closed.
func (p *EngineProcess) Addr() string {
	select {
	case <-p.ready:
		return p.addr
	default:
		return ""
	}
}

// Run starts the engine, restarts it with capped back-off when it ends, and
// stops it (SIGTERM, after 10 s SIGKILL) and returns nil when ctx is done. It
// fails at once when there is no library, and when the engine failed to start
// 5 times in a row; that error quotes the engine's last lines.
func (p *EngineProcess) Run(ctx context.Context) error {
	library := p.cfg.Library
	if library == "" {
		var err error
		if library, err = FindLibrary(); err != nil {
			return err
		}
	}
	executable := p.cfg.Executable
	if executable == "" {
		var err error
		if executable, err = os.Executable(); err != nil {
			return fmt.Errorf("finding the executable of the embedded engine: %w", err)
		}
	}
	addr, err := fixPort(p.cfg.Addr)
	if err != nil {
		return err
	}
	p.addr = addr

	failures, backoff := 0, firstBackoff
	for {
		started := time.Now()
		output := &outputLines{log: p.log}
		wasReady, err := p.runOnce(ctx, executable, library, output)
		if ctx.Err() != nil {
			if err != nil {
				p.log.Warn("the embedded engine did not stop cleanly", "error", err)
			}
			return nil
		}
		if wasReady {
			failures = 0
		} else if failures++; failures == maxFailedStarts {
			return fmt.Errorf("the embedded engine failed to start %d times in a row (%w); its last lines:\n%s", failures, err, output.last())
		}
		if time.Since(started) >= stableAfter {
			backoff = firstBackoff
		}
		p.log.Warn("the embedded engine ended, starting it again", "error", err, "was_ready", wasReady, "backoff_ms", backoff.Milliseconds())
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, maxBackoff)
		p.restarts.Inc()
	}
}

// runOnce runs one process to its end and reports whether it ever answered.
// The error says how it ended; it is nil only when ctx ended it cleanly.
func (p *EngineProcess) runOnce(ctx context.Context, executable, library string, output *outputLines) (wasReady bool, err error) {
	cmd := exec.CommandContext(ctx, executable, append([]string{"engine", "--addr", p.addr, "--data", p.cfg.DataDir, "--lifeline"}, p.cfg.Args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = killTimeout
	cmd.Env = append(os.Environ(), libraryEnv+"="+library)
	// A group of its own: Ctrl-C on a terminal must reach the parent alone,
	// which still has to drain into the engine.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	lifeline, err := cmd.StdinPipe()
	if err != nil {
		return false, fmt.Errorf("making the engine's lifeline: %w", err)
	}
	defer lifeline.Close()
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		return false, fmt.Errorf("starting %s: %w", executable, err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()

	deadline := time.After(startTimeout)
	ping := time.NewTicker(pingInterval)
	defer ping.Stop()
	timedOut := false
	for {
		select {
		case err := <-exited:
			output.flush()
			switch {
			case timedOut:
				err = fmt.Errorf("it did not answer within %s", startTimeout)
			case ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)):
				err = nil
			case err == nil:
				err = errors.New("it exited with status 0")
			}
			return wasReady, err
		case <-deadline:
			if !wasReady {
				timedOut = true
				_ = cmd.Process.Kill() // it may have ended by itself
			}
		case <-ping.C:
			if answers(ctx, p.addr, cmd.Process.Pid) {
				ping.Stop()
				wasReady = true
				p.announce(cmd.Process.Pid)
			}
		}
	}
}

func (p *EngineProcess) announce(pid int) {
	p.log.Info("embedded engine is ready", "addr", p.addr, "pid", pid)
	select {
	case <-p.ready:
	default:
		close(p.ready)
	}
}

// answers reports whether the engine with this process id answers on addr;
// another process on that port does not count.
func answers(ctx context.Context, addr string, pid int) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/ping", nil)
	if err != nil {
		return false
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1024)) // only so that the connection is used again
	return resp.StatusCode == http.StatusOK && resp.Header.Get(headerPID) == strconv.Itoa(pid)
}

// fixPort replaces port 0 by a free port, so that the address stays the same
// when the engine is restarted.
func fixPort(addr string) (string, error) {
	if _, port, err := net.SplitHostPort(addr); err == nil && port != "0" {
		return addr, nil
	}
	l, err := listenLoopback("the embedded ClickHouse engine", addr, "clickhouse.embedded_addr")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// outputLines passes a process's output on line by line and keeps the end.
type outputLines struct {
	log *slog.Logger

	mu      sync.Mutex
	partial []byte
	kept    []string
}

func (o *outputLines) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.partial = append(o.partial, b...)
	for {
		advance, line, _ := bufio.ScanLines(o.partial, len(o.partial) > maxOutputLineSize)
		if advance == 0 {
			return len(b), nil
		}
		o.line(string(line))
		o.partial = o.partial[advance:]
	}
}

// flush passes on a last line without an end.
func (o *outputLines) flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.partial) > 0 {
		o.line(string(o.partial))
		o.partial = nil
	}
}

func (o *outputLines) line(line string) {
	if strings.TrimSpace(line) == "" {
		return
	}
	o.log.Info("embedded engine output", "line", line)
	o.kept = append(o.kept, line)
	if len(o.kept) > keptOutputLines {
		o.kept = o.kept[1:]
	}
}

func (o *outputLines) last() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.kept) == 0 {
		return "(it printed nothing)"
	}
	return strings.Join(o.kept, "\n")
}
