package stream

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	produced       *prometheus.CounterVec   // topic
	produceSeconds *prometheus.HistogramVec // topic
	retries        *prometheus.CounterVec   // topic
	fetched        *prometheus.CounterVec   // topic
	failures       *prometheus.CounterVec   // operation
	commits        *prometheus.CounterVec   // group, outcome
	generations    *prometheus.CounterVec   // group
	groupErrors    *prometheus.CounterVec   // group
	partitions     *prometheus.GaugeVec     // group
	rejected       *prometheus.CounterVec   // stage, reason_kind
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	r := registrar{reg: reg}
	m := &metrics{
		produced: counter(&r, "callscope_kafka_produced_records_total", "Records that Kafka acknowledged on all in-sync replicas.", "topic"),
		produceSeconds: register(&r, prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "callscope_kafka_produce_seconds",
			Help:    "Time from sending a produce request to its acknowledgement, successful requests only.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15),
		}, []string{"topic"})),
		retries:     counter(&r, "callscope_kafka_produce_retries_total", "Records sent again after a transient failure.", "topic"),
		fetched:     counter(&r, "callscope_kafka_fetched_records_total", "Records read.", "topic"),
		failures:    counter(&r, "callscope_kafka_request_failures_total", "Requests that failed, by operation (produce, fetch, offsets, commit, committed).", "operation"),
		commits:     counter(&r, "callscope_kafka_commits_total", "Offset commits, by outcome (ok, fenced, failed).", "group", "outcome"),
		generations: counter(&r, "callscope_kafka_group_generations_total", "Generations of the group that this process took part in.", "group"),
		groupErrors: counter(&r, "callscope_kafka_group_errors_total", "Failed attempts to join the group.", "group"),
		partitions: register(&r, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "callscope_kafka_group_partitions",
			Help: "Partitions, over all topics, that this process owns in the group.",
		}, []string{"group"})),
		rejected: counter(&r, "callscope_rejected_total", "Records set aside in the reject topic.", "stage", "reason_kind"),
	}
	return m, r.err
}

// registrar collects the first error, so that the list of metrics above reads as a list.
type registrar struct {
	reg prometheus.Registerer
	err error
}

func counter(r *registrar, name, help string, labels ...string) *prometheus.CounterVec {
	return register(r, prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels))
}

// register returns the collector to use: the one given, or its twin that another client registered before.
func register[T prometheus.Collector](r *registrar, c T) T {
	if r.reg == nil {
		return c
	}
	err := r.reg.Register(c)
	var twin prometheus.AlreadyRegisteredError
	if errors.As(err, &twin) {
		if existing, ok := twin.ExistingCollector.(T); ok {
			return existing
		}
	}
	if err != nil && r.err == nil {
		r.err = err
	}
	return c
}
