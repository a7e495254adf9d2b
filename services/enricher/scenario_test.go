package enricher

import (
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/callscope/callscope/internal/stage"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// client sends what a callstats client would send. Its clock is skewMs off.
type client struct {
	p                  *partition
	room, user, device string
	skewMs             int64
}

func (c *client) message(eventType, connection, remote string) *callscopev1.Raw {
	return &callscopev1.Raw{
		EventType: eventType,
		Claimed: &callscopev1.Claimed{
			ConferenceId: c.room, UserId: c.user, DeviceId: c.device, ConnectionId: connection, RemoteId: remote,
			TimeMs: float64(captureBaseMs + c.p.nowMs + c.skewMs),
		},
	}
}

func (c *client) send(raw *callscopev1.Raw) []*callscopev1.Enriched { return c.p.send(raw) }

func (c *client) join() []*callscopev1.Enriched {
	raw := c.message("userJoined", "", "")
	raw.Payload = &callscopev1.Raw_UserJoined{UserJoined: &callscopev1.UserJoined{}}
	return c.send(raw)
}

// begin joins and sets up a fabric in 500 ms.
func (c *client) begin(connection, remote string) {
	c.join()
	c.devices(connection, remote)
	c.p.wait(500)
	c.ice("", connection, remote, "checking", "connected")
}

func (c *client) devices(connection, remote string) []*callscopev1.Enriched {
	raw := c.message("connectedDeviceList", connection, remote)
	raw.Payload = &callscopev1.Raw_DeviceList{DeviceList: &callscopev1.DeviceList{}}
	return c.send(raw)
}

// ice reports a change of the ICE state, or the given ICE event with it.
func (c *client) ice(event, connection, remote, from, to string) []*callscopev1.Enriched {
	if event == "" {
		raw := c.message("fabricStateChange", connection, remote)
		raw.Payload = &callscopev1.Raw_FabricStateChange{FabricStateChange: &callscopev1.FabricStateChange{
			ChangedState: "iceConnectionState", PrevState: from, NewState: to,
		}}
		return c.send(raw)
	}
	raw := c.message(event, connection, remote)
	raw.Payload = &callscopev1.Raw_IceEvent{IceEvent: &callscopev1.IceEvent{PrevIceConnectionState: from, CurrIceConnectionState: to}}
	return c.send(raw)
}

func (c *client) alive(connection, remote string) []*callscopev1.Enriched {
	raw := c.message("userAlive", connection, remote)
	raw.Payload = &callscopev1.Raw_UserAlive{UserAlive: &callscopev1.UserAlive{}}
	return c.send(raw)
}

func (c *client) terminate(connection, remote string) []*callscopev1.Enriched {
	raw := c.message("fabricTerminated", connection, remote)
	raw.Payload = &callscopev1.Raw_FabricTerminated{FabricTerminated: &callscopev1.FabricTerminated{}}
	return c.send(raw)
}

func (c *client) left(connection, remote string) []*callscopev1.Enriched {
	raw := c.message("userLeft", connection, remote)
	raw.Payload = &callscopev1.Raw_UserLeft{UserLeft: &callscopev1.UserLeft{}}
	return c.send(raw)
}

func (c *client) feedback() []*callscopev1.Enriched {
	raw := c.message("userFeedbackEvent", c.user, c.user)
	raw.Payload = &callscopev1.Raw_Feedback{Feedback: &callscopev1.Feedback{Overall: proto.Float64(4)}}
	return c.send(raw)
}

func (c *client) fail(eventType, function, reason, connection, remote string, delay float64) []*callscopev1.Enriched {
	raw := c.message(eventType, connection, remote)
	raw.Payload = &callscopev1.Raw_Failure{Failure: &callscopev1.Failure{Function: function, Reason: reason, DelayMs: &delay}}
	return c.send(raw)
}

func (c *client) stats(connection, remote string, rtp ...*callscopev1.RtpStats) []*callscopev1.Enriched {
	raw := c.message("stats", connection, remote)
	raw.Payload = &callscopev1.Raw_Stats{Stats: &callscopev1.Stats{Rtp: rtp, ReportTimeMs: float64(captureBaseMs + c.p.nowMs)}}
	return c.send(raw)
}

func inbound(ssrc string, packets, lost, bytes float64) *callscopev1.RtpStats {
	return &callscopev1.RtpStats{
		Type: callscopev1.RtpType_RTP_TYPE_INBOUND, Id: "IT" + ssrc, Ssrc: ssrc, Kind: "audio",
		PacketsReceived: &packets, PacketsLost: &lost, BytesReceived: &bytes,
	}
}

// keepAlive lets time pass with a userAlive of each every 10 s.
func keepAlive(ms int64, clients map[*client]string) {
	ordered := make([]*client, 0, len(clients))
	var p *partition
	for c := range clients {
		ordered = append(ordered, c)
		p = c.p
	}
	slices.SortFunc(ordered, func(a, b *client) int { return strings.Compare(a.user+a.device, b.user+b.device) })
	for range ms / 10_000 {
		p.wait(10_000)
		for _, c := range ordered {
			c.alive(clients[c], "")
		}
	}
}

func newPair(t testing.TB) (*partition, *client, *client) {
	p := newPartition(t)
	return p, &client{p: p, room: "room", user: "alice", device: "d-alice"}, &client{p: p, room: "room", user: "bob", device: "d-bob"}
}

// presence writes the conferences and who was in them, one line each.
func presence(p *partition) []string {
	var lines []string
	for _, c := range found(p.outputs, p.m.Counts()).Conferences {
		lines = append(lines, sprint("conference", c.StartedT, c.EndedT, "reopened", c.Reopened, "amended", c.Amended))
		for _, participant := range c.Participants {
			for _, interval := range participant.Intervals {
				lines = append(lines, sprint(participant.User, interval.JoinedT, interval.LeftT, interval.LeftReason))
			}
		}
	}
	return lines
}

// fabricLines writes the fabrics, one line each.
func fabricLines(p *partition) []string {
	var lines []string
	for _, c := range found(p.outputs, p.m.Counts()).Conferences {
		for _, f := range c.Fabrics {
			lines = append(lines, sprint(f.User, f.ConnectionID, f.Outcome, number(f.SetupDelay), f.DelaySource, f.EndedT, f.EndReason))
		}
	}
	return lines
}

func expect(t *testing.T, got []string, want ...string) {
	t.Helper()
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("expected (-) and found (+):\n%s", diff)
	}
}

