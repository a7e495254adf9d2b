package store

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

var (
	// ErrSchemaBehind: the database lacks migrations that this binary needs. `callscope migrate` mends it.
	ErrSchemaBehind = errors.New("the database schema is older than this binary")
	// ErrSchemaAhead: a newer callscope has migrated the database.
	ErrSchemaAhead = errors.New("the database schema is newer than this binary")
	// ErrSchemaChanged: a migration was applied with another text than this binary has.
	ErrSchemaChanged = errors.New("the database was migrated with a different migration")
)

// Migrations go forward only: a file that was released is never changed, a change is a new file with the next number.
// Every statement can be repeated, because migrators may run at the same time and may die half way.
//
//go:embed migrations/*.sql
var migrationFiles embed.FS

type migration struct {
	version    uint32
	name       string
	checksum   string // of the file, before the placeholders are filled
	statements []string
}

var migrations = func() []migration {
	list, err := readMigrations(migrationFiles)
	if err != nil {
		panic(err)
	}
	return list
}()

// SchemaVersion is the version of the schema that this binary reads and writes.
var SchemaVersion = migrations[len(migrations)-1].version

var migrationNameRe = regexp.MustCompile(`^([0-9]{4})_([a-z0-9_]+)\.sql$`)

// readMigrations reads the files in order and requires the numbers 1, 2, 3 … A statement ends at a line that holds
// nothing but a semicolon, so that semicolons in texts and comments mean nothing.
func readMigrations(files fs.FS) ([]migration, error) {
	names, err := fs.Glob(files, "migrations/*.sql")
	if err != nil {
		return nil, err
	}
	var list []migration
	for i, path := range names { // Glob sorts
		data, err := fs.ReadFile(files, path)
		if err != nil {
			return nil, err
		}
		m := migrationNameRe.FindStringSubmatch(strings.TrimPrefix(path, "migrations/"))
		if m == nil {
			return nil, fmt.Errorf("migration %s: the name must be NNNN_words.sql", path)
		}
		version, err := strconv.ParseUint(m[1], 10, 32)
		if err != nil || int(version) != i+1 {
			return nil, fmt.Errorf("migration %s: the number must be %04d", path, i+1)
		}
		sum := sha256.Sum256(data)
		mig := migration{version: uint32(version), name: m[2], checksum: hex.EncodeToString(sum[:])}
		for statement := range strings.SplitSeq(string(data), "\n;\n") {
			if strings.TrimSpace(statement) != "" {
				mig.statements = append(mig.statements, strings.TrimSpace(statement))
			}
		}
		if len(mig.statements) == 0 {
			return nil, fmt.Errorf("migration %s holds no statement", path)
		}
		list = append(list, mig)
	}
	if len(list) == 0 {
		return nil, errors.New("no migrations")
	}
	return list, nil
}

// DeduplicationWindow is how many of the newest inserts a table remembers the tokens of: at 10 inserts a second, about
// 15 minutes of a sink that was stopped and woke up. Older ones collapse by their key.
const DeduplicationWindow = 10_000

// render fills the placeholders, so that the same files make a single server's and a replicated cluster's schema.
func (c Config) render(statement string) string {
	onCluster, engine := "", "ReplacingMergeTree"
	deduplication := fmt.Sprintf("non_replicated_deduplication_window = %d", DeduplicationWindow)
	if c.Cluster != "" {
		onCluster, engine = "ON CLUSTER "+c.Cluster, "ReplicatedReplacingMergeTree"
		// The server's own hour would forget a sink that slept longer.
		deduplication = fmt.Sprintf("replicated_deduplication_window = %d, replicated_deduplication_window_seconds = 604800", DeduplicationWindow)
	}
	return strings.NewReplacer("{database}", c.Database, "{on_cluster}", onCluster, "{engine}", engine,
		"{deduplication}", deduplication).Replace(statement)
}

const bookkeeping = `CREATE TABLE IF NOT EXISTS {database}.schema_migrations {on_cluster}
(
    version UInt32,
    name String,
    checksum String,
    applied_at DateTime64(3, 'UTC')
)
ENGINE = {engine}
ORDER BY version
COMMENT 'Migrations that were applied, with the checksums of their files.'`

