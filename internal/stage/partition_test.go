package stage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/callscope/callscope/internal/stage"
	"github.com/callscope/callscope/internal/stage/stagetest"
	"github.com/callscope/callscope/internal/stream"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// rig drives one partition by hand.
type rig struct {
	t   *testing.T
	cfg stage.Config
	log *stagetest.Log
	reg *prometheus.Registry
	now time.Duration
	rng *rand.Rand
	p   *stage.Partition

	uids int
}

func newRig(t *testing.T, change ...func(*stage.Config)) *rig {
	cfg := counterConfig()
	cfg.SnapshotInterval = 10 * time.Second
	for _, f := range change {
		f(&cfg)
	}
	r := &rig{t: t, cfg: cfg, log: stagetest.NewLog(cfg.InputTopic, cfg.OutputTopic, cfg.StateTopic), rng: rand.New(rand.NewPCG(1, 2))}
	r.restart()
	return r
}

// restart begins a new assignment; what the old one had in memory is lost.
func (r *rig) restart(change ...func(*stage.Config)) {
	for _, f := range change {
		f(&r.cfg)
	}
	r.reg = prometheus.NewRegistry()
	r.p = stage.New(r.cfg, nil, logger(r.t), r.reg).NewPartition(0, stage.Env{
		Log: r.log, Committer: r.log,
		Now:       func() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(r.now) },
		Monotonic: func() time.Duration { return r.now },
		NewUID: func() []byte {
			r.uids++
			return fmt.Appendf(nil, "uid of test %04d", r.uids)
		},
		Logger: logger(r.t),
	})
}

func (r *rig) send(events ...string) {
	for _, event := range events {
		key, value := stagetest.CounterRecord(r.rng, event)
		r.append(r.cfg.InputTopic, stream.Record{Key: key, Value: value})
	}
}

func (r *rig) append(topic string, records ...stream.Record) {
	if _, err := r.log.Append(r.t.Context(), topic, 0, records); err != nil {
		r.t.Fatal(err)
	}
}

// work advances until there is nothing to do at the present time, or until an
// error comes.
func (r *rig) work() error {
	for idle, last := 0, ""; idle < 3; {
		if err := r.p.Advance(r.t.Context()); err != nil {
			return err
		}
		state := fmt.Sprint(r.p.Next(), len(r.log.Records(r.cfg.InputTopic)), len(r.log.Records(r.cfg.OutputTopic)), len(r.log.Records(r.cfg.StateTopic)))
		if idle++; state != last {
			idle, last = 0, state
		}
	}
	return nil
}

func (r *rig) mustWork() {
	r.t.Helper()
	if err := r.work(); err != nil {
		r.t.Fatal(err)
	}
}

// until advances until an error that is target comes, through at most n others.
func (r *rig) until(target error, n int) error {
	r.t.Helper()
	for others := 0; ; {
		err := r.p.Advance(r.t.Context())
		if errors.Is(err, target) {
			return err
		}
		if err != nil {
			if others++; others > n {
				r.t.Fatalf("%d errors and not %q, the last: %v", others, target, err)
			}
		}
	}
}

func (r *rig) stop() {
	r.t.Helper()
	r.p.Stop()
	r.until(stage.ErrStopped, 0)
}

// check compares the whole output topic with the fold of the input topic.
func (r *rig) check() {
	r.t.Helper()
	var got []output
	for _, rec := range r.log.Records(r.cfg.OutputTopic) {
		got = append(got, output{string(rec.Key), string(rec.Value)})
	}
	if diff := gocmp.Diff(folded(r.t, r.cfg, r.log.Records(r.cfg.InputTopic)), got); diff != "" {
		r.t.Errorf("outputs differ from the fold (-fold +topic):\n%s", diff)
	}
}

func (r *rig) manifests() []*callscopev1.SnapshotManifest {
	var found []*callscopev1.SnapshotManifest
	for _, rec := range r.log.Records(r.cfg.StateTopic) {
		if len(rec.Key) == 16 && rec.Value != nil {
			m := &callscopev1.SnapshotManifest{}
			if err := m.UnmarshalVT(rec.Value); err != nil {
				r.t.Fatal(err)
			}
			found = append(found, m)
		}
	}
	return found
}

