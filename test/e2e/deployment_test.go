// Package e2e drives the real binary: it plays recorded calls through it and
// holds the rows in SQL against an independent reading of the recordings. It
// uses nothing of callscope's code but the player's entry point.
package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/callscope/callscope/test/chaintest"
)

func TestMain(m *testing.M) { os.Exit(chaintest.Main(m)) }

// deployment is a whole running chain.
type deployment struct {
	gateway string // address of the gateway
	engine  string // address of the engine's HTTP interface
	admin   string // address of the admin server, of one process
	one     *chaintest.Process
	again   func() *chaintest.Process // starts the one process again, same data
}

// oneProcess runs the chain as `callscope all` with everything embedded.
func oneProcess(t *testing.T) *deployment {
	t.Helper()
	dir := t.TempDir()
	d := &deployment{gateway: chaintest.FreeAddress(t), engine: chaintest.FreeAddress(t), admin: chaintest.FreeAddress(t)}
	broker := chaintest.FreeAddress(t)
	d.again = func() *chaintest.Process {
		p := chaintest.Start(t, "callscope all", "all", "--demo", "--data", dir,
			"--set", "gateway.addr="+d.gateway, "--set", "admin.addr="+d.admin,
			"--set", "kafka.embedded_addr="+broker, "--set", "clickhouse.embedded_addr="+d.engine)
		chaintest.Ready(t, p, d.admin)
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
	d := &deployment{gateway: chaintest.FreeAddress(t), engine: chaintest.FreeAddress(t)}
	if brokers == "" {
		brokers = chaintest.FreeAddress(t)
		p := chaintest.Start(t, "callscope broker", "broker", "--data", dir, "--set", "kafka.embedded_addr="+brokers)
		chaintest.Listening(t, p, brokers)
	}
	p := chaintest.Start(t, "callscope engine", "engine", "--data", filepath.Join(dir, "engine"), "--addr", d.engine)
	chaintest.Listening(t, p, d.engine)

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
	out, err := exec.Command(chaintest.Binary, "migrate", "--config", config).CombinedOutput()
	if err != nil {
		t.Fatalf("callscope migrate: %v\n%s", err, out)
	}
	for _, service := range []string{"sink", "summarizer", "enricher", "gateway"} {
		admin := chaintest.FreeAddress(t)
		chaintest.Ready(t, chaintest.Start(t, "callscope "+service, service, "--config", config, "--set", "admin.addr="+admin), admin)
	}
	return d
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
			if out, err := exec.CommandContext(ctx, chaintest.Binary, args...).CombinedOutput(); err != nil {
				t.Errorf("callscope play %s: %v\n%s", capture, err, out[max(0, len(out)-4000):])
			}
		})
	}
	players.Wait()
}

// settled waits until the given number of conferences has a final summary and
// nothing is on its way any more.
func settled(t *testing.T, d *deployment, conferences int) {
	t.Helper()
	chaintest.Eventually(t, 3*time.Minute, "the calls ending", func() string {
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
