package vocabulary

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	v1 "github.com/callscope/callscope/proto/callscope/v1"
)

func parseOne(t *testing.T, transport Transport, body string) *v1.Raw {
	t.Helper()
	raws := normalise(t, captured{file: "inline", transport: transport, conference: "room", body: body})
	if len(raws) != 1 {
		t.Fatalf("%d messages", len(raws))
	}
	return raws[0]
}

func TestRefused(t *testing.T) {
	long := strings.Repeat("x", MaxIDBytes+1)
	for _, tc := range []struct {
		name, body, reason string
	}{
		{"empty", ``, "json"},
		{"no JSON", `hello`, "json"},
		{"two values", `{} {}`, "json"},
		{"truncated", `{"eventType":"userAlive"`, "json"},
		{"array", `[]`, "json"},
		{"string", `"userAlive"`, "json"},
		{"null", `null`, "json"},
		{"NaN", `{"eventType":"userAlive","delay":NaN}`, "json"},
		{"infinity", `{"eventType":"userAlive","delay":-inf}`, "json"},
		{"broken number", `{"eventType":"userAlive","delay":1.2.3}`, "json"},
		{"leading zero", `{"eventType":"userAlive","delay":01}`, "json"},
		{"control character", "{\"eventType\":\"userAlive\",\"x\":\"a\nb\"}", "json"},
		{"bad escape", `{"eventType":"user\qAlive"}`, "json"},
		{"invalid UTF-8", "{\"eventType\":\"userAlive\",\"localID\":\"\xff\"}", "utf8"},
		{"deep", `{"eventType":"x","a":` + strings.Repeat("[", 10000) + strings.Repeat("]", 10000) + `}`, "depth"},
		{"deep and unclosed", `{"a":` + strings.Repeat("[", 1<<20), "depth"},
		{"no event type", `{"localID":"alice"}`, "event_type"},
		{"empty event type", `{"eventType":""}`, "event_type"},
		{"event type is an object", `{"eventType":{}}`, "event_type"},
		{"long event type", `{"eventType":"` + strings.Repeat("x", 129) + `"}`, "event_type"},
		{"long user id", `{"eventType":"userAlive","localID":"` + long + `"}`, "user_id"},
		{"long remote id", `{"eventType":"userAlive","remoteID":"` + long + `"}`, "remote_id"},
		{"long device id", `{"eventType":"userAlive","deviceID":"` + long + `"}`, "device_id"},
		{"long connection id", `{"eventType":"userAlive","connectionID":"` + long + `"}`, "connection_id"},
		{"long site id", `{"eventType":"userAlive","siteID":"` + long + `"}`, "site_id"},
	} {
		_, err := Parse([]byte(tc.body), REST)
		var bad *Invalid
		if !errors.As(err, &bad) || bad.Reason != tc.reason || bad.Text == "" {
			t.Errorf("%s: error %v, want reason %q", tc.name, err, tc.reason)
		}
	}
	for _, body := range []string{`{"action":"userAlive","conferenceID":"` + long + `"}`, `{"action":"userAlive","conferenceID":"%FF"}`} {
		_, err := Parse([]byte(body), WebSocket)
		var bad *Invalid
		if !errors.As(err, &bad) || bad.Reason != "conference_id" {
			t.Errorf("%s: error %v", body[:40], err)
		}
	}
}

