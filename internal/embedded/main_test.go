package embedded

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

// TestMain runs the tests, or, when the test binary was started by one of them
// with a sub-command, the child process that the test needs.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if child := children[os.Args[1]]; child != nil {
			if err := child(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	goleak.VerifyTestMain(m)
}

var children = map[string]func(args []string) error{
	"engine":  engineChild,
	"broker":  brokerChild,
	"parent":  parentChild,
	"signals": signalsChild,
}

// engineChild does what `callscope engine` does.
func engineChild(args []string) error {
	var cfg EngineConfig
	flags := flag.NewFlagSet("engine", flag.ContinueOnError)
	flags.StringVar(&cfg.Addr, "addr", "", "")
	flags.StringVar(&cfg.DataDir, "data", "", "")
	flags.IntVar(&cfg.Connections, "connections", 0, "")
	lifeline := flags.Bool("lifeline", false, "")
	fail := flags.String("fail", "", "print this and exit 3")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *fail != "" {
		fmt.Println(*fail)
		os.Exit(3)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if *lifeline {
		ctx = WatchLifeline(ctx, os.Stdin)
	}
	return NewEngine(cfg, testLog()).Run(ctx)
}

func brokerChild(args []string) error {
	return NewBroker(BrokerConfig{Addr: args[0], DataDir: args[1]}, testLog()).Run(context.Background())
}

// parentChild runs an EngineProcess until it is killed.
func parentChild(args []string) error {
	return NewEngineProcess(ProcessConfig{Addr: args[0], DataDir: args[1]}, testLog(), prometheus.NewRegistry()).Run(context.Background())
}

func testLog() *slog.Logger {
	if os.Getenv("CALLSCOPE_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return slog.New(slog.DiscardHandler)
}

// needLibrary skips the test when the ClickHouse library was not fetched. CI
// fetches it, so there it fails.
func needLibrary(t *testing.T) {
	t.Helper()
	if _, err := FindLibrary(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("needs the ClickHouse library: %v", err)
	}
}

// eventually polls until done returns "", and fails with the last reason why
// it did not.
func eventually(t *testing.T, done func() (reason string)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		reason := done()
		if reason == "" {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("gave up waiting: %s", reason)
		case <-tick.C:
		}
	}
}

// childProcess is this test binary, run with a sub-command.
type childProcess struct {
	cmd    *exec.Cmd
	output *outputLines
	exited chan error
}

func startChild(t *testing.T, args ...string) *childProcess {
	t.Helper()
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &childProcess{cmd: exec.Command(executable, args...), output: &outputLines{log: testLog()}, exited: make(chan error, 1)}
	c.cmd.Stdout, c.cmd.Stderr = c.output, c.output
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		c.exited <- c.cmd.Wait()
		c.output.flush()
		close(done)
	}()
	t.Cleanup(func() {
		c.cmd.Process.Kill()
		<-done
		if t.Failed() {
			t.Logf("%s: %s", strings.Join(args, " "), c.output.last())
		}
	})
	return c
}

// kill ends the child as a crash would.
func (c *childProcess) kill(t *testing.T) {
	t.Helper()
	if err := c.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-c.exited
}

func freeAddr(t *testing.T) string {
	t.Helper()
	addr, err := fixPort("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// running is something with Run, Ready and Addr.
type running interface {
	Run(context.Context) error
	Ready() <-chan struct{}
	Addr() string
}

// run runs r until the test's end or until stop, which returns what Run
// returned, and waits for it to be ready.
func run(t *testing.T, r running) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	returned := make(chan struct{})
	var err error
	go func() { err = r.Run(ctx); close(returned) }()
	stop = func() error { cancel(); <-returned; return err }
	t.Cleanup(func() { stop() })
	select {
	case <-r.Ready():
	case <-returned:
		t.Fatalf("Run returned before it was ready: %v", err)
	case <-time.After(60 * time.Second):
		t.Fatal("not ready after 60 s")
	}
	return stop
}

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
