package erasures

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	inForce  prometheus.Gauge
	invalid  prometheus.Counter
	messages *prometheus.CounterVec // kind
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		inForce: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "callscope_erasures", Help: "Erasures in force that this process has read.",
		}),
		invalid: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "callscope_erasures_invalid_total", Help: "Records of the erasures topic that cannot be used and were left out.",
		}),
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "callscope_erasures_messages_total", Help: "Messages that an erased user was taken out of before they became rows or files, by kind (enriched, summary, raw).",
		}, []string{"kind"}),
	}
	for _, kind := range []string{"enriched", "summary", "raw"} {
		m.messages.WithLabelValues(kind)
	}
	if reg == nil {
		return m, nil
	}
	return m, errors.Join(reg.Register(m.inForce), reg.Register(m.invalid), reg.Register(m.messages))
}
