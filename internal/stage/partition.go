package stage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"

	"github.com/callscope/callscope/internal/stream"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

const (
	outboxBytes    = 1 << 20   // outputs that may wait before stepping pauses
	appendBytes    = 512 << 10 // outputs in one append
	appendRecords  = 1000
	tickInterval   = time.Second
	commitInterval = time.Second
	fetchWait      = time.Second
	// patience is how often something that should never happen is looked at
	// again before it is believed: a leader that has just changed may answer
	// with offsets of a moment ago.
	patience = 3
)

var (
	// ErrGap: records that the partition needs are missing. It must not go on
	// by itself, because the outputs would be wrong for good.
	ErrGap = errors.New("gap")
	// ErrRefused: the stored state cannot be used. An operator must decide.
	ErrRefused = errors.New("refusing to start from the stored state")
	// ErrStopped: the partition has done all that was left to do after Stop.
	ErrStopped = errors.New("partition stopped")
)

// Log is what a partition needs of Kafka. *stream.Client is one; the simulator
// has another. The contracts are those of the methods of stream.Client.
type Log interface {
	Append(ctx context.Context, topic string, partition int32, records []stream.Record) (first int64, err error)
	Fetch(ctx context.Context, topic string, partition int32, offset int64, maxBytes int, maxWait time.Duration) (stream.Batch, error)
	Offsets(ctx context.Context, topic string, partition int32) (start, end int64, err error)
	Reject(ctx context.Context, record stream.Record, stage, reason string) error
}

// Committer commits offsets as long as the partition is assigned to us, and
// fails with stream.ErrFenced afterwards. *stream.Assignment is one.
type Committer interface {
	Commit(ctx context.Context, offset int64, metadata string) error
}

// Env is everything outside the log that a partition can see. Outputs never
// depend on it.
type Env struct {
	Log       Log
	Committer Committer
	// Now is the wall clock, for people and for lag.
	Now func() time.Time
	// Monotonic is a clock that is never set; only differences count.
	Monotonic func() time.Duration
	// NewUID returns 16 bytes that nobody has used before.
	NewUID func() []byte
	Logger *slog.Logger
}

var processStart = time.Now()

func newUID() []byte {
	id := uuid.Must(uuid.NewV7())
	return id[:]
}

// Partition runs a machine over one partition for the time of one assignment.
// It has no goroutine and never waits by itself: Advance does the next thing
// that is due, at most one effect on the log, and state changes only when that
// has succeeded, so after an error the same call tries again. Whoever drives
// it decides about back-off. Stage drives it in production, stagetest in
// simulations. It is not safe for concurrent use.
type Partition struct {
	cfg     Config
	env     Env
	number  int32
	metrics *partitionMetrics

	// The state: a fold of the input before next.
	folder  folder // machine is nil while it has to be restored
	next    int64
	lastUID []byte // of the record before next
	filter  OriginFilter

	inbox []stream.Record // read, not stepped

	outbox      []Emitted // stepped, not acknowledged
	outboxBytes int
	acked       *Origin // last output that we know to be in the output topic

	// bad is a record being set aside; setAside are those that were, so that
	// building the state again passes over them.
	bad      *badRecord
	setAside map[int64]struct{}

	// Snapshots.
	writing       *snapshotWriter
	snapshotNow   bool
	snapshotAt    time.Duration // monotonic, of the last one written or restored
	snapshotNext  int64         // its input offset, -1 for none
	snapshotBytes int
	snapshotClean bool
	leftovers     [][]byte   // keys found in the state topic when restoring
	own           [][][]byte // keys of our acknowledged snapshots, oldest first
	garbage       [][]byte   // keys to delete
	mayDelete     bool       // we have just been told that we own the partition

	// Ticks.
	tickerUID    []byte
	tickerOffset int64 // of the latest tick of this uid that was acknowledged, -1: none
	tickedAt     time.Duration
	ticked       bool
	// While nothing waits for time the ticker's clock stands still: what begins
	// after a rest must not be given the time before it.
	resting bool
	rested  time.Duration

	committed   int64
	committedAt time.Duration
	end         int64 // of the input partition when last read
	doubts      int
	stopping    bool
	lastCommit  bool
	restores    int
}

type badRecord struct {
	record stream.Record
	gap    bool // not the record is bad, but what is missing before it
	uid    []byte
	origin *Origin
	err    error
	broken bool
}

// NewPartition returns a partition that has nothing restored yet. It does no
// I/O. Run makes its partitions itself; others call this to drive one by hand.
func (s *Stage) NewPartition(number int32, env Env) *Partition {
	return &Partition{
		cfg: s.cfg, env: env, number: number, metrics: s.metrics.of(number),
		setAside: map[int64]struct{}{}, tickerUID: env.NewUID(), tickerOffset: -1, committed: -1, snapshotNext: -1,
	}
}

