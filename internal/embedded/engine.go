package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// drainTimeout bounds how long a stopping engine waits for statements that are
// running. It is below the time after which EngineProcess kills.
const drainTimeout = 8 * time.Second

// EngineConfig configures an Engine.
type EngineConfig struct {
	DataDir        string // required; made when missing
	Addr           string // host:port on loopback, default 127.0.0.1:8123; port 0 takes a free port
	Library        string // path of the ClickHouse library, default FindLibrary()
	Connections    int    // statements that run at a time, default 8; more wait
	MaxMemoryBytes int64  // of all statements and merges together, default 2 GiB
}

// Engine is ClickHouse's own library behind ClickHouse's HTTP interface.
//
// It serves /ping and statements as ClickHouse does: text in the query
// parameter or the body or both, data of an INSERT streamed from the body,
// settings and param_* as URL parameters, database, default_format, gzip or
// compressed-block bodies (decompress=1), compressed-block answers
// (compress=1). Each request has a session of its own: settings, current
// database and temporary tables end with it. There are no users (credentials
// are ignored), no HTTP sessions, no external tables, and query_id is ignored.
// A statement whose client goes away is killed, except an INSERT that has all
// its data; log_comment, by which it is found, has the request's number at its
// end.
//
// A process can run one Engine, once: the library starts once per process.
// Run it in a process of its own (EngineProcess): the library can abort.
type Engine struct {
	cfg   EngineConfig
	log   *slog.Logger
	ready chan struct{}
	addr  string // written before ready is closed

	lib   *chdb
	args  []string
	hello serverHello
	slots chan struct{}
	busy  sync.WaitGroup

	requests atomic.Uint64 // without data of an INSERT, so far
}

// NewEngine returns an engine that does nothing until Run.
func NewEngine(cfg EngineConfig, log *slog.Logger) *Engine {
	if cfg.Addr == "" {
		cfg.Addr = defaultEngineAddr
	}
	if cfg.Connections <= 0 {
		cfg.Connections = 8
	}
	if cfg.MaxMemoryBytes <= 0 {
		cfg.MaxMemoryBytes = 2 << 30
	}
	return &Engine{cfg: cfg, log: log, ready: make(chan struct{}), slots: make(chan struct{}, cfg.Connections)}
}

const defaultEngineAddr = "127.0.0.1:8123"

// Ready is closed when the engine answers requests.
func (e *Engine) Ready() <-chan struct{} { return e.ready }

// Addr is the host:port that the engine listens on, empty until Ready is
// closed.
func (e *Engine) Addr() string {
	select {
	case <-e.ready:
		return e.addr
	default:
		return ""
	}
}

