package store_test

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/store/storetest"
)

func migrated(t *testing.T, cfg store.Config) *store.Store {
	t.Helper()
	s, err := store.Open(cfg, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if err := s.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestRetention: rows go by the days of their table and of their app, all versions of a row together, and changed days
// are put into force by the next migration, without touching tables that stay as they are.
func TestRetention(t *testing.T) {
	cfg := storetest.Config(t)
	const old, young = 40, 5 // days
	fill := func(s *store.Store) {
		t.Helper()
		for _, app := range []string{"1", "2", "3"} {
			for _, age := range []int{old, young} {
				storetest.Exec(t, s, fmt.Sprintf(`INSERT INTO events_rows (app_id, conference_id, time, received_at, record_uid, data)
					SELECT '%s', 'room', now64(3) - toIntervalDay(%d) AS at, at, generateUUIDv4(), ''`, app, age))
				for version := range 2 {
					storetest.Exec(t, s, fmt.Sprintf(`INSERT INTO conferences_rows (app_id, conference_id, conference_uid, started_at, last_message_at, version)
						SELECT '%s', 'room-%d', toUUID('00000000-0000-0000-0000-00000000000%[1]s'), toStartOfDay(now()) - toIntervalDay(%[2]d) AS at, at, %[3]d`, app, age, version))
				}
			}
		}
	}
	left := func(s *store.Store, table string) [][]any {
		t.Helper()
		storetest.Exec(t, s, "ALTER TABLE "+table+" MATERIALIZE TTL SETTINGS mutations_sync = 2")
		storetest.Exec(t, s, "OPTIMIZE TABLE "+table+" FINAL")
		return storetest.Query(t, s, "SELECT app_id, count() FROM "+table+" FINAL GROUP BY app_id ORDER BY app_id")
	}
	ttl := func(s *store.Store, table string) string {
		return storetest.Query(t, s, "SELECT extract(engine_full, ' TTL (.*?) SETTINGS') FROM system.tables WHERE database = currentDatabase() AND name = '"+table+"'")[0][0].(string)
	}

	kept := migrated(t, cfg)
	fill(kept)
	everything := [][]any{{"1", uint64(2)}, {"2", uint64(2)}, {"3", uint64(2)}}
	if ttl(kept, "events_rows") != "" {
		t.Errorf("without retention the table has the TTL %s", ttl(kept, "events_rows"))
	}
	storetest.Exec(t, kept, "OPTIMIZE TABLE events_rows FINAL")
	if n := count(t, kept, "events_rows"); n != 6 {
		t.Errorf("without retention %d events are left of 6", n)
	}

	// Everybody 30 days, app 1 for 3 and app 2 for good; of conferences, only those of app 3 go.
	cfg.Retention = store.Retention{EventsDays: 30, Apps: []store.AppRetention{{ID: "2", EventsDays: -1}, {ID: "1", EventsDays: 3}, {ID: "3", SummariesDays: 30}}}
	some := migrated(t, cfg)
	if diff := cmp.Diff([][]any{{"2", uint64(2)}, {"3", uint64(1)}}, left(some, "events_rows")); diff != "" {
		t.Errorf("events left (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([][]any{{"1", uint64(2)}, {"2", uint64(2)}, {"3", uint64(1)}}, left(some, "conferences_rows")); diff != "" {
		t.Errorf("conferences left (-want +got):\n%s", diff)
	}
	if n := count(t, some, "conferences"); n != 5 {
		t.Errorf("the view shows %d conferences, want 5", n)
	}
	// A second migration with the same days sets nothing, as its log shows.
	var log strings.Builder
	again, err := store.Open(cfg, slog.New(slog.NewTextHandler(&log, nil)), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := again.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(log.String(), "changed how long rows are kept") {
		t.Errorf("unchanged retention is set again:\n%s", log.String())
	}
	// What the sink relies on is untouched by it.
	if err := again.CheckInserts(t.Context()); err != nil {
		t.Error(err)
	}

	cfg.Retention = store.Retention{}
	none := migrated(t, cfg)
	if ttl(none, "events_rows") != "" || ttl(none, "conferences_rows") != "" {
		t.Error("a retention that was taken back is still in force")
	}
	fill(none)
	if diff := cmp.Diff(everything[:1], storetest.Query(t, none, "SELECT app_id, count() FROM events_rows WHERE app_id = '1' GROUP BY app_id")); diff != "" {
		t.Errorf("rows inserted without retention (-want +got):\n%s", diff)
	}
}

// TestNamesDays: an app without days of its own for real names has those of every app, and never more than its summaries.
func TestNamesDays(t *testing.T) {
	for _, c := range []struct {
		name      string
		retention store.Retention
		want      int // days of app 1; 0: for good
	}{
		{"as long as the summaries", store.Retention{SummariesDays: 400}, 400},
		{"as long as the app's summaries", store.Retention{SummariesDays: 400, Apps: []store.AppRetention{{ID: "1", SummariesDays: 50}}}, 50},
		{"for good as the app's summaries", store.Retention{SummariesDays: 400, Apps: []store.AppRetention{{ID: "1", SummariesDays: -1}}}, 0},
		{"the app's longer summaries", store.Retention{SummariesDays: 400, NamesDays: 30, Apps: []store.AppRetention{{ID: "1", SummariesDays: 730}}}, 30},
		{"the app's summaries for good", store.Retention{NamesDays: 30, Apps: []store.AppRetention{{ID: "1", SummariesDays: -1}}}, 30},
		{"the app's shorter summaries", store.Retention{SummariesDays: 400, NamesDays: 30, Apps: []store.AppRetention{{ID: "1", SummariesDays: 7}}}, 7},
		{"the app's own", store.Retention{SummariesDays: 400, NamesDays: 30, Apps: []store.AppRetention{{ID: "1", NamesDays: 90}}}, 90},
		{"the app's own for good", store.Retention{SummariesDays: 400, NamesDays: 30, Apps: []store.AppRetention{{ID: "1", NamesDays: -1}}}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			ttl := c.retention.TTL("participant_names_rows")
			got := 0
			for part := range strings.SplitSeq(ttl, ", ") {
				var days int
				if _, err := fmt.Sscanf(part, "toDateTime(conference_started_at) + toIntervalDay(%d)", &days); err == nil && !strings.Contains(part, "!= '1'") {
					got = days
				}
			}
			if got != c.want {
				t.Errorf("%d days, want %d: %s", got, c.want, ttl)
			}
		})
	}
}

func TestRetentionIsChecked(t *testing.T) {
	err := store.Config{Addr: []string{"h:9000"}, Retention: store.Retention{SamplesDays: -1, EventsDays: 40_000,
		Apps: []store.AppRetention{{ID: "1' OR '1'='1"}, {ID: "7", NamesDays: -2}, {ID: "7"}}}}.Validate()
	for _, want := range []string{
		"clickhouse.retention.samples_days: -1 is not between 0",
		"clickhouse.retention.events_days: 40000 is not between 0",
		`clickhouse.retention.apps: "1' OR '1'='1" is not the AppID`,
		"clickhouse.retention.apps: app 7: names_days: -2 is not between -1",
		`clickhouse.retention.apps: "7" is not the AppID, a decimal number, of an app that is not in the list yet`,
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q:\n%v", want, err)
		}
	}
}

// TestRolesAreLeftOutAloud: the embedded engine has no roles, and that is said and stops nothing.
func TestRolesAreLeftOutAloud(t *testing.T) {
	var log strings.Builder
	s, err := store.Open(storetest.Config(t), slog.New(slog.NewTextHandler(&log, nil)), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	result, err := s.Query(t.Context(), "SHOW GRANTS")
	if err != nil {
		t.Fatal(err)
	}
	defer result.Close()
	mayManage := false
	for row, err := range result.Rows() {
		if err != nil {
			t.Fatal(err)
		}
		mayManage = mayManage || strings.Contains(fmt.Sprint(row...), "CREATE ROLE") || strings.HasPrefix(fmt.Sprint(row...), "GRANT ALL")
	}
	if said := strings.Contains(log.String(), "the roles for people who query were not made"); said == mayManage {
		t.Errorf("may manage roles: %v; said that roles were not made: %v:\n%s", mayManage, said, log.String())
	}
}

// TestIdsMeanNothingInSQL: whatever a customer's ids hold, they are values, and come back byte by byte.
func TestIdsMeanNothingInSQL(t *testing.T) {
	s := storetest.Engine(t)
	ids := []string{`'; DROP TABLE events_rows; --`, `\' OR 1=1 --`, "{database}", "%s%d", "a\x00b", "\xff\xfe", "/* */", "`events`", "a\tb\nc\\N", "日本語", " padded "}
	var rows []store.EventRow
	for i, id := range ids {
		row := event(byte(i), day)
		row.ConferenceID, row.UserID, row.DeviceID, row.ConnectionID, row.RemoteID = id, id, id, id, id
		row.EventType, row.Data = store.Word(id), id
		row.Topic, row.Offset = store.Word(id), int64(i)
		rows = append(rows, row)
	}
	insert(t, s, "a'; DROP TABLE events_rows; --", rows)
	var want, got [][]any
	for _, id := range ids {
		want = append(want, []any{id, id, id, id, id, id, id})
	}
	got = storetest.Query(t, s, "SELECT conference_id, user_id, device_id, connection_id, remote_id, event_type, data FROM events_rows ORDER BY record_uid")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("ids (-want +got):\n%s", diff)
	}
	for i, id := range ids {
		p, ok, err := s.HighestPosition(t.Context(), id, 0)
		if err != nil || !ok || p.Offset != int64(i) {
			t.Errorf("the newest row of topic %q: %+v, %v, %v", id, p, ok, err)
		}
	}
}

// TestFullDisk: an insert that finds no room is repeated, not thrown away, and says what to do.
func TestFullDisk(t *testing.T) {
	s := storetest.Engine(t)
	storetest.Exec(t, s, "ALTER TABLE events_rows MODIFY SETTING min_free_disk_bytes_to_perform_insert = 1000000000000000")
	err := s.Insert(t.Context(), "events_rows", "a", []store.EventRow{event(1, day)})
	if err == nil || store.Permanent(err) || !errors.Is(err, store.ErrNoSpace) || !strings.Contains(err.Error(), "free some, or shorten clickhouse.retention") {
		t.Fatalf("without room: %v", err)
	}
	storetest.Exec(t, s, "ALTER TABLE events_rows RESET SETTING min_free_disk_bytes_to_perform_insert")
	insert(t, s, "a", []store.EventRow{event(1, day)})
	if n := count(t, s, "events"); n != 1 {
		t.Errorf("%d events, want 1", n)
	}
}
