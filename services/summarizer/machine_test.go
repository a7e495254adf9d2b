package summarizer

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/callscope/callscope/internal/stage"
	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

var (
	room  = who{app: "1", room: "room"}
	alice = who{app: "1", room: "room", user: "alice", device: "d1", connection: "c1", remote: "bob"}
	bob   = who{app: "1", room: "room", user: "bob", device: "d2", connection: "c2", remote: "alice"}
	carol = who{app: "1", room: "room", user: "carol", device: "d3", connection: "c3", remote: "alice"}
)

func wantBriefs(t *testing.T, what string, got []*callscopev1.Summary, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, briefs(got), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("%s: (-want +got)\n%s", what, diff)
	}
}

func openFacts() *callscopev1.ConferenceFacts {
	return &callscopev1.ConferenceFacts{State: open, StartedAtMs: begin, LastMessageAtMs: begin, PeakParticipants: 1}
}

// twoUsers begins a call of alice and bob with a set-up fabric each.
func twoUsers(l *log) {
	for i, w := range []who{alice, bob} {
		l.message()
		l.event(who{app: w.app, room: w.room, user: w.user, device: w.device}, &callscopev1.Event{EventType: "userJoined"})
		l.participant(w, present(0))
		facts := openFacts()
		facts.PeakParticipants = uint32(i + 1)
		l.conference(w, facts)
		l.message()
		l.event(w, &callscopev1.Event{EventType: "fabricSetup"})
		l.fabric(w, &callscopev1.FabricFacts{StartedAtMs: begin, Outcome: setup, SetupDelayMs: new(200 + float64(i)*50), DelaySource: "reported"})
	}
}

func (l *log) leave(w who, outcome callscopev1.FabricOutcome, delay float64) []*callscopev1.Summary {
	l.message()
	l.event(w, &callscopev1.Event{EventType: "userLeft"})
	l.fabric(w, &callscopev1.FabricFacts{
		StartedAtMs: begin, EndedAtMs: new(l.received()), EndReason: "userLeft", Outcome: outcome, SetupDelayMs: &delay, DelaySource: "reported",
	})
	return l.participant(w, present(0, l.alive))
}

func (l *log) end(endedAlive int64, reason string) []*callscopev1.Summary {
	return l.conference(room, &callscopev1.ConferenceFacts{
		State: ended, StartedAtMs: begin, EndedAtMs: new(begin + endedAlive), EndReason: "userLeft",
		LastMessageAtMs: begin + endedAlive, PeakParticipants: 2, RevisionReason: reason,
	})
}

