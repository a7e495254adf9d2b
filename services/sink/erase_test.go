package sink

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/callscope/callscope/internal/erasures"
	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/stream"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// erasureLog is the erasures topic.
type erasureLog struct{ records []stream.Record }

func (l *erasureLog) Fetch(_ context.Context, _ string, _ int32, offset int64, _ int, _ time.Duration) (stream.Batch, error) {
	return stream.Batch{Records: l.records[offset:], End: int64(len(l.records)), Next: int64(len(l.records))}, nil
}

func (l *erasureLog) Offsets(context.Context, string, int32) (int64, int64, error) {
	return 0, int64(len(l.records)), nil
}

func (l *erasureLog) Append(_ context.Context, _ string, _ int32, recs []stream.Record) (int64, error) {
	l.records = append(l.records, recs...)
	return int64(len(l.records) - len(recs)), nil
}

// lastRows is a store that keeps the user of the row that was stored last under each key, unless its token was known.
type lastRows struct {
	*owner
	tokens map[string]bool
	users  map[string]string
	before func() error // called before each insert of events
	after  func() error // and behind it, when the rows are stored
}

func (s *lastRows) Insert(ctx context.Context, table, token string, rows any) error {
	events, ok := rows.([]store.EventRow)
	if !ok {
		return s.owner.Insert(ctx, table, token, rows)
	}
	if s.before != nil {
		if err := s.before(); err != nil {
			return err
		}
	}
	if !s.tokens[token] {
		s.tokens[token] = true
		for _, e := range events {
			s.users[e.RecordUID.String()] = e.UserID
		}
	}
	if err := s.owner.Insert(ctx, table, token, rows); err != nil {
		return err
	}
	if s.after != nil {
		return s.after()
	}
	return nil
}

// Whenever an erasure comes, no row that is visible when the range is done shows the user; a row that was stored before
// the erasure is the business of the rewriting.
func TestErasureAtEveryMoment(t *testing.T) {
	once := func(do func() error) func() error {
		done := false
		return func() error {
			if done {
				return nil
			}
			done = true
			return do()
		}
	}
	for name, when := range map[string]func(s *lastRows, erase func() error){
		"before everything":                   func(_ *lastRows, erase func() error) { _ = erase() },
		"between making the rows and storing": func(s *lastRows, erase func() error) { s.before = once(erase) },
		"before a repetition": func(s *lastRows, erase func() error) {
			s.before = once(func() error { return errors.Join(erase(), errModelNetwork) })
		},
		"when the rows are stored": func(s *lastRows, erase func() error) { s.after = once(erase) },
		"when the rows are stored and nobody heard of it": func(s *lastRows, erase func() error) {
			s.after = once(func() error { return errors.Join(erase(), errModelNetwork) })
		},
		"between two owners": func(s *lastRows, erase func() error) {
			s.after = once(func() error { s.cancel(); return errors.Join(erase(), context.Canceled) })
		},
	} {
		for _, atomic := range []bool{true, false} {
			l := newModelLog()
			for range 3 {
				l.appendRecord(givesTwo)
				withUser(t, l, "alice")
			}
			key, err := erasures.NewKey(strings.Repeat("k", erasures.MinKeyBytes))
			if err != nil {
				t.Fatal(err)
			}
			set, err := erasures.NewSet(&erasureLog{}, key, slog.New(slog.DiscardHandler), nil)
			if err != nil {
				t.Fatal(err)
			}
			rows := &lastRows{tokens: map[string]bool{}, users: map[string]string{}}
			modelRows := newModelStore(10)
			own := func() error {
				o, p := newOwner(l, modelRows, testMetrics(t))
				rows.owner, p.store, p.erasures, p.atomicTokens = o, rows, set, atomic
				if rows.before == nil && rows.after == nil {
					when(rows, func() error { return set.Put(t.Context(), key.Erasure("1", "alice", 1.8e12, nil)) })
				}
				return o.run(p, 1)
			}
			if err := own(); err != nil && name != "between two owners" {
				t.Fatalf("%s: %v", name, err)
			}
			if name == "between two owners" {
				if err := own(); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
			}
			if len(rows.users) != 3 {
				t.Errorf("%s: %d rows", name, len(rows.users))
			}
			for uid, user := range rows.users {
				if user != key.Pseudonym("1", "alice") {
					t.Errorf("%s, atomic tokens %v: the row of %s shows %q", name, atomic, uid, user)
				}
			}
		}
	}
}

// withUser makes the last record of a log a user's.
func withUser(t *testing.T, l *modelLog, user string) {
	t.Helper()
	var e callscopev1.Enriched
	last := &l.records[len(l.records)-1]
	if err := e.UnmarshalVT(last.Value); err != nil {
		t.Fatal(err)
	}
	e.Identity.UserId = user
	var err error
	if last.Value, err = e.MarshalVT(); err != nil {
		t.Fatal(err)
	}
}

// A sink that cannot know who was erased stores nothing.
func TestNoErasuresNoRows(t *testing.T) {
	l, s := logOf(givesOne), newModelStore(10)
	o, p := newOwner(l, s, testMetrics(t))
	p.erasures = unknownErasures{}
	tries := 0
	var said []string
	p.trouble = func(reason string) { said = append(said, reason) }
	p.pause = func(ctx context.Context, _ time.Duration) error {
		if tries++; tries > 10 {
			o.cancel()
		}
		return ctx.Err()
	}
	if err := o.run(p, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
	if len(s.stored()) != 0 {
		t.Errorf("stored %v", s.stored())
	}
	if len(said) == 0 || !strings.Contains(said[0], "master_key") {
		t.Errorf("it said %q", said)
	}
}

type unknownErasures struct{}

func (unknownErasures) Current(context.Context) (*erasures.View, error) {
	return nil, erasures.ErrOtherKey
}
