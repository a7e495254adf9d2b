package app

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/callscope/callscope/services/gateway/play"
)

// democall plays recordings against the process' own gateway and prints what became of them in SQL: the first thing
// that a newcomer sees of callscope.
type democall struct {
	files []string
	speed float64
}

// settlePoll is how often it is looked whether the call has its final summary.
const settlePoll = 500 * time.Millisecond

// show plays the recordings, waits until every conference has ended and prints them. It returns early when ctx ends.
func (d democall) show(ctx context.Context, c *cli, p *process) error {
	recordings, err := play.ReadFiles(d.files)
	if err != nil {
		return err
	}
	names := make([]string, len(d.files))
	for i, file := range d.files {
		names[i] = filepath.Base(file)
	}
	began := time.Now()
	fmt.Fprintf(c.stdout, "playing %s, %g times as fast as recorded …\n", strings.Join(names, ", "), d.speed)
	report, err := play.Run(ctx, play.Config{
		Recordings: recordings, Gateway: "http://" + p.Gateway.Addr, Secret: demoAppSecret, Speed: d.speed,
	})
	if err != nil {
		return fmt.Errorf("playing the recorded call: %w", err)
	}
	if !report.OK() {
		if err := report.WriteSummary(c.stdout); err != nil {
			return err
		}
		return fmt.Errorf("the gateway did not accept everything of the recorded call; see above")
	}
	fmt.Fprintf(c.stdout, "played %d messages in %s; a call ends 10 s after its last message …\n",
		len(report.Results), report.Duration.Round(100*time.Millisecond))

	// Gateway times have milliseconds, and the data may hold earlier demonstrations.
	since := fmt.Sprintf("started_at >= fromUnixTimestamp64Milli(%d)", began.UnixMilli())
	if err := p.settled(ctx, since); err != nil {
		return err
	}
	ofTheCall := " WHERE conference_uid IN (SELECT conference_uid FROM conferences WHERE " + since + ")"
	for _, q := range []struct{ title, sql string }{
		{"The conference", "SELECT conference_id, started_at, duration_ms, outcome, participants, fabrics, setup_delay_ms_median, feedback_overall FROM conferences" + ofTheCall},
		{"Its participants", "SELECT user_id, browser, os, joins, presence_ms, left_reason, audio_mos, feedback_overall FROM participants" + ofTheCall + " ORDER BY joined_at"},
		{"Their fabrics (PeerConnections)", "SELECT user_id, remote_id, connection_id, outcome, setup_delay_ms, ice_connectivity_delay_ms, rtt_ms FROM fabrics" + ofTheCall + " ORDER BY fabrics.started_at"},
		{"Feedback", "SELECT user_id, overall, audio, video, comment FROM feedback" + ofTheCall + " ORDER BY time"},
	} {
		fmt.Fprintf(c.stdout, "\n%s\n\n", q.title)
		result, err := p.store.Query(ctx, q.sql)
		if err != nil {
			return serverError(err)
		}
		err = writeRows(c.stdout, "table", result.Columns, result.Rows())
		result.Close()
		if err != nil {
			return serverError(err)
		}
	}
	fmt.Fprintf(c.stdout, `
callscope is up, on loopback only. Stop it with Ctrl-C.

  gateway     http://%s   for callstats clients: AppID %s, AppSecret %s
  engine      http://%s   ClickHouse's HTTP interface, database callscope
  metrics     http://%s/metrics
  data        %s

Try in another terminal:

  bin/callscope sql "SELECT event_type, count() FROM events GROUP BY event_type ORDER BY 2 DESC"
`, p.Gateway.Addr, demoAppID, demoAppSecret, p.ClickHouse.EmbeddedAddr, p.Admin.Addr, p.DataDir)
	return nil
}

// settled waits until every conference that the condition names, and at least one, has its final summary.
func (p *process) settled(ctx context.Context, condition string) error {
	poll := time.NewTicker(settlePoll)
	defer poll.Stop()
	for {
		var conferences, open uint64
		result, err := p.store.Query(ctx, "SELECT toUInt64(count()), toUInt64(countIf(state = 'partial')) FROM conferences WHERE "+condition)
		if err != nil {
			return serverError(err)
		}
		for row, err := range result.Rows() {
			if err != nil {
				result.Close()
				return serverError(err)
			}
			conferences, open = row[0].(uint64), row[1].(uint64)
		}
		result.Close()
		if conferences > 0 && open == 0 {
			return nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
