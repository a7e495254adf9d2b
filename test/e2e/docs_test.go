package e2e

import (
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/callscope/callscope/test/chaintest"
)

func readDoc(t *testing.T, elements ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(append([]string{"..", "..", "docs"}, elements...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestRunbookNamesEveryMetric scrapes a running chain: what a person can see on
// a dashboard must be explained in the runbook.
func TestRunbookNamesEveryMetric(t *testing.T) {
	d := oneProcess(t)
	runbook := readDoc(t, "howto", "runbook.md")
	response, err := http.Get("http://" + d.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`(?m)^# TYPE (callscope_\S+)`).FindAllStringSubmatch(string(text), -1)
	if len(names) < 20 {
		t.Fatalf("only %d metrics are scraped: %s", len(names), text)
	}
	for _, name := range names {
		if !strings.Contains(runbook, "`"+name[1]+"`") {
			t.Errorf("docs/howto/runbook.md does not explain %s", name[1])
		}
	}
}

// TestConfigurationReference holds the documented defaults against those of the
// binary. UPDATE_GOLDEN=1 writes them.
func TestConfigurationReference(t *testing.T) {
	cmd := exec.Command(chaintest.Binary, "config")
	cmd.Env = []string{}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("callscope config: %v", err)
	}
	defaults := strings.ReplaceAll(string(out), " # default", "")
	page := readDoc(t, "reference", "configuration.md")
	before, rest, found := strings.Cut(page, "```yaml\n")
	documented, after, closed := strings.Cut(rest, "```")
	if !found || !closed {
		t.Fatal("docs/reference/configuration.md has no yaml block")
	}
	if os.Getenv("UPDATE_GOLDEN") != "" {
		page = before + "```yaml\n" + defaults + "```" + after
		if err := os.WriteFile(filepath.Join("..", "..", "docs", "reference", "configuration.md"), []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(documented, defaults); diff != "" {
		t.Errorf("docs/reference/configuration.md is not what `callscope config` prints (-documented +printed); UPDATE_GOLDEN=1 go test ./test/e2e writes it:\n%s", diff)
	}
}
