package app

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

func quiet(args ...string) []string { return append([]string{"--log-level", "error"}, args...) }

// Every way to fail has its exit code and one line that says what, on what, why and what to do.
func TestExitCodes(t *testing.T) {
	busy, nobody := taken(t), closedAddr(t)
	broken := filepath.Join(t.TempDir(), "broken.yaml")
	unknown := filepath.Join(t.TempDir(), "unknown.yaml")
	for path, text := range map[string]string{broken: "kafka: [\n", unknown: "kafka:\n  brokr: a:1\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	capture := filepath.Join(t.TempDir(), "call.jsonl")
	if err := os.WriteFile(capture, []byte(`{"seq":1,"t":1,"kind":"http","method":"GET","path":"/clockSync","response":{"status":200,"body":"{}"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	refusing := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(refusing.Close)
	free := []string{"--set", "admin.addr=127.0.0.1:0", "--set", "kafka.embedded_addr=127.0.0.1:0",
		"--set", "clickhouse.embedded_addr=127.0.0.1:0", "--set", "gateway.addr=127.0.0.1:0"}
	for _, tt := range []struct {
		name string
		env  []string
		args []string
		code int
		says string // pattern of the whole of standard error
	}{
		{"unknown command", nil, []string{"gatway"}, exitUsage, `callscope: unknown command "gatway" for "callscope"(\n|.)*callscope help(\n|.)*`},
		{"unknown flag", nil, []string{"all", "--dmo"}, exitUsage, "callscope: unknown flag: --dmo; `callscope help` lists the commands\n"},
		{"missing argument", nil, []string{"sql"}, exitUsage, "callscope: accepts 1 arg.*\n"},
		{"unknown output", nil, []string{"sql", "SELECT 1", "--output", "xml"}, exitUsage, "callscope: --output: \"xml\" is not one of table, json, ndjson, csv\n"},
		{"broken file", nil, []string{"config", "--config", broken}, exitConfiguration,
			"callscope: bad configuration: the configuration file .*broken.yaml is not valid YAML: .*line 1.*\n"},
		{"missing file", nil, []string{"gateway", "--config", "none.yaml"}, exitConfiguration,
			"callscope: bad configuration: cannot read the configuration file none.yaml: no such file or directory\n"},
		{"unknown setting in the file", []string{"CALLSCOPE_CONFIG=" + unknown}, []string{"enricher"}, exitConfiguration,
			`callscope: bad configuration: kafka.brokr: unknown setting; did you mean kafka.brokers\? \(from .*unknown.yaml\)` + "\n"},
		{"unknown setting in the environment", []string{"CALLSCOPE_KAFKA__PARTITONS=4"}, []string{"config"}, exitConfiguration,
			`callscope: bad configuration: CALLSCOPE_KAFKA__PARTITONS: unknown setting; did you mean CALLSCOPE_KAFKA__PARTITIONS\? \(from environment variable CALLSCOPE_KAFKA__PARTITONS\)` + "\n"},
		{"several wrong settings", nil, []string{"config", "--set", "kafka.partitions=-1", "--set", "log.format=xml", "--set", "sink.parallel=1000"}, exitConfiguration,
			`callscope: bad configuration, 3 problems:
  log.format: "xml" is not one of text, json \(from --set log.format\)
  kafka.partitions: -1 is not between 1 and 10000 \(from --set kafka.partitions\)
  sink.parallel: 1000 is not between 1 and 256 \(from --set sink.parallel\)
`},
		{"no cluster", nil, []string{"enricher"}, exitConfiguration,
			"callscope: bad configuration: kafka.brokers: is empty: give at least one host:port \\(nobody set it\\)\n"},
		{"no key", nil, []string{"gateway", "--set", "kafka.brokers=" + nobody}, exitConfiguration,
			"callscope: bad configuration: gateway.token_key: is empty: give the same random text .*gateway.token_key_file.*\n"},
		{"bad app", nil, []string{"all", "--set", `apps=[{"id":"x","secrets":["a"]}]`}, exitConfiguration,
			`callscope: bad configuration: apps: app "x": the id must be a decimal number.*` + "\n"},
		{"demo for everybody", nil, []string{"all", "--demo", "--set", "gateway.addr=0.0.0.0:8080", "--set", "gateway.allow_plain=true"}, exitConfiguration,
			`callscope: bad configuration: gateway.addr: "0.0.0.0:8080" can be reached from elsewhere, and the secret of the --demo app is public; .*` + "\n"},
		{"engine library missing", []string{"CALLSCOPE_ENGINE_LIBRARY=/nowhere/libchdb.so"}, append(quiet("all", "--demo"), free...), exitUnreachable,
			"callscope: CALLSCOPE_ENGINE_LIBRARY names no ClickHouse library: .*/nowhere/libchdb.so.*\n"},
		{"engine library never fetched", []string{"XDG_CACHE_HOME=" + t.TempDir(), "HOME=" + t.TempDir()}, append(quiet("all"), free...), exitUnreachable,
			"callscope: the embedded engine needs the ClickHouse library .*`make engine`.*clickhouse.addr.*\n"},
		{"engine alone without library", []string{"CALLSCOPE_ENGINE_LIBRARY=/nowhere/libchdb.so"}, quiet("engine"), exitUnreachable,
			"callscope: CALLSCOPE_ENGINE_LIBRARY names no ClickHouse library: .*\n"},
		{"admin port in use", nil, quiet("summarizer", "--set", "admin.addr="+busy, "--set", "kafka.brokers="+nobody), exitFailed,
			"callscope: admin server failed: the admin server cannot listen on " + busy + ": another process uses this port; stop that process or set admin.addr to a free one\n"},
		{"broker port in use", nil, quiet("broker", "--set", "kafka.embedded_addr="+busy), exitFailed,
			"callscope: embedded broker failed: the embedded Kafka broker cannot listen on " + busy + ": another process uses this port; .*kafka.embedded_addr.*\n"},
		{"broker for everybody", nil, quiet("broker", "--set", "kafka.embedded_addr=0.0.0.0:9092"), exitConfiguration,
			`callscope: bad configuration: kafka.embedded_addr: "0.0.0.0:9092" is not on this machine alone; .*` + "\n"},
		{"Kafka unreachable", nil, quiet("enricher", "--set", "admin.addr=127.0.0.1:0", "--set", "kafka.brokers="+nobody), exitUnreachable,
			"callscope: reaching Kafka broker " + nobody + ": .*connection refused; nothing listens there: start Kafka or correct kafka.brokers\n"},
		{"nothing to ask for the lag", nil, []string{"lag", "--set", "kafka.embedded_addr=" + nobody}, exitUnreachable, "callscope: reaching Kafka broker " + nobody + ".*\n"},
		{"nothing to query", nil, []string{"sql", "SELECT 1", "--set", "clickhouse.embedded_addr=" + nobody}, exitUnreachable,
			"callscope: reaching ClickHouse at " + nobody + ".*connection refused; nothing listens there.*\n"},
		{"nothing to migrate", nil, []string{"migrate", "--set", "clickhouse.embedded_addr=" + nobody, "--set", "kafka.brokers=" + nobody}, exitUnreachable,
			"callscope: reaching Kafka broker .*\nreaching ClickHouse at .*\n"},
		{"no gateway", nil, []string{"play", capture, "--gateway", "http://" + nobody}, exitUnreachable,
			"callscope: the gateway cannot be reached at http://" + nobody + ".*callscope all --demo.*\n"},
		{"no recording", nil, []string{"play", "none.jsonl"}, exitFailed, "callscope: reading a recording: open none.jsonl: no such file or directory\n"},
		{"gateway refuses", nil, []string{"play", capture, "--gateway", refusing.URL}, exitFailed, "callscope: not everything was answered with success; see above\n"},
		{"help", nil, []string{"help"}, exitOK, ""},
		{"version", nil, []string{"version"}, exitOK, ""},
		{"config", nil, []string{"config"}, exitOK, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			code, stdout, stderr := result(t, command(t, tt.env, tt.args...))
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if !regexp.MustCompile("^(?:" + tt.says + ")$").MatchString(stderr) {
				t.Errorf("standard error:\n%s\nwant the pattern:\n%s", stderr, tt.says)
			}
			if code == exitOK && stdout == "" {
				t.Error("nothing was printed")
			}
		})
	}
}

// A service that is told to stop stops, and that is success; it keeps its port until then.
func TestFirstSignalDrains(t *testing.T) {
	cmd := command(t, nil, "broker", "--log-format", "json", "--set", "kafka.embedded_addr=127.0.0.1:0")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stderr)
	var all []string
	for lines.Scan() {
		all = append(all, lines.Text())
		if strings.Contains(lines.Text(), `"service is ready"`) {
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v:\n%s", err, strings.Join(all, "\n"))
	}
	if !strings.Contains(all[len(all)-1], "embedded broker is closed") {
		t.Errorf("the broker did not say goodbye:\n%s", strings.Join(all, "\n"))
	}
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "CALLSCOPE_TEST_HANG=1")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	// Equal signals merge while the first is not yet taken, so there are two kinds.
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM} {
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	text, err := io.ReadAll(stderr)
	if err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it ends with 130, looked at below
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupted || !strings.Contains(string(text), "interrupted twice") {
		t.Errorf("exit code %d: %s", code, text)
	}
}

// A command that is not a service and is interrupted says so by its code.
func TestInterruptedCommand(t *testing.T) {
	var asked atomic.Int32
	gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		fmt.Fprint(w, `{"now":1}`)
	}))
	defer gateway.Close()
	capture := filepath.Join(t.TempDir(), "call.jsonl")
	var text strings.Builder
	for i := range 3 {
		fmt.Fprintf(&text, `{"seq":%d,"t":%d,"kind":"http","method":"GET","path":"/clockSync","response":{"status":200,"body":"{}"}}`+"\n", i+1, i*3_600_000)
	}
	if err := os.WriteFile(capture, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := command(t, nil, "play", capture, "--gateway", gateway.URL)
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if asked.Load() == 0 {
			return fmt.Errorf("nothing was played yet")
		}
		return nil
	})
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it ends with 130, looked at below
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupted || errOut.String() != "callscope: interrupted\n" {
		t.Errorf("exit code %d: %s", code, errOut.String())
	}
	if !strings.Contains(out.String(), "played 1 messages of 0 clients") {
		t.Errorf("what was played is not told:\n%s", out.String())
	}
}
