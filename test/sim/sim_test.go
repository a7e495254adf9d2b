// Package sim simulates the enricher with the summarizer behind it, each in the
// real stage runtime over a log in memory: what one writes under crashes,
// zombies and lost acknowledgements, the other reads under its own. Each stage
// alone is simulated in its own package.
package sim

import (
	"fmt"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/callscope/callscope/internal/stage"
	"github.com/callscope/callscope/internal/stage/stagetest"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
	"github.com/callscope/callscope/services/enricher"
	"github.com/callscope/callscope/services/summarizer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Two stages give, from the log that clients wrote, what two faultless folds
// give, and no conference stays open.
func TestSimulation(t *testing.T) {
	seeds := stagetest.Seeds(t, 1000) / 10
	finals := make([]int, seeds)
	sum := stagetest.SimulateAll(t, seeds, func(seed uint64) (stagetest.Result, error) {
		calls := stagetest.NewCalls()
		first, err := stagetest.Run(stagetest.Options{
			Seed:    seed,
			Stage:   enricher.StageConfig(enricher.Config{}, func(int32) stage.Machine { return enricher.NewMachine() }),
			Records: 45, Next: calls.Next, Check: calls.Check, Rest: 10 * time.Minute,
		})
		if err != nil {
			return first, fmt.Errorf("enricher: %w", err)
		}
		second, err := stagetest.Run(stagetest.Options{
			Seed: seed, Input: first.Output,
			Stage: summarizer.StageConfig(summarizer.Config{}, func(int32) stage.Machine { return summarizer.NewMachine() }),
		})
		if err != nil {
			return second, fmt.Errorf("summarizer: %w", err)
		}
		open := map[string]bool{}
		var filter stage.OriginFilter // zombies' summaries are in the log too
		for _, r := range second.Output {
			_, origin, prev, err := stage.ReadHeader(r.Value)
			if err != nil {
				return second, err
			}
			if filter.Accept(origin, prev) != stage.Accept {
				continue
			}
			var s callscopev1.Summary
			if err := s.UnmarshalVT(r.Value); err != nil {
				return second, err
			}
			if s.GetConference() != nil {
				open[string(s.Identity.ConferenceUid)] = s.State == callscopev1.SummaryState_SUMMARY_STATE_PARTIAL
			}
		}
		for uid, partial := range open {
			if partial {
				return second, fmt.Errorf("the last summary of conference %x is a partial one", uid)
			}
		}
		if int(seed) < len(finals) {
			finals[seed] = len(open)
		}
		first.Add(second)
		return first, nil
	})
	conferences := 0
	for _, n := range finals {
		conferences += n
	}
	t.Logf("%d seeds, %d conferences: %+v", seeds, conferences, sum)
	sum.MustHaveTried(t, seeds)
	if conferences < seeds {
		t.Errorf("only %d conferences in %d seeds", conferences, seeds)
	}
}