func TestLifecycle(t *testing.T) {
	l := newLog(t)
	twoUsers(l)
	if len(l.all) != 0 {
		t.Errorf("written before a tick: %v", briefs(l.all))
	}
	wantBriefs(t, "first tick", l.tick(1000),
		"fabric alice>bob partial 1 started", "participant alice partial 1 started",
		"fabric bob>alice partial 1 started", "participant bob partial 1 started", "conference room partial 1 started")
	wantBriefs(t, "58 seconds of nothing", l.ticks(58))
	l.message()
	l.stats(alice)
	l.sample(alice, &callscopev1.StreamSample{Ssrc: "7", Direction: outbound, MediaType: "audio", IntervalMs: new(1000.0), BitrateKbps: new(32.0)})
	wantBriefs(t, "60 s", l.tick(1000),
		"stream alice:7 partial 1 interval", "participant alice partial 2 interval", "conference room partial 2 interval")
	if got := l.out[1].GetParticipant().PresenceMs; got != 59_000 {
		t.Errorf("presence of who is still there is %d ms, want up to the last message", got)
	}
	wantBriefs(t, "the next minute", l.ticks(60), "conference room partial 3 interval")
	wantBriefs(t, "alice leaves", l.leave(alice, setup, 200),
		"stream alice:7 final 2 participant_left", "fabric alice>bob final 2 participant_left", "participant alice final 3 participant_left")
	l.tick(5000)
	wantBriefs(t, "bob leaves", l.leave(bob, setup, 250), "fabric bob>alice final 2 participant_left", "participant bob final 2 participant_left")
	l.tick(5000)
	l.tick(5000)
	wantBriefs(t, "end", l.end(125_000, ""), "conference room final 4 conference_ended")
	got := l.out[0].GetConference()
	want := &callscopev1.ConferenceSummary{
		StartedAtMs: begin, EndedAtMs: new(int64(begin + 125_000)), DurationMs: new(int64(125_000)), Outcome: "success",
		EndReason: "userLeft", Participants: 2, PeakParticipants: 2,
		ParticipantMinutes: new((120_000.0 + 125_000) / 60_000), // both from 0 on
		Fabrics:            2, SetupDelayMsMin: new(200.0), SetupDelayMsMean: new(225.0), SetupDelayMsMedian: new(225.0), SetupDelayMsMax: new(250.0),
		LastMessageAtMs:     begin + 125_000,
		MaxJoins:            1,
		OutcomeEvidenceJson: `{"rule":"7","participants":{"connected":2,"failed":0,"aborted":0,"idle":0,"lost":0},"links":{"established":2,"failed":0,"dropped":0,"aborted":0}}`,
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("conference: (-want +got)\n%s", diff)
	}
	wantBriefs(t, "grace", l.ticks(200))

	// A rating in grace revises who gave it and the conference.
	l.message()
	l.feedback(who{app: "1", room: "room", user: "bob", device: "d2"}, 4)
	wantBriefs(t, "feedback", l.end(125_000, "feedback"), "participant bob revised 3 feedback", "conference room revised 5 feedback")
	if got := l.out[1].GetConference().GetFeedbackOverall(); got != 4 {
		t.Errorf("feedback is %v, want 4", got)
	}
	wantBriefs(t, "after it", l.ticks(5))

	// The enricher's facts say nothing of this one: the next tick does.
	l.message()
	l.sample(bob, &callscopev1.StreamSample{Ssrc: "9", Direction: inbound, MediaType: "audio"})
	wantBriefs(t, "a late sample", l.tick(1000), "stream bob:9 final 1 late_message", "participant bob revised 4 late_message", "conference room revised 6 late_message")

	wantBriefs(t, "forgotten", l.conference(room, &callscopev1.ConferenceFacts{State: forgotten, StartedAtMs: begin}))
	if len(l.machine.conferences) != 0 {
		t.Error("a forgotten conference is still in the state")
	}
	wantBriefs(t, "time after that", l.ticks(70))
	wantBriefs(t, "forgotten twice", l.conference(room, &callscopev1.ConferenceFacts{State: forgotten, StartedAtMs: begin}))
}

func TestForgottenWritesWhatIsPending(t *testing.T) {
	l := newLog(t)
	twoUsers(l)
	l.leave(alice, setup, 1)
	l.leave(bob, setup, 1)
	l.end(0, "")
	l.message()
	l.feedback(bob, 2)
	wantBriefs(t, "forgotten", l.conference(room, &callscopev1.ConferenceFacts{State: forgotten, StartedAtMs: begin}),
		"participant bob revised 2 forgotten", "conference room revised 2 forgotten")
}

func TestReopenedFiveTimes(t *testing.T) {
	l := newLog(t)
	twoUsers(l)
	l.leave(alice, setup, 200)
	l.leave(bob, setup, 250)
	l.tick(10_000)
	l.end(0, "")
	var times []int64
	for round := range 5 {
		l.tick(1000)
		times = append(times, l.alive)
		l.message()
		l.stats(bob)
		back := present(append([]int64{0, 0}, times...)...)
		back.Joins = uint32(round + 2)
		l.participant(bob, back)
		facts := openFacts()
		facts.Reopened, facts.RevisionReason = uint32(round+1), "reopened"
		l.conference(room, facts)
		wantBriefs(t, "reopened", l.out,
			fmt.Sprintf("participant bob revised %d reopened", 2+2*round), fmt.Sprintf("conference room revised %d reopened", 3+2*round))
		if c := l.out[1].GetConference(); c.EndedAtMs != nil || c.DurationMs != nil || c.Outcome != "" || c.Rejoins != uint32(round+1) || c.Reopened != uint32(round+1) {
			t.Errorf("round %d: %v", round, c)
		}
		l.tick(2000)
		times = append(times, l.alive)
		l.message()
		gone := present(append([]int64{0, 0}, times...)...)
		gone.Joins = uint32(round + 2)
		wantBriefs(t, "gone again", l.participant(bob, gone), fmt.Sprintf("participant bob revised %d participant_left", 3+2*round))
		wantBriefs(t, "ended again", l.end(l.alive, ""), fmt.Sprintf("conference room revised %d conference_ended", 4+2*round))
	}
	c := l.out[0].GetConference()
	if got, want := c.GetParticipantMinutes(), 5*2000.0/60_000; got != want {
		t.Errorf("participant minutes are %v, want %v", got, want)
	}
}

