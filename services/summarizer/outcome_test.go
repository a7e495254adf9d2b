package summarizer

import (
	"encoding/json"
	"strings"
	"testing"

	callscopev1 "github.com/callscope/callscope/proto/callscope/v1"
)

// seat is what one participant of a case tried. Fabrics are written as
// "remote outcome", in order, "@server" behind the remote for a server.
type seat struct {
	user       string
	fabrics    []string
	mediaError string // the function of a setup failure that named no fabric
	log        bool   // an application log with that function instead
	onFabric   bool   // the failure names the first fabric
	unanswered bool
	left       string // left_reason, else userLeft
}

func (l *log) play(seats []seat) {
	outcomes := map[string]callscopev1.FabricOutcome{"setup": setup, "failed": failed, "dropped": dropped, "aborted": aborted, "pending": pending}
	for _, s := range seats {
		w := who{app: "1", room: "room", user: s.user, device: "d"}
		l.message()
		l.participant(w, present(0))
		l.conference(room, openFacts())
		for i, text := range s.fabrics {
			remote, outcome, _ := strings.Cut(text, " ")
			f := w
			f.connection = string(rune('a' + i))
			facts := &callscopev1.FabricFacts{StartedAtMs: begin + int64(i), Outcome: outcomes[outcome]}
			f.remote, facts.RemoteType, _ = strings.Cut(remote, "@")
			if facts.Outcome == failed {
				facts.FailureFunction, facts.FailureReason = "createOffer", "NegotiationFailure"
			}
			l.message()
			l.fabric(f, facts)
		}
		if s.onFabric {
			w.connection = "a"
		}
		if s.mediaError != "" {
			l.message()
			l.event(w, &callscopev1.Event{EventType: "fabricSetupFailed", Failure: &callscopev1.FailureReported{Function: s.mediaError, Reason: "MediaConfigError", IsLog: s.log}})
		}
		if s.unanswered {
			w.connection = "a"
			l.message()
			l.event(w, &callscopev1.Event{EventType: "callUnAnswered"})
		}
	}
	for _, s := range seats {
		w := who{app: "1", room: "room", user: s.user, device: "d"}
		l.tick(1000)
		l.message()
		facts := present(0, l.alive)
		if s.left != "" {
			facts.LeftReason = s.left
		}
		l.participant(w, facts)
	}
}

