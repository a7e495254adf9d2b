package store_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/callscope/callscope/internal/store"
	"github.com/callscope/callscope/internal/store/storetest"
)

// A table that a replay, a reload and an erasure would not know of is a table with stale rows.
func TestEveryTableIsReplayed(t *testing.T) {
	s := storetest.Engine(t)
	want := map[string][]string{} // by the engine's own account
	for _, row := range storetest.Query(t, s, "SELECT name, sorting_key FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%ReplacingMergeTree' AND name LIKE '%\\_rows'") {
		want[row[0].(string)] = slices.DeleteFunc(strings.Split(row[1].(string), ", "), func(part string) bool { return strings.HasPrefix(part, "toDate(") })
	}
	if len(want) < 12 {
		t.Fatalf("the schema has %d tables of rows", len(want))
	}
	if diff := cmp.Diff(want, store.ReplayKeys()); diff != "" {
		t.Errorf("columns that name a row, by the schema (-) and for replays (+):\n%s", diff)
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(want)), slices.Sorted(slices.Values(store.TableNames()))); diff != "" {
		t.Errorf("tables of rows, by the schema (-) and for replays (+):\n%s", diff)
	}
}
