package sink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/callscope/callscope/internal/erasures"
	"github.com/callscope/callscope/internal/stage"
	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/stream"
)

// sourceLog is one source partition, owned for one generation of the group.
type sourceLog interface {
	// Fetch, Committed, Commit and Reject are those of internal/stream for this partition.
	Fetch(ctx context.Context, offset int64, maxBytes int, maxWait time.Duration) (stream.Batch, error)
	Committed(ctx context.Context) (offset int64, metadata string, ok bool, err error)
	Commit(ctx context.Context, offset int64, metadata string) error
	Reject(ctx context.Context, r stream.Record, reason string) error
}

// rowStore is where rows go.
type rowStore interface {
	Insert(ctx context.Context, table, token string, rows any) error
	HighestPosition(ctx context.Context, topic string, partition int32) (store.Position, bool, error)
}

// partition brings the records of one source partition into the store, range after range, by the protocol of design
// 3.7. Each method runs to its end in the caller's goroutine; whatever ends between two of its calls to log and store
// leaves what the next owner needs.
type partition struct {
	topic  string
	number int32
	log    sourceLog
	store  rowStore
	cfg    Config
	schema uint32 // of the rows
	m      *metrics
	logger *slog.Logger
	// pause waits for d, or returns the context's error.
	pause func(ctx context.Context, d time.Duration) error
	// trouble tells what is wrong at the moment, "" when nothing is.
	trouble func(reason string)
	// atomicTokens: the store has the rows of every token that it remembers.
	atomicTokens bool
	// slots bounds the ranges that are under way in all partitions; nil: no bound.
	slots chan struct{}
	// erasures are honoured; nil for none.
	erasures Erasures

	next   int64 // first offset that no complete range has
	filter filterState
}

// stoppedError says why the sink does not go on with a partition. Only a person can mend it.
type stoppedError struct{ reason string }

func (e *stoppedError) Error() string { return e.reason }

func stopped(format string, args ...any) error {
	return &stoppedError{fmt.Sprintf(format, args...)}
}

const (
	// firstFetchBytes bounds what a partition holds while it waits for a slot.
	firstFetchBytes = 1 << 20
	fetchBytes      = 4 << 20
	// idleWait is how long a fetch waits where there is nothing to read.
	idleWait = 5 * time.Second
	// lookBack is how many records before a start without metadata are looked at for the origin accepted last. Records
	// that were written late by a former owner of the stage's partition come in handfuls.
	lookBack = 1000
)

// start finds out where to go on, and completes the range that somebody was inserting.
func (p *partition) start(ctx context.Context) error {
	var offset int64
	var metadata string
	var ok bool
	err := p.retry(ctx, "committed", stream.Transient, func() (err error) {
		offset, metadata, ok, err = p.log.Committed(ctx)
		return err
	})
	if err != nil {
		return err
	}
	if !ok {
		return p.startWithoutOffset(ctx)
	}
	state, err := parseProgress(metadata)
	if err != nil {
		return stopped("%v: another program commits for this group, or a newer callscope did; reset the group's offsets for %s/%d to go on", err, p.topic, p.number)
	}
	p.next, p.filter = offset, state.filter
	if state.end > 0 {
		return p.resume(ctx, state)
	}
	return p.checkLast(ctx, state.uid)
}

// checkLast compares the record before the next offset with what was completed last: a topic that was deleted and made
// anew uses the same offsets for other records.
func (p *partition) checkLast(ctx context.Context, lastUID []byte) error {
	if len(lastUID) == 0 || p.next == 0 {
		return nil
	}
	batch, err := p.fetch(ctx, p.next-1, firstFetchBytes, 0)
	switch {
	case errors.Is(err, stream.ErrOffsetOutOfRange) && batch.Start == p.next:
		return nil // expired exactly up to here
	case errors.Is(err, stream.ErrOffsetOutOfRange):
		return p.outOfRange(batch)
	case err != nil:
		return err
	case len(batch.Records) == 0 || batch.Records[0].Offset != p.next-1 || string(uidOf(batch.Records[0].Value)) != string(lastUID):
		return p.otherTopic(p.next - 1)
	}
	return nil
}

