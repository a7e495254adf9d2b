package vocabulary

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	v1 "github.com/callscope/callscope/proto/callscope/v1"
)

const testdata = "../../../test/"

// captured is one message of a recording, read by this test alone.
type captured struct {
	file       string
	seq        int
	transport  Transport
	path       string
	conference string
	body       string
}

func (c captured) String() string { return fmt.Sprintf("%s line %d", c.file, c.seq) }

// captures reads every client message of every recording.
func captures(t testing.TB) []captured {
	t.Helper()
	files, err := filepath.Glob(testdata + "captures/*.jsonl")
	if err != nil || len(files) < 10 {
		t.Fatalf("found %d recordings: %v", len(files), err)
	}
	var all []captured
	for _, name := range files {
		if strings.HasSuffix(name, ".callbacks.jsonl") {
			continue
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, 16<<20)
		for lines.Scan() {
			var line struct {
				Seq                            int
				Kind, Method, Path, Body, Data string
			}
			if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			c := captured{file: strings.TrimSuffix(filepath.Base(name), ".jsonl"), seq: line.Seq, path: line.Path, body: line.Body}
			switch {
			case line.Kind == "ws-client":
				c.transport, c.body = WebSocket, line.Data
				all = append(all, c)
			case line.Kind == "http" && line.Method == "POST" && strings.Contains(line.Path, "/conferences/"):
				_, rest, _ := strings.Cut(line.Path, "/conferences/")
				segment, _, _ := strings.Cut(rest, "/")
				if c.conference, err = url.PathUnescape(segment); err != nil {
					t.Fatal(err)
				}
				all = append(all, c)
			case line.Kind == "http" && line.Method == "POST" && strings.HasSuffix(line.Path, "/events/precall"):
				all = append(all, c)
			}
		}
		if err := lines.Err(); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func normalise(t testing.TB, c captured) []*v1.Raw {
	t.Helper()
	m, err := Parse([]byte(c.body), c.transport)
	if err != nil {
		t.Fatalf("%s: %v", c, err)
	}
	defer m.Release()
	return m.Raw(c.conference)
}

// TestCapturesCount compares event counts, report counts and RTP entries with the expectations made from the recordings
// by other programs.
func TestCapturesCount(t *testing.T) {
	type counts struct {
		Events  map[string]int `json:"events"`
		PreCall int            `json:"precall_without_conference"`
		Stats   struct {
			Messages int `json:"messages"`
			Inbound  int `json:"inbound_rtp"`
			Outbound int `json:"outbound_rtp"`
		} `json:"stats"`
	}
	got := make(map[string]*counts)
	seen := make(map[string]bool)
	for _, c := range captures(t) {
		if key := c.file + c.path + c.body; c.transport == REST && seen[key] {
			continue // posted again by the browser
		} else {
			seen[key] = true
		}
		n := got[c.file]
		if n == nil {
			n = &counts{Events: make(map[string]int)}
			got[c.file] = n
		}
		for _, raw := range normalise(t, c) {
			switch {
			case raw.GetStats() != nil:
				n.Stats.Messages++
				for _, rtp := range raw.GetStats().Rtp {
					switch rtp.Type {
					case v1.RtpType_RTP_TYPE_INBOUND:
						n.Stats.Inbound++
					case v1.RtpType_RTP_TYPE_OUTBOUND:
						n.Stats.Outbound++
					}
				}
			default:
				name := raw.OriginalType
				if name == "" {
					name = raw.EventType
				}
				if raw.Claimed.ConferenceId == "" {
					n.PreCall++
					continue
				}
				n.Events[name]++
			}
			if raw.GetOther() != nil {
				t.Errorf("%s: %s is not typed", c, raw.EventType)
			}
		}
	}
	for file, n := range got {
		text, err := os.ReadFile(testdata + "expected/" + file + ".json")
		if err != nil {
			t.Fatal(err)
		}
		want := &counts{}
		if err := json.Unmarshal(text, want); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, n); diff != "" {
			t.Errorf("%s (-want +got):\n%s", file, diff)
		}
	}
}

// The names under which 3.24, 3.26 and 3.52 send what 3.73 and webrtc-stats call otherwise (wire 8 and 10).
var otherNames = map[string]string{
	"setupDelay": "delay", "failureDelay": "delay", "localCandidates": "localIceCandidates", "remoteCandidates": "remoteIceCandidates",
	"protocol": "transport", "transport": "protocol", "address": "ip", "ip": "address", "endpoint": "endpointInfo",
	"name": "buildName", "ver": "buildVersion", "appVer": "appVersion", "prevPair": "prevIceCandidatePair",
	"currPair": "currIceCandidatePair", "activeDevicelist": "mediaDeviceList", "deviceId": "mediaDeviceID", "groupId": "groupID",
	"overallRating": "overall", "videoQualityRating": "video", "audioQualityRating": "audio", "comments": "comment",
	"usage": "usageLabel", "mediaType": "kind", "batteryLevel": "batteryLevel", "isBatteryCharging": "batteryCharging",
	"timestamp": "timestampMs", "googActiveConnection": "selected",
}

// Objects whose members stand in the message around them.
var flattened = map[string]bool{"value": true, "feedback": true, "userQoe": true, "sdpPayload": true, "sdp": true, "domError": true, "batteryStatus": true}

// kept checks that a member of the client's message is somewhere in ours, with the same value.
func kept(key string, in any, out, extra map[string]any) error {
	if list, ok := in.([]any); in == nil || in == "" || ok && len(list) == 0 {
		return nil
	}
	if o, ok := in.(map[string]any); ok && flattened[key] {
		inner, _ := extra[key].(map[string]any)
		for k, v := range o {
			if err := kept(k, v, out, inner); err != nil {
				// members of "value" are the event's own
				if err = kept(k, v, out, extra); err != nil {
					return fmt.Errorf("%s.%w", key, err)
				}
			}
		}
		return nil
	}
	for _, name := range []string{key, otherNames[key]} {
		if got, ok := out[name]; ok {
			if err := same(in, got, extra[key]); err != nil {
				return fmt.Errorf("%s: %w", key, err)
			}
			return nil
		}
	}
	if got, ok := extra[key]; ok {
		if !reflect.DeepEqual(in, got) {
			return fmt.Errorf("%s: left over as %v, want %v", key, got, in)
		}
		return nil
	}
	if in == false || in == "false" {
		return nil // a plain bool
	}
	return fmt.Errorf("%s: %v is nowhere", key, in)
}

func same(in, got, extra any) error {
	switch in := in.(type) {
	case map[string]any:
		if text, ok := got.(string); ok { // kept as JSON
			return sameJSON(in, text)
		}
		out := got.(map[string]any)
		left, _ := extra.(map[string]any)
		for _, name := range []string{"extra", "extraJson"} {
			if text, ok := out[name].(string); ok {
				if err := json.Unmarshal([]byte(text), &left); err != nil {
					return err
				}
			}
		}
		for k, v := range in {
			if k == "type" && got.(map[string]any)["type"] == nil {
				continue // said by the field that holds it
			}
			if err := kept(k, v, out, left); err != nil {
				return err
			}
		}
		return nil
	case []any:
		if text, ok := got.(string); ok {
			return sameJSON(in, text)
		}
		list := got.([]any)
		if len(list) != len(in) {
			return fmt.Errorf("%d items, want %d", len(list), len(in))
		}
		left, _ := extra.([]any)
		for i := range in {
			var rest any
			if left != nil {
				rest = left[i]
			}
			if err := same(in[i], list[i], rest); err != nil {
				return fmt.Errorf("[%d]: %w", i, err)
			}
		}
		return nil
	case float64:
		if text, ok := got.(string); ok {
			n, err := strconv.ParseFloat(text, 64)
			if err != nil || n != in {
				return fmt.Errorf("is %q, want %v", text, in)
			}
			return nil
		}
	case string:
		if b, ok := got.(bool); ok {
			got = strconv.FormatBool(b)
		}
	}
	if !reflect.DeepEqual(in, got) {
		return fmt.Errorf("is %v, want %v", got, in)
	}
	return nil
}

func sameJSON(in any, text string) error {
	var got any
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		return err
	}
	if !reflect.DeepEqual(in, got) {
		return fmt.Errorf("is %s, want %v", text, in)
	}
	return nil
}

