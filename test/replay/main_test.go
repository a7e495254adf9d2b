// Package replay tests `callscope replay` and its relatives against an in-memory broker and the embedded engine, with the
// real enricher, summarizer and sink on messages of recorded calls.
package replay

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"github.com/callscope/callscope/internal/app"
	"github.com/callscope/callscope/internal/apps"
	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/store/storetest"
	"github.com/callscope/callscope/internal/stream"
	"github.com/callscope/callscope/internal/stream/streamtest"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
	"github.com/callscope/callscope/services/enricher"
	"github.com/callscope/callscope/services/gateway"
	"github.com/callscope/callscope/services/gateway/play"
	"github.com/callscope/callscope/services/sink"
	"github.com/callscope/callscope/services/summarizer"
)

// commandEnv makes the test binary be callscope, as cmd/callscope is: a process of its own for signals and memory.
const commandEnv = "CALLSCOPE_TEST_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(commandEnv) != "" {
		os.Exit(app.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	storetest.Main(m)
}

const (
	appID      = "123456789"
	partitions = 2
)

var quiet = slog.New(slog.DiscardHandler)

// memory is a producer that keeps what the gateway writes.
type memory struct {
	mu      sync.Mutex
	records []*callscopev1.Raw
}

func (m *memory) Produce(_ context.Context, _, value []byte) error {
	raw := &callscopev1.Raw{}
	if err := raw.UnmarshalVT(value); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.records = append(m.records, raw)
	return nil
}

var recorded = sync.OnceValues(func() (map[string][]*callscopev1.Raw, error) {
	all := map[string][]*callscopev1.Raw{}
	for _, name := range []string{"mesh3", "two-users-default-config", "two-users-hs256", "failed-setup", "precall", "event-errors", "no-submission-interval"} {
		records, err := playOne("../captures/" + name + ".jsonl")
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all[name] = records
	}
	return all, nil
})

// playOne plays a recording through a gateway and returns what it wrote.
func playOne(path string) ([]*callscopev1.Raw, error) {
	recordings, err := play.ReadFiles([]string{filepath.FromSlash(path)})
	if err != nil {
		return nil, err
	}
	demo, err := apps.New(apps.Config{ID: appID, Name: "demo", Secrets: []string{"synthetic-app-secret-01"}})
	if err != nil {
		return nil, err
	}
	registry, err := apps.NewStatic(demo)
	if err != nil {
		return nil, err
	}
	producer := &memory{}
	g, err := gateway.New(gateway.Config{Addr: "127.0.0.1:0", TokenKey: "0123456789abcdef0123456789abcdef"}, registry, producer, quiet, nil)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	defer func() { cancel(); <-done }()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for deadline := time.Now().Add(10 * time.Second); g.Ready() != nil; <-poll.C {
		if time.Now().After(deadline) {
			return nil, g.Ready()
		}
	}
	if _, err := play.Run(ctx, play.Config{Recordings: recordings, Gateway: "http://" + g.Addr()}); err != nil {
		return nil, err
	}
	producer.mu.Lock()
	defer producer.mu.Unlock()
	return slices.Clone(producer.records), nil
}

// calls is a raw log in the making: messages of recorded calls at times of our choosing, with the ticks that an enricher
// would have written.
type calls struct {
	t       testing.TB
	records [partitions][]timed
	n       uint32
	outage  [2]time.Time // no ticks in between
}

// timed is a message of a recorded call, and what becomes of it: a million of them fit into memory.
type timed struct {
	ms              int64
	recorded        *callscopev1.Raw
	n               uint32
	app, conference string // "" for as recorded
}

func (m timed) raw() *callscopev1.Raw {
	raw := proto.Clone(m.recorded).(*callscopev1.Raw)
	raw.Uid = uid(m.n)
	shift := m.ms - raw.Observed.ReceivedAtMs
	raw.Observed.ReceivedAtMs = m.ms
	if raw.Claimed.GetTimeMs() != 0 {
		raw.Claimed.TimeMs += float64(shift)
	}
	raw.Observed.ContentHash = append(raw.Uid[:4:4], raw.Observed.ContentHash...)
	if m.app != "" {
		raw.Observed.AppId = m.app
	}
	if m.conference != "" && raw.Claimed.GetConferenceId() != "" {
		raw.Claimed.ConferenceId = m.conference
	}
	return raw
}

func (m timed) key() []byte {
	app, conference := cmp.Or(m.app, m.recorded.Observed.AppId), m.recorded.Claimed.GetConferenceId()
	if conference == "" {
		return []byte(app + "\x00\x00" + m.recorded.Claimed.GetUserId())
	}
	return []byte(app + "\x00" + cmp.Or(m.conference, conference))
}

