package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
)

// joinBackoff is the pause after a failed attempt to join a group.
const joinBackoff = 500 * time.Millisecond

// Assignment is one partition of one topic, owned by this process for one generation of the group.
type Assignment struct {
	c          *Client
	groupID    string
	memberID   string
	generation int32
	topic      string
	partition  int32
}

func (a *Assignment) Topic() string     { return a.topic }
func (a *Assignment) Partition() int32  { return a.partition }
func (a *Assignment) GroupID() string   { return a.groupID }
func (a *Assignment) MemberID() string  { return a.memberID }
func (a *Assignment) Generation() int32 { return a.generation }

// Commit stores an offset with metadata for the group, on behalf of this generation. It repeats transient failures until
// ctx ends. ErrFenced says that the group refused, because this generation is over: the caller no longer owns the
// partition and must drop it. A commit that fails otherwise may or may not have been stored.
func (a *Assignment) Commit(ctx context.Context, offset int64, metadata string) error {
	if err := a.c.open(); err != nil {
		return err
	}
	err := retry(ctx, func() error {
		err := a.commitOnce(ctx, offset, metadata)
		if err != nil {
			a.c.metrics.failures.WithLabelValues("commit").Inc()
		}
		return err
	})
	outcome := "ok"
	switch {
	case errors.Is(err, ErrFenced):
		outcome = "fenced"
	case err != nil:
		outcome = "failed"
	}
	a.c.metrics.commits.WithLabelValues(a.groupID, outcome).Inc()
	if err != nil {
		return fmt.Errorf("committing %s/%d at %d for %s: %w", a.topic, a.partition, offset, a.groupID, err)
	}
	return nil
}

func (a *Assignment) commitOnce(ctx context.Context, offset int64, metadata string) error {
	res, err := a.c.api(a.c.cfg.RequestTimeout).OffsetCommit(ctx, &kafka.OffsetCommitRequest{
		GroupID: a.groupID, GenerationID: int(a.generation), MemberID: a.memberID,
		Topics: map[string][]kafka.OffsetCommit{a.topic: {{Partition: int(a.partition), Offset: offset, Metadata: metadata}}},
	})
	if err != nil {
		return translate(err)
	}
	for _, p := range res.Topics[a.topic] {
		if p.Partition == int(a.partition) {
			return translate(p.Error)
		}
	}
	return errors.New("the broker's answer does not mention the partition")
}

// Committed returns what the group stored last for this partition; ok is false when it never did. It repeats transient
// failures until ctx ends.
func (a *Assignment) Committed(ctx context.Context) (offset int64, metadata string, ok bool, err error) {
	err = retry(ctx, func() error {
		all, err := a.c.committed(ctx, a.groupID, map[string][]int{a.topic: {int(a.partition)}})
		if err != nil {
			return err
		}
		offset, metadata, ok = -1, "", false
		if p, found := all[topicPartition{a.topic, a.partition}]; found && p.CommittedOffset >= 0 {
			offset, metadata, ok = p.CommittedOffset, p.Metadata, true
		}
		return nil
	})
	return offset, metadata, ok, err
}

type topicPartition struct {
	topic     string
	partition int32
}

func (c *Client) committed(ctx context.Context, groupID string, topics map[string][]int) (_ map[topicPartition]kafka.OffsetFetchPartition, err error) {
	defer func() {
		if err != nil {
			c.metrics.failures.WithLabelValues("committed").Inc()
			err = fmt.Errorf("reading the committed offsets of %s: %w", groupID, err)
		}
	}()
	if err := c.open(); err != nil {
		return nil, err
	}
	res, err := c.api(c.cfg.RequestTimeout).OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: groupID, Topics: topics})
	if err != nil {
		return nil, err
	}
	all := make(map[topicPartition]kafka.OffsetFetchPartition)
	if errors.Is(res.Error, kafka.GroupIdNotFound) {
		return all, nil // nobody has joined it yet, so nothing is committed
	}
	if res.Error != nil {
		return nil, res.Error
	}
	for topic, parts := range res.Topics {
		for _, p := range parts {
			if errors.Is(p.Error, kafka.GroupIdNotFound) {
				continue
			}
			if p.Error != nil {
				return nil, fmt.Errorf("%s/%d: %w", topic, p.Partition, p.Error)
			}
			all[topicPartition{topic, int32(p.Partition)}] = p
		}
	}
	return all, nil
}

