package stream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// PartitionLag is how far a group is behind the head of one partition.
type PartitionLag struct {
	Group, Topic string
	Partition    int32
	Committed    int64 // the next offset to process, -1 when the group never committed
	Start, End   int64 // of the partition's log
	Lag          int64 // records not yet processed; all there are when nothing was committed
	// BehindSince is the time of the first record not yet processed; zero when there is none. Its writer's clock set it.
	BehindSince time.Time
	Metadata    string // as committed
}

// Lag returns the state of a group on all partitions of topics, in order of topics and partitions. Partitions that
// expired past the committed offset count from their first record.
func (c *Client) Lag(ctx context.Context, groupID string, topics []string) ([]PartitionLag, error) {
	var list []PartitionLag
	wanted := make(map[string][]int)
	for _, topic := range topics {
		n, err := c.PartitionCount(ctx, topic)
		if err != nil {
			return nil, fmt.Errorf("reading the lag of %s: %w", groupID, err)
		}
		for p := range n {
			wanted[topic] = append(wanted[topic], p)
			list = append(list, PartitionLag{Group: groupID, Topic: topic, Partition: int32(p), Committed: -1})
		}
	}
	committed, err := c.committed(ctx, groupID, wanted)
	if err != nil {
		return nil, fmt.Errorf("reading the lag of %s: %w", groupID, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 4) // kafka-go makes a connection for every request in flight
	for i := range list {
		l := &list[i]
		if p, ok := committed[topicPartition{l.Topic, l.Partition}]; ok && p.CommittedOffset >= 0 {
			l.Committed, l.Metadata = p.CommittedOffset, p.Metadata
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := c.measure(ctx, l); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("reading the lag of %s: %w", groupID, context.Cause(ctx))
	}
	return list, nil
}

func (c *Client) measure(ctx context.Context, l *PartitionLag) (err error) {
	if l.Start, l.End, err = c.Offsets(ctx, l.Topic, l.Partition); err != nil {
		return err
	}
	next := max(l.Committed, l.Start)
	l.Lag = max(l.End-next, 0)
	if l.Lag == 0 {
		return nil
	}
	b, err := c.Fetch(ctx, l.Topic, l.Partition, next, 1, 0)
	switch {
	case errors.Is(err, ErrOffsetOutOfRange):
		// Retention has moved on since; the numbers above are still true of a moment ago.
	case err != nil:
		return err
	case len(b.Records) > 0:
		l.BehindSince = b.Records[0].Time
	}
	return nil
}
