package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/callscope/callscope/internal/archive"
	"github.com/callscope/callscope/internal/replay"
	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/stream"
)

func (c *cli) exportCommand() *cobra.Command {
	var from, to, dir string
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write raw records to files that outlive Kafka's retention",
		Long: `Write the raw records of the range [--from, --to) to files: compressed, one for each partition
and hour, and a manifest with their checksums, which comes last. ` + "`callscope replay --from-files`" + `
computes rows from them, and ` + "`callscope import`" + ` loads them into a new cluster.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.export(cmd.Context(), from, to, dir) },
	}
	f := cmd.Flags()
	f.StringVar(&from, "from", "", "begin of the range: a day, or a time such as 2026-11-01T10:00:00Z")
	f.StringVar(&to, "to", "", "end of the range, exclusive")
	f.StringVar(&dir, "dir", "", "empty directory for the archive; made where it does not exist")
	return cmd
}

func (c *cli) export(ctx context.Context, from, to, dir string) error {
	begin, end, err := parseRange(from, to)
	if err != nil {
		return err
	}
	if dir == "" {
		return usage(fmt.Errorf("--dir is missing: give an empty directory for the archive"))
	}
	return c.withServers(ctx, true, false, func(client *stream.Client, _ *store.Store, log *slog.Logger) error {
		erased, err := c.erasuresNow(ctx, client, log)
		if err != nil {
			return err
		}
		progress := newProgress(c.stderr, "records")
		defer progress.stop()
		m, err := replay.ExportErased(ctx, client, erased.Raw, begin, end, dir, func(p replay.Progress) { progress.set(p.Phase, p.Records, p.Total) })
		progress.stop()
		if err != nil {
			return err
		}
		switch err := c.sameErasures(ctx, client, erased, log); {
		case errors.Is(err, errErasedMeanwhile):
			return &codedError{exitPartly, fmt.Errorf("somebody was erased while the files were written and may be in them: delete %s and export again", dir)}
		case err != nil:
			return &codedError{exitPartly, fmt.Errorf("whether somebody was erased while the files were written, and is in them, is not known: delete %s and export again: %w", dir, err)}
		}
		var records, bytes int64
		for _, f := range m.Files {
			records, bytes = records+f.Records, bytes+f.Bytes
		}
		_, err = fmt.Fprintf(c.stdout, "%d raw records in %d files, %d bytes, in %s\n", records, len(m.Files), bytes, dir)
		return err
	})
}

func (c *cli) importCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "import",
		Short: "Load an archive into the empty raw topic of a new cluster",
		Long: `Load an archive that ` + "`callscope export`" + ` wrote into the raw topic of a new cluster, with the order
of each partition. All topics must be empty and have as many partitions as the archive. Records
keep their times, so kafka.raw_retention must be longer than they are old.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.importArchive(cmd.Context(), dir) },
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory of the archive")
	return cmd
}

func (c *cli) importArchive(ctx context.Context, dir string) error {
	if dir == "" {
		return usage(fmt.Errorf("--dir is missing: give the directory of an archive"))
	}
	a, err := archive.Open(dir)
	if err != nil {
		return err
	}
	defer a.Close()
	return c.withServers(ctx, true, false, func(client *stream.Client, _ *store.Store, log *slog.Logger) error {
		erased, err := c.erasuresNow(ctx, client, log)
		if err != nil {
			return err
		}
		progress := newProgress(c.stderr, "records")
		defer progress.stop()
		n, err := replay.ImportErased(ctx, client, erased.Raw, a, func(p replay.Progress) { progress.set(p.Phase, p.Records, p.Total) })
		progress.stop()
		if err != nil && n > 0 {
			return &codedError{exitPartly, fmt.Errorf("%d records are in the topic; delete %s and make it anew before another try: %w", n, stream.TopicRaw, err)}
		}
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.stdout, "%d raw records are in %s\n", n, stream.TopicRaw)
		return err
	})
}