// RunGroup is a member of a consumer group until ctx ends. Partition p of all topics goes to the same member. In every
// generation of the group it runs handle once for each partition assigned, in a goroutine of its own, with a context
// that ends when the generation ends or ctx does; two generations never overlap in one process.
//
// When its context ends, handle must return soon: kafka-go sends no heartbeats between two generations, so a handle that
// takes longer than the session timeout costs the membership and stops the whole group meanwhile. Until it has returned,
// commits of its generation are normally still accepted. What handle returns:
//
//   - nil while its context lives: the partition is parked until the generation ends.
//   - an error that is ErrFenced: the generation is given up and the group joined again.
//   - any other error while its context lives: RunGroup ends all partitions and returns it.
//   - anything after its context ended: ignored.
//
// RunGroup returns nil when ctx has ended and all handles have returned. It repeats transient trouble itself; errors are
// what a person must change, such as missing rights or a session timeout that the brokers refuse.
func (c *Client) RunGroup(ctx context.Context, groupID string, topics []string, handle func(ctx context.Context, a *Assignment) error) error {
	if err := c.open(); err != nil {
		return err
	}
	conns := &connTracker{}
	dialer := c.dialer()
	dialer.DialFunc = conns.dial
	balancer := &alignedBalancer{}
	group, err := kafka.NewConsumerGroup(kafka.ConsumerGroupConfig{
		ID: groupID, Brokers: c.cfg.Brokers, Topics: topics, Dialer: dialer,
		GroupBalancers:    []kafka.GroupBalancer{balancer},
		HeartbeatInterval: c.cfg.HeartbeatInterval,
		SessionTimeout:    c.cfg.SessionTimeout,
		RebalanceTimeout:  c.cfg.RebalanceTimeout,
		JoinGroupBackoff:  joinBackoff,
		// A heartbeat that hangs must end the generation here before the brokers give the partitions to others.
		Timeout: min(5*time.Second, c.cfg.SessionTimeout/2),
	})
	if err != nil {
		return fmt.Errorf("joining group %s: %w", groupID, err)
	}
	// The library asks for the topics in a way that lets a broker create missing ones by itself, with settings of its
	// own. Services have called CheckTopics before, so there are none.
	run, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	g := &groupRun{c: c, id: groupID, ctx: run, stop: stop, handle: handle}
	err = g.loop(group, balancer)
	g.handles.Wait()
	g.leave(group, conns)
	c.outside.Delete(groupID)
	c.metrics.partitions.WithLabelValues(groupID).Set(0)
	if fatal := g.fatal.Load(); fatal != nil {
		return *fatal
	}
	return err
}

// Outside returns why this process cannot join a group that RunGroup runs, and nil while it is a member, or joins for the
// first time or after a rebalance. Nothing of the group's topics is handled here until it is nil again.
func (c *Client) Outside(groupID string) error {
	if err, ok := c.outside.Load(groupID); ok {
		return fmt.Errorf("not in the group %s: joining fails: %w", groupID, err.(error))
	}
	return nil
}

// groupRun is one call of RunGroup.
type groupRun struct {
	c       *Client
	id      string
	ctx     context.Context
	stop    context.CancelCauseFunc
	handle  func(context.Context, *Assignment) error
	handles sync.WaitGroup
	fatal   atomic.Pointer[error]
	// member is the id of the last generation, empty when it is known to be gone.
	member string
}

