package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/uuid"
)

// oldestServer is the oldest ClickHouse whose FINAL and skip indexes work together as the views need them.
var oldestServer = [2]int{25, 8}

// maxClockSkew is how far the server's clock may be off before it is worth a line in the log: retention by TTL goes by
// the server's clock.
const maxClockSkew = time.Minute

// CheckInserts returns an error with one line for each thing that makes inserts unsafe: a server that is too old or
// overrides the settings of an insert, a table without its columns or its deduplication window. Call it when CheckSchema
// is satisfied.
func (s *Store) CheckInserts(ctx context.Context) error {
	var errs []error
	for _, check := range []func(context.Context) error{s.checkServer, s.checkColumns, s.checkWindows} {
		errs = append(errs, check(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("checking that inserts are safe: %w", err)
	}
	return nil
}

func (s *Store) checkServer(ctx context.Context) error {
	const token = "callscope-check"
	ctx = clickhouse.Context(ctx, clickhouse.WithSettings(insertSettings(token)))
	var version, async, deduplicate, gotToken string
	var now int64
	before := time.Now()
	err := s.conn.QueryRow(ctx, `SELECT version(), toString(getSetting('async_insert')), toString(getSetting('insert_deduplicate')),
		toString(getSetting('insert_deduplication_token')), toUnixTimestamp64Milli(now64(3))`).Scan(&version, &async, &deduplicate, &gotToken, &now)
	if err != nil {
		return fmt.Errorf("reading the server's settings: %w", err)
	}
	if skew := time.UnixMilli(now).Sub(before); skew.Abs() > maxClockSkew {
		s.log.Warn("the clocks of this machine and the ClickHouse server differ", "skew_ms", skew.Milliseconds())
	}
	var errs []error
	parts := strings.Split(version, ".")
	if len(parts) >= 2 {
		major, errMajor := strconv.Atoi(parts[0])
		minor, errMinor := strconv.Atoi(parts[1])
		if errMajor == nil && errMinor == nil && slices.Compare([]int{major, minor}, oldestServer[:]) < 0 {
			errs = append(errs, fmt.Errorf("the ClickHouse server is version %s, and %d.%d is the oldest that works: upgrade it", version, oldestServer[0], oldestServer[1]))
		}
	}
	if isOn(async) {
		errs = append(errs, errors.New("the server forces async_insert = 1, which makes deduplication tokens meaningless: remove the constraint from the user's profile"))
	}
	if !isOn(deduplicate) {
		errs = append(errs, errors.New("the server forces insert_deduplicate = 0: remove the constraint from the user's profile"))
	}
	if gotToken != token {
		errs = append(errs, errors.New("the setting insert_deduplication_token does not reach the server: remove what drops it (a constraint, a proxy)"))
	}
	return errors.Join(errs...)
}

func isOn(value string) bool { return value == "1" || value == "true" }

// checkColumns compares the tables with the rows of this binary.
func (s *Store) checkColumns(ctx context.Context) error {
	rows, err := s.conn.Query(ctx, fmt.Sprintf("SELECT table, name, type FROM system.columns WHERE database = '%s'", s.cfg.Database))
	if err != nil {
		return fmt.Errorf("reading the tables' columns: %w", err)
	}
	defer rows.Close()
	have := make(map[string]string)
	exist := make(map[string]bool)
	for rows.Next() {
		var table, name, typ string
		if err := rows.Scan(&table, &name, &typ); err != nil {
			return fmt.Errorf("reading the tables' columns: %w", err)
		}
		have[table+"."+name] = typ
		exist[table] = true
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("reading the tables' columns: %w", err)
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(tables)) {
		if !exist[name] {
			errs = append(errs, fmt.Errorf("table %s.%s is missing: `callscope migrate` makes it again, and `callscope replay --from-enriched` brings its rows back", s.cfg.Database, name))
			continue
		}
		for _, c := range tables[name].columns {
			typ, ok := have[name+"."+c.name]
			switch {
			case !ok:
				errs = append(errs, fmt.Errorf("table %s.%s has no column %s: somebody changed it; restore it, or replay into an empty database", s.cfg.Database, name, c.name))
			case typ != c.typ:
				errs = append(errs, fmt.Errorf("column %s of table %s.%s is %s and must be %s: somebody changed it", c.name, s.cfg.Database, name, typ, c.typ))
			}
		}
	}
	return errors.Join(errs...)
}

var windowRe = regexp.MustCompile(`\b(?:non_)?replicated_deduplication_window = (\d+)`)

func (s *Store) checkWindows(ctx context.Context) error {
	rows, err := s.conn.Query(ctx, fmt.Sprintf("SELECT name, engine_full FROM system.tables WHERE database = '%s'", s.cfg.Database))
	if err != nil {
		return fmt.Errorf("reading the tables' settings: %w", err)
	}
	defer rows.Close()
	var errs []error
	for rows.Next() {
		var name, engine string
		if err := rows.Scan(&name, &engine); err != nil {
			return fmt.Errorf("reading the tables' settings: %w", err)
		}
		if _, ours := tables[name]; !ours {
			continue
		}
		if m := windowRe.FindStringSubmatch(engine); m == nil || m[1] == "0" {
			errs = append(errs, fmt.Errorf("table %s.%s remembers no deduplication tokens: set non_replicated_deduplication_window (or replicated_deduplication_window) to %d",
				s.cfg.Database, name, DeduplicationWindow))
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("reading the tables' settings: %w", err)
	}
	return errors.Join(errs...)
}

// Position is the newest record of a source partition that has a row.
type Position struct {
	Offset     int64
	RecordUID  uuid.UUID
	RangeStart int64 // first offset of the range it was inserted with
}

// HighestPosition returns the newest record of a source partition that has a row in any table; ok is false when there is
// none. Tables are filled one after the other, so only what lies before RangeStart is complete in all of them. It reads
// whole columns: for a start without a committed offset, not for every day.
func (s *Store) HighestPosition(ctx context.Context, topic string, partition int32) (p Position, ok bool, err error) {
	var selects []string
	for _, name := range slices.Sorted(maps.Keys(tables)) {
		selects = append(selects, fmt.Sprintf("SELECT src_offset, src_range_start, record_uid FROM %s.%s WHERE src_topic = {topic:String} AND src_partition = {partition:Int32} ORDER BY src_offset DESC LIMIT 1",
			s.cfg.Database, name))
	}
	query := "SELECT src_offset, src_range_start, record_uid FROM (" + strings.Join(selects, " UNION ALL ") + ") ORDER BY src_offset DESC, src_range_start LIMIT 1"
	rows, err := s.conn.Query(ctx, query, clickhouse.Named("topic", topic), clickhouse.Named("partition", strconv.Itoa(int(partition))))
	if err != nil {
		return p, false, fmt.Errorf("looking for the newest row of %s/%d: %w", topic, partition, err)
	}
	defer rows.Close()
	if rows.Next() {
		ok = true
		if err := rows.Scan(&p.Offset, &p.RangeStart, &p.RecordUID); err != nil {
			return p, false, fmt.Errorf("looking for the newest row of %s/%d: %w", topic, partition, err)
		}
	}
	if err := rows.Err(); err != nil {
		return p, false, fmt.Errorf("looking for the newest row of %s/%d: %w", topic, partition, err)
	}
	return p, ok, nil
}
