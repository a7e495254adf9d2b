package replay

import (
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
