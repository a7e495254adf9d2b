// Package stagetest tries the stage runtime against everything that can go
// wrong between it and the log. Run drives real stage.Partitions over logs in
// memory, in one goroutine and from one seed: processes crash at any effect,
// go on as former owners, lose acknowledgements, write torn snapshots and tick
// against each other. Afterwards the outputs that a consumer accepts must be
// those of a fold of the final input log without any fault.
//
// It has one partition and no broker: it proves the runtime's logic, not the
// Kafka client.
package stagetest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/callscope/callscope/internal/stage"
	"github.com/callscope/callscope/internal/stream"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// Defect is something that the design forbids, put in on purpose: a
// simulation that does not fail with it proves nothing.
type Defect int

const (
	// NoDefect is the real thing.
	NoDefect Defect = iota
	// NoOriginCheck: the consumer takes every record.
	NoOriginCheck
	// AcknowledgedBeforeWritten: outputs count as written while they are in
	// memory, so snapshots and commits run ahead of them.
	AcknowledgedBeforeWritten
	// OneSnapshotKey: every snapshot overwrites the one before.
	OneSnapshotKey
	// OneTickerUID: all owners tick under the same uid.
	OneTickerUID
	// WallClockTimers: machines take the time from their process, not from the
	// ticks.
	WallClockTimers
	// HighestSeen: of a client's numbered messages only the highest number is
	// remembered, and what is not above it counts as a duplicate. A fold does
	// the same, so it needs a Check to show.
	HighestSeen
)

// Options describes one simulation.
type Options struct {
	Seed uint64
	// Stage needs NewMachine, the versions, Ticks and InputHasOrigins; topics
	// and names are filled in.
	Stage stage.Config
	// Records is how many client records are written while faults happen.
	Records int
	// Next makes a client record. It must take all chance from rng.
	Next func(rng *rand.Rand) (key, value []byte)
	// Input is an input log that is there from the start, for a stage behind
	// another; Records and Next are then not used.
	Input []stream.Record
	// NewLogic, if not nil, makes the machines of a later version of the stage,
	// which takes over in mid-log: some processes still start with the version
	// before, as in a rolling upgrade. Its machines have the same state and
	// give other outputs.
	NewLogic func(partition int32) stage.Machine
	// Check, if not nil, is given the records of the input, repeated ones
	// included, and what a consumer accepts of the output, for what a fold
	// cannot know.
	Check func(inputs, accepted []stream.Record) error
	// Rest is how long after the last fault everything may take to come to
	// rest: all input processed and nothing waiting for time; 0: 3 min.
	Rest   time.Duration
	Defect Defect
	// Rough makes crashes and snapshots frequent and snapshots long in every
	// seed, not only in some.
	Rough bool
	// Trace, if not nil, gets a line for each step.
	Trace io.Writer
}

// Result counts what happened in a simulation.
type Result struct {
	Crashes, Zombies, LostAcks, Late, Expired int
	Inputs, Outputs, Dropped, Rejected        int
	// Rebalances: assignments that ended in order. Outages: everybody was dead
	// for up to 15 min. ClockSteps: of wall clocks. DoubledTicks: written twice.
	// SupersededTicks: of tickers that others had followed. Stale: snapshots of
	// a lower offset than an earlier one. Corrupted: snapshots with flipped
	// bits. LogicChanges: outputs changed in mid-log. MixedOutputs: outputs
	// accepted while processes of both versions were at work.
	Rebalances, Outages, ClockSteps, DoubledTicks, SupersededTicks, Stale, Corrupted, LogicChanges, MixedOutputs int
	// Exercised tells whether the defect had a chance to show.
	Exercised bool
	// Output is the output log as it is in the end, duplicates included.
	Output []stream.Record
}

// Add adds the counts of other.
func (r *Result) Add(other Result) {
	r.Crashes += other.Crashes
	r.Zombies += other.Zombies
	r.LostAcks += other.LostAcks
	r.Late += other.Late
	r.Expired += other.Expired
	r.Inputs += other.Inputs
	r.Outputs += other.Outputs
	r.Dropped += other.Dropped
	r.Rejected += other.Rejected
	r.Rebalances += other.Rebalances
	r.Outages += other.Outages
	r.ClockSteps += other.ClockSteps
	r.DoubledTicks += other.DoubledTicks
	r.SupersededTicks += other.SupersededTicks
	r.Stale += other.Stale
	r.Corrupted += other.Corrupted
	r.LogicChanges += other.LogicChanges
	r.MixedOutputs += other.MixedOutputs
}