func TestSameRoomAgainAfterHangingUp(t *testing.T) {
	for _, test := range []struct {
		pause int64
		want  []string
	}{
		{8_000, []string{
			"conference 0 69000 reopened 0 amended 0",
			"alice 0 30500 fabricTerminated", "alice 38500 69000 fabricTerminated",
			"bob 500 30500 fabricTerminated", "bob 39000 69000 fabricTerminated",
		}},
		{20_000, []string{
			"conference 0 30500 reopened 0 amended 0",
			"alice 0 30500 fabricTerminated", "bob 500 30500 fabricTerminated",
			"conference 50500 81000 reopened 0 amended 0",
			"alice 50500 81000 fabricTerminated", "bob 51000 81000 fabricTerminated",
		}},
	} {
		p, alice, bob := newPair(t)
		for i, connections := range [][2]string{{"a1", "b1"}, {"a2", "b2"}} {
			if i > 0 {
				p.wait(test.pause)
			}
			alice.begin(connections[0], "bob")
			bob.begin(connections[1], "alice")
			p.wait(9_500)
			keepAlive(20_000, map[*client]string{alice: connections[0], bob: connections[1]})
			alice.terminate(connections[0], "bob")
			bob.terminate(connections[1], "alice")
		}
		p.wait(400_000)
		expect(t, presence(p), test.want...)
	}
}

func TestFeedbackAfterTheEnd(t *testing.T) {
	p, alice, _ := newPair(t)
	alice.begin("a1", "bob")
	p.wait(5_000)
	alice.terminate("a1", "bob")
	p.wait(45_000)
	outputs := alice.feedback()
	if len(outputs) != 2 || outputs[0].GetEvent().GetFeedback().GetOverall() != 4 || outputs[0].GetEvent().GetOrphan() {
		t.Fatalf("feedback gave %v", outputs)
	}
	facts := outputs[1].GetConference()
	if facts.GetState() != callscopev1.ConferenceState_CONFERENCE_STATE_ENDED || facts.GetRevisionReason() != "feedback" {
		t.Errorf("facts after feedback: %v", facts)
	}
	p.wait(310_000)
	expect(t, presence(p), "conference 0 5500 reopened 0 amended 1", "alice 0 5500 fabricTerminated")

	// After grace nobody knows the conference.
	outputs = alice.feedback()
	if len(outputs) != 1 || !outputs[0].GetEvent().GetOrphan() || len(outputs[0].Identity.ConferenceUid) != 0 {
		t.Fatalf("feedback after grace gave %v", outputs)
	}
	if p.m.Counts().Orphans != 1 {
		t.Errorf("orphans counted: %d", p.m.Counts().Orphans)
	}
	if p.wait(60_000); p.m.WantsTicks() {
		t.Error("an orphan keeps the machine waiting")
	}
}

