package store_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/store/storetest"
)

// promised are the columns that queries may rely on for good, as the design promises them.
var promised = map[string]string{
	"conferences": `app_id conference_id conference_uid state revision logic_version
		started_at ended_at duration_ms outcome end_reason participants peak_participants participant_minutes fabrics fabrics_failed fabrics_dropped
		setup_delay_ms_min setup_delay_ms_mean setup_delay_ms_median setup_delay_ms_max audio_mos video_score feedback_overall last_message_at`,
	"participants": `app_id conference_id conference_uid participant_uid user_id device_id state revision logic_version
		joined_at left_at presence_ms joins left_reason alias browser browser_version os client_version app_version country network
		fabrics fabrics_failed audio_mos video_score feedback_overall findings`,
	"fabrics": `app_id conference_id conference_uid participant_uid user_id device_id fabric_uid connection_id remote_id state revision logic_version
		started_at ended_at usage remote_type direction outcome setup_delay_ms ice_gathering_delay_ms ice_connectivity_delay_ms failure_delay_ms
		delay_source failure_function failure_reason disruptions disruption_ms relayed rtt_ms`,
	"streams": `app_id conference_id conference_uid participant_uid user_id device_id fabric_uid connection_id remote_id state revision logic_version
		ssrc direction media_type owner_user_id owner_source usage_label codec started_at ended_at bitrate_kbps loss jitter_ms rtt_ms audio_mos video_score
		bitrate_kbps_median loss_p90 jitter_ms_p10 rtt_ms_p90 audio_mos_p10 video_score_p10`,
	"samples": `app_id conference_id conference_uid participant_uid user_id device_id fabric_uid connection_id remote_id
		time interval_ms ssrc direction media_type owner_user_id usage_label bitrate_kbps packets packets_lost loss jitter_ms rtt_ms
		frame_rate frame_width frame_height freeze_ms concealment audio_mos label`,
	"events": `app_id conference_id conference_uid participant_uid user_id device_id fabric_uid connection_id remote_id
		time received_at event_type original_type reported data`,
	"feedback": `app_id conference_id conference_uid participant_uid user_id device_id time overall audio video screen comment`,
	"failures": `app_id conference_id conference_uid participant_uid user_id device_id fabric_uid connection_id remote_id
		time function reason delay_ms name message stack is_log truncated local_sdp remote_sdp`,
	"precall_tests":      `app_id conference_id conference_uid user_id`,
	"apps_usage":         `app_id conferences participants participant_minutes`,
	"participants_named": `app_id conference_id conference_uid participant_uid user_id user_name alias`,
}

func TestPromisedColumns(t *testing.T) {
	s := storetest.Engine(t)
	types := make(map[string]string)
	for _, row := range storetest.Query(t, s, "SELECT table, name, type FROM system.columns WHERE database = currentDatabase()") {
		types[row[0].(string)+"."+row[1].(string)] = row[2].(string)
	}
	for view, columns := range promised {
		for column := range strings.FieldsSeq(columns) {
			typ, ok := types[view+"."+column]
			switch {
			case !ok:
				t.Errorf("view %s has no column %s", view, column)
			case strings.HasSuffix(column, "_at") || column == "time":
				if !strings.Contains(typ, "DateTime64(3, 'UTC')") {
					t.Errorf("%s.%s is %s", view, column, typ)
				}
			case strings.HasSuffix(column, "_id") && typ != "String" && typ != "Nullable(String)":
				t.Errorf("%s.%s is %s", view, column, typ)
			}
		}
	}
}

