package sink

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/callscope/callscope/internal/stage"
	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/stream"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// modelLog is a source partition with the group's commit for it, as a broker has them.
type modelLog struct {
	start    int64 // offset of records[0]
	records  []stream.Record
	origins  []stage.Origin // of the stage's outputs so far, duplicates not repeated
	made     int            // uids given out
	epoch    uint32         // of the topic
	rejected []int64        // offsets, as they were set aside

	generation int
	committed  bool
	offset     int64
	metadata   string
	commits    []string // all that were accepted, for the tests of the protocol's steps
}

func newModelLog() *modelLog { return &modelLog{epoch: 1} }

func (l *modelLog) end() int64 { return l.start + int64(len(l.records)) }

// What a record of the model is.
const (
	givesOne     = iota // a row in events
	givesTwo            // rows in events and feedback
	givesNone           // time
	poisonRow           // an event that the store refuses for good
	undecodable         // not a message, but with a readable header
	kindsOfModel        // number of kinds
)

func modelUID(epoch uint32, n int) []byte {
	u := make([]byte, 16)
	binary.BigEndian.PutUint32(u, epoch)
	binary.BigEndian.PutUint64(u[8:], uint64(n))
	return u
}

// appendRecord writes the next output of the stage.
func (l *modelLog) appendRecord(kind int) {
	n := len(l.origins)
	origin := &callscopev1.Origin{Offset: int64(n / 3), Index: uint32(n % 3)}
	var prev *callscopev1.Origin
	if n > 0 {
		prev = &callscopev1.Origin{Offset: l.origins[n-1].Offset, Index: l.origins[n-1].Index}
	}
	l.made++
	e := &callscopev1.Enriched{
		Uid: modelUID(l.epoch, l.made), Origin: origin, Prev: prev, TimeMs: 1.7e12, ReceivedAtMs: 1.7e12,
		Identity: &callscopev1.Identity{AppId: "1", ConferenceId: "room", ConferenceUid: make([]byte, 16)},
	}
	event := &callscopev1.Event{EventType: "userAlive", DataJson: "{}"}
	e.Body = &callscopev1.Enriched_Event{Event: event}
	switch kind {
	case givesTwo:
		event.Feedback = &callscopev1.FeedbackGiven{}
	case givesNone:
		e.Body = &callscopev1.Enriched_TimePassed{TimePassed: &callscopev1.TimePassed{}}
	case poisonRow:
		event.DataJson = "poison"
	}
	value, err := e.MarshalVT()
	if err != nil {
		panic(err)
	}
	if kind == undecodable {
		value = append(value, 0x32, 0x02, 0x08) // field 6 (identity), cut short inside
		value = append(value, 0xff)
	}
	l.origins = append(l.origins, stage.Origin{Offset: origin.Offset, Index: origin.Index})
	l.appendValue(value)
}

func (l *modelLog) appendValue(value []byte) {
	l.records = append(l.records, stream.Record{Topic: stream.TopicEnriched, Offset: l.end(), Key: []byte("k"), Value: value, Time: time.UnixMilli(1.7e12)})
}

// repeat writes earlier records again, as a stage that died before it knew that they had arrived does.
func (l *modelLog) repeat(from, to int64) {
	for _, r := range slices.Clone(l.records[from-l.start : to-l.start]) {
		l.appendValue(r.Value)
	}
}

// recreate is a topic deleted and made anew under the same name, its group forgotten.
func (l *modelLog) recreate() {
	*l = modelLog{epoch: l.epoch + 1, generation: l.generation}
}

// want is which rows the log must give and which records must be set aside: read from the log without product code
// other than the messages.
func (l *modelLog) want() (rows map[string]int, rejected map[int64]bool) {
	rows, rejected = make(map[string]int), make(map[int64]bool)
	seen := make(map[string]bool)
	for _, r := range l.records {
		uid, _, _, _ := stage.ReadHeader(r.Value)
		if seen[string(uid)] {
			continue
		}
		seen[string(uid)] = true
		var e callscopev1.Enriched
		if err := e.UnmarshalVT(r.Value); err != nil {
			rejected[r.Offset] = true
			continue
		}
		if e.GetEvent() == nil {
			continue
		}
		if e.GetEvent().DataJson == "poison" {
			rejected[r.Offset] = true
			continue
		}
		rows[fmt.Sprintf("events_rows/%x/0", e.Uid)] = 1
		if e.GetEvent().Feedback != nil {
			rows[fmt.Sprintf("feedback_rows/%x/0", e.Uid)] = 1
		}
	}
	return rows, rejected
}

