package stage_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/callscope/callscope/internal/stage"
	"github.com/callscope/callscope/internal/stage/stagetest"
	"github.com/callscope/callscope/internal/stream"
	"github.com/callscope/callscope/internal/stream/streamtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const partitions = 2

// openClient returns a client of a fresh broker with callscope's topics.
func openClient(t *testing.T) (*stream.Client, *prometheus.Registry) {
	t.Helper()
	return reopenClient(t, streamtest.StartBroker(t))
}

func reopenClient(t *testing.T, addr string) (*stream.Client, *prometheus.Registry) {
	t.Helper()
	reg := prometheus.NewRegistry()
	client, err := stream.Open(stream.Config{
		Brokers: []string{addr}, Partitions: partitions,
		SessionTimeout: 3 * time.Second, RebalanceTimeout: 5 * time.Second, HeartbeatInterval: 200 * time.Millisecond,
	}, logger(t), reg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if err := client.EnsureTopics(t.Context()); err != nil {
		t.Fatal(err)
	}
	return client, reg
}

func logger(t *testing.T) *slog.Logger {
	level := slog.LevelError + 1 // the tests look at results, not at logs
	if os.Getenv("CALLSCOPE_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level}))
}

func counterConfig() stage.Config {
	return stage.Config{
		Name: "enricher", InputTopic: stream.TopicRaw, OutputTopic: stream.TopicEnriched, StateTopic: stream.TopicStateEnricher,
		Group: stream.GroupEnricher, LogicVersion: 1, FormatVersion: 1, Ticks: true,
		NewMachine:       func(int32) stage.Machine { return stagetest.NewCounter() },
		SnapshotInterval: 100 * time.Millisecond, StopTimeout: time.Second,
	}
}

func totalsConfig() stage.Config {
	return stage.Config{
		Name: "summarizer", InputTopic: stream.TopicEnriched, OutputTopic: stream.TopicSummaries, StateTopic: stream.TopicStateSummarizer,
		Group: stream.GroupSummarizer, LogicVersion: 1, FormatVersion: 1, InputHasOrigins: true,
		NewMachine:       func(int32) stage.Machine { return stagetest.NewTotals() },
		SnapshotInterval: 100 * time.Millisecond, StopTimeout: time.Second,
	}
}

// start runs a stage until the returned function is called or the test ends.
func start(t *testing.T, cfg stage.Config, client *stream.Client, reg prometheus.Registerer) (s *stage.Stage, stop func() error) {
	t.Helper()
	s = stage.New(cfg, client, logger(t), reg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	var result error
	stop = func() error {
		if !stopped {
			cancel()
			result = <-done
			stopped = true
		}
		return result
	}
	t.Cleanup(func() { stop() })
	return s, stop
}

// eventually polls until ready returns nil.
func eventually(t *testing.T, ready func() error) {
	t.Helper()
	streamtest.Eventually(t, 20*time.Second, func() string {
		if err := ready(); err != nil {
			return err.Error()
		}
		return ""
	})
}

// readAll returns a partition from its first record to its present end.
func readAll(t *testing.T, client *stream.Client, topic string, partition int32) []stream.Record {
	t.Helper()
	next, end, err := client.Offsets(t.Context(), topic, partition)
	if err != nil {
		t.Fatal(err)
	}
	var records []stream.Record
	for next < end {
		batch, err := client.Fetch(t.Context(), topic, partition, next, 1<<20, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, batch.Records...)
		next = batch.Next
	}
	return records
}

func inputs(records []stream.Record) []stage.Input {
	var in []stage.Input
	for _, r := range records {
		in = append(in, stage.Input{Offset: r.Offset, Key: r.Key, Value: r.Value})
	}
	return in
}

type output struct{ Key, Value string }

// accepted returns the outputs that a consumer takes.
func accepted(t *testing.T, records []stream.Record) []output {
	t.Helper()
	var filter stage.OriginFilter
	var out []output
	for _, r := range records {
		_, origin, prev, err := stage.ReadHeader(r.Value)
		if err != nil {
			t.Fatal(err)
		}
		switch filter.Accept(origin, prev) {
		case stage.Accept:
			out = append(out, output{string(r.Key), string(r.Value)})
		case stage.Gap:
			t.Fatalf("gap at offset %d: %s follows %s", r.Offset, origin, prev)
		}
	}
	return out
}

// folded returns the outputs of a fold of the records without any fault.
func folded(t *testing.T, cfg stage.Config, records []stream.Record) []output {
	t.Helper()
	var out []output
	err := stage.Fold(func() stage.Machine { return cfg.NewMachine(0) }, cfg.InputHasOrigins, slices.Values(inputs(records)), func(e stage.Emitted) error {
		out = append(out, output{string(e.Key), string(e.Value)})
		return nil
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func produce(t *testing.T, client *stream.Client, rng *rand.Rand, partition int32, events ...string) {
	t.Helper()
	var records []stream.Record
	for _, event := range events {
		key, value := stagetest.CounterRecord(rng, event)
		records = append(records, stream.Record{Key: key, Value: value})
	}
	if _, err := client.Append(t.Context(), stream.TopicRaw, partition, records); err != nil {
		t.Fatal(err)
	}
}

// caughtUp compares what a stage has written with the fold of its input.
func caughtUp(t *testing.T, client *stream.Client, cfg stage.Config) error {
	t.Helper()
	for p := range int32(partitions) {
		got := accepted(t, readAll(t, client, cfg.OutputTopic, p))
		want := folded(t, cfg, readAll(t, client, cfg.InputTopic, p))
		if len(got) < len(want) {
			return fmt.Errorf("partition %d: %d of %d outputs", p, len(got), len(want))
		}
	}
	return nil
}

// same fails the test when accepted outputs differ from the fold. The stages
// must have been stopped.
func same(t *testing.T, client *stream.Client, cfg stage.Config) {
	t.Helper()
	for p := range int32(partitions) {
		got := accepted(t, readAll(t, client, cfg.OutputTopic, p))
		want := folded(t, cfg, readAll(t, client, cfg.InputTopic, p))
		if diff := gocmp.Diff(want[:min(len(got), len(want))], got); diff != "" {
			t.Errorf("%s partition %d differs from the fold (-fold +topic):\n%s", cfg.OutputTopic, p, diff)
		}
	}
}

func TestTwoStagesOverKafka(t *testing.T) {
	client, reg := openClient(t)
	rng := rand.New(rand.NewPCG(1, 1))
	events := make([]string, 500)
	for i := range events {
		events[i] = cmp.Or([]string{"", stagetest.EventBurst}[rng.IntN(2)], "event")
	}
	for p := range int32(partitions) {
		produce(t, client, rng, p, events...)
	}
	enricher, stopEnricher := start(t, counterConfig(), client, reg)
	summarizer, stopSummarizer := start(t, totalsConfig(), client, reg)
	eventually(t, func() error { return errors.Join(enricher.Ready(), summarizer.Ready()) })
	eventually(t, func() error { return caughtUp(t, client, counterConfig()) })

	// Stopped, started again: the state goes on where it was.
	if err := stopEnricher(); err != nil {
		t.Fatal(err)
	}
	for p := range int32(partitions) {
		produce(t, client, rng, p, events[:100]...)
	}
	_, stopEnricher = start(t, counterConfig(), client, prometheus.NewRegistry())
	eventually(t, func() error { return caughtUp(t, client, counterConfig()) })
	eventually(t, func() error { return caughtUp(t, client, totalsConfig()) })
	if err := errors.Join(stopEnricher(), stopSummarizer()); err != nil {
		t.Fatal(err)
	}
	same(t, client, counterConfig())
	same(t, client, totalsConfig())
}

// TestRebalance: members come and go while records are written. Nothing is
// missing, nothing differs.
func TestRebalance(t *testing.T) {
	addr := streamtest.StartBroker(t)
	client, _ := reopenClient(t, addr)
	rng := rand.New(rand.NewPCG(2, 2))
	send := func() {
		for p := range int32(partitions) {
			produce(t, client, rng, p, slices.Repeat([]string{"event", stagetest.EventBurst, stagetest.EventPanics}, 20)...)
		}
	}
	member := func() (*stage.Stage, func() error) {
		c, reg := reopenClient(t, addr)
		return start(t, counterConfig(), c, reg)
	}
	send()
	first, stopFirst := member()
	eventually(t, first.Ready)
	send()
	second, stopSecond := member()
	send()
	eventually(t, second.Ready)
	eventually(t, func() error { return caughtUp(t, client, counterConfig()) })
	if err := stopFirst(); err != nil {
		t.Fatal(err)
	}
	send()
	eventually(t, func() error { return caughtUp(t, client, counterConfig()) })
	if err := stopSecond(); err != nil {
		t.Fatal(err)
	}
	same(t, client, counterConfig())
}

// TestBrokerRestart: while the broker is away the stage waits; then it goes on.
func TestBrokerRestart(t *testing.T) {
	broker := streamtest.NewBroker(t, streamtest.WithDataDir(t.TempDir()))
	client, reg := reopenClient(t, broker.Addr())
	rng := rand.New(rand.NewPCG(3, 3))
	_, stop := start(t, counterConfig(), client, reg)
	produce(t, client, rng, 0, "event", "event")
	eventually(t, func() error { return caughtUp(t, client, counterConfig()) })
	broker.Stop()
	eventually(t, func() error {
		if counterSum(t, reg, "callscope_stage_retries_total") == 0 {
			return errors.New("the stage has not noticed that the broker is away")
		}
		return nil
	})
	broker.Start()
	eventually(t, func() error { return client.CheckTopics(t.Context()) })
	produce(t, client, rng, 0, "event", "event")
	eventually(t, func() error { return caughtUp(t, client, counterConfig()) })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	same(t, client, counterConfig())
}

// counterSum adds up a metric over its labels.
func counterSum(t *testing.T, reg *prometheus.Registry, name string) (sum float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.Metric {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// TestGapParksOnePartition: an alarm, readiness that says why, and the other
// partition goes on.
func TestGapParksOnePartition(t *testing.T) {
	client, reg := openClient(t)
	rng := rand.New(rand.NewPCG(4, 4))
	for p := range int32(partitions) {
		produce(t, client, rng, p, "event", "event", "event")
	}
	_, stop := start(t, counterConfig(), client, nil)
	eventually(t, func() error { return caughtUp(t, client, counterConfig()) })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	// A record that follows one that nobody has.
	lost := readAll(t, client, stream.TopicEnriched, 0)[0]
	lost.Value = slices.Concat(lost.Value, []byte{0x12, 4, 0x08, 90, 0x10, 0, 0x1a, 4, 0x08, 89, 0x10, 0})
	if _, err := client.Append(t.Context(), stream.TopicEnriched, 0, []stream.Record{lost}); err != nil {
		t.Fatal(err)
	}
	s, stop := start(t, totalsConfig(), client, reg)
	eventually(t, func() error {
		err := s.Ready()
		if err == nil || !strings.Contains(err.Error(), "partition 0: gap") {
			return fmt.Errorf("readiness: %w", err)
		}
		return nil
	})
	if n := counterSum(t, reg, "callscope_stage_gap_total"); n != 1 {
		t.Errorf("%v gaps counted", n)
	}
	eventually(t, func() error {
		if err := s.Ready(); strings.Contains(err.Error(), "partition 1") {
			return err
		}
		return nil
	})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// TestRefusedStateEndsRun: without its snapshots a stage does not start, and
// says what to do.
func TestRefusedStateEndsRun(t *testing.T) {
	client, reg := openClient(t)
	if _, err := client.Append(t.Context(), stream.TopicStateEnricher, 1, []stream.Record{{Key: []byte("some other key 16"), Value: []byte{1}}}); err != nil {
		t.Fatal(err)
	}
	s := stage.New(counterConfig(), client, logger(t), reg)
	if err := s.Ready(); err == nil {
		t.Error("ready before Run")
	}
	err := s.Run(t.Context())
	if !errors.Is(err, stage.ErrRefused) || !strings.Contains(err.Error(), "partition 1") {
		t.Errorf("Run returned %v", err)
	}
}

// countsOnly is a Kafka that has topics of unequal sizes.
type countsOnly struct {
	*stagetest.Log
	counts map[string]int
}

func (c countsOnly) PartitionCount(_ context.Context, topic string) (int, error) {
	return c.counts[topic], nil
}

func (c countsOnly) RunGroup(context.Context, string, []string, func(context.Context, *stream.Assignment) error) error {
	return errors.New("started nevertheless")
}

func TestUnequalPartitionCountsAreRefused(t *testing.T) {
	cfg := counterConfig()
	client := countsOnly{stagetest.NewLog(), map[string]int{cfg.InputTopic: 12, cfg.OutputTopic: 12, cfg.StateTopic: 6}}
	err := stage.New(cfg, client, logger(t), nil).Run(t.Context())
	if !errors.Is(err, stage.ErrRefused) || !strings.Contains(err.Error(), "callscope.state.enricher.v1 has 6") {
		t.Errorf("Run returned %v", err)
	}
}
