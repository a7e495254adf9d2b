package replay

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"sync/atomic"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/callscope/callscope/internal/stage"
	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/stream"
	"github.com/callscope/callscope/services/sink"
)

// ReloadConfig says how the store is loaded again.
type ReloadConfig struct {
	Rate     int            // records a second at most; 0 is unbounded
	Progress func(Progress) // may be nil
	Prepare  sink.Prepare   // changes records before they become rows; may be nil
}

// Reloaded is what a reload did.
type Reloaded struct {
	Records    int64 // read
	Rows       int64 // inserted; those that were there already collapse with them
	Duplicates int64 // records that a stage had written before
	Rejected   int64 // records that can never become rows
}

// Reload inserts the rows of everything that the topics enriched and summaries still hold, as the sink did when they came.
// Rows that are stored stay as they are. What a replay changed and is lost is not among them: replay again.
//
// An interrupted reload is simply started again.
func Reload(ctx context.Context, cfg ReloadConfig, client *stream.Client, st *store.Store, log *slog.Logger) (Reloaded, error) {
	if cfg.Progress == nil {
		cfg.Progress = func(Progress) {}
	}
	r := &reload{cfg: cfg, client: client, store: st, log: log, pace: pacer{rate: cfg.Rate}, run: uuid.NewString()}
	type part struct {
		topic      string
		number     int32
		start, end int64
	}
	var parts []part
	for _, topic := range []string{stream.TopicEnriched, stream.TopicSummaries} {
		n, err := client.PartitionCount(ctx, topic)
		if err != nil {
			return Reloaded{}, err
		}
		for number := range int32(n) {
			start, end, err := client.Offsets(ctx, topic, number)
			if err != nil {
				return Reloaded{}, err
			}
			r.total += end - start
			parts = append(parts, part{topic, number, start, end})
		}
	}
	g, working := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, p := range parts {
		g.Go(func() error {
			if err := r.partition(working, p.topic, p.number, p.start, p.end); err != nil {
				return fmt.Errorf("loading %s/%d: %w", p.topic, p.number, err)
			}
			return nil
		})
	}
	err := g.Wait()
	return Reloaded{r.records.Load(), r.rows.Load(), r.duplicates.Load(), r.rejected.Load()}, err
}

type reload struct {
	cfg    ReloadConfig
	client *stream.Client
	store  *store.Store
	log    *slog.Logger
	pace   pacer
	run    string // in every token: tables may remember the tokens of rows that are lost
	total  int64

	records, rows, duplicates, rejected atomic.Int64
}

func (r *reload) partition(ctx context.Context, topic string, number int32, start, end int64) error {
	filter := stage.OpenFilter()
	var rows sink.Rows
	first := start
	for offset := start; offset < end; {
		records, err := readTopic(ctx, r.client, topic, number, offset, fetchBytes)
		if err == nil {
			err = r.pace.wait(ctx, len(records))
		}
		if err != nil {
			return err
		}
		for _, record := range records {
			if record.Offset >= end {
				break
			}
			offset = record.Offset + 1
			r.records.Add(1)
			if _, origin, prev, err := stage.ReadHeader(record.Value); err == nil && origin != nil && filter.Accept(origin, prev) == stage.Duplicate {
				r.duplicates.Add(1)
				continue
			}
			if err := rows.AddRecord(r.cfg.Prepare, record, first); err != nil {
				r.rejected.Add(1)
				r.log.Warn("a record can never become rows", "topic", topic, "partition", number, "offset", record.Offset, "reason", err)
			}
		}
		if rows.Len() < flushRows && offset < end {
			continue
		}
		for table, list := range rows.Tables() {
			if err := r.store.Insert(ctx, table, fmt.Sprintf("reload/%s/%s/%d/%d", r.run, topic, number, first), list); err != nil {
				return err
			}
		}
		r.rows.Add(int64(rows.Len()))
		rows.Reset()
		first = offset
		r.cfg.Progress(Progress{Phase: "loading", Records: r.records.Load(), Total: r.total})
	}
	return ctx.Err()
}
