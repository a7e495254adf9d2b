package stagetest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/callscope/callscope/internal/stage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// seeds is how many simulations run: CALLSCOPE_SIM_SEEDS, or a number that the
// ordinary tests can bear.
func seeds(t *testing.T) int {
	text := os.Getenv("CALLSCOPE_SIM_SEEDS")
	if text == "" {
		return 300
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("CALLSCOPE_SIM_SEEDS: %v", err)
	}
	return n
}

// simulate runs many seeds on all cores and returns the sum of what happened.
// A failing seed fails the test.
func simulate(t *testing.T, n int, run func(seed uint64) (Result, error)) Result {
	t.Helper()
	var (
		mu   sync.Mutex
		sum  Result
		next atomic.Uint64
		wg   sync.WaitGroup
	)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for !t.Failed() {
				seed := next.Add(1) - 1
				if seed >= uint64(n) {
					return
				}
				r, err := run(seed)
				mu.Lock()
				sum.Add(r)
				mu.Unlock()
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	sum.Output = nil
	return sum
}

func counterOptions(seed uint64) Options {
	return Options{
		Seed: seed, Records: 60,
		Stage: stage.Config{LogicVersion: 1, FormatVersion: 1, Ticks: true, NewMachine: func(int32) stage.Machine { return NewCounter() }},
		Next:  counterMix,
	}
}

func counterMix(rng *rand.Rand) (key, value []byte) {
	event := "event"
	switch p := rng.IntN(50); {
	case p < 10:
		event = EventBurst
	case p == 10:
		event = EventRefused
	case p == 11:
		event = EventPanics
	}
	return CounterRecord(rng, event)
}

// TestSimulation runs many seeds, or with CALLSCOPE_SIM_SEED=n the one seed n
// with a line for everything that happens in it.
func TestSimulation(t *testing.T) {
	if text := os.Getenv("CALLSCOPE_SIM_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("CALLSCOPE_SIM_SEED: %v", err)
		}
		o := counterOptions(seed)
		o.Trace = t.Output()
		if _, err := Run(o); err != nil {
			t.Fatal(err)
		}
		return
	}
	seeds := seeds(t)
	sum := simulate(t, seeds, func(seed uint64) (Result, error) { return Run(counterOptions(seed)) })
	t.Logf("%d seeds: %+v", seeds, sum)
	for name, n := range map[string]int{"crashes": sum.Crashes, "zombies": sum.Zombies, "lost acks": sum.LostAcks,
		"late requests": sum.Late, "expired records": sum.Expired, "duplicates": sum.Dropped, "outputs": sum.Outputs, "rejects": sum.Rejected} {
		if n < seeds/10 {
			t.Errorf("only %d %s in %d seeds: the simulation does not try what it should", n, name, seeds)
		}
	}
}

// TestNegativeControls: with a defect put in, the same simulation must fail.
func TestNegativeControls(t *testing.T) {
	const seeds = 60
	for _, control := range []struct {
		name   string
		change func(*Options)
	}{
		{"no origin check", func(o *Options) { o.Defect = NoOriginCheck }},
		{"snapshot before outputs are written", func(o *Options) { o.Defect = AcknowledgedBeforeWritten }},
		{"one snapshot key", func(o *Options) { o.Defect = OneSnapshotKey }},
		{"one ticker uid", func(o *Options) { o.Defect = OneTickerUID }},
		{"timers on processing time", func(o *Options) {
			o.Stage.NewMachine = func(int32) stage.Machine {
				c, ms := NewCounter(), int64(0)
				c.TimerMs = func() int64 { ms += 1000; return ms }
				return c
			}
		}},
	} {
		t.Run(control.name, func(t *testing.T) {
			var (
				mu                sync.Mutex
				failed, exercised int
				first             error
			)
			simulate(t, seeds, func(seed uint64) (Result, error) {
				o := counterOptions(seed)
				o.Rough = true
				control.change(&o)
				r, err := Run(o)
				mu.Lock()
				defer mu.Unlock()
				if err != nil && first == nil {
					first = err
				}
				if r.Exercised || o.Defect == NoDefect {
					exercised++
					if err != nil {
						failed++
					}
				}
				return r, nil
			})
			t.Logf("%d of %d seeds that exercise it fail; the first failure: %v", failed, exercised, first)
			if failed < exercised*9/10 || exercised < seeds/10 {
				t.Errorf("only %d of %d seeds that exercise it fail", failed, exercised)
			}
		})
	}
}

// TestStageBehindStage feeds the output log of one simulation, duplicates of
// crashed and former owners included, to a second stage.
func TestStageBehindStage(t *testing.T) {
	seeds := seeds(t)
	sum := simulate(t, seeds/5, func(seed uint64) (Result, error) {
		first, err := Run(counterOptions(seed))
		if err != nil {
			return first, err
		}
		second, err := Run(Options{
			Seed: seed, Input: first.Output,
			Stage: stage.Config{LogicVersion: 1, FormatVersion: 1, InputHasOrigins: true, NewMachine: func(int32) stage.Machine { return NewTotals() }},
		})
		if err != nil {
			err = fmt.Errorf("second stage: %w", err)
		}
		return second, err
	})
	t.Logf("%+v", sum)
	if sum.Crashes < seeds/10 || sum.Outputs < seeds/10 {
		t.Errorf("the simulation does not try what it should")
	}
}