// Run serves until ctx is done, waits for running statements up to 8 s and
// closes the engine; it then returns nil, or an error when statements were
// still running, after which the process must exit. It fails at once when
// there is no library, the directory is in use, or the address is taken or not
// loopback.
func (e *Engine) Run(ctx context.Context) error {
	const what = "the embedded ClickHouse engine"
	library := e.cfg.Library
	if library == "" {
		var err error
		if library, err = FindLibrary(); err != nil {
			return err
		}
	}
	dir, err := filepath.Abs(e.cfg.DataDir)
	if err != nil {
		return fmt.Errorf("finding data directory %s: %w", e.cfg.DataDir, err)
	}
	release, err := lockDir(what, e.cfg.DataDir)
	if err != nil {
		return err
	}
	defer release()
	listener, err := listenLoopback(what, e.cfg.Addr, "clickhouse.embedded_addr")
	if err != nil {
		return err
	}
	defer listener.Close()

	started := time.Now()
	first, err := e.start(library, dir)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           e.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(e.log.Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	e.addr = listener.Addr().String()
	close(e.ready)
	e.log.Info("embedded engine is up", "addr", e.addr, "data_dir", dir, "clickhouse_version", e.hello.version,
		"connections", e.cfg.Connections, "max_memory_bytes", e.cfg.MaxMemoryBytes, "start_ms", time.Since(started).Milliseconds())

	select {
	case <-ctx.Done():
	case err = <-served:
		err = fmt.Errorf("serving the embedded engine on %s: %w", e.addr, err)
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if server.Shutdown(drain) != nil {
		server.Close() // kills what still runs
	}
	if !e.wait(time.Second) {
		return errors.Join(err, fmt.Errorf("statements still ran %s after the embedded engine on %s was told to stop", drainTimeout, dir))
	}
	first.close() // the last session: this stops the engine and its background work
	e.log.Info("embedded engine is closed", "addr", e.addr)
	return err
}

// The library would else take settings, and over those of engineArgs, from a config.xml or clickhouse-local.xml that
// happens to lie in the directory where it is started, or from files of clickhouse-local in the user's home and in /etc.
const (
	configFile  = "callscope-config.xml" // in the data directory
	emptyConfig = "<!-- Changes are undone at the next start. It keeps the engine from reading another one's configuration. -->\n<clickhouse/>\n"
)

// start loads the library and opens the session that keeps the engine alive.
func (e *Engine) start(library, dir string) (*session, error) {
	// The engine reads its time zone from here. UTC makes a query mean the same
	// on every machine.
	if err := os.Setenv("TZ", "UTC"); err != nil {
		return nil, fmt.Errorf("setting the engine's time zone: %w", err)
	}
	config := filepath.Join(dir, configFile)
	// Written only where it is not there yet: a full disk must not keep the engine from starting.
	if text, err := os.ReadFile(config); err != nil || string(text) != emptyConfig {
		if err := os.WriteFile(config, []byte(emptyConfig), 0o600); err != nil {
			return nil, fmt.Errorf("writing the embedded engine's configuration: %w", err)
		}
	}
	var first *session
	restored, err := keepSignalHandlers(func() (err error) {
		if e.lib, err = loadCHDB(library); err != nil {
			return err
		}
		first, err = e.lib.open(append(engineArgs(dir, e.cfg.MaxMemoryBytes), "--config-file="+config))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("starting the embedded engine on %s: %w", dir, err)
	}
	if len(restored) > 0 {
		e.log.Debug("signal handlers put back after the library loaded", "signals", fmt.Sprint(restored))
	}
	// The setting lets what one side of a join leaves over prune, by index, what
	// is read of the other: so the pre-call tests of one conference are found.
	e.args = []string{"--path=" + dir, "--enable_join_runtime_filters_index_analysis=1"}
	err = first.query("SELECT version(), timezone()", "TabSeparatedRaw", nil, func(out []byte, _ statistics) error {
		fields := strings.Split(strings.TrimSpace(string(out)), "\t")
		if len(fields) != 2 {
			return fmt.Errorf("unexpected answer %q", out)
		}
		e.hello = serverHello{version: fields[0], timezone: fields[1]}
		return nil
	})
	if err != nil {
		first.close()
		return nil, fmt.Errorf("asking the embedded engine for its version: %w", err)
	}
	return first, nil
}

// engineArgs are the server's settings. The defaults are made for a large
// machine that runs nothing else: 90 % of the memory and 16 merges at a time.
func engineArgs(dir string, maxMemoryBytes int64) []string {
	return []string{
		"--path=" + dir,
		fmt.Sprintf("--max_server_memory_usage=%d", maxMemoryBytes),
		fmt.Sprintf("--mark_cache_size=%d", maxMemoryBytes/16),
		fmt.Sprintf("--index_mark_cache_size=%d", maxMemoryBytes/64),
		"--uncompressed_cache_size=0",
		"--background_pool_size=4",
		"--background_merges_mutations_concurrency_ratio=2",
		"--background_schedule_pool_size=8",
		"--background_common_pool_size=2",
		"--background_move_pool_size=1",
		"--background_fetches_pool_size=1",
	}
}

// wait reports whether all statements ended within d.
func (e *Engine) wait(d time.Duration) bool {
	done := make(chan struct{})
	go func() { e.busy.Wait(); close(done) }()
	select {
	case <-done:
		return true
	case <-time.After(d):
		return false
	}
}
