package replay

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/callscope/callscope/internal/app"
	"github.com/callscope/callscope/internal/store/storetest"
	"github.com/callscope/callscope/internal/stream/streamtest"
)

// command runs callscope in this process against a chain.
func command(t testing.TB, c *chain, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = app.Main(withSettings(t, c, storetest.Addr(t), args), strings.NewReader(""), &out, &errs)
	return code, out.String(), progressLine.ReplaceAllString(errs.String(), "")
}

// progressLine is what a slow machine shows besides.
var progressLine = regexp.MustCompile(`(?m)^[a-z_ ]+: \d+ of \d+ records\n`)

func withSettings(t testing.TB, c *chain, engine string, args []string) []string {
	t.Helper()
	return append(slices.Clone(args), "--log-level", "error", "--set", "kafka.brokers="+c.broker, "--set", "clickhouse.addr="+engine,
		"--set", "clickhouse.protocol=http", "--set", "clickhouse.database="+c.store.Database())
}

// process is callscope in a process of its own against a chain, whose engine is reached at an address.
func process(t testing.TB, c *chain, engine string, args ...string) (cmd *exec.Cmd, stdout, stderr *bytes.Buffer) {
	t.Helper()
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command(executable, withSettings(t, c, engine, args)...)
	cmd.Env = append(os.Environ(), commandEnv+"=1")
	stdout, stderr = &bytes.Buffer{}, &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	return cmd, stdout, stderr
}

func TestCommands(t *testing.T) {
	c := newChain(t)
	someCalls(t).write(c.client, at(60))
	c.live()
	before := allRows(t, c.store)
	dir := filepath.Join(t.TempDir(), "archive")
	from, to := at(-30).Format(time.RFC3339), at(100).Format(time.RFC3339)
	for _, test := range []struct {
		args   string
		code   int
		stdout string // patterns
		stderr string
	}{
		{"replay --from " + from + " --to " + to + " --dry-run", 0, `(?s)\d+ raw records, 13 conferences of the range\n.*conferences +0 +0 +0.*0 rows differ in total\ndry run: nothing was written\n`, ``},
		{"replay --from " + from + " --to " + to, 0, `(?s).*nothing to write\n`, ``},
		{"replay --from " + from, 2, ``, `callscope: --to is missing: give a day or a time.*\n`},
		{"replay --from yesterday --to " + to, 2, ``, `callscope: --from: "yesterday" is neither a day nor a time.*\n`},
		{"replay --from " + to + " --to " + from, 2, ``, `callscope: the range is empty: --from .* is not before --to .*\n`},
		{"replay --from " + from + " --to " + to + " --rate -1", 2, ``, `callscope: --rate: -1 records a second are not possible\n`},
		{"replay --from " + from + " --to " + to + " --resume", 2, ``, `callscope: there is nothing to resume: no replay from .* was interrupted, or it was finished since\n`},
		{"replay --from " + from + " --to " + to + " --app 42", 1, ``, `callscope: unknown app: nothing of app "42" is stored, and none of \d+ raw records is its\n`},
		{"replay --from " + from + " --to " + to + " --from-files " + dir, 1, ``, `callscope: no finished archive in .*: manifest.json is missing, so the export was cut short or was never there\n`},
		{"replay --from-enriched --app 1", 2, ``, `callscope: --from-enriched loads everything that the topics hold and does not go with --app\n`},
		{"replay --from-enriched", 0, `\d+ records gave \d+ rows; 0 records were duplicates, 0 can never become rows\n`, ``},
		{"export --from " + from + " --to " + to, 2, ``, `callscope: --dir is missing: .*\n`},
		{"export --from 2001-01-01 --to 2001-01-02 --dir " + dir, 1, ``, `callscope: callscope.raw.v1 holds no record from 2001-01-01T00:00:00Z to 2001-01-02T00:00:00Z\n`},
		{"export --from " + from + " --to " + to + " --dir " + dir, 0, `\d+ raw records in \d+ files, \d+ bytes, in .*\n`, ``},
		{"export --from " + from + " --to " + to + " --dir " + dir, 1, ``, `callscope: .* already holds an archive: give another directory\n`},
		{"replay --from " + from + " --to " + to + " --from-files " + dir, 0, `(?s).*nothing to write\n`, ``},
		{"import", 2, ``, `callscope: --dir is missing: give the directory of an archive\n`},
		{"import --dir " + dir, 1, ``, `callscope: the topics are not empty: callscope.raw.v1/0 has had \d+ records: .*\n`},
	} {
		code, stdout, stderr := command(t, c, strings.Fields(test.args)...)
		if code != test.code || !regexp.MustCompile("^(?:"+test.stdout+")$").MatchString(stdout) || !regexp.MustCompile("^(?:"+test.stderr+")$").MatchString(stderr) {
			t.Errorf("callscope %s\nexit code %d, want %d\n%s%s", test.args, code, test.code, stdout, stderr)
		}
	}
	if diff := changed(before, allRows(t, c.store)); diff != "" {
		t.Error(diff)
	}
	// What differs is told by table and by column before it is written; a dry run writes nothing.
	damage(t, c)
	damaged := allRows(t, c.store)
	differences := `(?s)\d+ raw records, \d+ conferences of the range\n.*\nconferences +0 +0 +0 *\n.*\nfabrics +0 +\d+ +0 +rtt_ms \(\d+\)\nstreams +0 +0 +0 *\nsamples +[1-9]\d* +0 +0 *\n.*\nevents +0 +0 +[1-9]\d* *\n.*\n\d+ rows differ in total\n`
	for _, test := range []struct{ flag, end string }{{"--dry-run", `dry run: nothing was written\n`}, {"", `wrote \d+ rows as generation \d+\n`}} {
		code, stdout, stderr := command(t, c, strings.Fields("replay --from "+from+" --to "+to+" "+test.flag)...)
		if code != 0 || !regexp.MustCompile("^"+differences+test.end+"$").MatchString(stdout) || stderr != "" {
			t.Errorf("%s of damaged tables: exit code %d\n%s%s", test.flag, code, stdout, stderr)
		}
		if diff := changed(damaged, allRows(t, c.store)); diff != "" && test.flag != "" {
			t.Errorf("the dry run wrote: %s", diff)
		}
	}
	if diff := changed(before, allRows(t, c.store)); diff != "" {
		t.Error(diff)
	}
	unmade := &chain{t: t, broker: streamtest.StartBroker(t), store: c.store}
	if code, _, stderr := command(t, unmade, "import", "--dir", dir); code != 1 || !regexp.MustCompile(`callscope\.\w+\.v1`).MatchString(stderr) {
		t.Errorf("importing into a cluster without topics: %d, %s", code, stderr)
	}
	unmade.broker = "127.0.0.1:1"
	if code, _, stderr := command(t, unmade, "import", "--dir", dir); code != 4 {
		t.Errorf("importing into no cluster: %d, %s", code, stderr)
	}
}
