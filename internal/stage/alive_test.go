package stage

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

func tickOf(ticker string, ms int64) *callscopev1.Tick {
	return &callscopev1.Tick{TickerUid: []byte(ticker), MonotonicMs: ms}
}

func TestAliveTime(t *testing.T) {
	type step struct {
		ticker   string
		ms       int64
		followed bool
		alive    int64
	}
	for name, steps := range map[string][]step{
		"one ticker":                     {{"a", 1000, true, 0}, {"a", 2000, true, 1000}, {"a", 3100, true, 2100}},
		"a silence counts for 5 s":       {{"a", 1000, true, 0}, {"a", 3_600_000, true, 5000}, {"a", 3_601_000, true, 6000}},
		"going back counts for nothing":  {{"a", 5000, true, 0}, {"a", 1000, true, 0}, {"a", 6000, true, 1000}},
		"a new ticker begins at 0":       {{"a", 1000, true, 0}, {"a", 2000, true, 1000}, {"b", 900_000, true, 1000}, {"b", 901_000, true, 2000}},
		"a superseded ticker is ignored": {{"a", 1000, true, 0}, {"b", 0, true, 0}, {"a", 4000, false, 0}, {"b", 1500, true, 1500}, {"a", 5000, false, 1500}},
		"without uid":                    {{"", 1000, false, 0}, {"a", 1000, true, 0}},
		"repeated tick":                  {{"a", 1000, true, 0}, {"a", 2000, true, 1000}, {"a", 2000, true, 1000}},
	} {
		t.Run(name, func(t *testing.T) {
			var a AliveTime
			for i, s := range steps {
				if got := a.Apply(tickOf(s.ticker, s.ms)); got != s.followed {
					t.Errorf("step %d: followed = %v", i, got)
				}
				if a.Ms() != s.alive {
					t.Errorf("step %d: alive for %d ms, want %d", i, a.Ms(), s.alive)
				}
			}
		})
	}
}

func TestAliveTimeRemembers16Superseded(t *testing.T) {
	var a AliveTime
	for ticker := byte('a'); ticker <= 'q'; ticker++ { // a to p are superseded by q
		a.Apply(tickOf(string(ticker), 0))
	}
	if a.Apply(tickOf("a", 0)) {
		t.Error("the 16th last ticker took over again")
	}
	a.Apply(tickOf("r", 0))
	if !a.Apply(tickOf("a", 0)) {
		t.Error("a 17th ticker is still remembered")
	}
}

// TestAliveTimeLaws: alive time never decreases, never gains more than 5 s by
// a tick, stands still for superseded tickers and for first ticks, and is the
// same after a snapshot.
func TestAliveTimeLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var a AliveTime
		first := map[string]bool{}
		var order []string // tickers by the time they took over
		ticks := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) *callscopev1.Tick {
			return tickOf(rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "ticker"), rapid.Int64Range(-10_000, 100_000).Draw(t, "ms"))
		}), 0, 50).Draw(t, "ticks")
		for i, tick := range ticks {
			before := a.Ms()
			ticker := string(tick.TickerUid)
			followed := a.Apply(tick)
			gained := a.Ms() - before
			current := !first[ticker] || order[len(order)-1] == ticker
			if followed != current {
				t.Fatalf("tick %d of %s: followed = %v", i, ticker, followed)
			}
			if gained < 0 || gained > 5000 || gained > 0 && (!followed || !first[ticker]) {
				t.Fatalf("tick %d of %s gained %d ms", i, ticker, gained)
			}
			if !first[ticker] {
				first[ticker] = true
				order = append(order, ticker)
			}
			if rapid.Bool().Draw(t, "snapshot") {
				data, err := a.State().MarshalVT()
				if err != nil {
					t.Fatal(err)
				}
				var state callscopev1.AliveState
				if err := state.UnmarshalVT(data); err != nil {
					t.Fatal(err)
				}
				restored := AliveTimeOf(&state)
				if diff := cmp.Diff(a, restored, cmp.AllowUnexported(AliveTime{})); diff != "" {
					t.Fatalf("the snapshot changes alive time:\n%s", diff)
				}
				a = restored
			}
		}
	})
}
