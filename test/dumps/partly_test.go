package dumps

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/callscope/callscope/internal/stream"
	"github.com/callscope/callscope/internal/stream/streamtest"
	"github.com/callscope/callscope/test/chaintest"
)

// longDump writes an rtcstats dump of a call with so many reports. The last one, the connection's close and with it the
// participant's end have the same time.
func longDump(t *testing.T, dir, name string, reports int) string {
	t.Helper()
	begin := time.Now().Add(-48 * time.Hour).Truncate(time.Second).UnixMilli()
	var out strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&out, format+"\n", args...) }
	line(`{"fileFormat": 2, "userAgent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/138.0.0.0 Safari/537.36"}`)
	line(`["create", "PC_0", {"iceServers": []}, %d, 1]`, begin)
	line(`["oniceconnectionstatechange", "PC_0", "checking", %d, 2]`, begin+100)
	line(`["oniceconnectionstatechange", "PC_0", "connected", %d, 3]`, begin+400)
	at := begin
	for n := 1; n <= reports; n++ {
		at = begin + int64(n)*1000
		line(`["getstats", "PC_0", {"in": {"type": "inbound-rtp", "timestamp": 0, "kind": "audio", "ssrc": 501, "packetsReceived": %d, "packetsLost": 0, "bytesReceived": %d}, "timestamp": %d}, %d, %d]`,
			50*n, 4000*n, at, at, n+3)
	}
	line(`["close", "PC_0", null, %d, %d]`, at, reports+4)
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(out.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// ofSize is a longDump that becomes so many records. Each report is one.
func ofSize(t *testing.T, dir, name string, records int) string {
	t.Helper()
	count := func(path string) int {
		out, code := run(t, nil, "import-dump", path, "--app", appID, "--dry-run")
		found := regexp.MustCompile(`: (\d+) records would be written`).FindStringSubmatch(out)
		if code != 0 || found == nil {
			t.Fatalf("a dry run: %d\n%s", code, out)
		}
		n, err := strconv.Atoi(found[1])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	path := longDump(t, dir, name, records-count(longDump(t, dir, name, 1))+1)
	if n := count(path); n != records {
		t.Fatalf("%s becomes %d records, want %d", name, n, records)
	}
	return path
}

// wrote watches what an import writes. Nobody else appends several records at a time in these tests: ticks come alone.
func wrote(at func(n int32)) kfake.Fault {
	var n int32
	var seen kmsg.Request // the broker asks more than once about a request
	return kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: stream.TopicRaw, Count: -1, Err: kerr.TopicAuthorizationFailed, Observe: true, When: func(r kmsg.Request) bool {
		for _, topic := range r.(*kmsg.ProduceRequest).Topics {
			for _, p := range topic.Partitions {
				var batch kmsg.RecordBatch
				if batch.ReadFrom(p.Records) == nil && batch.NumRecords > 1 {
					if r != seen {
						seen = r
						n++
						at(n)
					}
					return true
				}
			}
		}
		return false
	}}
}

// refused makes the broker refuse what the import writes from its nth request on.
func refused(b *streamtest.Broker, from int32, also func()) *kfake.FaultHandle {
	var n int32
	f := wrote(func(i int32) { n = i })
	watch := f.When
	f.Observe = false
	f.When = func(r kmsg.Request) bool {
		if !watch(r) || n < from {
			return false
		}
		also()
		return true
	}
	return b.Cluster().Fault(f)
}

// process is a command that is under way.
type process struct {
	cmd      *exec.Cmd
	out, err bytes.Buffer
}

var uids = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)

func (c *chain) importing(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.CommandContext(t.Context(), chaintest.Binary, append(append([]string{"import-dump", "--app", appID}, c.flags...), args...)...)}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.err
	return p
}

// run starts it, hands it to begun, and returns its exit code, -1 for killed.
func (p *process) run(t *testing.T, begun func(*os.Process)) int {
	t.Helper()
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	begun(p.cmd.Process)
	_ = p.cmd.Wait() // how it ended is in its state
	return p.cmd.ProcessState.ExitCode()
}

