package stream

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/callscope/callscope/internal/config"
	"github.com/callscope/callscope/internal/stream/streamtest"
)

// Faults that only a broker in the test's hand can show.

func TestBrokerRestartLosesNothing(t *testing.T) {
	b := streamtest.NewBroker(t, streamtest.WithDataDir(t.TempDir()))
	c := openClient(t, b.Addr())
	topic := makeTopic(t, c, 4, nil)
	r := newReader(t)
	groupCtx, stopGroup := context.WithCancel(t.Context())
	defer stopGroup()
	group := make(chan error, 1)
	go func() { group <- c.RunGroup(groupCtx, "readers", []string{topic}, r.handle("a")) }()

	p := c.NewProducer(topic)
	var stop atomic.Bool
	var acked sync.Map // value -> partition
	var wg sync.WaitGroup
	for g := range 20 {
		wg.Go(func() {
			for i := 0; !stop.Load(); i++ {
				key, value := fmt.Appendf(nil, "key %d", g), fmt.Sprintf("%d/%d", g, i)
				if err := p.Produce(within(t, 60*time.Second), key, []byte(value)); err != nil {
					t.Errorf("%s: %v", value, err)
					return
				}
				acked.Store(value, PartitionOf(key, 4))
			}
		})
	}
	count := func() (n int) {
		acked.Range(func(any, any) bool { n++; return true })
		return n
	}
	above := func(what string, value func() float64, limit float64) {
		t.Helper()
		streamtest.Eventually(t, 30*time.Second, func() string {
			if v := value(); v <= limit {
				return fmt.Sprintf("%s: %v, want more than %v", what, v, limit)
			}
			return ""
		})
	}
	generations := func() float64 { return counterValue(c.metrics.generations, "readers") }
	for range 2 {
		above("generations", generations, 0)
		above("acknowledged", func() float64 { return float64(count()) }, float64(count()+200))
		retries, joins, fetches := counterValue(c.metrics.retries, topic), counterValue(c.metrics.groupErrors, "readers"), counterValue(c.metrics.failures, "fetch")
		gen := generations()
		b.Stop()
		above("repeated records", func() float64 { return counterValue(c.metrics.retries, topic) }, retries+20)
		above("failed joins", func() float64 { return counterValue(c.metrics.groupErrors, "readers") }, joins)
		above("failed requests", func() float64 {
			return counterValue(c.metrics.failures, "fetch") + counterValue(c.metrics.failures, "produce")
		}, fetches)
		b.Start()
		above("acknowledged", func() float64 { return float64(count()) }, float64(count()+200))
		above("generations", generations, gen)
	}
	stop.Store(true)
	wg.Wait()
	p.Close()

	inLog := make(map[string]int32)
	ends := make([]int64, 4)
	for partition := range int32(4) {
		for _, rec := range readAll(t, c, topic, partition) {
			inLog[string(rec.Value)] = partition
			ends[partition] = rec.Offset + 1
		}
	}
	acked.Range(func(value, partition any) bool {
		if got, ok := inLog[value.(string)]; !ok || got != partition.(int32) {
			t.Errorf("%s was acknowledged for partition %d and is in %d (%t)", value, partition, got, ok)
		}
		return true
	})
	streamtest.Eventually(t, 30*time.Second, func() string {
		r.mu.Lock()
		defer r.mu.Unlock()
		for partition, end := range ends {
			for o := range end {
				if key := fmt.Sprintf("%s/%d@%d", topic, partition, o); r.seen[key] == 0 {
					return "the group has not read " + key
				}
			}
		}
		return ""
	})
	stopGroup()
	if err := <-group; err != nil {
		t.Errorf("RunGroup returned %v", err)
	}
}

