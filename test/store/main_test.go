// Package store holds the whole chain against what can be wrong with its stores and with what is asked of them: another
// schema, a full disk, ids that look like SQL, apps that nobody knows.
package store

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/callscope/callscope/test/chaintest"
)

func TestMain(m *testing.M) { os.Exit(chaintest.Main(m)) }

const appID = "123456789"

// run runs a command to its end. The command must end by itself.
func run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var out, errOut strings.Builder
	cmd := exec.CommandContext(ctx, chaintest.Binary, args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatalf("running callscope %s: %v", strings.Join(args, " "), err)
	}
	if ctx.Err() != nil {
		t.Fatalf("callscope %s does not end by itself:\n%s", strings.Join(args, " "), errOut.String())
	}
	return cmd.ProcessState.ExitCode(), out.String(), errOut.String()
}

// refused runs a command that must end with the code and say what the pattern wants, and nothing of a crash.
func refused(t *testing.T, code int, says string, args ...string) {
	t.Helper()
	got, stdout, stderr := run(t, args...)
	if got != code || !regexp.MustCompile(says).MatchString(stderr) {
		t.Errorf("callscope %s: exit code %d, want %d, and standard error must match %q:\n%s%s", strings.Join(args, " "), got, code, says, stdout, stderr)
	}
	if strings.Contains(stderr, "goroutine ") {
		t.Errorf("callscope %s panicked:\n%s", strings.Join(args, " "), stderr)
	}
}

// succeeded runs a command that must succeed, and returns what it printed.
func succeeded(t *testing.T, args ...string) string {
	t.Helper()
	code, stdout, stderr := run(t, args...)
	if code != 0 {
		t.Fatalf("callscope %s: exit code %d:\n%s", strings.Join(args, " "), code, stderr)
	}
	return stdout
}

// site is a running chain with an engine of its own.
type site struct {
	gateway, engine, broker, admin string
	all                            *chaintest.Process
}

// start runs the chain with the engine's data in a directory of its own.
func start(t *testing.T, engineDir string) site {
	t.Helper()
	s := site{gateway: chaintest.FreeAddress(t), engine: chaintest.FreeAddress(t), broker: chaintest.FreeAddress(t), admin: chaintest.FreeAddress(t)}
	engine := chaintest.Start(t, "callscope engine", "engine", "--data", engineDir, "--addr", s.engine)
	chaintest.Listening(t, engine, s.engine)
	s.all = chaintest.Start(t, "callscope all", append([]string{"all", "--demo", "--data", t.TempDir(), "--log-level", "warn",
		"--set", "gateway.addr=" + s.gateway, "--set", "admin.addr=" + s.admin, "--set", "kafka.embedded_addr=" + s.broker}, s.clickhouse()...)...)
	chaintest.Ready(t, s.all, s.admin)
	return s
}

func (s site) clickhouse() []string {
	return []string{"--set", "clickhouse.addr=" + s.engine, "--set", "clickhouse.protocol=http"}
}

func (s site) kafka() []string { return []string{"--set", "kafka.embedded_addr=" + s.broker} }

func (s site) servers() []string { return append(s.clickhouse(), s.kafka()...) }

// tmpfs mounts a file system of its own, or skips the test where that is not allowed.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("callscope-test", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("a small file system cannot be mounted here (%v): root on Linux is needed", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmounting %s: %v", dir, err)
		}
	})
	return dir
}

func count(t *testing.T, engine, sql string) int {
	t.Helper()
	return int(chaintest.MustQuery(t, engine, sql).Rows[0][0].(float64))
}
