package store

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/uuid"
)

// Shadow holds the rows of a replay in tables of their own until they are compared with the stored ones and written. Its
// tables are on the server that answers first; nobody else reads them.
type Shadow struct {
	s   *Store
	run string // a word: part of the tables' names
}

// Shadow names the shadow tables of a run. run consists of lower-case letters and digits.
func (s *Store) Shadow(run string) *Shadow { return &Shadow{s: s, run: run} }

// Run is the name that was given to Store.Shadow.
func (sh *Shadow) Run() string { return sh.run }

// Window is which stored rows a replay may replace: those of conferences that begin in [From, To), and of messages outside
// of conferences that were received then. An empty App means all apps.
type Window struct {
	From, To Time
	App      string
}

// ConferenceSpan is one conference as the store or a replay knows it.
type ConferenceSpan struct {
	AppID, ConferenceID           string
	ConferenceUID                 uuid.UUID
	FirstRawOffset, LastRawOffset int64
	StartedAt, LastMessageAt      Time
}

// keys are the columns that name a row, by table; the rest of the sorting key follows from them. Rows without a
// conference_uid column belong to no conference.
var keys = map[string][]string{
	"conferences_rows":          {"app_id", "conference_id", "conference_uid"},
	"participants_rows":         {"app_id", "conference_id", "conference_uid", "participant_uid"},
	"participant_names_rows":    {"app_id", "conference_id", "conference_uid", "participant_uid"},
	"fabrics_rows":              {"app_id", "conference_id", "conference_uid", "fabric_uid"},
	"streams_rows":              {"app_id", "conference_id", "conference_uid", "fabric_uid", "direction", "ssrc"},
	"samples_rows":              {"app_id", "conference_id", "received_at", "record_uid", "idx"},
	"fabric_samples_rows":       {"app_id", "conference_id", "received_at", "record_uid", "idx"},
	"events_rows":               {"app_id", "conference_id", "received_at", "record_uid", "idx"},
	"feedback_rows":             {"app_id", "conference_id", "received_at", "record_uid", "idx"},
	"failures_rows":             {"app_id", "conference_id", "received_at", "record_uid", "idx"},
	"precall_tests_rows":        {"app_id", "received_at", "record_uid", "idx", "time", "test_id", "user_id"},
	"precall_associations_rows": {"app_id", "test_id", "received_at", "record_uid", "idx"},
}

// TableNames lists all tables that hold rows, summaries first.
func TableNames() []string {
	return []string{"conferences_rows", "participants_rows", "participant_names_rows", "fabrics_rows", "streams_rows", "samples_rows",
		"fabric_samples_rows", "events_rows", "feedback_rows", "failures_rows", "precall_tests_rows", "precall_associations_rows"}
}

func (t *table) has(name string) bool {
	return slices.ContainsFunc(t.columns, func(c column) bool { return c.name == name })
}

// sourceColumns say where a row came from and are no part of what it says.
var sourceColumns = []string{"src_topic", "src_partition", "src_offset", "src_range_start", "version", "is_deleted"}

// values are the columns of a table that two versions of a row are compared by.
func (t *table) values() []string {
	var list []string
	for _, c := range t.columns {
		if !slices.Contains(sourceColumns, c.name) && !slices.Contains(keys[t.name], c.name) {
			list = append(list, c.name)
		}
	}
	return list
}

func (sh *Shadow) table(name string) string {
	return fmt.Sprintf("%s.%s%s_%s", sh.s.cfg.Database, shadowPrefix, sh.run, name)
}

func (sh *Shadow) exec(ctx context.Context, doing, sql string, settings clickhouse.Settings) error {
	if settings == nil {
		settings = clickhouse.Settings{}
	}
	settings["async_insert"] = 0
	if err := sh.s.conn.Exec(clickhouse.Context(ctx, clickhouse.WithSettings(settings)), sql); err != nil {
		return sh.failed(doing, err)
	}
	return nil
}