func TestWho(t *testing.T) {
	for _, tc := range []struct {
		name      string
		transport Transport
		body      string
		want      *v1.Claimed
	}{
		{"plain", REST, `{"eventType":"userAlive","localID":"alice@x","remoteID":"bob","connectionID":"c1","deviceID":"d","timestamp":5.5,"callstatsVersion":"3.73.16"}`,
			&v1.Claimed{ConferenceId: "room", UserId: "alice@x", RemoteId: "bob", ConnectionId: "c1", DeviceId: "d", TimeMs: 5.5, ClientVersion: "3.73.16"}},
		{"userID for localID", REST, `{"eventType":"userAlive","userID":"alice"}`, &v1.Claimed{ConferenceId: "room", UserId: "alice"}},
		{"null connection", REST, `{"eventType":"userAlive","localID":"alice","connectionID":null}`, &v1.Claimed{ConferenceId: "room", UserId: "alice"}},
		{"own id as connection", REST, `{"eventType":"userAlive","localID":"alice@x","connectionID":"alice%40x"}`, &v1.Claimed{ConferenceId: "room", UserId: "alice@x"}},
		{"own id unescaped", REST, `{"eventType":"userAlive","localID":"100%","connectionID":"100%"}`, &v1.Claimed{ConferenceId: "room", UserId: "100%"}},
		{"numbers as ids", REST, `{"eventType":"userAlive","localID":4358,"connectionID":"c"}`, &v1.Claimed{ConferenceId: "room", UserId: "4358", ConnectionId: "c"}},
		{"timestamp as string", REST, `{"eventType":"userAlive","timestamp":"1795343322076.06"}`, &v1.Claimed{ConferenceId: "room", TimeMs: 1795343322076.06}},
		{"absurd timestamp", REST, `{"eventType":"userAlive","timestamp":-5}`, &v1.Claimed{ConferenceId: "room"}},
		{"the last of several members", REST, `{"eventType":"userAlive","localID":"a","localID":"b"}`, &v1.Claimed{ConferenceId: "room", UserId: "b"}},
		{"324 ids are escaped", WebSocket, `{"action":"userAlive","conferenceID":"Demo%20room%20%2F%201","localID":"alice%40x","remoteID":"%F0%9F%98%80","pcID":null,"apiTS":7,"version":"3.24.6"}`,
			&v1.Claimed{ConferenceId: "Demo room / 1", UserId: "alice@x", RemoteId: "😀", TimeMs: 7, ClientVersion: "3.24.6"}},
		{"324 feedback", WebSocket, `{"channel":"userFeedbackEvent","conferenceID":"r","userID":"alice","userQoe":{}}`, &v1.Claimed{ConferenceId: "r", UserId: "alice"}},
		{"352", WebSocket, `{"eventType":"userAlive","action":"userAlive","version":"3.52.0","callstatsVersion":"3.52.0","confID":"a%2Fb","localID":"al%20ice","connectionID":"al%20ice","timestamp":9}`,
			&v1.Claimed{ConferenceId: "a/b", UserId: "al ice", TimeMs: 9, ClientVersion: "3.52.0"}},
		{"not escaped after all", WebSocket, `{"action":"userAlive","conferenceID":"100% sure","localID":"a"}`, &v1.Claimed{ConferenceId: "100% sure", UserId: "a"}},
	} {
		raw := parseOne(t, tc.transport, tc.body)
		if diff := cmp.Diff(tc.want, raw.Claimed, protocmp.Transform()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, diff)
		}
	}
}

// TestNames checks older event names, and that an unknown event is kept whole.
func TestNames(t *testing.T) {
	for old, name := range map[string]string{
		"autoFabricSetup": "fabricSetup", "processedStats": "stats", "audioUnMute": "audioUnmute", "mediaPlaybackStartEvent": "mediaPlaybackStart",
		"mediaSuspendedEvent": "mediaPlaybackSuspended",
	} {
		raw := parseOne(t, REST, `{"eventType":"`+old+`"}`)
		if raw.EventType != name || raw.OriginalType != old || raw.GetOther() != nil {
			t.Errorf("%s became %s (original %s), %T", old, raw.EventType, raw.OriginalType, raw.Payload)
		}
	}
	raw := parseOne(t, REST, `{"eventType":"qpchange","localID":"a","qp":[1,{"x":"y\u0001"}],"ssrc":12345678901234567890,"none":null}`)
	if raw.EventType != "qpchange" || raw.OriginalType != "" || raw.GetOther() == nil {
		t.Errorf("an unknown event became %v", raw)
	}
	if want := `{"qp":[1,{"x":"y\u0001"}],"ssrc":12345678901234567890,"none":null}`; raw.ExtraJson != want {
		t.Errorf("left over %s, want %s", raw.ExtraJson, want)
	}
}

