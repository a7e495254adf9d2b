package store_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/store/storetest"
)

// lab is a database of its own with the plain driver, for what the product never does.
type lab struct {
	t    *testing.T
	s    *store.Store
	conn clickhouse.Conn
}

func newLab(t *testing.T) *lab {
	t.Helper()
	cfg := storetest.Config(t)
	s := migrated(t, cfg)
	protocol := clickhouse.Native
	if cfg.Protocol == store.ProtocolHTTP {
		protocol = clickhouse.HTTP
	}
	conn, err := clickhouse.Open(&clickhouse.Options{Addr: cfg.Addr, Protocol: protocol, Auth: clickhouse.Auth{Database: cfg.Database}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &lab{t: t, s: s, conn: conn}
}

func (l *lab) exec(statements ...string) {
	l.t.Helper()
	for _, statement := range statements {
		storetest.Exec(l.t, l.s, statement)
	}
}

// put inserts the result of a query as one block under a token; no token when it is empty.
func (l *lab) put(token, table, query string) error {
	settings := clickhouse.Settings{"async_insert": 0, "insert_deduplicate": 1, "max_threads": 1, "max_insert_threads": 1}
	if token != "" {
		settings["insert_deduplication_token"] = token
	}
	// A block that the client sends, as the sink does: rows that a SELECT makes in the server go other ways.
	result, err := l.s.Query(l.t.Context(), query)
	if err != nil {
		return err
	}
	defer result.Close()
	ctx := clickhouse.Context(l.t.Context(), clickhouse.WithSettings(settings))
	batch, err := l.conn.PrepareBatch(ctx, "INSERT INTO "+table)
	if err != nil {
		return err
	}
	defer batch.Close()
	for row, err := range result.Rows() {
		if err != nil {
			return err
		}
		if err := batch.Append(row...); err != nil {
			return err
		}
	}
	return batch.Send()
}

func (l *lab) mustPut(token, table, query string) {
	l.t.Helper()
	if err := l.put(token, table, query); err != nil {
		l.t.Fatalf("inserting %s under %q: %v", query, token, err)
	}
}

func (l *lab) want(sql string, want ...any) {
	l.t.Helper()
	got := storetest.Query(l.t, l.s, sql)
	if len(got) != 1 {
		l.t.Errorf("%s gives %d rows, want 1", sql, len(got))
		return
	}
	if diff := cmp.Diff(want, got[0]); diff != "" {
		l.t.Errorf("%s (-want +got):\n%s", sql, diff)
	}
}

const (
	aMonth = "toDate('2026-01-01')"
	next   = "toDate('2026-02-01')"
)

func (l *lab) table(name, window string) {
	l.t.Helper()
	l.exec("CREATE TABLE " + name + " (d Date, k UInt64, v UInt64) ENGINE = MergeTree PARTITION BY toYYYYMM(d) ORDER BY k SETTINGS non_replicated_deduplication_window = " + window)
}

// TestWhatTheSinkReliesOn holds a ClickHouse against everything that the sink, the views, replay and erasure rest on, and
// against what they must not rest on. Run it at each change of version: each part is a fact of 26.7 that another version
// may change.
func TestWhatTheSinkReliesOn(t *testing.T) {
	rows := func(from, n int, day string) string {
		return fmt.Sprintf("SELECT %s AS d, number + %d AS k, number AS v FROM numbers(%d)", day, from, n)
	}
	for _, test := range []struct {
		name string
		run  func(l *lab)
	}{
		{"1 the same block under the same token is stored once", func(l *lab) {
			l.table("t", "10")
			for range 3 {
				l.mustPut("a", "t", rows(0, 5, aMonth))
			}
			l.want("SELECT count() FROM t", uint64(5))
		}},
		{"2 without a window every block is stored, whatever its token", func(l *lab) {
			l.table("t", "0")
			for range 2 {
				l.mustPut("a", "t", rows(0, 2, aMonth))
			}
			l.want("SELECT count() FROM t", uint64(4))
		}},
		{"3 a token is forgotten when its window has passed", func(l *lab) {
			l.table("t", "5")
			l.mustPut("a", "t", rows(0, 1, aMonth))
			for i := range 4 {
				l.mustPut(fmt.Sprint("between ", i), "t", rows(100+i, 1, aMonth))
			}
			l.mustPut("a", "t", rows(0, 1, aMonth))
			l.want("SELECT count() FROM t WHERE k = 0", uint64(1)) // still within
			for i := range 8 {
				l.mustPut(fmt.Sprint("later ", i), "t", rows(200+i, 1, aMonth))
			}
			l.mustPut("a", "t", rows(0, 1, aMonth))
			l.want("SELECT count() FROM t WHERE k = 0", uint64(2))
		}},
		{"4 other rows under a used token are dropped without an error: a token must never be used again", func(l *lab) {
			l.table("t", "10")
			l.mustPut("a", "t", rows(0, 5, aMonth))
			l.mustPut("a", "t", rows(50, 7, aMonth))
			l.want("SELECT count(), max(k) FROM t", uint64(5), uint64(4))
		}},
		{"5 a token counts for each partition of the table: rows of a new partition under a used one are kept", func(l *lab) {
			l.table("t", "10")
			l.mustPut("a", "t", rows(0, 5, aMonth))
			l.mustPut("a", "t", rows(0, 5, aMonth)+" UNION ALL "+rows(50, 2, next))
			l.want("SELECT countIf(d = "+aMonth+"), countIf(d = "+next+") FROM t", uint64(5), uint64(2))
		}},
		{"6 the token replaces the block's hash: equal rows under another token are stored", func(l *lab) {
			l.table("t", "10")
			l.mustPut("a", "t", rows(0, 5, aMonth))
			l.mustPut("b", "t", rows(0, 5, aMonth))
			l.want("SELECT count() FROM t", uint64(10))
			l.mustPut("", "t", rows(70, 5, aMonth))
			l.mustPut("", "t", rows(70, 5, aMonth)) // without a token the hash decides
			l.want("SELECT count() FROM t WHERE k >= 70", uint64(5))
		}},
		{"7 a token means one table", func(l *lab) {
			l.table("t", "10")
			l.table("u", "10")
			l.mustPut("a", "t", rows(0, 5, aMonth))
			l.mustPut("a", "u", rows(0, 5, aMonth))
			l.want("SELECT count() FROM u", uint64(5))
		}},
		{"8 an insert that failed has not used its token", func(l *lab) {
			l.table("t", "10")
			l.exec("ALTER TABLE t ADD CONSTRAINT no_thirteen CHECK v != 3")
			if err := l.put("a", "t", rows(0, 5, aMonth)); err == nil {
				l.t.Fatal("the constraint is not kept")
			}
			l.want("SELECT count() FROM t", uint64(0))
			l.mustPut("a", "t", rows(0, 3, aMonth))
			l.want("SELECT count() FROM t", uint64(3))
		}},
		{"9 a mutation that deletes rows leaves their token behind: the same insert brings nothing back", func(l *lab) {
			l.table("t", "10")
			l.mustPut("a", "t", rows(0, 5, aMonth))
			l.exec("ALTER TABLE t DELETE WHERE 1 SETTINGS mutations_sync = 2")
			l.want("SELECT count() FROM t", uint64(0))
			l.mustPut("a", "t", rows(0, 5, aMonth))
			l.want("SELECT count() FROM t", uint64(0)) // no error, and no rows: hence a replay has tokens of its own
			l.mustPut("a run 2", "t", rows(0, 5, aMonth))
			l.want("SELECT count() FROM t", uint64(5))
		}},
		{"10 dropping a partition or all rows forgets their tokens", func(l *lab) {
			l.table("t", "10")
			l.mustPut("a", "t", rows(0, 5, aMonth))
			l.exec("ALTER TABLE t DROP PARTITION 202601")
			l.mustPut("a", "t", rows(0, 5, aMonth))
			l.want("SELECT count() FROM t", uint64(5))
			l.exec("TRUNCATE TABLE t")
			l.mustPut("a", "t", rows(0, 5, aMonth))
			l.want("SELECT count() FROM t", uint64(5))
		}},
		{"11 server-side batching is on by default, and off in the sink's inserts", func(l *lab) {
			l.want("SELECT toUInt8(getSetting('async_insert'))", uint8(1))
			if err := l.s.CheckInserts(l.t.Context()); err != nil {
				l.t.Error(err) // it reads the setting back under the sink's own settings
			}
		}},
		{"12 FINAL shows the highest version once, before and after merges, and a plain read may not", func(l *lab) {
			l.exec("CREATE TABLE r (d Date, k UInt64, v UInt64) ENGINE = ReplacingMergeTree(v) PARTITION BY toYYYYMM(d) ORDER BY k SETTINGS non_replicated_deduplication_window = 10",
				"SYSTEM STOP MERGES r")
			for i, version := range []int{2, 3, 1} {
				l.mustPut(fmt.Sprint(i), "r", fmt.Sprintf("SELECT %s AS d, number AS k, toUInt64(%d) AS v FROM numbers(100)", aMonth, version))
			}
			l.want("SELECT count() FROM r", uint64(300))
			l.want("SELECT count(), min(v), max(v) FROM r FINAL SETTINGS do_not_merge_across_partitions_select_final = 1", uint64(100), uint64(3), uint64(3))
			l.exec("SYSTEM START MERGES r", "OPTIMIZE TABLE r FINAL")
			l.want("SELECT count(), min(v) FROM r", uint64(100), uint64(3))
		}},
		{"13 a newer deletion takes a row away for FINAL, also after merges; an older one does not", func(l *lab) {
			l.exec("CREATE TABLE r (k UInt64, v UInt64, gone UInt8) ENGINE = ReplacingMergeTree(v, gone) ORDER BY k SETTINGS non_replicated_deduplication_window = 10")
			for i, row := range []string{"1, 2, 0", "1, 3, 1", "2, 5, 0", "2, 4, 1"} {
				columns := strings.Split(row, ", ")
				l.mustPut(fmt.Sprint(i), "r", fmt.Sprintf("SELECT toUInt64(%s) AS k, toUInt64(%s) AS v, toUInt8(%s) AS gone", columns[0], columns[1], columns[2]))
			}
			for range 2 {
				l.want("SELECT count(), any(k) FROM r FINAL", uint64(1), uint64(2))
				l.exec("OPTIMIZE TABLE r FINAL")
			}
			// And the late zombie of a deleted row does not bring it back, as long as the deletion has not been cleaned up.
			l.mustPut("zombie", "r", "SELECT toUInt64(1) AS k, toUInt64(2) AS v, toUInt8(0) AS gone")
			l.want("SELECT count() FROM r FINAL WHERE k = 1", uint64(0))
		}},
		{"14 an index finds no older version of a row whose newest version it passes over", func(l *lab) {
			l.exec("CREATE TABLE r (k UInt64, v UInt64, word String, INDEX i word TYPE bloom_filter(0.001) GRANULARITY 1) ENGINE = ReplacingMergeTree(v) ORDER BY k SETTINGS non_replicated_deduplication_window = 10, index_granularity = 64",
				"SYSTEM STOP MERGES r")
			l.mustPut("a", "r", "SELECT number AS k, toUInt64(1) AS v, if(number = 777, 'needle', 'hay') AS word FROM numbers(1000)")
			l.mustPut("b", "r", "SELECT number AS k, toUInt64(2) AS v, 'hay' AS word FROM numbers(1000)")
			l.want("SELECT count() FROM r FINAL WHERE word = 'needle' SETTINGS use_skip_indexes_if_final = 1, use_skip_indexes_if_final_exact_mode = 1", uint64(0))
			// What the views' setting is for.
			l.want("SELECT count() FROM r FINAL WHERE word = 'needle' SETTINGS use_skip_indexes_if_final = 1, use_skip_indexes_if_final_exact_mode = 0", uint64(1))
		}},
		{"15 a materialized view counts a repeated block again when its own table has no window: no exact number may rest on one", func(l *lab) {
			l.table("t", "10")
			l.exec("CREATE TABLE sums (n UInt64) ENGINE = MergeTree ORDER BY tuple()", "CREATE MATERIALIZED VIEW summing TO sums AS SELECT count() AS n FROM t")
			for range 3 {
				l.mustPut("a", "t", rows(0, 2, aMonth))
			}
			l.want("SELECT count() FROM t", uint64(2))
			l.want("SELECT sum(n) FROM sums", uint64(6))
			l.exec("CREATE TABLE exact (n UInt64) ENGINE = MergeTree ORDER BY tuple() SETTINGS non_replicated_deduplication_window = 10", "CREATE MATERIALIZED VIEW counting TO exact AS SELECT count() AS n FROM t")
			for range 3 {
				l.mustPut("b", "t", rows(10, 2, aMonth))
			}
			l.want("SELECT sum(n) FROM exact", uint64(2))
		}},
		{"16 a deletion by mark (lightweight) holds under FINAL, and does not bring an older version back", func(l *lab) {
			l.exec("CREATE TABLE r (k UInt64, v UInt64) ENGINE = ReplacingMergeTree(v) ORDER BY k SETTINGS non_replicated_deduplication_window = 10")
			l.mustPut("a", "r", "SELECT number AS k, toUInt64(1) AS v FROM numbers(10)")
			l.mustPut("b", "r", "SELECT number AS k, toUInt64(2) AS v FROM numbers(10)")
			l.exec("DELETE FROM r WHERE k = 3 SETTINGS lightweight_deletes_sync = 2")
			l.want("SELECT count() FROM r FINAL", uint64(9))
		}},
		{"17 one insert of several months is all there or not at all where a row is refused", func(l *lab) {
			l.table("t", "10")
			l.exec("ALTER TABLE t ADD CONSTRAINT c CHECK v != 1")
			if err := l.put("a", "t", rows(0, 1, aMonth)+" UNION ALL "+rows(0, 2, next)); err == nil {
				l.t.Fatal("the constraint is not kept")
			}
			l.want("SELECT count() FROM t", uint64(0))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(newLab(t))
		})
	}
}

// TestCancelledInsertIsRepeatable: an insert whose caller gave up leaves open what became of it; the same rows under the
// same token settle it.
func TestCancelledInsertIsRepeatable(t *testing.T) {
	s := storetest.Engine(t)
	var rows []store.EventRow
	for i := range 20_000 {
		row := event(1, day)
		row.RecordUID[0], row.RecordUID[1] = byte(i), byte(i>>8)
		rows = append(rows, row)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Insert(ctx, "events_rows", "a", rows); !errors.Is(err, context.Canceled) || store.Permanent(err) {
		t.Errorf("a cancelled insert gives %v", err)
	}
	for range 2 {
		insert(t, s, "a", rows)
	}
	if n := count(t, s, "events_rows"); n != 20_000 {
		t.Errorf("%d rows, want 20000", n)
	}
}

// TestNewerSchemaIsRefusedEverywhere: nothing of an older binary touches a database of a newer one, and the words name
// both versions and the way out.
func TestNewerSchemaIsRefusedEverywhere(t *testing.T) {
	s := storetest.Engine(t)
	storetest.Exec(t, s, fmt.Sprintf("INSERT INTO schema_migrations SELECT %d, 'future', 'x', now64(3)", store.SchemaVersion+1))
	want := fmt.Sprintf("has schema %d, this binary knows up to %d: use the callscope version that migrated it, or a newer one", store.SchemaVersion+1, store.SchemaVersion)
	for name, check := range map[string]func(context.Context) error{"CheckSchema": s.CheckSchema, "Migrate": s.Migrate} {
		if err := check(t.Context()); !errors.Is(err, store.ErrSchemaAhead) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A migration that this binary has and the database lacks is no reason to go on in front of one it does not know.
	storetest.Exec(t, s, "ALTER TABLE schema_migrations DELETE WHERE version = 1 SETTINGS mutations_sync = 2")
	if err := s.Migrate(t.Context()); !errors.Is(err, store.ErrSchemaAhead) {
		t.Errorf("Migrate: %v", err)
	}
}