func TestClosingMessagesBeginNothing(t *testing.T) {
	closing := map[string]func(*client) []*callscopev1.Enriched{
		"feedback":  (*client).feedback,
		"terminate": func(c *client) []*callscopev1.Enriched { return c.terminate("x", "bob") },
		"left":      func(c *client) []*callscopev1.Enriched { return c.left("x", "bob") },
		"log": func(c *client) []*callscopev1.Enriched {
			return c.fail("applicationErrorLog", "applicationLog", "ApplicationLog", "x", "bob", 1)
		},
		"log as failure": func(c *client) []*callscopev1.Enriched {
			return c.fail("fabricSetupFailed", "applicationError", "ApplicationLog", "x", "bob", 1)
		},
		"iceTerminated": func(c *client) []*callscopev1.Enriched {
			return c.ice("iceTerminated", "x", "bob", "connected", "closed")
		},
		"iceAborted": func(c *client) []*callscopev1.Enriched { return c.ice("iceAborted", "x", "bob", "checking", "closed") },
		"suspended": func(c *client) []*callscopev1.Enriched {
			return c.send(c.message("mediaPlaybackSuspended", "x", "bob"))
		},
		"stalled": func(c *client) []*callscopev1.Enriched { return c.send(c.message("mediaPlaybackStalled", "x", "bob")) },
	}
	for name, send := range closing {
		t.Run(name, func(t *testing.T) {
			p, alice, bob := newPair(t)
			outputs := send(alice)
			if len(outputs) != 1 || !outputs[0].GetEvent().GetOrphan() {
				t.Errorf("with no conference: %v", outputs)
			}
			bob.join()
			outputs = send(alice)
			if len(outputs) != 1 || outputs[0].GetEvent().GetOrphan() || len(outputs[0].Identity.ConferenceUid) == 0 {
				t.Errorf("of an unknown participant: %v", outputs)
			}
			alice.join()
			outputs = send(alice)
			for _, e := range outputs {
				if e.GetFabric() != nil {
					t.Errorf("of an unknown fabric: %v", outputs)
				}
			}
			p.wait(60_000)
			if got := found(p.outputs, p.m.Counts()).Conferences; len(got) != 1 || len(got[0].Fabrics) != 0 || len(got[0].Participants) != 2 {
				t.Errorf("found %+v", got)
			}
		})
	}
}

func TestNetworkCuts(t *testing.T) {
	tests := []struct {
		name string
		cut  int64
		all  bool
		want []string
	}{
		{"20 s for one", 20_000, false, []string{
			"conference 0 131000 reopened 0 amended 0",
			"alice 0 131000 fabricTerminated", "bob 500 131000 fabricTerminated",
		}},
		{"40 s for one", 40_000, false, []string{
			"conference 0 151000 reopened 0 amended 0",
			"alice 0 51000 idle", "alice 91000 151000 fabricTerminated", "bob 500 151000 fabricTerminated",
		}},
		{"20 s for all", 20_000, true, []string{
			"conference 0 131000 reopened 0 amended 0",
			"alice 0 131000 fabricTerminated", "bob 500 131000 fabricTerminated",
		}},
		{"40 s for all", 40_000, true, []string{
			"conference 0 151000 reopened 1 amended 0",
			"alice 0 51000 idle", "alice 91000 151000 fabricTerminated",
			"bob 500 51000 idle", "bob 91000 151000 fabricTerminated",
		}},
		{"200 s for all", 200_000, true, []string{
			"conference 0 311000 reopened 1 amended 0",
			"alice 0 51000 idle", "alice 251000 311000 fabricTerminated",
			"bob 500 51000 idle", "bob 251000 311000 fabricTerminated",
		}},
		{"200 s for one", 200_000, false, []string{
			"conference 0 311000 reopened 0 amended 0",
			"alice 0 51000 idle", "alice 251000 311000 fabricTerminated", "bob 500 311000 fabricTerminated",
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p, alice, bob := newPair(t)
			alice.begin("a1", "bob")
			bob.begin("b1", "alice")
			both := map[*client]string{alice: "a1", bob: "b1"}
			keepAlive(50_000, both)
			if test.all {
				p.wait(test.cut - 10_000)
			} else {
				keepAlive(test.cut-10_000, map[*client]string{bob: "b1"})
			}
			keepAlive(60_000, both)
			p.wait(10_000)
			alice.terminate("a1", "bob")
			bob.terminate("b1", "alice")
			p.wait(400_000)
			expect(t, presence(p), test.want...)
			for _, line := range fabricLines(p) {
				if !strings.Contains(line, "setup 500 computed") || !strings.HasSuffix(line, "fabricTerminated") {
					t.Errorf("fabric: %s", line)
				}
			}
		})
	}
}

// After the participant went by silence, a closing message makes its fabric's
// end explicit: what comes later cannot undo it.
func TestClosingMessageAfterIdleness(t *testing.T) {
	p, alice, bob := newPair(t)
	alice.begin("a1", "bob")
	bob.begin("b1", "alice")
	keepAlive(60_000, map[*client]string{bob: "b1"})
	alice.terminate("a1", "bob")
	p.wait(1_000)
	alice.alive("a1", "bob")
	p.wait(5_000)
	expect(t, presence(p)[1:], "alice 0 500 idle", "bob 500 -1795343000000 ")
	expect(t, fabricLines(p)[:1], "alice a1 setup 500 computed 500 fabricTerminated")
}