func (g *groupRun) loop(group *kafka.ConsumerGroup, balancer *alignedBalancer) error {
	log := g.c.log.With("group", g.id)
	var logged time.Time
	forgotten := func() {} // ends the goroutine that takes a former member out of the group
	defer func() { forgotten() }()
	for {
		gen, err := group.Next(g.ctx)
		switch {
		case g.ctx.Err() != nil:
			// A generation that arrived at this very moment has no functions yet and ends with the group.
			return nil
		case err != nil:
			g.c.metrics.groupErrors.WithLabelValues(g.id).Inc()
			if joinRefused(err) {
				return fmt.Errorf("joining group %s: %w", g.id, err)
			}
			if time.Since(logged) > 10*time.Second {
				logged = time.Now()
				log.Warn("joining the group failed, trying again", "error", err)
			}
			if !errors.Is(err, kafka.RebalanceInProgress) {
				g.c.outside.Store(g.id, err)
				g.c.metrics.partitions.WithLabelValues(g.id).Set(0)
				if g.member != "" {
					forgotten = g.forget(g.member)
					g.member = ""
				}
			}
			continue // kafka-go waits before its next attempt
		}
		g.c.outside.Delete(g.id)
		forgotten()
		forgotten = func() {}
		logged = time.Time{}
		g.member = gen.MemberID
		g.c.metrics.generations.WithLabelValues(g.id).Inc()
		if balancer.incomplete.Swap(false) {
			// A broker that restarts may not know its topics for a moment; kafka-go then assigns nothing to anybody and
			// nobody would ever ask again.
			log.Warn("assigned without knowing all topics, joining again")
			gen.Start(func(ctx context.Context) { wait(ctx, joinBackoff) })
			continue
		}
		g.start(gen)
	}
}

// joinRefused tells what a person must change from trouble that passes.
func joinRefused(err error) bool {
	for _, code := range []kafka.Error{kafka.InconsistentGroupProtocol, kafka.InvalidGroupId, kafka.InvalidSessionTimeout,
		kafka.TopicAuthorizationFailed, kafka.GroupAuthorizationFailed} {
		if errors.Is(err, code) {
			return true
		}
	}
	return false
}

func (g *groupRun) start(gen *kafka.Generation) {
	var list []*Assignment
	for topic, parts := range gen.Assignments {
		for _, p := range parts {
			list = append(list, &Assignment{
				c: g.c, groupID: g.id, memberID: gen.MemberID, generation: gen.ID, topic: topic, partition: int32(p.ID),
			})
		}
	}
	slices.SortFunc(list, func(a, b *Assignment) int {
		return cmp.Or(cmp.Compare(a.partition, b.partition), cmp.Compare(a.topic, b.topic))
	})
	g.c.metrics.partitions.WithLabelValues(g.id).Set(float64(len(list)))
	g.c.log.Info("joined the group", "group", g.id, "generation", gen.ID, "member_id", gen.MemberID, "partitions", len(list))
	for _, a := range list {
		g.handles.Add(1)
		// kafka-go ends the generation for all partitions when the first function returns.
		gen.Start(func(gctx context.Context) {
			if g.runOne(gctx, a) {
				<-gctx.Done()
			}
		})
	}
}

// runOne runs handle for one partition and reports whether the generation may go on.
func (g *groupRun) runOne(gctx context.Context, a *Assignment) bool {
	defer g.handles.Done()
	ctx, cancel := context.WithCancel(g.ctx)
	defer cancel()
	defer context.AfterFunc(gctx, cancel)()
	if gctx.Err() != nil || ctx.Err() != nil {
		return true
	}
	err := g.handle(ctx, a)
	switch {
	case err == nil, ctx.Err() != nil, gctx.Err() != nil:
		return true
	case errors.Is(err, ErrFenced):
		g.c.log.Warn("a partition was fenced, joining the group again", "group", g.id, "topic", a.topic, "partition", a.partition, "error", err)
		return false
	}
	err = fmt.Errorf("handling %s/%d: %w", a.topic, a.partition, err)
	g.fatal.CompareAndSwap(nil, &err)
	g.stop(err)
	return true
}

