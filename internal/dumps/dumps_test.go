package dumps

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func readDump(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// listing writes a dump as lines, of statistics only how many of which type.
func listing(t testing.TB, d *Dump) string {
	t.Helper()
	var out strings.Builder
	fmt.Fprintf(&out, "%s user %q name %q unused %d\n", d.ClientVersion(), d.UserID, d.UserName, d.Unused)
	for _, c := range d.Connections {
		fmt.Fprintf(&out, "connection %s remote %q ufrags %v %v out %v in %v\n", c.ID, c.RemoteID, c.LocalUfrags, c.RemoteUfrags, c.Outbound, c.Inbound)
	}
	for _, m := range d.Messages {
		fields := string(m.Fields)
		if m.EventType == "stats" {
			var report struct{ Stats []struct{ Type string } }
			if err := json.Unmarshal(m.Fields, &report); err != nil {
				t.Fatal(err)
			}
			var types []string
			for _, entry := range report.Stats {
				types = append(types, entry.Type)
			}
			slices.Sort(types)
			fields = strings.Join(types, " ")
		}
		fmt.Fprintf(&out, "%.1f %s %s %s\n", m.AtMs, m.EventType, m.ConnectionID, fields)
	}
	return out.String()
}

func TestMessagesOfDumps(t *testing.T) {
	for _, name := range []string{"internals-new-alice.json", "internals-new-bob.json", "internals-old.json", "rtcstats-2-jitsi.jsonl", "rtcstats-3.jsonl"} {
		t.Run(name, func(t *testing.T) {
			d, err := Parse(readDump(t, name))
			if err != nil {
				t.Fatal(err)
			}
			got := listing(t, d)
			golden := filepath.Join("testdata", name+".golden")
			if os.Getenv("UPDATE_GOLDEN") != "" {
				if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// By hand from the dumps: what the listing must say of set-up, failures and who is who.
func TestFactsOfDumps(t *testing.T) {
	for _, tc := range []struct {
		name string
		want []string
	}{
		{"internals-new-alice.json", []string{
			`1790000000712.5 fabricSetup 21-1 {"delay":712,"iceConnectivityDelay":502,"iceGatheringDelay":500}`,
			`iceDisruptionEnd 21-1 {"currIceConnectionState":"connected","delay":600,`, "1790000007000.5 fabricTerminated 21-1", "1790000007000.5 userLeft",
			"ufrags [AAAA] [BBBB] out [1001 1002] in [2001 2002]",
		}},
		// The log says 2:13:20 PM where the statistics are of 13:13 UTC: one hour east.
		{"internals-old.json", []string{
			"webrtc-internals/1", `1790003602000.0 fabricSetup 11-1 {"delay":2000,"iceConnectivityDelay":1000}`, "1790003606000.0 fabricDropped 11-1",
			`1790003599500.0 fabricSetupFailed  {"function":"getUserMedia","message":"NotAllowedError: Permission denied","messageType":"domError","name":"NotAllowedError","reason":"MediaConfigError"}`,
		}},
		{"rtcstats-2-jitsi.jsonl", []string{
			`rtcstats-jitsi/2 user "c0ffee01" name "Carol C."`, `fabricSetupFailed PC_0 {"delay":50,"function":"createOffer","message":"OperationError: no codecs",`,
			`fabricSetup PC_1 {"delay":370,"iceConnectivityDelay":300,"iceGatheringDelay":138}`, "iceDisruptionStart PC_1", "fabricDropped PC_1",
			`ssrcMap PC_1 {"ssrcData":[{"cname":"JVB1name","mediaType":"audio","msid":"stream audio","reportType":"local","ssrc":"501","streamType":"inbound"}]}`,
		}},
		{"rtcstats-3.jsonl", []string{
			`rtcstats/3 user "dave"`, `connection PC_7 remote "erin"`, "1790010805100.0 iceConnectionDisruptionStart PC_7", `1790010815100.0 iceFailed PC_7 {"currIceConnectionState":"failed","delay":15100,`,
			`fabricSetup PC_8 {"delay":400,"iceConnectivityDelay":300}`, "1790010822000.0 stats PC_8 codec inbound-rtp transport", "1790010823000.0 stats PC_8 codec inbound-rtp\n",
		}},
	} {
		d, err := Parse(readDump(t, tc.name))
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		got := listing(t, d)
		for _, want := range tc.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: %q is missing in\n%s", tc.name, want, got)
			}
		}
	}
}

// A delta-compressed report is completed, and numbers become names.
func TestReportsAreCompleted(t *testing.T) {
	for _, name := range []string{"rtcstats-2-jitsi.jsonl", "rtcstats-3.jsonl"} {
		d, err := Parse(readDump(t, name))
		if err != nil {
			t.Fatal(err)
		}
		reports := 0
		for _, m := range d.Messages {
			if m.EventType != "stats" {
				continue
			}
			reports++
			var report struct{ Stats []map[string]any }
			if err := json.Unmarshal(m.Fields, &report); err != nil {
				t.Fatal(err)
			}
			for _, entry := range report.Stats {
				if entry["type"] != "inbound-rtp" {
					continue
				}
				if entry["kind"] != "audio" || entry["packetsReceived"] != float64(50*reports) || entry["bytesReceived"] != float64(4000*reports) ||
					entry["packetsLost"] != 0.0 || entry["timestamp"] != m.AtMs || entry["ssrc"] == nil {
					t.Errorf("%s: report %d has %v", name, reports, entry)
				}
			}
		}
		if reports < 3 {
			t.Errorf("%s: %d reports", name, reports)
		}
	}
}

func TestBody(t *testing.T) {
	for _, tc := range []struct {
		m    Message
		want string
	}{
		{message(1.5, "userJoined", "", nil), `{"callstatsVersion":"v","deviceID":"d","eventType":"userJoined","localID":"u","timestamp":1.5}`},
		{message(2, "x", "PC", map[string]any{"a": 1}), `{"callstatsVersion":"v","connectionID":"PC","deviceID":"d","eventType":"x","localID":"u","remoteID":"r","timestamp":2,"a":1}`},
	} {
		remote := ""
		if tc.m.ConnectionID != "" {
			remote = "r"
		}
		got, err := tc.m.Body("u", "d", remote, "v")
		if err != nil || string(got) != tc.want {
			t.Errorf("%s, %v, want %s", got, err, tc.want)
		}
	}
}

func TestForeignAndBrokenFiles(t *testing.T) {
	alice := string(readDump(t, "internals-new-alice.json"))
	jitsi := string(readDump(t, "rtcstats-2-jitsi.jsonl"))
	series := func(begin, end, values string) string {
		return fmt.Sprintf(`{"PeerConnections":{"1":{"stats":{"a-b":{"startTime":%q,"endTime":%q,"values":%q}}}}}`, begin, end, values)
	}
	for name, tc := range map[string]struct{ text, want string }{
		"nothing":                  {"", "neither"},
		"a picture":                {"\x89PNG\r\n\x1a\n", "neither"},
		"other JSON":               {`{"name":"callscope"}`, "neither"},
		"an array of numbers":      {"[1,2,3]\n", "neither"},
		"half a dump":              {alice[:len(alice)/2], "not complete"},
		"half a line":              {jitsi[:len(jitsi)-20], "not complete"},
		"broken JSON":              {`{"PeerConnections":{]}`, "no JSON at byte"},
		"PeerConnections of text":  {`{"PeerConnections":"none"}`, "holds a JSON string"},
		"no PeerConnections":       {`{"PeerConnections":{},"getUserMedia":[]}`, "no getStats report and no event"},
		"a null PeerConnection":    {`{"PeerConnections":{"1":null}}`, "no getStats report and no event"},
		"values that are no list":  {series("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "x"), "the values of a-b"},
		"times that are none":      {series("yesterday", "today", "[1]"), "the times of a-b"},
		"times before the web":     {series("1970-01-01T00:00:00Z", "1970-01-01T00:00:01Z", "[1]"), "no getStats report"},
		"the end before the begin": {series("2026-01-02T00:00:00Z", "2026-01-01T00:00:01Z", "[1]"), "no getStats report"},
		"only a head":              {`{"fileFormat":2}` + "\n", "no getStats report and no event"},
		"no times":                 {`["create","PC_0",{},null]` + "\n" + `["close","PC_0",null,"NaN"]` + "\n", "no getStats report and no event"},
		"a report that is none":    {`["getstats","PC_0",[1],1790000000000]` + "\n", "line 1: a getStats report"},
		"a method of no kind":      {"RTCStatsDump\n[{},\"PC_0\",{},5]\n", "line 2: its first value is no method"},
	} {
		d, err := Parse([]byte(tc.text))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v %v, want %q", name, d, err, tc.want)
		}
	}
}

// What has no time is left out and counted; the rest is read.
func TestEntriesWithoutATimeAreCounted(t *testing.T) {
	text := `["create","PC_0",{},1790000000000]
["oniceconnectionstatechange","PC_0","checking","NaN"]
["oniceconnectionstatechange","PC_0","connected",12]
["getstats","PC_0",{"a":7},1790000001000]
`
	d, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if d.Unused != 4 || len(d.Messages) != 3 {
		t.Errorf("%d unused and %d messages, want 4 and 3:\n%s", d.Unused, len(d.Messages), listing(t, d))
	}
}

func TestRead(t *testing.T) {
	pack := func(text string) []byte {
		var out bytes.Buffer
		w := gzip.NewWriter(&out)
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	packed := pack("some text, some text, some text")
	for name, tc := range map[string]struct {
		in         []byte
		want, fail string
	}{
		"plain":       {[]byte("text"), "text", ""},
		"empty":       {nil, "", ""},
		"packed":      {packed, "some text, some text, some text", ""},
		"half packed": {packed[:len(packed)-6], "", "not complete"},
		"no gzip":     {[]byte("\x1f\x8bnothing"), "", "unpacking"},
	} {
		got, err := Read(bytes.NewReader(tc.in))
		if tc.fail == "" && (err != nil || string(got) != tc.want) || tc.fail != "" && (err == nil || !strings.Contains(err.Error(), tc.fail)) {
			t.Errorf("%s: %q, %v, want %q %q", name, got, err, tc.want, tc.fail)
		}
	}
	if _, err := Read(endless{}); err == nil || !strings.Contains(err.Error(), "more than 256 MiB") {
		t.Errorf("an endless file: %v", err)
	}
}

// endless is a file of zeros.
type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

func TestStates(t *testing.T) {
	for in, want := range map[string]string{
		"connected": "connected", `"closed"`: "closed", "ICEConnectionStateConnected": "connected", "kICEConnectionStateFailed": "failed",
		"checking => completed": "completed", "SignalingStateHaveLocalOffer": "have-local-offer", "have-remote-offer": "have-remote-offer", "": "",
	} {
		if got := state(in); got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
}

func TestTimesOfInternals(t *testing.T) {
	for in, want := range map[string]struct {
		ms    float64
		zoned bool
	}{
		`"1790000000712.5"`:            {1790000000712.5, true},
		`1790000000712`:                {1790000000712, true},
		`"2026-09-21T14:13:20.5Z"`:     {1790000000500, true},
		`"9/21/2026, 2:13:20 PM"`:      {1790000000000, false},
		`"9/21/2026, 2:13:20\u202fPM"`: {1790000000000, false},
		`"21.9.2026, 14:13:20"`:        {1790000000000, false},
		`"21/09/2026, 14:13:20"`:       {1790000000000, false},
		`"soon"`:                       {0, true},
		`{}`:                           {0, true},
	} {
		if ms, zoned := internalsTime(json.RawMessage(in)); ms != want.ms || zoned != want.zoned {
			t.Errorf("%s is %f %v, want %v", in, ms, zoned, want)
		}
	}
}

// The zone is told to the quarter hour, and to the hour where the first polls are no longer there.
func TestZones(t *testing.T) {
	for name, tc := range map[string]struct {
		eventMs, pollMs float64
		polls           int
		want            float64
	}{
		"no statistics":               {1790000000000, 0, 0, 1790000000000},
		"the same":                    {1790000000000, 1790000002000, 5, 1790000000000},
		"one hour east":               {1790003600000, 1790000002000, 5, 1790000000000},
		"Kathmandu":                   {1790000000000 + 345*60_000, 1790000002000, 5, 1790000000000},
		"west":                        {1790000000000 - 5*3_600_000, 1790000002000, 5, 1790000000000},
		"23 minutes before the first": {1790003600000, 1790000000000 + 23*60_000, 1000, 1790000000000},
		"a day before":                {1790000000000, 1790086400000, 5, 1790000000000},
	} {
		events := []entry{{atMs: 0}, {atMs: tc.eventMs}}
		moveZone(events, polled{tc.pollMs, tc.polls})
		if events[1].atMs != tc.want || events[0].atMs != 0 {
			t.Errorf("%s: %f, want %f", name, events[1].atMs, tc.want)
		}
	}
}

// A description whose unchanged sections are left out says less than it seems to.
func TestShortenedDescriptions(t *testing.T) {
	for in, want := range map[string]string{
		`{"type":"offer","sdp":"v=0\r\nm=audio 9\r\n"}`:   "v=0\r\nm=audio 9\r\n",
		`[{"type":"offer","sdp":"v=0\r\nm=audio 9\r\n"}]`: "v=0\r\nm=audio 9\r\n",
		`"type: offer, sdp: v=0\r\nm=audio 9\r\n"`:        "v=0\r\nm=audio 9\r\n",
		`"{\"sdp\":\"v=0\"}"`:                             "v=0",
		`{"type":"offer","sdp":"v=0\r\nm=\r\n"}`:          "",
		`{"type":"offer","sdp":"v=\r\nm=audio 9\r\n"}`:    "",
		`[]`: "", `null`: "", `7`: "", `"none"`: "",
	} {
		if got := sdpOf(json.RawMessage(in)); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

// FuzzParse: whatever the bytes are, there is an error or a list of messages in order, each a JSON object.
func FuzzParse(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := Parse(data)
		if err != nil {
			if d != nil || err.Error() == "" || errors.Is(err, errors.ErrUnsupported) {
				t.Fatalf("%v with %v", err, d)
			}
			return
		}
		last := 0.0
		if len(d.Messages) < 2 || d.Messages[0].EventType != "userJoined" || d.Messages[len(d.Messages)-1].EventType != "userLeft" {
			t.Fatal(listing(t, d))
		}
		for _, m := range d.Messages {
			body, err := m.Body("u", "d", "", d.ClientVersion())
			if err != nil || !json.Valid(body) || !plausible(m.AtMs) || m.AtMs < last {
				t.Fatalf("%v: %s at %f after %f: %s", err, m.EventType, m.AtMs, last, body)
			}
			last = m.AtMs
		}
	})
}