func TestFabricRecreatedWithinTwoSeconds(t *testing.T) {
	p, alice, _ := newPair(t)
	alice.begin("a1", "bob")
	p.wait(10_000)
	alice.terminate("a1", "bob")
	p.wait(2_000)
	alice.devices("a2", "bob")
	p.wait(10_000)
	alice.terminate("a2", "bob")
	p.wait(60_000)
	expect(t, presence(p), "conference 0 22500 reopened 0 amended 0", "alice 0 22500 fabricTerminated")
	expect(t, fabricLines(p), "alice a1 setup 500 computed 10500 fabricTerminated", "alice a2 aborted NaN  22500 fabricTerminated")
}

// A userJoined in mid-call is the same participant, and keeps it from leaving.
func TestJoinAgainInMidCall(t *testing.T) {
	p, alice, _ := newPair(t)
	alice.begin("a1", "bob")
	p.wait(5_000)
	alice.join()
	p.wait(5_000)
	alice.terminate("a1", "bob")
	p.wait(2_000)
	alice.join()
	p.wait(20_000)
	if facts := newestParticipant(p, "alice"); !facts.Present || facts.Joins != 1 {
		t.Errorf("after joining again: %v", facts)
	}
	p.wait(60_000)
	expect(t, presence(p), "conference 0 12500 reopened 0 amended 0", "alice 0 12500 idle")
}

func newestParticipant(p *partition, user string) *callscopev1.ParticipantFacts {
	var facts *callscopev1.ParticipantFacts
	for _, e := range p.outputs {
		if e.GetParticipant() != nil && e.Identity.UserId == user {
			facts = e.GetParticipant()
		}
	}
	return facts
}

func TestLateStatsOfATerminatedFabric(t *testing.T) {
	p, alice, _ := newPair(t)
	alice.begin("a1", "bob")
	p.wait(5_000)
	alice.stats("a1", "bob", inbound("7", 100, 0, 10_000))
	p.wait(5_000)
	alice.terminate("a1", "bob")
	p.wait(1_000)
	outputs := alice.stats("a1", "bob", inbound("7", 200, 0, 20_000))
	kinds := kindsOf(outputs)
	if want := []string{"stats_received", "stream_sample"}; !slices.Equal(kinds, want) {
		t.Fatalf("late stats gave %v", kinds)
	}
	if sample := outputs[1].GetStreamSample(); sample.GetPackets() != 100 || sample.GetIntervalMs() != 6_000 {
		t.Errorf("late sample: %v", sample)
	}
	alice.alive("a1", "bob")
	alice.ice("", "a1", "bob", "connected", "failed")
	alice.fail("fabricSetupFailed", "createOffer", "NegotiationFailure", "a1", "bob", 5)
	p.wait(30_000)
	outputs = alice.stats("a1", "bob", inbound("7", 300, 0, 30_000))
	if last := outputs[len(outputs)-1].GetConference(); last.GetRevisionReason() != "late_message" {
		t.Errorf("stats in grace gave %v", kindsOf(outputs))
	}
	p.wait(400_000)
	expect(t, presence(p), "conference 0 10500 reopened 0 amended 1", "alice 0 10500 fabricTerminated")
	expect(t, fabricLines(p), "alice a1 setup 500 computed 10500 fabricTerminated")
}

func kindsOf(outputs []*callscopev1.Enriched) []string {
	var kinds []string
	for _, e := range outputs {
		m := e.ProtoReflect()
		kinds = append(kinds, string(m.WhichOneof(m.Descriptor().Oneofs().ByName("body")).Name()))
	}
	return kinds
}

func TestTwoDevicesOfOneUserAreTwoParticipants(t *testing.T) {
	p := newPartition(t)
	phone := &client{p: p, room: "room", user: "alice", device: "phone"}
	laptop := &client{p: p, room: "room", user: "alice", device: "laptop"}
	phone.begin("c1", "bob")
	laptop.begin("c1", "bob") // even with equal connection ids
	p.wait(5_000)
	phone.left("", "")
	p.wait(5_000)
	got := found(p.outputs, p.m.Counts()).Conferences[0]
	if len(got.Participants) != 2 || len(got.Fabrics) != 2 {
		t.Fatalf("found %+v", got)
	}
	expect(t, presence(p)[1:], "alice 0 6000 userLeft", "alice 500 -1795343000000 ")
	for _, e := range p.outputs {
		if c := e.GetConference(); c != nil && c.PeakParticipants > 2 {
			t.Errorf("peak %d", c.PeakParticipants)
		}
	}
}

