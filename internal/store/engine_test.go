package store_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/callscope/callscope/internal/config"
	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/store/storetest"
)

const day = store.Time(1767225600000) // 2026-01-01T00:00:00Z

func uid(n byte) uuid.UUID { return uuid.UUID{15: n} }

func ptr[T any](v T) *T { return &v }

func conference(n byte, revision uint32) store.ConferenceRow {
	return store.ConferenceRow{
		ConferenceKey: store.ConferenceKey{AppID: "1", ConferenceID: fmt.Sprintf("room-%d", n), ConferenceUID: uid(n)},
		Revision:      store.Revision{State: "partial", Revision: revision, LogicVersion: 1},
		StartedAt:     day, LastMessageAt: day + 5000, Outcome: "success",
		AudioMOS:   store.Distribution{Mean: ptr(4.25), P10: ptr(3.5)},
		Provenance: store.Provenance{RecordUID: uid(100 + n)},
		Source:     store.Source{Topic: "t", Version: store.SummaryVersion(0, revision)},
	}
}

func event(n byte, at store.Time) store.EventRow {
	return store.EventRow{
		ConferenceRef: store.ConferenceRef{AppID: "1", ConferenceID: "room", ConferenceUID: ptr(uid(1))},
		Time:          at, ReceivedAt: at, EventType: "userAlive", OriginalType: "userAlive", Reported: true, Data: "{}",
		RecordKey: store.RecordKey{LogicVersion: 1, RecordUID: uid(n)},
		Source:    store.Source{Topic: "t", Offset: int64(n)},
	}
}

func insert(t *testing.T, s *store.Store, token string, rows any) {
	t.Helper()
	if err := s.Insert(t.Context(), tableOf(t, rows), token, rows); err != nil {
		t.Fatal(err)
	}
}

func tableOf(t *testing.T, rows any) string {
	switch rows.(type) {
	case []store.ConferenceRow:
		return store.ConferenceRow{}.Table()
	case []store.EventRow:
		return store.EventRow{}.Table()
	case []store.SampleRow:
		return store.SampleRow{}.Table()
	}
	t.Fatalf("no table for %T", rows)
	return ""
}

func count(t *testing.T, s *store.Store, from string) uint64 {
	t.Helper()
	return storetest.Query(t, s, "SELECT count() FROM "+from)[0][0].(uint64)
}