func TestJoinedViews(t *testing.T) {
	s := storetest.Engine(t)
	const hour = 3600 * 1000
	put := func(token string, rows any, table string) {
		t.Helper()
		if err := s.Insert(t.Context(), table, token, rows); err != nil {
			t.Fatal(err)
		}
	}
	one, two, nextDay := conference(1, 1), conference(2, 1), conference(3, 1)
	one.Participants, one.ParticipantMinutes, one.Fabrics, one.FabricsFailed, one.Outcome = 2, ptr(10.5), 4, 1, "partialFailure"
	two.Participants, two.Fabrics, two.FabricsDropped, two.Outcome, two.StartedAt = 1, 1, 1, "dropped", day+23*hour
	nextDay.Participants, nextDay.ParticipantMinutes, nextDay.StartedAt = 1, ptr(1.0), day+24*hour
	put("c", []store.ConferenceRow{one, two, nextDay}, "conferences_rows")
	participant := func(c store.ConferenceRow, n byte, user, alias string) store.ParticipantRow {
		return store.ParticipantRow{ConferenceKey: c.ConferenceKey, ParticipantKey: store.ParticipantKey{ParticipantUID: uid(n), UserID: user}, Revision: c.Revision,
			JoinedAt: c.StartedAt, Alias: alias, ConferenceStartedAt: c.StartedAt, Findings: []store.Word{"highLoss", "relayed"},
			PresenceJoinedAt: []store.Time{c.StartedAt, c.StartedAt + 5}, PresenceLeftAt: []*store.Time{ptr(c.StartedAt + 4), nil}}
	}
	ann := participant(one, 11, "ann", "A.")
	put("p", []store.ParticipantRow{ann, participant(one, 12, "bob", ""), participant(two, 13, "ann", ""), participant(nextDay, 14, "ann", "")}, "participants_rows")
	name := store.ParticipantNameRow{ConferenceKey: one.ConferenceKey, ParticipantUID: uid(11), UserName: "Ann Old", Revision: 1, ConferenceStartedAt: day, Source: store.Source{Version: 1}}
	put("n1", []store.ParticipantNameRow{name}, "participant_names_rows")
	name.UserName, name.Version = "Ann Example", 2
	put("n2", []store.ParticipantNameRow{name}, "participant_names_rows")
	test := func(n byte, id string) store.PrecallTestRow {
		return store.PrecallTestRow{AppID: "1", TestID: id, UserID: "ann", Time: day, ReceivedAt: day, Status: "success", RTTMedianMs: ptr(20.0), RecordKey: store.RecordKey{RecordUID: uid(n)}}
	}
	put("t", []store.PrecallTestRow{test(1, "t-1"), test(2, "t-2"), test(3, ""), test(4, "t-4"), test(5, "t-5")}, "precall_tests_rows")
	// What a replay writes: another value, another time, a test that is none.
	changed, moved, none := test(1, "t-1"), test(5, "t-5"), test(4, "t-4")
	movedAway := moved
	changed.RTTMedianMs, changed.Version = ptr(30.0), 1
	moved.Time, moved.Version = day+5, 1
	movedAway.Version, movedAway.IsDeleted = 1, 1
	none.Version, none.IsDeleted = 1, 1
	put("t2", []store.PrecallTestRow{changed, moved, movedAway, none}, "precall_tests_rows")
	association := func(n byte, id string, c store.ConferenceRow, at store.Time) store.PrecallAssociationRow {
		return store.PrecallAssociationRow{AppID: "1", TestID: id, ConferenceID: ptr(c.ConferenceID), ConferenceUID: ptr(c.ConferenceUID), ReceivedAt: at, RecordKey: store.RecordKey{RecordUID: uid(n)}}
	}
	put("a", []store.PrecallAssociationRow{association(1, "t-1", one, day+1), association(2, "t-1", two, day+2), association(4, "t-1", two, day+3), association(3, "other", one, day)}, "precall_associations_rows")

	for _, check := range []struct {
		sql  string
		want [][]any
	}{
		{"SELECT toString(day), conferences, conferences_failed, conferences_dropped, participants, users, participant_minutes, fabrics, fabrics_failed, fabrics_dropped FROM apps_usage ORDER BY day", [][]any{
			{"2026-01-01", uint64(2), uint64(1), uint64(1), uint64(3), uint64(2), 10.5, uint64(5), uint64(1), uint64(1)},
			{"2026-01-02", uint64(1), uint64(0), uint64(0), uint64(1), uint64(1), 1.0, uint64(0), uint64(0), uint64(0)},
		}},
		{"SELECT conference_id, user_id, alias, user_name FROM participants_named ORDER BY conference_id, user_id", [][]any{
			{"room-1", "ann", "A.", "Ann Example"}, {"room-1", "bob", "", nil}, {"room-2", "ann", "", nil}, {"room-3", "ann", "", nil},
		}},
		{"SELECT test_id, conference_id, conference_uid, status, rtt_median_ms, rtt_average_ms FROM precall_tests ORDER BY test_id, conference_id", [][]any{
			{"", nil, nil, "success", 20.0, nil}, {"t-1", "room-1", uid(1), "success", 30.0, nil}, {"t-1", "room-2", uid(2), "success", 30.0, nil},
			{"t-2", nil, nil, "success", 20.0, nil}, {"t-5", nil, nil, "success", 20.0, nil},
		}},
		// The filters reach the table behind the newest versions, and must not find an older one there.
		{"SELECT test_id, rtt_median_ms FROM precall_tests WHERE conference_uid = toUUID('" + uid(1).String() + "')", [][]any{{"t-1", 30.0}}},
		{"SELECT test_id, rtt_median_ms FROM precall_tests WHERE conference_id = 'room-2'", [][]any{{"t-1", 30.0}}},
		{"SELECT test_id FROM precall_tests WHERE rtt_median_ms = 20 AND test_id = 't-1'", nil},
		{"SELECT test_id FROM precall_tests WHERE test_id = 't-4'", nil},
		{"SELECT test_id, toUnixTimestamp64Milli(time) FROM precall_tests WHERE user_id = 'ann' AND test_id = 't-5'", [][]any{{"t-5", int64(day) + 5}}},
		{"SELECT count() FROM precall_tests", [][]any{{uint64(5)}}},
		{"SELECT findings, length(presence_joined_at), toUnixTimestamp64Milli(assumeNotNull(presence_left_at[1])), presence_left_at[2] FROM participants WHERE conference_id = 'room-1' AND user_id = 'ann'", [][]any{
			{[]string{"highLoss", "relayed"}, uint64(2), int64(day) + 4, nil},
		}},
	} {
		if diff := cmp.Diff(check.want, storetest.Query(t, s, check.sql)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", check.sql, diff)
		}
	}
}

