package sink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/callscope/callscope/internal/stage"
	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/stream"
)

func testMetrics(t *testing.T) *metrics {
	t.Helper()
	m, err := newMetrics(prometheus.NewPedanticRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// logOf makes a partition with records of these kinds.
func logOf(kinds ...int) *modelLog {
	l := newModelLog()
	for _, k := range kinds {
		l.appendRecord(k)
	}
	return l
}

// check compares the store with what the log must give, each row stored exactly once.
func check(t *testing.T, l *modelLog, s *modelStore) {
	t.Helper()
	want, rejected := l.want()
	if diff := cmp.Diff(want, s.stored()); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
	got := make(map[int64]bool)
	for _, offset := range l.rejected {
		got[offset] = true
	}
	if diff := cmp.Diff(rejected, got); diff != "" {
		t.Errorf("rejected offsets (-want +got):\n%s", diff)
	}
}

func TestPlanInsertDone(t *testing.T) {
	l, s := logOf(givesOne, givesTwo, givesNone), newModelStore(10)
	o, p := newOwner(l, s, testMetrics(t))
	if err := o.run(p, 1); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"committed", "fetch", "position", "fetch", "fetch", "plan", "insert events_rows", "insert feedback_rows", "done"}, o.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	want := []string{
		"0 v=1;end=3;schema=2;origin=none;uid=00000001000000000000000000000001",
		"3 v=1;origin=0/2;uid=00000001000000000000000000000003",
	}
	if diff := cmp.Diff(want, l.commits); diff != "" {
		t.Errorf("commits (-want +got):\n%s", diff)
	}
	wantToken := []string{"00000001000000000000000000000001/callscope.enriched.v1/0/0-3/events_rows/2"}
	if diff := cmp.Diff(wantToken, s.tables["events_rows"].tokens); diff != "" {
		t.Errorf("token (-want +got):\n%s", diff)
	}
	check(t, l, s)
}

// TestCrashAtEachPoint lets the first owner die at each of its calls, before and after it took effect, and a second one
// go on. Between the two the log has grown, so that a range chosen anew would be another one.
func TestCrashAtEachPoint(t *testing.T) {
	kinds := []int{givesOne, givesTwo, poisonRow, givesNone, undecodable, givesOne}
	points, m := 0, testMetrics(t)
	for _, afterEffect := range []bool{false, true} {
		for at := 1; ; at++ {
			l, s := logOf(kinds...), newModelStore(100)
			first, p := newOwner(l, s, testMetrics(t))
			first.crashAt, first.afterEffect = at, afterEffect
			err := first.run(p, 1)
			if len(first.calls) < at {
				break // it lived to the end
			}
			points++
			point := fmt.Sprintf("dying at %s (after effect: %t)", first.calls[at-1], afterEffect)
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Fatalf("%s: %v", point, err)
			}
			l.appendRecord(givesOne)
			second, p := newOwner(l, s, m)
			if err := second.run(p, 100); err != nil {
				t.Fatalf("%s: the successor: %v", point, err)
			}
			check(t, l, s)
			if t.Failed() {
				t.Fatalf("%s: calls %v, then %v", point, first.calls, second.calls)
			}
		}
	}
	if points < 20 {
		t.Errorf("only %d points were tried", points)
	}
	if got := testutil.ToFloat64(m.ranges.WithLabelValues(stream.TopicEnriched, "resumed")); got < 10 {
		t.Errorf("only %v planned ranges were completed by a successor", got)
	}
}

