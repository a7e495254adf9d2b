package callscopev1

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	v1 "github.com/callscope/callscope/proto/callscope/v1"
)

// sample is one event of each kind, with the payload that it must become.
type sample struct {
	name  string
	event object
	want  *v1.Raw // claimed and observed are checked apart, except what differs
}

func d(v float64) *float64 { return &v }

func samples() []sample {
	fabric := func(more object) object {
		o := object{"connectionID": "pc1", "remoteID": "bob"}
		for k, v := range more {
			o[k] = v
		}
		return o
	}
	endpoint := object{"type": "browser", "buildName": "Chrome", "buildVersion": "131.0", "appVersion": "7.1", "os": "Linux", "osVersion": "6", "userAgent": "Mozilla/5.0"}
	wantEndpoint := &v1.EndpointInfo{Type: "browser", BuildName: "Chrome", BuildVersion: "131.0", AppVersion: "7.1", Os: "Linux", OsVersion: "6", UserAgent: "Mozilla/5.0"}
	candidate := object{"id": "c1", "type": "local-candidate", "transport": "udp", "ip": "192.0.2.1", "port": 5000, "candidateType": "host", "networkType": "wifi"}
	wantCandidate := &v1.IceCandidate{Id: "c1", Type: "local-candidate", Transport: "udp", Ip: "192.0.2.1", Port: proto.Uint32(5000), CandidateType: "host", NetworkType: "wifi"}
	pair := object{"id": "p1", "localCandidateId": "c1", "remoteCandidateId": "c2", "state": "succeeded", "nominated": true}
	wantPair := &v1.IceCandidatePair{Id: "p1", LocalCandidateId: "c1", RemoteCandidateId: "c2", State: "succeeded", Nominated: proto.Bool(true)}

	list := []sample{
		{"userJoined", event("userJoined", object{"endpointInfo": endpoint, "userName": "Clark Kent", "statsSubmissionInterval": 15000, "new": "kept"}),
			&v1.Raw{EventType: "userJoined", ExtraJson: `{"new":"kept"}`, Payload: &v1.Raw_UserJoined{UserJoined: &v1.UserJoined{EndpointInfo: wantEndpoint, UserName: "Clark Kent", StatsSubmissionIntervalMs: d(15000)}}}},
		{"userDetails", event("userDetails", object{"userName": "Clark Kent", "localIpAddressInfo": []object{{"address": "192.0.2.1", "candidateType": "host"}}}),
			&v1.Raw{EventType: "userDetails", Payload: &v1.Raw_UserDetails{UserDetails: &v1.UserDetails{UserName: "Clark Kent", LocalIpAddressInfo: []*v1.LocalIpAddress{{Address: "192.0.2.1", CandidateType: "host"}}}}}},
		{"userAlive", event("userAlive", nil), &v1.Raw{EventType: "userAlive", Payload: &v1.Raw_UserAlive{UserAlive: &v1.UserAlive{}}}},
		{"userLeft", event("userLeft", nil), &v1.Raw{EventType: "userLeft", Payload: &v1.Raw_UserLeft{UserLeft: &v1.UserLeft{}}}},
		{"addNewFabric", event("addNewFabric", fabric(object{"fabricUsage": "multiplex", "remoteEndpointType": "server", "fabricTransmissionDirection": "receiveonly"})),
			&v1.Raw{EventType: "addNewFabric", Payload: &v1.Raw_FabricAdded{FabricAdded: &v1.FabricAdded{FabricUsage: "multiplex", RemoteEndpointType: "server", FabricTransmissionDirection: "receiveonly"}}}},
		{"addNewFabric with defaults", event("addNewFabric", fabric(object{"fabricUsage": "data"})),
			&v1.Raw{EventType: "addNewFabric", Payload: &v1.Raw_FabricAdded{FabricAdded: &v1.FabricAdded{FabricUsage: "data", RemoteEndpointType: "peer", FabricTransmissionDirection: "sendrecv"}}}},
		{"associateMstWithUserID", event("associateMstWithUserID", fabric(object{"ssrc": "1234567890", "userID": "carol", "usageLabel": "front-camera", "associatedVideoTag": "v1"})),
			&v1.Raw{EventType: "associateMstWithUserID", Payload: &v1.Raw_Association{Association: &v1.Association{Ssrc: "1234567890", UserId: "carol", UsageLabel: "front-camera", AssociatedVideoTag: "v1"}}}},
		{"associateMstWithUserID with a long label", event("associateMstWithUserID", fabric(object{"ssrc": 7, "userID": "pc1", "usageLabel": "front-camera-of-the-ü"})),
			&v1.Raw{EventType: "associateMstWithUserID", Truncated: true, Payload: &v1.Raw_Association{Association: &v1.Association{Ssrc: "7", UserId: "pc1", UsageLabel: "front-camera-of-the-"}}}},
		{"fabricSetup", event("fabricSetup", fabric(object{"delay": 812.5, "iceGatheringDelay": 100, "iceConnectivityDelay": 200, "remoteEndpointType": "peer", "fabricTransmissionDirection": "sendrecv",
			"localIceCandidates": []object{candidate}, "iceCandidatePairs": []object{pair}, "sdpSemantics": "unified-plan", "iceServers": []string{"stun:stun.example.org"}})),
			&v1.Raw{EventType: "fabricSetup", Payload: &v1.Raw_FabricSetup{FabricSetup: &v1.FabricSetup{DelayMs: d(812.5), IceGatheringDelayMs: d(100), IceConnectivityDelayMs: d(200),
				RemoteEndpointType: "peer", FabricTransmissionDirection: "sendrecv", LocalIceCandidates: []*v1.IceCandidate{wantCandidate}, IceCandidatePairs: []*v1.IceCandidatePair{wantPair},
				SdpSemantics: "unified-plan", IceServers: []string{"stun:stun.example.org"}}}}},
		{"fabricStateChange", event("fabricStateChange", fabric(object{"changedState": "iceConnectionState", "prevState": "checking", "newState": "connected", "currPair": pair})),
			&v1.Raw{EventType: "fabricStateChange", Payload: &v1.Raw_FabricStateChange{FabricStateChange: &v1.FabricStateChange{ChangedState: "iceConnectionState", PrevState: "checking", NewState: "connected", CurrPair: wantPair}}}},
		{"fabricTransportSwitch", event("fabricTransportSwitch", fabric(object{"prevIceCandidatePair": pair, "currIceCandidatePair": pair, "relayType": "turn/udp", "switchDelay": 5})),
			&v1.Raw{EventType: "fabricTransportSwitch", Payload: &v1.Raw_FabricTransportSwitch{FabricTransportSwitch: &v1.FabricTransportSwitch{PrevIceCandidatePair: wantPair, CurrIceCandidatePair: wantPair, RelayType: "turn/udp", SwitchDelayMs: d(5)}}}},
		{"fabricTerminated", event("fabricTerminated", fabric(nil)), &v1.Raw{EventType: "fabricTerminated", Payload: &v1.Raw_FabricTerminated{FabricTerminated: &v1.FabricTerminated{}}}},
		{"iceCandidateFound", event("iceCandidateFound", fabric(object{"transport": "udp", "protocol": "udp", "typePreference": "126", "address": "192.0.2.1", "type": "host", "media": "audio"})),
			&v1.Raw{EventType: "iceCandidateFound", Payload: &v1.Raw_IceCandidateFound{IceCandidateFound: &v1.IceCandidateFound{Transport: "udp", Protocol: "udp", TypePreference: "126", Address: "192.0.2.1", Type: "host", Media: "audio"}}}},
		{"dominantSpeaker", event("dominantSpeaker", nil), &v1.Raw{EventType: "dominantSpeaker", Payload: &v1.Raw_DominantSpeaker{DominantSpeaker: &v1.DominantSpeaker{}}}},
		{"ssrcMap", event("ssrcMap", fabric(object{"ssrcData": []object{{"ssrc": "5", "streamType": "inbound", "mediaType": "audio", "remoteUserID": "bob", "usageLabel": "mic"}}})),
			&v1.Raw{EventType: "ssrcMap", Payload: &v1.Raw_SsrcMap{SsrcMap: &v1.SsrcMap{SsrcData: []*v1.SsrcMapEntry{{Ssrc: "5", StreamType: "inbound", MediaType: "audio", RemoteUserId: "bob", UsageLabel: "mic"}}}}}},
		{"sdpSubmissionEvent", event("sdpSubmissionEvent", fabric(object{"localSDP": "v=0\r\n", "remoteSDP": ""})),
			&v1.Raw{EventType: "sdpSubmissionEvent", Payload: &v1.Raw_SdpSubmission{SdpSubmission: &v1.SdpSubmission{LocalSdp: "v=0\r\n"}}}},
		{"userFeedback", event("userFeedback", object{"feedback": object{"overall": 4, "audio": 5, "video": 3, "screen": 1, "comment": "good"}}),
			&v1.Raw{EventType: "userFeedbackEvent", OriginalType: "userFeedback", Payload: &v1.Raw_Feedback{Feedback: &v1.Feedback{Overall: d(4), Audio: d(5), Video: d(3), Screen: d(1), Comment: "good"}}}},
		{"stats", event("stats", fabric(object{"stats": []object{
			{"type": "inbound-rtp", "id": "I1", "ssrc": 5, "kind": "audio", "timestamp": 1700000000000.25, "packetsReceived": 100, "packetsLost": -1, "jitter": 0.003, "brandNew": 1},
			{"type": "candidate-pair", "id": "p1", "currentRoundTripTime": 0.05, "nominated": true},
			{"type": "codec", "id": "x"},
		}})),
			&v1.Raw{EventType: "stats", Payload: &v1.Raw_Stats{Stats: &v1.Stats{
				Rtp:            []*v1.RtpStats{{Type: v1.RtpType_RTP_TYPE_INBOUND, Id: "I1", Ssrc: "5", Kind: "audio", TimestampMs: 1700000000000.25, PacketsReceived: d(100), PacketsLost: d(-1), Jitter: d(0.003), ExtraJson: `{"brandNew":1}`}},
				CandidatePairs: []*v1.CandidatePairStats{{Id: "p1", CurrentRoundTripTime: d(0.05), Nominated: proto.Bool(true)}},
				ReportTimeMs:   1700000000000.25, OtherEntriesJson: `[{"id":"x","type":"codec"}]`}}}},
		{"customEvent", event("customEvent", object{"eventList": []object{{"a": 1}}}), &v1.Raw{EventType: "customEvent", Payload: &v1.Raw_CustomEvent{CustomEvent: &v1.CustomEvent{EventListJson: `[{"a":1}]`}}}},
		{"customStats", event("customStats", object{"stats": []object{{"a": 1}}}), &v1.Raw{EventType: "customStats", Payload: &v1.Raw_CustomStats{CustomStats: &v1.CustomStats{StatsJson: `[{"a":1}]`}}}},
		{"callDetails", event("callDetails", object{"callType": "inbound", "role": "agent", "contactID": "c", "acceptedAt": 5}),
			&v1.Raw{EventType: "callDetails", Payload: &v1.Raw_CallDetails{CallDetails: &v1.CallDetails{CallType: "inbound", Role: "agent", ContactId: "c", AcceptedAtMs: d(5)}}}},
		{"conferenceSummary", event("conferenceSummary", object{"type": "x", "pstnTime": 5}),
			&v1.Raw{EventType: "conferenceSummary", Payload: &v1.Raw_ConferenceSummary{ConferenceSummary: &v1.ConferenceSummaryEvent{Type: "x", PstnTime: d(5)}}}},
		{"preCallTestAssociate", event("preCallTestAssociate", object{"ids": []string{"t1"}}),
			&v1.Raw{EventType: "preCallTestAssociate", Payload: &v1.Raw_PreCallTestAssociate{PreCallTestAssociate: &v1.PreCallTestAssociate{Ids: []string{"t1"}}}}},
		{"userIDChangedEvent", event("userIDChangedEvent", object{"id": "new", "idType": "remote"}),
			&v1.Raw{EventType: "userIDChangedEvent", Payload: &v1.Raw_UserIdChanged{UserIdChanged: &v1.UserIdChanged{Id: "new", IdType: "remote"}}}},
		{"an event of tomorrow", event("holodeckEntered", object{"deck": 5}), &v1.Raw{EventType: "holodeckEntered", ExtraJson: `{"deck":5}`, Payload: &v1.Raw_Other{Other: &v1.OtherEvent{}}}},
	}
	for function, reason := range map[string]string{
		"getUserMedia": "MediaConfigError", "createOffer": "NegotiationFailure", "createAnswer": "NegotiationFailure",
		"setLocalDescription": "SDPGenerationError", "setRemoteDescription": "NegotiationFailure", "addIceCandidate": "SDPGenerationError",
		"iceConnectionFailure": "IceConnectionFailure", "signalingError": "SignalingError", "applicationLog": "ApplicationLog", "applicationError": "ApplicationLog",
	} {
		name := "fabricSetupFailed"
		if strings.HasPrefix(function, "application") {
			name = "applicationErrorLog"
		}
		list = append(list, sample{"reportError " + function,
			event("reportError", fabric(object{"function": function, "domError": object{"name": "NotAllowedError", "message": "denied", "stack": "at x"}, "localSDP": "v=0", "remoteSDP": "v=1", "delay": 90})),
			&v1.Raw{EventType: name, OriginalType: "reportError", Payload: &v1.Raw_Failure{Failure: &v1.Failure{Function: function, Reason: reason, Name: "NotAllowedError", Message: "denied", Stack: "at x",
				MessageType: "json", LocalSdp: "v=0", RemoteSdp: "v=1", DelayMs: d(90)}}}})
	}
	list = append(list, sample{"reportError with a text", event("reportError", object{"function": "applicationLog", "domError": "it went wrong"}),
		&v1.Raw{EventType: "applicationErrorLog", OriginalType: "reportError", Payload: &v1.Raw_Failure{Failure: &v1.Failure{Function: "applicationLog", Reason: "ApplicationLog", Message: "it went wrong", MessageType: "text"}}}})
	for _, name := range []string{"fabricHold", "fabricResume", "callUnAnswered"} {
		list = append(list, sample{name, event(name, fabric(nil)), &v1.Raw{EventType: name, Payload: &v1.Raw_FabricAction{FabricAction: &v1.FabricAction{}}}})
	}
	for _, name := range []string{"audioMute", "audioUnmute", "videoPause", "videoResume", "screenShareStart", "screenShareStop"} {
		list = append(list, sample{name, event(name, fabric(object{"ssrc": "5"})), &v1.Raw{EventType: name, Payload: &v1.Raw_MediaAction{MediaAction: &v1.MediaAction{Ssrc: "5"}}}})
	}
	for _, name := range []string{"iceDisruptionStart", "iceDisruptionEnd", "iceConnectionDisruptionStart", "iceConnectionDisruptionEnd", "iceFailed", "iceAborted", "iceTerminated", "iceRestarted", "iceCompleted", "fabricDropped"} {
		list = append(list, sample{name, event(name, fabric(object{"prevIceConnectionState": "connected", "currIceConnectionState": "disconnected", "delay": 7, "currIceCandidatePair": pair})),
			&v1.Raw{EventType: name, Payload: &v1.Raw_IceEvent{IceEvent: &v1.IceEvent{PrevIceConnectionState: "connected", CurrIceConnectionState: "disconnected", DelayMs: d(7), CurrIceCandidatePair: wantPair}}}})
	}
	for _, name := range []string{"mediaPlaybackStart", "mediaPlaybackSuspended", "mediaPlaybackStalled"} {
		list = append(list, sample{name, event(name, fabric(object{"ssrc": "5", "highResTs": 7.5, "kind": "audio"})), &v1.Raw{EventType: name, Payload: &v1.Raw_MediaPlayback{MediaPlayback: &v1.MediaPlayback{Ssrc: "5", HighResTsMs: d(7.5), Kind: "audio"}}}})
	}
	for _, name := range []string{"oneWayMediaStart", "oneWayMediaStop", "oneWayMedia", "audioDisruption", "circuitBreaker"} {
		list = append(list, sample{name, event(name, fabric(object{"mediaType": "audio", "ssrc": "5", "streamType": "inbound", "disruptionType": "x"})),
			&v1.Raw{EventType: name, Payload: &v1.Raw_MediaDisruption{MediaDisruption: &v1.MediaDisruption{MediaType: "audio", Ssrc: "5", StreamType: "inbound", DisruptionType: "x"}}}})
	}
	for _, name := range []string{"activeDeviceList", "connectedDeviceList"} {
		list = append(list, sample{name, event(name, object{"mediaDeviceList": []object{{"mediaDeviceID": "m", "groupID": "g", "kind": "audioinput", "label": "Mic"}}}),
			&v1.Raw{EventType: name, Payload: &v1.Raw_DeviceList{DeviceList: &v1.DeviceList{MediaDeviceList: []*v1.MediaDevice{{MediaDeviceId: "m", GroupId: "g", Kind: "audioinput", Label: "Mic"}}}}}})
	}
	return list
}