func (p *partition) otherTopic(offset int64) error {
	return stopped("the record at offset %d of %s/%d is not the one that was stored: the topic was deleted and made anew, or lost records; to read it from its beginning, delete the offsets of group %s for it",
		offset, p.topic, p.number, stream.GroupSink)
}

// startWithoutOffset begins after what the store has: offsets expire, or are lost with the group, while rows stay.
// Whatever is inserted twice on that way collapses by its key.
func (p *partition) startWithoutOffset(ctx context.Context) error {
	first, err := p.fetch(ctx, 0, 1, 0)
	if errors.Is(err, stream.ErrOffsetOutOfRange) {
		first, err = p.fetch(ctx, first.Start, 1, 0)
	}
	if err != nil {
		return err
	}
	p.next, p.filter = first.Start, filterState{open: first.Start > 0}

	var position store.Position
	var ok bool
	err = p.retry(ctx, "position", func(error) bool { return true }, func() (err error) {
		position, ok, err = p.store.HighestPosition(ctx, p.topic, p.number)
		return err
	})
	if err != nil {
		return err
	}
	log := p.logger.With("topic", p.topic, "partition", p.number)
	if !ok {
		log.Info("no committed offset and no rows, reading from the beginning", "offset", p.next)
		return nil
	}
	batch, err := p.fetch(ctx, position.Offset, firstFetchBytes, 0)
	if err != nil && !errors.Is(err, stream.ErrOffsetOutOfRange) {
		return err
	}
	if err != nil || len(batch.Records) == 0 || batch.Records[0].Offset != position.Offset ||
		string(uidOf(batch.Records[0].Value)) != string(position.RecordUID[:]) {
		log.Warn("no committed offset, and the rows in ClickHouse are from another topic of this name or its records have expired; reading from the beginning",
			"offset", p.next, "row_offset", position.Offset)
		return nil //nolint:nilerr // the offset is gone, which is what is said
	}
	// Ranges are completed one after the other, so only the newest may lack rows in some tables.
	from := max(position.RangeStart, first.Start)
	if p.filter, err = p.filterBefore(ctx, from, first.Start); err != nil {
		return err
	}
	p.next = from
	log.Info("no committed offset, going on behind the rows in ClickHouse", "offset", p.next, "row_offset", position.Offset)
	return nil
}

// filterBefore finds out what was accepted before an offset: the highest origin among the records before it.
func (p *partition) filterBefore(ctx context.Context, offset, start int64) (filterState, error) {
	if offset == 0 {
		return filterState{}, nil
	}
	state := filterState{open: true}
	for at := max(offset-lookBack, start); at < offset; {
		batch, err := p.fetch(ctx, at, fetchBytes, 0)
		if err != nil {
			return state, err
		}
		for _, r := range batch.Records {
			if r.Offset >= offset {
				return state, nil
			}
			if _, origin, _, err := stage.ReadHeader(r.Value); err == nil && origin != nil && origin.After(state.last) {
				state = filterState{last: origin}
			}
		}
		if batch.Next <= at {
			return state, nil
		}
		at = batch.Next
	}
	return state, nil
}

// resume completes a range that was planned before: exactly the same records, under the same token where tokens are
// atomic. After an upgrade in between, the rows may be others, so the token is too (it names the schema), and what is
// stored twice collapses by key.
func (p *partition) resume(ctx context.Context, plan progress) error {
	p.logger.Info("completing a planned range", "topic", p.topic, "partition", p.number, "start", p.next, "end", plan.end)
	release, err := p.slot(ctx)
	if err != nil {
		return err
	}
	defer release()
	s, err := p.newSpan(ctx)
	if err != nil {
		return err
	}
	defer s.release()
	for s.end < plan.end {
		batch, err := p.fetch(ctx, s.end, fetchBytes, idleWait)
		if errors.Is(err, stream.ErrOffsetOutOfRange) {
			return p.outOfRange(batch)
		}
		if err != nil {
			return err
		}
		if batch.End < plan.end {
			return stopped("a range was planned up to offset %d of %s/%d, which ends at %d: the topic lost records or was made anew; to read it from its beginning, delete the offsets of group %s for it",
				plan.end, p.topic, p.number, batch.End, stream.GroupSink)
		}
		for _, r := range batch.Records {
			if r.Offset >= plan.end {
				break
			}
			if err := s.add(r); err != nil {
				return err // a gap inside a planned range: the topic is not what it was
			}
		}
		s.head = batch.End
		s.end = max(s.end, min(batch.Next, plan.end))
	}
	if string(s.firstUID) != string(plan.uid) {
		return p.otherTopic(s.start)
	}
	return p.complete(ctx, s, "resumed")
}

