package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// Batch is what one Fetch read.
type Batch struct {
	Records []Record // in order of offsets; compacted topics have holes between them
	// Start is the first offset of the log; what was before it has expired. End is the high watermark, the offset that
	// the next record will get; nobody writes transactions, so it is the last stable offset too.
	Start, End int64
	// Next is the offset to fetch next: behind the last record, or behind a stretch in which compaction left nothing.
	Next int64
}

// probeBytes is more than any batch, so a read of that size cannot end inside the first one that holds records.
const probeBytes = 16 << 20

// Fetch reads records of one partition from offset on, up to about maxBytes (always at least one batch of the log, which
// may be 1 MiB). It waits up to maxWait while there are none and then returns an empty batch, also where the rest of a
// compacted partition is empty although End lies ahead: continue at Batch.Next.
//
// The records' bytes belong to the caller; those of one batch share memory, so copy what outlives it. Errors:
// ErrOffsetOutOfRange, with Start and End of the batch filled in where known (-1 otherwise); others are Transient or
// not. Nothing is repeated inside.
func (c *Client) Fetch(ctx context.Context, topic string, partition int32, offset int64, maxBytes int, maxWait time.Duration) (b Batch, err error) {
	defer func() {
		if err != nil {
			c.metrics.failures.WithLabelValues("fetch").Inc()
			err = fmt.Errorf("fetching %s/%d from offset %d: %w", topic, partition, offset, err)
		}
	}()
	b = Batch{Start: -1, End: -1, Next: offset}
	if err := c.open(); err != nil {
		return b, err
	}
	if offset < 0 {
		return c.outOfRange(ctx, topic, partition, b)
	}
	deadline := time.Now().Add(maxWait)
	size := maxBytes
	for {
		page, err := c.fetchPage(ctx, topic, partition, b.Next, size, max(time.Until(deadline), 0))
		if err != nil {
			if errors.Is(err, ErrOffsetOutOfRange) {
				return c.outOfRange(ctx, topic, partition, b)
			}
			return b, err
		}
		b.Start, b.End = page.start, page.end
		switch {
		case len(page.records) > 0:
			b.Records = page.records
			b.Next = page.records[len(page.records)-1].Offset + 1
			c.metrics.fetched.WithLabelValues(topic).Add(float64(len(b.Records)))
			return b, nil
		case page.end <= b.Next:
			// Nothing there yet, and the broker has waited.
			return b, nil
		case page.lastBatch >= b.Next:
			// Batches without records for us (compacted empty, or control records): kafka-go hides how far they reach,
			// but the last one begins here.
			b.Next = page.lastBatch + 1
		case size < probeBytes:
			// Less than nothing to show although the end is ahead: either all of it has been compacted away, or the
			// first batch with records did not fit behind emptied ones.
			size = probeBytes
		default:
			b.Next = page.end
		}
		if ctx.Err() != nil {
			return b, context.Cause(ctx)
		}
	}
}

// outOfRange completes the error with the range that would be right.
func (c *Client) outOfRange(ctx context.Context, topic string, partition int32, b Batch) (Batch, error) {
	start, end, err := c.Offsets(ctx, topic, partition)
	if err != nil {
		return b, fmt.Errorf("%w; and reading the range: %w", ErrOffsetOutOfRange, err)
	}
	b.Start, b.End = start, end
	return b, fmt.Errorf("%w: the partition has %d to %d", ErrOffsetOutOfRange, start, end)
}

type page struct {
	records    []Record
	start, end int64
	lastBatch  int64 // base offset of the last batch in the answer, -1 without one
}

