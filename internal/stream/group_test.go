package stream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go"

	"github.com/callscope/callscope/internal/stream/streamtest"
)

// reader is a group member's handle that reads its partition from the committed offset, commits what it has read and
// notes it, with an eye on who else is at it.
type reader struct {
	t  *testing.T
	mu sync.Mutex
	// seen counts how often each record was read: by topic, partition and offset.
	seen map[string]int
	// owners holds the generation that each member is busy with, by member and partition.
	busy map[string]int32
	// owned is who has each partition now.
	owned map[string]*Assignment
}

func newReader(t *testing.T) *reader {
	return &reader{t: t, seen: make(map[string]int), busy: make(map[string]int32), owned: make(map[string]*Assignment)}
}

// handle returns a handle for one process of that name.
func (r *reader) handle(process string) func(context.Context, *Assignment) error {
	return func(ctx context.Context, a *Assignment) error {
		place := fmt.Sprintf("%s/%d", a.Topic(), a.Partition())
		who := process + " " + place
		r.mu.Lock()
		if other, ok := r.busy[who]; ok {
			r.t.Errorf("%s: generation %d begins while %d runs", who, a.Generation(), other)
		}
		r.busy[who] = a.Generation()
		r.owned[place] = a
		r.mu.Unlock()
		defer func() {
			r.mu.Lock()
			delete(r.busy, who)
			if r.owned[place] == a {
				delete(r.owned, place)
			}
			r.mu.Unlock()
		}()
		next, _, _, err := a.Committed(ctx)
		if err != nil {
			return err
		}
		next = max(next, 0)
		for ctx.Err() == nil {
			b, err := a.c.Fetch(ctx, a.Topic(), a.Partition(), next, 1<<20, 100*time.Millisecond)
			if ctx.Err() != nil {
				break
			}
			if err != nil {
				if !Transient(err) {
					return err
				}
				wait(ctx, 50*time.Millisecond)
				continue
			}
			r.mu.Lock()
			for _, rec := range b.Records {
				r.seen[fmt.Sprintf("%s@%d", place, rec.Offset)]++
			}
			r.mu.Unlock()
			if next = b.Next; len(b.Records) > 0 {
				if err := a.Commit(ctx, next, ""); err != nil && ctx.Err() == nil {
					return err
				}
			}
		}
		return nil
	}
}

func (r *reader) missing(topics []string, partitions, records int) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, example := 0, ""
	for _, topic := range topics {
		for p := range partitions {
			for o := range records {
				if key := fmt.Sprintf("%s/%d@%d", topic, p, o); r.seen[key] == 0 {
					n, example = n+1, key
				}
			}
		}
	}
	if n > 0 {
		return fmt.Sprintf("%d records not read, for example %s", n, example)
	}
	return ""
}

// owners returns how many partitions each member has, and checks that partition p of all topics is at one member.
func (r *reader) owners(topics []string, partitions int) (map[string]int, string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	counts := make(map[string]int)
	for p := range partitions {
		members := make(map[string]bool)
		for _, topic := range topics {
			a := r.owned[fmt.Sprintf("%s/%d", topic, p)]
			if a == nil {
				return nil, fmt.Sprintf("nobody has %s/%d", topic, p)
			}
			members[a.MemberID()] = true
			counts[a.MemberID()]++
		}
		if len(members) != 1 {
			return nil, fmt.Sprintf("partition %d is at %d members", p, len(members))
		}
	}
	return counts, ""
}