// ErrShadowGone: the tables of a run are not there, or no longer.
var ErrShadowGone = errors.New("the tables of the replay are gone")

// What a run notes about itself, in its table progress, with the server's time.
const (
	noteRun       = "run"       // once, first of all: the detail that was given to Begin
	noteAlive     = "alive"     // a sign of life of the owner named in detail
	noteEnded     = "ended"     // that owner works on it no more
	notePartition = "partition" // all rows of a partition are in
	noteWriting   = "writing"   // rows of the generation in value are being written
)

// ShadowState is what a run has noted about itself.
type ShadowState struct {
	Run        string
	Made       Time             // when the oldest of its tables was made
	Remains    bool             // it was being taken away, or still is: nothing of it can be used
	Recorded   bool             // false where it has just begun, or this binary cannot read its notes: the rest is then empty
	Detail     string           // as it was given to Begin
	Began      Time             // by the server's clock, as all times here
	Heard, Now Time             // the last note, and when State was asked
	Owners     []ShadowOwner    // processes that work on it, or died at it, oldest first: the last one has it
	Finished   map[int32]string // details of the partitions that are finished
	Generation uint32           // of its rows, once they are being written; else 0
}

// ShadowOwner is a process that has not said that it ended.
type ShadowOwner struct {
	Name        string
	Since, Seen Time // its first and its last sign of life
}

const (
	shadowPrefix          = "replay_"
	codeUnknownIdentifier = 47
)

// Shadows lists the runs whose tables are in the store, oldest first. They are looked for on one server.
func (s *Store) Shadows(ctx context.Context) ([]ShadowState, error) {
	rows, err := s.conn.Query(ctx, fmt.Sprintf("SELECT splitByChar('_', name)[2] AS run, toUnixTimestamp(min(metadata_modification_time)) AS made, countIf(endsWith(name, '_progress')) FROM system.tables WHERE database = '%s' AND startsWith(name, '%s') GROUP BY run ORDER BY made, run",
		s.cfg.Database, shadowPrefix))
	if err != nil {
		return nil, fmt.Errorf("looking for replays: %w", err)
	}
	defer rows.Close()
	var list []ShadowState
	for rows.Next() {
		var run string
		var made uint32
		var recorded uint64
		if err := rows.Scan(&run, &made, &recorded); err != nil {
			return nil, fmt.Errorf("looking for replays: %w", err)
		}
		list = append(list, ShadowState{Run: run, Made: Time(made) * 1000, Remains: recorded == 0})
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("looking for replays: %w", err)
	}
	for i, found := range list {
		if found.Remains {
			continue
		}
		state, err := s.Shadow(found.Run).State(ctx)
		switch {
		case errors.Is(err, ErrShadowGone):
			list[i].Remains = true // since
		case code(err) == codeUnknownIdentifier:
		case err != nil:
			return nil, err
		default:
			state.Made = found.Made
			list[i] = state
		}
	}
	return list, nil
}