// MustHaveTried fails the test when some kind of fault is rarer than one in ten
// seeds: the simulation then does not try what it should.
func (r Result) MustHaveTried(t *testing.T, seeds int) {
	t.Helper()
	for name, n := range map[string]int{
		"crashes": r.Crashes, "zombies": r.Zombies, "lost acks": r.LostAcks, "late requests": r.Late, "expired records": r.Expired,
		"duplicates": r.Dropped, "outputs": r.Outputs, "rebalances": r.Rebalances, "outages": r.Outages, "clock steps": r.ClockSteps,
		"doubled ticks": r.DoubledTicks, "ticks of superseded tickers": r.SupersededTicks, "stale snapshots": r.Stale, "corrupted snapshots": r.Corrupted,
	} {
		if 10*n < seeds {
			t.Errorf("only %d %s in %d seeds: the simulation does not try what it should", n, name, seeds)
		}
	}
}

// process is one owner of the partition, or one that believes it is.
type process struct {
	*stage.Partition
	number     int
	generation int
	clock      time.Duration // its monotonic clock is ahead of the world's by this
	wall       time.Duration // its wall clock is wrong by this
	crashed    bool
	holed      bool // its last fetch missed a record
	version    uint32
	newLogic   bool
	snapshots  []string // uids of those it began

	// What makes a defect show.
	unwritten   []stream.Record // outputs that count as written and are not
	ranAhead    bool            // a snapshot was written while there were some
	midSnapshot bool            // a snapshot has been begun and not ended
}

type lateAppend struct {
	topic   string
	records []stream.Record
}

type world struct {
	cfg    stage.Config
	stage  *stage.Stage
	rng    *rand.Rand
	log    *Log
	defect Defect
	trace  io.Writer
	ctx    context.Context

	// history is what retention has removed from the input.
	history    []stream.Record
	now        time.Duration
	processes  []*process // that are alive, the owner last
	started    int
	generation int
	late       []lateAppend
	rejected   map[int64]bool
	fastest    time.Duration       // clock of the process that is ahead of all others that ticked
	stepping   *process            // whose Advance runs
	newest     int64               // input offset of the newest snapshot
	lastTicker int                 // number of the newest process that ticked
	numbers    map[string][]uint64 // of client messages, by session

	// The version before the newest, for rolling upgrades.
	before        *stage.Stage
	beforeVersion uint32
	newLogic      func(int32) stage.Machine // not yet in use
	oldLogic      func(int32) stage.Machine // no longer of the newest version
	newFrom       int64                     // lowest offset at which the new logic began
	oldUntil      int64                     // highest offset that the old logic has stepped up to

	// overwritable: there is a snapshot with chunks; torn: a later one was
	// begun by somebody who is dead; tornForGood: and compaction has followed.
	overwritable, torn, tornForGood bool

	faults            bool
	crash, fail, hole float64 // chance per call
	batch             int     // records per fetch, at most
	retention         bool    // old input records go
	corrupt           bool    // some snapshots have flipped bits
	rest              time.Duration

	result Result
}

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// Run simulates and returns an error when anything differs from the fold, when
// a record is missing or refused, or when the partition does not come to rest
// after the faults have stopped. The error names the seed.
func Run(o Options) (Result, error) {
	w := newWorld(o)
	err := w.run(o)
	if err != nil {
		err = fmt.Errorf("seed %d: %w", o.Seed, err)
	}
	return w.result, err
}

