package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/uuid"
)

// Erasure says how a user is taken out of the rows that are stored. What it does to a row is what internal/erasures does
// to the message that the row is made of.
type Erasure struct {
	App         string
	Spellings   []Spelling // how the user's id is written, the id itself first
	Pseudonym   string     // what stands in its place
	Before      Time       // rows of messages received, and of conferences begun, before it
	Conferences []uuid.UUID
	// Device gives the pseudonym of one of the user's devices.
	Device func(string) string
	// PeerFields are texts in an event's data that say something about the other side of a connection.
	PeerFields []string
	// KeptEvent is the event type whose data other rows hang on: ids in it are replaced, the rest stays.
	KeptEvent string
}

// Spelling is a text and the regular expressions (RE2) that find it where it stands for the user. Each has two groups: what
// is before the text and after it.
type Spelling struct {
	Text     string
	Patterns []string
}

func (e Erasure) texts() []string {
	list := make([]string, len(e.Spellings))
	for i, s := range e.Spellings {
		list[i] = s.Text
	}
	return list
}

// ErasedTable is what an erasure found in one table.
type ErasedTable struct {
	Table string `json:"table"`
	Rows  uint64 `json:"rows"`
}

// wordColumns hold names out of fixed vocabularies, of software and of networks, or keys of ours; none is a person's.
var wordColumns = []string{"app_id", "state", "revision_reason", "outcome", "end_reason", "left_reason", "audio_mos_model", "video_score_model",
	"browser", "browser_version", "os", "os_version", "client_version", "app_version", "country", "network", "usage", "remote_type", "direction",
	"delay_source", "failure_function", "ssrc", "media_type", "owner_source", "codec", "side", "event_type", "original_type", "function",
	"local_candidate_type", "remote_candidate_type", "protocol", "network_type", "quality_limitation_reason", "silence", "status", "test_version", "provider",
	"endpoint_type", "src_topic", "failure_network", "network_kind"}

// idColumns name users, devices and connections. They are replaced as a whole: alice@example.com is not alice.
var idColumns = []string{"user_id", "remote_id", "connection_id", "owner_user_id", "device_id"}

// keyColumns are texts that are a part of the sorting key: they cannot be updated in place.
var keyColumns = map[string][]string{
	"conferences_rows": {"conference_id"}, "participants_rows": {"conference_id"}, "participant_names_rows": {"conference_id"}, "fabrics_rows": {"conference_id"},
	"streams_rows": {"conference_id"}, "samples_rows": {"conference_id"}, "fabric_samples_rows": {"conference_id"}, "events_rows": {"conference_id"},
	"feedback_rows": {"conference_id"}, "failures_rows": {"conference_id"}, "precall_tests_rows": {"test_id", "user_id"},
	"precall_associations_rows": {"test_id"},
}

func (t *table) textColumns() (plain, key []string) {
	for _, c := range t.columns {
		switch c.typ {
		case "String", "Nullable(String)", "LowCardinality(String)", "LowCardinality(Nullable(String))":
		default:
			continue
		}
		switch {
		case slices.Contains(wordColumns, c.name):
		case slices.Contains(keyColumns[t.name], c.name):
			key = append(key, c.name)
		default:
			plain = append(plain, c.name)
		}
	}
	return plain, key
}

