package dumps

import (
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The records of an import lie in the log where it ran, and its calls began when they were recorded. A replay of either
// time, and of both, leaves every row as it is.
func TestReplayChangesNothing(t *testing.T) {
	c, _ := startOn(t)
	dir := t.TempDir()
	later := time.Since(time.UnixMilli(beginMs)).Truncate(24*time.Hour) - 48*time.Hour
	c.importDump(t, 0, moved(t, dir, "internals-new-alice.json", later), moved(t, dir, "internals-new-bob.json", later), "--conference", "standup", "--user", "alice", "--user", "bob")
	c.importDump(t, 0, moved(t, dir, "internals-old.json", later), moved(t, dir, "rtcstats-2-jitsi.jsonl", later), moved(t, dir, "rtcstats-3.jsonl", later))
	pass(t, c.client, 20*time.Second)
	for _, conference := range []string{"standup", "internals-old", "rtcstats-2-jitsi", "rtcstats-3"} {
		c.ended(t, conference)
	}
	pass(t, c.client, 400*time.Second)
	settled(t, c.client)
	before := c.everything(t)
	recorded, day := time.UnixMilli(beginMs).Add(later).UTC(), 24*time.Hour
	for _, tc := range []struct {
		name        string
		from, to    time.Time
		conferences string
	}{
		{"the day of the calls", recorded.Truncate(day), recorded.Truncate(day).Add(day), "4"},
		{"from the calls to now", recorded.Truncate(day), time.Now().UTC().Add(time.Hour), "4"},
		{"when they were imported", time.Now().UTC().Add(-time.Hour), time.Now().UTC().Add(time.Hour), "0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out := c.callscope(t, 0, "replay", "--from", tc.from.Format(time.RFC3339), "--to", tc.to.Format(time.RFC3339))
			if !regexp.MustCompile(`(?s)^\d+ raw records, ` + tc.conferences + ` conferences of the range\n.*\n0 rows differ in total\nnothing to write\n$`).MatchString(out) {
				t.Errorf("replay says\n%s", out)
			}
			if diff := cmp.Diff(before, c.everything(t)); diff != "" {
				t.Error(diff)
			}
		})
	}
	c.callscope(t, 0, "replay", "--from-enriched")
	if diff := cmp.Diff(before, c.everything(t)); diff != "" {
		t.Errorf("loaded from the topics: %s", diff)
	}
}