// leave ends the membership. kafka-go finishes a join that is under way first, which can take the whole rebalance
// timeout; after half a session its connections are cut, and the member is taken out of the group from here.
func (g *groupRun) leave(group *kafka.ConsumerGroup, conns *connTracker) {
	left := make(chan struct{})
	go func() {
		defer close(left)
		_ = group.Close() // always nil
	}()
	timer := time.NewTimer(g.c.cfg.SessionTimeout / 2)
	defer timer.Stop()
	select {
	case <-left:
		return
	case <-timer.C:
	}
	conns.close()
	<-left
	if g.member == "" {
		return
	}
	if err := g.c.removeMember(context.Background(), g.id, g.member); err != nil {
		g.c.log.Warn("leaving the group failed; the brokers will notice after the session timeout", "group", g.id, "error", err)
	}
}

// forget takes a former member of this process out of the group, in the background until it succeeds or the returned
// function is called. kafka-go gives up its member id when a join fails, which is when the broker restarts, and comes
// back as a new member; the group would then stand still until the old one's session has expired.
func (g *groupRun) forget(member string) (stop func()) {
	ctx, cancel := context.WithCancel(g.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for g.c.removeMember(ctx, g.id, member) != nil && ctx.Err() == nil {
			wait(ctx, joinBackoff)
		}
	}()
	return func() { cancel(); <-done }
}

// removeMember makes a member leave. A member that is unknown has left.
func (c *Client) removeMember(ctx context.Context, groupID, member string) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	res, err := c.api(dialTimeout).LeaveGroup(ctx, &kafka.LeaveGroupRequest{GroupID: groupID, Members: []kafka.LeaveGroupRequestMember{{ID: member}}})
	if err == nil {
		err = res.Error
	}
	if err == nil && len(res.Members) > 0 {
		err = res.Members[0].Error
	}
	if errors.Is(err, kafka.UnknownMemberId) {
		return nil
	}
	return err
}

// alignedBalancer is kafka-go's range assignment with the partitions in order, so that partition p of topics with equal
// counts goes to the same member whatever order the brokers list them in. It notes when a topic was unknown.
type alignedBalancer struct {
	kafka.RangeGroupBalancer
	incomplete atomic.Bool
}

func (b *alignedBalancer) AssignGroups(members []kafka.GroupMember, partitions []kafka.Partition) kafka.GroupMemberAssignments {
	partitions = slices.Clone(partitions)
	slices.SortFunc(partitions, func(x, y kafka.Partition) int {
		return cmp.Or(cmp.Compare(x.Topic, y.Topic), cmp.Compare(x.ID, y.ID))
	})
	for _, m := range members {
		for _, topic := range m.Topics {
			if !slices.ContainsFunc(partitions, func(p kafka.Partition) bool { return p.Topic == topic }) {
				b.incomplete.Store(true)
			}
		}
	}
	return b.RangeGroupBalancer.AssignGroups(members, partitions)
}

// connTracker lets a group's connections be cut from outside: kafka-go's group takes no context.
type connTracker struct {
	mu     sync.Mutex
	conns  map[*trackedConn]struct{}
	closed bool
}

type trackedConn struct {
	net.Conn
	tracker *connTracker
}

func (t *connTracker) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		_ = conn.Close() // never used
		return nil, net.ErrClosed
	}
	tc := &trackedConn{Conn: conn, tracker: t}
	if t.conns == nil {
		t.conns = make(map[*trackedConn]struct{})
	}
	t.conns[tc] = struct{}{}
	return tc, nil
}

func (t *connTracker) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for c := range t.conns {
		_ = c.Conn.Close() // whoever uses it learns
	}
}

func (c *trackedConn) Close() error {
	c.tracker.mu.Lock()
	delete(c.tracker.conns, c)
	c.tracker.mu.Unlock()
	return c.Conn.Close()
}

// wait returns after d or when ctx ends.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