// step waits for records, and brings one range of them into the store. It returns a *stoppedError when the partition
// must not go on.
func (p *partition) step(ctx context.Context) error {
	batch, err := p.fetch(ctx, p.next, firstFetchBytes, idleWait)
	if errors.Is(err, stream.ErrOffsetOutOfRange) {
		return p.outOfRange(batch)
	}
	if err != nil {
		return err
	}
	if len(batch.Records) == 0 {
		p.next = max(p.next, batch.Next)
		p.m.lag.WithLabelValues(p.labels()...).Set(float64(batch.End - p.next))
		return nil
	}
	// While something below waits, for a slot or for the store, this is what an operator sees.
	p.m.lag.WithLabelValues(p.labels()...).Set(float64(batch.End - p.next))
	if batch.Next >= batch.End {
		// Nothing more is there: give others time to come, so that inserts are few.
		if err := p.pause(ctx, p.cfg.MaxWait); err != nil {
			return err
		}
	}
	release, err := p.slot(ctx)
	if err != nil {
		return err
	}
	defer release()
	s, err := p.newSpan(ctx)
	if err != nil {
		return err
	}
	defer s.release()
	s.head = batch.End
	gap := s.addAll(batch)
	for gap == nil && !s.full() {
		batch, err := p.fetch(ctx, s.end, fetchBytes, 0)
		if errors.Is(err, stream.ErrOffsetOutOfRange) {
			break // the next step says what is wrong
		}
		if err != nil {
			return err
		}
		if s.head = batch.End; batch.Next == s.end {
			break
		}
		gap = s.addAll(batch)
	}
	if s.end > s.start {
		if err := p.complete(ctx, s, "new"); err != nil {
			return err
		}
	}
	return gap
}

// complete is plan, insert, done for one range.
func (p *partition) complete(ctx context.Context, s *span, kind string) error {
	inserted := time.Now()
	rejects := s.rejects
	if s.blocks.rows() > 0 {
		if kind == "new" {
			plan := progress{end: s.end, schema: p.schema, uid: s.firstUID, filter: p.filter}
			if err := p.commit(ctx, s.start, plan); err != nil {
				return err
			}
		}
		poison, err := p.insertErased(ctx, s)
		if err != nil {
			return err
		}
		rejects = append(rejects, poison...)
	}
	stored := time.Now()
	if err := p.reject(ctx, s, rejects); err != nil {
		return err
	}
	if err := p.commit(ctx, s.end, progress{uid: s.lastUID, filter: s.state()}); err != nil {
		return err
	}
	p.next, p.filter = s.end, s.state()
	p.account(s, kind, rejects, inserted, stored)
	return nil
}

// insertAll stores the rows of all tables.
func (p *partition) insertAll(ctx context.Context, s *span) ([]reject, error) {
	var rejects []reject
	for _, t := range s.blocks.tables() {
		if t.len() == 0 {
			continue
		}
		poison, err := p.insert(ctx, s, t, 0, t.len(), s.token(t.table()))
		if err != nil {
			return nil, err
		}
		rejects = append(rejects, poison...)
	}
	return rejects, nil
}

