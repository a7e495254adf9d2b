// Package summarizer is the stage that turns enriched records into summaries:
// of streams, fabrics, participants and conferences, partial while they live,
// final when they end and revised when something changes afterwards.
//
// It does not decide who is present, which message belongs to which conference
// or when a conference ends: the enricher does, and this package follows its
// facts and time records. It sets no labels on numbers and writes nothing but
// Kafka.
package summarizer

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/callscope/callscope/internal/stage"
	"github.com/callscope/callscope/internal/stream"
)

// Summarizer runs the stage on the partitions that its consumer group gives it.
type Summarizer struct{ stage *stage.Stage }

// New returns a summarizer that does nothing until Run. reg may be nil.
func New(cfg Config, client *stream.Client, logger *slog.Logger, reg prometheus.Registerer) *Summarizer {
	counters := newMetrics(reg)
	return &Summarizer{stage: stage.New(StageConfig(cfg, func(int32) stage.Machine {
		return &countedMachine{Machine: NewMachine(), metrics: counters}
	}), client, logger, reg)}
}

// StageConfig says what the summarizer is as a stage, with the given machines.
func StageConfig(cfg Config, newMachine func(partition int32) stage.Machine) stage.Config {
	return stage.Config{
		Name:              "summarizer",
		InputTopic:        stream.TopicEnriched,
		OutputTopic:       stream.TopicSummaries,
		StateTopic:        stream.TopicStateSummarizer,
		Group:             stream.GroupSummarizer,
		LogicVersion:      logicVersion,
		FormatVersion:     formatVersion,
		InputHasOrigins:   true,
		NewMachine:        newMachine,
		SnapshotInterval:  cfg.SnapshotInterval,
		StopTimeout:       cfg.StopTimeout,
		StartWithoutState: cfg.StartWithoutState,
	}
}

// Run works until ctx ends, saves the state of every partition and returns
// nil. It returns an error when the topics or the stored state do not fit,
// which only an operator can repair.
func (s *Summarizer) Run(ctx context.Context) error { return s.stage.Run(ctx) }

// Ready returns nil when every partition that the summarizer has is restored
// and moving, and otherwise an error that says which is not and why.
func (s *Summarizer) Ready() error { return s.stage.Ready() }
