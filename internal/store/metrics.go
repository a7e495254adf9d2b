package store

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	inserts *prometheus.CounterVec   // table, outcome
	rows    *prometheus.CounterVec   // table
	seconds *prometheus.HistogramVec // table
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		inserts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "callscope_store_inserts_total",
			Help: "Inserts into ClickHouse, by outcome (ok, permanent, transient). A transient failure may have been stored.",
		}, []string{"table", "outcome"}),
		rows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "callscope_store_inserted_rows_total",
			Help: "Rows of acknowledged inserts, those included that ClickHouse recognised by their token and dropped.",
		}, []string{"table"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "callscope_store_insert_seconds",
			Help:    "Time of an acknowledged insert.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
		}, []string{"table"}),
	}
	if reg == nil {
		return m, nil
	}
	return m, errors.Join(reg.Register(m.inserts), reg.Register(m.rows), reg.Register(m.seconds))
}
