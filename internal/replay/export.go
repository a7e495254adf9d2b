package replay

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/callscope/callscope/internal/archive"
	"github.com/callscope/callscope/internal/stream"
)

// ErrNotEmpty: a topic that an archive is to be loaded into holds records.
var ErrNotEmpty = errors.New("the topics are not empty")

// Erase takes erased users out of a raw record.
type Erase func(stream.Record) (stream.Record, error)

// Export writes the raw records of [from, to), ticks included, into a directory.
func Export(ctx context.Context, client *stream.Client, from, to time.Time, dir string, progress func(Progress)) (archive.Manifest, error) {
	return ExportErased(ctx, client, nil, from, to, dir, progress)
}

// ExportErased is Export with what erase makes of each record; nil for as they are.
func ExportErased(ctx context.Context, client *stream.Client, erase Erase, from, to time.Time, dir string, progress func(Progress)) (archive.Manifest, error) {
	topic := Topic{Client: client}
	n, err := topic.Partitions(ctx)
	if err != nil {
		return archive.Manifest{}, err
	}
	starts, ends := make([]int64, n), make([]int64, n)
	var total, read atomic.Int64
	for p := range n {
		first, end, err := topic.Range(ctx, int32(p))
		if err != nil {
			return archive.Manifest{}, err
		}
		if starts[p], err = topic.Seek(ctx, int32(p), from); err != nil {
			return archive.Manifest{}, err
		}
		if ends[p], err = topic.Seek(ctx, int32(p), to); err != nil {
			return archive.Manifest{}, err
		}
		if first > 0 && starts[p] == first && first < end {
			records, err := topic.Read(ctx, int32(p), first)
			if err != nil {
				return archive.Manifest{}, err
			}
			if records[0].Time.After(from) {
				return archive.Manifest{}, fmt.Errorf("%w: the oldest record of partition %d is from %s, and the range begins at %s", ErrRetention, p, stamp(records[0].Time), stamp(from))
			}
		}
		total.Add(ends[p] - starts[p])
	}
	if total.Load() == 0 {
		return archive.Manifest{}, fmt.Errorf("%s holds no record from %s to %s", stream.TopicRaw, stamp(from), stamp(to))
	}
	w, err := archive.Create(dir, stream.TopicRaw, n, from, to)
	if err != nil {
		return archive.Manifest{}, err
	}
	writers := make([]*archive.PartitionWriter, n)
	g, working := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for p := range n {
		writers[p] = w.Partition(int32(p))
		g.Go(func() (err error) {
			defer func() { err = errors.Join(err, writers[p].Close()) }()
			for offset := starts[p]; offset < ends[p]; {
				if working.Err() != nil {
					return working.Err()
				}
				records, err := topic.Read(working, int32(p), offset)
				if err != nil {
					return err
				}
				for _, r := range records {
					if r.Offset >= ends[p] {
						return nil
					}
					offset = r.Offset + 1
					if erase != nil {
						if r, err = erase(r); err != nil {
							return err
						}
					}
					if err := writers[p].Write(r); err != nil {
						return err
					}
					read.Add(1)
				}
				progress(Progress{Phase: "exporting", Records: read.Load(), Total: total.Load()})
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return archive.Manifest{}, err
	}
	return w.Finish(writers)
}

// Import loads an archive into the raw topic, in the order of each partition. All topics of the chain must be empty and
// have as many partitions as the archive: offsets are new, and no stage may have seen anything else.
func Import(ctx context.Context, client *stream.Client, a *archive.Archive, progress func(Progress)) (records int64, err error) {
	return ImportErased(ctx, client, nil, a, progress)
}

// ImportErased is Import with what erase makes of each record; nil for as they are.
func ImportErased(ctx context.Context, client *stream.Client, erase Erase, a *archive.Archive, progress func(Progress)) (records int64, err error) {
	for _, topic := range []string{stream.TopicRaw, stream.TopicEnriched, stream.TopicSummaries, stream.TopicStateEnricher, stream.TopicStateSummarizer} {
		n, err := client.PartitionCount(ctx, topic)
		if err != nil {
			return 0, err
		}
		if n != a.Manifest.Partitions {
			return 0, fmt.Errorf("%s has %d partitions and the archive %d: the same keys would meet in other partitions; make the topics with kafka.partitions=%d", topic, n, a.Manifest.Partitions, a.Manifest.Partitions)
		}
		for p := range n {
			_, end, err := client.Offsets(ctx, topic, int32(p))
			if err != nil {
				return 0, err
			}
			if end > 0 {
				return 0, fmt.Errorf("%w: %s/%d has had %d records: an archive goes into a new cluster only; use `callscope replay --from-files` to compute rows from it", ErrNotEmpty, topic, p, end)
			}
		}
	}
	if err := a.Check(ctx); err != nil {
		return 0, err
	}
	total := int64(0)
	for _, f := range a.Manifest.Files {
		total += f.Records
	}
	for p := range int32(a.Manifest.Partitions) {
		start, end, err := a.Range(ctx, p)
		if err != nil {
			return records, err
		}
		for offset := start; offset < end; {
			list, err := a.Read(ctx, p, offset)
			if err != nil {
				return records, err
			}
			for i := range list {
				if erase == nil {
					break
				}
				if list[i], err = erase(list[i]); err != nil {
					return records, err
				}
			}
			if _, err := client.Append(ctx, stream.TopicRaw, p, list); err != nil {
				return records, err
			}
			records += int64(len(list))
			offset = list[len(list)-1].Offset + 1
			progress(Progress{Phase: "importing", Records: records, Total: total})
		}
	}
	return records, nil
}
