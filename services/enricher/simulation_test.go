package enricher

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/callscope/callscope/internal/stage"
	"github.com/callscope/callscope/internal/stage/stagetest"
)

// simulated is one simulation of the stage runtime with this machine and random
// calls. Everything must be forgotten 10 min after the last fault: at most 30 s
// of silence, 10 s without a message and 5 min of grace, and a minute for
// duplicates.
func simulated(seed uint64) stagetest.Options {
	calls := stagetest.NewCalls()
	return stagetest.Options{
		Seed:    seed,
		Stage:   StageConfig(Config{}, func(int32) stage.Machine { return NewMachine() }),
		Records: 45, Next: calls.Next, Check: calls.Check,
		Rest: 10 * time.Minute,
	}
}

// The stage runtime with this machine gives what a fold of its final log gives,
// and every message once, whatever crashes, comes back from the dead or is
// written twice.
func TestSimulation(t *testing.T) {
	seeds := stagetest.Seeds(t, 100)
	sum := stagetest.Simulate(t, seeds, simulated)
	t.Logf("%d seeds: %+v", seeds, sum)
	sum.MustHaveTried(t, seeds)
	if sum.Rejected != 0 {
		t.Errorf("%d records were set aside", sum.Rejected)
	}
}

// The same with a version that gives other outputs taking over in mid-log.
func TestSimulatedLogicChange(t *testing.T) {
	seeds := stagetest.Seeds(t, 500) / 10
	sum := stagetest.Simulate(t, seeds, func(seed uint64) stagetest.Options {
		o := simulated(seed)
		o.NewLogic = func(int32) stage.Machine { return &stagetest.Changed{Ticking: NewMachine()} }
		return o
	})
	t.Logf("%d seeds: %+v", seeds, sum)
	if sum.LogicChanges < seeds/10 || sum.MixedOutputs < seeds/10 {
		t.Errorf("%d changes and %d mixed outputs in %d seeds", sum.LogicChanges, sum.MixedOutputs, seeds)
	}
}

// With a defect put in, the same simulation must fail.
func TestNegativeControls(t *testing.T) {
	seeds := min(stagetest.Seeds(t, 30), 300)
	for _, control := range []struct {
		name   string
		defect stagetest.Defect
	}{
		{"no origin check", stagetest.NoOriginCheck},
		{"wall-clock timers", stagetest.WallClockTimers},
		{"snapshot and commit before durable", stagetest.AcknowledgedBeforeWritten},
		{"one overwritten snapshot key", stagetest.OneSnapshotKey},
		{"highest-seen instead of bitmap", stagetest.HighestSeen},
		{"one ticker uid", stagetest.OneTickerUID},
	} {
		t.Run(control.name, func(t *testing.T) { stagetest.MustFail(t, seeds, simulated, control.defect) })
	}
}

// Recorded calls instead of random ones.
func TestSimulatedRecordings(t *testing.T) {
	names := []string{"two-users-default-config", "failed-setup", "rn-3.24.6-wss"}
	recordings := map[string][]timedRaw{}
	for _, name := range names {
		recordings[name] = readCapture(t, name)
	}
	stagetest.Simulate(t, min(stagetest.Seeds(t, 30), 300), func(seed uint64) stagetest.Options {
		o := simulated(seed)
		messages := recordings[names[seed%3]]
		next := 0
		o.Records, o.Check = len(messages), nil
		o.Next = func(*rand.Rand) (key, value []byte) {
			raw := messages[next%len(messages)].raw
			next++
			value, err := raw.MarshalVT()
			if err != nil {
				panic(err) // read from a file of the repository
			}
			return []byte(roomKey(raw.Observed.AppId, raw.Claimed.ConferenceId)), value
		}
		return o
	})
}
