package stagetest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/callscope/callscope/internal/stage"
	"github.com/callscope/callscope/internal/stream"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

var (
	errCrash = errors.New("simulated crash")
	errFault = errors.New("simulated fault")
)

// Log is Kafka in memory: topics with one partition, 0, each. It implements
// stage.Log and stage.Committer without any fault.
type Log struct {
	topics map[string]*topicLog
	// Rejected are the records that were set aside.
	Rejected []Rejected
	// Committed is the offset committed last.
	Committed int64
	// Batch is how many records a Fetch returns at most, 0: all there are.
	Batch int
	// Fail, if not nil, is asked before every call ("append", "fetch",
	// "offsets", "reject" or "commit", and the topic); its error is returned
	// instead of doing anything.
	Fail func(call, topic string) error
}

// Rejected is a record that was set aside.
type Rejected struct {
	Record        stream.Record
	Stage, Reason string
}

// NewLog returns a log with the given topics, all empty.
func NewLog(topics ...string) *Log {
	l := &Log{topics: map[string]*topicLog{}}
	for _, topic := range topics {
		l.topics[topic] = &topicLog{time: epoch}
	}
	return l
}

func (l *Log) topic(name string, partition int32) *topicLog {
	t := l.topics[name]
	if t == nil || partition != 0 {
		panic(fmt.Sprintf("no topic %s/%d", name, partition))
	}
	return t
}

func (l *Log) fail(call, topic string) error {
	if l.Fail == nil {
		return nil
	}
	return l.Fail(call, topic)
}

// Records returns what a topic holds.
func (l *Log) Records(topic string) []stream.Record { return l.topic(topic, 0).records }

// DeleteBefore removes the records of a topic before offset, as retention does.
func (l *Log) DeleteBefore(topic string, offset int64) {
	t := l.topic(topic, 0)
	t.records = slices.Clone(t.from(offset))
	t.start = offset
}

// Replace makes a topic anew with other records.
func (l *Log) Replace(topic string, records ...stream.Record) {
	l.topics[topic] = &topicLog{time: epoch}
	l.topics[topic].append(records...)
}

// Skip leaves out one offset of a topic, as no Kafka should.
func (l *Log) Skip(topic string) { l.topic(topic, 0).end++ }

// Compact does to a topic what Kafka's cleaner does to all of a compacted one.
func (l *Log) Compact(topic string) { l.topic(topic, 0).compact(l.topic(topic, 0).end) }

// Append appends to the only partition of a topic.
func (l *Log) Append(_ context.Context, topic string, partition int32, records []stream.Record) (int64, error) {
	if err := l.fail("append", topic); err != nil {
		return -1, err
	}
	return l.topic(topic, partition).append(records...), nil
}

// Fetch returns Batch records or as many as there are, whatever maxBytes is.
func (l *Log) Fetch(_ context.Context, topic string, partition int32, offset int64, _ int, _ time.Duration) (stream.Batch, error) {
	if err := l.fail("fetch", topic); err != nil {
		return stream.Batch{Start: -1, End: -1, Next: offset}, err
	}
	return l.topic(topic, partition).fetch(offset, cmp.Or(l.Batch, math.MaxInt))
}

// Offsets returns where a topic begins and ends.
func (l *Log) Offsets(_ context.Context, topic string, partition int32) (start, end int64, err error) {
	if err := l.fail("offsets", topic); err != nil {
		return -1, -1, err
	}
	t := l.topic(topic, partition)
	return t.start, t.end, nil
}

// Reject keeps the record in Rejected.
func (l *Log) Reject(_ context.Context, r stream.Record, stageName, reason string) error {
	if err := l.fail("reject", r.Topic); err != nil {
		return err
	}
	l.Rejected = append(l.Rejected, Rejected{r, stageName, reason})
	return nil
}

// Commit keeps the offset in Committed.
func (l *Log) Commit(_ context.Context, offset int64, _ string) error {
	if err := l.fail("commit", ""); err != nil {
		return err
	}
	l.Committed = offset
	return nil
}

