package replay

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/callscope/callscope/internal/store/storetest"
	"github.com/callscope/callscope/internal/stream/streamtest"
)

// mixed fills a raw log with about so many messages of all kinds: conferences of three and of two, failing ones, feedback,
// pre-call tests, of three apps, so that some hundred or thousand are open at a time. It returns the minute when all have
// begun.
func mixed(t testing.TB, wanted int) (log *calls, minutes float64) {
	log = &calls{t: t}
	names := []string{"mesh3", "two-users-hs256", "two-users-default-config", "no-submission-interval", "mesh3", "event-errors", "failed-setup", "mesh3", "precall"}
	begins := max(10, float64(wanted)/10_000) // a hundred calls a minute
	for i := 0; log.size() < wanted; i++ {
		app := []string{"", "", "217", "it's \\ the third"}[i%4]
		name := names[i%len(names)]
		begin := at(float64(i) / 100)
		log.addTo(app, name, fmt.Sprintf("volume-%d", i), begin, time.Duration(2+i%7)*time.Minute)
		minutes = float64(i) / 100
	}
	return log, max(minutes, begins)
}

// TestVolume replays many records with the same code, in a process of its own; CALLSCOPE_REPLAY_RECORDS says how many.
func TestVolume(t *testing.T) {
	wanted := 20_000
	if text := os.Getenv("CALLSCOPE_REPLAY_RECORDS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		wanted = n
	}
	c := newChainOn(t, streamtest.StartBroker(t, streamtest.WithDataDir(t.TempDir())))
	log, minutes := mixed(t, wanted)
	end := minutes + 20
	log.write(c.client, at(end))
	began := time.Now()
	c.live()
	t.Logf("live stages took %s; %s", time.Since(began), peaks(t, c))
	before := checksums(t, c.store)

	began = time.Now()
	cmd, stdout, stderr := process(t, c, storetest.Addr(t), "replay", "--from", stamp(-10), "--to", stamp(end))
	err := cmd.Run()
	usage, _ := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if err != nil || usage == nil {
		t.Fatalf("%v: %s%s", err, stdout, stderr)
	}
	t.Logf("replay took %s with at most %d MB; %s\n%s%s", time.Since(began), usage.Maxrss>>10, peaks(t, c), stdout, stderr)
	found := regexp.MustCompile(`(\d+) raw records, (\d+) conferences of the range\n`).FindStringSubmatch(stdout.String())
	if found == nil || !strings.HasSuffix(stdout.String(), "\n0 rows differ in total\nnothing to write\n") || strings.Contains(stdout.String(), "grace period") {
		t.Fatalf("the same code did not give the same rows:\n%s", stdout)
	}
	if n, err := strconv.Atoi(found[1]); err != nil || n < wanted {
		t.Errorf("%s records, want at least %d: %v", found[1], wanted, err)
	}
	if diff := changed(before, checksums(t, c.store)); diff != "" {
		t.Error(diff)
	}

	cfg := config(0, minutes/2)
	cfg.NewSummarizer = doubledDelays
	affected := count(t, c.store, fmt.Sprintf("fabrics_rows FINAL WHERE setup_delay_ms > 0 AND conference_started_at < fromUnixTimestamp64Milli(%d)", at(minutes/2).UnixMilli()))
	began = time.Now()
	if report := run(t, c, cfg); report.Rows() != affected || affected == 0 {
		t.Errorf("a changed constant changes %d rows, want %d", report.Rows(), affected)
	}
	t.Logf("a changed constant over half the range changed %d rows in %s", affected, time.Since(began))
}

func stamp(minute float64) string { return at(minute).Format(time.RFC3339) }

// peaks tells how much memory this process (broker and live stages) and the engine have had since they were last asked,
// and how many rows there are.
func peaks(t testing.TB, c *chain) string {
	t.Helper()
	var rows uint64
	for _, row := range storetest.Query(t, c.store, "SELECT sum(rows) FROM system.parts WHERE active AND database = currentDatabase() AND table NOT LIKE 'replay%'") {
		rows = row[0].(uint64)
	}
	return fmt.Sprintf("test process at most %d MB, engine at most %d MB, %d rows stored", peak(t, os.Getpid()), peak(t, enginePID(t)), rows)
}

func peak(t testing.TB, pid int) (mb int) {
	t.Helper()
	if pid == 0 {
		return 0
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0 // no Linux
	}
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); fields[0] == "VmHWM:" {
			kb, err := strconv.Atoi(fields[1])
			if err != nil {
				t.Fatal(err)
			}
			mb = kb >> 10
		}
	}
	// Best effort: without it the next peak is the one since the start.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
	return mb
}

// enginePID finds the child process that is the engine, 0 where a server elsewhere is used.
func enginePID(t testing.TB) int {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for _, pid := range strings.Fields(string(text)) {
			line, err := os.ReadFile("/proc/" + pid + "/cmdline")
			if err != nil || !bytes.Contains(line, []byte("\x00engine\x00")) {
				continue
			}
			n, err := strconv.Atoi(pid)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	return 0
}
