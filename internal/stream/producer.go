package stream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
)

// PartitionOf returns the partition of a key as Kafka's Java client chooses it: murmur2, positive, modulo partitions.
func PartitionOf(key []byte, partitions int) int32 {
	ids := make([]int, partitions)
	for i := range ids {
		ids[i] = i
	}
	// Consistent, because the default sends a nil key to a random partition.
	return int32(kafka.Murmur2Balancer{Consistent: true}.Balance(kafka.Message{Key: key}, ids...))
}

// Producer writes single records of many goroutines to one topic, in batches: while a request is on its way to a
// broker, the records for that broker's partitions collect and go with the next one. So a lone record waits for nobody,
// and under load a request carries many. Memory is bounded by the callers, who wait.
type Producer struct {
	c     *Client
	topic string

	mu     sync.Mutex
	lanes  map[int]*lane // by the broker that leads the partitions
	closed bool
	wg     sync.WaitGroup

	layout atomic.Pointer[layout]
}

// layout is who leads each partition of the topic.
type layout struct{ leaders []int }

// NewProducer does no I/O. Several producers may be open at a time; one is enough for any number of goroutines.
func (c *Client) NewProducer(topic string) *Producer {
	return &Producer{c: c, topic: topic, lanes: make(map[int]*lane)}
}

// Produce returns nil when the record is on all in-sync replicas. It repeats transient failures until ctx ends, waiting
// in between (capped, with jitter); every repetition may leave one more copy in the log. Errors: ErrTooLarge at once,
// other permanent refusals at once, ErrClosed, or ctx's error with the last failure. After ctx's error the outcome is
// unknown, and key and value must not be reused, because a request that carries them may still be on its way.
func (p *Producer) Produce(ctx context.Context, key, value []byte) error {
	rec := Record{Key: key, Value: value}
	if n, limit := recordBytes(&rec), batchLimit(p.topic); n > limit {
		return fmt.Errorf("producing to %s: %w: %d bytes, at most %d", p.topic, ErrTooLarge, n-recordOverhead, limit-recordOverhead)
	}
	for attempt := 0; ; attempt++ {
		err := p.attempt(ctx, rec)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("producing to %s: %w", p.topic, err)
		case !Transient(err):
			return fmt.Errorf("producing to %s: %w", p.topic, err)
		}
		p.c.log.Debug("repeating a produce", "topic", p.topic, "attempt", attempt+1, "error", err)
		if !backoff(ctx, attempt) {
			return fmt.Errorf("producing to %s: %w; last failure: %w", p.topic, context.Cause(ctx), err)
		}
		p.c.metrics.retries.WithLabelValues(p.topic).Inc()
	}
}

func (p *Producer) attempt(ctx context.Context, rec Record) error {
	l, err := p.currentLayout(ctx)
	if err != nil {
		return err
	}
	item := &pending{rec: rec, partition: PartitionOf(rec.Key, len(l.leaders)), done: make(chan error, 1)}
	item.rec.Time = time.Now()
	ln, err := p.lane(l.leaders[item.partition])
	if err != nil {
		return err
	}
	ln.put(item)
	select {
	case err := <-item.done:
		if err != nil {
			p.layout.CompareAndSwap(l, nil) // the leader may have moved
		}
		return err
	case <-ctx.Done():
		item.state.CompareAndSwap(waiting, abandoned)
		return context.Cause(ctx)
	}
}

func (p *Producer) currentLayout(ctx context.Context) (*layout, error) {
	if l := p.layout.Load(); l != nil {
		return l, nil
	}
	t, err := p.c.topicMetadata(ctx, p.topic)
	if err != nil {
		return nil, err
	}
	l := &layout{leaders: make([]int, len(t.Partitions))}
	for _, part := range t.Partitions {
		if part.ID < 0 || part.ID >= len(l.leaders) {
			return nil, fmt.Errorf("reading the layout of %s: partition %d of %d", p.topic, part.ID, len(l.leaders))
		}
		l.leaders[part.ID] = part.Leader.ID
		if part.Leader.Host == "" {
			l.leaders[part.ID] = -1 // no leader now: a lane of its own, which fails and is asked again, alone
		}
	}
	p.layout.Store(l)
	return l, nil
}

func (p *Producer) lane(broker int) (*lane, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrClosed
	}
	ln := p.lanes[broker]
	if ln == nil {
		ln = &lane{p: p}
		ln.ready.L = &ln.mu
		p.lanes[broker] = ln
		p.wg.Go(ln.run)
	}
	return ln, nil
}

