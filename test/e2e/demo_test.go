package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/callscope/callscope/test/chaintest"
)

// TestDemo runs what `make run` runs: it must end in the call's rows, in tables,
// and stay up.
func TestDemo(t *testing.T) {
	gateway, engine, admin, broker := chaintest.FreeAddress(t), chaintest.FreeAddress(t), chaintest.FreeAddress(t), chaintest.FreeAddress(t)
	p := chaintest.Start(t, "callscope all --demo --play", "all", "--demo", "--log-level", "warn", "--data", t.TempDir(),
		"--play", "../captures/two-users-hs256.jsonl", "--speed", "8",
		"--set", "gateway.addr="+gateway, "--set", "admin.addr="+admin,
		"--set", "kafka.embedded_addr="+broker, "--set", "clickhouse.embedded_addr="+engine)
	chaintest.Eventually(t, 2*time.Minute, "the demonstration", func() string {
		select {
		case <-p.Done():
			t.Fatalf("it ended:\n%s", p.Output())
		default:
		}
		if !strings.Contains(p.Output(), "callscope sql") {
			return "its last line is not there yet"
		}
		return ""
	})
	said := p.Output()
	for _, want := range []string{
		"Demo room / 1", "success", "(1 row)", // the conference
		"alice@example.test", "bob@example.test", "fabricTerminated", // its participants
		"240.2998046875", "280.199951171875", // the recorded setup delays
		"Great call, small video freeze – ok", // feedback
		gateway, engine, admin, "123456789", "synthetic-app-secret-01",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("it does not say %q:\n%s", want, said)
		}
	}
	chaintest.Ready(t, p, admin) // it stays up
}
