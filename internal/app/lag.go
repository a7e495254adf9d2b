package app

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/callscope/callscope/internal/stream"
)

// consumers are the groups and what each of them reads.
var consumers = []struct {
	group  string
	topics []string
}{
	{stream.GroupEnricher, []string{stream.TopicRaw}},
	{stream.GroupSummarizer, []string{stream.TopicEnriched}},
	{stream.GroupSink, []string{stream.TopicEnriched, stream.TopicSummaries}},
}

func (c *cli) lagCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "lag",
		Short: "Print how many records each consumer group is behind",
		Long: `Print how many records, and seconds, each consumer group is behind.

It asks the cluster of kafka.brokers, or without any the broker of a running
` + "`callscope all`" + ` at kafka.embedded_addr. The enricher and the summarizer commit when they
save their state, so up to a snapshot interval of records counts as lag.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := oneOf("--output", output, "table", "json"); err != nil {
				return err
			}
			return c.lag(cmd.Context(), output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

func (c *cli) lag(ctx context.Context, output string) error {
	s, err := c.load()
	if err != nil {
		return err
	}
	s.useRunningBroker()
	if err := s.check(needKafka); err != nil {
		return err
	}
	client, err := stream.Open(s.Kafka.Config, c.logger(s.Log), nil)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.Ping(ctx); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return unreachable(err)
	}
	var list []groupLag
	for _, consumer := range consumers {
		partitions, err := client.Lag(ctx, consumer.group, consumer.topics)
		if err != nil {
			return interruptedOr(ctx, err)
		}
		list = append(list, newGroupLag(consumer.group, partitions, time.Now()))
	}
	if output == "json" {
		return writeLagJSON(c.stdout, list)
	}
	return writeLagTable(c.stdout, list)
}

// groupLag is how far one group is behind, in total and by partition.
type groupLag struct {
	Group         string         `json:"group"`
	Records       int64          `json:"records"`
	BehindSeconds float64        `json:"behind_seconds"` // age of the oldest record that waits, of all partitions
	Partitions    []partitionLag `json:"partitions"`
}

type partitionLag struct {
	Topic         string  `json:"topic"`
	Partition     int32   `json:"partition"`
	Committed     *int64  `json:"committed"` // null when the group never committed
	End           int64   `json:"end"`
	Records       int64   `json:"records"`
	BehindSeconds float64 `json:"behind_seconds"`
}

func newGroupLag(group string, partitions []stream.PartitionLag, now time.Time) groupLag {
	g := groupLag{Group: group, Partitions: []partitionLag{}}
	for _, p := range partitions {
		one := partitionLag{Topic: p.Topic, Partition: p.Partition, End: p.End, Records: p.Lag}
		if p.Committed >= 0 {
			one.Committed = &p.Committed
		}
		if !p.BehindSince.IsZero() {
			// Writers' clocks may be ahead of ours.
			one.BehindSeconds = max(0, now.Sub(p.BehindSince).Round(time.Millisecond).Seconds())
		}
		g.Records += one.Records
		g.BehindSeconds = max(g.BehindSeconds, one.BehindSeconds)
		g.Partitions = append(g.Partitions, one)
	}
	return g
}

func writeLagJSON(w io.Writer, list []groupLag) error {
	total := int64(0)
	for _, g := range list {
		total += g.Records
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(struct {
		Records int64      `json:"records"`
		Groups  []groupLag `json:"groups"`
	}{total, list})
}

func writeLagTable(w io.Writer, list []groupLag) error {
	t := table{
		header: []string{"group", "topic", "partition", "committed", "end", "records", "behind"},
		right:  []bool{false, false, true, true, true, true, true},
	}
	total := int64(0)
	for _, g := range list {
		for _, p := range g.Partitions {
			committed := "never"
			if p.Committed != nil {
				committed = strconv.FormatInt(*p.Committed, 10)
			}
			t.add(g.Group, p.Topic, strconv.Itoa(int(p.Partition)), committed, strconv.FormatInt(p.End, 10), strconv.FormatInt(p.Records, 10), seconds(p.BehindSeconds))
		}
		t.add(g.Group, "all", "", "", "", strconv.FormatInt(g.Records, 10), seconds(g.BehindSeconds))
		total += g.Records
	}
	if err := t.write(w); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%d records behind in total\n", total)
	return err
}

func seconds(s float64) string { return strconv.FormatFloat(s, 'f', 1, 64) + " s" }
