// Package storetest gives tests a real ClickHouse: the embedded engine, started once for each test binary in a child
// process, with a database of its own for each test. It is no fake and has no product code of its own.
//
// A package that uses it needs
//
//	func TestMain(m *testing.M) { storetest.Main(m) }
//
// With CALLSCOPE_TEST_CLICKHOUSE=host:port a running server is used instead, over HTTP on ports 8123 and 8443.
package storetest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/callscope/callscope/internal/embedded"
	"github.com/callscope/callscope/internal/store"
)

const serverEnv = "CALLSCOPE_TEST_CLICKHOUSE"

// startLimit is how long the engine may take to answer on a loaded machine.
const startLimit = time.Minute

// Main runs the tests of a package, stops the engine, and fails when goroutines are left. Started as the engine's child
// process it runs the engine instead.
func Main(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "engine" {
		if err := runEngine(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if err := engine.stop(); err != nil {
		fmt.Fprintln(os.Stderr, "stopping the embedded engine:", err)
		code = max(code, 1)
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, "goroutines are left:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// runEngine does what `callscope engine` does.
func runEngine(args []string) error {
	var cfg embedded.EngineConfig
	flags := flag.NewFlagSet("engine", flag.ContinueOnError)
	flags.StringVar(&cfg.Addr, "addr", "", "")
	flags.StringVar(&cfg.DataDir, "data", "", "")
	lifeline := flags.Bool("lifeline", false, "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if *lifeline {
		ctx = embedded.WatchLifeline(ctx, os.Stdin)
	}
	return embedded.NewEngine(cfg, slog.New(slog.DiscardHandler)).Run(ctx)
}

// engine is the one engine of this test binary.
var engine sharedEngine

type sharedEngine struct {
	once    sync.Once
	addr    string
	err     error
	dir     string
	process *embedded.EngineProcess
	cancel  context.CancelFunc
	done    chan error
}

func (e *sharedEngine) start() {
	if e.dir, e.err = os.MkdirTemp("", "callscope-engine-"); e.err != nil {
		return
	}
	var ctx context.Context
	ctx, e.cancel = context.WithCancel(context.Background())
	e.process = embedded.NewEngineProcess(embedded.ProcessConfig{DataDir: e.dir, Addr: "127.0.0.1:0"},
		slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	e.done = make(chan error, 1)
	go func() { e.done <- e.process.Run(ctx) }()
	select {
	case <-e.process.Ready():
		e.addr = e.process.Addr()
	case e.err = <-e.done:
		e.done <- nil
		if e.err == nil {
			e.err = errors.New("the embedded engine ended by itself")
		}
	case <-time.After(startLimit):
		e.err = fmt.Errorf("the embedded engine did not answer within %s", startLimit)
	}
}

func (e *sharedEngine) stop() error {
	if e.cancel == nil {
		return nil
	}
	e.cancel()
	return errors.Join(<-e.done, os.RemoveAll(e.dir))
}

// Addr returns the host:port of a ClickHouse server, started when a test first asks. Without the engine's library the
// test is skipped, or fails where CI=true.
func Addr(t testing.TB) string {
	t.Helper()
	if addr := os.Getenv(serverEnv); addr != "" {
		return addr
	}
	if _, err := embedded.FindLibrary(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	engine.once.Do(engine.start)
	if engine.err != nil {
		t.Fatalf("starting the embedded engine: %v", engine.err)
	}
	return engine.addr
}

// Config returns the settings of a database that no other test uses. The database does not exist yet; it is dropped
// when the test ends.
func Config(t testing.TB) store.Config {
	t.Helper()
	var random [6]byte
	if _, err := rand.Read(random[:]); err != nil {
		t.Fatal(err)
	}
	cfg := store.Config{Addr: []string{Addr(t)}, Protocol: store.ProtocolHTTP, Database: "test_" + hex.EncodeToString(random[:])}
	if _, port, _ := net.SplitHostPort(cfg.Addr[0]); os.Getenv(serverEnv) != "" && strings.HasPrefix(port, "9") {
		cfg.Protocol = store.ProtocolNative
	}
	t.Cleanup(func() {
		admin := cfg
		admin.Database = "default"
		s := open(t, admin)
		defer s.Close()
		Exec(t, s, "DROP DATABASE IF EXISTS "+cfg.Database)
	})
	return cfg
}

// Engine returns a store with an empty, migrated database of its own. It is closed when the test ends.
func Engine(t testing.TB) *store.Store {
	t.Helper()
	s := open(t, Config(t))
	t.Cleanup(func() { s.Close() })
	if err := s.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

func open(t testing.TB, cfg store.Config) *store.Store {
	t.Helper()
	s, err := store.Open(cfg, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Exec runs a statement.
func Exec(t testing.TB, s *store.Store, sql string) {
	t.Helper()
	Query(t, s, sql)
}

// Query returns all rows of a query, as store.Result gives them.
func Query(t testing.TB, s *store.Store, sql string) [][]any {
	t.Helper()
	// Not the test's context: clean-up functions query too, and it has ended then.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	result, err := s.Query(ctx, sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	defer result.Close()
	var all [][]any
	for row, err := range result.Rows() {
		if err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		all = append(all, row)
	}
	return all
}
