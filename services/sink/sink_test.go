package sink

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/store/storetest"
	"github.com/callscope/callscope/internal/stream"
	"github.com/callscope/callscope/internal/stream/streamtest"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

const patience = 30 * time.Second

func openStream(t *testing.T, addr string) *stream.Client {
	t.Helper()
	c, err := stream.Open(stream.Config{Brokers: []string{addr}, Partitions: 2, SessionTimeout: time.Second, RebalanceTimeout: 2 * time.Second, HeartbeatInterval: 200 * time.Millisecond},
		slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// startSink runs a sink until the returned function is called, which returns what Run returned.
func startSink(t *testing.T, client *stream.Client, st *store.Store, cfg Config, reg prometheus.Registerer) (s *Sink, stop func() error) {
	t.Helper()
	cfg.MaxWait = 20 * time.Millisecond
	s, err := New(cfg, client, st, slog.New(slog.DiscardHandler), reg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = func() error {
		cancel()
		err := <-done
		done <- err
		return err
	}
	t.Cleanup(func() { stop() })
	return s, stop
}

// producer writes outputs of a stage to one partition, with the origins that a stage would give them.
type producer struct {
	t         *testing.T
	client    *stream.Client
	topic     string
	partition int32
	n         int
	last      *callscopev1.Origin
}

func (p *producer) uid() []byte {
	u := make([]byte, 16)
	copy(u, p.topic[len("callscope."):])
	u[11] = byte(p.partition)
	binary.BigEndian.PutUint32(u[12:], uint32(p.n))
	return u
}

func (p *producer) send(messages ...any) {
	p.t.Helper()
	var records []stream.Record
	for _, m := range messages {
		origin := &callscopev1.Origin{Offset: int64(p.n)}
		var value []byte
		var err error
		switch m := m.(type) {
		case *callscopev1.Enriched:
			m.Uid, m.Origin, m.Prev = p.uid(), origin, p.last
			value, err = m.MarshalVT()
		case *callscopev1.Summary:
			m.Uid, m.Origin, m.Prev = p.uid(), origin, p.last
			value, err = m.MarshalVT()
		case []byte:
			value = m
		}
		if err != nil {
			p.t.Fatal(err)
		}
		p.n++
		p.last = origin
		records = append(records, stream.Record{Key: []byte("k"), Value: value})
	}
	if _, err := p.client.Append(p.t.Context(), p.topic, p.partition, records); err != nil {
		p.t.Fatal(err)
	}
}

var conferenceUID = uuid.UUID{0: 7}

func anIdentity() *callscopev1.Identity {
	return &callscopev1.Identity{AppId: "1", ConferenceId: "room", ConferenceUid: conferenceUID[:], UserId: "ann"}
}

func anEvent(kind string) *callscopev1.Enriched {
	return &callscopev1.Enriched{Identity: anIdentity(), TimeMs: someTime, ReceivedAtMs: someTime,
		Body: &callscopev1.Enriched_Event{Event: &callscopev1.Event{EventType: kind, OriginalType: kind, Reported: true}}}
}

func aConference(revision uint32) *callscopev1.Summary {
	return &callscopev1.Summary{Identity: anIdentity(), State: callscopev1.SummaryState_SUMMARY_STATE_PARTIAL, Revision: revision, ConferenceStartedAtMs: someTime,
		Body: &callscopev1.Summary_Conference{Conference: &callscopev1.ConferenceSummary{StartedAtMs: someTime, LastMessageAtMs: someTime, Participants: revision}}}
}

// eventually waits until a query gives these rows.
func eventually(t *testing.T, st *store.Store, sql string, want ...[]any) {
	t.Helper()
	streamtest.Eventually(t, patience, func() string {
		if diff := cmp.Diff(want, storetest.Query(t, st, sql)); diff != "" {
			return sql + " (-want +got):\n" + diff
		}
		return ""
	})
}

func TestFromTopicsToViews(t *testing.T) {
	st := storetest.Engine(t)
	client := openStream(t, streamtest.StartBroker(t))
	if err := client.EnsureTopics(t.Context()); err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewPedanticRegistry()
	s, stop := startSink(t, client, st, Config{}, reg)
	if err := s.Ready(); err == nil {
		t.Error("ready before it runs")
	}
	enriched0 := &producer{t: t, client: client, topic: stream.TopicEnriched, partition: 0}
	enriched1 := &producer{t: t, client: client, topic: stream.TopicEnriched, partition: 1}
	summaries := &producer{t: t, client: client, topic: stream.TopicSummaries, partition: 0}
	time1 := &callscopev1.Enriched{Body: &callscopev1.Enriched_TimePassed{TimePassed: &callscopev1.TimePassed{}}}
	enriched0.send(anEvent("userJoined"), time1, anEvent("fabricSetup"))
	enriched1.send(anEvent("userJoined"))
	summaries.send(aConference(1), aConference(2))
	eventually(t, st, "SELECT event_type, count() FROM events GROUP BY event_type ORDER BY event_type",
		[]any{"fabricSetup", uint64(1)}, []any{"userJoined", uint64(2)})
	eventually(t, st, "SELECT conference_id, revision, participants FROM conferences", []any{"room", uint32(2), uint32(2)})
	if err := s.Ready(); err != nil {
		t.Errorf("not ready: %v", err)
	}

	// Poison is set aside, what follows is stored.
	enriched0.send([]byte("\xff\xff"), anEvent("userLeft"))
	eventually(t, st, "SELECT count() FROM events WHERE event_type = 'userLeft'", []any{uint64(1)})
	if err := stop(); err != nil {
		t.Fatalf("after a clean stop Run gives %v", err)
	}
	rejected := 0
	for p := range int32(2) {
		batch, err := client.Fetch(t.Context(), stream.TopicRejected, p, 0, 1<<20, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range batch.Records {
			rejected++
			got, err := stream.ParseRejected(r)
			if err != nil {
				t.Fatal(err)
			}
			if got.Stage != "sink" || !strings.HasPrefix(got.Reason, "undecodable: ") || string(got.Source.Value) != "\xff\xff" || got.Source.Offset != 3 {
				t.Errorf("rejected %+v", got)
			}
		}
	}
	if rejected != 1 {
		t.Errorf("%d records were set aside, want 1", rejected)
	}

	// A second life goes on where the first ended, and stores nothing again.
	summaries.send(aConference(3))
	_, stop = startSink(t, client, st, Config{}, nil)
	eventually(t, st, "SELECT conference_id, revision, participants FROM conferences", []any{"room", uint32(3), uint32(3)})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	eventually(t, st, "SELECT count() FROM events_rows", []any{uint64(4)})
}

// TestKilledAtAnyMoment starts sinks and ends them at once, again and again, while records arrive.
func TestKilledAtAnyMoment(t *testing.T) {
	st := storetest.Engine(t)
	client := openStream(t, streamtest.StartBroker(t))
	if err := client.EnsureTopics(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := &producer{t: t, client: client, topic: stream.TopicEnriched, partition: 0}
	for i := range 8 {
		for k := range 20 {
			p.send(anEvent(fmt.Sprintf("e%d-%d", i, k)))
		}
		_, stop := startSink(t, client, st, Config{MaxRows: 7}, nil)
		seen := uint64(20*i + 3)
		streamtest.Eventually(t, patience, func() string {
			if n := storetest.Query(t, st, "SELECT count() FROM events_rows")[0][0].(uint64); n < seen {
				return fmt.Sprintf("%d rows", n)
			}
			return ""
		})
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
	_, stop := startSink(t, client, st, Config{}, nil)
	// FINAL, because one that ended between an insert and its commit leaves a range that is stored twice.
	eventually(t, st, "SELECT count(), uniqExact(event_type) FROM events_rows FINAL", []any{uint64(160), uint64(160)})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// TestOffsetsLost: without the group's offsets the sink goes on behind its rows.
func TestOffsetsLost(t *testing.T) {
	st := storetest.Engine(t)
	first := openStream(t, streamtest.StartBroker(t))
	second := openStream(t, streamtest.StartBroker(t)) // the same records, and a group that never was
	for _, client := range []*stream.Client{first, second} {
		if err := client.EnsureTopics(t.Context()); err != nil {
			t.Fatal(err)
		}
		p := &producer{t: t, client: client, topic: stream.TopicEnriched, partition: 1}
		p.send(anEvent("a"), anEvent("b"), anEvent("c"))
		if client == second {
			p.send(anEvent("d"))
		}
		_, stop := startSink(t, client, st, Config{}, nil)
		want := uint64(p.n)
		eventually(t, st, "SELECT count() FROM events", []any{want})
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSinkRefusesAnUnfitStore(t *testing.T) {
	client := openStream(t, streamtest.StartBroker(t))
	st, err := store.Open(storetest.Config(t), slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	s, err := New(Config{}, client, st, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); !errors.Is(err, store.ErrNoDatabase) {
		t.Errorf("without a database: %v", err)
	}
	if err := st.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	storetest.Exec(t, st, "ALTER TABLE events_rows MODIFY SETTING non_replicated_deduplication_window = 0")
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "events_rows remembers no deduplication tokens") {
		t.Errorf("without a deduplication window: %v", err)
	}
}

// TestStoppedPartitionShows: a gap in one partition stops it and not the others, and the service is not ready.
func TestStoppedPartitionShows(t *testing.T) {
	st := storetest.Engine(t)
	client := openStream(t, streamtest.StartBroker(t))
	if err := client.EnsureTopics(t.Context()); err != nil {
		t.Fatal(err)
	}
	broken := &producer{t: t, client: client, topic: stream.TopicEnriched, partition: 0}
	broken.send(anEvent("a"))
	broken.last = &callscopev1.Origin{Offset: 5}
	broken.n = 9
	broken.send(anEvent("b"))
	whole := &producer{t: t, client: client, topic: stream.TopicEnriched, partition: 1}
	reg := prometheus.NewPedanticRegistry()
	s, _ := startSink(t, client, st, Config{}, reg)
	streamtest.Eventually(t, patience, func() string {
		if err := s.Ready(); err == nil || !strings.Contains(err.Error(), "sink callscope.enriched.v1/0: stopped: records are missing before offset 1") {
			return fmt.Sprintf("Ready gives %v", err)
		}
		return ""
	})
	whole.send(anEvent("c"))
	eventually(t, st, "SELECT event_type FROM events ORDER BY event_type", []any{"a"}, []any{"c"})
	const stopped = `
# HELP callscope_sink_stopped 1 while the sink refuses to go on with a partition; its log says why.
# TYPE callscope_sink_stopped gauge
callscope_sink_stopped{partition="0",topic="callscope.enriched.v1"} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(stopped), "callscope_sink_stopped"); err != nil {
		t.Error(err)
	}
}