// literal writes a text as a constant of a statement, whatever bytes it has.
func literal(text string) string {
	var b strings.Builder
	b.WriteByte('\'')
	for i := range len(text) {
		c := text[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte(" _-.,:;/()[]{}^$|?*+", c) >= 0 {
			b.WriteByte(c)
			continue
		}
		fmt.Fprintf(&b, `\x%02X`, c)
	}
	b.WriteByte('\'')
	return b.String()
}

func literals(list []string) string {
	quotedList := make([]string, len(list))
	for i, s := range list {
		quotedList[i] = literal(s)
	}
	return strings.Join(quotedList, ", ")
}

// replaced is the expression of a text with pseudonyms in the places where the id stands. A character between two ids is
// a part of the first match, so everything is done twice.
func (e Erasure) replaced(expression string) string {
	if slices.Contains(idColumns, expression) {
		return fmt.Sprintf("if(%s, %s, %s)", e.stands(expression), literal(e.Pseudonym), expression)
	}
	for _, spelling := range e.Spellings {
		for _, pattern := range spelling.Patterns {
			for range 2 {
				expression = fmt.Sprintf(`replaceRegexpAll(%s, %s, %s)`, expression, literal(pattern), literal(`\1`+e.Pseudonym+`\2`))
			}
		}
	}
	return expression
}

// stands is the condition that the id stands in a column.
func (e Erasure) stands(column string) string {
	if slices.Contains(idColumns, column) {
		return fmt.Sprintf("ifNull(%s IN (%s), 0)", column, literals(e.texts()))
	}
	var parts []string
	for _, spelling := range e.Spellings {
		for _, pattern := range spelling.Patterns {
			// The search for the bytes is fast and spares most rows the pattern.
			parts = append(parts, fmt.Sprintf("(position(%s, %s) > 0 AND match(%s, %s))", column, literal(spelling.Text), column, literal(pattern)))
		}
	}
	return "ifNull(" + strings.Join(parts, " OR ") + ", 0)"
}

// covered is the condition that the erasure speaks of a row.
func (e Erasure) covered(t *table) string {
	before := fmt.Sprintf("fromUnixTimestamp64Milli(%d, 'UTC')", e.Before)
	of := "0"
	if len(e.Conferences) > 0 {
		list := make([]string, len(e.Conferences))
		for i, uid := range e.Conferences {
			list[i] = uid.String()
		}
		of = "ifNull(conference_uid IN (" + literals(list) + "), 0)"
	}
	switch {
	case t.name == "conferences_rows":
		return fmt.Sprintf("(started_at < %s OR %s)", before, of)
	case t.has("conference_started_at"):
		return fmt.Sprintf("(conference_started_at < %s OR %s)", before, of)
	case t.has("conference_uid"):
		return fmt.Sprintf("(received_at < %s OR %s OR (conference_uid IS NULL AND conference_id != ''))", before, of)
	}
	return fmt.Sprintf("received_at < %s", before)
}

// ofUser and ofPeer are the conditions that a row is the user's own, or about a connection to the user.
func (e Erasure) ofUser(t *table) string {
	if !t.has("user_id") {
		return "0"
	}
	return "user_id IN (" + literals(e.texts()) + ")"
}

func (e Erasure) ofPeer(t *table) string {
	if !t.has("remote_id") {
		return "0"
	}
	return "remote_id IN (" + literals(e.texts()) + ")"
}

// rewritten says, as expressions, what the columns of a table become.
func (e Erasure) rewritten(t *table, devices, names []string) map[string]string {
	own, peer := e.ofUser(t), e.ofPeer(t)
	plain, key := t.textColumns()
	values := map[string]string{}
	for _, column := range key {
		values[column] = e.replaced(column)
	}
	for _, column := range plain {
		other := e.replaced(column)
		value := other
		switch {
		case column == "device_id" && len(devices) > 0:
			pseudonyms := make([]string, len(devices))
			for i, d := range devices {
				pseudonyms[i] = e.Device(d)
			}
			value = fmt.Sprintf("if(%s, transform(device_id, [%s], [%s], %s), %s)", own, literals(devices), literals(pseudonyms), other, other)
		case column == "alias":
			value = fmt.Sprintf("if(%s AND alias != '', %s, %s)", own, literal(e.Pseudonym), other)
		case column == "user_name":
			value = fmt.Sprintf("if(%s, %s, %s)", nameOf(names), literal(e.Pseudonym), other)
		case column == "results":
			value = fmt.Sprintf("if(%s, '{}', %s)", own, other)
		case column == "data":
			fields := "0"
			if len(e.PeerFields) > 0 {
				fields = "multiSearchAny(data, [" + literals(e.PeerFields) + "])"
			}
			value = fmt.Sprintf("if((%s AND event_type != %s) OR (%s AND NOT %s AND %s), '{}', %s)", own, literal(e.KeptEvent), peer, own, fields, other)
		case column == "local_sdp":
			value = fmt.Sprintf("if(%s, NULL, %s)", own, other)
		case column == "remote_sdp":
			value = fmt.Sprintf("if(%s OR %s, NULL, %s)", own, peer, other)
		case slices.Contains([]string{"message", "stack", "comment"}, column):
			value = fmt.Sprintf("if(%s, '', %s)", own, other)
		}
		values[column] = value
	}
	return values
}

// nameOf is the condition that a row of the table of real names is of one of these participants.
func nameOf(participants []string) string {
	if len(participants) == 0 {
		return "0"
	}
	return "participant_uid IN (" + literals(participants) + ")"
}

// affected is the condition that a row has to change.
func (e Erasure) affected(t *table, names []string) string {
	plain, key := t.textColumns()
	var parts []string
	if own := e.ofUser(t); own != "0" {
		parts = append(parts, own)
	}
	if peer := e.ofPeer(t); peer != "0" {
		parts = append(parts, peer)
	}
	for _, column := range slices.Concat(plain, key) {
		parts = append(parts, e.stands(column))
	}
	if t.name == namesTable && len(names) > 0 {
		parts = append(parts, fmt.Sprintf("(%s AND user_name != %s)", nameOf(names), literal(e.Pseudonym)))
	}
	return fmt.Sprintf("app_id = %s AND %s AND (%s)", literal(e.App), e.covered(t), strings.Join(parts, " OR "))
}

// Erase rewrites all rows that the erasure speaks of, and tells for each table how many there were (all versions of a row
// counted). With dryRun it only counts. It may be interrupted and repeated: what is done is found no more. It returns when
// all replicas have rewritten their parts; on an error, what it returns is done.
func (s *Store) Erase(ctx context.Context, e Erasure, dryRun bool) ([]ErasedTable, error) {
	ctx = clickhouse.Context(ctx, clickhouse.WithSettings(eraseSettings()))
	devices, err := s.devices(ctx, e)
	if err != nil {
		return nil, err
	}
	names, err := s.participantsOf(ctx, e)
	if err != nil {
		return nil, err
	}
	var done []ErasedTable
	// What finds the others, participants, comes last: an interrupted erasure must find the names again.
	order := slices.DeleteFunc(TableNames(), func(name string) bool { return name == "participants_rows" })
	for _, name := range append(order, "participants_rows") {
		rows, err := s.eraseTable(ctx, e, tables[name], devices, names, dryRun)
		if err != nil {
			return done, err
		}
		done = append(done, ErasedTable{name, rows})
	}
	return done, nil
}

func (s *Store) eraseTable(ctx context.Context, e Erasure, t *table, devices, names []string, dryRun bool) (uint64, error) {
	full := s.cfg.Database + "." + t.name
	where := e.affected(t, names)
	rows, err := s.count(ctx, fmt.Sprintf("SELECT count() FROM %s WHERE %s", full, where))
	if err != nil || rows == 0 || dryRun {
		return rows, err
	}
	values := e.rewritten(t, devices, names)
	if err := s.moveKeys(ctx, e, t, values); err != nil {
		return 0, err
	}
	plain, _ := t.textColumns()
	for i, column := range plain {
		plain[i] = column + " = " + values[column]
	}
	sql := s.cfg.render(fmt.Sprintf("ALTER TABLE %s {on_cluster} UPDATE %s WHERE %s", full, strings.Join(plain, ", "), where))
	return rows, s.mutate(ctx, "rewriting "+t.name, sql)
}

// moveKeys writes rows anew, rewritten, whose sorting key names the user, and deletes the old ones. Between the two both
// are seen.
func (s *Store) moveKeys(ctx context.Context, e Erasure, t *table, rewritten map[string]string) error {
	_, key := t.textColumns()
	var stand []string
	for _, column := range key {
		stand = append(stand, e.stands(column))
	}
	if len(stand) == 0 {
		return nil
	}
	full := s.cfg.Database + "." + t.name
	where := fmt.Sprintf("app_id = %s AND %s AND (%s)", literal(e.App), e.covered(t), strings.Join(stand, " OR "))
	rows, err := s.count(ctx, fmt.Sprintf("SELECT count() FROM %s WHERE %s", full, where))
	if err != nil || rows == 0 {
		return err
	}
	var names, values []string
	for _, c := range t.columns {
		names = append(names, c.name)
		if value, ok := rewritten[c.name]; ok {
			values = append(values, value)
		} else {
			values = append(values, c.name)
		}
	}
	// What an interrupted run has written goes in once more and collapses with it.
	insert := fmt.Sprintf("INSERT INTO %s (%s) SELECT %s FROM %s WHERE %s", full, strings.Join(names, ", "), strings.Join(values, ", "), full, where)
	settings := eraseSettings()
	maps.Copy(settings, clickhouse.Settings{"async_insert": 0, "insert_deduplicate": 0, "max_partitions_per_insert_block": 0})
	if err := s.conn.Exec(clickhouse.Context(ctx, clickhouse.WithSettings(settings)), insert); err != nil {
		return fmt.Errorf("writing rows of %s under new keys: %w", t.name, err)
	}
	return s.mutate(ctx, "deleting rows of "+t.name+" under old keys", s.cfg.render(fmt.Sprintf("ALTER TABLE %s {on_cluster} DELETE WHERE %s", full, where)))
}

// eraseSettings are what the statements of an erasure need whatever the server's defaults are. Somebody who was in every
// call, such as a recorder, has thousands of participants, devices and conferences, which statements list.
func eraseSettings() clickhouse.Settings {
	return clickhouse.Settings{"max_execution_time": 0, "max_query_size": 1 << 30}
}

// mutationSettings let a statement return when all replicas have rewritten their parts, however long that takes: a
// statement ON CLUSTER would give up after 3 minutes.
func (c Config) mutationSettings() clickhouse.Settings {
	settings := eraseSettings()
	settings["mutations_sync"] = 2
	if c.Cluster != "" {
		settings["distributed_ddl_task_timeout"] = -1
	}
	return settings
}

func (s *Store) mutate(ctx context.Context, doing, sql string) error {
	if err := s.conn.Exec(clickhouse.Context(ctx, clickhouse.WithSettings(s.cfg.mutationSettings())), sql); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return nil
}

func (s *Store) count(ctx context.Context, sql string) (n uint64, err error) {
	if err := s.conn.QueryRow(ctx, sql).Scan(&n); err != nil {
		return 0, fmt.Errorf("counting rows to erase: %w", err)
	}
	return n, nil
}

func (s *Store) texts(ctx context.Context, doing, sql string) ([]string, error) {
	rows, err := s.conn.Query(ctx, sql)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	defer rows.Close()
	var list []string
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return nil, fmt.Errorf("%s: %w", doing, err)
		}
		list = append(list, text)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	return list, nil
}

