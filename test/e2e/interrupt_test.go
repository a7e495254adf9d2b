package e2e

import (
	"bytes"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/callscope/callscope/test/chaintest"
)

// TestInterruptedQuery: Ctrl-C on `callscope sql` also ends the query in the embedded engine, which then has nothing to
// wait for when it is stopped.
func TestInterruptedQuery(t *testing.T) {
	d := oneProcess(t)
	cmd := exec.Command(chaintest.Binary, "sql", "--set", "clickhouse.embedded_addr="+d.engine, "SELECT sum(sipHash64(number)) FROM numbers(1000000000000)")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill() // it has ended unless the test fails
	running := func(want string) func() string {
		return func() string {
			rows, err := query(d.engine, "SELECT toString(count()) AS n FROM system.processes WHERE query LIKE '%sipHash64%' AND query NOT LIKE '%system.processes%'")
			if err != nil {
				return err.Error()
			}
			if n := rows[0].text("n"); n != want {
				return n + " queries are running"
			}
			return ""
		}
	}
	chaintest.Eventually(t, time.Minute, "the query running", running("1"))
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 130 || !strings.Contains(said.String(), "interrupted") {
		t.Errorf("callscope sql ended with %v: %s", err, &said)
	}
	chaintest.Eventually(t, time.Minute, "the query ending", running("0"))
	if err := d.one.StopWithin(30 * time.Second); err != nil {
		t.Error(err)
	}
	if text := d.one.Output(); strings.Contains(text, "still ran") || strings.Contains(text, "did not stop cleanly") {
		t.Errorf("callscope all said:\n%s", text)
	}
}