// During grace a joining message begins the next occurrence, and a fabric that
// was only silent still belongs to the one it began in.
func TestAnOlderOccurrenceComesBack(t *testing.T) {
	p, alice, bob := newPair(t)
	alice.begin("a1", "bob")
	p.wait(60_000) // idle, ended
	bob.begin("b1", "alice")
	p.wait(5_000)
	outputs := alice.alive("a1", "bob")
	if kinds := kindsOf(outputs); !slices.Equal(kinds, []string{"event", "fabric", "participant", "conference"}) {
		t.Fatalf("coming back gave %v", kinds)
	}
	for _, e := range outputs[1:] {
		if !slices.Equal(e.Identity.ConferenceUid, outputs[0].Identity.ConferenceUid) {
			t.Error("facts of several conferences")
		}
	}
	if got := outputs[3].GetConference(); got.Reopened != 1 || got.RevisionReason != "reopened" || got.EndedAtMs != nil {
		t.Errorf("facts %v", got)
	}
	p.wait(1_000)
	alice.terminate("a1", "bob")
	bob.terminate("b1", "alice")
	p.wait(400_000)
	expect(t, presence(p),
		"conference 0 67000 reopened 1 amended 0", "alice 0 500 idle", "alice 66000 67000 fabricTerminated",
		"conference 60500 67000 reopened 0 amended 0", "bob 60500 67000 fabricTerminated")
	if got := p.m.Counts(); got.ConferencesBegun != 2 || got.ConferencesReopened != 1 {
		t.Errorf("counted %+v", got)
	}
}

// Nothing in the log's end is missed because the last ticks are far apart.
func TestTimeInLeapsClosesInOrder(t *testing.T) {
	p, alice, bob := newPair(t)
	alice.begin("a1", "bob")
	bob.begin("b1", "alice")
	bob.left("", "")
	var kinds []string
	for i := range 80 {
		p.nextUID++
		for _, kind := range kindsOf(p.step(nil, tickOf(p.nextUID, 1, int64(1_000+5_000*(i+1))))) {
			if kind != "time_passed" {
				kinds = append(kinds, kind)
			}
		}
	}
	expect(t, kinds, "fabric", "participant", "conference", "conference")
}

// A client's wrong clock moves neither presence nor delays, and its events are
// put where they belong.
func TestWrongClocks(t *testing.T) {
	for _, skew := range []int64{0, 59_000, 3_600_000, -3_600_000, 86_400_000, -86_400_000} {
		p, alice, bob := newPair(t)
		alice.skewMs = skew
		alice.begin("a1", "bob")
		bob.begin("b1", "alice")
		p.wait(9_000)
		outputs := alice.alive("a1", "bob")
		trueTime := float64(captureBaseMs + p.nowMs)
		want := trueTime
		if skew == 59_000 {
			want += float64(skew)
		}
		if got := outputs[0].TimeMs; got != want {
			t.Errorf("skew %d: the event is at %.0f, want %.0f", skew, got-captureBaseMs, want-captureBaseMs)
		}
		if got := outputs[0].ClientTimeMs; got != trueTime+float64(skew) {
			t.Errorf("skew %d: client time %.0f", skew, got)
		}
		alice.terminate("a1", "bob")
		bob.terminate("b1", "alice")
		p.wait(60_000)
		expect(t, presence(p), "conference 0 10000 reopened 0 amended 0", "alice 0 10000 fabricTerminated", "bob 500 10000 fabricTerminated")
		expect(t, fabricLines(p), "alice a1 setup 500 computed 10000 fabricTerminated", "bob b1 setup 500 computed 10000 fabricTerminated")
	}
}

// A gateway whose clock is ahead changes times, and nothing else.
func TestConferenceThatBeganAtAFastGateway(t *testing.T) {
	p, alice, _ := newPair(t)
	raw := alice.message("userJoined", "", "")
	raw.Observed = &callscopev1.Observed{ReceivedAtMs: captureBaseMs + 600_000}
	raw.Payload = &callscopev1.Raw_UserJoined{UserJoined: &callscopev1.UserJoined{}}
	alice.send(raw)
	p.wait(5_000)
	alice.left("", "")
	p.wait(60_000)
	for _, e := range p.outputs {
		if c := e.GetConference(); c != nil && c.EndedAtMs != nil && (c.EndReason != "userLeft" || c.GetEndedAtMs() != c.StartedAtMs) {
			t.Errorf("ended %v", c)
		}
	}
}

func TestUserLeft(t *testing.T) {
	p, alice, _ := newPair(t)
	alice.begin("a1", "bob")
	alice.devices("a2", "carol")
	p.wait(5_000)
	alice.left("a1", "bob")
	p.wait(5_000)
	if !newestParticipant(p, "alice").Present {
		t.Error("a userLeft for one of two fabrics ended the presence")
	}
	outputs := alice.left("", "")
	if kinds := kindsOf(outputs); !slices.Equal(kinds, []string{"event", "fabric", "participant"}) {
		t.Errorf("userLeft gave %v", kinds)
	}
	p.wait(60_000)
	expect(t, presence(p), "conference 0 10500 reopened 0 amended 0", "alice 0 10500 userLeft")
	expect(t, fabricLines(p), "alice a1 setup 500 computed 5500 userLeft", "alice a2 aborted NaN  10500 userLeft")
}