func TestZombie(t *testing.T) {
	l, s := logOf(givesOne, givesOne), newModelStore(100)
	zombie, p := newOwner(l, s, testMetrics(t))
	if err := p.start(zombie.ctx); err != nil {
		t.Fatal(err)
	}
	// It sleeps before its plan. The successor does the work.
	successor, q := newOwner(l, s, testMetrics(t))
	if err := successor.run(q, 100); err != nil {
		t.Fatal(err)
	}
	before := slices.Clone(l.commits)
	if err := p.step(zombie.ctx); !errors.Is(err, stream.ErrFenced) {
		t.Errorf("the zombie's plan: %v, want it fenced", err)
	}
	if slices.ContainsFunc(zombie.calls, func(c string) bool { return strings.HasPrefix(c, "insert") }) {
		t.Errorf("the zombie inserted although its plan was refused: %v", zombie.calls)
	}
	if diff := cmp.Diff(before, l.commits); diff != "" {
		t.Errorf("the zombie changed the commit:\n%s", diff)
	}
	check(t, l, s)

	// It sleeps between its plan and its insert.
	l, s = logOf(givesOne, givesTwo), newModelStore(100)
	var asleep []func()
	zombie, p = newOwner(l, s, testMetrics(t))
	zombie.crashAt = 7 // committed, fetch, position, fetch, fetch, plan, insert
	zombie.asleep = func(insert func()) { asleep = append(asleep, insert) }
	if err := zombie.run(p, 1); !errors.Is(err, context.Canceled) || len(asleep) != 1 {
		t.Fatalf("the zombie does not sleep in its insert: %v, calls %v", err, zombie.calls)
	}
	successor, q = newOwner(l, s, testMetrics(t))
	if err := successor.run(q, 100); err != nil {
		t.Fatal(err)
	}
	asleep[0]()
	check(t, l, s)
}

func TestRepeatedRecordsAreDroppedAndCounted(t *testing.T) {
	l, s, m := logOf(givesOne, givesNone, givesTwo), newModelStore(100), testMetrics(t)
	l.repeat(0, 3)
	l.appendRecord(poisonRow)
	l.repeat(1, 2)
	l.appendRecord(undecodable)
	o, p := newOwner(l, s, m)
	if err := o.run(p, 100); err != nil {
		t.Fatal(err)
	}
	check(t, l, s)
	for outcome, want := range map[string]float64{outcomeStored: 2, outcomeEmpty: 1, outcomeDuplicate: 4, outcomeRejected: 2} {
		if got := testutil.ToFloat64(m.records.WithLabelValues(stream.TopicEnriched, outcome)); got != want {
			t.Errorf("records %s: %v, want %v", outcome, got, want)
		}
	}
	for table, want := range map[string]float64{"events_rows": 2, "feedback_rows": 1} {
		if got := testutil.ToFloat64(m.rows.WithLabelValues(table)); got != want {
			t.Errorf("rows in %s: %v, want %v", table, got, want)
		}
	}
	if got := testutil.ToFloat64(m.ranges.WithLabelValues(stream.TopicEnriched, "new")); got != 1 {
		t.Errorf("%v ranges, want 1", got)
	}
	if got := testutil.ToFloat64(m.lag.WithLabelValues(stream.TopicEnriched, "0")); got != 0 {
		t.Errorf("lag %v, want 0", got)
	}
	if n := testutil.CollectAndCount(m.queryable); n != 1 {
		t.Errorf("%d series of queryable_seconds, want 1", n)
	}
	if n := testutil.CollectAndCount(m.insert); n != 1 {
		t.Errorf("%d series of insert_seconds, want 1", n)
	}
	if n := testutil.CollectAndCount(m.lagTime); n != 1 {
		t.Errorf("%d series of lag_seconds, want 1", n)
	}
}

func TestGapStopsThePartition(t *testing.T) {
	l, s, m := logOf(givesOne, givesOne, givesOne, givesOne), newModelStore(100), testMetrics(t)
	l.records = slices.Delete(l.records, 2, 3) // never written
	l.records[2].Offset = 2
	o, p := newOwner(l, s, m)
	var stop *stoppedError
	if err := o.run(p, 100); !errors.As(err, &stop) || !strings.Contains(err.Error(), "missing before offset 2") {
		t.Fatalf("a gap gives %v", err)
	}
	if got := testutil.ToFloat64(m.gaps.WithLabelValues(stream.TopicEnriched)); got == 0 {
		t.Error("the gap is not counted")
	}
	if len(s.stored()) != 2 || l.offset != 2 {
		t.Errorf("what came before the gap is not stored: %v, committed %d", s.stored(), l.offset)
	}
	// Its successor stops at the same place, until a person accepts the loss.
	o, p = newOwner(l, s, m)
	if err := o.run(p, 100); !errors.As(err, &stop) {
		t.Fatalf("the successor: %v", err)
	}
	o, p = newOwner(l, s, m)
	p.cfg.AcceptGaps = true
	if err := o.run(p, 100); err != nil {
		t.Fatal(err)
	}
	check(t, l, s)
}

