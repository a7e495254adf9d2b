package queries

import (
	"fmt"
	"log/slog"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/test/chaintest"
)

// samplesEach is how many samples a made-up conference has.
const samplesEach = 100

// synthetic fills the tables with made-up conferences of the last 30 days, the oldest first and in pieces, as they would
// have come. A conference has two to four participants with one fabric each, four streams to a fabric, 100 samples and 20
// events, and one of its participants ran a pre-call test, as clients do by themselves where it is switched on. Some are
// those that the document asks for by name.
func synthetic(t testing.TB, engine string, conferences int) {
	t.Helper()
	const pieces = 10
	for piece := range pieces {
		from, n := piece*conferences/pieces, (piece+1)*conferences/pieces-piece*conferences/pieces
		// What every table needs to know of a conference.
		base := fmt.Sprintf(`(
			SELECT number + %d AS n, cityHash64(n) AS h,
				if(h %% 5 < 4 OR n = 779, '123456789', concat('99', toString(h %% 10))) AS app_id,
				multiIf(n = 777, 'Demo room / 1', n = 779, 'precall-room', concat('room ', toString(h %% 1000000007))) AS conference_id,
				reinterpretAsUUID(sipHash128(n)) AS conference_uid,
				fromUnixTimestamp64Milli(toInt64(toUnixTimestamp(now()) - 2592000 + intDiv(n * 2591000, %d)) * 1000, 'UTC') AS started_at,
				toUInt32(2 + h %% 3) AS people,
				toInt64(60000 + h %% 1500000) AS duration_ms
			FROM numbers(%d)
		)`, from, conferences, n)
		const (
			person = "reinterpretAsUUID(sipHash128(n, 'p', p)) AS participant_uid, if(n % 5000 = 777 AND p = 0, 'alice@example.test', concat('user-', toString(cityHash64(n, p) % 20000))) AS user_id, concat('device-', toString(cityHash64(user_id) % 3)) AS device_id"
			fabric = "reinterpretAsUUID(sipHash128(n, 'f', p)) AS fabric_uid, concat('pc-', toString(p)) AS connection_id, concat('user-', toString(cityHash64(n, p + 1) % 20000)) AS remote_id"
			last   = "started_at + toIntervalMillisecond(duration_ms)"
			final  = "'final' AS state, toUInt32(3) AS revision, toUInt32(1) AS logic_version"
		)
		word := func(salt string, words ...string) string {
			return fmt.Sprintf("['%s'][1 + cityHash64(n, p, '%s') %% %d]", strings.Join(words, "', '"), salt, len(words))
		}
		for _, statement := range []string{
			`INSERT INTO conferences_rows (app_id, conference_id, conference_uid, state, revision, logic_version, started_at, ended_at, duration_ms, outcome, end_reason, participants, peak_participants,
				participant_minutes, fabrics, fabrics_failed, setup_delay_ms_median, audio_mos, video_score, last_message_at, record_uid, version)
			SELECT app_id, conference_id, conference_uid, ` + final + `, started_at, ` + last + ` AS ended_at, duration_ms, ['success', 'success', 'success', 'partialFailure', 'dropped'][1 + h % 5],
				'fabricTerminated', people, people, people * duration_ms / 60000, people, h % 5 = 3, 200 + h % 700, 2.5 + (h % 200) / 100, 40 + h % 60, ended_at, generateUUIDv4(), 3 FROM ` + base,
			`INSERT INTO participants_rows (app_id, conference_id, conference_uid, participant_uid, user_id, device_id, state, revision, logic_version, joined_at, left_at, presence_joined_at, presence_left_at, presence_ms, joins, left_reason, browser,
				browser_version, os, client_version, app_version, country, network, fabrics, fabrics_failed, audio_mos, video_score, findings, record_uid, conference_started_at, version)
			SELECT app_id, conference_id, conference_uid, ` + person + `, ` + final + `, started_at + toIntervalSecond(p) AS joined, ` + last + ` AS gone, [joined], [toNullable(gone)], duration_ms, 1 + (cityHash64(n, p) % 50 = 0), ` + word("l", "fabricTerminated", "userLeft", "idle") + `, ` +
				word("b", "Chrome", "Firefox", "Safari", "Edge") + `, '150.0', ` + word("o", "Windows", "macOS", "Linux", "Android") + `, ` + word("v", "3.73.16", "3.72.2", "3.52.0") + `, '1.4', ` + word("c", "FI", "DE", "US") + `, ` +
				word("n", "Example Telecom", "Sample Net", "Test Mobile") + `, 1, cityHash64(n, p) % 40 = 0, 2.5 + (cityHash64(n, p) % 200) / 100, 50, if(cityHash64(n, p) % 10 = 0, ['oneWayAudio'], []), generateUUIDv4(), started_at, 3
			FROM ` + base + ` ARRAY JOIN range(people) AS p`,
			`INSERT INTO fabrics_rows (app_id, conference_id, conference_uid, participant_uid, user_id, device_id, fabric_uid, connection_id, remote_id, state, revision, logic_version, started_at, ended_at, outcome,
				setup_delay_ms, ice_gathering_delay_ms, ice_connectivity_delay_ms, delay_source, disruptions, disruption_ms, relayed, rtt_ms, record_uid, conference_started_at, version)
			SELECT app_id, conference_id, conference_uid, ` + person + `, ` + fabric + `, ` + final + `, started_at + toIntervalSecond(p), ` + last + `, if(cityHash64(n, p) % 40 = 0, 'failed', if(cityHash64(n, p) % 97 = 0, 'dropped', 'setup')),
				150 + cityHash64(n, p) % 900, 50, 100, 'reported', cityHash64(n, p) % 100 = 1, 800 * (cityHash64(n, p) % 100 = 1), cityHash64(n, p) % 7 = 0, 40, generateUUIDv4(), started_at, 3
			FROM ` + base + ` ARRAY JOIN range(people) AS p`,
			`INSERT INTO streams_rows (app_id, conference_id, conference_uid, participant_uid, user_id, device_id, fabric_uid, connection_id, remote_id, state, revision, logic_version, ssrc, direction, media_type,
				owner_user_id, owner_source, codec, started_at, ended_at, samples, bitrate_kbps, loss, jitter_ms, rtt_ms, audio_mos, record_uid, conference_started_at, version)
			SELECT app_id, conference_id, conference_uid, ` + person + `, ` + fabric + `, ` + final + `, toString(cityHash64(n, p, i) % 4294967296), if(i < 2, 'inbound', 'outbound'), if(i % 2 = 0, 'audio', 'video'),
				if(i < 2, remote_id, user_id), 'default', if(i % 2 = 0, 'audio/opus', 'video/VP8'), started_at, ` + last + `, 20, 30 + 700 * (i % 2), (cityHash64(n, p, i) % 100) / 2000, 5, 40, if(i % 2 = 0, 4.1, NULL), generateUUIDv4(), started_at, 3
			FROM ` + base + ` ARRAY JOIN range(people) AS p ARRAY JOIN range(4) AS i`,
			`INSERT INTO samples_rows (app_id, conference_id, conference_uid, participant_uid, user_id, device_id, fabric_uid, connection_id, remote_id, time, received_at, interval_ms, ssrc, direction, media_type, owner_user_id,
				owner_source, codec, bitrate_kbps, bytes, packets, packet_rate, packets_lost, loss, jitter_ms, rtt_ms, frame_rate, freeze_ms, audio_mos, logic_version, record_uid, idx)
			SELECT app_id, conference_id, conference_uid, ` + person + `, ` + fabric + `, started_at + toIntervalMillisecond(intDiv(duration_ms * s, 100)) AS at, at, 15000, toString(cityHash64(n, p, i) % 4294967296), if(i < 2, 'inbound', 'outbound'),
				if(i % 2 = 0, 'audio', 'video'), if(i < 2, remote_id, user_id), 'default', if(i % 2 = 0, 'audio/opus', 'video/VP8'), 30 + s, 60000, 750, 50, cityHash64(n, s) % 20, (cityHash64(n, s) % 20) / 770, 3 + cityHash64(n, s) % 40, 40,
				if(i % 2 = 1, 25, NULL), if(i % 2 = 1, 100 * (s % 9 = 0), NULL), if(i = 0, 3 + (cityHash64(n, s) % 140) / 100, NULL), 1, reinterpretAsUUID(sipHash128(n, 's', s)), i
			FROM (SELECT *, s, s % people AS p, s % 4 AS i FROM ` + base + ` ARRAY JOIN range(` + strconv.Itoa(samplesEach) + `) AS s)`,
			`INSERT INTO events_rows (app_id, conference_id, conference_uid, participant_uid, user_id, device_id, fabric_uid, connection_id, remote_id, time, received_at, event_type, original_type, reported, data, logic_version, record_uid)
			SELECT app_id, conference_id, conference_uid, ` + person + `, ` + fabric + `, started_at + toIntervalMillisecond(intDiv(duration_ms * e, 20)) AS at, at,
				['userJoined', 'fabricSetup', 'ssrcMap', 'audioMute', 'audioUnmute', 'userAlive', 'userAlive', 'userAlive', 'fabricStateChange', 'fabricTerminated'][1 + e % 10] AS type, type, true, '{"a":"some text of an event"}', 1, reinterpretAsUUID(sipHash128(n, 'e', e))
			FROM (SELECT *, e, e % people AS p FROM ` + base + ` ARRAY JOIN range(20) AS e)`,
			`INSERT INTO failures_rows (app_id, conference_id, conference_uid, participant_uid, user_id, device_id, time, received_at, event_type, function, reason, name, message, is_log, logic_version, record_uid)
			SELECT app_id, conference_id, conference_uid, ` + person + `, started_at, started_at, 'fabricSetupFailed', ` + word("f", "createOffer", "getUserMedia", "iceConnectionFailure") + `, ` + word("r", "NegotiationFailure", "MediaConfigError", "IceConnectionFailure") + `, 'Error', 'message', h % 3 = 0, 1, reinterpretAsUUID(sipHash128(n, 'x'))
			FROM (SELECT *, 0 AS p FROM ` + base + `) WHERE h % 10 = 0 OR n = 777`,
			`INSERT INTO feedback_rows (app_id, conference_id, conference_uid, participant_uid, user_id, device_id, time, received_at, overall, comment, logic_version, record_uid)
			SELECT app_id, conference_id, conference_uid, ` + person + `, started_at, started_at, 1 + h % 5, 'comment', 1, reinterpretAsUUID(sipHash128(n, 'b')) FROM (SELECT *, 0 AS p FROM ` + base + `) WHERE h % 5 = 0 OR n = 777`,
			`INSERT INTO participant_names_rows (app_id, conference_id, conference_uid, participant_uid, user_name, revision, record_uid, conference_started_at, version)
			SELECT app_id, conference_id, conference_uid, participant_uid, concat('Name of ', user_id), 1, generateUUIDv4(), started_at, 1 FROM (SELECT *, ` + person + ` FROM ` + base + ` ARRAY JOIN range(people) AS p)`,
			`INSERT INTO precall_tests_rows (app_id, test_id, user_id, time, received_at, status, rtt_median_ms, results, logic_version, record_uid)
			SELECT app_id, toString(n), concat('user-', toString(h % 20000)), started_at, started_at, 'success', 40, '{}', 1, reinterpretAsUUID(sipHash128(n, 't')) FROM ` + base,
			`INSERT INTO precall_associations_rows (app_id, test_id, conference_id, conference_uid, received_at, logic_version, record_uid)
			SELECT app_id, toString(n), conference_id, conference_uid, started_at, 1, reinterpretAsUUID(sipHash128(n, 'a')) FROM ` + base,
		} {
			chaintest.MustQuery(t, engine, statement)
		}
	}
}