// Whoever comes and goes for ever does not make the state grow for ever.
func TestPresenceIsBounded(t *testing.T) {
	p, alice, bob := newPair(t)
	bob.begin("b1", "alice")
	for range maxPresences + 10 {
		alice.join()
		alice.left("", "")
		bob.alive("b1", "alice")
	}
	p.wait(1_000)
	alice.join()
	p.wait(2_000)
	alice.left("", "")
	facts := newestParticipant(p, "alice")
	last := facts.Intervals[len(facts.Intervals)-1]
	if len(facts.Intervals) != maxPresences || facts.Joins != maxPresences+11 || last.GetLeftAtMs() != captureBaseMs+p.nowMs || last.LeftReason != "userLeft" {
		t.Errorf("%d intervals of %d, the last %v", len(facts.Intervals), facts.Joins, last)
	}
}

func TestFabricOutcomes(t *testing.T) {
	type outcome struct {
		outcome          string
		function, reason string
		delay            float64
		disruptions      uint32
		disruptionMs     float64
	}
	tests := []struct {
		name string
		call func(p *partition, c *client)
		want outcome
	}{
		{"setup", func(p *partition, c *client) { c.ice("", "f", "bob", "checking", "connected") }, outcome{outcome: "setup"}},
		{"nothing but a first message", func(*partition, *client) {}, outcome{outcome: "aborted"}},
		{"failure reported", func(p *partition, c *client) {
			p.wait(2_000)
			c.fail("fabricSetupFailed", "createAnswer", "NegotiationFailure", "f", "bob", 1_990)
			c.fail("fabricSetupFailed", "setRemoteDescription", "NegotiationFailure", "f", "bob", 2_500)
		}, outcome{outcome: "failed", function: "createAnswer", reason: "NegotiationFailure", delay: 1_990}},
		{"failure without delay", func(p *partition, c *client) {
			p.wait(2_000)
			raw := c.message("fabricSetupFailed", "f", "bob")
			raw.Payload = &callscopev1.Raw_Failure{Failure: &callscopev1.Failure{Function: "createAnswer", Reason: "NegotiationFailure"}}
			c.send(raw)
		}, outcome{outcome: "failed", function: "createAnswer", reason: "NegotiationFailure", delay: 2_000}},
		{"log is no failure", func(p *partition, c *client) {
			c.fail("applicationErrorLog", "applicationLog", "ApplicationLog", "f", "bob", 10)
			c.fail("fabricSetupFailed", "applicationError", "ApplicationLog", "f", "bob", 10)
		}, outcome{outcome: "aborted"}},
		{"iceFailed", func(p *partition, c *client) {
			p.wait(3_000)
			c.ice("iceFailed", "f", "bob", "checking", "failed")
		}, outcome{outcome: "failed", function: "iceConnectionFailure", reason: "IceConnectionFailure", delay: 3_000}},
		{"only the state failed", func(p *partition, c *client) {
			c.ice("", "f", "bob", "checking", "failed")
		}, outcome{outcome: "failed", reason: "IceConnectionFailure"}},
		{"disruption while checking, open at the end", func(p *partition, c *client) {
			c.ice("iceConnectionDisruptionStart", "f", "bob", "checking", "disconnected")
		}, outcome{outcome: "failed", reason: "IceConnectionFailure"}},
		{"disruption while checking, over", func(p *partition, c *client) {
			c.ice("iceConnectionDisruptionStart", "f", "bob", "checking", "disconnected")
			c.ice("iceConnectionDisruptionEnd", "f", "bob", "disconnected", "checking")
		}, outcome{outcome: "aborted"}},
		{"set up beats an earlier failure", func(p *partition, c *client) {
			c.fail("fabricSetupFailed", "createAnswer", "NegotiationFailure", "f", "bob", 10)
			c.ice("", "f", "bob", "checking", "completed")
		}, outcome{outcome: "setup"}},
		{"set up beats a later failure", func(p *partition, c *client) {
			c.ice("", "f", "bob", "checking", "completed")
			c.fail("fabricSetupFailed", "createAnswer", "NegotiationFailure", "f", "bob", 10)
		}, outcome{outcome: "setup"}},
		{"dropped", func(p *partition, c *client) {
			c.ice("", "f", "bob", "checking", "connected")
			c.ice("fabricDropped", "f", "bob", "disconnected", "failed")
		}, outcome{outcome: "dropped"}},
		{"iceFailed after set-up", func(p *partition, c *client) {
			c.ice("", "f", "bob", "checking", "connected")
			c.ice("iceFailed", "f", "bob", "disconnected", "failed")
		}, outcome{outcome: "dropped"}},
		{"iceFailed reported while connected", func(p *partition, c *client) {
			c.ice("", "f", "bob", "checking", "connected")
			c.ice("iceFailed", "f", "bob", "checking", "connected")
		}, outcome{outcome: "setup"}},
		{"iceFailed after set-up, states unknown", func(p *partition, c *client) {
			c.ice("", "f", "bob", "checking", "connected")
			c.ice("iceFailed", "f", "bob", "", "")
		}, outcome{outcome: "dropped"}},
		{"dropped and back", func(p *partition, c *client) {
			c.ice("", "f", "bob", "checking", "connected")
			c.ice("fabricDropped", "f", "bob", "disconnected", "failed")
			c.ice("", "f", "bob", "checking", "connected")
		}, outcome{outcome: "setup"}},
		{"disruptions", func(p *partition, c *client) {
			c.ice("", "f", "bob", "checking", "connected")
			p.wait(1_000)
			c.ice("iceDisruptionStart", "f", "bob", "connected", "disconnected")
			p.wait(2_500)
			c.ice("iceDisruptionEnd", "f", "bob", "disconnected", "connected")
			p.wait(1_000)
			c.ice("iceDisruptionStart", "f", "bob", "connected", "disconnected")
			p.wait(1_500) // and 1,000 to the end
		}, outcome{outcome: "setup", disruptions: 2, disruptionMs: 5_000}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p, alice, _ := newPair(t)
			alice.join()
			alice.devices("f", "bob")
			test.call(p, alice)
			p.wait(1_000)
			alice.terminate("f", "bob")
			p.wait(60_000)
			fabrics := newest(p.outputs, func(e *callscopev1.Enriched) ([]byte, *callscopev1.FabricFacts) {
				return e.Identity.GetFabricUid(), e.GetFabric()
			})
			facts := fabrics[0].facts
			got := outcome{
				outcome:  strings.ToLower(strings.TrimPrefix(facts.Outcome.String(), "FABRIC_OUTCOME_")),
				function: facts.FailureFunction, reason: facts.FailureReason, delay: facts.GetFailureDelayMs(),
				disruptions: facts.Disruptions, disruptionMs: facts.DisruptionMs,
			}
			if got != test.want {
				t.Errorf("found %+v, want %+v", got, test.want)
			}
		})
	}
}