func newWorld(o Options) *world {
	cfg := o.Stage
	cfg.Name, cfg.InputTopic, cfg.OutputTopic, cfg.StateTopic, cfg.Group = "simulated", "input", "output", "state", "group"
	rng := rand.New(rand.NewPCG(o.Seed, 0x5ca1ab1e))
	w := &world{
		cfg: cfg, rng: rng, defect: o.Defect, trace: o.Trace, ctx: context.Background(),
		log:      NewLog("input", "output", "state"),
		rejected: map[int64]bool{}, numbers: map[string][]uint64{}, faults: true,
		// Some worlds are rough, some nearly calm: rare sequences need both.
		crash: []float64{0.01, 0.06, 0.15}[rng.IntN(3)], fail: []float64{0, 0.02, 0.1}[rng.IntN(3)],
		hole: []float64{0, 0.01}[rng.IntN(2)], batch: []int{1, 7, 500}[rng.IntN(3)], retention: rng.IntN(2) == 0,
		newLogic: o.NewLogic, newFrom: math.MaxInt64, rest: cmp.Or(o.Rest, 3*time.Minute),
	}
	// A corrupted snapshot is useless, and so is the one before it when what it
	// would go on with has expired.
	w.corrupt = !w.retention && rng.IntN(2) == 0 && o.Defect == NoDefect
	w.cfg.SnapshotInterval = []time.Duration{time.Second, 10 * time.Second}[rng.IntN(2)]
	w.cfg.ChunkBytes = []int{300, 3000, 100_000}[rng.IntN(3)]
	if o.Rough {
		w.crash, w.cfg.SnapshotInterval, w.cfg.ChunkBytes = 0.05, time.Second, 300
	}
	switch o.Defect {
	case OneSnapshotKey: // shows in snapshots of many pieces
		w.cfg.ChunkBytes = 100
	case WallClockTimers:
		w.cfg.NewMachine = func(partition int32) stage.Machine {
			return &wallClock{o.Stage.NewMachine(partition).(stage.Ticking), w}
		}
	case HighestSeen:
		w.cfg.NewMachine = func(partition int32) stage.Machine {
			return &highestSeen{Ticking: o.Stage.NewMachine(partition).(stage.Ticking), highest: map[string]uint64{}}
		}
	}
	w.stage = stage.New(w.cfg, nil, slog.New(slog.DiscardHandler), nil)
	for _, r := range o.Input {
		w.log.topics["input"].append(stream.Record{Key: r.Key, Value: r.Value})
	}
	return w
}

func (w *world) tracef(format string, args ...any) {
	if w.trace != nil {
		fmt.Fprintf(w.trace, "%10s "+format+"\n", append([]any{w.now}, args...)...)
	}
}

func (w *world) run(o Options) error {
	rest := o.Records
	if o.Input != nil {
		rest = 0
	}
	for step := 0; rest > 0 || step < 400; step++ {
		switch p := w.rng.IntN(100); {
		case len(w.processes) == 0 || p < 7:
			w.start()
		case p < 8:
			w.compact()
		case p == 8 && w.retention:
			w.expire()
		case p == 9 && w.rng.IntN(20) == 0:
			w.upgrade()
		case p < 10:
			w.arrive()
		case p < 17:
			w.pass(time.Duration(w.rng.IntN(2500)) * time.Millisecond)
		case p == 17 && w.rng.IntN(4) == 0:
			w.pass(time.Duration(w.rng.IntN(60)) * time.Second) // everybody is suspended
		case p == 18 && w.rng.IntN(30) == 0:
			w.outage()
		case p < 24:
			if rest > 0 {
				w.send(o)
				rest--
			}
		default:
			if err := w.advance(w.pick()); err != nil {
				return err
			}
		}
	}
	if err := w.settle(); err != nil {
		return err
	}
	accepted, err := w.accepted()
	if err != nil {
		return err
	}
	inputs := append(w.history, w.log.Records("input")...)
	if o.Check != nil {
		if err := o.Check(inputs, accepted); err != nil {
			return err
		}
	}
	return w.compare(inputs, accepted)
}

// outage lets all processes die and nobody live for a long time, while clients
// go on as long as the gateway takes their messages.
func (w *world) outage() {
	w.tracef("outage")
	w.result.Outages++
	for _, p := range w.processes {
		p.crashed = true
	}
	w.processes = nil
	w.pass(time.Duration(60+w.rng.IntN(840)) * time.Second)
}

// pass lets time go by, on every clock. Wall clocks are sometimes set.
func (w *world) pass(d time.Duration) {
	w.now += d
	if len(w.processes) > 0 && w.rng.IntN(10) == 0 {
		w.processes[w.rng.IntN(len(w.processes))].wall += time.Duration(w.rng.IntN(7200)-3600) * time.Second
		w.result.ClockSteps++
	}
	for _, l := range w.log.topics {
		l.time = epoch.Add(w.now)
	}
}

