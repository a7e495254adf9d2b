package dumps

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/callscope/callscope/internal/stream"
	"github.com/callscope/callscope/internal/stream/streamtest"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
	"github.com/callscope/callscope/test/chaintest"
)

// startOn is start with a broker that the test can look into, and make fail.
func startOn(t *testing.T) (*chain, *streamtest.Broker) {
	t.Helper()
	broker := streamtest.NewBroker(t)
	c := &chain{gateway: chaintest.FreeAddress(t), engine: chaintest.FreeAddress(t)}
	dir, admin := t.TempDir(), chaintest.FreeAddress(t)
	config := filepath.Join(dir, "callscope.yaml")
	text := fmt.Sprintf("data_dir: %q\napps: [{id: %q, name: test, secrets: [a secret of the test alone]}, {id: %q, name: other, secrets: [another secret of the test]}]\n"+
		"gateway: {addr: %q}\nadmin: {addr: %q}\nkafka: {brokers: [%q], partitions: 2}\nclickhouse: {embedded_addr: %q}\n",
		filepath.Join(dir, "data"), appID, otherAppID, c.gateway, admin, broker.Addr(), c.engine)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c.flags = []string{"--config", config}
	p := chaintest.Start(t, "callscope all", append([]string{"all", "--log-level", "warn"}, c.flags...)...)
	chaintest.Ready(t, p, admin)
	client, err := stream.Open(stream.Config{Brokers: []string{broker.Addr()}, Partitions: 2}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	c.client = client
	return c, broker
}

const otherAppID = "4711"

// pass lets time pass for all calls, which have no other clock than the ticks in the log: each counts for 5 s at most. The
// enricher that wrote ticks before goes on with a ticker of its own afterwards.
func pass(t *testing.T, client *stream.Client, d time.Duration) {
	t.Helper()
	for p := range int32(2) {
		ticker := uuid.New()
		var records []stream.Record
		for at := time.Duration(0); at <= d; at += 5 * time.Second {
			uid := uuid.New()
			value, err := (&callscopev1.Raw{Uid: uid[:], Payload: &callscopev1.Raw_Tick{Tick: &callscopev1.Tick{
				TickerUid: ticker[:], MonotonicMs: at.Milliseconds(), WallMs: time.Now().UnixMilli(),
			}}}).MarshalVT()
			if err != nil {
				t.Fatal(err)
			}
			records = append(records, stream.Record{Value: value})
		}
		if _, err := client.Append(t.Context(), stream.TopicRaw, p, records); err != nil {
			t.Fatal(err)
		}
	}
}

// settled waits until what the raw topic holds now has come to the store.
func settled(t *testing.T, client *stream.Client) {
	t.Helper()
	for _, stage := range []struct {
		group  string
		topics []string
	}{
		{stream.GroupEnricher, []string{stream.TopicRaw}}, {stream.GroupSummarizer, []string{stream.TopicEnriched}},
		{stream.GroupSink, []string{stream.TopicEnriched, stream.TopicSummaries}},
	} {
		var ends []stream.PartitionLag
		chaintest.Eventually(t, time.Minute, stage.group+" being done", func() string {
			lags, err := client.Lag(t.Context(), stage.group, stage.topics)
			if err != nil {
				return err.Error()
			}
			if ends == nil {
				ends = lags
			}
			for i, lag := range lags {
				if lag.Committed < ends[i].End && ends[i].End > 0 {
					return fmt.Sprintf("%s/%d: %d of %d", lag.Topic, lag.Partition, lag.Committed, ends[i].End)
				}
			}
			return ""
		})
	}
}

// callscope runs another command of the binary against the chain.
func (c *chain) callscope(t *testing.T, wantCode int, args ...string) string {
	t.Helper()
	out, code := run(t, nil, append(args, c.flags...)...)
	if code != wantCode {
		t.Fatalf("callscope %s: exit code %d, want %d:\n%s", strings.Join(args, " "), code, wantCode, out)
	}
	return out
}
