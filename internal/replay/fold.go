package replay

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/callscope/callscope/internal/stage"
	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/stream"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
	"github.com/callscope/callscope/services/sink"
)

const (
	// skew is how far the clocks of gateways may be apart: a message received inside of the range may lie so far behind its
	// end in the log.
	skew = 10 * time.Minute
	// settle is how long the fold goes on behind the last close, so that the summaries that a tick writes are in.
	settle = 10 * time.Second
	// flushRows is how many rows a partition collects before they go to the store.
	flushRows = 20_000
)

// fold computes the rows of one partition.
type fold struct {
	*run
	partition  int32
	start, end int64 // offsets to read

	stored     map[room][]store.ConferenceSpan // of the range
	lastStored int64                           // the last raw offset of all of them
	next       int64                           // what was read ends before this offset

	// conferences are those that are not closed, and the closed ones of the range.
	conferences map[uuid.UUID]*conference
	openInRange int
	now         time.Time // when the current record was written
	closedAt    time.Time // of the last record that closed one of the range
	left        map[uuid.UUID]bool
	counts      Report

	group []*callscopev1.Enriched // of one raw record
	rows  sink.Rows
}

type room struct{ app, conference string }

type conference struct {
	room
	uid         uuid.UUID
	inRange     bool
	closed      bool
	first, last int64
}

// locate finds the offset where the fold begins: early enough that every conference that is open or in grace at the
// beginning of the range is seen from its begin.
func (f *fold) locate(ctx context.Context) error {
	first, end, err := f.source.Range(ctx, f.partition)
	if err != nil {
		return err
	}
	f.start, f.end = first, end
	if f.cfg.FromBeginning || first == end {
		return nil
	}
	from := f.cfg.From
	heard := from.Add(-f.cfg.Lookback)
	window, err := f.source.Seek(ctx, f.partition, heard)
	if err != nil {
		return err
	}
	begin, err := f.source.Seek(ctx, f.partition, from)
	if err != nil {
		return err
	}
	open, err := f.store.OpenConferences(ctx, f.partition, store.Time(from.UnixMilli()), store.Time(heard.UnixMilli()))
	if err != nil {
		return err
	}
	if len(open) == 0 && window < begin {
		return f.locateUnknown(ctx, first, window, begin)
	}
	f.start = window
	if len(open) > 0 && open[0].FirstRawOffset < f.start {
		f.start = open[0].FirstRawOffset
	}
	if f.start < first {
		return fmt.Errorf("%w: conference %s of app %s was open at %s and began at offset %d of partition %d, which now begins at offset %d: give a later beginning, or an archive with --from-files",
			ErrRetention, open[0].ConferenceID, open[0].AppID, stamp(from), open[0].FirstRawOffset, f.partition, first)
	}
	if first > 0 && begin == first && window == first {
		return f.expired(ctx, first)
	}
	return nil
}

// locateUnknown begins where the log does if there are messages before the range that no stored conference accounts for:
// the store may have lost rows.
func (f *fold) locateUnknown(ctx context.Context, first, window, begin int64) error {
	f.start = window
	for offset := window; offset < begin; {
		records, err := f.source.Read(ctx, f.partition, offset)
		if err != nil {
			return err
		}
		for _, r := range records {
			var raw callscopev1.Raw
			if r.Offset < begin && raw.UnmarshalVT(r.Value) == nil && raw.GetTick() == nil && raw.GetClaimed().GetConferenceId() != "" {
				f.log.Info("the store knows no conference for messages before the range: folding from the log's beginning", "partition", f.partition, "offset", r.Offset)
				f.start = first
				if first > 0 {
					return f.expired(ctx, first)
				}
				return nil
			}
		}
		offset = records[len(records)-1].Offset + 1
	}
	return nil
}

// expired refuses a range that begins before the oldest record.
func (f *fold) expired(ctx context.Context, first int64) error {
	records, err := f.source.Read(ctx, f.partition, first)
	if err != nil {
		return err
	}
	if oldest := records[0].Time; oldest.After(f.cfg.From) {
		return fmt.Errorf("%w: the oldest record of partition %d is from %s, and the range begins at %s: give a later beginning, or an archive with --from-files",
			ErrRetention, f.partition, stamp(oldest), stamp(f.cfg.From))
	}
	return nil
}