// Whoever stays when the other hangs up sees its connection break: that is no
// drop and no failure. When the other only fell silent, it is.
func TestADepartingPeerIsNeverAFailure(t *testing.T) {
	for _, test := range []struct {
		name string
		gone func(p *partition, bob *client)
		want []string // alice's two fabrics
	}{
		{"hung up", func(p *partition, bob *client) { bob.terminate("b1", "alice"); bob.left("", "") }, []string{"setup", "aborted"}},
		{"fell silent", func(*partition, *client) {}, []string{"dropped", "failed"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, alice, bob := newPair(t)
			bob.begin("b1", "alice")
			alice.begin("a1", "bob")
			alice.devices("a2", "bob")
			test.gone(p, bob)
			p.wait(1_000)
			alice.ice("", "a1", "bob", "connected", "disconnected")
			alice.ice("iceConnectionDisruptionStart", "a2", "bob", "checking", "disconnected")
			keepAlive(40_000, map[*client]string{alice: "a1"})
			alice.ice("fabricDropped", "a1", "bob", "disconnected", "failed")
			alice.ice("iceFailed", "a2", "bob", "disconnected", "failed")
			alice.terminate("a1", "bob")
			alice.terminate("a2", "bob")
			p.wait(60_000)
			var got []string
			for _, line := range fabricLines(p) {
				if fields := strings.Fields(line); fields[0] == "alice" {
					got = append(got, fields[2])
				}
			}
			expect(t, got, test.want...)
		})
	}
}

func TestDuplicatesAreDroppedAndCounted(t *testing.T) {
	p, alice, _ := newPair(t)
	alice.begin("a1", "bob")
	raw := alice.message("callDetails", "a1", "bob")
	raw.Observed = &callscopev1.Observed{ContentHash: hash("body")}
	if outputs := alice.send(raw); len(outputs) != 1 {
		t.Fatalf("the first gave %v", kindsOf(outputs))
	}
	if outputs := alice.send(raw); len(outputs) != 0 {
		t.Errorf("the same record again gave %v", kindsOf(outputs))
	}
	raw.Uid = nil
	if outputs := alice.send(raw); len(outputs) != 0 {
		t.Errorf("the same content again gave %v", kindsOf(outputs))
	}
	other := &client{p: p, room: "room", user: "alice", device: "another"}
	again := other.message("callDetails", "a1", "bob")
	again.Observed = &callscopev1.Observed{ContentHash: hash("body")}
	if outputs := other.send(again); len(outputs) == 0 {
		t.Error("the same content of another participant was dropped")
	}
	p.wait(61_000)
	raw.Uid = nil
	if outputs := alice.send(raw); len(outputs) == 0 {
		t.Error("the same content after a minute was dropped")
	}

	numbered := func(n uint64) int {
		raw := alice.message("dominantSpeaker", "a1", "bob")
		raw.Claimed.Sequence, raw.Claimed.SessionUid = proto.Uint64(n), testUID(99)
		return len(alice.send(raw))
	}
	for i, test := range []struct {
		number uint64
		fresh  bool
	}{
		{0, true}, {0, false}, {1, true}, {5, true}, {3, true}, {3, false}, {5, false}, {2, true}, {1028, true}, {1028, false},
		{6, true}, {5, false}, {4, false}, {1_000_000, true}, {1028, false}, {999_999, true}, {999_999, false},
		{1_000_000 - 1023, true}, {1_000_000 - 1024, false},
	} {
		if fresh := numbered(test.number) > 0; fresh != test.fresh {
			t.Errorf("step %d, number %d: fresh %v", i, test.number, fresh)
		}
	}
	counts := p.m.Counts()
	if counts.DuplicateRecords != 1 || counts.DuplicateContents != 1 || counts.DuplicateSequences != 9 {
		t.Errorf("counted %+v", counts)
	}
	if p.wait(900_000); p.m.WantsTicks() {
		t.Error("the duplicate window never empties")
	}
}

