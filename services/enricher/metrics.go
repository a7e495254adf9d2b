package enricher

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/callscope/callscope/internal/stage"
)

// metrics count what became of the input of this process, over all partitions.
type metrics struct {
	processed, ignoredTicks, orphans, begun, reopened, overLimit prometheus.Counter
	byRecord, bySequence, byContent                              prometheus.Counter // duplicates
	conferencesOver, participantsOver, fabricsOver               prometheus.Counter // over limit
}

// newMetrics makes the metrics and registers them unless reg is nil.
func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "callscope_enricher_" + name, Help: help})
		if reg != nil {
			reg.MustRegister(c)
		}
		return c
	}
	m := &metrics{
		processed:    counter("processed_total", "Raw records that were applied, ticks included."),
		ignoredTicks: counter("ignored_ticks_total", "Ticks of superseded tickers."),
		orphans:      counter("orphans_total", "Messages kept without a conference: none was known, and they begin none."),
		begun:        counter("conferences_begun_total", "Conferences begun."),
		reopened:     counter("conferences_reopened_total", "Conferences re-opened during grace."),
		overLimit:    counter("streams_over_limit_total", "Reports and associations of streams beyond what one fabric may have."),
	}
	over := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "callscope_enricher_over_limit_total",
		Help: "Messages that would have begun a conference, participant or fabric beyond what an app, conference or participant may have at once; they are kept as events.",
	}, []string{"what"})
	if reg != nil {
		reg.MustRegister(over)
	}
	m.conferencesOver = over.WithLabelValues("conferences")
	m.participantsOver = over.WithLabelValues("participants")
	m.fabricsOver = over.WithLabelValues("fabrics")
	duplicates := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "callscope_enricher_duplicates_total",
		Help: "Raw records dropped as duplicates, by what showed it: record, sequence or content.",
	}, []string{"by"})
	if reg != nil {
		reg.MustRegister(duplicates)
	}
	m.byRecord = duplicates.WithLabelValues(duplicateRecord)
	m.bySequence = duplicates.WithLabelValues(duplicateSequence)
	m.byContent = duplicates.WithLabelValues(duplicateContent)
	return m
}

// countedMachine counts what its Machine did, between the steps: the machine
// itself stays pure.
type countedMachine struct {
	*Machine
	metrics *metrics
	counted Counts
}

// Step is Machine.Step.
func (c *countedMachine) Step(in stage.Input) ([]stage.Output, error) {
	outputs, err := c.Machine.Step(in)
	now, before := c.Machine.Counts(), c.counted
	c.counted = now
	for _, count := range []struct {
		counter     prometheus.Counter
		now, before uint64
	}{
		{c.metrics.processed, now.Processed, before.Processed},
		{c.metrics.ignoredTicks, now.IgnoredTicks, before.IgnoredTicks},
		{c.metrics.orphans, now.Orphans, before.Orphans},
		{c.metrics.begun, now.ConferencesBegun, before.ConferencesBegun},
		{c.metrics.reopened, now.ConferencesReopened, before.ConferencesReopened},
		{c.metrics.overLimit, now.StreamsOverLimit, before.StreamsOverLimit},
		{c.metrics.conferencesOver, now.ConferencesOverLimit, before.ConferencesOverLimit},
		{c.metrics.participantsOver, now.ParticipantsOverLimit, before.ParticipantsOverLimit},
		{c.metrics.fabricsOver, now.FabricsOverLimit, before.FabricsOverLimit},
		{c.metrics.byRecord, now.DuplicateRecords, before.DuplicateRecords},
		{c.metrics.bySequence, now.DuplicateSequences, before.DuplicateSequences},
		{c.metrics.byContent, now.DuplicateContents, before.DuplicateContents},
	} {
		if count.now > count.before {
			count.counter.Add(float64(count.now - count.before))
		}
	}
	return outputs, err
}

var _ stage.Ticking = (*countedMachine)(nil)
