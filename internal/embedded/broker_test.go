package embedded

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

func kafkaClient(t *testing.T, addr string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(addr)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func makeTopic(t *testing.T, addr, topic string, configs map[string]string) {
	t.Helper()
	values := map[string]*string{}
	for k, v := range configs {
		values[k] = &v
	}
	client := kafkaClient(t, addr)
	defer client.Close()
	resp, err := kadm.NewClient(client).CreateTopic(t.Context(), 1, 1, values, topic)
	if err != nil || resp.Err != nil {
		t.Fatalf("creating %s: %v %v", topic, err, resp.Err)
	}
}

func produce(t *testing.T, client *kgo.Client, topic, key string, values ...string) {
	t.Helper()
	for _, v := range values {
		r := &kgo.Record{Topic: topic, Key: []byte(key), Value: []byte(v)}
		if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatalf("producing %q: %v", v, err)
		}
	}
}

// consume returns the values of a topic from its start to its present end.
func consume(t *testing.T, addr, topic string) []string {
	t.Helper()
	client := kafkaClient(t, addr, kgo.ConsumeTopics(topic))
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	end, _ := ends.Lookup(topic, 0)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var values []string
	for next := int64(0); next < end.Offset; {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("consuming %s at %d of %d: %v", topic, next, end.Offset, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			values = append(values, string(r.Value))
			next = r.Offset + 1
		})
	}
	return values
}

func TestBrokerKeepsRecordsOverRestart(t *testing.T) {
	dir := t.TempDir()
	var want []string
	for i := range 3 {
		b := NewBroker(BrokerConfig{DataDir: dir, Addr: "127.0.0.1:0", Sync: i == 1}, testLog())
		if b.Addr() != "" {
			t.Errorf("Addr() before ready = %q", b.Addr())
		}
		stop := run(t, b)
		if i == 0 {
			makeTopic(t, b.Addr(), "a", nil)
		}
		value := fmt.Sprint("run ", i)
		want = append(want, value)
		client := kafkaClient(t, b.Addr())
		produce(t, client, "a", "k", value)
		client.Close()
		if diff := cmp.Diff(want, consume(t, b.Addr(), "a")); diff != "" {
			t.Errorf("run %d (-want +got):\n%s", i, diff)
		}
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
	}
}

func TestBrokerKeepsAcknowledgedRecordsOverKill(t *testing.T) {
	dir := t.TempDir()
	addr := freeAddr(t)
	child := startChild(t, "broker", addr, dir)
	eventually(t, func() string {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return err.Error()
		}
		conn.Close()
		return ""
	})
	makeTopic(t, addr, "a", nil)
	var want []string
	client := kafkaClient(t, addr)
	for i := range 200 {
		want = append(want, fmt.Sprint(i))
		produce(t, client, "a", "k", want[i])
	}
	client.Close()
	child.kill(t)

	b := NewBroker(BrokerConfig{DataDir: dir, Addr: "127.0.0.1:0"}, testLog())
	run(t, b)
	if diff := cmp.Diff(want, consume(t, b.Addr(), "a")); diff != "" {
		t.Errorf("after kill -9 (-want +got):\n%s", diff)
	}
}

func TestBrokerMakesNoTopicByItself(t *testing.T) {
	b := NewBroker(BrokerConfig{DataDir: t.TempDir(), Addr: "127.0.0.1:0"}, testLog())
	run(t, b)
	client := kafkaClient(t, b.Addr(), kgo.AllowAutoTopicCreation(), kgo.UnknownTopicRetries(0))
	err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "nosuch", Value: []byte("x")}).FirstErr()
	if err == nil || !strings.Contains(err.Error(), "UNKNOWN_TOPIC_OR_PARTITION") {
		t.Errorf("producing to a missing topic = %v", err)
	}
}

func TestBrokerMaintenance(t *testing.T) {
	b := NewBroker(BrokerConfig{DataDir: t.TempDir(), Addr: "127.0.0.1:0"}, testLog())
	b.retentionInterval, b.compactionInterval = 20*time.Millisecond, 20*time.Millisecond
	run(t, b)
	makeTopic(t, b.Addr(), "retained", map[string]string{"retention.bytes": "2000", "segment.bytes": "1000"})
	makeTopic(t, b.Addr(), "compacted", map[string]string{"cleanup.policy": "compact", "retention.ms": "-1", "segment.bytes": "1000", "min.cleanable.dirty.ratio": "0.01"})
	client := kafkaClient(t, b.Addr())
	for i := range 40 {
		produce(t, client, "retained", "k", fmt.Sprint(i, strings.Repeat("x", 200)))
		produce(t, client, "compacted", "k", fmt.Sprint(i, strings.Repeat("x", 200)))
	}
	admin := kadm.NewClient(client)
	eventually(t, func() string {
		starts, err := admin.ListStartOffsets(t.Context(), "retained")
		if err != nil {
			return err.Error()
		}
		if start, _ := starts.Lookup("retained", 0); start.Offset == 0 {
			return "retention has removed nothing"
		}
		return ""
	})
	eventually(t, func() string {
		if n := len(consume(t, b.Addr(), "compacted")); n >= 40 {
			return fmt.Sprintf("%d records of one key are left", n)
		}
		return ""
	})
	values := consume(t, b.Addr(), "compacted")
	if !strings.HasPrefix(values[len(values)-1], "39") {
		t.Errorf("compaction lost the last value; left: %.20q", values)
	}
}

func TestBrokerRefuses(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	lockedDir := t.TempDir()
	holder := NewBroker(BrokerConfig{DataDir: lockedDir, Addr: "127.0.0.1:0"}, testLog())
	run(t, holder)
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		cfg  BrokerConfig
		want []string
	}{
		{"locked directory", BrokerConfig{DataDir: lockedDir, Addr: "127.0.0.1:0"}, []string{lockedDir, "in use by another process", fmt.Sprint("pid ", os.Getpid())}},
		{"port in use", BrokerConfig{DataDir: t.TempDir(), Addr: taken.Addr().String()},
			[]string{"Kafka broker", taken.Addr().String(), "another process uses this port", "stop that process", "kafka.embedded_addr"}},
		{"all interfaces", BrokerConfig{DataDir: t.TempDir(), Addr: ":9092"}, []string{"loopback", "kafka.embedded_addr"}},
		{"public address", BrokerConfig{DataDir: t.TempDir(), Addr: "192.0.2.1:9092"}, []string{"loopback"}},
		{"no port", BrokerConfig{DataDir: t.TempDir(), Addr: "127.0.0.1"}, []string{"host:port"}},
		{"no directory", BrokerConfig{Addr: "127.0.0.1:0"}, []string{"needs a data directory"}},
		{"a file", BrokerConfig{DataDir: file, Addr: "127.0.0.1:0"}, []string{file}},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := NewBroker(c.cfg, testLog()).Run(t.Context())
			if err == nil {
				t.Fatal("Run = nil")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
}

func TestBrokerReportsUnreadableData(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/meta.json", []byte("not json"), 0o600); err != nil {
		t.Fatal(err)
	}
	addr := freeAddr(t)
	err := NewBroker(BrokerConfig{DataDir: dir, Addr: addr}, testLog()).Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("Run = %v, want an error that names %s", err, dir)
	}
	// Port and lock are free again.
	if err := os.Remove(dir + "/meta.json"); err != nil {
		t.Fatal(err)
	}
	run(t, NewBroker(BrokerConfig{DataDir: dir, Addr: addr}, testLog()))
}