// viewRe finds the views that a query names.
var viewRe = regexp.MustCompile(`FROM (\w+)`)

// TestQueryTimes asks every question of the document, and the look-ups of one conference in every view, of made-up
// conferences, and prints for each the time and the rows read. With CALLSCOPE_FULL=1 there are 100,000 conferences with 10
// million samples, and a look-up of one conference must read less than 1 % of the rows of the view.
func TestQueryTimes(t *testing.T) {
	conferences := 2_000
	if chaintest.Full() {
		conferences = 100_000
	}
	if text := os.Getenv("CALLSCOPE_CONFERENCES"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("CALLSCOPE_CONFERENCES: %v", err)
		}
		conferences = n
	}
	engine := chaintest.FreeAddress(t)
	p := chaintest.Start(t, "callscope engine", "engine", "--data", t.TempDir(), "--addr", engine)
	chaintest.Listening(t, p, engine)
	st, err := store.Open(store.Config{Addr: []string{engine}, Protocol: store.ProtocolHTTP}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if err := st.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	synthetic(t, engine, conferences)
	rows := map[string]float64{}
	for _, view := range []string{"conferences", "participants", "participants_named", "fabrics", "streams", "samples", "events", "failures", "feedback", "precall_tests"} {
		table := view + "_rows"
		if view == "participants_named" {
			table = "participants_rows"
		}
		rows[view] = chaintest.MustQuery(t, engine, "SELECT count() FROM "+table).Rows[0][0].(float64)
	}
	t.Logf("made %v conferences with %v samples, %v events, %v streams, %v participants in %s", rows["conferences"], rows["samples"], rows["events"], rows["streams"], rows["participants"], time.Since(started).Round(time.Second))
	if rows["conferences"] != float64(conferences) || rows["samples"] != float64(conferences*samplesEach) {
		t.Fatalf("made %v conferences and %v samples", rows["conferences"], rows["samples"])
	}

	type asked struct {
		name, sql string
		lookup    bool
		empty     bool // may have no rows
	}
	var all []asked
	for _, q := range questions(t) {
		all = append(all, asked{q.title, q.sql, strings.HasPrefix(q.title, "One conference"), q.title == "Who is in a call right now?" || strings.Contains(q.title, "One conference: what the application logged")})
	}
	uid := chaintest.MustQuery(t, engine, "SELECT toString(conference_uid) AS uid FROM conferences WHERE conference_id = 'Demo room / 1'").Rows[0][0].(string)
	for _, view := range slices.Sorted(maps.Keys(rows)) {
		for name, condition := range map[string]string{"conference_uid": "conference_uid = '" + uid + "'", "conference_id": "conference_id = 'Demo room / 1'"} {
			all = append(all, asked{view + " by " + name, "SELECT * FROM " + view + " WHERE " + condition, true, false})
		}
	}
	rows["apps_usage"] = rows["conferences"] + rows["participants"]
	var table strings.Builder
	fmt.Fprintf(&table, "%10s %12s %8s  %s\n", "ms", "rows read", "share", "question")
	for _, q := range all {
		first, err := chaintest.Query(engine, q.sql)
		if err != nil {
			t.Errorf("%s: %v", q.name, err)
			continue
		}
		again := chaintest.MustQuery(t, engine, q.sql)
		// A look-up is held against the view it asks, anything else against all views that it names.
		of, named := 0.0, map[string]bool{}
		for _, m := range viewRe.FindAllStringSubmatch(q.sql, -1) {
			if !named[m[1]] && (!q.lookup || len(named) == 0) {
				of += rows[m[1]]
			}
			named[m[1]] = true
		}
		share := float64(again.ReadRows) / max(of, 1)
		fmt.Fprintf(&table, "%10.1f %12d %7.2f%%  %s (first time %.1f ms)\n", float64(again.Took.Microseconds())/1000, again.ReadRows, 100*share, q.name, float64(first.Took.Microseconds())/1000)
		if len(again.Rows) == 0 && !q.empty {
			t.Errorf("%s gives no rows", q.name)
		}
		if again.ReadRows <= 0 && !q.empty {
			t.Errorf("%s: the engine says that it read no rows", q.name)
		}
		if q.lookup && conferences >= 100_000 && share >= 0.01 {
			t.Errorf("%s reads %d of %.0f rows, %.2f %%, want less than 1 %%", q.name, again.ReadRows, of, 100*share)
		}
	}
	t.Log("\n" + table.String())
}