// TestMisfits checks values of the wrong kind: kept as leftovers, never an error and never a wrong value.
func TestMisfits(t *testing.T) {
	raw := parseOne(t, REST, `{"eventType":"fabricSetup","delay":1e999,"iceGatheringDelay":"12.5","iceConnectivityDelay":"soon",
		"localIceCandidates":"none","remoteIceCandidates":[{"id":"r","port":70000000000,"ip":"192.0.2.1","address":"192.0.2.9"},{"id":"s"}],
		"iceServers":["stun:x",5],"remoteEndpointType":{"a":1},"timestamp":{},"localID":["x"]}`)
	p := raw.GetFabricSetup()
	if p.DelayMs != nil || p.IceConnectivityDelayMs != nil || p.GetIceGatheringDelayMs() != 12.5 || p.RemoteEndpointType != "" {
		t.Errorf("took %v", p)
	}
	var extra map[string]json.RawMessage
	if err := json.Unmarshal([]byte(raw.ExtraJson), &extra); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"delay": "1e999", "iceConnectivityDelay": `"soon"`, "localIceCandidates": `"none"`, "iceServers": `["stun:x",5]`,
		"remoteEndpointType": `{"a":1}`, "timestamp": "{}", "localID": `["x"]`,
		"remoteIceCandidates": `[{"port":70000000000,"address":"192.0.2.9"},{}]`,
	}
	got := make(map[string]string)
	for k, v := range extra {
		got[k] = string(v)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("leftovers (-want +got):\n%s", diff)
	}
}

func TestLimits(t *testing.T) {
	text := func(n int) string { return strings.Repeat("é", n) }
	raw := parseOne(t, REST, `{"eventType":"userJoined","userName":"`+text(129)+`","endpointInfo":{"appVersion":"`+text(31)+`"}}`)
	p := raw.GetUserJoined()
	if !raw.Truncated || p.UserName != text(128) || p.EndpointInfo.AppVersion != text(30) {
		t.Errorf("kept %d and %d characters, truncated %v", utf8.RuneCountInString(p.UserName), utf8.RuneCountInString(p.EndpointInfo.AppVersion), raw.Truncated)
	}
	raw = parseOne(t, REST, `{"eventType":"userJoined","userName":"`+text(128)+`","endpointInfo":{"appVersion":"`+text(30)+`"}}`)
	if raw.Truncated || utf8.RuneCountInString(raw.GetUserJoined().UserName) != 128 {
		t.Error("a name of the longest length was cut")
	}

	raw = parseOne(t, REST, `{"eventType":"applicationErrorLog","message":"x`+text(20<<10)+`"}`)
	f := raw.GetFailure()
	if want := 20<<10 - 1; !raw.Truncated || !f.Truncated || len(f.Message) != want || !utf8.ValidString(f.Message) {
		t.Errorf("the log has %d bytes, want %d whole characters; truncated %v, %v", len(f.Message), want, raw.Truncated, f.Truncated)
	}
	raw = parseOne(t, REST, `{"eventType":"applicationErrorLog","message":"`+text(10<<10)+`"}`)
	if raw.Truncated || raw.GetFailure().Truncated || len(raw.GetFailure().Message) != 20<<10 {
		t.Error("a log of exactly 20 KiB was cut")
	}

	raw = parseOne(t, REST, `{"eventType":"ssrcMap","ssrcData":[{"ssrc":"1","usageLabel":"`+text(11)+`"}]}`)
	if label := raw.GetSsrcMap().SsrcData[0].UsageLabel; !raw.Truncated || label != text(10) {
		t.Errorf("usage label %q", label)
	}
}