var granulesRe = regexp.MustCompile(`Granules: (\d+)/(\d+)`)

// TestLookupsReadLittle: one conference, by either of its names, and one hour are found without reading the tables.
func TestLookupsReadLittle(t *testing.T) {
	s := storetest.Engine(t)
	const conferences, days, samplesEach = 20_000, 20, 20
	storetest.Exec(t, s, fmt.Sprintf(`INSERT INTO conferences_rows (app_id, conference_id, conference_uid, started_at, last_message_at, version)
		SELECT '1', concat('room-', toString(cityHash64(number))), toUUID(concat('00000000-0000-0000-0000-', leftPad(hex(number), 12, '0'))),
			fromUnixTimestamp64Milli(toInt64(%d + intDiv(number * %d, %d) * 86400000 + number %% 86400000), 'UTC') AS at, at, 1 FROM numbers(%d)`, day, days, conferences, conferences))
	storetest.Exec(t, s, fmt.Sprintf(`INSERT INTO samples_rows (app_id, conference_id, conference_uid, time, received_at, record_uid, version)
		SELECT '1', concat('room-', toString(cityHash64(intDiv(number, %[1]d)))), toUUID(concat('00000000-0000-0000-0000-', leftPad(hex(intDiv(number, %[1]d)), 12, '0'))),
			fromUnixTimestamp64Milli(toInt64(%[2]d + intDiv(number * %[3]d, %[4]d) * 86400000 + number * 7919 %% 86400000), 'UTC') AS at, at, generateUUIDv4(), 0 FROM numbers(%[4]d)
		SETTINGS max_block_size = 65536, min_insert_block_size_rows = 65536, min_insert_block_size_bytes = 0, max_threads = 1, max_insert_threads = 1`,
		samplesEach, day, days, conferences*samplesEach))
	storetest.Exec(t, s, `INSERT INTO streams_rows (app_id, conference_id, conference_uid, fabric_uid, direction, ssrc, started_at, conference_started_at, version)
		SELECT app_id, conference_id, conference_uid, conference_uid, arrayJoin(['inbound', 'outbound']), toString(arrayJoin(range(2))), started_at, started_at, 1 FROM conferences_rows`)
	for _, lookup := range []struct {
		view, where string
		most        float64 // share of the table
	}{
		{"conferences", "app_id = '1' AND conference_id = concat('room-', toString(cityHash64(777)))", 0.03},
		{"conferences", "conference_id = concat('room-', toString(cityHash64(777)))", 0.03},
		{"conferences", "conference_uid = toUUID('00000000-0000-0000-0000-000000000309')", 0.03},
		{"conferences", "started_at >= toDateTime64('2026-01-05 00:00:00', 3, 'UTC') AND started_at < toDateTime64('2026-01-06 00:00:00', 3, 'UTC')", 0.2},
		{"samples", "app_id = '1' AND conference_id = concat('room-', toString(cityHash64(777)))", 0.07},
		{"samples", "conference_uid = toUUID('00000000-0000-0000-0000-000000000309')", 0.07},
		{"streams", "started_at >= toDateTime64('2026-01-05 00:00:00', 3, 'UTC') AND started_at < toDateTime64('2026-01-06 00:00:00', 3, 'UTC')", 0.2},
		{"samples", "time >= toDateTime64('2026-01-05 00:00:00', 3, 'UTC') AND time < toDateTime64('2026-01-06 00:00:00', 3, 'UTC')", 0.2},
	} {
		// The plan lists the granules left after each index: the first line has all of them, the last what is read.
		var all, read int
		for _, row := range storetest.Query(t, s, "EXPLAIN indexes = 1 SELECT * FROM "+lookup.view+" WHERE "+lookup.where) {
			m := granulesRe.FindStringSubmatch(row[0].(string))
			if m == nil {
				continue
			}
			left, err := strconv.Atoi(m[1])
			if err != nil {
				t.Fatal(err)
			}
			of, err := strconv.Atoi(m[2])
			if err != nil {
				t.Fatal(err)
			}
			all, read = max(all, of), left
		}
		if share := float64(read) / float64(all); read == 0 || share > lookup.most {
			t.Errorf("%s WHERE %s reads %d of %d granules (%.3f), want at most %.3f and not none", lookup.view, lookup.where, read, all, share, lookup.most)
		}
	}
}