// pick chooses who goes on: mostly the owner, often a former one.
func (w *world) pick() *process {
	if w.rng.IntN(3) > 0 {
		return w.processes[len(w.processes)-1]
	}
	return w.processes[w.rng.IntN(len(w.processes))]
}

// start gives the partition to a new process. The one before does not know
// yet; some learn it soon and save their state, some go on as zombies.
func (w *world) start() {
	for _, p := range w.processes {
		if p.generation == w.generation {
			if w.rng.IntN(4) == 0 {
				p.Stop()
				w.result.Rebalances++
			} else {
				w.result.Zombies++
			}
		}
	}
	w.generation++
	w.started++
	p := &process{
		number: w.started, generation: w.generation, version: w.cfg.LogicVersion,
		clock: time.Duration(w.rng.IntN(1_000_000)) * time.Millisecond,
		wall:  time.Duration(w.rng.IntN(48)-24) * time.Hour,
	}
	version := w.stage
	if w.before != nil && w.faults && w.rng.IntN(3) == 0 {
		version, p.version = w.before, w.beforeVersion
	}
	p.newLogic = w.oldLogic != nil && version == w.stage
	c := &connection{w, p}
	p.Partition = version.NewPartition(0, stage.Env{
		Log: c, Committer: c,
		Now:       func() time.Time { return epoch.Add(w.now + p.wall) },
		Monotonic: func() time.Duration { return w.now + p.clock },
		NewUID:    w.newUID,
		Logger:    slog.New(slog.DiscardHandler),
	})
	w.processes = append(w.processes, p)
	w.tracef("process %d starts", p.number)
}

func (w *world) newUID() []byte {
	uid := binary.BigEndian.AppendUint64(nil, w.rng.Uint64())
	return binary.BigEndian.AppendUint64(uid, w.rng.Uint64())
}

// advance lets one process do its next thing, and buries it if that was its
// last.
func (w *world) advance(p *process) error {
	before, torn := p.Next(), w.tornForGood
	var err error
	if !p.crashed {
		w.stepping = p
		err = p.Advance(w.ctx)
		w.stepping = nil
	}
	if next := p.Next(); next >= 0 {
		switch {
		case !p.newLogic:
			w.oldUntil = max(w.oldUntil, next)
		case before < 0:
			w.newFrom = min(w.newFrom, next)
		}
	}
	if w.trace != nil {
		w.tracef("process %d: next %d -> %d, logs %d %d %d, error %v", p.number, before, p.Next(),
			w.log.topics["input"].end, w.log.topics["output"].end, w.log.topics["state"].end, err)
	}
	if len(p.unwritten) > 0 && w.rng.IntN(30) == 0 {
		w.log.topics["output"].append(p.unwritten...)
		p.unwritten, p.ranAhead = nil, false
	}
	if w.defect == OneSnapshotKey && before < 0 && torn && !errors.Is(err, errCrash) && !errors.Is(err, errFault) {
		w.result.Exercised = true // it has looked for a snapshot, and there was none
	}
	switch {
	case p.crashed:
		w.result.Crashes++
		w.torn = w.torn || p.midSnapshot && w.overwritable
		if w.defect == AcknowledgedBeforeWritten && p.ranAhead && len(w.processes) == 1 && w.lost(p.unwritten) {
			w.result.Exercised = true
		}
	case errors.Is(err, stage.ErrStopped), errors.Is(err, stream.ErrFenced):
		w.log.topics["output"].append(p.unwritten...)
	case errors.Is(err, stage.ErrRefused) && p.version < w.cfg.LogicVersion:
		// Had to build its state again and found that of a newer version.
	case errors.Is(err, stage.ErrGap), errors.Is(err, stage.ErrRefused):
		return fmt.Errorf("process %d: %w", p.number, err)
	default:
		return nil
	}
	w.processes = slices.DeleteFunc(w.processes, func(q *process) bool { return q == p })
	return nil
}