func TestEveryEvent(t *testing.T) {
	b := newBench(t, nil)
	c := b.dial(http.Header{"Origin": {"https://page.example"}, "User-Agent": {"agent/1"}})
	c.send(object{"type": "hello", "appID": testApp, "userID": testUser, "clientVersion": "sdk 1.2"})
	n := c.want("nonce")["nonce"].(string)
	c.send(object{"type": "proof", "proof": prove(testSecret, n, testApp, testUser, "https://page.example")})
	session := c.want("signedIn")["session"].(string)
	uids := make(map[string]bool)
	for i, s := range samples() {
		seq := i + 1
		c.send(batch(msg(seq, s.event)))
		for {
			o := c.receive()
			if o["type"] == "status" && o["csError"] == appConnectivityError {
				continue
			}
			if o["type"] != "ack" || o["seq"] != float64(seq) {
				t.Fatalf("%s: got %v, want ack %d", s.name, o, seq)
			}
			break
		}
		all := b.broker.all()
		got := all[len(all)-1]
		if len(all) != seq {
			t.Fatalf("%s: %d records, want %d", s.name, len(all), seq)
		}
		want := proto.CloneOf(s.want)
		want.Uid, want.Observed = got.Uid, got.Observed
		want.Claimed = &v1.Claimed{ConferenceId: "room 1/ü", UserId: testUser, DeviceId: session, TimeMs: 1700000000000.5, ClientVersion: "sdk 1.2", Sequence: proto.Uint64(uint64(seq)), SessionUid: sessionUID(testApp, testUser, session)}
		if v, ok := s.event["connectionID"]; ok {
			want.Claimed.ConnectionId, want.Claimed.RemoteId = v.(string), s.event["remoteID"].(string)
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("%s: %s", s.name, diff)
		}
		o := got.Observed
		if o.Dialect != v1.Dialect_DIALECT_CALLSCOPE || o.AppId != testApp || o.Origin != "https://page.example" || o.UserAgent != "agent/1" || o.IpMasked != "127.0.0.0" || o.TokenUserId != testUser || o.TokenId == "" || len(o.ContentHash) != 32 || o.ReceivedAtMs == 0 {
			t.Errorf("%s: observed %v", s.name, o)
		}
		if id, err := uuid.FromBytes(got.Uid); err != nil || id.Version() != 7 || uids[string(got.Uid)] {
			t.Errorf("%s: uid %x, %v", s.name, got.Uid, err)
		}
		uids[string(got.Uid)] = true
		if key := b.broker.keys[len(b.broker.keys)-1]; key != testApp+"\x00room 1/ü" {
			t.Errorf("%s: key %q", s.name, key)
		}
	}
}