// Close sends what is waiting and returns when all of it is answered, at most a request timeout or two later. Produce
// calls made afterwards, and those between two attempts, return ErrClosed.
func (p *Producer) Close() error {
	p.mu.Lock()
	p.closed = true
	for _, ln := range p.lanes {
		ln.close()
	}
	p.mu.Unlock()
	p.wg.Wait()
	return nil
}

const (
	waiting int32 = iota
	taken
	abandoned
)

// pending is a record whose caller waits. Its state decides between the lane that takes it and the caller that leaves.
type pending struct {
	rec       Record
	partition int32
	state     atomic.Int32
	done      chan error // one answer, never blocks
}

// lane carries the records for the partitions that one broker leads, one request at a time, so that a slow or dead
// broker holds up only its own.
type lane struct {
	p      *Producer
	mu     sync.Mutex
	ready  sync.Cond
	queue  []*pending
	closed bool
}

func (ln *lane) put(item *pending) {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	if ln.closed {
		item.done <- ErrClosed
		return
	}
	ln.queue = append(ln.queue, item)
	ln.ready.Signal()
}

func (ln *lane) close() {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	ln.closed = true
	ln.ready.Signal()
}

// requestSpacing is the shortest time between the beginnings of two requests of a lane. A request costs as much as ten
// records of 8 KB, so at rates of thousands a second it pays to let a few collect; a record after a pause still goes at once.
const requestSpacing = 2 * time.Millisecond

func (ln *lane) run() {
	for {
		items, open := ln.take()
		began := time.Now()
		if len(items) > 0 {
			ln.send(items)
		}
		if !open {
			return
		}
		wait(context.Background(), requestSpacing-time.Since(began))
	}
}

// maxRequestBytes bounds one request over all partitions.
const maxRequestBytes = 8 << 20

// take waits for records and returns those for the next request, grouped by partition: at most one batch for each. What
// does not fit stays at the head of the queue. It returns open = false after the last ones of a closed lane.
func (ln *lane) take() (byPartition map[int32][]*pending, open bool) {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	for len(ln.queue) == 0 && !ln.closed {
		ln.ready.Wait()
	}
	byPartition = make(map[int32][]*pending)
	sizes := make(map[int32]int)
	limit, total := batchLimit(ln.p.topic), 0
	rest := ln.queue[:0]
	for _, item := range ln.queue {
		size := recordBytes(&item.rec)
		if total+size > maxRequestBytes || sizes[item.partition]+size > limit {
			rest = append(rest, item)
			continue
		}
		if !item.state.CompareAndSwap(waiting, taken) {
			continue // the caller gave up: nobody may be told that it was written, so it is not
		}
		sizes[item.partition] += size
		total += size
		byPartition[item.partition] = append(byPartition[item.partition], item)
	}
	clear(ln.queue[len(rest):])
	ln.queue = rest
	return byPartition, !ln.closed || len(rest) > 0
}

func (ln *lane) send(byPartition map[int32][]*pending) {
	batches := make([]partitionBatch, 0, len(byPartition))
	for partition, items := range byPartition {
		recs := make([]Record, len(items))
		for i, item := range items {
			recs[i] = item.rec
		}
		batches = append(batches, partitionBatch{partition: partition, recs: recs})
	}
	// The request serves many callers, so none of their contexts may end it.
	answers, err := ln.p.c.produceMany(context.Background(), ln.p.topic, batches)
	for i, b := range batches {
		items := byPartition[b.partition]
		if err != nil {
			deliver(items, err)
			continue
		}
		ln.settle(items, answers[i])
	}
}

// settle tells the callers of one batch. Kafka refuses a batch as a whole; where single records are the reason, each is
// sent by itself, so that a bad one does not take the others with it.
func (ln *lane) settle(items []*pending, a partitionAnswer) {
	if len(items) == 1 || len(a.recordErr) == 0 && !errors.Is(a.err, ErrTooLarge) {
		deliver(items, a.err)
		return
	}
	for _, item := range items {
		_, err := ln.p.c.produce(context.Background(), ln.p.topic, item.partition, []Record{item.rec})
		item.done <- err
	}
}

func deliver(items []*pending, err error) {
	for _, item := range items {
		item.done <- err
	}
}