// visible is what all views show of an app's conference, but for what names rows, because another app has other uids, and
// for how often summaries were written, because one that is cut off is shown meanwhile.
// missing names a view that shows nothing of it yet.
func (c *chain) visible(t *testing.T, app, conference string, views ...string) (all map[string][][]any, missing string) {
	t.Helper()
	columns := map[string][]string{}
	for _, r := range chaintest.MustQuery(t, c.engine, "SELECT table, name FROM system.columns WHERE database = 'callscope' ORDER BY position").Records() {
		if name := r.Text("name"); !strings.HasSuffix(name, "_uid") && !strings.HasSuffix(name, "_uids") && name != "app_id" && name != "device_id" && name != "revision" {
			columns[r.Text("table")] = append(columns[r.Text("table")], name)
		}
	}
	all = map[string][][]any{}
	for _, view := range views {
		all[view] = chaintest.MustQuery(t, c.engine, fmt.Sprintf("SELECT %s FROM %s WHERE app_id = '%s' AND conference_id = '%s' ORDER BY ALL",
			strings.Join(columns[view], ", "), view, app, conference)).Rows
		for _, row := range all[view] {
			for i, v := range row {
				if text, ok := v.(string); ok { // the reasons of an outcome name participants
					row[i] = uids.ReplaceAllString(text, "uid")
				}
			}
		}
		if len(all[view]) == 0 {
			return all, fmt.Sprintf("%s of %s in app %s is empty", view, conference, app)
		}
	}
	return all, ""
}

// whole waits until an app's conference is the same as that of the other app, which nothing interrupted.
func (c *chain) whole(t *testing.T, conference string) {
	t.Helper()
	c.same(t, conference, "conferences", "participants", "fabrics", "streams", "samples", "events")
}

func (c *chain) same(t *testing.T, conference string, views ...string) {
	t.Helper()
	pass(t, c.client, 20*time.Second)
	chaintest.Eventually(t, 90*time.Second, conference+" being over", func() string {
		rows := fmt.Sprint(chaintest.MustQuery(t, c.engine, "SELECT app_id, state FROM conferences WHERE conference_id = '"+conference+"' ORDER BY ALL").Rows)
		if !regexp.MustCompile(`^\[\[` + appID + ` (final|revised)\] \[` + otherAppID + ` (final|revised)\]\]$`).MatchString(rows) {
			return rows
		}
		// One partition's rows may come later than those of another.
		want, missing := c.visible(t, otherAppID, conference, views...)
		if missing != "" {
			return missing
		}
		got, missing := c.visible(t, appID, conference, views...)
		if missing != "" {
			return missing
		}
		return cmp.Diff(want, got)
	})
}

func (c *chain) reference(t *testing.T, args ...string) {
	t.Helper()
	if out, code := run(t, nil, append(append([]string{"import-dump", "--app", otherAppID}, c.flags...), args...)...); code != 0 {
		t.Fatalf("exit code %d:\n%s", code, out)
	}
}

