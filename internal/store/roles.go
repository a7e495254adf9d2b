package store

import (
	"context"
	"log/slog"
	"regexp"
	"slices"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

// Real names are in one table and shown by one view.
const (
	namesTable = "participant_names_rows"
	namesView  = "participants_named"
)

var viewRe = regexp.MustCompile(`CREATE OR REPLACE VIEW \{database\}\.(\w+) `)

// roleStatements make two roles for people: the analyst reads every view but the one with real names, the support role
// reads that one too. ClickHouse reads what is behind a view with the rights of whoever asks, so a role has the tables
// too. Repeating them changes nothing.
func (c Config) roleStatements() []string {
	var readable []string
	for name := range tables {
		if name != namesTable {
			readable = append(readable, name)
		}
	}
	for _, m := range migrations {
		for _, statement := range m.statements {
			if view := viewRe.FindStringSubmatch(statement); view != nil && view[1] != namesView && !slices.Contains(readable, view[1]) {
				readable = append(readable, view[1])
			}
		}
	}
	slices.Sort(readable)
	for i := range readable {
		readable[i] = "SELECT ON {database}." + readable[i]
	}
	statements := []string{
		"CREATE ROLE IF NOT EXISTS {database}_analyst {on_cluster}",
		"CREATE ROLE IF NOT EXISTS {database}_support {on_cluster}",
		"GRANT {on_cluster} " + strings.Join(readable, ", ") + " TO {database}_analyst",
		"GRANT {on_cluster} SELECT ON {database}.* TO {database}_support",
	}
	for i := range statements {
		statements[i] = c.render(statements[i])
	}
	return statements
}

// makeRoles makes the roles where the server lets this user. Where it does not, everything works without them, and
// whoever manages the server's users may run the statements.
func (s *Store) makeRoles(ctx context.Context, conn driver.Conn) {
	for _, statement := range s.cfg.roleStatements() {
		if err := conn.Exec(ctx, statement); err != nil {
			level := slog.LevelWarn
			if code(err) == codeAccessDenied {
				level = slog.LevelInfo // as it must be on the embedded engine, which has no roles
			}
			s.log.Log(ctx, level, "the roles for people who query were not made, everything else works without them: the server has none, or this user may not manage access",
				"analyst", s.cfg.Database+"_analyst", "support", s.cfg.Database+"_support", "statement", statement, "error", err)
			return
		}
	}
}