// Next returns the input offset that is stepped next, -1 before the state is
// restored.
func (p *Partition) Next() int64 {
	if p.folder.machine == nil {
		return -1
	}
	return p.next
}

// Advance does the next thing that is due. Its errors are
//   - ErrStopped after Stop, when nothing is left to do;
//   - stream.ErrFenced: the partition belongs to somebody else, drop it;
//   - ErrGap: stop and alarm; Stop may still be used to save the state;
//   - ErrRefused: tell the operator;
//   - anything else: call again after a pause.
func (p *Partition) Advance(ctx context.Context) error {
	if p.stopping {
		return p.advanceStop(ctx)
	}
	switch {
	case p.bad != nil:
		return p.reject(ctx)
	case p.folder.machine == nil:
		return p.restore(ctx)
	case len(p.inbox) > 0 && p.outboxBytes < outboxBytes:
		p.stepInbox()
		return nil
	case len(p.outbox) > 0:
		return p.flush(ctx)
	case p.writing != nil:
		return p.writeSnapshot(ctx)
	case p.snapshotDue():
		return p.beginSnapshot(false)
	case len(p.garbage) > 0 && !p.mayDelete:
		// A former owner may have seen the beginning of a snapshot that is
		// whole and the newest by now. It must not delete it.
		if err := p.commit(ctx); err != nil {
			return fmt.Errorf("deleting old snapshots: %w", err)
		}
		p.mayDelete = true
		return nil
	case len(p.garbage) > 0:
		return p.deleteGarbage(ctx)
	case p.superseded():
		return p.renewTicker(ctx)
	case p.next != p.committed && p.env.Monotonic()-p.committedAt >= commitInterval:
		return p.commit(ctx)
	case p.tickDue():
		return p.tick(ctx)
	default:
		return p.fetch(ctx)
	}
}

// Stop tells the partition that its assignment ends. Records that were read
// but not stepped are left to the next owner. Continue with Advance, under a
// context of its own, until it returns ErrStopped: it then has its outputs
// acknowledged and a snapshot written.
func (p *Partition) Stop() {
	p.stopping = true
	p.inbox = nil
	p.writing = nil // a snapshot of an older state; the next owner clears its chunks
}

func (p *Partition) advanceStop(ctx context.Context) error {
	switch {
	case p.folder.machine == nil || p.bad != nil && p.bad.broken:
		return ErrStopped
	case len(p.outbox) > 0:
		return p.flush(ctx)
	case p.writing != nil:
		return p.writeSnapshot(ctx)
	case p.snapshotNext != p.next || !p.snapshotClean:
		return p.beginSnapshot(true)
	case p.next != p.committed && !p.lastCommit:
		p.lastCommit = true // only for display, so one attempt
		return p.commit(ctx)
	default:
		return ErrStopped
	}
}

// fetch reads the next records. A raw offset that is not the one before it
// plus one is fetched again before it is an alarm.
func (p *Partition) fetch(ctx context.Context) error {
	wait := fetchWait
	switch m := p.ticking(); {
	case m == nil:
	case m.WantsTicks():
		wait = min(wait, max(p.tickedAt+tickInterval-p.env.Monotonic(), time.Millisecond))
	default:
		p.resting = true
	}
	batch, err := p.env.Log.Fetch(ctx, p.cfg.InputTopic, p.number, p.next, p.cfg.FetchBytes, wait)
	if errors.Is(err, stream.ErrOffsetOutOfRange) {
		return p.doubt(ErrGap, "input offset %d is not in %s/%d any more or not yet, it holds %d to %d: the records were deleted before they were processed, or the topic was made anew",
			p.next, p.cfg.InputTopic, p.number, batch.Start, batch.End)
	}
	if err != nil {
		return fmt.Errorf("fetching input: %w", err)
	}
	records := batch.Records
	for len(records) > 0 && records[0].Offset < p.next {
		records = records[1:]
	}
	if len(records) > 0 && records[0].Offset != p.next || len(records) == 0 && batch.Next > p.next {
		found := batch.Next
		if len(records) > 0 {
			found = records[0].Offset
		}
		return p.doubt(ErrGap, "%s/%d has no record at offset %d, the next is at %d", p.cfg.InputTopic, p.number, p.next, found)
	}
	for i, rec := range records {
		if rec.Offset != p.next+int64(i) {
			records = records[:i] // the hole is looked at when it comes first
			break
		}
	}
	p.doubts = 0
	p.inbox = records
	p.end = batch.End
	p.observeLag(nil)
	return nil
}