func asMap(t *testing.T, m proto.Message) map[string]any {
	t.Helper()
	text, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func payload(raw *v1.Raw) proto.Message {
	m := raw.ProtoReflect()
	field := m.WhichOneof(m.Descriptor().Oneofs().ByName("payload"))
	if field == nil {
		return nil
	}
	return m.Get(field).Message().Interface()
}

func parseExtra(t *testing.T, text string) map[string]any {
	t.Helper()
	extra := make(map[string]any)
	if text == "" {
		return extra
	}
	if err := json.Unmarshal([]byte(text), &extra); err != nil {
		t.Fatalf("extra_json %q: %v", text, err)
	}
	return extra
}

// TestCapturesKeepEverything reads every recorded message with encoding/json and finds every member again, in the field
// that has its name in the schema or among the leftovers.
func TestCapturesKeepEverything(t *testing.T) {
	for _, c := range captures(t) {
		var in map[string]any
		if err := json.Unmarshal([]byte(c.body), &in); err != nil {
			t.Fatal(err)
		}
		raws := normalise(t, c)
		if len(raws) != 1 {
			t.Fatalf("%s: %d messages", c, len(raws))
		}
		raw := raws[0]
		p := payload(raw)
		if p == nil {
			t.Fatalf("%s: no payload", c)
		}
		extra := parseExtra(t, raw.ExtraJson)
		if err := checkEnvelope(c, in, raw); err != nil {
			t.Errorf("%s: %v", c, err)
		}
		out := asMap(t, p)
		for key, v := range in {
			var err error
			switch {
			case envelope[key]:
			case key == "stats" && raw.GetStats() != nil:
				err = entriesKept(t, v.([]any), raw.GetStats())
			case key == "processedStatistics":
				err = processedKept(t, v.([]any), raw)
			case key == "value" && raw.GetSsrcMap() != nil:
				err = ssrcMapKept(t, v.(map[string]any), raw.GetSsrcMap())
			case key == "value":
				value := v.(map[string]any)
				delete(value, "ucID")
				err = kept(key, value, out, extra)
			default:
				err = kept(key, v, out, extra)
			}
			if err != nil {
				t.Errorf("%s, %s: %v", c, raw.EventType, err)
			}
		}
		if strings.Contains(raw.String(), "eyJhbGciOi") {
			t.Errorf("%s: a token was kept", c)
		}
	}
}

var envelope = map[string]bool{
	"callstatsVersion": true, "version": true, "timestamp": true, "apiTS": true, "eventType": true, "action": true, "channel": true,
	"localID": true, "userID": true, "remoteID": true, "connectionID": true, "pcID": true, "deviceID": true, "siteID": true,
	"token": true, "appID": true, "confID": true, "conferenceID": true, "ucID": true, "timeShift": true,
}

func checkEnvelope(c captured, in map[string]any, raw *v1.Raw) error {
	str := func(names ...string) string {
		for _, n := range names {
			if s, ok := in[n].(string); ok {
				return s
			}
		}
		return ""
	}
	decoded := func(s string) string {
		if c.transport == REST {
			return s
		}
		d, err := url.PathUnescape(s)
		if err != nil {
			return s
		}
		return d
	}
	want := &v1.Claimed{
		ConferenceId: c.conference, UserId: decoded(str("localID", "userID")), DeviceId: str("deviceID"),
		ConnectionId: str("connectionID", "pcID"), RemoteId: decoded(str("remoteID")), ClientVersion: str("callstatsVersion", "version"),
		SiteId: str("siteID"),
	}
	if c.transport == WebSocket {
		want.ConferenceId = decoded(str("confID", "conferenceID"))
	}
	for _, name := range []string{"timestamp", "apiTS"} {
		if ms, ok := in[name].(float64); ok {
			want.TimeMs = ms
		}
	}
	if own, _ := url.PathUnescape(want.ConnectionId); own == want.UserId {
		want.ConnectionId = ""
	}
	if diff := cmp.Diff(want.String(), raw.Claimed.String()); diff != "" {
		return fmt.Errorf("claims (-want +got):\n%s", diff)
	}
	return nil
}

// entriesKept finds each getStats entry in the list for its type.
func entriesKept(t *testing.T, entries []any, s *v1.Stats) error {
	byID := make(map[string]map[string]any)
	s.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if field.IsList() {
			for i := range v.List().Len() {
				m := asMap(t, v.List().Get(i).Message().Interface())
				m["field"] = string(field.Name())
				byID[m["field"].(string)+" "+m["id"].(string)] = m
			}
		}
		return true
	})
	var others []any
	if s.OtherEntriesJson != "" {
		if err := json.Unmarshal([]byte(s.OtherEntriesJson), &others); err != nil {
			return err
		}
	}
	fields := map[string]string{
		"inbound-rtp": "rtp", "outbound-rtp": "rtp", "remote-inbound-rtp": "rtp", "remote-outbound-rtp": "rtp", "candidate-pair": "candidate_pairs",
		"local-candidate": "candidates", "remote-candidate": "candidates", "transport": "transports", "media-source": "media_sources",
	}
	found := 0
	for _, e := range entries {
		in := e.(map[string]any)
		field, typed := fields[in["type"].(string)]
		if !typed {
			for _, o := range others {
				if reflect.DeepEqual(in, o) {
					found++
					break
				}
			}
			continue
		}
		out := byID[field+" "+in["id"].(string)]
		if out == nil {
			return fmt.Errorf("%s %s is nowhere", in["type"], in["id"])
		}
		if err := entryKept(t, in, out); err != nil {
			return err
		}
		found++
	}
	if found != len(entries) {
		return fmt.Errorf("found %d of %d entries", found, len(entries))
	}
	return nil
}