// insert stores rows [from, to) of one table. A block that can never be stored is cut into halves until the rows to
// blame are alone; their records come back as rejects. The halves are the same on every run.
func (p *partition) insert(ctx context.Context, s *span, t tableRows, from, to int, token string) ([]reject, error) {
	transient := func(err error) bool { return !store.Permanent(err) && !errors.Is(err, errErasedMeanwhile) }
	tries := 0
	err := p.retry(ctx, "insert", transient, func() error {
		if tries++; tries > 1 {
			if err := p.unchanged(ctx, s); err != nil {
				return err
			}
		}
		return p.store.Insert(ctx, t.table(), p.attempt(token), t.slice(from, to))
	})
	if err == nil || !store.Permanent(err) {
		return nil, err
	}
	if to-from == 1 {
		return []reject{{record: t.record(from), kind: "poison_row", detail: err.Error()}}, nil
	}
	p.logger.Warn("a block cannot be stored, looking for the rows to blame", "table", t.table(), "rows", to-from, "error", err)
	middle := from + (to-from)/2
	var all []reject
	for _, half := range [][2]int{{from, middle}, {middle, to}} {
		poison, err := p.insert(ctx, s, t, half[0], half[1], fmt.Sprintf("%s/%d-%d", token, half[0], half[1]))
		if err != nil {
			return nil, err
		}
		all = append(all, poison...)
	}
	return all, nil
}

// attempt is the token for one try to insert. Where the server commits a token together with its rows, it is the range's,
// and a block that was stored is dropped when it comes again. Elsewhere the server writes the token down first: one that is
// killed in between would remember the token, not have the rows, and drop them for good when they come again. There every
// try has a token of its own, and what is stored twice collapses by its key.
func (p *partition) attempt(token string) string {
	if p.atomicTokens {
		return token
	}
	return fmt.Sprintf("%s/%016x", token, rand.Uint64())
}

