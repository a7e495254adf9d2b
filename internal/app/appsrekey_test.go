package app

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/callscope/callscope/internal/erasures"
	"github.com/callscope/callscope/internal/stream"
)

// eraseSomebody writes an erasure as `callscope erase` does, with the test's master key.
func eraseSomebody(t *testing.T, broker []string) {
	t.Helper()
	_, addr, _ := strings.Cut(broker[1], "=")
	client, err := stream.Open(stream.Config{Brokers: []string{addr}, Partitions: 2}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	key, err := erasures.NewKey(testMasterKey)
	if err != nil {
		t.Fatal(err)
	}
	set, err := erasures.NewSet(client, key, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := set.Put(t.Context(), key.Erasure("77", "carol", 1, nil)); err != nil {
		t.Fatal(err)
	}
}

// TestAppsRekey changes the master key while a gateway with both keys serves.
func TestAppsRekey(t *testing.T) {
	c := cliTest{t, registryOf(t)}
	c.ok("apps", "create", "--id", "77")
	const newMasterKey = "the new master key of the tests, long"
	broker := c.args[:2]
	both := cliTest{t, append([]string{"--set", "registry.master_key=" + newMasterKey, "--set", "registry.previous_master_key=" + testMasterKey, "--log-level", "info"}, broker...)}
	after := cliTest{t, append([]string{"--set", "registry.master_key=" + newMasterKey, "--log-level", "info"}, broker...)}
	code := c.ok("token", "mint", "--app", "77", "--user", "alice")

	if exit, _, stderr := after.try("apps", "rekey"); exit != exitFailed || !strings.Contains(stderr, "registry.previous_master_key") {
		t.Errorf("without the previous key: %d %s", exit, stderr)
	}
	eraseSomebody(t, broker)
	if exit, _, stderr := both.try("apps", "rekey"); exit != exitFailed || !strings.Contains(stderr, "registry.erasure_key") {
		t.Errorf("with erasures under the old master key: %d %s", exit, stderr)
	}
	both.args = append(both.args, "--set", "registry.erasure_key="+testMasterKey)
	g := both.gateway()
	both.within2s(g, "before", "alice@77", code, "", true)
	if out := both.ok("apps", "rekey"); out != "secrets encrypted with the new master key: 1; none is left under another\n" {
		t.Errorf("printed %s", out)
	}
	both.within2s(g, "after", "alice@77", code, "", true)
	g.stop()
	var again struct{ Rewritten int }
	if both.json(&again, "apps", "rekey"); again.Rewritten != 0 {
		t.Errorf("%d were rewritten again", again.Rewritten)
	}
	alone := after.gateway()
	after.within2s(alone, "the new key alone", "alice@77", after.ok("token", "mint", "--app", "77", "--user", "alice"), "", true)
	alone.stop()

	if exit, _, stderr := c.try("apps", "list", "--set", "registry.master_key=", "--set", "registry.previous_master_key="+newMasterKey); exit != exitConfiguration || !strings.Contains(stderr, "registry.previous_master_key") {
		t.Errorf("a previous key alone: %d %s", exit, stderr)
	}
	for _, text := range []string{g.stderr.String(), alone.stderr.String()} {
		if strings.Contains(text, newMasterKey) || strings.Contains(text, testMasterKey) || strings.Contains(text, "conflict") {
			t.Errorf("the log of a gateway:\n%s", text)
		}
	}
}
