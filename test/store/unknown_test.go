package store

import (
	"os"
	"path/filepath"
	"testing"
)

// TestUnknownApp: every command that takes an app says that it does not know one, and makes nothing of it.
func TestUnknownApp(t *testing.T) {
	s := start(t, filepath.Join(t.TempDir(), "engine"))
	key := filepath.Join(t.TempDir(), "master")
	if err := os.WriteFile(key, []byte("a-master-key-of-a-test-0123456789abcdef"), 0o600); err != nil {
		t.Fatal(err)
	}
	registry := append([]string{"--set", "registry.master_key_file=" + key, "--log-level", "error"}, s.kafka()...)
	const nobody, bad = "987654321", "1'; DROP"
	for _, args := range [][]string{
		{"apps", "show", nobody}, {"apps", "update", nobody, "--name", "x"}, {"apps", "delete", nobody}, {"apps", "revoke-tokens", nobody},
		{"apps", "secret", "add", nobody}, {"apps", "secret", "revoke", nobody, "x"}, {"apps", "key", "revoke", nobody, "x"},
		{"apps", "origin", "add", nobody, "https://app.example.test"}, {"apps", "origin", "remove", nobody, "https://app.example.test"},
		{"token", "mint", "--app", nobody, "--user", "alice"},
	} {
		refused(t, 1, "callscope: app "+nobody+": the registry has no such app\n$", append(args, registry...)...)
	}
	refused(t, 1, "(?i)unknown app", append([]string{"replay", "--from", "2026-01-01", "--to", "2027-01-01", "--dry-run", "--app", nobody, "--log-level", "error"}, s.servers()...)...)
	for _, args := range [][]string{{"apps", "create", bad}, {"apps", "show", bad}, {"token", "mint", "--app", bad, "--user", "alice"}} {
		code, _, stderr := run(t, append(args, registry...)...)
		if code == 0 || stderr == "" {
			t.Errorf("%v: exit code %d: %s", args, code, stderr)
		}
	}
	if out := succeeded(t, append([]string{"apps", "list", "--output", "json"}, registry...)...); out != "[]\n" {
		t.Errorf("there are apps: %s", out)
	}
}
