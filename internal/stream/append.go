package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	produceapi "github.com/segmentio/kafka-go/protocol/produce"
)

const (
	// maxBatchBytes is Kafka's default max.message.bytes: the limit of one batch with its 61 bytes of frame.
	maxBatchBytes = 1048588
	// rejectedBatchBytes is the limit of the reject topic: a record of the full size with its headers must fit.
	rejectedBatchBytes = maxBatchBytes + 64<<10

	batchOverhead  = 61
	recordOverhead = 36 // attributes, deltas and lengths of a record, as varints at their longest
	headerOverhead = 10

	// MaxRecordBytes is what key, value and headers of one record may have together (names counted, and 10 bytes a
	// header). Records above it are refused with ErrTooLarge without being sent.
	MaxRecordBytes = maxBatchBytes - batchOverhead - recordOverhead
)

// recordBytes is an upper bound of what a record takes in a batch.
func recordBytes(r *Record) int {
	n := recordOverhead + len(r.Key) + len(r.Value)
	for i := range r.Headers {
		n += headerOverhead + len(r.Headers[i].Key) + len(r.Headers[i].Value)
	}
	return n
}

func batchLimit(topic string) int {
	if topic == TopicRejected {
		return rejectedBatchBytes - batchOverhead
	}
	return maxBatchBytes - batchOverhead
}

// Append writes records to one partition, in order, and returns the offset of the first when all in-sync replicas have
// them. Up to 1 MiB goes as one request; more is split, and sending stops at the first request that fails.
//
// An error means that the outcome is unknown: none, some or all may be in the log (ErrTooLarge is found before anything
// is sent, except when the topic's own limit is below Kafka's default). The bytes of recs must not be reused after an
// error, because a request may still be on its way. Nothing is repeated inside; Transient tells whether repeating can
// help. Without records it does nothing and returns -1.
func (c *Client) Append(ctx context.Context, topic string, partition int32, recs []Record) (first int64, err error) {
	limit := batchLimit(topic)
	for i := range recs {
		if n := recordBytes(&recs[i]); n > limit {
			return -1, fmt.Errorf("appending to %s/%d: record %d: %w: %d bytes, at most %d", topic, partition, i, ErrTooLarge, n-recordOverhead, limit-recordOverhead)
		}
	}
	first = -1
	for len(recs) > 0 {
		n, size := 0, 0
		for n < len(recs) {
			s := recordBytes(&recs[n])
			if size+s > limit {
				break
			}
			size += s
			n++
		}
		base, err := c.produce(ctx, topic, partition, recs[:n])
		if err != nil {
			return -1, fmt.Errorf("appending %d records to %s/%d: %w", n, topic, partition, err)
		}
		if first < 0 {
			first = base
		}
		recs = recs[n:]
	}
	return first, nil
}

// produce sends one batch for one partition.
func (c *Client) produce(ctx context.Context, topic string, partition int32, recs []Record) (int64, error) {
	answers, err := c.produceMany(ctx, topic, []partitionBatch{{partition: partition, recs: recs}})
	if err != nil {
		return -1, err
	}
	return answers[0].base, answers[0].err
}

type partitionBatch struct {
	partition int32
	recs      []Record
}

type partitionAnswer struct {
	base      int64
	err       error
	recordErr map[int]error // records that the broker named as the reason, by index
}

// produceMany sends one request with a batch for each of several partitions, which must all be led by the same broker.
// Kafka's Client.Produce takes one partition only; at the gateway's rates one request for all is cheaper by far. The
// error is about the whole request; answers are in the order of batches.
func (c *Client) produceMany(ctx context.Context, topic string, batches []partitionBatch) (answers []partitionAnswer, err error) {
	defer func() {
		if err != nil {
			c.metrics.failures.WithLabelValues("produce").Inc()
		}
	}()
	if err := c.open(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.RequestTimeout)
	defer cancel()
	now := time.Now()
	parts := make([]produceapi.RequestPartition, len(batches))
	for i, b := range batches {
		parts[i] = produceapi.RequestPartition{
			Partition: b.partition,
			RecordSet: protocol.RecordSet{Attributes: protocol.Attributes(c.compression), Records: &recordReader{recs: b.recs, now: now}},
		}
	}
	res, err := c.transport.RoundTrip(ctx, c.addr, &produceapi.Request{
		Acks: int16(kafka.RequireAll),
		// The broker gives up first, so that it says so instead of being hung up on.
		Timeout: int32((c.cfg.RequestTimeout / 2).Milliseconds()),
		Topics:  []produceapi.RequestTopic{{Topic: topic, Partitions: parts}},
	})
	if err != nil {
		return nil, err
	}
	answers = make([]partitionAnswer, len(batches))
	for i, b := range batches {
		answers[i] = answerFor(res.(*produceapi.Response), b.partition)
		if answers[i].err != nil {
			c.metrics.failures.WithLabelValues("produce").Inc()
			continue
		}
		c.metrics.produced.WithLabelValues(topic).Add(float64(len(b.recs)))
	}
	c.metrics.produceSeconds.WithLabelValues(topic).Observe(time.Since(now).Seconds())
	return answers, nil
}

func answerFor(res *produceapi.Response, partition int32) partitionAnswer {
	for _, t := range res.Topics {
		for _, p := range t.Partitions {
			if p.Partition != partition {
				continue
			}
			a := partitionAnswer{base: p.BaseOffset}
			for _, re := range p.RecordErrors {
				if a.recordErr == nil {
					a.recordErr = make(map[int]error, len(p.RecordErrors))
				}
				a.recordErr[int(re.BatchIndex)] = errors.New(re.BatchIndexErrorMessage)
			}
			switch {
			case p.ErrorCode != 0 && p.ErrorMessage != "":
				a.err = translate(fmt.Errorf("%w: %s", kafka.Error(p.ErrorCode), p.ErrorMessage))
			case p.ErrorCode != 0:
				a.err = translate(kafka.Error(p.ErrorCode))
			case len(a.recordErr) > 0:
				a.err = fmt.Errorf("the broker refused %d records of the batch", len(a.recordErr))
			}
			return a
		}
	}
	return partitionAnswer{err: fmt.Errorf("the broker's answer does not mention partition %d", partition)}
}

// recordReader hands records to kafka-go without an allocation for each. kafka-go reads it once.
type recordReader struct {
	recs       []Record
	now        time.Time
	next       int
	out        kafka.Record
	key, value bytesReader
	headers    []kafka.Header
}

func (r *recordReader) ReadRecord() (*kafka.Record, error) {
	if r.next >= len(r.recs) {
		return nil, io.EOF
	}
	in := &r.recs[r.next]
	r.next++
	r.out = kafka.Record{Time: in.Time}
	if in.Time.IsZero() {
		r.out.Time = r.now
	}
	if in.Key != nil {
		r.key.Reset(in.Key)
		r.out.Key = &r.key
	}
	if in.Value != nil {
		r.value.Reset(in.Value)
		r.out.Value = &r.value
	}
	if len(in.Headers) > 0 {
		r.headers = r.headers[:0]
		for _, h := range in.Headers {
			r.headers = append(r.headers, kafka.Header{Key: h.Key, Value: h.Value})
		}
		r.out.Headers = r.headers
	}
	return &r.out, nil
}

type bytesReader struct{ bytes.Reader }

func (*bytesReader) Close() error { return nil }