// Two apps with the same ids are two conferences with everything of their own.
func TestEqualIDsAcrossApps(t *testing.T) {
	l := newLog(t)
	for _, app := range []string{"1", "2"} {
		w := who{app: app, room: "room", user: "alice", device: "d"}
		l.message()
		l.participant(w, present(0))
		l.conference(w, openFacts())
	}
	l.message()
	l.feedback(who{app: "2", room: "room", user: "alice", device: "d"}, 5)
	l.tick(1000)
	seen := map[string]bool{}
	for _, s := range l.out {
		seen[string(s.EntityUid)] = true
		if s.GetConference() == nil {
			continue
		}
		if got, want := s.GetConference().FeedbackOverall != nil, s.Identity.AppId == "2"; got != want {
			t.Errorf("app %s: feedback is %v, want %v", s.Identity.AppId, got, want)
		}
	}
	if len(l.out) != 4 || len(seen) != 4 {
		t.Errorf("%d summaries of %d entities, want 4 of 4", len(l.out), len(seen))
	}
}

func TestOrphansAndPreCallTestsAreIgnored(t *testing.T) {
	l := newLog(t)
	l.write(&callscopev1.Identity{AppId: "1", ConferenceId: "room", UserId: "u"}, &callscopev1.Enriched{Body: &callscopev1.Enriched_Event{Event: &callscopev1.Event{EventType: "userFeedbackEvent", Orphan: true}}})
	l.write(&callscopev1.Identity{AppId: "1", UserId: "u"}, &callscopev1.Enriched{Body: &callscopev1.Enriched_PreCallTest{PreCallTest: &callscopev1.PreCallTest{}}})
	l.write(nil, &callscopev1.Enriched{})
	l.tick(1000)
	if len(l.all) != 0 || len(l.machine.conferences) != 0 {
		t.Errorf("wrote %v and kept %d conferences", briefs(l.all), len(l.machine.conferences))
	}
}

// A conference that the enricher gives no facts of does not stay for ever.
func TestConferenceWithoutFacts(t *testing.T) {
	l := newLog(t)
	l.message()
	l.stats(alice)
	l.tick(1000)
	if len(l.all) != 0 || len(l.machine.conferences) != 0 {
		t.Errorf("wrote %v and kept %d conferences", briefs(l.all), len(l.machine.conferences))
	}
}

func TestUndecodableRecord(t *testing.T) {
	l := newLog(t)
	twoUsers(l)
	before, _ := l.machine.Snapshot()
	out, err := l.machine.Step(stage.Input{Offset: l.offset, Value: []byte{0xff, 0xff}})
	if err == nil || out != nil {
		t.Errorf("accepted, wrote %v", out)
	}
	if after, _ := l.machine.Snapshot(); !bytes.Equal(before, after) {
		t.Error("the state changed")
	}
}

func TestFeedbackOutsideOfOneToFive(t *testing.T) {
	l := newLog(t)
	twoUsers(l)
	for _, overall := range []float64{0, 6, -1, math.NaN(), math.Inf(1)} {
		l.message()
		l.feedback(alice, overall)
	}
	l.tick(1000)
	if c := l.out[len(l.out)-1].GetConference(); c.FeedbackOverall != nil {
		t.Errorf("feedback is %v, want none", *c.FeedbackOverall)
	}
	for _, step := range []struct {
		w       who
		overall float64
		want    float64
	}{{alice, 2, 2}, {alice, 5, 5}, {bob, 2, 3.5}, {bob, 99, 3.5}} {
		l.message()
		l.feedback(step.w, step.overall)
		l.ticks(60)
		if c := l.all[len(l.all)-1].GetConference(); c.GetFeedbackOverall() != step.want {
			t.Errorf("after %v of %s: feedback is %v, want %v", step.overall, step.w.user, c.GetFeedbackOverall(), step.want)
		}
	}
}

