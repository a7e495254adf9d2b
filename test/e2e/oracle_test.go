package e2e

import (
	order "cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// checkCall holds the rows of one played recording against the recording
// itself and against what the rules give for it (test/expected).
func checkCall(t *testing.T, engine, capture string) {
	rec, want := readCapture(t, capture), readExpectation(t, capture)
	for _, conference := range want.Conferences {
		id := conference.ConferenceID
		where := " WHERE conference_id = " + quote(id)

		conferences := mustQuery(t, engine, "SELECT * FROM conferences"+where)
		if len(conferences) != 1 {
			t.Fatalf("%d rows in conferences for %q, want 1", len(conferences), id)
		}
		c := conferences[0]
		if got := *c.number("participants"); int(got) != len(conference.Participants) {
			t.Errorf("conference %q has %v participants, want %d", id, got, len(conference.Participants))
		}
		if got := *c.number("fabrics"); int(got) != len(conference.Fabrics) {
			t.Errorf("conference %q has %v fabrics, want %d", id, got, len(conference.Fabrics))
		}

		events := mustQuery(t, engine, "SELECT * FROM events"+where+" AND reported")
		moments := checkEvents(t, rec, events, id, want)
		checkParticipants(t, engine, where, conference.Participants, moments, c)
		checkFabrics(t, engine, where, conference.Fabrics, moments)
		checkSetupDelaysAreTheRecordedOnes(t, rec, engine, where)
		checkSamples(t, rec, engine, where, want)
		checkFeedback(t, engine, where, want)
		checkFailures(t, engine, where, want)
	}
	if want.PrecallWithoutConference > 0 {
		rows := mustQuery(t, engine, "SELECT * FROM precall_tests")
		if len(rows) != want.PrecallWithoutConference {
			t.Errorf("%d rows in precall_tests, want %d", len(rows), want.PrecallWithoutConference)
		}
	}
}

// checkEvents wants exactly one events row for each message that is not stats,
// with the client's own time up to one shift for the whole recording. It
// returns when the gateway received the message recorded at a time t, so that
// presence can be checked without asserting on the clock.
func checkEvents(t *testing.T, rec recording, rows []row, conferenceID string, want expectation) map[float64][]float64 {
	t.Helper()
	type key struct{ user, eventType, connection string }
	byKey := map[key][]row{}
	counts := map[string]int{}
	for _, r := range rows {
		name := r.text("original_type")
		counts[name]++
		k := key{r.text("user_id"), name, r.text("connection_id")}
		byKey[k] = append(byKey[k], r)
	}
	if diff := cmp.Diff(want.Events, counts); diff != "" {
		t.Errorf("events by the client's names (-want +got):\n%s", diff)
	}
	moments := map[float64][]float64{}
	sentByKey := map[key][]sentMessage{}
	for _, m := range rec.accepted() {
		if m.isStats || m.conference != conferenceID {
			continue
		}
		k := key{m.user, m.eventType, m.connection}
		sentByKey[k] = append(sentByKey[k], m)
	}
	var shifts []float64
	for k, sent := range sentByKey {
		got := byKey[k]
		if len(got) != len(sent) {
			t.Errorf("%d events rows for %+v, want %d", len(got), k, len(sent))
			continue
		}
		slices.SortStableFunc(sent, func(a, b sentMessage) int { return order.Compare(a.seq, b.seq) })
		slices.SortStableFunc(got, func(a, b row) int {
			return order.Compare(a.millis(t, "received_at"), b.millis(t, "received_at"))
		})
		// Messages of one key may arrive within one millisecond: pair by client
		// time where the client gave one.
		slices.SortStableFunc(sent, func(a, b sentMessage) int { return order.Compare(a.timestamp, b.timestamp) })
		if sent[0].timestamp != 0 {
			slices.SortStableFunc(got, func(a, b row) int { return order.Compare(a.millis(t, "time"), b.millis(t, "time")) })
		}
		for i, m := range sent {
			moments[m.t] = append(moments[m.t], got[i].millis(t, "received_at"))
			if m.timestamp != 0 {
				shifts = append(shifts, got[i].millis(t, "time")-m.timestamp)
			}
		}
	}
	if len(shifts) > 0 {
		low, high := slices.Min(shifts), slices.Max(shifts)
		if high-low > 2 {
			t.Errorf("events are shifted in time by %.3f to %.3f ms: the client's own differences are not kept", low, high)
		}
	}
	return moments
}

// sameMoment wants a time column to be the gateway's receive time of the
// message that was recorded at t.
func sameMoment(t *testing.T, what string, r row, column string, recordedT float64, moments map[float64][]float64) {
	t.Helper()
	received, known := moments[recordedT]
	if !known {
		// A stats message: events do not hold it.
		return
	}
	// Several messages may have been recorded in the same millisecond.
	got := r.millis(t, column)
	if !slices.ContainsFunc(received, func(at float64) bool { return math.Abs(got-at) <= 1 }) {
		t.Errorf("%s: %s is %.0f ms away from the receive time of the message recorded at %v", what, column, got-received[0], recordedT)
	}
}

func checkParticipants(t *testing.T, engine, where string, want []struct {
	User      string `json:"user"`
	Device    string `json:"device"`
	Joins     int    `json:"joins"`
	Intervals []struct {
		JoinedT    float64 `json:"joined_t"`
		LeftT      float64 `json:"left_t"`
		LeftReason string  `json:"left_reason"`
	} `json:"intervals"`
}, moments map[float64][]float64, conference row) {
	t.Helper()
	rows := mustQuery(t, engine, "SELECT * FROM participants"+where)
	if len(rows) != len(want) {
		t.Errorf("%d rows in participants, want %d", len(rows), len(want))
	}
	lastLeft := 0.0
	for _, p := range want {
		what := "participant " + p.User
		i := slices.IndexFunc(rows, func(r row) bool { return r.text("user_id") == p.User && r.text("device_id") == p.Device })
		if i < 0 {
			t.Errorf("%s with device %s has no row", what, p.Device)
			continue
		}
		r := rows[i]
		last := p.Intervals[len(p.Intervals)-1]
		if got := *r.number("joins"); int(got) != p.Joins {
			t.Errorf("%s: joins %v, want %d", what, got, p.Joins)
		}
		if got := r.text("left_reason"); got != last.LeftReason {
			t.Errorf("%s: left_reason %q, want %q", what, got, last.LeftReason)
		}
		if got := r.text("state"); got != "final" && got != "revised" {
			t.Errorf("%s: state %q, want final or revised", what, got)
		}
		sameMoment(t, what, r, "joined_at", p.Intervals[0].JoinedT, moments)
		sameMoment(t, what, r, "left_at", last.LeftT, moments)
		lastLeft = max(lastLeft, r.millis(t, "left_at"))
		if len(p.Intervals) == 1 {
			if got, want := *r.number("presence_ms"), r.millis(t, "left_at")-r.millis(t, "joined_at"); got != want {
				t.Errorf("%s: presence_ms %v, want left_at - joined_at = %v", what, got, want)
			}
		}
	}
	if got := conference.millis(t, "ended_at"); got != lastLeft {
		t.Errorf("ended_at is %v ms off the latest left_at", got-lastLeft)
	}
}

func checkFabrics(t *testing.T, engine, where string, want []expectedFabric, moments map[float64][]float64) {
	t.Helper()
	rows := mustQuery(t, engine, "SELECT * FROM fabrics"+where)
	if len(rows) != len(want) {
		t.Errorf("%d rows in fabrics, want %d", len(rows), len(want))
	}
	for _, f := range want {
		what := fmt.Sprintf("fabric %s of %s", f.ConnectionID, f.User)
		i := slices.IndexFunc(rows, func(r row) bool {
			return r.text("user_id") == f.User && r.text("connection_id") == f.ConnectionID
		})
		if i < 0 {
			t.Errorf("%s has no row", what)
			continue
		}
		r := rows[i]
		if got := r.text("outcome"); got != f.Outcome {
			t.Errorf("%s: outcome %q, want %q", what, got, f.Outcome)
		}
		if got := r.text("remote_id"); got != f.Remote {
			t.Errorf("%s: remote_id %q, want %q", what, got, f.Remote)
		}
		setupDelay := r.number("setup_delay_ms")
		if f.DelaySource != nil && *f.DelaySource == "computed" {
			// Computed from client times, which the player shifts as a whole.
			if setupDelay == nil || math.Abs(*setupDelay-*f.SetupDelayMs) > 2 {
				t.Errorf("%s: setup_delay_ms %v, want about %v", what, r["setup_delay_ms"], *f.SetupDelayMs)
			}
		} else if !near(setupDelay, f.SetupDelayMs) {
			t.Errorf("%s: setup_delay_ms %v, want %v", what, r["setup_delay_ms"], show(f.SetupDelayMs))
		}
		for column, value := range map[string]*float64{
			"ice_gathering_delay_ms": f.IceGatheringDelayMs, "ice_connectivity_delay_ms": f.IceConnectivityDelayMs,
			"failure_delay_ms": f.FailureDelayMs,
		} {
			if !near(r.number(column), value) {
				t.Errorf("%s: %s %v, want %v", what, column, r[column], show(value))
			}
		}
		for column, value := range map[string]*string{
			"delay_source": f.DelaySource, "failure_function": f.FailureFunction, "failure_reason": f.FailureReason,
		} {
			if (r[column] == nil) != (value == nil) || value != nil && r.text(column) != *value {
				t.Errorf("%s: %s %v, want %v", what, column, r[column], show(value))
			}
		}
		if got := *r.number("disruptions"); int(got) != f.Disruptions {
			t.Errorf("%s: disruptions %v, want %d", what, got, f.Disruptions)
		}
		sameMoment(t, what, r, "started_at", f.StartedT, moments)
		sameMoment(t, what, r, "ended_at", f.EndedT, moments)
	}
}

func show[T any](p *T) any {
	if p == nil {
		return "NULL"
	}
	return *p
}

// checkSetupDelaysAreTheRecordedOnes reads the delays from the recording, not
// from what the rules give.
func checkSetupDelaysAreTheRecordedOnes(t *testing.T, rec recording, engine, where string) {
	t.Helper()
	recorded := map[string]float64{}
	for _, m := range rec.accepted() {
		switch m.eventType {
		case "fabricSetup", "autoFabricSetup":
			recorded[m.user+" "+m.connection] = firstNumber(m.fields, "delay", "setupDelay")
		}
	}
	rows := mustQuery(t, engine, "SELECT user_id, connection_id, setup_delay_ms, delay_source FROM fabrics"+where+" AND delay_source = 'reported'")
	got := map[string]float64{}
	for _, r := range rows {
		got[r.text("user_id")+" "+r.text("connection_id")] = *r.number("setup_delay_ms")
	}
	if diff := cmp.Diff(recorded, got); diff != "" {
		t.Errorf("recorded setup delays (-recorded +rows):\n%s", diff)
	}
}

func checkSamples(t *testing.T, rec recording, engine, where string, want expectation) {
	t.Helper()
	recorded := map[string]int{}
	for _, m := range rec.accepted() {
		if m.isStats {
			recorded[m.user+" "+m.connection] += m.sampleCount
		}
	}
	got := map[string]int{}
	for _, r := range mustQuery(t, engine, "SELECT user_id, connection_id, count() AS n FROM samples"+where+" GROUP BY user_id, connection_id") {
		got[r.text("user_id")+" "+r.text("connection_id")] = int(*r.number("n"))
	}
	if diff := cmp.Diff(recorded, got); diff != "" {
		t.Errorf("samples by fabric: RTP entries in the recording against rows (-recorded +rows):\n%s", diff)
	}
	type stream struct{ user, connection, direction, ssrc string }
	perStream := map[stream]int{}
	for _, r := range mustQuery(t, engine, "SELECT user_id, connection_id, direction, ssrc, count() AS n FROM samples"+where+" GROUP BY ALL") {
		perStream[stream{r.text("user_id"), r.text("connection_id"), r.text("direction"), r.text("ssrc")}] = int(*r.number("n"))
	}
	owners := map[stream]row{}
	for _, r := range mustQuery(t, engine, "SELECT * FROM streams"+where) {
		owners[stream{r.text("user_id"), r.text("connection_id"), r.text("direction"), r.text("ssrc")}] = r
	}
	if len(owners) != len(want.Streams) {
		t.Errorf("%d rows in streams, want %d: %v", len(owners), len(want.Streams), slices.Collect(maps.Keys(owners)))
	}
	for _, s := range want.Streams {
		k := stream{s.User, s.ConnectionID, s.Direction, s.SSRC}
		if perStream[k] != s.Reports {
			t.Errorf("stream %+v: %d samples, want %d", k, perStream[k], s.Reports)
		}
		r, found := owners[k]
		if !found {
			t.Errorf("stream %+v has no row in streams", k)
			continue
		}
		label := ""
		if s.UsageLabel != nil {
			label = *s.UsageLabel
		}
		got := []string{r.text("owner_user_id"), r.text("owner_source"), r.text("usage_label")}
		if diff := cmp.Diff([]string{s.Owner, s.OwnerSource, label}, got); diff != "" {
			t.Errorf("stream %+v: owner, source, label (-want +got):\n%s", k, diff)
		}
	}
}

func checkFeedback(t *testing.T, engine, where string, want expectation) {
	t.Helper()
	rows := mustQuery(t, engine, "SELECT * FROM feedback"+where)
	if len(rows) != len(want.Feedback) {
		t.Errorf("%d rows in feedback, want %d", len(rows), len(want.Feedback))
	}
	for _, f := range want.Feedback {
		i := slices.IndexFunc(rows, func(r row) bool { return r.text("user_id") == f.User })
		if i < 0 {
			t.Errorf("no feedback of %s", f.User)
			continue
		}
		r := rows[i]
		for column, value := range map[string]*float64{"overall": f.Overall, "audio": f.Audio, "video": f.Video, "screen": f.Screen} {
			if !near(r.number(column), value) {
				t.Errorf("feedback of %s: %s %v, want %v", f.User, column, r[column], show(value))
			}
		}
		comment := ""
		if f.Comment != nil {
			comment = *f.Comment
		}
		if r.text("comment") != comment {
			t.Errorf("feedback of %s: comment %q, want %q", f.User, r.text("comment"), comment)
		}
	}
}

func checkFailures(t *testing.T, engine, where string, want expectation) {
	t.Helper()
	type failure struct{ User, Connection, Function, Reason, Message, Name, IsLog, Delay string }
	delay := func(d *float64) string {
		if d == nil {
			return "NULL"
		}
		return fmt.Sprintf("%.2f", *d)
	}
	var expected, got []failure
	for _, f := range want.Failures {
		e := failure{f.User, "", f.Function, f.Reason, f.Message, "", fmt.Sprint(f.IsLog), delay(f.DelayMs)}
		if f.ConnectionID != nil {
			e.Connection = *f.ConnectionID
		}
		if f.Name != nil {
			e.Name = *f.Name
		}
		expected = append(expected, e)
	}
	for _, r := range mustQuery(t, engine, "SELECT * FROM failures"+where) {
		got = append(got, failure{r.text("user_id"), r.text("connection_id"), r.text("function"), r.text("reason"),
			r.text("message"), r.text("name"), r.text("is_log"), delay(r.number("delay_ms"))})
	}
	compare := func(a, b failure) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) }
	slices.SortFunc(expected, compare)
	slices.SortFunc(got, compare)
	if diff := cmp.Diff(expected, got); diff != "" {
		t.Errorf("failures (-want +got):\n%s", diff)
	}
}
