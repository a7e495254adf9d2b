package replay

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/callscope/callscope/internal/replay"
	"github.com/callscope/callscope/internal/stage"
	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/store/storetest"
	"github.com/callscope/callscope/internal/stream"
	"github.com/callscope/callscope/internal/stream/streamtest"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
	"github.com/callscope/callscope/services/enricher"
	"github.com/callscope/callscope/services/summarizer"
)

// otherLogic is a machine with another idea of what to make of its input.
type otherLogic struct {
	stage.Machine
	input  func(*stage.Input) bool
	output func(stage.Message)
}

func (m otherLogic) Step(in stage.Input) ([]stage.Output, error) {
	if m.input != nil && !m.input(&in) {
		return nil, nil
	}
	outputs, err := m.Machine.Step(in)
	for _, out := range outputs {
		if m.output != nil {
			m.output(out.Message)
		}
	}
	return outputs, err
}

// doubledDelays is a summarizer with another constant.
func doubledDelays() stage.Machine {
	return otherLogic{Machine: summarizer.NewMachine(), output: func(m stage.Message) {
		if f := m.(*callscopev1.Summary).GetFabric(); f != nil && f.SetupDelayMs != nil {
			f.SetupDelayMs = new(2 * *f.SetupDelayMs) // the machine keeps what the pointer shows
		}
	}}
}

// patientEnricher is an enricher for which no time passes between two minutes of the test's day.
func patientEnricher(from, to float64) func() stage.Machine {
	return func() stage.Machine {
		return otherLogic{Machine: enricher.NewMachine(), input: func(in *stage.Input) bool {
			var raw callscopev1.Raw
			if raw.UnmarshalVT(in.Value) != nil || raw.GetTick() == nil {
				return true
			}
			ms := raw.GetTick().WallMs
			return ms < at(from).UnixMilli() || ms >= at(to).UnixMilli()
		}}
	}
}

func total(t testing.TB, report replay.Report) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, d := range report.Differences {
		if d.Rows() > 0 {
			found[d.Table] = fmt.Sprintf("%d added, %d changed, %d removed, %v", d.Added, d.Changed, d.Removed, d.Columns)
		}
	}
	return found
}

func TestChangedConstant(t *testing.T) {
	c := newChain(t)
	someCalls(t).write(c.client, at(60))
	c.live()
	before := allRows(t, c.store)
	inRange := fmt.Sprintf("fabrics_rows FINAL WHERE setup_delay_ms > 0 AND conference_started_at >= fromUnixTimestamp64Milli(%d) AND conference_started_at < fromUnixTimestamp64Milli(%d)",
		at(0).UnixMilli(), at(20).UnixMilli())
	affected := count(t, c.store, inRange)
	if all := count(t, c.store, "fabrics_rows FINAL WHERE setup_delay_ms > 0"); affected == 0 || all == affected {
		t.Fatalf("%d of %d fabrics are in the range: the test needs some inside and some outside", affected, all)
	}
	sum := func() any {
		return storetest.Query(t, c.store, "SELECT sum(setup_delay_ms) FROM "+inRange)[0][0]
	}
	delays := sum().(float64)

	cfg := config(0, 20)
	cfg.NewSummarizer, cfg.DryRun = doubledDelays, true
	want := map[string]string{"fabrics_rows": fmt.Sprintf("0 added, %d changed, 0 removed, map[setup_delay_ms:%d]", affected, affected)}
	if diff := cmp.Diff(want, total(t, run(t, c, cfg))); diff != "" {
		t.Fatal(diff)
	}
	if diff := changed(before, allRows(t, c.store)); diff != "" {
		t.Fatalf("the dry run wrote: %s", diff)
	}
	cfg.DryRun = false
	report := run(t, c, cfg)
	if diff := cmp.Diff(want, total(t, report)); diff != "" || report.Generation != 1 {
		t.Fatalf("generation %d: %s", report.Generation, diff)
	}
	if got := sum().(float64); got != 2*delays {
		t.Errorf("the delays sum up to %v after the replay, want %v", got, 2*delays)
	}
	if report := run(t, c, cfg); report.Rows() != 0 {
		t.Errorf("a second replay found differences: %v", total(t, report))
	}
	// Back to the old logic everything is as it was.
	if report := run(t, c, config(0, 20)); report.Rows() != affected || report.Generation != 2 {
		t.Errorf("replaying with the old logic: %+v", report)
	}
	if diff := changed(before, allRows(t, c.store)); diff != "" {
		t.Error(diff)
	}
}

