// Package enricher turns raw client messages into enriched records: events with
// resolved identity, interval samples, and the facts of conferences,
// participants, fabrics and streams whenever they change. It decides who was
// there, on which connection, when it started, worked, broke and ended, from
// the log alone.
//
// It alone decides what was silent on purpose, and scores what was heard in an
// interval by the formulas of internal/quality.
//
// Its Machine is pure: no clock, no randomness, no I/O. It computes no summaries
// and no video scores (services/summarizer does), knows no client dialect (the
// gateway translates them), and neither reads nor writes Kafka itself
// (internal/stage does).
package enricher

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/callscope/callscope/internal/stage"
	"github.com/callscope/callscope/internal/stream"
)

// Name is the enricher's name in metrics, logs and set-aside records.
const Name = "enricher"

// Enricher runs a Machine on each partition that its consumer group gives it.
type Enricher struct{ stage *stage.Stage }

// New returns an enricher that does nothing until Run. reg may be nil.
func New(cfg Config, client *stream.Client, logger *slog.Logger, reg prometheus.Registerer) *Enricher {
	m := newMetrics(reg)
	return &Enricher{stage: stage.New(StageConfig(cfg, func(int32) stage.Machine {
		return &countedMachine{Machine: NewMachine(), metrics: m}
	}), client, logger, reg)}
}

// StageConfig says what the enricher is as a stage, with the given machines.
func StageConfig(cfg Config, newMachine func(partition int32) stage.Machine) stage.Config {
	return stage.Config{
		Name:         Name,
		InputTopic:   stream.TopicRaw,
		OutputTopic:  stream.TopicEnriched,
		StateTopic:   stream.TopicStateEnricher,
		Group:        stream.GroupEnricher,
		LogicVersion: LogicVersion, FormatVersion: FormatVersion,
		Ticks:             true,
		NewMachine:        newMachine,
		SnapshotInterval:  cfg.SnapshotInterval,
		StopTimeout:       cfg.StopTimeout,
		StartWithoutState: cfg.StartWithoutState,
	}
}

// Run works until ctx ends; it returns nil after a clean drain, and an error
// when topics or stored state do not fit, which only an operator can repair.
func (e *Enricher) Run(ctx context.Context) error { return e.stage.Run(ctx) }

// Ready returns nil when every partition that the enricher has is restored and
// moving, and otherwise an error that says which is not and why.
func (e *Enricher) Ready() error { return e.stage.Ready() }
