package store_test

import (
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/store/storetest"
)

const eraseApp = "123456789"

// An erasure as `callscope erase` makes one: the patterns are those of plain ids, written down here once more.
func erasureOf(id string, before time.Time, conferences ...uuid.UUID) store.Erasure {
	edge := func(c byte, pattern string) string {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			return pattern
		}
		return "()"
	}
	pattern := edge(id[0], `(^|[^0-9A-Za-z_])`) + regexp.QuoteMeta(id) + edge(id[len(id)-1], `($|[^0-9A-Za-z_])`)
	return store.Erasure{
		App: eraseApp, Spellings: []store.Spelling{{Text: id, Patterns: []string{pattern}}}, Pseudonym: "gone-1",
		Before: store.Time(before.UnixMilli()), Conferences: conferences,
		Device:     func(device string) string { return "gone-" + hex.EncodeToString([]byte(device))[:8] },
		PeerFields: []string{`"remoteSDP"`}, KeptEvent: "preCallTestAssociate",
	}
}

func sqlText(s string) string { return "unhex('" + hex.EncodeToString([]byte(s)) + "')" }

// textColumns are the columns of every table that hold text of any kind, with their types.
func textColumns(t *testing.T, s *store.Store) map[string]map[string]string {
	t.Helper()
	all := map[string]map[string]string{}
	for _, row := range storetest.Query(t, s, "SELECT table, name, type FROM system.columns WHERE database = currentDatabase() AND table LIKE '%\\\\_rows' AND type LIKE '%String%'") {
		table := row[0].(string)
		if all[table] == nil {
			all[table] = map[string]string{}
		}
		all[table][row[1].(string)] = row[2].(string)
	}
	if len(all) != len(store.TableNames()) {
		t.Fatalf("found columns of %d tables", len(all))
	}
	return all
}

// words are the columns that hold no texts of customers: an id there is a word that happens to be equal.
var words = strings.Fields(`app_id state revision_reason outcome end_reason left_reason audio_mos_model video_score_model browser browser_version
	os os_version client_version app_version country network usage remote_type direction delay_source failure_function ssrc media_type owner_source
	codec side event_type original_type function local_candidate_type remote_candidate_type protocol network_type quality_limitation_reason status
	test_version provider endpoint_type src_topic browsers networks findings silence`)

// insertRow puts a row into a table with a text in every column that is no word. key tells rows apart.
func insertRow(t *testing.T, s *store.Store, table string, columns map[string]string, text string, at time.Time, conference string, key int, set map[string]string) {
	t.Helper()
	values := map[string]string{"app_id": "'" + eraseApp + "'"}
	for name := range columns {
		if !slices.Contains(words, name) {
			values[name] = sqlText(text)
		}
	}
	when := fmt.Sprintf("fromUnixTimestamp64Milli(%d, 'UTC')", at.UnixMilli())
	for _, row := range storetest.Query(t, s, "SELECT name FROM system.columns WHERE database = currentDatabase() AND table = '"+table+"'") {
		switch name := row[0].(string); name {
		case "received_at", "conference_started_at", "started_at", "time":
			values[name] = when
		case "conference_uid":
			values[name] = "toUUID('" + conference + "')"
			if conference == "" {
				values[name] = "NULL"
			}
		case "record_uid", "participant_uid", "fabric_uid":
			values[name] = fmt.Sprintf("toUUID('00000000-0000-4000-8000-%012d')", key)
		case "version":
			values[name] = "1"
		}
	}
	for name, value := range set {
		if _, ok := values[name]; ok {
			values[name] = value
		}
	}
	var names, list []string
	for name, value := range values {
		names, list = append(names, name), append(list, value)
	}
	storetest.Exec(t, s, fmt.Sprintf("INSERT INTO %s (%s) SELECT %s", table, strings.Join(names, ", "), strings.Join(list, ", ")))
}

func holding(t *testing.T, s *store.Store, columns map[string]map[string]string, text string) (list []string) {
	t.Helper()
	for table, names := range columns {
		for name := range names {
			n := storetest.Query(t, s, fmt.Sprintf("SELECT count() FROM %s WHERE position(toString(%s), %s) > 0", table, name, sqlText(text)))[0][0].(uint64)
			if n > 0 {
				list = append(list, fmt.Sprintf("%s.%s (%d)", table, name, n))
			}
		}
	}
	slices.Sort(list)
	return list
}

