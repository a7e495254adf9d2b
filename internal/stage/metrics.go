package stage

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of one stage; all have a partition label and, through the
// registerer, a stage label.
type metrics struct {
	read, records, outputs, snapshots, ticks, gaps, panics, rebuilds, retries *prometheus.CounterVec
	lagRecords, lagSeconds, snapshotAge, snapshotBytes, snapshotSeconds       *prometheus.GaugeVec
	restoreSeconds                                                            *prometheus.GaugeVec
}

// newMetrics makes the metrics and registers them unless reg is nil.
func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "callscope_stage_" + name, Help: help}, append([]string{"partition"}, labels...))
		if reg != nil {
			reg.MustRegister(v)
		}
		return v
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "callscope_stage_" + name, Help: help}, []string{"partition"})
		if reg != nil {
			reg.MustRegister(v)
		}
		return v
	}
	return &metrics{
		read:      counter("read_total", "Input records taken up, equal to the sum of callscope_stage_records_total."),
		records:   counter("records_total", "Input records by what became of them: processed, duplicate or rejected.", "outcome"),
		outputs:   counter("outputs_total", "Output records acknowledged."),
		snapshots: counter("snapshots_total", "Snapshots whose manifest was acknowledged."),
		ticks:     counter("ticks_total", "Ticks written into the input partition."),
		gaps:      counter("gap_total", "Alarms over missing input records; the partition stands still."),
		panics:    counter("panics_total", "Panics of the machine over a record, which was set aside."),
		rebuilds:  counter("rebuilds_total", "States built again after a panic."),
		retries:   counter("retries_total", "Actions that failed and were tried again."),

		lagRecords:      gauge("lag_records", "Input records not yet processed."),
		lagSeconds:      gauge("lag_seconds", "Age of the record processed last while there are others behind it, otherwise 0."),
		snapshotAge:     gauge("snapshot_age_seconds", "Time since the state was last written or restored."),
		snapshotBytes:   gauge("snapshot_bytes", "Size of the last snapshot."),
		snapshotSeconds: gauge("snapshot_seconds", "Time that writing the last snapshot took."),
		restoreSeconds:  gauge("restore_seconds", "Time that restoring the state took."),
	}
}

// partitionMetrics are the metrics of one partition, looked up once.
type partitionMetrics struct {
	read, processed, duplicate, rejected, outputs, snapshots, ticks, gaps, panics, rebuilds, retries prometheus.Counter
	lagRecords, lagSeconds, snapshotAge, snapshotBytes, snapshotSeconds, restoreSeconds              prometheus.Gauge
}

func (m *metrics) of(partition int32) *partitionMetrics {
	p := strconv.Itoa(int(partition))
	return &partitionMetrics{
		read:      m.read.WithLabelValues(p),
		processed: m.records.WithLabelValues(p, "processed"),
		duplicate: m.records.WithLabelValues(p, "duplicate"),
		rejected:  m.records.WithLabelValues(p, "rejected"),
		outputs:   m.outputs.WithLabelValues(p),
		snapshots: m.snapshots.WithLabelValues(p),
		ticks:     m.ticks.WithLabelValues(p),
		gaps:      m.gaps.WithLabelValues(p),
		panics:    m.panics.WithLabelValues(p),
		rebuilds:  m.rebuilds.WithLabelValues(p),
		retries:   m.retries.WithLabelValues(p),

		lagRecords:      m.lagRecords.WithLabelValues(p),
		lagSeconds:      m.lagSeconds.WithLabelValues(p),
		snapshotAge:     m.snapshotAge.WithLabelValues(p),
		snapshotBytes:   m.snapshotBytes.WithLabelValues(p),
		snapshotSeconds: m.snapshotSeconds.WithLabelValues(p),
		restoreSeconds:  m.restoreSeconds.WithLabelValues(p),
	}
}

// forget removes the gauges of a partition that another process has now, so
// that nobody reads an old value as the present one. Counters stay.
func (m *metrics) forget(partition int32) {
	p := strconv.Itoa(int(partition))
	for _, g := range []*prometheus.GaugeVec{m.lagRecords, m.lagSeconds, m.snapshotAge, m.snapshotBytes, m.snapshotSeconds, m.restoreSeconds} {
		g.DeleteLabelValues(p)
	}
}