// State reads what the run has noted, but for Made. The error is ErrShadowGone where its tables are not there.
func (sh *Shadow) State(ctx context.Context) (ShadowState, error) {
	state := ShadowState{Run: sh.run, Finished: map[int32]string{}}
	rows, err := sh.s.conn.Query(ctx, fmt.Sprintf("SELECT note, partition, detail, max(value), toUnixTimestamp64Milli(min(at)), toUnixTimestamp64Milli(max(at)), toUnixTimestamp64Milli(now64(3)) FROM %s GROUP BY note, partition, detail ORDER BY min(at), detail", sh.table("progress")))
	if err != nil {
		return state, sh.failed("reading the replay's progress", err)
	}
	defer rows.Close()
	ended := map[string]bool{}
	for rows.Next() {
		var note, detail string
		var partition int32
		var value uint32
		var first, last, now int64
		if err := rows.Scan(&note, &partition, &detail, &value, &first, &last, &now); err != nil {
			return state, fmt.Errorf("reading the replay's progress: %w", err)
		}
		state.Heard, state.Now = max(state.Heard, Time(last)), Time(now)
		switch note {
		case noteRun:
			state.Recorded, state.Detail, state.Began = true, detail, Time(first)
		case noteAlive:
			state.Owners = append(state.Owners, ShadowOwner{Name: detail, Since: Time(first), Seen: Time(last)})
		case noteEnded:
			ended[detail] = true
		case notePartition:
			state.Finished[partition] = detail
		case noteWriting:
			state.Generation = max(state.Generation, value)
		}
	}
	if err := rows.Err(); err != nil {
		return state, fmt.Errorf("reading the replay's progress: %w", err)
	}
	state.Owners = slices.DeleteFunc(state.Owners, func(o ShadowOwner) bool { return ended[o.Name] })
	return state, nil
}

