package sink

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sync/errgroup"

	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/store/storetest"
	"github.com/callscope/callscope/internal/stream"
	"github.com/callscope/callscope/internal/stream/streamtest"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// BenchmarkSamples measures the sink's whole way with a backlog of samples: fetch from Kafka, decode, plan, insert, commit.
// Next to it, turn by turn, what the engine itself does with the same rows, as many ranges at a time.
func BenchmarkSamples(b *testing.B) {
	b.Run("one_partition", func(b *testing.B) { benchmarkSamples(b, 1) })
	// As a topic with the default number of partitions of the broker in the process, with the default sink.parallel.
	b.Run("four_partitions", func(b *testing.B) { benchmarkSamples(b, 4) })
}

const (
	benchRange = 50_000 // records in a range, at most
	// benchRanges is how many ranges of each partition are a turn. With one, all partitions would fetch at the same time
	// and then all insert, which is not what they do with a backlog.
	benchRanges = 2
)

func benchmarkSamples(b *testing.B, partitions int) {
	st := storetest.Engine(b)
	client, err := stream.Open(stream.Config{Brokers: []string{streamtest.StartBroker(b)}, Partitions: partitions}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	if err := client.EnsureTopics(b.Context()); err != nil {
		b.Fatal(err)
	}
	const batch = 1000
	for n := 0; n < b.N*benchRanges*benchRange; n += batch {
		for number := range partitions {
			if _, err := client.Append(b.Context(), stream.TopicEnriched, int32(number), sampleRecords(b, number, n, batch)); err != nil {
				b.Fatal(err)
			}
		}
	}
	m, err := newMetrics(nil)
	if err != nil {
		b.Fatal(err)
	}
	cfg := Config{}.withDefaults()
	slots := make(chan struct{}, cfg.Parallel)
	storetest.Exec(b, st, "CREATE TABLE limit_rows AS samples_rows")
	// Both make the same parts to merge, but the merges of either would fall into the other's time.
	storetest.Exec(b, st, "SYSTEM STOP MERGES samples_rows")
	storetest.Exec(b, st, "SYSTEM STOP MERGES limit_rows")

	// The partitions are stepped from here, while their handles only hold them.
	ctx, done := context.WithCancel(b.Context())
	held := make(chan *partition, partitions)
	left := make(chan error, 1)
	go func() {
		left <- client.RunGroup(ctx, stream.GroupSink, []string{stream.TopicEnriched}, func(ctx context.Context, a *stream.Assignment) error {
			p := &partition{
				topic: a.Topic(), number: a.Partition(), log: assignedLog{client, a}, store: st, cfg: cfg, schema: store.SchemaVersion,
				m: m, logger: slog.New(slog.DiscardHandler), trouble: func(string) {}, slots: slots,
				pause: func(ctx context.Context, _ time.Duration) error { return ctx.Err() },
			}
			if err := p.start(ctx); err != nil {
				return err
			}
			held <- p
			<-ctx.Done()
			return nil
		})
	}()
	defer func() {
		done()
		if err := <-left; err != nil {
			b.Error(err)
		}
	}()
	var all []*partition
	for range partitions {
		select {
		case p := <-held:
			all = append(all, p)
		case err := <-left:
			left <- nil
			b.Fatalf("the group ended: %v", err)
		}
	}

	stored := func() float64 { return testutil.ToFloat64(m.rows.WithLabelValues(store.SampleRow{}.Table())) }
	var ours, engines time.Duration
	b.ResetTimer()
	for range b.N {
		var tables []string // each with the rows of a range, partition after partition
		from := make([]int64, partitions*benchRanges)
		ours += together(b, partitions, func(i int) error {
			for r := range benchRanges {
				from[i*benchRanges+r] = all[i].next
				if err := all[i].step(ctx); err != nil {
					return err
				}
			}
			return nil
		})
		for i, p := range all {
			for r := range benchRanges {
				start, end := from[i*benchRanges+r], p.next
				if r+1 < benchRanges {
					end = from[i*benchRanges+r+1]
				}
				name := fmt.Sprintf("block_%d_%d", i, r)
				storetest.Exec(b, st, "CREATE OR REPLACE TABLE "+name+" AS samples_rows ENGINE = Memory")
				storetest.Exec(b, st, fmt.Sprintf("INSERT INTO %s SELECT * FROM samples_rows WHERE src_partition = %d AND src_offset >= %d AND src_offset < %d ORDER BY src_offset",
					name, p.number, start, end))
				tables = append(tables, name)
			}
		}
		engines += together(b, partitions, func(i int) error {
			for r := range benchRanges {
				storetest.Exec(b, st, "INSERT INTO limit_rows SELECT * FROM "+tables[i*benchRanges+r])
			}
			return nil
		})
	}
	rows := stored()
	b.ReportMetric(engines.Seconds()/ours.Seconds(), "of-the-engine's-rows/s")
	b.ReportMetric(rows/ours.Seconds(), "rows/s")
	b.ReportMetric(rows/float64(b.N*partitions*benchRanges), "rows/range")
	if limit := storetest.Query(b, st, "SELECT count() FROM limit_rows")[0][0]; limit != uint64(rows) {
		b.Errorf("the engine inserted %v rows, the sink %v", limit, rows)
	}
}

// together runs f(0) to f(n-1) at the same time and says how long all of them took.
func together(b *testing.B, n int, f func(i int) error) time.Duration {
	var group errgroup.Group
	started := time.Now()
	for i := range n {
		group.Go(func() error { return f(i) })
	}
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
	return time.Since(started)
}

// sampleRecords are samples of calls of 4 with an audio and a video stream each way, from the n-th of the partition on.
func sampleRecords(b *testing.B, partition, n, count int) []stream.Record {
	b.Helper()
	all := make([]stream.Record, count)
	for i := range all {
		k := n + i
		id := func(kind byte, number int) []byte {
			u := make([]byte, 16)
			u[0], u[1] = kind, byte(partition)
			binary.BigEndian.PutUint64(u[8:], uint64(number))
			return u
		}
		value := func(base float64) *float64 { base += float64(k % 97); return &base }
		sample := &callscopev1.StreamSample{
			Ssrc: fmt.Sprint(1000 + k%1600), MediaType: "audio", Codec: "audio/opus", IntervalMs: value(10_000), BitrateKbps: value(30), Bytes: value(40_000),
			Packets: value(500), PacketRate: value(50), PacketsLost: value(1), Loss: value(0), JitterMs: value(3), RttMs: value(40),
			Direction: callscopev1.Direction_DIRECTION_INBOUND, OwnerUserId: fmt.Sprint("user-", k/5%400), OwnerSource: callscopev1.OwnerSource_OWNER_SOURCE_SSRC_MAP,
		}
		if k%2 == 1 {
			sample.Direction = callscopev1.Direction_DIRECTION_OUTBOUND
		}
		if k%4 < 2 {
			sample.AudioLevel, sample.Concealment, sample.AudioMos = value(0), value(0), value(3)
		} else {
			sample.MediaType, sample.Codec = "video", "video/VP8"
			sample.FrameRate, sample.FrameWidth, sample.FrameHeight, sample.FreezeMs, sample.FreezeCount = value(25), value(640), value(480), value(0), value(0)
		}
		origin := func(at int) *callscopev1.Origin { return &callscopev1.Origin{Offset: int64(at)} }
		e := &callscopev1.Enriched{
			Uid: id(1, k), Origin: origin(k), TimeMs: someTime + float64(k), ReceivedAtMs: someTime + int64(k), LogicVersion: 1,
			Identity: &callscopev1.Identity{
				AppId: "123456789", ConferenceId: fmt.Sprint("room-", partition, "-", k/16%100), ConferenceUid: id(2, k/16%100), ParticipantUid: id(3, k/4%400), UserId: fmt.Sprint("user-", k/4%400),
				DeviceId: "device", FabricUid: id(4, k/4%400), ConnectionId: fmt.Sprint("connection-", k/4%400), RemoteId: fmt.Sprint("user-", k/5%400),
			},
			Body: &callscopev1.Enriched_StreamSample{StreamSample: sample},
		}
		if k > 0 {
			e.Prev = origin(k - 1)
		}
		bytes, err := e.MarshalVT()
		if err != nil {
			b.Fatal(err)
		}
		all[i] = stream.Record{Key: []byte("conference"), Value: bytes}
	}
	return all
}
