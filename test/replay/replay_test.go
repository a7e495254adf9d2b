package replay

import (
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
	c.addHeld("two-users-hs256", "hold", at(13), 2*time.Minute, 20*time.Minute)
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