func TestOffsetsThatTheTopicDoesNotHave(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*modelLog)
		want   string // in the reason; empty: goes on
	}{
		"expired before they were stored": {func(l *modelLog) {
			for range 4 {
				l.appendRecord(givesOne)
			}
			l.records, l.start = l.records[5:], 5
		}, "expired before they were stored"},
		"expired exactly up to the offset": {func(l *modelLog) {
			l.records, l.start = nil, 3
			l.appendRecord(givesOne)
		}, ""},
		"made anew and shorter": {func(l *modelLog) {
			commit := *l
			l.recreate()
			l.appendRecord(givesOne)
			l.committed, l.offset, l.metadata = true, commit.offset, commit.metadata
		}, "made anew"},
		"made anew and longer": {func(l *modelLog) {
			commit := *l
			l.recreate()
			for range 9 {
				l.appendRecord(givesOne)
			}
			l.committed, l.offset, l.metadata = true, commit.offset, commit.metadata
		}, "is not the one that was stored"},
		"offsets of a tool": {func(l *modelLog) {
			l.appendRecord(givesOne)
			l.offset, l.metadata = 1, ""
		}, ""},
		"foreign metadata": {func(l *modelLog) { l.metadata = "hello" }, "another program"},
		"newer metadata":   {func(l *modelLog) { l.metadata = "v=2;x=1" }, "version \"2\" is unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			l, s, m := logOf(givesOne, givesOne, givesOne), newModelStore(100), testMetrics(t)
			o, p := newOwner(l, s, m)
			if err := o.run(p, 100); err != nil {
				t.Fatal(err)
			}
			test.change(l)
			o, p = newOwner(l, s, m)
			err := o.run(p, 100)
			var stop *stoppedError
			switch {
			case test.want == "" && err != nil:
				t.Errorf("stops: %v", err)
			case test.want != "" && (!errors.As(err, &stop) || !strings.Contains(err.Error(), test.want)):
				t.Errorf("%v, want it stopped because %q", err, test.want)
			}
		})
	}
}

func TestPlanOfAnotherTopic(t *testing.T) {
	l, s := logOf(givesOne, givesOne, givesOne), newModelStore(100)
	first, p := newOwner(l, s, testMetrics(t))
	first.crashAt, first.afterEffect = 6, true // the plan
	if err := first.run(p, 1); !errors.Is(err, context.Canceled) || first.calls[5] != "plan" {
		t.Fatal(err, first.calls)
	}
	commit := *l
	l.recreate()
	for range 5 {
		l.appendRecord(givesOne)
	}
	l.committed, l.offset, l.metadata = true, commit.offset, commit.metadata
	second, q := newOwner(l, s, testMetrics(t))
	var stop *stoppedError
	if err := second.run(q, 100); !errors.As(err, &stop) || !strings.Contains(err.Error(), "is not the one") {
		t.Errorf("%v, want it stopped", err)
	}
	if len(s.stored()) != 0 {
		t.Errorf("stored %v", s.stored())
	}
}

func TestRejectThatFailsStopsThePartition(t *testing.T) {
	l, s := logOf(givesOne, undecodable), newModelStore(100)
	o, p := newOwner(l, s, testMetrics(t))
	p.log = failingReject{o}
	var stop *stoppedError
	if err := o.run(p, 100); !errors.As(err, &stop) {
		t.Errorf("%v, want it stopped", err)
	}
	if strings.Contains(strings.Join(o.calls, " "), "done") {
		t.Errorf("went past a record that was not set aside: %v", o.calls)
	}
}

type failingReject struct{ *owner }

func (failingReject) Reject(context.Context, stream.Record, string) error {
	return fmt.Errorf("rejecting: %w", stream.ErrTooLarge)
}