// Files that are no dumps, and conferences that must not be touched, are left out and named; the others are imported.
func TestPartlyGood(t *testing.T) {
	c, _ := startOn(t)
	dir := t.TempDir()
	later := time.Since(time.UnixMilli(beginMs)).Truncate(24*time.Hour) - 48*time.Hour
	jitsi, third := moved(t, dir, "rtcstats-2-jitsi.jsonl", later), moved(t, dir, "rtcstats-3.jsonl", later)
	foreign, half := filepath.Join(dir, "foreign.json"), filepath.Join(dir, "half.json")
	data, err := os.ReadFile(filepath.Join(testdata, "internals-new-alice.json"))
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{foreign: `{"a":1}`, half: string(data[:len(data)/2])} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	conferences := func(app string) string {
		return fmt.Sprint(chaintest.MustQuery(t, c.engine, "SELECT conference_id FROM conferences WHERE app_id = '"+app+"' ORDER BY ALL").Rows)
	}

	// One call with a bad file is not that call: nothing of it is written.
	if out := c.importDump(t, 1, foreign, jitsi, "--conference", "room"); !strings.Contains(out, "foreign.json") || !strings.Contains(out, "nothing was written") {
		t.Error(out)
	}
	mixed := []string{foreign, jitsi, half, third}
	if out := c.importDump(t, 5, append(mixed, "--dry-run")...); strings.Count(out, "records would be written") != 2 || !strings.Contains(out, "2 conferences are imported") {
		t.Error(out)
	}
	out := c.importDump(t, 5, mixed...)
	for _, want := range []string{`conference "rtcstats-2-jitsi"`, `conference "rtcstats-3"`, "callscope: 2 conferences are imported, others were left out: reading ", "foreign.json: it is neither", "half.json: it ends in the middle"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
	// While they are open, other calls of these ids are left out; what goes on is not in their way.
	chaintest.Eventually(t, time.Minute, "both being shown", func() string { return cmp.Diff("[[rtcstats-2-jitsi] [rtcstats-3]]", conferences(appID)) })
	other := filepath.Join(t.TempDir(), "rtcstats-3.jsonl")
	if text, err := os.ReadFile(jitsi); err != nil || os.WriteFile(other, text, 0o600) != nil {
		t.Fatal("copying a file failed")
	}
	fresh := longDump(t, dir, "fresh.jsonl", 3)
	if out := c.importDump(t, 5, other, fresh); !strings.Contains(out, `"rtcstats-3" is open`) || !strings.Contains(out, `conference "fresh"`) {
		t.Error(out)
	}
	c.reference(t, jitsi, third, fresh)
	for _, conference := range []string{"rtcstats-2-jitsi", "rtcstats-3", "fresh"} {
		c.whole(t, conference)
	}
	before := c.everything(t)
	if out := c.importDump(t, 5, mixed...); strings.Contains(out, "records written") || strings.Count(out, "an import of the same files is there") != 2 {
		t.Errorf("again:\n%s", out)
	}
	if out := c.importDump(t, 1, foreign, half); !strings.Contains(out, "nothing was written: reading ") {
		t.Error(out)
	}
	if diff := cmp.Diff(before, c.everything(t)); diff != "" {
		t.Error(diff)
	}
	if got, want := conferences(appID), "[[fresh] [rtcstats-2-jitsi] [rtcstats-3]]"; got != want {
		t.Errorf("conferences %s, want %s", got, want)
	}
}

// The first signal ends an import behind the conference that is being written; the same command brings the rest.
func TestInterruptedImport(t *testing.T) {
	c, broker := startOn(t)
	dir := t.TempDir()
	var files []string
	var names []string
	for i := range 5 {
		names = append(names, fmt.Sprintf("call-%d", i))
		reports := 100 + i
		if i == 0 {
			reports = 2500 // two requests
		}
		files = append(files, longDump(t, dir, names[i]+".jsonl", reports))
	}
	shown := func() string {
		return fmt.Sprint(chaintest.MustQuery(t, c.engine, "SELECT conference_id FROM conferences WHERE app_id = '"+appID+"' ORDER BY ALL").Rows)
	}
	p := c.importing(t, files...)
	begun := make(chan *os.Process, 1)
	watch := broker.Cluster().Fault(wrote(func(n int32) {
		if n == 1 {
			_ = (<-begun).Signal(os.Interrupt) // its exit code tells
		}
	}))
	code := p.run(t, func(process *os.Process) { begun <- process })
	watch.Remove()
	told := regexp.MustCompile(`\ninterrupted: ([1-4]) of 5 conferences were written; run the command again for the others\n$`).FindStringSubmatch(p.out.String())
	if code != 130 || p.err.String() != "callscope: interrupted\n" || told == nil {
		t.Fatalf("exit code %d\n%s%s", code, &p.out, &p.err)
	}
	done := int(told[1][0] - '0')
	if n := strings.Count(p.out.String(), "records written"); n != done {
		t.Errorf("%d conferences are said to be written:\n%s", n, &p.out)
	}
	settled(t, c.client)
	if got, want := shown(), fmt.Sprintf("[[%s]]", strings.Join(names[:done], "] [")); got != want {
		t.Errorf("there are %s, want %s", got, want)
	}
	c.importDump(t, 0, files...)
	c.reference(t, files...)
	for _, name := range names {
		c.whole(t, name)
	}
	if out := c.importDump(t, 0, files...); strings.Contains(out, "records written") {
		t.Errorf("again:\n%s", out)
	}
}

// An import that was cut off in the middle of a conference, by Kafka or by its death, goes on when it is run again.
func TestCutOffImport(t *testing.T) {
	c, broker := startOn(t)
	dir := t.TempDir()
	const again = "run the command again within 30 s"

	t.Run("Kafka refuses", func(t *testing.T) {
		first, second := ofSize(t, dir, "first.jsonl", 2001), ofSize(t, dir, "second.jsonl", 4500)
		// The third request is the first one of the second conference's.
		p := c.importing(t, first, second)
		fault := refused(broker, 4, func() {})
		code := p.run(t, func(*os.Process) {})
		fault.Remove()
		if code != 5 || !strings.Contains(p.err.String(), `1 of 2 conferences were written, and of "second" a part may be; `+again) || strings.Count(p.out.String(), "records written") != 1 {
			t.Errorf("exit code %d\n%s%s", code, &p.out, &p.err)
		}
		settled(t, c.client)
		c.importDump(t, 0, first, second)
		c.reference(t, first, second)
		c.whole(t, "first")
		c.whole(t, "second")
	})
	// What has the time of the last record is written in one request, or a part would look like the whole.
	t.Run("Kafka refuses the last records", func(t *testing.T) {
		file := ofSize(t, dir, "tail.jsonl", 2002)
		p := c.importing(t, file)
		fault := refused(broker, 2, func() {})
		code := p.run(t, func(*os.Process) {})
		fault.Remove()
		if code != 5 || !strings.Contains(p.err.String(), again) {
			t.Errorf("exit code %d\n%s%s", code, &p.out, &p.err)
		}
		settled(t, c.client)
		if out := c.importDump(t, 0, file); !strings.Contains(out, "records written") {
			t.Error(out)
		}
		c.reference(t, file)
		c.whole(t, "tail")
	})
	t.Run("Kafka refuses and a signal comes", func(t *testing.T) {
		file := ofSize(t, dir, "both.jsonl", 2100)
		p := c.importing(t, file)
		begun, told := make(chan *os.Process, 1), false
		fault := refused(broker, 2, func() {
			if !told {
				told = true
				_ = (<-begun).Signal(os.Interrupt)
			}
		})
		code := p.run(t, func(process *os.Process) { begun <- process })
		fault.Remove()
		if code != 5 || !strings.Contains(p.err.String(), again) {
			t.Errorf("exit code %d\n%s%s", code, &p.out, &p.err)
		}
		c.importDump(t, 0, file)
		c.reference(t, file)
		c.whole(t, "both")
	})
	for _, late := range []bool{false, true} {
		name := map[bool]string{false: "killed", true: "killed and left for long"}[late]
		t.Run(name, func(t *testing.T) {
			conference := strings.ReplaceAll(name, " ", "-")
			file := ofSize(t, dir, conference+".jsonl", 6100)
			p := c.importing(t, file)
			begun := make(chan *os.Process, 1)
			watch := broker.Cluster().Fault(wrote(func(n int32) {
				if n == 2 {
					_ = (<-begun).Kill()
				}
			}))
			code := p.run(t, func(process *os.Process) { begun <- process })
			watch.Remove()
			if code != -1 || p.out.Len() > 0 {
				t.Fatalf("exit code %d\n%s%s", code, &p.out, &p.err)
			}
			settled(t, c.client)
			if late {
				pass(t, c.client, 60*time.Second)
				c.ended(t, conference)
				if out := c.importDump(t, 1, file); !strings.Contains(out, "--again") || !strings.Contains(out, "nothing was written") {
					t.Error(out)
				}
				pass(t, c.client, 360*time.Second)
				settled(t, c.client)
				c.importDump(t, 0, file, "--again")
			} else {
				c.importDump(t, 0, file)
			}
			c.reference(t, file)
			if late {
				// Summaries stay those of the part where it has as many revisions as the whole.
				c.same(t, conference, "samples", "events")
			} else {
				c.whole(t, conference)
			}
		})
	}
}
