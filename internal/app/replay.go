package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/callscope/callscope/internal/archive"
	"github.com/callscope/callscope/internal/replay"
	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/stream"
)

func (c *cli) replayCommand() *cobra.Command {
	var o replayOptions
	cmd := &cobra.Command{
		Use:   "replay",
		Short: "Compute stored rows again from raw records",
		Long: `Compute stored rows again from raw records: all conferences that began in the range
[--from, --to) and are past their grace period. It prints what would change, table by table,
then writes the difference. The same code changes nothing.

Live services go on undisturbed. An interrupted replay is continued with --resume and the
same range; until then nothing that queries can see is half written, or all of it is brought
to its end by resuming. It is resumed with the logic, the source and the partitions that it
began with, or not at all; without --resume the same range begins anew.

One replay at a time writes a range: another that overlaps is refused, whatever its app,
while the first runs, and while it waits to be resumed. ` + "`callscope replay list`" + ` shows what
runs or waits; ` + "`callscope replay drop`" + ` takes an interrupted one away. Killed, a replay counts
as interrupted a minute after its last sign of life. Dry runs write nothing and always run.

With --from-enriched it loads the store again from the topics enriched and summaries instead,
after tables were lost; rows that are there stay.`,
		Example: `  callscope replay --from 2026-11-01 --to 2026-11-02 --dry-run
  callscope replay --from 2026-11-01T10:00:00Z --to 2026-11-01T12:00:00Z --app 123456789
  callscope replay --from-enriched`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.replay(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.from, "from", "", "begin of the range: a day, or a time such as 2026-11-01T10:00:00Z")
	f.StringVar(&o.to, "to", "", "end of the range, exclusive")
	f.StringVar(&o.app, "app", "", "this app only")
	f.BoolVar(&o.dryRun, "dry-run", false, "print the difference and write nothing")
	f.BoolVar(&o.resume, "resume", false, "continue an interrupted replay of the same range")
	f.IntVar(&o.rate, "rate", 0, "raw records a second at most; 0 is unbounded")
	f.StringVar(&o.fromFiles, "from-files", "", "read raw records from this `directory`, which callscope export wrote")
	f.BoolVar(&o.fromEnriched, "from-enriched", false, "load the store again from the topics enriched and summaries")
	f.BoolVar(&o.fromBeginning, "from-beginning", false, "begin at the first raw record, whatever the store knows")
	cmd.AddCommand(c.replayListCommand(), c.replayDropCommand())
	return cmd
}

func (c *cli) replayListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List replays that run or were interrupted",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.withServers(cmd.Context(), false, true, func(_ *stream.Client, st *store.Store, _ *slog.Logger) error {
				runs, err := replay.Runs(cmd.Context(), st)
				if err != nil {
					return err
				}
				return writeRuns(c.stdout, runs)
			})
		},
	}
}