func (f *fold) fold(ctx context.Context) error {
	stored, err := f.store.Conferences(ctx, f.partition, f.window)
	if err != nil {
		return err
	}
	f.stored = map[room][]store.ConferenceSpan{}
	for _, c := range stored {
		key := room{c.AppID, c.ConferenceID}
		f.stored[key] = append(f.stored[key], c)
		if c.LastRawOffset < f.end { // else the topic was made anew
			f.lastStored = max(f.lastStored, c.LastRawOffset)
		}
	}
	f.conferences, f.left = map[uuid.UUID]*conference{}, map[uuid.UUID]bool{}

	var readErr error
	raw := f.records(ctx, &readErr)
	enriched := func(yield func(stage.Input) bool) {
		offset := int64(0)
		stopped := false
		err := stage.Fold(f.cfg.NewEnricher, false, raw, func(e stage.Emitted) error {
			if stopped {
				return errStop
			}
			if err := f.enriched(ctx, e); err != nil {
				return err
			}
			if !yield(stage.Input{Offset: offset, Key: e.Key, Value: e.Value}) {
				stopped = true
				return errStop
			}
			offset++
			return nil
		}, f.rejected)
		if err != nil && !stopped && readErr == nil {
			readErr = err
		}
	}
	err = stage.Fold(f.cfg.NewSummarizer, true, enriched, func(e stage.Emitted) error { return f.summary(ctx, e) }, f.rejected)
	switch {
	case readErr != nil:
		return readErr
	case err != nil:
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	}
	if err := f.endGroup(ctx); err != nil {
		return err
	}
	if err := f.flushRows(ctx); err != nil {
		return err
	}
	return f.finish(ctx)
}

type stopError struct{}

func (stopError) Error() string { return "stopped" }

var errStop error = stopError{}

// records gives the raw records until the range is complete. After a panic of a machine it is iterated again.
func (f *fold) records(ctx context.Context, failure *error) iter.Seq[stage.Input] {
	return func(yield func(stage.Input) bool) {
		counted := f.counts.Records
		n := int64(0)
		for offset := f.start; offset < f.end; {
			records, err := f.source.Read(ctx, f.partition, offset)
			if err != nil {
				*failure = err
				return
			}
			for chunk := range slices.Chunk(records, f.pace.chunk(len(records))) {
				if err := f.pace.wait(ctx, len(chunk)); err != nil {
					*failure = err
					return
				}
				for _, r := range chunk {
					if r.Offset >= f.end || f.complete(r) {
						return
					}
					f.now, f.next = r.Time, r.Offset+1
					if n++; n > counted {
						f.counts.Records++
						f.read.Add(1)
					}
					if !yield(stage.Input{Offset: r.Offset, Key: r.Key, Value: r.Value}) {
						return
					}
				}
				f.tell()
			}
			offset = records[len(records)-1].Offset + 1
		}
	}
}

// complete tells whether nothing from this record on can belong to the range. What is stored of the range may lie behind
// records of any time: imported dumps are written long after their calls.
func (f *fold) complete(r stream.Record) bool {
	return f.openInRange == 0 && r.Offset > f.lastStored && r.Time.After(f.cfg.To.Add(skew)) && r.Time.After(f.closedAt.Add(settle))
}

func (f *fold) rejected(offset int64, reason error) {
	f.counts.Rejected++
	f.log.Warn("a record was set aside", "partition", f.partition, "offset", offset, "reason", reason)
}

// enriched takes one output of the enricher. Which conference a message belongs to, and when that began, is known only
// when all outputs of its raw record are there.
func (f *fold) enriched(ctx context.Context, e stage.Emitted) error {
	m := &callscopev1.Enriched{}
	if err := m.UnmarshalVT(e.Value); err != nil {
		return fmt.Errorf("reading an output of the enricher: %w", err)
	}
	if len(f.group) > 0 && f.group[0].Origin.GetOffset() != m.Origin.GetOffset() {
		if err := f.endGroup(ctx); err != nil {
			return err
		}
	}
	f.group = append(f.group, m)
	if facts := m.GetConference(); facts != nil {
		f.conferenceFacts(m, facts)
	}
	return nil
}

func (f *fold) conferenceFacts(m *callscopev1.Enriched, facts *callscopev1.ConferenceFacts) {
	uid, err := uuid.FromBytes(m.Identity.GetConferenceUid())
	if err != nil {
		return
	}
	c, ok := f.conferences[uid]
	if !ok {
		c = &conference{room: room{m.Identity.AppId, m.Identity.ConferenceId}, uid: uid, first: facts.FirstRawOffset}
		c.inRange = f.inWindow(facts.StartedAtMs, c.app)
		if c.inRange {
			f.openInRange++
		}
		f.conferences[uid] = c
	}
	c.last = max(facts.LastRawOffset, c.last)
	if facts.State != callscopev1.ConferenceState_CONFERENCE_STATE_FORGOTTEN || c.closed {
		return
	}
	c.closed = true
	if c.inRange {
		f.openInRange--
		f.closedAt = f.now
		return
	}
	f.leave(c)
	// Its last rows are still in this group; nothing refers to it afterwards.
	delete(f.conferences, uid)
}