func TestOlderForms(t *testing.T) {
	raw := parseOne(t, WebSocket, `{"version":"3.24.6","action":"fabricSetupFailed","channel":"callStatsEvent","conferenceID":"r","localID":"a","token":"secret-token",
		"value":{"failureDelay":12,"reason":"NegotiationFailure","function":"createOffer","domError":"it broke","magicKey":77,"endpoint":{"name":"Chrome","ver":"61","osVersion":25}}}`)
	want := &v1.Failure{
		DelayMs: new(float64), Reason: "NegotiationFailure", Function: "createOffer", Message: "it broke", MessageType: "text", MagicKey: "77",
		Endpoint: &v1.EndpointInfo{BuildName: "Chrome", BuildVersion: "61", OsVersion: "25"},
	}
	*want.DelayMs = 12
	if diff := cmp.Diff(want, raw.GetFailure(), protocmp.Transform()); diff != "" || raw.ExtraJson != "" {
		t.Errorf("failure, left over %q (-want +got):\n%s", raw.ExtraJson, diff)
	}

	raw = parseOne(t, WebSocket, `{"action":"fabricSetupFailed","conferenceID":"r","value":{"domError":{"message":"m","name":"n","stack":"s","code":8}}}`)
	f := raw.GetFailure()
	if f.Message != "m" || f.Name != "n" || f.Stack != "s" || f.MessageType != "json" || raw.ExtraJson != `{"domError":{"code":8}}` {
		t.Errorf("error object became %v, left over %s", f, raw.ExtraJson)
	}

	raw = parseOne(t, WebSocket, `{"action":"sdpSubmissionEvent","channel":"sdpSubmissionEvent","conferenceID":"r","sdpPayload":{"sdp":{"localSDP":-1,"remoteSDP":"v=0\r\n"}}}`)
	if s := raw.GetSdpSubmission(); s.LocalSdp != "" || s.RemoteSdp != "v=0\r\n" || raw.ExtraJson != "" {
		t.Errorf("SDPs %v, left over %s", s, raw.ExtraJson)
	}

	raw = parseOne(t, WebSocket, `{"action":"ssrcMap","conferenceID":"r","value":{"11":{"cname":"c","streamType":"inbound","remoteUserID":"bob","usageLabel":"mic","x":1},"ssrcGroup":{"FID":[1,2]}}}`)
	wantMap := &v1.SsrcMap{SsrcData: []*v1.SsrcMapEntry{{Ssrc: "11", Cname: "c", StreamType: "inbound", RemoteUserId: "bob", UsageLabel: "mic"}}}
	if diff := cmp.Diff(wantMap, raw.GetSsrcMap(), protocmp.Transform()); diff != "" {
		t.Errorf("SSRC map (-want +got):\n%s", diff)
	}
	if want := `{"11":{"x":1},"ssrcGroup":{"FID":[1,2]}}`; raw.ExtraJson != want {
		t.Errorf("left over %s, want %s", raw.ExtraJson, want)
	}

	raw = parseOne(t, WebSocket, `{"channel":"preCallTest","action":"preCallTestResults","localID":"a","timestamp":3,"results":{"id":"x","status":"success","tests":{"rtt":{"median":2.5},"loss":{"fractionLostBytes":0.5},"throughput":{"average":100},"mediaConnectivity":true}}}`)
	if p := raw.GetPreCallTestResults(); p.Id != "x" || p.GetRttMedianMs() != 2.5 || p.GetFractionLost() != 0.5 || p.GetThroughputKbps() != 100 || !p.GetMediaConnectivity() || raw.Claimed.TimeMs != 3 {
		t.Errorf("pre-call test became %v at %v", p, raw.Claimed.TimeMs)
	}
	raw = parseOne(t, WebSocket, `{"channel":"callStatsEvent","action":"userIDChangedEvent","conferenceID":"r","value":{"id":"neo","idType":"local"}}`)
	if p := raw.GetUserIdChanged(); p.Id != "neo" || p.IdType != "local" {
		t.Errorf("user id change became %v", p)
	}
}

// TestSeveralReports checks a frame of 3.24 that holds reports of several times: one message each.
func TestSeveralReports(t *testing.T) {
	raws := normalise(t, captured{file: "inline", transport: WebSocket, body: `{"version":"3.24.6","channel":"processedStats","conferenceID":"r","localID":"a","pcID":"p","apiTS":30,"fabricState":"established","msgStat":{"n":1},
		"processedStatistics":[
			{"apiTS":10,"streams":[{"streamType":"inbound","reportType":"local","ssrc":1,"userID":"bob","data":{"type":"inbound-rtp","ssrc":1,"packetsReceived":"5"}}],"fabricState":"hold","connectionState":"online","batteryStatus":{"batteryLevel":0.5,"isBatteryCharging":false}},
			{"apiTS":20,"streams":[{"streamType":"outbound","ssrc":2,"userID":"bob","usage":"mic","data":{"packetsSent":6}}],"bwe":{"a":1}}]}`})
	if len(raws) != 2 {
		t.Fatalf("%d messages", len(raws))
	}
	first, second := raws[0], raws[1]
	if first.Claimed.TimeMs != 10 || second.Claimed.TimeMs != 20 || second.Claimed.ConnectionId != "p" || second.EventType != "stats" || second.OriginalType != "processedStats" {
		t.Errorf("envelopes %v and %v", first.Claimed, second.Claimed)
	}
	if s := first.GetStats(); s.FabricState != "hold" || s.GetBatteryLevel() != 0.5 || s.BatteryCharging == nil || s.Rtp[0].GetPacketsReceived() != 5 || s.Rtp[0].Type != v1.RtpType_RTP_TYPE_INBOUND {
		t.Errorf("first report %v", s)
	}
	if s := second.GetStats(); s.FabricState != "established" || s.Rtp[0].Type != v1.RtpType_RTP_TYPE_OUTBOUND || s.Rtp[0].Ssrc != "2" || s.Rtp[0].AssociatedUserId != "bob" || s.Rtp[0].UsageLabel != "mic" {
		t.Errorf("second report %v", s)
	}
	if first.ExtraJson != `{"msgStat":{"n":1}}` || second.ExtraJson != `{"bwe":{"a":1}}` {
		t.Errorf("left over %s and %s", first.ExtraJson, second.ExtraJson)
	}
}

