package replay

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/callscope/callscope/internal/replay"
)

// someCalls fills a raw log with an hour and a half of calls: some that straddle the ends of the range, two of the same id
// one after the other, one on hold, failed and pre-call ones.
func someCalls(t testing.TB) *calls {
	c := &calls{t: t}
	c.add("mesh3", "straddles-begin", at(-2), 5*time.Minute)
	c.add("mesh3", "early", at(1), 2*time.Minute)
	c.add("two-users-default-config", "room", at(3), 90*time.Second)
	c.add("two-users-hs256", "room", at(12), 90*time.Second)
	c.add("failed-setup", "failed", at(5), time.Minute)
	c.add("precall", "precall", at(6), time.Minute)
	c.add("event-errors", "errors", at(8), time.Minute)
	c.add("mesh3", "straddles-end", at(19), 4*time.Minute)
	c.add("mesh3", "late", at(25), 2*time.Minute)
	c.add("mesh3", "outage", at(16), 3*time.Minute)
	c.outage = [2]time.Time{at(16.5), at(18)}
	c.add("two-users-hs256", "slow", at(11), 30*time.Minute)
	return c
}

func config(from, to float64) replay.Config {
	return replay.Config{From: at(from), To: at(to)}
}

func run(t testing.TB, c *chain, cfg replay.Config) replay.Report {
	t.Helper()
	report, err := replay.Run(t.Context(), cfg, replay.Topic{Client: c.client}, c.store, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func TestSameCodeChangesNothing(t *testing.T) {
	c := newChain(t)
	someCalls(t).write(c.client, at(60))
	c.live()
	before := allRows(t, c.store)
	for _, test := range []struct {
		name        string
		cfg         replay.Config
		conferences int64
	}{
		{"everything", config(-10, 100), 0},
		{"a range with calls across both ends", config(0, 20), 0},
		{"from the log's beginning", replay.Config{From: at(0), To: at(20), FromBeginning: true}, 0},
		{"a range without calls", config(40, 50), 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			report := run(t, c, test.cfg)
			for _, d := range report.Differences {
				if d.Rows() > 0 {
					t.Errorf("%s: %+v", d.Table, d)
				}
			}
			t.Logf("%+v", report)
			if report.Rejected > 0 || report.Left > 0 || report.Generation != 0 {
				t.Errorf("report %+v", report)
			}
		})
	}
	if diff := changed(before, allRows(t, c.store)); diff != "" {
		t.Error(diff)
	}
}

// TestVolume replays many records; CALLSCOPE_REPLAY_RECORDS says how many.
func TestVolume(t *testing.T) {
	wanted := 20_000
	if text := os.Getenv("CALLSCOPE_REPLAY_RECORDS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		wanted = n
	}
	c := newChain(t)
	log := &calls{t: t}
	for i := 0; len(log.records[0])+len(log.records[1]) < wanted; i++ {
		log.add("mesh3", fmt.Sprintf("volume-%d", i), at(float64(i%600)/20), 4*time.Minute)
	}
	log.write(c.client, at(60))
	began := time.Now()
	c.live()
	live := time.Since(began)
	began = time.Now()
	report := run(t, c, config(-10, 100))
	if report.Rows() != 0 || report.Open != 0 || report.Records < int64(wanted) {
		t.Errorf("%+v", report)
	}
	t.Logf("%d raw records, %d conferences: live stages %s, replay %s", report.Records, report.Conferences, live, time.Since(began))
	cfg := config(0, 20)
	cfg.NewSummarizer = doubledDelays
	affected := count(t, c.store, fmt.Sprintf("fabrics_rows FINAL WHERE setup_delay_ms > 0 AND conference_started_at < fromUnixTimestamp64Milli(%d)", at(20).UnixMilli()))
	if report := run(t, c, cfg); report.Rows() != affected || affected == 0 {
		t.Errorf("a changed constant changes %d rows, want %d", report.Rows(), affected)
	}
}
