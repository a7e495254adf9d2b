package stream

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/segmentio/kafka-go"
	"go.uber.org/goleak"

	"github.com/callscope/callscope/internal/stream/streamtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cluster is a broker that the conformance suite runs on.
type cluster struct {
	addr string
	// compact makes the broker compact the closed segments of its compacted topics, now or soon.
	compact func()
}

func (k cluster) client(t *testing.T, change ...func(*Config)) *Client {
	t.Helper()
	return openClient(t, k.addr, change...)
}

func openClient(t *testing.T, addr string, change ...func(*Config)) *Client {
	t.Helper()
	cfg := Config{
		Brokers: []string{addr}, Partitions: 4,
		SessionTimeout: 3 * time.Second, RebalanceTimeout: 10 * time.Second, HeartbeatInterval: 100 * time.Millisecond,
	}
	for _, f := range change {
		f(&cfg)
	}
	c, err := Open(cfg, slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn})), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// testWriter sends the log to the test's output.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	if w.t.Context().Err() == nil { // not after the test's end
		w.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

var _ io.Writer = testWriter{}

// makeTopic creates a topic of the test's own and returns its name.
func makeTopic(t *testing.T, c *Client, partitions int, configs map[string]string) string {
	t.Helper()
	name := strings.NewReplacer("/", ".", "_", "-").Replace(t.Name()) + fmt.Sprintf(".%d", time.Now().UnixNano())
	if len(name) > 240 {
		name = name[len(name)-240:]
	}
	createTopic(t, c, name, partitions, configs)
	return name
}

func createTopic(t *testing.T, c *Client, name string, partitions int, configs map[string]string) {
	t.Helper()
	tc := topicConfig(Topic{Name: name, Partitions: partitions, Configs: configs}, 1)
	if err := c.createTopics(t.Context(), []kafka.TopicConfig{tc}); err != nil {
		t.Fatal(err)
	}
	streamtest.Eventually(t, 10*time.Second, func() string {
		for p := range partitions {
			if _, _, err := c.Offsets(t.Context(), name, int32(p)); err != nil {
				return err.Error()
			}
		}
		return ""
	})
}

func deleteTopic(t *testing.T, c *Client, name string) {
	t.Helper()
	res, err := c.api(10*time.Second).DeleteTopics(t.Context(), &kafka.DeleteTopicsRequest{Topics: []string{name}})
	if err != nil {
		t.Fatal(err)
	}
	if err := res.Errors[name]; err != nil {
		t.Fatal(err)
	}
	streamtest.Eventually(t, 10*time.Second, func() string {
		counts, err := c.partitionCounts(t.Context())
		if err != nil {
			return err.Error()
		}
		if counts[name] > 0 {
			return name + " exists"
		}
		return ""
	})
}

// records makes n records with distinct keys and values of about size bytes.
func records(n, size int) []Record {
	recs := make([]Record, n)
	for i := range recs {
		value := fmt.Appendf(nil, "value %d ", i)
		value = append(value, strings.Repeat("x", max(0, size-len(value)))...)
		recs[i] = Record{Key: fmt.Appendf(nil, "key %d", i), Value: value, Time: time.UnixMilli(1_700_000_000_000 + int64(i))}
	}
	return recs
}

// readAll fetches a partition from start to the end it has now.
func readAll(t *testing.T, c *Client, topic string, partition int32) []Record {
	t.Helper()
	next, end, err := c.Offsets(t.Context(), topic, partition)
	if err != nil {
		t.Fatal(err)
	}
	var all []Record
	for next < end {
		b, err := c.Fetch(t.Context(), topic, partition, next, 1<<20, 100*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b.Records...)
		if b.Next <= next && len(b.Records) == 0 {
			t.Fatalf("no progress from offset %d of %d", next, end)
		}
		next = b.Next
	}
	return all
}

func counterValue(c *prometheus.CounterVec, labels ...string) float64 {
	return testutil.ToFloat64(c.WithLabelValues(labels...))
}

func testGauge(g *prometheus.GaugeVec, labels ...string) float64 {
	return testutil.ToFloat64(g.WithLabelValues(labels...))
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
