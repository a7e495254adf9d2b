package replay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/callscope/callscope/internal/replay"
	"github.com/callscope/callscope/internal/store/storetest"
	"github.com/callscope/callscope/internal/stream/streamtest"
)

// runID finds the one run that has tables.
func runID(t testing.TB, c *chain) string {
	t.Helper()
	found := map[string]bool{}
	id := ""
	for _, table := range leftovers(t, c) {
		id = strings.Split(table[0].(string), "_")[1]
		found[id] = true
	}
	if len(found) != 1 {
		t.Fatalf("runs with tables: %v, want one", found)
	}
	return id
}

// expect runs a command and checks its exit code and what it says, by patterns of the whole.
func expect(t testing.TB, c *chain, code int, stdout, stderr string, args ...string) {
	t.Helper()
	gotCode, out, errs := command(t, c, args...)
	if gotCode != code || !regexp.MustCompile("^(?s:"+stdout+")$").MatchString(out) || !regexp.MustCompile("^(?:"+stderr+")$").MatchString(errs) {
		t.Errorf("callscope %s\nexit code %d, want %d\n%s%s", strings.Join(args, " "), gotCode, code, out, errs)
	}
}

func replayArgs(from, to float64, more ...string) []string {
	return append([]string{"replay", "--from", stamp(from), "--to", stamp(to)}, more...)
}

const described = `run \w{12} of conferences from \S+ to \S+ of all apps, begun at \S+, last sign of life \w+ ago, `

// While one replay runs, no other writes any of its range; dry runs and other ranges go on.
func TestSecondReplay(t *testing.T) {
	c := newChain(t)
	someCalls(t).write(c.client, at(60))
	c.live()
	before := allRows(t, c.store)
	damage(t, c)
	damaged := allRows(t, c.store)
	first := hold(t, c, newGate(t, `FULL OUTER JOIN`, false), replayArgs(-10, 30)...)
	id := runID(t, c)
	const refused = `callscope: another replay is running: ` + described + `2 of 2 partitions finished: wait until it ends, .*\n`
	// Its notes of signs of life are old, and it lives: it must say so again.
	age(t, c, time.Hour)
	streamtest.Eventually(t, time.Minute, func() string {
		_, list, _ := command(t, c, "replay", "list")
		if !regexp.MustCompile(`(?m)^` + id + ` +running +` + stamp(-10) + ` +` + stamp(30) + ` +all +no .* 2 of 2 +no$`).MatchString(list) {
			return list
		}
		return ""
	})
	for _, args := range [][]string{
		replayArgs(29, 60),
		replayArgs(29, 60, "--app", appID),
		replayArgs(-10, 30),
		replayArgs(-10, 30, "--resume"),
		{"replay", "drop", id},
	} {
		expect(t, c, 1, ``, refused, args...)
	}
	expect(t, c, 0, `.*dry run: nothing was written\n`, ``, replayArgs(-10, 30, "--dry-run")...)
	expect(t, c, 0, `.*nothing to write\n`, ``, replayArgs(70, 80)...)
	if got := runID(t, c); got != id {
		t.Errorf("run %s is there, want %s alone", got, id)
	}
	if diff := changed(damaged, allRows(t, c.store)); diff != "" {
		t.Errorf("rows that queries see have changed: %s", diff)
	}
	if code, stderr := first.end(); code != 0 {
		t.Errorf("the first replay: exit code %d, %s", code, stderr)
	}
	expect(t, c, 0, `.*`, ``, replayArgs(29, 60)...)
	if diff := changed(before, allRows(t, c.store)); diff != "" {
		t.Error(diff)
	}
	expect(t, c, 0, `run .*\n-[- ]*\n`, ``, "replay", "list")
}

// meeting is a source that keeps everybody waiting until so many runs are about to begin.
type meeting struct {
	replay.Source
	here *sync.WaitGroup
}

func (m meeting) Partitions(ctx context.Context) (int, error) {
	m.here.Done()
	m.here.Wait()
	return m.Source.Partitions(ctx)
}