// topicLog is one topic.
type topicLog struct {
	records    []stream.Record // in order of offsets, with holes where compacted
	start, end int64
	time       time.Time // of the next record
}

func (l *topicLog) append(records ...stream.Record) int64 {
	first := l.end
	for _, r := range records {
		r.Offset = l.end
		r.Time = l.time
		l.records = append(l.records, r)
		l.end++
	}
	return first
}

// from returns the records at and after offset.
func (l *topicLog) from(offset int64) []stream.Record {
	// Offsets are dense except in compacted logs, so the place is at or before
	// the difference to the first one.
	low, high := 0, len(l.records)
	for low < high {
		if mid := (low + high) / 2; l.records[mid].Offset < offset {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return l.records[low:]
}

// compact keeps the last record of each key before the given offset, as
// Kafka's cleaner does, and drops tombstones there.
func (l *topicLog) compact(before int64) {
	last := map[string]int64{}
	for _, r := range l.records {
		last[string(r.Key)] = r.Offset
	}
	kept := l.records[:0:0]
	for _, r := range l.records {
		if r.Offset >= before || last[string(r.Key)] == r.Offset && r.Value != nil {
			kept = append(kept, r)
		}
	}
	l.records = kept
}

// fetch returns at most limit records from offset on.
func (l *topicLog) fetch(offset int64, limit int) (stream.Batch, error) {
	b := stream.Batch{Start: l.start, End: l.end, Next: offset}
	if offset < l.start || offset > l.end {
		return b, fmt.Errorf("fetching offset %d: %w", offset, stream.ErrOffsetOutOfRange)
	}
	records := l.from(offset)
	records = records[:min(len(records), limit)]
	if len(records) == 0 {
		b.Next = l.end // nothing is left there by compaction
		return b, nil
	}
	b.Records = slices.Clone(records)
	b.Next = records[len(records)-1].Offset + 1
	return b, nil
}

// connection is one process' way to the logs. It implements stage.Log and
// stage.Committer, and is where faults come from: every call may fail before
// or after its effect, or be the last thing that the process does.
type connection struct {
	w       *world
	process *process
}

// effect decides what becomes of a call: whether it takes place, and the error
// that the process sees.
func (c *connection) effect() (takesPlace bool, err error) {
	if c.process.crashed {
		return false, errCrash
	}
	if !c.w.faults {
		return true, nil
	}
	switch p := c.w.rng.Float64(); {
	case p < c.w.crash/2:
		c.process.crashed = true
		return false, errCrash
	case p < c.w.crash:
		c.process.crashed = true
		return true, errCrash
	case p < c.w.crash+c.w.fail/2:
		return false, errFault
	case p < c.w.crash+c.w.fail:
		c.w.result.LostAcks++
		return true, errFault
	}
	return true, nil
}

func (c *connection) Append(_ context.Context, topic string, partition int32, records []stream.Record) (int64, error) {
	l := c.w.log.topic(topic, partition)
	for _, r := range records {
		if topic == c.w.cfg.StateTopic && len(r.Key) == 0 {
			panic("keyless record for a compacted topic")
		}
	}
	if records = c.w.deface(topic, records); len(records) == 0 {
		return l.end, nil
	}
	if topic == c.w.cfg.StateTopic {
		records = c.corrupt(records)
	}
	takesPlace, err := c.effect()
	if takesPlace {
		c.note(topic, records)
	}
	if topic == c.w.cfg.OutputTopic && c.w.defect == AcknowledgedBeforeWritten {
		if !errors.Is(err, errCrash) {
			c.process.unwritten = append(c.process.unwritten, records...)
			return 0, nil
		}
		return 0, err
	}
	switch {
	case takesPlace && err == nil:
		return l.append(records...), nil
	case takesPlace && c.w.rng.IntN(4) == 0:
		// The request is still on its way, and arrives when it likes.
		c.w.late = append(c.w.late, lateAppend{topic, records})
	case takesPlace:
		// A request is one batch in Kafka, but several requests are not.
		l.append(records[:1+c.w.rng.IntN(len(records))]...)
	}
	return 0, err
}

// note keeps what makes a defect show.
func (c *connection) note(topic string, records []stream.Record) {
	switch topic {
	case c.w.cfg.InputTopic:
		c.w.fastest = max(c.w.fastest, c.process.clock)
		if c.process.number < c.w.lastTicker {
			c.w.result.SupersededTicks++
		}
		c.w.lastTicker = max(c.w.lastTicker, c.process.number)
	case c.w.cfg.StateTopic:
		last := records[len(records)-1]
		c.w.tracef("process %d: %d records for the state topic from key %x to %x, deleting %v", c.process.number, len(records), records[0].Key, last.Key, last.Value == nil)
		if last.Value == nil {
			return
		}
		// A manifest comes last, behind its chunks.
		complete := len(last.Key) == 16
		c.process.midSnapshot = !complete
		if complete {
			m := &callscopev1.SnapshotManifest{}
			if err := m.UnmarshalVT(last.Value); err != nil {
				panic(err) // the runtime wrote it
			}
			if m.InputOffset < c.w.newest {
				c.w.result.Stale++
			}
			c.w.newest = max(c.w.newest, m.InputOffset)
			c.process.ranAhead = c.process.ranAhead || len(c.process.unwritten) > 0
			c.w.overwritable = c.w.overwritable || len(records) > 1
			c.w.torn, c.w.tornForGood = false, false
		}
	}
}

// corrupt flips a bit of every second snapshot of a process from its second
// on, so that one of the two that it keeps is always whole.
func (c *connection) corrupt(records []stream.Record) []stream.Record {
	uid := string(records[0].Key[:16])
	if !c.w.corrupt || records[0].Value == nil {
		return records
	}
	if !slices.Contains(c.process.snapshots, uid) {
		c.process.snapshots = append(c.process.snapshots, uid)
	}
	if slices.Index(c.process.snapshots, uid)%2 == 0 {
		return records
	}
	records = slices.Clone(records)
	for i, r := range records {
		if len(r.Key) > 16 && len(r.Value) > 0 { // a chunk
			value := bytes.Clone(r.Value)
			value[len(value)-1] ^= 1
			records[i].Value = value
			c.w.result.Corrupted++
			break
		}
	}
	return records
}

func (c *connection) Fetch(_ context.Context, topic string, partition int32, offset int64, _ int, _ time.Duration) (stream.Batch, error) {
	l := c.w.log.topic(topic, partition)
	if _, err := c.effect(); err != nil {
		return stream.Batch{Start: -1, End: -1, Next: offset}, err
	}
	limit := c.w.batch
	if topic == c.w.cfg.StateTopic {
		limit = max(limit, 200) // with fewer, no process would survive its restore
	}
	batch, err := l.fetch(offset, 1+c.w.rng.IntN(limit))
	holed := c.process.holed
	c.process.holed = false
	if topic == c.w.cfg.InputTopic && len(batch.Records) > 0 && c.w.faults && !holed && c.w.rng.Float64() < c.w.hole {
		c.process.holed = true
		hole := c.w.rng.IntN(len(batch.Records)) // a client library that misplaced a record
		batch.Records = append(batch.Records[:hole], batch.Records[hole+1:]...)
	}
	return batch, err
}

func (c *connection) Offsets(_ context.Context, topic string, partition int32) (start, end int64, err error) {
	l := c.w.log.topic(topic, partition)
	if _, err := c.effect(); err != nil {
		return -1, -1, err
	}
	return l.start, l.end, nil
}

func (c *connection) Reject(_ context.Context, r stream.Record, _, _ string) error {
	takesPlace, err := c.effect()
	if takesPlace {
		c.w.rejected[r.Offset] = true
	}
	return err
}

func (c *connection) Commit(_ context.Context, offset int64, _ string) error {
	takesPlace, err := c.effect()
	if takesPlace && c.process.generation < c.w.generation {
		return fmt.Errorf("committing %d: %w", offset, stream.ErrFenced)
	}
	return err
}

var (
	_ stage.Log       = (*Log)(nil)
	_ stage.Committer = (*Log)(nil)
	_ stage.Log       = (*connection)(nil)
	_ stage.Committer = (*connection)(nil)
)