func TestOutsideConference(t *testing.T) {
	b := newBench(t, nil)
	c := b.dial(nil)
	c.signIn(object{"deviceID": "phone"})
	c.send(batch(
		object{"seq": 1, "event": event("preCallTestResults", object{"results": object{"id": "t1", "status": "success"}})},
		object{"seq": 2, "event": event("preCallTestNotification", object{"notificationID": "n", "notification": object{"x": 1}})},
		object{"seq": 3, "conferenceID": "c", "event": event("userAlive", object{"deviceID": "tablet"})},
	))
	c.want("ack")
	got := b.broker.all()
	want := []*v1.Raw{
		{EventType: "preCallTestResults", Payload: &v1.Raw_PreCallTestResults{PreCallTestResults: &v1.PreCallTestResults{Id: "t1", Status: "success", ResultsJson: `{"id":"t1","status":"success"}`}}, Claimed: &v1.Claimed{DeviceId: "phone"}},
		{EventType: "preCallTestNotification", Payload: &v1.Raw_PreCallTestNotification{PreCallTestNotification: &v1.PreCallTestNotification{NotificationId: "n", NotificationJson: `{"x":1}`}}, Claimed: &v1.Claimed{DeviceId: "phone"}},
		{EventType: "userAlive", Payload: &v1.Raw_UserAlive{UserAlive: &v1.UserAlive{}}, Claimed: &v1.Claimed{DeviceId: "tablet", ConferenceId: "c"}},
	}
	for i, w := range want {
		w.Claimed.UserId, w.Claimed.TimeMs, w.Claimed.Sequence = testUser, 1700000000000.5, proto.Uint64(uint64(i+1))
		w.Claimed.SessionUid = got[i].Claimed.SessionUid
	}
	if diff := cmp.Diff(want, got, protocmp.Transform(), protocmp.IgnoreFields(&v1.Raw{}, "uid", "observed")); diff != "" {
		t.Error(diff)
	}
	if key := b.broker.keys[0]; key != testApp+"\x00\x00"+testUser {
		t.Errorf("key %q", key)
	}
	if bytes.Equal(got[0].Observed.ContentHash, got[1].Observed.ContentHash) {
		t.Error("two messages of a batch have one content hash")
	}
}