// Of two that begin at the same time one at most goes on, and the other, or both, leave nothing.
func TestReplaysAtTheSameTime(t *testing.T) {
	c := newChain(t)
	someCalls(t).write(c.client, at(60))
	c.live()
	for range 4 {
		var here, group sync.WaitGroup
		here.Add(2)
		over := make(chan struct{}, 2)
		errs := make([]error, 2)
		for i, cfg := range []replay.Config{config(0, 20), config(10, 30)} {
			// Whoever may write waits until the other is refused.
			cfg.Compared = func(replay.Report) error {
				select {
				case <-over:
					return nil
				case <-time.After(time.Minute):
					return errors.New("both go on")
				}
			}
			group.Go(func() {
				_, errs[i] = replay.Run(t.Context(), cfg, meeting{replay.Topic{Client: c.client}, &here}, c.store, quiet)
				over <- struct{}{}
			})
		}
		group.Wait()
		refused := 0
		for _, err := range errs {
			switch {
			case errors.Is(err, replay.ErrRunning):
				refused++
			case err != nil:
				t.Error(err)
			}
		}
		if refused == 0 {
			t.Error("nobody was refused")
		}
		if left := leftovers(t, c); len(left) > 0 {
			t.Fatalf("tables are left: %v", left)
		}
	}
}