// The hours of the document's query on people in calls begin with whoever is there from the hour before.
func TestPeopleInCallsAtTheSameTime(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "howto", "queries.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "## How many people are in calls at the same time?\n\n```sql\n")
	query, _, ends := strings.Cut(section, "```")
	if !ok || !ends {
		t.Fatal("the document has no such query")
	}
	s := storetest.Engine(t)
	// Three from 9:50 on: two leave at the same moment of the next hour, one in the hour after the next.
	for i, left := range []string{"10:05", "10:05", "12:20"} {
		at := func(clock string) string {
			return "toDateTime64(toString(yesterday()) || ' " + clock + ":00', 3, 'UTC')"
		}
		storetest.Exec(t, s, fmt.Sprintf(`INSERT INTO participants_rows (app_id, participant_uid, joined_at, conference_started_at, presence_joined_at, presence_left_at)
			SELECT '123456789', toUUID('00000000-0000-4000-8000-00000000000%d'), %[2]s, %[2]s, [%[2]s], [%[3]s]`, i, at("09:50"), at(left)))
	}
	got := storetest.Query(t, s, "SELECT toHour(hour), peak FROM ("+query+")")
	if diff := cmp.Diff([][]any{{uint8(9), int64(3)}, {uint8(10), int64(3)}, {uint8(12), int64(1)}}, got); diff != "" {
		t.Errorf("peaks (-want +got):\n%s", diff)
	}
}