func TestConnectivityNotices(t *testing.T) {
	b := newBench(t, nil)
	c := b.dial(nil)
	c.signIn(nil)
	fabric := object{"connectionID": "pc1", "remoteID": "bob"}
	state := func(newState string) object {
		return event("fabricStateChange", object{"connectionID": "pc1", "changedState": "iceConnectionState", "newState": newState})
	}
	for i, test := range []struct {
		event  object
		notice bool
	}{
		{event("iceFailed", fabric), true}, {event("iceDisruptionStart", fabric), true}, {event("iceConnectionDisruptionStart", fabric), true},
		{event("fabricDropped", fabric), true}, {state("disconnected"), true}, {state("failed"), true},
		{event("iceDisruptionEnd", fabric), false}, {state("connected"), false},
	} {
		seq := i + 1
		c.send(batch(msg(seq, test.event)))
		if test.notice {
			want := object{"type": "status", "csError": "appConnectivityError", "csErrMsg": "The connectivity checks of the PeerConnection failed.", "reason": test.event["eventType"],
				"seq": float64(seq), "conferenceID": "room 1/ü", "connectionID": "pc1"}
			if diff := cmp.Diff(want, c.want("status")); diff != "" {
				t.Error(diff)
			}
		}
		if a := c.want("ack"); a["seq"] != float64(seq) {
			t.Errorf("got %v", a)
		}
	}
}