// TestFollowsLeaders: partitions move between three brokers while they are written and read.
func TestFollowsLeaders(t *testing.T) {
	b := streamtest.NewBroker(t, streamtest.WithOptions(kfake.NumBrokers(3)))
	c := openClient(t, b.Addr())
	const partitions = 6
	topic := makeTopic(t, c, partitions, nil)
	r := newReader(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- c.RunGroup(ctx, "readers", []string{topic}, r.handle("a")) }()
	p := c.NewProducer(topic)
	defer p.Close()
	rounds := 0
	produce := func() {
		round := rounds
		rounds++
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				if err := p.Produce(within(t, 30*time.Second), fmt.Appendf(nil, "%d", i), fmt.Appendf(nil, "%d/%d", round, i)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	for range 4 {
		produce()
		// Every partition gets another leader, and partitions that shared one part.
		for partition := range int32(partitions) {
			leader := b.Cluster().LeaderFor(topic, partition)
			if err := b.Cluster().MoveTopicPartition(topic, partition, (leader+1+partition/3)%3); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := counterValue(c.metrics.retries, topic); got == 0 {
		t.Error("nothing was repeated: the moves were not felt")
	}
	streamtest.Eventually(t, 20*time.Second, func() string {
		before := counterValue(c.metrics.retries, topic)
		produce()
		if n := counterValue(c.metrics.retries, topic) - before; n > 0 {
			return fmt.Sprintf("%v records repeated although the leaders rest", n)
		}
		return ""
	})
	values := make(map[string]int)
	ends := make([]int64, partitions)
	for partition := range int32(partitions) {
		// The layout that the client knows may be old still.
		streamtest.Eventually(t, 20*time.Second, func() string {
			var err error
			if _, ends[partition], err = c.Offsets(t.Context(), topic, partition); err != nil {
				return err.Error()
			}
			if _, err = c.Fetch(t.Context(), topic, partition, 0, 1<<20, 0); err != nil {
				return err.Error()
			}
			return ""
		})
		for _, rec := range readAll(t, c, topic, partition) {
			values[string(rec.Value)]++
		}
	}
	if len(values) != 200*rounds {
		t.Errorf("%d different values in the log, want %d", len(values), 200*rounds)
	}
	streamtest.Eventually(t, 20*time.Second, func() string {
		for partition, end := range ends {
			r.mu.Lock()
			n := 0
			for key := range r.seen {
				if strings.HasPrefix(key, fmt.Sprintf("%s/%d@", topic, partition)) {
					n++
				}
			}
			r.mu.Unlock()
			if int64(n) != end {
				return fmt.Sprintf("read %d of %d records of partition %d", n, end, partition)
			}
		}
		return ""
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAuthentication(t *testing.T) {
	b := streamtest.NewBroker(t, streamtest.WithOptions(kfake.EnableSASL(), kfake.Superuser("PLAIN", "callscope", "right")))
	c := openClient(t, b.Addr(), func(c *Config) { c.SASL = SASLConfig{User: "callscope", Password: config.NewSecret("right")} })
	if err := c.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.EnsureTopics(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := c.RunGroup(ctx, "g", []string{TopicRaw}, func(context.Context, *Assignment) error { cancel(); return nil }); err != nil {
		t.Error(err)
	}
	c = openClient(t, b.Addr(), func(c *Config) { c.SASL = SASLConfig{User: "callscope", Password: config.NewSecret("wrong")} })
	if err := c.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "kafka.sasl") || strings.Contains(err.Error(), "wrong") {
		t.Errorf("with a wrong password: %v", err)
	}
}

func TestTLS(t *testing.T) {
	// The test server's certificate is for 127.0.0.1.
	web := httptest.NewTLSServer(nil)
	defer web.Close()
	server := web.TLS.Clone()
	server.NextProtos = nil
	b := streamtest.NewBroker(t, streamtest.WithOptions(kfake.TLS(server)))
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	c := openClient(t, b.Addr(), func(c *Config) { c.TLS = TLSConfig{Enabled: true, CAFile: ca} })
	if err := c.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.EnsureTopics(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := c.RunGroup(ctx, "g", []string{TopicRaw}, func(context.Context, *Assignment) error { cancel(); return nil }); err != nil {
		t.Error(err)
	}
	if err := openClient(t, b.Addr()).Ping(within(t, 500*time.Millisecond)); err == nil {
		t.Error("a plain client got through")
	}
}

func TestProduceRepeatsOnlyWhatFailed(t *testing.T) {
	b := streamtest.NewBroker(t)
	c := openClient(t, b.Addr())
	topic := makeTopic(t, c, 4, nil)
	b.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: topic, Partitions: []int32{2}, Err: kerr.NotLeaderForPartition, Count: 2})
	p := c.NewProducer(topic)
	defer p.Close()
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			if err := p.Produce(within(t, 20*time.Second), fmt.Appendf(nil, "%d", i), nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	failed, total := 0, 0
	for partition := range int32(4) {
		n := len(readAll(t, c, topic, partition))
		total += n
		if partition == 2 {
			failed = n
		}
	}
	if total != 100 {
		t.Errorf("%d records in the log, want 100: nothing lost, nothing twice", total)
	}
	// How many records the two refused requests carried depends on timing, but none of another partition.
	if got := counterValue(c.metrics.retries, topic); got < 2 || got > float64(2*failed) {
		t.Errorf("%v records repeated, want 2 to %d", got, 2*failed)
	}
	if got := counterValue(c.metrics.failures, "produce"); got != 2 {
		t.Errorf("failure counter is %v, want 2", got)
	}
}

func TestProducePermanentRefusalIsNotRepeated(t *testing.T) {
	b := streamtest.NewBroker(t)
	c := openClient(t, b.Addr())
	topic := makeTopic(t, c, 1, nil)
	b.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: topic, Err: kerr.TopicAuthorizationFailed, Count: -1})
	p := c.NewProducer(topic)
	defer p.Close()
	if err := p.Produce(t.Context(), []byte("k"), nil); !errors.Is(err, kafka.TopicAuthorizationFailed) || Transient(err) {
		t.Errorf("Produce: %v", err)
	}
	if _, err := c.Append(t.Context(), topic, 0, records(1, 1)); !errors.Is(err, kafka.TopicAuthorizationFailed) || Transient(err) {
		t.Errorf("Append: %v", err)
	}
	if got := counterValue(c.metrics.retries, topic); got != 0 {
		t.Errorf("%v records repeated", got)
	}
}

// TestProduceGivenUpIsNotSent: a caller that gave up before its record was taken must not find it in the log later,
// and one whose record was taken learns that its outcome is unknown.
func TestProduceGivenUpIsNotSent(t *testing.T) {
	b := streamtest.NewBroker(t)
	c := openClient(t, b.Addr())
	topic := makeTopic(t, c, 1, nil)
	arrived, release := make(chan struct{}), make(chan struct{})
	b.Cluster().ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		b.Cluster().DropControl()
		close(arrived)
		b.Cluster().SleepControl(func() { <-release })
		return nil, nil, false
	})
	p := c.NewProducer(topic)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := p.Produce(ctx, []byte("k"), []byte("sent")); !errors.Is(err, context.Canceled) {
			t.Errorf("the one on its way: %v", err)
		}
	})
	<-arrived
	wg.Go(func() {
		if err := p.Produce(ctx, []byte("k"), []byte("waiting")); !errors.Is(err, context.Canceled) {
			t.Errorf("the one that waits: %v", err)
		}
	})
	streamtest.Eventually(t, 10*time.Second, func() string {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, ln := range p.lanes {
			ln.mu.Lock()
			n := len(ln.queue)
			ln.mu.Unlock()
			if n == 1 {
				return ""
			}
		}
		return "the second record is not in the queue"
	})
	cancel()
	wg.Wait()
	close(release)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	got := readAll(t, c, topic, 0)
	if len(got) != 1 || string(got[0].Value) != "sent" {
		t.Errorf("in the log: %+v", got)
	}
}

func TestAppendStopsAtTheFirstFailure(t *testing.T) {
	b := streamtest.NewBroker(t)
	c := openClient(t, b.Addr())
	topic := makeTopic(t, c, 1, nil)
	requests := make(map[kmsg.Request]bool)
	b.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: topic, Err: kerr.NotEnoughReplicas,
		When: func(r kmsg.Request) bool { requests[r] = true; return len(requests) == 2 }})
	first, err := c.Append(t.Context(), topic, 0, records(5, 600<<10)) // a request each
	if first != -1 || !errors.Is(err, kafka.NotEnoughReplicas) || !Transient(err) {
		t.Errorf("offset %d, %v", first, err)
	}
	if n := len(readAll(t, c, topic, 0)); n != 1 {
		t.Errorf("%d records in the log, want only the one before the failure", n)
	}
}