func TestPoisonIsIsolatedByHalves(t *testing.T) {
	kinds := slices.Repeat([]int{givesOne}, 100)
	kinds[17], kinds[61] = poisonRow, poisonRow
	l, s, m := logOf(kinds...), newModelStore(1000), testMetrics(t)
	o, p := newOwner(l, s, m)
	if err := o.run(p, 100); err != nil {
		t.Fatal(err)
	}
	check(t, l, s)
	inserts := 0
	for _, c := range o.calls {
		if strings.HasPrefix(c, "insert") {
			inserts++
		}
	}
	if inserts > 2*2*8 { // two paths of halves, log2(100) deep
		t.Errorf("%d inserts to find two rows of 100", inserts)
	}
}

func TestTransientTroubleIsWaitedOutAndShown(t *testing.T) {
	l, s, m := logOf(givesOne), newModelStore(100), testMetrics(t)
	o, p := newOwner(l, s, m)
	var troubles []string
	p.trouble = func(reason string) { troubles = append(troubles, reason) }
	p.store = &failingStore{owner: o, failures: 7}
	if err := o.run(p, 100); err != nil {
		t.Fatal(err)
	}
	check(t, l, s)
	if diff := cmp.Diff([]string{"no route to host", ""}, troubles); diff != "" {
		t.Errorf("troubles shown (-want +got):\n%s", diff)
	}
	if got := testutil.ToFloat64(m.retries.WithLabelValues("insert")); got != 7 {
		t.Errorf("%v retries counted, want 7", got)
	}
}

type failingStore struct {
	*owner
	failures int
}

func (f *failingStore) Insert(ctx context.Context, table, token string, rows any) error {
	if f.failures > 0 {
		f.failures--
		return errors.New("no route to host")
	}
	return f.owner.Insert(ctx, table, token, rows)
}

func TestRangesAreBounded(t *testing.T) {
	l, s := logOf(slices.Repeat([]int{givesOne}, 25)...), newModelStore(100)
	o, p := newOwner(l, s, testMetrics(t))
	p.cfg.MaxRows = 10
	if err := o.run(p, 100); err != nil {
		t.Fatal(err)
	}
	check(t, l, s)
	var ends []string
	for _, c := range l.commits {
		if !strings.Contains(c, "end=") {
			end, _, _ := strings.Cut(c, " ")
			ends = append(ends, end)
		}
	}
	if diff := cmp.Diff([]string{"10", "20", "25"}, ends); diff != "" {
		t.Errorf("ranges end at (-want +got):\n%s", diff)
	}
}

func TestProgressText(t *testing.T) {
	for _, p := range []progress{
		{},
		{filter: filterState{open: true}},
		{uid: []byte{1, 2}, filter: filterState{last: &stage.Origin{Offset: 1 << 40, Index: 7}}},
		{end: 12, schema: 3, uid: []byte{9}, filter: filterState{last: &stage.Origin{}}},
	} {
		got, err := parseProgress(p.String())
		if err != nil {
			t.Error(err)
		}
		if len(got.uid) == 0 {
			got.uid = nil
		}
		if diff := cmp.Diff(p, got, cmp.AllowUnexported(progress{}, filterState{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", p, diff)
		}
	}
}

func FuzzParseProgress(f *testing.F) {
	f.Add("v=1;end=3;schema=2;origin=0/1;uid=00")
	f.Add("v=1;origin=none;uid=")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parseProgress(text)
		if err != nil {
			return
		}
		again, err := parseProgress(p.String())
		if err != nil || again.String() != p.String() {
			t.Errorf("%q is read as %q and then as %q, %v", text, p, again, err)
		}
	})
}

func TestConfig(t *testing.T) {
	if err := (Config{}).Validate(); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
	err := Config{MaxWait: 1, MaxRows: store.MaxBlockRows, MaxRangeBytes: 1, Parallel: -1}.Validate()
	for _, key := range []string{"sink.max_wait", "sink.max_rows", "sink.max_range_bytes", "sink.parallel"} {
		if err == nil || !strings.Contains(err.Error(), key+": ") {
			t.Errorf("%s is not refused: %v", key, err)
		}
	}
}