// doubt returns an ordinary error the first times, and one that wraps kind
// when looking again has not helped.
func (p *Partition) doubt(kind error, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	p.doubts++
	if p.doubts < patience {
		return fmt.Errorf("looking again: %w", err)
	}
	return fmt.Errorf("%w: %w", kind, err)
}

// stepInbox runs what was read through the machine until enough outputs wait,
// a record has to be set aside, or a gap is found; a gap stays first in the
// inbox and is reported when everything before it is done.
func (p *Partition) stepInbox() {
	for len(p.inbox) > 0 && p.outboxBytes < outboxBytes {
		rec := p.inbox[0]
		verdict, uid, origin, err := judge(rec.Value, p.cfg.InputHasOrigins, &p.filter)
		switch verdict {
		case Gap:
			p.bad = &badRecord{record: rec, gap: true, err: err}
			p.inbox = nil
			return
		case Duplicate:
			p.metrics.read.Inc()
			p.metrics.duplicate.Inc()
			p.consumed(rec, uid, nil)
			continue
		}
		p.metrics.read.Inc()
		if _, known := p.setAside[rec.Offset]; known {
			p.metrics.rejected.Inc()
			p.consumed(rec, uid, origin)
			p.snapshotNow = true // so that the next panic need not come back here
			continue
		}
		broken := false
		if err == nil {
			var emitted []Emitted
			emitted, err = p.folder.step(Input{Offset: rec.Offset, Key: rec.Key, Value: rec.Value})
			var bad *stepError
			if errors.As(err, &bad) {
				broken = bad.broken
				if bad.panic {
					p.metrics.panics.Inc()
				}
			}
			p.emit(emitted)
		}
		if err != nil {
			p.bad = &badRecord{record: rec, uid: bytes.Clone(uid), origin: origin, err: err, broken: broken}
			return
		}
		p.metrics.processed.Inc()
		p.consumed(rec, uid, origin)
	}
	if len(p.inbox) == 0 {
		p.inbox = nil
	}
}

// emit puts outputs in line, leaving out those that are already in the topic
// because the state was built again.
func (p *Partition) emit(emitted []Emitted) {
	for _, e := range emitted {
		if e.Origin.After(p.acked) {
			p.outbox = append(p.outbox, e)
			p.outboxBytes += len(e.Key) + len(e.Value)
		}
	}
}

// consumed moves the state past a record at the head of the inbox.
func (p *Partition) consumed(rec stream.Record, uid []byte, origin *Origin) {
	p.inbox = p.inbox[1:]
	p.next = rec.Offset + 1
	p.lastUID = append(p.lastUID[:0], uid...)
	if origin != nil {
		p.filter.accept(*origin)
	}
	if len(p.inbox) == 0 {
		p.observeLag(&rec)
	}
}

func (p *Partition) observeLag(last *stream.Record) {
	lag := max(p.end-p.next, 0)
	p.metrics.lagRecords.Set(float64(lag))
	switch {
	case lag == 0:
		p.metrics.lagSeconds.Set(0)
	case last != nil:
		p.metrics.lagSeconds.Set(max(p.env.Now().Sub(last.Time).Seconds(), 0))
	}
	p.metrics.snapshotAge.Set((p.env.Monotonic() - p.snapshotAt).Seconds())
}

// reject sets the bad record aside. Until that is acknowledged the partition
// does not move. After a panic the state is built again, passing over it.
func (p *Partition) reject(ctx context.Context) error {
	bad := p.bad
	if bad.gap {
		if len(p.outbox) > 0 {
			return p.flush(ctx)
		}
		return fmt.Errorf("%w: at offset %d of %s/%d: %w", ErrGap, bad.record.Offset, p.cfg.InputTopic, p.number, bad.err)
	}
	if err := p.env.Log.Reject(ctx, bad.record, p.cfg.Name, bad.err.Error()); err != nil {
		return fmt.Errorf("setting a record aside: %w", err)
	}
	p.env.Logger.Error("record set aside", "offset", bad.record.Offset, "reason", bad.err)
	p.setAside[bad.record.Offset] = struct{}{}
	p.bad = nil
	p.metrics.rejected.Inc()
	if bad.broken {
		p.folder = folder{}
		p.inbox, p.outbox, p.outboxBytes = nil, nil, 0
		return nil
	}
	p.consumed(bad.record, bad.uid, bad.origin)
	return nil
}

