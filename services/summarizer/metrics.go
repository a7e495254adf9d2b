package summarizer

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/callscope/callscope/internal/stage"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

type metrics struct {
	summaries *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{summaries: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "callscope_summarizer_summaries_total",
		Help: "Summaries made, by kind of entity and state (partial, final, revised). Counted again when records are stepped again after a restart.",
	}, []string{"kind", "state"})}
	if reg != nil {
		reg.MustRegister(m.summaries)
	}
	return m
}

// countedMachine counts what a Machine writes, so that the Machine itself
// stays free of everything but the log.
type countedMachine struct {
	*Machine
	metrics *metrics
}

func (c *countedMachine) Step(in stage.Input) ([]stage.Output, error) {
	outputs, err := c.Machine.Step(in)
	for _, out := range outputs {
		if s, ok := out.Message.(*callscopev1.Summary); ok {
			c.metrics.summaries.WithLabelValues(kindOf(s), stateName(s.State)).Inc()
		}
	}
	return outputs, err
}

func kindOf(s *callscopev1.Summary) string {
	switch s.Body.(type) {
	case *callscopev1.Summary_Conference:
		return kindConference
	case *callscopev1.Summary_Participant:
		return kindParticipant
	case *callscopev1.Summary_Fabric:
		return kindFabric
	}
	return kindStream
}

func stateName(s callscopev1.SummaryState) string {
	switch s {
	case callscopev1.SummaryState_SUMMARY_STATE_FINAL:
		return "final"
	case callscopev1.SummaryState_SUMMARY_STATE_REVISED:
		return "revised"
	}
	return "partial"
}