// A superseded ticker's ticks change nothing, and no tick adds more than 5 s.
func TestAliveTimeAlone(t *testing.T) {
	p, alice, _ := newPair(t)
	alice.begin("a1", "bob")
	p.wait(10_000)
	tick := func(ticker uint64, monotonicMs int64) []*callscopev1.Enriched {
		p.nextUID++
		return p.step(nil, tickOf(p.nextUID, ticker, monotonicMs))
	}
	before := p.m.AliveMs()
	tick(7, 5_000_000)
	tick(7, 5_000_000+3_600_000)
	if got := p.m.AliveMs() - before; got != 5_000 {
		t.Errorf("an hour of silence added %d ms", got)
	}
	if outputs := tick(1, 1<<40); len(outputs) != 0 || p.m.AliveMs()-before != 5_000 {
		t.Errorf("a superseded ticker gave %v", kindsOf(outputs))
	}
	if got := p.m.Counts().IgnoredTicks; got != 1 {
		t.Errorf("ignored ticks counted: %d", got)
	}
	if !newestParticipant(p, "alice").Present {
		t.Error("an hour of silence closed a call")
	}
}

func TestConferenceIDsOfOthersAreOthers(t *testing.T) {
	p, alice, bob := newPair(t)
	alice.begin("a1", "bob")
	bob.room = "Room" // case-sensitive
	bob.begin("b1", "alice")
	other := &client{p: p, room: "room", user: "alice", device: "d-alice"}
	raw := other.message("userJoined", "", "")
	raw.Payload = &callscopev1.Raw_UserJoined{UserJoined: &callscopev1.UserJoined{}}
	raw.Observed = &callscopev1.Observed{AppId: "987"}
	other.send(raw)
	p.wait(60_000)
	if got := found(p.outputs, p.m.Counts()).Conferences; len(got) != 3 {
		t.Errorf("found %d conferences", len(got))
	}
}

func TestUIDs(t *testing.T) {
	p, alice, _ := newPair(t)
	outputs := alice.join()
	conferenceUID := stage.UID([]byte("123456789"), []byte("room"), p.lastUID)
	participantUID := stage.UID(conferenceUID, []byte("alice"), []byte("d-alice"))
	for i, e := range outputs {
		if !slices.Equal(e.Uid, stage.OutputUID(p.lastUID, i)) {
			t.Errorf("output %d has another uid", i)
		}
	}
	if !slices.Equal(outputs[0].Identity.ConferenceUid, conferenceUID) || !slices.Equal(outputs[0].Identity.ParticipantUid, participantUID) {
		t.Error("conference_uid or participant_uid is another")
	}
	outputs = alice.devices("a1", "bob")
	if !slices.Equal(outputs[0].Identity.FabricUid, stage.UID(participantUID, []byte("a1"))) {
		t.Error("fabric_uid is another")
	}
	if kinds := kindsOf(outputs); !slices.Equal(kinds, []string{"event", "fabric"}) {
		t.Errorf("a new fabric gave %v", kinds)
	}
	for _, connection := range []string{"alice", "%61lice", ""} {
		if outputs := alice.devices(connection, "bob"); len(outputs[0].Identity.FabricUid) != 0 || outputs[0].Identity.ConnectionId != "" {
			t.Errorf("connection %q names a fabric", connection)
		}
	}
}

func TestBadRecordsChangeNothing(t *testing.T) {
	p, alice, _ := newPair(t)
	alice.begin("a1", "bob")
	before, err := p.m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	marshal := func(raw *callscopev1.Raw) []byte {
		data, err := raw.MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	named := alice.message("userDetails", "a1", "bob")
	named.Uid, named.Observed = testUID(5), &callscopev1.Observed{AppId: "1"}
	named.Payload = &callscopev1.Raw_UserDetails{UserDetails: &callscopev1.UserDetails{UserName: "\xff"}}
	for name, value := range map[string][]byte{
		"no protobuf":  {0xff, 0xff},
		"empty":        {},
		"short uid":    marshal(&callscopev1.Raw{Uid: []byte{1}}),
		"no app":       marshal(&callscopev1.Raw{Uid: testUID(5), EventType: "userAlive"}),
		"invalid text": marshal(named),
	} {
		if _, err := p.m.Step(stage.Input{Offset: 99, Value: value}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	after, err := p.m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(before, after) {
		t.Error("a refused record changed the state")
	}
}