// metric returns the value of a metric line, found by its beginning.
func (r *rig) metric(name string) float64 {
	r.t.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	name, outcome, _ := strings.Cut(name, "/")
	for _, f := range families {
		if f.GetName() != "callscope_stage_"+name {
			continue
		}
		for _, m := range f.Metric {
			if m.Label[0].GetValue() == outcome || outcome == "" {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	r.t.Fatalf("no metric %s", name)
	return 0
}

func (r *rig) wantMetrics(want map[string]float64) {
	r.t.Helper()
	got := map[string]float64{}
	for name := range want {
		got[name] = r.metric(name)
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		r.t.Errorf("metrics differ (-want +got):\n%s", diff)
	}
}

func TestRefusedRecordIsSetAside(t *testing.T) {
	r := newRig(t)
	r.send("event", stagetest.EventRefused, "event")
	r.append(r.cfg.InputTopic, stream.Record{Value: []byte("not protobuf")})
	r.send("event")
	r.mustWork()
	r.check()
	var reasons []string
	for _, rej := range r.log.Rejected {
		reasons = append(reasons, fmt.Sprintf("%s %d %s", rej.Stage, rej.Record.Offset, rej.Reason))
	}
	if len(reasons) != 2 || reasons[0] != "enricher 1 refused: refused as asked" || !strings.HasPrefix(reasons[1], "enricher 3 bad_header: ") {
		t.Errorf("set aside: %q", reasons)
	}
	// 5 records and a tick.
	r.wantMetrics(map[string]float64{"read_total": 6, "records_total/processed": 4, "records_total/rejected": 2, "records_total/duplicate": 0,
		"panics_total": 0, "rebuilds_total": 0, "outputs_total": 4, "ticks_total": 1, "lag_records": 0})
}

func TestPanicIsSetAsideAndTheStateBuiltAgain(t *testing.T) {
	r := newRig(t)
	r.send("event", "event", stagetest.EventPanics, "event", stagetest.EventRefused, stagetest.EventPanics, "event", "event")
	r.mustWork()
	r.check() // nothing twice either: what was acknowledged is not written again
	if len(r.log.Rejected) != 3 {
		t.Fatalf("%d records set aside", len(r.log.Rejected))
	}
	form := regexp.MustCompile(`^panic: stack [0-9a-f]{12}: panic as asked$`)
	first, last := r.log.Rejected[0], r.log.Rejected[2]
	if !form.MatchString(first.Reason) || first.Record.Offset != 2 || last.Record.Offset != 5 {
		t.Errorf("set aside %d for %q and %d for %q", first.Record.Offset, first.Reason, last.Record.Offset, last.Reason)
	}
	if first.Reason != last.Reason {
		t.Errorf("equal panics have different reasons: %q, %q", first.Reason, last.Reason)
	}
	r.wantMetrics(map[string]float64{"panics_total": 2, "rebuilds_total": 2})
	read := r.metric("read_total")
	if sum := r.metric("records_total/processed") + r.metric("records_total/rejected") + r.metric("records_total/duplicate"); read != sum {
		t.Errorf("%v read, but %v accounted for", read, sum)
	}
	// A crash afterwards brings no new surprise.
	r.restart()
	r.send("event")
	r.mustWork()
	got := accepted(t, r.log.Records(r.cfg.OutputTopic))
	if diff := gocmp.Diff(folded(t, r.cfg, r.log.Records(r.cfg.InputTopic)), got); diff != "" {
		t.Errorf("after a crash (-fold +accepted):\n%s", diff)
	}
}

func TestPartitionWaitsWhileSettingAsideFails(t *testing.T) {
	for _, event := range []string{stagetest.EventRefused, stagetest.EventPanics} {
		t.Run(event, func(t *testing.T) {
			r := newRig(t)
			r.send("event", event, "event")
			down := errors.New("reject topic is down")
			r.log.Fail = func(call, _ string) error {
				if call == "reject" {
					return down
				}
				return nil
			}
			for range 5 {
				r.until(down, 0)
			}
			if n := len(folded(t, r.cfg, r.log.Records(r.cfg.InputTopic)[:1])); len(r.log.Records(r.cfg.OutputTopic)) > n {
				t.Errorf("went past a record that is not set aside: %d outputs", len(r.log.Records(r.cfg.OutputTopic)))
			}
			r.log.Fail = nil
			r.mustWork()
			r.check()
			if len(r.log.Rejected) != 1 {
				t.Errorf("%d records set aside", len(r.log.Rejected))
			}
		})
	}
}

// tooLarge makes an output that no topic takes.
type tooLarge struct{ *stagetest.Counter }

func (m tooLarge) Step(in stage.Input) ([]stage.Output, error) {
	outputs, err := m.Counter.Step(in)
	if bytes.Contains(in.Value, []byte("large")) {
		outputs[0].Message.(*callscopev1.Enriched).GetEvent().DataJson = strings.Repeat("x", stream.MaxRecordBytes)
	}
	return outputs, err
}

func TestOutputTooLargeIsSetAside(t *testing.T) {
	r := newRig(t, func(cfg *stage.Config) {
		cfg.NewMachine = func(int32) stage.Machine { return tooLarge{stagetest.NewCounter()} }
	})
	r.send("event", "large", "event")
	r.mustWork()
	r.check()
	if len(r.log.Rejected) != 1 || !strings.HasPrefix(r.log.Rejected[0].Reason, "output_too_large: output 0 has ") {
		t.Errorf("set aside: %v", r.log.Rejected)
	}
}

func TestGapStopsThePartition(t *testing.T) {
	for name, c := range map[string]struct {
		hurt    func(*rig)
		message string
	}{
		"hole": {func(r *rig) {
			r.log.Skip(r.cfg.InputTopic)
			r.send("event", "event")
		}, "has no record at offset 3, the next is at 4"},
		"expired": {func(r *rig) {
			r.send("event", "event")
			r.log.DeleteBefore(r.cfg.InputTopic, 4)
		}, "input offset 3 is not in"},
		"made anew": {func(r *rig) { r.log.Replace(r.cfg.InputTopic) }, "input offset 3 is not in"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(cfg *stage.Config) { cfg.Ticks = false })
			r.send("event", "event", "event")
			r.mustWork()
			c.hurt(r)
			err := r.until(stage.ErrGap, 2)
			if !strings.Contains(err.Error(), c.message) {
				t.Errorf("error %q lacks %q", err, c.message)
			}
			// What was done before can still be saved.
			r.stop()
			if m := r.manifests(); len(m) != 2 || m[1].InputOffset != 3 || !m[1].CleanShutdown {
				t.Errorf("snapshots: %v", m)
			}
		})
	}
}

func TestHoleIsFetchedAgain(t *testing.T) {
	for _, hole := range []int{0, 2} {
		t.Run(fmt.Sprintf("hole at %d", hole), func(t *testing.T) {
			r := newRig(t, func(cfg *stage.Config) { cfg.Ticks = false })
			r.send("event", "event", "event", "event")
			log := &holedLog{Log: r.log, hole: hole}
			r.p = stage.New(r.cfg, nil, logger(t), nil).NewPartition(0, stage.Env{
				Log: log, Committer: r.log, Now: time.Now, Monotonic: func() time.Duration { return 0 },
				NewUID: func() []byte { return []byte("0123456789abcdef") }, Logger: logger(t),
			})
			for r.p.Next() < 4 || len(r.log.Records(r.cfg.OutputTopic)) < 4 {
				if err := r.p.Advance(t.Context()); err != nil && !strings.Contains(err.Error(), "looking again") {
					t.Fatal(err)
				}
			}
			r.check()
			if log.fetches < 2 {
				t.Errorf("only %d fetches", log.fetches)
			}
		})
	}
}

// holedLog leaves a record out of the first fetch of the input.
type holedLog struct {
	*stagetest.Log
	hole, fetches int
}

func (l *holedLog) Fetch(ctx context.Context, topic string, partition int32, offset int64, maxBytes int, wait time.Duration) (stream.Batch, error) {
	b, err := l.Log.Fetch(ctx, topic, partition, offset, maxBytes, wait)
	if topic == stream.TopicRaw {
		if l.fetches++; l.fetches == 1 {
			b.Records = slices.Delete(b.Records, l.hole, l.hole+1)
		}
	}
	return b, err
}

func TestGapOfOriginsStopsThePartition(t *testing.T) {
	cfg := totalsConfig()
	first := newRig(t)
	first.send("event", "event", "event", "event")
	first.mustWork()
	records := first.log.Records(first.cfg.OutputTopic)

	r := newRig(t, func(c *stage.Config) { *c = cfg })
	r.append(cfg.InputTopic, records[0], records[1], records[0], records[1], records[3])
	r.mustWorkUntilGap("output 3/0 of the stage before follows 2/0, but the last one seen is 1/0")
	r.wantMetrics(map[string]float64{"records_total/processed": 2, "records_total/duplicate": 2, "read_total": 4})
	r.stop()
	if m := r.manifests(); m[len(m)-1].InputOffset != 4 || m[len(m)-1].LastInputOrigin.GetOffset() != 1 {
		t.Errorf("saved %v", m)
	}
	// The next owner finds the gap again.
	r.restart()
	r.mustWorkUntilGap("output 3/0")
}

// Whoever began in the middle of a topic has accepted nothing yet. If it ends
// before its second snapshot, the next owner still begins in the middle.
func TestBeginsInTheMiddleAgain(t *testing.T) {
	cfg := totalsConfig()
	first := newRig(t)
	first.send("event", "event", "event")
	first.mustWork()

	r := newRig(t, func(c *stage.Config) { *c = cfg; c.StartWithoutState = true })
	records := first.log.Records(first.cfg.OutputTopic)
	r.append(cfg.InputTopic, records...)
	r.log.DeleteBefore(cfg.InputTopic, 1)
	for len(r.manifests()) == 0 {
		if err := r.p.Advance(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if m := r.manifests()[0]; m.InputOffset != 1 {
		t.Fatalf("the first snapshot is of offset %d", m.InputOffset)
	}
	r.restart(func(c *stage.Config) { c.StartWithoutState = false })
	r.mustWork()
	if r.p.Next() != int64(len(records)) {
		t.Errorf("stands at %d of %d", r.p.Next(), len(records))
	}
}

func (r *rig) mustWorkUntilGap(message string) {
	r.t.Helper()
	if err := r.until(stage.ErrGap, 0); !strings.Contains(err.Error(), message) {
		r.t.Fatalf("error %q lacks %q", err, message)
	}
}

func TestRestore(t *testing.T) {
	input := func(r *rig) []stream.Record { return slices.Clone(r.log.Records(r.cfg.InputTopic)) }
	for name, c := range map[string]struct {
		// hurt is done between the stop of one owner, at offset 4, and the start
		// of the next.
		hurt    func(*rig)
		refused string // empty: goes on
		// override: the operator may go on without the state.
		override bool
	}{
		"untouched":            {func(r *rig) {}, "", false},
		"expired exactly":      {func(r *rig) { r.log.DeleteBefore(r.cfg.InputTopic, 4) }, "", false},
		"expired before":       {func(r *rig) { r.log.DeleteBefore(r.cfg.InputTopic, 3) }, "", false},
		"expired beyond":       {func(r *rig) { r.send("event", "event"); r.log.DeleteBefore(r.cfg.InputTopic, 5) }, "the snapshot continues at offset 4, but callscope.raw.v1/0 begins at 5", true},
		"state lost":           {func(r *rig) { r.log.Replace(r.cfg.StateTopic) }, "", false}, // raw is still whole
		"state and raw lost":   {func(r *rig) { r.log.Replace(r.cfg.StateTopic); r.log.DeleteBefore(r.cfg.InputTopic, 2) }, "has never been written, but callscope.raw.v1/0 begins at offset 2", true},
		"manifests lost":       {func(r *rig) { r.loseManifests() }, "has been written but holds no complete snapshot", true},
		"input made anew":      {func(r *rig) { recs := input(r); r.log.Replace(r.cfg.InputTopic, append(recs[1:4], recs[0])...) }, "The topic was made anew", false},
		"input shorter":        {func(r *rig) { r.log.Replace(r.cfg.InputTopic, input(r)[:2]...) }, "ends at 2. The topic was made anew", false},
		"newer logic wrote it": {func(r *rig) { r.cfg.LogicVersion-- }, "written by logic version 1, format 1; this is logic version 0", false},
		"newer format":         {func(r *rig) { r.cfg.FormatVersion-- }, "this is logic version 1, format 0", false},
		"another topic":        {func(r *rig) { r.renameInput("other") }, "holds the state of callscope.raw.v1/0, not of other/0", false},
		"machine cannot read it": {func(r *rig) {
			r.cfg.NewMachine = func(int32) stage.Machine { return unreadable{stagetest.NewCounter()} }
		}, "decoding the state of snapshot", false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.send("event", stagetest.EventBurst, "event")
			r.mustWork() // and a tick
			r.stop()
			c.hurt(r)
			r.restart()
			if c.refused != "" {
				err := r.until(stage.ErrRefused, 2)
				if !strings.Contains(err.Error(), c.refused) {
					t.Errorf("error %q lacks %q", err, c.refused)
				}
				if r.p.Next() != -1 {
					t.Error("restored nevertheless")
				}
				r.restart(func(cfg *stage.Config) { cfg.StartWithoutState = true })
				if !c.override {
					r.until(stage.ErrRefused, 2)
					return
				}
				start := r.log.Records(r.cfg.InputTopic)[0].Offset
				if err := r.p.Advance(t.Context()); err != nil || r.p.Next() != start {
					t.Fatalf("began at %d, not at %d: %v", r.p.Next(), start, err)
				}
				r.mustWork()
				// Once begun, the override is not needed any more.
				r.restart(func(cfg *stage.Config) { cfg.StartWithoutState = false })
			}
			r.send("event")
			r.mustWork()
			if r.p.Next() < 5 {
				t.Errorf("stands at %d", r.p.Next())
			}
			accepted(t, r.log.Records(r.cfg.OutputTopic)) // fails on a gap
		})
	}
}

type unreadable struct{ *stagetest.Counter }

func (unreadable) Restore(uint32, []byte) error { panic("what is this") }

func (r *rig) loseManifests() {
	for _, rec := range slices.Clone(r.log.Records(r.cfg.StateTopic)) {
		if len(rec.Key) == 16 {
			r.append(r.cfg.StateTopic, stream.Record{Key: rec.Key})
		}
	}
	r.log.Compact(r.cfg.StateTopic)
}

func (r *rig) renameInput(name string) {
	renamed := stagetest.NewLog(name, r.cfg.OutputTopic, r.cfg.StateTopic)
	renamed.Replace(name, r.log.Records(r.cfg.InputTopic)...)
	renamed.Replace(r.cfg.StateTopic, r.log.Records(r.cfg.StateTopic)...)
	r.log, r.cfg.InputTopic = renamed, name
}

func TestNewLogicBeginsWithASnapshot(t *testing.T) {
	r := newRig(t)
	r.send("event")
	r.mustWork()
	r.stop()
	r.send("event")
	before := len(r.manifests())
	r.restart(func(cfg *stage.Config) { cfg.LogicVersion = 2 })
	r.log.Fail = func(call, topic string) error {
		if call == "fetch" && topic == r.cfg.InputTopic && r.p.Next() >= 0 && len(r.manifests()) == before {
			return errors.New("read input before the snapshot was written")
		}
		return nil
	}
	r.mustWork()
	m := r.manifests()
	if m[before].LogicVersion != 2 || m[before].InputOffset != m[before-1].InputOffset {
		t.Errorf("first snapshot of the new logic: %v, after %v", m[before], m[before-1])
	}
}

func TestSnapshots(t *testing.T) {
	r := newRig(t, func(cfg *stage.Config) {
		cfg.ChunkBytes = 50
		cfg.NewMachine = func(int32) stage.Machine { c := stagetest.NewCounter(); c.Ballast = 300; return c }
	})
	// A former owner died over its snapshot.
	torn := []byte("torn-snapshot-id")
	value, err := (&callscopev1.SnapshotChunk{SnapshotUid: torn, Data: []byte("x")}).MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	r.mustWork()
	r.append(r.cfg.StateTopic, stream.Record{Key: append(torn, 0, 0, 0, 0), Value: value})
	r.restart()
	r.mustWork()
	for range 6 {
		r.send("event", "event")
		r.now += 9 * time.Second
		r.mustWork()
		before := len(r.manifests())
		r.now += 2 * time.Second
		r.mustWork()
		if got := len(r.manifests()); got != before+1 {
			t.Fatalf("%d new snapshots 11 s after the last", got-before)
		}
	}
	if r.metric("snapshots_total") != 6 || r.metric("snapshot_bytes") == 0 {
		t.Error("snapshot metrics do not move")
	}

	// Each tombstone has two newer manifests before it.
	position := map[string]int{}
	var manifests []int
	tombstones := 0
	for i, rec := range r.log.Records(r.cfg.StateTopic) {
		uid := string(rec.Key[:16])
		switch {
		case len(rec.Key) != 16 && len(rec.Key) != 20:
			t.Fatalf("record %d has the key %x", i, rec.Key)
		case rec.Value != nil && len(rec.Key) == 16:
			manifests = append(manifests, i)
			position[uid] = i
		case rec.Value != nil:
			position[uid] = i
		default:
			tombstones++
			newer := 0
			for _, m := range manifests {
				if m > position[uid] {
					newer++
				}
			}
			if newer < 2 {
				t.Errorf("record %d deletes a part of %x, which has %d newer manifests", i, uid, newer)
			}
		}
	}
	if tombstones == 0 {
		t.Error("no tombstones")
	}
	r.log.Compact(r.cfg.StateTopic)
	if got := len(r.manifests()); got != 2 {
		t.Errorf("%d snapshots left after compaction, want the last 2", got)
	}
	for _, rec := range r.log.Records(r.cfg.StateTopic) {
		if bytes.HasPrefix(rec.Key, torn) {
			t.Error("the torn snapshot was not cleared")
		}
	}
	next := r.p.Next()
	r.restart()
	if err := r.p.Advance(t.Context()); err != nil || r.p.Next() > next || r.p.Next() < next-3 {
		t.Errorf("restored at %d after %d: %v", r.p.Next(), next, err)
	}
}

// TestLargeStateIsWrittenSeldom: a state of n MiB at most every n seconds, in
// chunks of 256 KiB.
func TestLargeStateIsWrittenSeldom(t *testing.T) {
	r := newRig(t, func(cfg *stage.Config) {
		cfg.Ticks = false
		cfg.NewMachine = func(int32) stage.Machine { c := stagetest.NewCounter(); c.Ballast = 18 << 20; return c }
	})
	r.send("event")
	r.now += 11 * time.Second
	r.mustWork()
	r.now += 11 * time.Second
	r.mustWork()
	m := r.manifests()
	last := m[len(m)-1]
	if last.InputOffset != 1 || last.StateBytes < 24<<20 || last.Chunks != uint32((last.StateBytes+256<<10-1)/(256<<10)) {
		t.Fatalf("snapshot %v", last)
	}
	for _, rec := range r.log.Records(r.cfg.StateTopic) {
		if len(rec.Value) > 256<<10+64 {
			t.Fatalf("a record of %d bytes", len(rec.Value))
		}
	}
	for _, step := range []struct {
		wait time.Duration
		want int
	}{{20 * time.Second, len(m)}, {5 * time.Second, len(m) + 1}} {
		r.send("event")
		r.now += step.wait
		r.mustWork()
		if got := len(r.manifests()); got != step.want {
			t.Errorf("%d snapshots %v later, want %d", got, step.wait, step.want)
		}
	}
	r.restart()
	r.mustWork()
	if diff := gocmp.Diff(folded(t, r.cfg, r.log.Records(r.cfg.InputTopic)), accepted(t, r.log.Records(r.cfg.OutputTopic))); diff != "" {
		t.Errorf("after a restart (-fold +accepted):\n%s", diff)
	}
}

func TestStopSavesWhatWasDone(t *testing.T) {
	r := newRig(t, func(cfg *stage.Config) { cfg.FetchBytes = 1 })
	r.send("event", "event", "event")
	// Stop between stepping and writing: the outputs are written, the state
	// saved, nothing is repeated.
	for r.p.Next() < 3 {
		if err := r.p.Advance(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if len(r.log.Records(r.cfg.OutputTopic)) != 0 {
		t.Fatal("outputs were written already")
	}
	r.stop()
	m := r.manifests()
	if last := m[len(m)-1]; !last.CleanShutdown || last.InputOffset != 3 || r.log.Committed != 3 {
		t.Errorf("saved %v, committed %d", last, r.log.Committed)
	}
	r.restart()
	r.mustWork()
	r.check()
	// Nothing new: nothing to save.
	r.stop()
	before := len(r.log.Records(r.cfg.StateTopic))
	r.restart(func(cfg *stage.Config) { cfg.Ticks = false })
	r.mustWork()
	r.stop()
	if got := len(r.log.Records(r.cfg.StateTopic)); got != before {
		t.Errorf("%d records in the state topic after a rest, %d before", got, before)
	}
}

func (r *rig) ticks() (tickers []string, ms []int64) {
	for _, rec := range r.log.Records(r.cfg.InputTopic) {
		var raw callscopev1.Raw
		if err := raw.UnmarshalVT(rec.Value); err != nil {
			r.t.Fatal(err)
		}
		if tick := raw.GetTick(); tick != nil {
			tickers = append(tickers, string(tick.TickerUid))
			ms = append(ms, tick.MonotonicMs)
		}
	}
	return tickers, ms
}

func TestTicks(t *testing.T) {
	r := newRig(t)
	r.mustWork()
	if _, ms := r.ticks(); len(ms) != 0 {
		t.Fatal("ticks although nothing waits for time")
	}
	r.now = 5 * time.Second
	r.send("event")
	for range 30 {
		r.mustWork()
		r.now += 500 * time.Millisecond
	}
	tickers, ms := r.ticks()
	var want []int64
	for at := int64(5000); at < 20_000; at += 1000 {
		want = append(want, at)
	}
	if diff := gocmp.Diff(want, ms); diff != "" {
		t.Errorf("ticks (-want +got):\n%s", diff)
	}
	if len(slices.Compact(tickers)) != 1 {
		t.Error("more than one ticker")
	}
	// After everything is closed and forgotten, they end.
	for range 70 {
		r.now += time.Second
		r.mustWork()
	}
	_, ms = r.ticks()
	r.now += time.Minute
	r.mustWork()
	if _, later := r.ticks(); len(later) != len(ms) {
		t.Error("ticks go on although nothing waits for time")
	}
	// While nothing waits for time none passes: what begins after a rest of any
	// length is not older than the time since the tick before.
	r.send("event")
	r.mustWork()
	if _, later := r.ticks(); len(later) != len(ms)+1 || later[len(later)-1]-ms[len(ms)-1] > 1000 {
		t.Errorf("after a rest of a minute the ticks are %d", later[len(ms)-1:])
	}
	r.now += time.Second
	r.mustWork()
	if _, later := r.ticks(); later[len(later)-1]-later[len(later)-2] != 1000 {
		t.Errorf("a second later the ticks are %d", later[len(ms)-1:])
	}
	r.check()

	// The next assignment is another ticker.
	r.restart()
	r.send("event")
	r.mustWork()
	if tickers, _ := r.ticks(); tickers[len(tickers)-1] == tickers[0] {
		t.Error("the ticker uid was used again")
	}
}

func TestSupersededTicker(t *testing.T) {
	for _, owner := range []bool{true, false} {
		t.Run(fmt.Sprintf("still owner %v", owner), func(t *testing.T) {
			r := newRig(t)
			r.send("event")
			r.mustWork()
			r.now += time.Second
			r.mustWork()
			ours, _ := r.ticks()
			r.tickOfAnother()
			if !owner {
				r.log.Fail = func(call, _ string) error {
					if call == "commit" {
						return stream.ErrFenced
					}
					return nil
				}
				r.until(stream.ErrFenced, 0)
			} else {
				r.mustWork()
				r.now += time.Second
				r.mustWork()
			}
			after, _ := r.ticks()
			if !owner {
				if len(after) != len(ours)+1 {
					t.Errorf("a former owner went on ticking: %q", after)
				}
				return
			}
			last := after[len(after)-1]
			if last == ours[0] || last == "another ticker" {
				t.Errorf("ticks as %q after being superseded", last)
			}
		})
	}
}

// The tick of another may come right behind our first one, and both be read at
// once: the state has then followed ours, though nobody saw it.
func TestSupersededAtOnce(t *testing.T) {
	r := newRig(t)
	r.send("event")
	for {
		if err := r.p.Advance(t.Context()); err != nil {
			t.Fatal(err)
		}
		if ours, _ := r.ticks(); len(ours) == 1 {
			break
		}
	}
	r.tickOfAnother()
	for range 3 {
		r.mustWork()
		r.now += time.Second
	}
	tickers, _ := r.ticks()
	if last := tickers[len(tickers)-1]; last == tickers[0] || last == "another ticker" {
		t.Errorf("ticks as %q after being superseded", tickers)
	}
	r.check()
}

func (r *rig) tickOfAnother() {
	r.t.Helper()
	value, err := (&callscopev1.Raw{Uid: []byte("other tick's uid"), Payload: &callscopev1.Raw_Tick{
		Tick: &callscopev1.Tick{TickerUid: []byte("another ticker"), MonotonicMs: 7},
	}}).MarshalVT()
	if err != nil {
		r.t.Fatal(err)
	}
	r.append(r.cfg.InputTopic, stream.Record{Value: value})
}

func TestLag(t *testing.T) {
	r := newRig(t, func(cfg *stage.Config) { cfg.Ticks = false })
	r.send(slices.Repeat([]string{"event"}, 5)...)
	short := shortLog{r.log}
	r.reg = prometheus.NewRegistry()
	r.p = stage.New(r.cfg, nil, logger(t), r.reg).NewPartition(0, stage.Env{
		Log: short, Committer: r.log, Monotonic: func() time.Duration { return 0 },
		Now:    func() time.Time { return r.log.Records(r.cfg.InputTopic)[0].Time.Add(90 * time.Second) },
		NewUID: func() []byte { return []byte("0123456789abcdef") }, Logger: logger(t),
	})
	for r.p.Next() < 2 {
		if err := r.p.Advance(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	r.wantMetrics(map[string]float64{"lag_records": 3, "lag_seconds": 90})
	for r.p.Next() < 5 {
		if err := r.p.Advance(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	r.wantMetrics(map[string]float64{"lag_records": 0, "lag_seconds": 0})
	if n, err := testutil.GatherAndCount(r.reg, "callscope_stage_restore_seconds", "callscope_stage_snapshot_age_seconds", "callscope_stage_snapshot_seconds"); err != nil || n != 3 {
		t.Errorf("%d metrics: %v", n, err)
	}
}

// shortLog gives two records at a time.
type shortLog struct{ *stagetest.Log }

func (l shortLog) Fetch(ctx context.Context, topic string, partition int32, offset int64, maxBytes int, wait time.Duration) (stream.Batch, error) {
	b, err := l.Log.Fetch(ctx, topic, partition, offset, maxBytes, wait)
	if len(b.Records) > 2 && topic == stream.TopicRaw {
		b.Records = b.Records[:2]
		b.Next = b.Records[1].Offset + 1
	}
	return b, err
}

// TestBatchesDoNotMatter: one record at a time or all at once, the outputs
// have the same bytes.
func TestBatchesDoNotMatter(t *testing.T) {
	var all [][]output
	for _, single := range []bool{true, false} {
		r := newRig(t, func(cfg *stage.Config) { cfg.Ticks = false })
		events := slices.Repeat([]string{"event", stagetest.EventBurst, stagetest.EventPanics, stagetest.EventRefused}, 10)
		if single {
			for _, e := range events {
				r.send(e)
				r.mustWork()
			}
		} else {
			r.send(events...)
			r.mustWork()
		}
		r.check()
		all = append(all, accepted(t, r.log.Records(r.cfg.OutputTopic)))
	}
	if diff := gocmp.Diff(all[0], all[1]); diff != "" {
		t.Errorf("(-one by one +at once):\n%s", diff)
	}
}

// TestChunkArrivesAgainBehindItsManifest: a request that was given up and sent
// again may reach the log long afterwards, and compaction then keeps the later
// copy. The snapshot is still whole.
func TestChunkArrivesAgainBehindItsManifest(t *testing.T) {
	r := newRig(t, func(cfg *stage.Config) { cfg.ChunkBytes = 20 })
	r.send("event", "event")
	r.mustWork()
	r.stop()
	m := r.manifests()
	last := m[len(m)-1]
	for _, rec := range slices.Clone(r.log.Records(r.cfg.StateTopic)) {
		if bytes.HasPrefix(rec.Key, last.SnapshotUid) && len(rec.Key) > 16 && rec.Key[19] < 3 {
			r.append(r.cfg.StateTopic, stream.Record{Key: rec.Key, Value: rec.Value})
		}
	}
	r.log.Compact(r.cfg.StateTopic)
	r.restart()
	if err := r.p.Advance(t.Context()); err != nil || r.p.Next() != last.InputOffset {
		t.Errorf("restored at %d, not at %d: %v", r.p.Next(), last.InputOffset, err)
	}
}

// TestFormerOwnerDeletesNothing: before old snapshots go, the group is asked
// whether the partition is still ours.
func TestFormerOwnerDeletesNothing(t *testing.T) {
	r := newRig(t)
	r.log.Fail = func(call, _ string) error {
		// The third snapshot makes the first one superfluous.
		if call == "commit" && len(r.manifests()) == 3 {
			return stream.ErrFenced
		}
		return nil
	}
	for i := 0; ; i++ {
		r.send("event")
		r.now += 11 * time.Second
		if err := r.work(); errors.Is(err, stream.ErrFenced) {
			break
		} else if err != nil || i > 20 {
			t.Fatalf("not fenced after %d rounds: %v", i, err)
		}
	}
	for _, rec := range r.log.Records(r.cfg.StateTopic) {
		if rec.Value == nil {
			t.Errorf("deleted %x", rec.Key)
		}
	}
}
