package apps

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/callscope/callscope/internal/stream"
)

// Log is where the registry's records are: callscope's Kafka client.
type Log interface {
	Fetch(ctx context.Context, topic string, partition int32, offset int64, maxBytes int, maxWait time.Duration) (stream.Batch, error)
	Offsets(ctx context.Context, topic string, partition int32) (start, end int64, err error)
	Append(ctx context.Context, topic string, partition int32, recs []stream.Record) (first int64, err error)
}

const (
	partition  = 0 // the topic's only one
	fetchBytes = 1 << 20
	fetchWait  = time.Second
)

var errNotRead = errors.New("the apps registry has not been read to its end yet")

// Registry knows the apps of the configuration and, while Follow runs, those of the topic. It is safe for concurrent
// use, and Lookup takes no lock.
type Registry struct {
	static  *Static
	key     *MasterKey
	log     *slog.Logger
	metrics *metrics
	view    atomic.Pointer[map[string]*App] // nil until the topic was read to its end
	ready   chan struct{}
}

// NewRegistry does no I/O. static may be empty; its apps hide those of the topic that have the same id. key may be nil,
// then no secret of the topic can be used. reg may be nil.
func NewRegistry(static *Static, key *MasterKey, log *slog.Logger, reg prometheus.Registerer) (*Registry, error) {
	m, err := newMetrics(reg)
	if err != nil {
		return nil, fmt.Errorf("registering the apps registry's metrics: %w", err)
	}
	m.apps.WithLabelValues("configuration").Set(float64(len(static.byID)))
	return &Registry{static: static, key: key, log: log, metrics: m, ready: make(chan struct{})}, nil
}

// Lookup returns the app with this id.
func (r *Registry) Lookup(appID string) (*App, bool) {
	if a, ok := r.static.Lookup(appID); ok {
		return a, true
	}
	view := r.view.Load()
	if view == nil {
		return nil, false
	}
	a, ok := (*view)[appID]
	return a, ok
}

// Ready returns nil once the topic was read to the end that it had, else why Lookup does not know all apps yet. It stays
// nil while the brokers are away: what was read goes on to be in force.
func (r *Registry) Ready() error {
	select {
	case <-r.ready:
		return nil
	default:
		return errNotRead
	}
}

// Count is how many apps there are, of the configuration and the topic together.
func (r *Registry) Count() int {
	n := len(r.static.byID)
	if view := r.view.Load(); view != nil {
		for id := range *view {
			if _, hidden := r.static.Lookup(id); !hidden {
				n++
			}
		}
	}
	return n
}

// Follow reads the topic to its end and then takes in every change, until ctx ends; then it returns nil. It may run
// once. Whatever is wrong with the brokers, it tries again; whatever is wrong with a record, the others count.
func (r *Registry) Follow(ctx context.Context, log Log) error {
	f := &follower{Registry: r, state: make(state), changed: make(map[string]bool)}
	failures := 0
	for ctx.Err() == nil {
		batch, err := log.Fetch(ctx, stream.TopicApps, partition, f.next, fetchBytes, fetchWait)
		switch {
		case err == nil:
			if failures > 0 {
				r.log.Info("the apps registry is read again", "failures", failures)
			}
			failures = 0
			f.take(batch)
		case ctx.Err() != nil:
		case errors.Is(err, stream.ErrOffsetOutOfRange):
			// The topic was made anew, or its beginning is gone: what is there now is what counts.
			r.log.Warn("the apps topic is not the one that was read before, reading it from its beginning", "error", err)
			f.state, f.next, f.loaded = make(state), max(batch.Start, 0), false
			pause(ctx, &failures) // the answer may come from a broker that knows less than the others
		default:
			if failures == 0 {
				r.log.Error("reading the apps registry failed; what is known stays in force, trying again", "error", err)
			}
			r.metrics.failures.Inc()
			pause(ctx, &failures)
		}
	}
	return nil
}

// pause waits longer with every failure, up to a second, with jitter.
func pause(ctx context.Context, failures *int) {
	limit := min(50*time.Millisecond<<min(*failures, 10), time.Second)
	*failures++
	timer := time.NewTimer(limit/2 + rand.N(limit/2))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// follower is the state of one Follow.
type follower struct {
	*Registry
	state   state
	next    int64
	loaded  bool // read to the end that the topic had
	changed map[string]bool
}

func (f *follower) take(batch stream.Batch) {
	for i := range batch.Records {
		rec := &batch.Records[i]
		r, err := decodeRecord(rec.Key, rec.Value)
		if err != nil {
			f.metrics.records.WithLabelValues("invalid").Inc()
			f.log.Warn("a record of the apps topic cannot be used and is left out", "offset", rec.Offset, "key", clip(string(rec.Key)), "error", err)
			continue
		}
		f.metrics.records.WithLabelValues("read").Inc()
		if f.state.late(r) {
			f.log.Info("a secret was changed while it was encrypted with another master key; the change stands", "offset", rec.Offset, "app_id", r.GetAppId(), "item", clip(r.GetItem()))
			continue
		}
		if f.state.put(r) {
			f.metrics.records.WithLabelValues("conflict").Inc()
			f.log.Warn("two changed the same item of an app at the same time; the later one stands", "offset", rec.Offset, "app_id", r.GetAppId(), "item", clip(r.GetItem()), "version", r.GetVersion())
		}
		f.changed[r.GetAppId()] = true
	}
	f.next = batch.Next
	f.metrics.readAt.SetToCurrentTime()
	switch {
	case f.loaded && len(f.changed) > 0:
		f.publish(*f.view.Load())
	case !f.loaded && batch.Next >= batch.End:
		f.loaded = true
		for id := range f.state {
			f.changed[id] = true
		}
		f.publish(nil)
		select {
		case <-f.ready:
		default:
			close(f.ready)
		}
		f.log.Info("the apps registry is read", "apps", f.Count(), "records_end", batch.End)
	}
}

// publish makes the changed apps anew and replaces what Lookup sees. Apps that did not change stay the same values.
func (f *follower) publish(before map[string]*App) {
	view := maps.Clone(before)
	if view == nil {
		view = make(map[string]*App)
	}
	otherKey := 0
	for id := range f.changed {
		a, left := f.state.build(id, f.key)
		for _, l := range left {
			outcome := "unusable"
			if l.record.GetSecret() != nil {
				outcome = "undecryptable"
			}
			if errors.Is(l.err, ErrOtherMasterKey) || errors.Is(l.err, ErrNoMasterKey) {
				otherKey++
			}
			f.metrics.records.WithLabelValues(outcome).Inc()
			f.log.Warn("an item of an app cannot be used and is left out", "app_id", id, "item", clip(l.record.GetItem()), "error", l.err)
		}
		if _, hidden := f.static.Lookup(id); hidden && a != nil {
			f.log.Warn("an app of the registry is hidden by the one that the configuration has under the same id", "app_id", id)
		}
		if a == nil {
			delete(view, id)
		} else {
			view[id] = a
		}
	}
	if otherKey > 0 {
		f.log.Error("app secrets cannot be decrypted with this gateway's master key, so nobody can sign in with them: give it the registry.master_key that `callscope apps` was used with, or that one as registry.previous_master_key", "secrets", otherKey, "master_key", f.key.String())
	}
	clear(f.changed)
	f.view.Store(&view)
	f.metrics.apps.WithLabelValues("registry").Set(float64(len(view)))
}
