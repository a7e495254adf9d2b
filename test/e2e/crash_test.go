package e2e

import (
	"context"
	"math"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/callscope/callscope/services/gateway/play"
)

// TestKilledInMidCall kills the whole process while a recording is played and
// starts it again on the same data. Whatever the gateway answered must be there
// exactly once, and nothing may be there twice.
func TestKilledInMidCall(t *testing.T) {
	for _, crash := range []struct {
		capture string
		speed   float64
		// The process is killed when this many messages have been played,
		// whatever became of them.
		after []int64
	}{
		{"two-users-hs256.jsonl", 2, []int64{40, 75}},
		{"mesh3.jsonl", 2, []int64{50, 100}},
		{"rn-3.24.6-wss.jsonl", 1, []int64{55}},
	} {
		t.Run(crash.capture, func(t *testing.T) {
			t.Parallel()
			d := oneProcess(t)
			recordings, err := play.ReadFiles([]string{filepath.Join("..", "captures", crash.capture)})
			if err != nil {
				t.Fatal(err)
			}
			var count atomic.Int64
			reached := make(chan int64, 1000)
			type played struct {
				report play.Report
				err    error
			}
			done := make(chan played, 1)
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			go func() {
				report, err := play.Run(ctx, play.Config{
					Recordings: recordings, Gateway: "http://" + d.gateway, Speed: crash.speed,
					Progress: func(play.Result) { reached <- count.Add(1) },
				})
				close(reached)
				done <- played{report, err}
			}()
			kills := 0
			for n := range reached {
				if kills < len(crash.after) && n >= crash.after[kills] {
					d.one.Kill()
					d.one = d.again()
					kills++
				}
			}
			if kills < len(crash.after) {
				t.Errorf("killed %d times, want %d: the recording is too short for it", kills, len(crash.after))
			}
			result := <-done
			if result.err != nil {
				t.Fatalf("playing: %v", result.err)
			}
			settled(t, d, 1)
			checkNothingLostNothingDoubled(t, d, crash.capture, result.report)
		})
	}
}

func checkNothingLostNothingDoubled(t *testing.T, d *deployment, capture string, report play.Report) {
	t.Helper()
	rec := readCapture(t, capture)
	outcomes := map[int]play.Outcome{}
	for _, r := range report.Results {
		outcomes[r.Seq] = r.Outcome
	}
	events := mustQuery(t, d.engine, "SELECT * FROM events WHERE reported")
	samples := mustQuery(t, d.engine, "SELECT * FROM samples")

	// The player moves all times by one shift; a user's first join tells it.
	shift, found := 0.0, false
	for _, m := range rec.messages {
		if m.eventType != "userJoined" || outcomes[m.seq] != play.Accepted {
			continue
		}
		for _, r := range events {
			if r.text("original_type") == "userJoined" && r.text("user_id") == m.user && !found {
				shift, found = r.millis(t, "time")-m.timestamp, true
			}
		}
	}
	if !found {
		t.Fatal("no accepted userJoined has a row: nothing can be matched")
	}

	// Rows and messages are paired by user, connection, type and client time;
	// what was answered first, because only that must be there.
	type kind struct{ user, connection, eventType string }
	unpaired := map[kind][]float64{}
	for _, r := range events {
		k := kind{r.text("user_id"), r.text("connection_id"), r.text("original_type")}
		unpaired[k] = append(unpaired[k], r.millis(t, "time"))
	}
	for _, r := range samples {
		k := kind{r.text("user_id"), r.text("connection_id"), "samples"}
		unpaired[k] = append(unpaired[k], r.millis(t, "time"))
	}
	pair := func(k kind, m sentMessage) bool {
		nearest, distance := -1, 1.5
		for i, at := range unpaired[k] {
			d := math.Abs(at - (m.timestamp + shift))
			if m.timestamp == 0 {
				d = 0 // the client gave no time
			}
			if d <= distance {
				nearest, distance = i, d
			}
		}
		if nearest >= 0 {
			unpaired[k] = slices.Delete(unpaired[k], nearest, nearest+1)
		}
		return nearest >= 0
	}
	answered := 0
	for _, mustBeThere := range []bool{true, false} {
		for _, m := range rec.accepted() {
			if (outcomes[m.seq] == play.Accepted) != mustBeThere {
				continue
			}
			k, rows := kind{m.user, m.connection, m.eventType}, 1
			if m.isStats {
				k.eventType, rows = "samples", m.sampleCount
			}
			for range rows {
				if !pair(k, m) && mustBeThere {
					t.Errorf("lost: line %d, %s of %s on %q, was answered and has not all its rows", m.seq, m.eventType, m.user, m.connection)
				}
			}
			if mustBeThere {
				answered++
			}
		}
	}
	for k, times := range unpaired {
		if len(times) > 0 {
			t.Errorf("doubled: %d rows of %+v have no message of their own", len(times), k)
		}
	}
	if answered == 0 {
		t.Error("nothing was answered: the test shows nothing")
	}
}