// TestBesideReports: what stands beside the reports of a frame is the first one's.
func TestBesideReports(t *testing.T) {
	raws := normalise(t, captured{file: "inline", transport: WebSocket, body: `{"version":"3.26.2","channel":"processedStats","conferenceID":"r","localID":"a","pcID":"p","apiTS":30,"fabricState":"established",
		"connectionState":"online","batteryStatus":{"batteryLevel":0.5},"stats":[{"type":"inbound-rtp","ssrc":1}],
		"processedStatistics":[{"streams":[{"ssrc":2,"streamType":"inbound"}],"fabricState":"hold"},{"streams":[]}]}`})
	if len(raws) != 2 {
		t.Fatalf("%d messages", len(raws))
	}
	first, second := raws[0].GetStats(), raws[1].GetStats()
	if first.FabricState != "hold" || first.ConnectionState != "online" || first.GetBatteryLevel() != 0.5 || len(first.Rtp) != 2 {
		t.Errorf("first report %v", first)
	}
	if want := (&v1.Stats{FabricState: "established"}); cmp.Diff(want, second, protocmp.Transform()) != "" {
		t.Errorf("second report %v", second)
	}
}

func TestOlderStats(t *testing.T) {
	raw := parseOne(t, REST, `{"eventType":"stats","stats":[
		{"type":"ssrc","id":"ssrc_5_send","ssrc":"5","mediaType":"audio","packetsSent":"100","bytesSent":"9000","packetsLost":"3","googRtt":"40","googJitterReceived":"2","audioInputLevel":"32767","googCodecName":"opus","googX":"y"},
		{"type":"ssrc","id":"ssrc_6_recv","ssrc":"6","mediaType":"video","packetsReceived":"50","packetsLost":"-1","googFrameRateReceived":"30","googJitterReceived":"7"},
		{"type":"googCandidatePair","id":"Conn-1","googActiveConnection":"true","googRtt":"25","bytesSent":"1","localCandidateId":"L"},
		{"type":"localcandidate","id":"L","ipAddress":"192.0.2.7","portNumber":"5000","candidateType":"relayed","transport":"udp"},
		{"type":"inboundrtp","id":"in","isRemote":true,"ssrc":"7","mediaType":"audio","packetsLost":"4","mozRtt":"60"},
		{"type":"candidatepair","id":"p","state":"succeeded","selected":true},
		{"type":"VideoBwe","googBucketDelay":"0"}, 17]}`)
	s := raw.GetStats()
	want := []struct {
		typ  v1.RtpType
		ssrc string
	}{{v1.RtpType_RTP_TYPE_OUTBOUND, "5"}, {v1.RtpType_RTP_TYPE_REMOTE_INBOUND, "5"}, {v1.RtpType_RTP_TYPE_INBOUND, "6"}, {v1.RtpType_RTP_TYPE_REMOTE_INBOUND, "7"}}
	if len(s.Rtp) != len(want) {
		t.Fatalf("%d RTP entries: %v", len(s.Rtp), s.Rtp)
	}
	for i, w := range want {
		if s.Rtp[i].Type != w.typ || s.Rtp[i].Ssrc != w.ssrc {
			t.Errorf("entry %d is %v of %s", i, s.Rtp[i].Type, s.Rtp[i].Ssrc)
		}
	}
	out, peer, in, moz := s.Rtp[0], s.Rtp[1], s.Rtp[2], s.Rtp[3]
	if out.GetPacketsSent() != 100 || out.GetAudioLevel() != 1 || out.MimeType != "audio/opus" || out.PacketsLost != nil || out.ExtraJson != `{"googX":"y"}` {
		t.Errorf("outbound %v", out)
	}
	if peer.GetPacketsLost() != 3 || peer.GetRoundTripTime() != 0.04 || peer.GetJitter() != 0.002 || peer.LocalId != "ssrc_5_send" {
		t.Errorf("what the peer says %v", peer)
	}
	if in.GetPacketsReceived() != 50 || in.GetPacketsLost() != -1 || in.GetFramesPerSecond() != 30 || in.GetJitter() != 0.007 {
		t.Errorf("inbound %v", in)
	}
	if moz.GetRoundTripTime() != 0.06 || moz.Kind != "audio" {
		t.Errorf("Firefox's remote entry %v", moz)
	}
	if p := s.CandidatePairs; len(p) != 2 || !p[0].Selected || p[0].GetCurrentRoundTripTime() != 0.025 || !p[1].Selected {
		t.Errorf("pairs %v", p)
	}
	if c := s.Candidates; len(c) != 1 || c[0].CandidateType != "relay" || c[0].GetPort() != 5000 || c[0].Address != "192.0.2.7" || c[0].Remote {
		t.Errorf("candidates %v", c)
	}
	if want := `[{"type":"VideoBwe","googBucketDelay":"0"},17]`; s.OtherEntriesJson != want {
		t.Errorf("others %s, want %s", s.OtherEntriesJson, want)
	}
}