func TestOutcomes(t *testing.T) {
	two := func(a, b string) []seat {
		return []seat{{user: "a", fabrics: []string{"b " + a}}, {user: "b", fabrics: []string{"a " + b}}}
	}
	for _, tc := range []struct {
		what string
		in   []seat
		want string
		rule string
	}{
		{"two connected", two("setup", "setup"), "success", "7"},
		{"a peer that leaves is no failure", []seat{
			{user: "a", fabrics: []string{"b setup", "c setup"}},
			{user: "b", fabrics: []string{"a setup", "c setup"}, left: "fabricTerminated"},
			{user: "c", fabrics: []string{"a setup", "b setup"}},
		}, "success", "7"},
		{"a peer that leaves while connecting beside a working call", []seat{
			{user: "a", fabrics: []string{"b setup", "c aborted"}},
			{user: "b", fabrics: []string{"a setup", "c aborted"}},
			{user: "c", fabrics: []string{"a aborted", "b aborted"}},
		}, "success", "7"},
		{"getUserMedia failed for one of three", []seat{
			{user: "a", fabrics: []string{"b setup"}}, {user: "b", fabrics: []string{"a setup"}}, {user: "c", mediaError: "getUserMedia"},
		}, "partialFailure", "5"},
		{"getUserMedia failed, then worked without camera", []seat{
			{user: "a", fabrics: []string{"b setup"}, mediaError: "getUserMedia"}, {user: "b", fabrics: []string{"a setup"}},
		}, "success", "7"},
		{"getUserMedia failed for both", []seat{{user: "a", mediaError: "getUserMedia"}, {user: "b", mediaError: "getUserMedia"}}, "totalFailure", "1"},
		{"getUserMedia failed for one of two", []seat{{user: "a", mediaError: "getUserMedia"}, {user: "b"}}, "totalFailure", "1"},
		{"getUserMedia failed for the callee, the caller hung up", []seat{{user: "a", fabrics: []string{"b aborted"}}, {user: "b", mediaError: "getUserMedia"}}, "totalFailure", "1"},
		{"nobody connected: both failed", two("failed", "failed"), "totalFailure", "1"},
		{"nobody connected: one failed, one closed", two("failed", "aborted"), "totalFailure", "1"},
		{"nobody connected: one failed, one never finished", two("failed", "pending"), "totalFailure", "1"},
		{"three failed", []seat{
			{user: "a", fabrics: []string{"b failed", "c failed"}}, {user: "b", fabrics: []string{"a failed", "c failed"}}, {user: "c", fabrics: []string{"a failed", "b failed"}},
		}, "totalFailure", "1"},
		{"one side connected, the other failed", two("setup", "failed"), "partialFailure", "5"},
		{"one side connected, the other hung up while checking", two("setup", "aborted"), "success", "7"},
		{"all dropped at once", two("dropped", "dropped"), "dropped", "6"},
		{"three dropped at once", []seat{
			{user: "a", fabrics: []string{"b dropped", "c dropped"}}, {user: "b", fabrics: []string{"a dropped", "c dropped"}}, {user: "c", fabrics: []string{"a dropped", "b dropped"}},
		}, "dropped", "6"},
		{"one saw it drop, the other fell silent", []seat{
			{user: "a", fabrics: []string{"b dropped"}}, {user: "b", fabrics: []string{"a setup"}, left: "idle"},
		}, "dropped", "6"},
		{"one saw it drop, the other hung up", []seat{
			{user: "a", fabrics: []string{"b dropped"}}, {user: "b", fabrics: []string{"a setup"}, left: "userLeft"},
		}, "success", "7"},
		{"everybody fell silent", []seat{
			{user: "a", fabrics: []string{"b setup"}, left: "idle"}, {user: "b", fabrics: []string{"a setup"}, left: "idle"},
		}, "success", "7"},
		{"one of three dropped", []seat{
			{user: "a", fabrics: []string{"b dropped", "c dropped"}}, {user: "b", fabrics: []string{"c setup", "a dropped"}}, {user: "c", fabrics: []string{"b setup", "a dropped"}},
		}, "success", "7"},
		{"dropped and connected anew", []seat{
			{user: "a", fabrics: []string{"b dropped", "b setup"}}, {user: "b", fabrics: []string{"a dropped", "a setup"}},
		}, "success", "7"},
		{"connected, then anew and dropped", []seat{
			{user: "a", fabrics: []string{"b setup", "b dropped"}}, {user: "b", fabrics: []string{"a setup", "a dropped"}},
		}, "dropped", "6"},
		{"dropped, and a third never connected", []seat{
			{user: "a", fabrics: []string{"b dropped"}}, {user: "b", fabrics: []string{"a dropped"}}, {user: "c", fabrics: []string{"a failed"}},
		}, "partialFailure", "5"},
		{"closed while checking", two("aborted", "aborted"), "aborted", "4"},
		{"closed while checking, one never finished", two("aborted", "pending"), "aborted", "4"},
		{"closed while checking with a server", []seat{{user: "a", fabrics: []string{"sfu@server aborted"}}}, "aborted", "4"},
		{"closed while checking, the remote unknown", []seat{{user: "a", fabrics: []string{" aborted"}}}, "aborted", "4"},
		{"offer made, nobody came", []seat{{user: "a", fabrics: []string{"b aborted"}}}, "missed", "3"},
		{"offer made, never finished, nobody came", []seat{{user: "a", fabrics: []string{"b pending"}}}, "missed", "3"},
		{"offer made, the other side only joined", []seat{{user: "a", fabrics: []string{"b aborted"}}, {user: "b"}}, "missed", "3"},
		{"offer made to two, nobody came", []seat{{user: "a", fabrics: []string{"b aborted", "c aborted"}}}, "missed", "3"},
		{"offer made to two, one came", []seat{{user: "a", fabrics: []string{"b aborted", "c aborted"}}, {user: "b", fabrics: []string{"a aborted"}}}, "aborted", "4"},
		{"the application says that nobody answered", []seat{
			{user: "a", fabrics: []string{"b aborted"}, unanswered: true}, {user: "b", fabrics: []string{"a aborted"}},
		}, "missed", "2"},
		{"unanswered, yet somebody connected", []seat{
			{user: "a", fabrics: []string{"b setup"}, unanswered: true}, {user: "b", fabrics: []string{"a setup"}},
		}, "success", "7"},
		{"unanswered after a failure", []seat{{user: "a", fabrics: []string{"b failed"}, unanswered: true}}, "totalFailure", "1"},
		{"alone in the room", []seat{{user: "a"}}, "", "no evidence"},
		{"two who only joined", []seat{{user: "a"}, {user: "b"}}, "", "no evidence"},
		{"a listener without fabrics beside a working call", []seat{
			{user: "a", fabrics: []string{"b setup"}}, {user: "b", fabrics: []string{"a setup"}}, {user: "c"},
		}, "success", "7"},
		{"an application log is no failure", []seat{{user: "a", mediaError: "getUserMedia", log: true}}, "", "no evidence"},
		{"an application log beside a working call", []seat{
			{user: "a", fabrics: []string{"b setup"}}, {user: "b", fabrics: []string{"a setup"}}, {user: "c", mediaError: "applicationLog", log: true},
		}, "success", "7"},
		{"an error on an established fabric is a failure row, not a failed fabric", []seat{
			{user: "a", fabrics: []string{"b setup"}, mediaError: "setRemoteDescription", onFabric: true}, {user: "b", fabrics: []string{"a setup"}},
		}, "success", "7"},
		{"what a report on a fabric means is for the fabric's facts to say", []seat{
			{user: "a", fabrics: []string{"b aborted"}, mediaError: "setRemoteDescription", onFabric: true}, {user: "b", fabrics: []string{"a aborted"}},
		}, "aborted", "4"},
		{"failed, then a later fabric to the same remote worked", []seat{
			{user: "a", fabrics: []string{"b failed", "b setup"}}, {user: "b", fabrics: []string{"a setup"}},
		}, "success", "7"},
		{"worked, then a later fabric to the same remote failed", []seat{
			{user: "a", fabrics: []string{"b setup", "b failed"}}, {user: "b", fabrics: []string{"a setup"}},
		}, "partialFailure", "5"},
		{"failed twice, worked the third time", []seat{
			{user: "a", fabrics: []string{"b failed", "b failed", "b setup"}}, {user: "b", fabrics: []string{"a setup"}},
		}, "success", "7"},
		{"everybody connected to somebody, one pair failed", []seat{
			{user: "a", fabrics: []string{"b setup", "c failed"}}, {user: "b", fabrics: []string{"a setup", "c setup"}}, {user: "c", fabrics: []string{"a failed", "b setup"}},
		}, "partialFailure", "5"},
		{"one alone on a server", []seat{{user: "a", fabrics: []string{"sfu@server setup"}}}, "success", "7"},
		{"one of two on a server failed", []seat{
			{user: "a", fabrics: []string{"sfu@server setup"}}, {user: "b", fabrics: []string{"sfu@server failed"}},
		}, "partialFailure", "5"},
		{"the server dropped everybody", []seat{
			{user: "a", fabrics: []string{"sfu@server dropped"}}, {user: "b", fabrics: []string{"sfu@server dropped"}},
		}, "dropped", "6"},
		{"two fabrics without a remote, one failed", []seat{{user: "a", fabrics: []string{" setup", " failed"}}}, "partialFailure", "5"},
		{"two fabrics without a remote, the first failed", []seat{{user: "a", fabrics: []string{" failed", " setup"}}}, "partialFailure", "5"},
	} {
		t.Run(tc.what, func(t *testing.T) {
			l := newLog(t)
			l.play(tc.in)
			l.ticks(60)
			for _, s := range l.all {
				if c := s.GetConference(); c != nil && (c.Outcome != "" || !strings.Contains(c.OutcomeEvidenceJson, `"open"`)) {
					t.Errorf("outcome %q of an open conference (%s)", c.Outcome, c.OutcomeEvidenceJson)
				}
			}
			l.end(l.alive, "")
			c := l.out[len(l.out)-1].GetConference()
			var e evidence
			if err := json.Unmarshal([]byte(c.OutcomeEvidenceJson), &e); err != nil {
				t.Fatal(err)
			}
			if c.Outcome != tc.want || e.Rule != tc.rule {
				t.Errorf("outcome %q by rule %q, want %q by %q; evidence %s", c.Outcome, e.Rule, tc.want, tc.rule, c.OutcomeEvidenceJson)
			}
		})
	}
}