func (c *Client) fetchPage(ctx context.Context, topic string, partition int32, offset int64, maxBytes int, wait time.Duration) (page, error) {
	// kafka-go takes 0 for its default of 500 ms, counts in milliseconds, and lowers the wait to half its timeout.
	wait = max(wait+time.Millisecond-1, time.Millisecond).Truncate(time.Millisecond)
	res, err := c.api(2*wait+c.cfg.RequestTimeout).Fetch(ctx, &kafka.FetchRequest{
		Topic: topic, Partition: int(partition), Offset: offset,
		MinBytes: 1, MaxBytes: int64(min(maxBytes, math.MaxInt32)), MaxWait: wait,
	})
	if err != nil {
		return page{}, err
	}
	p := page{start: res.LogStartOffset, end: res.HighWatermark, lastBatch: -1}
	if stream, ok := res.Records.(*protocol.RecordStream); ok && len(stream.Records) > 0 {
		if last, ok := stream.Records[len(stream.Records)-1].(interface{ Offset() int64 }); ok {
			p.lastBatch = last.Offset()
		}
	}
	if p.records, err = readRecords(res.Records, topic, partition, offset); err != nil {
		return page{}, err
	}
	return p, translate(res.Error)
}

// readRecords copies the records from offset on out of kafka-go's pages, which it releases. All keys and values of one
// call go into one allocation.
func readRecords(r kafka.RecordReader, topic string, partition int32, offset int64) ([]Record, error) {
	type open struct{ key, value kafka.Bytes }
	var (
		recs  []Record
		data  []open
		total int
		fail  error
	)
	for {
		rec, err := r.ReadRecord()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			fail = fmt.Errorf("reading records: %w", err)
			break
		}
		data = append(data, open{rec.Key, rec.Value})
		out := Record{Topic: topic, Partition: partition, Offset: rec.Offset, Time: rec.Time}
		for _, h := range rec.Headers {
			out.Headers = append(out.Headers, Header{Key: h.Key, Value: h.Value})
		}
		recs = append(recs, out)
		if rec.Offset >= offset {
			total += bytesLen(rec.Key) + bytesLen(rec.Value)
		}
	}
	slab := make([]byte, 0, total)
	read := func(b kafka.Bytes, wanted bool) []byte {
		if b == nil {
			return nil
		}
		defer b.Close()
		if !wanted || fail != nil {
			return nil
		}
		n := len(slab)
		slab = slab[:n+b.Len()]
		if _, err := io.ReadFull(b, slab[n:]); err != nil {
			fail = fmt.Errorf("reading records: %w", err)
		}
		return slab[n:len(slab):len(slab)]
	}
	kept := recs[:0]
	for i, rec := range recs {
		// A batch is sent whole, so it may begin with records before the offset asked for.
		wanted := rec.Offset >= offset
		rec.Key = read(data[i].key, wanted)
		rec.Value = read(data[i].value, wanted)
		if wanted {
			kept = append(kept, rec)
		}
	}
	if fail != nil {
		return nil, fail
	}
	return kept, nil
}

func bytesLen(b kafka.Bytes) int {
	if b == nil {
		return 0
	}
	return b.Len()
}

// Offsets returns the first offset of a partition's log and the offset that its next record will get.
func (c *Client) Offsets(ctx context.Context, topic string, partition int32) (start, end int64, err error) {
	defer func() {
		if err != nil {
			c.metrics.failures.WithLabelValues("offsets").Inc()
			err = fmt.Errorf("reading the offsets of %s/%d: %w", topic, partition, err)
		}
	}()
	if err := c.open(); err != nil {
		return -1, -1, err
	}
	res, err := c.api(c.cfg.RequestTimeout).ListOffsets(ctx, &kafka.ListOffsetsRequest{
		Topics: map[string][]kafka.OffsetRequest{topic: {kafka.FirstOffsetOf(int(partition)), kafka.LastOffsetOf(int(partition))}},
	})
	if err != nil {
		return -1, -1, err
	}
	for _, p := range res.Topics[topic] {
		if p.Partition != int(partition) {
			continue
		}
		if p.Error != nil {
			return -1, -1, p.Error
		}
		return p.FirstOffset, p.LastOffset, nil
	}
	return -1, -1, kafka.UnknownTopicOrPartition
}