func TestMergingRule(t *testing.T) {
	c := newChain(t)
	someCalls(t).write(c.client, at(60))
	c.live()
	before := allRows(t, c.store)
	if n := count(t, c.store, "conferences_rows FINAL WHERE conference_id = 'room'"); n != 2 {
		t.Fatalf("%d conferences in the room, want 2", n)
	}
	cfg := config(0, 20)
	cfg.NewEnricher = patientEnricher(4.5, 12.1)
	report := run(t, c, cfg)
	t.Log(total(t, report))
	left := storetest.Query(t, c.store, "SELECT DISTINCT toString(conference_uid) FROM conferences_rows FINAL WHERE conference_id = 'room'")
	if len(left) != 1 {
		t.Fatalf("conferences in the room: %v", left)
	}
	for _, table := range store.TableNames() {
		if table == "precall_tests_rows" {
			continue
		}
		if n := count(t, c.store, fmt.Sprintf("%s FINAL WHERE conference_id = 'room' AND toString(conference_uid) != '%s'", table, left[0][0])); n != 0 {
			t.Errorf("%s has %d stale rows", table, n)
		}
	}
	if report := run(t, c, config(0, 20)); report.Rows() == 0 {
		t.Error("the old logic found nothing to change back")
	}
	if diff := changed(before, allRows(t, c.store)); diff != "" {
		t.Error(diff)
	}
}

// A conference that reaches out of the range under the new logic must not take the stored rows of others with it.
func TestMergeAcrossTheRange(t *testing.T) {
	c := newChain(t)
	someCalls(t).write(c.client, at(60))
	c.live()
	before := allRows(t, c.store)
	for _, ends := range [][2]float64{{10, 30}, {-10, 10}} {
		cfg := config(ends[0], ends[1])
		cfg.NewEnricher = patientEnricher(4.5, 12.1)
		run(t, c, cfg)
		if n, m := count(t, c.store, "events_rows FINAL WHERE conference_id = 'room'"), count(t, c.store, "events_rows FINAL"); n == 0 || m == 0 {
			t.Errorf("replaying %v left %d events of the room and %d in total", ends, n, m)
		}
		run(t, c, config(-10, 60))
		if diff := changed(before, allRows(t, c.store)); diff != "" {
			t.Errorf("after replaying %v: %s", ends, diff)
		}
	}
}

// A replay that is interrupted leaves nothing half done, and resuming brings it to its end.
func TestInterrupted(t *testing.T) {
	c := newChain(t)
	someCalls(t).write(c.client, at(60))
	c.live()
	before := allRows(t, c.store)
	cfg := config(0, 20)
	cfg.NewSummarizer = doubledDelays
	topic := replay.Topic{Client: c.client}
	cfg.Resume = true
	if _, err := replay.Run(t.Context(), cfg, topic, c.store, quiet); !errors.Is(err, replay.ErrNothingToResume) {
		t.Fatalf("resuming nothing: %v", err)
	}
	cfg.Resume = false
	ctx, cancel := context.WithCancel(t.Context())
	cfg.Parallel, cfg.Progress = 1, func(p replay.Progress) {
		if p.Partitions == 1 {
			cancel()
		}
	}
	if _, err := replay.Run(ctx, cfg, topic, c.store, quiet); !errors.Is(err, context.Canceled) {
		t.Fatalf("interrupted: %v", err)
	}
	if diff := changed(before, allRows(t, c.store)); diff != "" {
		t.Fatalf("an interrupted replay wrote: %s", diff)
	}
	cfg.Resume, cfg.Progress = true, nil
	resumed := run(t, c, cfg)
	if resumed.Generation != 1 || resumed.Rows() == 0 {
		t.Errorf("resumed: %+v", resumed)
	}
	if left := storetest.Query(t, c.store, "SELECT name FROM system.tables WHERE database = currentDatabase() AND name LIKE 'replay%'"); len(left) > 0 {
		t.Errorf("tables are left: %v", left)
	}
	if report := run(t, c, config(0, 20)); report.Rows() != resumed.Rows() {
		t.Errorf("going back changes %d rows, the resumed replay changed %d", report.Rows(), resumed.Rows())
	}
	if diff := changed(before, allRows(t, c.store)); diff != "" {
		t.Error(diff)
	}
}