// leave keeps stored conferences of the range as they are where one that is not written reaches into them: their messages
// would be lost otherwise.
func (f *fold) leave(c *conference) {
	for _, s := range f.stored[c.room] {
		if s.FirstRawOffset <= c.last && c.first <= s.LastRawOffset && !f.left[s.ConferenceUID] {
			f.left[s.ConferenceUID] = true
			if c.closed || s.ConferenceUID != c.uid { // else it is counted as open
				f.counts.Left++
			}
		}
	}
}

func (f *fold) inWindow(ms int64, app string) bool {
	t := store.Time(ms)
	return t >= f.window.From && t < f.window.To && (f.window.App == "" || f.window.App == app)
}

func (f *fold) endGroup(ctx context.Context) error {
	for _, m := range f.group {
		wanted := false
		if uid, err := uuid.FromBytes(m.Identity.GetConferenceUid()); err == nil {
			c := f.conferences[uid]
			wanted = c != nil && c.inRange
		} else if m.Identity != nil {
			wanted = f.inWindow(m.ReceivedAtMs, m.Identity.AppId)
		}
		if m.GetIdentity().GetAppId() == f.window.App {
			f.sawApp.Store(true)
		}
		if !wanted {
			continue
		}
		record := stream.Record{Topic: stream.TopicEnriched, Partition: f.partition, Offset: m.Origin.GetOffset()}
		if err := f.rows.AddEnriched(f.cfg.Prepare, record, m); err != nil {
			f.rejected(record.Offset, err)
		}
	}
	f.group = f.group[:0]
	return f.flushWhenFull(ctx)
}

func (f *fold) summary(ctx context.Context, e stage.Emitted) error {
	m := &callscopev1.Summary{}
	if err := m.UnmarshalVT(e.Value); err != nil {
		return fmt.Errorf("reading an output of the summarizer: %w", err)
	}
	if !f.inWindow(m.ConferenceStartedAtMs, m.GetIdentity().GetAppId()) {
		return nil
	}
	record := stream.Record{Topic: stream.TopicSummaries, Partition: f.partition, Offset: m.LastRawOffset}
	if err := f.rows.AddSummary(f.cfg.Prepare, record, m); err != nil {
		f.rejected(record.Offset, err)
	}
	if c := f.conferences[uuid.UUID(m.Identity.ConferenceUid)]; c != nil {
		c.last = max(c.last, m.LastRawOffset)
	}
	return f.flushWhenFull(ctx)
}

func (f *fold) flushWhenFull(ctx context.Context) error {
	if f.rows.Len() < flushRows {
		return nil
	}
	return f.flushRows(ctx)
}

func (f *fold) flushRows(ctx context.Context) error {
	for table, rows := range f.rows.Tables() {
		if err := f.shadow.Insert(ctx, table, rows); err != nil {
			return err
		}
	}
	f.rows.Reset()
	return nil
}

// finish decides which conferences may be written and notes the partition as finished.
func (f *fold) finish(ctx context.Context) error {
	for _, c := range f.conferences {
		if !c.closed {
			f.leave(c)
			if c.inRange {
				f.counts.Open++
			}
		}
	}
	// A conference that overlaps with one that is left would write rows into it.
	kept := map[uuid.UUID]bool{}
	for _, c := range f.conferences {
		if !c.inRange || !c.closed {
			continue
		}
		if !slices.ContainsFunc(f.stored[c.room], func(s store.ConferenceSpan) bool {
			return f.left[s.ConferenceUID] && s.FirstRawOffset <= c.last && c.first <= s.LastRawOffset
		}) {
			kept[c.uid] = true
			f.counts.Conferences++
		}
	}
	for _, spans := range f.stored {
		for _, s := range spans {
			if !f.left[s.ConferenceUID] && f.foldedAll(s) {
				kept[s.ConferenceUID] = true
			}
		}
	}
	scope := make([]uuid.UUID, 0, len(kept))
	for uid := range kept {
		scope = append(scope, uid)
	}
	slices.SortFunc(scope, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
	detail, err := json.Marshal(f.counts)
	if err != nil {
		return fmt.Errorf("noting the progress: %w", err)
	}
	f.add(f.counts)
	return f.shadow.FinishPartition(ctx, f.partition, scope, string(detail))
}

// foldedAll tells whether the raw records of a stored conference were among those that were read: rows from before a
// topic was made anew, or whose records have expired, stay.
func (f *fold) foldedAll(s store.ConferenceSpan) bool {
	return s.FirstRawOffset >= f.start && s.LastRawOffset < f.next
}
