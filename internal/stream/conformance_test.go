package stream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/callscope/callscope/internal/stream/streamtest"
)

// The same tests run on the embedded broker's library and on Apache Kafka, because each hides what the other shows.

func TestOnInMemoryBroker(t *testing.T) {
	b := streamtest.NewBroker(t)
	conformance(t, cluster{addr: b.Addr(), compact: func() { b.Cluster().Compact() }})
}

func TestOnApacheKafka(t *testing.T) {
	// Its log cleaner runs by itself.
	conformance(t, cluster{addr: streamtest.StartKafka(t), compact: func() {}})
}

func conformance(t *testing.T, k cluster) {
	for _, tc := range []struct {
		name string
		run  func(*testing.T, cluster)
	}{
		{"Topics", testTopics}, // first: it needs a cluster without them
		{"AppendKeepsOrder", testAppendKeepsOrder},
		{"AppendTooLarge", testAppendTooLarge},
		{"AppendKeylessToCompacted", testAppendKeylessToCompacted},
		{"RecordsComeBackAsWritten", testRecordsComeBackAsWritten},
		{"Compression", testCompression},
		{"ProducerOfManyGoroutines", testProducerOfManyGoroutines},
		{"ProducerErrors", testProducerErrors},
		{"FetchFromOffsets", testFetchFromOffsets},
		{"FetchWaits", testFetchWaits},
		{"FetchOutOfRange", testFetchOutOfRange},
		{"FetchEmptyTail", testFetchEmptyTail},
		{"FetchAcrossCompaction", testFetchAcrossCompaction},
		{"GroupHandlesEverything", testGroupHandlesEverything},
		{"GroupCommits", testGroupCommits},
		{"GroupFencesStaleCommits", testGroupFencesStaleCommits},
		{"GroupHandleReturns", testGroupHandleReturns},
		{"Reject", testReject},
		{"Lag", testLag},
		{"Ping", testPing},
		{"Closed", testClosed},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.run(t, k) })
	}
}