// lost reports whether the last of the records, which will never be written,
// is not in the output log from another process.
func (w *world) lost(records []stream.Record) bool {
	if len(records) == 0 {
		return false
	}
	_, last, _, err := stage.ReadHeader(records[len(records)-1].Value)
	for _, r := range w.log.Records(w.cfg.OutputTopic) {
		_, origin, _, _ := stage.ReadHeader(r.Value)
		if err == nil && !last.After(origin) {
			return false
		}
	}
	return true
}

// send writes a client record. Sometimes it is one that was written before,
// and sometimes a tick is.
func (w *world) send(o Options) {
	input := w.log.topics[w.cfg.InputTopic]
	if n := len(input.records); n > 0 && w.rng.IntN(10) == 0 {
		again := input.records[n-1-w.rng.IntN(min(n, 20))]
		if len(again.Key) == 0 {
			w.result.DoubledTicks++
		}
		input.append(again)
		return
	}
	key, value := o.Next(w.rng)
	if w.defect == HighestSeen {
		w.overtaken(value)
	}
	input.append(stream.Record{Key: key, Value: value})
}

// overtaken notes that HighestSeen has a chance to show: the message is new, and
// one with a higher number came before.
func (w *world) overtaken(value []byte) {
	session, number := numberOf(value)
	if number == 0 || slices.Contains(w.numbers[session], number) {
		return
	}
	if len(w.numbers[session]) > 0 && number < slices.Max(w.numbers[session]) {
		w.result.Exercised = true
	}
	w.numbers[session] = append(w.numbers[session], number)
}

func (w *world) compact() {
	w.tracef("compaction")
	state := w.log.topics["state"]
	switch {
	case w.rng.IntN(4) == 0:
		state.compact(state.end)
		w.tornForGood = w.torn
	case state.end > 0:
		state.compact(w.rng.Int64N(state.end))
	}
}

// expire removes input records that no snapshot needs and no process, not even
// a former owner, is still to read.
func (w *world) expire() {
	manifests := map[string]*callscopev1.SnapshotManifest{} // by snapshot uid
	chunks := map[string]map[string]bool{}                  // keys, by snapshot uid
	for _, r := range w.log.Records(w.cfg.StateTopic) {
		uid := string(r.Key[:16])
		switch {
		case len(r.Key) > 16:
			if chunks[uid] == nil {
				chunks[uid] = map[string]bool{}
			}
			chunks[uid][string(r.Key)] = r.Value != nil
		case r.Value == nil:
			delete(manifests, uid)
		default:
			m := &callscopev1.SnapshotManifest{}
			if err := m.UnmarshalVT(r.Value); err != nil {
				panic(err) // the runtime wrote it
			}
			manifests[uid] = m
		}
	}
	var before int64
	for uid, m := range manifests {
		n := uint32(0)
		for _, there := range chunks[uid] {
			if there {
				n++
			}
		}
		if n == m.Chunks {
			before = max(before, m.InputOffset)
		}
	}
	for _, p := range w.processes {
		if next := p.Next(); next >= 0 {
			before = min(before, next)
		}
	}
	input := w.log.topics[w.cfg.InputTopic]
	if before <= input.start || w.rng.IntN(2) == 0 {
		return
	}
	w.result.Expired += int(before - input.start)
	w.tracef("input expires up to %d", before)
	w.history = append(w.history, input.records[:before-input.start]...)
	w.log.DeleteBefore(w.cfg.InputTopic, before)
}

// upgrade lets most processes that start from now on have a newer version: once
// with another logic, if there is one, otherwise with the same.
func (w *world) upgrade() {
	w.before, w.beforeVersion = w.stage, w.cfg.LogicVersion
	w.cfg.LogicVersion++
	if w.oldLogic != nil {
		w.before = nil // the new logic stays
	}
	if w.newLogic != nil {
		w.oldLogic = w.cfg.NewMachine
		w.cfg.NewMachine, w.newLogic = w.newLogic, nil
		w.result.LogicChanges++
	}
	w.stage = stage.New(w.cfg, nil, slog.New(slog.DiscardHandler), nil)
}

// arrive delivers a request that was on its way since before its sender gave
// up on it.
func (w *world) arrive() {
	if len(w.late) == 0 {
		return
	}
	i := w.rng.IntN(len(w.late))
	w.tracef("%d records for %s arrive late", len(w.late[i].records), w.late[i].topic)
	w.log.topics[w.late[i].topic].append(w.late[i].records...)
	w.late = slices.Delete(w.late, i, i+1)
	w.result.Late++
}

