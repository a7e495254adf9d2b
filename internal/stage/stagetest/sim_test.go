package stagetest

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"go.uber.org/goleak"

	"github.com/callscope/callscope/internal/stage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
	seeds := Seeds(t, 300)
	sum := Simulate(t, seeds, counterOptions)
	t.Logf("%d seeds: %+v", seeds, sum)
	sum.MustHaveTried(t, seeds)
	if sum.Rejected < seeds/10 {
		t.Errorf("only %d rejects in %d seeds", sum.Rejected, seeds)
	}
}

// TestLogicChange lets a version that gives other outputs take over in mid-log.
func TestLogicChange(t *testing.T) {
	seeds := Seeds(t, 150)
	sum := Simulate(t, seeds, func(seed uint64) Options {
		o := counterOptions(seed)
		o.NewLogic = func(int32) stage.Machine { return &Changed{Ticking: NewCounter()} }
		return o
	})
	t.Logf("%d seeds: %+v", seeds, sum)
	if sum.LogicChanges < seeds/10 || sum.MixedOutputs < seeds/10 {
		t.Errorf("%d changes and %d mixed outputs in %d seeds", sum.LogicChanges, sum.MixedOutputs, seeds)
	}
}

// TestNegativeControls: with a defect put in, the same simulation must fail.
func TestNegativeControls(t *testing.T) {
	for name, defect := range map[string]Defect{
		"no origin check": NoOriginCheck, "snapshot before outputs are written": AcknowledgedBeforeWritten,
		"one snapshot key": OneSnapshotKey, "one ticker uid": OneTickerUID, "wall-clock timers": WallClockTimers,
	} {
		t.Run(name, func(t *testing.T) { MustFail(t, 240, counterOptions, defect) })
	}
}

// TestStageBehindStage feeds the output log of one simulation, duplicates of
// crashed and former owners included, to a second stage.
func TestStageBehindStage(t *testing.T) {
	seeds := Seeds(t, 300) / 5
	sum := SimulateAll(t, seeds, func(seed uint64) (Result, error) {
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
	if sum.Crashes < seeds || sum.Outputs < seeds/2 {
		t.Errorf("the simulation does not try what it should")
	}
}
