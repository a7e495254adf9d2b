package stage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/callscope/callscope/internal/stream"
)

const (
	firstPause = 50 * time.Millisecond
	longPause  = 5 * time.Second
)

// Config says what a stage is and where it reads and writes.
type Config struct {
	// Name is the stage's name in metrics, logs and set-aside records.
	Name string
	// InputTopic, OutputTopic and StateTopic have equal partition counts.
	InputTopic, OutputTopic, StateTopic string
	// Group is the consumer group that shares out the partitions.
	Group string
	// LogicVersion grows with every change of Step that changes outputs,
	// FormatVersion with every change of what Snapshot encodes. A stage refuses
	// snapshots of higher versions than its own.
	LogicVersion, FormatVersion uint32
	// Ticks makes the owner of a partition append ticks to it. The machines
	// must then be Ticking.
	Ticks bool
	// InputHasOrigins: the input is another stage's output, so duplicates are
	// dropped and gaps found by origin.
	InputHasOrigins bool
	// NewMachine returns the machine of a partition that has seen nothing.
	NewMachine func(partition int32) Machine

	SnapshotInterval time.Duration // at least so long between snapshots; 0: 10 s
	StopTimeout      time.Duration // for the last outputs and snapshot at the end of an assignment, below the session timeout; 0: 5 s
	FetchBytes       int           // read at once; 0: 1 MiB
	ChunkBytes       int           // of state in one record of a snapshot; 0: 256 KiB
	// StartWithoutState is the operator's consent to begin with nothing where
	// a snapshot should be and is not, or has records missing behind it.
	StartWithoutState bool
}

func (c Config) withDefaults() Config {
	if c.SnapshotInterval == 0 {
		c.SnapshotInterval = 10 * time.Second
	}
	if c.StopTimeout == 0 {
		c.StopTimeout = 5 * time.Second
	}
	if c.FetchBytes == 0 {
		c.FetchBytes = 1 << 20
	}
	if c.ChunkBytes == 0 {
		c.ChunkBytes = chunkBytes
	}
	return c
}

// Client is what a stage needs of Kafka as a whole. *stream.Client is one.
type Client interface {
	Log
	PartitionCount(ctx context.Context, topic string) (int, error)
	RunGroup(ctx context.Context, groupID string, topics []string, handle func(context.Context, *stream.Assignment) error) error
}

// Stage runs machines on the partitions that its consumer group gives it.
type Stage struct {
	cfg     Config
	client  Client
	logger  *slog.Logger
	metrics *metrics

	mu      sync.Mutex
	started bool
	waiting map[int32]string // why a partition is not ready
}

// New returns a stage that does nothing until Run. reg may be nil; two stages
// with different names can share one. Without Run, client may be nil.
func New(cfg Config, client Client, logger *slog.Logger, reg prometheus.Registerer) *Stage {
	if reg != nil {
		reg = prometheus.WrapRegistererWith(prometheus.Labels{"stage": cfg.Name}, reg)
	}
	return &Stage{
		cfg: cfg.withDefaults(), client: client, logger: logger.With("stage", cfg.Name),
		metrics: newMetrics(reg), waiting: map[int32]string{},
	}
}

// Run works until ctx ends and then saves every partition's state. It returns
// nil after that, and an error when the topics or the stored state do not fit
// (ErrRefused), which only an operator can repair.
func (s *Stage) Run(ctx context.Context) error {
	if err := s.checkTopics(ctx); err != nil {
		if ctx.Err() != nil {
			return nil //nolint:nilerr // told to stop while it looked
		}
		return err
	}
	s.mu.Lock()
	s.started = true
	s.mu.Unlock()
	err := s.client.RunGroup(ctx, s.cfg.Group, []string{s.cfg.InputTopic}, s.runAssignment)
	if ctx.Err() != nil && (err == nil || errors.Is(err, ctx.Err())) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("running stage %s: %w", s.cfg.Name, err)
	}
	return nil
}

// Ready returns nil when the stage has found its topics and every partition that
// it has is restored and moving, and otherwise an error that says which is not
// and why. It does not know whether the group has given it any yet.
func (s *Stage) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.started {
		return fmt.Errorf("stage %s has not started", s.cfg.Name)
	}
	if len(s.waiting) == 0 {
		return nil
	}
	var reasons []string
	for _, partition := range slices.Sorted(maps.Keys(s.waiting)) {
		reasons = append(reasons, fmt.Sprintf("partition %d: %s", partition, s.waiting[partition]))
	}
	return fmt.Errorf("stage %s: %s", s.cfg.Name, strings.Join(reasons, "; "))
}