// at is the test's day: what the store's time to live keeps.
func at(minute float64) time.Time {
	return day.Add(time.Duration(minute * float64(time.Minute)))
}

var day = time.Now().UTC().Add(-24 * time.Hour).Truncate(24 * time.Hour)

func (c *calls) uid() []byte {
	c.n++
	return uid(c.n)
}

func uid(n uint32) []byte {
	u := uuid.UUID{6: 0x70, 8: 0x80}
	binary.BigEndian.PutUint32(u[:], n)
	return u[:]
}

// add puts a recorded call into the log, from begin on, with its messages spread evenly over a duration.
func (c *calls) add(name, conference string, begin time.Time, duration time.Duration) {
	c.t.Helper()
	c.addTo("", name, conference, begin, duration)
}

// addHeld is add for a call that is silent in its middle, as one on hold is, while its machines sleep.
func (c *calls) addHeld(name, conference string, begin time.Time, duration, hold time.Duration) {
	c.t.Helper()
	messages := messagesOf(c.t, name)
	for i, m := range messages {
		ms := begin.UnixMilli() + int64(i)*duration.Milliseconds()/int64(len(messages))
		if i >= len(messages)/2 {
			ms += hold.Milliseconds()
		}
		c.put(ms, m, "", conference)
	}
}

// addTo is add for another app than the recorded one.
func (c *calls) addTo(app, name, conference string, begin time.Time, duration time.Duration) {
	c.t.Helper()
	messages := messagesOf(c.t, name)
	for i, m := range messages {
		ms := begin.UnixMilli() + int64(i)*duration.Milliseconds()/int64(len(messages))
		c.put(ms, m, app, conference)
	}
}

func messagesOf(t testing.TB, name string) []*callscopev1.Raw {
	t.Helper()
	all, err := recorded()
	if err != nil {
		t.Fatal(err)
	}
	if len(all[name]) == 0 {
		t.Fatalf("recording %s gave no message", name)
	}
	return all[name]
}

func (c *calls) put(ms int64, recorded *callscopev1.Raw, app, conference string) {
	c.n++
	m := timed{ms, recorded, c.n, app, conference}
	p := stream.PartitionOf(m.key(), partitions)
	c.records[p] = append(c.records[p], m)
}

func (c *calls) size() (n int) {
	for _, list := range c.records {
		n += len(list)
	}
	return n
}

// write appends everything to the raw topic, with a tick for each second up to end.
func (c *calls) write(client *stream.Client, end time.Time) {
	c.t.Helper()
	for p := range partitions {
		list := c.records[p]
		slices.SortStableFunc(list, func(a, b timed) int { return int(a.ms - b.ms) })
		ticker := c.uid()
		var out []stream.Record
		flush := func() {
			if len(out) == 0 {
				return
			}
			if _, err := client.Append(c.t.Context(), stream.TopicRaw, int32(p), out); err != nil {
				c.t.Fatal(err)
			}
			out = out[:0]
		}
		add := func(ms int64, key []byte, raw *callscopev1.Raw) {
			value, err := raw.MarshalVT()
			if err != nil {
				c.t.Fatal(err)
			}
			if out = append(out, stream.Record{Key: key, Value: value, Time: time.UnixMilli(ms)}); len(out) == 500 {
				flush()
			}
		}
		tick := int64(0)
		ticks := func(until int64) {
			for ; tick != 0 && tick < until; tick += 1000 {
				if tick >= c.outage[0].UnixMilli() && tick < c.outage[1].UnixMilli() {
					continue
				}
				add(tick, nil, &callscopev1.Raw{Uid: c.uid(), Payload: &callscopev1.Raw_Tick{Tick: &callscopev1.Tick{TickerUid: ticker, MonotonicMs: tick, WallMs: tick}}})
			}
		}
		for _, m := range list {
			if tick == 0 {
				tick = m.ms - 500
			}
			ticks(m.ms)
			add(m.ms, m.key(), m.raw())
		}
		ticks(end.UnixMilli())
		flush()
		c.records[p] = nil
	}
}

// chain is a broker, an engine, and the live stages between them.
type chain struct {
	t      testing.TB
	broker string
	client *stream.Client
	store  *store.Store
}

func newChain(t testing.TB) *chain {
	t.Helper()
	return newChainOn(t, streamtest.StartBroker(t))
}

