package sink

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	records   *prometheus.CounterVec   // topic, outcome
	rows      *prometheus.CounterVec   // table
	ranges    *prometheus.CounterVec   // topic, kind
	retries   *prometheus.CounterVec   // operation
	gaps      *prometheus.CounterVec   // topic
	stopped   *prometheus.GaugeVec     // topic, partition
	lag       *prometheus.GaugeVec     // topic, partition
	lagTime   *prometheus.GaugeVec     // topic, partition
	queryable *prometheus.HistogramVec // topic
	insert    *prometheus.HistogramVec // topic
}

// Outcomes of a record. Their sum is what was read.
const (
	outcomeStored    = "stored"    // gave rows
	outcomeEmpty     = "empty"     // gives no rows by its kind
	outcomeDuplicate = "duplicate" // at or below the last origin accepted
	outcomeRejected  = "rejected"  // set aside in the reject topic
)

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{"topic", "partition"})
	}
	m := &metrics{
		records: counter("callscope_sink_records_total", "Records read, by what became of them (stored, empty, duplicate, rejected). Counted when their range is complete in ClickHouse.", "topic", "outcome"),
		rows:    counter("callscope_sink_rows_total", "Rows that are in ClickHouse for certain.", "table"),
		ranges:  counter("callscope_sink_ranges_total", "Ranges of records completed (new), or completed after somebody else had planned them (resumed).", "topic", "kind"),
		retries: counter("callscope_sink_retries_total", "Repetitions after a transient failure, by operation.", "operation"),
		gaps:    counter("callscope_sink_gaps_total", "Times that records were missing from a topic.", "topic"),
		stopped: gauge("callscope_sink_stopped", "1 while the sink refuses to go on with a partition; its log says why."),
		lag:     gauge("callscope_sink_lag_records", "Records of the partition that are not in ClickHouse yet."),
		lagTime: gauge("callscope_sink_lag_seconds", "Age of the newest record in ClickHouse when it was completed."),
		queryable: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "callscope_sink_queryable_seconds",
			Help:    "Time from the gateway's receipt of a message to its rows in ClickHouse, each record that has rows.",
			Buckets: []float64{0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 5, 7.5, 10, 30, 60, 300, 1800},
		}, []string{"topic"}),
		insert: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "callscope_sink_insert_seconds",
			Help:    "Time to insert one range into all its tables, repetitions included.",
			Buckets: prometheus.ExponentialBuckets(0.002, 2, 16),
		}, []string{"topic"}),
	}
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.records, m.rows, m.ranges, m.retries, m.gaps, m.stopped, m.lag, m.lagTime, m.queryable, m.insert} {
		errs = append(errs, reg.Register(c))
	}
	return m, errors.Join(errs...)
}

// forget takes away what is said of a partition that this process no longer owns.
func (m *metrics) forget(topic, partition string) {
	for _, g := range []*prometheus.GaugeVec{m.stopped, m.lag, m.lagTime} {
		g.DeleteLabelValues(topic, partition)
	}
}
