// Package replay computes stored rows again from raw records: it folds them through the same machines that the live stages
// run, compares the result with what is stored, and writes the difference under a newer generation (design 7). It also
// loads the store again from the topics enriched and summaries.
//
// It takes part in no consumer group, writes nothing to Kafka, and decides nothing about calls. Conferences that are not
// past their grace period at the head of the log belong to the live stages and are left to them.
package replay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/callscope/callscope/internal/stage"
	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/stream"
	"github.com/callscope/callscope/services/enricher"
	"github.com/callscope/callscope/services/sink"
	"github.com/callscope/callscope/services/summarizer"
)

var (
	// ErrRetention: raw records that the range needs have expired, or are not in the archive.
	ErrRetention = errors.New("raw records that the range needs are gone")
	// ErrUnknownApp: no row of the app is stored and no record of it was read.
	ErrUnknownApp = errors.New("unknown app")
)

// Source is where raw records come from, partition by partition. Offsets are those of the raw topic.
type Source interface {
	// Name tells sources apart: a run on one is not resumed on another. That of files begins with "files/".
	Name() string
	Partitions(ctx context.Context) (int, error)
	// Range returns the first offset and the one behind the last. Nothing is there where they are equal.
	Range(ctx context.Context, partition int32) (start, end int64, err error)
	// Seek returns the first offset whose record was written at t or later, the end where there is none.
	Seek(ctx context.Context, partition int32, t time.Time) (int64, error)
	// Read returns records from an offset inside of Range on, at least one.
	Read(ctx context.Context, partition int32, offset int64) ([]stream.Record, error)
}

// Config says what a run does. Zero values mean the default in the comment.
type Config struct {
	From, To time.Time // conferences that begin in [From, To)
	App      string    // of this app only; all
	DryRun   bool      // stop after the comparison
	Resume   bool      // go on with an interrupted run of the same range, app and source
	Rate     int       // raw records a second at most, all partitions together; unbounded
	Parallel int       // partitions at a time; one for each processor

	// Lookback is how long before From the fold begins at least: the grace period, longer by what an outage may have
	// stretched it; an hour.
	Lookback time.Duration
	// FromBeginning folds from the log's first record, whatever the store knows.
	FromBeginning bool

	// NewEnricher and NewSummarizer make the machines; those of this binary.
	NewEnricher, NewSummarizer func() stage.Machine
	// Prepare changes the rows' records before they become rows; nil for as they are. See sink.Rows.
	Prepare sink.Prepare

	// Progress is called now and then, from several goroutines; may be nil.
	Progress func(Progress)
	// Compared is called with the difference of every table before anything is written; may be nil. An error of it ends the run.
	Compared func(Report) error
}

// Progress is how far a run is.
type Progress struct {
	Phase          string // folding; comparing or writing, and the table
	Records, Total int64  // raw records read, and about how many there are to read
	Partitions     int    // that are finished
	Of             int
}

// Report is what a run found, and would write or wrote.
type Report struct {
	Records     int64 `json:"records"`     // raw records folded
	Conferences int64 `json:"conferences"` // of the range that were computed again
	Open        int64 `json:"open"`        // of the range that are not past grace and left to the live stages
	Left        int64 `json:"left"`        // stored ones that overlap with one that reaches out of the range, and are left as they are
	Rejected    int64 `json:"rejected"`    // records that no stage can take

	Generation  uint32             `json:"generation"` // 0: nothing was written
	Differences []store.Difference `json:"differences"`
}

// Rows is the number of rows that differ.
func (r Report) Rows() (n uint64) {
	for _, d := range r.Differences {
		n += d.Rows()
	}
	return n
}

const defaultLookback = time.Hour

func (c Config) withDefaults() Config {
	if c.Parallel <= 0 {
		c.Parallel = runtime.GOMAXPROCS(0)
	}
	if c.Lookback <= 0 {
		c.Lookback = defaultLookback
	}
	if c.NewEnricher == nil {
		c.NewEnricher = func() stage.Machine { return enricher.NewMachine() }
	}
	if c.NewSummarizer == nil {
		c.NewSummarizer = func() stage.Machine { return summarizer.NewMachine() }
	}
	if c.Progress == nil {
		c.Progress = func(Progress) {}
	}
	if c.Compared == nil {
		c.Compared = func(Report) error { return nil }
	}
	return c
}