func testGroupHandlesEverything(t *testing.T, k cluster) {
	c := k.client(t)
	topics := []string{makeTopic(t, c, 4, nil), makeTopic(t, c, 4, nil)}
	group := topics[0]
	r := newReader(t)
	total := 0
	add := func() {
		for _, topic := range topics {
			for p := range int32(4) {
				if _, err := c.Append(t.Context(), topic, p, records(50, 100)); err != nil {
					t.Fatal(err)
				}
			}
		}
		total += 50
	}
	type member struct {
		stop context.CancelFunc
		done chan error
	}
	start := func(name string) member {
		ctx, cancel := context.WithCancel(t.Context())
		m := member{cancel, make(chan error, 1)}
		client := k.client(t)
		go func() { m.done <- client.RunGroup(ctx, group, topics, r.handle(name)) }()
		return m
	}
	stop := func(m member) {
		t.Helper()
		m.stop()
		select {
		case err := <-m.done:
			if err != nil {
				t.Fatalf("RunGroup returned %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("RunGroup did not return")
		}
	}
	settled := func(members, most int) {
		t.Helper()
		streamtest.Eventually(t, 30*time.Second, func() string {
			counts, why := r.owners(topics, 4)
			if why != "" {
				return why
			}
			if len(counts) != members {
				return fmt.Sprintf("%d members own partitions, want %d", len(counts), members)
			}
			for m, n := range counts {
				if n > most {
					return fmt.Sprintf("%s owns %d", m, n)
				}
			}
			return r.missing(topics, 4, total)
		})
	}
	add()
	a := start("a")
	settled(1, 8)
	add()
	b := start("b")
	settled(2, 4)
	add()
	stop(a)
	settled(1, 8)
	add()
	a = start("a")
	settled(2, 4)
	stop(a)
	stop(b)
	if got := counterValue(c.metrics.generations, group); got != 0 {
		t.Errorf("a client that is no member counted %v generations", got)
	}
}

func testGroupCommits(t *testing.T, k cluster) {
	c := k.client(t)
	topic := makeTopic(t, c, 2, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := c.RunGroup(ctx, topic, []string{topic}, func(hctx context.Context, a *Assignment) error {
		if a.Partition() != 1 {
			return nil
		}
		defer cancel()
		if a.Topic() != topic || a.GroupID() != topic || a.MemberID() == "" || a.Generation() < 0 {
			t.Errorf("assignment %+v", a)
		}
		if _, _, ok, err := a.Committed(hctx); ok || err != nil {
			t.Errorf("before the first commit: %t, %v", ok, err)
		}
		for _, want := range []struct {
			offset   int64
			metadata string
		}{{0, "end=7;v=1"}, {7, ""}, {7, "ümlaut"}, {3, "back"}} {
			if err := a.Commit(hctx, want.offset, want.metadata); err != nil {
				t.Error(err)
			}
			offset, metadata, ok, err := a.Committed(hctx)
			if offset != want.offset || metadata != want.metadata || !ok || err != nil {
				t.Errorf("committed %+v, read %d %q %t %v", want, offset, metadata, ok, err)
			}
		}
		if got := testGauge(c.metrics.partitions, topic); got != 2 {
			t.Errorf("partitions gauge is %v, want 2", got)
		}
		cancel()
		<-hctx.Done()
		// The generation lives on until the handles have returned, so that they can leave a last word.
		if err := a.Commit(within(t, 5*time.Second), 9, "last"); err != nil {
			t.Errorf("committing while draining: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	all, err := c.committed(t.Context(), topic, map[string][]int{topic: {0, 1}})
	if err != nil {
		t.Fatal(err)
	}
	if p := all[topicPartition{topic, 1}]; p.CommittedOffset != 9 || p.Metadata != "last" {
		t.Errorf("after the end: %+v", p)
	}
	if got := counterValue(c.metrics.commits, topic, "ok"); got != 5 {
		t.Errorf("commits counter is %v, want 5", got)
	}
	if got := counterValue(c.metrics.generations, topic); got != 1 {
		t.Errorf("generations counter is %v, want 1", got)
	}
	if got := testGauge(c.metrics.partitions, topic); got != 0 {
		t.Errorf("partitions gauge is %v after the end", got)
	}
}

func testGroupFencesStaleCommits(t *testing.T, k cluster) {
	c := k.client(t)
	topic := makeTopic(t, c, 1, nil)
	first := make(chan *Assignment, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- c.RunGroup(ctx, topic, []string{topic}, func(ctx context.Context, a *Assignment) error {
			first <- a
			return a.Commit(ctx, 5, "plan")
		})
	}()
	old := <-first
	streamtest.Eventually(t, 10*time.Second, func() string {
		if offset, _, _, err := old.Committed(t.Context()); offset != 5 || err != nil {
			return fmt.Sprintf("committed %d, %v", offset, err)
		}
		return ""
	})
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := old.Commit(t.Context(), 6, "without a group"); !errors.Is(err, ErrFenced) || Transient(err) {
		t.Errorf("after the last member left: %v", err)
	}

	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	err := c.RunGroup(ctx, topic, []string{topic}, func(hctx context.Context, a *Assignment) error {
		defer cancel()
		if err := old.Commit(hctx, 6, "of a dead member"); !errors.Is(err, ErrFenced) {
			t.Errorf("of a member that has left: %v", err)
		}
		stale := *a
		stale.generation--
		if err := stale.Commit(hctx, 6, "of the generation before"); !errors.Is(err, ErrFenced) {
			t.Errorf("of an old generation: %v", err)
		}
		if offset, metadata, _, err := a.Committed(hctx); offset != 5 || metadata != "plan" || err != nil {
			t.Errorf("the refused commits left %d %q, %v", offset, metadata, err)
		}
		return a.Commit(hctx, 7, "")
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := counterValue(c.metrics.commits, topic, "fenced"); got != 3 {
		t.Errorf("fenced counter is %v, want 3", got)
	}
}

// testGroupHandleReturns: what becomes of the group when a handle comes back, by what it returns.
func testGroupHandleReturns(t *testing.T, k cluster) {
	c := k.client(t)
	topic := makeTopic(t, c, 2, nil)

	t.Run("error", func(t *testing.T) {
		broken := errors.New("the state cannot be read")
		began, ended := make(chan struct{}), make(chan struct{})
		err := c.RunGroup(t.Context(), topic+".error", []string{topic}, func(ctx context.Context, a *Assignment) error {
			if a.Partition() == 0 {
				<-began
				return broken
			}
			close(began)
			<-ctx.Done()
			close(ended)
			return errors.New("not of interest any more")
		})
		if !errors.Is(err, broken) {
			t.Errorf("RunGroup returned %v", err)
		}
		select {
		case <-ended:
		default:
			t.Error("RunGroup returned before all handles had")
		}
	})

	t.Run("nil parks", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		before := counterValue(c.metrics.generations, topic+".nil")
		returned := make(chan struct{})
		err := c.RunGroup(ctx, topic+".nil", []string{topic}, func(hctx context.Context, a *Assignment) error {
			if a.Partition() == 0 {
				close(returned) // a second time would panic
				return nil
			}
			<-returned
			// Several heartbeats later the generation must still be alive.
			for range 5 {
				wait(hctx, 100*time.Millisecond)
			}
			if hctx.Err() != nil {
				t.Error("one partition's end ended the generation of the other")
			}
			cancel()
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := counterValue(c.metrics.generations, topic+".nil") - before; got != 1 {
			t.Errorf("%v generations, want 1", got)
		}
	})

	t.Run("fenced joins again", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var mu sync.Mutex
		var generations []int32
		err := c.RunGroup(ctx, topic+".fenced", []string{topic}, func(hctx context.Context, a *Assignment) error {
			if a.Partition() == 1 {
				<-hctx.Done()
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			generations = append(generations, a.Generation())
			if len(generations) == 1 {
				return fmt.Errorf("committing: %w", ErrFenced)
			}
			cancel()
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(generations) != 2 || generations[1] <= generations[0] {
			t.Errorf("generations %v", generations)
		}
	})

	t.Run("context ended before", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := c.RunGroup(ctx, topic+".ended", []string{topic}, func(context.Context, *Assignment) error {
			t.Error("handled")
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
}

func TestAlignedBalancer(t *testing.T) {
	members := []kafka.GroupMember{{ID: "m2", Topics: []string{"a", "b"}}, {ID: "m1", Topics: []string{"a", "b"}}}
	// As a broker may list them.
	partitions := []kafka.Partition{{Topic: "b", ID: 2}, {Topic: "a", ID: 3}, {Topic: "a", ID: 1}, {Topic: "b", ID: 0}, {Topic: "a", ID: 2}, {Topic: "b", ID: 1}, {Topic: "b", ID: 3}, {Topic: "a", ID: 0}}
	b := &alignedBalancer{}
	want := kafka.GroupMemberAssignments{"m1": {"a": {0, 1}, "b": {0, 1}}, "m2": {"a": {2, 3}, "b": {2, 3}}}
	if diff := cmp.Diff(want, b.AssignGroups(members, partitions)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if b.incomplete.Load() {
		t.Error("incomplete with all topics known")
	}
	b.AssignGroups(members, partitions[:1])
	if !b.incomplete.Load() {
		t.Error("not incomplete with topic a unknown")
	}
}