// settle stops all faults and former owners and lets the last owner work until
// nothing is left to do: all input processed and nothing waiting for time.
func (w *world) settle() error {
	for len(w.late) > 0 {
		w.arrive()
	}
	w.faults = false
	w.start() // of the newest version
	owner := w.processes[len(w.processes)-1]
	w.processes = []*process{owner}
	deadline := w.now + w.rest
	for quiet := 0; quiet < 8; {
		before := w.written()
		if err := w.advance(owner); err != nil {
			return err
		}
		if w.defect == OneTickerUID && w.fastest > owner.clock+w.rest {
			w.result.Exercised = true
		}
		// Only what writes nothing at all is at rest: a long snapshot is not.
		if owner.Next() == w.log.topics["input"].end && before == w.written() {
			quiet++
			// Small enough that no tick comes more than 5 s after the one
			// before, whatever else is done between them.
			w.pass(1200 * time.Millisecond)
		} else {
			quiet = 0
		}
		if w.now > deadline {
			return fmt.Errorf("%v after the last fault the partition is at %d of %d and still not at rest", w.rest, owner.Next(), w.log.topics["input"].end)
		}
	}
	w.log.topics["output"].append(owner.unwritten...)
	return nil
}

// written returns how many records have been written in all.
func (w *world) written() int64 {
	n := int64(0)
	for _, l := range w.log.topics {
		n += l.end
	}
	return n
}

// accepted returns what a consumer takes of the output.
func (w *world) accepted() ([]stream.Record, error) {
	var accepted []stream.Record
	var filter stage.OriginFilter
	w.result.Output = w.log.topics["output"].records
	for _, r := range w.result.Output {
		_, origin, prev, err := stage.ReadHeader(r.Value)
		if err != nil {
			return nil, err
		}
		v := filter.Accept(origin, prev)
		if v == stage.Duplicate && w.defect == NoOriginCheck {
			w.result.Exercised = true
		}
		if w.defect == NoOriginCheck {
			v = stage.Accept
		}
		switch v {
		case stage.Accept:
			accepted = append(accepted, r)
		case stage.Duplicate:
			w.result.Dropped++
		case stage.Gap:
			return nil, fmt.Errorf("output at offset %d: %s follows %s, which was never seen", r.Offset, origin, prev)
		}
	}
	return accepted, nil
}

// fold returns the outputs of a machine over the input without any fault.
func (w *world) fold(newMachine func(int32) stage.Machine, inputs []stream.Record) (outputs []stage.Emitted, rejected map[int64]bool, err error) {
	rejected = map[int64]bool{}
	err = stage.Fold(func() stage.Machine { return newMachine(0) }, w.cfg.InputHasOrigins, func(yield func(stage.Input) bool) {
		for _, r := range inputs {
			if !yield(stage.Input{Offset: r.Offset, Key: r.Key, Value: r.Value}) {
				return
			}
		}
	}, func(e stage.Emitted) error {
		outputs = append(outputs, e)
		return nil
	}, func(offset int64, _ error) { rejected[offset] = true })
	if err != nil {
		return nil, nil, fmt.Errorf("folding the final log: %w", err)
	}
	return outputs, rejected, nil
}

// compare holds what a consumer accepts against the fold.
func (w *world) compare(inputs, got []stream.Record) error {
	want, rejected, err := w.fold(w.cfg.NewMachine, inputs)
	if err != nil {
		return err
	}
	w.result.Inputs, w.result.Outputs, w.result.Rejected = len(inputs), len(want), len(rejected)
	for offset := range rejected {
		if !w.rejected[offset] {
			return fmt.Errorf("the record at offset %d was not set aside", offset)
		}
	}
	for offset := range w.rejected {
		if !rejected[offset] {
			return fmt.Errorf("the record at offset %d was set aside without reason", offset)
		}
	}
	if w.oldLogic != nil {
		old, _, err := w.fold(w.oldLogic, inputs)
		if err != nil {
			return err
		}
		return w.compareMixed(got, old, want)
	}
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			return fmt.Errorf("%d outputs are missing at the end: %d of %d", len(want)-len(got), len(got), len(want))
		case i >= len(want):
			return fmt.Errorf("%d outputs too many at the end", len(got)-len(want))
		case !bytes.Equal(got[i].Key, want[i].Key), !bytes.Equal(got[i].Value, want[i].Value):
			return fmt.Errorf("output %d is %s, but in the fold %s", i, describe(got[i].Value), describe(want[i].Value))
		}
	}
	return nil
}

