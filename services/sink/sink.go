// Package sink brings the records of the topics enriched and summaries into ClickHouse, each effectively once: it
// commits what it is going to insert before it inserts it, so that any successor inserts the same rows under the same
// token (design 3.7). partition.go is that protocol, plan.go what it remembers, and the files named after tables make
// records into rows.
//
// It computes nothing about calls, keeps nothing in memory beyond the ranges under way, and makes no tables: migrations
// are a command of their own.
package sink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/stream"
)

// Sink is the service. Run it once.
type Sink struct {
	cfg    Config
	client *stream.Client
	store  *store.Store
	log    *slog.Logger
	m      *metrics
	slots  chan struct{}
	health health

	erasures Erasures
}

// HonourErasures makes the sink take erased users out of everything that it stores. Call it before Run; without it, rows
// are stored as they come.
func (s *Sink) HonourErasures(e Erasures) { s.erasures = e }

// New returns a sink that does nothing until Run. reg may be nil.
func New(cfg Config, client *stream.Client, st *store.Store, log *slog.Logger, reg prometheus.Registerer) (*Sink, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("checking the sink's settings: %w", err)
	}
	cfg = cfg.withDefaults()
	m, err := newMetrics(reg)
	if err != nil {
		return nil, fmt.Errorf("registering the sink's metrics: %w", err)
	}
	return &Sink{cfg: cfg, client: client, store: st, log: log, m: m, slots: make(chan struct{}, cfg.Parallel)}, nil
}

// Run checks that the store is fit to be written to and then works as a member of the consumer group until ctx ends. It
// returns nil after that, or an error that a person must do something about: an unreachable or unfit store at start,
// rights that Kafka refuses.
//
// Trouble that may pass is waited out, a partition whose records cannot be what they must be is stopped; both show in
// Ready.
func (s *Sink) Run(ctx context.Context) error {
	for _, check := range []func(context.Context) error{s.store.Ping, s.store.CheckSchema, s.store.CheckInserts} {
		if err := check(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("starting the sink: %w", err)
		}
	}
	s.health.set(runKey, "")
	defer s.health.set(runKey, "not running")
	if err := s.client.RunGroup(ctx, stream.GroupSink, []string{stream.TopicEnriched, stream.TopicSummaries}, s.handle); err != nil {
		return fmt.Errorf("running the sink: %w", err)
	}
	return nil
}

// Ready returns nil while everything is well, else an error with a line for each partition that is stopped or waits for
// something, and why.
func (s *Sink) Ready() error { return s.health.err() }

// handle owns one partition for one generation of the group.
func (s *Sink) handle(ctx context.Context, a *stream.Assignment) error {
	key := fmt.Sprintf("%s/%d", a.Topic(), a.Partition())
	p := &partition{
		topic: a.Topic(), number: a.Partition(), log: assignedLog{s.client, a}, store: s.store, cfg: s.cfg, schema: store.SchemaVersion, atomicTokens: s.store.Replicated(),
		m: s.m, logger: s.log, pause: pause, slots: s.slots, erasures: s.erasures,
		trouble: func(reason string) { s.health.set(key, reason) },
	}
	defer func() {
		s.health.set(key, "")
		labels := p.labels()
		s.m.forget(labels[0], labels[1])
	}()
	err := p.start(ctx)
	for err == nil && ctx.Err() == nil {
		err = p.step(ctx)
	}
	var stop *stoppedError
	if errors.As(err, &stop) {
		s.log.Error("stopped a partition", "topic", p.topic, "partition", p.number, "reason", stop.reason)
		s.m.stopped.WithLabelValues(p.labels()...).Set(1)
		s.health.set(key, "stopped: "+stop.reason)
		<-ctx.Done()
		return nil
	}
	return err
}

// assignedLog is the part of the stream that a partition sees.
type assignedLog struct {
	client *stream.Client
	*stream.Assignment
}

func (l assignedLog) Fetch(ctx context.Context, offset int64, maxBytes int, maxWait time.Duration) (stream.Batch, error) {
	return l.client.Fetch(ctx, l.Topic(), l.Partition(), offset, maxBytes, maxWait)
}

func (l assignedLog) Reject(ctx context.Context, r stream.Record, reason string) error {
	return l.client.Reject(ctx, r, "sink", reason)
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// runKey is the health of the service as a whole.
const runKey = ""

// health is what is wrong at the moment, by partition.
type health struct {
	mu     sync.Mutex
	ran    bool
	wrongs map[string]string
}

func (h *health) set(key, reason string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ran = true
	if reason == "" {
		delete(h.wrongs, key)
		return
	}
	if h.wrongs == nil {
		h.wrongs = make(map[string]string)
	}
	h.wrongs[key] = reason
}

func (h *health) err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.ran {
		return errors.New("sink: not running yet")
	}
	if len(h.wrongs) == 0 {
		return nil
	}
	var lines []string
	for _, key := range slices.Sorted(maps.Keys(h.wrongs)) {
		lines = append(lines, strings.TrimSpace("sink "+key)+": "+h.wrongs[key])
	}
	return errors.New(strings.Join(lines, "\n"))
}
