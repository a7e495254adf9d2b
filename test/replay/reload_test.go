package replay

import (
	"strings"
	"testing"

	"github.com/callscope/callscope/internal/replay"
	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/store/storetest"
)

func TestReloadAfterLostTables(t *testing.T) {
	c := newChain(t)
	someCalls(t).write(c.client, at(60))
	c.live()
	before := allRows(t, c.store)
	for round := range 2 { // the second time nothing is missing
		done, err := replay.Reload(t.Context(), replay.ReloadConfig{}, c.client, c.store, quiet)
		if err != nil || done.Rows == 0 || done.Rejected != 0 {
			t.Fatalf("%+v, %v", done, err)
		}
		if diff := changed(before, allRows(t, c.store)); diff != "" {
			t.Errorf("round %d: %s", round, diff)
		}
		if round == 0 {
			for _, table := range store.TableNames() {
				storetest.Exec(t, c.store, "TRUNCATE TABLE "+table)
			}
		}
	}
	// The rows are the live ones again: a replay finds nothing to change.
	if report := run(t, c, config(-10, 100)); report.Rows() != 0 {
		t.Errorf("a replay after it changes %v", total(t, report))
	}
}

// One table and one view are dropped: the rows of the others stay, and those of the table come back.
func TestReloadAfterDroppedTable(t *testing.T) {
	c := newChain(t)
	someCalls(t).write(c.client, at(60))
	c.live()
	before := allRows(t, c.store)
	storetest.Exec(t, c.store, "DROP TABLE events_rows SYNC")
	storetest.Exec(t, c.store, "DROP VIEW fabrics")
	if code, _, stderr := command(t, c, "replay", "--from-enriched"); code == 0 || !strings.Contains(stderr, "events_rows is missing: `callscope migrate`") || strings.Count(stderr, "\n") > 3 {
		t.Errorf("loading into a missing table: exit code %d: %s", code, stderr)
	}
	if err := c.store.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code, stdout, stderr := command(t, c, "replay", "--from-enriched"); code != 0 {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	if diff := changed(before, allRows(t, c.store)); diff != "" {
		t.Error(diff)
	}
	storetest.Exec(t, c.store, "SELECT count() FROM fabrics")
}

// A whole database is lost, and made anew.
func TestReloadAfterLostDatabase(t *testing.T) {
	c := newChain(t)
	someCalls(t).write(c.client, at(60))
	c.live()
	before := allRows(t, c.store)
	storetest.Exec(t, c.store, "DROP DATABASE "+c.store.Database()+" SYNC")
	if code, _, stderr := command(t, c, "replay", "--from-enriched"); code == 0 || !strings.Contains(stderr, "migrate") {
		t.Errorf("loading into no database: exit code %d: %s", code, stderr)
	}
	if err := c.store.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code, stdout, stderr := command(t, c, "replay", "--from-enriched"); code != 0 {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	if diff := changed(before, allRows(t, c.store)); diff != "" {
		t.Error(diff)
	}
}