// compareMixed holds what a consumer accepts against the folds of two logics.
// Every input record before the new one took over has the outputs of the old
// one, every record that the old one never reached has those of the new one.
// Between them each output is as one of the two gives it, and none is missing
// that both give.
func (w *world) compareMixed(got []stream.Record, before, after []stage.Emitted) error {
	old, young := byOffset(before), byOffset(after)
	found := map[int64][]stream.Record{}
	for _, r := range got {
		_, origin, _, err := stage.ReadHeader(r.Value)
		if err != nil {
			return err
		}
		if int(origin.Index) != len(found[origin.Offset]) {
			return fmt.Errorf("output %s comes after %d others of its input", origin, len(found[origin.Offset]))
		}
		found[origin.Offset] = append(found[origin.Offset], r)
	}
	for offset := range w.log.topics["input"].end {
		a, b, got := old[offset], young[offset], found[offset]
		switch {
		case offset < w.newFrom:
			b = a
		case offset >= w.oldUntil:
			a = b
		default:
			w.result.MixedOutputs += len(got)
		}
		if len(got) < min(len(a), len(b)) || len(got) > max(len(a), len(b)) {
			return fmt.Errorf("input %d has %d outputs, but %d by the old logic and %d by the new", offset, len(got), len(a), len(b))
		}
		for i, r := range got {
			if !(i < len(a) && equalBody(r, a[i])) && !(i < len(b) && equalBody(r, b[i])) {
				return fmt.Errorf("output %d/%d is %s, as neither logic gives it", offset, i, describe(r.Value))
			}
		}
	}
	return nil
}

func byOffset(emitted []stage.Emitted) map[int64][]stage.Emitted {
	m := map[int64][]stage.Emitted{}
	for _, e := range emitted {
		m[e.Origin.Offset] = append(m[e.Origin.Offset], e)
	}
	return m
}

// equalBody compares two outputs of one origin but for their prev.
func equalBody(r stream.Record, e stage.Emitted) bool {
	return bytes.Equal(r.Key, e.Key) && bytes.Equal(withoutPrev(r.Value), withoutPrev(e.Value))
}

// withoutPrev returns the record without field 3 of its header.
func withoutPrev(value []byte) []byte {
	kept := make([]byte, 0, len(value))
	for len(value) > 0 {
		number, _, n := protowire.ConsumeField(value)
		if n < 0 {
			panic(protowire.ParseError(n)) // the runtime wrote it
		}
		if number != 3 {
			kept = append(kept, value[:n]...)
		}
		value = value[n:]
	}
	return kept
}

func describe(value []byte) string {
	uid, origin, prev, err := stage.ReadHeader(value)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("uid %x at %v after %v (%d bytes)", uid, origin, prev, len(value))
}

// deface does to records on their way to the log what the defect asks for.
func (w *world) deface(topic string, records []stream.Record) []stream.Record {
	out := slices.Clone(records)
	if w.defect == OneSnapshotKey && topic == w.cfg.StateTopic {
		// There is nothing old to delete, and it would be the present one.
		out = slices.DeleteFunc(out, func(r stream.Record) bool { return r.Value == nil })
	}
	for i := range out {
		r := &out[i]
		switch {
		case w.defect == OneSnapshotKey && topic == w.cfg.StateTopic:
			r.Key = append(make([]byte, 16), r.Key[16:]...)
		case w.defect == OneTickerUID && topic == w.cfg.InputTopic:
			var raw callscopev1.Raw
			if err := raw.UnmarshalVT(r.Value); err != nil {
				panic(err) // only ticks are written by a stage into its input
			}
			raw.GetTick().TickerUid = []byte("always the same")
			value, err := raw.MarshalVT()
			if err != nil {
				panic(err)
			}
			r.Value = value
		}
	}
	return out
}