// reject sets records aside, each once. Until they are, the partition waits.
func (p *partition) reject(ctx context.Context, s *span, rejects []reject) error {
	done := make(map[int]bool)
	for _, r := range rejects {
		if done[r.record] {
			continue
		}
		done[r.record] = true
		record := s.records[r.record]
		p.logger.Warn("rejecting a record", "topic", p.topic, "partition", p.number, "offset", record.Offset, "kind", r.kind, "detail", r.detail)
		err := p.retry(ctx, "reject", stream.Transient, func() error { return p.log.Reject(ctx, record, r.kind+": "+r.detail) })
		if err != nil && ctx.Err() == nil {
			return stopped("setting aside offset %d of %s/%d: %v; the partition waits, because going on would lose the record", record.Offset, p.topic, p.number, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *partition) commit(ctx context.Context, offset int64, state progress) error {
	return p.retry(ctx, "commit", stream.Transient, func() error { return p.log.Commit(ctx, offset, state.String()) })
}

func (p *partition) fetch(ctx context.Context, offset int64, maxBytes int, maxWait time.Duration) (batch stream.Batch, err error) {
	err = p.retry(ctx, "fetch", stream.Transient, func() error {
		batch, err = p.log.Fetch(ctx, offset, maxBytes, maxWait)
		return err
	})
	return batch, err
}

// outOfRange decides what to do where the next offset is not in the log.
func (p *partition) outOfRange(batch stream.Batch) error {
	switch {
	case p.next < batch.Start:
		p.m.gaps.WithLabelValues(p.topic).Inc()
		if !p.cfg.AcceptGaps {
			return stopped("records %d to %d of %s/%d expired before they were stored; to go on without them, start once with sink.accept_gaps=true, and lengthen the topic's retention",
				p.next, batch.Start-1, p.topic, p.number)
		}
	case !p.cfg.AcceptGaps:
		return stopped("offset %d is committed for %s/%d, which ends at %d: the topic was deleted and made anew, or lost records; to read it from its beginning, start once with sink.accept_gaps=true, or delete the offsets of group %s for it",
			p.next, p.topic, p.number, batch.End, stream.GroupSink)
	}
	p.logger.Warn("going on at the beginning of the partition, as sink.accept_gaps says", "topic", p.topic, "partition", p.number, "from", p.next, "to", batch.Start)
	p.next, p.filter = batch.Start, filterState{open: true}
	return nil
}

const (
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = 5 * time.Second
	// logEvery says how many repetitions pass between two lines of log.
	logEvery = 10
	// troubleAfter says from which repetition on the process is not ready: about 1 s.
	troubleAfter = 4
)

// retry repeats f while it fails with a transient error and ctx lives, with capped back-off and full jitter.
func (p *partition) retry(ctx context.Context, operation string, transient func(error) bool, f func() error) error {
	for attempt := 0; ; attempt++ {
		err := f()
		if attempt > 0 && (err == nil || !transient(err)) {
			p.trouble("")
		}
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case !transient(err):
			return err
		}
		p.m.retries.WithLabelValues(operation).Inc()
		if attempt == troubleAfter {
			p.trouble(err.Error())
		}
		if attempt%logEvery == 0 {
			p.logger.Warn("trying again", "operation", operation, "topic", p.topic, "partition", p.number, "attempt", attempt+1, "error", err)
		}
		limit := min(firstBackoff<<min(attempt, 10), maxBackoff)
		if err := p.pause(ctx, limit/10+rand.N(limit)); err != nil {
			return err
		}
	}
}

// slot waits until a range may be under way.
func (p *partition) slot(ctx context.Context) (release func(), err error) {
	if p.slots == nil {
		return func() {}, nil
	}
	select {
	case p.slots <- struct{}{}:
		return func() { <-p.slots }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *partition) labels() []string { return []string{p.topic, strconv.Itoa(int(p.number))} }

// account counts a range that is complete.
func (p *partition) account(s *span, kind string, rejects []reject, inserted, stored time.Time) {
	rejected := make(map[int]bool)
	for _, r := range rejects {
		rejected[r.record] = true
	}
	for _, t := range s.blocks.tables() {
		rows := 0
		for i := range t.len() {
			if !rejected[t.record(i)] {
				rows++
			}
		}
		if rows > 0 {
			p.m.rows.WithLabelValues(t.table()).Add(float64(rows))
		}
	}
	counts := map[string]int{outcomeDuplicate: s.duplicates, outcomeRejected: len(rejected)}
	for i := range s.records {
		switch {
		case rejected[i]:
		case s.gaveRows[i]:
			counts[outcomeStored]++
		default:
			counts[outcomeEmpty]++
		}
		if ms := s.receivedMs[i]; ms > 0 && s.gaveRows[i] && !rejected[i] {
			p.m.queryable.WithLabelValues(p.topic).Observe(stored.Sub(time.UnixMilli(ms)).Seconds())
		}
	}
	for outcome, n := range counts {
		p.m.records.WithLabelValues(p.topic, outcome).Add(float64(n))
	}
	p.m.ranges.WithLabelValues(p.topic, kind).Inc()
	if s.blocks.rows() > 0 {
		p.m.insert.WithLabelValues(p.topic).Observe(stored.Sub(inserted).Seconds())
	}
	p.m.lag.WithLabelValues(p.labels()...).Set(float64(max(s.head-p.next, 0)))
	p.m.lagTime.WithLabelValues(p.labels()...).Set(stored.Sub(s.newest).Seconds())
}

// span is a range of records on its way to the store.
type span struct {
	p          *partition
	start, end int64 // offsets; end is behind the last record taken
	head       int64 // end of the partition as last seen
	bytes      int64
	firstUID   []byte // part of its record, as lastUID is
	lastUID    []byte
	filter     stage.OriginFilter
	open       bool // filter has accepted nothing yet and knows nothing
	blocks     blocks
	rejects    []reject
	duplicates int
	newest     time.Time

	// Of the records that were not dropped as duplicates.
	records    []stream.Record
	gaveRows   []bool
	receivedMs []int64

	erased *erasures.View // that the rows were made with; nil for none
}

// reject is a record that can never be stored.
type reject struct {
	record       int
	kind, detail string
}

// spans are ranges that are complete. Their memory is filled again: the rows of a full range take some 40 MB, and the
// system would clear and the collector look through as much for each. The store looks at no rows when Insert has returned.
var spans = sync.Pool{New: func() any { return new(span) }}

// release gives the memory of the range back. Nothing of it may be used afterwards.
func (s *span) release() {
	s.blocks.reset()
	clear(s.records)
	*s = span{blocks: s.blocks, records: s.records[:0], gaveRows: s.gaveRows[:0], receivedMs: s.receivedMs[:0]}
	spans.Put(s)
}

// newSpan begins an empty range with the erasures of now. Whoever calls it calls release at the end.
func (p *partition) newSpan(ctx context.Context) (*span, error) {
	view, err := p.currentErasures(ctx)
	if err != nil {
		return nil, err
	}
	s := spans.Get().(*span)
	s.p, s.start, s.end, s.filter, s.open, s.erased = p, p.next, p.next, p.filter.filter(), p.filter.open, view
	return s, nil
}

// state is what the filter has accepted now.
func (s *span) state() filterState {
	return filterState{last: s.filter.Last(), open: s.open}
}

func (s *span) full() bool {
	return int64(s.blocks.rows()) >= int64(s.p.cfg.MaxRows) || s.bytes >= s.p.cfg.MaxRangeBytes
}

// addAll takes records until the span is full, and returns a gap's error where one is in front of the next record.
func (s *span) addAll(batch stream.Batch) error {
	for _, r := range batch.Records {
		if s.full() {
			return nil
		}
		if err := s.add(r); err != nil {
			return err
		}
	}
	s.end = max(s.end, batch.Next)
	return nil
}

// add takes one record: its rows, or nothing if it came before, or a reject. It fails, without taking it, where records
// before it are missing.
func (s *span) add(r stream.Record) error {
	recordUID, origin, prev, err := stage.ReadHeader(r.Value)
	var unreadable *badRecord
	switch {
	case err != nil:
		unreadable = &badRecord{"undecodable", err.Error()}
	case origin == nil:
		unreadable = &badRecord{"no_origin", "the record names no origin"}
	}
	duplicate := false
	if unreadable != nil {
		// What it would have said of the next record's predecessor is unknown.
		s.filter, s.open = stage.OpenFilter(), true
	} else {
		switch s.filter.Accept(origin, prev) {
		case stage.Accept:
			s.open = false
		case stage.Duplicate:
			duplicate = true
		case stage.Gap:
			s.p.m.gaps.WithLabelValues(s.p.topic).Inc()
			if !s.p.cfg.AcceptGaps {
				return stopped("records are missing before offset %d of %s/%d: the last origin stored is %s, the record follows %s; to go on without them, start once with sink.accept_gaps=true",
					r.Offset, s.p.topic, s.p.number, originText(s.filter.Last()), prev)
			}
			s.p.logger.Warn("records are missing, going on without them, as sink.accept_gaps says", "topic", s.p.topic, "partition", s.p.number,
				"offset", r.Offset, "last_origin", originText(s.filter.Last()), "prev", prev.String())
			s.filter, s.open = stage.FilterAfter(origin), false
		}
	}
	if s.end == s.start {
		s.firstUID = recordUID
	}
	s.lastUID = recordUID
	s.end = r.Offset + 1
	s.bytes += int64(len(r.Key) + len(r.Value))
	s.newest = r.Time
	if duplicate {
		s.duplicates++
		return nil
	}
	index := len(s.records)
	before := s.blocks.rows()
	var receivedMs int64
	if unreadable == nil {
		receivedMs, err = s.blocks.decode(prepareOf(s.erased), r, index, s.start)
		if err != nil && !errors.As(err, &unreadable) {
			return err
		}
	}
	if unreadable != nil {
		s.rejects = append(s.rejects, reject{record: index, kind: unreadable.kind, detail: unreadable.detail})
	}
	s.records = append(s.records, r)
	s.gaveRows = append(s.gaveRows, s.blocks.rows() > before)
	s.receivedMs = append(s.receivedMs, receivedMs)
	return nil
}

func originText(o *stage.Origin) string {
	if o == nil {
		return "none"
	}
	return o.String()
}

// uidOf is the uid of a record, nil where it has none.
func uidOf(value []byte) []byte {
	u, _, _, err := stage.ReadHeader(value)
	if err != nil {
		return nil
	}
	return u
}
