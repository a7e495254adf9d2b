package replay

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/callscope/callscope/internal/replay"
	"github.com/callscope/callscope/internal/store/storetest"
	"github.com/callscope/callscope/internal/stream"
	"github.com/callscope/callscope/test/chaintest"
)

// caller sends calls as they come in life: each message at its time, written then.
type caller struct {
	t      testing.TB
	client *stream.Client
	n      uint32
	calls  int
}

// call sends recorded calls for a while, four begun each second, each over two seconds, and returns how many messages.
func (c *caller) call(ctx context.Context, phase string, d time.Duration) (sent int) {
	messages := messagesOf(c.t, "mesh3")
	pace := time.NewTicker(50 * time.Millisecond)
	defer pace.Stop()
	type underWay struct {
		conference string
		begin      time.Time
		next       int
	}
	var open []*underWay
	for began, due := time.Now(), time.Now(); ctx.Err() == nil; <-pace.C {
		if now := time.Now(); now.Sub(began) < d && !now.Before(due) {
			due = due.Add(250 * time.Millisecond)
			c.calls++
			open = append(open, &underWay{conference: fmt.Sprintf("live-%s-%d", phase, c.calls), begin: now})
		}
		if len(open) == 0 {
			return sent
		}
		var records [partitions][]stream.Record
		for _, call := range open {
			for ; call.next < len(messages) && time.Since(call.begin) >= time.Duration(call.next)*2*time.Second/time.Duration(len(messages)); call.next++ {
				c.n++
				now := time.Now()
				m := timed{now.UnixMilli(), messages[call.next], 1<<31 + c.n, "", call.conference}
				value, err := m.raw().MarshalVT()
				if err != nil {
					c.t.Error(err)
					return sent
				}
				p := stream.PartitionOf(m.key(), partitions)
				records[p] = append(records[p], stream.Record{Key: m.key(), Value: value, Time: now})
			}
		}
		for p, list := range records {
			if len(list) == 0 {
				continue
			}
			if _, err := c.client.Append(ctx, stream.TopicRaw, int32(p), list); err != nil {
				c.t.Error(err)
				return sent
			}
			sent += len(list)
		}
		open = slices.DeleteFunc(open, func(call *underWay) bool { return call.next == len(messages) })
	}
	return sent
}

// lags asks, again and again until ctx ends, how far the newest stored row of live calls is behind what was sent just
// before. Sorted.
func lags(ctx context.Context, t testing.TB, c *chain, prefix string) (all []time.Duration) {
	poll := time.NewTicker(100 * time.Millisecond)
	defer poll.Stop()
	for ctx.Err() == nil {
		newest := storetest.Query(t, c.store, "SELECT toUnixTimestamp64Milli(max(received_at)) FROM samples_rows WHERE conference_id LIKE '"+prefix+"%'")[0][0].(int64)
		if newest > 0 {
			all = append(all, time.Since(time.UnixMilli(newest)))
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
		}
	}
	slices.Sort(all)
	return all
}

// Live calls go on while earlier ones are replayed: their rows come, about as soon as without, the replay is exact, and
// nothing of theirs is touched. CALLSCOPE_FULL=1 makes it longer.
func TestLiveBesideReplay(t *testing.T) {
	records, during := 10_000, 6*time.Second
	if chaintest.Full() {
		records, during = 200_000, time.Minute
	}
	c := newChain(t)
	log, minutes := mixed(t, records)
	log.write(c.client, at(minutes+20))
	stop := c.start()
	defer stop()
	c.settle()
	before := checksums(t, c.store)
	live := &caller{t: t, client: c.client}

	phase := func(name string, beside func(ctx context.Context)) (sent int, lag []time.Duration) {
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		group.Go(func() { beside(ctx) })
		group.Go(func() { lag = lags(ctx, t, c, "live-"+name) })
		sent = live.call(ctx, name, during)
		cancel()
		group.Wait()
		c.settle()
		return sent, lag
	}
	sentAlone, alone := phase("alone", func(context.Context) {})
	replays, conferences := 0, int64(0)
	// Each round reads all, open calls included, and writes the earlier ones: with doubled delays, and as they were again.
	sentBeside, beside := phase("beside", func(ctx context.Context) {
		for ctx.Err() == nil {
			for _, other := range []bool{true, false} {
				cfg := replay.Config{From: at(-10), To: time.Now().Add(time.Hour)}
				if other {
					cfg.NewSummarizer = doubledDelays
				}
				report, err := replay.Run(t.Context(), cfg, replay.Topic{Client: c.client}, c.store, quiet)
				if err != nil || report.Open == 0 || report.Left > 0 || report.Rows() == 0 || len(total(t, report)) != 1 {
					t.Errorf("replay %d: %+v, %v", replays, report, err)
					return
				}
				replays++
				conferences = report.Conferences
			}
		}
	})
	if sentAlone == 0 || sentBeside == 0 || replays == 0 || len(alone) == 0 || len(beside) == 0 {
		t.Fatalf("%d and %d messages sent, %d replays, %d and %d measurements", sentAlone, sentBeside, replays, len(alone), len(beside))
	}
	p90 := func(list []time.Duration) time.Duration { return list[len(list)*9/10] }
	t.Logf("alone: %d messages, lag %s (median) %s (90 %%) %s (most)", sentAlone, alone[len(alone)/2], p90(alone), alone[len(alone)-1])
	t.Logf("beside %d replays of %d conferences: %d messages, lag %s (median) %s (90 %%) %s (most)", replays, conferences,
		sentBeside, beside[len(beside)/2], p90(beside), beside[len(beside)-1])
	if p90(beside) > 20*p90(alone) {
		t.Errorf("the lag grew from %s to %s", p90(alone), p90(beside))
	}

	// Every live call gave the same rows, and no replay wrote one of them.
	for _, table := range []string{"samples_rows", "events_rows", "fabric_samples_rows"} {
		kinds := storetest.Query(t, c.store, "SELECT n, count() FROM (SELECT conference_id, count() AS n FROM "+table+" FINAL WHERE conference_id LIKE 'live-%' GROUP BY conference_id) GROUP BY n")
		if len(kinds) != 1 || kinds[0][1].(uint64) != uint64(live.calls) || kinds[0][0].(uint64) == 0 {
			t.Errorf("%s: rows of a live call, and how many calls have so many: %v, want all %d the same", table, kinds, live.calls)
		}
	}
	for _, table := range []string{"conferences_rows", "participants_rows", "fabrics_rows", "streams_rows", "samples_rows", "events_rows"} {
		if n := count(t, c.store, table+" WHERE conference_id LIKE 'live-%' AND src_topic = 'replay'"); n > 0 {
			t.Errorf("a replay wrote %d rows of live calls into %s", n, table)
		}
	}
	if n := count(t, c.store, "conferences_rows FINAL WHERE conference_id LIKE 'live-%'"); n != uint64(live.calls) {
		t.Errorf("%d live conferences, want %d", n, live.calls)
	}
	// Without the live calls all is as it was: the last replay had the live logic.
	stop()
	for _, table := range []string{"conferences_rows", "participants_rows", "participant_names_rows", "fabrics_rows", "streams_rows", "samples_rows", "fabric_samples_rows", "events_rows"} {
		storetest.Exec(t, c.store, "ALTER TABLE "+table+" DELETE WHERE conference_id LIKE 'live-%' SETTINGS mutations_sync = 1")
	}
	if diff := changed(before, checksums(t, c.store)); diff != "" {
		t.Error(diff)
	}
}