func TestMigrateFromEmptyAgainAndAtTheSameTime(t *testing.T) {
	cfg := storetest.Config(t)
	open := func() *store.Store {
		s, err := store.Open(cfg, slog.New(slog.DiscardHandler), nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	s := open()
	if err := s.Ping(t.Context()); !errors.Is(err, store.ErrNoDatabase) || !strings.Contains(err.Error(), "callscope migrate") {
		t.Fatalf("Ping without a database: %v", err)
	}
	if err := s.CheckSchema(t.Context()); !errors.Is(err, store.ErrNoDatabase) {
		t.Fatalf("CheckSchema without a database: %v", err)
	}
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		m := open()
		wg.Go(func() { errs[i] = m.Migrate(t.Context()) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if err := s.Migrate(t.Context()); err != nil {
		t.Fatalf("migrating again: %v", err)
	}
	for name, check := range map[string]func(context.Context) error{"Ping": s.Ping, "CheckSchema": s.CheckSchema, "CheckInserts": s.CheckInserts} {
		if err := check(t.Context()); err != nil {
			t.Errorf("%s after migrating: %v", name, err)
		}
	}
	want := [][]any{}
	for v := range store.SchemaVersion {
		want = append(want, []any{v + 1})
	}
	if diff := cmp.Diff(want, storetest.Query(t, s, "SELECT version FROM schema_migrations FINAL ORDER BY version")); diff != "" {
		t.Errorf("recorded migrations (-want +got):\n%s", diff)
	}
}

func TestOtherSchemasAreRefused(t *testing.T) {
	for name, test := range map[string]struct {
		statement string
		want      error
	}{
		"behind":  {"ALTER TABLE schema_migrations DELETE WHERE version = 2 SETTINGS mutations_sync = 2", store.ErrSchemaBehind},
		"ahead":   {"INSERT INTO schema_migrations SELECT 99, 'future', 'x', now64(3)", store.ErrSchemaAhead},
		"changed": {"INSERT INTO schema_migrations SELECT 1, 'tables', 'other', now64(3) + 10", store.ErrSchemaChanged},
		"empty":   {"DROP TABLE schema_migrations", store.ErrSchemaBehind},
	} {
		t.Run(name, func(t *testing.T) {
			s := storetest.Engine(t)
			storetest.Exec(t, s, test.statement)
			if err := s.CheckSchema(t.Context()); !errors.Is(err, test.want) {
				t.Errorf("CheckSchema: %v, want %v", err, test.want)
			}
			err := s.Migrate(t.Context())
			if behind := errors.Is(test.want, store.ErrSchemaBehind); behind && err != nil || !behind && !errors.Is(err, test.want) {
				t.Errorf("Migrate: %v", err)
			}
		})
	}
}

func TestChangedTablesAreNamed(t *testing.T) {
	s := storetest.Engine(t)
	storetest.Exec(t, s, "ALTER TABLE events_rows DROP COLUMN truncated")
	storetest.Exec(t, s, "ALTER TABLE feedback_rows MODIFY COLUMN overall Nullable(Float32)")
	storetest.Exec(t, s, "ALTER TABLE samples_rows MODIFY SETTING non_replicated_deduplication_window = 0")
	err := s.CheckInserts(t.Context())
	if err == nil {
		t.Fatal("CheckInserts accepts changed tables")
	}
	for _, want := range []string{"events_rows has no column truncated", "column overall of table", "samples_rows remembers no deduplication tokens"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q:\n%v", want, err)
		}
	}
	err = s.Insert(t.Context(), "events_rows", "x", []store.EventRow{event(1, day)})
	if err == nil || store.Permanent(err) {
		t.Errorf("inserting into a table without a column must be a transient error, got %v", err)
	}
}

// TestViews compares the public interface with the golden file: views only grow.
func TestViews(t *testing.T) {
	s := storetest.Engine(t)
	var text strings.Builder
	for _, row := range storetest.Query(t, s, `SELECT table, name, type, comment FROM system.columns
		WHERE database = currentDatabase() AND table IN (SELECT name FROM system.tables WHERE database = currentDatabase() AND engine = 'View')
		ORDER BY table, position`) {
		fmt.Fprintf(&text, "%s.%s\t%s\t%s\n", row...)
		if comment := row[3].(string); !strings.Contains(comment, ".") || len(comment) < 10 {
			t.Errorf("%s.%s: the comment %q has no unit and source", row[0], row[1], comment)
		}
	}
	path := filepath.Join("testdata", "views.golden.txt")
	if os.Getenv("UPDATE_GOLDEN") == "1" {
		if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(text.String(), "\n")); diff != "" {
		t.Errorf("the views differ from %s (UPDATE_GOLDEN=1 writes it):\n%s", path, diff)
	}
}

func TestNewestRevisionIsShown(t *testing.T) {
	s := storetest.Engine(t)
	// Each in a part of its own, and not in order.
	for i, revision := range []uint32{2, 3, 1} {
		row := conference(1, revision)
		row.Participants = revision * 10
		insert(t, s, fmt.Sprint("a", i), []store.ConferenceRow{row})
	}
	// A replay with one more revision and a higher generation wins over a higher live revision.
	replayed := conference(2, 1)
	replayed.Version = store.SummaryVersion(1, 1)
	replayed.Participants = 1
	live := conference(2, 9)
	live.Participants = 9
	insert(t, s, "b", []store.ConferenceRow{replayed})
	insert(t, s, "c", []store.ConferenceRow{live})
	// And a newer version can take a row away.
	insert(t, s, "d", []store.ConferenceRow{conference(3, 1)})
	gone := conference(3, 1)
	gone.Version, gone.IsDeleted = store.SummaryVersion(1, 1), 1
	insert(t, s, "e", []store.ConferenceRow{gone})

	got := storetest.Query(t, s, "SELECT conference_id, revision, participants, audio_mos, audio_mos_p10, audio_mos_max, ended_at, outcome, end_reason FROM conferences ORDER BY conference_id")
	want := [][]any{
		{"room-1", uint32(3), uint32(30), 4.25, 3.5, nil, nil, "success", nil},
		{"room-2", uint32(1), uint32(1), 4.25, 3.5, nil, nil, "success", nil},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("conferences (-want +got):\n%s", diff)
	}
}

func TestTokenDropsTheSecondBlock(t *testing.T) {
	reg := prometheus.NewRegistry()
	cfg := storetest.Config(t)
	s, err := store.Open(cfg, slog.New(slog.DiscardHandler), reg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	const month = 31 * 24 * 3600 * 1000
	rows := []store.EventRow{event(1, day), event(2, day+month), event(3, day+2*month)} // three ClickHouse partitions
	for range 3 {
		insert(t, s, "token", rows)
	}
	if n := count(t, s, "events_rows"); n != 3 {
		t.Errorf("the same block three times under one token gives %d rows in the table, want 3", n)
	}
	insert(t, s, "other token", rows)
	if n := count(t, s, "events_rows"); n != 6 {
		t.Errorf("under another token the block is stored again: %d rows in the table, want 6", n)
	}
	if n := count(t, s, "events"); n != 3 {
		t.Errorf("the view shows %d rows, want 3", n)
	}
	// The same token in another table means something else.
	insert(t, s, "token", []store.ConferenceRow{conference(1, 1)})
	if n := count(t, s, "conferences"); n != 1 {
		t.Errorf("%d conferences, want 1", n)
	}
	bad := event(4, day)
	if err := s.Insert(t.Context(), "nowhere", "x", []store.EventRow{bad}); err == nil {
		t.Error("an unknown table is accepted")
	}
	metrics := `
# HELP callscope_store_inserted_rows_total Rows of acknowledged inserts, those included that ClickHouse recognised by their token and dropped.
# TYPE callscope_store_inserted_rows_total counter
callscope_store_inserted_rows_total{table="conferences_rows"} 1
callscope_store_inserted_rows_total{table="events_rows"} 12
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(metrics), "callscope_store_inserted_rows_total"); err != nil {
		t.Error(err)
	}
	if n, err := testutil.GatherAndCount(reg, "callscope_store_insert_seconds"); err != nil || n != 2 {
		t.Errorf("%d series of insert_seconds, %v; want 2", n, err)
	}
}

// Compressed rows go through the driver's batches, others straight into the request.
func TestCompressedRowsAreTheSame(t *testing.T) {
	cfg := storetest.Config(t)
	stores := make(map[string]*store.Store)
	for _, compression := range []string{"none", "lz4"} {
		cfg.Compression = compression
		s, err := store.Open(cfg, slog.New(slog.DiscardHandler), nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		stores[compression] = s
	}
	if err := stores["none"].Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	started := day + 1000
	var stored [][][]any
	for _, compression := range []string{"none", "lz4"} {
		row := store.ParticipantRow{
			ConferenceKey:  store.ConferenceKey{AppID: "1", ConferenceID: "room", ConferenceUID: uid(1)},
			ParticipantKey: store.ParticipantKey{ParticipantUID: uid(2), UserID: "user", DeviceID: "device"},
			Revision:       store.Revision{State: "final", Revision: 1, LogicVersion: 1},
			JoinedAt:       day, LeftAt: &started, Present: true, PresenceMs: 5, Joins: 2,
			PresenceJoinedAt: []store.Time{day, started}, PresenceLeftAt: []*store.Time{&started, nil}, Browser: "Firefox",
			AudioMOS: store.Distribution{Mean: ptr(4.25)}, TalkMs: ptr(int64(7)), Findings: []store.Word{"late", "", "late"}, FindingsEvidence: ptr("{}"),
			ConferenceStartedAt: day, Source: store.Source{Topic: "t"},
		}
		rows := []store.ParticipantRow{row, {Revision: store.Revision{State: "final"}, JoinedAt: day, ConferenceStartedAt: day}}
		storetest.Exec(t, stores["none"], "TRUNCATE TABLE participants_rows")
		if err := stores[compression].Insert(t.Context(), row.Table(), compression, rows); err != nil {
			t.Fatal(err)
		}
		stored = append(stored, storetest.Query(t, stores["none"], "SELECT * FROM participants_rows ORDER BY app_id"))
	}
	if len(stored[0]) != 2 {
		t.Fatalf("%d rows are stored, want 2", len(stored[0]))
	}
	if diff := cmp.Diff(stored[0], stored[1]); diff != "" {
		t.Errorf("stored without compression (-) and with it (+):\n%s", diff)
	}
}

func TestBadRowIsPermanentAndStoresNothing(t *testing.T) {
	s := storetest.Engine(t)
	storetest.Exec(t, s, "ALTER TABLE events_rows ADD CONSTRAINT no_poison CHECK data != 'poison'")
	rows := []store.EventRow{event(1, day), event(2, day)}
	rows[1].Data = "poison"
	err := s.Insert(t.Context(), "events_rows", "a", rows)
	if err == nil || !store.Permanent(err) {
		t.Fatalf("want a permanent error, got %v", err)
	}
	if n := count(t, s, "events_rows"); n != 0 {
		t.Errorf("%d rows were stored, want 0", n)
	}
	// The failed insert has not used up its token.
	rows[1].Data = "{}"
	insert(t, s, "a", rows)
	if n := count(t, s, "events_rows"); n != 2 {
		t.Errorf("%d rows were stored, want 2", n)
	}
}

func TestUnreachableServerIsTransientAndExplained(t *testing.T) {
	reg := prometheus.NewRegistry()
	s, err := store.Open(store.Config{Addr: []string{"127.0.0.1:1"}, Protocol: "http"}, slog.New(slog.DiscardHandler), reg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	err = s.Ping(t.Context())
	for _, want := range []string{"127.0.0.1:1", "http", "refused", "start ClickHouse or correct clickhouse.addr"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Ping: %v: does not say %q", err, want)
		}
	}
	err = s.Insert(t.Context(), "events_rows", "a", []store.EventRow{event(1, day)})
	if err == nil || store.Permanent(err) {
		t.Errorf("inserting: %v, want a transient error", err)
	}
	const metrics = `
# HELP callscope_store_inserts_total Inserts into ClickHouse, by outcome (ok, permanent, transient). A transient failure may have been stored.
# TYPE callscope_store_inserts_total counter
callscope_store_inserts_total{outcome="transient",table="events_rows"} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(metrics), "callscope_store_inserts_total"); err != nil {
		t.Error(err)
	}
}

// TestSecretsStayHidden: errors about a server never quote the password that was meant for it.
// A server that takes connections and never answers.
func TestSilentServerIsGivenUp(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for _, protocol := range []string{store.ProtocolNative, store.ProtocolHTTP} {
		s, err := store.Open(store.Config{Addr: []string{listener.Addr().String()}, Protocol: protocol, DialTimeout: time.Second, InsertTimeout: time.Second},
			slog.New(slog.DiscardHandler), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Ping(t.Context()); err == nil {
			t.Errorf("%s: a silent server answered", protocol)
		} else if protocol == store.ProtocolHTTP && !strings.Contains(err.Error(), "no answer in time") {
			t.Errorf("%s: no advice in %v", protocol, err)
		}
		s.Close()
	}
}

func TestSecretsStayHidden(t *testing.T) {
	const password = "hunter2-and-more"
	for _, protocol := range []string{"http", "native"} {
		s, err := store.Open(store.Config{Addr: []string{"127.0.0.1:1"}, Protocol: protocol, Username: "u", Password: config.NewSecret(password)}, slog.New(slog.DiscardHandler), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for _, err := range []error{s.Ping(t.Context()), s.Migrate(t.Context()), s.Insert(t.Context(), "events_rows", "a", []store.EventRow{event(1, day)})} {
			if err == nil || strings.Contains(err.Error(), password) {
				t.Errorf("%s: %v", protocol, err)
			}
		}
	}
}

func TestHighestPosition(t *testing.T) {
	s := storetest.Engine(t)
	if _, ok, err := s.HighestPosition(t.Context(), "t", 0); err != nil || ok {
		t.Fatalf("in empty tables: %v, %v", ok, err)
	}
	// The newest record has a conference row; older ones have events, other partitions and topics are further.
	older := event(7, day)
	older.Offset, older.RangeStart = 40, 30
	otherPartition := event(8, day)
	otherPartition.Offset, otherPartition.Partition = 900, 1
	otherTopic := event(9, day)
	otherTopic.Offset, otherTopic.Topic = 901, "replay"
	insert(t, s, "a", []store.EventRow{older, otherPartition, otherTopic})
	newest := conference(1, 1)
	newest.Offset, newest.RangeStart = 52, 41
	insert(t, s, "b", []store.ConferenceRow{newest})
	got, ok, err := s.HighestPosition(t.Context(), "t", 0)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if diff := cmp.Diff(store.Position{Offset: 52, RecordUID: uid(101), RangeStart: 41}, got); diff != "" {
		t.Error(diff)
	}
}

func TestSampleLabels(t *testing.T) {
	s := storetest.Engine(t)
	var rows []store.SampleRow
	for i, test := range []struct {
		mos, loss, jitter, rtt *float64
	}{
		0: {},
		1: {mos: ptr(4.0), loss: ptr(0.01), jitter: ptr(30.0), rtt: ptr(150.0)},
		2: {mos: ptr(3.99)},
		3: {mos: ptr(3.49)},
		4: {loss: ptr(0.011)},
		5: {loss: ptr(0.051)},
		6: {jitter: ptr(31.0)},
		7: {jitter: ptr(101.0)},
		8: {rtt: ptr(151.0)},
		9: {rtt: ptr(301.0), mos: ptr(4.5)},
	} {
		rows = append(rows, store.SampleRow{
			ConferenceRef: store.ConferenceRef{AppID: "1", ConferenceID: "room", ConferenceUID: ptr(uid(1))},
			Time:          day, ReceivedAt: day, SSRC: fmt.Sprint(i),
			AudioMOS: test.mos, Loss: test.loss, JitterMs: test.jitter, RTTMs: test.rtt,
			RecordKey: store.RecordKey{RecordUID: uid(byte(i))}, Source: store.Source{Topic: "t"},
		})
	}
	insert(t, s, "a", rows)
	want := []any{nil, "excellent", "fair", "bad", "fair", "bad", "fair", "bad", "fair", "bad"}
	var got []any
	for _, row := range storetest.Query(t, s, "SELECT label FROM samples ORDER BY toUInt8(ssrc)") {
		got = append(got, row[0])
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
}

func TestQuery(t *testing.T) {
	s := storetest.Engine(t)
	result, err := s.Query(t.Context(), "SELECT 1 AS a, 'x' AS b, NULL AS c, toDateTime64('2026-01-01 00:00:00.250', 3, 'UTC') AS d, [1, 2] AS e, toNullable(2.5) AS f, toUUID('00000000-0000-0000-0000-000000000007') AS g, true AS h")
	if err != nil {
		t.Fatal(err)
	}
	defer result.Close()
	want := []store.Column{{"a", "UInt8"}, {"b", "String"}, {"c", "Nullable(Nothing)"}, {"d", "DateTime64(3, 'UTC')"}, {"e", "Array(UInt8)"}, {"f", "Nullable(Float64)"}, {"g", "UUID"}, {"h", "Bool"}}
	if diff := cmp.Diff(want, result.Columns); diff != "" {
		t.Errorf("columns (-want +got):\n%s", diff)
	}
	for row, err := range result.Rows() {
		if err != nil {
			t.Fatal(err)
		}
		want := []any{uint8(1), "x", nil, time.UnixMilli(1767225600250).UTC(), []uint8{1, 2}, 2.5, uid(7), true}
		if diff := cmp.Diff(want, row); diff != "" {
			t.Errorf("row (-want +got):\n%s", diff)
		}
	}

	// One that would run for years is given up by closing, and one by its context.
	result, err = s.Query(t.Context(), "SELECT number FROM system.numbers")
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range result.Rows() {
		if err != nil {
			t.Fatal(err)
		}
		break
	}
	result.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	result, err = s.Query(ctx, "SELECT number FROM system.numbers")
	if err != nil {
		t.Fatal(err)
	}
	defer result.Close()
	var last error
	for _, err := range result.Rows() {
		cancel()
		last = err
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("a cancelled query ends with %v", last)
	}

	if _, err := s.Query(t.Context(), "SELECT nothing FROM nowhere"); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("a wrong query gives %v", err)
	}
}
