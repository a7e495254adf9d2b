package store

import (
	"testing"

	"github.com/callscope/callscope/test/chaintest"
)

// TestOtherSchemas: a database of another version is refused by everything that reads or writes it, with both versions
// and what to do, and left as it is. One that is behind is mended by `callscope migrate`.
func TestOtherSchemas(t *testing.T) {
	engine, broker := chaintest.FreeAddress(t), chaintest.FreeAddress(t)
	e := chaintest.Start(t, "callscope engine", "engine", "--data", t.TempDir(), "--addr", engine)
	b := chaintest.Start(t, "callscope broker", "broker", "--data", t.TempDir(), "--set", "kafka.embedded_addr="+broker)
	chaintest.Listening(t, e, engine)
	chaintest.Listening(t, b, broker)
	servers := []string{"--set", "clickhouse.addr=" + engine, "--set", "clickhouse.protocol=http", "--set", "kafka.brokers=" + broker, "--set", "kafka.partitions=4", "--log-level", "error"}
	with := func(args ...string) []string { return append(args, servers...) }
	succeeded(t, with("migrate")...)
	newest := chaintest.MustQuery(t, engine, "SELECT toString(max(version)) FROM schema_migrations").Rows[0][0].(string)
	older := chaintest.MustQuery(t, engine, "SELECT toString(max(version) - 1) FROM schema_migrations").Rows[0][0].(string)
	commands := map[string][]string{
		"sink":   with("sink", "--set", "admin.addr=127.0.0.1:0"),
		"replay": with("replay", "--from", "2026-01-01", "--to", "2026-01-02"),
		"all": {"all", "--data", t.TempDir(), "--set", "clickhouse.addr=" + engine, "--set", "clickhouse.protocol=http", "--set", "admin.addr=127.0.0.1:0",
			"--set", "gateway.addr=127.0.0.1:0", "--set", "kafka.embedded_addr=127.0.0.1:0", "--log-level", "error"},
	}
	const itself = "all" // migrates by itself what is behind

	t.Run("newer", func(t *testing.T) {
		chaintest.MustQuery(t, engine, "INSERT INTO schema_migrations SELECT 99, 'future', 'x', now64(3)")
		const says = "the database schema is newer than this binary: database callscope has schema 99, this binary knows up to [0-9]+: use the callscope version that migrated it, or a newer one\n$"
		for _, args := range commands {
			refused(t, 1, says, args...)
		}
		refused(t, 5, says, with("migrate")...) // the topics are there
		if n := count(t, engine, "SELECT count() FROM schema_migrations FINAL"); n != 3 {
			t.Errorf("%d versions are recorded, want 3", n)
		}
		chaintest.MustQuery(t, engine, "ALTER TABLE schema_migrations DELETE WHERE version = 99 SETTINGS mutations_sync = 2")
	})
	t.Run("behind", func(t *testing.T) {
		chaintest.MustQuery(t, engine, "ALTER TABLE schema_migrations DELETE WHERE version = "+newest+" SETTINGS mutations_sync = 2")
		says := "the database schema is older than this binary: database callscope has schema " + older + ", this binary needs " + newest + ": run `callscope migrate`\n$"
		for name, args := range commands {
			if name != itself {
				refused(t, 1, says, args...)
			}
		}
		succeeded(t, with("migrate")...)
	})
	t.Run("changed", func(t *testing.T) {
		chaintest.MustQuery(t, engine, "INSERT INTO schema_migrations SELECT 1, 'tables', 'another text', now64(3) + 10")
		const says = `the database was migrated with a different migration: database callscope has migration 1 \(tables\) with checksum another text, this binary has [0-9a-f]{12}: use the callscope version that migrated it, or start from an empty database\n$`
		for _, args := range commands {
			refused(t, 1, says, args...)
		}
		refused(t, 5, says, with("migrate")...)
	})
	t.Run("none", func(t *testing.T) {
		chaintest.MustQuery(t, engine, "DROP DATABASE callscope")
		for name, args := range commands {
			if name != itself {
				refused(t, 1, "the database does not exist .callscope.: run `callscope migrate`\n$", args...)
			}
		}
	})
}