// The newest facts are the whole truth, also where a sample came first.
func TestParticipantAndFabricColumns(t *testing.T) {
	l := newLog(t)
	l.message()
	facts := present(0)
	facts.Browser, facts.BrowserVersion, facts.Os, facts.OsVersion = "Firefox", "140", "Linux", "6"
	facts.ClientVersion, facts.AppVersion, facts.Country, facts.Network = "3.73", "9", "FI", "net"
	facts.SiteId, facts.UserName = "site", "Alice Real"
	l.participant(alice, facts)
	l.conference(room, openFacts())
	l.message()
	l.stats(alice)
	l.path(alice, &callscopev1.FabricSample{IntervalMs: new(1000.0), RttMs: new(100.0), Relayed: new(true)})
	l.path(alice, &callscopev1.FabricSample{IntervalMs: new(3000.0), RttMs: new(20.0)})
	l.fabric(alice, &callscopev1.FabricFacts{
		StartedAtMs: begin + 5, Usage: "multiplex", RemoteType: "peer", Direction: "sendrecv", Outcome: failed,
		FailureDelayMs: new(70.0), FailureFunction: "createOffer", FailureReason: "NegotiationFailure",
		SetupDelayMs: new(math.Inf(1)), Disruptions: 2, DisruptionMs: 50,
	})
	l.tick(1000)
	wantFabric := &callscopev1.FabricSummary{
		StartedAtMs: begin + 5, Usage: "multiplex", RemoteType: "peer", Direction: "sendrecv", Outcome: "failed",
		FailureDelayMs: new(70.0), FailureFunction: "createOffer", FailureReason: "NegotiationFailure", Disruptions: 2, DisruptionMs: 50,
		Relayed: new(true), RttMs: new(40.0),
	}
	gotFabric := l.out[0].GetFabric()
	if r := gotFabric.Rtt; r.GetMin() != 20 || r.GetMax() != 100 || r.GetMean() != 40 || math.Abs(r.GetMedian()-20) > 0.2 || math.Abs(r.GetP90()-100) > 1 || r.GetShareBelow() != 1 {
		t.Errorf("round-trip times: %v", r)
	}
	if diff := cmp.Diff(wantFabric, gotFabric, protocmp.Transform(), protocmp.IgnoreFields(&callscopev1.FabricSummary{}, "rtt")); diff != "" {
		t.Errorf("fabric: (-want +got)\n%s", diff)
	}
	wantParticipant := &callscopev1.ParticipantSummary{
		JoinedAtMs: begin, Joins: 1, Alias: "alice", Browser: "Firefox", BrowserVersion: "140", Os: "Linux", OsVersion: "6",
		ClientVersion: "3.73", AppVersion: "9", Country: "FI", Network: "net", SiteId: "site", UserName: "Alice Real",
		Fabrics: 1, FabricsFailed: 1, Present: true, IntervalJoinedAtMs: []int64{begin}, IntervalLeftAtMs: []int64{0},
	}
	gotParticipant := l.out[1].GetParticipant()
	compare(t, "the participant's round-trip times", gotParticipant.RttMs, naive([]point{{100, 1000}, {20, 3000}}, 300), 0.01)
	if diff := cmp.Diff(wantParticipant, gotParticipant, protocmp.Transform(), protocmp.IgnoreFields(&callscopev1.ParticipantSummary{}, "rtt_ms")); diff != "" {
		t.Errorf("participant: (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(alice.identity(), l.out[0].Identity, protocmp.Transform()); diff != "" {
		t.Errorf("identity: (-want +got)\n%s", diff)
	}
	if s := l.out[0]; s.FirstRawOffset != 2 || s.LastRawOffset != 2 || s.ConferenceStartedAtMs != begin || s.LogicVersion != logicVersion {
		t.Errorf("frame of the fabric's summary: %v", s)
	}
	if s := l.out[1]; s.FirstRawOffset != 1 || s.LastRawOffset != 2 {
		t.Errorf("raw range of the participant is %d to %d, want 1 to 2", s.FirstRawOffset, s.LastRawOffset)
	}
}

// The first message of a fabric need not name its remote user: the summary has
// the one that a later message names, and both fabrics are one link.
func TestRemoteOfAFabricIsLearntLater(t *testing.T) {
	l := newLog(t)
	l.message()
	l.participant(alice, present(0))
	l.conference(room, openFacts())
	unnamed := alice
	unnamed.remote = ""
	l.message()
	l.event(unnamed, &callscopev1.Event{EventType: "fabricStateChange"})
	l.fabric(unnamed, &callscopev1.FabricFacts{StartedAtMs: begin, Outcome: pending})
	l.message()
	l.event(alice, &callscopev1.Event{EventType: "fabricSetupFailed"})
	l.fabric(alice, &callscopev1.FabricFacts{StartedAtMs: begin, Outcome: failed})
	again := alice
	again.connection = "c9"
	l.message()
	l.fabric(again, &callscopev1.FabricFacts{StartedAtMs: begin, Outcome: setup})
	// An event has what its own message said, the fabric keeps what it knows.
	l.message()
	l.event(unnamed, &callscopev1.Event{EventType: "audioMute"})
	l.fabric(alice, &callscopev1.FabricFacts{StartedAtMs: begin, EndedAtMs: new(int64(begin)), Outcome: failed})
	l.participant(alice, present(0, 1000))
	l.end(1000, "")
	remotes := map[string]string{}
	for _, s := range l.all {
		if s.GetFabric() != nil {
			remotes[s.Identity.ConnectionId] = s.Identity.RemoteId
		}
	}
	if diff := cmp.Diff(map[string]string{"c1": "bob", "c9": "bob"}, remotes); diff != "" {
		t.Errorf("remotes: (-want +got)\n%s", diff)
	}
	if got := l.out[len(l.out)-1].GetConference().Outcome; got != "success" {
		t.Errorf("outcome %q: the link to bob failed first and then worked", got)
	}
}

func TestStreamFactsReplaceWhatASampleSaid(t *testing.T) {
	l := newLog(t)
	l.message()
	l.participant(alice, present(0))
	l.sample(alice, &callscopev1.StreamSample{Ssrc: "7", Direction: inbound, MediaType: "audio", OwnerUserId: "bob", OwnerSource: callscopev1.OwnerSource_OWNER_SOURCE_DEFAULT, Codec: "audio/opus"})
	l.conference(room, openFacts())
	l.tick(1000)
	got := l.out[0].GetStream()
	want := &callscopev1.StreamSummary{Ssrc: "7", Direction: "inbound", MediaType: "audio", OwnerUserId: "bob", OwnerSource: "default", Codec: "audio/opus", StartedAtMs: begin, Samples: 1}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("by the sample: (-want +got)\n%s", diff)
	}
	l.message()
	l.sample(alice, &callscopev1.StreamSample{Ssrc: "7", Direction: inbound, MediaType: "audio", OwnerUserId: "bob"})
	l.stream(alice, &callscopev1.StreamFacts{Ssrc: "7", Direction: inbound, MediaType: "audio", OwnerUserId: "carol", OwnerSource: callscopev1.OwnerSource_OWNER_SOURCE_SSRC_MAP, UsageLabel: "mic", StartedAtMs: begin - 1})
	l.tick(2000)
	l.participant(alice, present(0, l.alive))
	got = l.out[0].GetStream()
	want = &callscopev1.StreamSummary{Ssrc: "7", Direction: "inbound", MediaType: "audio", OwnerUserId: "carol", OwnerSource: "ssrcMap", UsageLabel: "mic", StartedAtMs: begin - 1, EndedAtMs: new(int64(begin + 1000)), Samples: 2}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("by facts: (-want +got)\n%s", diff)
	}
}

