package stream

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// The headers of a record in the reject topic. Its value is the original value, byte for byte.
const (
	headerSourceTopic     = "source_topic"
	headerSourcePartition = "source_partition"
	headerSourceOffset    = "source_offset"
	headerSourceKey       = "source_key"
	headerStage           = "stage"
	headerReason          = "reason"
	headerTime            = "time" // of the source record, RFC 3339 in UTC
)

// maxReasonBytes keeps a record of the full size within the limit of the reject topic together with its headers.
const maxReasonBytes = 4 << 10

// Reject sets a record aside for good: it writes its bytes with stage, reason and source position to the reject topic
// and returns when all in-sync replicas have it. When it fails the record is not set aside and the caller must not go
// past it. The record keeps its key, value, position and time.
//
// reason is a kind in snake_case, alone or followed by ": " and details ("bad_envelope: field 3 has wire type 7"); the
// kind is a label of the counter, so there must be few. Details are cut at 4 KiB.
func (c *Client) Reject(ctx context.Context, r Record, stage, reason string) error {
	partitions, err := c.PartitionCount(ctx, TopicRejected)
	if err != nil {
		return fmt.Errorf("rejecting %s/%d offset %d: %w", r.Topic, r.Partition, r.Offset, err)
	}
	key := []byte(r.Topic + "/" + strconv.Itoa(int(r.Partition)))
	text := func(k, v string) Header { return Header{Key: k, Value: []byte(v)} }
	rec := Record{Key: key, Value: r.Value, Headers: []Header{
		text(headerSourceTopic, r.Topic),
		text(headerSourcePartition, strconv.Itoa(int(r.Partition))),
		text(headerSourceOffset, strconv.FormatInt(r.Offset, 10)),
		text(headerStage, stage),
		text(headerReason, strings.ToValidUTF8(reason[:min(len(reason), maxReasonBytes)], "")),
		{Key: headerSourceKey, Value: r.Key},
		text(headerTime, r.Time.UTC().Format(time.RFC3339Nano)),
	}}
	if _, err := c.Append(ctx, TopicRejected, PartitionOf(key, partitions), []Record{rec}); err != nil {
		return fmt.Errorf("rejecting %s/%d offset %d: %w", r.Topic, r.Partition, r.Offset, err)
	}
	c.metrics.rejected.WithLabelValues(stage, reasonKind(reason)).Inc()
	return nil
}

// reasonKind is what stands before the colon, if it can be a label.
func reasonKind(reason string) string {
	kind, _, _ := strings.Cut(reason, ":")
	if kind == "" || len(kind) > 40 || strings.Trim(kind, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
		return "other"
	}
	return kind
}

// Rejected is a record of the reject topic, taken apart.
type Rejected struct {
	Source        Record // as it was, Headers excepted
	Stage, Reason string
}

// ParseRejected reads a record of the reject topic. It fails on records that Reject has not written.
func ParseRejected(r Record) (Rejected, error) {
	h := make(map[string][]byte, len(r.Headers))
	for _, x := range r.Headers {
		h[x.Key] = x.Value
	}
	partition, err := strconv.ParseInt(string(h[headerSourcePartition]), 10, 32)
	if err != nil {
		return Rejected{}, fmt.Errorf("parsing a rejected record: %s: %w", headerSourcePartition, err)
	}
	offset, err := strconv.ParseInt(string(h[headerSourceOffset]), 10, 64)
	if err != nil {
		return Rejected{}, fmt.Errorf("parsing a rejected record: %s: %w", headerSourceOffset, err)
	}
	at, err := time.Parse(time.RFC3339Nano, string(h[headerTime]))
	if err != nil {
		return Rejected{}, fmt.Errorf("parsing a rejected record: %s: %w", headerTime, err)
	}
	return Rejected{
		Source: Record{Topic: string(h[headerSourceTopic]), Partition: int32(partition), Offset: offset,
			Key: h[headerSourceKey], Value: r.Value, Time: at},
		Stage: string(h[headerStage]), Reason: string(h[headerReason]),
	}, nil
}