func newChainOn(t testing.TB, broker string) *chain {
	t.Helper()
	c := &chain{t: t, broker: broker, client: openStream(t, broker), store: storetest.Engine(t)}
	if err := c.client.EnsureTopics(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

func openStream(t testing.TB, addr string) *stream.Client {
	t.Helper()
	return openStreamOf(t, addr, partitions)
}

func openStreamOf(t testing.TB, addr string, partitions int) *stream.Client {
	t.Helper()
	client, err := stream.Open(stream.Config{
		Brokers: []string{addr}, Partitions: partitions, SessionTimeout: time.Second, RebalanceTimeout: 2 * time.Second, HeartbeatInterval: 200 * time.Millisecond,
	}, quiet, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// live runs enricher, summarizer and sink until everything that the raw topic holds is in the store.
func (c *chain) live() {
	c.t.Helper()
	stop := c.start()
	defer stop()
	c.settle()
}

// start runs enricher, summarizer and sink until stop is called.
func (c *chain) start() (stop func()) {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s, err := sink.New(sink.Config{MaxWait: 20 * time.Millisecond}, c.client, c.store, quiet, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	var group sync.WaitGroup
	for _, run := range []func(context.Context) error{
		enricher.New(enricher.Config{SnapshotInterval: time.Second}, c.client, quiet, nil).Run,
		summarizer.New(summarizer.Config{SnapshotInterval: time.Second}, c.client, quiet, nil).Run,
		s.Run,
	} {
		group.Go(func() {
			if err := run(ctx); err != nil {
				c.t.Errorf("a live stage ended: %v", err)
			}
		})
	}
	return func() { cancel(); group.Wait() }
}

// settle waits until everything that the raw topic holds now is in the store.
func (c *chain) settle() {
	c.t.Helper()
	for _, consumer := range []struct {
		group  string
		topics []string
	}{
		{stream.GroupEnricher, []string{stream.TopicRaw}}, {stream.GroupSummarizer, []string{stream.TopicEnriched}},
		{stream.GroupSink, []string{stream.TopicEnriched, stream.TopicSummaries}},
	} {
		// While a call is open the log never ends: what counts is what was there when the stage before was done.
		var ends []stream.PartitionLag
		streamtest.Eventually(c.t, 30*time.Minute, func() string {
			lags, err := c.client.Lag(c.t.Context(), consumer.group, consumer.topics)
			if err != nil {
				return err.Error()
			}
			if ends == nil {
				ends = lags
			}
			for i, lag := range lags {
				if lag.Committed < ends[i].End && ends[i].End > 0 {
					return fmt.Sprintf("%s is at %d of %d records in %s/%d", consumer.group, lag.Committed, ends[i].End, lag.Topic, lag.Partition)
				}
			}
			return ""
		})
	}
}

// rows is everything that a table shows, as text, without what says where rows came from.
func rows(t testing.TB, s *store.Store, tables ...string) string {
	t.Helper()
	var out bytes.Buffer
	for _, table := range tables {
		for _, row := range storetest.Query(t, s, "SELECT * EXCEPT (src_topic, src_partition, src_offset, src_range_start, version, is_deleted) FROM "+table+" FINAL ORDER BY ALL") {
			fmt.Fprintln(&out, table, row)
		}
	}
	return out.String()
}

func allRows(t testing.TB, s *store.Store) string { return rows(t, s, store.TableNames()...) }

// checksums stands for allRows where there are too many: a line for each table with the number of its rows and a sum over
// all that they say.
func checksums(t testing.TB, s *store.Store) string {
	t.Helper()
	var out bytes.Buffer
	for _, table := range store.TableNames() {
		fmt.Fprintln(&out, table, storetest.Query(t, s, "SELECT count(), sum(cityHash64(toString(tuple(* EXCEPT (src_topic, src_partition, src_offset, src_range_start, version, is_deleted))))) FROM "+table+" FINAL"))
	}
	return out.String()
}

// changed shows the first lines that differ.
func changed(before, after string) string {
	if before == after {
		return ""
	}
	var out []string
	old, now := strings.Split(before, "\n"), strings.Split(after, "\n")
	for _, line := range now {
		if !slices.Contains(old, line) && len(out) < 3 {
			out = append(out, "+ "+line)
		}
	}
	for _, line := range old {
		if !slices.Contains(now, line) && len(out) < 6 {
			out = append(out, "- "+line)
		}
	}
	return fmt.Sprintf("%d and %d lines:\n%s", len(old), len(now), strings.Join(out, "\n"))
}

func count(t testing.TB, s *store.Store, what string) uint64 {
	t.Helper()
	return storetest.Query(t, s, "SELECT count() FROM "+what)[0][0].(uint64)
}