func TestLostRowsAndOpenCalls(t *testing.T) {
	c := newChain(t)
	log := someCalls(t)
	log.add("mesh3", "open", at(58), 30*time.Minute) // beyond the last tick
	log.write(c.client, at(60))
	c.live()
	before := allRows(t, c.store)
	storetest.Exec(t, c.store, "TRUNCATE TABLE samples_rows")
	storetest.Exec(t, c.store, "TRUNCATE TABLE streams_rows")
	run(t, c, config(-10, 40))
	if diff := changed(before, allRows(t, c.store)); diff == "" {
		t.Error("the open conference's rows came back: they are the live stages'")
	}
	open := "WHERE conference_id != 'open'"
	for _, table := range []string{"samples_rows", "streams_rows"} {
		if count(t, c.store, table+" FINAL "+open) == 0 {
			t.Errorf("%s is still empty", table)
		}
	}
	report := run(t, c, config(50, 100))
	if report.Open != 1 || report.Left != 0 || report.Conferences != 0 || report.Rows() != 0 {
		t.Errorf("an open conference was touched: %+v", report)
	}
}

func TestRefusals(t *testing.T) {
	c := newChain(t)
	someCalls(t).write(c.client, at(60))
	c.live()
	before := allRows(t, c.store)
	topic := replay.Topic{Client: c.client}
	for name, test := range map[string]struct {
		cfg  replay.Config
		want error
	}{
		"empty range":  {config(10, 10), nil},
		"no range":     {replay.Config{}, nil},
		"unknown app":  {replay.Config{From: at(0), To: at(20), App: "it's not there"}, replay.ErrUnknownApp},
		"nothing left": {replay.Config{From: at(0), To: at(20), Resume: true}, replay.ErrNothingToResume},
	} {
		_, err := replay.Run(t.Context(), test.cfg, topic, c.store, quiet)
		if err == nil || test.want != nil && !errors.Is(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if diff := changed(before, allRows(t, c.store)); diff != "" {
		t.Error(diff)
	}
	if left := storetest.Query(t, c.store, "SELECT name FROM system.tables WHERE database = currentDatabase() AND name LIKE 'replay%'"); len(left) > 0 {
		t.Errorf("tables are left: %v", left)
	}
}

// What Kafka has deleted cannot be computed again: such a range is refused, and a later one is exact.
func TestRetentionOfTheTopic(t *testing.T) {
	broker := streamtest.NewBroker(t)
	short, err := stream.Open(stream.Config{Brokers: []string{broker.Addr()}, Partitions: partitions, RawRetention: time.Since(at(75))}, quiet, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(short.EnsureTopics(t.Context()), short.Close())
	if err != nil {
		t.Fatal(err)
	}
	c := newChainOn(t, broker.Addr())
	log := someCalls(t)
	log.write(c.client, at(60))
	for i := range 4 { // in both partitions
		log.add("mesh3", fmt.Sprintf("afterwards-%d", i), at(120), 2*time.Minute)
	}
	log.write(c.client, at(140))
	c.live()
	before := allRows(t, c.store)
	broker.Cluster().ApplyRetention()
	topic := replay.Topic{Client: c.client}
	for p := range int32(partitions) {
		if first, end, err := topic.Range(t.Context(), p); err != nil || first == 0 || first == end {
			t.Fatalf("partition %d has %d to %d: %v", p, first, end, err)
		}
	}
	for _, cfg := range []replay.Config{config(0, 20), config(50, 130)} {
		if _, err := replay.Run(t.Context(), cfg, topic, c.store, quiet); !errors.Is(err, replay.ErrRetention) || !strings.Contains(err.Error(), "--from-files") {
			t.Errorf("from %s: %v", cfg.From, err)
		}
		if _, err := replay.Export(t.Context(), c.client, cfg.From, cfg.To, filepath.Join(t.TempDir(), "archive"), ignore); !errors.Is(err, replay.ErrRetention) {
			t.Errorf("exporting from %s: %v", cfg.From, err)
		}
	}
	if report := run(t, c, config(120, 150)); report.Rows() != 0 || report.Conferences != 4 {
		t.Errorf("%+v", report)
	}
	if diff := changed(before, allRows(t, c.store)); diff != "" {
		t.Error(diff)
	}
	if left := leftovers(t, c); len(left) > 0 {
		t.Errorf("tables are left: %v", left)
	}
}