// Ids of outputs that a tick caused are made of the tick, the entity and the
// kind; others of the record and the place.
func TestOutputUIDs(t *testing.T) {
	l := newLog(t)
	twoUsers(l)
	l.tick(1000)
	tick := uid('e', l.offset-1)
	for i, want := range [][]byte{
		stage.TickOutputUID(tick, name("1", "room", "alice", "d1", "c1"), "fabric"),
		stage.TickOutputUID(tick, name("1", "room", "alice", "d1"), "participant"),
		stage.TickOutputUID(tick, name("1", "room", "bob", "d2", "c2"), "fabric"),
		stage.TickOutputUID(tick, name("1", "room", "bob", "d2"), "participant"),
		stage.TickOutputUID(tick, name("1", "room"), "conference"),
	} {
		if !bytes.Equal(l.out[i].Uid, want) {
			t.Errorf("output %d: uid %x, want %x", i, l.out[i].Uid, want)
		}
	}
	l.leave(alice, setup, 1)
	for i, s := range l.out {
		if want := stage.OutputUID(uid('e', l.offset-1), i); !bytes.Equal(s.Uid, want) {
			t.Errorf("output %d: uid %x, want %x", i, s.Uid, want)
		}
	}
}

// Conferences are due in the order of time and uid, each on its own minute.
func TestPartialsOfManyConferences(t *testing.T) {
	l := newLog(t)
	const n = 50
	started := map[string]int64{}
	for i := range n {
		w := who{app: "1", room: fmt.Sprint("room ", i), user: "u", device: "d"}
		l.message()
		l.participant(w, present(l.alive))
		facts := openFacts()
		facts.StartedAtMs = l.received()
		l.conference(w, facts)
		started[w.room] = l.alive
		if i%3 == 0 {
			l.tick(1000)
		}
	}
	l.ticks(1)
	for range 180 {
		var rooms []string
		for _, s := range l.tick(1000) {
			if s.GetConference() == nil {
				t.Fatalf("wrote %s, which did not change", brief(s))
			}
			rooms = append(rooms, s.Identity.ConferenceId)
			if age := l.alive - started[s.Identity.ConferenceId]; age%60_000 != 0 {
				t.Errorf("%s was written at an age of %d ms", s.Identity.ConferenceId, age)
			}
		}
		if !slices.IsSortedFunc(rooms, func(a, b string) int {
			if started[a] != started[b] {
				return int(started[a] - started[b])
			}
			return bytes.Compare(name("1", a), name("1", b))
		}) {
			t.Errorf("order %v", rooms)
		}
	}
	count := map[string]int{}
	for _, s := range l.all {
		if s.GetConference() != nil {
			count[s.Identity.ConferenceId]++
		}
	}
	for room, got := range count {
		if want := 1 + int((l.alive-started[room])/60_000); got != want {
			t.Errorf("%s: %d summaries, want %d", room, got, want)
		}
	}
}

