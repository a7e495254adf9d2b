package replay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/callscope/callscope/internal/stream"
)

const fetchBytes = 4 << 20

// Topic is a Source that reads the raw topic with requests of its own, outside of every consumer group.
type Topic struct {
	Client *stream.Client
}

func (t Topic) Name() string { return stream.TopicRaw }

func (t Topic) Partitions(ctx context.Context) (int, error) {
	return t.Client.PartitionCount(ctx, stream.TopicRaw)
}

func (t Topic) Range(ctx context.Context, partition int32) (int64, int64, error) {
	return t.Client.Offsets(ctx, stream.TopicRaw, partition)
}

// Read gives the records from offset on.
func (t Topic) Read(ctx context.Context, partition int32, offset int64) ([]stream.Record, error) {
	return readTopic(ctx, t.Client, stream.TopicRaw, partition, offset, fetchBytes)
}

// patience is how often a fetch that failed is repeated, and how long it waits in between.
const (
	attempts = 10
	backoff  = 500 * time.Millisecond
)

func readTopic(ctx context.Context, client *stream.Client, topic string, partition int32, offset int64, maxBytes int) ([]stream.Record, error) {
	for attempt := 1; ; attempt++ {
		batch, err := client.Fetch(ctx, topic, partition, offset, maxBytes, time.Second)
		switch {
		case errors.Is(err, stream.ErrOffsetOutOfRange):
			return nil, fmt.Errorf("%w: offset %d of %s/%d expired while it was being read", ErrRetention, offset, topic, partition)
		case err == nil && len(batch.Records) > 0 && batch.Records[0].Offset == offset:
			return batch.Records, nil
		case err == nil && len(batch.Records) > 0:
			return nil, fmt.Errorf("%s/%d has no record at offset %d, the next is at %d", topic, partition, offset, batch.Records[0].Offset)
		case err == nil:
			err = fmt.Errorf("%s/%d gives no record at offset %d, which ends at %d", topic, partition, offset, batch.End)
		case !stream.Transient(err):
			return nil, err
		}
		if attempt == attempts || ctx.Err() != nil {
			return nil, err
		}
		select {
		case <-time.After(backoff):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Seek finds the offset by halves: records of one partition are in the order of their writers' times, up to differences
// between clocks, which the caller allows for.
func (t Topic) Seek(ctx context.Context, partition int32, at time.Time) (int64, error) {
	low, high, err := t.Range(ctx, partition)
	if err != nil {
		return 0, err
	}
	for low < high {
		middle := low + (high-low)/2
		records, err := readTopic(ctx, t.Client, stream.TopicRaw, partition, middle, 1)
		if err != nil {
			return 0, err
		}
		if records[0].Time.Before(at) {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return low, nil
}
