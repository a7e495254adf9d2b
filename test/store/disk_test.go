package store

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/callscope/callscope/test/chaintest"
)

// play plays a recorded call, ten times as fast as it was.
func (s site) play(t *testing.T, capture string) {
	t.Helper()
	succeeded(t, "play", filepath.Join("..", "captures", capture+".jsonl"), "--gateway", "http://"+s.gateway, "--speed", "10")
}

// expect adds what a recording must give to the rows of each view, by programs that share nothing with callscope.
func expect(t *testing.T, rows map[string]int, capture string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "expected", capture+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var e struct {
		Conferences []struct {
			Participants, Fabrics []any
		} `json:"conferences"`
		Events                      map[string]int
		Streams, Feedback, Failures []any
	}
	if err := json.Unmarshal(text, &e); err != nil {
		t.Fatal(err)
	}
	for _, c := range e.Conferences {
		rows["conferences WHERE state = 'final'"]++
		rows["participants"] += len(c.Participants)
		rows["fabrics"] += len(c.Fabrics)
	}
	for _, n := range e.Events {
		rows["events WHERE reported"] += n
	}
	rows["streams"] += len(e.Streams)
	rows["feedback"] += len(e.Feedback)
	rows["failures"] += len(e.Failures)
}

// fill writes a file until the file system takes no more, and returns what makes room again.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 64<<10)
	for size := len(block); size > 0; size /= 16 { // to the last page
		for err = error(nil); err == nil; {
			_, err = f.Write(block[:size])
		}
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// metric sums a metric over its labels.
func (s site) metric(t *testing.T, name string) float64 {
	t.Helper()
	response, err := http.Get("http://" + s.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	sum, found := 0.0, false
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name); ok && (rest[0] == ' ' || rest[0] == '{') {
			v, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndex(line, " "):]), 64)
			if err != nil {
				t.Fatal(err)
			}
			sum, found = sum+v, true
		}
	}
	if !found {
		t.Fatalf("there is no metric %s", name)
	}
	return sum
}

// TestEngineDiskFull fills the disk below the engine between two calls. While it is full the sink waits and says so, and
// the lag shows it; the gateway takes messages all the same. With room again everything of the second call is there, once.
func TestEngineDiskFull(t *testing.T) {
	dir := tmpfs(t, "256m")
	s := start(t, filepath.Join(dir, "engine"))
	want := map[string]int{}
	stored := func() string {
		for from, n := range want {
			a, err := chaintest.Query(s.engine, "SELECT count() FROM "+from)
			if err != nil {
				return err.Error()
			}
			if got := int(a.Rows[0][0].(float64)); got != n {
				return fmt.Sprintf("%d rows in %s, want %d", got, from, n)
			}
		}
		return ""
	}
	s.play(t, "two-users-hs256")
	expect(t, want, "two-users-hs256")
	chaintest.Eventually(t, time.Minute, "the first call", stored)
	samples := count(t, s.engine, "SELECT count() FROM samples")

	free := fill(t, dir)
	before := s.metric(t, "callscope_sink_rows_total")
	s.play(t, "mesh3")
	expect(t, want, "mesh3")
	chaintest.Eventually(t, time.Minute, "the sink noticing", func() string {
		response, err := http.Get("http://" + s.admin + "/readyz?verbose")
		if err != nil {
			return err.Error()
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			return err.Error()
		}
		const says = "the ClickHouse server's disk is full: free some"
		switch said := s.all.Output(); {
		case !strings.Contains(said, says):
			return "the log does not say that the disk is full"
		case response.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(body), says):
			return fmt.Sprintf("the process is ready: %s\n%s", response.Status, body)
		}
		var lag struct {
			Groups []struct {
				Group   string  `json:"group"`
				Records int     `json:"records"`
				Behind  float64 `json:"behind_seconds"`
			} `json:"groups"`
		}
		if err := json.Unmarshal([]byte(succeeded(t, append([]string{"lag", "--output", "json"}, s.kafka()...)...)), &lag); err != nil {
			return err.Error()
		}
		for _, g := range lag.Groups {
			if strings.Contains(g.Group, "sink") && g.Records > 10 && g.Behind > 1 {
				return ""
			}
		}
		return fmt.Sprintf("callscope lag does not show it: %+v", lag)
	})
	if now := s.metric(t, "callscope_sink_rows_total"); now-before >= float64(want["events WHERE reported"]) {
		t.Errorf("%.0f rows were stored on a full disk", now-before)
	}

	free()
	chaintest.Eventually(t, 2*time.Minute, "both calls", stored)
	chaintest.Eventually(t, time.Minute, "the process being ready again", func() string {
		response, err := http.Get("http://" + s.admin + "/readyz")
		if err != nil {
			return err.Error()
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return response.Status
		}
		return ""
	})
	if n := count(t, s.engine, "SELECT count() FROM samples"); n <= samples {
		t.Errorf("the second call has no samples")
	}
}

// TestExportDiskFull: an archive that the disk does not hold is no archive. The command fails and says why, what is left
// is neither taken for one nor in the way of another try.
func TestExportDiskFull(t *testing.T) {
	s := start(t, filepath.Join(t.TempDir(), "engine"))
	s.play(t, "two-users-hs256")
	now := time.Now().UTC()
	export := func(dir string) []string {
		return append([]string{"export", "--from", now.Add(-time.Hour).Format(time.RFC3339), "--to", now.Add(time.Hour).Format(time.RFC3339), "--dir", dir, "--log-level", "error"}, s.kafka()...)
	}
	unfinished := func(t *testing.T, dir string) {
		t.Helper()
		left, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range left {
			if !strings.HasSuffix(e.Name(), ".zst") && !strings.HasSuffix(e.Name(), ".part") {
				t.Errorf("%s is left", e.Name())
			}
		}
		refused(t, 1, "manifest|no archive", append([]string{"replay", "--from-files", dir, "--from", "2026-01-01", "--to", "2036-01-01", "--dry-run"}, s.servers()...)...)
		refused(t, 1, "manifest|no archive", append([]string{"import", "--dir", dir}, s.kafka()...)...)
	}
	t.Run("limit", func(t *testing.T) {
		// As `ulimit -f` sets it, in units of 512 bytes: needs no privilege.
		dir := t.TempDir()
		cmd := exec.Command("/bin/sh", append([]string{"-c", `ulimit -f 2; exec "$0" "$@"`, chaintest.Binary}, export(dir)...)...)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "file too large") {
			t.Errorf("export with limited files: %v\n%s", err, out)
		}
		unfinished(t, dir)
		succeeded(t, export(dir)...)
	})
	t.Run("disk", func(t *testing.T) {
		dir := tmpfs(t, "8k")
		refused(t, 1, "no space left on device", export(dir)...)
		unfinished(t, dir)
		if err := syscall.Mount("callscope-test", dir, "tmpfs", syscall.MS_REMOUNT, "size=8m"); err != nil {
			t.Fatal(err)
		}
		succeeded(t, export(dir)...)
		if out := succeeded(t, append([]string{"replay", "--from-files", dir, "--from", now.Add(-time.Hour).Format(time.RFC3339), "--to", now.Add(time.Hour).Format(time.RFC3339), "--dry-run", "--log-level", "error"}, s.servers()...)...); !strings.Contains(out, "dry run") {
			t.Errorf("replaying the archive: %s", out)
		}
	})
}