// TestSelectedPair checks that the transport names the selected pair among those of the report.
func TestSelectedPair(t *testing.T) {
	raw := parseOne(t, REST, `{"eventType":"stats","stats":[{"type":"candidate-pair","id":"a","timestamp":5},{"type":"transport","id":"T","timestamp":6,"selectedCandidatePairId":"b","localCandidateId":"x"},{"type":"candidate-pair","id":"b","timestamp":5},
		{"type":"remote-inbound-rtp","id":"r","timestamp":9000}]}`)
	s := raw.GetStats()
	if p := s.CandidatePairs; len(p) != 2 || p[0].Selected || !p[1].Selected {
		t.Errorf("pairs %v", p)
	}
	if s.ReportTimeMs != 6 {
		t.Errorf("report time %v: the peer's reports are not the report's", s.ReportTimeMs)
	}
}

// TestLoneSurrogate: JSON may hold half of a surrogate pair, which is no character.
func TestLoneSurrogate(t *testing.T) {
	raw := parseOne(t, REST, `{"eventType":"userFeedbackEvent","feedback":{"comments":"cut \ud83d","more":"\ud83d"}}`)
	if _, err := raw.MarshalVT(); err != nil || !utf8.ValidString(raw.GetFeedback().Comment) || !json.Valid([]byte(raw.ExtraJson)) {
		t.Errorf("comment %q, left over %s, %v", raw.GetFeedback().Comment, raw.ExtraJson, err)
	}
}

// jsonValue draws any JSON value.
func jsonValue(depth int) *rapid.Generator[any] {
	scalars := []*rapid.Generator[any]{
		rapid.Just[any](nil), rapid.Bool().AsAny(), rapid.Float64().AsAny(), rapid.Int64().AsAny(), rapid.String().AsAny(),
		rapid.SampledFrom([]string{"-1", "5", "NaN", "Infinity", "0x10", "true", "1e400", "\x00\x1f\"\\", "~"}).AsAny(),
	}
	if depth == 0 {
		return rapid.OneOf(scalars...)
	}
	return rapid.OneOf(append(scalars,
		rapid.SliceOfN(jsonValue(depth-1), 0, 4).AsAny(),
		jsonObject(depth-1).AsAny())...)
}

var memberNames = []string{
	"delay", "stats", "processedStatistics", "streams", "data", "type", "id", "ssrc", "value", "feedback", "overall", "domError", "message", "results",
	"tests", "localIceCandidates", "iceCandidatePairs", "googActiveConnection", "ssrcData", "userID", "usage", "endpoint", "sdpPayload", "localSDP",
	"Transport", "selectedCandidatePairId", "localCandidateId", "timestamp", "apiTS", "port", "kind", "mediaType", "batteryStatus", "qualityLimitationDurations", "x y",
}

func jsonObject(depth int) *rapid.Generator[map[string]any] {
	name := rapid.OneOf(rapid.SampledFrom(memberNames), rapid.String())
	return rapid.MapOfN(name, jsonValue(depth), 0, 8)
}

// TestAnyJSON: whatever JSON a client sends is refused as Invalid or gives messages that marshal, with leftovers that
// are JSON.
func TestAnyJSON(t *testing.T) {
	var events []string
	for name := range takers {
		events = append(events, name)
	}
	rapid.Check(t, func(rt *rapid.T) {
		o := jsonObject(4).Draw(rt, "message")
		o["eventType"] = rapid.SampledFrom(events).Draw(rt, "event")
		body, err := json.Marshal(o)
		if err != nil {
			rt.Fatal(err)
		}
		for _, transport := range []Transport{REST, WebSocket} {
			checkAny(rt, body, transport)
		}
	})
}