func (sh *Shadow) failed(doing string, err error) error {
	if code(err) == codeUnknownTable {
		return fmt.Errorf("%s: %w: %w", doing, ErrShadowGone, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// Begin makes the run known under a name that nobody used before, with a detail that State gives back, and a first sign
// of life of its owner. The tables for its rows are made by Create.
func (sh *Shadow) Begin(ctx context.Context, owner, detail string) error {
	// The first table to come and the first to go: where it is not, nothing can be resumed.
	sql := fmt.Sprintf("CREATE TABLE %s (note String, partition Int32, value UInt32, detail String, at DateTime64(3, 'UTC')) ENGINE = MergeTree ORDER BY tuple()", sh.table("progress"))
	if err := sh.exec(ctx, "making the tables of the replay", sql, nil); err != nil {
		return err
	}
	// Whoever knows what the run is about knows that it lives.
	if err := sh.Alive(ctx, owner); err != nil {
		return err
	}
	return sh.note(ctx, noteRun, -1, 0, detail)
}

// Alive notes a sign of life of an owner; the first one makes it the run's last owner. The error is ErrShadowGone once the
// tables are taken away.
func (sh *Shadow) Alive(ctx context.Context, owner string) error {
	return sh.note(ctx, noteAlive, -1, 0, owner)
}

// End notes that an owner works on the run no more. Errors as those of Alive.
func (sh *Shadow) End(ctx context.Context, owner string) error {
	return sh.note(ctx, noteEnded, -1, 0, owner)
}

// Create makes the tables for rows, or leaves those that are there.
func (sh *Shadow) Create(ctx context.Context) error {
	for _, name := range TableNames() {
		key := strings.Join(keys[name], ", ")
		sql := fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s ENGINE = ReplacingMergeTree(version) ORDER BY (%s) AS SELECT * FROM %s.%s WHERE 0",
			sh.table(name), key, sh.s.cfg.Database, name)
		if err := sh.exec(ctx, "making the tables of the replay", sql, nil); err != nil {
			return err
		}
	}
	return sh.exec(ctx, "making the tables of the replay", fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s (conference_uid UUID) ENGINE = MergeTree ORDER BY tuple()", sh.table("scope")), nil)
}

// Drop takes the tables away. A process that works on the run fails at its next statement.
func (sh *Shadow) Drop(ctx context.Context) error {
	var errs []error
	for _, name := range append([]string{"progress", "scope"}, TableNames()...) {
		errs = append(errs, sh.exec(ctx, "dropping the tables of the replay", "DROP TABLE IF EXISTS "+sh.table(name)+" SYNC", nil))
	}
	return errors.Join(errs...)
}

// Insert adds rows, a slice of the row type of a table. Repeating it changes nothing.
func (sh *Shadow) Insert(ctx context.Context, tableName string, rows any) error {
	t, ok := tables[tableName]
	v := reflect.ValueOf(rows)
	if !ok || v.Kind() != reflect.Slice || v.Type().Elem() != t.row {
		return fmt.Errorf("inserting %T into the replay's %s: wrong type of rows", rows, tableName)
	}
	if v.Len() == 0 {
		return nil
	}
	statement := strings.Replace(t.insert, "%s."+t.name, sh.table(tableName), 1)
	if err := sh.s.send(ctx, t, statement, clickhouse.Settings{"async_insert": 0, "max_partitions_per_insert_block": 0}, v); err != nil {
		return fmt.Errorf("inserting %d rows into the replay's %s: %w", v.Len(), tableName, err)
	}
	return nil
}

// FinishPartition notes that all rows of a partition are in, and which conferences of it may be written. detail is handed
// back by State.
func (sh *Shadow) FinishPartition(ctx context.Context, partition int32, scope []uuid.UUID, detail string) error {
	for chunk := range slices.Chunk(scope, 5000) {
		values := make([]string, len(chunk))
		for i, uid := range chunk {
			values[i] = "('" + uid.String() + "')"
		}
		if err := sh.exec(ctx, "noting the conferences of the replay", fmt.Sprintf("INSERT INTO %s VALUES %s", sh.table("scope"), strings.Join(values, ",")), nil); err != nil {
			return err
		}
	}
	return sh.note(ctx, notePartition, partition, 0, detail)
}

func (sh *Shadow) note(ctx context.Context, note string, partition int32, value uint32, detail string) error {
	return sh.exec(ctx, "noting the replay's progress", fmt.Sprintf("INSERT INTO %s SELECT '%s', %d, %d, '%s', now64(3)", sh.table("progress"), note, partition, value, quoted(detail)), nil)
}

func quoted(s string) string { return strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) }

// Generation returns the generation of this run's rows, one above all that were ever written, and keeps it for a resumed
// run.
func (sh *Shadow) Generation(ctx context.Context) (uint32, error) {
	if state, err := sh.State(ctx); err != nil || state.Generation > 0 {
		return state.Generation, err
	}
	var parts []string
	for _, name := range TableNames() {
		version := "version"
		if tables[name].summary() {
			version = "bitShiftRight(version, 32)"
		}
		parts = append(parts, fmt.Sprintf("SELECT max(%s) AS g FROM %s.%s", version, sh.s.cfg.Database, name))
	}
	var highest uint64
	if err := sh.s.conn.QueryRow(ctx, "SELECT max(g) FROM ("+strings.Join(parts, " UNION ALL ")+")").Scan(&highest); err != nil {
		return 0, fmt.Errorf("looking for the newest replay generation: %w", err)
	}
	generation := uint32(highest) + 1
	return generation, sh.note(ctx, noteWriting, -1, generation, "")
}

// summary tells whether a table's versions are made of generation and revision.
func (t *table) summary() bool { return t.has("revision") }

// Difference is what a replay would change in one table.
type Difference struct {
	Table                   string
	Added, Changed, Removed uint64
	Columns                 map[string]uint64 // rows that change, by column
}

// Rows is the number of rows that would be written.
func (d Difference) Rows() uint64 { return d.Added + d.Changed + d.Removed }

// A comparison is made in slices, and one slice at a time, so that the server holds at most about so much of either side
// in its memory.
const (
	sliceRows  = 200_000
	sliceBytes = 128 << 20 // of columns, uncompressed
)

// Compare finds out what the run would change in a table.
func (sh *Shadow) Compare(ctx context.Context, tableName string, w Window) (Difference, error) {
	d := Difference{Table: tableName, Columns: map[string]uint64{}}
	t := tables[tableName]
	values := t.values()
	selects := []string{
		"countIf(n.replay_present = 1 AND o.replay_present = 0)", "countIf(n.replay_present = 1 AND o.replay_present = 1 AND (" + differs(values) + "))", "countIf(n.replay_present = 0 AND o.replay_present = 1)",
	}
	for _, c := range values {
		selects = append(selects, fmt.Sprintf("countIf(n.replay_present = 1 AND o.replay_present = 1 AND %s)", columnDiffers(c)))
	}
	all, err := sh.slices(ctx, t, w)
	if err != nil {
		return d, err
	}
	for _, slice := range all {
		sql := fmt.Sprintf("SELECT %s FROM (%s) AS n FULL OUTER JOIN (%s) AS o ON %s", strings.Join(selects, ", "), slice.newRows, slice.oldRows, sameKey(tableName))
		counts := make([]uint64, len(selects))
		targets := make([]any, len(selects))
		for i := range counts {
			targets[i] = &counts[i]
		}
		compareContext := clickhouse.Context(ctx, clickhouse.WithSettings(compareSettings()))
		if err := sh.s.conn.QueryRow(compareContext, sql).Scan(targets...); err != nil {
			return d, fmt.Errorf("comparing %s: %w", tableName, err)
		}
		d.Added, d.Changed, d.Removed = d.Added+counts[0], d.Changed+counts[1], d.Removed+counts[2]
		for i, c := range values {
			if n := counts[3+i]; n > 0 {
				d.Columns[c] += n
			}
		}
	}
	return d, nil
}

// compareSettings leave the server's processors to the live inserts and queries but for one: nobody waits for a replay as
// one waits for them.
func compareSettings() clickhouse.Settings {
	return clickhouse.Settings{
		"join_use_nulls": 0, "join_algorithm": "hash", "final": 0, "max_execution_time": 0, "max_threads": 1, "max_insert_threads": 1,
		"do_not_merge_across_partitions_select_final": 0,
	}
}

// slice is a part of the computed and the stored rows of a table, by the hash of their keys.
type slice struct{ newRows, oldRows string }

// slices divides the rows that a comparison reads.
func (sh *Shadow) slices(ctx context.Context, t *table, w Window) ([]slice, error) {
	within, err := sh.within(ctx, t, w)
	if err != nil {
		return nil, err
	}
	ours, stored := sh.table(t.name), sh.s.cfg.Database+"."+t.name
	var rows, bytes float64
	for _, from := range []string{ours, stored} {
		var n, size float64
		database, name, _ := strings.Cut(from, ".")
		sql := fmt.Sprintf("SELECT toFloat64(count()), toFloat64(count() * (SELECT ifNotFinite(sum(data_uncompressed_bytes) / sum(rows), 0) FROM system.parts WHERE active AND database = '%s' AND table = '%s')) FROM %s WHERE %s",
			database, name, from, within)
		if err := sh.s.conn.QueryRow(ctx, sql).Scan(&n, &size); err != nil {
			return nil, fmt.Errorf("counting the rows of %s that a replay may replace: %w", t.name, err)
		}
		rows, bytes = max(rows, n), max(bytes, size)
	}
	all := make([]slice, 1+int(max(rows/sliceRows, bytes/sliceBytes)))
	for i := range all {
		part := fmt.Sprintf("cityHash64(%s) %% %d = %d", strings.Join(keys[t.name], ", "), len(all), i)
		all[i] = slice{
			newRows: fmt.Sprintf("SELECT *, toUInt8(1) AS replay_present FROM %s FINAL WHERE %s AND %s", ours, within, part),
			oldRows: fmt.Sprintf("SELECT *, toUInt8(1) AS replay_present FROM %s FINAL WHERE %s AND %s", stored, within, part),
		}
	}
	return all, nil
}

// within is the condition that a row may be replaced. It names a span of time, so that the server reads that part of the
// table and not all that is stored: from the first to the last row that was computed, conference that is stored, or end
// of the window, and a day more on both sides.
func (sh *Shadow) within(ctx context.Context, t *table, w Window) (string, error) {
	column := "conference_started_at"
	switch {
	case t.has("received_at"):
		column = "received_at"
	case t.has("started_at") && !t.has(column):
		column = "started_at"
	}
	scope := fmt.Sprintf("conference_uid IN (SELECT conference_uid FROM %s)", sh.table("scope"))
	var from, to int64
	sql := fmt.Sprintf(`SELECT toInt64(min(a)), toInt64(max(b)) FROM (
SELECT minOrNull(toUnixTimestamp64Milli(%s)) AS a, maxOrNull(toUnixTimestamp64Milli(%s)) AS b FROM %s
UNION ALL SELECT minOrNull(toUnixTimestamp64Milli(started_at)), maxOrNull(toUnixTimestamp64Milli(last_message_at)) FROM %s.conferences_rows WHERE %s
UNION ALL SELECT toInt64(%d), toInt64(%d))`, column, column, sh.table(t.name), sh.s.cfg.Database, scope, w.From, w.To)
	if err := sh.s.conn.QueryRow(ctx, sql).Scan(&from, &to); err != nil {
		return "", fmt.Errorf("looking for the times of a replay's rows in %s: %w", t.name, err)
	}
	const day = 24 * 60 * 60 * 1000
	return fmt.Sprintf("%s >= fromUnixTimestamp64Milli(%d, 'UTC') AND %s <= fromUnixTimestamp64Milli(%d, 'UTC') AND %s",
		column, max(from-day, 0), column, to+day, inScope(t, w, scope)), nil
}

func inScope(t *table, w Window, scope string) string {
	received := fmt.Sprintf("received_at >= fromUnixTimestamp64Milli(%d, 'UTC') AND received_at < fromUnixTimestamp64Milli(%d, 'UTC')", w.From, w.To)
	if w.App != "" {
		received += fmt.Sprintf(" AND app_id = '%s'", quoted(w.App))
	}
	switch {
	case !t.has("conference_uid"):
		return received
	case t.has("received_at"):
		return fmt.Sprintf("(ifNull(%s, 0) OR (conference_uid IS NULL AND %s))", scope, received)
	}
	return scope
}

func sameKey(tableName string) string {
	var parts []string
	for _, k := range keys[tableName] {
		parts = append(parts, fmt.Sprintf("n.%s = o.%s", k, k))
	}
	return strings.Join(parts, " AND ")
}

// columnDiffers compares NULLs as values. Nothing that is stored is NaN.
func columnDiffers(c string) string { return fmt.Sprintf("NOT (n.%s IS NOT DISTINCT FROM o.%s)", c, c) }

func differs(columns []string) string {
	parts := make([]string, len(columns))
	for i, c := range columns {
		parts[i] = columnDiffers(c)
	}
	return strings.Join(parts, " OR ")
}

// Apply writes what Compare counted: rows that are new or differ, with the generation, and takes away those that the run
// does not produce. Repeating it with the same generation changes nothing.
func (sh *Shadow) Apply(ctx context.Context, tableName string, w Window, generation uint32) error {
	t := tables[tableName]
	version := fmt.Sprintf("toUInt64(%d)", generation)
	revision := ""
	if t.summary() {
		version = fmt.Sprintf("bitShiftLeft(toUInt64(%d), 32) + ", generation)
		revision = "revision"
	}
	var names []string
	for _, c := range t.columns {
		names = append(names, c.name)
	}
	row := func(side string, deleted int) string {
		var list []string
		for _, c := range t.columns {
			switch c.name {
			case "src_topic":
				list = append(list, "'replay'")
			case "version":
				v := version
				if revision != "" {
					v += side + "." + revision
				}
				list = append(list, v)
			case "is_deleted":
				list = append(list, fmt.Sprintf("toUInt8(%d)", deleted))
			default:
				list = append(list, side+"."+c.name)
			}
		}
		return strings.Join(list, ", ")
	}
	into := fmt.Sprintf("INSERT INTO %s.%s (%s) ", sh.s.cfg.Database, tableName, strings.Join(names, ", "))
	all, err := sh.slices(ctx, t, w)
	if err != nil {
		return err
	}
	for _, slice := range all {
		// Removals come first: written rows are stored rows in the second statement's eyes.
		for _, sql := range []string{
			fmt.Sprintf("%sSELECT %s FROM (%s) AS o LEFT JOIN (%s) AS n ON %s WHERE n.replay_present = 0", into, row("o", 1), slice.oldRows, slice.newRows, sameKey(tableName)),
			fmt.Sprintf("%sSELECT %s FROM (%s) AS n LEFT JOIN (%s) AS o ON %s WHERE o.replay_present = 0 OR %s", into, row("n", 0), slice.newRows, slice.oldRows, sameKey(tableName), differs(t.values())),
		} {
			settings := compareSettings()
			settings["insert_deduplicate"] = 0 // a block that was once stored and then taken away must go in again
			settings["max_partitions_per_insert_block"] = 0
			if err := sh.exec(ctx, "writing "+tableName, sql, settings); err != nil {
				return err
			}
		}
	}
	return nil
}

// Conferences gives the stored conferences of a partition that begin in the window, in order of their first offsets.
func (s *Store) Conferences(ctx context.Context, partition int32, w Window) ([]ConferenceSpan, error) {
	where := fmt.Sprintf("src_partition = %d AND started_at >= fromUnixTimestamp64Milli(%d, 'UTC') AND started_at < fromUnixTimestamp64Milli(%d, 'UTC')", partition, w.From, w.To)
	if w.App != "" {
		where += fmt.Sprintf(" AND app_id = '%s'", quoted(w.App))
	}
	return s.spans(ctx, where)
}

// OpenConferences gives the stored conferences of a partition that began before a time and had a message at or after
// another one.
func (s *Store) OpenConferences(ctx context.Context, partition int32, began, heard Time) ([]ConferenceSpan, error) {
	return s.spans(ctx, fmt.Sprintf("src_partition = %d AND started_at < fromUnixTimestamp64Milli(%d, 'UTC') AND last_message_at >= fromUnixTimestamp64Milli(%d, 'UTC')", partition, began, heard))
}

func (s *Store) spans(ctx context.Context, where string) ([]ConferenceSpan, error) {
	rows, err := s.conn.Query(ctx, fmt.Sprintf("SELECT app_id, conference_id, conference_uid, first_raw_offset, last_raw_offset, started_at, last_message_at FROM %s.conferences_rows FINAL WHERE %s ORDER BY first_raw_offset", s.cfg.Database, where))
	if err != nil {
		return nil, fmt.Errorf("reading stored conferences: %w", err)
	}
	defer rows.Close()
	var list []ConferenceSpan
	for rows.Next() {
		var c ConferenceSpan
		var started, heard time.Time
		if err := rows.Scan(&c.AppID, &c.ConferenceID, &c.ConferenceUID, &c.FirstRawOffset, &c.LastRawOffset, &started, &heard); err != nil {
			return nil, fmt.Errorf("reading stored conferences: %w", err)
		}
		c.StartedAt, c.LastMessageAt = Time(started.UnixMilli()), Time(heard.UnixMilli())
		list = append(list, c)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading stored conferences: %w", err)
	}
	return list, nil
}

// HasApp tells whether any conference, event or pre-call test of an app is stored.
func (s *Store) HasApp(ctx context.Context, app string) (bool, error) {
	for _, name := range []string{"conferences_rows", "events_rows", "precall_tests_rows"} {
		var n uint64
		if err := s.conn.QueryRow(ctx, fmt.Sprintf("SELECT count() FROM (SELECT 1 FROM %s.%s WHERE app_id = '%s' LIMIT 1)", s.cfg.Database, name, quoted(app))).Scan(&n); err != nil {
			return false, fmt.Errorf("looking for app %s: %w", app, err)
		}
		if n > 0 {
			return true, nil
		}
	}
	return false, nil
}