// flush appends outputs in order. An error leaves them in line, to be appended
// again: a copy is dropped by whoever reads it.
func (p *Partition) flush(ctx context.Context) error {
	n, size := 0, 0
	for n < len(p.outbox) && n < appendRecords {
		s := len(p.outbox[n].Key) + len(p.outbox[n].Value)
		if n > 0 && size+s > appendBytes {
			break
		}
		size += s
		n++
	}
	records := make([]stream.Record, n)
	for i, e := range p.outbox[:n] {
		records[i] = stream.Record{Key: e.Key, Value: e.Value}
	}
	if _, err := p.env.Log.Append(ctx, p.cfg.OutputTopic, p.number, records); err != nil {
		return fmt.Errorf("writing outputs: %w", err)
	}
	last := p.outbox[n-1].Origin
	p.acked = &last
	p.outbox = p.outbox[n:]
	p.outboxBytes -= size
	if len(p.outbox) == 0 {
		p.outbox = nil
	}
	p.metrics.outputs.Add(float64(n))
	return nil
}

// snapshotDue is asked only when every output is acknowledged.
func (p *Partition) snapshotDue() bool {
	if p.snapshotNow {
		return true
	}
	interval := max(p.cfg.SnapshotInterval, time.Duration(p.snapshotBytes)*time.Second/snapshotBytesPerSecond)
	return p.next != p.snapshotNext && p.env.Monotonic()-p.snapshotAt >= interval
}

func (p *Partition) beginSnapshot(clean bool) error {
	var state []byte
	if p.next > 0 {
		var err error
		if state, err = p.folder.machine.Snapshot(); err != nil {
			return fmt.Errorf("encoding the state at offset %d: %w", p.next, err)
		}
	}
	p.writing = newSnapshotWriter(&callscopev1.SnapshotManifest{
		SnapshotUid: p.env.NewUID(), InputOffset: p.next, LastInputUid: bytes.Clone(p.lastUID),
		LastInputOrigin: toProto(p.filter.Last()), LastOutputOrigin: toProto(p.folder.last),
		FormatVersion: p.cfg.FormatVersion, LogicVersion: p.cfg.LogicVersion, CleanShutdown: clean,
		WrittenAtMs: p.env.Now().UnixMilli(), InputTopic: p.cfg.InputTopic, Partition: p.number,
	}, state, p.cfg.ChunkBytes, p.env.Monotonic())
	return nil
}

func (p *Partition) writeSnapshot(ctx context.Context) error {
	records, last, err := p.writing.piece()
	if err != nil {
		return err
	}
	if _, err := p.env.Log.Append(ctx, p.cfg.StateTopic, p.number, records); err != nil {
		return fmt.Errorf("writing a snapshot: %w", err)
	}
	p.writing.wrote(len(records))
	if !last {
		return nil
	}
	w := p.writing
	p.writing, p.snapshotNow = nil, false
	p.snapshotAt = p.env.Monotonic()
	p.snapshotNext = w.manifest.InputOffset
	p.snapshotClean = w.manifest.CleanShutdown
	p.snapshotBytes = len(w.state)
	p.metrics.snapshots.Inc()
	p.metrics.snapshotBytes.Set(float64(len(w.state)))
	p.metrics.snapshotSeconds.Set((p.snapshotAt - w.began).Seconds())
	p.metrics.snapshotAge.Set(0)
	for offset := range p.setAside {
		if offset < p.snapshotNext {
			delete(p.setAside, offset)
		}
	}
	// A snapshot goes only when two newer manifests are acknowledged. That
	// holds for what was found when restoring too: it may be the work of an
	// owner that is still writing.
	p.own = append(p.own, w.keys())
	if len(p.own) == 2 {
		p.garbage = append(p.garbage, p.leftovers...)
		p.leftovers = nil
	}
	if len(p.own) > 2 {
		p.garbage = append(p.garbage, p.own[0]...)
		p.own = p.own[1:]
	}
	return nil
}

func (p *Partition) deleteGarbage(ctx context.Context) error {
	n := min(len(p.garbage), tombstonesPerAppend)
	if _, err := p.env.Log.Append(ctx, p.cfg.StateTopic, p.number, tombstones(p.garbage[:n])); err != nil {
		return fmt.Errorf("deleting old snapshots: %w", err)
	}
	p.garbage, p.mayDelete = p.garbage[n:], false
	return nil
}

// commit tells the group how far the partition is, for display. It is also how
// a former owner learns that it is one.
func (p *Partition) commit(ctx context.Context) error {
	if err := p.env.Committer.Commit(ctx, p.next, ""); err != nil {
		return fmt.Errorf("committing offset %d: %w", p.next, err)
	}
	p.committed, p.committedAt = p.next, p.env.Monotonic()
	return nil
}