// modelStore is ClickHouse as far as the protocol relies on it: blocks dropped by token within a window, and rows that
// are otherwise stored as often as they come.
type modelStore struct {
	window int
	// torn, if set, says whether the server dies between writing a token down and committing its rows, as one without
	// replication may: the rows are gone and the token stays.
	torn   func() bool
	tables map[string]*modelTable
}

type modelTable struct {
	tokens []string // newest last
	rows   []modelRow
}

type modelRow struct {
	key    string
	source store.Source
	uid    [16]byte
}

func newModelStore(window int) *modelStore {
	return &modelStore{window: window, tables: make(map[string]*modelTable)}
}

func (s *modelStore) insert(table, token string, rows any) error {
	t := s.tables[table]
	if t == nil {
		t = &modelTable{}
		s.tables[table] = t
	}
	var block []modelRow
	v := reflect.ValueOf(rows)
	for i := range v.Len() {
		row := v.Index(i)
		if data := row.FieldByName("Data"); data.IsValid() && data.String() == "poison" {
			return fmt.Errorf("%w: data is poison", store.ErrBadRow)
		}
		key := row.FieldByName("RecordKey").Interface().(store.RecordKey)
		block = append(block, modelRow{
			key:    fmt.Sprintf("%s/%x/%d", table, key.RecordUID[:], key.Index),
			source: row.FieldByName("Source").Interface().(store.Source), uid: key.RecordUID,
		})
	}
	if slices.Contains(t.tokens, token) {
		return nil
	}
	t.tokens = append(t.tokens, token)
	if len(t.tokens) > s.window {
		t.tokens = t.tokens[1:]
	}
	if s.torn != nil && s.torn() {
		return errModelNetwork
	}
	t.rows = append(t.rows, block...)
	return nil
}

func (s *modelStore) highest(topic string, partition int32) (p store.Position, ok bool) {
	for _, t := range s.tables {
		for _, r := range t.rows {
			if string(r.source.Topic) == topic && r.source.Partition == partition && (!ok || r.source.Offset > p.Offset) {
				p, ok = store.Position{Offset: r.source.Offset, RangeStart: r.source.RangeStart, RecordUID: r.uid}, true
			}
		}
	}
	return p, ok
}

// stored counts the rows by key.
func (s *modelStore) stored() map[string]int {
	all := make(map[string]int)
	for _, t := range s.tables {
		for _, r := range t.rows {
			all[r.key]++
		}
	}
	return all
}

// owner is one process that owns the partition for one generation. Everything that it asks of log and store goes
// through it, so that faults can hit every one of its calls.
type owner struct {
	log        *modelLog
	store      *modelStore
	generation int
	rng        *rand.Rand // nil: no random faults
	ctx        context.Context
	cancel     context.CancelFunc

	// crashAt is the number of the call, from 1, at which the process dies; 0: never. afterEffect: the call has still
	// taken effect.
	crashAt     int
	afterEffect bool
	calls       []string

	// asleep, if set, takes an insert that a dying process leaves behind, to be carried out when it wakes up.
	asleep func(insert func())
	// How the protocol is spoiled for a negative control.
	noPlan     bool // plans are not stored
	tokenNoUID bool // tokens do not name the range's first record
}

var errModelNetwork = errors.New("connection reset")