type reporter interface {
	Fatalf(format string, args ...any)
}

func checkAny(t reporter, body []byte, transport Transport) {
	m, err := Parse(body, transport)
	if err != nil {
		var bad *Invalid
		if !errors.As(err, &bad) || bad.Reason == "" {
			t.Fatalf("error %v is no *Invalid", err)
		}
		return
	}
	defer m.Release()
	for _, raw := range m.Raw("room") {
		if raw.Payload == nil || raw.Claimed == nil || raw.EventType == "" {
			t.Fatalf("incomplete message %v", raw)
		}
		if raw.ExtraJson != "" && !json.Valid([]byte(raw.ExtraJson)) {
			t.Fatalf("leftovers are no JSON: %q", raw.ExtraJson)
		}
		if s := raw.GetStats(); s != nil {
			texts := []string{s.OtherEntriesJson, s.WifiStatsJson}
			for _, r := range s.Rtp {
				texts = append(texts, r.ExtraJson)
			}
			for _, text := range texts {
				if text != "" && !json.Valid([]byte(text)) {
					t.Fatalf("leftovers are no JSON: %q", text)
				}
			}
		}
		value, err := raw.MarshalVT()
		if err != nil {
			t.Fatalf("marshalling: %v", err)
		}
		back := &v1.Raw{}
		if err := back.UnmarshalVT(value); err != nil {
			t.Fatalf("unmarshalling: %v", err)
		}
		if text, err := protoText(back); err != nil || text == "" {
			t.Fatalf("not UTF-8 throughout: %v", err)
		}
	}
}

// protoText fails where a string is not UTF-8, which MarshalVT does not check.
func protoText(m *v1.Raw) (string, error) {
	b, err := jsonMarshaler.Marshal(m)
	return string(b), err
}

func FuzzParse(f *testing.F) {
	for _, c := range captures(f) {
		if c.file == "two-users-hs256" || c.transport == WebSocket {
			if len(c.body) < 8<<10 {
				f.Add([]byte(c.body), c.transport == WebSocket)
			}
		}
	}
	f.Add([]byte(`{"eventType":"stats","stats":[{"type":"ssrc","id":"a_send"}]}`), false)
	f.Fuzz(func(t *testing.T, body []byte, ws bool) {
		transport := REST
		if ws {
			transport = WebSocket
		}
		checkAny(t, body, transport)
	})
}

var jsonMarshaler = protojson.MarshalOptions{}

// What a recycled message held neither shows up in those after it nor changes the raw messages that somebody keeps.
func TestRecycle(t *testing.T) {
	marshal := func(raws []*v1.Raw) (values []string) {
		for _, raw := range raws {
			value, err := raw.MarshalVT()
			if err != nil {
				t.Fatal(err)
			}
			values = append(values, string(value))
		}
		return values
	}
	all := captures(t)
	kept, want := make([][]*v1.Raw, len(all)), make([][]string, len(all))
	for i, c := range all {
		kept[i] = normalise(t, c)
		want[i] = marshal(kept[i])
	}
	for range 2 {
		for i, c := range all {
			m, err := Parse([]byte(c.body), c.transport)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want[i], marshal(m.Raw(c.conference))); diff != "" {
				t.Fatalf("%s: (-fresh +from recycled parts)\n%s", c, diff)
			}
			m.Recycle()
			m.Release()
		}
	}
	for i, c := range all {
		if diff := cmp.Diff(want[i], marshal(kept[i])); diff != "" {
			t.Fatalf("%s changed: (-before +after others were recycled)\n%s", c, diff)
		}
	}
}

func BenchmarkStats(b *testing.B) {
	var body string
	for _, c := range captures(b) {
		if strings.HasSuffix(c.path, "/stats") && len(c.body) > len(body) {
			body = c.body
		}
	}
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		m, err := Parse([]byte(body), REST)
		if err != nil {
			b.Fatal(err)
		}
		for _, raw := range m.Raw("room") {
			if _, err := raw.MarshalVT(); err != nil {
				b.Fatal(err)
			}
		}
		m.Recycle()
		m.Release()
	}
}
