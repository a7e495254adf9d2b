package enricher

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

func TestDataJSON(t *testing.T) {
	for _, test := range []struct {
		name string
		raw  *callscopev1.Raw
		want string
	}{
		{"nothing", &callscopev1.Raw{}, `{}`},
		{"empty payload", &callscopev1.Raw{Payload: &callscopev1.Raw_UserLeft{UserLeft: &callscopev1.UserLeft{}}}, `{}`},
		{"typed and further fields", &callscopev1.Raw{
			ExtraJson: `{"zeta": [1, 2],"delay":"overruled","alpha":"<&>"}`,
			Payload: &callscopev1.Raw_FabricSetup{FabricSetup: &callscopev1.FabricSetup{
				DelayMs: proto.Float64(240.2998046875), SelectedCandidatePairId: "CP1",
			}},
		}, `{"alpha":"<&>","delay":240.2998046875,"selectedCandidatePairID":"CP1","zeta":[1,2]}`},
		{"JSON in text becomes JSON", &callscopev1.Raw{Payload: &callscopev1.Raw_CustomEvent{CustomEvent: &callscopev1.CustomEvent{
			EventListJson: `[{"type": "volumeUp"}]`,
		}}}, `{"eventList":[{"type":"volumeUp"}]}`},
		{"no real names", &callscopev1.Raw{
			ExtraJson: `{"localUserIDObject":{"userName":"Alice Example"}}`,
			Payload: &callscopev1.Raw_UserJoined{UserJoined: &callscopev1.UserJoined{
				UserName: "Alice Example", AdditionalIdsJson: `{"tenantID":"t-5"}`,
			}},
		}, `{"additionalIDs":{"tenantID":"t-5"}}`},
		{"further fields that are no object", &callscopev1.Raw{ExtraJson: `[1`}, `{"extra":"[1"}`},
		{"further fields that are null", &callscopev1.Raw{ExtraJson: `null`}, `{"extra":"null"}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := dataJSON(test.raw)
			if err != nil || got != test.want {
				t.Errorf("got %s, %v, want %s", got, err, test.want)
			}
			if !json.Valid([]byte(got)) {
				t.Error("that is no JSON")
			}
		})
	}
}

func TestRealNamesAreOnlyInParticipants(t *testing.T) {
	p := play(t, readCapture(t, "two-users-hs256"))
	named := false
	for _, e := range p.outputs {
		if event := e.GetEvent(); event != nil && strings.Contains(event.DataJson, "Alice Example") {
			t.Errorf("%s shows a real name: %s", event.EventType, event.DataJson)
		}
		named = named || e.GetParticipant().GetUserName() == "Alice Example"
	}
	if !named {
		t.Error("the participant has no name")
	}
}

// A failure row has the SDPs of the report, or else the last ones of its fabric.
func TestFailureRowsHaveSDPs(t *testing.T) {
	p, alice, _ := newPair(t)
	alice.begin("f", "bob")
	sdp := func(local, remote string) {
		raw := alice.message("sdpSubmissionEvent", "f", "bob")
		raw.Payload = &callscopev1.Raw_SdpSubmission{SdpSubmission: &callscopev1.SdpSubmission{LocalSdp: local, RemoteSdp: remote}}
		alice.send(raw)
	}
	long := strings.Repeat("v=0\r\n", 3_000)
	sdp("first", "remote")
	sdp(long, "")
	failure := alice.fail("fabricSetupFailed", "createOffer", "NegotiationFailure", "f", "bob", 5)[0].GetEvent().GetFailure()
	if failure.LocalSdp != long || failure.RemoteSdp != "remote" || failure.Truncated {
		t.Errorf("local %d bytes, remote %q", len(failure.LocalSdp), failure.RemoteSdp)
	}
	p.m = restored(t, p.m)
	sdp(strings.Repeat("x", maxSDPBytes+1), "")
	failure = alice.fail("fabricSetupFailed", "createOffer", "NegotiationFailure", "f", "bob", 5)[0].GetEvent().GetFailure()
	if len(failure.LocalSdp) != maxSDPBytes || !failure.Truncated || failure.RemoteSdp != "remote" {
		t.Errorf("local %d bytes, truncated %v", len(failure.LocalSdp), failure.Truncated)
	}
	sdp("", "x"+strings.Repeat("ä", maxSDPBytes/2))
	failure = alice.fail("fabricSetupFailed", "createOffer", "NegotiationFailure", "f", "bob", 5)[0].GetEvent().GetFailure()
	if len(failure.RemoteSdp) != maxSDPBytes-1 || !utf8.ValidString(failure.RemoteSdp) {
		t.Errorf("remote %d bytes, ending with %q", len(failure.RemoteSdp), failure.RemoteSdp[len(failure.RemoteSdp)-3:])
	}
	raw := alice.message("fabricSetupFailed", "f", "bob")
	raw.Payload = &callscopev1.Raw_Failure{Failure: &callscopev1.Failure{Function: "createOffer", LocalSdp: "own", Message: `{"message":"m","name":"N","stack":"S"}`}}
	failure = alice.send(raw)[0].GetEvent().GetFailure()
	if failure.LocalSdp != "own" || failure.RemoteSdp != "" || failure.Name != "N" || failure.Stack != "S" {
		t.Errorf("row %v", failure)
	}
	same(t, "delay", failure.DelayMs, 500)
}

// An applicationErrorLog is a log whatever function it names, also none; a
// fabricSetupFailed is one under the name of a log.
func TestLogsAreNoFailures(t *testing.T) {
	_, alice, _ := newPair(t)
	for _, tc := range []struct {
		eventType, function string
		want                bool
	}{
		{"applicationErrorLog", "applicationLog", true}, {"applicationErrorLog", "", true}, {"applicationErrorLog", "getUserMedia", true},
		{"fabricSetupFailed", "applicationError", true}, {"fabricSetupFailed", "getUserMedia", false}, {"fabricSetupFailed", "", false},
	} {
		if got := alice.fail(tc.eventType, tc.function, "", "", "", 0)[0].GetEvent().GetFailure().GetIsLog(); got != tc.want {
			t.Errorf("%s of %q: is a log: %v, want %v", tc.eventType, tc.function, got, tc.want)
		}
	}
}

// A setup delay is computed where the client reports none: the same as an
// independent reading of the recordings computes.
func TestComputedSetupDelays(t *testing.T) {
	for _, name := range []string{"two-users-hs256", "mesh3", "rn-3.24.6-wss", "rn-3.52.0-wss", "two-users-default-config", "failed-setup"} {
		messages := readCapture(t, name)
		for _, message := range messages {
			if setup := message.raw.GetFabricSetup(); setup != nil {
				setup.DelayMs = nil
			}
		}
		p := play(t, messages)
		want := map[string]expFabric{}
		for _, f := range readExpected(t, name).Conferences[0].Fabrics {
			want[f.ConnectionID] = f
		}
		for _, f := range found(p.outputs, p.m.Counts()).Conferences[0].Fabrics {
			switch computed := want[f.ConnectionID].Computed; {
			case computed == nil:
				if f.SetupDelay != nil {
					t.Errorf("%s: %s has a delay of %v", name, f.ConnectionID, *f.SetupDelay)
				}
			case f.SetupDelay == nil || math.Abs(*f.SetupDelay-*computed) > 0.06 || f.DelaySource != "computed":
				t.Errorf("%s: %s has a delay of %v (%s), want %v", name, f.ConnectionID, number(f.SetupDelay), f.DelaySource, *computed)
			}
		}
	}
}

func TestBrowserAndSystem(t *testing.T) {
	chrome := "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36"
	firefox := "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
	for _, test := range []struct {
		name     string
		endpoint *callscopev1.EndpointInfo
		request  string
		want     agent
	}{
		{"client's own", &callscopev1.EndpointInfo{BuildName: "Chrome", BuildVersion: "1", UserAgent: chrome}, firefox, agent{"Chrome", "156.0.0", "Windows", "10"}},
		{"only the request's", nil, firefox, agent{"Firefox", "128.0", "Ubuntu", ""}},
		{"react-native", &callscopev1.EndpointInfo{BuildName: "Chrome", Os: "android", OsVersion: "25", UserAgent: "react-native"}, "okhttp/3.6.0", agent{"Chrome", "", "android", "25"}},
		{"unknown", &callscopev1.EndpointInfo{BuildName: "own", BuildVersion: "2", UserAgent: "x"}, firefox, agent{"own", "2", "", ""}},
		{"nothing", nil, "", agent{}},
		{"no text", nil, "\xff\xfe", agent{}},
		{"endless", nil, strings.Repeat(firefox, 1_000), agent{"Firefox", "128.0", "Ubuntu", ""}},
	} {
		if got := sharedUserAgents().of(test.endpoint, test.request); got != test.want {
			t.Errorf("%s: got %+v, want %+v", test.name, got, test.want)
		}
	}
}

func TestWhatIsLearntOfAParticipant(t *testing.T) {
	p, alice, _ := newPair(t)
	raw := alice.message("userJoined", "", "")
	raw.Claimed.ClientVersion, raw.Claimed.SiteId = "3.73.16", "site"
	raw.Observed = &callscopev1.Observed{Country: "FI", Network: "Example Oy", IpMasked: "192.0.2.0"}
	raw.Payload = &callscopev1.Raw_UserJoined{UserJoined: &callscopev1.UserJoined{
		UserName: "Alice", LoginId: "l", AdditionalIdsJson: "{}", EndpointInfo: &callscopev1.EndpointInfo{BuildName: "own", AppVersion: "7"},
	}}
	alice.send(raw)
	facts := newestParticipant(p, "alice")
	if facts.ClientVersion != "3.73.16" || facts.SiteId != "site" || facts.Country != "FI" || facts.Network != "Example Oy" || facts.IpMasked != "192.0.2.0" ||
		facts.UserName != "Alice" || facts.LoginId != "l" || facts.AdditionalIdsJson != "{}" || facts.AppVersion != "7" || facts.Browser != "own" {
		t.Errorf("facts %v", facts)
	}
	// The next address of a client that hops is no change.
	alive := alice.message("userAlive", "", "")
	alive.Observed = &callscopev1.Observed{Country: "SE", IpMasked: "198.51.100.0", UserAgent: "x"}
	alive.Payload = &callscopev1.Raw_UserAlive{UserAlive: &callscopev1.UserAlive{}}
	if outputs := alice.send(alive); len(outputs) != 1 {
		t.Errorf("userAlive gave %v", kindsOf(outputs))
	}
	// Who does not want to be located is not, by no later message.
	carol := &client{p: p, room: "room", user: "carol", device: "d"}
	raw = carol.message("userJoined", "", "")
	raw.Observed = &callscopev1.Observed{Country: "FI", Network: "Example Oy"}
	raw.Payload = &callscopev1.Raw_UserJoined{UserJoined: &callscopev1.UserJoined{DisableGeoIp: proto.Bool(true)}}
	carol.send(raw)
	alive = carol.message("userAlive", "", "")
	alive.Observed = &callscopev1.Observed{Country: "FI", Network: "Example Oy"}
	carol.send(alive)
	if facts := newestParticipant(p, "carol"); facts.Country != "" || facts.Network != "" {
		t.Errorf("facts %v", facts)
	}
	// Nor by what was known before it said so.
	dave := &client{p: p, room: "room", user: "dave", device: "d"}
	alive = dave.message("userAlive", "", "")
	alive.Observed = &callscopev1.Observed{Country: "FI", Network: "Example Oy"}
	dave.send(alive)
	raw.Claimed.UserId, raw.Uid = "dave", nil
	dave.send(raw)
	if facts := newestParticipant(p, "dave"); facts.Country != "" || facts.Network != "" {
		t.Errorf("facts %v", facts)
	}
}

func TestOwnersOfStreams(t *testing.T) {
	p, alice, _ := newPair(t)
	alice.begin("f", "bob")
	owner := func(outputs []*callscopev1.Enriched) (owners []string) {
		for _, e := range outputs {
			if s := e.GetStream(); s != nil {
				owners = append(owners, strings.TrimSpace(sprint(s.Ssrc, s.OwnerUserId, strings.ToLower(strings.TrimPrefix(s.OwnerSource.String(), "OWNER_SOURCE_")), s.UsageLabel)))
			}
		}
		return owners
	}
	ssrcMap := func(entries ...*callscopev1.SsrcMapEntry) []*callscopev1.Enriched {
		raw := alice.message("ssrcMap", "f", "bob")
		raw.Payload = &callscopev1.Raw_SsrcMap{SsrcMap: &callscopev1.SsrcMap{SsrcData: entries}}
		return alice.send(raw)
	}
	report := func(ssrc string, change func(*callscopev1.RtpStats)) []*callscopev1.Enriched {
		p.wait(1_000)
		rtp := inbound(ssrc, 1, 0, 1)
		if change != nil {
			change(rtp)
		}
		return alice.stats("f", "bob", rtp)
	}
	expect(t, owner(report("1", nil)), "1 bob default")
	expect(t, owner(report("1", nil)))
	expect(t, owner(ssrcMap(&callscopev1.SsrcMapEntry{Ssrc: "1", StreamType: "inbound", UserId: "alice"})))
	expect(t, owner(ssrcMap(
		&callscopev1.SsrcMapEntry{Ssrc: "1", StreamType: "inbound", UserId: "alice", RemoteUserId: "carol", UsageLabel: "cam"},
		&callscopev1.SsrcMapEntry{Ssrc: "2", StreamType: "inbound", UserId: "dave", UsageLabel: "mic"},
		&callscopev1.SsrcMapEntry{Ssrc: "3", StreamType: "outbound", RemoteUserId: "eve"},
	)), "1 carol ssrc_map cam")
	expect(t, owner(report("2", nil)), "2 dave ssrc_map mic")
	expect(t, owner(report("3", nil)), "3 bob default") // the map spoke of what is sent
	// The same owner from the report itself is no news; another one is.
	expect(t, owner(report("1", func(r *callscopev1.RtpStats) { r.AssociatedUserId, r.UsageLabel = "carol", "cam" })))
	expect(t, owner(report("1", func(r *callscopev1.RtpStats) { r.AssociatedUserId = "frank" })), "1 frank association cam")
	association := alice.message("associateMstWithUserID", "f", "bob")
	association.Payload = &callscopev1.Raw_Association{Association: &callscopev1.Association{Ssrc: "3", UserId: "grace", UsageLabel: "screen"}}
	expect(t, owner(alice.send(association)), "3 grace association screen")
	// The same holds of what is said before a stream's first report: a label
	// alone takes no owner away, and the latest word counts, also when it is of
	// both directions.
	ssrcMap(&callscopev1.SsrcMapEntry{Ssrc: "4", StreamType: "inbound", RemoteUserId: "carol"})
	ssrcMap(&callscopev1.SsrcMapEntry{Ssrc: "4", StreamType: "inbound", UsageLabel: "cam"})
	expect(t, owner(report("4", nil)), "4 carol ssrc_map cam")
	ssrcMap(&callscopev1.SsrcMapEntry{Ssrc: "5", StreamType: "inbound", RemoteUserId: "carol", UsageLabel: "cam"})
	later := proto.CloneOf(association)
	later.Uid, later.GetAssociation().Ssrc = nil, "5"
	alice.send(later)
	expect(t, owner(report("5", nil)), "5 grace association screen")
	later = proto.CloneOf(association)
	later.Uid, later.GetAssociation().Ssrc = nil, "6"
	alice.send(later)
	ssrcMap(&callscopev1.SsrcMapEntry{Ssrc: "6", StreamType: "inbound", UsageLabel: "cam"})
	expect(t, owner(report("6", nil)), "6 grace association cam")
	// What a sample says is what holds by then.
	for _, e := range report("3", nil) {
		if s := e.GetStreamSample(); s != nil && (s.OwnerUserId != "grace" || s.UsageLabel != "screen") {
			t.Errorf("sample %v", s)
		}
	}
	// Without a remote user the owner is unknown until there is one.
	p.wait(1_000)
	expect(t, owner(alice.stats("g", "", inbound("9", 1, 0, 1))), "9  unknown")
	p.wait(1_000)
	expect(t, owner(alice.stats("g", "bob", inbound("9", 2, 0, 2))), "9 bob default")
	// After the explicit end an association changes nothing.
	alice.terminate("f", "bob")
	again := proto.CloneOf(association)
	again.Uid, again.GetAssociation().UserId = nil, "heidi"
	expect(t, owner(alice.send(again)))
}

func TestPreCallTestsOpenNothing(t *testing.T) {
	p := newPartition(t)
	raw := &callscopev1.Raw{
		EventType: "preCallTestResults", Claimed: &callscopev1.Claimed{UserId: "alice"},
		Payload: &callscopev1.Raw_PreCallTestResults{PreCallTestResults: &callscopev1.PreCallTestResults{
			Id: "1-a", ResultsJson: `{"id":"1-a","tests":{"endpointInfo":{"buildName":"Chrome","buildVersion":null,"unknown":1}}}`,
		}},
	}
	outputs := p.send(raw)
	if len(outputs) != 2 || outputs[0].GetEvent() == nil || outputs[0].GetEvent().Orphan || outputs[1].GetPreCallTest().GetResults().GetId() != "1-a" {
		t.Fatalf("gave %v", kindsOf(outputs))
	}
	if got := outputs[1].GetPreCallTest().GetEndpoint().GetBuildName(); got != "Chrome" {
		t.Errorf("endpoint %q", got)
	}
	if len(outputs[0].Identity.ConferenceUid) != 0 || p.m.Counts().ConferencesBegun != 0 {
		t.Error("a pre-call test opened a conference")
	}
}