func (c *cli) replayDropCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "drop RUN",
		Short: "Take away what an interrupted replay has computed",
		Long: `Take away what an interrupted replay has computed. It cannot be resumed afterwards. Rows that
it has written stay; where it had begun to write, replay its range again.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withServers(cmd.Context(), false, true, func(_ *stream.Client, st *store.Store, _ *slog.Logger) error {
				run, err := replay.Remove(cmd.Context(), st, args[0])
				switch {
				case errors.Is(err, replay.ErrUnknownRun):
					return usage(err)
				case err != nil:
					return err
				}
				if run.Writing {
					fmt.Fprintf(c.stderr, "callscope: it may have written a part of its rows: replay conferences from %s to %s again\n", stamp(run.From), stamp(run.To))
				}
				_, err = fmt.Fprintf(c.stdout, "dropped replay %s\n", run.ID)
				return err
			})
		},
	}
}

// stamp is a time as --from and --to take it.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// writeRuns prints a line for each run.
func writeRuns(w io.Writer, runs []replay.Kept) error {
	t := table{header: []string{"run", "state", "from", "to", "app", "dry run", "began", "last sign of life", "partitions", "writing"}}
	for _, r := range runs {
		values := []string{r.ID, r.State, "", "", "", "", stamp(r.Began.Truncate(time.Second)), "", "", ""}
		if r.State == replay.StateRunning || r.State == replay.StateInterrupted {
			values = []string{r.ID, r.State, stamp(r.From), stamp(r.To), cmp.Or(r.App, "all"), yesNo(r.DryRun), stamp(r.Began.Truncate(time.Second)),
				r.Silent.Round(time.Second).String() + " ago", fmt.Sprintf("%d of %d", r.Finished, r.Partitions), yesNo(r.Writing)}
		}
		t.add(values...)
	}
	return t.write(w)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

type replayOptions struct {
	from, to, app, fromFiles string
	dryRun, resume           bool
	fromEnriched             bool
	fromBeginning            bool
	rate                     int
}

// usage marks an error as wrong usage.
func usage(err error) error { return &codedError{exitUsage, err} }

// parseTime reads a day or a time; without a zone it is UTC.
func parseTime(flag, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, usage(fmt.Errorf("%s is missing: give a day or a time, such as 2026-11-01 or 2026-11-01T10:00:00Z", flag))
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02T15:04", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, time.UTC); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usage(fmt.Errorf("%s: %q is neither a day nor a time, such as 2026-11-01 or 2026-11-01T10:00:00Z", flag, text))
}

func parseRange(from, to string) (begin, end time.Time, err error) {
	if begin, err = parseTime("--from", from); err != nil {
		return begin, end, err
	}
	if end, err = parseTime("--to", to); err != nil {
		return begin, end, err
	}
	if !begin.Before(end) {
		return begin, end, usage(fmt.Errorf("the range is empty: --from %s is not before --to %s", from, to))
	}
	return begin, end, nil
}

func (c *cli) replay(ctx context.Context, o replayOptions) error {
	if o.rate < 0 {
		return usage(fmt.Errorf("--rate: %d records a second are not possible", o.rate))
	}
	if o.fromEnriched {
		return c.replayEnriched(ctx, o)
	}
	from, to, err := parseRange(o.from, o.to)
	if err != nil {
		return err
	}
	var files *archive.Archive
	if o.fromFiles != "" {
		if files, err = archive.Open(o.fromFiles); err != nil {
			return err
		}
		defer files.Close()
		if err := files.Check(ctx); err != nil {
			return err
		}
	}
	// With --from-files Kafka is asked for erasures only.
	return c.withServers(ctx, true, true, func(client *stream.Client, st *store.Store, log *slog.Logger) error {
		if err := st.CheckSchema(ctx); err != nil {
			return err
		}
		erased, err := c.erasuresNow(ctx, client, log)
		if err != nil {
			return err
		}
		var source replay.Source = files
		if files == nil {
			source = replay.Topic{Client: client}
		}
		progress := newProgress(c.stderr, "records")
		report, err := replay.Run(ctx, replay.Config{
			From: from, To: to, App: o.app, DryRun: o.dryRun, Resume: o.resume, Rate: o.rate, FromBeginning: o.fromBeginning,
			Prepare:  erased.Prepare,
			Progress: func(p replay.Progress) { progress.set(p.Phase, p.Records, p.Total) },
			Compared: func(r replay.Report) error {
				progress.stop()
				err := errors.Join(writeReport(c.stdout, r), c.sameErasures(ctx, client, erased, log))
				progress = newProgress(c.stderr, "records") // for the writing
				return err
			},
		}, source, st, log)
		progress.stop()
		if err == nil && report.Generation > 0 {
			err = c.sameErasures(ctx, client, erased, log)
		}
		switch {
		case ctx.Err() != nil:
			fmt.Fprintln(c.stderr, "callscope: the replay was interrupted; run it again with --resume to go on")
			return ctx.Err()
		case errors.Is(err, replay.ErrNothingToResume):
			return usage(err)
		case errors.Is(err, errErasedMeanwhile):
			return &codedError{exitPartly, err}
		case errors.Is(err, replay.ErrTakenAway) && report.Generation > 0:
			return &codedError{exitPartly, fmt.Errorf("a part of the rows is written: %w", err)}
		case errors.Is(err, replay.ErrTakenOver):
			return err
		case err != nil && report.Generation > 0:
			return &codedError{exitPartly, fmt.Errorf("a part of the rows is written, and --resume brings the rest: %w", err)}
		case err != nil:
			return err
		case o.dryRun:
			_, err = fmt.Fprintln(c.stdout, "dry run: nothing was written")
		case report.Generation == 0:
			_, err = fmt.Fprintln(c.stdout, "nothing to write")
		default:
			_, err = fmt.Fprintf(c.stdout, "wrote %d rows as generation %d\n", report.Rows(), report.Generation)
		}
		return err
	})
}

// withServers opens Kafka, ClickHouse or both, those of a running `callscope all` where none are configured. What is not
// asked for is nil.
func (c *cli) withServers(ctx context.Context, kafka, clickhouse bool, work func(*stream.Client, *store.Store, *slog.Logger) error) error {
	s, err := c.load()
	if err != nil {
		return err
	}
	var needs []need
	if kafka {
		s.useRunningBroker()
		needs = append(needs, needKafka)
	}
	if clickhouse {
		s.useRunningEngine()
		needs = append(needs, needClickHouse)
	}
	if err := s.check(needs...); err != nil {
		return err
	}
	log := c.logger(s.Log)
	var client *stream.Client
	if kafka {
		if client, err = stream.Open(s.Kafka.Config, log, nil); err != nil {
			return err
		}
		defer client.Close()
		if err := client.Ping(ctx); err != nil {
			return interruptedOr(ctx, unreachable(err))
		}
	}
	var st *store.Store
	if clickhouse {
		if st, err = store.Open(s.ClickHouse.Config, log, nil); err != nil {
			return err
		}
		defer st.Close()
		if err := st.Ping(ctx); errors.Is(err, store.ErrNoDatabase) {
			return err
		} else if err != nil {
			return interruptedOr(ctx, unreachable(err))
		}
	}
	return interruptedOr(ctx, work(client, st, log))
}

// writeReport prints what a replay found, with a line for each table and the columns that change.
func writeReport(w io.Writer, r replay.Report) error {
	fmt.Fprintf(w, "%d raw records, %d conferences of the range\n", r.Records, r.Conferences)
	if r.Open > 0 {
		fmt.Fprintf(w, "%d conferences are not past their grace period and are left to the live services\n", r.Open)
	}
	if r.Left > 0 {
		fmt.Fprintf(w, "%d stored conferences reach out of the range as they are computed now, and stay as they are: replay a longer range for them\n", r.Left)
	}
	if r.Rejected > 0 {
		fmt.Fprintf(w, "%d records cannot be processed and were set aside; the log names them\n", r.Rejected)
	}
	t := table{header: []string{"table", "added", "changed", "removed", "columns that change (rows)"}, right: []bool{false, true, true, true, false}}
	for _, d := range r.Differences {
		var columns []string
		for _, name := range slices.Sorted(maps.Keys(d.Columns)) {
			columns = append(columns, fmt.Sprintf("%s (%d)", name, d.Columns[name]))
		}
		t.add(strings.TrimSuffix(d.Table, "_rows"), fmt.Sprint(d.Added), fmt.Sprint(d.Changed), fmt.Sprint(d.Removed), strings.Join(columns, ", "))
	}
	if err := t.write(w); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%d rows differ in total\n", r.Rows())
	return err
}

// progress shows how far a command is: a bar on a terminal, otherwise a line every 10 s, also while nothing moves.
type progress struct {
	w    io.Writer
	unit string
	done chan struct{} // closed by stop
	idle sync.WaitGroup

	mu       sync.Mutex
	bar      *progressbar.ProgressBar // nil where w is no terminal
	phase    string                   // "" before anything is known
	n, total int64
}

const progressEvery = 10 * time.Second

func newProgress(w io.Writer, unit string) *progress {
	p := &progress{w: w, unit: unit, done: make(chan struct{})}
	every := progressEvery
	if f, ok := w.(*os.File); ok {
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			p.bar = progressbar.NewOptions64(1, progressbar.OptionSetWriter(w), progressbar.OptionShowCount(), progressbar.OptionShowIts(),
				progressbar.OptionSetItsString(unit), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
			every = time.Second
		}
	}
	p.idle.Go(func() {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				p.show()
			case <-p.done:
				return
			}
		}
	})
	return p
}

// show is for what lasts.
func (p *progress) show() {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.phase == "":
	case p.bar != nil:
		p.draw()
	default:
		fmt.Fprintf(p.w, "%s: %d of %d %s\n", p.phase, p.n, p.total, p.unit)
	}
}

func (p *progress) set(phase string, n, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.done:
		return
	default:
	}
	if p.bar != nil && phase != p.phase {
		p.bar.Describe(phase)
	}
	p.phase, p.n, p.total = phase, n, total
	if p.bar != nil {
		p.draw()
	}
}

// draw moves the bar. What its writer says of a broken terminal is of no use.
func (p *progress) draw() {
	p.bar.ChangeMax64(max(p.total, 1))
	_ = p.bar.Set64(min(p.n, max(p.total-1, 0)))
}

// stop takes the bar away; nothing is shown afterwards. Call it any number of times, from one goroutine.
func (p *progress) stop() {
	select {
	case <-p.done:
		return
	default:
	}
	close(p.done)
	p.idle.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		_ = p.bar.Clear()
	}
}

func (c *cli) replayEnriched(ctx context.Context, o replayOptions) error {
	for flag, given := range map[string]bool{
		"--from": o.from != "", "--to": o.to != "", "--app": o.app != "", "--dry-run": o.dryRun, "--resume": o.resume,
		"--from-files": o.fromFiles != "", "--from-beginning": o.fromBeginning,
	} {
		if given {
			return usage(fmt.Errorf("--from-enriched loads everything that the topics hold and does not go with %s", flag))
		}
	}
	return c.withServers(ctx, true, true, func(client *stream.Client, st *store.Store, log *slog.Logger) error {
		if err := errors.Join(st.CheckSchema(ctx), st.CheckInserts(ctx)); err != nil {
			return err
		}
		erased, err := c.erasuresNow(ctx, client, log)
		if err != nil {
			return err
		}
		progress := newProgress(c.stderr, "records")
		defer progress.stop()
		done, err := replay.Reload(ctx, replay.ReloadConfig{
			Rate: o.rate, Prepare: erased.Prepare, Progress: func(p replay.Progress) { progress.set(p.Phase, p.Records, p.Total) },
		}, client, st, log)
		progress.stop()
		if err != nil && done.Rows > 0 && ctx.Err() == nil {
			return &codedError{exitPartly, fmt.Errorf("%d rows are loaded, and starting again loads the rest: %w", done.Rows, err)}
		}
		if err == nil {
			err = c.sameErasures(ctx, client, erased, log)
		}
		if errors.Is(err, errErasedMeanwhile) {
			return &codedError{exitPartly, err}
		}
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.stdout, "%d records gave %d rows; %d records were duplicates, %d can never become rows\n", done.Records, done.Rows, done.Duplicates, done.Rejected)
		return err
	})
}