func testTopics(t *testing.T, k cluster) {
	c := k.client(t)
	if err := c.CheckTopics(t.Context()); err == nil || !strings.Contains(err.Error(), TopicRaw) || !strings.Contains(err.Error(), TopicErasures) {
		t.Fatalf("with nothing there: %v", err)
	}
	createTopic(t, c, TopicEnriched, 3, nil)
	err := c.EnsureTopics(t.Context())
	if err == nil || Transient(err) {
		t.Fatalf("with an enriched topic of 3 partitions: %v", err)
	}
	for _, want := range []string{TopicRaw + " 4 (to be created)", TopicEnriched + " 3,", "kafka.partitions"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
	if counts, err := c.partitionCounts(t.Context()); err != nil || len(counts) != 1 {
		t.Fatalf("topics after the refusal: %v, %v", counts, err)
	}
	deleteTopic(t, c, TopicEnriched)

	for range 2 {
		if err := c.EnsureTopics(within(t, 30*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]int{TopicRaw: 4, TopicEnriched: 4, TopicSummaries: 4, TopicRejected: 4, TopicStateEnricher: 4, TopicStateSummarizer: 4, TopicApps: 1, TopicErasures: 1}
	counts, err := c.partitionCounts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, counts); diff != "" {
		t.Errorf("partition counts (-want +got):\n%s", diff)
	}
	if n, err := c.PartitionCount(t.Context(), TopicRaw); n != 4 || err != nil {
		t.Errorf("PartitionCount = %d, %v", n, err)
	}
	if _, err := c.PartitionCount(t.Context(), "no.such.topic"); !errors.Is(err, kafka.UnknownTopicOrPartition) {
		t.Errorf("PartitionCount of an unknown topic: %v", err)
	}
	configs := readConfigs(t, c)
	for topic, want := range map[string]map[string]string{
		TopicRaw:             {"cleanup.policy": "delete", "retention.ms": "604800000", "segment.bytes": "67108864", "max.message.bytes": "1048588"},
		TopicEnriched:        {"cleanup.policy": "delete", "retention.ms": "259200000"},
		TopicRejected:        {"cleanup.policy": "delete", "retention.ms": "2592000000"},
		TopicStateEnricher:   {"cleanup.policy": "compact", "retention.ms": "-1", "delete.retention.ms": "3600000"},
		TopicStateSummarizer: {"cleanup.policy": "compact", "retention.ms": "-1"},
		TopicApps:            {"cleanup.policy": "compact", "retention.ms": "-1"},
		TopicErasures:        {"cleanup.policy": "compact", "retention.ms": "-1"},
	} {
		for name, value := range want {
			if got := configs[topic][name]; got != value {
				t.Errorf("%s has %s=%q, want %q", topic, name, got, value)
			}
		}
	}

	// The topics are there with 4: a process configured for 12 uses them.
	if err := k.client(t, func(c *Config) { c.Partitions = 12 }).EnsureTopics(t.Context()); err != nil {
		t.Errorf("with another configured count: %v", err)
	}

	for _, bad := range []struct{ topic, name, value, right string }{
		{TopicRaw, "cleanup.policy", "compact", "delete"},
		{TopicApps, "cleanup.policy", "delete", "compact"},
		{TopicSummaries, "max.message.bytes", "65536", "1048588"},
	} {
		setConfig(t, c, bad.topic, bad.name, bad.value)
		err := c.CheckTopics(t.Context())
		if err == nil || Transient(err) || !strings.Contains(err.Error(), bad.topic) || !strings.Contains(err.Error(), bad.name) {
			t.Errorf("with %s=%s on %s: %v", bad.name, bad.value, bad.topic, err)
		}
		setConfig(t, c, bad.topic, bad.name, bad.right)
	}
	if err := c.CheckTopics(t.Context()); err != nil {
		t.Errorf("after setting it right: %v", err)
	}
}

func readConfigs(t *testing.T, c *Client) map[string]map[string]string {
	t.Helper()
	req := &kafka.DescribeConfigsRequest{}
	for _, topic := range c.Topics() {
		req.Resources = append(req.Resources, kafka.DescribeConfigRequestResource{ResourceType: kafka.ResourceTypeTopic, ResourceName: topic.Name})
	}
	res, err := c.api(10*time.Second).DescribeConfigs(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]map[string]string)
	for _, r := range res.Resources {
		all[r.ResourceName] = make(map[string]string)
		for _, e := range r.ConfigEntries {
			all[r.ResourceName][e.ConfigName] = e.ConfigValue
		}
	}
	return all
}

// setConfig changes one setting of a topic and waits until the broker reports it.
func setConfig(t *testing.T, c *Client, topic, name, value string) {
	t.Helper()
	res, err := c.api(10*time.Second).IncrementalAlterConfigs(t.Context(), &kafka.IncrementalAlterConfigsRequest{
		Resources: []kafka.IncrementalAlterConfigsRequestResource{{
			ResourceType: kafka.ResourceTypeTopic, ResourceName: topic,
			Configs: []kafka.IncrementalAlterConfigsRequestConfig{{Name: name, Value: value, ConfigOperation: kafka.ConfigOperationSet}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range res.Resources {
		if r.Error != nil {
			t.Fatal(r.Error)
		}
	}
	streamtest.Eventually(t, 10*time.Second, func() string {
		if got := readConfigs(t, c)[topic][name]; got != value {
			return fmt.Sprintf("%s is %q", name, got)
		}
		return ""
	})
}

func testAppendKeepsOrder(t *testing.T, k cluster) {
	c := k.client(t)
	topic := makeTopic(t, c, 2, nil)
	want := int64(0)
	for _, tc := range []struct{ n, size, requests int }{
		{1, 10, 1}, {100, 100, 1}, {300, 8 << 10, 3}, {5, 600 << 10, 5},
	} {
		before := counterValue(c.metrics.produced, topic)
		first, err := c.Append(t.Context(), topic, 1, records(tc.n, tc.size))
		if err != nil {
			t.Fatal(err)
		}
		if first != want {
			t.Errorf("%d records: first offset %d, want %d", tc.n, first, want)
		}
		want += int64(tc.n)
		if got := counterValue(c.metrics.produced, topic) - before; got != float64(tc.n) {
			t.Errorf("the counter moved by %v, want %d", got, tc.n)
		}
	}
	if first, err := c.Append(t.Context(), topic, 1, nil); first != -1 || err != nil {
		t.Errorf("without records: %d, %v", first, err)
	}
	var expect []string
	for _, n := range []int{1, 100, 300, 5} {
		for i := range n {
			expect = append(expect, fmt.Sprintf("key %d", i))
		}
	}
	var got []string
	for i, r := range readAll(t, c, topic, 1) {
		if r.Offset != int64(i) || r.Partition != 1 || r.Topic != topic {
			t.Fatalf("record %d is %s/%d offset %d", i, r.Topic, r.Partition, r.Offset)
		}
		got = append(got, string(r.Key))
	}
	if diff := cmp.Diff(expect, got); diff != "" {
		t.Errorf("keys in order of offsets (-want +got):\n%s", diff)
	}
	if got := counterValue(c.metrics.fetched, topic); got != float64(len(expect)) {
		t.Errorf("fetched counter is %v, want %d", got, len(expect))
	}
	if start, end, err := c.Offsets(t.Context(), topic, 0); start != 0 || end != 0 || err != nil {
		t.Errorf("the other partition has offsets %d to %d, %v", start, end, err)
	}
}

func testAppendTooLarge(t *testing.T, k cluster) {
	c := k.client(t)
	topic := makeTopic(t, c, 1, nil)
	largest := Record{Key: []byte("k"), Value: make([]byte, MaxRecordBytes-1)}
	if _, err := c.Append(t.Context(), topic, 0, []Record{largest}); err != nil {
		t.Fatalf("a record of the largest size: %v", err)
	}
	over := Record{Key: []byte("kk"), Value: largest.Value}
	_, err := c.Append(t.Context(), topic, 0, []Record{{Value: []byte("first")}, over})
	if !errors.Is(err, ErrTooLarge) || Transient(err) || !strings.Contains(err.Error(), strconv.Itoa(MaxRecordBytes)) {
		t.Fatalf("a record one byte larger: %v", err)
	}
	if got := len(readAll(t, c, topic, 0)); got != 1 {
		t.Errorf("%d records in the log, want only the first append's", got)
	}

	// A topic with a lower limit of its own: the broker refuses.
	small := makeTopic(t, c, 1, map[string]string{"max.message.bytes": "10000"})
	if _, err := c.Append(t.Context(), small, 0, records(1, 20000)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a record above the topic's limit: %v", err)
	}
	if got := counterValue(c.metrics.failures, "produce"); got != 1 {
		t.Errorf("failure counter is %v, want 1", got)
	}
	// Of several producers at a time, only the one with the large record is refused.
	p := c.NewProducer(small)
	defer p.Close()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			size := 1000
			if i == 25 {
				size = 20000
			}
			err := p.Produce(within(t, 20*time.Second), []byte("key"), make([]byte, size))
			if (i == 25) != errors.Is(err, ErrTooLarge) || i != 25 && err != nil {
				t.Errorf("producer %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if got := len(readAll(t, c, small, 0)); got != 49 {
		t.Errorf("%d records in the log, want 49", got)
	}
}

func testAppendKeylessToCompacted(t *testing.T, k cluster) {
	c := k.client(t)
	topic := makeTopic(t, c, 1, map[string]string{"cleanup.policy": "compact"})
	// Apache Kafka refuses it, the embedded broker does not: never nil with a wrong outcome, and not worth repeating.
	first, err := c.Append(t.Context(), topic, 0, []Record{{Value: []byte("v")}})
	switch {
	case err == nil && first == 0:
	case err != nil && first == -1 && !Transient(err):
	default:
		t.Errorf("offset %d, transient %t: %v", first, Transient(err), err)
	}
	refused := err != nil
	// Among several producers only the one without a key is refused.
	p := c.NewProducer(topic)
	defer p.Close()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			key := fmt.Appendf(nil, "%d", i)
			if i == 25 {
				key = nil
			}
			err := p.Produce(within(t, 20*time.Second), key, []byte("v"))
			if (err != nil) != (refused && i == 25) || Transient(err) {
				t.Errorf("producer %d: %v", i, err)
			}
		})
	}
	wg.Wait()
}

func testRecordsComeBackAsWritten(t *testing.T, k cluster) {
	c := k.client(t)
	topic := makeTopic(t, c, 1, nil)
	at := time.UnixMilli(1_700_000_000_123)
	want := []Record{
		{Key: []byte("key"), Value: []byte("value"), Time: at},
		{Key: []byte{}, Value: []byte{}, Time: at.Add(-time.Hour)},
		{Key: []byte("tombstone"), Time: at.Add(time.Hour)},
		{Value: []byte("no key"), Time: at},
		{Key: []byte("a\x00b"), Value: []byte{0xff, 0, 1}, Time: at, Headers: []Header{{Key: "h", Value: []byte("v")}, {Key: "empty", Value: []byte{}}}},
	}
	if _, err := c.Append(t.Context(), topic, 0, want); err != nil {
		t.Fatal(err)
	}
	got := readAll(t, c, topic, 0)
	for i := range want {
		want[i].Topic, want[i].Offset = topic, int64(i)
	}
	same := cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) })
	nilIsNil := cmp.Comparer(func(a, b []byte) bool { return string(a) == string(b) && (a == nil) == (b == nil) })
	if diff := cmp.Diff(want, got, same, nilIsNil); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// The slices of a batch share memory and must not grow into each other.
	_ = append(got[0].Key, "XXXX"...)
	if string(got[0].Value) != "value" {
		t.Errorf("appending to a key changed the value to %q", got[0].Value)
	}
}

func testCompression(t *testing.T, k cluster) {
	for _, codec := range []string{"none", "lz4", "zstd", "snappy", "gzip"} {
		c := k.client(t, func(c *Config) { c.Compression = codec })
		topic := makeTopic(t, c, 1, nil)
		want := records(500, 1000)
		if _, err := c.Append(t.Context(), topic, 0, want); err != nil {
			t.Fatal(err)
		}
		got := readAll(t, c, topic, 0)
		if len(got) != len(want) || string(got[499].Value) != string(want[499].Value) {
			t.Errorf("%s: %d records came back", codec, len(got))
		}
	}
}

func testProducerOfManyGoroutines(t *testing.T, k cluster) {
	c := k.client(t)
	topic := makeTopic(t, c, 12, nil)
	p := c.NewProducer(topic)
	const goroutines, each = 1000, 5
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range each {
				if err := p.Produce(within(t, 30*time.Second), fmt.Appendf(nil, "key %d", g), fmt.Appendf(nil, "%d", i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	got := make(map[string][]string)
	for partition := range int32(12) {
		for _, r := range readAll(t, c, topic, partition) {
			if want := PartitionOf(r.Key, 12); partition != want {
				t.Errorf("%s is in partition %d, want %d", r.Key, partition, want)
			}
			if time.Since(r.Time) > time.Minute {
				t.Errorf("%s has time %s", r.Key, r.Time)
			}
			got[string(r.Key)] = append(got[string(r.Key)], string(r.Value))
		}
	}
	if len(got) != goroutines {
		t.Errorf("%d keys, want %d", len(got), goroutines)
	}
	for key, values := range got {
		if !slices.Equal(values, []string{"0", "1", "2", "3", "4"}) {
			t.Errorf("%s: values in order of offsets are %v", key, values)
		}
	}
	if got := counterValue(c.metrics.produced, topic); got != goroutines*each {
		t.Errorf("produced counter is %v", got)
	}
	if got := counterValue(c.metrics.retries, topic); got != 0 {
		t.Errorf("retries counter is %v with nothing to repeat", got)
	}
}

func testProducerErrors(t *testing.T, k cluster) {
	c := k.client(t)
	topic := makeTopic(t, c, 1, nil)
	p := c.NewProducer(topic)
	if err := p.Produce(t.Context(), []byte("k"), make([]byte, MaxRecordBytes)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	if err := p.Produce(within(t, 10*time.Second), []byte("k"), make([]byte, MaxRecordBytes-1)); err != nil {
		t.Errorf("largest: %v", err)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Produce(canceled, []byte("k"), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Produce(t.Context(), []byte("k"), nil); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}

	// An unknown topic may appear at any time, so the wait is the caller's to end. The reason is in the error.
	p = c.NewProducer("no.such.topic")
	defer p.Close()
	err := p.Produce(within(t, 300*time.Millisecond), []byte("k"), nil)
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, kafka.UnknownTopicOrPartition) {
		t.Errorf("unknown topic: %v", err)
	}
	if got := counterValue(c.metrics.retries, "no.such.topic"); got == 0 {
		t.Error("the retries counter did not move")
	}
}

func testFetchFromOffsets(t *testing.T, k cluster) {
	c := k.client(t)
	topic := makeTopic(t, c, 1, nil)
	for range 3 { // three batches of ten
		if _, err := c.Append(t.Context(), topic, 0, records(10, 100)); err != nil {
			t.Fatal(err)
		}
	}
	for offset := range int64(30) {
		b, err := c.Fetch(t.Context(), topic, 0, offset, 1<<20, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if len(b.Records) == 0 || b.Records[0].Offset != offset || string(b.Records[0].Key) != fmt.Sprintf("key %d", offset%10) {
			t.Fatalf("from %d: %d records, the first is %+v", offset, len(b.Records), b.Records)
		}
		if b.Start != 0 || b.End != 30 || b.Next != b.Records[len(b.Records)-1].Offset+1 {
			t.Errorf("from %d: start %d, end %d, next %d", offset, b.Start, b.End, b.Next)
		}
	}
	b, err := c.Fetch(t.Context(), topic, 0, 12, 1, time.Second)
	if err != nil || len(b.Records) != 8 {
		t.Errorf("with a limit of one byte: %d records, %v; want the rest of the batch, 8", len(b.Records), err)
	}
}

func testFetchWaits(t *testing.T, k cluster) {
	c := k.client(t)
	topic := makeTopic(t, c, 1, nil)
	for _, wait := range []time.Duration{0, 200 * time.Millisecond} {
		began := time.Now()
		b, err := c.Fetch(t.Context(), topic, 0, 0, 1<<20, wait)
		if err != nil || len(b.Records) != 0 || b.Start != 0 || b.End != 0 || b.Next != 0 {
			t.Errorf("on an empty partition: %+v, %v", b, err)
		}
		if took := time.Since(began); took < wait {
			t.Errorf("returned after %s, before the %s it should wait", took, wait)
		}
	}
	got := make(chan Batch, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		b, err := c.Fetch(t.Context(), topic, 0, 0, 1<<20, 30*time.Second)
		if err != nil {
			t.Error(err)
		}
		got <- b
	})
	if _, err := c.Append(t.Context(), topic, 0, records(1, 10)); err != nil {
		t.Fatal(err)
	}
	select {
	case b := <-got:
		if len(b.Records) != 1 {
			t.Errorf("the waiting fetch got %d records", len(b.Records))
		}
	case <-time.After(10 * time.Second):
		t.Error("a record did not end the wait")
	}
	wg.Wait()

	ctx, cancel := context.WithCancel(t.Context())
	wg.Go(func() {
		_, err := c.Fetch(ctx, topic, 0, 1, 1<<20, 3*time.Second)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("a wait whose context ends: %v", err)
		}
	})
	cancel()
	wg.Wait()
}

func testFetchOutOfRange(t *testing.T, k cluster) {
	c := k.client(t)
	topic := makeTopic(t, c, 1, nil)
	if _, err := c.Append(t.Context(), topic, 0, records(10, 10)); err != nil {
		t.Fatal(err)
	}
	deleteRecords(t, k, topic, 4)
	for _, offset := range []int64{-1, 0, 3, 11, 1000} {
		b, err := c.Fetch(t.Context(), topic, 0, offset, 1<<20, 0)
		if !errors.Is(err, ErrOffsetOutOfRange) || Transient(err) {
			t.Errorf("from %d: %v", offset, err)
		}
		if b.Start != 4 || b.End != 10 {
			t.Errorf("from %d: start %d, end %d, want 4 and 10", offset, b.Start, b.End)
		}
	}
	if got := counterValue(c.metrics.failures, "fetch"); got != 5 {
		t.Errorf("failure counter is %v, want 5", got)
	}
	if b, err := c.Fetch(t.Context(), topic, 0, 4, 1<<20, 0); err != nil || b.Records[0].Offset != 4 {
		t.Errorf("from the first one kept: %v", err)
	}
}

// deleteRecords moves the start of partition 0 up to offset. kafka-go has no call for it.
func deleteRecords(t *testing.T, k cluster, topic string, offset int64) {
	t.Helper()
	admin := newFranz(t, k)
	req := kmsgDeleteRecords(topic, offset)
	res, err := req.RequestWith(t.Context(), admin)
	if err != nil {
		t.Fatal(err)
	}
	if code := res.Topics[0].Partitions[0].ErrorCode; code != 0 {
		t.Fatalf("deleting records: code %d", code)
	}
}

// testFetchEmptyTail: the last offsets of a partition hold no record for a reader. Control records of a transaction give
// that on both brokers; compaction can.
func testFetchEmptyTail(t *testing.T, k cluster) {
	c := k.client(t)
	topic := makeTopic(t, c, 1, nil)
	writer := newFranz(t, k, kgo.TransactionalID(topic), kgo.DefaultProduceTopic(topic))
	for range 2 {
		if err := writer.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := writer.ProduceSync(t.Context(), kgo.StringRecord("in a transaction")).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := writer.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
			t.Fatal(err)
		}
	}
	// Offsets: record, control, record, control.
	streamtest.Eventually(t, 10*time.Second, func() string {
		if _, end, err := c.Offsets(t.Context(), topic, 0); end != 4 || err != nil {
			return fmt.Sprintf("end %d, %v", end, err)
		}
		return ""
	})
	fetch := func(offset int64, wait time.Duration) Batch {
		t.Helper()
		b, err := c.Fetch(t.Context(), topic, 0, offset, 1<<20, wait)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if b := fetch(1, time.Second); len(b.Records) != 1 || b.Records[0].Offset != 2 || b.Next != 3 {
		t.Errorf("from a hole in the middle: %+v", b)
	}
	began := time.Now()
	b := fetch(3, 300*time.Millisecond)
	if len(b.Records) != 0 || b.Next != 4 || b.End != 4 {
		t.Errorf("from the empty tail: %+v", b)
	}
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("the empty tail did not wait: %s", took)
	}
	if n := len(readAll(t, c, topic, 0)); n != 2 {
		t.Errorf("%d records, want 2", n)
	}
	if _, err := c.Append(t.Context(), topic, 0, records(1, 10)); err != nil {
		t.Fatal(err)
	}
	if b := fetch(3, time.Second); len(b.Records) != 1 || b.Records[0].Offset != 4 {
		t.Errorf("from the tail, with a record behind it: %+v", b)
	}
}

func testFetchAcrossCompaction(t *testing.T, k cluster) {
	c := k.client(t)
	topic := makeTopic(t, c, 1, map[string]string{
		"cleanup.policy": "compact", "retention.ms": "-1", "segment.bytes": strconv.Itoa(1 << 20),
		"min.cleanable.dirty.ratio": "0.01", "delete.retention.ms": "0", "min.compaction.lag.ms": "0",
	})
	// Ten keys over and over, in batches of seven, then tombstones for five of them, and filling that closes segments.
	const last = 700
	for i := 0; i < last; i += 7 {
		var recs []Record
		for j := i; j < i+7; j++ {
			recs = append(recs, Record{Key: fmt.Appendf(nil, "k%d", j%10), Value: fmt.Appendf(make([]byte, 10_000), "%d", j)})
		}
		if _, err := c.Append(t.Context(), topic, 0, recs); err != nil {
			t.Fatal(err)
		}
	}
	var tombstones []Record
	for i := range 5 {
		tombstones = append(tombstones, Record{Key: fmt.Appendf(nil, "k%d", i)})
	}
	if _, err := c.Append(t.Context(), topic, 0, tombstones); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if _, err := c.Append(t.Context(), topic, 0, []Record{{Key: []byte("filling"), Value: make([]byte, 900_000+i)}}); err != nil {
			t.Fatal(err)
		}
	}
	const end = last + 5 + 3
	var kept []Record
	streamtest.Eventually(t, 60*time.Second, func() string {
		k.compact()
		kept = readAll(t, c, topic, 0)
		if len(kept) > 100 {
			return fmt.Sprintf("%d records kept", len(kept))
		}
		return ""
	})
	latest := make(map[string]string)
	for _, r := range kept {
		latest[string(r.Key)] = strings.TrimLeft(string(r.Value), "\x00")
	}
	for i := 5; i < 10; i++ {
		if got, want := latest[fmt.Sprintf("k%d", i)], strconv.Itoa(last-10+i); got != want {
			t.Errorf("key k%d has %q, want %q", i, got, want)
		}
	}
	for i := range 5 {
		if got := latest[fmt.Sprintf("k%d", i)]; got != "" {
			t.Errorf("deleted key k%d has %q", i, got)
		}
	}
	// From every offset, whether it still exists or not, the next record that does is found. The cleaner of Apache Kafka
	// may go on in the meantime, so what is found must be at or after what was there. (The embedded broker moves the
	// start of the log, Apache Kafka does not.)
	start, _, err := c.Offsets(t.Context(), topic, 0)
	if err != nil {
		t.Fatal(err)
	}
	for offset := start; offset < end; offset++ {
		b, err := c.Fetch(t.Context(), topic, 0, offset, 1<<20, 0)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(kept, func(r Record) bool { return r.Offset >= offset })
		if len(b.Records) == 0 || b.Records[0].Offset < kept[i].Offset {
			t.Fatalf("from %d: %d records, want one at or after %d", offset, len(b.Records), kept[i].Offset)
		}
	}
}

func testReject(t *testing.T, k cluster) {
	c := k.client(t)
	if err := c.EnsureTopics(within(t, 30*time.Second)); err != nil {
		t.Fatal(err)
	}
	want := Rejected{
		Source: Record{Topic: TopicRaw, Partition: 3, Offset: 4711, Key: []byte("app\x00conference"), Value: []byte{0xff, 0xfe, 0}, Time: time.UnixMilli(1_700_000_000_123).UTC()},
		Stage:  "enricher", Reason: "bad_envelope: wire type 7",
	}
	partition := PartitionOf([]byte("callscope.raw.v1/3"), 4)
	_, before, err := c.Offsets(t.Context(), TopicRejected, partition)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Reject(t.Context(), want.Source, want.Stage, want.Reason); err != nil {
		t.Fatal(err)
	}
	// The largest record there can be must fit with all that is said about it.
	large := Record{Topic: TopicRaw, Partition: 3, Key: []byte("k"), Value: make([]byte, MaxRecordBytes-1)}
	if err := c.Reject(t.Context(), large, "enricher", "bad_envelope: "+strings.Repeat("é", 100_000)); err != nil {
		t.Fatal(err)
	}
	all := readAll(t, c, TopicRejected, partition)
	r := all[slices.IndexFunc(all, func(r Record) bool { return r.Offset == before })]
	if string(r.Key) != "callscope.raw.v1/3" {
		t.Errorf("key %q", r.Key)
	}
	got, err := ParseRejected(r)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := ParseRejected(Record{Value: []byte("x")}); err == nil {
		t.Error("a record without headers was taken for a rejected one")
	}
	if got := counterValue(c.metrics.rejected, "enricher", "bad_envelope"); got != 2 {
		t.Errorf("counter is %v, want 2", got)
	}
}

func testLag(t *testing.T, k cluster) {
	c := k.client(t)
	a, b := makeTopic(t, c, 2, nil), makeTopic(t, c, 2, nil)
	for _, topic := range []string{a, b} {
		for p := range int32(2) {
			if _, err := c.Append(t.Context(), topic, p, records(10, 10)); err != nil {
				t.Fatal(err)
			}
		}
	}
	group := a
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var committed sync.WaitGroup
	committed.Add(2)
	done := make(chan error, 1)
	go func() {
		done <- c.RunGroup(ctx, group, []string{a}, func(ctx context.Context, as *Assignment) error {
			defer committed.Done()
			return as.Commit(ctx, 4+6*int64(as.Partition()), "plan")
		})
	}()
	committed.Wait()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	got, err := c.Lag(t.Context(), group, []string{a, b})
	if err != nil {
		t.Fatal(err)
	}
	at := func(i int64) time.Time { return time.UnixMilli(1_700_000_000_000 + i) }
	want := []PartitionLag{
		{Group: group, Topic: a, Partition: 0, Committed: 4, End: 10, Lag: 6, BehindSince: at(4), Metadata: "plan"},
		{Group: group, Topic: a, Partition: 1, Committed: 10, End: 10, Metadata: "plan"},
		{Group: group, Topic: b, Partition: 0, Committed: -1, End: 10, Lag: 10, BehindSince: at(0)},
		{Group: group, Topic: b, Partition: 1, Committed: -1, End: 10, Lag: 10, BehindSince: at(0)},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(time.Time.Equal)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	deleteRecords(t, k, a, 7)
	got, err = c.Lag(t.Context(), group, []string{a})
	if err != nil {
		t.Fatal(err)
	}
	if l := got[0]; l.Committed != 4 || l.Start != 7 || l.Lag != 3 || !l.BehindSince.Equal(at(7)) {
		t.Errorf("with the committed offset expired: %+v", l)
	}
	// A group that nobody has joined yet is behind by everything; with a cluster that has seen no group at all too.
	got, err = c.Lag(t.Context(), group+"-nobody", []string{b})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range got {
		if l.Committed != -1 || l.Lag != 10 {
			t.Errorf("a group that does not exist: %+v", l)
		}
	}
	if _, err := c.Lag(t.Context(), group, []string{"no.such.topic"}); err == nil {
		t.Error("no error for an unknown topic")
	}
}

func testPing(t *testing.T, k cluster) {
	if err := k.client(t).Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := k.client(t, func(c *Config) { c.Brokers = []string{"127.0.0.1:1", k.addr} }).Ping(t.Context()); err != nil {
		t.Errorf("with one of two brokers there: %v", err)
	}
}

func testClosed(t *testing.T, k cluster) {
	c := k.client(t)
	p := c.NewProducer(TopicRaw)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	calls := map[string]func() error{
		"Ping":           func() error { return c.Ping(t.Context()) },
		"EnsureTopics":   func() error { return c.EnsureTopics(t.Context()) },
		"CheckTopics":    func() error { return c.CheckTopics(t.Context()) },
		"PartitionCount": func() error { _, err := c.PartitionCount(t.Context(), TopicRaw); return err },
		"Append":         func() error { _, err := c.Append(t.Context(), TopicRaw, 0, records(1, 1)); return err },
		"Produce":        func() error { return p.Produce(t.Context(), []byte("k"), nil) },
		"Fetch":          func() error { _, err := c.Fetch(t.Context(), TopicRaw, 0, 0, 1, 0); return err },
		"Offsets":        func() error { _, _, err := c.Offsets(t.Context(), TopicRaw, 0); return err },
		"RunGroup":       func() error { return c.RunGroup(t.Context(), "g", []string{TopicRaw}, nil) },
		"Reject":         func() error { return c.Reject(t.Context(), Record{}, "s", "r") },
		"Lag":            func() error { _, err := c.Lag(t.Context(), "g", []string{TopicRaw}); return err },
	}
	for _, name := range slices.Sorted(maps.Keys(calls)) {
		if err := calls[name](); !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	p.Close()
}