func TestFetchErrors(t *testing.T) {
	b := streamtest.NewBroker(t)
	c := openClient(t, b.Addr())
	topic := makeTopic(t, c, 1, nil)
	b.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: topic, Err: kerr.UnknownTopicOrPartition})
	if _, err := c.Fetch(t.Context(), topic, 0, 0, 1, 0); !errors.Is(err, kafka.UnknownTopicOrPartition) || !Transient(err) {
		t.Errorf("Fetch: %v", err)
	}
	b.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: topic, Err: kerr.NotLeaderForPartition, Count: 2})
	if _, _, err := c.Offsets(t.Context(), topic, 0); !Transient(err) {
		t.Errorf("Offsets: %v", err)
	}
	if got := counterValue(c.metrics.failures, "offsets"); got != 1 {
		t.Errorf("failure counter is %v, want 1", got)
	}
	if _, err := c.Fetch(t.Context(), topic, 7, 0, 1, 0); err == nil {
		t.Error("no error for a partition that does not exist")
	}
}

func TestCommitRepeatsTransientFailures(t *testing.T) {
	b := streamtest.NewBroker(t)
	c := openClient(t, b.Addr())
	topic := makeTopic(t, c, 1, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := c.RunGroup(ctx, "g", []string{topic}, func(hctx context.Context, a *Assignment) error {
		defer cancel()
		b.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Group: "g", Err: kerr.CoordinatorLoadInProgress, Count: 2})
		if err := a.Commit(hctx, 3, "m"); err != nil {
			t.Errorf("Commit: %v", err)
		}
		b.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetFetch}, Group: "g", Err: kerr.NotCoordinator, Count: 2})
		if offset, m, ok, err := a.Committed(hctx); offset != 3 || m != "m" || !ok || err != nil {
			t.Errorf("Committed: %d %q %t %v", offset, m, ok, err)
		}
		b.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Group: "g", Err: kerr.OffsetMetadataTooLarge, Count: -1})
		if err := a.Commit(hctx, 4, "m"); err == nil || errors.Is(err, ErrFenced) || Transient(err) {
			t.Errorf("a permanent refusal: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		what string
		got  float64
		want float64
	}{
		{"failed commit requests", counterValue(c.metrics.failures, "commit"), 3},
		{"failed reads of commits", counterValue(c.metrics.failures, "committed"), 2},
		{"commits", counterValue(c.metrics.commits, "g", "ok"), 1},
		{"failed commits", counterValue(c.metrics.commits, "g", "failed"), 1},
	} {
		if want.got != want.want {
			t.Errorf("%s: counter is %v, want %v", want.what, want.got, want.want)
		}
	}
}