// Migrate makes the database, tables and views, or brings them up to date, with the retention of the configuration and,
// where the server allows it, the roles. Tables and views that somebody dropped are made again, empty. It may run at the same time in several
// processes, and again after it failed. It refuses a database that a newer or different callscope has migrated.
func (s *Store) Migrate(ctx context.Context) error {
	options := s.options
	options.Auth.Database = "" // ours may not exist yet
	conn, err := open(options)
	if err != nil {
		return fmt.Errorf("migrating: %w", err)
	}
	defer conn.Close()
	for _, statement := range []string{"CREATE DATABASE IF NOT EXISTS {database} {on_cluster}", bookkeeping} {
		if err := conn.Exec(ctx, s.cfg.render(statement)); err != nil {
			return fmt.Errorf("migrating: %w", s.unreachable(err))
		}
	}
	applied, err := s.applied(ctx, conn)
	if err != nil {
		return fmt.Errorf("migrating: %w", err)
	}
	if err := compare(applied, s.cfg.Database); err != nil && !errors.Is(err, ErrSchemaBehind) {
		return fmt.Errorf("migrating: %w", err)
	}
	lost, err := s.lost(ctx, conn)
	if err != nil {
		return fmt.Errorf("migrating: %w", err)
	}
	if len(lost) > 0 && len(applied) > 0 {
		s.log.Warn("tables or views were dropped, making them again; `callscope replay --from-enriched` brings rows back", "names", lost)
	}
	for _, m := range migrations {
		_, done := applied[m.version]
		if done && len(lost) == 0 {
			continue
		}
		for i, statement := range m.statements {
			if err := conn.Exec(ctx, s.cfg.render(statement)); err != nil {
				return fmt.Errorf("migrating to schema %d (%s), statement %d: %w", m.version, m.name, i+1, err)
			}
		}
		if done {
			continue
		}
		err := conn.Exec(ctx, fmt.Sprintf("INSERT INTO %s.schema_migrations (version, name, checksum, applied_at) SELECT %d, '%s', '%s', fromUnixTimestamp64Milli(%d, 'UTC') SETTINGS async_insert = 0",
			s.cfg.Database, m.version, m.name, m.checksum, time.Now().UnixMilli()))
		if err != nil {
			return fmt.Errorf("migrating to schema %d (%s): recording it: %w", m.version, m.name, err)
		}
		s.log.Info("migrated", "database", s.cfg.Database, "schema", m.version, "name", m.name)
	}
	if err := s.applyRetention(ctx, conn); err != nil {
		return fmt.Errorf("migrating: %w", err)
	}
	s.makeRoles(ctx, conn)
	return nil
}

var createRe = regexp.MustCompile(`(?m)^CREATE (?:TABLE IF NOT EXISTS|OR REPLACE VIEW) \{database\}\.(\w+)`)

// lost names the tables and views of the migrations that the database does not have. All statements can be repeated, so
// running every migration again brings them back as they were, empty, and leaves the others alone.
func (s *Store) lost(ctx context.Context, conn driver.Conn) (names []string, err error) {
	rows, err := conn.Query(ctx, fmt.Sprintf("SELECT name FROM system.tables WHERE database = '%s'", s.cfg.Database))
	if err != nil {
		return nil, fmt.Errorf("reading the list of tables: %w", err)
	}
	defer rows.Close()
	have := make(map[string]bool)
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, fmt.Errorf("reading the list of tables: %w", err)
		}
		have[name] = true
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading the list of tables: %w", err)
	}
	for _, m := range migrations {
		for _, statement := range m.statements {
			for _, match := range createRe.FindAllStringSubmatch(statement, -1) {
				if !have[match[1]] {
					names = append(names, match[1])
				}
			}
		}
	}
	return names, nil
}

// applied returns the checksums of the migrations that the database has had.
func (s *Store) applied(ctx context.Context, conn driver.Conn) (map[uint32]string, error) {
	rows, err := conn.Query(ctx, fmt.Sprintf("SELECT version, checksum FROM %s.schema_migrations FINAL", s.cfg.Database))
	if err != nil {
		if code(err) == codeUnknownTable {
			return nil, nil
		}
		return nil, fmt.Errorf("reading the schema's version: %w", err)
	}
	defer rows.Close()
	all := make(map[uint32]string)
	for rows.Next() {
		var version uint32
		var checksum string
		if err := rows.Scan(&version, &checksum); err != nil {
			return nil, fmt.Errorf("reading the schema's version: %w", err)
		}
		all[version] = checksum
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading the schema's version: %w", err)
	}
	return all, nil
}

// compare holds what a database has had against what this binary has.
func compare(applied map[uint32]string, database string) error {
	newest := uint32(0)
	for version := range applied {
		newest = max(newest, version)
	}
	if newest > SchemaVersion {
		return fmt.Errorf("%w: database %s has schema %d, this binary knows up to %d: use the callscope version that migrated it, or a newer one",
			ErrSchemaAhead, database, newest, SchemaVersion)
	}
	missing := uint32(0)
	for _, m := range migrations {
		checksum, done := applied[m.version]
		switch {
		case !done && missing == 0:
			missing = m.version
		case done && checksum != m.checksum:
			return fmt.Errorf("%w: database %s has migration %d (%s) with checksum %.12s, this binary has %.12s: use the callscope version that migrated it, or start from an empty database",
				ErrSchemaChanged, database, m.version, m.name, checksum, m.checksum)
		}
	}
	if missing != 0 {
		return fmt.Errorf("%w: database %s has schema %d, this binary needs %d: run `callscope migrate`", ErrSchemaBehind, database, missing-1, SchemaVersion)
	}
	return nil
}

// CheckSchema returns nil when the database has exactly the migrations of this binary, else ErrSchemaBehind,
// ErrSchemaAhead, ErrSchemaChanged or ErrNoDatabase with what to do; any other error means that it could not be read.
func (s *Store) CheckSchema(ctx context.Context) error {
	applied, err := s.applied(ctx, s.conn)
	if err != nil {
		if code(err) == codeUnknownDatabase {
			return s.unreachable(err)
		}
		return fmt.Errorf("checking the schema: %w", err)
	}
	if err := compare(applied, s.cfg.Database); err != nil {
		return fmt.Errorf("checking the schema: %w", err)
	}
	return nil
}