// Every column of every table holds the id; afterwards none does, and there are as many rows.
func TestErase(t *testing.T) {
	const conference, other = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
	at := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	for _, id := range []string{"alice", `o'neil "x\y"`, "Zoë 🎉", "a?b%c", "-- ; DROP"} {
		t.Run(id, func(t *testing.T) {
			s := storetest.Engine(t)
			columns := textColumns(t, s)
			rows := map[string]uint64{}
			for table, names := range columns {
				bobs := map[string]string{"user_id": "'bob'", "device_id": "'tablet'", "remote_id": "'carol'", "connection_id": "'c'", "owner_user_id": "'bob'"}
				own := map[string]string{"device_id": "'phone'", "conference_id": "'room'"}
				insertRow(t, s, table, names, id, at, conference, 1, nil)                                                                      // everywhere
				insertRow(t, s, table, names, "see "+id+", please", at, conference, 2, bobs)                                                   // in the middle of texts of others
				insertRow(t, s, table, names, "bob", at, conference, 3, nil)                                                                   // nowhere
				insertRow(t, s, table, names, "nothing", at, conference, 4, map[string]string{"user_id": sqlText(id), "device_id": "'phone'"}) // his
				insertRow(t, s, table, names, id, at.Add(48*time.Hour), conference, 5, own)                                                    // late, of a call that is named
				rows[table] = storetest.Query(t, s, "SELECT count() FROM "+table+" FINAL")[0][0].(uint64)
			}
			if got := holding(t, s, columns, id); len(got) < 40 {
				t.Fatalf("only %v hold the id before", got)
			}
			e := erasureOf(id, at.Add(time.Hour), uuid.MustParse(conference))
			counted, err := s.Erase(t.Context(), e, true)
			if err != nil {
				t.Fatal(err)
			}
			before := holding(t, s, columns, id)
			done, err := s.Erase(t.Context(), e, false)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(counted, done) {
				t.Errorf("counted %v, changed %v", counted, done)
			}
			left := holding(t, s, columns, id)
			// A pre-call test belongs to no conference: the one that came later is shown.
			left = slices.DeleteFunc(left, func(place string) bool {
				return strings.HasPrefix(place, "precall_tests_rows.") && strings.HasSuffix(place, " (1)")
			})
			if len(left) > 0 {
				t.Errorf("of %d places are left: %v", len(before), left)
			}
			for table, n := range rows {
				if got := storetest.Query(t, s, "SELECT count() FROM "+table+" FINAL")[0][0].(uint64); got != n {
					t.Errorf("%s has %d rows, had %d", table, got, n)
				}
			}
			again, err := s.Erase(t.Context(), e, false)
			if err != nil {
				t.Fatal(err)
			}
			for _, table := range again {
				if table.Rows != 0 {
					t.Errorf("another erasure finds %v", table)
				}
			}
			if got := storetest.Query(t, s, "SELECT message, local_sdp, device_id FROM failures_rows WHERE record_uid = '00000000-0000-4000-8000-000000000004'")[0]; got[0] != "" || got[1] != nil || got[2] != "gone-70686f6e" {
				t.Errorf("his failure says %v", got)
			}
			if got := storetest.Query(t, s, "SELECT results, device_id FROM precall_tests_rows WHERE record_uid = '00000000-0000-4000-8000-000000000004'"); len(got) != 1 || got[0][0] != "{}" || got[0][1] != "gone-70686f6e" {
				t.Errorf("his pre-call test says %v", got)
			}
			if got := storetest.Query(t, s, "SELECT message, local_sdp FROM failures_rows WHERE record_uid = '00000000-0000-4000-8000-000000000003'")[0]; got[0] != "bob" || got[1] != "bob" {
				t.Errorf("somebody else's failure says %v", got)
			}
		})
	}
	t.Run("an address is another id", func(t *testing.T) {
		s := storetest.Engine(t)
		columns := textColumns(t, s)
		insertRow(t, s, "streams_rows", columns["streams_rows"], "alice.smith", at, conference, 1, map[string]string{"conference_id": "'room'", "usage_label": "'camera'"})
		if done, err := s.Erase(t.Context(), erasureOf("alice", at.Add(time.Hour)), false); err != nil || slices.ContainsFunc(done, func(d store.ErasedTable) bool { return d.Table != "streams_rows" && d.Rows != 0 }) {
			t.Errorf("%v, %v", done, err)
		}
		if got := storetest.Query(t, s, "SELECT user_id, remote_id, owner_user_id FROM streams_rows")[0]; got[0] != "alice.smith" || got[1] != "alice.smith" || got[2] != "alice.smith" {
			t.Errorf("somebody else became %v", got)
		}
	})
	t.Run("others", func(t *testing.T) {
		s := storetest.Engine(t)
		columns := textColumns(t, s)
		for table, names := range columns {
			insertRow(t, s, table, names, "alice", at.Add(2*time.Hour), other, 1, nil)                // a later call
			insertRow(t, s, table, names, "alice2 malice alice_", at, other, 2, nil)                  // somebody else
			insertRow(t, s, table, names, "alice", at, other, 3, map[string]string{"app_id": "'42'"}) // of another app
		}
		done, err := s.Erase(t.Context(), erasureOf("alice", at.Add(time.Hour), uuid.MustParse(conference)), false)
		if err != nil {
			t.Fatal(err)
		}
		for _, table := range done {
			if table.Rows != 0 {
				t.Errorf("%v", table)
			}
		}
	})
}