// TestDrainingKeepsTheMembership: a handle that writes its last state for longer than a session still owns the partition.
func TestDrainingKeepsTheMembership(t *testing.T) {
	b := streamtest.NewBroker(t)
	c := openClient(t, b.Addr(), func(c *Config) { c.SessionTimeout, c.HeartbeatInterval = 400*time.Millisecond, 40*time.Millisecond })
	topic := makeTopic(t, c, 1, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := c.RunGroup(ctx, "g", []string{topic}, func(hctx context.Context, a *Assignment) error {
		cancel()
		<-hctx.Done()
		beats := b.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Heartbeat}, Group: "g", Observe: true, Count: -1})
		if err := beats.Wait(within(t, 20*time.Second), 20); err != nil { // two sessions long
			t.Errorf("no heartbeats while draining: %v", err)
		}
		if err := a.Commit(within(t, 10*time.Second), 9, "last"); err != nil {
			t.Error(err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestGroupRecoversFromUnknownTopics: the member that assigns may ask a broker that has just started and does not know
// its topics yet. kafka-go assigns nothing to everybody then, and nothing would ever change that.
func TestGroupRecoversFromUnknownTopics(t *testing.T) {
	b := streamtest.NewBroker(t)
	c := openClient(t, b.Addr())
	topic := makeTopic(t, c, 2, nil)
	b.Cluster().Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Topic: topic, Err: kerr.UnknownTopicOrPartition,
		When: func(r kmsg.Request) bool { return r.GetVersion() <= 6 && len(r.(*kmsg.MetadataRequest).Topics) == 1 }})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var handled sync.WaitGroup
	handled.Add(2)
	go func() { handled.Wait(); cancel() }()
	if err := c.RunGroup(ctx, "g", []string{topic}, func(context.Context, *Assignment) error { handled.Done(); return nil }); err != nil {
		t.Fatal(err)
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		t.Error("the partitions were never assigned")
	}
	if got := counterValue(c.metrics.generations, "g"); got < 2 {
		t.Errorf("%v generations: the fault did not happen", got)
	}
}

// TestGroupResumesBeforeTheSessionExpires: kafka-go forgets its member id when the broker is away and comes back as
// another member. The group must not wait for the one it was.
func TestGroupResumesBeforeTheSessionExpires(t *testing.T) {
	b := streamtest.NewBroker(t, streamtest.WithDataDir(t.TempDir()))
	c := openClient(t, b.Addr(), func(c *Config) { c.SessionTimeout, c.RebalanceTimeout = time.Minute, time.Minute })
	topic := makeTopic(t, c, 1, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var handled atomic.Int32
	done := make(chan error, 1)
	go func() {
		done <- c.RunGroup(ctx, "g", []string{topic}, func(ctx context.Context, a *Assignment) error {
			if err := a.Commit(ctx, 1, ""); err != nil {
				return err
			}
			handled.Add(1)
			<-ctx.Done()
			return nil
		})
	}()
	owned := func(n int32) func() string {
		return func() string {
			if got := handled.Load(); got < n {
				return fmt.Sprintf("the partition was assigned %d times, want %d", got, n)
			}
			return ""
		}
	}
	streamtest.Eventually(t, 20*time.Second, owned(1))
	b.Stop()
	streamtest.Eventually(t, 20*time.Second, func() string {
		if counterValue(c.metrics.groupErrors, "g") < 2 {
			return "the group has not noticed"
		}
		return ""
	})
	if err, n := c.Outside("g"), testGauge(c.metrics.partitions, "g"); err == nil || n != 0 {
		t.Errorf("while the broker is away: outside of the group: %v, %v partitions", err, n)
	}
	b.Start()
	streamtest.Eventually(t, 20*time.Second, owned(2))
	if err, n := c.Outside("g"), testGauge(c.metrics.partitions, "g"); err != nil || n != 1 {
		t.Errorf("when the broker is back: outside of the group: %v, %v partitions", err, n)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestLeavingDoesNotWaitForOthers: a member that shuts down while a rebalance waits for a slow member must not wait too.
func TestLeavingDoesNotWaitForOthers(t *testing.T) {
	b := streamtest.NewBroker(t)
	slowClient := func(c *Config) {
		c.SessionTimeout, c.RebalanceTimeout = 2*time.Second, 60*time.Second
	}
	c := openClient(t, b.Addr(), slowClient)
	topic := makeTopic(t, c, 2, nil)
	// The slow member is not kafka-go's: it heartbeats on while it takes its time, as Java clients do.
	slow := newFranz(t, cluster{addr: b.Addr()})
	join := joinByHand(t, slow, topic)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- c.RunGroup(ctx, "g", []string{topic}, func(context.Context, *Assignment) error { return nil })
	}()
	streamtest.Eventually(t, 10*time.Second, func() string {
		if info := b.Cluster().GroupInfo("g"); info == nil || len(info.Members) < 2 {
			return "the second member has not asked to join"
		}
		join.heartbeat(t)
		return ""
	})
	cancel()
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		if err := <-done; err != nil {
			t.Errorf("RunGroup returned %v", err)
		}
	}()
	streamtest.Eventually(t, 10*time.Second, func() string {
		join.heartbeat(t)
		select {
		case <-returned:
			return ""
		default:
			return "RunGroup waits for the slow member"
		}
	})
}

func TestGroupThatTheBrokerRefuses(t *testing.T) {
	b := streamtest.NewBroker(t)
	c := openClient(t, b.Addr(), func(c *Config) {
		c.SessionTimeout, c.HeartbeatInterval = 50*time.Millisecond, 10*time.Millisecond // below the broker's minimum
	})
	topic := makeTopic(t, c, 1, nil)
	err := c.RunGroup(t.Context(), "g", []string{topic}, func(context.Context, *Assignment) error { return nil })
	if !errors.Is(err, kafka.InvalidSessionTimeout) || Transient(err) {
		t.Errorf("RunGroup returned %v", err)
	}
	if got := counterValue(c.metrics.groupErrors, "g"); got != 1 {
		t.Errorf("group errors counter is %v, want 1", got)
	}
}

func TestPingSaysWhatIsWrong(t *testing.T) {
	listen := func(serve func(net.Conn)) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				wg.Go(func() { defer conn.Close(); serve(conn) })
			}
		})
		t.Cleanup(func() { l.Close(); wg.Wait() })
		return l.Addr().String()
	}
	closed := listen(func(net.Conn) {})
	silent := listen(func(conn net.Conn) {
		buf := make([]byte, 1024)
		for {
			if _, err := conn.Read(buf); err != nil {
				return
			}
		}
	})
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	for _, tc := range []struct{ name, addr, advice string }{
		{"nothing listens", free.Addr().String(), "start Kafka or correct kafka.brokers"},
		{"closes", closed, "does not speak Kafka's protocol"},
		{"silent", silent, "no answer in time"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := openClient(t, tc.addr)
			err := c.Ping(within(t, 500*time.Millisecond))
			if err == nil || !strings.Contains(err.Error(), tc.addr) || !strings.Contains(err.Error(), tc.advice) || !Transient(err) {
				t.Errorf("the error names no broker or gives no advice: %v", err)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	givenUp := listen(func(conn net.Conn) {
		buf := make([]byte, 1024)
		for {
			if _, err := conn.Read(buf); err != nil {
				return
			}
			cancel() // the question has arrived
		}
	})
	if err := openClient(t, givenUp).Ping(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("given up while the broker does not answer: %v", err)
	}
	c := openClient(t, free.Addr().String())
	if err := c.CheckTopics(within(t, 2*time.Second)); err == nil || !strings.Contains(err.Error(), free.Addr().String()) {
		t.Errorf("CheckTopics without a broker: %v", err)
	}
	if got := adviceFor(fmt.Errorf("dialing: %w", &net.DNSError{Name: "kafka"})); !strings.Contains(got, "does not resolve") {
		t.Errorf("advice for an unknown name: %s", got)
	}
}

func TestClientsShareARegisterer(t *testing.T) {
	c := openClient(t, "127.0.0.1:1")
	reg := prometheus.NewRegistry()
	for range 2 {
		other, err := Open(c.cfg, c.log, reg)
		if err != nil {
			t.Fatal(err)
		}
		other.metrics.retries.WithLabelValues("x").Inc()
		if other.metrics.retries == c.metrics.retries {
			t.Error("clients of different registries share counters")
		}
		other.Close()
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "callscope_kafka_produce_retries_total" && f.Metric[0].Counter.GetValue() == 2 {
			return
		}
	}
	t.Errorf("the shared counter is not 2: %v", families)
}
