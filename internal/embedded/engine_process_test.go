package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func enginePID(t *testing.T, addr string) (int, error) {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/ping")
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	return strconv.Atoi(resp.Header.Get(headerPID))
}

func restartsTotal(t *testing.T, reg *prometheus.Registry) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "callscope_engine_restarts_total" {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatal("callscope_engine_restarts_total is not registered")
	return 0
}

func TestEngineProcessRestarts(t *testing.T) {
	needLibrary(t)
	dir := t.TempDir()
	reg := prometheus.NewRegistry()
	p := NewEngineProcess(ProcessConfig{DataDir: dir, Addr: "127.0.0.1:0"}, testLog(), reg)
	if p.Addr() != "" {
		t.Errorf("Addr() before ready = %q", p.Addr())
	}
	stop := run(t, p)
	e := &testEngine{addr: p.Addr()}
	if answer, code := e.post(t, "", "CREATE TABLE r ENGINE = MergeTree ORDER BY a AS SELECT 7 AS a"); code != "" {
		t.Fatal(answer)
	}
	pid, err := enginePID(t, p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	for restarts := range 2 {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		old := pid
		eventually(t, func() string {
			if pid, err = enginePID(t, p.Addr()); err != nil {
				return err.Error()
			}
			if pid == old {
				return "the killed engine answers"
			}
			return ""
		})
		if got := e.get(t, "SELECT a FROM r"); got != "7\n" {
			t.Errorf("after restart %d: %q", restarts+1, got)
		}
		if got := restartsTotal(t, reg); got != float64(restarts+1) {
			t.Errorf("callscope_engine_restarts_total = %v, want %d", got, restarts+1)
		}
	}
	if err := stop(); err != nil {
		t.Errorf("Run = %v", err)
	}
	if _, err := enginePID(t, p.Addr()); err == nil {
		t.Error("the engine answers after Run has returned")
	}
	release, err := lockDir("test", dir)
	if err != nil {
		t.Fatal(err)
	}
	release()
}

func TestEngineEndsWithItsParent(t *testing.T) {
	needLibrary(t)
	dir, addr := t.TempDir(), freeAddr(t)
	parent := startChild(t, "parent", addr, dir)
	eventually(t, func() string {
		if _, err := enginePID(t, addr); err != nil {
			return err.Error()
		}
		return ""
	})
	parent.kill(t)
	eventually(t, func() string {
		if _, err := enginePID(t, addr); err == nil {
			return "the engine still answers"
		}
		release, err := lockDir("test", dir)
		if err != nil {
			return err.Error()
		}
		release()
		return ""
	})
}

func TestEngineProcessGivesUp(t *testing.T) {
	library := t.TempDir() + "/libchdb.so"
	if err := os.WriteFile(library, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	p := NewEngineProcess(ProcessConfig{DataDir: t.TempDir(), Addr: freeAddr(t), Library: library, Args: []string{"--fail", "first line\nlast words"}}, testLog(), reg)
	err := p.Run(t.Context())
	if err == nil {
		t.Fatal("Run = nil")
	}
	for _, want := range []string{"5 times in a row", "exit status 3", "first line\nlast words"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
	if got := restartsTotal(t, reg); got != 4 {
		t.Errorf("callscope_engine_restarts_total = %v, want 4", got)
	}
	if p.Addr() != "" {
		t.Errorf("Addr() of an engine that never answered = %q", p.Addr())
	}
}

// A broken engine must not keep a shutdown waiting in its back-off.
func TestEngineProcessStopsWhileFailing(t *testing.T) {
	library := t.TempDir() + "/libchdb.so"
	if err := os.WriteFile(library, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	log := slog.New(slog.NewTextHandler(writerFunc(func(b []byte) {
		if strings.Contains(string(b), "starting it again") {
			cancel()
		}
	}), nil))
	reg := prometheus.NewRegistry()
	p := NewEngineProcess(ProcessConfig{DataDir: t.TempDir(), Addr: freeAddr(t), Library: library, Args: []string{"--fail", "x"}}, log, reg)
	if err := p.Run(ctx); err != nil {
		t.Errorf("Run = %v", err)
	}
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) { f(b); return len(b), nil }

func TestEngineProcessWithoutLibrary(t *testing.T) {
	t.Setenv(libraryEnv, "")
	t.Setenv(otherLibraryEnv, "")
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("HOME", t.TempDir())
	reg := prometheus.NewRegistry()
	p := NewEngineProcess(ProcessConfig{DataDir: t.TempDir(), Addr: "127.0.0.1:0"}, testLog(), reg)
	err := p.Run(t.Context())
	_, want := FindLibrary()
	if err == nil || err.Error() != want.Error() {
		t.Errorf("Run = %v, want %v", err, want)
	}
	if got := restartsTotal(t, reg); got != 0 {
		t.Errorf("callscope_engine_restarts_total = %v", got)
	}
}

// Another engine on the port must not be taken for the own one.
func TestAnswersOnlyForItsProcess(t *testing.T) {
	e := startEngine(t, t.TempDir())
	if !answers(t.Context(), e.addr, e.cmd.Process.Pid) {
		t.Error("the engine does not answer")
	}
	if answers(t.Context(), e.addr, os.Getpid()) {
		t.Error("another process's answer counts")
	}
}

func TestWatchLifeline(t *testing.T) {
	r, w := io.Pipe()
	ctx := WatchLifeline(t.Context(), r)
	fmt.Fprint(w, "anything")
	if ctx.Err() != nil {
		t.Fatal("ended while the parent lives")
	}
	w.Close()
	<-ctx.Done()
	if !errors.Is(context.Cause(ctx), ErrParentGone) {
		t.Errorf("cause = %v", context.Cause(ctx))
	}

	r, w = io.Pipe()
	parent, cancel := context.WithCancel(t.Context())
	ctx = WatchLifeline(parent, r)
	cancel()
	<-ctx.Done()
	w.Close()
}

func TestOutputLines(t *testing.T) {
	var logged []string
	o := &outputLines{log: slog.New(slog.NewTextHandler(writerFunc(func(b []byte) {
		_, line, _ := strings.Cut(string(b), "line=")
		logged = append(logged, strings.TrimSpace(line))
	}), nil))}
	if o.last() != "(it printed nothing)" {
		t.Errorf("last() = %q", o.last())
	}
	for _, part := range []string{"on", "e\ntwo\n\nth", "ree"} {
		fmt.Fprint(o, part)
	}
	if got := strings.Join(logged, "|"); got != "one|two" {
		t.Errorf("logged %q", got)
	}
	o.flush()
	if o.last() != "one\ntwo\nthree" {
		t.Errorf("last() = %q", o.last())
	}
	for i := range 100 {
		fmt.Fprintln(o, i)
	}
	if got := strings.Split(o.last(), "\n"); len(got) != keptOutputLines || got[len(got)-1] != "99" {
		t.Errorf("kept %q", got)
	}
	logged = nil
	fmt.Fprint(o, strings.Repeat("x", maxOutputLineSize+1))
	if len(logged) != 1 {
		t.Errorf("a line without an end was kept back: %d logged", len(logged))
	}
}