// setWaiting says why a partition is not ready; empty means that it is.
func (s *Stage) setWaiting(partition int32, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if reason == "" {
		delete(s.waiting, partition)
		return
	}
	s.waiting[partition] = reason
}

// checkTopics refuses unequal partition counts: what comes from partition p is
// written to partition p.
func (s *Stage) checkTopics(ctx context.Context) error {
	counts := map[string]int{}
	for _, topic := range []string{s.cfg.InputTopic, s.cfg.OutputTopic, s.cfg.StateTopic} {
		pause := newPause()
		for {
			n, err := s.client.PartitionCount(ctx, topic)
			if err == nil {
				counts[topic] = n
				break
			}
			if ctx.Err() != nil || !stream.Transient(err) {
				return fmt.Errorf("checking the topics of stage %s: %w", s.cfg.Name, err)
			}
			s.logger.Warn("cannot check topics, trying again", "topic", topic, "error", err)
			pause.wait(ctx)
		}
	}
	in, out, state := counts[s.cfg.InputTopic], counts[s.cfg.OutputTopic], counts[s.cfg.StateTopic]
	if in != out || in != state {
		return fmt.Errorf("%w: %s has %d partitions, %s has %d, %s has %d, and they must be equal. Make the topics that hold nothing yet anew with the count of the others",
			ErrRefused, s.cfg.InputTopic, in, s.cfg.OutputTopic, out, s.cfg.StateTopic, state)
	}
	return nil
}

// runAssignment drives one partition until its generation ends.
func (s *Stage) runAssignment(ctx context.Context, a *stream.Assignment) error {
	number := a.Partition()
	logger := s.logger.With("partition", number)
	defer s.metrics.forget(number)
	p := s.NewPartition(number, Env{
		Log: s.client, Committer: a, Now: time.Now, Monotonic: func() time.Duration { return time.Since(processStart) },
		NewUID: newUID, Logger: logger,
	})
	s.setWaiting(number, "restoring its state")
	defer s.setWaiting(number, "")

	err := s.drive(ctx, p, logger)
	if errors.Is(err, stream.ErrFenced) {
		return fmt.Errorf("partition %d: %w", number, err) // the group is joined again
	}
	if errors.Is(err, ErrRefused) {
		return fmt.Errorf("partition %d: %w", number, err)
	}
	gap := errors.Is(err, ErrGap)
	if gap {
		p.metrics.gaps.Inc()
		logger.Error("input records are missing: the partition stands still. Find out what deleted them; it looks again with the next assignment", "error", err)
		s.setWaiting(number, err.Error())
	}

	// The assignment's context has ended or will not be used any more. What is
	// left has a limit of its own, below the session timeout, because until it
	// is done the group waits for us.
	p.Stop()
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.StopTimeout)
	defer cancel()
	if err := s.drive(stopCtx, p, logger); !errors.Is(err, ErrStopped) && !errors.Is(err, stream.ErrFenced) {
		logger.Warn("the last snapshot of the assignment was not written; the next owner repeats what came after the one before", "error", err)
	}
	if gap {
		<-ctx.Done()
	}
	return nil
}

// drive advances the partition until ctx ends or an error comes that pausing
// does not help against.
func (s *Stage) drive(ctx context.Context, p *Partition, logger *slog.Logger) error {
	pause := newPause()
	ready := false
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := p.Advance(ctx)
		switch {
		case err == nil:
			pause = newPause()
			if !ready && p.Next() >= 0 && !p.stopping {
				ready = true
				s.setWaiting(p.number, "")
			}
			continue
		case ctx.Err() != nil:
			return err
		case errors.Is(err, ErrStopped), errors.Is(err, stream.ErrFenced), errors.Is(err, ErrGap), errors.Is(err, ErrRefused):
			return err
		}
		p.metrics.retries.Inc()
		logger.Warn("trying again after a pause", "error", err)
		pause.wait(ctx)
	}
}

// pause is a capped exponential back-off with jitter.
type pause struct{ limit time.Duration }

func newPause() *pause { return &pause{limit: firstPause} }

func (p *pause) wait(ctx context.Context) {
	timer := time.NewTimer(p.limit/2 + rand.N(p.limit/2+1))
	defer timer.Stop()
	p.limit = min(2*p.limit, longPause)
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