// A step longer than a minute (the ticker's owner stood still) writes once.
func TestPartialAfterALongStep(t *testing.T) {
	l := newLog(t)
	twoUsers(l)
	l.tick(1000)
	wantBriefs(t, "a long step", l.tick(190_000), "conference room partial 2 interval")
	wantBriefs(t, "until the next minute", l.ticks(48))
	wantBriefs(t, "the next minute", l.ticks(1), "conference room partial 3 interval")
}

func TestMetricsCountSummaries(t *testing.T) {
	l := newLog(t)
	twoUsers(l)
	l.tick(1000)
	l.leave(alice, setup, 1)
	l.leave(bob, setup, 1)
	l.end(1000, "")
	l.end(1000, "late_message")
	reg := prometheus.NewPedanticRegistry()
	counted := &countedMachine{Machine: NewMachine(), metrics: newMetrics(reg)}
	for _, in := range l.inputs {
		if _, err := counted.Step(in); err != nil {
			t.Fatal(err)
		}
	}
	for labels, want := range map[[2]string]float64{
		{"conference", "partial"}: 1, {"conference", "final"}: 1, {"conference", "revised"}: 1,
		{"participant", "partial"}: 2, {"participant", "final"}: 2, {"fabric", "final"}: 2, {"stream", "final"}: 0,
	} {
		if got := testutil.ToFloat64(counted.metrics.summaries.WithLabelValues(labels[0], labels[1])); got != want {
			t.Errorf("%v: counted %v, want %v", labels, got, want)
		}
	}
}
