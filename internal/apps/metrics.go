package apps

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	apps     *prometheus.GaugeVec   // source
	records  *prometheus.CounterVec // outcome
	failures prometheus.Counter
	readAt   prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		apps: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "callscope_apps",
			Help: "Apps known, by where they come from (configuration, registry).",
		}, []string{"source"}),
		records: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "callscope_apps_records_total",
			Help: "Records of the apps topic: read, or invalid; of those read: conflict (two changed an item at once), undecryptable and unusable (left out, counted each time the app changes).",
		}, []string{"outcome"}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "callscope_apps_read_failures_total",
			Help: "Attempts to read the apps topic that failed and were repeated.",
		}),
		readAt: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "callscope_apps_read_timestamp_seconds",
			Help: "When the apps topic was last read up to its end or further towards it.",
		}),
	}
	for _, outcome := range []string{"read", "invalid", "conflict", "undecryptable", "unusable"} {
		m.records.WithLabelValues(outcome)
	}
	if reg == nil {
		return m, nil
	}
	return m, errors.Join(reg.Register(m.apps), reg.Register(m.records), reg.Register(m.failures), reg.Register(m.readAt))
}
