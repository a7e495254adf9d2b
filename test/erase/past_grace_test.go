package erase

import (
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/callscope/callscope/internal/stream"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
	"github.com/callscope/callscope/test/chaintest"
)

// A user who is erased when the call is final and nothing of it is remembered any more does not come back: not by a late
// message, and not by what raw and enriched still hold, be the rows there or lost.
func TestErasedPastGrace(t *testing.T) {
	c := start(t)
	client, err := stream.Open(stream.Config{Brokers: []string{c.broker}}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	run(t, 0, "play", "--config", c.settings, "--gateway", "http://"+c.gateway, "--speed", "0", "../captures/mesh3.jsonl")
	pass(t, client, 400*time.Second) // grace is 300 s behind the end
	settled(t, client)
	hits, before := found(t, c.engine, "alice")
	if len(hits) == 0 || before["conferences"] != 1 {
		t.Fatalf("alice is in %v, rows %v", hits, before)
	}
	if rows := fmt.Sprint(chaintest.MustQuery(t, c.engine, "SELECT state FROM conferences").Rows); rows != "[[final]]" {
		t.Fatalf("conferences: %s", rows)
	}

	run(t, 0, "erase", "--config", c.settings, "--app", app, "--user", "alice")
	gone := func(when string) {
		t.Helper()
		hits, counts := found(t, c.engine, "alice")
		if len(hits) > 0 {
			t.Errorf("%s: alice is in\n%s", when, strings.Join(hits, "\n"))
		}
		for view, n := range before {
			if counts[view] != n {
				t.Errorf("%s: %v rows in %s, were %v", when, counts[view], view, n)
			}
		}
		a := chaintest.MustQuery(t, c.engine, "SELECT uniqExact(user_id) AS users, countIf(startsWith(user_id, 'erased-')) AS erased FROM participants").Records()[0]
		users, _ := a.Number("users")
		if erased, _ := a.Number("erased"); users != 3 || erased != 1 {
			t.Errorf("%s: %v users, %v participants of the erased one", when, users, erased)
		}
	}
	gone("after the erasure")

	day := func(n int) string { return time.Now().UTC().AddDate(0, 0, n).Format(time.DateOnly) }
	replay := func(result string) {
		t.Helper()
		out := run(t, 0, "replay", "--config", c.settings, "--from", day(-1), "--to", day(1))
		if !regexp.MustCompile(`(?s)raw records, 1 conferences of the range\n.*\n` + result).MatchString(out) {
			t.Errorf("replay says\n%s", out)
		}
	}
	replay("0 rows differ in total\nnothing to write\n")
	gone("after a replay")
	run(t, 0, "replay", "--config", c.settings, "--from-enriched")
	gone("after loading from the topics")

	late(t, "http://"+c.gateway)
	before["events"]++
	settled(t, client)
	// It is of no call that is known: that one is past its grace.
	if rows := fmt.Sprint(chaintest.MustQuery(t, c.engine, "SELECT event_type, conference_id != '', startsWith(user_id, 'erased-') FROM events WHERE conference_uid IS NULL").Rows); rows != "[[fabricTerminated 1 1]]" {
		t.Errorf("the late message: %s", rows)
	}
	gone("after a late message")
	replay("0 rows differ in total\nnothing to write\n")
	gone("after a replay with the late message")

	lose := func() {
		t.Helper()
		for _, row := range chaintest.MustQuery(t, c.engine, "SELECT name FROM system.tables WHERE database = 'callscope' AND name LIKE '%\\_rows'").Rows {
			chaintest.MustQuery(t, c.engine, fmt.Sprint("TRUNCATE TABLE ", row[0]))
		}
		if _, counts := found(t, c.engine, "alice"); counts["events"] != 0 || counts["conferences"] != 0 {
			t.Fatalf("rows are left: %v", counts)
		}
	}
	lose()
	replay(`[1-9]\d* rows differ in total\nwrote `)
	gone("after computing lost rows from raw")
	lose()
	run(t, 0, "replay", "--config", c.settings, "--from-enriched")
	gone("after loading lost rows from the topics")
}

// pass lets time pass for all calls, which have no other clock than the ticks in the log: each counts for 5 s at most.
func pass(t *testing.T, client *stream.Client, d time.Duration) {
	t.Helper()
	partitions, err := client.PartitionCount(t.Context(), stream.TopicRaw)
	if err != nil {
		t.Fatal(err)
	}
	for p := range int32(partitions) {
		ticker := uuid.New()
		var records []stream.Record
		for at := time.Duration(0); at <= d; at += 5 * time.Second {
			uid := uuid.New()
			value, err := (&callscopev1.Raw{Uid: uid[:], Payload: &callscopev1.Raw_Tick{Tick: &callscopev1.Tick{
				TickerUid: ticker[:], MonotonicMs: at.Milliseconds(), WallMs: time.Now().UnixMilli(),
			}}}).MarshalVT()
			if err != nil {
				t.Fatal(err)
			}
			records = append(records, stream.Record{Value: value})
		}
		if _, err := client.Append(t.Context(), stream.TopicRaw, p, records); err != nil {
			t.Fatal(err)
		}
	}
}

// settled waits until what the raw topic holds now has come to the store.
func settled(t *testing.T, client *stream.Client) {
	t.Helper()
	for _, stage := range []struct {
		group  string
		topics []string
	}{
		{stream.GroupEnricher, []string{stream.TopicRaw}}, {stream.GroupSummarizer, []string{stream.TopicEnriched}},
		{stream.GroupSink, []string{stream.TopicEnriched, stream.TopicSummaries}},
	} {
		var ends []stream.PartitionLag
		chaintest.Eventually(t, time.Minute, stage.group+" being done", func() string {
			lags, err := client.Lag(t.Context(), stage.group, stage.topics)
			if err != nil {
				return err.Error()
			}
			if ends == nil {
				ends = lags
			}
			for i, lag := range lags {
				if lag.Committed < ends[i].End && ends[i].End > 0 {
					return fmt.Sprintf("%s/%d: %d of %d", lag.Topic, lag.Partition, lag.Committed, ends[i].End)
				}
			}
			return ""
		})
	}
}