// A replay that was killed is in the way of others until it is resumed, dropped or begun anew, and not for ever.
func TestKilledReplay(t *testing.T) {
	c := newChain(t)
	someCalls(t).write(c.client, at(60))
	c.live()
	before := allRows(t, c.store)
	for _, test := range []struct {
		name   string
		gate   string
		writes bool
		free   func(id, advice string)
	}{
		{"resumed as the message says", `FULL OUTER JOIN`, false, func(_, advice string) {
			line := regexp.MustCompile("`callscope (replay [^`]* --resume)`").FindStringSubmatch(advice)
			if line == nil {
				t.Fatal(advice)
			}
			expect(t, c, 0, `.*wrote \d+ rows as generation \d+\n`, ``, strings.Fields(line[1])...)
		}},
		{"dropped as the message says", `FULL OUTER JOIN`, false, func(id, advice string) {
			if !strings.Contains(advice, "`callscope replay drop "+id+"`") {
				t.Error(advice)
			}
			expect(t, c, 2, ``, `callscope: there is no such replay: "0123"; .*\n`, "replay", "drop", "0123")
			expect(t, c, 0, `dropped replay `+id+`\n`, ``, "replay", "drop", id)
		}},
		{"dropped after it had begun to write", `INSERT INTO \S*\.events_rows .* WHERE n\.replay_present = 0`, true, func(id, _ string) {
			expect(t, c, 0, `dropped replay `+id+`\n`, `callscope: it may have written a part of its rows: .*\n`, "replay", "drop", id)
		}},
		{"begun anew", `FULL OUTER JOIN`, false, func(id, _ string) {
			expect(t, c, 0, `.*wrote \d+ rows as generation \d+\n`, ``, replayArgs(-10, 30)...)
		}},
		{"resumed after a dry run of the same", `FULL OUTER JOIN`, false, func(string, string) {
			expect(t, c, 0, `.*dry run: nothing was written\n`, ``, replayArgs(-10, 30, "--dry-run")...)
			expect(t, c, 2, ``, `callscope: there is nothing to resume: .*\n`, replayArgs(-10, 30, "--dry-run", "--resume")...)
			expect(t, c, 0, `.*wrote \d+ rows as generation \d+\n`, ``, replayArgs(-10, 30, "--resume")...)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			damage(t, c)
			stopAt(t, c, newGate(t, test.gate, false), os.Kill, replayArgs(-10, 30))
			id := runID(t, c)
			expect(t, c, 1, ``, `callscope: another replay is running: .*\n`, replayArgs(20, 60)...)
			age(t, c, 2*time.Minute)
			code, _, advice := command(t, c, replayArgs(20, 60)...)
			if code != 1 || !regexp.MustCompile(`^callscope: an interrupted replay is in the way: `+described+`.*\n$`).MatchString(advice) {
				t.Errorf("exit code %d, %s", code, advice)
			}
			expect(t, c, 0, `run .*\n-[- ]*\n`+id+` +interrupted .*\n`, ``, "replay", "list")
			test.free(id, advice)
			if left := leftovers(t, c); len(left) > 0 {
				t.Errorf("tables are left: %v", left)
			}
			expect(t, c, 0, `.*`, ``, replayArgs(-10, 60)...)
			if diff := changed(before, allRows(t, c.store)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// An interrupted replay is resumed with what it began with, or not at all.
func TestResumeOfAnother(t *testing.T) {
	c := newChain(t)
	someCalls(t).write(c.client, at(60))
	c.live()
	before := allRows(t, c.store)
	damage(t, c)
	dir := filepath.Join(t.TempDir(), "archive")
	expect(t, c, 0, `.*`, ``, "export", "--from", stamp(-30), "--to", stamp(60), "--dir", dir)
	stopAt(t, c, newGate(t, `FULL OUTER JOIN`, false), os.Interrupt, replayArgs(-10, 30))
	damaged := allRows(t, c.store)
	notes := "replay_" + runID(t, c) + "_progress"
	refused := func(what string, args ...string) {
		t.Helper()
		expect(t, c, 1, ``, `callscope: the interrupted replay cannot be resumed: `+what+`; its rows would be of two kinds: .*\n`, append(replayArgs(-10, 30, "--resume"), args...)...)
	}
	rewrite := func(from, to string) {
		t.Helper()
		storetest.Exec(t, c.store, fmt.Sprintf("ALTER TABLE %s UPDATE detail = replaceOne(detail, '%s', '%s') WHERE note = 'run' SETTINGS mutations_sync = 2", notes, from, to))
		if n := count(t, c.store, notes+" WHERE note = 'run' AND position(detail, '"+to+"') > 0"); n != 1 {
			t.Fatalf("what the run notes about itself has no %s: %v", from, storetest.Query(t, c.store, "SELECT detail FROM "+notes+" WHERE note = 'run'"))
		}
	}
	refused(`the source of raw records was callscope\.raw\.v1 and is files/\w+`, "--from-files", dir)
	refused(`--from-beginning was false and is true`, "--from-beginning")
	// What an older binary would have left. Live rows say what the versions are.
	version := func(table string) uint32 {
		return storetest.Query(t, c.store, "SELECT max(logic_version) FROM "+table)[0][0].(uint32)
	}
	for _, test := range []struct{ what, now, then string }{
		{`the enricher's logic version was 0 and is %d`, fmt.Sprintf(`"enricher_logic":%d,`, version("events_rows")), `"enricher_logic":0,`},
		{`the summarizer's logic version was 0 and is %d`, fmt.Sprintf(`"summarizer_logic":%d,`, version("fabrics_rows")), `"summarizer_logic":0,`},
		{`the number of partitions was 7 and is %d`, fmt.Sprintf(`"partitions":%d,`, partitions), `"partitions":7,`},
	} {
		var now uint32
		if _, err := fmt.Sscanf(test.now[strings.Index(test.now, ":")+1:], "%d", &now); err != nil {
			t.Fatal(err)
		}
		rewrite(test.now, test.then)
		refused(fmt.Sprintf(test.what, now))
		rewrite(test.then, test.now)
	}
	rewrite(`"enricher_logic":`, `"from_the_future":`)
	rewrite(`"partitions":`, `"nothing":`)
	refused(`the enricher's logic version was 0 and is \d+, the number of partitions was 0 and is 2`)
	rewrite(`"from_the_future":`, `"enricher_logic":`)
	rewrite(`"nothing":`, `"partitions":`)
	if diff := changed(damaged, allRows(t, c.store)); diff != "" {
		t.Errorf("a refused replay wrote: %s", diff)
	}
	expect(t, c, 0, `.*wrote \d+ rows as generation \d+\n`, ``, replayArgs(-10, 30, "--resume")...)
	expect(t, c, 0, `.*`, ``, replayArgs(-10, 60)...)
	if diff := changed(before, allRows(t, c.store)); diff != "" {
		t.Error(diff)
	}
}

// A process that slept while its replay was resumed or dropped ends, and writes nothing.
func TestReplayThatOverslept(t *testing.T) {
	c := newChain(t)
	someCalls(t).write(c.client, at(60))
	c.live()
	before := allRows(t, c.store)
	const writing = `INSERT INTO \S*\.fabrics_rows .* SELECT`
	for _, test := range []struct {
		name    string
		dropped bool
		stderr  string
		code    int
	}{
		{"resumed", false, `callscope: the replay was taken over by another process that resumed it\n`, 1},
		{"dropped", true, `callscope: a part of the rows is written: the tables of the replay were taken away, .*\n`, 5},
	} {
		t.Run(test.name, func(t *testing.T) {
			damage(t, c)
			sleeper := hold(t, c, newGate(t, writing, false), replayArgs(-10, 60)...)
			sleeper.signal(t, syscall.SIGSTOP)
			age(t, c, 2*time.Minute)
			var heir *held
			if test.dropped {
				expect(t, c, 0, `dropped .*`, `.*\n`, "replay", "drop", runID(t, c))
			} else {
				heir = hold(t, c, newGate(t, writing, false), replayArgs(-10, 60, "--resume")...)
			}
			damaged := allRows(t, c.store)
			sleeper.signal(t, syscall.SIGCONT)
			select {
			case <-sleeper.ended: // although its statement is not through
			case <-time.After(time.Minute):
				t.Error("it goes on")
			}
			code, stderr := sleeper.end()
			if code != test.code || !regexp.MustCompile("^"+test.stderr+"$").MatchString(progressLine.ReplaceAllString(stderr, "")) {
				t.Errorf("exit code %d, %s", code, stderr)
			}
			if diff := changed(damaged, allRows(t, c.store)); diff != "" {
				t.Errorf("it wrote: %s", diff)
			}
			if heir != nil {
				if code, stderr := heir.end(); code != 0 {
					t.Errorf("the resumed replay: exit code %d, %s", code, stderr)
				}
			} else {
				expect(t, c, 0, `.*`, ``, replayArgs(-10, 60)...)
			}
			if diff := changed(before, allRows(t, c.store)); diff != "" {
				t.Error(diff)
			}
			if left := leftovers(t, c); len(left) > 0 {
				t.Errorf("tables are left: %v", left)
			}
		})
	}
}

// What nobody resumes is named when another replay begins.
func TestForgottenReplays(t *testing.T) {
	c := newChain(t)
	someCalls(t).write(c.client, at(60))
	c.live()
	stopAt(t, c, newGate(t, `FULL OUTER JOIN`, false), os.Kill, replayArgs(-10, 30, "--dry-run", "--app", appID))
	id := runID(t, c)
	age(t, c, 50*time.Hour)
	// Notes of a binary that had others.
	storetest.Exec(t, c.store, "CREATE TABLE replay_0a1b2c_progress (partition Int32) ENGINE = MergeTree ORDER BY tuple()")
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if _, err := replay.Run(t.Context(), config(-10, 30), replay.Topic{Client: c.client}, c.store, log); err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{
		`level=WARN msg="an interrupted replay keeps its tables[^"]*" run=` + id + ` state=interrupted began=\S+ from=` + stamp(-10) + ` to=` + stamp(30) + ` app=` + appID +
			` age=50h\w+ resume="callscope replay --from \S+ --to \S+ --app ` + appID + ` --dry-run --resume" drop="callscope replay drop ` + id + `"\n`,
		`level=WARN msg="[^"]*" run=0a1b2c state=unreadable began=\S+ drop="callscope replay drop 0a1b2c"\n`,
	} {
		if !regexp.MustCompile(pattern).MatchString(out.String()) {
			t.Errorf("no %s in\n%s", pattern, &out)
		}
	}
	expect(t, c, 0, `run .*`+id+` +interrupted +\S+ +\S+ +`+appID+` +yes .*0a1b2c +unreadable .*`, ``, "replay", "list")
	expect(t, c, 0, `dropped .*\n`, ``, "replay", "drop", id)
	expect(t, c, 0, `dropped .*\n`, ``, "replay", "drop", "0a1b2c")
	if left := leftovers(t, c); len(left) > 0 {
		t.Errorf("tables are left: %v", left)
	}
}
