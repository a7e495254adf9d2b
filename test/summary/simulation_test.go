package summary

import (
	"fmt"
	"testing"
	"time"

	"github.com/callscope/callscope/internal/stage"
	"github.com/callscope/callscope/internal/stage/stagetest"
	"github.com/callscope/callscope/internal/stream"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
	"github.com/callscope/callscope/services/enricher"
	"github.com/callscope/callscope/services/summarizer"
)

// Random calls through both stages, each with crashes, zombies and everything
// else that the simulation does: the summaries that a consumer accepts are
// those of a fold over the raw log, byte for byte, and every entity's revisions
// are complete.
func TestBothStagesUnderFaults(t *testing.T) {
	seeds := stagetest.Seeds(t, 100)
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
			Seed:  seed,
			Input: first.Output,
			Stage: summarizer.StageConfig(summarizer.Config{}, func(int32) stage.Machine { return summarizer.NewMachine() }),
			Check: func(_, accepted []stream.Record) error { return completeRevisions(accepted) },
		})
		if err != nil {
			err = fmt.Errorf("summarizer: %w", err)
		}
		return second, err
	})
	t.Logf("%d seeds: %+v", seeds, sum)
	if sum.Crashes < seeds || sum.Outputs < 10*seeds || sum.Rejected != 0 {
		t.Errorf("the simulation does not try what it should: %+v", sum)
	}
}

// completeRevisions wants every entity's revisions to count from 1 without a
// gap, partial, then one final, then revised, and the last word on all to be
// final: nobody is left open in the end.
func completeRevisions(accepted []stream.Record) error {
	revisions, states := map[string]uint32{}, map[string]callscopev1.SummaryState{}
	for _, r := range accepted {
		var s callscopev1.Summary
		if err := s.UnmarshalVT(r.Value); err != nil {
			return fmt.Errorf("decoding a summary: %w", err)
		}
		key := string(s.EntityUid)
		if s.Revision != revisions[key]+1 {
			return fmt.Errorf("revision %d of %x follows %d", s.Revision, s.EntityUid, revisions[key])
		}
		if before := states[key]; s.State < before || before == callscopev1.SummaryState_SUMMARY_STATE_FINAL && s.State == before {
			return fmt.Errorf("%s of %x follows %s", s.State, s.EntityUid, before)
		}
		revisions[key], states[key] = s.Revision, s.State
	}
	for key, state := range states {
		if state == callscopev1.SummaryState_SUMMARY_STATE_PARTIAL {
			return fmt.Errorf("the last summary of %x is partial", key)
		}
	}
	return nil
}