func entryKept(t *testing.T, in, out map[string]any) error {
	text, _ := out["extraJson"].(string)
	extra := parseExtra(t, text)
	if typ, ok := out["type"]; ok {
		want := "RTP_TYPE_" + strings.ToUpper(strings.ReplaceAll(strings.TrimSuffix(in["type"].(string), "-rtp"), "-", "_"))
		if typ != want {
			return fmt.Errorf("%s has type %v", in["id"], typ)
		}
	}
	for k, v := range in {
		switch k {
		case "type", "isRemote":
			continue
		case "qualityLimitationDurations":
			d := v.(map[string]any)
			if out["qualityLimitationCpu"] != d["cpu"] || out["qualityLimitationBandwidth"] != d["bandwidth"] {
				return fmt.Errorf("%s: limitation durations are lost", in["id"])
			}
			continue
		}
		if err := kept(k, v, out, extra); err != nil {
			return fmt.Errorf("%s %s: %w", in["type"], in["id"], err)
		}
	}
	return nil
}

// processedKept checks a report of 3.24: the streams around RTP entries, and whose stream it is.
func processedKept(t *testing.T, reports []any, raw *v1.Raw) error {
	if len(reports) != 1 {
		return fmt.Errorf("%d reports", len(reports))
	}
	in := reports[0].(map[string]any)
	s := raw.GetStats()
	if s.FabricState != in["fabricState"] || s.ConnectionState != in["connectionState"] {
		return fmt.Errorf("states %q and %q", s.FabricState, s.ConnectionState)
	}
	if transports := in["Transport"].([]any); len(transports) > 0 {
		if err := entriesKept(t, transports, s); err != nil {
			return err
		}
		if len(s.CandidatePairs) != 1 || !s.CandidatePairs[0].Selected || s.CandidatePairs[0].CurrentRoundTripTime == nil {
			return errors.New("the selected pair was not taken out of the transport")
		}
	}
	streams := in["streams"].([]any)
	if len(streams) != len(s.Rtp) {
		return fmt.Errorf("%d RTP entries, want %d", len(s.Rtp), len(streams))
	}
	for i, x := range streams {
		stream, rtp := x.(map[string]any), s.Rtp[i]
		if err := entryKept(t, stream["data"].(map[string]any), asMap(t, rtp)); err != nil {
			return err
		}
		wantUser := ""
		if usage, ok := stream["usage"].(string); ok {
			wantUser, _ = stream["userID"].(string)
			if rtp.UsageLabel != usage {
				return fmt.Errorf("usage %q, want %q", rtp.UsageLabel, usage)
			}
		} else if !strings.Contains(rtp.ExtraJson, `"userID":"`) {
			return errors.New("a user id that is no association was not left over")
		}
		if rtp.AssociatedUserId != wantUser {
			return fmt.Errorf("stream of %q, want %q", rtp.AssociatedUserId, wantUser)
		}
	}
	return nil
}

func ssrcMapKept(t *testing.T, in map[string]any, m *v1.SsrcMap) error {
	if len(in) != len(m.SsrcData) {
		return fmt.Errorf("%d entries, want %d", len(m.SsrcData), len(in))
	}
	for _, e := range m.SsrcData {
		out := asMap(t, e)
		for k, v := range in[e.Ssrc].(map[string]any) {
			if err := kept(k, v, out, nil); err != nil {
				return fmt.Errorf("ssrc %s: %w", e.Ssrc, err)
			}
		}
	}
	return nil
}