// Validate tells what is wrong with the range.
func (c Config) Validate() error {
	switch {
	case c.From.IsZero() || c.To.IsZero():
		return errors.New("a replay needs both ends of its range")
	case !c.From.Before(c.To):
		return fmt.Errorf("the range is empty: it begins at %s and ends at %s", stamp(c.From), stamp(c.To))
	case c.Rate < 0:
		return fmt.Errorf("%d records a second are not possible", c.Rate)
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Run is one replay.
type run struct {
	cfg    Config
	source Source
	store  *store.Store
	shadow *store.Shadow // of this run, once it is known
	owner  string        // this process, among those that work on the run
	log    *slog.Logger
	window store.Window

	pace   pacer
	total  atomic.Int64
	read   atomic.Int64
	done   atomic.Int64
	of     int
	phase  atomic.Value
	mu     sync.Mutex
	report Report
	sawApp atomic.Bool
}

// Run folds, compares and, unless it is a dry run, writes. When ctx ends, or anything fails, what was computed so far is
// kept for a run with Resume; the public tables then have none or some of the new rows, and resuming brings the rest. A run
// that would write beside another one is refused (ErrRunning, ErrInterrupted), with nothing written or kept.
func Run(ctx context.Context, cfg Config, source Source, st *store.Store, log *slog.Logger) (Report, error) {
	if err := cfg.Validate(); err != nil {
		return Report{}, err
	}
	cfg = cfg.withDefaults()
	r := &run{
		cfg: cfg, source: source, store: st, log: log, pace: pacer{rate: cfg.Rate},
		window: store.Window{From: store.Time(cfg.From.UnixMilli()), To: store.Time(cfg.To.UnixMilli()), App: cfg.App},
	}
	r.phase.Store("folding")
	partitions, err := source.Partitions(ctx)
	if err != nil {
		return Report{}, err
	}
	r.of = partitions
	finished, err := r.prepare(ctx)
	if err != nil {
		return Report{}, err
	}
	working, lost := context.WithCancelCause(ctx)
	var alive sync.WaitGroup
	alive.Go(func() { r.stayAlive(working, lost) })
	err = r.fold(working, partitions, finished)
	over := errors.Is(err, ErrRetention) || errors.Is(err, ErrUnknownApp) // resuming would not help
	if err == nil {
		err = r.compareAndWrite(working)
		over = err == nil
	}
	if over {
		lost(nil)
		alive.Wait()
		// What is left behind now would be taken for an interrupted run.
		return r.report, errors.Join(err, r.shadow.Drop(context.WithoutCancel(ctx)))
	}
	err = r.ended(working, err)
	lost(nil)
	alive.Wait()
	return r.report, err
}

func (r *run) fold(ctx context.Context, partitions int, finished map[int32]string) error {
	var work []*fold
	for number := range int32(partitions) {
		if detail, ok := finished[number]; ok {
			var counts Report
			if err := json.Unmarshal([]byte(detail), &counts); err != nil {
				return fmt.Errorf("reading the progress of the interrupted replay: %w", err)
			}
			r.add(counts)
			r.done.Add(1)
			continue
		}
		f := &fold{run: r, partition: number}
		if err := f.locate(ctx); err != nil {
			return err
		}
		r.total.Add(f.end - f.start)
		work = append(work, f)
	}
	g, working := errgroup.WithContext(ctx)
	g.SetLimit(r.cfg.Parallel)
	for _, f := range work {
		g.Go(func() error {
			if err := f.fold(working); err != nil {
				return fmt.Errorf("replaying partition %d: %w", f.partition, err)
			}
			r.done.Add(1)
			r.tell()
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if r.cfg.App != "" && !r.sawApp.Load() {
		known, err := r.store.HasApp(ctx, r.cfg.App)
		if err != nil {
			return err
		}
		if !known && len(finished) == 0 {
			return fmt.Errorf("%w: nothing of app %q is stored, and none of %d raw records is its", ErrUnknownApp, r.cfg.App, r.read.Load())
		}
	}
	return nil
}

func (r *run) add(counts Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Records += counts.Records
	r.report.Conferences += counts.Conferences
	r.report.Open += counts.Open
	r.report.Left += counts.Left
	r.report.Rejected += counts.Rejected
}

func (r *run) tell() {
	r.cfg.Progress(Progress{
		Phase: r.phase.Load().(string), Records: r.read.Load(), Total: r.total.Load(), Partitions: int(r.done.Load()), Of: r.of,
	})
}

func (r *run) compareAndWrite(ctx context.Context) error {
	for _, table := range store.TableNames() {
		r.phase.Store("comparing " + strings.TrimSuffix(table, "_rows"))
		r.tell()
		d, err := r.shadow.Compare(ctx, table, r.window)
		if err != nil {
			return err
		}
		r.report.Differences = append(r.report.Differences, d)
	}
	if err := r.cfg.Compared(r.report); err != nil {
		return err
	}
	if r.cfg.DryRun || r.report.Rows() == 0 {
		return nil
	}
	generation, err := r.shadow.Generation(ctx)
	if err != nil {
		return err
	}
	r.report.Generation = generation
	for _, d := range r.report.Differences {
		if d.Rows() == 0 {
			continue
		}
		r.phase.Store("writing " + strings.TrimSuffix(d.Table, "_rows"))
		r.tell()
		if err := r.stillOurs(ctx); err != nil {
			return err
		}
		if err := r.shadow.Apply(ctx, d.Table, r.window, generation); err != nil {
			return err
		}
	}
	return nil
}

// pacer holds the rate of records.
type pacer struct {
	rate int
	mu   sync.Mutex
	next time.Time
}

// chunk is how many records may pass at a time, so that the rate holds over each second and not over minutes only: what
// one fetch brings is many thousand.
func (p *pacer) chunk(fetched int) int {
	if p.rate == 0 {
		return max(fetched, 1)
	}
	return max(p.rate/10, 1)
}

// wait blocks until n more records may pass.
func (p *pacer) wait(ctx context.Context, n int) error {
	if p.rate == 0 {
		return ctx.Err()
	}
	p.mu.Lock()
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	at := p.next
	p.next = p.next.Add(time.Duration(n) * time.Second / time.Duration(p.rate))
	p.mu.Unlock()
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