func TestOutcomeEvidence(t *testing.T) {
	l := newLog(t)
	l.play([]seat{
		{user: "a", fabrics: []string{"b setup", "c failed"}}, {user: "b", fabrics: []string{"a setup", "c aborted"}},
		{user: "c", fabrics: []string{"a aborted"}, mediaError: "getUserMedia"}, {user: "d"},
	})
	l.end(l.alive, "")
	c := l.out[len(l.out)-1].GetConference()
	var e evidence
	if err := json.Unmarshal([]byte(c.OutcomeEvidenceJson), &e); err != nil {
		t.Fatal(err)
	}
	if want := (participantEvidence{Connected: 2, Failed: 1, Idle: 1}); e.Participants != want {
		t.Errorf("participants %+v, want %+v", e.Participants, want)
	}
	if want := (linkEvidence{Established: 2, Failed: 1, Aborted: 2}); e.Links != want {
		t.Errorf("links %+v, want %+v", e.Links, want)
	}
	if len(e.Failures) != 2 || e.Failures[0].Function != "createOffer" || e.Failures[1].Function != "getUserMedia" || e.Failures[1].Reason != "MediaConfigError" {
		t.Errorf("failures %+v", e.Failures)
	}
	if strings.Contains(c.OutcomeEvidenceJson, `"a"`) {
		t.Errorf("evidence names a user: %s", c.OutcomeEvidenceJson)
	}
}