// Somebody who is in every call, such as a recorder, has thousands of participants, names and devices.
func TestEraseOfSomebodyInManyCalls(t *testing.T) {
	const calls = 6000
	s := storetest.Engine(t)
	at := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	when := fmt.Sprintf("fromUnixTimestamp64Milli(%d, 'UTC')", at.UnixMilli())
	uid := func(kind int) string {
		return fmt.Sprintf("toUUID('0000000%d-0000-4000-8000-' || leftPad(toString(number), 12, '0'))", kind)
	}
	from := fmt.Sprintf(" FROM numbers(%d)", calls)
	storetest.Exec(t, s, "INSERT INTO participants_rows (app_id, conference_id, conference_uid, participant_uid, user_id, device_id, joined_at, conference_started_at) SELECT '"+eraseApp+"', 'room', "+
		uid(1)+", "+uid(2)+", 'recorder', 'device-0000-0000-0000-' || toString(number), "+when+", "+when+from)
	storetest.Exec(t, s, "INSERT INTO participant_names_rows (app_id, conference_id, conference_uid, participant_uid, user_name, conference_started_at) SELECT '"+eraseApp+"', 'room', "+
		uid(1)+", "+uid(2)+", 'Rita Corder', "+when+from)
	storetest.Exec(t, s, "INSERT INTO events_rows (app_id, conference_id, conference_uid, user_id, device_id, received_at, record_uid) SELECT '"+eraseApp+"', 'room', "+
		uid(1)+", 'recorder', 'device-0000-0000-0000-' || toString(number), "+when+", "+uid(3)+from)
	done, err := s.Erase(t.Context(), erasureOf("recorder", at.Add(time.Hour)), false)
	if err != nil {
		t.Fatalf("%.300v …", err)
	}
	for _, table := range done {
		want := uint64(0)
		switch table.Table {
		case "participants_rows", "participant_names_rows", "events_rows":
			want = calls
		}
		if table.Rows != want {
			t.Errorf("%s: %d rows, want %d", table.Table, table.Rows, want)
		}
	}
	left := storetest.Query(t, s, `SELECT (SELECT count() FROM participants_rows WHERE user_id = 'recorder' OR device_id LIKE 'device%') +
		(SELECT count() FROM events_rows WHERE user_id = 'recorder' OR device_id LIKE 'device%') + (SELECT count() FROM participant_names_rows WHERE user_name != 'gone-1')`)[0][0]
	if left != uint64(0) {
		t.Errorf("%v rows show the user", left)
	}
}

// TestMutationSettings: the engine knows the settings under which an erasure waits for a cluster.
func TestMutationSettings(t *testing.T) {
	s := storetest.Engine(t)
	for setting, want := range store.MutationSettings(store.Config{Cluster: "main"}) {
		got := storetest.Query(t, s, fmt.Sprintf("SELECT toString(getSetting('%s')) SETTINGS %[1]s = %v", setting, want))[0][0]
		if got != fmt.Sprint(want) {
			t.Errorf("%s is %v, want %v", setting, got, want)
		}
	}
}
