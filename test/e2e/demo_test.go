package e2e

import (
	"strings"
	"testing"
	"time"
)

// TestDemo runs what `make run` runs: it must end in the call's rows, in tables,
// and stay up.
func TestDemo(t *testing.T) {
	gateway, engine, admin, broker := freeAddress(t), freeAddress(t), freeAddress(t), freeAddress(t)
	p := start(t, "callscope all --demo --play", "all", "--demo", "--log-level", "warn", "--data", t.TempDir(),
		"--play", "../captures/two-users-hs256.jsonl", "--speed", "8",
		"--set", "gateway.addr="+gateway, "--set", "admin.addr="+admin,
		"--set", "kafka.embedded_addr="+broker, "--set", "clickhouse.embedded_addr="+engine)
	eventually(t, 2*time.Minute, "the demonstration", func() string {
		select {
		case <-p.done:
			t.Fatalf("it ended:\n%s", p.output)
		default:
		}
		if !strings.Contains(p.output.String(), "callscope sql") {
			return "its last line is not there yet"
		}
		return ""
	})
	said := p.output.String()
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
	ready(t, p, admin) // it stays up
}