// call is one call to log or store. It returns an error in the caller's place, before or after effect.
func (o *owner) call(name string, effect func() error) error {
	o.calls = append(o.calls, name)
	if len(o.calls) == o.crashAt {
		if o.afterEffect {
			_ = effect()
		}
		o.cancel()
	}
	if o.ctx.Err() != nil {
		return o.ctx.Err()
	}
	if o.rng != nil && o.rng.IntN(12) == 0 {
		if o.rng.IntN(2) == 0 {
			_ = effect() // done, but nobody hears of it
		}
		return errModelNetwork
	}
	return effect()
}

func (o *owner) Fetch(_ context.Context, offset int64, _ int, _ time.Duration) (b stream.Batch, err error) {
	l := o.log
	err = o.call("fetch", func() error {
		b = stream.Batch{Start: l.start, End: l.end(), Next: offset}
		if offset < l.start || offset > l.end() {
			return fmt.Errorf("fetching: %w", stream.ErrOffsetOutOfRange)
		}
		n := l.end() - offset
		if o.rng != nil && n > 0 {
			n = min(n, 1+o.rng.Int64N(6))
		}
		b.Records = slices.Clone(l.records[offset-l.start : offset-l.start+n])
		b.Next = offset + n
		return nil
	})
	return b, err
}

func (o *owner) Committed(context.Context) (offset int64, metadata string, ok bool, err error) {
	err = o.call("committed", func() error {
		offset, metadata, ok = o.log.offset, o.log.metadata, o.log.committed
		return nil
	})
	return offset, metadata, ok, err
}

func (o *owner) Commit(_ context.Context, offset int64, metadata string) error {
	name := "done"
	if strings.Contains(metadata, ";end=") {
		name = "plan"
	}
	return o.call(name, func() error {
		if o.log.generation != o.generation {
			return fmt.Errorf("committing: %w", stream.ErrFenced)
		}
		if name == "plan" && o.noPlan {
			return nil
		}
		o.log.committed, o.log.offset, o.log.metadata = true, offset, metadata
		o.log.commits = append(o.log.commits, fmt.Sprint(offset, " ", metadata))
		return nil
	})
}

func (o *owner) Reject(_ context.Context, r stream.Record, _ string) error {
	return o.call("reject", func() error {
		o.log.rejected = append(o.log.rejected, r.Offset)
		return nil
	})
}

func (o *owner) Insert(_ context.Context, table, token string, rows any) error {
	if o.tokenNoUID {
		_, token, _ = strings.Cut(token, "/")
	}
	insert := func() error { return o.store.insert(table, token, rows) }
	if len(o.calls)+1 == o.crashAt && !o.afterEffect && o.asleep != nil {
		// What is on its way when its owner goes on has been read by then: the owner may use the rows' memory again.
		v := reflect.ValueOf(rows)
		sent := reflect.AppendSlice(reflect.MakeSlice(v.Type(), 0, v.Len()), v).Interface()
		o.asleep(func() { _ = o.store.insert(table, token, sent) })
	}
	return o.call("insert "+table, insert)
}

func (o *owner) HighestPosition(_ context.Context, topic string, partition int32) (p store.Position, ok bool, err error) {
	err = o.call("position", func() error {
		p, ok = o.store.highest(topic, partition)
		return nil
	})
	return p, ok, err
}

// newOwner gives the partition to a new process; the one before is a zombie from now on.
func newOwner(l *modelLog, s *modelStore, m *metrics) (*owner, *partition) {
	l.generation++
	o := &owner{log: l, store: s, generation: l.generation}
	o.ctx, o.cancel = context.WithCancel(context.Background())
	p := &partition{
		topic: stream.TopicEnriched, log: o, store: o, schema: 2, atomicTokens: true, m: m, logger: slog.New(slog.DiscardHandler),
		cfg:     Config{}.withDefaults(),
		pause:   func(ctx context.Context, _ time.Duration) error { return ctx.Err() },
		trouble: func(string) {},
	}
	return o, p
}

// run lets an owner work until it has nothing more to read, has taken steps, or fails.
func (o *owner) run(p *partition, steps int) error {
	defer o.cancel()
	err := p.start(o.ctx)
	for range steps {
		if err != nil || p.next >= o.log.end() {
			break
		}
		err = p.step(o.ctx)
	}
	return err
}