// devices are the devices of the user's rows that are not rewritten yet.
func (s *Store) devices(ctx context.Context, e Erasure) ([]string, error) {
	var parts []string
	for _, name := range TableNames() {
		if t := tables[name]; t.has("device_id") {
			parts = append(parts, fmt.Sprintf("SELECT device_id FROM %s.%s WHERE app_id = %s AND %s AND device_id != ''", s.cfg.Database, name, literal(e.App), e.ofUser(t)))
		}
	}
	return s.texts(ctx, "looking for the user's devices", "SELECT DISTINCT device_id FROM ("+strings.Join(parts, " UNION ALL ")+") ORDER BY device_id")
}

// participantsOf are the uids of the participants that the user is or was.
func (s *Store) participantsOf(ctx context.Context, e Erasure) ([]string, error) {
	t := tables["participants_rows"]
	return s.texts(ctx, "looking for the user's participants", fmt.Sprintf("SELECT DISTINCT toString(participant_uid) FROM %s.%s WHERE app_id = %s AND %s AND user_id IN (%s)",
		s.cfg.Database, t.name, literal(e.App), e.covered(t), literals(append(e.texts(), e.Pseudonym))))
}

// ConferencesOf gives the conferences that somebody was in, under any of these user ids, that had a message at heard or
// later and had begun before another time.
func (s *Store) ConferencesOf(ctx context.Context, app string, userIDs []string, heard, before Time) ([]ConferenceSpan, error) {
	var parts []string
	for _, where := range []struct{ table, column string }{
		{"participants_rows", "user_id"}, {"fabrics_rows", "remote_id"}, {"streams_rows", "owner_user_id"}, {"events_rows", "user_id"}, {"events_rows", "remote_id"},
	} {
		parts = append(parts, fmt.Sprintf("SELECT conference_uid FROM %s.%s WHERE app_id = %s AND %s IN (%s) AND conference_uid IS NOT NULL", s.cfg.Database, where.table, literal(app), where.column, literals(userIDs)))
	}
	in := "app_id = " + literal(app) + " AND conference_uid IN (" + strings.Join(parts, " UNION ALL ") + ")"
	// A conference that has just begun has events before it has a row of its own.
	at := time.UnixMilli(int64(heard)).UTC()
	rows, err := s.conn.Query(ctx, fmt.Sprintf("SELECT assumeNotNull(conference_uid) AS uid, any(conference_id) FROM %s.events_rows WHERE %s AND received_at >= fromUnixTimestamp64Milli(%d, 'UTC') AND toDate(received_at) >= '%s' GROUP BY uid HAVING min(received_at) < fromUnixTimestamp64Milli(%d, 'UTC')",
		s.cfg.Database, in, heard, at.Format(time.DateOnly), before))
	if err != nil {
		return nil, fmt.Errorf("looking for the user's conferences: %w", err)
	}
	defer rows.Close()
	var list []ConferenceSpan
	for rows.Next() {
		c := ConferenceSpan{AppID: app}
		if err := rows.Scan(&c.ConferenceUID, &c.ConferenceID); err != nil {
			return nil, fmt.Errorf("looking for the user's conferences: %w", err)
		}
		list = append(list, c)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("looking for the user's conferences: %w", err)
	}
	return list, nil
}

// DropShadows takes away what interrupted replays have left: their rows were made before the erasure. A replay that runs
// now fails and writes nothing more. It returns how many tables there were.
func (s *Store) DropShadows(ctx context.Context) (int, error) {
	list, err := s.texts(ctx, "looking for tables of interrupted replays", fmt.Sprintf("SELECT name FROM system.tables WHERE database = '%s' AND name LIKE 'replay\\\\_%%'", s.cfg.Database))
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, name := range list {
		if err := s.conn.Exec(ctx, "DROP TABLE IF EXISTS "+s.cfg.Database+"."+name+" SYNC"); err != nil {
			errs = append(errs, fmt.Errorf("dropping tables of an interrupted replay: %w", err))
		}
	}
	return len(list), errors.Join(errs...)
}
