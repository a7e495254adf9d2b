package store_test

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

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

// What a replay notes about itself is found again, until its tables are gone.
func TestShadowNotes(t *testing.T) {
	s := storetest.Engine(t)
	ctx := t.Context()
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	sh := s.Shadow("12ab")
	if _, err := sh.State(ctx); !errors.Is(err, store.ErrShadowGone) {
		t.Errorf("the state of nothing: %v", err)
	}
	do(sh.Begin(ctx, "first", `it's a \ detail`))
	if err := s.Shadow("12ab").Begin(ctx, "thief", ""); err == nil {
		t.Error("a name was used twice")
	}
	do(sh.Create(ctx))
	do(sh.Create(ctx))
	// The owners are told apart by when they came.
	storetest.Exec(t, s, "ALTER TABLE replay_12ab_progress UPDATE at = at - toIntervalHour(3) WHERE 1 SETTINGS mutations_sync = 2")
	do(sh.Alive(ctx, "second"))
	storetest.Exec(t, s, "ALTER TABLE replay_12ab_progress UPDATE at = at - toIntervalHour(1) WHERE 1 SETTINGS mutations_sync = 2")
	do(sh.Alive(ctx, "first"))
	do(sh.FinishPartition(ctx, 3, []uuid.UUID{uuid.New()}, "three"))
	generation, err := sh.Generation(ctx)
	if err != nil || generation != 1 {
		t.Errorf("generation %d, %v", generation, err)
	}
	const hour = 60 * 60 * 1000
	state, err := sh.State(ctx)
	do(err)
	var owners []string
	for _, o := range state.Owners {
		owners = append(owners, o.Name)
	}
	if diff := cmp.Diff([]string{"first", "second"}, owners); diff != "" {
		t.Fatal(diff)
	}
	near := func(what string, got, hours store.Time) {
		t.Helper()
		if got < hours*hour || got > hours*hour+hour/2 {
			t.Errorf("%s was %d ms ago, want %d h", what, got, hours)
		}
	}
	near("the begin", state.Now-state.Began, 4)
	near("the last note", state.Now-state.Heard, 0)
	near("the first owner's begin", state.Now-state.Owners[0].Since, 4)
	near("the first owner's sign of life", state.Now-state.Owners[0].Seen, 0)
	near("the second owner's sign of life", state.Now-state.Owners[1].Seen, 1)
	if want := map[int32]string{3: "three"}; !state.Recorded || state.Detail != `it's a \ detail` || state.Generation != 1 || cmp.Diff(want, state.Finished) != "" {
		t.Errorf("%+v", state)
	}
	do(sh.End(ctx, "first"))

	// Others: one that is being taken away, one of which this binary can make nothing.
	do(s.Shadow("34cd").Create(ctx))
	storetest.Exec(t, s, "CREATE TABLE replay_56ef_progress (partition Int32) ENGINE = MergeTree ORDER BY tuple()")
	list, err := s.Shadows(ctx)
	do(err)
	found := map[string]string{}
	for _, r := range list {
		owner := ""
		for _, o := range r.Owners {
			owner += o.Name
		}
		found[r.Run] = strings.TrimSpace(strings.Join([]string{owner, map[bool]string{true: "remains"}[r.Remains], map[bool]string{true: "recorded"}[r.Recorded]}, " "))
		if r.Made == 0 {
			t.Errorf("run %s was never made", r.Run)
		}
	}
	if diff := cmp.Diff(map[string]string{"12ab": "second  recorded", "34cd": "remains", "56ef": ""}, found); diff != "" {
		t.Error(diff)
	}

	// An erasure takes all away, and whoever works on one learns of it.
	if n, err := s.DropShadows(ctx); err != nil || n == 0 {
		t.Errorf("%d tables dropped, %v", n, err)
	}
	for _, err := range []error{sh.Alive(ctx, "second"), sh.End(ctx, "second"), sh.FinishPartition(ctx, 4, nil, "")} {
		if !errors.Is(err, store.ErrShadowGone) {
			t.Errorf("a note into nothing: %v", err)
		}
	}
	if list, err := s.Shadows(ctx); err != nil || len(list) > 0 {
		t.Errorf("%+v, %v", list, err)
	}
	do(sh.Drop(ctx))
}
